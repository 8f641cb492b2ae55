"""`Plan`: what a set of labeling functions computes, said once for every engine.

The way of the data: columns of the log → `work` (an expression each, under names of its own) →
`step` for row-wise functions, in Python → the table of votes. A vote that is none of -1, 0, 1 and
null is turned into `WRONG` inside the engine, before any cast could wrap it into a vote.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel.errors import WeakLabelError, gist
from weaklabel.labeling import LabelingFunction
from weaklabel.votes import ABSTAIN, ACCEPT, PREFIX, REJECT, conditions

#: Rows that are in Python at one time.
BATCH: Final = 16_384

SHOWN: Final = 5  # rows that an error names

_QUERY: Final = "query_id"


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

    def votes(self, batch: pl.DataFrame) -> tuple[pl.Series, Wrong]:
        """Int8, one vote a row; null is an abstain, and so is, for now, what is no vote.

        Raises:
            WeakLabelError: the function raised.
        """
        rows = batch.select(
            _QUERY, *(pl.col(inner).alias(name) for name, inner in self.entries.items())
        )
        vote, votes, wrong = self.function.vote, [], Wrong(self.function.name)
        for row in rows.iter_rows(named=True):
            cast = vote(row)
            if cast is None:
                cast = ABSTAIN
            elif not _is_vote(cast):
                wrong.add(row[_QUERY], cast)
                cast = ABSTAIN
            votes.append(int(cast))
        return pl.Series(self.column, votes, dtype=pl.Int8), wrong


@dataclass
class Wrong:
    """What a function cast that is no vote.

    Attributes:
        name: the function's.
        total: how many times.
        first: the first of them, as (query_id, vote).
    """

    name: str
    total: int = 0
    first: list[tuple[Any, Any]] = field(default_factory=list)

    def add(self, query: Any, vote: Any) -> None:
        """Count one more."""
        self.total += 1
        if len(self.first) < SHOWN:
            self.first.append((query, vote))

    def __str__(self) -> str:
        shown = ", ".join(f"{vote!r} on query_id {query!r}" for query, vote in self.first)
        return (
            f"labeling function {self.name!r} cast {self.total} vote{'s' * (self.total != 1)} other"
            f" than {ACCEPT} (accept), {ABSTAIN} or null (abstain) and {REJECT} (reject): {shown}"
            + (", …" if self.total > len(self.first) else "")
        )


@dataclass
class Meter:
    """How long row-wise functions took, what they raised, and whom to tell of rows done.

    Attributes:
        seconds: within row-wise functions.
        rows: rows they saw.
        fault: what one of them raised, which an engine may pass on as mere text.
        wrong: what was no vote, by batch.
        advance: called with the rows of a batch that is done.
        turn: held while a batch is worked on.
    """

    seconds: float = 0.0
    rows: int = 0
    fault: WeakLabelError | None = None
    wrong: list[Wrong] = field(default_factory=list)
    advance: Callable[[int], object] | None = field(default=None, repr=False)
    turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def check(self) -> None:
        """Refuse what was no vote.

        Raises:
            WeakLabelError: naming each function and the first queries.
        """
        found: dict[str, Wrong] = {}
        for wrong in self.wrong:
            so_far = found.setdefault(wrong.name, Wrong(wrong.name))
            so_far.total += wrong.total
            first = so_far.first + wrong.first
            so_far.first = sorted(first, key=lambda pair: (pair[0] is None, pair[0]))[:SHOWN]
        if found:
            raise WeakLabelError("; ".join(map(str, found.values())))

    def add(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self.rows += rows
        self.seconds += seconds
        if self.advance is not None:
            self.advance(rows)


@dataclass(frozen=True)
class RowStep:
    """Row-wise votes added to a batch, and its columns named as in the table of votes.

    Attributes:
        functions: the row-wise functions; may be none.
        columns: (name on the way, name in the table of votes), in the table's order.
    """

    functions: tuple[RowFunction, ...]
    columns: tuple[tuple[str, str], ...]

    def __call__(self, work: pl.DataFrame, meter: Meter | None = None) -> pl.DataFrame:
        """The table of votes of a batch of `Plan.work`."""
        return work.hstack(self.votes(work, meter)).select(
            pl.col(inner).alias(name) for inner, name in self.columns
        )

    def votes(self, work: pl.DataFrame, meter: Meter | None = None) -> pl.DataFrame:
        """The row-wise votes alone, under their names on the way.

        Args:
            work: a batch of `Plan.work`.
            meter: takes note of what is no vote; without one, that is raised here.

        Raises:
            WeakLabelError: a function raised, or a vote is none.
        """
        parts = [pl.DataFrame(schema={function.column: pl.Int8 for function in self.functions})]
        for batch in work.iter_slices(BATCH):
            if meter is None:
                votes, wrong = self._votes(batch)
                Meter(wrong=wrong).check()
            else:
                # One thread after the other: two would only wait for each other at every row.
                with meter.turn:
                    began = time.perf_counter()
                    try:
                        votes, wrong = self._votes(batch)
                    except WeakLabelError as error:
                        meter.fault = error
                        raise
                    meter.wrong += wrong
                    meter.add(len(batch), time.perf_counter() - began)
            parts.append(votes)
        return pl.concat(parts)

    def _votes(self, batch: pl.DataFrame) -> tuple[pl.DataFrame, list[Wrong]]:
        votes, wrong = zip(*(function.votes(batch) for function in self.functions), strict=True)
        return pl.DataFrame(votes), [some for some in wrong if some.total]


def _is_vote(value: Any) -> bool:
    # True equals 1, but is an answer to another question; an array has no truth.
    return not isinstance(value, bool) and type(value).__name__ != "bool_" and _equals(value)


def _equals(value: Any) -> bool:
    try:
        return value in (REJECT, ABSTAIN, ACCEPT)
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


def stepped(batches: Iterable[Any], step: RowStep, meter: Meter | None = None) -> Iterator[Any]:
    """The table of votes of each batch of `Plan.work`; what is kept stays as it came."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    for batch in batches:
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        voted = step.votes(frame, meter)
        columns = [
            voted[inner].to_arrow() if inner in voted.columns else batch.column(inner)
            for inner, _ in step.columns
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=votes_schema(batch.schema, step))


QUERY: Final = "query_id"

#: What stands in a column of votes for a value that is no vote.
WRONG: Final = 2

# Columns on the way have plain names: engines take "." or ":" in a name for something else.
_KEPT: Final = "__weaklabel_kept_{}"
_VOTE: Final = "__weaklabel_vote_{}"
_ROW: Final = "__weaklabel_row_{}"
_INPUT: Final = "__weaklabel_input_{}_{}"


@dataclass(frozen=True)
class Plan:
    """Labeling functions and the columns to keep beside their votes.

    Attributes:
        functions: in the order of their columns.
        keep: columns of the log, without `query_id`, which always stays.
    """

    functions: tuple[LabelingFunction, ...]
    keep: tuple[str, ...] = ()

    @classmethod
    def of(cls, functions: Iterable[LabelingFunction], keep: Sequence[str] = ()) -> Plan:
        """A plan whose columns have names of their own.

        Raises:
            WeakLabelError: two functions share a name, or a column to keep has a function's name.
            TypeError: something is no labeling function.
        """
        if isinstance(keep, str):
            raise TypeError(f"keep= takes a list of columns: [{keep!r}]")
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
        return cls(chosen, kept)

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
        return Plan(chosen) if chosen else None

    def with_log_votes(self) -> Plan:
        """The plan where the log has the votes of scope "log" already, as columns `lf:<name>`."""
        return replace(
            self,
            functions=tuple(
                replace(
                    function,
                    function=partial(nw.col, function.column),
                    requires=(function.column,),
                    rowwise=False,
                    inputs={},
                    parameters={},
                )
                if function.scope == "log"
                else function
                for function in self.functions
            ),
        )

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

    def work(self, frame: Any) -> Any:
        """Checked votes of the expressions and what row-wise functions need, under plain names.

        Args:
            frame: a narwhals frame in which `set_aside` has set the kept columns aside.

        Raises:
            WeakLabelError: a function raises, cannot be computed here, or has votes of a type that
                is no number.
        """
        votes: dict[str, nw.Expr] = {}
        made_of: list[tuple[LabelingFunction, str, Any]] = []
        for index, function in enumerate(self.functions):
            if not function.rowwise:
                with conditions() as found:
                    votes[_VOTE.format(index)] = function.expression()
                made_of += [(function, side, condition) for side, condition in found]
        others: dict[str, nw.Expr] = {
            _KEPT.format(i): nw.col(_KEPT.format(i)) for i in range(len(self.keep))
        }
        for index, function in enumerate(self.functions):
            if function.rowwise:
                for place, expression in enumerate(function.inputs.values()):
                    others[_INPUT.format(index, place)] = expression
        for index, column in enumerate(self._row_columns):
            others[_ROW.format(index)] = nw.col(column)
        try:
            raw = frame.select(
                nw.col(QUERY),
                *(expression.alias(name) for name, expression in (others | votes).items()),
            )
            schema = raw.collect_schema()
        except Exception as error:
            self._blame(frame)
            raise WeakLabelError(f"the votes cannot be computed here: {gist(error)}") from error
        self._check_types({name: schema[name] for name in votes})
        _check_boolean(frame, made_of)
        return raw.select(
            QUERY,
            *others,
            *(_checked(name, schema[name]).alias(name) for name in votes),
        )

    def set_aside(self, frame: Any) -> Any:
        """The frame with its kept columns once more, under names that nothing else has."""
        aside = [nw.col(column).alias(_KEPT.format(i)) for i, column in enumerate(self.keep)]
        return frame.with_columns(*aside) if aside else frame

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
        return RowStep(functions, tuple(zip(inner, self.columns, strict=True)))

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
            raw = frame.select(nw.col(QUERY), function.expression().alias(_VOTE.format(0)))
            checked = raw.with_columns(
                _checked(_VOTE.format(0), raw.collect_schema()[_VOTE.format(0)]).alias(
                    _VOTE.format(1)
                )
            )
            wrong = checked.filter(nw.col(_VOTE.format(1)) == WRONG)
            first = _collected(wrong.sort(QUERY).head(SHOWN))
            total = _collected(wrong.select(nw.len().alias("rows")))["rows"][0]
            rows = first.select(QUERY, _VOTE.format(0)).iter_rows()
            faults.append(str(Wrong(function.name, total, list(rows))))
        if faults:
            raise WeakLabelError("; ".join(faults))

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
                        f" {frame.implementation.name.lower()}: {gist(error)}"
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


def _checked(name: str, dtype: Any) -> nw.Expr:
    vote = nw.col(name)
    known = (vote == ABSTAIN) | (vote == ACCEPT)
    if not dtype.is_unsigned_integer():
        known = known | (vote == REJECT)
    # The cast comes last: before, 257 might have become 1. NaN equals no vote.
    right = nw.when(known).then(vote).otherwise(WRONG)
    return nw.when(~vote.is_null()).then(right).otherwise(ABSTAIN).cast(nw.Int8)


def _collected(frame: Any) -> Any:
    return frame.collect("polars") if isinstance(frame, nw.LazyFrame) else frame


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
