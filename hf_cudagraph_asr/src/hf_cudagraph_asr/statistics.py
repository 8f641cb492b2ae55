"""What a pool did: counted while it serves, read as a frozen picture. No torch."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.packing import Replay

__all__ = ["BucketStatistics", "PoolStatistics", "Tally"]


@dataclass(frozen=True)
class BucketStatistics:
    """One captured length's part, in batches of one size.

    Attributes:
        frames: its length.
        batch_size: its rows.
        calls: how often it was replayed.
        filled: frames that were asked of it.
        added: frames it computed in vain, unused rows included.
        seconds: from copy in to copy out, by the host's clock, without waiting for the lock; a
            split batch's time counts by frames. On a device that works on its own, the time to
            hand it the work.
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
        calls: all that were answered; one refused with an error does not count.
        hits: those that buckets replayed; with the eager backend, those the exact forward served.
        misses: how many of the others there were of each reason.
        buckets: each captured length that was used, by length and rows.
        memory: bytes held now by static inputs and captured programs; the weights are not copied.
        capture_seconds: spent on warming and capturing what is held now.
    """

    calls: int
    hits: int
    misses: Mapping[Reason, int]
    buckets: tuple[BucketStatistics, ...]
    memory: int = 0
    capture_seconds: float = 0.0

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
        # (frames, rows) → calls, frames filled, seconds
        self._buckets: dict[tuple[int, int], list[float]] = {}

    def missed(self, reason: Reason) -> None:
        """A call that no bucket served."""
        with self._lock:
            self._misses[reason] += 1

    def hit(self) -> None:
        """A call that the exact forward served as planned."""
        with self._lock:
            self._hits += 1

    def replayed(self, replays: Sequence[Replay], frames: Sequence[int], seconds: float) -> None:
        """A call that buckets served.

        Args:
            replays: the programs run.
            frames: asked for, of each row of the batch.
            seconds: of all replays.
        """
        total = 0 if len(replays) == 1 else sum(r.bucket.frames * r.batch_size for r in replays)
        with self._lock:
            self._hits += 1
            for replay in replays:
                size = replay.bucket.frames, replay.batch_size
                held = self._buckets.get(size)
                if held is None:
                    held = self._buckets[size] = [0, 0, 0.0]
                held[0] += 1
                held[1] += sum([frames[row] for row in replay.rows])
                held[2] += seconds * size[0] * size[1] / total if total else seconds

    def read(self, memory: int = 0, capture_seconds: float = 0.0) -> PoolStatistics:
        """The counts now."""
        with self._lock:
            misses = dict(self._misses)
            hits = self._hits
            buckets = sorted((size, tuple(held)) for size, held in self._buckets.items())
        return PoolStatistics(
            calls=hits + sum(misses.values()),
            hits=hits,
            misses=MappingProxyType(misses),
            buckets=tuple(
                BucketStatistics(
                    frames=frames,
                    batch_size=rows,
                    calls=int(calls),
                    filled=int(filled),
                    added=int(calls) * frames * rows - int(filled),
                    seconds=seconds,
                )
                for (frames, rows), (calls, filled, seconds) in buckets
            ),
            memory=memory,
            capture_seconds=capture_seconds,
        )
