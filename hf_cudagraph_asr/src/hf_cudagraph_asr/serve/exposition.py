"""All replicas' counts as one page in Prometheus' text format. No Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from hf_cudagraph_asr.serve.counters import GatewayCounts, Histogram, RecognizerCounts

__all__ = ["CONTENT_TYPE", "page"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "hf_cudagraph_asr_"


def page(
    gateways: Sequence[GatewayCounts], recognizers: Sequence[RecognizerCounts], silent: int
) -> str:
    """The page. Each series carries the label `replica`: their sum is the application's.

    Args:
        gateways: of those that answered the scrape.
        recognizers: likewise.
        silent: replicas that are running but did not answer, whose counts are not on the page.

    Raises:
        ImportError: prometheus-client is missing.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError as error:
        raise ImportError(
            'metrics need prometheus-client: pip install "hf-cudagraph-asr[serve]"'
        ) from error

    class Collector:
        def collect(self) -> Iterator[Any]:
            yield from _scrape(gateways, recognizers, silent)
            yield from _of_gateways(gateways)
            yield from _of_recognizers(recognizers)
            yield from _of_pools(recognizers)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry).decode()


def _scrape(
    gateways: Sequence[GatewayCounts], recognizers: Sequence[RecognizerCounts], silent: int
) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    replicas = GaugeMetricFamily(
        f"{PREFIX}scraped_replicas",
        "Replicas whose counts are on this page.",
        labels=["deployment"],
    )
    replicas.add_metric(["Gateway"], len(gateways))
    replicas.add_metric(["Recognizer"], len(recognizers))
    yield replicas
    yield GaugeMetricFamily(
        f"{PREFIX}silent_replicas", "Replicas that did not answer this scrape.", value=silent
    )


def _of_gateways(gateways: Sequence[GatewayCounts]) -> Iterator[Any]:
    requests = _counter(
        "requests", "Requests by path, HTTP status and error.", ["path", "status", "error"]
    )
    audio = _counter("audio_seconds", "Seconds of audio transcribed.")
    retries = _counter("retries", "Queries sent to another Recognizer because the first died.")
    for one in gateways:
        for (path, status, error), count in sorted(one.requests.items()):
            requests.add_metric([path, str(status), error, one.replica], count)
        audio.add_metric([one.replica], one.audio_seconds)
        retries.add_metric([one.replica], one.retries)
    yield from (requests, audio, retries)
    yield _histogram(
        "request_seconds",
        "Seconds of a POST /transcribe, from its headers to its answer.",
        ((one.replica, one.seconds) for one in gateways),
    )


def _of_recognizers(recognizers: Sequence[RecognizerCounts]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    failed = _counter("failed_queries", "Queries that ended in an error of the model.")
    dropped = _counter("dropped_queries", "Queries whose client went away before their answer.")
    waiting = GaugeMetricFamily(
        f"{PREFIX}waiting_queries", "Queries that wait for the device.", labels=["replica"]
    )
    for one in recognizers:
        failed.add_metric([one.replica], one.failed)
        dropped.add_metric([one.replica], one.dropped)
        waiting.add_metric([one.replica], one.waiting)
    yield from (failed, dropped, waiting)
    yield _histogram(
        "batch_size",
        "Queries that went through the model together.",
        ((one.replica, one.batch_sizes) for one in recognizers),
    )
    yield _histogram(
        "wait_seconds",
        "Seconds of a query from its arrival at a Recognizer to the device.",
        ((one.replica, one.waited) for one in recognizers),
    )


def _of_pools(recognizers: Sequence[RecognizerCounts]) -> Iterator[Any]:
    hits = _counter("pool_hits", "Calls of the model that went as planned.")
    misses = _counter("pool_misses", "Calls of the model that did not, by reason.", ["reason"])
    program = ["frames", "rows"]
    replays = _counter("replays", "Replays, by a program's frames and rows.", program)
    filled = _counter("frames_filled", "Frames asked of a program.", program)
    padded = _counter("frames_padded", "Frames it computed in vain.", program)
    seconds = _counter("replay_seconds", "Seconds of its replays, copies included.", program)
    for one in recognizers:
        if one.pool is None:
            continue
        hits.add_metric([one.replica], one.pool.hits)
        for reason, count in one.pool.misses.items():
            misses.add_metric([reason, one.replica], count)
        for bucket in one.pool.buckets:
            labels = [str(bucket.frames), str(bucket.batch_size), one.replica]
            replays.add_metric(labels, bucket.calls)
            filled.add_metric(labels, bucket.filled)
            padded.add_metric(labels, bucket.added)
            seconds.add_metric(labels, bucket.seconds)
    yield from (hits, misses, replays, filled, padded, seconds)


def _counter(name: str, help_: str, labels: Sequence[str] = ()) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(f"{PREFIX}{name}", help_, labels=[*labels, "replica"])


def _histogram(name: str, help_: str, found: Iterable[tuple[str, Histogram]]) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"{PREFIX}{name}", help_, labels=["replica"])
    for replica, histogram in found:
        bounds = [*map(str, histogram.bounds), "+Inf"]
        family.add_metric(
            [replica],
            list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True)),
            histogram.total,
        )
    return family
