"""CSV and JSON lines: texts as what all of a column's values are, faults named by line."""

from __future__ import annotations

import codecs
import csv
import glob
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.schema import kind_of, number_from_text, renamed, settled, time_from_text
from weaklabel.tables.files import (
    Files,
    byte_lines,
    decoded_lines,
    listed,
    polars_source,
    same_columns,
    text_lines,
)

# What most logs write is read faster by its places.
_UTC: Final = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?(Z|\+00:00)$"
_INTEGER: Final = r"^(0|-?[1-9][0-9]{0,18})$"
_NUMBER: Final = r"^([+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|NaN)$"
# "007" and 16 digits and more are names: a float would not keep them. "0.5" is a number.
_NAME: Final = r"^[+-]?(0[0-9]|[0-9]{16})"

_SURROGATE: Final = r"\\u[dD][89a-fA-F]"
_PAIR: Final = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
# Of these columns a value that cannot be read is a fault of its row, not of the file.
_BY_ROW: Final = ("time", "share", "seconds")

_logger = logging.getLogger(__name__)


def scan_csv(files: Files) -> pl.LazyFrame:
    """The files as one frame, their types settled over all of them; names a line that is odd."""
    first: list[str] = []
    parts, short = [], False
    for file in files.paths:
        source = polars_source(file)
        separator, header = _header(file, source, files)
        first = first or header
        same_columns(files.paths[0], first, file, header)
        part = pl.scan_csv(source, infer_schema=False, glob=False, separator=separator)
        parts.append(part.select(first))
        # Polars fills a row with too few fields up with nulls, and drops quotes within quotes. A
        # line with too few separators outside of quotes may be the one, and a line that is no row
        # of its own with its quotes in place may be the other.
        line, mark = pl.col("line"), re.escape(separator)
        bare = line.str.replace_all('"[^"]*"', "")
        few = bare.str.count_matches(separator, literal=True) < len(first) - 1
        cell = f'("([^"]|"")*"|[^"{mark}]*)'
        row = line.str.contains(f"^{cell}({mark}{cell})*\r?$")
        odd = line.str.contains('"', literal=True) & ~row
        suspect = (line != "") & (few | odd)
        short = short or text_lines(source).select(suspect.any()).collect(engine="streaming").item()
    frame = renamed(pl.concat(parts), files.rename)
    blank = pl.all_horizontal(pl.all().is_null())
    frame = _typed(frame, {name: _readings(name) for name in map(files.name, first)}, blank)
    if short:
        diagnose_fields(files)
    return frame


def _header(file: str, source: Any, files: Files) -> tuple[str, list[str]]:
    """The separator and the names of a CSV's first line."""
    line = text_lines(source).head(1).collect()["line"].to_list()
    first = [(line[0] or "").removeprefix("\ufeff") if line else ""]
    try:
        for separator in ",;\t|":
            header = next(csv.reader(first, delimiter=separator, strict=True), [])
            if len(header) > 1 and any(kind_of(files.name(name)) for name in header):
                break
        else:
            separator, header = ",", next(csv.reader(first, strict=True), [])
    except csv.Error as error:
        raise WeakLabelError(f"{file} has no header that can be read: {error}") from error
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise WeakLabelError(f"{file} has several columns {listed(twice)}: rename them")
    if not any(kind_of(files.name(name)) for name in header):
        raise WeakLabelError(
            f"{file} has no header: its first line is {header!r}; write the columns' names into"
            " the first line (query_id,transcript,...), or rename columns: --rename NAME=query_id"
        )
    return separator, header


def diagnose_fields(files: Files) -> None:
    """Name the first row of a CSV whose fields are not as many as the header's, or an odd quote."""
    for file in files.paths:
        for _ in decoded_lines(file):  # bytes that are no text come first
            pass
        separator, header = _header(file, polars_source(file), files)
        begins, held = 1, [0]
        rows = csv.reader(_counted(file, held), delimiter=separator, strict=True)
        longest = csv.field_size_limit(2**31 - 1)  # transcripts of more than 128 KiB
        try:
            for row in rows:
                if held[0] % 2:
                    raise csv.Error("a quote stands in a text that has none around it")
                if row and len(row) != len(header):
                    remedy = "it was cut short, or separators of empty fields are missing"
                    if len(row) > len(header):
                        remedy = f'put a text with {separator!r} in quotes, "as{separator} here"'
                    raise WeakLabelError(
                        f"{file}, line {begins} has {len(row)} fields and the header"
                        f" {len(header)}: {remedy}"
                    )
                begins, held[0] = rows.line_num + 1, 0
        except csv.Error as error:
            raise WeakLabelError(
                f"{file}, line {begins}: {error}; a text with a quote is written in quotes, and the"
                ' quote twice, "say ""hello"""'
            ) from error
        finally:
            csv.field_size_limit(longest)


def _counted(file: str, quotes: list[int]) -> Iterator[str]:
    """The lines of a file; `quotes` counts the quotes in them."""
    for line in decoded_lines(file):
        quotes[0] += line.count('"')
        yield line


def _typed(
    raw: pl.LazyFrame, readings: Mapping[str, Sequence[pl.Expr]], blank: pl.Expr | None = None
) -> pl.LazyFrame:
    """Texts as what all of a column's values are.

    Args:
        raw: the table.
        readings: see `_readings`, of every column of texts.
        blank: true for rows that are none; they are left out, and counted in a warning.
    """
    left = {name: list(each) for name, each in readings.items()}
    found: dict[str, Any] = {}
    facts = [] if blank is None else [blank.sum().alias("blank")]
    facts += [pl.col(name).count().alias(f"values of {name}") for name in left]
    # What the first rows rule out needs no look at the others. As a rule what they leave is what
    # all rows are, and there is one pass.
    for rows, wanted in ((raw.select(*left).head(1000).collect().lazy(), []), (raw, facts)):
        again = [name for name in left if left[name]]
        while wanted or again:
            reads = [
                (pl.col(name).is_null() | left[name][0].is_not_null()).all().alias(f"is {name}")
                for name in again
            ]
            found |= rows.select(*wanted, *reads).collect(engine="streaming").row(0, named=True)
            wrong = [name for name in again if not found[f"is {name}"]]
            left |= {name: left[name][1:] for name in wrong}
            again, wanted = [name for name in wrong if left[name]], []
    if blank is not None and found["blank"]:
        _logger.warning("%d blank lines of a CSV are no rows", found["blank"])
        raw = raw.filter(~blank)
    # A column without a value stays text, unless times or numbers are known to be meant.
    return raw.with_columns(
        each[0].alias(name)
        for name, each in left.items()
        if each and (found[f"values of {name}"] or kind_of(name) in _BY_ROW)
    )


def _readings(name: str) -> tuple[pl.Expr, ...]:
    """Readings of a column of texts, the most special first; null for a text that is none."""
    text = pl.col(name)
    integer = pl.when(text.str.contains(_INTEGER)).then(text.cast(pl.Int64, strict=False))
    named = text.str.contains(_NAME)
    number = pl.when(text.str.contains(_NUMBER) & ~named).then(text.cast(pl.Float64, strict=False))
    # 2026-01-01T12:00:00.123456Z: the fraction's digits are places 20 to 25, or none.
    seconds = text.str.slice(0, 19).str.to_datetime(
        "%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False, cache=False
    )
    fraction = text.str.slice(20, 6).cast(pl.Int64, strict=False).fill_null(0)
    utc = (seconds + pl.duration(microseconds=fraction)).dt.replace_time_zone("UTC")
    times = (pl.when(text.str.contains(_UTC)).then(utc), time_from_text(text))
    match kind_of(name):
        case "id":
            return (integer,)
        case "text":
            return ()
        case "time":
            return (*times, integer, number)
        case "share" | "seconds":  # NaN and infinity as well, for the validation to name
            return (number_from_text(text),)
        case None:
            boolean = pl.when(text.is_in(["true", "false"])).then(text == "true")
            return (integer, number, boolean, *times)


def typed_folders(frame: pl.LazyFrame, names: Sequence[str]) -> pl.LazyFrame:
    """Texts in the names of folders as what all of a column's values are."""
    readings = {name: list(_readings(name)) for name in names}
    for name in names:
        if kind_of(name) is None:
            readings[name].append(pl.col(name).str.to_date("%Y-%m-%d", strict=False))
    return _typed(frame, readings) if names else frame


def scan_lines(files: Files) -> pl.LazyFrame:
    """The files as one frame; a key that a line lacks is null. Names a line that is odd."""
    sources = [_objects(file, files.local)[0] for file in files.paths]
    if any(isinstance(source, bytes) for source in sources):
        sources = [
            source if isinstance(source, bytes) else b"".join(byte_lines(file))
            for file, source in zip(files.paths, sources, strict=True)
        ]
    # Polars would take brackets in a file's name for a glob.
    escaped = [glob.escape(str(s)) if isinstance(s, Path) else s for s in sources]
    frame = pl.scan_ndjson(escaped, infer_schema_length=None)
    # Polars turns a column of texts and numbers into texts, and half of a character into NUL.
    line = pl.col("line")
    patterns = [r"^\s*[^{\s]"]
    for name, kind in frame.collect_schema().items():
        by_row = kind == pl.String and kind_of(files.name(name)) in _BY_ROW
        if kind != pl.Null and not by_row:
            patterns.append(_odd(name, kind))
    halves = line.filter(line.str.contains(_SURROGATE)).str.replace_all(_PAIR, "")
    wrong = pl.concat([text_lines(source) for source in sources]).select(
        halves.str.contains(_SURROGATE).any().alias("half"),
        *(line.str.contains(pattern).any().alias(pattern) for pattern in patterns),
    )
    if any(wrong.collect(engine="streaming").row(0)):
        diagnose_lines(files)
    frame = renamed(frame, files.rename)
    schema = frame.collect_schema()
    texts = {  # of columns that nothing is known of, a text in JSON may be a time and no number
        name: _readings(name)[0 if kind_of(name) else -2 :]
        for name, kind in schema.items()
        if kind == pl.String and kind_of(name) not in ("id", "text")
    }
    numbers = [
        name
        for name, kind in schema.items()
        if kind.is_integer() and kind_of(name) in ("share", "seconds")
    ]
    frame = _typed(frame, texts) if texts else frame
    return settled(frame.with_columns(pl.col(name).cast(pl.Float64) for name in numbers))


def _objects(file: str, local: bool) -> tuple[Any, str]:
    """Source for Polars to scan, and the name of an object in it: a line, or an array's object."""
    head = next((line for line in byte_lines(file) if line.strip()), b"") if local else b""
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        text = "".join(decoded_lines(file))
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WeakLabelError(
                f"{file} is no JSON: {error}; write one object a line, or an array of objects"
            ) from error
        if not rows:
            raise WeakLabelError(f"{file} is an array without objects: write at least one")
        return "".join(json.dumps(row) + "\n" for row in rows).encode(), "object"
    if head.startswith(codecs.BOM_UTF8):
        return b"".join(byte_lines(file)).removeprefix(codecs.BOM_UTF8), "line"
    return polars_source(file), "line"


def _odd(name: str, dtype: pl.DataType) -> str:
    """The pattern of a line in which a key's value is not what its column is, by first letters."""
    if dtype == pl.String:
        starts = r'[^"n\s]'
    elif dtype == pl.Boolean:
        starts = r"[^tfn\s]"
    elif isinstance(dtype, pl.List):
        starts = r"[^\[n\s]"
    elif isinstance(dtype, pl.Struct):
        starts = r"[^{n\s]"
    else:
        starts = r'["tf\[{]'
    # A quote within a text is escaped, so this finds keys alone.
    letters = (
        re.escape(letter)
        if letter.isascii()
        else f"(?:{letter}|(?i:{re.escape(json.dumps(letter)[1:-1])}))"
        for letter in json.dumps(name, ensure_ascii=False)
    )
    return "".join(letters) + r"\s*:\s*" + starts


def diagnose_lines(files: Files) -> None:
    """Name the first line that is not what the lines before it are."""
    seen: dict[str, tuple[str, str]] = {}  # key: type, where
    for file in files.paths:
        source, unit = _objects(file, files.local)
        lines = source.decode().splitlines() if unit == "object" else decoded_lines(file)
        for number, line in enumerate(lines, 1):
            where = f"{file}, {unit} {number}"
            for key, value in _object(where, line).items():
                kind = _json_type(value)
                before, there = seen.setdefault(key, (kind, where)) if kind else (None, "")
                by_row = kind_of(files.name(key)) in _BY_ROW and {kind, before} == {
                    "text",
                    "a number",
                }
                if kind != before and not by_row:
                    shown = json.dumps(value, ensure_ascii=False)
                    shown = shown if len(shown) <= 80 else shown[:79] + "…"
                    raise WeakLabelError(
                        f"{where}: {key!r} is {kind}, {shown}, and {before} in {there}: write one"
                        " type"
                    )


def _object(where: str, line: str) -> dict[str, Any]:
    if not line.strip():
        return {}
    try:
        value = json.loads(line, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise WeakLabelError(
            f"{where} holds half of a character, \\u{ord(error.object[error.start]):04x}: write"
            " both halves, or none"
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeakLabelError(f"{where} is no JSON: {error}; write one object a line") from error
    if not isinstance(value, dict):
        raise WeakLabelError(
            f"{where} is {_json_type(value) or 'null'}, expected an object: write"
            ' {"query_id": …, "transcript": …}'
        )
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value, write null")


def _json_type(value: Any) -> str | None:
    match value:
        case None:
            return None
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"
