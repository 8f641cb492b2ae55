"""How long the queries are: histograms over frames, from durations and from the calls of a pool."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp2
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.geometry import Geometry

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

DAY = 24 * 3600.0
SHORT, LONG = 0.2, 120.0  # seconds: hardly a word, and hardly one input of a model
FEW = 0.1  # share of the queries, or of their time, that may lie beyond these without a warning

EXACT = 1 << 11  # frames up to which a sketch counts each length for itself
LONGEST = 1 << 22  # frames that anything longer counts as
HALF_LIFE = 100_000.0  # queries
FORGOTTEN = 2.0**-64  # a weight below which a length is left out
NOTHING = (0.0, 0)


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
    def of(cls, geometry: Geometry, chunk_length_s: float) -> Chunking:
        """Cut as the pipeline does by default: each side overlaps by a sixth, all in whole frames.

        Args:
            geometry: of the model.
            chunk_length_s: the pipeline's argument, seconds of a chunk.

        Raises:
            ValueError: chunks that hold no frame, or that overlap entirely.

        >>> Chunking.of(Geometry(), 6.0)
        Chunking(chunk=96000, left=16000, right=16000)
        """
        if not (finite(chunk_length_s) and chunk_length_s > 0):
            raise ValueError(f"chunk_length_s must be seconds above 0, not {chunk_length_s!r}")
        rate, hop = geometry.sampling_rate, geometry.hop
        chunk = round(chunk_length_s * rate / hop) * hop
        stride = round(chunk_length_s / 6 * rate / hop) * hop
        if geometry.frames(chunk) < 1 or chunk <= 2 * stride:
            raise ValueError(f"a chunk of {chunk_length_s} s is too short: make it longer")
        return cls(chunk, stride, stride)


@dataclass(frozen=True)
class Traffic:
    """A histogram of queries over frames.

    Attributes:
        frames: the lengths there are, ascending, from 1 up.
        counts: how many queries each has, above 0; or how much they weigh.

    Raises:
        ValueError: lengths or counts that are not as described.
    """

    frames: tuple[int, ...]
    counts: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", ascending(self.frames, "the lengths of traffic", 1))
        counts = numbers(self.counts, "the counts of traffic")
        if len(counts) != len(self.frames):
            raise ValueError(
                f"traffic has {len(self.frames)} lengths and {len(counts)} counts: give one each"
            )
        if not (np.isfinite(counts).all() and (counts > 0).all()):
            raise ValueError("the counts of traffic must be finite numbers above 0")
        object.__setattr__(self, "counts", tuple(counts.tolist()))

    @classmethod
    def of(cls, durations: Any, geometry: Geometry, chunking: Chunking | None = None) -> Traffic:
        """Count durations by frames.

        Args:
            durations: seconds, as any iterable, array or column of numbers; or a histogram: a
                mapping of seconds to counts; or a Traffic, taken as it is.
            geometry: the frames they are counted in.
            chunking: recordings longer than a chunk count as the chunks they are cut into.

        Raises:
            ValueError: no durations, or one that is not finite, not above 0, longer than a day, or
                shorter than one frame.

        >>> Traffic.of({1.0: 3, 2.0: 5}, Geometry())
        Traffic(frames=(49, 99), counts=(3.0, 5.0))
        """
        if isinstance(durations, Traffic):
            return durations
        seconds, counts = _histogram(durations)
        if not len(seconds):
            raise ValueError("no durations, or none that counts above 0: there is nothing to plan")
        shortest = geometry.receptive_field / geometry.sampling_rate
        outside = seconds[~((seconds >= shortest) & (seconds <= DAY))]  # NaN too
        if len(outside):
            more = f" (and {len(outside) - 1} more)" if len(outside) > 1 else ""
            raise ValueError(
                f"durations are seconds, from one frame's {shortest:g} up to a day's {DAY:,.0f}, "
                f"not {outside[0]!s}{more}: leave them out, or convert them to seconds from "
                "milliseconds, samples or minutes"
            )
        samples = np.rint(seconds * geometry.sampling_rate).astype(np.int64)
        lengths = geometry.frames(samples)
        if chunking is not None:
            step = chunking.chunk - chunking.left - chunking.right
            before = np.maximum(-((chunking.chunk - samples) // step), 0)  # chunks but the last
            chunk = geometry.frames(chunking.chunk)
            lengths = np.append(geometry.frames(samples - before * step), chunk)
            counts = np.append(counts, before @ counts)
        found = np.bincount(lengths, counts)
        frames = np.flatnonzero(found)
        return cls(tuple(frames.tolist()), tuple(found[frames].tolist()))

    @property
    def total(self) -> float:
        """How many queries there are, or how much they weigh together."""
        return sum(self.counts)

    def arrays(self) -> tuple[Ints, Floats]:
        """Lengths and counts as arrays."""
        return np.array(self.frames, dtype=np.int64), np.array(self.counts, dtype=np.float64)


class LengthSketch:
    """A histogram of queries over frames that forgets slowly, in bounded memory.

    Any thread may add to it. Lengths up to 2,048 frames (41 s of Wav2Vec2's) are counted exactly.
    Beyond, an octave has 1,024 bins and a length counts as the longest of its bin, less than a
    thousandth longer, so that a bucket planned for a bin holds every query in it. Anything beyond
    2^22 frames counts as that: there are at most 13,312 bins.

    The newest query weighs 1, and one that n others followed 2^(−n / half_life), so that the
    weights sum to about 1.44 half-lives at most: last week's traffic counts little once today's is
    as many queries.

    Args:
        geometry: the frames that samples are counted in.
        half_life: in queries, from 1 up; None to forget nothing.

    Raises:
        ValueError: a half-life below 1.

    >>> sketch = LengthSketch(Geometry())
    >>> for samples in (31_000, 31_100, 16_000):
    ...     sketch.add(samples)
    >>> sketch.traffic().frames, round(sketch.total)
    ((49, 96), 3)
    """

    def __init__(self, geometry: Geometry, *, half_life: float | None = HALF_LIFE) -> None:
        if half_life is not None and not (finite(half_life) and half_life >= 1):
            raise ValueError(
                f"half_life is a number of queries from 1 up, or None to forget nothing, "
                f"not {half_life!r}"
            )
        self.geometry = geometry
        self.half_life = half_life
        self._field, self._hop = geometry.receptive_field, geometry.hop
        self._rate = 0.0 if half_life is None else 1 / float(half_life)
        self._lock = threading.Lock()
        # By the frames of the bin: what its queries weighed when the last of them came, and when.
        self._weights: dict[int, tuple[float, int]] = {}
        self._age = 0

    def add(self, samples: int) -> None:
        """Count a query.

        Args:
            samples: of one row. Below the receptive field nothing is counted, as such a row has
                no frame and fits no bucket.
        """
        frames = (samples - self._field) // self._hop + 1
        if frames > EXACT:
            frames = _bin(frames)
        elif frames < 1:
            return
        with self._lock:
            self._age = age = self._age + 1
            weight, then = self._weights.get(frames, NOTHING)
            self._weights[frames] = weight * exp2((then - age) * self._rate) + 1.0, age

    @property
    def total(self) -> float:
        """What all queries weigh together; without a half-life, how many there are."""
        return math.fsum(self._read().values())

    def traffic(self) -> Traffic:
        """Read what was seen, to plan for: `plan_buckets(sketch.traffic(), model=...)`.

        Raises:
            ValueError: no query was seen yet.
        """
        found = sorted(self._read().items())
        if not found:
            raise ValueError("no query was seen yet: there is no traffic to plan for")
        return Traffic(tuple(f for f, _ in found), tuple(weight for _, weight in found))

    def _read(self) -> dict[int, float]:
        """Weights by length, without what is forgotten altogether."""
        with self._lock:
            weights, age = self._weights.copy(), self._age
        found = {int(f): w * exp2((then - age) * self._rate) for f, (w, then) in weights.items()}
        return {frames: weight for frames, weight in found.items() if weight >= FORGOTTEN}


def _bin(frames: int) -> int:
    """The longest length that counts as the same as this one, which is beyond `EXACT`."""
    step = 1 << (int(frames) - 1).bit_length() - EXACT.bit_length() + 1
    return min(-(-frames // step) * step, LONGEST)


def _histogram(durations: Any) -> tuple[Floats, Floats]:
    """Seconds, and how often each of them counts."""
    if not isinstance(durations, Mapping):
        seconds = numbers(durations, "durations")
        return seconds, np.ones(len(seconds))
    seconds = numbers(list(durations.keys()), "durations")
    counts = numbers(list(durations.values()), "counts")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("counts must be finite numbers from 0 up")
    return seconds[counts > 0], counts[counts > 0]


def warn_of_units(traffic: Traffic, geometry: Geometry, *, cut: bool) -> None:
    """Warn the caller's caller of durations that are hardly seconds of queries.

    Args:
        traffic: the durations.
        geometry: of its frames.
        cut: recordings are cut into chunks, and so may be of any length.
    """
    frames, counts = traffic.arrays()
    seconds = frames * geometry.hop / geometry.sampling_rate
    short = counts[seconds < SHORT].sum() / traffic.total
    if short > FEW:
        warnings.warn(
            f"{short:.0%} of the durations are below {SHORT:g} s, which hardly holds a word: if "
            "they are minutes, convert them to seconds",
            stacklevel=3,
        )
    long = seconds > LONG
    time = counts[long] @ seconds[long] / (counts @ seconds)
    if time > FEW and not cut:
        typical = float(np.median(seconds[long]))
        likely = [
            f"{unit} (of {typical / size:.2g} s rather than {typical:.0f})"
            for unit, size in (("milliseconds", 1000), ("samples", geometry.sampling_rate))
            if SHORT <= typical / size <= LONG
        ]
        warnings.warn(
            f"{counts[long].sum():,.0f} of {traffic.total:,.0f} durations are above {LONG:g} s, up "
            f"to {seconds[-1]:,.0f} s: if they are {' or '.join(likely) or 'in another unit'}, "
            "convert them to seconds; if recordings are that long, give chunk_length_s",
            stacklevel=3,
        )


def numbers(values: Any, name: str) -> Floats:
    """One row of numbers as float64, or a ValueError that names it."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise ValueError(f"{name} must be a list or an array of numbers, not {values!r:.80}")
    if not hasattr(values, "__len__"):
        values = list(values)
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuf"):
        what = f"{array.ndim} dimensions" if array.ndim != 1 else f"{array.dtype} values"
        raise ValueError(f"{name} must be one row of numbers; what was given has {what}")
    return array.astype(np.float64, copy=False)


def ascending(values: Any, name: str, least: int) -> tuple[int, ...]:
    """Whole numbers from `least` up, each above the one before, or a ValueError that names them."""
    array = np.asarray(values)
    whole_numbers = array.ndim == 1 and array.size and array.dtype.kind in "iu"
    if not whole_numbers or array[0] < least or (array[1:] <= array[:-1]).any():
        raise ValueError(
            f"{name} must be whole numbers from {least} up, at least one, in ascending order and "
            f"each once, not {values!r:.80}"
        )
    return tuple(array.tolist())


def finite(value: Any) -> bool:
    """Tell whether this is one finite number."""
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def whole(value: Any, name: str) -> int:
    """A count from 1 up, or a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 up, not {value!r}")
    return int(value)


def rows_of(sizes: Iterable[int]) -> tuple[int, ...]:
    """Batch sizes, each once, ascending, or a ValueError that says what they are."""
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Iterable):
        raise ValueError(f"batch_sizes are whole numbers from 1 up, not {sizes!r}")
    found = tuple(sorted({whole(size, "a batch size") for size in sizes}))
    if not found:
        raise ValueError("batch_sizes are empty: give (1,) for single queries")
    return found
