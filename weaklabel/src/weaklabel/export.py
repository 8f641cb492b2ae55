"""Weighted transcripts for trainers: Hugging Face datasets, NeMo, Lhotse, Kaldi, and plugins' own.

What is exported are rows: `query_id`, `transcript`, `weight`, `audio` and what else the format
wants. `join` makes them of a query log and its labels; `export` writes them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel import tables
from weaklabel.audio import with_absolute_paths, with_headers
from weaklabel.errors import WeakLabelError
from weaklabel.files import written_beside
from weaklabel.plugins import Exporter, load_registry
from weaklabel.queries import refuse_rows, require_columns, require_ids, same_ids, shown

FilePath = str | os.PathLike[str]
Unmatched = Literal["error", "drop"]


@dataclass(frozen=True)
class Joined:
    """A query log with its labels.

    Attributes:
        rows: the log's columns, `transcript` replaced if others were given, `weight`, `label`.
        dropped: queries and labels (and transcripts) that were left out since they had no partner.
    """

    rows: pl.DataFrame
    dropped: int


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        format: the exporter's name.
        folder: where.
        rows: how many were written.
        threshold: the least weight that was kept; None if all were.
        below_threshold: how many rows had less weight and were left out.
        dropped: as in `Joined`; 0 where nothing was joined.
    """

    format: str
    folder: str
    rows: int
    threshold: float | None
    below_threshold: int
    dropped: int


def join(
    queries: Any,
    labels: Any = None,
    transcripts: Any = None,
    *,
    unmatched: Unmatched = "error",
) -> Joined:
    """A query log with its labels' weights, each query once, in the log's order.

    Args:
        queries: the query log, any frame that narwhals knows.
        labels: `query_id`, `weight` and, if it is there, `label`; other columns are left. Without
            labels, the weights are those of `transcripts`.
        transcripts: `query_id`, `transcript`, `weight`, as `weaklabel combine` writes them; they
            take the place of the log's. Where there are labels as well, the labels' weight is
            `weight` and the transcripts' own is kept as `transcript_weight`.
        unmatched: what is done about a query_id that is not in every table: an error, or leaving
            it out and counting it.

    Raises:
        WeakLabelError: neither labels nor transcripts, missing columns, a query_id that is null,
            repeated or without a partner, or columns of the log in the way of the joined ones.
    """
    log = _polars(queries)
    if labels is None and transcripts is None:
        raise WeakLabelError(
            "give labels, transcripts with weights, or both: they hold the weights"
        )
    require_columns(log, ("query_id",), "the query log")
    require_ids(log, "the query log")
    parts: dict[str, pl.DataFrame] = {}
    if transcripts is not None:
        own = "weight" if labels is None else "transcript_weight"
        found = _polars(transcripts)
        wanted = ("query_id", "transcript", "weight")[: 3 if labels is None else 2]
        require_columns(found, wanted, "the transcripts")
        found = found.select(
            "query_id",
            "transcript",
            *([pl.col("weight").alias(own)] if "weight" in found.columns else []),
        )
        log = log.drop("transcript", strict=False)
        parts["the transcripts"] = found
    if labels is not None:
        found = _polars(labels)
        require_columns(found, ("query_id", "weight"), "the labels")
        parts["the labels"] = found.select(
            "query_id", "weight", *(["label"] if "label" in found.columns else [])
        )
    dropped = 0
    for name, part in parts.items():
        require_ids(part, name)
        if taken := (set(part.columns) & set(log.columns)) - {"query_id"}:
            raise WeakLabelError(
                f"the query log and {name} both have {', '.join(sorted(taken))}: drop or rename it"
                " in the log"
            )
        log, part = same_ids(log, part)
        dropped += _missing(log, part, "the query log", name, unmatched)
        dropped += _missing(part, log, name, "the query log", unmatched)
        log = log.join(part, on="query_id", how="inner", maintain_order="left")
    return Joined(log, dropped)


def export(
    rows: Any,
    folder: FilePath,
    format: str | Exporter = "huggingface",
    threshold: float | None = None,
    *,
    audio_root: FilePath | None = None,
    check_audio: bool = True,
    read_audio: bool = False,
    dropped: int = 0,
) -> Exported:
    """Write weighted transcripts as a trainer wants them; the folder is there in whole or not.

    Args:
        rows: `query_id`, `transcript`, `weight`, `audio` and what the format wants besides; any
            frame that narwhals knows.
        folder: what to write; it does not exist yet, or is empty. The folder it lies in exists.
        format: a name among the registered ones, or an exporter.
        threshold: keep only rows of at least this weight, for trainers that ignore weights.
        audio_root: what relative audio paths are relative to; the current folder if not given.
            Absolute paths are written: trainers do not agree what relative ones are relative to.
        check_audio: whether every audio path must be that of a file; URLs are not looked at.
        read_audio: take `duration`, `sampling_rate` and `channels` from the files' headers
            instead of the rows' columns.
        dropped: how many rows the join left out; it is only passed on.

    Raises:
        WeakLabelError: no such format, missing columns, values that are missing or impossible, or
            no row that reaches the threshold. Nothing is written.
        FileExistsError: the folder has something in it.
        FileNotFoundError: the folder it lies in does not exist.
        ImportError: `read_audio` without soundfile.
    """
    exporter = format if isinstance(format, Exporter) else _named(format)
    frame = _checked(_polars(rows))
    kept = frame if threshold is None else _above(frame, threshold)
    if not kept.height:
        raise WeakLabelError("there are no rows to export")
    needed = [column for column in exporter.required if not (read_audio and column in _HEADER)]
    require_columns(kept, [*_ALWAYS, *needed], f"rows for {exporter.name}")
    if "audio" in kept.columns:
        kept = with_absolute_paths(kept, audio_root, check=check_audio)
    if read_audio:
        require_columns(kept, ("audio",), "rows whose audio is to be read")
        kept = with_headers(kept)
    for column in exporter.required:
        refuse_rows(kept, pl.col(column).is_null(), "rows", f"have no {column}")
    kept = _positive(kept)
    with written_beside(folder, folder=True) as beside:
        exporter.write(kept, beside)
    return Exported(
        format=exporter.name,
        folder=os.fspath(folder),
        rows=kept.height,
        threshold=threshold,
        below_threshold=frame.height - kept.height,
        dropped=dropped,
    )


def export_files(
    queries: FilePath,
    labels: FilePath | None,
    folder: FilePath,
    format: str | Exporter = "huggingface",
    threshold: float | None = None,
    *,
    transcripts: FilePath | None = None,
    unmatched: Unmatched = "error",
    audio_root: FilePath | None = None,
    check_audio: bool = True,
    read_audio: bool = False,
) -> Exported:
    """`join` and `export` of tables in files (Parquet, CSV, JSON lines; a file, folder or glob).

    Raises:
        FileNotFoundError, WeakLabelError, ImportError: as `join`, `export` and `tables.read`.
    """
    joined = join(
        tables.read(queries),
        None if labels is None else tables.read(labels),
        None if transcripts is None else tables.read(transcripts),
        unmatched=unmatched,
    )
    return export(
        joined.rows,
        folder,
        format,
        threshold,
        audio_root=audio_root,
        check_audio=check_audio,
        read_audio=read_audio,
        dropped=joined.dropped,
    )


_ALWAYS = ("query_id", "transcript", "weight")
_HEADER = ("duration", "sampling_rate", "channels")


def _named(name: str) -> Exporter:
    known = load_registry().exporters
    if name not in known:
        raise WeakLabelError(f"no format {name!r}: choose one of {', '.join(known)}")
    return known[name]


def _polars(frame: Any) -> pl.DataFrame:
    found = nw.from_native(frame)
    if isinstance(found, nw.LazyFrame):
        found = found.collect("polars")
    rows: pl.DataFrame = found.to_polars()
    return rows


def _missing(left: pl.DataFrame, right: pl.DataFrame, of: str, to: str, unmatched: str) -> int:
    """How many ids of the left table are not in the right one; an error if that is one."""
    alone = left.join(right, on="query_id", how="anti", maintain_order="left")["query_id"]
    if len(alone) and unmatched == "error":
        raise WeakLabelError(
            f"{len(alone)} of {left.height} query_ids of {of} are not in {to}: {shown(alone)}; add"
            " them, or have them left out (unmatched)"
        )
    return len(alone)


def _checked(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with a Float64 weight, their ids, transcripts and weights fit to be exported."""
    require_columns(rows, _ALWAYS, "rows")
    require_ids(rows, "rows")
    for column, fits, wanted in (
        ("transcript", rows["transcript"].dtype in (pl.String, pl.Null), "strings"),
        ("weight", rows["weight"].dtype.is_numeric(), "numbers"),
    ):
        if not fits:
            raise WeakLabelError(f"{column} must be {wanted}, got {rows[column].dtype}")
    refuse_rows(rows, pl.col("transcript").is_null(), "rows", "have no transcript")
    rows = rows.with_columns(pl.col("weight").cast(pl.Float64))
    refuse_rows(rows, pl.col("weight").is_null(), "rows", "have no weight")
    # NaN is greater than 1 to Polars, and so outside.
    outside = ~pl.col("weight").is_between(0, 1)
    refuse_rows(rows, outside, "rows", "have a weight outside [0, 1]")
    return rows


def _above(rows: pl.DataFrame, threshold: float) -> pl.DataFrame:
    if not 0 <= threshold <= 1:
        raise WeakLabelError(f"the threshold must lie within [0, 1], got {threshold}")
    kept = rows.filter(pl.col("weight") >= threshold)
    if rows.height and not kept.height:
        greatest = rows.select(pl.col("weight").max()).item()
        raise WeakLabelError(f"no weight reaches {threshold}: the greatest is {greatest:.4f}")
    return kept


def _positive(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with durations Float64, rates and channels Int64, all of them greater than 0."""
    for column in _HEADER:
        if column not in rows.columns:
            continue
        kind = rows[column].dtype
        wanted = kind.is_numeric() if column == "duration" else kind.is_integer()
        if not wanted and kind != pl.Null:
            raise WeakLabelError(f"{column} must be positive numbers, got {kind}")
        rows = rows.with_columns(
            pl.col(column).cast(pl.Float64 if column == "duration" else pl.Int64)
        )
        value = pl.col(column).cast(pl.Float64)
        refuse_rows(
            rows,
            ~(value.is_finite() & (value > 0)),
            "rows",
            f"have a {column} that is not positive",
        )
    return rows
