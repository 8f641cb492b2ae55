"""The application, its consoles, and options that several commands share."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console

if TYPE_CHECKING:
    from hf_cudagraph_asr.durations import Durations
    from hf_cudagraph_asr.geometry import Geometry

app = typer.Typer(
    help="Wav2Vec2 on a pool of length-bucketed CUDA graphs, without changing a transcript.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from hf_cudagraph_asr import __version__

        typer.echo(f"hf-cudagraph-asr {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


console = Console(emoji=False)  # a path may hold :a:
errors = Console(stderr=True, emoji=False)

Plan: TypeAlias = Annotated[
    Path | None, typer.Option(help="The lengths to capture, as `plan` wrote them.")
]
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Dtype: TypeAlias = Annotated[
    str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")
]
Column: TypeAlias = Annotated[
    str, typer.Option(help="The column, or the key of JSON lines, that holds seconds.")
]
Progress: TypeAlias = Annotated[bool, typer.Option(help="Show progress bars.")]


def say(text: object) -> None:
    """A line on standard output, wrapped by the terminal alone."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """A warning on standard error."""
    _tell("warning", text, "yellow")


def fail(text: str) -> int:
    """An error on standard error; returns the exit code of a mistake."""
    if text.strip():  # typer's own help where nothing was asked has been shown already
        _tell("error", text.strip(), "red")
    return 2


def _tell(kind: str, text: str, style: str) -> None:
    line = f"hf-cudagraph-asr: {kind}: {text}"
    errors.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def counted(number: int, noun: str) -> str:
    """A number and its noun, which is given in the singular.

    >>> counted(1, "query"), counted(1234, "query"), counted(2, "file")
    ('1 query', '1,234 queries', '2 files')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def sizes(text: str | None) -> tuple[int, ...] | None:
    """Whole numbers in a list such as "1,4".

    Raises:
        ValueError: there are other things in it.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,8}", word) for word in words):
        raise ValueError(f"--batch-sizes {text}: expected whole numbers from 1 up, such as 1,4")
    return tuple(int(word) for word in words)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def size_in_bytes(text: str | None) -> float | None:
    """A number of bytes such as "1GiB", "500MB" or "1000000".

    >>> size_in_bytes("1.5GiB"), size_in_bytes("500 MB")
    (1610612736.0, 500000000.0)

    Raises:
        ValueError: it is none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if found is None or not float(found[1]):
        raise ValueError(f"--memory-limit {text}: expected bytes, such as 1000000, 500MB or 1GiB")
    return float(found[1]) * _UNITS[found[2] or ""]


def keep_apart(out: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse to replace what is read.

    Raises:
        ValueError: the output is one of the inputs.
    """
    for path in inputs:
        if path is not None and path.resolve() == out.resolve():
            raise ValueError(f"{out} is read, and would be replaced: write to another file")


def quiet_host(progress: bool) -> None:
    """The host's bars only where ours are."""
    if not (progress and sys.stderr.isatty()):
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def usable(found: Durations, geometry: Geometry) -> Durations:
    """Those that a model can transcribe; what is left out is told on standard error."""
    for message in found.unread:
        warn(message)
    if found.unread:
        warn(f"{counted(len(found.unread), 'file')} could not be read: not counted")
    if found.missing:
        warn(f"{counted(found.missing, 'row')} without a number of seconds: not counted")
    shortest = geometry.receptive_field / geometry.sampling_rate
    usable = found.at_least(shortest)
    if short := len(found) - len(usable):
        warn(
            f"{counted(short, 'duration')} below the {shortest:g} s of a frame, down to "
            f"{found.seconds.min():g} s: not counted"
        )
    return usable
