"""Votes on DuckDB: relations, and files larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw

from weaklabel.engines import Part, Partwise, log_wide, own
from weaklabel.plan import BATCH, QUERY, Plan, RowLog, RowStep, stepped, votes_schema
from weaklabel.votes import SESSION

_MISSING = 'this needs DuckDB: pip install "weaklabel[duckdb]"'


def votes(log: Any, plan: Plan, reference: Any = None) -> Any:
    """The table of votes of a relation; where functions are row-wise, computed at once.

    Raises:
        WeakLabelError: see `engines`; or a row-wise vote is none.
        ImportError: pyarrow is not installed.
    """
    if reference is not None and plan.of_log() is not None:
        log = own(votes(*log_wide(log, plan, reference)))
        plan = plan.with_log_votes()
    work = _work(log, plan)
    if not plan.rowwise:
        return plan.finished(nw.from_native(work)).to_native()
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    reader, rows = _reader(work), RowLog()
    # DuckDB finds the name `made` in this function; the relation's own connection is out of reach
    # but for queries on the relation.
    made = pa.Table.from_batches(  # noqa: F841
        stepped(reader, plan.step, rows), votes_schema(reader.schema, plan.step)
    )
    rows.check(plan.on_error)
    rows.warn()
    return log.query("log", "SELECT * FROM made")


class DuckLog(Partwise):
    """A query log in Parquet files, read by DuckDB.

    Args:
        given, scratch: see `QueryLog`; what does not fit into memory is spilled to `scratch`.
        files: local Parquet files.
        memory_limit: such as "4GB"; by default DuckDB's, 80% of the machine's memory.
        reference: the Parquet files of a larger log.

    Raises:
        ImportError: DuckDB is not installed.
    """

    name, title = "duckdb", "DuckDB"

    def __init__(
        self,
        given: str,
        files: Sequence[str],
        scratch: Path,
        memory_limit: str | None = None,
        reference: Sequence[str] | None = None,
    ) -> None:
        try:
            import duckdb
            import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
        except ImportError as error:
            raise ImportError(_MISSING) from error
        self.version = str(duckdb.__version__)
        self.errors = (duckdb.Error, pa.ArrowException)
        self.scratch = scratch
        self.given = given
        with self.faults():
            self._connection = duckdb.connect()
            self._set("temp_directory", str(scratch / "spill"))
            # Windows leave no order to preserve, and preserving it would hold row groups back.
            self._connection.execute("SET preserve_insertion_order = false")
            self._connection.execute("SET enable_progress_bar = false")
            self._set("TimeZone", "UTC")
            if memory_limit is not None:
                self._set("memory_limit", memory_limit)
            self.log = self._opened(files)
            self.reference = None if reference is None else self._opened(reference)

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()

    def _write(
        self, log: Any, plan: Plan, target: Path, metadata: dict[str, str], rows: RowLog
    ) -> None:
        work = _work(log, plan)
        if plan.rowwise:
            self._write_batches(work, plan.step, target, metadata, rows)
        else:
            self._copy(plan.finished(nw.from_native(work)).to_native(), target, metadata)

    def _read(self, file: Path) -> Any:
        return self._opened([str(file)])

    def _within(self, log: Any, part: Part) -> Any:
        query = f"hash({_quoted(QUERY)})"
        if SESSION in self.columns:
            session = _quoted(SESSION)
            query = f"CASE WHEN {session} IS NULL THEN {query} ELSE hash({session}) END"
        return log.filter(f"({query}) % {part.of} = {part.index}")

    def _prepared(self, log: Any, plan: Plan) -> Any:
        return _prepared(log, plan)

    def _opened(self, files: Sequence[str]) -> Any:
        # By name, with a common type: columns may differ in place and width between files.
        return self._connection.read_parquet(list(files), union_by_name=len(files) > 1)

    def _copy(self, votes: Any, target: Path, metadata: dict[str, str]) -> None:
        pairs = ", ".join(f"{_literal(key)}: {_literal(text)}" for key, text in metadata.items())
        self._connection.execute(
            f"COPY ({votes.sql_query()}) TO {_literal(str(target))}"
            f" (FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{pairs}}})"
        )

    def _write_batches(
        self, work: Any, step: RowStep, target: Path, metadata: dict[str, str], rows: RowLog
    ) -> None:
        from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

        reader = _reader(work)
        schema = votes_schema(reader.schema, step)
        with parquet.ParquetWriter(
            target, schema.with_metadata(metadata), compression="zstd"
        ) as writer:
            for batch in stepped(reader, step, rows):
                writer.write_batch(batch)

    def _set(self, name: str, value: str) -> None:
        self._connection.execute(f"SET {name} = {_literal(value)}")


def _work(log: Any, plan: Plan) -> Any:
    plan.check_columns(log.columns)
    aside = plan.set_aside(nw.from_native(log)).to_native()
    return plan.work(nw.from_native(_prepared(aside, plan))).to_native()


def _prepared(log: Any, plan: Plan) -> Any:
    """The log with types that have all the functions, and null for NaN in columns that are read.

    Types of a nanosecond have few functions. DuckDB takes a comparison for settled by the file's
    statistics, which say nothing of NaN (its issue 25521); a hash it has to compute.
    """
    changed = {}
    for name, kind in zip(log.columns, map(str, log.types), strict=True):
        if name not in plan.required:
            continue
        column = _quoted(name)
        if kind in ("FLOAT", "DOUBLE"):
            nan = "hash('nan'::DOUBLE)"
            changed[name] = f"CASE WHEN hash({column}::DOUBLE) <> {nan} THEN {column} END"
        elif kind.startswith("TIMESTAMP") and kind.endswith("_NS"):
            zoned = " WITH TIME ZONE" if "TZ" in kind else ""
            changed[name] = f"CAST({column} AS TIMESTAMP{zoned})"
    made = ", ".join(f"{text} AS {_quoted(name)}" for name, text in changed.items())
    return log.project(f"* REPLACE ({made})") if changed else log


def _reader(relation: Any) -> Any:
    # DuckDB renamed it.
    read = getattr(relation, "to_arrow_reader", None) or relation.fetch_record_batch
    return read(BATCH)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
