"""What tables that are joined must hold: columns, one row an id, ids of one type."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import polars as pl

from weaklabel.errors import WeakLabelError

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
