"""The commands behind `daam-diffusers`: generate, report, evaluate.

What imports torch is imported inside the command that needs it: `--help` and a mistyped flag are
answered at once.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table

from daam_diffusers.atomic import written_beside
from daam_diffusers.errors import TraceError

if TYPE_CHECKING:
    import torch

    from daam_diffusers.maps import HeatMaps

app = typer.Typer(
    help="Which words drew which pixels: DAAM heat maps for diffusers pipelines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


class InputError(Exception):
    """Something the user gave cannot be used; the message is one line."""


class Dtype(StrEnum):
    """Precisions of the command line."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def run(arguments: list[str]) -> int:
    """Run a command; errors become one line on standard error and exit code 2."""
    try:
        return app(arguments, prog_name="daam-diffusers", standalone_mode=False) or 0
    except (typer.TyperException, typer.Exit, typer.Abort) as error:
        return _usage(error)
    except (InputError, TraceError, ImportError) as error:
        return _fail(str(error))


def _usage(error: Exception) -> int:
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        return _fail("aborted")
    return _fail(getattr(error, "format_message", lambda: str(error))())


def _fail(message: str) -> int:
    line = " ".join(message.split())
    if line:
        typer.echo(f"daam-diffusers: error: {line}", err=True)
    return 2


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Folder of a pipeline, or its id on the Hub.")],
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="Folder for image, overlays, maps and report.")],
    words: Annotated[
        list[str] | None,
        typer.Option(help="A word or group of words to show; repeatable. Default: all."),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What not to draw.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial noise.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 30,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance; default: the pipeline's.")
    ] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Rows of pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Columns of pixels.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Default: float32 on a CPU, float16 elsewhere.")
    ] = None,
) -> None:
    """Generate an image and write it with its overlays, heat maps and report."""
    import torch

    from daam_diffusers.tracer import trace

    if (height is None) != (width is None):  # pipelines would ignore the one that is given
        raise InputError("--height and --width go together")
    place = _device(device)
    pipe = _load(model, dtype or (Dtype.float32 if place.type == "cpu" else Dtype.float16), place)
    chosen = _check_words(pipe, prompt, words)
    overlays = _folder(out / "overlays")
    arguments: dict[str, Any] = {"guidance_scale": guidance_scale, "height": height, "width": width}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    if negative_prompt:
        arguments["negative_prompt"] = negative_prompt
    try:
        with trace(pipe) as tracer:
            image = pipe(
                prompt,
                num_inference_steps=steps,
                generator=torch.Generator("cpu").manual_seed(seed),
                **arguments,
            ).images[0]
    except ValueError as error:  # e.g. a size that the pipeline cannot make
        raise InputError(str(error)) from error
    maps = tracer.heat_maps()
    with written_beside(out / "image.png") as temporary:
        image.save(temporary, format="PNG")
    maps.save(out / "heat_maps.safetensors")
    maps.to_html(out / "report.html", image)
    table = Table("word", "mean", "max", "overlay")
    for number, word in enumerate(chosen or maps, start=1):
        heat = maps[word]
        name = re.sub(r"[^\w-]+", "_", word)
        path = overlays / f"{number:02d}-{name}.png"
        with written_beside(path) as temporary:
            heat.overlay(image).save(temporary, format="PNG")
        table.add_row(word, f"{heat.values.mean():.4f}", f"{heat.values.max():.4f}", path.name)
    console.print(table)
    for name in ("image.png", "overlays", "heat_maps.safetensors", "report.html"):
        console.print(f"{out / name}", soft_wrap=True)


@app.command()
def report(
    maps: Annotated[Path, typer.Argument(help="A file written by HeatMaps.save or generate.")],
    image: Annotated[Path, typer.Argument(help="The image it belongs to.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Write the page that shows each word's map over the image."""
    found = _maps(maps)
    with _image(image) as picture:
        if not out.parent.is_dir():
            raise InputError(f"the folder {out.parent} does not exist")
        found.to_html(out, picture)
    console.print(str(out), soft_wrap=True)


@app.command()
def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(help="Holds folders with heat_maps.safetensors and WORD.gt.png masks."),
    ],
    threshold: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="On min-max maps; repeatable. Default: .3, .4, .5."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the scores as JSON.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random baseline.")] = 0,
) -> None:
    """Judge heat maps by segmentation: mean IoU with true masks, beside the plain baselines."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    from daam_diffusers import folder as folders

    try:
        scores = folders.evaluate(folder, tuple(threshold or (0.3, 0.4, 0.5)), seed=seed)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_message(error)) from error
    table = Table("method", "mIoU", title=f"{scores.images} images, {scores.masks} masks")
    for value, mean in scores.daam:
        table.add_row(f"DAAM, threshold {value:g}", f"{mean:.3f}")
    table.add_row("whole image", f"{scores.whole_image:.3f}")
    table.add_row("random half", f"{scores.random_half:.3f}")
    console.print(table)
    if out is not None:
        if not out.parent.is_dir():
            raise InputError(f"the folder {out.parent} does not exist")
        with written_beside(out) as temporary:
            temporary.write_text(json.dumps(scores.to_json(), indent=2) + "\n", encoding="utf-8")
        console.print(str(out), soft_wrap=True)


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {reason}") from error
    return device


def _load(model: str, dtype: Dtype, device: torch.device) -> Any:
    is_folder = Path(model).is_dir()
    if is_folder and not (Path(model) / "model_index.json").is_file():
        raise InputError(f"{model} is no pipeline: it has no model_index.json")
    if not is_folder and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise InputError(f"no such folder, and not an id such as 'owner/name': {model}")
    import torch
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, dtype.value))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load {model}: {_message(error)}") from error
    return pipe.to(device)


def _check_words(pipe: Any, prompt: str, words: list[str] | None) -> list[str]:
    """Unknown words are told before the image is made, not after."""
    from daam_diffusers.host import tokenizer_of
    from daam_diffusers.prompt import tokenize

    tokenizer = tokenizer_of(pipe)
    if not words or tokenizer is None:
        return []
    read = tokenize(prompt, tokenizer, int(tokenizer.model_max_length))
    try:
        return [read.find(word).text for word in words]
    except KeyError as error:
        raise InputError(_message(error)) from error


def _maps(path: Path) -> HeatMaps:
    from daam_diffusers.maps import HeatMaps

    try:
        return HeatMaps.load(path)
    except (OSError, ValueError) as error:
        raise InputError(_message(error)) from error


def _image(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror or error}") from error
    return path


def _message(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
