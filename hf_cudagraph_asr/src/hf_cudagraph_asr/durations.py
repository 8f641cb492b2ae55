"""How long the queries of a log are: from a table's column, a manifest, or a folder of audio."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.audio import AudioError, duration
from hf_cudagraph_asr.manifest import LINES, audio_in, json_lines

__all__ = ["Durations", "read_durations"]

TABLES = (".parquet", ".csv", ".tsv")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Durations:
    """Seconds, and what has none.

    Attributes:
        seconds: (N,) float64, finite.
        missing: rows of a table or manifest without a number.
        unread: one message for each file of audio that cannot be read.
    """

    seconds: Floats
    missing: int = 0
    unread: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.seconds)

    def at_least(self, seconds: float) -> Durations:
        """Those from so many seconds up."""
        return Durations(self.seconds[self.seconds >= seconds], self.missing, self.unread)


def read_durations(
    source: str | os.PathLike[str], *, column: str = "duration", progress: bool = False
) -> Durations:
    """The durations of a log.

    Args:
        source: a table (.parquet, .csv or .tsv), a manifest or other JSON lines (.json, .jsonl or
            .ndjson), or a folder with audio, of which only the headers are read.
        column: the table's column, or the lines' key; seconds, or a table's own durations.
        progress: show a progress bar while headers are read.

    Raises:
        OSError: there is no such file or folder.
        ValueError: there is no such column, or it holds no numbers; or no file can be read.
        ImportError: polars is missing for a table, or soundfile for audio.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}: correct the path")
    if path.is_dir():
        found = _of_headers(audio_in(path), progress)
        what = f"no file of audio in {path} can be read: {' '.join(found.unread[:1])}"
    elif path.suffix.lower() in LINES:
        found, what = _of_lines(path, column), f"the key {column!r} of {path} is nowhere a number"
    elif path.suffix.lower() in TABLES:
        found, what = _of_table(path, column), f"the column {column!r} of {path} holds no number"
    else:
        raise ValueError(
            f"{path} is no log of durations: give a folder of audio, a manifest "
            f"({', '.join(LINES)}) or a table ({', '.join(TABLES)})"
        )
    if not len(found):
        raise ValueError(what)
    return found


def _of_headers(files: list[Path], progress: bool) -> Durations:
    from tqdm.auto import tqdm

    seconds, unread = [], []
    for file in tqdm(files, desc="headers", unit="file", disable=None if progress else True):
        try:
            seconds.append(duration(file))
        except AudioError as error:
            unread.append(str(error))
        except OSError as error:
            unread.append(f"{file} cannot be opened: {error.strerror}")
    return Durations(np.array(seconds, dtype=np.float64), 0, tuple(unread))


def _of_lines(path: Path, column: str) -> Durations:
    seconds, missing = [], 0
    keys: dict[str, None] = {}
    for number, line in json_lines(path):
        keys.update(dict.fromkeys(line) if len(keys) < 50 else {})
        value = line.get(column)
        if value is None:
            missing += 1
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds.append(value)
        else:
            raise ValueError(f"{path}, line {number} has the {column} {value!r:.60}: no number")
    if column not in keys:
        raise ValueError(_no_column(path, column, list(keys)))
    return _finite(np.array(seconds, dtype=np.float64), missing)


def _of_table(path: Path, column: str) -> Durations:
    try:
        import polars as pl
    except ImportError as error:
        raise ImportError(
            f'reading {path.suffix} needs polars: pip install "hf-cudagraph-asr[tables]"'
        ) from error
    try:
        table: Any = (
            pl.scan_parquet(path)
            if path.suffix.lower() == ".parquet"
            else pl.scan_csv(path, separator="\t" if path.suffix.lower() == ".tsv" else ",")
        )
        names = table.collect_schema().names()
        if column not in names:
            raise ValueError(_no_column(path, column, names))
        values = table.select(column).collect()[column]
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if values.null_count() == len(values):
        return Durations(np.zeros(0), len(values))  # of whatever type
    if values.dtype == pl.Duration:
        values = values.dt.total_microseconds() / 1e6
    if not values.dtype.is_numeric():
        raise ValueError(
            f"the column {column!r} of {path} holds {values.dtype}: expected seconds as numbers"
        )
    present = values.drop_nulls().cast(pl.Float64)
    return _finite(present.to_numpy(), values.null_count())


def _finite(seconds: Floats, missing: int) -> Durations:
    finite = np.isfinite(seconds)
    return Durations(seconds[finite], missing + int((~finite).sum()))


def _no_column(path: Path, column: str, names: list[str]) -> str:
    return f"{path} has no {column!r}, but {', '.join(names) or 'nothing'}: choose with --column"
