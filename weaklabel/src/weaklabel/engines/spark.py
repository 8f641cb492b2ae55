"""Votes on PySpark: frames, and files on a cluster."""

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

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel.engines import Part, QueryLog, log_wide, own
from weaklabel.plan import QUERY, Plan, RowLog, RowStep, merge, stepped
from weaklabel.votes import SESSION

MASTER = "local[2]"

_MISSING = 'this needs PySpark (and Java 17 or newer): pip install "weaklabel[spark]"'
_PART = "weaklabel_part"

# A log of so many bytes is done before code that is compiled well has paid for the compiling.
_SMALL = 64 * 2**20
_BRIEF = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def votes(log: Any, plan: Plan, reference: Any = None, noted: Any = None) -> Any:
    """The table of votes of a PySpark frame.

    Row-wise functions run in the cluster's Python workers, which need weaklabel installed then; all
    others are computed by Spark alone. `noted` is an accumulator of lists for the errors of the
    workers' row-wise functions; without one, the workers log what was raised.
    """
    from pyspark.sql.types import ByteType, StructField, StructType

    if reference is not None and plan.of_log() is not None:
        log = own(votes(*log_wide(log, plan, reference), noted=noted))
        plan = plan.with_log_votes()
    frame = nw.from_native(log)
    plan.check_columns(frame.columns)
    work = plan.work(plan.set_aside(frame))
    if not plan.rowwise:
        return plan.finished(work).to_native()
    native, step = work.to_native(), plan.step
    cast = {function.column for function in step.functions}
    schema = StructType(
        [
            StructField(name, ByteType() if inner in cast else native.schema[inner].dataType)
            for inner, name in step.columns
        ]
    )
    with _without_pandas():
        return native.mapInArrow(partial(_in_worker, step=step, noted=noted), schema)


def _in_worker(batches: Iterable[Any], step: RowStep, noted: Any) -> Iterator[Any]:
    """The votes of one of Spark's tasks, which reports once it has done all of its rows."""
    if noted is None:
        yield from stepped(batches, step)
        return
    rows = RowLog()
    yield from stepped(batches, step, rows)
    rows.check(step.on_error)
    noted.add(list(rows.raised.values()))


def started(
    master: str | None = None, memory_limit: str | None = None, *, brief: bool = False
) -> Any:
    """A Spark session, for `SparkLog` or for frames.

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


class SparkLog(QueryLog):
    """A query log in Parquet files, read by Spark.

    Args:
        given, scratch: see `QueryLog`.
        files: what Spark's reader opens.
        master: of the cluster, as `spark://host:7077`; by default two threads of this machine.
        memory_limit: of the driver, such as "4g"; it holds where a session is started here.
        reference: the Parquet files of a larger log.

    Raises:
        ImportError: PySpark is not installed.
        WeakLabelError: no session can be started.
    """

    name, title = "spark", "Spark"

    def __init__(
        self,
        given: str,
        files: Sequence[str],
        scratch: Path,
        master: str | None = None,
        memory_limit: str | None = None,
        reference: Sequence[str] | None = None,
    ) -> None:
        try:
            import pyspark
            from py4j.protocol import Py4JError  # type: ignore[import-untyped, unused-ignore]
            from pyspark.errors import PySparkException
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise ImportError(_MISSING) from error
        self.scratch = scratch
        self.given = given
        self.errors = (PySparkException, Py4JError)
        self.version = str(pyspark.__version__)
        with self.faults():
            active = SparkSession.getActiveSession()
            self._owned = active is None
            if active is None:
                size = sum(Path(file).stat().st_size for file in files if Path(file).is_file())
                brief = master is not None or size < _SMALL
                self._session = started(master, memory_limit, brief=brief)
            else:
                # Settings of its own, on the same cluster.
                self._session = active.newSession()
            self._session.conf.set("spark.sql.session.timeZone", "UTC")
            self._session.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
            with _without_pandas():
                read = self._session.read.parquet
                self.log = read(*files)
                self.reference = None if reference is None else read(*reference)

    def close(self) -> None:
        """Stop the session, if it was started here."""
        if self._owned:
            self._session.stop()

    def parts(
        self, plan: Plan, parts: Sequence[Part], metadata: dict[str, str], rows: RowLog
    ) -> Iterator[tuple[Part, Path]]:
        """The votes of parts of the log, each in a Parquet file, by one job for all of them."""
        from pyspark.sql import functions as sql

        log = self.log
        query = sql.xxhash64(sql.col(QUERY))
        if SESSION in self.columns:
            session = sql.col(SESSION)
            query = sql.when(session.isNull(), query).otherwise(sql.xxhash64(session))
        log = log.withColumn(_PART, sql.pmod(query, sql.lit(parts[0].of)).cast("int"))
        wanted = sql.col(_PART).isin([part.index for part in parts])
        if plan.of_log() is None:
            log = log.where(wanted)
        # A task reports when it has ended; one that is run again after a loss counts once.
        noted = self._session.sparkContext.accumulator([], _Lists())
        planned = replace(plan, keep=(*plan.keep, _PART))
        found = votes(log, planned, self.reference, noted).where(wanted)
        folder = self.scratch / "spark"
        found.write.partitionBy(_PART).parquet(str(folder))
        merge(rows.raised, noted.value)
        for part in parts:
            target = self.scratch / part.file
            made = sorted((folder / f"{_PART}={part.index}").glob("*.parquet"))
            merged = pl.scan_parquet(made, glob=False) if made else _empty(found)
            merged.select(plan.columns).sink_parquet(target, metadata=metadata)
            yield part, target

    def _prepared(self, log: Any, plan: Plan) -> Any:
        return plan.set_aside(nw.from_native(log)).to_native()


class _Lists:
    """How an accumulator of lists adds up."""

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
