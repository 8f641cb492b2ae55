"""`weaklabel plugins` and `weaklabel apply`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import typer
from rich.table import Table

from weaklabel.cli.console import (
    Functions,
    Json,
    Plugins,
    Progress,
    Strict,
    app,
    console,
    counted,
    keep_apart,
    print_json,
    registry,
    settings,
)
from weaklabel.errors import WeakLabelError
from weaklabel.labeling import LabelingFunction, Parameter
from weaklabel.plugins import FUNCTIONS, Registry
from weaklabel.queries import check as check_queries
from weaklabel.queries import join_hypotheses, scan, write
from weaklabel.tables import naming

if TYPE_CHECKING:
    from weaklabel.runs import Summary


logger = logging.getLogger(__name__)

Queries = Annotated[str, typer.Argument(help="The query log: a file, a folder or a glob.")]
Hypotheses = Annotated[
    str | None,
    typer.Option(help="Other ASRs' transcripts: query_id, source, text; a column for each source."),
]
Source = Annotated[
    str | None,
    typer.Option(help="Of the hypotheses, take this source alone, as second_transcript."),
]
Reject = Annotated[
    Path | None,
    typer.Option(help="Write the rows that are refused here, and go on with the others."),
]


class Engine(StrEnum):
    """Engines of the command line."""

    auto = "auto"
    polars = "polars"
    duckdb = "duckdb"
    spark = "spark"


@app.command()
def plugins(
    as_json: Json = False,
    functions: Functions = None,
    plugin: Plugins = None,
    strict: Strict = None,
) -> None:
    """List plugins, labeling functions, label models, exporters, and what is wrong with them."""
    loaded = registry(plugin, functions, strict)
    if as_json:
        print_json(json.dumps(_listing(loaded)))
        return
    table = Table("plugin", "version", "functions", "from", title="Plugins", title_justify="left")
    for origin in loaded.plugins:
        owners = [loaded.origins[FUNCTIONS, name] for name in loaded.labeling_functions]
        count = owners.count(origin)
        table.add_row(origin.name, origin.version, str(count), origin.distribution)
    console.print(table)
    table = Table(title="Labeling functions", title_justify="left")
    for name in ("function", "requires", "parameters", "what it does"):
        table.add_column(name, overflow="fold")
    for function in loaded.labeling_functions.values():
        kind = " (row-wise)" if function.rowwise else ""
        parameters = "\n".join(
            f"{name} = {_shown(value)}" for name, value in function.parameters.items()
        )
        table.add_row(
            f"{function.name}{kind}",
            "\n".join(function.columns),
            parameters,
            function.description,
            end_section=True,
        )
    console.print(table)
    console.print(f"label models: {', '.join(loaded.label_models)}", highlight=False)
    console.print(f"exporters: {', '.join(loaded.exporters)}", highlight=False)


def _listing(loaded: Registry) -> dict[str, Any]:
    return {
        "plugins": [
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "location": plugin.location,
            }
            for plugin in loaded.plugins
        ],
        "labeling_functions": [
            {
                "name": function.name,
                "identity": loaded.identity(function),
                "description": function.description,
                "requires": list(function.columns),
                "parameters": {name: _plain(value) for name, value in function.parameters.items()},
                "family": function.family,
                "rowwise": function.rowwise,
                "scope": function.scope,
                "optional": function.optional,
            }
            for function in loaded.labeling_functions.values()
        ],
        "label_models": [{"name": name} for name in loaded.label_models],
        "exporters": [
            {"name": exporter.name, "description": exporter.description}
            for exporter in loaded.exporters.values()
        ],
        "faults": [
            {
                "plugin": fault.plugin.name,
                "distribution": fault.plugin.distribution,
                "version": fault.plugin.version,
                "stage": fault.stage,
                "message": fault.message,
                "details": fault.details,
            }
            for fault in loaded.faults
        ],
    }


def _plain(value: Parameter) -> Any:
    return f"{value.total_seconds():g}s" if isinstance(value, timedelta) else value


def _shown(value: Parameter) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(_plain(value))


@app.command()
def check(
    queries: Queries,
    requires: Annotated[
        list[str] | None, typer.Option(help="A further column that must be there; repeatable.")
    ] = None,
    hypotheses: Hypotheses = None,
    source: Source = None,
    reject: Reject = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the accepted rows: .parquet, .csv or .jsonl.")
    ] = None,
) -> None:
    """Compare a query log with its contract, and set aside what breaks it."""
    keep_apart([out, reject], [queries, hypotheses])
    log = _accepted(queries, requires or (), hypotheses, source, reject)
    with naming(queries):
        rows = log.select(pl.len()).collect(engine="streaming").item()
    if out is not None:
        write(log, out)
    target = f" → {out}" if out is not None else ""
    console.print(f"{counted(rows, 'query')} accepted{target}", highlight=False, soft_wrap=True)


@app.command()
def apply(
    queries: Queries,
    out: Annotated[
        Path, typer.Option(help="Votes: a .parquet file, or a folder to hold partitions.")
    ],
    lf: Annotated[
        list[str] | None,
        typer.Option(help="A labeling function; repeatable. Default: all whose columns are there."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FUNCTION.PARAMETER=VALUE", help="Repeatable."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML with parameters: [functions.NAME] PARAMETER = VALUE.")
    ] = None,
    functions: Functions = None,
    hypotheses: Hypotheses = None,
    source: Source = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A column to carry over to the votes; repeatable.")
    ] = None,
    reject: Reject = None,
    validate: Annotated[
        bool, typer.Option("--check/--no-check", help="Check the log first, as `check` does.")
    ] = True,
    engine: Annotated[Engine, typer.Option(help="What computes the votes.")] = Engine.auto,
    master: Annotated[str | None, typer.Option(help="Spark: the cluster's URL.")] = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="How many parts a folder of votes has.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Do the parts that are missing.")
    ] = False,
    memory_limit: Annotated[
        str | None, typer.Option(help='What DuckDB, or Spark\'s driver, may take: "2GB", say.')
    ] = None,
    plugin: Plugins = None,
    strict: Strict = None,
    progress: Progress = True,
) -> None:
    """Let labeling functions vote on every query of a log."""
    from weaklabel.runs import apply_files

    keep_apart([out, reject], [queries, hypotheses, config, functions])
    if out.suffix in (".csv", ".json", ".jsonl", ".ndjson", ".tsv"):
        raise WeakLabelError(
            f"cannot write {out}: votes are Parquet, in one file (a name that ends in .parquet) or"
            " in a folder (a name without an ending)"
        )
    if master is not None and engine is not Engine.spark:
        raise WeakLabelError("--master is for --engine spark")
    if memory_limit is not None and engine is Engine.polars:
        raise WeakLabelError("--memory-limit is for --engine duckdb or spark: Polars has none")
    loaded = registry(plugin, functions, strict)
    parameters = settings(set_, config)
    joined = hypotheses is not None or reject is not None
    if not validate and joined:
        raise WeakLabelError("--no-check goes without --hypotheses and --reject, which check")
    if resume and joined:
        raise WeakLabelError(
            "--resume goes without --hypotheses and --reject: make one table of them first, with"
            " `weaklabel check --out`"
        )
    with ExitStack() as stack:
        path = queries
        columns: list[str] | None = None
        if validate:
            log = _accepted(queries, (), hypotheses, source, reject)
            columns = log.collect_schema().names()
            if joined:
                path = stack.enter_context(_beside(log, out))
        elif lf is None:
            columns = scan(queries).collect_schema().names()
        chosen = loaded.select(lf, columns=columns, parameters=parameters)
        if not chosen:
            there = ", ".join(columns or ())
            raise WeakLabelError(
                f"the log has {there}, and each labeling function requires something else: see"
                " `weaklabel plugins`"
                if loaded.labeling_functions
                else "there is no labeling function: WEAKLABEL_PLUGINS, -p and what is said above"
                " keep all plugins out, see `weaklabel plugins`"
            )
        summary = apply_files(
            chosen,
            path,
            out,
            engine=engine.value,
            keep=tuple(keep or ()),
            master=master,
            partitions=partitions,
            resume=resume,
            memory_limit=memory_limit,
            metadata={
                "identities": {function.name: loaded.identity(function) for function in chosen}
            },
            progress=progress and sys.stderr.isatty(),
        )
    _print_summary(summary)
    names = {function.name for function in chosen}
    if unused := [name for name in parameters if name not in names]:
        logger.warning(
            "parameters are set for %s, not applied here: a column is missing, or no --lf names it",
            ", ".join(unused),
        )
    if lf is None:
        _tell_others(loaded.select(loaded.labeling_functions, parameters=parameters), names)
    console.print(out, highlight=False, soft_wrap=True)


def _accepted(
    queries: str,
    requires: Sequence[str],
    hypotheses: str | None,
    source: str | None,
    reject: Path | None,
) -> pl.LazyFrame:
    """The rows of the log that keep its contract; how many were refused is told by its logger."""
    joined: Any = queries
    if hypotheses is not None:
        joined = join_hypotheses(queries, hypotheses, sources=source)
    elif source is not None:
        raise WeakLabelError("--source belongs to --hypotheses")
    return check_queries(joined, requires=requires, reject=reject)


@contextmanager
def _beside(log: pl.LazyFrame, out: Path) -> Iterator[str]:
    """The log as a Parquet file in the output's folder, for as long as it is needed."""
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        yield str(write(log, Path(folder, "queries.parquet")))


def _print_summary(summary: Summary) -> None:
    table = Table()
    table.add_column("function", overflow="fold")
    for name in ("accept", "abstain", "reject", "coverage"):
        table.add_column(name, justify="right", overflow="fold")
    for tally in summary.functions:
        votes = tally.accept + tally.reject
        table.add_row(
            tally.name + (" (row-wise)" if tally.rowwise else ""),
            f"{tally.accept:,}",
            f"{tally.abstain:,}",
            f"{tally.reject:,}",
            f"{votes / summary.rows:.1%}" if summary.rows else "",
        )
    console.print(table)
    console.print(
        f"{counted(summary.rows, 'query')} in {summary.seconds:.1f} s on {summary.engine}"
        f" ({summary.reason})",
        highlight=False,
    )


def _tell_others(functions: Sequence[LabelingFunction], applied: Container[str]) -> None:
    left = [
        f"{function.name} ({'on request' if function.optional else ', '.join(function.columns)})"
        for function in functions
        if function.name not in applied
    ]
    if left:
        console.print(f"not applied: {'; '.join(left)}", highlight=False)
