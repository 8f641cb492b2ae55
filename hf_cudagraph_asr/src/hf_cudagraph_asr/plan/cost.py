"""Cost of a query, in a bucket and eagerly; memory of a pool; replicas of a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan.partition import Floats, Ints
from hf_cudagraph_asr.plan.traffic import ascending, numbers

EAGER = 5.0  # times a replay's cost that an eager run is assumed to cost until it is measured
DEVIATIONS = 1.645  # the normal quantile of 95%, one-sided


@dataclass(frozen=True)
class Cost:
    """Cost of one query by frames, replayed and run eagerly: straight between known lengths.

    Below the first length a curve is flat. Beyond the last it rises as steeply as before it, and
    never falls. Without arguments a replay costs its frames.

    Attributes:
        frames: the known lengths, ascending.
        replay: cost of a replay in a bucket of each length; must not fall.
        eager: cost of an eager run of each length; None to assume 5 times that of a replay.
        unit: of both, such as "ms".

    Raises:
        ValueError: curves that are not as described.

    >>> cost = Cost((50, 100), (2.0, 3.0), (10.0, 12.0), "ms")
    >>> cost.replayed(np.array([25, 75, 150])).tolist()
    [2.0, 2.5, 4.0]
    """

    frames: tuple[int, ...] = (0, 1)
    replay: tuple[float, ...] = (0.0, 1.0)
    eager: tuple[float, ...] | None = None
    unit: str = "frames"

    def __post_init__(self) -> None:
        frames = tuple(ascending(self.frames, "the frames of a cost", 0).tolist())
        object.__setattr__(self, "frames", frames)  # of lists and NumPy's numbers too
        for name, curve in (("replay", self.replay), ("eager", self.eager)):
            if curve is not None:
                values = numbers(curve, name, len(frames))
                object.__setattr__(self, name, tuple(values.tolist()))
        if (np.diff(self.replay) < 0).any():
            cure = "take numpy.maximum.accumulate of it"
            raise ValueError(f"replay must not fall, as {self.replay!r:.80} does: {cure}")

    def replayed(self, frames: Ints) -> Floats:
        """Cost of a replay in buckets of these lengths."""
        return self._at(frames, self.replay)

    def run_eagerly(self, frames: Ints) -> Floats:
        """Cost of an eager run of these lengths."""
        if self.eager is None:
            return EAGER * self.replayed(frames)
        return self._at(frames, self.eager)

    def _at(self, frames: Ints, curve: Sequence[float]) -> Floats:
        known, at = self.frames, np.interp(frames, self.frames, curve)
        if len(known) > 1:
            # Noise in the last two eager runs must not make very long ones free.
            slope = max(curve[-1] - curve[-2], 0.0) / (known[-1] - known[-2])
            at += slope * np.maximum(frames - known[-1], 0)
        return at


def frame_bytes(geometry: Geometry, model: Any = None) -> float:
    """Estimate the bytes that a pool needs for each frame of a row in its longest bucket.

    The first convolution's output is by far the largest tensor of a forward: its channels (by
    default 512), a value each first stride. It, its norm and its activation are taken to be alive
    at once: three tensors of 4 bytes a value.
    """
    channels = getattr(getattr(model, "config", model), "conv_dim", None) or (512,)
    return 3 * 4 * int(channels[0]) * geometry.hop / geometry.strides[0]


def replicas(busy: Sequence[float], concurrency: int) -> Floats:
    """Number of graphs each bucket needs, so that few of so many concurrent queries wait.

    A query is in a bucket with the probability of that bucket's share of the busy time, so how
    many of them are is binomial. Its mean and 1.645 deviations, rounded up, are enough at 95% of
    all moments.
    """
    share = np.clip(busy, 0.0, 1.0)
    wanted = concurrency * share + DEVIATIONS * np.sqrt(concurrency * share * (1 - share))
    return np.asarray(np.clip(np.ceil(wanted), 1, concurrency), dtype=np.float64)
