"""Votes in files to patterns, and through a fitted model to labels in files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from weaklabel import tables
from weaklabel.errors import WeakLabelError
from weaklabel.gold import Checked, join_gold
from weaklabel.models import FittedModel
from weaklabel.patterns import METADATA, Patterns
from weaklabel.runs import read_metadata
from weaklabel.text import Normalizer

FilePath = str | os.PathLike[str]


@dataclass(frozen=True)
class Labels:
    """What a labelling wrote.

    Attributes:
        rows: how many queries.
        accepted: how many have the label 1.
        mean_weight: the share of right transcripts that the model expects; NaN without rows.
    """

    rows: int
    accepted: int
    mean_weight: float


def count_files(paths: Sequence[FilePath]) -> Patterns:
    """The patterns of several files, added up.

    Args:
        paths: of votes (a file, a folder or a glob), or of patterns that were saved. Families and
            identities of the functions are those that the files name.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a file holds neither or is given twice, or their functions are not the
            same.
    """
    files = [Path(path).resolve() for path in paths]
    for path, file in zip(paths, files, strict=True):
        if files.count(file) > 1:
            raise WeakLabelError(f"{path} is given {files.count(file)} times: it is counted once")
    return Patterns.merge(_count(path) for path in paths)


def _count(path: FilePath) -> Patterns:
    about = read_metadata(path)
    if "patterns" in about:
        return Patterns.load(path)
    entries = {entry["name"]: entry for entry in about.get("functions", ())}
    with tables.naming(path):
        return Patterns.count(
            tables.scan(path),
            families={name: entry.get("family") for name, entry in entries.items()},
            identities={name: entry.get("identity") for name, entry in entries.items()},
        )


def gold_of_files(
    votes: Sequence[FilePath],
    queries: FilePath | None,
    gold: FilePath,
    normalizer: str | Normalizer = "basic",
) -> Checked:
    """The votes and transcripts of queries that were checked.

    Args:
        votes: files of votes; patterns have no queries and will not do.
        queries: the query log; without it, the votes hold a column `transcript`.
        gold: `query_id`, `transcript`, the correct ones. Those that the votes or the log do not
            have are left out with a warning.
        normalizer: by whose rule words are the same.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a table lacks a column, or no query of gold is in the log.
    """
    for path in votes:
        if "patterns" in read_metadata(path):
            raise WeakLabelError(f"gold needs votes with their query_id, and {path} holds patterns")
    table = pl.concat([tables.scan(path) for path in votes], how="diagonal_relaxed")
    log = None if queries is None else tables.scan(queries)
    with tables.naming(votes[0] if queries is None else queries):
        return join_gold(table, tables.read(gold), log, normalizer=normalizer)


def label_files(
    votes: FilePath, model: FittedModel, out: FilePath, threshold: float = 0.5
) -> Labels:
    """Votes in files to labels in a file, written beside and renamed.

    Args:
        votes: a file, a folder or a glob.
        model: knows the functions that voted.
        out: .parquet (with the votes' metadata, the model's kind and the threshold), .csv or
            .jsonl.
        threshold: see `weaklabel.models.Fitted.label`.

    Raises:
        FileNotFoundError: there are no votes, or no folder for `out`.
        WeakLabelError: the functions are not the model's, or there are patterns and no votes.
    """
    metadata = read_metadata(votes)
    if "patterns" in metadata:
        raise WeakLabelError(f"{votes} holds patterns, which have no queries: give the votes")
    with tables.naming(votes):
        labelled = model.label(tables.scan(votes), threshold)
        kind = getattr(model, "kind", type(model).__name__)
        about = {**metadata, "model": kind, "threshold": threshold}
        parquet = Path(out).suffix == ".parquet"
        tables.write(labelled, out, metadata={METADATA: json.dumps(about)} if parquet else None)
    if not os.path.getsize(out):  # JSON lines of no rows
        return Labels(0, 0, math.nan)
    seen = tables.scan(out).select(
        rows=pl.len(),
        # Cast: in a CSV without rows, every column is text.
        accepted=(pl.col("label").cast(pl.Int8) == 1).sum(),
        weight=pl.col("weight").cast(pl.Float64).mean(),
    )
    rows, accepted, weight = seen.collect(engine="streaming").row(0)
    return Labels(rows, accepted, weight if rows else math.nan)
