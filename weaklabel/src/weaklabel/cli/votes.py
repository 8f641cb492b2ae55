"""`weaklabel plugins`, `check`, `apply` and `show`: from a query log to votes."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from weaklabel.cli import shared
from weaklabel.cli.shared import app, console, counted, keep_apart, print_json, say
from weaklabel.errors import WeakLabelError

if TYPE_CHECKING:
    import polars as pl

    from weaklabel.labeling import LabelingFunction
    from weaklabel.plugins import Registry
    from weaklabel.runs import Summary

logger = logging.getLogger(__name__)

Log = Annotated[str, typer.Argument(help="The query log: a file, a folder or a glob.")]
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
Rename = Annotated[
    list[str] | None,
    typer.Option(metavar="OLD=NEW", help="Read a column under another name; repeatable."),
]
Timezone = Annotated[
    str | None,
    typer.Option(help="Take times without a zone as this one's, such as UTC or Europe/Berlin."),
]


@app.command()
def plugins(
    as_json: shared.Json = False,
    functions: shared.Functions = None,
    plugin: shared.Plugins = None,
    strict: shared.Strict = None,
) -> None:
    """List plugins, labeling functions, label models, exporters, and what is wrong with them."""
    from weaklabel.labeling import as_json as plain

    loaded = shared.registry(plugin, functions, strict)
    if as_json:
        print_json(json.dumps(_listing(loaded)))
        return
    table = Table("from", "version", "plugins", "registers", title="Plugins", title_justify="left")
    for name, version in dict.fromkeys((p.distribution, p.version) for p in loaded.plugins):
        own = [plugin for plugin in loaded.plugins if plugin.distribution == name]
        hooks = [hook for (hook, _), origin in loaded.origins.items() if origin in own]
        found = [
            counted(
                hooks.count(hook), hook.removeprefix("weaklabel_").rstrip("s").replace("_", " ")
            )
            for hook in dict.fromkeys(hooks)
        ]
        table.add_row(name, version, ", ".join(p.name for p in own), "\n".join(found))
    console.print(table)
    table = Table(title="Labeling functions", title_justify="left")
    table.add_column(
        "function", overflow="fold", min_width=max(map(len, loaded.labeling_functions), default=0)
    )
    table.add_column("what it does", overflow="fold", ratio=1)
    for function in loaded.labeling_functions.values():
        kind = [
            f"family {function.family}" if function.family else "no family",
            f"scope {function.scope}",
            *(["row-wise"] if function.rowwise else []),
            *(["on request"] if function.optional else []),
        ]
        about = [function.description, f"requires {', '.join(function.columns)}"]
        for name, value in function.parameters.items():
            shown = ", ".join(value) if isinstance(value, tuple) else plain(value)
            about.append(f"{name} = {shown}")
        table.add_row("\n".join([function.name, *kind]), "\n".join(about), end_section=True)
    console.print(table)
    say(f"label models: {', '.join(loaded.label_models)}")
    say(f"exporters: {', '.join(loaded.exporters)}")
    say(f"normalizers: {', '.join(loaded.normalizers)}")


def _listing(loaded: Registry) -> dict[str, Any]:
    return {
        "plugins": [asdict(plugin) for plugin in loaded.plugins],
        "labeling_functions": [
            {
                **asdict(loaded.identity(function)),
                "description": function.description,
                "requires": function.columns,
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
        "normalizers": [
            {"name": normalizer.name, "description": normalizer.description}
            for normalizer in loaded.normalizers.values()
        ],
        "faults": [
            {
                **asdict(fault.plugin),
                "stage": fault.stage,
                "message": fault.message,
                "details": fault.details,
            }
            for fault in loaded.faults
        ],
    }


@app.command()
def check(
    queries: Log,
    requires: Annotated[
        list[str] | None, typer.Option(help="Require a further column; repeatable.")
    ] = None,
    hypotheses: Hypotheses = None,
    source: Source = None,
    rename: Rename = None,
    timezone: Timezone = None,
    reject: Reject = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the accepted rows: .parquet, .csv or .jsonl.")
    ] = None,
) -> None:
    """Compare a query log with its contract, and set aside what breaks it."""
    import polars as pl

    from weaklabel.tables import naming, write

    keep_apart([out, reject], [queries, hypotheses])
    log = _accepted(queries, requires or (), hypotheses, source, reject)
    with naming(queries):
        rows = log.select(pl.len()).collect(engine="streaming").item()
    if out is not None:
        write(log, out)
    say(f"{counted(rows, 'query')} accepted" + (f" → {out}" if out is not None else ""))


@app.command()
def apply(
    queries: Log,
    out: Annotated[
        Path, typer.Option(help="Votes: a .parquet file, or a folder to hold partitions.")
    ],
    lf: Annotated[
        list[str] | None,
        typer.Option(help="A labeling function; repeatable. Default: all whose columns are there."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FUNCTION.PARAMETER=VALUE", help="Set a parameter; repeatable."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML with parameters: [functions.NAME] PARAMETER = VALUE.")
    ] = None,
    functions: shared.Functions = None,
    hypotheses: Hypotheses = None,
    source: Source = None,
    rename: Rename = None,
    timezone: Timezone = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Carry a column over to the votes; repeatable.")
    ] = None,
    reject: Reject = None,
    validate: Annotated[
        bool, typer.Option("--check/--no-check", help="Check the log first, as `check` does.")
    ] = True,
    engine: Annotated[
        Literal["auto", "polars", "duckdb", "spark"],
        typer.Option(help="Compute the votes with this engine."),
    ] = "auto",
    master: Annotated[
        str | None, typer.Option(help="Run Spark on the cluster of this URL.")
    ] = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Write a folder of so many parts.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Do the parts that are missing.")
    ] = False,
    memory_limit: Annotated[
        str | None,
        typer.Option(help='Give DuckDB, or Spark\'s driver, so much memory: "2GB", say.'),
    ] = None,
    plugin: shared.Plugins = None,
    strict: shared.Strict = None,
    progress: shared.Progress = True,
) -> None:
    """Let labeling functions vote on every query of a log."""
    from weaklabel.runs import apply_files
    from weaklabel.tables import scan

    keep_apart([out, reject], [queries, hypotheses, config, functions])
    if out.suffix in (".csv", ".json", ".jsonl", ".ndjson", ".tsv"):
        raise WeakLabelError(
            f"cannot write {out}: votes are Parquet, in one file (a name that ends in .parquet) or"
            " in a folder (a name without an ending)"
        )
    if master is not None and engine != "spark":
        raise WeakLabelError("--master is for --engine spark")
    if memory_limit is not None and engine == "polars":
        raise WeakLabelError("--memory-limit is for --engine duckdb or spark: Polars has none")
    loaded = shared.registry(plugin, functions, strict)
    parameters = shared.settings(set_, config)
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
            engine=engine,
            keep=tuple(keep or ()),
            master=master,
            partitions=partitions,
            resume=resume,
            memory_limit=memory_limit,
            identities={function.name: loaded.identity(function) for function in chosen},
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
    say(out)


def _accepted(
    queries: str,
    requires: Sequence[str],
    hypotheses: str | None,
    source: str | None,
    reject: Path | None,
) -> pl.LazyFrame:
    """The rows of the log that keep its contract; how many were refused is told by its logger."""
    from weaklabel.queries import check, join_hypotheses

    joined: Any = queries
    if hypotheses is not None:
        joined = join_hypotheses(queries, hypotheses, sources=source)
    elif source is not None:
        raise WeakLabelError("--source belongs to --hypotheses")
    return check(joined, requires=requires, reject=reject).accepted


@contextmanager
def _beside(log: pl.LazyFrame, out: Path) -> Iterator[str]:
    """The log as a Parquet file in the output's folder, for as long as it is needed."""
    from weaklabel.tables import write

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
    say(
        f"{counted(summary.rows, 'query')} in {summary.seconds:.1f} s on {summary.engine}"
        f" ({summary.reason})"
    )


def _tell_others(functions: Sequence[LabelingFunction], applied: Container[str]) -> None:
    left = [
        f"{function.name} ({'on request' if function.optional else ', '.join(function.columns)})"
        for function in functions
        if function.name not in applied
    ]
    if left:
        say(f"not applied: {'; '.join(left)}")
