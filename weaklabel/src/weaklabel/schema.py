"""The columns of the tables: their types, their meaning, and how their values are read.

One description, used by readers (how a CSV's text becomes values), by the validation and its
messages, and by the documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import polars as pl

from weaklabel.errors import WeakLabelError

Kind: TypeAlias = Literal["id", "text", "time", "share", "seconds"]

WANTED: Final[dict[Kind, str]] = {
    "id": "text or integers",
    "text": "text (String)",
    "time": "a Datetime with a time zone",
    "share": "numbers within [0, 1] (Float64)",
    "seconds": "numbers of seconds (Float64)",
}
_TYPES: Final[dict[Kind, pl.DataType]] = {
    "id": pl.String(),
    "text": pl.String(),
    "time": pl.Datetime("us", "UTC"),
    "share": pl.Float64(),
    "seconds": pl.Float64(),
}
# Wider integers are not known to every engine.
_INTEGERS: Final = (
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64),
    *(pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
)

_CLOCK: Final = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?"
_OFFSET: Final = r" ?([zZ]|[+-]\d\d:?(\d\d)?)$"
# Times in numbers are taken for seconds, ms, µs or ns since 1970 by their size: within these years
# no number is two of them.
_EPOCH_SECONDS: Final = (315_532_800, 4_102_444_800)  # 1980 to 2100


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as it stands in the file.
        kind: what its values are.
        meaning: what it says, in a sentence.
        required: every table has it, without nulls.
        key: no two rows share it, or all columns of the key together.
    """

    name: str
    kind: Kind
    meaning: str
    required: bool = False
    key: bool = False

    def values(self, found: pl.DataType, timezone: str | None = None) -> pl.Expr | None:
        """The column's values in its own type, null where one cannot be read as such.

        Args:
            found: the type that the column has.
            timezone: the zone of clocks that do not name theirs.

        Returns:
            The column itself where its type is right, a conversion where values of the type may be
            meant, and None where they cannot be.
        """
        value = pl.col(self.name)
        if isinstance(found, pl.Categorical | pl.Enum):
            value, found = value.cast(pl.String), pl.String()
        match self.kind:
            case "id" | "text":
                right = found == pl.String or (self.kind == "id" and found in _INTEGERS)
                return value if right else None
            case "share" | "seconds":
                if found == pl.String:
                    return number_from_text(value)
                if found.is_decimal():
                    return value.cast(pl.Float64)
                return value if found.is_float() or found.is_integer() else None
            case "time":
                if found == pl.String:
                    whole, number = value.cast(pl.Int64, strict=False), number_from_text(value)
                    numbers = (_time_from_number(whole), _time_from_number(number, exact=False))
                    return pl.coalesce(time_from_text(value, timezone), *numbers)
                if found in _INTEGERS or found == pl.Float64:
                    return _time_from_number(value, exact=found.is_integer())
                if not isinstance(found, pl.Datetime):
                    return None
                if found.time_zone is None:
                    return None if timezone is None else _in_zone(value, timezone)
                return value

    def fault(self, found: pl.DataType) -> tuple[str, str]:
        """Fault of a value of another type that cannot be read, and its remedy."""
        match self.kind:
            case "id":
                return "is no name", "write integers of at most 64 bits, or text"
            case "text":
                return "is no text", "write text"
            case "share" | "seconds":
                remedy = "write numbers with a decimal point, and nothing where it is not known"
                return "is no number", remedy
        if found == pl.Date:
            return "is no time", "a day alone orders no queries: bring the time of day"
        if found.is_numeric():
            remedy = "write integers or Float64 since 1970 (Float32 is too coarse)"
            return "is no time between 1980 and 2100 in seconds, ms, µs or ns since 1970", remedy
        remedy = (
            "write the offset, 2026-01-01T00:00:00+02:00, or name the zone of the clock:"
            ' --timezone Europe/Berlin, timezone="Europe/Berlin" in Python'
        )
        return "is no time with an offset from UTC", remedy


#: What is known of a table's columns; further ones are kept as they are.
Contract: TypeAlias = tuple[Column, ...]

#: The query log: one row a query.
QUERIES: Final = (
    Column("query_id", "id", "names the query; no two rows share it", required=True, key=True),
    Column("transcript", "text", "what the third-party ASR understood", required=True),
    Column("session_id", "id", "the session, or the household's sitting, the query belongs to"),
    Column("timestamp", "time", "when the query was said"),
    Column("confidence", "share", "the ASR's own, between 0 and 1"),
    Column("duration", "seconds", "length of the audio"),
    Column("audio", "text", "path or URL of the recording"),
    Column("action", "text", "what the user did next"),
    Column("dwell", "seconds", "how long the user stayed with what came"),
)

#: Several hypotheses a query: one row for each of its sources.
HYPOTHESES: Final = (
    Column("query_id", "id", "the query, as in the query log", required=True, key=True),
    Column("source", "text", "the ASR or the person that wrote it", required=True, key=True),
    Column("text", "text", "the hypothesis", required=True),
    Column("confidence", "share", "the source's own, between 0 and 1"),
)

_KINDS_BY_NAME: Final = {column.name: column.kind for column in (*HYPOTHESES, *QUERIES)}


def kind_of(name: str) -> Kind | None:
    """The kind of a column by its name; None for one that no table knows."""
    return "text" if name.endswith("_transcript") else _KINDS_BY_NAME.get(name)


def settled(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Give known columns that are all null the type that they would have with a value."""
    nulls: dict[Any, pl.DataType] = {
        name: _TYPES[kind]
        for name, dtype in frame.collect_schema().items()
        if dtype == pl.Null and (kind := kind_of(name)) is not None
    }
    return frame.cast(nulls) if nulls else frame


def renamed(frame: pl.LazyFrame, names: Mapping[str, str] | None) -> pl.LazyFrame:
    """Give columns other names.

    Args:
        frame: the table.
        names: {"old": "new"}; None for none.

    Raises:
        WeakLabelError: a column is not there, or two would have one name.
    """
    if not names:
        return frame
    held = frame.collect_schema().names()
    if missing := [old for old in names if old not in held]:
        raise WeakLabelError(f"cannot rename {missing}: the columns are {held}")
    after = [names.get(name, name) for name in held]
    if twice := sorted({name for name in after if after.count(name) > 1}):
        raise WeakLabelError(f"cannot rename: there would be two columns {twice}")
    return frame.rename(dict(names))


def number_from_text(text: pl.Expr) -> pl.Expr:
    """Texts as numbers, NaN and infinity included; others null."""
    return text.str.strip_chars().cast(pl.Float64, strict=False)


def time_from_text(text: pl.Expr, timezone: str | None = None) -> pl.Expr:
    """Texts in ISO 8601 as UTC, to the microsecond; others null.

    Args:
        text: such as "2026-01-01T00:00:00+02:00" or "2026-01-01 00:00Z".
        timezone: the zone of texts without an offset; null without it.
    """
    # One spelling for chrono: "T" between, seconds present, no blank before the offset.
    spelled = text.str.replace(r"^(\S{10}) ", "${1}T").str.replace(" ", "", literal=True)
    spelled = spelled.str.replace(r"^(\S{10}T\d\d:\d\d)([zZ+-]|$)", "${1}:00${2}")
    spelled = spelled.str.replace("z$", "Z")
    zoned = pl.when(text.str.contains(_CLOCK + _OFFSET)).then(
        spelled.str.to_datetime(
            "%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False
        )
    )
    if timezone is None:
        return zoned
    clock = pl.when(text.str.contains(_CLOCK + "$")).then(
        spelled.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    )
    return pl.coalesce(zoned, _in_zone(clock, timezone))


def _in_zone(clock: pl.Expr, timezone: str) -> pl.Expr:
    # An hour that the clock skips or shows twice is no time: null, and so named.
    local = clock.dt.replace_time_zone(timezone, ambiguous="null", non_existent="null")
    return local.dt.convert_time_zone("UTC")


def _time_from_number(value: pl.Expr, *, exact: bool = True) -> pl.Expr:
    """Numbers as times; `exact` says that they are integers."""
    read = []
    for per_second in (1, 10**3, 10**6, 10**9):
        first, last = (seconds * per_second for seconds in _EPOCH_SECONDS)
        within = pl.when(value.is_between(first, last)).then(value)
        if not exact:
            microseconds = (within * (10**6 / per_second)).round().cast(pl.Int64)
        elif per_second > 10**6:
            microseconds = within.cast(pl.Int64) // (per_second // 10**6)
        else:
            microseconds = within.cast(pl.Int64) * (10**6 // per_second)
        read.append(microseconds)
    return pl.coalesce(read).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
