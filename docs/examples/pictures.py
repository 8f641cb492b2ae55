"""The documentation's pictures of the three packages, made by running them.

    python docs/examples/pictures.py            # all, into docs/figures
    python docs/examples/pictures.py plan       # one of them

`make figures` runs it: with the small models and the simulated log of this folder, the commands
that a user would call, and Chromium for the two HTML reports. Each picture is smaller than 150 kB.
"""

from __future__ import annotations

import argparse
import io
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from diffusers import AnimateDiffPipeline, DiffusionPipeline, UNetMotionModel
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from daam_diffusers import HeatMaps, trace

mpl.use("Agg")

import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
LOG = HERE / "households"
CAPTION = "a red house left of a green tree at night"
WORDS = ("red", "house", "green", "tree", "night")
NOUNS = ("house", "tree")
GUIDANCE = 3.0
SEED = 0
FRAMES = 5
NOISES = (3, 4)
"""Seeds of the noise that the video begins and ends with."""

_SCALE = 4  # pixels of a picture a pixel of the model's image, before the overlay is drawn


@dataclass(frozen=True)
class Traced:
    """What the pipeline drew, larger than it drew it, and the maps of its words."""

    small: Image.Image
    image: Image.Image
    maps: HeatMaps


def larger(image: Image.Image) -> Image.Image:
    size = (image.width * _SCALE, image.height * _SCALE)
    return image.resize(size, Image.Resampling.BICUBIC)


@cache
def pipeline() -> Any:
    pipe = DiffusionPipeline.from_pretrained(HERE / "tinyworld/model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def traced(steps: int) -> Traced:
    pipe = pipeline()
    with trace(pipe, refine=True) as tracer:
        small = pipe(
            CAPTION,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED),
        ).images[0]
    return Traced(small, larger(small), tracer.heat_maps())


def write(picture: Image.Image, path: Path) -> None:
    picture.convert("RGB").save(path, quality=80, method=6)


def grid(rows: Sequence[Sequence[tuple[str, Image.Image]]], path: Path) -> None:
    """Draw images under their titles, in rows of one length."""
    size = (1.6 * len(rows[0]), 1.75 * len(rows))
    figure, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=size, layout="constrained", squeeze=False
    )
    for ax, (title, image) in zip(axes.flat, [cell for row in rows for cell in row], strict=True):
        ax.imshow(image)
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=140)
    plt.close(figure)
    write(Image.open(drawn), path)


def overlays(path: Path, steps: int) -> None:
    """A generated image, and the overlays of five of its words."""
    done = traced(steps)
    cells = [("image", done.image)]
    cells += [(f"“{word}”", done.maps[word].overlay(done.image)) for word in WORDS]
    grid([cells[:3], cells[3:]], path)


def refined(path: Path, steps: int) -> None:
    """The overlays of three words: plain, refined by self-attention, and guided by the image."""
    done = traced(steps)
    sharper = done.maps.refined()
    words = ("red", "green", "tree")
    rows = {
        "plain": [done.maps[word] for word in words],
        "refined": [sharper[word] for word in words],
        "guided": [sharper[word].upscale(guide=done.small) for word in words],
    }
    grid(
        [
            [
                (f"“{word}”, {name}", found.overlay(done.image))
                for word, found in zip(words, row, strict=True)
            ]
            for name, row in rows.items()
        ],
        path,
    )


def video_pipeline() -> Any:
    """The small model as a video pipeline: AnimateDiff, with motion modules that add nothing.

    No small video model is trained here. Each frame is therefore drawn by itself.
    """
    pipe = pipeline()
    config = pipe.unet.config
    unet = UNetMotionModel(
        sample_size=config.sample_size,
        down_block_types=("CrossAttnDownBlockMotion",) * 2,
        up_block_types=("CrossAttnUpBlockMotion",) * 2,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        num_attention_heads=config.attention_head_dim,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
        mid_block_layers=0,
    )
    absent, unknown = unet.load_state_dict(pipe.unet.state_dict(), strict=False)
    assert not unknown
    assert all("motion_modules" in name for name in absent)
    for name, parameter in unet.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            torch.nn.init.zeros_(parameter)
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer")}
    video = AnimateDiffPipeline(
        **parts, unet=unet.eval(), motion_adapter=None, scheduler=pipe.scheduler
    )
    video.set_progress_bar_config(disable=True)
    return video


def video(path: Path, steps: int) -> None:
    """The frames of a video whose noise turns from one seed's into another's, with overlays."""
    first, last = (
        torch.randn((1, 4, 1, 16, 16), generator=torch.Generator().manual_seed(seed))
        for seed in NOISES
    )
    angle = torch.linspace(0, math.pi / 2, FRAMES).view(1, 1, FRAMES, 1, 1)
    pipe = video_pipeline()
    with trace(pipe) as tracer:
        small = pipe(
            CAPTION,
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=first * angle.cos() + last * angle.sin(),  # (1, 4, F, 16, 16), variance 1
        ).frames[0]
    maps = tracer.heat_maps()
    frames = [larger(frame) for frame in small]
    rows = [[(f"frame {i}", frame) for i, frame in enumerate(frames, 1)]]
    rows += [[(f"“{word}”", one) for one in maps[word].overlay(frames)] for word in NOUNS]
    grid(rows, path)


@contextmanager
def shown(html: str, width: int, height: int) -> Iterator[Page]:
    """A page as Chromium shows it on a desk in daylight."""
    quiet = [f"--disable-{name}" for name in ("background-networking", "component-update", "sync")]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", *quiet]
        )
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="light",
            device_scale_factor=1.5,
        )
        page.set_content(html)
        yield page
        browser.close()


def screenshot(of: Page | Locator, path: Path) -> None:
    write(Image.open(io.BytesIO(of.screenshot())), path)


def heat_map_report(path: Path, steps: int) -> None:
    """The HTML report of a generated image while its reader points at a word."""
    done = traced(steps)
    with tempfile.TemporaryDirectory() as folder:
        html = done.maps.to_html(Path(folder) / "report.html", done.small).read_text()
    with shown(html, 900, 675) as page:
        page.get_by_role("button", name="tree").first.hover()
        screenshot(page, path)


def command(name: str, *arguments: object) -> None:
    """Run a command of the environment that runs this."""
    subprocess.run(
        [Path(sys.executable).with_name(name), *map(str, arguments)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


@cache
def label_html() -> str:
    """The report of weaklabel on the simulated log and its gold, as `make demo` makes it."""
    queries, gold = LOG / "queries.parquet", LOG / "gold.parquet"
    with tempfile.TemporaryDirectory() as folder:
        votes, model, html = (Path(folder) / name for name in ("votes.parquet", "m.json", "r.html"))
        command("weaklabel", "apply", queries, "--out", votes, "--no-progress")
        command("weaklabel", "fit", votes, "--out", model)
        command(
            *("weaklabel", "report", votes, "--model", model, "--gold", gold),
            *("--queries", queries, "--html", html),
        )
        return html.read_text()


def label_report(path: Path, steps: int) -> None:
    """The head of weaklabel's HTML report: the verdict, shares, and the first functions."""
    with shown(label_html(), 1220, 860) as page:
        screenshot(page, path)


def label_wer(path: Path, steps: int) -> None:
    """Of the same report, the word error rates of rejected and accepted, and by weight."""
    with shown(label_html(), 700, 860) as page:
        screenshot(page.locator(".plot").last, path)


def plan(path: Path, steps: int) -> None:
    """Eight buckets against the traffic of the simulated log."""
    with tempfile.TemporaryDirectory() as place:
        command(
            *("hf-cudagraph-asr", "plan", LOG / "queries.parquet", "--column", "duration"),
            *("--graphs", 8, "--out", Path(place) / "plan.json", "--plot", path),
        )


PICTURES: dict[str, Callable[[Path, int], None]] = {
    "overlays.webp": overlays,
    "refined.webp": refined,
    "video.webp": video,
    "heat-map-report.webp": heat_map_report,
    "label-report.webp": label_report,
    "label-wer.webp": label_wer,
    "plan.png": plan,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [Path(name).stem for name in PICTURES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "figures")
    parser.add_argument("--steps", type=int, default=20, help="of a generation (%(default)s)")
    options = parser.parse_args(arguments)
    if unknown := {*options.names}.difference(names):
        parser.error(f"no picture {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for name, draw in PICTURES.items():
        if Path(name).stem in (options.names or names):
            draw(options.folder / name, options.steps)
            print(options.folder / name)


if __name__ == "__main__":
    main()
