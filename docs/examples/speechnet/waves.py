"""The recordings of one part as one array on the disk, which all students read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import soundfile
from tqdm.auto import tqdm

import perturb
from speechnet import settings
from speechnet.settings import Size


class Waves:
    """Recordings by the id of their utterance, 16 kHz.

    Reading thousands of small FLAC files takes longer than a step of training, so they are decoded
    once; processes side by side share the pages of one file.

    Args:
        size: whose recordings.
        part: "train" or "test".

    Raises:
        FileNotFoundError: a recording is missing.
    """

    def __init__(self, size: Size, part: str) -> None:
        self.table = utterances(size, part)
        self.ids: list[str] = self.table["utterance_id"].to_list()
        self.digest = digest(self.table)
        path = settings.work(size) / f"waves-{part}-{self.digest}.npy"
        if not path.exists():
            _decode(size, part, self.ids, path)
        self._index = {name: row for row, name in enumerate(self.ids)}
        self._samples = np.load(path, mmap_mode="r")
        self._ends = np.load(path.with_suffix(".ends.npy"))

    def __getitem__(self, utterance_id: str) -> perturb.Floats:
        """The waveform, (T,) float32 with full scale 1."""
        row = self._index[utterance_id]
        start = int(self._ends[row - 1]) if row else 0
        samples = self._samples[start : int(self._ends[row])]
        return samples.astype(np.float32) / np.float32(32_768)

    def samples(self, ids: list[str]) -> npt.NDArray[np.int64]:
        """Numbers of samples, (ids,)."""
        lengths = np.diff(self._ends, prepend=0)
        return np.array([lengths[self._index[name]] for name in ids], np.int64)

    @property
    def seconds(self) -> float:
        """Seconds of all recordings together."""
        return float(self._ends[-1]) / settings.RATE


def utterances(size: Size, part: str) -> pl.DataFrame:
    """The utterances of one part, in order of time.

    Raises:
        FileNotFoundError: nothing was simulated yet.
    """
    path = settings.results(size) / "utterances.parquet"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the step simulate first.")
    return pl.read_parquet(path).filter(pl.col("part") == part)


def digest(frame: pl.DataFrame) -> str:
    """Twelve hexadecimal digits that change with any value of a table."""
    return hashlib.sha256(frame.write_csv().encode()).hexdigest()[:12]


def _decode(size: Size, part: str, ids: list[str], path: Path) -> None:
    pieces = []
    for name in tqdm(ids, desc=f"reading {part}"):
        file = settings.audio(size, part, name)
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: run the step simulate again.")
        pieces.append(soundfile.read(file, dtype="int16")[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([len(piece) for piece in pieces])
    # The samples last: where they are, all is there.
    for target, array in ((path.with_suffix(".ends.npy"), ends), (path, np.concatenate(pieces))):
        partial = target.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, array)
        os.replace(partial, target)
