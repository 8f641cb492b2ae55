"""The recordings of one part as one array on the disk, which all students read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import soundfile
from tqdm.auto import tqdm

import perturb
from speechnet import files, settings
from speechnet.settings import Size


class Waves(Mapping[str, perturb.Floats]):
    """Recordings (T,) by the id of their utterance, 16 kHz float32 with full scale 1.

    Reading thousands of small FLAC files takes longer than a step of training, so they are decoded
    once; processes side by side share the pages of one file.

    Args:
        size: whose recordings.
        part: "train" or "test".

    Raises:
        FileNotFoundError: a recording is missing.
    """

    def __init__(self, size: Size, part: str) -> None:
        table = files.utterances(size, part)
        self._rows = {name: row for row, name in enumerate(table["utterance_id"])}
        path = settings.work(size) / f"waves-{part}-{files.digest(table)}.npy"
        ends = path.with_suffix(".ends.npy")
        if not path.exists():
            pieces = [recording(size, part, name, "int16") for name in tqdm(self._rows, "reading")]
            lengths = [len(piece) for piece in pieces]
            # The samples last: where they are, all is there.
            for target, array in ((ends, np.cumsum(lengths)), (path, np.concatenate(pieces))):
                with files.whole(target) as beside, beside.open("wb") as file:
                    np.save(file, array)
        self._samples = np.load(path, mmap_mode="r")
        self._ends = np.load(ends)

    def __getitem__(self, utterance_id: str) -> perturb.Floats:
        row = self._rows[utterance_id]
        start = int(self._ends[row - 1]) if row else 0
        samples = self._samples[start : int(self._ends[row])]
        return samples.astype(np.float32) / np.float32(32_768)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def samples(self, ids: list[str]) -> npt.NDArray[np.int64]:
        """Numbers of samples, (ids,)."""
        lengths = np.diff(self._ends, prepend=0)
        return np.array([lengths[self._rows[name]] for name in ids], np.int64)


def recording(size: Size, part: str, utterance_id: str, dtype: str = "float32") -> npt.NDArray:
    """An utterance's recording, (T,).

    Raises:
        FileNotFoundError: it is missing.
    """
    path = settings.audio(size, part, utterance_id)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the step simulate again.")
    return soundfile.read(path, dtype=dtype)[0]
