"""Votes on Polars: frames, and files streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel.engines import Part, Partwise, log_wide, own
from weaklabel.plan import QUERY, Plan, RowLog
from weaklabel.votes import SESSION


def votes(
    log: pl.LazyFrame, plan: Plan, rows: RowLog | None = None, reference: Any = None
) -> pl.LazyFrame:
    """The table of votes of a log; `rows` takes note of row-wise functions."""
    if reference is not None and plan.of_log() is not None:
        log = own(votes(*log_wide(log, plan, reference.lazy()), rows))
        plan = plan.with_log_votes()
    schema = log.collect_schema()
    plan.check_columns(schema.names())
    checked = plan.work(nw.from_native(prepared(log, plan)))
    if not plan.rowwise:
        found: pl.LazyFrame = plan.finished(checked).to_native()
        return found
    work: pl.LazyFrame = checked.to_native()
    step = plan.step
    types: dict[str, Any] = {
        QUERY: work.collect_schema()[QUERY],
        **{name: schema[name] for name in plan.keep},
        **{function.column: pl.Int8 for function in plan.functions},
    }
    return work.map_batches(lambda batch: step(batch, rows), schema=types, streamable=True)


def prepared(log: pl.LazyFrame, plan: Plan) -> pl.LazyFrame:
    """The log with the types that the other engines see in the same file.

    Otherwise votes would depend on the engine: Polars rounds 0.9 to compare it with a Float32, and
    takes the hour of a timestamp in the column's own time zone.
    """
    aside: pl.LazyFrame = plan.set_aside(nw.from_native(log)).to_native()
    casts: list[pl.Expr] = []
    for name, dtype in log.collect_schema().items():
        if name not in plan.required or name == QUERY:
            continue
        if dtype == pl.Float32:
            casts.append(pl.col(name).cast(pl.Float64))
        elif isinstance(dtype, pl.Categorical | pl.Enum):
            casts.append(pl.col(name).cast(pl.String))
        elif isinstance(dtype, pl.Datetime) and dtype.time_zone not in (None, "UTC"):
            casts.append(pl.col(name).dt.convert_time_zone("UTC").dt.cast_time_unit("us"))
        elif isinstance(dtype, pl.Datetime) and dtype.time_unit != "us":
            casts.append(pl.col(name).dt.cast_time_unit("us"))
    return aside.with_columns(casts) if casts else aside


class PolarsLog(Partwise):
    """A query log in files, read by Polars."""

    name, title = "polars", "Polars"
    version = pl.__version__
    errors = (pl.exceptions.PolarsError,)

    def __init__(
        self, given: str, frame: pl.LazyFrame, scratch: Path, reference: pl.LazyFrame | None = None
    ) -> None:
        self.log = frame
        self.reference = reference
        self.scratch = scratch
        self.given = given

    def _write(
        self, log: Any, plan: Plan, target: Path, metadata: dict[str, str], rows: RowLog
    ) -> None:
        votes(log, plan, rows).sink_parquet(target, metadata=metadata)

    def _read(self, file: Path) -> pl.LazyFrame:
        return pl.scan_parquet(file, glob=False)

    def _within(self, log: Any, part: Part) -> Any:
        query = pl.col(QUERY).hash()
        if SESSION in self.columns:
            session = pl.col(SESSION)
            query = pl.when(session.is_null()).then(query).otherwise(session.hash())
        return log.filter(query % part.of == part.index)

    def _prepared(self, log: Any, plan: Plan) -> Any:
        return prepared(log, plan)
