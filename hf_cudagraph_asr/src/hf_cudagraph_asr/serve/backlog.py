"""Which of the waiting queries go through the model together. No Ray, no torch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Backlog", "length_class"]

Item = TypeVar("Item")

# Where no bucket says what is of similar length: at most a quarter of a row is padding.
STEP = 1.25


def length_class(samples: int, buckets: Sequence[int]) -> int:
    """A number for the lengths that are batched together; longer is never less.

    Args:
        samples: of a query, from 1 up.
        buckets: samples of each bucket, ascending. A query shares a class with those of its
            bucket; longer ones, and all where there are none, with those of similar length.

    >>> [length_class(n, (100, 200)) for n in (1, 100, 101, 200, 201, 250, 251)]
    [0, 0, 1, 1, 3, 3, 4]
    """
    at = bisect_left(buckets, samples)
    if at < len(buckets):
        return at
    longest = buckets[-1] if buckets else 1
    return len(buckets) + math.ceil(math.log(samples / longest, STEP))


class Backlog(Generic[Item]):
    """Queries that wait for the device, chosen the oldest first.

    A batch is the oldest query with others of its class. Rows that a captured program has anyway
    are filled with shorter queries, which fit: they cost nothing there. The oldest is always in
    the next batch, so none waits for ever, however many others of another length there are.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, deque[tuple[int, Item]]] = {}
        self._ticket = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, item: Item, kind: int) -> None:
        """Let a query wait.

        Args:
            item: the query.
            kind: its `length_class`.
        """
        self._waiting.setdefault(kind, deque()).append((self._ticket, item))
        self._ticket += 1

    def take(
        self,
        most: int,
        rows: Sequence[int] = (),
        wanted: Callable[[Item], bool] = lambda item: True,
    ) -> list[Item]:
        """The next batch, which waits no longer; empty where nothing does.

        Args:
            most: queries of it.
            rows: batch sizes that programs were captured for, ascending; empty where nothing was
                captured and a row more costs its time.
            wanted: tells a query whose client still waits; others are dropped.
        """
        self._drop(wanted)
        if not self._waiting:
            return []
        kind = min(self._waiting, key=self._oldest)
        batch = [self._pop(kind) for _ in range(min(most, len(self._waiting[kind])))]
        room = min(next((size for size in rows if size >= len(batch)), len(batch)), most)
        while len(batch) < room and (shorter := [k for k in self._waiting if k < kind]):
            batch.append(self._pop(min(shorter, key=self._oldest)))
        return batch

    def _oldest(self, kind: int) -> int:
        return self._waiting[kind][0][0]

    def _pop(self, kind: int) -> Item:
        _, item = self._waiting[kind].popleft()
        if not self._waiting[kind]:
            del self._waiting[kind]
        return item

    def _drop(self, wanted: Callable[[Item], bool]) -> None:
        kept = {
            kind: deque(entry for entry in queue if wanted(entry[1]))
            for kind, queue in self._waiting.items()
        }
        self._waiting = {kind: queue for kind, queue in kept.items() if queue}
