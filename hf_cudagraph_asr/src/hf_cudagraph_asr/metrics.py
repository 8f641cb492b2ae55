"""A pool in Prometheus: its events as they come, its statistics when they are scraped. No torch.

Names follow Prometheus' conventions: base units, `_total` for what only grows, and labels whose
values can be enumerated.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hf_cudagraph_asr.dispatch import Reason, Route
from hf_cudagraph_asr.events import Served
from hf_cudagraph_asr.statistics import BucketStatistics, PoolStatistics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

__all__ = ["MOST_BUCKETS", "SECONDS", "PrometheusObserver"]

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Bounds of the histogram of seconds, unless others are given."""

MOST_BUCKETS = 256
"""Bucket lengths that get a label of their own. Later ones, after many swaps, share "other"."""

OWN_LABELS = ("batch_size", "bucket", "kind", "le", "reason", "route")


class Pool(Protocol):
    """What has statistics: a `GraphPool`."""

    def stats(self) -> PoolStatistics:
        """What it did so far."""


class PrometheusObserver:
    """An observer that counts events for Prometheus.

    `<namespace>_calls_total{route, reason}`
        calls by where they went and why, e.g. `exact` and `long`; `none` where a bucket served it.
    `<namespace>_rows_total{route}`
        rows of those whose lengths are known.
    `<namespace>_frames_total{kind}`
        frames of buckets, `filled` or `added`: their ratio is the padding.
    `<namespace>_call_seconds{route, bucket}`
        a histogram of seconds a call; `bucket` is the frames of the longest row's, or `none`.

    After `watch(pool)` a scrape also reads `pool.stats()`, which costs calls nothing:

    `<namespace>_pool_hits_total`, `<namespace>_pool_misses_total{reason}`
        calls that were replayed, and those that were not.
    `<namespace>_pool_replays_total{bucket, batch_size}`
        replays of each program.
    `<namespace>_pool_replay_seconds_total{bucket, batch_size}`
        the time they took.
    `<namespace>_pool_frames_total{bucket, batch_size, kind}`
        their frames, as above.
    `<namespace>_pool_memory_bytes`, `<namespace>_pool_capture_seconds`
        of what is captured now.

    Several pools of a process share these names and differ by a label:

        metrics = PrometheusObserver(labels={"model": "base"})
        enable_cuda_graphs(base, plan, observers=(metrics,))
        enable_cuda_graphs(large, plan, observers=(metrics.labelled(model="large"),))

    Args:
        registry: to register in; by default prometheus_client's own.
        namespace: what all names begin with.
        labels: names and values that tell this pool from others.
        seconds: ascending bounds of the histogram.

    Raises:
        ImportError: prometheus-client is missing.
        ValueError: the registry has metrics of these names already; or labels that cannot be.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        namespace: str = "hf_cudagraph_asr",
        labels: Mapping[str, str] | None = None,
        seconds: Sequence[float] = SECONDS,
    ) -> None:
        names = tuple(labels or {})
        taken = sorted({*names} & {*OWN_LABELS})
        if taken:
            raise ValueError(f"the labels {taken} have a meaning already: give them other names")
        for name in (namespace, *names):
            # The client takes any text, which every query would then have to quote.
            if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__"):
                raise ValueError(
                    f"{name!r} is no name for Prometheus: letters, digits and _ are allowed, and "
                    "neither a digit nor __ first"
                )
        self._labels = names
        self._values = tuple(str(value) for value in (labels or {}).values())
        self._metrics = _Metrics(registry, namespace, names, seconds)
        self._series: dict[tuple[Route, Reason | None, str], _Series] = {}

    def labelled(self, **labels: str) -> PrometheusObserver:
        """An observer for another pool, in the same metrics.

        Args:
            labels: a value for each of the names this one was made with.

        Raises:
            ValueError: other names.
        """
        if not labels or {*labels} != {*self._labels}:
            raise ValueError(
                f"this observer has the labels {sorted(self._labels)}, not {sorted(labels)}: "
                "name them all when the first one is made, PrometheusObserver(labels={...})"
            )
        other = object.__new__(type(self))
        other._labels, other._metrics = self._labels, self._metrics
        other._values = tuple(str(labels[name]) for name in self._labels)
        other._series = {}
        return other

    def watch(self, pool: Pool) -> None:
        """Read the pool's statistics at every scrape, as long as somebody else holds the pool.

        Args:
            pool: one for these labels; it takes the place of the one before.
        """
        self._metrics.pools.watch(pool, self._values)

    def unregister(self) -> None:
        """Take the metrics out of the registry, those of all labels."""
        self._metrics.unregister()

    def __call__(self, event: Served, /) -> None:
        """Count an event."""
        dispatch = event.dispatch
        bucket = dispatch.bucket
        name = "none" if bucket is None else self._metrics.names.of(bucket.frames)
        key = dispatch.route, dispatch.reason, name
        # Looking labels up costs more than counting.
        series = self._series.get(key) or self._series.setdefault(key, self._series_of(*key))
        series.calls.inc()
        series.rows.inc(len(event.lengths))
        if bucket is not None:
            series.filled.inc(event.filled)
            series.added.inc(event.added)
        series.seconds.observe(event.seconds)

    def _series_of(self, route: Route, reason: Reason | None, bucket: str) -> _Series:
        metrics, values = self._metrics, self._values
        return _Series(
            calls=metrics.calls.labels(*values, route, _reason(reason)),
            rows=metrics.rows.labels(*values, route),
            filled=metrics.frames.labels(*values, "filled"),
            added=metrics.frames.labels(*values, "added"),
            seconds=metrics.seconds.labels(*values, route, bucket),
        )


class _Series(NamedTuple):
    """What one kind of event counts in."""

    calls: Counter
    rows: Counter
    filled: Counter
    added: Counter
    seconds: Histogram


class _Metrics:
    """The metrics of one namespace in one registry."""

    def __init__(
        self,
        registry: CollectorRegistry | None,
        namespace: str,
        labels: tuple[str, ...],
        bounds: Sequence[float],
    ) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Histogram
        except ImportError as error:
            raise ImportError(
                "watching with Prometheus needs prometheus-client: "
                'pip install "hf-cudagraph-asr[prometheus]"'
            ) from error

        def counter(name: str, what: str, *own: str) -> Counter:
            return Counter(f"{namespace}_{name}", what, (*labels, *own), registry=None)

        self.names = _BucketNames()
        self.calls = counter("calls", "Calls, by where they went and why.", "route", "reason")
        self.rows = counter("rows", "Rows of calls whose lengths are known.", "route")
        self.frames = counter("frames", "Frames of the buckets replayed for calls.", "kind")
        self.seconds = Histogram(
            f"{namespace}_call_seconds",
            "Seconds from a request to its output, by the host's clock.",
            (*labels, "route", "bucket"),
            registry=None,
            buckets=bounds,
        )
        self.pools = _PoolCollector(namespace, labels, self.names)
        self._registry = REGISTRY if registry is None else registry
        self._registered: list[Collector] = []
        try:
            for collector in (self.calls, self.rows, self.frames, self.seconds, self.pools):
                self._registry.register(collector)
                self._registered.append(collector)
        except ValueError as error:
            self.unregister()
            raise ValueError(
                f"the registry has metrics called {namespace}_… already: for another pool use "
                "observer.labelled(...) of the observer that made them, or give another namespace"
            ) from error

    def unregister(self) -> None:
        while self._registered:
            self._registry.unregister(self._registered.pop())


class _PoolCollector:
    """What Prometheus' client asks at each scrape."""

    def __init__(self, namespace: str, labels: tuple[str, ...], names: _BucketNames) -> None:
        self._namespace, self._labels, self._names = namespace, labels, names
        self._lock = threading.Lock()
        # Weak, so that metrics keep neither a model nor its memory alive.
        self._pools: dict[tuple[str, ...], weakref.ref[Pool]] = {}

    def watch(self, pool: Pool, values: tuple[str, ...]) -> None:
        with self._lock:
            self._pools[values] = weakref.ref(pool)

    def describe(self) -> Iterable[Metric]:
        """The metrics without samples, so that registering them twice is noticed."""
        return self._families({})

    def collect(self) -> Iterable[Metric]:
        """The metrics now."""
        with self._lock:
            pools = {values: reference() for values, reference in self._pools.items()}
        return self._families({v: pool.stats() for v, pool in pools.items() if pool is not None})

    def _families(self, found: Mapping[tuple[str, ...], PoolStatistics]) -> list[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def counter(name: str, what: str, *own: str) -> CounterMetricFamily:
            full = f"{self._namespace}_pool_{name}"
            return CounterMetricFamily(full, what, labels=(*self._labels, *own))

        def gauge(name: str, what: str) -> GaugeMetricFamily:
            full = f"{self._namespace}_pool_{name}"
            return GaugeMetricFamily(full, what, labels=self._labels)

        program = "bucket", "batch_size"
        hits = counter("hits", "Calls that buckets replayed.")
        misses = counter("misses", "Calls that were not replayed.", "reason")
        replays = counter("replays", "Replays.", *program)
        seconds = counter("replay_seconds", "Seconds of replays, by the host's clock.", *program)
        frames = counter("frames", "Frames of replays.", *program, "kind")
        memory = gauge("memory_bytes", "Bytes of static inputs and captured programs.")
        capture = gauge("capture_seconds", "Seconds that the capture took.")
        for values, statistics in found.items():
            hits.add_metric(values, statistics.hits)
            for reason, count in statistics.misses.items():
                misses.add_metric((*values, _reason(reason)), count)
            for size, part in self._parts(statistics).items():
                replays.add_metric((*values, *size), part.calls)
                seconds.add_metric((*values, *size), part.seconds)
                frames.add_metric((*values, *size, "filled"), part.filled)
                frames.add_metric((*values, *size, "added"), part.added)
            memory.add_metric(values, statistics.memory)
            capture.add_metric(values, statistics.capture_seconds)
        return [hits, misses, replays, seconds, frames, memory, capture]

    def _parts(self, statistics: PoolStatistics) -> dict[tuple[str, str], BucketStatistics]:
        """By labels: the buckets that share a name are one."""
        found: dict[tuple[str, str], BucketStatistics] = {}
        for part in statistics.buckets:
            size = self._names.of(part.frames), str(part.batch_size)
            known = found.get(size)
            found[size] = (
                part
                if known is None
                else replace(
                    known,
                    calls=known.calls + part.calls,
                    filled=known.filled + part.filled,
                    added=known.added + part.added,
                    seconds=known.seconds + part.seconds,
                )
            )
        return found


class _BucketNames:
    """Labels of buckets, no more than `MOST_BUCKETS` however often plans are swapped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[int, str] = {}

    def of(self, frames: int) -> str:
        name = self._known.get(frames)
        if name is not None:
            return name
        with self._lock:
            if len(self._known) >= MOST_BUCKETS:
                return self._known.get(frames, "other")
            return self._known.setdefault(frames, str(frames))


def _reason(reason: Reason | None) -> str:
    return "none" if reason is None else reason.name.lower()
