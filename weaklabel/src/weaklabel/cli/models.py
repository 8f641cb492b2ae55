"""`weaklabel patterns`, `fit`, `label` and `report`: from votes to weights."""

from __future__ import annotations

import json
from enum import StrEnum
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from weaklabel.cli.console import (
    Functions,
    Out,
    Plugins,
    Strict,
    app,
    console,
    counted,
    keep_apart,
    registry,
)
from weaklabel.errors import WeakLabelError

if TYPE_CHECKING:
    from weaklabel.patterns import Patterns


class Families(StrEnum):
    """Whose evidence is shared."""

    declared = "declared"
    auto = "auto"
    ignore = "ignore"


class Abstain(StrEnum):
    """What an abstain is."""

    symbol = "symbol"
    missing = "missing"


Votes = Annotated[
    list[str],
    typer.Argument(help="Votes, or patterns that `weaklabel patterns` wrote: they are added up."),
]
Gold = Annotated[
    str | None, typer.Option(help="Correct transcripts of some queries: query_id, transcript.")
]
Queries = Annotated[str | None, typer.Option(help="The query log, for its transcripts.")]
Normalizer = Annotated[str, typer.Option(help="By whose rule words are the same: basic or none.")]


@app.command()
def patterns(votes: Votes, out: Out) -> None:
    """Count the vote patterns: all that a model needs, without a transcript or a query."""
    from weaklabel.labels import count_files

    if out.suffix != ".parquet":
        raise WeakLabelError(f"cannot write {out}: give patterns a name that ends in .parquet")
    keep_apart([out], votes)
    found = count_files(votes)
    found.save(out)
    console.print(
        f"{counted(found.rows, 'query')}, {_seen(found)} → {out}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def fit(
    votes: Votes,
    out: Annotated[Path, typer.Option(help="The model, a JSON file; replaced if it exists.")],
    model: Annotated[
        str, typer.Option(help="label-model, majority, logistic, or a plugin's.")
    ] = "label-model",
    families: Annotated[
        Families | None,
        typer.Option(help="auto: also merge functions that are found to depend on each other."),
    ] = None,
    abstain: Annotated[
        Abstain | None, typer.Option(help="Whether that a function abstains says something.")
    ] = None,
    prior: Annotated[
        float | None, typer.Option(min=0, max=1, help="P(right), where it is known.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A model's own option, as JSON.")
    ] = None,
    gold: Gold = None,
    queries: Queries = None,
    max_wer: Annotated[
        float, typer.Option(min=0, help="A transcript within this WER of gold is right.")
    ] = 0.0,
    normalizer: Normalizer = "basic",
    functions: Functions = None,
    plugin: Plugins = None,
    strict: Strict = None,
) -> None:
    """Fit a label model to votes: how good is each function, how many transcripts are right."""
    from weaklabel.labels import count_files, gold_of_files

    keep_apart([out], [*votes, gold, queries, functions])
    loaded = registry(plugin, functions, strict)
    known = loaded.label_models
    if model not in known:
        raise WeakLabelError(f"no label model {model!r}: there are {', '.join(known)}")
    given = {"families": families, "abstain": abstain, "prior": prior}
    options = {name: value for name, value in given.items() if value is not None}
    options |= _options(option)
    try:
        configured = known[model].model(**options)
    except TypeError as error:
        takes = ", ".join(signature(known[model].model).parameters) or "none"
        raise WeakLabelError(
            f"label model {model!r} does not take these options ({error}); it takes: {takes}"
        ) from error
    seen = count_files(votes)
    anchors = None
    if gold is not None:
        anchors = gold_of_files(votes, queries, gold, normalizer).patterns(max_wer)
    fitted = configured.fit(seen, gold=anchors)
    fitted.save(out)
    checked = f", {anchors.rows} of them checked" if anchors is not None else ""
    console.print(
        f"{model} fitted to {counted(seen.rows, 'query')} in {_seen(seen)}{checked} → {out}",
        highlight=False,
        soft_wrap=True,
    )


def _seen(patterns: Patterns) -> str:
    return f"{counted(len(patterns), 'pattern')} of {counted(len(patterns.functions), 'function')}"


def _options(assignments: list[str] | None) -> dict[str, Any]:
    options = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise WeakLabelError(f"--option {assignment}: write NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:  # a text without its quotation marks
            options[name] = value
    return options


@app.command()
def label(
    votes: Annotated[str, typer.Argument(help="Votes: a file, a folder or a glob.")],
    model: Annotated[Path, typer.Option(help="What `weaklabel fit` wrote.")],
    out: Annotated[Path, typer.Option(help="Labels: .parquet, .csv or .jsonl.")],
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="From this weight on the label is 1, else -1.")
    ] = 0.5,
    functions: Functions = None,
    plugin: Plugins = None,
    strict: Strict = None,
) -> None:
    """Weigh every query: weight = P(its transcript is right), label = 1 or -1."""
    from weaklabel.labels import label_files
    from weaklabel.models import load_model

    keep_apart([out], [votes, model, functions])
    known = registry(plugin, functions, strict).label_models
    summary = label_files(votes, load_model(model, known), out, threshold)
    table = Table("queries", "label 1", "label -1", "mean weight")
    table.add_row(
        f"{summary.rows:,}",
        f"{summary.accepted:,}",
        f"{summary.rows - summary.accepted:,}",
        f"{summary.mean_weight:.4f}" if summary.rows else "",
    )
    console.print(table)
    console.print(out, highlight=False, soft_wrap=True)


@app.command()
def report(
    votes: Annotated[str, typer.Argument(help="Votes: a file, a folder or a glob.")],
    model: Annotated[Path, typer.Option(help="What `weaklabel fit` wrote.")],
    gold: Gold = None,
    queries: Queries = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write all numbers.")] = None,
    max_wer: Annotated[
        float, typer.Option(min=0, help="A transcript within this WER of gold is right.")
    ] = 0.0,
    normalizer: Normalizer = "basic",
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="From this weight on a transcript is accepted.")
    ] = 0.5,
    examples: Annotated[
        int, typer.Option(min=0, help="Transcripts to show; 0 keeps all text out of the page.")
    ] = 10,
    functions: Functions = None,
    plugin: Plugins = None,
    strict: Strict = None,
) -> None:
    """Say what each function does, and with gold how good the weights are."""
    from weaklabel.report import print_report, report_files

    keep_apart([html, json_], [votes, model, gold, queries, functions])
    analysis = report_files(
        votes,
        model,
        html=html,
        json=json_,
        gold=gold,
        queries=queries,
        kinds=registry(plugin, functions, strict).label_models,
        threshold=threshold,
        wer_threshold=max_wer,
        normalizer=normalizer,
        examples=examples,
    )
    print_report(analysis, console)
    for path in (html, json_):
        if path is not None:
            console.print(path, highlight=False, soft_wrap=True)
