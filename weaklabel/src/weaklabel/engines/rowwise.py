"""Votes of row-wise functions: one call of a Python function a query, in batches.

This is the part of a plan that leaves the engine. It holds nothing but the functions and names, so
that it can be sent to a cluster's workers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
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

    def votes(self, batch: pl.DataFrame) -> tuple[pl.Series, Wrong]:
        """Int8, one vote a row; null is an abstain, and so is, for now, what is no vote.

        Raises:
            WeakLabelError: the function raised.
        """
        rows = batch.select(
            _QUERY, *(pl.col(inner).alias(name) for name, inner in self.entries.items())
        )
        vote, votes, wrong = self.function.vote, [], Wrong(self.function.name)
        for row in rows.iter_rows(named=True):
            cast = vote(row)
            if cast is None:
                cast = ABSTAIN
            elif not _is_vote(cast):
                wrong.add(row[_QUERY], cast)
                cast = ABSTAIN
            votes.append(int(cast))
        return pl.Series(self.column, votes, dtype=pl.Int8), wrong


@dataclass
class Wrong:
    """What a function cast that is no vote.

    Attributes:
        name: the function's.
        total: how many times.
        first: the first of them, as (query_id, vote).
    """

    name: str
    total: int = 0
    first: list[tuple[Any, Any]] = field(default_factory=list)

    def add(self, query: Any, vote: Any) -> None:
        """Count one more."""
        self.total += 1
        if len(self.first) < SHOWN:
            self.first.append((query, vote))

    def __str__(self) -> str:
        shown = ", ".join(f"{vote!r} on query_id {query!r}" for query, vote in self.first)
        return (
            f"labeling function {self.name!r} cast {self.total} vote{'s' * (self.total != 1)} other"
            f" than {ACCEPT} (accept), {ABSTAIN} or null (abstain) and {REJECT} (reject): {shown}"
            + (", …" if self.total > len(self.first) else "")
        )


@dataclass
class Meter:
    """How long row-wise functions took, what they raised, and whom to tell of rows done.

    Attributes:
        seconds: within row-wise functions.
        rows: rows they saw.
        fault: what one of them raised, which an engine may pass on as mere text.
        wrong: what was no vote, by batch.
        advance: called with the rows of a batch that is done.
        turn: held while a batch is worked on.
    """

    seconds: float = 0.0
    rows: int = 0
    fault: WeakLabelError | None = None
    wrong: list[Wrong] = field(default_factory=list)
    advance: Callable[[int], object] | None = field(default=None, repr=False)
    turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def check(self) -> None:
        """Refuse what was no vote.

        Raises:
            WeakLabelError: naming each function and the first queries.
        """
        found: dict[str, Wrong] = {}
        for wrong in self.wrong:
            so_far = found.setdefault(wrong.name, Wrong(wrong.name))
            so_far.total += wrong.total
            first = so_far.first + wrong.first
            so_far.first = sorted(first, key=lambda pair: (pair[0] is None, pair[0]))[:SHOWN]
        if found:
            raise WeakLabelError("; ".join(map(str, found.values())))

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
        """The row-wise votes alone, under their names on the way.

        Args:
            work: a batch of `Plan.work`.
            meter: takes note of what is no vote; without one, that is raised here.

        Raises:
            WeakLabelError: a function raised, or a vote is none.
        """
        parts = [pl.DataFrame(schema={function.column: pl.Int8 for function in self.functions})]
        for batch in work.iter_slices(BATCH):
            if meter is None:
                votes, wrong = self._votes(batch)
                Meter(wrong=wrong).check()
            else:
                # One thread after the other: two would only wait for each other at every row.
                with meter.turn:
                    began = time.perf_counter()
                    try:
                        votes, wrong = self._votes(batch)
                    except WeakLabelError as error:
                        meter.fault = error
                        raise
                    meter.wrong += wrong
                    meter.add(len(batch), time.perf_counter() - began)
            parts.append(votes)
        return pl.concat(parts)

    def _votes(self, batch: pl.DataFrame) -> tuple[pl.DataFrame, list[Wrong]]:
        votes, wrong = zip(*(function.votes(batch) for function in self.functions), strict=True)
        return pl.DataFrame(votes), [some for some in wrong if some.total]


def _is_vote(value: Any) -> bool:
    # True equals 1, but is an answer to another question; an array has no truth.
    return not isinstance(value, bool) and type(value).__name__ != "bool_" and _equals(value)


def _equals(value: Any) -> bool:
    try:
        return value in (REJECT, ABSTAIN, ACCEPT)
    except (TypeError, ValueError):
        return False
