"""What a pool did: an event for each call, counts of all, and both in Prometheus. No torch."""

from __future__ import annotations

import copy
import functools
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hf_cudagraph_asr.dispatch import Dispatch, Reason
from hf_cudagraph_asr.extras import imported

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A call that was answered, in numbers: no tensor and no model is kept alive by it.

    Attributes:
        dispatch: the route it took, and why.
        lengths: samples of each row, in order; empty where the model's own forward answered a
            call whose lengths are not known.
        seconds: from the call as read to its output, by the host's clock. On a device that works
            on its own, the time to hand it the work.
    """

    dispatch: Dispatch
    lengths: tuple[int, ...]
    seconds: float


Observer = Callable[[Served], object]
"""Called in the thread of the query, after the answer is there and before that thread gets it, so
its time is time of the query; several threads may call it at the same time."""


class Observers:
    """Observers, none of which can fail a query or keep events from the others.

    An exception of an observer is logged with its traceback, the first time for each observer and
    type of exception: a fault that every query repeats would otherwise fill the log.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        if callable(observers):
            raise TypeError("observers are a sequence of them: give [observer]")
        self._observers = tuple(observers)
        for observer in self._observers:
            if not callable(observer):
                raise TypeError(f"observers are called, and {observer!r:.80} cannot be called")
        # Adding to a set is atomic; at worst two threads log the same fault.
        self._logged: set[tuple[int, type[Exception]]] = set()

    def __bool__(self) -> bool:
        return bool(self._observers)

    def notify(self, event: Served) -> None:
        """Call them all."""
        for at, observer in enumerate(self._observers):
            try:
                observer(event)
            except Exception as error:
                fault = at, type(error)
                if fault not in self._logged:
                    self._logged.add(fault)
                    text = "the observer %r failed; its next %s are not logged"
                    logger.exception(text, observer, type(error).__name__)


@dataclass(frozen=True)
class BucketStatistics:
    """One captured length's part, in batches of one size.

    Attributes:
        frames: its length.
        batch_size: its rows.
        calls: how often it was replayed.
        filled: frames that were asked of it.
        added: frames it computed in vain, unused rows included.
        seconds: from copy in to copy out, by the same clock as `Served.seconds`, without waiting
            for the lock; a split batch's time counts by frames.
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
        self._calls: Counter[Reason | None] = Counter()  # None: hits
        # (frames, rows) → calls, frames filled, seconds
        self._buckets: dict[tuple[int, int], tuple[int, int, float]] = {}

    def count(self, dispatch: Dispatch, seconds: float = 0.0) -> None:
        """Count what became of a call, and the seconds of its replays."""
        replays = dispatch.replays
        total = dispatch.computed if len(replays) > 1 else 0
        with self._lock:
            self._calls[dispatch.reason] += 1
            for replay in replays:
                size = replay.bucket.frames, replay.batch_size
                calls, filled, taken = self._buckets.get(size, (0, 0, 0.0))
                taken += seconds * replay.computed / total if total else seconds
                self._buckets[size] = calls + 1, filled + replay.filled, taken

    def read(self, memory: int = 0, capture_seconds: float = 0.0) -> PoolStatistics:
        """Take the counts as they are now."""
        with self._lock:
            counts, used = self._calls.copy(), sorted(self._buckets.items())
        buckets = tuple(
            BucketStatistics(*size, calls, filled, calls * math.prod(size) - filled, seconds)
            for size, (calls, filled, seconds) in used
        )
        misses = MappingProxyType({why: count for why, count in counts.items() if why})
        return PoolStatistics(
            counts.total(), counts[None], misses, buckets, memory, capture_seconds
        )


SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

# Labels: `reason` is "none" where a bucket, or the exact forward as planned, served the call;
# `bucket` is the frames of the longest row's, or "none".
METRICS = {
    "calls": ("Calls, by the route they took and why.", ("route", "reason")),
    "rows": ("Rows of calls whose lengths are known.", ("route",)),
    "frames": ("Frames of the buckets replayed: filled, or added in vain.", ("kind",)),
    "call_seconds": ("Seconds from a call to its output, on the host.", ("route", "bucket")),
}
"""Metrics by name, with their help and labels: counters, but `call_seconds`, a histogram."""


def measurements(event: Served) -> Iterable[tuple[str, tuple[str, ...], float]]:
    """What an event adds to the metrics: name, values of its labels, amount."""
    dispatch = event.dispatch
    reason = "none" if dispatch.reason is None else dispatch.reason.name.lower()
    bucket = "none" if dispatch.bucket is None else str(dispatch.bucket.frames)
    yield "calls", (dispatch.route, reason), 1
    yield "rows", (dispatch.route,), len(event.lengths)
    if dispatch.replays:
        yield "frames", ("filled",), dispatch.filled
        yield "frames", ("added",), dispatch.computed - dispatch.filled
    yield "call_seconds", (dispatch.route, bucket), event.seconds


class PrometheusObserver:
    """An observer that counts events for Prometheus: `METRICS`, with the prefix hf_cudagraph_asr_.

    Args:
        registry: to register in; by default prometheus_client's own.
        labels: names and values that tell this pool from others of the process, such as
            {"model": "base"}; `labelled` makes the observers of those.

    Raises:
        ImportError: prometheus-client is missing.
        ValueError: the registry has these metrics already; or labels that cannot be.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, *, labels: Mapping[str, str] | None = None
    ) -> None:
        prometheus = imported("prometheus_client", "prometheus", "Prometheus")
        self._labels = {name: str(value) for name, value in (labels or {}).items()}
        taken = {"le", *(label for _, own in METRICS.values() for label in own)}
        if reserved := {*self._labels} & taken:
            raise ValueError(f"labels {sorted(reserved)} have a meaning already: rename them")
        self._metrics: dict[str, Any] = {}
        for name, (about, own) in METRICS.items():
            make: Any = prometheus.Counter
            if name == "call_seconds":
                make = functools.partial(prometheus.Histogram, buckets=SECONDS)
            names, where = (*self._labels, *own), registry or prometheus.REGISTRY
            self._metrics[name] = make(f"hf_cudagraph_asr_{name}", about, names, registry=where)

    def labelled(self, **labels: str) -> PrometheusObserver:
        """Make an observer for another pool, in the same metrics, with values of its own.

        Raises:
            ValueError: other labels than this one was made with, or none.
        """
        if not labels or {*labels} != {*self._labels}:
            given = f"this observer has the labels {sorted(self._labels)}, not {sorted(labels)}"
            raise ValueError(f"{given}: name them all where the first one is made, in labels={{}}")
        other = copy.copy(self)
        other._labels = {name: str(labels[name]) for name in self._labels}
        return other

    def __call__(self, event: Served, /) -> None:
        """Count an event."""
        for name, values, amount in measurements(event):
            metric = self._metrics[name].labels(*self._labels.values(), *values)
            (metric.observe if name == "call_seconds" else metric.inc)(amount)
