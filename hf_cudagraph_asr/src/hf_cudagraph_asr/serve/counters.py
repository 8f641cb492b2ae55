"""What a replica counts, and the picture of it that a scrape collects. No Ray, no torch.

A replica counts on its event loop alone, so that nothing here locks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from hf_cudagraph_asr.statistics import BucketStatistics, PoolStatistics

__all__ = ["GatewayCounts", "Histogram", "PoolCounts", "RecognizerCounts"]

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass
class Histogram:
    """Observations by size.

    Attributes:
        bounds: upper bounds, ascending; a last one, infinite, is not written.
        counts: observations up to each bound and above the one before; one more for the rest.
        total: their sum.
    """

    bounds: Sequence[float] = SECONDS
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one.

        Args:
            value: in the unit of the bounds. One equal to a bound is counted with it.
        """
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class GatewayCounts:
    """One Gateway's part.

    Attributes:
        replica: its id.
        requests: answered, by path, status and the error's word, which is empty without one.
            499: the client went away.
        seconds: of each POST /transcribe, from its headers to its answer.
        audio_seconds: transcribed.
        retries: queries sent to another Recognizer because the first died.
    """

    replica: str
    requests: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    seconds: Histogram = field(default_factory=Histogram)
    audio_seconds: float = 0.0
    retries: int = 0


@dataclass(frozen=True)
class PoolCounts:
    """A pool's statistics as they travel between processes.

    Attributes:
        hits: calls of the model that went as planned.
        misses: the others by reason.
        buckets: each program that was replayed.
    """

    hits: int
    misses: dict[str, int]
    buckets: tuple[BucketStatistics, ...]

    @classmethod
    def of(cls, statistics: PoolStatistics) -> Self:
        """Those of a pool."""
        misses = {reason.name.lower(): count for reason, count in statistics.misses.items()}
        return cls(statistics.hits, misses, tuple(statistics.buckets))


@dataclass
class RecognizerCounts:
    """One Recognizer's part.

    Attributes:
        replica: its id.
        batch_sizes: queries of each batch.
        waited: seconds of each query from its arrival to the device.
        failed: queries that ended in an error of the model.
        dropped: queries whose client went away before their answer.
        waiting: queries that wait now.
        pool: what its pool did.
    """

    replica: str
    batch_sizes: Histogram = field(default_factory=lambda: Histogram(ROWS))
    waited: Histogram = field(default_factory=Histogram)
    failed: int = 0
    dropped: int = 0
    waiting: int = 0
    pool: PoolCounts | None = None
