"""Parquet files of one table: their footers read, their columns compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.reading.files import Files, first_line, same_columns
from weaklabel.schema import settled


def scan_parquet(files: Files) -> pl.LazyFrame:
    """The files as one frame.

    Raises:
        WeakLabelError: a footer cannot be read, or files differ in columns or types.
    """
    if not files.local:
        return settled(pl.scan_parquet(files.given))
    schemas = {}
    for file in files.paths:
        try:
            # Not read_parquet_schema, which takes brackets in a file's name for a glob.
            schemas[file] = pl.scan_parquet(Path(file), glob=False).collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise WeakLabelError(
                f"{file} is no Parquet file, or was cut short: {first_line(error)}; write it again"
            ) from error
    first, wanted = next(iter(schemas.items()))
    for file, schema in schemas.items():
        same_columns(first, list(wanted), file, list(schema))
        for name, dtype in schema.items():
            if not _compatible(wanted[name], dtype):
                raise WeakLabelError(
                    f"column {name!r} is {wanted[name]} in {first} and {dtype} in {file}:"
                    " convert one of them"
                )
    hive = files.hive
    if all(list(schema.items()) == list(wanted.items()) for schema in schemas.values()):
        paths = [Path(file) for file in files.paths]
        frame = pl.scan_parquet(paths, glob=False, hive_partitioning=hive)
    else:
        parts = [
            pl.scan_parquet(Path(file), glob=False, hive_partitioning=hive) for file in files.paths
        ]
        frame = pl.concat(
            [part.select(parts[0].collect_schema().names()) for part in parts],
            how="vertical_relaxed",
        )
    return settled(frame)


def _compatible(one: Any, other: Any) -> bool:
    """Whether two types have a common one that loses nothing."""
    if one == other or pl.Null in (one, other):
        return True
    if isinstance(one, pl.Datetime) and isinstance(other, pl.Datetime):
        return one.time_zone == other.time_zone
    if one.is_integer() and other.is_integer():
        return bool(one.is_signed_integer() == other.is_signed_integer())
    return bool(one.is_float() and other.is_float())
