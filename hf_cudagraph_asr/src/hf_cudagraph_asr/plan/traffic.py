"""Lengths of queries: histograms over frames, of durations and of the calls of a pool."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan.partition import Floats, Ints

DAY = 24 * 3600.0
LONGEST = 1 << 14  # frames that anything longer counts as in a sketch
HALF_LIFE = 100_000.0  # queries
FORGOTTEN = 2.0**-64  # a weight below which a length is left out


def chunks_of(geometry: Geometry, chunk_length_s: float) -> tuple[int, int]:
    """Samples of a chunk, and of the stride on each side, of long recordings in the ASR pipeline.

    By default it lets chunks of CTC models overlap by a sixth on each side, all in whole frames.

    Raises:
        ValueError: `chunk_length_s` seconds hold no frame, or overlap entirely.
    """
    if not (finite(chunk_length_s) and 0 < chunk_length_s <= DAY):
        raise ValueError(f"chunk_length_s must be seconds up to a day, not {chunk_length_s!r}")
    rate, hop = geometry.sampling_rate, geometry.hop
    chunk, stride = (round(s * rate / hop) * hop for s in (chunk_length_s, chunk_length_s / 6))
    if geometry.frames(chunk) < 1 or chunk <= 2 * stride:
        raise ValueError(f"a chunk of {chunk_length_s} s is too short: make it longer")
    return chunk, stride


@dataclass(frozen=True)
class Traffic:
    """A histogram of queries over frames.

    Attributes:
        frames: the lengths there are, ascending, from 1 up.
        counts: how many queries each has, or their weight; lengths without any are left out.

    Raises:
        ValueError: lengths or counts that are not as described.
    """

    frames: tuple[int, ...]
    counts: tuple[float, ...]

    def __post_init__(self) -> None:
        frames = ascending(self.frames, "the lengths of traffic", 1)
        counts = numbers(self.counts, "the counts of traffic", len(frames))
        if not counts.any():
            raise ValueError("no query counts above 0: there is nothing to plan for")
        object.__setattr__(self, "frames", tuple(frames[counts > 0].tolist()))
        object.__setattr__(self, "counts", tuple(counts[counts > 0].tolist()))

    @classmethod
    def of(cls, durations: Any, geometry: Geometry, chunk_length_s: float | None = None) -> Traffic:
        """Count durations by frames.

        Args:
            durations, chunk_length_s: as in `plan_buckets`.
            geometry: the frames they are counted in.

        Raises:
            ValueError: no durations, or one that is not between a frame and a day.

        >>> Traffic.of({1.0: 3, 2.0: 5}, Geometry())
        Traffic(frames=(49, 99), counts=(3.0, 5.0))
        """
        if isinstance(durations, Traffic):
            return durations
        if isinstance(durations, Mapping):
            seconds = numbers(list(durations), "durations")
            counts = numbers(list(durations.values()), "counts", len(seconds))
        else:
            seconds = numbers(durations, "durations")
            counts = np.ones(len(seconds))
        if not len(seconds):
            raise ValueError("no durations: there is nothing to plan for")
        samples = np.rint(seconds * geometry.sampling_rate)
        outside = seconds[(samples < geometry.receptive_field) | (seconds > DAY)]
        if len(outside):
            raise ValueError(
                f"durations are seconds, from one frame up to a day, and {len(outside)} are not, "
                f"such as {outside[0]!s}: leave them out, or convert them to seconds from "
                "milliseconds, samples or minutes"
            )
        samples = samples.astype(np.int64)
        lengths = geometry.frames(samples)
        if chunk_length_s is not None:
            chunk, stride = chunks_of(geometry, chunk_length_s)
            step = chunk - 2 * stride
            before = np.maximum(-((chunk - samples) // step), 0)  # chunks but the last
            lengths = geometry.frames(np.append(samples - before * step, chunk))
            counts = np.append(counts, before @ counts)
        found: Any = np.bincount(lengths, counts)
        every: Any = np.arange(len(found))
        return cls(every[1:], found[1:])

    @property
    def total(self) -> float:
        """Number of queries, or their total weight."""
        return sum(self.counts)

    def arrays(self) -> tuple[Ints, Floats]:
        """Lengths and counts as arrays."""
        return np.array(self.frames, dtype=np.int64), np.array(self.counts, dtype=np.float64)


class LengthSketch:
    """A histogram of queries over frames that forgets slowly, in bounded memory.

    Any thread may add to it. Beyond 16,384 frames (5 minutes of Wav2Vec2's) all counts as that.

    The newest query weighs 1, and one that n others followed 2^(−n / half_life), so that the
    weights sum to about 1.44 half-lives at most: last week's traffic counts little once today's is
    as many queries.

    Args:
        geometry: the frames that samples are counted in.
        half_life: in queries, from 1 up; math.inf to forget nothing.

    Raises:
        ValueError: a half-life below 1.

    >>> sketch = LengthSketch(Geometry())
    >>> for samples in (31_000, 31_100, 16_000):
    ...     sketch.add(samples)
    >>> sketch.traffic().frames, round(sketch.total)
    ((49, 96), 3)
    """

    def __init__(self, geometry: Geometry, *, half_life: float = HALF_LIFE) -> None:
        if not half_life >= 1:  # NaN too
            raise ValueError(f"half_life must be a number of queries from 1 up, not {half_life!r}")
        self.geometry = geometry
        self._field, self._hop = geometry.receptive_field, geometry.hop
        self._rate = 1 / half_life
        self._lock = threading.Lock()
        # By frames: weight of the queries at the last of them, and when it came.
        self._weights: dict[int, tuple[float, int]] = {}
        self._age = 0

    def add(self, samples: int) -> None:
        """Count a query of so many samples, unless these are too few for a frame."""
        frames = (samples - self._field) // self._hop + 1
        if frames < 1:
            return
        frames = min(frames, LONGEST)
        with self._lock:
            self._age = age = self._age + 1
            weight, then = self._weights.get(frames, (0.0, 0))
            self._weights[frames] = weight * math.exp2((then - age) * self._rate) + 1.0, age

    @property
    def total(self) -> float:
        """Total weight of the queries; with an infinite half-life, their number."""
        return math.fsum(self._read().values())

    def traffic(self) -> Traffic:
        """Read the queries seen, to plan for: `plan_buckets(sketch.traffic(), model=...)`.

        Raises:
            ValueError: no query was seen yet.
        """
        if not (found := self._read()):
            raise ValueError("no query was seen yet: there is no traffic to plan for")
        return Traffic(tuple(found), tuple(found.values()))

    def _read(self) -> dict[int, float]:
        """Weights by ascending length, without lengths that are forgotten altogether."""
        with self._lock:
            seen, age = list(self._weights.items()), self._age
        found = (
            (int(f), w * math.exp2((then - age) * self._rate)) for f, (w, then) in sorted(seen)
        )
        return {frames: weight for frames, weight in found if weight >= FORGOTTEN}


def numbers(values: Any, name: str, size: int | None = None) -> Floats:
    """One row of finite numbers from 0 up as float64, or a ValueError that names it."""
    lazy = isinstance(values, Iterable) and not hasattr(values, "__len__")
    array = np.asarray(list(values) if lazy else values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuf"):
        raise ValueError(f"{name} must be one row of numbers, not {array!r:.80}")
    if size not in (None, len(array)):
        raise ValueError(f"{name} must be {size} numbers, one for each length, not {len(array)}")
    wrong = array[~(np.isfinite(array) & (array >= 0))]
    if len(wrong):
        raise ValueError(f"{name} must be finite numbers from 0 up, not {wrong[0]!s}")
    return array.astype(np.float64, copy=False)


def ascending(values: Any, name: str, least: int) -> Ints:
    """Whole numbers from `least` up, each above the one before, or a ValueError that names them."""
    array = np.asarray(values)
    whole_numbers = array.ndim == 1 and array.size and array.dtype.kind in "iu"
    if not whole_numbers or array[0] < least or (array[1:] <= array[:-1]).any():
        raise ValueError(
            f"{name} must be whole numbers from {least} up, at least one, in ascending order and "
            f"each once, not {values!r:.80}"
        )
    return array.astype(np.int64)


def finite(value: Any) -> bool:
    """Tell whether this is one finite number."""
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def whole(value: Any, name: str) -> int:
    """A count from 1 up, or a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 up, not {value!r}")
    return int(value)


def rows_of(sizes: Any) -> tuple[int, ...]:
    """Batch sizes, each once, ascending, or a ValueError that says what they are."""
    found = {whole(size, "a batch size") for size in sizes} if isinstance(sizes, Iterable) else ()
    if not found:
        raise ValueError(f"batch_sizes must be whole numbers from 1 up, such as (1,), not {sizes}")
    return tuple(sorted(found))
