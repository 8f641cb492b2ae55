"""The columns of the tables: their types, their meaning and what a value must not be.

One description, used by readers (how a CSV's text becomes values), by the validation and its
messages, and by the documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import polars as pl

Kind: TypeAlias = Literal["id", "text", "time", "share", "seconds"]

#: Of every kind: its values in words, and how Polars converts what is something else.
KINDS: Final[dict[Kind, tuple[str, str]]] = {
    "id": ("text or integers", 'pl.col("{name}").cast(pl.String)'),
    "text": ("text (String)", 'pl.col("{name}").cast(pl.String)'),
    "time": (
        "a Datetime with a time zone",
        (
            'pl.col("{name}").str.to_datetime(time_zone="UTC") where the clock was UTC, or write'
            ' the offset into the text, "2026-01-01T00:00:00+02:00"; milliseconds since 1970:'
            ' pl.from_epoch(pl.col("{name}").cast(pl.Int64), time_unit="ms")'
            '.dt.replace_time_zone("UTC")'
        ),
    ),
    "share": ("numbers within [0, 1] (Float64)", 'pl.col("{name}").cast(pl.Float64)'),
    "seconds": ("numbers of seconds (Float64)", 'pl.col("{name}").cast(pl.Float64)'),
}


_INTEGERS: Final = (
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64),
    *(pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
)


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as it stands in the file.
        kind: what its values are, a key of `KINDS`.
        meaning: what it says, in a sentence.
        required: the table is none without it, and it has no nulls.
    """

    name: str
    kind: Kind
    meaning: str
    required: bool = False

    @property
    def wanted(self) -> str:
        """Its type in words."""
        return KINDS[self.kind][0]

    def conversion(self, found: pl.DataType) -> str:
        """How Polars makes the type out of another one."""
        name = self.name
        if self.kind == "id" and found.is_float():
            return (
                f'where all are whole numbers: pl.col("{name}").cast(pl.Int64); those beyond 64'
                " bits are written as text"
            )
        if self.kind == "time":
            if isinstance(found, pl.Datetime):
                return (
                    f'name the zone the clock was in: pl.col("{name}").dt.replace_time_zone("UTC"),'
                    ' or dt.replace_time_zone("Europe/Berlin").dt.convert_time_zone("UTC")'
                )
            if found == pl.Date:
                return (
                    "a day alone orders no queries: bring the time of day; for midnight,"
                    f' pl.col("{name}").cast(pl.Datetime).dt.replace_time_zone("UTC")'
                )
            if found.is_numeric():
                return (
                    f'pl.from_epoch("{name}", time_unit="s").dt.replace_time_zone("UTC") for'
                    ' seconds since 1970 (time_unit="ms" for milliseconds)'
                )
        return f"convert it: {KINDS[self.kind][1].format(name=name)}"

    def holds(self, found: pl.DataType) -> bool:
        """Whether values of a type are what is wanted."""
        match self.kind:
            case "id":
                # Wider integers are not known to every engine.
                return found == pl.String or found in _INTEGERS
            case "text":
                return found == pl.String
            case "time":
                return isinstance(found, pl.Datetime) and found.time_zone is not None
            case "share" | "seconds":
                return found.is_float() or found.is_integer()


#: The query log: one row a query. Further columns are kept as they are.
COLUMNS: Final = (
    Column("query_id", "id", "names the query; no two rows share it", required=True),
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
HYPOTHESIS_COLUMNS: Final = (
    Column("query_id", "id", "the query, as in the query log", required=True),
    Column("source", "text", "who wrote it: an ASR, a person", required=True),
    Column("text", "text", "the hypothesis", required=True),
    Column("confidence", "share", "the source's own, between 0 and 1"),
)

#: A column of the query log that holds the transcript of one more source starts with this.
SOURCE_PREFIX: Final = "transcript:"

_KINDS_BY_NAME: Final = {
    **{column.name: column.kind for column in HYPOTHESIS_COLUMNS},
    **{column.name: column.kind for column in COLUMNS},
}


def kind_of(name: str) -> Kind | None:
    """The kind of a column by its name; None for one that no table knows."""
    if name.startswith(SOURCE_PREFIX) or name.endswith("_transcript"):
        return "text"
    return _KINDS_BY_NAME.get(name)


def settled(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Known columns that are all null have the type they would have with a value."""
    types: dict[Kind, pl.DataType] = {
        "id": pl.String(),
        "text": pl.String(),
        "time": pl.Datetime("us", "UTC"),
        "share": pl.Float64(),
        "seconds": pl.Float64(),
    }
    schema = frame.collect_schema()
    nulls: dict[Any, pl.DataType] = {
        name: types[kind]
        for name, dtype in schema.items()
        if dtype == pl.Null and (kind := kind_of(name)) is not None
    }
    return frame.cast(nulls) if nulls else frame
