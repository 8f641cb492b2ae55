"""What a query costs: in a bucket of some length, and eagerly at its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.geometry import Geometry

__all__ = ["EAGER", "Cost", "CostLike"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EAGER = 5.0
"""How many times a replay's cost an eager run is taken to cost, until somebody measured it."""

LIVE = 3  # convolution outputs alive at once: the first one's, its norm's and its activation's
WORD = 4  # bytes of float32


@dataclass(frozen=True)
class Cost:
    """Curves over frames, straight between the lengths they are known at.

    Before the first length a curve is flat; beyond the last it goes on as steeply as it came,
    but never falls.
    Without arguments a replay costs its frames and an eager run `EAGER` times as much: an
    assumption, which measured milliseconds replace.

    Attributes:
        frames: the lengths, ascending.
        replay: cost of one query replayed in a bucket of each length; must not fall.
        eager: cost of one query of each length run eagerly.
        unit: what both are counted in.
        memory: bytes of the pool of one row whose longest graph has each length; or unknown.
        graph_memory: bytes that every captured graph adds to a pool.

    Raises:
        ValueError: curves that are not as described.
    """

    frames: tuple[int, ...] = (0, 1)
    replay: tuple[float, ...] = (0.0, 1.0)
    eager: tuple[float, ...] = (0.0, EAGER)
    unit: str = "frames"
    memory: tuple[float, ...] | None = None
    graph_memory: float = 0.0

    def __post_init__(self) -> None:
        frames = np.asarray(self.frames)
        if not len(frames) or frames.dtype.kind not in "iu" or frames[0] < 0:
            raise ValueError(
                f"a cost is known at whole frames from 0 up, not at {self.frames!r:.80}"
            )
        if (np.diff(frames) <= 0).any():
            raise ValueError("the frames a cost is known at ascend, each of them once")
        for name in ("replay", "eager", "memory"):
            curve = getattr(self, name)
            if curve is None and name == "memory":
                continue
            values = np.asarray(curve, dtype=np.float64)
            if values.shape != frames.shape:
                raise ValueError(f"{name} has {values.size} values for {len(frames)} lengths")
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ValueError(f"{name} holds finite numbers from 0 up")
            object.__setattr__(self, name, tuple(values.tolist()))
            falls = np.flatnonzero(np.diff(values) < 0)
            if len(falls) and name != "eager":
                i = int(falls[0])
                raise ValueError(
                    f"{name} falls from {values[i]:g} at {frames[i]} frames to {values[i + 1]:g} "
                    f"at {frames[i + 1]}: a longer bucket costs no less; Cost.measured evens out "
                    "noise"
                )
        if not (np.isfinite(self.graph_memory) and self.graph_memory >= 0):
            raise ValueError(f"graph_memory is bytes from 0 up, not {self.graph_memory!r}")
        object.__setattr__(self, "frames", tuple(frames.tolist()))  # lists and NumPy's numbers too
        object.__setattr__(self, "graph_memory", float(self.graph_memory))

    @classmethod
    def measured(
        cls,
        frames: Sequence[int],
        replay: Sequence[float],
        eager: Sequence[float],
        *,
        unit: str = "ms",
        memory: Sequence[float] | None = None,
        graph_memory: float = 0.0,
    ) -> Cost:
        """From timings: where noise makes a longer replay cheaper, neighbours are averaged.

        The nearest non-decreasing curve in least squares (pool adjacent violators; Ayer et al.,
        1955), for the replays. Memory takes its running maximum, so that it is never too low.
        """
        order = np.argsort(np.asarray(frames), kind="stable")

        def sorted_(values: Sequence[float]) -> Floats:
            array = np.asarray(values, dtype=np.float64)
            if array.shape != order.shape:
                raise ValueError(f"{array.size} values for {order.size} lengths: give one each")
            return array[order]

        kept = None if memory is None else np.maximum.accumulate(sorted_(memory)).tolist()
        return cls(
            tuple(np.asarray(frames)[order].tolist()),
            tuple(_rising(sorted_(replay)).tolist()),
            tuple(sorted_(eager).tolist()),
            unit,
            None if kept is None else tuple(kept),
            graph_memory,
        )

    @classmethod
    def of(cls, cost: CostLike, frames: Ints) -> Cost:
        """A cost given in any way.

        Args:
            cost: a Cost; nothing: frames; a mapping of frames to replay cost; or a callable from
                frames to replay cost. Eager runs of the last two are priced at `EAGER` times.
            frames: the lengths a callable is asked for.

        Raises:
            ValueError: it gives no such cost.
        """
        if cost is None:
            return cls()
        if isinstance(cost, Cost):
            return cost
        if isinstance(cost, Mapping):
            table = dict(sorted(cost.items()))
        elif callable(cost):
            table = {int(length): float(cost(int(length))) for length in frames}
        else:
            raise ValueError(
                f"cost is a Cost, a mapping or a callable of frames, not {type(cost).__name__}"
            )
        replay = tuple(float(value) for value in table.values())
        eager = tuple(EAGER * value for value in replay)
        return cls(tuple(table), replay, eager, unit="cost")

    def replayed(self, frames: Ints) -> Floats:
        """Cost of a replay in buckets of these lengths."""
        return self._at(frames, self.replay)

    def run_eagerly(self, frames: Ints) -> Floats:
        """Cost of an eager run of these lengths."""
        return self._at(frames, self.eager)

    def pool_memory(self, longest: Ints, rows: int, graphs: int) -> Floats:
        """Bytes of a pool by its longest bucket.

        Graphs of a pool share its memory, as no two of its replays overlap: the longest one's is
        counted, in the largest batch, and what each graph needs for itself.

        Args:
            longest: frames of the longest bucket.
            rows: rows of the largest batch.
            graphs: captured graphs.

        Raises:
            ValueError: this cost knows nothing of memory.
        """
        if self.memory is None:
            raise ValueError("this cost has no memory curve to hold against a memory limit")
        return rows * self._at(longest, self.memory) + graphs * self.graph_memory

    def _at(self, frames: Ints, curve: Sequence[float]) -> Floats:
        known, values = np.asarray(self.frames, dtype=np.float64), np.asarray(curve)
        at = np.interp(frames, known, values)
        if len(known) > 1:
            # Noise in the last two eager runs must not make very long ones free.
            slope = max(values[-1] - values[-2], 0.0) / (known[-1] - known[-2])
            beyond = np.asarray(frames) > known[-1]
            at = np.where(beyond, values[-1] + slope * (frames - known[-1]), at)
        return np.asarray(at, dtype=np.float64)


CostLike = Cost | Mapping[int, float] | Callable[[int], float] | None


def with_memory_estimate(cost: Cost, geometry: Geometry, model: Any = None) -> Cost:
    """The cost with the bytes its pools are taken to need until somebody measures them.

    The first convolution's output is by far the largest tensor of a forward: its channels, a value
    each first stride. It, its norm and its activation are taken to be alive at once, in float32.
    """
    channels = getattr(getattr(model, "config", model), "conv_dim", None) or (512,)
    a_frame = LIVE * WORD * int(channels[0]) * geometry.hop / geometry.strides[0]
    # Two lengths at least, so that the estimate has a slope.
    at = np.array(cost.frames if len(cost.frames) > 1 else (cost.frames[0], cost.frames[0] + 1))
    return replace(
        cost,
        frames=tuple(at.tolist()),
        replay=tuple(cost.replayed(at).tolist()),
        eager=tuple(cost.run_eagerly(at).tolist()),
        memory=tuple((a_frame * at).tolist()),
    )


def _rising(values: Floats) -> Floats:
    blocks: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, size = value, 1
        while blocks and blocks[-1][0] >= mean:
            previous, count = blocks.pop()
            mean = (previous * count + mean * size) / (count + size)
            size += count
        blocks.append((mean, size))
    return np.repeat([mean for mean, _ in blocks], [size for _, size in blocks])
