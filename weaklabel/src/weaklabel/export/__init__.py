"""Weighted transcripts for trainers: Hugging Face datasets, NeMo, Lhotse, Kaldi, and plugins' own.

An export writes rows: `query_id`, `transcript`, `weight`, `audio` and the further columns that a
format wants. `join` makes them from a query log and its labels; `export` checks and writes them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from weaklabel import tables
from weaklabel.errors import WeakLabelError
from weaklabel.files import written_beside
from weaklabel.plugins import Exporter, known_name, load_registry
from weaklabel.queries import refuse_rows, require_columns, require_ids, same_ids, shown, validate
from weaklabel.schema import Column
from weaklabel.tables.files import is_url

FilePath = str | os.PathLike[str]
Unmatched = Literal["error", "drop"]

_ROWS = (
    Column("query_id", "id", "names the query; no two rows share it", required=True, key=True),
    Column("transcript", "text", "what to train on", required=True),
    Column("weight", "share", "P(the transcript is right)", required=True),
)
_HEADER = {"duration": pl.Float64, "sampling_rate": pl.Int64, "channels": pl.Int64}


@dataclass(frozen=True)
class Exported:
    """Counts of an export.

    Attributes:
        rows: how many were written.
        below_threshold: how many had less weight and were left out.
    """

    rows: int
    below_threshold: int


def join(
    queries: Any = None,
    labels: Any = None,
    transcripts: Any = None,
    *,
    unmatched: Unmatched = "error",
) -> tuple[pl.DataFrame, int]:
    """Join a query log with its labels' weights: each query once, in the log's order.

    Args:
        queries: the query log, any frame that narwhals knows. Without one, the labels are the log:
            they hold what `apply` was asked to keep, and their votes (null: a missing one).
        labels: `query_id`, `weight` and, if it is there, `label`; other columns are left. Without
            labels, the weights are those of `transcripts`.
        transcripts: `query_id`, `transcript`, `weight`, as `weaklabel combine` writes them; they
            take the place of the log's. Where there are labels as well, the labels' weight is
            `weight` and the transcripts' own is kept as `transcript_weight`.
        unmatched: what is done about a query_id that is not in every table: "error", or "drop":
            leave it out and count it.

    Returns:
        The log's columns with `transcript` replaced if others were given, `weight` and `label`; and
        how many rows, of all tables together, were left out.

    Raises:
        WeakLabelError: neither labels nor transcripts, missing columns, a query_id that is null,
            repeated or without a partner, or columns of the log in the way of the joined ones.
    """
    if labels is None and (queries is None or transcripts is None):
        raise WeakLabelError(
            "give labels, or a query log and transcripts with weights: they hold the weights"
        )
    name = "the labels" if queries is None else "the query log"
    log = tables.to_polars(labels if queries is None else queries)
    require_columns(log, ("query_id",), name)
    require_ids(log, name)
    parts: dict[str, pl.DataFrame] = {}
    if transcripts is not None:
        found = tables.to_polars(transcripts)
        wanted = ("query_id", "transcript", "weight")[: 3 if labels is None else 2]
        require_columns(found, wanted, "the transcripts")
        found = found.select(pl.col("query_id", "transcript"), pl.col(r"^weight$"))
        if labels is not None:
            found = found.rename({"weight": "transcript_weight"}, strict=False)
        parts["the transcripts"] = found
        log = log.drop("transcript", strict=False)
    if queries is not None and labels is not None:
        found = tables.to_polars(labels)
        require_columns(found, ("query_id", "weight"), "the labels")
        parts["the labels"] = found.select(pl.col("query_id", "weight"), pl.col(r"^label$"))
    dropped = 0
    for other, part in parts.items():
        require_ids(part, other)
        if taken := (set(part.columns) & set(log.columns)) - {"query_id"}:
            raise WeakLabelError(
                f"{name} and {other} both have {', '.join(sorted(taken))}: drop or rename it in"
                f" {name}"
            )
        log, part = same_ids(log, part)
        dropped += _alone(log, part, name, other, unmatched)
        dropped += _alone(part, log, other, name, unmatched)
        log = log.join(part, on="query_id", how="inner", maintain_order="left")
    return log, dropped


def export(
    rows: Any,
    folder: FilePath,
    format: str | Exporter = "huggingface",
    threshold: float | None = None,
    *,
    audio_root: FilePath | None = None,
    check_audio: bool = True,
    read_audio: bool = False,
) -> Exported:
    """Write weighted transcripts as a trainer wants them; the folder is there in whole or not.

    Args:
        rows: `query_id`, `transcript`, `weight`, `audio` and what the format wants besides; any
            frame that narwhals knows.
        folder: what to write; it does not exist yet, or is empty. The folder it lies in exists.
        format: a name among the registered ones, or an exporter.
        threshold: keep only rows of at least this weight, for trainers that ignore weights.
        audio_root: the folder that relative audio paths start from; the current one if not given.
            Absolute paths are written: trainers do not agree where relative ones start.
        check_audio: whether every audio path must be that of a file; URLs are not looked at.
        read_audio: take `duration`, `sampling_rate` and `channels` from the files' headers
            instead of the rows' columns.

    Raises:
        WeakLabelError: no such format, missing columns, values that are missing or impossible, or
            no row that reaches the threshold. Nothing is written.
        FileExistsError: the folder has something in it.
        FileNotFoundError: the folder it lies in does not exist.
        ImportError: `read_audio` without soundfile.
    """
    if isinstance(format, Exporter):
        exporter = format
    else:
        known = load_registry().exporters
        exporter = known[known_name("format", format, known)]
    checked = validate(rows, contract=_ROWS)
    if not checked.ok:
        raise WeakLabelError(f"rows to export: {checked}")
    frame = checked.accepted.collect().with_columns(pl.col("weight").cast(pl.Float64))
    least = 0.0 if threshold is None else threshold
    if not 0 <= least <= 1:
        raise WeakLabelError(f"the threshold must lie within [0, 1], got {least}")
    kept = frame.filter(pl.col("weight") >= least)
    if not kept.height:
        greatest = frame.select(pl.col("weight").max()).item()
        raise WeakLabelError(f"no weight reaches {least}: the greatest is {greatest:.4f}")
    needed = [column for column in exporter.required if not (read_audio and column in _HEADER)]
    if headers := [column for column in needed if column in _HEADER and column not in kept.columns]:
        raise WeakLabelError(
            f"{exporter.name} needs {', '.join(headers)}, which the rows lack: add them, or take"
            " them from the audio files' headers (--read-audio)"
        )
    require_columns(kept, needed, f"rows for {exporter.name}")
    if read_audio:
        require_columns(kept, ("audio",), "rows whose audio is to be read")
    if "audio" in kept.columns:
        kept = _with_absolute_paths(kept, audio_root, check_audio)
    if read_audio:
        kept = _with_headers(kept)
    for column in exporter.required:
        refuse_rows(kept, pl.col(column).is_null(), "rows", f"have no {column}")
    kept = _positive(kept)
    with written_beside(folder, folder=True) as beside:
        exporter.write(kept, beside)
    return Exported(kept.height, frame.height - kept.height)


def _alone(left: pl.DataFrame, right: pl.DataFrame, of: str, to: str, unmatched: str) -> int:
    """Count ids of the left table that are not in the right one, or refuse them."""
    alone = left.join(right, on="query_id", how="anti", maintain_order="left")["query_id"]
    if len(alone) and unmatched == "error":
        raise WeakLabelError(
            f"{len(alone)} of {left.height} query_ids of {of} are not in {to}: {shown(alone)}; add"
            ' them, or leave out what has no partner (--unmatched drop, unmatched="drop")'
        )
    return len(alone)


def _positive(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with durations Float64, rates and channels Int64, all of them greater than 0."""
    for column, wanted in _HEADER.items():
        if column not in rows.columns:
            continue
        kind = rows[column].dtype
        fits = kind.is_integer() or (kind.is_numeric() and wanted == pl.Float64) or kind == pl.Null
        if not fits:
            raise WeakLabelError(f"{column} must be positive numbers, got {kind}")
        rows = rows.with_columns(pl.col(column).cast(wanted))
        value = pl.col(column).cast(pl.Float64)
        bad = ~(value.is_finite() & (value > 0))
        refuse_rows(rows, bad, "rows", f"have a {column} that is not positive")
    return rows


def _with_absolute_paths(rows: pl.DataFrame, root: FilePath | None, check: bool) -> pl.DataFrame:
    """The rows with `audio` absolute, so that it means the same to whoever reads it."""
    if (kind := rows["audio"].dtype) != pl.String:
        raise WeakLabelError(f"audio must be paths or URLs, strings, got {kind}")
    empty = pl.col("audio").is_null() | (pl.col("audio") == "")
    refuse_rows(rows, empty, "audio", "have none at all")
    base = Path.cwd() if root is None else Path(root).absolute()
    paths = [
        path if is_url(path) else os.path.normpath(base / path) for path in rows["audio"].to_list()
    ]
    if check and (absent := [p for p in paths if not is_url(p) and not os.path.isfile(p)]):
        raise WeakLabelError(
            f"{len(absent)} of {rows.height} audio paths are no files: {shown(absent)}; give the"
            " folder that relative paths start from (--audio-root, audio_root=…), or switch the"
            " check off (--no-check-audio, check_audio=False)"
        )
    return rows.with_columns(pl.Series("audio", paths, dtype=pl.String))


def _with_headers(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with `duration`, `sampling_rate` and `channels` as the files' headers have them."""
    try:
        import soundfile  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            'reading audio headers needs soundfile: pip install "weaklabel[audio]"'
        ) from error
    from tqdm.auto import tqdm

    read: list[tuple[float, int, int]] = []
    unread: list[str] = []
    for path in tqdm(rows["audio"].to_list(), desc="audio headers", unit="file", disable=None):
        try:
            found = soundfile.info(path)
        except soundfile.LibsndfileError as error:
            unread.append(f"{path}: {error.error_string}")
            continue
        read.append((found.frames / found.samplerate, found.samplerate, found.channels))
    if unread:
        raise WeakLabelError(
            f"{len(unread)} of {rows.height} audio files cannot be read: {shown(unread)}"
        )
    return rows.with_columns(pl.DataFrame(read, _HEADER, orient="row"))
