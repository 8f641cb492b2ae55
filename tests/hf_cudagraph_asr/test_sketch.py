"""Sketches of lengths against plain counting."""

import math
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cudagraph_asr import Cost, Geometry, LengthSketch, plan_buckets
from hf_cudagraph_asr.plan import Traffic

GEOMETRY = Geometry()
SMALL = Geometry((4, 3), (3, 2), 8_000)
LONGEST = 1 << 14  # as documented
COVERED = Cost((0, 1), (0.0, 1.0), (0.0, 1e6))  # an eager run so dear that every query is replayed

lengths = st.integers(1, 2_000) | st.integers(1, 2 * LONGEST)


def sketch_of(
    frames: list[int], *, geometry: Geometry = GEOMETRY, half_life: float = math.inf
) -> LengthSketch:
    sketch = LengthSketch(geometry, half_life=half_life)
    for length in frames:
        sketch.add(geometry.longest(length))
    return sketch


def histogram(sketch: LengthSketch) -> dict[int, float]:
    if not sketch.total:
        return {}
    traffic = sketch.traffic()
    return dict(zip(traffic.frames, traffic.counts, strict=True))


# What is counted


@given(st.lists(lengths, max_size=50))
@settings(max_examples=50)
def test_lengths_are_counted(frames: list[int]) -> None:
    assert histogram(sketch_of(frames)) == Counter(min(length, LONGEST) for length in frames)
    assert sketch_of(frames).total == len(frames)


@given(st.integers(0, 10**6))
def test_samples_count_as_the_frames_of_their_geometry(samples: int) -> None:
    sketch = LengthSketch(SMALL)
    sketch.add(samples)
    frames = SMALL.frames(samples)
    if frames == 0:
        assert sketch.total == 0
    else:
        assert [*histogram(sketch)] == [min(frames, LONGEST)]


@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=30), st.integers(1, 4))
@settings(max_examples=50)
def test_buckets_planned_for_a_sketch_hold_every_query_in_it(
    frames: list[int], graphs: int
) -> None:
    plan = plan_buckets(sketch_of(frames).traffic(), graphs=graphs, cost=COVERED)
    assert all(plan.bucket_for(GEOMETRY.longest(length)) is not None for length in frames)


def test_a_plan_for_a_sketch_is_that_for_the_durations() -> None:
    samples = np.random.default_rng(0).lognormal(math.log(1.8 * 16_000), 0.5, 5_000).astype(int)
    sketch = LengthSketch(GEOMETRY, half_life=math.inf)
    for n in samples:
        sketch.add(n)
    assert sketch.traffic() == Traffic.of(samples / 16_000, GEOMETRY)
    assert plan_buckets(sketch.traffic()) == plan_buckets(samples / 16_000)


def test_nothing_seen_is_no_traffic() -> None:
    sketch = LengthSketch(GEOMETRY)
    sketch.add(399)  # below the receptive field
    with pytest.raises(ValueError, match="no query was seen yet"):
        sketch.traffic()


# Forgetting


@given(st.integers(1, 400), st.floats(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_a_query_halves_its_weight_every_half_life(
    queries: int, half_life: float, rng: random.Random
) -> None:
    frames = rng.choices(range(1, 6), k=queries)
    expected: Counter[int] = Counter()
    for age, length in enumerate(reversed(frames)):
        expected[length] += 2 ** (-age / half_life)  # type: ignore[assignment]
    found = histogram(sketch_of(frames, half_life=half_life))
    # Long forgotten ones are gone.
    for length in expected.keys() | found.keys():
        assert found.get(length, 0.0) == pytest.approx(expected[length], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("half_life", [1, 10, 100.5])
def test_all_weights_together_have_a_limit(half_life: float) -> None:
    sketch = sketch_of([7] * 5_000, half_life=half_life)
    limit = 1 / (1 - 2 ** (-1 / half_life))
    assert sketch.total <= limit * (1 + 1e-12)
    assert sketch.total == pytest.approx(limit, rel=1e-6)
    assert limit <= 1.4427 * half_life + 1


def test_what_is_forgotten_takes_no_room() -> None:
    sketch = sketch_of(list(range(1, 2_001)), half_life=1)
    for _ in range(1_000):
        sketch.add(GEOMETRY.longest(5_000))
    assert len(sketch.traffic().frames) == 1


def test_yesterdays_traffic_gives_way_to_todays() -> None:
    sketch = sketch_of([50] * 10_000 + [100] * 1_000, half_life=200)
    assert histogram(sketch)[50] / sketch.total == pytest.approx(2**-5, rel=1e-3)


@pytest.mark.parametrize("half_life", [0, 0.5, -1, math.nan])
def test_a_half_life_is_queries(half_life: Any) -> None:
    with pytest.raises(ValueError, match="half_life must be a number of queries from 1 up"):
        LengthSketch(GEOMETRY, half_life=half_life)


# Several threads


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def run(*targets: Any) -> None:
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.usefixtures("restless")
def test_no_query_of_any_thread_is_lost() -> None:
    sketch, totals = LengthSketch(GEOMETRY, half_life=math.inf), []

    def add() -> None:
        for length in range(2_000):
            sketch.add(GEOMETRY.longest(1 + length % 7))

    def read() -> None:
        totals.extend(sketch.total for _ in range(200))

    run(*[add] * 8, read)
    assert sketch.total == 16_000
    assert totals == sorted(totals)


def test_memory_is_bounded_whatever_comes() -> None:
    sketch, rng = LengthSketch(GEOMETRY, half_life=1_000), random.Random(0)
    for _ in range(20_000):
        sketch.add(rng.randrange(1 << rng.randrange(1, 64)))
    assert len(sketch.traffic().frames) <= LONGEST
