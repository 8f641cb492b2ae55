"""The commands behind `weaklabel`.

    plugins   what is installed                  label     votes + model → weights
    check     the query log's contract           report    what functions and models do
    apply     query log → votes                  combine   hypotheses → transcripts
    patterns  votes → counts without text        export    labels → a trainer's format
    fit       votes → model                      wer       two files of transcripts compared

What takes long to import is imported inside the command that needs it: `--help` and a mistyped
flag are answered at once.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import typer

from weaklabel.cli.console import app, errors
from weaklabel.errors import WeakLabelError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    try:
        return run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # as a shell tells it
        return 130


def script() -> None:
    """What the installed script calls."""
    sys.exit(main())


def run(arguments: list[str]) -> int:
    """Run a command; errors go to standard error without a traceback, with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal or a pipe is not UTF-8, an arrow or a transcript is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for module in ("votes", "models", "tables"):  # in the order of the help's list
        import_module(f"weaklabel.cli.{module}")
    try:
        with warnings.catch_warnings(), _logged():
            warnings.showwarning = lambda message, *_, **__: _warn(str(message))
            return app(arguments, prog_name="weaklabel", standalone_mode=False) or 0
    except (typer.TyperException, typer.Exit, typer.Abort) as error:
        return _usage(error)
    except OSError as error:
        where = f": {error.filename}" if error.filename is not None else ""
        return _fail(f"{error.strerror}{where}" if error.strerror else str(error))
    except (WeakLabelError, ImportError) as error:
        return _fail(str(error))


def _usage(error: Exception) -> int:
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        return _fail("aborted")
    return _fail(getattr(error, "format_message", lambda: str(error))())


def _fail(message: str) -> int:
    # Lines stay lines: what is wrong with a log is a list.
    if message.strip():
        typer.echo(f"weaklabel: error: {message.strip()}", err=True)
    return 2


def _warn(message: str) -> None:
    # Wrapped by the terminal alone: in a log, a warning is one line.
    errors.print(
        f"weaklabel: warning: {message}",
        style="yellow",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


class _Told(logging.Handler):
    """What the library logs as a warning, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        _warn(record.getMessage())


@contextmanager
def _logged() -> Iterator[None]:
    handler = _Told(logging.WARNING)
    logger = logging.getLogger("weaklabel")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
