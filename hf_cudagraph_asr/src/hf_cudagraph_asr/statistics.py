"""What a pool did: counted while it serves, read as a frozen picture. No torch."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hf_cudagraph_asr.dispatch import Reason

__all__ = ["BucketStatistics", "PoolStatistics", "Tally"]


@dataclass(frozen=True)
class BucketStatistics:
    """One captured program's part.

    Attributes:
        frames: its length.
        batch_size: its rows.
        calls: how often it was replayed.
        filled: frames that were asked of it.
        added: frames it computed in vain, unused rows included.
        seconds: from copy in to copy out, by the host's clock, without waiting for the lock. On a
            device that works on its own, the time to hand it the work.
    """

    frames: int
    batch_size: int
    calls: int
    filled: int
    added: int
    seconds: float


@dataclass(frozen=True)
class PoolStatistics:
    """All calls of an enabled model since it was enabled.

    Attributes:
        calls: all of them.
        hits: those a bucket replayed; with the eager backend, those the exact forward served.
        misses: how many of the others there were of each reason.
        buckets: each captured program that was used, by length and rows.
    """

    calls: int
    hits: int
    misses: Mapping[Reason, int]
    buckets: tuple[BucketStatistics, ...]

    @property
    def padding(self) -> float:
        """Frames computed in vain over frames asked for, of all replays; 0 without any."""
        filled = sum(bucket.filled for bucket in self.buckets)
        return sum(bucket.added for bucket in self.buckets) / filled if filled else 0.0


class Tally:
    """Counts, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = 0
        self._misses: Counter[Reason] = Counter()
        self._buckets: dict[tuple[int, int], BucketStatistics] = {}

    def missed(self, reason: Reason) -> None:
        """A call that no bucket served."""
        with self._lock:
            self._misses[reason] += 1

    def hit(self) -> None:
        """A call that the exact forward served as planned."""
        with self._lock:
            self._hits += 1

    def replayed(self, frames: int, batch_size: int, filled: int, seconds: float) -> None:
        """A call that a bucket of `frames` × `batch_size` served, `filled` of them its own."""
        key = frames, batch_size
        with self._lock:
            self._hits += 1
            old = self._buckets.get(key) or BucketStatistics(frames, batch_size, 0, 0, 0, 0.0)
            self._buckets[key] = BucketStatistics(
                frames,
                batch_size,
                old.calls + 1,
                old.filled + filled,
                old.added + frames * batch_size - filled,
                old.seconds + seconds,
            )

    def read(self) -> PoolStatistics:
        """The counts now."""
        with self._lock:
            misses = dict(self._misses)
            return PoolStatistics(
                calls=self._hits + sum(misses.values()),
                hits=self._hits,
                misses=MappingProxyType(misses),
                buckets=tuple(bucket for _, bucket in sorted(self._buckets.items())),
            )
