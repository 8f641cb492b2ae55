"""Audio that a table names: paths made absolute, files found, headers read. Never samples."""

from __future__ import annotations

import os
import re
from pathlib import Path

import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.queries import refuse_rows, shown

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:// is a drive


def is_url(path: str) -> bool:
    """Whether `path` names its scheme, as s3://bucket/name does."""
    return _URL.match(path) is not None


def with_absolute_paths(
    rows: pl.DataFrame, root: str | os.PathLike[str] | None = None, *, check: bool = True
) -> pl.DataFrame:
    """The rows with `audio` absolute, so that it means the same to whoever reads it.

    Args:
        rows: with columns `query_id` and `audio`.
        root: what relative paths are relative to; the current folder if not given.
        check: whether every path must be that of a file; URLs are not looked at.

    Raises:
        WeakLabelError: rows without audio, or whose audio is no file.
    """
    kind = rows["audio"].dtype
    if kind != pl.String:
        raise WeakLabelError(f"audio must be paths or URLs, strings, got {kind}")
    refuse_rows(
        rows, pl.col("audio").is_null() | (pl.col("audio") == ""), "audio", "have none at all"
    )
    base = Path.cwd() if root is None else Path(root).absolute()
    paths = [
        path if is_url(path) else os.path.normpath(base / path) for path in rows["audio"].to_list()
    ]
    rows = rows.with_columns(pl.Series("audio", paths, dtype=pl.String))
    if check and (absent := [path for path in paths if not is_url(path) and not _is_file(path)]):
        raise WeakLabelError(
            f"{len(absent)} of {rows.height} audio paths are no files: {shown(absent)}; say what"
            " relative paths are relative to, or switch the check off"
        )
    return rows


def with_headers(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with `duration`, `sampling_rate` and `channels` as the files' headers have them.

    Args:
        rows: with columns `query_id` and `audio`, absolute paths.

    Raises:
        ImportError: soundfile is missing.
        WeakLabelError: a file that soundfile cannot read, or a URL.
    """
    try:
        import soundfile  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            'reading audio headers needs soundfile: pip install "weaklabel[audio]"'
        ) from error
    from tqdm.auto import tqdm

    durations, rates, channels = [], [], []
    unread: list[str] = []
    for path in tqdm(rows["audio"].to_list(), desc="audio headers", unit="file", disable=None):
        try:
            found = soundfile.info(path)
        except soundfile.LibsndfileError as error:
            unread.append(f"{path}: {error.error_string}")
            continue
        durations.append(found.frames / found.samplerate)
        rates.append(found.samplerate)
        channels.append(found.channels)
    if unread:
        raise WeakLabelError(
            f"{len(unread)} of {rows.height} audio files cannot be read: {shown(unread)}"
        )
    return rows.with_columns(
        pl.Series("duration", durations, dtype=pl.Float64),
        pl.Series("sampling_rate", rates, dtype=pl.Int64),
        pl.Series("channels", channels, dtype=pl.Int64),
    )


def _is_file(path: str) -> bool:
    # A NUL in a path is a ValueError of the operating system's interface, not an answer.
    return "\0" not in path and os.path.isfile(path)
