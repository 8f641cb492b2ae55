"""CSV files of one table: header checked, types settled together, faults named by line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.reading.files import Files, lines, listed, not_unicode, opened, same_columns
from weaklabel.reading.text_types import typed
from weaklabel.schema import kind_of


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
