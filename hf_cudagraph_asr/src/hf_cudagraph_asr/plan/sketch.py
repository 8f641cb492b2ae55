"""The lengths a pool has seen, in bounded memory. No torch."""

from __future__ import annotations

import json
import math
import os
import threading
from dataclasses import asdict
from math import exp2
from pathlib import Path
from typing import Any

from hf_cudagraph_asr.files import written_beside
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan.traffic import Traffic, finite

__all__ = ["EXACT", "HALF_LIFE", "LONGEST", "LengthSketch"]

EXACT = 1 << 11
"""Frames up to which each length is counted for itself: 41 s of Wav2Vec2's."""

LONGEST = 1 << 22
"""Frames that anything longer counts as: 23 hours of Wav2Vec2's."""

HALF_LIFE = 100_000.0
"""Queries after which one weighs half as much, unless told otherwise."""

KIND, FORMAT = "hf_cudagraph_asr lengths", 1

FilePath = str | os.PathLike[str]

# Weights grow instead of all others shrinking, for so many half-lives: until 2^256 of 2^1023.
_GROWTH = 256
# Queries that weigh less than this are forgotten altogether.
_FORGOTTEN = 2.0**-64


class LengthSketch:
    """A histogram of queries over frames that forgets slowly. Any thread may add.

    Lengths up to `EXACT` frames are counted exactly. Beyond, an octave has 1,024 bins and a
    length counts as the longest of its bin, less than a thousandth longer, so that a bucket
    planned for a bin holds every query in it. Anything beyond `LONGEST` counts as that: there are
    at most 13,312 bins, whatever comes.

    The newest query weighs 1, and one that n others followed 2^(−n / half_life), so that the
    weights sum to about 1.44 half-lives at most: last week's traffic counts little once today's is
    as many queries.

    Args:
        geometry: what makes frames of samples.
        half_life: in queries, from 1 up; None to forget nothing.

    Raises:
        ValueError: a half-life that is none.

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
        self.half_life = None if half_life is None else float(half_life)
        self._field, self._hop = geometry.receptive_field, geometry.hop
        self._rate = 0.0 if half_life is None else 1 / float(half_life)
        self._span = math.inf if half_life is None else _GROWTH * float(half_life)
        self._lock = threading.Lock()
        # By the frames of the bin; what the newest query added to its own is 2^(age · rate).
        self._weights: dict[int, float] = {}
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
            self._age += 1
            weights = self._weights
            weights[frames] = weights.get(frames, 0.0) + exp2(self._age * self._rate)
            if self._age >= self._span:
                self._rescale()

    def merge(self, other: LengthSketch) -> None:
        """Count what another one counted, as what it weighs there: its newest query weighs 1.

        Raises:
            ValueError: it counts frames of another geometry.
        """
        if other.geometry != self.geometry:
            raise ValueError(
                f"these lengths are in frames of {self.geometry}; the other's in frames of "
                f"{other.geometry}: only lengths of the same geometry add up"
            )
        # Read before this one is locked: two threads may merge two sketches into each other.
        found = other._read()
        with self._lock:
            newest = exp2(self._age * self._rate)
            for frames, weight in found.items():
                self._weights[frames] = self._weights.get(frames, 0.0) + weight * newest

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._weights, self._age = {}, 0

    @property
    def total(self) -> float:
        """What all queries weigh together; without a half-life, how many there are."""
        return math.fsum(self._read().values())

    def traffic(self) -> Traffic:
        """What was seen, to plan for: `plan_buckets(sketch.traffic(), model=...)`.

        Raises:
            ValueError: nothing was.
        """
        found = sorted(self._read().items())
        if not found:
            raise ValueError("no query was seen yet: there is no traffic to plan for")
        return Traffic(tuple(f for f, _ in found), tuple(weight for _, weight in found))

    def save(self, path: FilePath) -> None:
        """Write it as JSON, beside its place first and then renamed.

        Raises:
            FileNotFoundError: the folder does not exist; it is not created.
            IsADirectoryError: the path is a folder's.
        """
        found = sorted(self._read().items())
        content = {
            "kind": KIND,
            "format": FORMAT,
            "geometry": asdict(self.geometry),
            "half_life": self.half_life,
            "frames": [frames for frames, _ in found],
            "weights": [weight for _, weight in found],
        }
        with written_beside(path) as beside:
            beside.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: FilePath) -> LengthSketch:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no lengths seen; the message says why.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise ValueError(f"{path} holds no lengths: it does not say that it is {KIND!r}")
        if content.get("format") != FORMAT:
            raise ValueError(
                f"{path} is of format {content.get('format')!r}, and this version reads {FORMAT}: "
                "start without it, or read it with the version that wrote it"
            )
        try:
            return cls._of(content)
        except KeyError as error:
            raise ValueError(f"{path} is damaged: {error.args[0]!r} is missing") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def __repr__(self) -> str:
        half_life = "forgets nothing" if self._rate == 0 else f"half-life {self.half_life:,.0f}"
        return f"<LengthSketch of {self.total:,.0f} queries, {half_life}>"

    def _read(self) -> dict[int, float]:
        """What each length weighs, the newest query 1."""
        with self._lock:
            weights, newest = self._weights.copy(), exp2(self._age * self._rate)
        return {int(frames): weight / newest for frames, weight in weights.items()}

    def _rescale(self) -> None:
        """Shrink all weights to what they are beside a newest query of 1."""
        scale = exp2(-self._age * self._rate)
        shrunk = ((frames, weight * scale) for frames, weight in self._weights.items())
        self._weights = {frames: weight for frames, weight in shrunk if weight >= _FORGOTTEN}
        self._age = 0

    @classmethod
    def _of(cls, content: dict[str, Any]) -> LengthSketch:
        geometry, frames, weights = (content[name] for name in ("geometry", "frames", "weights"))
        if not isinstance(geometry, dict):
            raise ValueError(f"geometry must be an object, not {geometry!r:.60}")
        if not (isinstance(frames, list) and isinstance(weights, list)):
            raise ValueError("frames and weights must be lists")
        for values, kinds, name in ((frames, int, "frames"), (weights, (int, float), "weights")):
            if not all(isinstance(v, kinds) and not isinstance(v, bool) for v in values):
                raise ValueError(f"{name} must be numbers, not {values!r:.60}")
        sketch = cls(
            Geometry(
                tuple(geometry["kernels"]), tuple(geometry["strides"]), geometry["sampling_rate"]
            ),
            half_life=content["half_life"],
        )
        if frames or weights:
            traffic = Traffic(tuple(frames), tuple(weights))  # says what is wrong with them
            unknown = [f for f in frames if f != (f if f <= EXACT else _bin(f))]
            if unknown:
                raise ValueError(f"{unknown[0]} frames are not the length of a bin")
            sketch._weights = dict(zip(traffic.frames, traffic.counts, strict=True))
        return sketch


def _bin(frames: int) -> int:
    """The longest length that counts as the same as this one, which is beyond `EXACT`."""
    step = 1 << (int(frames) - 1).bit_length() - EXACT.bit_length() + 1
    return min(-(-frames // step) * step, LONGEST)
