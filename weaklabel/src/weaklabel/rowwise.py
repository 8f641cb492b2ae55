"""Votes of row-wise functions: one call of a Python function a query, in batches.

This is the part of a plan that leaves the engine. It holds nothing but the functions and names, so
that it can be sent to a cluster's workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.labeling import LabelingFunction
from weaklabel.votes import ABSTAIN, ACCEPT, REJECT

#: Rows that are in Python at one time.
BATCH: Final = 16_384

SHOWN: Final = 5  # rows that an error names

_QUERY: Final = "query_id"


@dataclass(frozen=True)
class RowFunction:
    """A row-wise function, and where its row is found.

    Attributes:
        function: the labeling function.
        column: the name of its votes on the way.
        entries: for every entry of its row but `query_id`, the column that holds it.
    """

    function: LabelingFunction
    column: str
    entries: Mapping[str, str]

    def votes(self, batch: pl.DataFrame) -> pl.Series:
        """Int8, one vote a row; null is an abstain.

        Raises:
            WeakLabelError: the function raised, or a vote is none.
        """
        rows = batch.select(
            _QUERY, *(pl.col(inner).alias(name) for name, inner in self.entries.items())
        )
        vote, votes, wrong = self.function.vote, [], []
        for row in rows.iter_rows(named=True):
            cast = vote(row)
            if cast is None:
                cast = 0
            elif not _is_vote(cast):
                wrong.append((row[_QUERY], cast))
                cast = 0
            votes.append(int(cast))
        if wrong:
            raise WeakLabelError(wrong_votes(self.function.name, len(wrong), wrong[:SHOWN]))
        return pl.Series(self.column, votes, dtype=pl.Int8)


@dataclass
class Meter:
    """How long row-wise functions took, what they raised, and whom to tell of rows done.

    Attributes:
        seconds: within row-wise functions.
        rows: rows they saw.
        fault: what one of them raised, which an engine may pass on as mere text.
        advance: called with the rows of a batch that is done.
    """

    seconds: float = 0.0
    rows: int = 0
    fault: WeakLabelError | None = None
    advance: Callable[[int], object] | None = field(default=None, repr=False)

    def add(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self.rows += rows
        self.seconds += seconds
        if self.advance is not None:
            self.advance(rows)


@dataclass(frozen=True)
class RowStep:
    """Row-wise votes added to a batch, and its columns named as in the table of votes.

    Attributes:
        functions: the row-wise functions; may be none.
        columns: (name on the way, name in the table of votes), in the table's order.
    """

    functions: tuple[RowFunction, ...]
    columns: tuple[tuple[str, str], ...]

    def __call__(self, work: pl.DataFrame, meter: Meter | None = None) -> pl.DataFrame:
        """The table of votes of a batch of `Plan.work`."""
        return work.hstack(self.votes(work, meter)).select(
            pl.col(inner).alias(name) for inner, name in self.columns
        )

    def votes(self, work: pl.DataFrame, meter: Meter | None = None) -> pl.DataFrame:
        """The row-wise votes alone, under their names on the way."""
        parts = [pl.DataFrame(schema={function.column: pl.Int8 for function in self.functions})]
        for batch in work.iter_slices(BATCH):
            began = time.perf_counter()
            try:
                parts.append(pl.DataFrame([function.votes(batch) for function in self.functions]))
            except WeakLabelError as error:
                if meter is not None:
                    meter.fault = error
                raise
            if meter is not None:
                meter.add(len(batch), time.perf_counter() - began)
        return pl.concat(parts)


def wrong_votes(name: str, total: int, examples: Sequence[tuple[Any, Any]]) -> str:
    """The sentence about a function's votes that are none; `examples` are (query_id, vote)."""
    shown = ", ".join(f"{vote!r} on query_id {query!r}" for query, vote in examples)
    return (
        f"labeling function {name!r} cast {total} vote{'s' if total != 1 else ''} other than"
        f" {ACCEPT} (accept), {ABSTAIN} or null (abstain) and {REJECT} (reject): {shown}"
        + (", …" if total > len(examples) else "")
    )


def _is_vote(value: Any) -> bool:
    # True equals 1, but is an answer to another question; an array has no truth.
    return not isinstance(value, bool) and type(value).__name__ != "bool_" and _equals(value)


def _equals(value: Any) -> bool:
    try:
        return value in (REJECT, ABSTAIN, ACCEPT)
    except (TypeError, ValueError):
        return False
