"""The query log: read, checked against its contract, and joined with further hypotheses.

    checked = check("logs/*.parquet", requires=["confidence"], reject="refused.parquet")
    votes = apply(functions, checked.accepted)

Rows are refused one by one and never in silence: without a file to write them to, the first one is
an error. A column that is missing or of another type is always an error.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.files import keep_apart
from weaklabel.schema import (
    HYPOTHESES,
    QUERIES,
    WANTED,
    Column,
    Contract,
    kind_of,
    renamed,
    settled,
)
from weaklabel.tables import naming, scan, to_polars, write
from weaklabel.tables.files import listed

SHOWN: Final = 5  # rows or ids that an error names

#: The column that a refused row's reasons are written in.
REASON: Final = "reason"

_logger = logging.getLogger(__name__)


def require_columns(frame: pl.DataFrame, columns: Iterable[str], name: str) -> None:
    """Refuse a table that lacks columns, naming them and those there are."""
    if missing := [column for column in columns if column not in frame.columns]:
        raise WeakLabelError(
            f"{name} must have the columns {', '.join(columns)}; {', '.join(missing)} missing among"
            f" {', '.join(frame.columns)}"
        )


def refuse_rows(
    frame: pl.DataFrame, bad: pl.Expr, name: str, problem: str, column: str | None = None
) -> None:
    """Refuse a table with rows for which `bad` holds.

    The error names the first by query_id, with the value of `column` if one is given.
    """
    if (rows := frame.filter(bad)).height:
        named: Any = rows["query_id"]
        if column is not None:
            named = [f"{query}: {value}"[:80] for query, value in rows[["query_id", column]].rows()]
        raise WeakLabelError(
            f"{name}: {rows.height} of {frame.height} rows {problem}: {shown(named)}"
        )


def require_ids(frame: pl.DataFrame, name: str) -> None:
    """Refuse a table whose `query_id` is null, neither string nor integer, or not unique."""
    ids = frame["query_id"]
    if not (ids.dtype == pl.String or ids.dtype.is_integer()):
        raise WeakLabelError(f"{name}: query_id must be strings or integers, got {ids.dtype}")
    if ids.null_count():
        numbers = shown(ids.is_null().arg_true())
        raise WeakLabelError(f"{name}: {ids.null_count()} rows have no query_id: rows {numbers}")
    if repeated := ids.filter(ids.is_duplicated()).unique(maintain_order=True).to_list():
        raise WeakLabelError(
            f"{name}: query_id must be unique, {len(repeated)} are not: {shown(repeated)}"
        )


def same_ids(*frames: pl.DataFrame) -> tuple[pl.DataFrame, ...]:
    """The tables with `query_id` of one type: as it is, Int64, or else strings."""
    types = {frame.schema["query_id"] for frame in frames}
    if len(types) == 1:
        return frames
    common = pl.Int64 if all(kind.is_integer() for kind in types) else pl.String
    return tuple(frame.with_columns(pl.col("query_id").cast(common)) for frame in frames)


def shown(values: Collection[object] | pl.Series) -> str:
    """The first values, as an error names them."""
    first = ", ".join(repr(value) for _, value in zip(range(SHOWN), values, strict=False))
    return first if len(values) <= SHOWN else f"{first}, …"


@dataclass(frozen=True)
class Problem:
    """One way in which a table breaks its contract.

    Attributes:
        column: the column; None where the table as a whole is meant.
        problem: what is wrong, in words.
        rows: how many rows are affected; 0 where no row is to blame.
        examples: the number (from 1; a CSV's header is not counted), the query_id and the value of
            the first of them, at most five.
        remedy: what to do.
        by_row: the rows can be refused and the others kept; else the table is unusable.
    """

    column: str | None
    problem: str
    rows: int
    examples: tuple[tuple[int, Any, Any], ...]
    remedy: str
    by_row: bool

    def __str__(self) -> str:
        subject = "the table" if self.column is None else f"column {self.column!r}"
        counted = f" in {self.rows} row{'s' if self.rows > 1 else ''}" if self.rows else ""
        lines = [f"{subject} {self.problem}{counted}; {self.remedy}"]
        for row, query_id, value in self.examples:
            text = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:79]}…"
            lines.append(f"    row {row} (query_id {query_id!r}): {text}")
        if self.rows > len(self.examples) > 0:
            lines.append(f"    … and {self.rows - len(self.examples)} more")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Checked:
    """A table compared with its contract, and parted in two; together they are all of its rows.

    Attributes:
        accepted: the rows that keep the contract, in order, with all columns; the known ones have
            their proper type, and NaN in them is null. Where the table is not usable, all rows.
        refused: the others, in order, with all columns as they were given and their `reason`.
        rows: how many rows the table has.
        refusals: how many of them are refused.
        problems: all that was found; those of the table and its columns come first.
        unchanged: `accepted` is the table as it was given, so that its files can be used as well.
        timezone: the zone that was given, if times without one are read by it.
    """

    accepted: pl.LazyFrame
    refused: pl.LazyFrame
    rows: int
    refusals: int
    problems: tuple[Problem, ...]
    unchanged: bool
    timezone: str | None = None

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.problems

    @property
    def usable(self) -> bool:
        """The rows that are not refused can be used."""
        return all(problem.by_row for problem in self.problems)

    def __str__(self) -> str:
        if self.ok:
            return f"{self.rows} rows, none refused"
        head = f"{self.refusals} of {self.rows} rows refused" if self.usable else "unusable table"
        return "\n".join([f"{head}:", *(f"  {problem}" for problem in self.problems)])


def validate(
    table: Any,
    *,
    requires: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    timezone: str | None = None,
    contract: Contract = QUERIES,
) -> Checked:
    """Compare a query log, or another table, with its contract.

    Args:
        table: a path, or any frame narwhals knows. A lazy one of another engine than Polars is
            collected.
        requires: further columns that must be there, as labeling functions name them.
        rename: other names for columns, {"old": "new"}, given before anything else is done.
        timezone: the zone of a `timestamp` without an offset, such as "Europe/Berlin".
        contract: what the table must be.

    `query_id` and `transcript` are always there and never null (a transcript may be empty), and no
    two rows share a `query_id`: of duplicates all are refused, since none is the right one. Nulls
    and NaN of the other columns are no problem. Values are read as what their column holds: texts
    as numbers, ISO 8601 and numbers of seconds, ms, µs or ns since 1970 (by their size) as times,
    categories as texts. A row with a value that cannot be read is refused; where a column has no
    value that can, the table is unusable.

    Raises:
        FileNotFoundError, WeakLabelError: the files cannot be read (see `tables.scan`), there is no
            such time zone, a column to be renamed is not there, or its new name is taken.
        TypeError: `table` is no frame.
    """
    if timezone is not None:
        try:
            if ZoneInfo(timezone).tzname(None) == "UTC":
                timezone = "UTC"  # "Etc/UTC" is the same
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise WeakLabelError(
                f'no time zone {timezone!r}: give a name such as "UTC" or "Europe/Berlin"'
            ) from error
    frame = _lazy(table, rename)
    with naming(table):
        checked = _compared(frame, contract, tuple(requires), timezone)
    return replace(checked, unchanged=False) if rename else checked


def check(
    queries: Any,
    *,
    requires: Iterable[str] = (),
    reject: str | os.PathLike[str] | None = None,
    rename: Mapping[str, str] | None = None,
    timezone: str | None = None,
    later: bool = False,
) -> Checked:
    """Compare a query log with its contract, and go on with what keeps it.

    Args:
        queries, requires, rename, timezone: see `validate`.
        reject: a file to write refused rows to, with all columns and one more, `reason`; its suffix
            names the format. It is written where no row is refused, too, and then has none.
        later: leave it to the caller to write that file, with `set_aside`.

    Returns:
        The accepted rows, in order, and what was found; without `reject` these are all rows.

    Raises:
        WeakLabelError: the table is unusable, no row is left, rows are refused and `reject` is not
            given, or it is one of the files that are read or will be the next time.
        FileNotFoundError: the files cannot be read; see `tables.scan`.
        TypeError: `queries` is no frame.
        OSError: the file of refused rows cannot be written.
    """
    if reject is not None and isinstance(queries, str | os.PathLike):
        keep_apart([Path(reject)], [os.fspath(queries)])
    checked = validate(queries, requires=requires, rename=rename, timezone=timezone)
    if not checked.usable:
        raise WeakLabelError(str(checked))
    if reject is None:
        if checked.refusals:
            raise WeakLabelError(
                f"{checked}\nrepair the rows, or set them aside: --reject FILE, reject= in Python"
            )
        return checked
    if REASON in checked.accepted.collect_schema():
        raise WeakLabelError(
            f"the log has a column {REASON!r}, where the refused rows' reasons go: rename it, with"
            f' --rename {REASON}=NAME, rename={{"{REASON}": "NAME"}} in Python'
        )
    if not later:
        set_aside(checked, queries, reject)
    return checked


def set_aside(checked: Checked, queries: Any, reject: str | os.PathLike[str]) -> None:
    """Write the rows that `check` refused; an error where these are all."""
    with naming(queries):
        write(checked.refused, reject)
    if checked.refusals:
        _logger.warning("%d of %d rows refused, see %s", checked.refusals, checked.rows, reject)
    if checked.refusals == checked.rows:
        raise WeakLabelError(f"{checked}\nno row is left; {reject} holds them all")


def join_hypotheses(
    queries: Any,
    hypotheses: Any,
    *,
    source: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> pl.LazyFrame:
    """The query log with another source's hypotheses as `second_transcript`, null where none is.

    Args:
        queries: a path, or any frame narwhals knows.
        hypotheses: the same, with `query_id`, `source` and `text`.
        source: the one whose texts are taken; not needed where the table has no other.
        rename: other names for columns of the log, {"old": "new"}.

    Raises:
        FileNotFoundError, WeakLabelError: files cannot be read (see `tables.scan`), the hypotheses
            break their contract, the source is none of theirs or one of several, `query_id` is text
            in one table and integers in the other, or the log has the column already.
        TypeError: no frame is given.
    """
    checked = validate(hypotheses, contract=HYPOTHESES)
    if not checked.ok:
        raise WeakLabelError(f"hypotheses: {checked}")
    log, table = _lazy(queries, rename), checked.accepted
    held = log.collect_schema()
    if "query_id" not in held:
        raise WeakLabelError(f"no column 'query_id' in the query log, which has {list(held)}")
    if "second_transcript" in held:
        raise WeakLabelError("the query log has a column 'second_transcript' already: rename it")
    one, other = held["query_id"], table.collect_schema()["query_id"]
    if (one == pl.String) != (other == pl.String):
        raise WeakLabelError(
            f"query_id is {one} in the query log and {other} in the hypotheses: write both as text,"
            " or both as integers"
        )
    if one != other:
        common = pl.String if one == pl.String else pl.Int64
        log, table = log.cast({"query_id": common}), table.cast({"query_id": common})
    with naming(hypotheses):
        known = table.select(pl.col("source").unique()).collect()["source"].sort().to_list()
    if source not in known and (source is not None or len(known) > 1):
        what = f"no hypotheses of {source!r}" if source else "the hypotheses have several sources"
        raise WeakLabelError(f"{what}: choose one, --source NAME, of {shown(known)}")
    texts = table.filter(source is None or pl.col("source") == source)
    texts = texts.select("query_id", second_transcript="text")
    with naming(hypotheses), naming(queries):
        alone = texts.join(log, on="query_id", how="anti").select(pl.len())
        if count := alone.collect(engine="streaming").item():
            _logger.warning("%d hypotheses belong to no query of the log", count)
    return log.join(texts, on="query_id", how="left", maintain_order="left")


@dataclass(frozen=True, eq=False)
class _Rule:
    """A condition that no row may meet.

    Args:
        column: of which column.
        broken: true where the row meets it, never null.
        problem: in words, behind the column's name.
        remedy: what to do.
        value: what the reason of a refused row names between them.
        reading: the row meets it where a value of the column cannot be read.
    """

    column: str
    broken: pl.Expr
    problem: str
    remedy: str
    value: pl.Expr | None = None
    reading: bool = False

    @property
    def reason(self) -> pl.Expr:
        if self.value is None:
            return pl.lit(f"{self.column} {self.problem}")
        return pl.format(f"{self.column} {{}} {self.problem}", self.value)


def _compared(
    frame: pl.LazyFrame, contract: Contract, requires: tuple[str, ...], timezone: str | None
) -> Checked:
    schema = frame.collect_schema()
    known = {column.name: column for column in contract if column.name in schema}
    for name in schema:
        if name not in known and name in requires and kind_of(name) == "text":
            known[name] = Column(name, "text", "a further transcript")
    problems = list(_missing(schema, contract, requires))
    values: dict[str, pl.Expr] = {}
    for name, column in known.items():
        value = column.values(schema[name], timezone)
        if value is None:
            problems.append(_of_another_type(frame, column))
        else:
            values[name] = value
    rules = [rule for name in values for rule in _rules(known[name], schema[name], values[name])]
    key = [column.name for column in contract if column.key]
    if values.keys() >= set(key):
        rules += _unique(frame, {name: values[name] for name in key})
    floats = [
        name
        for name in values
        if known[name].kind in ("share", "seconds") and not schema[name].is_integer()
    ]
    # `False` first: any_horizontal of nothing is an error.
    refused = pl.any_horizontal(pl.lit(False), *(rule.broken for rule in rules))
    clocks = []  # times that only the zone makes readable
    for name in values if timezone is not None else ():
        if known[name].kind == "time":
            zoned = known[name].values(schema[name])
            unzoned = pl.lit(True) if zoned is None else zoned.is_null()
            clocks.append(values[name].is_not_null() & unzoned)
    counts = frame.select(
        rows=pl.len(),
        clocks=pl.any_horizontal(pl.lit(False), *clocks).any(),
        refused=refused.sum(),
        **{f"rule {index}": rule.broken.sum() for index, rule in enumerate(rules)},
        **{f"read {r.column}": values[r.column].count() for r in rules if r.reading},
        **{f"nan {name}": values[name].is_nan().any() for name in floats},
        # Of a column without rules, too, every page is read here, and not first by a function.
        **{f"held {name}": pl.col(name).count() for name in schema if kind_of(name) is not None},
    )
    count = counts.collect(engine="streaming").row(0, named=True)
    if count["rows"] == 0:
        problems.insert(
            0, Problem(None, "has no rows", 0, (), "give one with at least one row", False)
        )
    by_row = []
    for index, rule in enumerate(rules):
        if not (rows := count[f"rule {index}"]):
            continue
        if rule.reading and not count[f"read {rule.column}"]:
            problems.append(_of_another_type(frame, known[rule.column]))
            continue
        examples = _examples(frame, rule.column, rule.broken)
        by_row.append(Problem(rule.column, rule.problem, rows, examples, rule.remedy, True))
    if problems:
        refused = pl.lit(False)
    reasons = [pl.when(rule.broken).then(rule.reason) for rule in rules]
    reason = pl.concat_str(pl.lit(None, pl.String), *reasons, separator="; ", ignore_nulls=True)
    nan = {name: values[name].fill_nan(None) for name in floats if count[f"nan {name}"]}
    changed = {n: value for n, value in {**values, **nan}.items() if _converts(value, n)}
    return Checked(
        accepted=frame.filter(~refused).with_columns(**changed),
        refused=frame.filter(refused).with_columns(reason.alias(REASON)),
        rows=count["rows"],
        refusals=count["refused"],
        problems=(*problems, *by_row),
        unchanged=not (changed or by_row),
        timezone=timezone if count["clocks"] else None,
    )


def _missing(schema: pl.Schema, contract: Contract, requires: Iterable[str]) -> Iterator[Problem]:
    always = [column.name for column in contract if column.required]
    meanings = {column.name: column.meaning for column in contract}
    plain = {"".join(filter(str.isalnum, name.lower())): name for name in schema}
    for name in dict.fromkeys([*always, *requires]):
        if name in schema:
            continue
        meaning = f" ({meanings[name]})" if name in meanings else ""
        why = "every table has it" if name in always else "a labeling function reads it"
        if near := difflib.get_close_matches(name.replace("_", ""), plain, n=1):
            old = plain[near[0]]
            remedy = f'is it {old!r}? --rename {old}={name}, rename={{"{old}": "{name}"}} in Python'
        else:
            remedy = f"the columns are {listed(list(schema))}; add it, or --rename NAME={name}"
        yield Problem(name, f"is missing{meaning}: {why}", 0, (), remedy, False)


def _of_another_type(frame: pl.LazyFrame, column: Column) -> Problem:
    found, held = frame.collect_schema()[column.name], pl.col(column.name).is_not_null()
    is_ = str(found)
    if isinstance(found, pl.Datetime):
        is_ = "a Datetime without a time zone"
    elif found == pl.String:
        is_ = "text (String)"
    return Problem(
        column.name,
        f"is {is_}, expected {WANTED[column.kind]},",
        frame.select(held.sum()).collect(engine="streaming").item(),
        _examples(frame, column.name, held),
        column.fault(found)[1],
        False,
    )


def _rules(column: Column, found: pl.DataType, value: pl.Expr) -> Iterator[_Rule]:
    """The rules of a column on its own; `value` is it in the type that it should have."""
    name, given = column.name, pl.col(column.name)
    if found.is_float():
        given = given.fill_nan(None)
    if column.required:
        remedy = f"give every row one: {column.meaning}"
        if name in ("transcript", "text"):
            remedy = 'where nothing was understood, write an empty text, "" (in a CSV with quotes)'
        yield _Rule(name, given.is_null(), "is null", remedy)
    if _converts(value, name):
        unread = given.is_not_null() & value.is_null()
        yield _Rule(name, unread, *column.fault(found), given, reading=True)
    if column.kind == "share":
        outside = ((value < 0) | ((value > 1) & value.is_not_nan())).fill_null(False)
        yield _Rule(name, outside, "is not within [0, 1]", "divide percentages by 100", given)
    elif column.kind == "seconds":
        outside = ((value < 0) | (value == float("inf"))).fill_null(False)
        remedy = "seconds are finite and not negative"
        yield _Rule(name, outside, "is negative or infinite", remedy, given)


def _converts(value: pl.Expr, name: str) -> bool:
    return not value.meta.eq(pl.col(name))


def _unique(frame: pl.LazyFrame, key: dict[str, pl.Expr]) -> list[_Rule]:
    """The rule that no two rows share a key; none where no two do."""
    names = list(key)
    named = pl.struct(key.values()) if len(key) > 1 else key[names[0]]
    whole = frame.filter(pl.all_horizontal(pl.col(name).is_not_null() for name in names))
    # Eight bytes a row find the few keys that may occur twice, and those alone are compared.
    hashes = whole.select(hash=named.hash()).collect(engine="streaming")["hash"].sort()
    suspects = hashes.filter((hashes == hashes.shift(1)).fill_null(False)).unique()
    if suspects.is_empty():
        return []
    del hashes
    keys = whole.filter(named.hash().is_in(suspects.implode())).select(key=named)
    found = keys.collect(engine="streaming")["key"]
    twice = found.filter(found.is_duplicated()).unique()
    among = " and ".join(names)
    return [
        _Rule(
            names[0],
            named.is_in(twice.implode()).fill_null(False),
            "is not unique" if len(key) == 1 else f"and {names[1]} are not unique",
            f"of the rows that share {among}, leave one",
        )
    ]


def _examples(
    frame: pl.LazyFrame, column: str, broken: pl.Expr
) -> tuple[tuple[int, Any, Any], ...]:
    named = pl.col("query_id") if "query_id" in frame.collect_schema() else pl.lit(None)
    numbered = frame.select(
        pl.int_range(1, pl.len() + 1).alias("row"),
        named.alias("named"),
        pl.col(column).alias("value"),
        broken.alias("broken"),
    )
    return tuple(numbered.filter("broken").head(SHOWN).drop("broken").collect().rows())


def _lazy(table: Any, rename: Mapping[str, str] | None = None) -> pl.LazyFrame:
    if isinstance(table, str | os.PathLike):
        return scan(table, rename=rename)
    lazy = table if isinstance(table, pl.LazyFrame) else to_polars(table).lazy()
    return settled(renamed(lazy, rename))
