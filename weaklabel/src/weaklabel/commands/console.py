"""The application, its consoles, and options that several commands share."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console

from weaklabel.errors import WeakLabelError
from weaklabel.plugins import load_registry
from weaklabel.registry import Registry

app = typer.Typer(
    help="From a query log to weighted transcripts, with labeling functions as plugins.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
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
        if table or not all(isinstance(entry, dict) for entry in functions.values()):
            raise WeakLabelError(
                f"{config}: expected nothing but tables such as [functions.rapid_repetition],"
                f" found {', '.join(table) or 'values in [functions]'}"
            )
        values = {name: dict(entry) for name, entry in functions.items()}
    for assignment in assignments or ():
        target, equals, value = assignment.partition("=")
        function, dot, parameter = target.rpartition(".")
        if not (equals and dot and function and parameter):
            raise WeakLabelError(f"--set {assignment}: write FUNCTION.PARAMETER=VALUE")
        values.setdefault(function, {})[parameter] = value
    return values
