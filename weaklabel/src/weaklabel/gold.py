"""Gold: a small table of correct transcripts, as votes of queries known to be right or wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.patterns import Patterns
from weaklabel.text import normalizer as find_normalizer
from weaklabel.votes import PREFIX


@dataclass(frozen=True)
class Gold:
    """Votes of queries whose transcripts were checked.

    The queries should be a random sample of the log: a model anchored to hand-picked ones learns
    how they were picked.

    Attributes:
        right: patterns of the queries whose transcript is right.
        wrong: patterns of those whose transcript is wrong, of the same functions.
        counted: whether these queries are among the votes a model is fitted to. They are then not
            counted twice.
    """

    right: Patterns
    wrong: Patterns
    counted: bool = True

    def __post_init__(self) -> None:
        if sorted(self.right.functions) != sorted(self.wrong.functions):
            raise WeakLabelError(
                "right and wrong must be of the same functions, got"
                f" {sorted(self.right.functions)} and {sorted(self.wrong.functions)}"
            )

    @property
    def rows(self) -> int:
        """How many queries were checked."""
        return self.right.rows + self.wrong.rows

    def join(self, patterns: Patterns) -> tuple[Patterns, npt.NDArray[np.int64]]:
        """All rows, and how many of each pattern are known: patterns, int64 (2, P), wrong first.

        Raises:
            WeakLabelError: the functions differ, or gold that is said to be among the rows is not.
        """
        if sorted(self.right.functions) != sorted(patterns.functions):
            raise WeakLabelError(
                f"gold is of functions {sorted(self.right.functions)}, and the votes are of"
                f" {sorted(patterns.functions)}: apply the same functions to both"
            )
        both = [part.ordered(patterns.functions) for part in (self.wrong, self.right)]
        everything = patterns if self.counted else Patterns.merge([patterns, *both])
        known = np.stack([_counts_in(everything, part) for part in both])
        if (known.sum(axis=0) > everything.counts).any() or known.sum() < self.rows:
            raise WeakLabelError(
                "gold has votes that do not occur, or not so often, among the rows counted: were"
                " they counted from other queries, say Gold(right, wrong, counted=False)"
            )
        return everything, known


def gold_patterns(votes: Any, correct: Any, *, counted: bool = True) -> Gold:
    """Gold from a table of votes and one that says which transcripts are right.

    Args:
        votes: `query_id` and columns `lf:…`; any frame narwhals knows.
        correct: `query_id`, `correct` (bool), as `correctness` makes it. Queries that the votes do
            not have are an error; a null in `correct` is one, too.
        counted: whether a model will be fitted to these same votes.

    Raises:
        WeakLabelError: columns are missing, a query is not among the votes or given twice.
    """
    checked = _collected(correct, ("query_id", "correct"), "correct")
    if checked["correct"].dtype != pl.Boolean or checked["correct"].null_count():
        raise WeakLabelError(
            f"the column 'correct' must be true or false, got {checked['correct'].dtype} with"
            f" {checked['correct'].null_count()} nulls"
        )
    table = nw.from_native(votes)
    columns = [name for name in table.collect_schema().names() if name.startswith(PREFIX)]
    # Only the few rows that gold names come into memory.
    ids = checked["query_id"].to_list()
    found = _collected(
        table.filter(nw.col("query_id").is_in(ids)).to_native(), ("query_id", *columns), "votes"
    )
    joined = checked.join(found, on="query_id", how="left", validate="1:1", nulls_equal=False)
    if joined.is_empty():
        raise WeakLabelError("gold has no rows")
    if len(found) < len(checked):
        missing = checked.join(found, on="query_id", how="anti")["query_id"].to_list()
        raise WeakLabelError(
            f"{len(missing)} queries of gold are not among the votes, the first of them"
            f" {missing[:5]}: leave them out of gold, or apply the functions to them"
        )
    return Gold(
        Patterns.count(joined.filter(pl.col("correct"))),
        Patterns.count(joined.filter(~pl.col("correct"))),
        counted,
    )


def correctness(
    queries: Any, gold: Any, *, threshold: float = 0.0, normalizer: str = "basic"
) -> pl.DataFrame:
    """Which transcripts of a query log are right.

    A transcript is right when its word error rate against gold is at most `threshold`.

    Args:
        queries: `query_id`, `transcript`; any frame narwhals knows.
        gold: the same columns, with the correct transcripts.
        threshold: in word errors per word of the correct transcript.
        normalizer: by whose rule words are the same, see `weaklabel.text`.

    Returns:
        `query_id`, `correct`, a row for every row of gold that is in the log, in gold's order.

    Raises:
        WeakLabelError: columns or transcripts are missing, or a query is given twice.
    """
    from jiwer import wer

    same = find_normalizer(normalizer)
    truth = _collected(gold, ("query_id", "transcript"), "gold")
    ids = truth["query_id"].to_list()
    log = _collected(
        nw.from_native(queries).filter(nw.col("query_id").is_in(ids)).to_native(),
        ("query_id", "transcript"),
        "queries",
    )
    both = truth.join(log, on="query_id", how="inner", suffix="_asr", maintain_order="left")
    if empty := both.filter(pl.any_horizontal(pl.all().is_null()))["query_id"].to_list():
        raise WeakLabelError(f"transcripts are missing (null) for queries {empty[:5]}")
    rates = [
        wer(same(reference), same(heard))
        for reference, heard in both.select("transcript", "transcript_asr").iter_rows()
    ]
    return both.select("query_id", correct=pl.Series(rates, dtype=pl.Float64) <= threshold)


def _counts_in(everything: Patterns, part: Patterns) -> npt.NDArray[np.int64]:
    """How often `part` has each pattern of `everything`: int64, (P,)."""
    table = {votes.tobytes(): int(n) for votes, n in zip(part.votes, part.counts, strict=True)}
    return np.array([table.get(votes.tobytes(), 0) for votes in everything.votes], dtype=np.int64)


def _collected(frame: Any, columns: tuple[str, ...], what: str) -> pl.DataFrame:
    """The columns of any frame, in memory, with each query once."""
    table = nw.from_native(frame)
    present = table.collect_schema().names()
    if lacking := [name for name in columns if name not in present]:
        raise WeakLabelError(f"{what} lacks the columns {lacking}; it has {present}")
    selected = table.select(*columns)
    eager = selected.collect() if isinstance(selected, nw.LazyFrame) else selected
    result = eager.to_polars()
    if twice := result.filter(result["query_id"].is_duplicated())["query_id"].unique().to_list():
        raise WeakLabelError(f"{what} has queries more than once, among them {sorted(twice)[:5]}")
    return result
