"""The application, its consoles, and options that several commands share."""

from __future__ import annotations

import fnmatch
import os
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console

from weaklabel.errors import WeakLabelError
from weaklabel.plugins import Registry, load_registry

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
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


console = Console()
errors = Console(stderr=True)

Out: TypeAlias = Annotated[Path, typer.Option(help="What to write; replaced if it exists.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Functions: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="A Python file with labeling functions, such as weaklabel_lfs.py."),
]
Plugins: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("-p", metavar="no:NAME", help="Do not load a plugin; repeatable."),
]
Strict: TypeAlias = Annotated[
    bool | None,
    typer.Option("--strict", help="A faulty plugin is an error (also: WEAKLABEL_STRICT=1)."),
]
Progress: TypeAlias = Annotated[bool, typer.Option(help="Show progress bars.")]
Threshold: TypeAlias = Annotated[float, typer.Option(min=0, max=1)]


def registry(
    plugins: Sequence[str] | None = None, functions: Path | None = None, strict: bool | None = None
) -> Registry:
    """What plugins registered; faults are logged as warnings."""
    blocked = []
    for word in plugins or ():
        prefix, _, name = word.partition(":")
        if prefix != "no" or not name:
            raise WeakLabelError(f"-p {word}: write -p no:NAME to keep a plugin from being loaded")
        blocked.append(name)
    return load_registry(blocked=blocked, file=functions, strict=strict)


def settings(assignments: Sequence[str] | None, config: Path | None) -> dict[str, dict[str, Any]]:
    """Parameters by function: of a TOML file's table `functions`, then of FUNCTION.NAME=VALUE."""
    values: dict[str, dict[str, Any]] = {}
    if config is not None:
        try:
            table = tomllib.loads(config.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise WeakLabelError(f"{config} is not TOML: {error}") from error
        functions = table.pop("functions", {})
        tables = isinstance(functions, dict) and all(
            isinstance(entry, dict) for entry in functions.values()
        )
        if table or not tables:
            raise WeakLabelError(
                f"{config}: expected nothing but tables such as [functions.rapid_repetition],"
                f" found {', '.join(table) or 'other values in functions'}"
            )
        values = {name: dict(entry) for name, entry in functions.items()}
    for assignment in assignments or ():
        target, equals, value = assignment.partition("=")
        function, dot, parameter = target.rpartition(".")
        if not (equals and dot and function and parameter):
            raise WeakLabelError(f"--set {assignment}: write FUNCTION.PARAMETER=VALUE")
        values.setdefault(function, {})[parameter] = value
    return values


def keep_apart(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Refuse to replace what is read: a log is not made a second time.

    Args:
        outputs: files or folders to be written; None is left out.
        inputs: files, folders, globs or URLs to be read.

    Raises:
        WeakLabelError: an output is an input or lies in one, or two outputs are one.
    """
    given = [os.fspath(path) for path in inputs if path is not None]
    seen: list[Path] = []
    for out in outputs:
        if out is None:
            continue
        target = out.resolve()
        for path in given:
            source = Path(path).resolve()
            inside = source == target or (source.is_dir() and source in target.parents)
            if inside or fnmatch.fnmatch(str(target), str(source)):
                raise WeakLabelError(
                    f"{out} would replace, or be read as a part of, {path}: write it elsewhere"
                )
        if target in seen:
            raise WeakLabelError(f"{out} is to be written twice: give two names")
        seen.append(target)


def counted(number: int, noun: str) -> str:
    """A number and its noun, which is given in the singular: "2 queries".

    >>> counted(1, "query"), counted(1234, "query")
    ('1 query', '1,234 queries')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def print_json(text: str) -> None:
    """Print JSON, in the letters that standard output can hold."""
    console.print_json(text, ensure_ascii=not console.encoding.startswith("utf"))
