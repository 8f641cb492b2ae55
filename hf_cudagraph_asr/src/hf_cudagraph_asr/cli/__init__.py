"""The commands behind `hf-cudagraph-asr`, their consoles, and the options that they share.

    plan         a log's durations → the lengths to capture
    transcribe   recordings → texts with word times
    bench        how long a query takes, with graphs and without
    serve        an HTTP service on Ray Serve

Slow packages are imported inside the commands: `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

COMMANDS = ("plan", "transcribe", "bench", "serve")  # in the order of the help's list

app = typer.Typer(
    help="Wav2Vec2 on a pool of length-bucketed CUDA graphs, without changing a transcript in "
    "float32.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model: TypeAlias = Annotated[str, typer.Option(help="The model's folder, or its name on the hub.")]
Backend: TypeAlias = Annotated[
    str, typer.Option(help="The backend: auto, cuda, export, compile or eager.")
]
Plan: TypeAlias = Annotated[
    Path | None, typer.Option(help="The plan of the lengths to capture, as `plan` wrote it.")
]
Device: TypeAlias = Annotated[
    str, typer.Option(help="The device of the model: auto, cpu, cuda or cuda:1.")
]
Dtype: TypeAlias = Annotated[
    str,
    typer.Option(
        help="The dtype of the model: auto (the checkpoint's own), float32, bfloat16 or float16. "
        "Half precision changes a few transcripts."
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from hf_cudagraph_asr import __version__

        typer.echo(f"hf-cudagraph-asr {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def script() -> None:
    """Run the command line of the process, and end it with the exit code."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of these arguments, or of the process; give the exit code.

    Errors go to standard error without a traceback. The code is 2 for a mistake, 130 when
    interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal or a pipe is not UTF-8, a transcript's letters are no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler, logger = _Warnings(logging.WARNING), logging.getLogger("hf_cudagraph_asr")
    logger.addHandler(handler)
    try:
        _register()
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: warn(str(message))
            return app(given, prog_name="hf-cudagraph-asr", standalone_mode=False) or 0
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):  # typer makes the second of the first
        return 130
    except typer.TyperException as error:  # a flag that is not there, and the like
        return fail(error.format_message())
    except (OSError, ValueError, ImportError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.strerror:
            message = error.strerror + (f": {error.filename}" if error.filename else "")
        return fail(message)
    finally:
        logger.removeHandler(handler)


def _register() -> None:
    """Add the commands, whose modules import this one."""
    if not app.registered_commands:
        for name in COMMANDS:
            app.command(name)(getattr(import_module(f"{__name__}.{name}"), name))


class _Warnings(logging.Handler):
    """Prints the warnings that the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def say(text: object) -> None:
    """Print a line on standard output."""
    typer.echo(text)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    _print_error("warning", text, typer.colors.YELLOW)


def fail(text: str) -> int:
    """Print an error on standard error; returns the exit code of a mistake."""
    if text.strip():  # typer's own help where nothing was asked has been shown already
        _print_error("error", text, typer.colors.RED)
    return 2


def _print_error(kind: str, text: str, color: str) -> None:
    line = " ".join(part.strip() for part in text.strip().splitlines())
    typer.secho(f"hf-cudagraph-asr: {kind}: {line}", fg=color, err=True)


def counted(number: int, noun: str) -> str:
    """Write a number and its noun, which is given in the singular.

    >>> counted(1, "query"), counted(1234, "query"), counted(2, "file")
    ('1 query', '1,234 queries', '2 files')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def sizes(text: str | None) -> tuple[int, ...] | None:
    """Read whole numbers in a list such as "1,4"."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,8}", word) for word in words):
        raise ValueError(f"--batch-sizes {text}: expected whole numbers from 1 up, such as 1,4")
    return tuple(int(word) for word in words)


def quiet_host() -> None:
    """Show the host's progress bars on a terminal only, as ours are."""
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
