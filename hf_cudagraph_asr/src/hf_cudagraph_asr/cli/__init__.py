"""The commands behind `hf-cudagraph-asr`.

    plan         a log's durations → the lengths to capture
    transcribe   recordings → texts with word times
    bench        how long a query takes, with graphs and without
    serve        an HTTP service on Ray Serve

A command's module is imported when the command is called, and what takes long to import inside
the command: `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import typer

from hf_cudagraph_asr.cli.console import app, fail, warn

COMMANDS = ("plan", "transcribe", "bench", "serve")  # in the order of the help's list

TRACEBACK = "HF_CUDAGRAPH_ASR_TRACEBACK"
"""An environment variable: set to 1, errors come with their traceback."""


def script() -> None:
    """What the installed script calls."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    try:
        return run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # as a shell tells it
        return 130


def run(arguments: list[str]) -> int:
    """Run a command; errors go to standard error without a traceback, with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal or a pipe is not UTF-8, a transcript's letters are no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _register(arguments)
    try:
        with warnings.catch_warnings(), _logged():
            warnings.showwarning = lambda message, *_, **__: warn(str(message))
            return app(arguments, prog_name="hf-cudagraph-asr", standalone_mode=False) or 0
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # which typer turns into this
            return 130
        return fail("aborted")
    except typer.TyperException as error:  # a flag that is not there, and the like
        return fail(error.format_message())
    except OSError as error:
        where = f": {error.filename}" if error.filename is not None else ""
        return _explained(error, f"{error.strerror}{where}" if error.strerror else str(error))
    except (ValueError, ImportError) as error:
        return _explained(error, str(error))


def _register(arguments: list[str]) -> None:
    """The command that is called, or all of them where none is."""
    called = [name for name in COMMANDS if arguments[:1] == [name]]
    known = {command.name for command in app.registered_commands}
    for name in called or COMMANDS:
        if name not in known:
            module = import_module(f"hf_cudagraph_asr.cli.{name}")
            app.command(name)(getattr(module, name))


def _explained(error: Exception, message: str) -> int:
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error)
    return fail(message)


class _Told(logging.Handler):
    """What the library logs as a warning, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


@contextmanager
def _logged() -> Iterator[None]:
    handler = _Told(logging.WARNING)
    logger = logging.getLogger("hf_cudagraph_asr")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
