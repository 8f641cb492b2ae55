"""`Plan`: what a set of labeling functions computes, said once for every engine.

The way of the data: columns of the log → `work` (an expression each, under names of its own) →
`step` for row-wise functions, in Python → the table of votes. A query without a function's input
gets a null vote; a vote that is none of -1, 0, 1 and null is turned into `WRONG` inside the engine,
before any cast could wrap it into a vote.

A `RowLog` keeps the errors of row-wise functions for the caller: `RowLog.raised` holds what
functions raised, and `RowLog.check` refuses values that are no votes.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from numbers import Number
from typing import Any, Final, Literal, TypeAlias

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel.errors import WeakLabelError, clipped, ends_run, foreign, plain_message
from weaklabel.labeling import LabelingFunction
from weaklabel.schema import WANTED, kind_of
from weaklabel.votes import ABSTAIN, ACCEPT, LOG_LENGTH, MISSING, PREFIX, REJECT, conditions

#: What becomes of a row on which a row-wise function raises.
OnError: TypeAlias = Literal["missing", "fail"]

QUERY: Final = "query_id"

#: What stands in a column of votes for a value that is no vote.
WRONG: Final = 2

#: Rows that are in Python at one time.
BATCH: Final = 16_384

SHOWN: Final = 5  # rows that an error names
LONG_LINE: Final = 4_000  # characters of one line of a traceback, such as a message, that are kept

# Columns on the way have plain names: engines take "." or ":" in a name for something else.
_KEPT: Final = "__weaklabel_kept_{}"
_VOTE: Final = "__weaklabel_vote_{}"
_ROW: Final = "__weaklabel_row_{}"
_INPUT: Final = "__weaklabel_input_{}_{}"
_CONDITION: Final = "__weaklabel_condition_{}_{}"

_logger = logging.getLogger(__name__)


@dataclass
class RowErrors:
    """The rows on which one function raised, or cast what is no vote.

    Attributes:
        name: the function's.
        total: how many rows.
        first: the first of them by `query_id`, as (query_id, message).
        traceback: of one of the errors raised, from the function's own lines on.
    """

    name: str
    total: int = 0
    first: list[tuple[Any, str]] = field(default_factory=list)
    traceback: str = ""

    def __str__(self) -> str:
        # An expression fails without naming a row.
        shown = ", ".join(
            message if query is None else f"{message} on query_id {query!r}"
            for query, message in self.first
        )
        return shown + (", …" if self.total > len(self.first) else "")


def merge(errors: dict[str, RowErrors], others: Iterable[RowErrors]) -> None:
    """Add further errors to those of each function, by its name."""
    for other in others:
        own = errors.setdefault(other.name, RowErrors(other.name))
        own.total += other.total
        first = sorted(own.first + other.first, key=lambda pair: (pair[0] is None, pair[0]))
        own.first = first[:SHOWN]
        own.traceback = own.traceback or other.traceback


@dataclass
class RowLog:
    """The rows that functions failed on in a run.

    Attributes:
        raised: of each function that raised, by name, the rows; their votes are missing.
        wrong: of each function that cast what is no vote, by name, the rows.
        advance: called with the rows of a batch that is done.
        lock: held while a batch is worked on.
    """

    raised: dict[str, RowErrors] = field(default_factory=dict)
    wrong: dict[str, RowErrors] = field(default_factory=dict)
    advance: Callable[[int], object] | None = field(default=None, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def check(self, on_error: OnError) -> None:
        """Refuse what was no vote and, where `on_error` is "fail", what functions raised.

        Raises:
            WeakLabelError: naming each function and the first queries; one that raised has its
                traceback as a note.
        """
        for errors in self.raised.values() if on_error == "fail" else ():
            error = WeakLabelError(f"labeling function {errors.name!r} raised {errors}")
            error.add_note(errors.traceback)
            raise error
        if self.wrong:
            raise WeakLabelError(
                "; ".join(
                    f"labeling function {errors.name!r} cast {errors.total}"
                    f" vote{'s' * (errors.total != 1)} other than {ACCEPT} (accept), {ABSTAIN}"
                    f" (abstain), {REJECT} (reject) and null (missing): {errors}"
                    for errors in self.wrong.values()
                )
            )

    def warn(self, record: str | None = None) -> None:
        """Log what functions raised; with the traceback, where no record is named that has it."""
        for errors in self.raised.values():
            rest = f"\n{errors.traceback}" if record is None else f"; {record} have the traceback"
            _logger.warning(
                "labeling function %r raised on %d rows, whose votes are missing: %s%s",
                *(errors.name, errors.total, errors, rest),
            )


@dataclass(frozen=True)
class RowStep:
    """Row-wise votes added to a batch, and its columns named as in the table of votes.

    Attributes:
        functions: the row-wise functions; may be none. By the name of its votes on the way, each
            with the columns that hold the entries of its row, `query_id` included.
        columns: (name on the way, name in the table of votes), in the table's order.
        on_error: whether a row on which a function raises has a missing vote, or stops the run.
    """

    functions: Mapping[str, tuple[LabelingFunction, Mapping[str, str]]]
    columns: tuple[tuple[str, str], ...]
    on_error: OnError

    def __call__(self, work: pl.DataFrame, rows: RowLog | None = None) -> pl.DataFrame:
        """The table of votes of a batch of `Plan.work`.

        Args:
            work: the batch.
            rows: takes note of errors; without one, what is no vote is raised here, and what
                functions raised is logged.

        Raises:
            WeakLabelError: a function raised and that is to stop the run, or a vote is none.
        """
        log = RowLog() if rows is None else rows
        parts = []
        for batch in [*work.iter_slices(BATCH)] or [work]:
            # One thread after the other: two would only wait for each other at every row.
            with log.lock:
                parts.append(
                    batch.with_columns(self._votes(batch, name, log) for name in self.functions)
                )
                if log.advance is not None:
                    log.advance(len(batch))
        if rows is None:
            log.check(self.on_error)
            log.warn()
        return pl.concat(parts).select(pl.col(inner).alias(name) for inner, name in self.columns)

    def _votes(self, batch: pl.DataFrame, column: str, log: RowLog) -> pl.Series:
        """A function's votes: null where it has no input, and is not called."""
        function, entries = self.functions[column]
        known = (pl.col(entries[name]).is_not_null() for name in function.inputs_needed)
        rows = batch.select(
            *(pl.col(inner).alias(name) for name, inner in entries.items()),
            pl.all_horizontal(pl.lit(True), *known).alias(column),
        )
        votes = [
            _vote(function, row, log) if row.pop(column) else None
            for row in rows.iter_rows(named=True)
        ]
        return pl.Series(column, votes, dtype=pl.Int8)


def _vote(function: LabelingFunction, row: dict[str, Any], log: RowLog) -> int | None:
    name, query = function.name, row[QUERY]
    try:
        cast = function.function(row, **function.parameters)
    except BaseException as error:
        if ends_run(error):
            raise
        own = error.__traceback__ and error.__traceback__.tb_next
        # The first one's is kept; to format it takes longer than most functions do.
        lines = () if name in log.raised else traceback.format_exception(error.with_traceback(own))
        shown = "".join(clipped(line, LONG_LINE) for line in lines)
        merge(log.raised, [RowErrors(name, 1, [(query, foreign(error))], shown)])
        return None
    if cast is None:
        return ABSTAIN
    try:
        valid = type(cast) is int  # nearly always, and to look further takes twice as long
        if not valid:
            # NumPy's scalars, and arrays without dimensions, hold a number, or True, which equals
            # 1, but is an answer to another question.
            cast = cast.item() if getattr(cast, "shape", None) == () else cast
            valid = isinstance(cast, Number) and not isinstance(cast, bool)
        valid = valid and cast in (REJECT, ABSTAIN, ACCEPT, MISSING)
        vote = int(cast) if valid else MISSING
    except Exception:  # noqa: BLE001 - whatever it is, it is no number
        valid = False
    if not valid:
        merge(log.wrong, [RowErrors(name, 1, [(query, foreign(cast))])])
        return None
    return None if vote == MISSING else vote


@dataclass(frozen=True)
class Plan:
    """Labeling functions and the columns to keep beside their votes.

    Attributes:
        functions: in the order of their columns.
        keep: columns of the log, without `query_id`, which always stays.
        on_error: where a row-wise function raises: "missing" goes on without its vote on that row,
            "fail" makes no table of votes.
    """

    functions: tuple[LabelingFunction, ...]
    keep: tuple[str, ...] = ()
    on_error: OnError = "fail"

    @classmethod
    def of(
        cls,
        functions: Iterable[LabelingFunction],
        keep: Sequence[str] = (),
        on_error: OnError = "fail",
    ) -> Plan:
        """A plan whose columns have names of their own.

        Raises:
            WeakLabelError: two functions share a name, a column to keep has a function's name, or
                `on_error` is something else.
            TypeError: something is no labeling function.
        """
        if isinstance(keep, str):
            raise TypeError(f"keep= takes a list of columns: [{keep!r}]")
        if on_error not in ("missing", "fail"):
            raise WeakLabelError(f"on_error is 'missing' or 'fail', not {on_error!r}")
        chosen = tuple(functions)
        if not chosen:
            raise WeakLabelError("no labeling functions given: at least one has to vote")
        seen: dict[str, str] = {}
        for function in chosen:
            if not isinstance(function, LabelingFunction):
                raise TypeError(
                    f"{function!r} is no labeling function: decorate it with @labeling_function"
                )
            # DuckDB and Spark do not tell A from a in a column's name.
            if (folded := function.name.casefold()) in seen:
                raise WeakLabelError(
                    f"two labeling functions are named {seen[folded]!r} and {function.name!r}: give"
                    " one of them another name (letter case does not tell names apart)"
                )
            seen[folded] = function.name
        kept = tuple(dict.fromkeys(column for column in keep if column != QUERY))
        if votes := [column for column in kept if column.startswith(PREFIX)]:
            raise WeakLabelError(
                f"columns to keep cannot be named {PREFIX}…, as votes are: rename {votes}"
            )
        return cls(chosen, kept, on_error)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table of votes, in order."""
        return (QUERY, *self.keep, *(function.column for function in self.functions))

    @property
    def required(self) -> tuple[str, ...]:
        """The columns of the log that are read."""
        wanted = [column for function in self.functions for column in function.columns]
        return tuple(dict.fromkeys([QUERY, *wanted, *self.keep]))

    @property
    def rowwise(self) -> tuple[LabelingFunction, ...]:
        """The functions that take one row, the slow kind."""
        return tuple(function for function in self.functions if function.rowwise)

    def of_log(self) -> Plan | None:
        """The functions of scope "log" alone; None where there are none."""
        chosen = tuple(function for function in self.functions if function.scope == "log")
        return Plan(chosen, on_error=self.on_error) if chosen else None

    def with_log_votes(self) -> Plan:
        """The plan where the log has the votes of scope "log" already, as columns `lf:<name>`."""
        return self._with(
            LabelingFunction(partial(nw.col, f.column), f.name, (f.column,))
            for f in self.functions
            if f.scope == "log"
        )

    def without_votes(self, names: Iterable[str]) -> Plan:
        """The plan in which some functions cast no vote on any query."""
        none = partial(nw.lit, None, nw.Int8)
        return self._with(LabelingFunction(none, name) for name in names)

    def _with(self, others: Iterable[LabelingFunction]) -> Plan:
        named = {f.name: f for f in others}
        return replace(self, functions=tuple(named.get(f.name, f) for f in self.functions))

    def check_columns(self, names: Iterable[str]) -> None:
        """Refuse a log that lacks columns, naming each function with what it misses."""
        have = list(names)
        faults = [] if QUERY in have else [f"every query needs a {QUERY!r}"]
        wanted = {f"labeling function {f.name!r} requires": f.columns for f in self.functions}
        for what, columns in (wanted | {"keep names": self.keep}).items():
            if missing := [column for column in columns if column not in have]:
                faults.append(f"{what} {_list(missing)}")
        if faults:
            raise WeakLabelError(
                f"the query log has the columns {_list(have)}, but {'; '.join(faults)}. Add the"
                " columns, or leave these functions out"
            )

    def check_types(self, schema: Mapping[str, Any]) -> None:
        """Refuse times and numbers that are none where functions read them; unknown types pass.

        Polars would compare numbers with durations as integers, and with true and false as 1 and 0.
        """
        read = {column for function in self.functions for column in function.columns}
        for name in (name for name in schema if name in read):
            dtype, kind = schema[name], kind_of(name)
            right = dtype == nw.Datetime if kind == "time" else dtype.is_numeric()
            if kind in ("time", "share", "seconds") and not right and dtype != nw.Unknown:
                raise WeakLabelError(
                    f"column {name!r} is {dtype}, expected {WANTED[kind]}: convert it, or let"
                    " weaklabel.queries.check(log).accepted read it (on the command line, leave out"
                    " --no-check)"
                )

    def set_aside(self, frame: Any) -> Any:
        """The frame with its kept columns once more, under names that nothing else has."""
        aside = [nw.col(column).alias(_KEPT.format(i)) for i, column in enumerate(self.keep)]
        return frame.with_columns(*aside) if aside else frame

    def work(self, frame: Any) -> Any:
        """Checked votes of the expressions and what row-wise functions need, under plain names.

        Args:
            frame: a narwhals frame in which `set_aside` has set the kept columns aside.

        Raises:
            WeakLabelError: a function raises, cannot be computed here, reads times or numbers
                that are none, or has votes of a type that is no number.
        """
        frame = self._readable(frame)
        self.check_types(frame.collect_schema())
        others = {_KEPT.format(i): nw.col(_KEPT.format(i)) for i in range(len(self.keep))}
        others |= {_ROW.format(i): nw.col(column) for i, column in enumerate(self._row_columns)}
        votes: dict[str, LabelingFunction] = {}
        sides: dict[str, tuple[LabelingFunction, str]] = {}  # of what is to be true or false
        made: dict[str, nw.Expr] = {}
        for index, function in enumerate(self.functions):
            if function.rowwise:
                inputs = enumerate(function.inputs.values())
                others |= {_INPUT.format(index, place): value for place, value in inputs}
                continue
            with conditions() as made_of:
                made[_VOTE.format(index)] = _where_known(function)
            votes[_VOTE.format(index)] = function
            for place, (side, condition) in enumerate(made_of):
                made[_CONDITION.format(index, place)] = condition
                sides[_CONDITION.format(index, place)] = function, side
        named = (expression.alias(name) for name, expression in (others | made).items())
        try:
            raw = frame.select(QUERY, *named)
            schema = raw.collect_schema()
        except Exception as error:
            self._blame(frame)
            raise WeakLabelError(
                f"the votes cannot be computed here: {plain_message(error)}"
            ) from error
        for name, function in votes.items():
            if not schema[name].is_numeric():
                raise WeakLabelError(
                    f"labeling function {function.name!r} votes {schema[name]}, expected 1, 0, -1"
                    " or null, as numbers: make votes with accept_if, reject_if or vote"
                )
        for name, (function, side) in sides.items():
            if schema[name] != nw.Boolean:  # which a cast would hide
                raise WeakLabelError(
                    f"labeling function {function.name!r} gives {side} a condition that is"
                    f" {schema[name]}. Expected true or false: compare with something"
                )
        checked = (_checked(name, schema[name]).cast(nw.Int8).alias(name) for name in votes)
        return raw.select(QUERY, *others, *checked)

    def finished(self, work: Any) -> Any:
        """The table of votes of `work`, where no function is row-wise."""
        return work.select(*(nw.col(inner).alias(name) for inner, name in self.step.columns))

    @cached_property
    def step(self) -> RowStep:
        """The rest of the work, in Python: row-wise votes and the final names."""
        row = {QUERY: QUERY} | {
            column: _ROW.format(i) for i, column in enumerate(self._row_columns)
        }
        functions = {
            # Expressions need not travel to a cluster's workers.
            _VOTE.format(index): (
                replace(function, inputs={}),
                {column: row[column] for column in (QUERY, *function.columns)}
                | {name: _INPUT.format(index, i) for i, name in enumerate(function.inputs)},
            )
            for index, function in enumerate(self.functions)
            if function.rowwise
        }
        inner = (
            QUERY,
            *(_KEPT.format(i) for i in range(len(self.keep))),
            *(_VOTE.format(i) for i in range(len(self.functions))),
        )
        return RowStep(functions, tuple(zip(inner, self.columns, strict=True)), self.on_error)

    def wrong(self, frame: Any, names: Iterable[str]) -> list[RowErrors]:
        """The queries on which functions cast what is no vote.

        Args:
            frame: the narwhals frame that was given to `work`.
            names: of the functions whose columns hold `WRONG`.
        """
        found = []
        for function in (f for f in self.functions if f.name in set(names)):
            vote = _where_known(function).alias(_VOTE.format(0))
            raw = self._readable(frame).select(nw.col(QUERY), vote)
            checked = _checked(_VOTE.format(0), raw.collect_schema()[_VOTE.format(0)])
            wrong = raw.with_columns(checked.alias(_VOTE.format(1)))
            wrong = wrong.filter(nw.col(_VOTE.format(1)) == WRONG)
            first = wrong.select(QUERY, _VOTE.format(0)).sort(QUERY).head(SHOWN)
            total = wrong.select(rows=nw.len()).lazy().collect("polars").item()
            rows = first.lazy().collect("polars").iter_rows()
            found.append(RowErrors(function.name, total, [(row[0], repr(row[1])) for row in rows]))
        return found

    def _readable(self, frame: Any) -> Any:
        """Null for NaN in the columns that functions read, for engines do not agree on NaN; and the
        column of `log_length` for functions of scope "log".
        """
        schema = frame.collect_schema()
        read = {column for function in self.functions for column in function.columns}
        floats = sorted(name for name in read if name in schema and schema[name].is_float())
        if self.of_log() is not None and LOG_LENGTH not in schema:
            # No window: Spark would gather the whole log on one machine.
            frame = frame.join(frame.select(nw.len().alias(LOG_LENGTH)), how="cross")
        return frame.with_columns(nw.col(floats).fill_nan(None)) if floats else frame

    def _blame(self, frame: Any) -> None:
        """Find the function that an engine could not compute."""
        for function in self.functions:
            parts = list(function.inputs.values()) if function.rowwise else [function.expression()]
            try:
                named = (part.alias(_ROW.format(i)) for i, part in enumerate(parts))
                frame.select(QUERY, *named).collect_schema()
            except Exception as error:
                raise WeakLabelError(
                    f"labeling function {function.name!r} cannot be computed on"
                    f" {frame.implementation.name.lower()}: {plain_message(error)}"
                ) from error

    @property
    def _row_columns(self) -> tuple[str, ...]:
        wanted = [column for function in self.rowwise for column in function.columns]
        return tuple(dict.fromkeys(column for column in wanted if column != QUERY))


def _where_known(function: LabelingFunction) -> Any:
    """The function's expression, and null where it has no input."""
    known = (~nw.col(column).is_null() for column in function.inputs_needed)
    present = nw.all_horizontal(nw.lit(True), *known, ignore_nulls=False)
    return nw.when(present).then(function.expression())


def _checked(name: str, dtype: Any) -> nw.Expr:
    """The vote, null included; `WRONG` for what is none."""
    vote = nw.col(name)
    known = vote.is_null() | (vote == ABSTAIN) | (vote == ACCEPT)
    if not dtype.is_unsigned_integer():
        known = known | (vote == REJECT)
    # A cast comes after this: before, 257 might have become 1. NaN equals no vote.
    return nw.when(known).then(vote).otherwise(WRONG)


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
