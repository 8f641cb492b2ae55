"""Votes on Polars: frames, and files streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from weaklabel.engines import LogFiles, Part, QueryLog
from weaklabel.plan import QUERY, Plan, RowLog, RowStep
from weaklabel.schema import settled
from weaklabel.votes import LOG_LENGTH, SESSION


class Log(QueryLog):
    """A query log read by Polars."""

    name = "polars"
    version = pl.__version__
    errors = (pl.exceptions.PolarsError, pl.exceptions.PanicException)

    def _frame(self, files: LogFiles, made: str) -> pl.LazyFrame:
        return files.frame

    @staticmethod
    def prepared(log: pl.LazyFrame, plan: Plan) -> pl.LazyFrame:
        """The log with the types that the other engines see in the same file.

        Otherwise votes would depend on the engine: Polars rounds 0.9 to compare it with a Float32,
        and takes the hour of a timestamp in the column's own time zone.
        """
        log = settled(log)
        casts: list[pl.Expr] = []
        schema = log.collect_schema()
        for name in plan.required:
            column, dtype = pl.col(name), schema[name]
            if name == QUERY:
                continue
            if dtype == pl.Float32:
                casts.append(column.cast(pl.Float64))
            elif isinstance(dtype, pl.Categorical | pl.Enum):
                casts.append(column.cast(pl.String))
            elif isinstance(dtype, pl.Datetime):
                zoned = dtype.time_zone not in (None, "UTC")
                moved = column.dt.convert_time_zone("UTC") if zoned else column
                casts.append(moved.dt.cast_time_unit("us"))
        if plan.of_log() is not None:  # as `Plan` adds it elsewhere, where no order is kept
            length = log.select(pl.len().alias(LOG_LENGTH))
            log = log.join(length, how="cross", maintain_order="left")
        return log.with_columns(casts)

    @staticmethod
    def stepped(log: Any, work: pl.LazyFrame, step: RowStep, rows: RowLog | None) -> pl.LazyFrame:
        """The table of votes, by a step in Python as the batches pass."""
        schema = work.collect_schema()
        types = {name: schema.get(inner, pl.Int8()) for inner, name in step.columns}
        return work.map_batches(lambda batch: step(batch, rows), schema=types, streamable=True)

    def _write(
        self, log: Any, plan: Plan, target: Path, metadata: dict[str, str], rows: RowLog
    ) -> None:
        self.votes(log, plan, rows).sink_parquet(target, metadata=metadata)

    def _read(self, *files: str) -> pl.LazyFrame:
        return pl.scan_parquet(list(files), glob=False)

    def _within(self, log: Any, part: Part) -> Any:
        query = pl.col(QUERY).hash()
        if SESSION in self.columns:
            session = pl.col(SESSION)
            query = pl.when(session.is_null()).then(query).otherwise(session.hash())
        return log.filter(query % part.of == part.index)
