"""What Prometheus reads, in its own text formats, against plain counting."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from hf_cudagraph_asr import Bucket, Dispatch, PrometheusObserver, Served
from hf_cudagraph_asr.dispatch import Reason, Replay
from hf_cudagraph_asr.observe import METRICS, Observers, Tally, measurements

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


def replay(frames: int, rows: int, filled: int) -> Replay:
    bucket = Bucket(frames, frames * 320 + 399, share=1.0, padding=0.0, cost=float(frames))
    return Replay(bucket, rows, tuple(range(rows)), filled)


def replayed(*replays: Replay, seconds: float = 0.004) -> Served:
    rows = sum(len(part.rows) for part in replays)
    return Served(Dispatch("bucket", replays=replays), (16_000,) * rows, seconds)


REPLAYED = replayed(replay(99, 1, 90))
SPLIT = replayed(replay(199, 1, 190), replay(49, 4, 160))
LONG = Served(Dispatch("exact", Reason.LONG, "99 samples"), (99_000, 98_000), 0.3)
HOST = Served(Dispatch("host", Reason.LABELS), (), 0.25)


@st.composite
def events(draw: st.DrawFn) -> Served:
    seconds = draw(st.floats(1e-5, 20))
    if draw(st.booleans()):
        frames, rows = draw(st.sampled_from([49, 99, 199])), draw(st.integers(1, 4))
        return replayed(replay(frames, rows, draw(st.integers(1, frames * rows))), seconds=seconds)
    route: Any = draw(st.sampled_from(["exact", "host"]))
    reason = draw(st.none() | st.sampled_from(Reason))
    return Served(Dispatch(route, reason), (16_000,) * draw(st.integers(0, 5)), seconds)


@given(st.lists(events(), min_size=1, max_size=30))
@settings(max_examples=25)
def test_events_are_counted_as_one_would_count_them(seen: list[Served]) -> None:
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry)
    calls: Counter[tuple[str, str]] = Counter()
    rows: Counter[str] = Counter()
    seconds: dict[tuple[str, str], list[float]] = {}
    for event in seen:
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
        for bound in ("0.001", "0.1", "1.0", "10.0"):
            below = sum(time <= float(bound) for time in times)
            assert value(samples, "call_seconds_bucket", **of_it, le=bound) == below
    if any(event.dispatch.replays for event in seen):
        filled = sum(event.dispatch.filled for event in seen)
        added = sum(event.dispatch.computed for event in seen) - filled
        assert value(samples, "frames_total", kind="filled") == filled
        assert value(samples, "frames_total", kind="added") == added
    assert sum(name.endswith("_calls_total") for name, _ in samples) == len(calls)


def test_a_split_batch_counts_once_with_all_its_frames() -> None:
    assert [*measurements(SPLIT)] == [
        ("calls", ("bucket", "none"), 1),
        ("rows", ("bucket",), 5),
        ("frames", ("filled",), 350),
        ("frames", ("added",), 199 + 4 * 49 - 350),
        ("call_seconds", ("bucket", "199"), 0.004),
    ]


def test_no_event_of_any_thread_is_lost() -> None:
    registry, tally = CollectorRegistry(), Tally()
    count = PrometheusObserver(registry)
    observers = Observers([count, lambda event: tally.count(event.dispatch, event.seconds)])

    def work(_: int) -> None:
        for event in (REPLAYED, LONG, HOST, SPLIT):
            observers.notify(event)

    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(work, range(400)):
            pass
    samples = scraped(registry)
    for route, reason, calls in (
        ("bucket", "none", 800),
        ("exact", "long", 400),
        ("host", "labels", 400),
    ):
        assert value(samples, "calls_total", route=route, reason=reason) == calls
    assert value(samples, "rows_total", route="exact") == 800
    assert value(samples, "frames_total", kind="filled") == 400 * (90 + 350)
    assert value(samples, "frames_total", kind="added") == 400 * (9 + 45)
    stats = tally.read()
    assert (stats.calls, stats.hits) == (1600, 800)
    assert dict(stats.misses) == {Reason.LONG: 400, Reason.LABELS: 400}
    assert [(b.frames, b.batch_size, b.calls, b.filled, b.added) for b in stats.buckets] == [
        (49, 4, 400, 400 * 160, 400 * 36),
        (99, 1, 400, 400 * 90, 400 * 9),
        (199, 1, 400, 400 * 190, 400 * 9),
    ]
    # A split batch's time is shared by frames.
    assert stats.buckets[2].seconds == pytest.approx(400 * 0.004 * 199 / (199 + 4 * 49))


# Several pools, several registrations


def test_pools_of_one_process_differ_by_a_label() -> None:
    registry = CollectorRegistry()
    base = PrometheusObserver(registry, labels={"model": "base", "site": "west"})
    large = base.labelled(site="west", model="large")
    for observer in (base, large, large):
        observer(REPLAYED)
    samples = scraped(registry)
    for model, calls in (("base", 1), ("large", 2)):
        own = {"model": model, "site": "west"}
        assert value(samples, "calls_total", **own, route="bucket", reason="none") == calls
        assert value(samples, "rows_total", **own, route="bucket") == calls


@pytest.mark.parametrize("labels", [{}, {"site": "west"}, {"model": "base", "site": "west"}])
def test_labels_are_named_when_the_first_observer_is_made(labels: dict[str, str]) -> None:
    observer = PrometheusObserver(CollectorRegistry(), labels={"model": "base"})
    with pytest.raises(ValueError, match=r"has the labels \['model'\], not .*: name them all"):
        observer.labelled(**labels)
    with pytest.raises(ValueError, match=r"has the labels \[\]"):
        PrometheusObserver(CollectorRegistry()).labelled(**labels)


def test_registering_twice_is_refused_and_the_first_goes_on() -> None:
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry)
    observer(REPLAYED)
    with pytest.raises(ValueError, match="hf_cudagraph_asr_calls"):
        PrometheusObserver(registry, labels={"model": "large"})
    observer(REPLAYED)
    assert value(scraped(registry), "calls_total", route="bucket", reason="none") == 2


def test_the_clients_own_registry_is_the_default() -> None:
    held = {*REGISTRY._collector_to_names}
    observer = PrometheusObserver()
    try:
        observer(REPLAYED)
        assert value(scraped(REGISTRY), "rows_total", route="bucket") == 1
    finally:
        for collector in {*REGISTRY._collector_to_names} - held:
            REGISTRY.unregister(collector)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"route": "a", "bucket": "b"}, r"\['bucket', 'route'\] have a meaning already"),
        ({"le": "a"}, r"\['le'\] have a meaning already"),
        ({"__model": "a"}, "__model"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels: dict[str, str], message: str) -> None:
    registry = CollectorRegistry()
    with pytest.raises(ValueError, match=message):
        PrometheusObserver(registry, labels=labels)
    assert list(registry.collect()) == []


def test_without_the_client_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r'pip install "hf-cudagraph-asr\[prometheus\]"'):
        PrometheusObserver()


def test_names_follow_the_conventions_and_stricter_parsers_take_them() -> None:
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry, labels={"model": 'a "quoted"\nname'})
    for event in (REPLAYED, LONG, HOST):
        observer(event)
    text = openmetrics.generate_latest(registry).decode()
    families = {family.name: family for family in openmetrics_families(text)}
    assert families.keys() == {f"hf_cudagraph_asr_{name}" for name in METRICS}
    for name, family in families.items():
        expected = "histogram" if name.endswith("_seconds") else "counter"
        assert family.type == expected
        assert family.documentation.endswith(".")
        assert family.samples
        for sample in family.samples:
            assert sample.labels["model"] == 'a "quoted"\nname'
            if family.type == "counter":
                assert sample.name.endswith(("_total", "_created"))
