"""The commands behind `daam-diffusers`: generate, report, evaluate, study.

What imports torch is imported inside the command that needs it: `--help` and a mistyped flag are
answered at once.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from PIL import Image, ImageSequence
from rich.console import Console
from rich.table import Table

from daam_diffusers.atomic import check_target, file_above, write_rows
from daam_diffusers.errors import TraceError, TraceWarning

if TYPE_CHECKING:
    import torch

    from daam_diffusers.evaluation import Predictor
    from daam_diffusers.folder import FolderScores, Score
    from daam_diffusers.maps import HeatMaps
    from daam_diffusers.samples import Row

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()


Dtype = Literal["float32", "float16", "bfloat16"]
Offload = Literal["model", "sequential"]  # what of the pipeline moves to the accelerator at once


def run(arguments: list[str]) -> int:
    """Run a command; errors become one line on standard error and exit code 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other libraries warn of is not the user's doing
        warnings.simplefilter("always", TraceWarning)
        warnings.showwarning = lambda message, *_args, **_kwargs: _warn(str(message))
        try:
            return app(arguments, prog_name="daam-diffusers", standalone_mode=False) or 0
        except typer.Exit as error:
            return error.exit_code
        except (typer.TyperException, typer.Abort) as error:
            message = getattr(error, "format_message", lambda: "aborted")()
        except (ValueError, TraceError, ImportError, OSError) as error:  # what the user gave
            message = _message(error)
    if message.strip():
        _warn(message, "error")
    return 2


def _warn(message: str, kind: str = "warning") -> None:
    typer.echo(f"daam-diffusers: {kind}: {' '.join(message.split())}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"daam-diffusers {version('daam-diffusers')}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Which words drew which pixels: DAAM heat maps for diffusers pipelines."""


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Folder of a pipeline, or its id on the Hub.")],
    out: Annotated[str, typer.Option(help="Folder for image, overlays, maps and report.")],
    prompt: Annotated[str | None, typer.Option(help="What to draw.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help='Many: a file of rows {"prompt": "a dog", "id": "dog-1", "seed": 7}.'),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option(help="A word or group of words to show; repeatable. Default: all."),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What not to draw.")] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the initial noise.")] = 0,
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
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a video.")] = None,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second of a video's overlays.")] = 8,
    variant: Annotated[
        str | None, typer.Option(help="Variant of the weights' files, e.g. fp16.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="LoRA to load, a file, a folder or an id on the Hub; repeatable."),
    ] = None,
    refine: Annotated[
        bool, typer.Option(help="Overlays and report of refined maps, see HeatMaps.refined.")
    ] = False,
    offload: Annotated[
        Offload | None, typer.Option(help="Keep in the accelerator's memory only what runs.")
    ] = None,
) -> None:
    """Generate an image or a video and write it with its overlays, heat maps and report.

    Each place of a word gets an overlay: 02-dog.png is the first "dog" of the prompt, 02-dog-2.png
    the second. Overlays of an earlier run in the same folder are removed.

    With --prompts, each row gets a folder with image and heat maps, named by its id or its number.
    A run that was killed goes on where it was, and under accelerate launch, or torchrun, processes
    share the rows. A row without a seed has --seed plus its number.
    """
    if not out:
        raise ValueError("--out is empty: give the path of a folder, or . for this one")
    if (prompt is None) == (prompts is None):
        raise ValueError("give --prompt TEXT or --prompts FILE, one of them")
    if prompts is not None and words:
        raise ValueError("--words goes with --prompt: samples of --prompts have no overlays")
    if guidance_scale is not None and not math.isfinite(guidance_scale):
        raise ValueError(f"--guidance-scale must be a finite number, got {guidance_scale}")
    if (height is None) != (width is None):  # pipelines would ignore the one that is given
        raise ValueError("--height and --width go together")
    from daam_diffusers import samples

    folder = Path(out)
    alone = (samples.IMAGE, samples.VIDEO, samples.MAPS, "report.html")
    written = alone if prompts is None else (samples.MANIFEST,)
    _check_folder(folder, written, [prompts, *map(Path, lora or [])])
    from accelerate import PartialState

    settings: dict[str, Any] = {
        "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
        "variant": variant, "lora": lora, "dtype": dtype, "refine": refine,
        "steps": steps, "negative_prompt": negative_prompt or None, "height": height,
        "width": width, "guidance_scale": guidance_scale, "num_frames": frames, "fps": fps,
    }  # fmt: skip
    rows = samples.read_rows(prompts, seed) if prompts is not None else []
    chosen = _check_words(prompt or "", words)
    place = _device(device)
    if offload and place.type == "cpu":
        raise ValueError(f"--offload {offload} needs an accelerator, and --device is the CPU")
    process = PartialState(cpu=place.type == "cpu")
    if process.num_processes > 1 and ":" not in device:
        place = process.device
    settings["dtype"] = dtype or ("float32" if place.type == "cpu" else "float16")
    pipe = _load(model, settings["dtype"], variant, lora or [])
    if offload:
        getattr(pipe, f"enable_{offload}_cpu_offload")(device=place)
    else:
        pipe.to(place)
    # Many pipelines swallow arguments that they do not know.
    known = inspect.signature(pipe.__call__).parameters
    if unknown := {name for name in _ARGUMENTS if settings[name] is not None} - known.keys():
        raise ValueError(f"{type(pipe).__name__} has no {', '.join(sorted(unknown))}")
    if prompt is None:
        pipe.set_progress_bar_config(disable=True)
        draw = partial(_draw, pipe, settings)
        share = slice(process.process_index, None, process.num_processes)
        made = samples.fill(folder, rows, settings, draw, share)
        console.print(f"{folder}: {made} new of {len(rows)} samples", soft_wrap=True)
        process.destroy_process_group()
        return
    folder.mkdir(parents=True, exist_ok=True)
    maps, drawn, picture = _draw(pipe, settings, samples.Row("", prompt, seed), folder)
    maps = maps.refined() if refine else maps
    maps.to_html(folder / "report.html", drawn, fps=fps)
    _write_overlays(maps, drawn, chosen or list(maps), folder / "overlays", fps)
    for name in (picture, "overlays", samples.MAPS, "report.html"):
        console.print(f"{folder / name}", soft_wrap=True)


_ARGUMENTS = ("negative_prompt", "guidance_scale", "height", "width", "num_frames")


def _draw(pipe: Any, settings: dict[str, Any], row: Row, folder: Path) -> tuple[HeatMaps, Any, str]:
    """Write what a row asks for, and its maps, to a folder; returns both, and the file's name."""
    import torch

    from daam_diffusers import samples, video
    from daam_diffusers.tracer import trace

    arguments = {name: settings[name] for name in _ARGUMENTS if settings[name] is not None}
    try:
        with trace(pipe, refine=settings["refine"]) as tracer:
            output = pipe(
                row.prompt,
                num_inference_steps=settings["steps"],
                generator=torch.Generator("cpu").manual_seed(row.seed),
                **arguments,
            )
    except torch.OutOfMemoryError as error:
        raise ValueError(str(error)) from error
    maps = tracer.heat_maps()
    asked = {"lora": ", ".join(settings["lora"] or []), "variant": settings["variant"]}
    known = {key: value for key, value in asked.items() if value}
    maps = replace(maps, provenance={**maps.provenance, **known})
    if maps.frames is None:
        drawn, picture = output.images[0], samples.IMAGE
    else:
        drawn, picture = video.pictures(output.frames[0], maps.frames), samples.VIDEO
    video.save(folder / picture, drawn, settings["fps"])
    maps.save(folder / samples.MAPS)
    return maps, drawn, picture


def _write_overlays(maps: HeatMaps, drawn: Any, words: list[str], folder: Path, fps: int) -> None:
    """Write an overlay for each place of each word, and show a table of them."""
    folder.mkdir(exist_ok=True)
    for older in folder.iterdir():
        if re.fullmatch(r"\d\d+-[\w-]+\.(png|webp)", older.name):
            older.unlink()
    suffix = ".png" if maps.frames is None else ".webp"
    table = Table("word", "mean", "max", "overlay")
    for number, text in enumerate(words, start=1):
        try:
            places = maps.prompt.places(text)
        except KeyError as error:  # beyond the text encoder's window
            _warn(_message(error))
            continue
        for occurrence, word in enumerate(places, start=1):
            heat = maps.combine(word)
            later = f"-{occurrence}" if occurrence > 1 else ""
            name = re.sub(r"[^\w-]+", "_", word.text)[:60]
            path = heat.save(folder / f"{number:02d}-{name}{later}{suffix}", drawn, fps=fps)
            row = (f"{heat.values.mean():.4f}", f"{heat.values.max():.4f}", path.name)
            table.add_row(f"{word.text} ({occurrence})" if later else word.text, *row)
    console.print(table)


@app.command()
def report(
    maps: Annotated[Path, typer.Argument(help="A file written by HeatMaps.save or generate.")],
    image: Annotated[
        Path, typer.Argument(help="The image it belongs to, or the video as WebP or GIF.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    fps: Annotated[int, typer.Option(min=1, help="Frames a second of a video.")] = 8,
) -> None:
    """Write the page that shows each word's map over the image."""
    if maps.suffix != ".safetensors" == image.suffix:
        raise ValueError(f"the file of maps comes first, then the image, got {maps} {image}")
    _check_outputs([out], [maps, image], ".html")
    from daam_diffusers.maps import HeatMaps

    found = HeatMaps.load(maps)
    try:
        with Image.open(image) as picture:
            shown: Image.Image | list[Image.Image] = picture
            if found.frames is not None:
                shown = [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
            found.to_html(out, shown, fps=fps)
    except (ValueError, OSError, SyntaxError) as error:  # e.g. a picture that is cut short
        raise ValueError(f"{image}: {error}") from error
    console.print(str(out), soft_wrap=True)


def _check_outputs(out: Iterable[Path], read: Iterable[Path], own: str | None = None) -> None:
    """Refuse outputs that would replace what the command reads, and those of `check_target`."""
    kept = {os.path.realpath(path) for path in read}
    for path in out:
        if os.path.realpath(path) in kept:
            raise ValueError(
                f"--out {path} is read by this command, or belongs to what it reads: give the path "
                "of another file"
            )
        check_target(path, own)


def _check_folder(out: Path, names: Iterable[str], read: Iterable[Path | None]) -> None:
    """Refuse a folder that is a file, or where files of these names cannot be written."""
    if file := file_above(out / "any"):
        raise NotADirectoryError(f"--out {out}: {file} is a file: give the path of a folder")
    if out.is_dir():
        _check_outputs((out / name for name in names), [path for path in read if path])


def _threshold(text: str) -> float | str:
    try:
        return "otsu" if text.lower() == "otsu" else float(text)
    except ValueError as error:
        raise typer.BadParameter(f"a number from 0 to 1 or otsu, got {text!r}") from error


@app.command()
def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(help="Holds folders with heat_maps.safetensors and WORD.gt.png masks."),
    ],
    threshold: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_threshold,
            help="On min-max maps, or otsu; repeatable. Default: .3, .4, .5 and otsu.",
        ),
    ] = None,
    refined: Annotated[
        bool, typer.Option(help="Judge refined maps: files of generate --refine.")
    ] = False,
    clipseg: Annotated[
        str | None,
        typer.Option(help="Judge CLIPSeg beside them: its folder, or its id on the Hub."),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(help="Also write the scores: all as JSON, or the means as .csv; repeatable."),
    ] = None,
) -> int:
    """Judge heat maps by segmentation: mean IoU with true masks, beside the plain baselines.

    A mask that cannot be judged is named and left out, and the exit code is 1 then; it is 2 if
    none can be judged.
    """
    from daam_diffusers import folder as folders
    from daam_diffusers import samples

    read = [file for pattern in folders.KEPT for file in samples.find(folder, pattern)]
    model_files = [] if clipseg is None else Path(clipseg).glob("*")
    _check_outputs(out or [], [*read, *model_files], "JSON or CSV")
    limits = threshold or [0.3, 0.4, 0.5, "otsu"]
    predictors: dict[str, Predictor] = {}
    if clipseg is not None:
        from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

        from daam_diffusers.evaluation import ClipSeg

        model = CLIPSegForImageSegmentation.from_pretrained(clipseg)
        predictors["CLIPSeg"] = ClipSeg(model, CLIPSegProcessor.from_pretrained(clipseg))
    scores = folders.evaluate(folder, limits, refined=refined, predictors=predictors)
    _show(scores)
    for path in out or []:
        write_rows(path, [asdict(score) for score in scores.scores], asdict(scores))
    return _finish(out or [], scores.problems)


def _finish(written: Iterable[Path], problems: Sequence[str]) -> int:
    """Show what was written and what was left out; returns the exit code."""
    for path in written:
        console.print(str(path), soft_wrap=True)
    for problem in problems:
        _warn(problem)
    return 1 if problems else 0


def _show(scores: FolderScores, most: int = 20) -> None:
    """Show the means over all masks, and those of the words and classes that have most masks."""
    title = f"{scores.images} image(s), {scores.masks} mask(s)"
    table = Table("method", "mode", "masks", "mIoU", "COCO-80", title=title)
    cells = {(x.method, x.mode, x.group): x for x in scores.scores if not x.name}
    for method, mode in dict.fromkeys(key[:2] for key in cells):
        found = [cells.get((method, mode, group)) for group in ("open", "coco80")]
        count = str(found[0].masks if found[0] else 0)
        table.add_row(method.replace("_", " "), mode, count, *map(_cell, found))
    console.print(table)
    table = Table("word or class", "masks", *scores.miou, title=f"the {most} most frequent")
    named = {(x.group, x.name, x.method): x for x in scores.scores if x.name}
    counts = Counter({(x.group, x.name): x.masks for x in named.values()})
    for (group, name), masks in counts.most_common(most):
        row = (f"{named[group, name, method].miou:.3f}" for method in scores.miou)
        table.add_row(f"{name} (COCO)" if group == "class" else name, str(masks), *row)
    console.print(table)


def _cell(score: Score | None) -> str:
    if score is None or score.margin is None:
        return f"{score.miou:.3f}" if score else ""
    return f"{score.miou:.3f} ± {score.margin:.3f}"


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", name):
        raise ValueError(f"--device must be cpu, cuda, cuda:1, mps or auto, got {name!r}")
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}") from error
    return device


def _load(model: str, dtype: Dtype, variant: str | None, loras: list[str]) -> Any:
    if not Path(model).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise ValueError(f"no such folder, and not an id such as 'owner/name': {model}")
    import torch
    from diffusers import DiffusionPipeline

    loading = model
    try:
        weights = getattr(torch, dtype)
        pipe = DiffusionPipeline.from_pretrained(model, dtype=weights, variant=variant)
        for number, lora in enumerate(loras):
            loading = f"the LoRA {lora}"
            if not hasattr(pipe, "load_lora_weights"):
                raise ValueError(f"{type(pipe).__name__} takes none")
            file = Path(lora)
            source, name = (str(file.parent), file.name) if file.is_file() else (lora, None)
            pipe.load_lora_weights(source, weight_name=name, adapter_name=f"lora_{number}")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"cannot load {loading}: {_message(error)}") from error
    if loras:
        pipe.set_adapters([f"lora_{number}" for number in range(len(loras))])
    return pipe


def _check_words(prompt: str, words: list[str] | None) -> list[str]:
    """The words as they stand in the prompt; one that is not there is an error before the run."""
    from daam_diffusers.prompt import Prompt, Token

    read = Prompt(prompt, (Token(prompt, 0, len(prompt), 0),), 1)  # which tokens does not matter
    try:
        return [read.find(word).text for word in words or []]
    except KeyError as error:
        raise ValueError(_message(error)) from error


def _message(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


@app.command()
def study(
    folder: Annotated[
        Path, typer.Argument(help="Holds folders with heat_maps.safetensors and image.png.")
    ],
    spacy: Annotated[str, typer.Option(help="spaCy model, by name or folder.")],
    threshold: Annotated[float, typer.Option(min=0, max=1, help="On min-max maps.")] = 0.4,
    categories: Annotated[
        Path | None, typer.Option(help='JSON of nouns and categories, {"zebra": "animal"}.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, CSV and HTML.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many share the work.")] = 1,
) -> int:
    """Study parts of speech and syntax: how large words' maps are, how far related ones overlap.

    An image that cannot be measured is named and left out, and the exit code is 1 then.
    """
    if out:
        _check_folder(out, ("study.json", "study.csv", "study.html"), [categories])
    from daam_diffusers import study as studies

    named = None if categories is None else studies.read_categories(categories)
    found = studies.study(folder, spacy, threshold=threshold, categories=named, processes=processes)
    for name, rows in found.tables():
        columns = dict.fromkeys(column for cells in rows.values() for column in cells)
        table = Table(name, "count", *columns, title=studies.TABLES[name])
        for row, cells in rows.items():
            count = next(iter(cells.values())).count
            table.add_row(row, f"{count}", *(f"{cells.get(column, '')}" for column in columns))
        console.print(table)
    return _finish([] if out is None else found.save(out), found.problems)
