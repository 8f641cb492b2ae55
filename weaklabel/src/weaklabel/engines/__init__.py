"""The common base of engines: a log, its parts, and the votes that look beyond a part.

Each engine is a module with a `Log`: a `QueryLog`, opened from files, whose class method `votes`
takes the engine's frames as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import narwhals.stable.v2 as nw
import polars as pl
from narwhals.exceptions import NarwhalsError

from weaklabel import tables
from weaklabel.errors import WeakLabelError, plain_message, translated
from weaklabel.plan import QUERY, Plan, RowErrors, RowLog, RowStep, merge
from weaklabel.tables.files import Source, find
from weaklabel.votes import SESSION

# True for the queries of the log, null for those that only the reference has.
_OWN: Final = "__weaklabel_own"


@dataclass(frozen=True)
class LogFiles:
    """A query log in files, opened once for checking it and for applying functions.

    Attributes:
        given: the path as it was given.
        files: the files or URLs, in order.
        frame: its queries.
        direct: the files are Parquet and hold just these queries, so that any engine can read them.
        altered: what made the frame's rows of the files' in words; false where nothing did.
        begin: to be called once a run is sure to take place, before its first vote.
    """

    given: str
    files: tuple[str, ...]
    frame: pl.LazyFrame
    direct: bool
    altered: bool | str = False
    begin: Callable[[], object] | None = None

    @classmethod
    def open(
        cls, path: Source, frame: pl.LazyFrame | None = None, *, altered: bool | str = False
    ) -> LogFiles:
        """The log at a path.

        Args:
            path: a file, a folder, a glob or a URL, see `weaklabel.tables.scan`.
            frame: the frame of `tables.scan(path)`, or made of it, if that was called already.
            altered: `frame` has other rows, values or columns. A text says what made them, and a
                run is resumed with the same text alone.

        Raises:
            FileNotFoundError: there is nothing there.
            WeakLabelError: the suffix is unknown, formats are mixed, or a file cannot be read.
        """
        found = find(path)
        direct = found.format == "Parquet" and found.local and not altered
        direct = direct and not any(map(found.folders, found.paths))
        opened = tables.scan(path) if frame is None else frame
        return cls(found.given, found.paths, opened, direct, altered)

    @property
    def state(self) -> list[list[Any]]:
        """Path, size and time of change in ns of every file; of a URL the path alone."""
        found = [(f, os.stat(f) if os.path.exists(f) else None) for f in self.files]
        return [[file, stat and stat.st_size, stat and stat.st_mtime_ns] for file, stat in found]

    @property
    def bytes(self) -> int:
        """Size of all files; URLs count as 0."""
        return sum(size or 0 for _, size, _ in self.state)

    def parquet(self, made: Path) -> tuple[str, ...]:
        """Parquet files with the log: its own, or one that is made.

        Polars reads other formats for every engine: engines do not read a CSV alike, for instance
        an empty text in quotes. So it does columns of type Null, which are integers to others.
        """
        types = self.frame.collect_schema()
        if self.direct and not any(
            kind == pl.Null and types[name] != pl.Null
            for file in self.files
            for name, kind in pl.read_parquet_schema(Path(file)).items()
        ):
            return self.files
        with tables.naming(self.given):
            self.frame.sink_parquet(made)
        return (str(made),)


@dataclass(frozen=True)
class Part:
    """One of several parts of a log: the sessions, or queries without one, of its hash."""

    index: int
    of: int

    @property
    def file(self) -> str:
        """The name of its file of votes."""
        return f"part-{self.index:05d}-of-{self.of:05d}.parquet"


def _log_wide(log: Any, plan: Plan, reference: Any = None) -> tuple[Any, Plan]:
    """The frame that functions of scope "log" look at, and the plan of their votes.

    Args:
        log: a native lazy frame.
        plan: functions, some of scope "log".
        reference: a larger log, of the same kind of frame; its queries count beside those of the
            log, and the ones in both, by `query_id`, once.

    Returns:
        A native frame, and a plan whose table of votes is, after `_own`, what
        `plan.with_log_votes()` reads: a column `lf:<name>` for each function of scope "log", and
        the columns of the other functions.

    Raises:
        WeakLabelError: the log or the reference lacks columns, or one has text where the other has
            none.
    """
    rest = plan.of_log()
    assert rest is not None
    frame = nw.from_native(log)
    plan.check_columns(frame.columns)
    made = {function.column for function in rest.functions}
    keep = [name for name in plan.with_log_votes().required if name not in made | {QUERY}]
    if SESSION in frame.columns and SESSION not in keep:
        keep.append(SESSION)  # parts are made by it
    if reference is not None:
        read = dict.fromkeys([QUERY, *keep, *rest.required])
        frame = frame.select(*read, nw.lit(True).alias(_OWN))
        keep.append(_OWN)
        others = nw.from_native(reference).lazy()
        rest.check_columns(others.columns)
        mine, theirs = frame.collect_schema(), others.collect_schema()
        if kinds := [
            f"{name!r} ({theirs[name]} in the reference, {mine[name]} in the log)"
            for name in rest.required
            if (mine[name] == nw.String) != (theirs[name] == nw.String)
        ]:
            raise WeakLabelError(f"columns of the reference have other types: {', '.join(kinds)}")
        others = others.select(
            nw.col(name) if mine[name] == theirs[name] else nw.col(name).cast(mine[name])
            for name in rest.required
        ).join(frame.select(QUERY), on=QUERY, how="anti")
        frame = nw.concat([frame, others], how="diagonal")
    return frame.to_native(), replace(rest, keep=tuple(keep))


def _own(votes: Any) -> Any:
    """The queries of the log alone, of the votes of `_log_wide`; a native frame."""
    frame = nw.from_native(votes)
    if _OWN not in frame.columns:
        return votes
    return frame.filter(~nw.col(_OWN).is_null()).drop(_OWN).to_native()


class QueryLog:
    """A query log that an engine has opened.

    Args:
        log: files of the log.
        reference: files of a larger one, or None.
        scratch: a folder for files on the way, which the engine's workers see, too.
        master: Spark's, such as `spark://host:7077`; by default two threads of this machine.
        memory_limit: such as "4GB": of DuckDB, which spills more to the folder (by default 80% of
            the machine's memory), or of Spark's driver, where a session is started here.

    Raises:
        ImportError: the engine is not installed.

    Attributes:
        name, version: the engine's.
        errors: the exceptions of the engine.
        given: the log's name in messages.
        log, reference: native lazy frames.
        scratch: the folder.
        stepped: the native table of votes of a log and its `Plan.work`, by a `RowStep`.
    """

    name: str
    version: str
    errors: tuple[type[BaseException], ...]
    given: str
    log: Any
    reference: Any
    scratch: Path
    stepped: Callable[[Any, Any, RowStep, Any], Any]

    def __init__(
        self,
        log: LogFiles,
        reference: LogFiles | None,
        scratch: Path,
        master: str | None = None,
        memory_limit: str | None = None,
    ) -> None:
        self.given, self.scratch = log.given, scratch
        self._reference_given = "" if reference is None else reference.given
        self._start(log, master, memory_limit)
        with self.faults():
            self.log = self._frame(log, "queries.parquet")
            self.reference = reference and self._frame(reference, "reference.parquet")

    def _start(self, log: LogFiles, master: str | None, memory_limit: str | None) -> None:
        """Import and start the engine, if it has to be."""

    def _frame(self, files: LogFiles, made: str) -> Any:
        """Open files as a native lazy frame, by way of a Parquet file in the scratch folder."""
        return self._read(*files.parquet(self.scratch / made))

    # Of engines that vote part by part: write the votes of a plan on a native frame, read files as
    # one, and the queries of a part.
    _write: Callable[[Any, Plan, Path, dict[str, str], RowLog], None]
    _read: Callable[..., Any]
    _within: Callable[[Any, Part], Any]

    @staticmethod
    def prepared(log: Any, plan: Plan) -> Any:
        """A native frame whose columns are read alike on every engine, as `Plan.work` takes it."""
        return log

    @classmethod
    def work(cls, log: Any, plan: Plan) -> Any:
        """`Plan.work` of a native frame."""
        frame = nw.from_native(log)
        plan.check_columns(frame.collect_schema().names())
        prepared = cls.prepared(plan.set_aside(frame).to_native(), plan)
        return plan.work(nw.from_native(prepared))

    @classmethod
    def votes(cls, log: Any, plan: Plan, rows: Any = None, reference: Any = None) -> Any:
        """The native table of votes of a native lazy frame.

        Args:
            log: the frame.
            plan: functions and columns to keep.
            rows: takes note of errors of row-wise functions; without it they are raised or logged.
            reference: a larger log, a frame of the same kind; see `_log_wide`.

        Raises:
            WeakLabelError: columns are missing, or a function cannot be computed.
        """
        if reference is not None and plan.of_log() is not None:
            log = _own(cls.votes(*_log_wide(log, plan, reference), rows))
            plan = plan.with_log_votes()
        work = cls.work(log, plan)
        if not plan.rowwise:
            return plan.finished(work).to_native()
        return cls.stepped(log, work.to_native(), plan.step, rows)

    def close(self) -> None:
        """Let go of what the engine holds; nothing, unless it says otherwise."""

    def faults(self) -> AbstractContextManager[None]:
        """Context in which exceptions of the engine become errors of this package."""
        return translated(self.name, self.given, *self.errors, NarwhalsError)

    @property
    def columns(self) -> tuple[str, ...]:
        """The log's columns."""
        return tuple(nw.from_native(self.log).collect_schema().names())

    def log_rows(self, plan: Plan) -> int | None:
        """Number of queries that functions of scope "log" look at; None without such functions."""
        if plan.of_log() is None:
            return None
        kinds: tuple[type[BaseException], ...] = (*self.errors, NarwhalsError)
        try:
            return int(_rows(_log_wide(self.log, plan, self.reference)[0]))
        except kinds:
            self._require_readable(plan)
            raise

    def wrong(self, plan: Plan, names: Sequence[str]) -> list[RowErrors]:
        """The queries with votes that are none; see `Plan.wrong`."""
        if not names:
            return []
        log, plan = self.log, replace(plan, keep=())
        if self.reference is not None and plan.of_log() is not None:
            log = _log_wide(log, plan, self.reference)[0]
        return plan.wrong(nw.from_native(self.prepared(log, plan)), names)

    def parts(
        self, plan: Plan, parts: Sequence[Part], metadata: dict[str, str], rows: RowLog
    ) -> Iterator[tuple[Part, Path]]:
        """The votes of parts of the log, each in a Parquet file of the scratch folder.

        Args:
            plan: functions and columns to keep.
            parts: some or all of the parts that the log is cut in.
            metadata: of each file.
            rows: takes note of errors.
        """
        log, whole = self.log, parts[0].of == 1
        # A part does not show how often something occurs in the log: these are computed once, and
        # written with the columns that the parts read.
        if plan.of_log() is not None and not (whole and self.reference is None):
            made = self.scratch / "log-votes.parquet"
            self._voted(*_log_wide(log, plan, self.reference), made, {}, rows)
            log, plan = _own(self._read(str(made))), plan.with_log_votes()
        for part in parts:
            target = self.scratch / part.file
            self._voted(log if whole else self._within(log, part), plan, target, metadata, rows)
            yield part, target

    def _voted(
        self, log: Any, plan: Plan, target: Path, metadata: dict[str, str], rows: RowLog
    ) -> None:
        """Write the votes, though an expression fails on one of the rows; its votes are missing."""
        try:
            self._write(log, plan, target, metadata, rows)
        except self.errors as error:
            self._require_readable(plan)
            failing = self._failing(log, plan)
            if not failing or len(failing) == len(plan.functions) or plan.on_error == "fail":
                for name, message in failing.items():
                    raise WeakLabelError(f"labeling function {name!r} failed: {message}") from error
                raise
            # An engine does not say which row it was: the function loses them all.
            self._write(log, plan.without_votes(failing), target, metadata, rows)
            total = _rows(log)
            lost = (RowErrors(name, total, [(None, why)]) for name, why in failing.items())
            merge(rows.raised, lost)

    def _require_readable(self, plan: Plan) -> None:
        """Read what a plan reads of the log and the reference; an error names the one that fails.

        An engine that meets a broken page does not say where, and the functions that read it fail.
        """
        copied = self.scratch / "read.parquet"
        for frame, given in ((self.log, self.given), (self.reference, self._reference_given)):
            if frame is not None:
                held = nw.from_native(frame).collect_schema().names()
                keep = tuple(name for name in plan.required if name in held and name != QUERY)
                alone = Plan(plan.functions[:1], keep).without_votes([plan.functions[0].name])
                try:
                    self._write(frame, alone, copied, {}, RowLog())
                except self.errors:
                    broken = f"{tables.unreadable(given)}, which cannot be read"
                    with translated(self.name, broken, *self.errors):
                        raise
                copied.unlink()

    def _failing(self, log: Any, plan: Plan) -> dict[str, str]:
        """The expressions that cannot be computed even alone, and why."""
        failing = {}
        expected: tuple[type[BaseException], ...] = (*self.errors, NarwhalsError, WeakLabelError)
        for function in plan.functions:
            if not function.rowwise:
                try:
                    votes = nw.from_native(self.votes(log, Plan((function,))))
                    votes.select(nw.col(function.column).sum()).lazy().collect("polars")
                except expected as error:
                    failing[function.name] = plain_message(error)
        return failing


def _rows(frame: Any) -> int:
    return int(nw.from_native(frame).select(rows=nw.len()).lazy().collect("polars").item())
