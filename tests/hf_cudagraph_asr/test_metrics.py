"""What Prometheus reads, in its own text formats, against plain counting."""

import gc
import sys
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from hf_cudagraph_asr import metrics
from hf_cudagraph_asr.dispatch import Dispatch, Reason
from hf_cudagraph_asr.events import Observers, Served
from hf_cudagraph_asr.metrics import PrometheusObserver
from hf_cudagraph_asr.packing import Replay
from hf_cudagraph_asr.plan import Bucket
from hf_cudagraph_asr.statistics import PoolStatistics, Tally

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(registry: CollectorRegistry) -> Samples:
    """All samples, by name and labels, none of them twice."""
    text = generate_latest(registry).decode()
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                key = sample.name, frozenset(sample.labels.items())
                assert key not in samples
                samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"hf_cudagraph_asr_{name}", frozenset(labels.items())]


def replay(frames: int, rows: int = 1) -> Replay:
    bucket = Bucket(frames, frames * 320 + 399, share=1.0, padding=0.0, cost=float(frames))
    return Replay(bucket, rows, tuple(range(rows)))


def replayed(*replays: Replay, filled: int, seconds: float = 0.004) -> Served:
    computed = sum(part.bucket.frames * part.batch_size for part in replays)
    rows = sum(len(part.rows) for part in replays)
    return Served(
        Dispatch("bucket", replays=replays, padding=(computed - filled) / filled),
        (16_000,) * rows,
        seconds,
    )


REPLAYED = replayed(replay(99), filled=90)
LONG = Served(Dispatch("exact", Reason.LONG, "99 samples"), (99_000, 98_000), 0.3)
HOST = Served(Dispatch("host", Reason.LABELS), (), 0.25)


class Pool:
    """Statistics as a pool keeps them, without a model."""

    def __init__(self) -> None:
        self.tally = Tally()

    def stats(self) -> PoolStatistics:
        return self.tally.read(memory=2**20, capture_seconds=1.5)


# Events


@st.composite
def events(draw: st.DrawFn) -> Served:
    seconds = draw(st.floats(1e-5, 20))
    if draw(st.booleans()):
        part = replay(draw(st.sampled_from([49, 99, 199])), draw(st.integers(1, 4)))
        filled = draw(st.integers(1, part.bucket.frames * part.batch_size))
        return replayed(part, filled=filled, seconds=seconds)
    route: Any = draw(st.sampled_from(["exact", "host"]))
    reason = draw(st.none() | st.sampled_from(Reason))
    rows = draw(st.integers(0, 5))
    return Served(Dispatch(route, reason), (16_000,) * rows, seconds)


@given(st.lists(events(), max_size=30))
@settings(deadline=None, max_examples=40)
def test_events_are_counted_as_one_would_count_them(heard: list[Served]) -> None:
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry)
    calls: Counter[tuple[str, str]] = Counter()
    rows: Counter[str] = Counter()
    seconds: dict[tuple[str, str], list[float]] = {}
    for event in heard:
        observer(event)
        route, reason = event.dispatch.route, event.dispatch.reason
        calls[route, "none" if reason is None else reason.name.lower()] += 1
        rows[route] += len(event.lengths)
        bucket = "none" if event.dispatch.bucket is None else str(event.dispatch.bucket.frames)
        seconds.setdefault((route, bucket), []).append(event.seconds)
    samples = scraped(registry)
    for (route, why), count in calls.items():
        assert value(samples, "calls_total", route=route, reason=why) == count
    for route, count in rows.items():
        assert value(samples, "rows_total", route=route) == count
    for (route, bucket), times in seconds.items():
        of_it = {"route": route, "bucket": bucket}
        assert value(samples, "call_seconds_count", **of_it) == len(times)
        assert value(samples, "call_seconds_sum", **of_it) == pytest.approx(sum(times))
        for bound in metrics.SECONDS:
            below = sum(time <= bound for time in times)
            assert value(samples, "call_seconds_bucket", **of_it, le=str(bound)) == below
    if heard:
        filled, added = sum(e.filled for e in heard), sum(e.added for e in heard)
        assert value(samples, "frames_total", kind="filled") == filled
        assert value(samples, "frames_total", kind="added") == added
    assert sum(name.endswith("_calls_total") for name, _ in samples) == len(calls)


def test_a_split_batch_counts_once_with_all_its_frames() -> None:
    registry = CollectorRegistry()
    PrometheusObserver(registry)(replayed(replay(199, 1), replay(49, 4), filled=350))
    samples = scraped(registry)
    assert value(samples, "calls_total", route="bucket", reason="none") == 1
    assert value(samples, "rows_total", route="bucket") == 5
    assert value(samples, "frames_total", kind="filled") == 350
    assert value(samples, "frames_total", kind="added") == 199 + 4 * 49 - 350
    assert value(samples, "call_seconds_count", route="bucket", bucket="199") == 1


def test_no_event_of_any_thread_is_lost() -> None:
    registry = CollectorRegistry()
    observers = Observers([PrometheusObserver(registry)])
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(300):
            for event in (REPLAYED, LONG, HOST):
                observers.notify(event)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    samples = scraped(registry)
    for route, reason in (("bucket", "none"), ("exact", "long"), ("host", "labels")):
        assert value(samples, "calls_total", route=route, reason=reason) == 2_400
    assert value(samples, "rows_total", route="exact") == 4_800
    assert value(samples, "frames_total", kind="filled") == 2_400 * 90
    assert value(samples, "frames_total", kind="added") == 2_400 * 9
    assert value(samples, "call_seconds_count", route="bucket", bucket="99") == 2_400


def test_buckets_of_many_plans_do_not_make_labels_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "MOST_BUCKETS", 3)
    registry, pool = CollectorRegistry(), Pool()
    observer = PrometheusObserver(registry)
    observer.watch(pool)
    for frames in (10, 20, 30, 40, 50, 20):
        observer(replayed(replay(frames), filled=9))
        pool.tally.replayed([replay(frames)], [9], 0.5)
    samples = scraped(registry)
    counts = {
        dict(labels)["bucket"]: count
        for (name, labels), count in samples.items()
        if name.endswith("_call_seconds_count")
    }
    assert counts == {"10": 1, "20": 2, "30": 1, "other": 2}
    other = {"bucket": "other", "batch_size": "1"}
    assert value(samples, "pool_replays_total", **other) == 2
    assert value(samples, "pool_replay_seconds_total", **other) == 1.0
    assert value(samples, "pool_frames_total", **other, kind="filled") == 18
    assert value(samples, "pool_frames_total", **other, kind="added") == 40 + 50 - 18


# A pool's statistics


def test_a_scrape_reads_what_the_pool_has_done_by_then() -> None:
    registry, pool = CollectorRegistry(), Pool()
    PrometheusObserver(registry).watch(pool)
    samples = scraped(registry)
    assert value(samples, "pool_hits_total") == 0
    assert value(samples, "pool_memory_bytes") == 2**20
    assert value(samples, "pool_capture_seconds") == 1.5

    pool.tally.replayed([replay(99, 2)], [40, 50], 0.25)
    pool.tally.replayed([replay(99, 2)], [99, 99], 0.5)
    pool.tally.replayed([replay(199)], [150], 0.125)
    pool.tally.missed(Reason.LONG)
    pool.tally.missed(Reason.LONG)
    pool.tally.missed(Reason.TRAINING)
    samples = scraped(registry)
    assert value(samples, "pool_hits_total") == 3
    assert value(samples, "pool_misses_total", reason="long") == 2
    assert value(samples, "pool_misses_total", reason="training") == 1
    for bucket, rows, calls, filled, added, seconds in (
        ("99", "2", 2, 288, 108, 0.75),
        ("199", "1", 1, 150, 49, 0.125),
    ):
        program = {"bucket": bucket, "batch_size": rows}
        assert value(samples, "pool_replays_total", **program) == calls
        assert value(samples, "pool_replay_seconds_total", **program) == seconds
        assert value(samples, "pool_frames_total", **program, kind="filled") == filled
        assert value(samples, "pool_frames_total", **program, kind="added") == added


def test_metrics_keep_no_pool_alive() -> None:
    registry, pool = CollectorRegistry(), Pool()
    PrometheusObserver(registry).watch(pool)
    assert any("_pool_" in name for name, _ in scraped(registry))
    del pool
    gc.collect()
    assert not any("_pool_" in name for name, _ in scraped(registry))


def test_a_pool_takes_the_place_of_the_one_before() -> None:
    registry, first, second = CollectorRegistry(), Pool(), Pool()
    observer = PrometheusObserver(registry)
    first.tally.hit()
    observer.watch(first)
    observer.watch(second)
    assert value(scraped(registry), "pool_hits_total") == 0


# Several pools, several registrations


def test_pools_of_one_process_differ_by_a_label() -> None:
    registry, pools = CollectorRegistry(), (Pool(), Pool())
    base = PrometheusObserver(registry, labels={"model": "base", "site": "west"})
    large = base.labelled(site="west", model="large")
    for observer, pool in zip((base, large), pools, strict=True):
        observer.watch(pool)
    for observer in (base, large, large):
        observer(REPLAYED)
    pools[1].tally.missed(Reason.LONG)
    samples = scraped(registry)
    for model, calls, misses in (("base", 1, None), ("large", 2, 1)):
        own = {"model": model, "site": "west"}
        assert value(samples, "calls_total", **own, route="bucket", reason="none") == calls
        assert value(samples, "pool_hits_total", **own) == 0
        key = "hf_cudagraph_asr_pool_misses_total", frozenset({**own, "reason": "long"}.items())
        assert samples.get(key) == misses


@pytest.mark.parametrize("labels", [{}, {"site": "west"}, {"model": "base", "site": "west"}])
def test_labels_are_named_when_the_first_observer_is_made(labels: dict[str, str]) -> None:
    observer = PrometheusObserver(CollectorRegistry(), labels={"model": "base"})
    with pytest.raises(ValueError, match=r"has the labels \['model'\], not .*: name them all"):
        observer.labelled(**labels)
    with pytest.raises(ValueError, match=r"has the labels \[\]"):
        PrometheusObserver(CollectorRegistry()).labelled(**labels)


def test_registering_twice_says_what_to_do() -> None:
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry)
    observer(REPLAYED)
    with pytest.raises(ValueError, match=r"hf_cudagraph_asr_… already: .*observer\.labelled\("):
        PrometheusObserver(registry, labels={"model": "large"})
    # The first one goes on.
    observer(REPLAYED)
    assert value(scraped(registry), "calls_total", route="bucket", reason="none") == 2
    PrometheusObserver(registry, namespace="another")(REPLAYED)
    assert ("another_frames_total", frozenset({("kind", "filled")})) in scraped(registry)


@pytest.mark.parametrize("taken", ["calls_total", "call_seconds", "pool_memory_bytes"])
def test_a_registration_that_fails_leaves_nothing_behind(taken: str) -> None:
    registry = CollectorRegistry()
    gauge = Gauge(f"hf_cudagraph_asr_{taken}", "Of somebody else.", registry=registry)
    with pytest.raises(ValueError, match="the registry has metrics called hf_cudagraph_asr_…"):
        PrometheusObserver(registry)
    assert [metric.name for metric in registry.collect()] == [f"hf_cudagraph_asr_{taken}"]
    registry.unregister(gauge)
    PrometheusObserver(registry)


def test_metrics_can_be_taken_back() -> None:
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry)
    observer(REPLAYED)
    observer.unregister()
    assert scraped(registry) == {}
    observer.unregister()
    PrometheusObserver(registry)
    assert not any(name.endswith("_calls_total") for name, _ in scraped(registry))


def test_the_clients_own_registry_is_the_default() -> None:
    observer = PrometheusObserver(namespace="test_default_registry")
    try:
        observer(REPLAYED)
        assert ("test_default_registry_rows_total", frozenset({("route", "bucket")})) in scraped(
            REGISTRY
        )
    finally:
        observer.unregister()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"namespace": "hf-asr"}, "'hf-asr' is no name for Prometheus"),
        ({"namespace": ""}, "'' is no name"),
        ({"labels": {"model name": "a"}}, "'model name' is no name"),
        ({"labels": {"__model": "a"}}, "'__model' is no name"),
        ({"labels": {"9": "a"}}, "'9' is no name"),
        ({"labels": {"route": "a", "bucket": "b"}}, r"\['bucket', 'route'\] have a meaning"),
        ({"labels": {"le": "a"}}, r"\['le'\] have a meaning"),
        ({"seconds": (1.0, 0.5)}, "sorted"),
    ],
)
def test_names_and_labels_that_cannot_be_are_refused(options: Any, message: str) -> None:
    registry = CollectorRegistry()
    with pytest.raises(ValueError, match=message):
        PrometheusObserver(registry, **options)
    assert list(registry.collect()) == []


def test_without_the_client_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r'pip install "hf-cudagraph-asr\[prometheus\]"'):
        PrometheusObserver()


# Conventions


def test_names_follow_the_conventions_and_stricter_parsers_take_them() -> None:
    registry, pool = CollectorRegistry(), Pool()
    observer = PrometheusObserver(registry, labels={"model": 'a "quoted"\nname'})
    observer.watch(pool)
    pool.tally.replayed([replay(99)], [90], 0.25)
    pool.tally.missed(Reason.LONG)
    for event in (REPLAYED, LONG, HOST):
        observer(event)
    text = openmetrics.generate_latest(registry).decode()
    families = {family.name: family for family in openmetrics_families(text)}
    assert {family.type for family in families.values()} == {"counter", "gauge", "histogram"}
    for name, family in families.items():
        assert name.startswith("hf_cudagraph_asr_")
        assert family.documentation.endswith(".")
        assert family.samples
        for sample in family.samples:
            assert sample.labels["model"] == 'a "quoted"\nname'
            if family.type == "counter":
                assert sample.name.endswith(("_total", "_created"))
    assert {name for name, family in families.items() if family.type != "counter"} == {
        "hf_cudagraph_asr_call_seconds",
        "hf_cudagraph_asr_pool_memory_bytes",
        "hf_cudagraph_asr_pool_capture_seconds",
    }


def test_the_documentation_names_every_metric() -> None:
    registry = CollectorRegistry()
    PrometheusObserver(registry)
    documented = PrometheusObserver.__doc__ or ""
    for family in registry.collect():
        name = family.name.removeprefix("hf_cudagraph_asr_")
        suffix = "_total" if family.type == "counter" else ""
        assert f"<namespace>_{name}{suffix}" in documented
