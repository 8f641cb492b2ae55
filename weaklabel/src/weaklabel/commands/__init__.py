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

import logging
import warnings
from importlib import import_module
from typing import Any

import typer

from weaklabel.commands.console import app, errors
from weaklabel.errors import WeakLabelError


def run(arguments: list[str]) -> int:
    """Run a command; errors become one line on standard error and exit code 2."""
    for module in ("votes", "models", "tables"):  # in the order of the help's list
        import_module(f"weaklabel.commands.{module}")
    logging.basicConfig(level=logging.ERROR, format="weaklabel: %(message)s")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
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
    line = " ".join(message.split())
    if line:
        typer.echo(f"weaklabel: error: {line}", err=True)
    return 2


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    errors.print(f"weaklabel: warning: {message}", style="yellow", markup=False, highlight=False)
