"""Votes in files to patterns, and through a fitted model to labels in files."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel import tables
from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.gold import Calibration, GoldQueries, join_gold
from weaklabel.models import FittedModel, check_identities, no_weight, weighed
from weaklabel.patterns import METADATA, SAME_SCOPE, Patterns, described
from weaklabel.runs import FORMAT, Source, read_each, read_metadata
from weaklabel.text import Normalizer
from weaklabel.votes import PREFIX


@dataclass(frozen=True)
class Labels:
    """Counts of the labels that `label_files` wrote.

    Attributes:
        rows: how many queries.
        accepted: how many have the label 1.
        mean_weight: the share of right transcripts that the model expects; NaN without rows.
        without_input: how many have no vote at all, not even an abstain: their weight is the prior.
    """

    rows: int
    accepted: int
    mean_weight: float
    without_input: int


def count_files(paths: Sequence[Source]) -> Patterns:
    """The patterns of several files, added up.

    Args:
        paths: of votes (a file, a folder or a glob), or of patterns that were saved. Families and
            identities of the functions are those that the files name.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a file holds neither or is given twice, a run has not ended, or the files
            are of different functions.
    """
    files = [Path(path).resolve() for path in paths]
    for path, file in zip(paths, files, strict=True):
        if files.count(file) > 1:
            raise WeakLabelError(f"{path} is given {files.count(file)} times: give it once")
    return Patterns.merge(_count(path) for path in paths)


def _count(path: Source) -> Patterns:
    each = read_each(path)
    if len({json.dumps(about.get("functions")) for about in each.values()}) > 1:
        return Patterns.merge(_count(file) for file in each)
    about = next(iter(each.values()), {})
    if "patterns" in about:
        return Patterns.merge(Patterns.load(file) for file in each)
    with tables.naming(path):
        return Patterns.count(tables.scan(path), **described(about))


def gold_of_files(
    votes: Sequence[Source],
    queries: Source | None,
    gold: Source,
    normalizer: str | Normalizer = "basic",
    functions: tuple[str, ...] | None = None,
) -> GoldQueries:
    """Gold beside the votes and transcripts of the log.

    Args:
        votes: files of votes; patterns have no queries and will not do.
        queries: the query log; without it, the votes hold a column `transcript`.
        gold: `query_id`, `transcript`, the correct ones.
        normalizer: by whose rule words are the same, see `weaklabel.text`.
        functions: whose votes, in this order; by default all.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a table lacks a column, or see `weaklabel.gold.join_gold`.
    """
    for path in votes:
        if "patterns" in read_metadata(path):
            raise WeakLabelError(f"gold needs votes with their query_id, and {path} holds patterns")
    table = pl.concat([tables.scan(path) for path in votes], how="diagonal_relaxed")
    log = None if queries is None else tables.scan(queries)
    correct = tables.read(gold)
    with tables.naming(*votes, queries):
        return join_gold(table, correct, log, functions=functions, normalizer=normalizer)


def label_files(
    votes: Source,
    model: FittedModel,
    out: Source,
    threshold: float = 0.5,
    *,
    calibration: Calibration | None = None,
    allow_changed: bool = False,
) -> Labels:
    """Votes in files to labels in a file, written beside and renamed.

    Args:
        votes: a file, a folder or a glob.
        model: knows the functions that voted.
        out: .parquet (with the votes' metadata, the model's kind and the threshold), .csv or
            .jsonl.
        threshold: see `weaklabel.models.Fitted.label`; of the calibrated weight, if there is one.
        calibration: of the weights, as `weaklabel.gold.calibration` makes it.
        allow_changed: go on where a function's source or parameters are not those that the model
            was fitted with.

    Raises:
        FileNotFoundError: there are no votes, or no folder for `out`.
        WeakLabelError: the functions are not the model's, or there are patterns and no votes.

    Warns:
        WeakLabelWarning: a function is of another version, or of scope "log" and looked at a log
            of very different size than the one the model was fitted to.
    """
    each = read_each(votes)
    for about in each.values():
        if "patterns" in about:
            raise WeakLabelError(f"{votes} holds patterns, which have no queries: give the votes")
        _check_functions(model, about, allow_changed)
    counts: list[tuple[int, int, float, int]] = []  # of batches; engines have several threads
    voted = [PREFIX + name for name in model.functions]

    def count(batch: pl.DataFrame) -> pl.DataFrame:
        if batch["weight"].is_nan().any():
            raise no_weight(model)
        counts.append(
            batch.select(
                rows=pl.len(),
                accepted=(pl.col("label") == 1).sum(),
                weight=pl.col("weight").sum(),
                without_input=pl.all_horizontal(pl.col(voted).is_null()).sum(),
            ).row(0)
        )
        return batch

    with tables.naming(votes):
        labeled = _labeled(tables.scan(votes), model, threshold)
        if calibration is not None:
            weight = calibration.expression(nw.col("weight"))
            labeled = weighed(nw.from_native(labeled), weight, threshold).to_native()
        kind = getattr(model, "kind", type(model).__name__)
        about = {"votes": FORMAT, **read_metadata(votes), "model": kind, "threshold": threshold}
        about["calibration"] = None if calibration is None else asdict(calibration)
        metadata = {METADATA: json.dumps(about)} if Path(out).suffix == ".parquet" else None
        # Counted on the way to the file, so that neither votes nor labels are read once more.
        counted = labeled.map_batches(count, schema=labeled.collect_schema(), streamable=True)
        tables.write(counted, out, metadata=metadata)
    rows, accepted, total, without_input = map(sum, zip((0, 0, 0.0, 0), *counts, strict=True))
    mean = total / rows if rows else math.nan
    return Labels(int(rows), int(accepted), mean, int(without_input))


def _labeled(votes: pl.LazyFrame, model: FittedModel, threshold: float) -> pl.LazyFrame:
    """Votes with weight and label; a model that knows no missing votes gets abstains for them."""
    if getattr(model, "handles_missing", False):
        return model.label(votes, threshold)
    columns = [PREFIX + name for name in model.functions]
    aside = {column: f" {column}" for column in columns}  # no column of votes begins with a blank
    filled = votes.with_columns(pl.col(column).alias(name) for column, name in aside.items())
    labeled = model.label(filled.with_columns(pl.col(columns).fill_null(0)), threshold)
    restored = labeled.with_columns(pl.col(name).alias(column) for column, name in aside.items())
    return restored.drop(aside.values())


def _check_functions(model: FittedModel, about: Mapping[str, Any], allow_changed: bool) -> None:
    """Compare the functions that voted with those that a model was fitted to."""
    voted = described(about)
    check_identities(model, voted["identities"], allow_changed=allow_changed)
    fitted_rows = dict(zip(model.functions, getattr(model, "log_rows", None) or (), strict=False))
    for name, before in fitted_rows.items():
        now = voted["log_rows"].get(name)
        if before and now and max(before, now) > SAME_SCOPE * min(before, now):
            warnings.warn(
                f"function {name!r} looks at the whole log: {before:,} rows when the model was"
                f" fitted and {now:,} now, so that its votes do not mean the same; apply it with a"
                " reference log (--reference), such as the one the model was fitted to",
                WeakLabelWarning,
                stacklevel=3,
            )
