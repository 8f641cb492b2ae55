"""JSON lines of one table: one type a key, faults named by line."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator
from typing import Any

import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.reading.files import Files, lines, not_unicode, opened
from weaklabel.reading.text_types import times
from weaklabel.schema import kind_of, settled


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
