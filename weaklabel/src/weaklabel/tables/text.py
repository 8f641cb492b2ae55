"""JSON lines of one table: one type a key, faults named by line."""

from __future__ import annotations

import csv
import glob
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.schema import kind_of, settled
from weaklabel.tables.files import Files, lines, listed, not_unicode, opened, same_columns

_TIME: Final = "%Y-%m-%dT%H:%M:%S%.f%#z"
_TIME_PATTERN: Final = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)? ?([zZ]|[+-]\d\d:?(\d\d)?)$"
# What most logs write is read faster by its places.
_UTC_PATTERN: Final = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?(Z|\+00:00)$"
_INTEGER: Final = r"^(0|-?[1-9][0-9]{0,18})$"
_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
# "007" and 16 digits and more are names: a float would not keep them. "0.5" is a number.
_NAME: Final = r"^[+-]?(0[0-9]|[0-9]{16})"

_logger = logging.getLogger(__name__)


def typed(raw: pl.LazyFrame) -> pl.LazyFrame:
    """Texts as what all of a column's values are."""
    names = raw.collect_schema().names()
    sample = raw.head(1000).collect()
    # What the first rows rule out needs no look at the others.
    candidates = {
        name: [
            kind for kind in _candidates(name) if sample.select(is_kind(kind, name).all()).item()
        ]
        for name in names
    }
    blank = pl.all_horizontal(pl.all().is_null())
    facts = raw.select(
        blank.sum().alias("blank"),
        *(pl.col(name).count().alias(f"{index}") for index, name in enumerate(names)),
        *_checks(names, candidates),
    )
    found = facts.collect(engine="streaming").row(0, named=True)
    # As a rule the first kind that the first rows are is that of all, and this is the one pass.
    while again := {
        name: candidates[name][1:]
        for index, name in enumerate(names)
        if candidates[name] and not found[f"{index} {candidates[name][0]}"]
    }:
        candidates |= again
        checks = _checks(names, again)
        if checks:
            found |= raw.select(checks).collect(engine="streaming").row(0, named=True)
    casts = []
    for index, name in enumerate(names):
        kinds = candidates[name]
        known = kind_of(name) is not None
        # An unknown column without a value stays text, and so does a name.
        if kinds and (found[f"{index}"] or (known and kinds[0] != "integer")):
            casts.append(_as(kinds[0], name))
    if found["blank"]:
        _logger.warning("%d blank lines of a CSV are no rows", found["blank"])
        raw = raw.filter(~blank)
    return raw.with_columns(casts)


def _checks(names: list[str], candidates: dict[str, list[str]]) -> list[pl.Expr]:
    return [
        is_kind(candidates[name][0], name).all().alias(f"{index} {candidates[name][0]}")
        for index, name in enumerate(names)
        if candidates.get(name)
    ]


def times(frame: pl.LazyFrame, name: str) -> pl.Expr | None:
    """A column of texts as timestamps; None where one of them is none with an offset."""
    values = frame.select(pl.col(name)).filter(pl.col(name).is_not_null())
    for kind in ("utc", "time"):
        holds = is_kind(kind, name).all()
        if values.head(1000).select(holds).collect().item() and (
            values.select(holds).collect(engine="streaming").item()
        ):
            return _as(kind, name)
    return None


def time_from_text(name: str) -> pl.Expr:
    """The column's texts in ISO 8601 with an offset as UTC, to the microsecond; others null."""
    # One spelling for chrono: "T" between, seconds present, no blank before the offset.
    text = pl.col(name).str.replace(r"^(\S{10}) ", "${1}T").str.replace(" ", "", literal=True)
    text = text.str.replace(r"^(\S{10}T\d\d:\d\d)([zZ+-])", "${1}:00${2}")
    text = text.str.replace("z$", "Z")
    return text.str.to_datetime(_TIME, time_unit="us", time_zone="UTC", strict=False)


def _candidates(name: str) -> tuple[str, ...]:
    match kind_of(name):
        case "id":
            return ("integer",)
        case "text":
            return ()
        case "time":
            return ("utc", "time")
        case "share" | "seconds":
            return ("known number",)
        case None:
            return ("integer", "number", "boolean", "utc", "time")


def is_kind(kind: str, name: str) -> pl.Expr:
    """Whether a text is one of a kind; true for null."""
    text = pl.col(name)
    match kind:
        case "integer":
            whole = text.cast(pl.Int64, strict=False).is_not_null()
            holds = text.str.contains(_INTEGER) & whole
        case "number":
            holds = text.str.contains(_NUMBER) & ~text.str.contains(_NAME)
        case "known number":  # NaN and inf as well, for the validation to name
            holds = _as_number(name).is_not_null()
        case "boolean":
            holds = text.is_in(["true", "false"])
        case "utc":
            holds = text.str.contains(_UTC_PATTERN) & _by_places(name).is_not_null()
        case _:
            holds = text.str.contains(_TIME_PATTERN) & time_from_text(name).is_not_null()
    return text.is_null() | holds


def _as(kind: str, name: str) -> pl.Expr:
    match kind:
        case "integer":
            return pl.col(name).cast(pl.Int64)
        case "number":
            return pl.col(name).cast(pl.Float64)
        case "known number":
            return _as_number(name)
        case "boolean":
            return pl.col(name) == "true"
        case "utc":
            return _by_places(name)
        case _:
            return time_from_text(name)


def _by_places(name: str) -> pl.Expr:
    # 2026-01-01T12:00:00.123456Z: the fraction's digits are places 20 to 25, or it has none.
    text = pl.col(name)
    seconds = text.str.slice(0, 19).str.to_datetime(
        "%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False, cache=False
    )
    fraction = text.str.slice(20, 6).cast(pl.Int64, strict=False).fill_null(0)
    return (seconds + pl.duration(microseconds=fraction)).dt.replace_time_zone("UTC")


def _as_number(name: str) -> pl.Expr:
    return pl.col(name).str.strip_chars().cast(pl.Float64, strict=False)


def scan_csv(files: Files) -> pl.LazyFrame:
    """The files as one frame, their types settled over all of them."""
    first: list[str] | None = None
    for file in files.paths if files.local else ():
        header = _header(file)
        if first is None:
            first = header
        else:
            same_columns(files.paths[0], first, file, header)
    if first is None:
        raw = pl.scan_csv(files.given, infer_schema=False)
        # Polars has renamed a column that is there twice.
        names = [re.sub(r"_duplicated_\d+$", "", name) for name in raw.collect_schema()]
        _check_header(files.given, names)
    else:
        parts = [pl.scan_csv(Path(file), infer_schema=False, glob=False) for file in files.paths]
        raw = pl.concat([part.select(first) for part in parts])
    frame = typed(raw)
    if first is not None and _may_be_short(files, len(first)):
        diagnose_fields(files, strict=False)
    return frame


def _may_be_short(files: Files, wide: int) -> bool:
    """Whether a line has too few commas: Polars would fill the row up with nulls.

    It may as well be a part of a text with line breaks.
    """
    few = pl.col("line").str.count_matches(",", literal=True) < wide - 1
    short = (few & (pl.col("line").str.len_bytes() > 0)).any()
    return any(
        lines(Path(file), glob=False).select(short).collect(engine="streaming").item()
        for file in files.paths
    )


def diagnose_fields(files: Files, *, strict: bool = True) -> None:
    """Name the first row of a CSV whose fields are not as many as the header's, or an open quote.

    Args:
        files: the files.
        strict: whether quotes are looked at; Polars has read files that it could read.

    Raises:
        WeakLabelError: there is such a row.
    """
    for file in files.paths:
        with opened(file) as binary, _long_fields():
            rows = csv.reader((line.decode("utf-8") for line in binary), strict=strict)
            begins, wide = 1, 0
            try:
                for row in rows:
                    wide = wide or len(row)
                    if row and len(row) < wide:
                        raise WeakLabelError(
                            f"{file}, line {begins} has {len(row)} fields and the header {wide}:"
                            " it was cut short, or lacks commas for its empty fields"
                        )
                    if len(row) > wide:
                        raise WeakLabelError(
                            f"{file}, line {begins} has {len(row)} fields and the header {wide}:"
                            ' put a text with commas in quotes, "like, this"'
                        )
                    begins = rows.line_num + 1
            except csv.Error as error:
                raise WeakLabelError(
                    f"{file}, line {begins}: {error}; a quote within a quoted text is written"
                    ' twice, "say ""hello"""'
                ) from error


def _header(file: str) -> list[str]:
    try:
        with opened(file) as binary:
            text = (line.decode("utf-8") for line in binary)
            header = next(csv.reader(text), [])
    except UnicodeDecodeError as error:
        raise WeakLabelError(not_unicode(file, 1, error)) from error
    except csv.Error as error:
        raise WeakLabelError(f"{file} has no header that can be read: {error}") from error
    if header:
        header[0] = header[0].removeprefix("\ufeff")
    _check_header(file, header)
    return header


def _check_header(file: str, header: list[str]) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise WeakLabelError(f"{file} has several columns {listed(twice)}: rename them")
    if not any(kind_of(name) for name in header):
        separators = [mark for mark in ";\t|" if any(mark in name for name in header)]
        if separators:
            remedy = f"fields are separated by commas, and {separators[0]!r} stands in it"
        else:
            remedy = "write the columns' names into the first line (query_id,transcript,...)"
        raise WeakLabelError(f"{file} has no header: its first line is {header!r}; {remedy}")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Transcripts of more than the csv module's 128 KiB."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def scan_lines(files: Files) -> pl.LazyFrame:
    """The files as one frame; a key that a line lacks is null.

    Raises:
        WeakLabelError: a key has values of several types; the line is named.
    """
    # Polars would take brackets in a file's name for a glob.
    source: Any = [glob.escape(file) for file in files.paths] if files.local else files.given
    text = lines(source)
    if _any(text, [r"^\s*[^{\s]"]):
        diagnose_lines(files)
    frame = pl.scan_ndjson(source, infer_schema_length=None)
    schema = frame.collect_schema()
    # Polars turns a column of texts and numbers into texts; a value's first letter tells.
    odd = [_odd(name, dtype) for name, dtype in schema.items() if dtype != pl.Null]
    if _any(text, odd):
        diagnose_lines(files)
    texts = [
        name
        for name, dtype in schema.items()
        if dtype == pl.String and kind_of(name) in (None, "time")
    ]
    stamps = [stamp for name in texts if (stamp := times(frame, name)) is not None]
    numbers = [
        name
        for name, dtype in schema.items()
        if dtype.is_integer() and kind_of(name) in ("share", "seconds")
    ]
    return settled(
        frame.with_columns(
            *stamps,
            *(pl.col(name).cast(pl.Float64) for name in numbers),
        )
    )


def diagnose_lines(files: Files) -> None:
    """Name the first line that is not what the lines before it are.

    Raises:
        WeakLabelError: there is such a line.
    """
    seen: dict[str, tuple[str, str]] = {}  # key: type, where
    for file, number, line in _numbered(files):
        where = f"{file}, line {number}"
        for key, value in _object(file, number, line).items():
            kind = _json_type(value)
            if kind is None:
                continue
            before, there = seen.setdefault(key, (kind, where))
            if kind != before:
                shown = json.dumps(value, ensure_ascii=False)
                shown = shown if len(shown) <= 80 else shown[:79] + "…"
                raise WeakLabelError(
                    f"{where}: {key!r} is {kind}, {shown}, and {before} in {there}: write one type"
                )


def _numbered(files: Files) -> Iterator[tuple[str, int, bytes]]:
    if not files.local:
        for number, line in enumerate(lines(files.given).collect()["line"], 1):
            yield files.given, number, (line or "").encode()
        return
    for file in files.paths:
        with opened(file) as binary:
            for number, line in enumerate(binary, 1):
                yield file, number, line


def _any(text: pl.LazyFrame, patterns: list[str]) -> bool:
    """Whether a line has one of the patterns."""
    found = [
        pl.col("line").str.contains(pattern).any().alias(f"{index}")
        for index, pattern in enumerate(patterns)
    ]
    return bool(found) and any(text.select(found).collect(engine="streaming").row(0))


def _odd(name: str, dtype: Any) -> str:
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
    return re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:\s*" + starts


def _object(file: str, number: int, line: bytes) -> dict[str, Any]:
    if not line.strip():
        return {}
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise WeakLabelError(not_unicode(file, number, error)) from error
    except (ValueError, RecursionError) as error:
        raise WeakLabelError(
            f"{file}, line {number} is no JSON: {error}; write one object a line"
        ) from error
    if not isinstance(value, dict):
        raise WeakLabelError(
            f"{file}, line {number} is {_json_type(value) or 'null'}, expected an object: write"
            ' one a line, {"query_id": …, "transcript": …}'
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
