"""Two calls timed against each other in one run, so that what else the machine does hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seconds:
    """What one call took.

    Attributes:
        wall: by the clock; on a GPU from the first kernel's start to the last one's end.
        cpu: processor time of this process, all threads together.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Ratio:
    """Median and extremes of the pairs' ratios."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Comparison:
    """Pairs of timings, in the order they were taken."""

    plain: tuple[Seconds, ...]
    traced: tuple[Seconds, ...]

    def ratios(self, clock: str) -> list[float]:
        """Traced over plain, pair by pair; `clock` is `"wall"` or `"cpu"`."""
        pairs = zip(self.plain, self.traced, strict=True)
        return [getattr(b, clock) / getattr(a, clock) for a, b in pairs]

    def ratio(self, clock: str) -> Ratio:
        """The median and the extremes of the pairs' ratios."""
        return Ratio.of(self.ratios(clock))

    def median(self, clock: str) -> tuple[float, float]:
        """Median seconds, plain and traced."""
        plain = statistics.median(getattr(s, clock) for s in self.plain)
        return plain, statistics.median(getattr(s, clock) for s in self.traced)


def measure(call: Callable[[], object], device: str) -> Seconds:
    """Time one call."""
    if device == "cpu":
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return Seconds(time.perf_counter() - wall, time.process_time() - cpu)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu = time.process_time()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return Seconds(start.elapsed_time(end) / 1000, time.process_time() - cpu)


def compare(
    plain: Callable[[], object], traced: Callable[[], object], *, pairs: int, device: str
) -> Comparison:
    """Time both calls `pairs` times; the caller has warmed both up."""
    taken: tuple[list[Seconds], list[Seconds]] = ([], [])
    for which in _order(pairs):
        taken[which].append(measure((plain, traced)[which], device))
    return Comparison(tuple(taken[0]), tuple(taken[1]))


def _order(pairs: int) -> Iterator[int]:
    # ABBA: a machine that slows down steadily favors neither side.
    for pair in range(pairs):
        yield from ((0, 1), (1, 0))[pair % 2]
