"""How long the queries are: a histogram over frames, from durations in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.geometry import Geometry

__all__ = ["Chunking", "Traffic"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BLOCK = 1 << 18  # durations taken at a time, so that they stay in the cache
DAY = 24 * 3600


@dataclass(frozen=True)
class Chunking:
    """How `pipeline("automatic-speech-recognition")` cuts long recordings for a CTC model.

    Attributes:
        chunk: samples of a chunk.
        left: samples of its left stride.
        right: samples of its right stride.
    """

    chunk: int
    left: int
    right: int

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        chunk_length_s: float,
        stride_length_s: float | tuple[float, float] | None = None,
    ) -> Chunking:
        """From the pipeline's own arguments, rounded to frames as it rounds them.

        Args:
            geometry: of the model.
            chunk_length_s: seconds of a chunk.
            stride_length_s: seconds of the overlap on either side; by default a sixth of a chunk.

        Raises:
            ValueError: chunks that hold no frame, or that overlap entirely.
        """
        strides: Any = stride_length_s
        if strides is None:
            strides = chunk_length_s / 6 if finite(chunk_length_s) else 0.0
        pair = strides if isinstance(strides, (tuple, list)) else (strides, strides)
        given = [chunk_length_s, *pair]
        if not all(finite(s) and s >= 0 for s in given):
            raise ValueError(f"chunks and strides are seconds from 0 up, not {given}")
        if len(given) != 3:
            raise ValueError(f"stride_length_s is one number, or one for each side, not {pair}")
        hop, rate = geometry.hop, geometry.sampling_rate
        chunk, left, right = (int(round(s * rate / hop) * hop) for s in given)
        if geometry.frames(chunk) < 1:
            raise ValueError(f"a chunk of {chunk_length_s} s is too short for one frame")
        if chunk <= left + right:
            raise ValueError(
                f"chunks of {chunk_length_s} s whose strides are {given[1]} and {given[2]} s "
                "never advance: make the chunks longer or the strides shorter"
            )
        return cls(chunk, left, right)

    def split(self, samples: Ints) -> tuple[Ints, Ints]:
        """How many whole chunks precede each recording's last, and the last one's samples."""
        step = self.chunk - self.left - self.right
        whole = np.maximum(-((self.chunk - samples) // step), 0)
        return whole, samples - whole * step


@dataclass(frozen=True)
class Traffic:
    """A histogram of queries over frames.

    Attributes:
        frames: the lengths there are, ascending, from 1 up.
        counts: how many queries each has, above 0; or how much they weigh.

    Raises:
        ValueError: it is not that.
    """

    frames: tuple[int, ...]
    counts: tuple[float, ...]

    def __post_init__(self) -> None:
        frames, counts = np.asarray(self.frames), np.asarray(self.counts, dtype=np.float64)
        if not self.frames or len(self.frames) != len(self.counts):
            raise ValueError(
                "traffic needs lengths and as many counts, at least one: "
                f"got {len(self.frames)} lengths and {len(self.counts)} counts"
            )
        if not np.issubdtype(frames.dtype, np.integer) or frames[0] < 1:
            raise ValueError("the lengths of traffic are whole frames from 1 up")
        if (np.diff(frames) <= 0).any():
            raise ValueError("the lengths of traffic ascend, each of them once")
        if not (np.isfinite(counts).all() and (counts > 0).all()):
            raise ValueError("the counts of traffic are finite numbers above 0")
        object.__setattr__(self, "frames", tuple(frames.tolist()))  # lists and NumPy's numbers too
        object.__setattr__(self, "counts", tuple(counts.tolist()))

    @classmethod
    def of(cls, durations: Any, geometry: Geometry, chunking: Chunking | None = None) -> Traffic:
        """Count durations.

        Args:
            durations: seconds, as any iterable, array or column of numbers; or a histogram: a
                mapping of seconds to counts, or the pair `(seconds, counts)`; or a Traffic.
            geometry: what makes frames of them.
            chunking: recordings longer than a chunk come as chunks.

        Raises:
            ValueError: there are none, or one is not finite, not above 0, longer than a day, or
                shorter than one frame.
        """
        if isinstance(durations, Traffic):
            return durations
        seconds, counts = _histogram(durations)
        found = np.zeros(0)
        for start in range(0, len(seconds), BLOCK):
            block = slice(start, start + BLOCK)
            weights = None if counts is None else counts[block]
            part = _count(seconds[block], weights, geometry, chunking)
            if len(part) > len(found):
                part, found = found, part
            found[: len(part)] += part
        frames = np.flatnonzero(found)
        if not len(frames):
            raise ValueError("no durations, or none that counts above 0: there is nothing to plan")
        return cls(tuple(frames.tolist()), tuple(found[frames].tolist()))

    @property
    def total(self) -> float:
        """How many queries."""
        return sum(self.counts)

    def arrays(self) -> tuple[Ints, Floats]:
        """Lengths and counts as arrays."""
        return np.array(self.frames, dtype=np.int64), np.array(self.counts, dtype=np.float64)


def _count(
    seconds: Floats, counts: Floats | None, geometry: Geometry, chunking: Chunking | None
) -> Floats:
    """Queries by frames, 0 … the most."""
    shortest, longest = float(seconds.min()), float(seconds.max())  # NaN where one of them is
    if not (shortest > 0 and longest <= DAY):
        wrong = seconds[~((seconds > 0) & (seconds <= DAY))]
        raise ValueError(
            f"durations are seconds above 0 and up to a day, not {wrong[0]!s}"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
        )
    samples = np.rint(seconds * geometry.sampling_rate).astype(np.int64)
    if samples.min() < geometry.receptive_field:
        wrong = seconds[samples < geometry.receptive_field]
        raise ValueError(
            f"a duration of {wrong[0]!s} s holds fewer than the {geometry.receptive_field} samples "
            f"of one frame; there are {len(wrong)} such durations: leave them out"
        )
    if chunking is None:
        return np.bincount(geometry.frames(samples), counts).astype(np.float64)
    whole, last = chunking.split(samples)
    found = np.bincount(
        geometry.frames(last), counts, minlength=geometry.frames(chunking.chunk) + 1
    ).astype(np.float64)
    found[geometry.frames(chunking.chunk)] += float(
        whole.sum() if counts is None else whole @ counts
    )
    return found


def _histogram(durations: Any) -> tuple[Floats, Floats | None]:
    """Seconds, and how often each if that was given."""
    if isinstance(durations, Mapping):
        pair: Any = (list(durations.keys()), list(durations.values()))
    elif isinstance(durations, tuple) and len(durations) == 2 and all(map(_many, durations)):
        pair = durations
    else:
        return _numbers(durations, "durations"), None
    seconds, counts = _numbers(pair[0], "durations"), _numbers(pair[1], "counts")
    if len(seconds) != len(counts):
        raise ValueError(f"{len(seconds)} durations have {len(counts)} counts: give one each")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("counts are finite numbers from 0 up")
    return seconds[counts > 0], counts[counts > 0]


def _numbers(values: Any, name: str) -> Floats:
    if not _many(values):
        raise ValueError(f"{name} are a list or an array of numbers, not {values!r:.80}")
    if not hasattr(values, "__len__"):
        values = list(values)
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuf"):
        what = f"{array.ndim} dimensions" if array.ndim != 1 else f"{array.dtype} values"
        raise ValueError(f"{name} are one row of numbers; what was given has {what}")
    return array.astype(np.float64, copy=False)


def finite(value: Any) -> bool:
    """Whether this is one finite number."""
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def _many(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))
