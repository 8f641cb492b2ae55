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
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final, Literal, TypeAlias

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel.errors import WeakLabelError, plain_message
from weaklabel.labeling import LabelingFunction
from weaklabel.votes import ABSTAIN, ACCEPT, LOG_LENGTH, MISSING, PREFIX, REJECT, conditions

#: What becomes of a row on which a row-wise function raises.
OnError: TypeAlias = Literal["missing", "fail"]

QUERY: Final = "query_id"

#: What stands in a column of votes for a value that is no vote.
WRONG: Final = 2

#: Rows that are in Python at one time.
BATCH: Final = 16_384

SHOWN: Final = 5  # rows that an error names

# Columns on the way have plain names: engines take "." or ":" in a name for something else.
_KEPT: Final = "__weaklabel_kept_{}"
_VOTE: Final = "__weaklabel_vote_{}"
_ROW: Final = "__weaklabel_row_{}"
_INPUT: Final = "__weaklabel_input_{}_{}"
_KNOWN: Final = "__weaklabel_known_{}"

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

    def merge(self, other: RowErrors) -> None:
        """Count those of another row, or of another part of the log."""
        self.total += other.total
        first = self.first + other.first
        self.first = sorted(first, key=lambda pair: (pair[0] is None, pair[0]))[:SHOWN]
        self.traceback = self.traceback or other.traceback

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
        errors.setdefault(other.name, RowErrors(other.name)).merge(other)


@dataclass
class RowLog:
    """The rows that row-wise functions failed on in a run.

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
            raise WeakLabelError("; ".join(map(_no_votes, self.wrong.values())))

    def warn(self, record: str | None = None) -> None:
        """Log what functions raised; with the traceback, where no record is named that has it."""
        for errors in self.raised.values():
            rest = f"\n{errors.traceback}" if record is None else f"; {record} have the traceback"
            _logger.warning(
                "labeling function %r raised on %d rows, whose votes are missing: %s%s",
                *(errors.name, errors.total, errors, rest),
            )


def _plain(error: BaseException) -> str:
    """The error in words; the name of its type where it cannot say them itself."""
    try:
        return _valid(repr(error))
    except Exception:  # noqa: BLE001 - it is a plugin's class
        return type(error).__name__


def _valid(text: str) -> str:
    """The text as files can hold it: halves of letters (of undecoded paths) and NUL escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _no_votes(errors: RowErrors) -> str:
    return (
        f"labeling function {errors.name!r} cast {errors.total} vote{'s' * (errors.total != 1)}"
        f" other than {ACCEPT} (accept), {ABSTAIN} (abstain), {REJECT} (reject) and null"
        f" (missing): {errors}"
    )


@dataclass(frozen=True)
class RowFunction:
    """A row-wise function, and where its row is found.

    Attributes:
        function: the labeling function.
        column: the name of its votes on the way.
        entries: for every entry of its row but `query_id`, the column that holds it.
    """

    function: LabelingFunction
    column: str
    entries: Mapping[str, str]

    def votes(self, batch: pl.DataFrame, log: RowLog) -> pl.Series:
        """Int8, a vote for each row, null where it is missing; the log takes note of errors.

        The function is not called where it has no input.
        """
        needed = [{QUERY: QUERY, **self.entries}[name] for name in self.function.inputs_needed]
        known = pl.all_horizontal(pl.lit(True), *(pl.col(name).is_not_null() for name in needed))
        rows = batch.select(
            QUERY,
            *(pl.col(inner).alias(name) for name, inner in self.entries.items()),
            known.alias(self.column),
        )
        votes = [
            self._vote(row, log) if row.pop(self.column) else None
            for row in rows.iter_rows(named=True)
        ]
        return pl.Series(self.column, votes, dtype=pl.Int8)

    def _vote(self, row: dict[str, Any], log: RowLog) -> int | None:
        name, query = self.function.name, row[QUERY]
        try:
            cast = self.function.function(row, **self.function.parameters)
        # sys.exit() in a function is no reason to end a run; SIGTERM is.
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
                raise
            own = error.__traceback__ and error.__traceback__.tb_next
            # The first one's is kept; to format it takes longer than most functions do.
            lines = (
                () if name in log.raised else traceback.format_exception(error.with_traceback(own))
            )
            message, text = _plain(error), _valid("".join(lines))
            merge(log.raised, [RowErrors(name, 1, [(query, message)], text)])
            return None
        if cast is None:
            return ABSTAIN
        if not _is_vote(cast):
            merge(log.wrong, [RowErrors(name, 1, [(query, repr(cast))])])
            return None
        return None if cast == MISSING else int(cast)


@dataclass(frozen=True)
class RowStep:
    """Row-wise votes added to a batch, and its columns named as in the table of votes.

    Attributes:
        functions: the row-wise functions; may be none.
        columns: (name on the way, name in the table of votes), in the table's order.
        on_error: whether a row on which a function raises has a missing vote, or stops the run.
    """

    functions: tuple[RowFunction, ...]
    columns: tuple[tuple[str, str], ...]
    on_error: OnError

    def __call__(self, work: pl.DataFrame, rows: RowLog | None = None) -> pl.DataFrame:
        """The table of votes of a batch of `Plan.work`."""
        return work.hstack(self.votes(work, rows)).select(
            pl.col(inner).alias(name) for inner, name in self.columns
        )

    def votes(self, work: pl.DataFrame, rows: RowLog | None = None) -> pl.DataFrame:
        """The row-wise votes alone, under their names on the way.

        Args:
            work: a batch of `Plan.work`.
            rows: takes note of errors; without one, what is no vote is raised here, and what
                functions raised is logged.

        Raises:
            WeakLabelError: a function raised and that is to stop the run, or a vote is none.
        """
        log = RowLog() if rows is None else rows
        parts = [pl.DataFrame(schema={function.column: pl.Int8 for function in self.functions})]
        for batch in work.iter_slices(BATCH):
            # One thread after the other: two would only wait for each other at every row.
            with log.lock:
                done = [function.votes(batch, log) for function in self.functions]
                if log.advance is not None:
                    log.advance(len(batch))
            parts.append(pl.DataFrame(done))
        if rows is None:
            log.check(self.on_error)
            log.warn()
        return pl.concat(parts)


def _is_vote(value: Any) -> bool:
    # True equals 1, but is an answer to another question; an array has no truth.
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return False
    try:
        return value in (REJECT, ABSTAIN, ACCEPT, MISSING)
    except (TypeError, ValueError):
        return False


def votes_schema(work: Any, step: RowStep) -> Any:
    """The Arrow schema of the table of votes, given that of `Plan.work`."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    votes = {function.column for function in step.functions}
    return pa.schema(
        pa.field(name, pa.int8() if inner in votes else work.field(inner).type)
        for inner, name in step.columns
    )


def stepped(batches: Iterable[Any], step: RowStep, rows: RowLog | None = None) -> Iterator[Any]:
    """The table of votes of each batch of `Plan.work`; what is kept stays as it came."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    for batch in batches:
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        voted = step.votes(frame, rows)
        columns = [
            voted[inner].to_arrow() if inner in voted.columns else batch.column(inner)
            for inner, _ in step.columns
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=votes_schema(batch.schema, step))


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
            same = seen.setdefault(function.name.casefold(), function.name)
            if same != function.name or [f.name for f in chosen].count(function.name) > 1:
                raise WeakLabelError(
                    f"two labeling functions are named {same!r} and {function.name!r}: give one of"
                    " them another name (letter case does not tell names apart)"
                )
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
        functions = (
            LabelingFunction(partial(nw.col, f.column), f.name, (f.column,))
            if f.scope == "log"
            else f
            for f in self.functions
        )
        return replace(self, functions=tuple(functions))

    def without_votes(self, names: Iterable[str]) -> Plan:
        """The plan in which some functions cast no vote on any query."""
        none, silent = partial(nw.lit, None, nw.Int8), set(names)
        functions = (
            LabelingFunction(none, f.name) if f.name in silent else f for f in self.functions
        )
        return replace(self, functions=tuple(functions))

    def check_columns(self, names: Iterable[str]) -> None:
        """Refuse a log that lacks columns.

        Raises:
            WeakLabelError: naming each function with what it misses.
        """
        have = list(names)
        faults = []
        if QUERY not in have:
            faults.append(f"every query needs a {QUERY!r}")
        faults += [
            f"labeling function {function.name!r} requires {_list(missing)}"
            for function in self.functions
            if (missing := [column for column in function.columns if column not in have])
        ]
        if missing := [column for column in self.keep if column not in have]:
            faults.append(f"keep names {_list(missing)}")
        if faults:
            raise WeakLabelError(
                f"the query log has the columns {_list(have)}, but {'; '.join(faults)}. Add the"
                " columns, or leave these functions out"
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
            WeakLabelError: a function raises, cannot be computed here, or has votes of a type that
                is no number.
        """
        frame = self._readable(frame)
        others = {_KEPT.format(i): nw.col(_KEPT.format(i)) for i in range(len(self.keep))}
        votes: dict[str, nw.Expr] = {}
        made_of: list[tuple[LabelingFunction, str, Any]] = []
        known: dict[tuple[str, ...], str] = {}  # columns, and where it stands that none is null
        for index, function in enumerate(self.functions):
            if function.rowwise:
                for place, expression in enumerate(function.inputs.values()):
                    others[_INPUT.format(index, place)] = expression
            else:
                with conditions() as found:
                    votes[_VOTE.format(index)] = function.expression()
                made_of += [(function, side, condition) for side, condition in found]
                known.setdefault(function.inputs_needed, _KNOWN.format(len(known)))
        for index, column in enumerate(self._row_columns):
            others[_ROW.format(index)] = nw.col(column)
        inputs = {name: _present(columns) for columns, name in known.items()}
        made = others | votes | inputs
        try:
            raw = frame.select(nw.col(QUERY), *(made[name].alias(name) for name in made))
            schema = raw.collect_schema()
        except Exception as error:
            self._blame(frame)
            raise WeakLabelError(
                f"the votes cannot be computed here: {plain_message(error)}"
            ) from error
        self._check_types({name: schema[name] for name in votes})
        _check_boolean(frame, made_of)
        checked = []
        for index, function in enumerate(self.functions):
            if (name := _VOTE.format(index)) in votes:
                present = nw.col(known[function.inputs_needed])
                vote = nw.when(present).then(_checked(name, schema[name]))
                checked.append(vote.cast(nw.Int8).alias(name))
        return raw.select(QUERY, *others, *checked)

    def finished(self, work: Any) -> Any:
        """The table of votes of `work`, where no function is row-wise."""
        return work.select(*(nw.col(inner).alias(name) for inner, name in self.step.columns))

    @cached_property
    def step(self) -> RowStep:
        """What is left to do with `work`, in Python: row-wise votes and the final names."""
        row = {column: _ROW.format(i) for i, column in enumerate(self._row_columns)}
        functions = tuple(
            RowFunction(
                # Expressions need not travel to a cluster's workers.
                replace(function, inputs={}),
                _VOTE.format(index),
                {column: row[column] for column in function.columns if column != QUERY}
                | {name: _INPUT.format(index, i) for i, name in enumerate(function.inputs)},
            )
            for index, function in enumerate(self.functions)
            if function.rowwise
        )
        inner = (
            QUERY,
            *(_KEPT.format(i) for i in range(len(self.keep))),
            *(_VOTE.format(i) for i in range(len(self.functions))),
        )
        return RowStep(functions, tuple(zip(inner, self.columns, strict=True)), self.on_error)

    def complain(self, frame: Any, names: Iterable[str]) -> None:
        """Name the queries on which functions cast what is no vote.

        Args:
            frame: the narwhals frame that was given to `work`.
            names: of the functions whose columns hold `WRONG`.

        Raises:
            WeakLabelError: always, where there are names.
        """
        faults = []
        for function in self.functions:
            if function.name not in set(names):
                continue
            vote = nw.when(_present(function.inputs_needed)).then(function.expression())
            raw = self._readable(frame).select(nw.col(QUERY), vote.alias(_VOTE.format(0)))
            checked = _checked(_VOTE.format(0), raw.collect_schema()[_VOTE.format(0)])
            wrong = raw.with_columns(checked.alias(_VOTE.format(1))).filter(
                nw.col(_VOTE.format(1)) == WRONG
            )
            first = _collected(wrong.sort(QUERY).head(SHOWN))
            total = _collected(wrong.select(nw.len().alias("rows")))["rows"][0]
            rows = first.select(QUERY, _VOTE.format(0)).iter_rows()
            shown = [(query, repr(vote)) for query, vote in rows]
            faults.append(_no_votes(RowErrors(function.name, total, shown)))
        if faults:
            raise WeakLabelError("; ".join(faults))

    def _readable(self, frame: Any) -> Any:
        """Null for NaN in the columns that functions read, for engines do not agree on NaN; and the
        column of `log_length` for functions of scope "log".
        """
        schema = frame.collect_schema()
        read = {column for function in self.functions for column in function.columns}
        floats = sorted(name for name in read if name in schema and schema[name].is_float())
        if self.of_log() is not None:
            # No window: Spark would gather the whole log on one machine.
            frame = frame.join(frame.select(nw.len().alias(LOG_LENGTH)), how="cross")
        return frame.with_columns(nw.col(floats).fill_nan(None)) if floats else frame

    @property
    def _row_columns(self) -> tuple[str, ...]:
        wanted = [column for function in self.rowwise for column in function.columns]
        return tuple(dict.fromkeys(column for column in wanted if column != QUERY))

    def _check_types(self, types: dict[str, Any]) -> None:
        named = {_VOTE.format(index): function for index, function in enumerate(self.functions)}
        faults = [
            f"{named[name].name!r} votes {dtype}"
            for name, dtype in types.items()
            if not dtype.is_numeric()
        ]
        if faults:
            raise WeakLabelError(
                f"labeling functions must vote 1, 0, -1 or null, as numbers: {', '.join(faults)}."
                " Make votes with accept_if, reject_if or vote"
            )

    def _blame(self, frame: Any) -> None:
        """Find the function that an engine could not compute."""
        for function in self.functions:
            parts = list(function.inputs.values()) if function.rowwise else [function.expression()]
            for expression in parts:
                try:
                    frame.select(expression.alias(_VOTE.format(0))).collect_schema()
                except Exception as error:
                    raise WeakLabelError(
                        f"labeling function {function.name!r} cannot be computed on"
                        f" {frame.implementation.name.lower()}: {plain_message(error)}"
                    ) from error


def _check_boolean(frame: Any, made_of: list[tuple[LabelingFunction, str, Any]]) -> None:
    """Refuse votes made of what is true or false only after a cast.

    Raises:
        WeakLabelError: a condition is of another type; the functions are named.
    """
    if not made_of:
        return
    named = {f"__weaklabel_condition_{i}": condition for i, (_, _, condition) in enumerate(made_of)}
    seen = frame.select(*(condition.alias(name) for name, condition in named.items()))
    schema = seen.collect_schema()
    faults = [
        f"labeling function {function.name!r} gives {side} a condition that is {schema[name]}"
        for name, (function, side, _) in zip(named, made_of, strict=True)
        if schema[name] != nw.Boolean
    ]
    if faults:
        raise WeakLabelError(f"{'; '.join(faults)}. Expected true or false: compare with something")


def _present(columns: Iterable[str]) -> nw.Expr:
    """Whether there is a value in all of the columns."""
    known = (~nw.col(column).is_null() for column in columns)
    return nw.all_horizontal(nw.lit(True), *known, ignore_nulls=False)


def _checked(name: str, dtype: Any) -> nw.Expr:
    """The vote, null included; `WRONG` for what is none."""
    vote = nw.col(name)
    known = vote.is_null() | (vote == ABSTAIN) | (vote == ACCEPT)
    if not dtype.is_unsigned_integer():
        known = known | (vote == REJECT)
    # A cast comes after this: before, 257 might have become 1. NaN equals no vote.
    return nw.when(known).then(vote).otherwise(WRONG)


def _collected(frame: Any) -> Any:
    return frame.collect("polars") if isinstance(frame, nw.LazyFrame) else frame


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
