"""Votes on PySpark: frames, and files on a cluster.

Row-wise functions run in the cluster's Python workers, which need weaklabel installed then; all
others are computed by Spark alone.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from polars import selectors

from weaklabel.engines import LogFiles, Part, QueryLog
from weaklabel.plan import QUERY, Plan, RowLog, RowStep, merge
from weaklabel.votes import SESSION

MASTER = "local[2]"

_MISSING = 'this needs PySpark (and Java 17 or newer): pip install "weaklabel[spark]"'
_PART = "weaklabel_part"

# A log of so many bytes is done before code that is compiled well has paid for the compiling.
_SMALL = 64 * 2**20
_BRIEF = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def started(
    master: str | None = None, memory_limit: str | None = None, *, brief: bool = False
) -> Any:
    """A Spark session, for `Log` or for frames.

    Args:
        master: of the cluster; by default two threads of this machine.
        memory_limit: of the driver, such as "4g".
        brief: its work on this machine is over in seconds: Java's optimizing compiler, which would
            take most of them, stays off. The machines of a cluster have a Java of their own.

    Raises:
        ImportError: PySpark is not installed.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ImportError(_MISSING) from error
    builder = (
        SparkSession.builder.master(master or MASTER)
        .appName("weaklabel")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
    )
    if brief:
        builder = builder.config("spark.driver.extraJavaOptions", _BRIEF)
    if memory_limit is not None:
        builder = builder.config("spark.driver.memory", memory_limit)
    with _this_python(master or MASTER), _without_pandas():
        session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


class Log(QueryLog):
    """A query log read by Spark."""

    name = "spark"

    def _start(self, log: LogFiles, master: str | None, memory_limit: str | None) -> None:
        try:
            import pyspark
            from py4j.protocol import Py4JError  # type: ignore[import-untyped, unused-ignore]
            from pyspark.errors import PySparkException
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise ImportError(_MISSING) from error
        self.errors = (PySparkException, Py4JError)
        self.version = str(pyspark.__version__)
        with self.faults():
            active = SparkSession.getActiveSession()
            self._owned = active is None
            if active is None:
                self._session = started(
                    master, memory_limit, brief=master is not None or log.bytes < _SMALL
                )
            else:
                # Settings of its own, on the same cluster.
                self._session = active.newSession()
            self._session.conf.set("spark.sql.session.timeZone", "UTC")
            self._session.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")

    def _frame(self, files: LogFiles, made: str) -> Any:
        return super()._frame(_readable(files), made)

    def close(self) -> None:
        """Stop the session, if it was started here."""
        if self._owned:
            self._session.stop()

    def _require_readable(self, plan: Plan) -> None:
        """Do nothing: Spark itself says which file it cannot read."""

    @staticmethod
    def stepped(log: Any, work: Any, step: RowStep, rows: Any) -> Any:
        """The table of votes, by a step in the cluster's workers.

        `rows` is an accumulator of lists for their errors; without one, they log what was raised.
        """
        from pyspark.sql.types import ByteType, StructField, StructType

        types = {field.name: field.dataType for field in work.schema}
        schema = StructType(
            [StructField(name, types.get(inner, ByteType())) for inner, name in step.columns]
        )
        with _without_pandas():
            return work.mapInArrow(partial(_in_worker, step=step, noted=rows), schema)

    def parts(
        self, plan: Plan, parts: Sequence[Part], metadata: dict[str, str], rows: RowLog
    ) -> Iterator[tuple[Part, Path]]:
        """The votes of parts of the log, each in a Parquet file, by one job for all of them."""
        from pyspark.sql import functions as sql

        query = sql.xxhash64(sql.col(QUERY))
        if SESSION in self.columns:
            session = sql.col(SESSION)
            query = sql.when(session.isNull(), query).otherwise(sql.xxhash64(session))
        log = self.log.withColumn(_PART, sql.pmod(query, sql.lit(parts[0].of)).cast("int"))
        wanted = sql.col(_PART).isin([part.index for part in parts])
        if plan.of_log() is None:
            log = log.where(wanted)
        # A task reports when it has ended; one that is run again after a loss counts once.
        noted = self._session.sparkContext.accumulator([], _Lists())
        planned = replace(plan, keep=(*plan.keep, _PART))
        found = self.votes(log, planned, noted, self.reference).where(wanted)
        folder = self.scratch / "spark"
        found.write.partitionBy(_PART).parquet(str(folder))
        merge(rows.raised, noted.value)
        for part in parts:
            target = self.scratch / part.file
            made = sorted((folder / f"{_PART}={part.index}").glob("*.parquet"))
            merged = pl.scan_parquet(made, glob=False) if made else _empty(found)
            merged.select(plan.columns).sink_parquet(target, metadata=metadata)
            yield part, target

    def _read(self, *files: str) -> Any:
        with _without_pandas():
            return self._session.read.parquet(*files)


def _readable(log: LogFiles) -> LogFiles:
    """The log with microseconds for nanoseconds, which Spark does not read in Parquet."""
    fine = selectors.datetime("ns", time_zone=(None, "*"))
    if not selectors.expand_selector(log.frame, fine):
        return log
    frame = log.frame.with_columns(fine.dt.cast_time_unit("us"))
    return replace(log, frame=frame, direct=False)


def _in_worker(batches: Iterable[Any], step: RowStep, noted: Any) -> Iterator[Any]:
    """The votes of one of Spark's tasks, which reports once it has done all of its rows."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    rows = RowLog()
    for batch in batches:
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        votes = step(frame, rows)
        yield pa.RecordBatch.from_arrays(
            [
                votes[name].to_arrow() if inner in step.functions else batch.column(inner)
                for inner, name in step.columns
            ],
            names=[name for _, name in step.columns],
        )
    rows.check(step.on_error)
    if noted is None:
        rows.warn()
    else:
        noted.add(list(rows.raised.values()))


class _Lists:
    """Sums of lists, for an accumulator."""

    def zero(self, value: list[Any]) -> list[Any]:
        return []

    def addInPlace(self, one: list[Any], other: list[Any]) -> list[Any]:
        return one + other


@contextmanager
def _without_pandas() -> Iterator[None]:
    # PySpark warns of pandas 3 wherever Arrow comes in; no pandas frame is ever made here.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas")
        yield


@contextmanager
def _this_python(master: str) -> Iterator[None]:
    # Local workers run the first python3 of the PATH, which may have no weaklabel. The context
    # reads the variable when it is made; a cluster's machines have a Python of their own.
    if "PYSPARK_PYTHON" in os.environ or not master.startswith("local"):
        yield
        return
    os.environ["PYSPARK_PYTHON"] = sys.executable
    try:
        yield
    finally:
        del os.environ["PYSPARK_PYTHON"]


def _empty(found: Any) -> pl.LazyFrame:
    """A frame of the same columns and no rows."""
    with _without_pandas():
        frame = pl.from_arrow(found.limit(0).toArrow())
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()
