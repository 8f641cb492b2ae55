"""Votes on DuckDB: relations, and files larger than memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from weaklabel.engines import LogFiles, Part, QueryLog
from weaklabel.engines.polars import Log as PolarsLog
from weaklabel.plan import QUERY, Plan, RowLog, RowStep
from weaklabel.schema import kind_of
from weaklabel.votes import SESSION


class Log(QueryLog):
    """A query log read by DuckDB."""

    name = "duckdb"

    def _start(self, log: LogFiles, master: str | None, memory_limit: str | None) -> None:
        try:
            import duckdb
            import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
        except ImportError as error:
            raise ImportError('this needs DuckDB: pip install "weaklabel[duckdb]"') from error
        self.version = str(duckdb.__version__)
        self.errors = (duckdb.Error, *PolarsLog.errors)
        with self.faults():
            self._connection = duckdb.connect()
            settings = {
                "temp_directory": str(self.scratch / "spill"),
                # Windows leave no order to preserve, and preserving it would hold row groups back.
                "preserve_insertion_order": "false",
                "enable_progress_bar": "false",
                "TimeZone": "UTC",
                **({} if memory_limit is None else {"memory_limit": memory_limit}),
            }
            for name, value in settings.items():
                self._connection.execute(f"SET {name} = {_literal(value)}")

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()

    @staticmethod
    def prepared(log: Any, plan: Plan) -> Any:
        """The log with types that have all the functions, and null for NaN in what is read.

        Types of a nanosecond have few functions. DuckDB takes a comparison for settled by the
        file's statistics, which say nothing of NaN (its issue 25521); a hash it has to compute.
        """
        changed = {}
        for name, kind in zip(log.columns, map(str, log.types), strict=True):
            column = _quoted(name)
            if name not in plan.required:
                continue
            if kind in ("FLOAT", "DOUBLE"):
                nan = "hash('nan'::DOUBLE)"
                changed[name] = f"CASE WHEN hash({column}::DOUBLE) <> {nan} THEN {column} END"
            elif kind.startswith("TIMESTAMP") and kind.endswith("_NS"):
                zoned = " WITH TIME ZONE" if "TZ" in kind else ""
                changed[name] = f"CAST({column} AS TIMESTAMP{zoned})"
            elif kind == '"NULL"' and kind_of(name) == "time":  # else taken for an integer
                changed[name] = "CAST(NULL AS TIMESTAMP WITH TIME ZONE)"
        made = ", ".join(f"{text} AS {_quoted(name)}" for name, text in changed.items())
        return log.project(f"* REPLACE ({made})") if changed else log

    @staticmethod
    def stepped(log: Any, work: Any, step: RowStep, rows: RowLog | None) -> Any:
        """The table of votes, computed here and now."""
        # DuckDB finds the name `made` in this function; a relation's own connection is out of reach
        # but for queries on the relation.
        made = step(work.pl(), rows)  # noqa: F841
        return log.query("log", "SELECT * FROM made")

    def _write(
        self, log: Any, plan: Plan, target: Path, metadata: dict[str, str], rows: RowLog
    ) -> None:
        if not plan.rowwise:
            self._copy(self.votes(log, plan), target, metadata)
            return
        work = self.scratch / "work.parquet"
        self._copy(self.work(log, plan).to_native(), work, {})
        scanned = pl.scan_parquet(work, glob=False)
        PolarsLog.stepped(None, scanned, plan.step, rows).sink_parquet(target, metadata=metadata)
        work.unlink()

    def _copy(self, table: Any, target: Path, metadata: dict[str, str]) -> None:
        pairs = ", ".join(f"{_literal(key)}: {_literal(text)}" for key, text in metadata.items())
        self._connection.execute(
            f"COPY ({table.sql_query()}) TO {_literal(str(target))}"
            f" (FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{pairs}}})"
        )

    def _read(self, *files: str) -> Any:
        # By name, with a common type: columns may differ in place and width between files.
        return self._connection.read_parquet(list(files), union_by_name=len(files) > 1)

    def _within(self, log: Any, part: Part) -> Any:
        query = f"hash({_quoted(QUERY)})"
        if SESSION in self.columns:
            session = _quoted(SESSION)
            query = f"CASE WHEN {session} IS NULL THEN {query} ELSE hash({session}) END"
        return log.filter(f"({query}) % {part.of} = {part.index}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
