"""`Tally` and `Summary`: how functions voted in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from weaklabel.engines.plan import Plan


@dataclass(frozen=True)
class Tally:
    """How one function voted.

    Attributes:
        name: the function's.
        rowwise: it is of the slow kind.
        accept: votes 1.
        abstain: votes 0, nulls included.
        reject: votes -1.
    """

    name: str
    rowwise: bool
    accept: int
    abstain: int
    reject: int


@dataclass(frozen=True)
class Summary:
    """What a run of `apply_files` did.

    Attributes:
        rows: queries voted on, those of parts from an earlier run included.
        functions: a tally each, in order.
        seconds: of the whole run.
        rowwise_seconds: of these, within row-wise functions; None where they ran on a cluster.
        engine: which computed the votes.
        reason: why this one.
        partitions: how many files of votes there are.
        resumed: how many of them were there already.
    """

    rows: int
    functions: tuple[Tally, ...]
    seconds: float
    rowwise_seconds: float | None
    engine: str
    reason: str
    partitions: int
    resumed: int = 0


def tallied(plan: Plan, files: Sequence[Path]) -> tuple[Tally, ...]:
    """Counts of votes in files."""
    wanted: list[pl.Expr] = [pl.len().alias("rows")]
    for index, function in enumerate(plan.functions):
        vote = pl.col(function.column)
        wanted += [
            (vote == 1).sum().alias(f"accept {index}"),
            (vote == -1).sum().alias(f"reject {index}"),
        ]
    seen = pl.scan_parquet(list(files), glob=False).select(wanted).collect(engine="streaming")
    counts = seen.row(0, named=True)
    return tuple(
        Tally(
            function.name,
            function.rowwise,
            counts[f"accept {index}"],
            counts["rows"] - counts[f"accept {index}"] - counts[f"reject {index}"],
            counts[f"reject {index}"],
        )
        for index, function in enumerate(plan.functions)
    )
