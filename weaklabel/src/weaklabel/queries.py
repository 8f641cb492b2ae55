"""The query log: read, checked against its contract, and joined with further hypotheses.

    queries = check("logs/*.parquet", requires=["confidence"], reject="refused.parquet")

Rows are refused one by one and never in silence: without a file to write them to, the first one is
an error. A column that is missing or of another type is always an error.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.schema import COLUMNS, HYPOTHESIS_COLUMNS, SOURCE_PREFIX, Column, kind_of, settled
from weaklabel.tables import naming, read, scan, write
from weaklabel.tables.text import time_from_text

SHOWN = 5  # rows or ids that an error names


def require_columns(frame: pl.DataFrame, columns: Iterable[str], name: str) -> None:
    """Refuse a table that lacks columns.

    Raises:
        WeakLabelError: a column is missing; the message names it and those there are.
    """
    if missing := [column for column in columns if column not in frame.columns]:
        raise WeakLabelError(
            f"{name} must have the columns {', '.join(columns)}; {', '.join(missing)} missing among"
            f" {', '.join(frame.columns)}"
        )


def refuse_rows(frame: pl.DataFrame, bad: pl.Expr, name: str, problem: str) -> None:
    """Refuse a table with rows for which `bad` holds; the message names the first by query_id.

    Raises:
        WeakLabelError: there are such rows.
    """
    if (rows := frame.filter(bad)).height:
        raise WeakLabelError(
            f"{name}: {rows.height} of {frame.height} rows {problem}: {shown(rows['query_id'])}"
        )


def require_ids(frame: pl.DataFrame, name: str) -> None:
    """Refuse a table whose `query_id` is null, neither string nor integer, or not unique.

    Raises:
        WeakLabelError: it is so.
    """
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


#: The column that a refused row's reasons are written in.
REASON: Final = "reason"

EXAMPLES: Final = 5


@dataclass(frozen=True)
class Example:
    """A row that a problem was found in.

    Attributes:
        row: its number in the table, from 1; a CSV's header is not counted.
        query_id: its query, None where it has none.
        value: what stands in the column.
    """

    row: int
    query_id: Any
    value: Any

    def __str__(self) -> str:
        return f"row {self.row} (query_id {self.query_id!r}): {_short(self.value)}"


@dataclass(frozen=True)
class Problem:
    """One way in which a table breaks its contract.

    Attributes:
        column: the column; None where the table as a whole is meant.
        problem: what is wrong, in words.
        rows: how many rows are affected; 0 where no row is to blame.
        examples: the first of them, at most five.
        remedy: what to do.
        by_row: the rows can be refused and the others kept; else the table is unusable.
    """

    column: str | None
    problem: str
    rows: int
    examples: tuple[Example, ...]
    remedy: str
    by_row: bool

    def __str__(self) -> str:
        subject = "the table" if self.column is None else f"column {self.column!r}"
        counted = ""
        if self.rows:
            counted = f" in {self.rows} row{'s' if self.rows > 1 else ''}"
        lines = [f"{subject} {self.problem}{counted}; {self.remedy}"]
        lines += [f"    {example}" for example in self.examples]
        if self.rows > len(self.examples) > 0:
            lines.append(f"    … and {self.rows - len(self.examples)} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class Validation:
    """What a table looks like against its contract.

    Attributes:
        rows: rows of the table.
        refused: rows with at least one problem of their own.
        problems: all that was found; those of the table and its columns come first.
    """

    rows: int
    refused: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.problems

    @property
    def usable(self) -> bool:
        """The rows that are not refused can be used."""
        return all(problem.by_row for problem in self.problems)

    def raise_if_refused(self) -> None:
        """Nothing where all is well.

        Raises:
            WeakLabelError: there is a problem; all are listed, with rows and remedies.
        """
        if self.problems:
            raise WeakLabelError(str(self))

    def raise_if_unusable(self) -> None:
        """Nothing where rows alone are to blame.

        Raises:
            WeakLabelError: a column is missing or of another type, or there are no rows.
        """
        if not self.usable:
            raise WeakLabelError(str(self))

    def __str__(self) -> str:
        if self.ok:
            return f"{self.rows} rows, none refused"
        head = f"{self.refused} of {self.rows} rows refused" if self.usable else "unusable table"
        return "\n".join([f"{head}:", *(f"  {problem}" for problem in self.problems)])


@dataclass(frozen=True, eq=False)
class Checked:
    """A table parted in two; together they are all of its rows.

    Attributes:
        accepted: rows that keep the contract, in order, with all columns.
        refused: the others, in order, with all columns and their `reason`.
        validation: what was found.
    """

    accepted: pl.LazyFrame
    refused: pl.LazyFrame
    validation: Validation


def split_table(
    frame: pl.LazyFrame, columns: Sequence[Column], key: tuple[str, ...], requires: tuple[str, ...]
) -> Checked:
    """Part a table in the rows that keep its contract and those that do not.

    Args:
        frame: the table.
        columns: what is known of its columns.
        key: the columns that no two rows share; of duplicates all are refused.
        requires: further columns that must be there.
    """
    schema = frame.collect_schema()
    known = {column.name: column for column in columns}
    for name in schema:
        further = name in requires or name.startswith(SOURCE_PREFIX)
        if name not in known and further and kind_of(name) == "text":
            known[name] = Column(name, "text", "a further transcript")
    problems = [
        *_missing(schema, columns, requires),
        *_wrong(frame, schema, known),
    ]
    sound = {
        name: column
        for name, column in known.items()
        if name in schema and column.holds(schema[name])
    }
    rules = _rules(sound, schema)
    if all(name in sound for name in key):
        rules += _unique(frame, key)
    conditions = [rule.broken for rule in rules]
    # `False` first: any_horizontal of nothing is an error.
    refused = pl.any_horizontal(pl.lit(False), *conditions)
    counts = frame.select(
        pl.len().alias("rows"),
        refused.sum().alias("refused"),
        *(condition.sum().alias(f"{index}") for index, condition in enumerate(conditions)),
    ).collect(engine="streaming")
    count = counts.row(0, named=True)
    if count["rows"] == 0:
        problems.insert(
            0, Problem(None, "has no rows", 0, (), "give one with at least one row", False)
        )
    unusable = bool(problems)
    for index, rule in enumerate(rules):
        if count[f"{index}"]:
            examples = _examples(frame, schema, rule.column, rule.broken)
            rows = count[f"{index}"]
            problems.append(Problem(rule.column, rule.problem, rows, examples, rule.remedy, True))
    reasons = [pl.when(rule.broken).then(rule.reason) for rule in rules]
    if unusable:
        refused = pl.lit(False)
    reason = pl.concat_str(pl.lit(None, pl.String), *reasons, separator="; ", ignore_nulls=True)
    return Checked(
        accepted=frame.filter(~refused),
        refused=frame.filter(refused).with_columns(reason.alias(REASON)),
        validation=Validation(count["rows"], count["refused"], tuple(problems)),
    )


@dataclass(frozen=True, eq=False)
class _Rule:
    """What a row must not be.

    Args:
        column: of which column.
        broken: true where it is, never null.
        problem: in words, behind the column's name.
        remedy: what to do.
        reason: text of one row's reason.
    """

    column: str
    broken: pl.Expr
    problem: str
    remedy: str
    reason: pl.Expr


def _missing(
    schema: pl.Schema, columns: Sequence[Column], requires: tuple[str, ...]
) -> Iterable[Problem]:
    always = {column.name: column.meaning for column in columns if column.required}
    meanings = {column.name: column.meaning for column in columns}
    names = list(schema)
    for name in dict.fromkeys([*always, *requires]):
        if name in schema:
            continue
        meaning = f" ({meanings[name]})" if name in meanings else ""
        who = "every table has it" if name in always else "a labeling function reads it"
        near = difflib.get_close_matches(name, names, n=1)
        near = near or [other for other in names if _plain(other) == _plain(name)]
        if near:
            remedy = f'is it {near[0]!r}? frame.rename({{"{near[0]}": "{name}"}})'
        else:
            remedy = f"the columns are {names}; add or rename one"
        yield Problem(name, f"is missing{meaning}: {who}", 0, (), remedy, False)


def _wrong(frame: pl.LazyFrame, schema: pl.Schema, known: dict[str, Column]) -> Iterable[Problem]:
    for name, column in known.items():
        if name not in schema or column.holds(schema[name]):
            continue
        found = schema[name]
        # Of texts, those that do not even look like what is wanted are the ones to see.
        offends = pl.col(name).is_not_null()
        if found == pl.String and column.kind == "time":
            offends &= time_from_text(name).is_null()
        elif found == pl.String:
            offends &= pl.col(name).str.strip_chars().cast(pl.Float64, strict=False).is_null()
        rows = frame.select(offends.sum()).collect(engine="streaming").item()
        if not rows:
            offends = pl.col(name).is_not_null()
            rows = frame.select(offends.sum()).collect(engine="streaming").item()
        yield Problem(
            name,
            f"is {_type_name(found)}, expected {column.wanted},",
            rows,
            _examples(frame, schema, name, offends),
            column.conversion(found),
            False,
        )


def _rules(columns: dict[str, Column], schema: pl.Schema) -> list[_Rule]:
    rules = []
    for name, column in columns.items():
        value = pl.col(name)
        if column.required:
            remedy = "give every row one"
            if column.kind == "text":
                remedy = f'where nothing was understood: pl.col("{name}").fill_null("")'
            rules.append(_Rule(name, value.is_null(), "is null", remedy, pl.lit(f"{name} is null")))
        if column.kind in ("share", "seconds") and schema[name].is_float():
            rules.append(
                _Rule(
                    name,
                    value.is_nan().fill_null(False),
                    "is NaN",
                    f'where it is not known: pl.col("{name}").fill_nan(None)',
                    pl.lit(f"{name} is NaN"),
                )
            )
        if column.kind == "share":
            outside = ~value.is_between(0, 1)
            problem, remedy = (
                "is not within [0, 1]",
                f'scale it, for percent: pl.col("{name}") / 100',
            )
        elif column.kind == "seconds":
            outside = (value < 0) | (value == float("inf"))
            problem, remedy = "is negative or infinite", "seconds are finite and not negative"
        else:
            continue
        if schema[name].is_float():
            outside &= ~value.is_nan()
        rules.append(
            _Rule(
                name,
                outside.fill_null(False),
                problem,
                remedy,
                pl.format(f"{name} {{}} {problem}", value),
            )
        )
    return rules


def _unique(frame: pl.LazyFrame, key: tuple[str, ...]) -> list[_Rule]:
    """The rule that no two rows share a key; none where no two do.

    Eight bytes a row find the few keys that may occur twice, and those alone are compared.
    """
    named = pl.struct(key) if len(key) > 1 else pl.col(key[0])
    whole = frame.filter(pl.all_horizontal(pl.col(name).is_not_null() for name in key))
    hashes = whole.select(named.hash().alias("hash")).collect(engine="streaming")["hash"].sort()
    suspects = hashes.filter((hashes == hashes.shift(1)).fill_null(False)).unique()
    if suspects.is_empty():
        return []
    del hashes
    twice = (
        whole.filter(named.hash().is_in(suspects.implode()))
        .select(named.alias("key"))
        .group_by("key")
        .len()
        .filter(pl.col("len") > 1)
        .collect(engine="streaming")["key"]
    )
    if twice.is_empty():
        return []
    among = " and ".join(key)
    return [
        _Rule(
            key[-1] if len(key) == 1 else key[0],
            named.is_in(twice.implode()).fill_null(False),
            "is not unique" if len(key) == 1 else f"and {key[1]} are not unique",
            f"of the rows that share {among}, leave one",
            pl.lit(f"{among} {'is' if len(key) == 1 else 'are'} not unique"),
        )
    ]


def _examples(
    frame: pl.LazyFrame, schema: pl.Schema, column: str, broken: pl.Expr
) -> tuple[Example, ...]:
    named = pl.col("query_id") if "query_id" in schema else pl.lit(None)
    numbered = frame.select(
        pl.int_range(1, pl.len() + 1).alias("row"),
        named.alias("named"),
        pl.col(column).alias("value"),
        broken.alias("broken"),
    )
    rows = numbered.filter("broken").head(EXAMPLES).drop("broken").collect()
    return tuple(Example(*row) for row in rows.iter_rows())


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _type_name(found: Any) -> str:
    if isinstance(found, pl.Datetime) and found.time_zone is None:
        return "a Datetime without a time zone"
    return "text (String)" if found == pl.String else str(found)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"


__all__ = [
    "COLUMNS",
    "HYPOTHESIS_COLUMNS",
    "REASON",
    "Checked",
    "Example",
    "Problem",
    "Validation",
    "check",
    "join_hypotheses",
    "read",
    "scan",
    "split",
    "validate",
    "validate_hypotheses",
    "write",
]

_logger = logging.getLogger(__name__)


def validate(queries: Any, *, requires: Iterable[str] = ()) -> Validation:
    """Compare a query log with its contract (`COLUMNS`).

    Args:
        queries: a path, or any frame narwhals knows. A lazy one of another engine than Polars is
            collected.
        requires: further columns that must be there, as labeling functions name them.

    `query_id` and `transcript` are always there and never null (a transcript may be empty), and no
    two rows share a `query_id`: of duplicates all are refused, since none is the right one. What is
    known of the other columns is in `COLUMNS`; their nulls are no problem.

    Raises:
        FileNotFoundError, WeakLabelError, ImportError: the files cannot be read; see `scan`.
        TypeError: `queries` is no frame.
    """
    return split(queries, requires=requires).validation


def validate_hypotheses(hypotheses: Any) -> Validation:
    """Compare a table of hypotheses with its contract (`HYPOTHESIS_COLUMNS`).

    Args:
        hypotheses: a path, or any frame narwhals knows. No two of its rows share both `query_id`
            and `source`.

    Raises:
        FileNotFoundError, WeakLabelError, ImportError: the files cannot be read; see `scan`.
        TypeError: `hypotheses` is no frame.
    """
    frame = _lazy(hypotheses)
    with _reading(hypotheses):
        return split_table(frame, HYPOTHESIS_COLUMNS, ("query_id", "source"), ()).validation


def split(queries: Any, *, requires: Iterable[str] = ()) -> Checked:
    """Part a query log in the rows that keep its contract and those that do not.

    Args:
        queries: see `validate`.
        requires: see `validate`.

    Where the validation says that the table is unusable, every row counts as accepted.

    Raises:
        FileNotFoundError, WeakLabelError, ImportError: the files cannot be read; see `scan`.
        TypeError: `queries` is no frame.
    """
    frame = _lazy(queries)
    with _reading(queries):
        return split_table(frame, COLUMNS, ("query_id",), tuple(requires))


def check(
    queries: Any,
    *,
    requires: Iterable[str] = (),
    reject: str | os.PathLike[str] | None = None,
) -> pl.LazyFrame:
    """The query log, once it is known to keep its contract.

    Args:
        queries: see `validate`.
        requires: see `validate`.
        reject: a file to write refused rows to, with all columns and one more, `reason`; its suffix
            names the format. It is written where no row is refused, too, and then has none. JSON
            has no NaN: there, a refused NaN is null and its reason says what it was.

    Returns:
        The accepted rows, in order; without `reject` these are all rows.

    Raises:
        WeakLabelError: the table is unusable, no row is left, rows are refused and `reject` is not
            given, or it is one of the files that are read or will be the next time.
        FileNotFoundError, ImportError: the files cannot be read; see `scan`.
        TypeError: `queries` is no frame.
        OSError: the file of refused rows cannot be written.
    """
    if reject is not None:
        _apart(queries, reject)
    checked = split(queries, requires=requires)
    found = checked.validation
    if reject is None:
        if found.usable and not found.ok:
            raise WeakLabelError(f"{found}\nrepair the rows, or set them aside with --reject FILE")
        found.raise_if_refused()
        return checked.accepted
    found.raise_if_unusable()
    if REASON in checked.accepted.collect_schema():
        raise WeakLabelError(
            f"the log has a column {REASON!r}, where the refused rows' reasons go: rename it"
        )
    with _reading(queries):
        write(checked.refused, reject)
    if found.refused:
        _logger.warning("%d of %d rows refused, see %s", found.refused, found.rows, reject)
    if found.refused == found.rows:
        raise WeakLabelError(f"{found}\nno row is left; {reject} holds them all")
    return checked.accepted


def join_hypotheses(
    queries: Any, hypotheses: Any, *, sources: str | Sequence[str] | None = None
) -> pl.LazyFrame:
    """The query log with other sources' hypotheses as columns; null where a source has none.

    Args:
        queries: a path, or any frame narwhals knows.
        hypotheses: the same, with `query_id`, `source` and `text`.
        sources: one name adds the column `second_transcript`, which the built-in functions read;
            several, or None for all (at most 20), add `transcript:<source>` each.

    Raises:
        FileNotFoundError, WeakLabelError, ImportError: files cannot be read (see `scan`), the
            hypotheses break their contract, a source has none, `query_id` is text in one table and
            integers in the other, or a column of the name is there already.
        TypeError: no frame is given.
    """
    found = validate_hypotheses(hypotheses)
    if not found.ok:
        raise WeakLabelError(f"hypotheses: {found}")
    log, table = _lazy(queries), _lazy(hypotheses)
    held = log.collect_schema()
    if "query_id" not in held:
        raise WeakLabelError(f"no column 'query_id' in the query log, which has {list(held)}")
    one, other = held["query_id"], table.collect_schema()["query_id"]
    if (one == pl.String) != (other == pl.String):
        raise WeakLabelError(
            f"query_id is {one} in the query log and {other} in the hypotheses: convert one,"
            ' pl.col("query_id").cast(pl.String)'
        )
    with _reading(hypotheses):
        known = table.select(pl.col("source").unique()).collect()["source"].sort().to_list()
    chosen = [sources] if isinstance(sources, str) else list(known if sources is None else sources)
    if unknown := [name for name in chosen if name not in known]:
        raise WeakLabelError(f"no hypotheses of {unknown}: sources are {known[:20]}")
    if sources is None and len(chosen) > 20:
        raise WeakLabelError(f"{len(chosen)} sources are too many columns: choose with sources=")
    if one != other:
        common = pl.String if one == pl.String else pl.Int64
        log, table = log.cast({"query_id": common}), table.cast({"query_id": common})
    with _reading(hypotheses), _reading(queries):
        spoken = table.filter(pl.col("source").is_in(chosen))
        astray = spoken.join(log, on="query_id", how="anti").select(pl.len())
        if count := astray.collect(engine="streaming").item():
            _logger.warning("%d hypotheses belong to no query of the log", count)
    for name in chosen:
        column = "second_transcript" if isinstance(sources, str) else f"{SOURCE_PREFIX}{name}"
        if column in held:
            raise WeakLabelError(f"the query log has a column {column!r} already: rename it")
        texts = table.filter(pl.col("source") == name)
        texts = texts.select("query_id", pl.col("text").alias(column))
        log = log.join(texts, on="query_id", how="left", maintain_order="left")
    return log


def _lazy(table: Any) -> pl.LazyFrame:
    if isinstance(table, str | os.PathLike):
        return scan(table)
    if isinstance(table, pl.DataFrame | pl.LazyFrame):
        return settled(table.lazy())
    frame = nw.from_native(table)
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect(backend="polars")
    return settled(frame.to_polars().lazy())


def _reading(table: Any) -> AbstractContextManager[None]:
    return naming(table) if isinstance(table, str | os.PathLike) else nullcontext()


def _apart(table: Any, reject: str | os.PathLike[str]) -> None:
    """Refused rows go into a file that is not, and will not be, a part of the log.

    Raises:
        WeakLabelError: it is.
    """
    if not isinstance(table, str | os.PathLike):
        return
    given, target = os.fspath(table), Path(reject).absolute()
    inside = os.path.isdir(given) and Path(given).resolve() in target.resolve().parents
    if inside or fnmatch.fnmatch(str(target), os.path.abspath(given)):
        raise WeakLabelError(
            f"{reject} would be read as a part of {given}: write the refused rows elsewhere"
        )
