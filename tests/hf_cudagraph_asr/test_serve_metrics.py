"""The page of metrics: every replica's counts, in a format that Prometheus' own parser reads."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.serve.counters import (
    GatewayCounts,
    Histogram,
    PoolCounts,
    RecognizerCounts,
)
from hf_cudagraph_asr.serve.exposition import page
from hf_cudagraph_asr.statistics import BucketStatistics, Tally

pytest.importorskip("prometheus_client")


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name.removeprefix("hf_cudagraph_asr_"), frozenset(sample.labels.items())): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Any, name: str, **labels: str) -> float:
    return float(found[name, frozenset(labels.items())])


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_counts_as_numpy_does(values: list[float]) -> None:
    histogram = Histogram((0.5, 1.0, 10.0))
    for number in values:
        histogram.observe(number)
    below = [int((np.array(values) <= bound).sum()) for bound in histogram.bounds]
    assert np.cumsum(histogram.counts).tolist() == [*below, len(values)]
    assert histogram.total == pytest.approx(sum(values))


def test_the_page_holds_every_replicas_counts() -> None:
    pool = PoolCounts(
        hits=2,
        misses={"long": 1},
        buckets=(
            BucketStatistics(frames=50, batch_size=4, calls=2, filled=350, added=50, seconds=0.5),
        ),
    )
    busy = RecognizerCounts("r1", failed=2, dropped=1, waiting=7, pool=pool)
    busy.batch_sizes.observe(3)
    busy.batch_sizes.observe(4)
    idle = RecognizerCounts("r2", pool=PoolCounts.of(Tally().read()))
    gateways = [
        GatewayCounts(name, Counter({("/transcribe", 200, ""): count}), audio_seconds=1.5)
        for name, count in (("g1", 5), ("g2", 6))
    ]
    gateways[0].requests["/transcribe", 503, "overloaded"] = 2
    gateways[0].seconds.observe(0.3)

    found = read(page(gateways, [busy, idle], silent=1))
    ok = {"path": "/transcribe", "status": "200", "error": ""}
    assert value(found, "requests_total", replica="g1", **ok) == 5
    assert value(found, "requests_total", replica="g2", **ok) == 6
    late = {"path": "/transcribe", "status": "503", "error": "overloaded"}
    assert value(found, "requests_total", replica="g1", **late) == 2
    assert value(found, "request_seconds_bucket", replica="g1", le="0.2") == 0
    assert value(found, "request_seconds_bucket", replica="g1", le="0.5") == 1
    assert value(found, "request_seconds_sum", replica="g1") == pytest.approx(0.3)
    assert value(found, "batch_size_bucket", replica="r1", le="2.0") == 0
    assert value(found, "batch_size_bucket", replica="r1", le="+Inf") == 2
    assert value(found, "batch_size_sum", replica="r1") == 7
    assert value(found, "batch_size_count", replica="r2") == 0
    assert value(found, "failed_queries_total", replica="r1") == 2
    assert value(found, "dropped_queries_total", replica="r1") == 1
    assert value(found, "waiting_queries", replica="r1") == 7
    assert value(found, "pool_hits_total", replica="r1") == 2
    assert value(found, "pool_hits_total", replica="r2") == 0
    assert value(found, "pool_misses_total", replica="r1", reason="long") == 1
    program = {"replica": "r1", "frames": "50", "rows": "4"}
    assert value(found, "replays_total", **program) == 2
    assert value(found, "frames_filled_total", **program) == 350
    assert value(found, "frames_padded_total", **program) == 50
    assert value(found, "replay_seconds_total", **program) == pytest.approx(0.5)


def test_a_pools_counts_travel_between_processes() -> None:
    tally = Tally()
    tally.hit()
    tally.missed(Reason.LONG)
    tally.missed(Reason.LONG)
    counts = PoolCounts.of(tally.read())
    assert (counts.hits, counts.misses) == (1, {"long": 2})
    assert copy.deepcopy(counts) == counts  # by the protocol that Ray sends it with


def test_a_scrape_says_whom_it_reached() -> None:
    found = read(page([GatewayCounts("g")], [], silent=2))
    assert value(found, "scraped_replicas", deployment="Gateway") == 1
    assert value(found, "scraped_replicas", deployment="Recognizer") == 0
    assert value(found, "silent_replicas") == 2
