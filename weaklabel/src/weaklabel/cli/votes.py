"""`weaklabel plugins`, `check`, `apply` and `show`: from a query log to votes."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.table import Table
from typer import Argument, Option

from weaklabel import cli
from weaklabel.cli import app, console, print_json, say
from weaklabel.errors import WeakLabelError, counted
from weaklabel.files import keep_apart

if TYPE_CHECKING:
    from weaklabel.plugins import Plugin, Registry
    from weaklabel.queries import Checked
    from weaklabel.runs import Summary

logger = logging.getLogger(__name__)

WORDS = {1: "accept", -1: "reject", 0: "abstain", None: "missing"}

Log = Annotated[str, Argument(help="The query log: a file, a folder or a glob.")]
Hypotheses = Annotated[
    str | None,
    Option(help="Add another ASR's transcripts: a table query_id, source, text."),
]
Source = Annotated[
    str | None, Option(help="Take this source of the hypotheses, where they have several.")
]
Reject = Annotated[
    Path | None, Option(help="Write the rows that are refused here, and go on with the others.")
]
Rename = Annotated[
    list[str] | None,
    Option(metavar="OLD=NEW", help="Read a column under another name; repeatable."),
]
Timezone = Annotated[
    str | None,
    Option(help="Take times without a zone as this one's, such as UTC or Europe/Berlin."),
]


@app.command()
def plugins(
    as_json: cli.Json = False,
    functions: cli.Functions = None,
    plugin: cli.Plugins = None,
) -> None:
    """List plugins, labeling functions, label models, exporters, and what is wrong with them."""
    loaded = cli.registry(plugin, functions)
    listing = _listing(loaded)
    if as_json:
        print_json(json.dumps(listing))
        return
    table = Table("from", "version", "plugins", title="Plugins", title_justify="left")
    for name, version in dict.fromkeys((p.distribution, p.version) for p in loaded.plugins):
        own = [
            f"{p.name} ({_registered(loaded, p)})" for p in loaded.plugins if p.distribution == name
        ]
        table.add_row(name, version, "\n".join(own))
    console.print(table)
    table = Table(title="Labeling functions", title_justify="left")
    longest = max(map(len, loaded.labeling_functions), default=0)
    table.add_column("function", overflow="fold", min_width=longest)
    table.add_column("what it does", overflow="fold", ratio=1)
    for function in listing["labeling_functions"]:
        kind = [
            function["name"],
            f"family {function['family']}" if function["family"] else "no family",
            f"scope {function['scope']}",
            *(["row-wise"] if function["rowwise"] else []),
            *(["on request"] if function["optional"] else []),
        ]
        about = [function["description"], f"requires {', '.join(function['requires'])}"]
        for name, value in function["parameters"].items():
            about.append(f"{name} = {', '.join(value) if isinstance(value, list) else value}")
        table.add_row("\n".join(kind), "\n".join(about), end_section=True)
    console.print(table)
    for hook in ("label_models", "exporters", "normalizers"):
        say(f"{hook.replace('_', ' ')}: {', '.join(item['name'] for item in listing[hook])}")


def _registered(loaded: Registry, plugin: Plugin) -> str:
    hooks = [hook for (hook, _), origin in loaded.origins.items() if origin == plugin]
    nouns = {h: h.removeprefix("weaklabel_").rstrip("s").replace("_", " ") for h in hooks}
    return ", ".join(counted(hooks.count(hook), noun) for hook, noun in nouns.items()) or "nothing"


def _listing(loaded: Registry) -> dict[str, Any]:
    functions = [
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
    ]
    described = {
        kind: [{"name": item.name, "description": item.description} for item in items.values()]
        for kind, items in (("exporters", loaded.exporters), ("normalizers", loaded.normalizers))
    }
    return {
        "plugins": [asdict(plugin) for plugin in loaded.plugins],
        "labeling_functions": functions,
        "label_models": [{"name": name} for name in loaded.label_models],
        **described,
        "faults": [asdict(fault) for fault in loaded.faults],
    }


@app.command()
def check(
    queries: Log,
    requires: Annotated[
        list[str] | None, Option(help="Require a further column; repeatable.")
    ] = None,
    hypotheses: Hypotheses = None,
    source: Source = None,
    rename: Rename = None,
    timezone: Timezone = None,
    reject: Reject = None,
    out: Annotated[
        Path | None, Option(help="Write the accepted rows: .parquet, .csv or .jsonl.")
    ] = None,
) -> None:
    """Compare a query log with its contract, and set aside what breaks it."""
    from weaklabel.tables import naming, write

    keep_apart([out, reject], [queries, hypotheses])
    found = _checked(queries, requires or (), hypotheses, source, rename, timezone, reject)
    if out is not None:
        with naming(queries):
            write(found.accepted, out)
    target = f" → {out}" if out is not None else ""
    say(f"{counted(found.rows - found.refusals, 'query')} accepted{target}")


@app.command()
def apply(
    queries: Log,
    out: Annotated[Path, Option(help="Votes: a .parquet file, or a folder to hold partitions.")],
    lf: Annotated[
        list[str] | None,
        Option(help="Apply this function; repeatable. Default: all whose columns are there."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        Option("--set", metavar="FUNCTION.PARAMETER=VALUE", help="Set a parameter; repeatable."),
    ] = None,
    functions: cli.Functions = None,
    hypotheses: Hypotheses = None,
    source: Source = None,
    rename: Rename = None,
    timezone: Timezone = None,
    keep: Annotated[
        list[str] | None, Option(help="Carry a column over to the votes; repeatable.")
    ] = None,
    reject: Reject = None,
    validate: Annotated[
        bool, Option("--check/--no-check", help="Check the log first, as `check` does.")
    ] = True,
    reference: Annotated[
        str | None, Option(help="Let functions of scope log look at this larger log, too.")
    ] = None,
    on_error: Annotated[
        Literal["missing", "fail"],
        Option(help="Leave a vote missing where a row-wise function raises, or stop."),
    ] = "missing",
    engine: Annotated[
        Literal["auto", "polars", "duckdb", "spark"],
        Option(help="Compute the votes with this engine."),
    ] = "auto",
    master: Annotated[str | None, Option(help="Run Spark on the cluster of this URL.")] = None,
    partitions: Annotated[
        int | None, Option(min=1, help="Write a folder of so many parts.")
    ] = None,
    resume: Annotated[
        bool,
        Option(
            "--resume", help="Go on with a folder: do what it lacks, and changed functions anew."
        ),
    ] = False,
    memory_limit: Annotated[
        str | None, Option(help="Give DuckDB, or Spark's driver, so much memory, as 2GB.")
    ] = None,
    plugin: cli.Plugins = None,
    progress: cli.Progress = True,
) -> None:
    """Let labeling functions vote on every query of a log."""
    from weaklabel.engines import LogFiles
    from weaklabel.queries import set_aside
    from weaklabel.runs import apply_files

    keep_apart([out, reject], [queries, hypotheses, functions, reference])
    if out.suffix in (".csv", ".json", ".jsonl", ".ndjson", ".tsv"):
        raise WeakLabelError(
            f"cannot write {out}: votes are Parquet, in one file (a name that ends in .parquet) or"
            " in a folder (a name without an ending)"
        )
    if master is not None and engine != "spark":
        raise WeakLabelError("--master is for --engine spark")
    if memory_limit is not None and engine == "polars":
        raise WeakLabelError("--memory-limit is for --engine duckdb or spark: Polars has none")
    checking = {
        "--hypotheses": hypotheses,
        "--source": source,
        "--rename": rename,
        "--timezone": timezone,
        "--reject": reject,
    }
    given = ", ".join(flag for flag, value in checking.items() if value)
    if given and not validate:
        raise WeakLabelError(f"--no-check goes without {given}, which needs the check")
    loaded = cli.registry(plugin, functions)
    parameters = cli.settings(set_)
    if validate:
        found = _checked(queries, (), hypotheses, source, rename, timezone, reject, later=True)
        # What decides which rows and values are accepted; the log's files are compared anyway.
        renames = sorted(cli.pairs("--rename", "OLD=NEW", rename).items())
        made = [f"--rename {old}={new}" for old, new in renames]
        made += [f"--timezone {found.timezone}"] * (found.timezone is not None)
        if hypotheses is not None:
            for file, size, changed in LogFiles.open(hypotheses, found.accepted).state:
                name = file if size is None else f"{Path(file).name} ({size} bytes, {changed} ns)"
                made.append(f"--hypotheses {name}")
            made += [f"--source {source}"] * (source is not None)
        if made or not found.unchanged:
            made.insert(0, "checked")
        log = LogFiles.open(queries, found.accepted, altered=", ".join(made))
        if reject is not None:
            log = replace(log, begin=partial(set_aside, found, queries, reject))
    else:
        log = LogFiles.open(queries)
    columns = log.frame.collect_schema().names()
    chosen = loaded.select(lf, columns=columns, parameters=parameters)
    if not chosen:
        raise WeakLabelError(
            f"the log has {', '.join(columns)}, and each labeling function requires something else:"
            " see `weaklabel plugins`"
            if loaded.labeling_functions
            else "there is no labeling function: WEAKLABEL_PLUGINS, -p or a fault named above keeps"
            " all plugins out, see `weaklabel plugins`"
        )
    summary = apply_files(
        chosen,
        log,
        out,
        engine=engine,
        keep=tuple(keep or ()),
        on_error=on_error,
        reference=reference,
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
    left = [
        f"{function.name} ({'on request' if function.optional else ', '.join(function.columns)})"
        for function in loaded.select(loaded.labeling_functions, parameters=parameters)
        if function.name not in names
    ]
    if lf is None and left:
        say(f"not applied: {'; '.join(left)}")
    say(out)


def _checked(
    queries: str,
    requires: Sequence[str],
    hypotheses: str | None,
    source: str | None,
    rename: list[str] | None,
    timezone: str | None,
    reject: Path | None,
    later: bool = False,
) -> Checked:
    """The rows of the log that keep its contract; `later`: with the others still to be listed."""
    from weaklabel import queries as logs
    from weaklabel.tables import naming

    log: Any = queries
    names = cli.pairs("--rename", "OLD=NEW", rename)
    if hypotheses is not None:
        log = logs.join_hypotheses(queries, hypotheses, source=source, rename=names)
        names = {}
    elif source is not None:
        raise WeakLabelError("--source belongs to --hypotheses")
    with naming(queries):
        return logs.check(
            log, requires=requires, rename=names, timezone=timezone, reject=reject, later=later
        )


def _print_summary(summary: Summary) -> None:
    raised = {errors.name: errors.total for errors in summary.errors}
    table = Table()
    table.add_column("function", overflow="fold")
    for name in ("accept", "abstain", "reject", "missing", *(["errors"] if raised else [])):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("coverage", justify="right", overflow="fold")
    for tally in summary.functions:
        counts = [tally.accept, tally.abstain, tally.reject, tally.missing]
        if raised:
            counts.append(raised.get(tally.name, 0))
        name = tally.name + (" (row-wise)" if tally.rowwise else "")
        coverage = "–" if math.isnan(tally.coverage) else f"{tally.coverage:.1%}"
        table.add_row(name, *(f"{count:,}" for count in counts), coverage)
    console.print(table)
    done = f"{counted(summary.rows, 'query')} in {summary.seconds:.1f} s on {summary.engine}"
    say(f"{done} ({summary.reason})")
    if summary.resumed:
        say(f"{summary.resumed} of {counted(summary.partitions, 'part')} were there already")
    if summary.redone:
        say(f"computed in parts that were there: {', '.join(summary.redone)}")


@app.command()
def show(
    votes: cli.VotesArgument,
    where: Annotated[
        str,
        Option(
            metavar="NAME=VOTE,…",
            help="Show queries on which functions voted so: 1, 0, -1, or null without input.",
        ),
    ],
    limit: Annotated[int, Option(min=1, help="Show so many queries at most.")] = 10,
    queries: cli.Queries = None,
    as_json: cli.Json = False,
) -> None:
    """Show queries by how functions voted on them, with all votes and transcripts."""
    from rich.text import Text

    from weaklabel.wer import printable

    total, rows = _selected(votes, _where(where), queries, limit)
    if as_json:
        print_json(json.dumps({"queries": total, "shown": rows}, default=str))
        return
    table = Table("query_id", "transcript", "votes")
    for row in rows:
        cast: dict[str, list[str]] = {}
        for name, vote in row["votes"].items():
            cast.setdefault(WORDS[vote], []).append(name)
        lines = [f"{word}: {', '.join(cast[word])}" for word in WORDS.values() if word in cast]
        table.add_row(
            Text(printable(str(row["query_id"]))),
            Text(printable(row["transcript"] or "")),
            Text("\n".join(lines)),
        )
    console.print(table)
    say(f"{len(rows)} of {counted(total, 'query')} with {where}")
    if any(row["transcript"] is None for row in rows):
        say("the log, given with --queries, has the transcripts")


def _where(where: str) -> dict[str, int | None]:
    values = {"1": 1, "0": 0, "-1": -1, "null": None}
    asked = cli.pairs("--where", "NAME=VOTE,NAME=VOTE", where.split(","))
    for name, value in asked.items():
        if value not in values:
            raise WeakLabelError(
                f"--where {name}={value}: a vote is 1 (accept), 0 (abstain), -1 (reject) or null"
                " (no input)"
            )
    return {name: values[value] for name, value in asked.items()}


def _selected(
    votes: str, where: Mapping[str, int | None], queries: str | None, limit: int
) -> tuple[int, list[dict[str, Any]]]:
    """Count the queries on which functions voted so, and take the first ones with all votes."""
    import polars as pl

    from weaklabel.plugins import known_name
    from weaklabel.runs import read_metadata
    from weaklabel.tables import naming, scan
    from weaklabel.votes import PREFIX

    if "patterns" in read_metadata(votes):
        raise WeakLabelError(f"{votes} holds patterns, which have no queries: give the votes")
    table = scan(votes)
    columns = table.collect_schema().names()
    names = [name.removeprefix(PREFIX) for name in columns if name.startswith(PREFIX)]
    known_name(f"column in {votes}", "query_id", columns)
    for name in where:
        known_name(f"labeling function in {votes}", name, names)
    found = table.filter(pl.col(PREFIX + name).eq_missing(vote) for name, vote in where.items())
    with naming(votes):
        total, first = pl.collect_all([found.select(pl.len()), found.head(limit)])
    rows = first.rows(named=True)
    transcripts = {row["query_id"]: row.get("transcript") for row in rows}
    if queries is not None:
        log = scan(queries)
        known_name(f"column in {queries}", "transcript", log.collect_schema().names())
        key = pl.col("query_id").cast(pl.String)
        wanted = log.filter(key.is_in([str(query) for query in transcripts]))
        with naming(queries):
            texts = dict(wanted.select(key, "transcript").collect(engine="streaming").iter_rows())
        transcripts = {query: texts.get(str(query)) for query in transcripts}
    shown = [
        {
            "query_id": row["query_id"],
            "transcript": transcripts[row["query_id"]],
            "votes": {name: row[PREFIX + name] for name in names},
        }
        for row in rows
    ]
    return total.item(), shown
