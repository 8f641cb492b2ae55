"""Weights of transcripts from what people did and what recognizers say: weaklabel, without gold.

Thresholds of the recognizers' scores, whose scales differ, are quantiles of the log itself.

A label model whose functions agree no more often than chance has nothing to say, and what it says
all the same would drop transcripts at random. Its labels are not taken: every transcript keeps the
weight 1, as it had without labels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from speechnet import files, settings
from speechnet.settings import Size
from weaklabel import (
    LabelingFunction,
    LabelModel,
    Patterns,
    WeakLabelWarning,
    apply,
    load_registry,
)
from weaklabel.analysis import analyze
from weaklabel.label_model import FittedLabelModel
from weaklabel.report import to_html

SPEECHNET = ("session_position", "asr_confidence", "rapid_repetition")
SETS = ("three", "all", "own")
KEPT = 0.5  # a transcript is kept from this weight on

# The column that a function looks at, and quantiles of the log: from the first one on it accepts,
# below the second it rejects. A confidence may be another form of the score, so they cut elsewhere.
QUANTILES = {
    "asr_confidence": ("confidence", 0.6, 0.2),
    "mean_log_probability": ("score", 0.8, 0.4),
    "weakest_word": ("words_min", 0.6, 0.2),
}
# The built-in one is of the same family as the example's own two, of which it cannot know.
FAMILIES = {"asr_confidence": "confidence"}


@dataclass(frozen=True)
class Labels:
    """What became of a log.

    Attributes:
        rows: query_id, transcript, weight (P(right), float64) and label (1 or -1), in the order of
            the log; without the queries whose transcript is empty, which nothing is learned from.
        model: the label model.
        trusted: whether the functions agree more often than chance; else all weights are 1.
        patterns: the functions' votes, counted.
    """

    rows: pl.DataFrame
    model: FittedLabelModel
    trusted: bool
    patterns: Patterns


def label(size: Size, third: str, chosen: str, noise: float = 0.0) -> Path:
    """Write the labels of a log by one of `SETS`, name their file, and report on them."""
    log = files.read(size, f"log-{third}{files.suffix(noise)}")
    functions = functions_for(log, chosen)
    found = labels(votes(log, functions), functions)
    name = f"{third}-{chosen}{files.suffix(noise)}"
    with warnings.catch_warnings(action="ignore", category=WeakLabelWarning):
        page = to_html(analyze(found.patterns, found.model))
    with files.whole(settings.work(size) / f"report-{name}.html") as beside:
        beside.write_text(page, encoding="utf-8")
    path = settings.results(size) / f"labels-{name}.parquet"
    # A weight's last digits differ from one processor to another. What differs in them alone stays,
    # as students are trained anew when their labels change.
    if not (path.exists() and _alike(pl.read_parquet(path), found.rows)):
        files.write_table(found.rows, path)
    return path


def _alike(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    same = one.drop("weight").equals(other.drop("weight"))
    return same and np.allclose(one["weight"], other["weight"], rtol=0, atol=1e-6)


def votes(log: pl.DataFrame, functions: tuple[LabelingFunction, ...]) -> pl.DataFrame:
    """Votes (`lf:…`) on the log's queries with query_id and transcript, where one was heard.

    People react to the others, too, so these have their place in the session that functions see.
    """
    cast: pl.DataFrame = apply(functions, log, keep=["transcript"])
    return cast.filter(pl.col("transcript") != "")


def labels(
    cast: pl.DataFrame, functions: tuple[LabelingFunction, ...], guarded: bool = True
) -> Labels:
    """Fit the label model to these functions' `votes`, and weigh the transcripts.

    With `guarded`, every transcript keeps the weight 1 where the model is not trusted.
    """
    cast = cast.select("query_id", "transcript", *(function.column for function in functions))
    families = {function.name: function.family for function in functions} | FAMILIES
    identities = {function.name: function.identity() for function in functions}
    patterns = Patterns.count(cast, families, identities)
    with warnings.catch_warnings(action="ignore", category=WeakLabelWarning):
        model = LabelModel().fit(patterns)
    trusted = model.comparison.classes > 0
    rows = model.label(cast).select("query_id", "transcript", "weight", "label")
    if guarded and not trusted:
        rows = rows.with_columns(weight=pl.lit(1.0), label=pl.lit(1, pl.Int8))
    return Labels(rows, model, trusted, patterns)


def functions_for(log: pl.DataFrame, chosen: str) -> tuple[LabelingFunction, ...]:
    """The labeling functions of one of `SETS`, with thresholds for this log.

    "three" are those that SpeechNet names, "all" weaklabel's own as far as they are expressions,
    and "own" these and the example's.
    """
    # Nothing else that may be installed: the sets mean the same everywhere.
    file = settings.HERE / "functions.py" if chosen == "own" else None
    registry = load_registry(allowed=["weaklabel"], file=file)
    thresholds = {
        name: {"high": log[column].quantile(high), "low": log[column].quantile(low)}
        for name, (column, high, low) in QUANTILES.items()
        if name in registry.labeling_functions and log[column].count()
    }
    names = SPEECHNET if chosen == "three" else None
    return registry.select(names, columns=log.columns, parameters=thresholds)
