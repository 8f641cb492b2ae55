"""`weaklabel patterns`, `fit`, `label` and `report`: from votes to weights."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from weaklabel import cli
from weaklabel.cli import app, chosen, console, say
from weaklabel.errors import WeakLabelError, counted
from weaklabel.files import keep_apart

if TYPE_CHECKING:
    from weaklabel.patterns import Patterns


Shards = Annotated[
    list[str],
    Argument(help="Votes, or patterns that `weaklabel patterns` wrote: they are added up."),
]


@app.command()
def patterns(
    votes: Shards,
    out: Annotated[Path, Option(help="The counts, a .parquet file; replaced if it exists.")],
) -> None:
    """Count the vote patterns: all that a model needs, without a transcript or a query."""
    from weaklabel.labels import count_files

    if out.suffix != ".parquet":
        raise WeakLabelError(f"cannot write {out}: give patterns a name that ends in .parquet")
    keep_apart([out], votes)
    found = count_files(votes)
    found.save(out)
    say(f"{counted(found.rows, 'query')}, {_counted(found)} → {out}")


@app.command()
def fit(
    votes: Shards,
    out: Annotated[Path, Option(help="The model, a JSON file; replaced if it exists.")],
    model: Annotated[
        str, Option(help="The label model: label-model, majority, logistic, or a plugin's.")
    ] = "label-model",
    families: Annotated[
        Literal["declared", "ignore"] | None,
        Option(help="Share evidence within declared families, or take every function alone."),
    ] = None,
    abstain: Annotated[
        Literal["symbol", "ignore"] | None,
        Option(help="Treat an abstain as evidence (symbol) or ignore it."),
    ] = None,
    missing: Annotated[
        Literal["ignore", "evidence"] | None,
        Option(help="Ignore which inputs are missing, or treat it as evidence."),
    ] = None,
    prior: Annotated[
        float | None,
        Option(metavar="0<P<1", help="Give P(right) over all queries, where it is known."),
    ] = None,
    option: Annotated[
        list[str] | None,
        Option(metavar="NAME=VALUE", help="Set a model's own option, as JSON; repeatable."),
    ] = None,
    gold: cli.Gold = None,
    queries: cli.Queries = None,
    max_wer: cli.MaxWer = 0.0,
    normalizer: cli.Normalizer = "basic",
    functions: cli.Functions = None,
    plugin: cli.Plugins = None,
) -> None:
    """Fit a label model to votes: how good is each function, how many transcripts are right."""
    from weaklabel.labels import count_files, gold_of_files
    from weaklabel.models import fit

    keep_apart([out], [*votes, gold, queries, functions])
    loaded = cli.registry(plugin, functions)
    make = chosen("label model", model, loaded.label_models).model
    given = {"families": families, "abstain": abstain, "missing": missing, "prior": prior}
    options = {name: value for name, value in given.items() if value is not None}
    own = _options(option)
    if twice := sorted(options.keys() & own.keys()):
        raise WeakLabelError(f"--{twice[0]} and --option {twice[0]}=… are the same: give one")
    options |= own
    try:
        configured = make(**options)
    except TypeError as error:
        takes = ", ".join(signature(make).parameters) or "none"
        raise WeakLabelError(
            f"label model {model!r} does not take these options ({error}); it takes: {takes}"
        ) from error
    seen = count_files(votes)
    anchors = None
    if gold is not None:
        rule = chosen("normalizer", normalizer, loaded.normalizers)
        anchors = gold_of_files(votes, queries, gold, rule).patterns(max_wer)
    fit(configured, seen, anchors).save(out)
    checked = f", {anchors.rows} of them checked" if anchors is not None else ""
    say(f"{model} fitted to {counted(seen.rows, 'query')} in {_counted(seen)}{checked} → {out}")


def _counted(patterns: Patterns) -> str:
    return f"{counted(len(patterns), 'pattern')} of {counted(len(patterns.functions), 'function')}"


def _options(assignments: list[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in cli.pairs("--option", "NAME=VALUE", assignments).items():
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:  # a text without its quotation marks
            options[name] = value
    return options


@app.command()
def label(
    votes: cli.VotesArgument,
    model: cli.ModelFile,
    out: Annotated[Path, Option(help="Labels: .parquet, .csv or .jsonl.")],
    threshold: Annotated[
        float | None,
        Option(min=0, max=1, help="Label 1 from this weight on, else -1; default: 0.5."),
    ] = None,
    target_wer: Annotated[
        str | None,
        Option(metavar="5%", help="Find the threshold that keeps gold to this corpus WER."),
    ] = None,
    calibrate: Annotated[
        bool, Option("--calibrate", help="Calibrate the weights on gold.")
    ] = False,
    gold: cli.Gold = None,
    queries: cli.Queries = None,
    max_wer: cli.MaxWer = 0.0,
    normalizer: cli.Normalizer = "basic",
    allow_changed: cli.AllowChanged = False,
    functions: cli.Functions = None,
    plugin: cli.Plugins = None,
) -> None:
    """Weigh every query: weight = P(its transcript is right), label = 1 or -1."""
    from weaklabel.gold import calibration, threshold_for_wer
    from weaklabel.labels import gold_of_files, label_files
    from weaklabel.models import load_model, weights

    keep_apart([out], [votes, model, gold, queries, functions])
    if threshold is not None and target_wer is not None:
        raise WeakLabelError("--target-wer finds the threshold: leave out --threshold")
    target = None if target_wer is None else _rate(target_wer)
    if (gold is None) == (calibrate or target is not None):
        raise WeakLabelError("--gold belongs to --target-wer and --calibrate, and they need it")
    loaded = cli.registry(plugin, functions)
    fitted = load_model(model, loaded.label_models)
    curve = None
    if gold is not None:
        rule = chosen("normalizer", normalizer, loaded.normalizers)
        checked = gold_of_files([votes], queries, gold, rule, fitted.functions)
        weighed = weights(fitted, checked.votes)
        if calibrate:
            curve = calibration(weighed, checked.right(max_wer))
            weighed = curve(weighed)
            say(
                f"weights calibrated on {counted(curve.queries, 'gold query')}: log-odds times"
                f" {curve.slope:.2f} {curve.intercept:+.2f}"
            )
        if target is not None:
            found = threshold_for_wer(weighed, checked.errors, checked.words, target)
            say(found)
            threshold = max(0.0, found.weight - 1e-9)  # an engine may round otherwise than NumPy
    summary = label_files(
        votes,
        fitted,
        out,
        0.5 if threshold is None else threshold,
        calibration=curve,
        allow_changed=allow_changed,
    )
    mean = f"; mean weight {summary.mean_weight:.4f}" if summary.rows else ""
    say(
        f"{counted(summary.rows, 'query')}: {summary.accepted:,} with label 1,"
        f" {summary.rows - summary.accepted:,} with label -1, {summary.without_input:,} without"
        f" input{mean} → {out}"
    )


def _rate(text: str) -> float:
    try:
        rate = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        rate = -1.0
    if not 0 < rate < 1:
        raise WeakLabelError(f"--target-wer {text}: write 5% or 0.05")
    return rate


@app.command()
def report(
    votes: cli.VotesArgument,
    model: cli.ModelFile,
    gold: cli.Gold = None,
    queries: cli.Queries = None,
    html: Annotated[Path | None, Option(help="Write an HTML page with plots.")] = None,
    json_: Annotated[
        Path | None, Option("--json", help="Write all numbers to a JSON file.")
    ] = None,
    max_wer: cli.MaxWer = 0.0,
    normalizer: cli.Normalizer = "basic",
    threshold: Annotated[
        float, Option(min=0, max=1, help="Accept a transcript from this weight on.")
    ] = 0.5,
    examples: Annotated[
        int, Option(min=0, help="Show so many transcripts; 0 keeps all text out of the page.")
    ] = 10,
    allow_changed: cli.AllowChanged = False,
    functions: cli.Functions = None,
    plugin: cli.Plugins = None,
) -> None:
    """Say what each function does, and with gold how good the weights are."""
    from weaklabel.report import print_report, report_files

    keep_apart([html, json_], [votes, model, gold, queries, functions])
    loaded = cli.registry(plugin, functions)
    analysis = report_files(
        votes,
        model,
        html=html,
        json=json_,
        gold=gold,
        queries=queries,
        kinds=loaded.label_models,
        threshold=threshold,
        max_wer=max_wer,
        normalizer=chosen("normalizer", normalizer, loaded.normalizers),
        examples=examples,
        allow_changed=allow_changed,
    )
    print_report(analysis, console)
    for path in (html, json_):
        if path is not None:
            say(path)
