"""Small readers of tables: Parquet, CSV or JSON lines; a file, a folder or a glob."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import polars as pl

from weaklabel.errors import WeakLabelError

# Never guessed from what a CSV holds: "007" is no 7, and a transcript may be "1984".
STRINGS = ("query_id", "transcript", "text", "session_id", "audio", "source", "action")

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}

SHOWN = 5  # rows or ids that an error names


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder or a glob, or its name ends as a table's does."""
    return Path(path).is_dir() or _is_glob(path) or Path(path).suffix.lower() in SUFFIXES


def read_table(path: str | os.PathLike[str]) -> pl.DataFrame:
    """The rows of a file, or of a folder's or glob's files one after another.

    In a CSV file an empty transcript is "", an empty cell of any other column is null.

    Raises:
        FileNotFoundError: there is no such file, or a folder or glob holds none.
        WeakLabelError: a kind of file that is not known, files of several kinds, or one that
            cannot be read.
    """
    files = _files(path)
    kinds = {SUFFIXES.get(Path(file).suffix.lower()) for file in files}
    if None in kinds or len(kinds) > 1:
        found = ", ".join(sorted({Path(file).suffix or "no suffix" for file in files}))
        raise WeakLabelError(f"{path} must be {', '.join(SUFFIXES)}, all of one kind; got {found}")
    kind = kinds.pop()
    try:
        frames = [_read(file, kind) for file in files]
        return frames[0] if len(frames) == 1 else pl.concat(frames)
    except pl.exceptions.PolarsError as error:
        raise WeakLabelError(f"cannot read {path}: {_first_line(error)}") from error


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


def _is_glob(path: str | os.PathLike[str]) -> bool:
    return glob.has_magic(os.fspath(path)) and not Path(path).exists()


def _files(path: str | os.PathLike[str]) -> list[str]:
    name = os.fspath(path)
    if "://" in name:  # Polars opens it, or says why not
        return [name]
    if Path(path).is_dir():
        hidden = (".", "_")
        found = [
            str(file)
            for file in sorted(Path(path).iterdir())
            if file.is_file() and not file.name.startswith(hidden)
        ]
    elif _is_glob(path):
        found = sorted(glob.glob(name))
    else:
        found = [name] if Path(path).exists() else []
    if not found:
        raise FileNotFoundError(f"no such file, or nothing in it: {name}")
    return found


def _read(file: str, kind: str | None) -> pl.DataFrame:
    if kind == "parquet":
        return pl.read_parquet(file, glob=False)
    if kind == "jsonl":
        return pl.read_ndjson(file, infer_schema_length=None)
    header = pl.read_csv(file, n_rows=0, glob=False).columns
    frame = pl.read_csv(
        file,
        infer_schema_length=None,
        schema_overrides={name: pl.String for name in STRINGS if name in header},
        glob=False,
    )
    # CSV has no null: an empty cell is a transcript of no words.
    return frame.with_columns(
        pl.col(name).fill_null("") for name in ("transcript", "text") if name in header
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
