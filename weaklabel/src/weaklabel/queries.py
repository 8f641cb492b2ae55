"""The query log: read, checked against its contract, and joined with further hypotheses.

    queries = check("logs/*.parquet", requires=["confidence"], reject="refused.parquet")

Rows are refused one by one and never in silence: without a file to write them to, the first one is
an error. A column that is missing or of another type is always an error.
"""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.schema import COLUMNS, HYPOTHESIS_COLUMNS, SOURCE_PREFIX, settled
from weaklabel.tables import naming, read, scan, write
from weaklabel.validation import REASON, Checked, Example, Problem, Validation, split_table

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
