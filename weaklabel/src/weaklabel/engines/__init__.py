"""What the engines have in common: the parts of a log, and the votes that look beyond a part.

Each engine is a module with a `QueryLog` for files, and a function `votes(log, plan, reference)`
for its frames: the table of votes of a `Plan`, lazily, where a reference is a larger log, see
`log_wide`. It raises a WeakLabelError where columns are missing or a function cannot be computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import narwhals.stable.v2 as nw
from narwhals.exceptions import NarwhalsError

from weaklabel.errors import WeakLabelError, plain_message, translated
from weaklabel.plan import QUERY, Plan, RowErrors, RowLog, merge
from weaklabel.votes import SESSION

# True for the queries of the log, null for those that only the reference has.
_OWN: Final = "__weaklabel_own"


@dataclass(frozen=True)
class Part:
    """One of several parts of a log: the sessions whose hash falls to it.

    A query without a session falls to the part of its own hash.

    Attributes:
        index: from 0 on.
        of: how many parts there are.
    """

    index: int
    of: int

    @property
    def file(self) -> str:
        """The name of its file of votes."""
        return f"part-{self.index:05d}-of-{self.of:05d}.parquet"


def log_wide(log: Any, plan: Plan, reference: Any = None) -> tuple[Any, Plan]:
    """What functions of scope "log" look at, and the plan of their votes.

    Args:
        log: a native lazy frame.
        plan: functions, some of scope "log".
        reference: a larger log, of the same kind of frame; its queries count beside those of the
            log, and the ones in both, by `query_id`, once.

    Returns:
        A native frame, and a plan whose table of votes is, after `own`, what
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
        others = nw.from_native(reference)
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


def own(votes: Any) -> Any:
    """The queries of the log alone, of the votes of `log_wide`; a native frame."""
    frame = nw.from_native(votes)
    if _OWN not in frame.columns:
        return votes
    return frame.filter(~nw.col(_OWN).is_null()).drop(_OWN).to_native()


class QueryLog(ABC):
    """A query log that an engine has opened.

    Attributes:
        name: the engine's.
        title: the same, as it is written in messages.
        version: the engine's.
        errors: the exceptions of the engine.
        given: what the log is called in messages.
        log: the native frame, a lazy one.
        reference: another, see `log_wide`; or None.
        scratch: a folder for files on the way, which the engine's workers see, too.
    """

    name: str
    title: str
    version: str
    errors: tuple[type[Exception], ...]
    given: str
    log: Any
    reference: Any
    scratch: Path

    def close(self) -> None:  # noqa: B027
        """Let go of what the engine holds; nothing, unless it says otherwise."""

    def faults(self) -> AbstractContextManager[None]:
        """What the engine raises, as errors of this package."""
        return translated(self.title, self.given, *self.errors)

    @abstractmethod
    def _prepared(self, log: Any, plan: Plan) -> Any:
        """A native frame as `Plan.work` takes it."""

    @abstractmethod
    def parts(
        self, plan: Plan, parts: Sequence[Part], metadata: dict[str, str], rows: RowLog
    ) -> Iterator[tuple[Part, Path]]:
        """The votes of parts of the log, each in a Parquet file of the scratch folder.

        Args:
            plan: functions and columns to keep.
            parts: some or all of the parts that the log is cut in.
            metadata: of each file.
            rows: takes note of row-wise functions.
        """

    @property
    def columns(self) -> tuple[str, ...]:
        """The log's columns."""
        return tuple(nw.from_native(self.log).collect_schema().names())

    def log_rows(self, plan: Plan) -> int | None:
        """How many queries functions of scope "log" look at; None where there are none of them."""
        if plan.of_log() is None:
            return None
        frame = nw.from_native(log_wide(self.log, plan, self.reference)[0])
        return int(_one(frame.select(rows=nw.len())))

    def complain(self, plan: Plan, names: list[str]) -> None:
        """Name the queries with votes that are none; see `Plan.complain`."""
        log = self.log
        if self.reference is not None and plan.of_log() is not None:
            log = log_wide(log, plan, self.reference)[0]
        plan.complain(nw.from_native(self._prepared(log, replace(plan, keep=()))), names)


class Partwise(QueryLog):
    """A log voted on part by part, for engines that write one file at a time."""

    @abstractmethod
    def _write(
        self, log: Any, plan: Plan, target: Path, metadata: dict[str, str], rows: RowLog
    ) -> None:
        """The votes on a native frame, in a Parquet file."""

    @abstractmethod
    def _read(self, file: Path) -> Any:
        """A Parquet file as a native frame."""

    @abstractmethod
    def _within(self, log: Any, part: Part) -> Any:
        """The queries of a part."""

    def parts(
        self, plan: Plan, parts: Sequence[Part], metadata: dict[str, str], rows: RowLog
    ) -> Iterator[tuple[Part, Path]]:
        """The votes of parts of the log, see `QueryLog.parts`."""
        log, whole = self.log, parts[0].of == 1
        # A part does not show how often something occurs in the log: these are computed once, and
        # written with the columns that the parts read.
        if plan.of_log() is not None and not (whole and self.reference is None):
            made = self.scratch / "log-votes.parquet"
            self._voted(*log_wide(log, plan, self.reference), made, {}, rows)
            log, plan = own(self._read(made)), plan.with_log_votes()
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
            failing = self._failing(log, plan)
            if not failing or len(failing) == len(plan.functions) or plan.on_error == "fail":
                for name, message in failing.items():
                    raise WeakLabelError(f"labeling function {name!r} failed: {message}") from error
                raise
            total = int(_one(nw.from_native(log).select(rows=nw.len())))
            # An engine does not say which row it was: the function loses them all.
            self._write(log, plan.without_votes(failing), target, metadata, rows)
            lost = (RowErrors(name, total, [(None, why)]) for name, why in failing.items())
            merge(rows.raised, lost)

    def _failing(self, log: Any, plan: Plan) -> dict[str, str]:
        """The expressions that cannot be computed even alone, and why."""
        failing = {}
        expected: tuple[type[Exception], ...] = (*self.errors, NarwhalsError, WeakLabelError)
        for function in plan.functions:
            if function.rowwise:
                continue
            alone = Plan((function,))
            try:
                work = alone.work(nw.from_native(self._prepared(log, alone)))
                _one(alone.finished(work).select(nw.col(function.column).sum()))
            except expected as error:
                failing[function.name] = plain_message(error)
        return failing


def _one(frame: Any) -> Any:
    """The value of a frame of one."""
    return frame.lazy().collect("polars").item()
