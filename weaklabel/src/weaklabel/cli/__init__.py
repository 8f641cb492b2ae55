"""The commands behind `weaklabel`.

plugins   what is installed                  label     votes + model → weights
check     the query log's contract           report    what functions and models do
apply     query log → votes                  combine   hypotheses → transcripts
show      queries by how functions voted     export    labels → a trainer's format
patterns  votes → counts without text        wer       two files of transcripts compared
fit       votes → model

Options that several commands share are here. Nothing that takes long to import is imported here or
at the head of a module of commands: `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import typer
from rich.console import Console
from typer import Argument, Option

from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.files import terminated

if TYPE_CHECKING:
    from weaklabel.plugins import Registry

T = TypeVar("T")

app = typer.Typer(
    help="From a query log to weighted transcripts, with labeling functions as plugins.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from weaklabel import __version__

        typer.echo(f"weaklabel {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


console = Console()
errors = Console(stderr=True)

VotesArgument: TypeAlias = Annotated[str, Argument(help="Votes: a file, folder or glob.")]
ModelFile: TypeAlias = Annotated[Path, Option(help="The model file that `weaklabel fit` wrote.")]
Gold: TypeAlias = Annotated[
    str | None, Option(help="Correct transcripts of some queries: columns query_id, transcript.")
]
Queries: TypeAlias = Annotated[
    str | None, Option(help="The query log, for the transcripts of the queries.")
]
MaxWer: TypeAlias = Annotated[
    float, Option(min=0, help="Count a transcript as right up to this WER against gold.")
]
Normalizer: TypeAlias = Annotated[
    str,
    Option(
        help="Normalize transcripts by this rule: basic, none, english, characters, or a plugin's."
    ),
]
AllowChanged: TypeAlias = Annotated[
    bool,
    Option(
        "--allow-changed",
        help="Go on with a warning where functions have another source or other parameters.",
    ),
]
Json: TypeAlias = Annotated[bool, Option("--json", help="Print JSON instead of tables.")]
Functions: TypeAlias = Annotated[
    Path | None, Option(help="Load labeling functions and hooks of a Python file, too.")
]
Plugins: TypeAlias = Annotated[
    list[str] | None,
    Option("-p", metavar="no:NAME", help="Leave out a plugin or distribution; repeatable."),
]
Progress: TypeAlias = Annotated[bool, Option(help="Show progress bars.")]


def registry(plugins: Sequence[str] | None, functions: Path | None) -> Registry:
    """Load all plugins, and a file of functions; faults are logged as warnings."""
    from weaklabel.plugins import load_registry

    blocked = []
    for word in plugins or ():
        prefix, _, name = word.partition(":")
        if prefix != "no" or not name:
            raise WeakLabelError(f"-p {word}: write -p no:NAME to keep a plugin from being loaded")
        blocked.append(name)
    # A plugin's print must not stand in the middle of a command's JSON.
    with redirect_stdout(sys.stderr):
        return load_registry(blocked=blocked, file=functions)


def chosen(what: str, name: str, known: Mapping[str, T]) -> T:
    """The model, exporter or normalizer of that name; an error names those there are."""
    from weaklabel.plugins import known_name

    return known[known_name(what, name, known)]


def settings(assignments: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """Read FUNCTION.NAME=VALUE as parameters by function."""
    values: dict[str, dict[str, str]] = {}
    for target, value in pairs("--set", "FUNCTION.PARAMETER=VALUE", assignments).items():
        function, dot, parameter = target.rpartition(".")
        if not (dot and function and parameter):
            raise WeakLabelError(f"--set {target}={value}: write FUNCTION.PARAMETER=VALUE")
        values.setdefault(function, {})[parameter] = value
    return values


def pairs(flag: str, form: str, given: Iterable[str] | None) -> dict[str, str]:
    """Read the assignments of a flag: `--rename old=new` as {"old": "new"}.

    Args:
        flag: its name, for the message.
        form: what to write, NAME=VALUE.
        given: the texts.

    Raises:
        WeakLabelError: one has no "=" with something before and after it, or a name comes twice.
    """
    found = {}
    for text in given or ():
        name, _, value = (part.strip() for part in text.partition("="))
        if not (name and value):
            raise WeakLabelError(f"{flag} {text}: write {form}")
        if name in found:
            raise WeakLabelError(f"{flag} {text}: {name!r} is given twice")
        found[name] = value
    return found


def say(text: object) -> None:
    """Print a line, wrapped by the terminal alone and as it is."""
    console.print(str(text), highlight=False, markup=False, soft_wrap=True)


def print_json(text: str) -> None:
    """Print JSON, in the letters that standard output can hold."""
    console.print_json(text, ensure_ascii=not console.encoding.startswith("utf"))


def script() -> None:
    """Entry point of the installed script."""
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
            return app(words, prog_name="weaklabel", standalone_mode=False) or 0
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
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Polars, which is not imported for --help
            raise
        return _fail(f"Polars cannot go on, as where a file is damaged: {error}")


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
