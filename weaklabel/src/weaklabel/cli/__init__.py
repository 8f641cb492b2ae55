"""The commands behind `weaklabel`.

plugins   what is installed                  label     votes + model → weights
check     the query log's contract           report    what functions and models do
apply     query log → votes                  combine   hypotheses → transcripts
show      queries by how functions voted     export    labels → a trainer's format
patterns  votes → counts without text        wer       two files of transcripts compared
fit       votes → model
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

from weaklabel.cli import shared
from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.files import terminated


def script() -> None:
    """What the installed script calls."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; errors go to standard error without a traceback.

    Args:
        arguments: without the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 after an error, 130 after an interrupt.

    Raises:
        SystemExit: with 143, after SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal or a pipe is not UTF-8, an arrow or a transcript is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for module in ("votes", "models", "transcripts"):  # in the order of the help's list
        import_module(f"weaklabel.cli.{module}")
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with terminated(), warnings.catch_warnings(), _logged():
            warnings.showwarning = lambda message, *_, **__: _warn(str(message))
            warnings.simplefilter("always", WeakLabelWarning)  # whatever PYTHONWARNINGS says
            return shared.app(words, prog_name="weaklabel", standalone_mode=False) or 0
    except KeyboardInterrupt:  # the code by which a shell knows it
        return 130
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        return _fail("aborted")
    except typer.TyperException as error:
        message = getattr(error, "format_message", None)
        return _fail(str(error) if message is None else message())
    except OSError as error:
        where = f": {error.filename}" if error.filename is not None else ""
        return _fail(f"{error.strerror}{where}" if error.strerror else str(error))
    except (WeakLabelError, ImportError) as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    # Lines stay lines: what is wrong with a log is a list.
    if message.strip():
        typer.echo(f"weaklabel: error: {message.strip()}", err=True)
    return 2


def _warn(message: str) -> None:
    # Wrapped by the terminal alone: in a log, a warning is one line.
    shared.errors.print(
        f"weaklabel: warning: {message}",
        style="yellow",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


class _Warnings(logging.Handler):
    """Prints the warnings that the library logs on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        _warn(record.getMessage())


@contextmanager
def _logged() -> Iterator[None]:
    handler = _Warnings(logging.WARNING)
    logger = logging.getLogger("weaklabel")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
