"""Plans against brute force, against other planners, against the pipeline, and as files."""

import copy
import json
import math
import warnings
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan import (
    EAGER,
    Bucket,
    BucketPlan,
    Chunking,
    Cost,
    Traffic,
    plan_buckets,
    replicas,
)
from hf_cudagraph_asr.plan.partition import partition
from hf_cudagraph_asr.plan.planners import PLANNERS, equal_duration

GEOMETRY = Geometry()
COVERED = Cost((0, 1), (0.0, 1.0), (0.0, 1e6))  # an eager run so dear that every query is replayed

Durations = npt.NDArray[np.float64]


def voice_queries(rng: np.random.Generator, n: int) -> Durations:
    """Short queries: log-normal, median 1.8 s, σ = 0.5."""
    return np.maximum(rng.lognormal(math.log(1.8), 0.5, n), 0.1)


def bimodal(rng: np.random.Generator, n: int) -> Durations:
    """Commands around 1.2 s, and three in ten dictations around 9 s."""
    commands, dictations = rng.lognormal(math.log(1.2), 0.25, n), rng.normal(9, 2, n)
    return np.maximum(np.where(rng.random(n) < 0.7, commands, dictations), 0.1)


def librispeech_like(rng: np.random.Generator, n: int) -> Durations:
    """Read sentences: most of 12 to 16.5 s, with a flat shoulder of shorter ones and few longer."""
    read, shoulder = rng.triangular(10, 15, 16.8, n), rng.uniform(1.5, 16, n)
    part = rng.random(n)
    longer = rng.uniform(16, 24.5, n)
    return np.where(part < 0.65, read, np.where(part < 0.995, shoulder, longer))


def one_length(rng: np.random.Generator, n: int) -> Durations:
    """Windows of 3 s."""
    return np.full(n, 3.0)


TRAFFICS: dict[str, Callable[[np.random.Generator, int], Durations]] = {
    "log-normal": voice_queries,
    "bimodal": bimodal,
    "LibriSpeech-like": librispeech_like,
    "one length": one_length,
}


@pytest.fixture(scope="module", params=TRAFFICS)
def traffic(request: pytest.FixtureRequest) -> Traffic:
    durations = TRAFFICS[request.param](np.random.default_rng(0), 100_000)
    return Traffic.of(durations, GEOMETRY)


# Optimality


Arrays = tuple[Durations, Durations, Durations]


@st.composite
def problems(draw: st.DrawFn, most: int = 9) -> Arrays:
    """Weights, a replay cost that does not fall, and any eager cost."""
    n = draw(st.integers(1, most))
    values = st.floats(0, 100, allow_subnormal=False)

    def row() -> Durations:
        return np.array(draw(st.lists(values, min_size=n, max_size=n)))

    return (
        row(),
        np.cumsum(row() * np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))),
        row(),
    )


def price(ends: tuple[int, ...], weights: Durations, replay: Durations, eager: Durations) -> float:
    """One query after the other."""
    cost = 0.0
    for i, weight in enumerate(weights):
        held = [end for end in ends if end >= i]
        cost += weight * (replay[held[0]] if held else eager[i])
    return cost


@given(problems(), st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=300)
def test_partitions_are_optimal(problem: Arrays, graphs: int, data: st.DataObject) -> None:
    weights, replay, eager = problem
    n = len(weights)
    pinned = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n), label="pinned"))
    reach = data.draw(
        st.none() | st.lists(st.integers(-1, n - 1), min_size=graphs, max_size=graphs),
        label="reach",
    )
    longest = None if reach is None else np.array(sorted(reach, reverse=True))
    allowed = [
        ends
        for m in range(1, graphs + 1)
        for ends in combinations(range(n), m)
        if set(np.flatnonzero(pinned)) <= set(ends)
        and (longest is None or ends[-1] <= longest[m - 1])
    ]
    found = partition(weights, replay, eager, graphs, pinned=pinned, longest=longest)
    if not allowed:
        assert found is None
        return
    assert found is not None
    least = min(price(ends, *problem) for ends in allowed)
    assert found.ends in allowed
    assert price(found.ends, *problem) == pytest.approx(least, rel=1e-9, abs=1e-9)
    assert found.cost == pytest.approx(least, rel=1e-9, abs=1e-9)


def quadratic(weights: Durations, replay: Durations, eager: Durations, graphs: int) -> float:
    """The recurrence as it is written, every start tried for every end."""
    n = len(weights)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    tail = np.concatenate([np.cumsum((weights * eager)[::-1])[::-1], [0.0]])
    cost = np.full(n + 1, np.inf)
    cost[0], least = 0.0, np.inf
    for _ in range(graphs):
        longer = cost.copy()
        for j in range(1, n + 1):
            longer[j] = (cost[:j] + (total[j] - total[:j]) * replay[j - 1]).min()
        cost = longer
        least = min(least, float((cost[1:] + tail[1:]).min()))
    return least


@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 20))
@settings(deadline=None, max_examples=40)
def test_divide_and_conquer_finds_what_the_quadratic_recurrence_finds(
    seed: int, n: int, graphs: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 1000, n) * (rng.random(n) < 0.7).astype(float)
    # Steps, flat stretches and slopes.
    replay = np.cumsum(rng.exponential(1, n) * (rng.random(n) < rng.random()))
    eager = rng.uniform(0, 10) * replay.max() * rng.random(n)
    found = partition(weights, replay, eager, graphs)
    assert found is not None
    assert found.cost == pytest.approx(quadratic(weights, replay, eager, graphs), rel=1e-9)
    assert found.cost == pytest.approx(price(found.ends, weights, replay, eager), rel=1e-9)


@given(
    st.dictionaries(st.integers(1, 60), st.integers(1, 50), min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from([1.0, 1.2, 5.0, 1e6]),
)
@settings(deadline=None, max_examples=150)
def test_plans_are_optimal_over_all_lengths(
    counts: dict[int, int], graphs: int, eager: float
) -> None:
    traffic = Traffic(*zip(*sorted(counts.items()), strict=True))
    cost = Cost((1, 10, 60), (7.0, 7.0, 60.0), (7.0 * eager, 8.0 * eager, 70.0 * eager))
    plan = plan_buckets(traffic, graphs=graphs, cost=cost)
    least = min(
        BucketPlan.of(lengths, traffic, cost=cost).expected_cost
        for m in range(1, graphs + 1)
        for lengths in combinations(sorted(counts), m)
    )
    assert plan.expected_cost == pytest.approx(least, rel=1e-9)
    assert len(plan.buckets) <= graphs


@pytest.mark.parametrize("graphs", [1, 4, 8, 16])
@pytest.mark.parametrize(
    "cost",
    [Cost(), COVERED, Cost((0, 100, 800), (2.0, 2.0, 9.0), (12.0, 12.0, 20.0), "ms")],
    ids=["frames", "no tail", "ms"],
)
def test_no_other_planner_is_cheaper(traffic: Traffic, graphs: int, cost: Cost) -> None:
    best = plan_buckets(traffic, graphs=graphs, cost=cost)
    for planner in PLANNERS.values():
        other = BucketPlan.of(planner(traffic, graphs), traffic, cost=cost)
        assert best.expected_cost <= other.expected_cost * (1 + 1e-12)
        if cost is COVERED:
            assert best.tail == other.tail == 0
            assert best.padding <= other.padding + 1e-12


@pytest.mark.parametrize("graphs", [2, 4, 8, 16])
def test_equal_duration_is_lhotses_rule(traffic: Traffic, graphs: int) -> None:
    from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets

    class Length:
        def measure_length(self, frames: int) -> int:
            return frames

    frames, counts = traffic.arrays()
    few = np.maximum(counts // 20, 1).astype(np.int64)  # Lhotse takes them one by one
    theirs = estimate_duration_buckets(np.repeat(frames, few), graphs, Length())
    # A bucket ends below the bound, at the longest length there is.
    below = [int(frames[frames < bound][-1]) for bound in theirs[: graphs - 1] if bound > frames[0]]
    ours = equal_duration(Traffic(traffic.frames, tuple(few.tolist())), graphs)
    assert ours == tuple(sorted({*below, traffic.frames[-1]}))


@given(
    st.dictionaries(st.integers(1, 3000), st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 20),
    st.sampled_from(list(PLANNERS.values())),
)
def test_planners_cover_the_traffic(
    counts: dict[int, int], graphs: int, planner: Callable[[Traffic, int], tuple[int, ...]]
) -> None:
    traffic = Traffic(*zip(*sorted(counts.items()), strict=True))
    lengths = planner(traffic, graphs)
    assert 1 <= len(lengths) <= graphs
    assert lengths[-1] == max(counts)
    assert all(a < b for a, b in pairwise(lengths))


@pytest.mark.parametrize("seed", range(3))
def test_padding_of_short_queries(seed: int) -> None:
    """At most 9% with 16 buckets, whether or not the longest queries may run eagerly."""
    durations = voice_queries(np.random.default_rng(seed), 200_000)
    for cost in (None, COVERED):
        plan = plan_buckets(durations, graphs=16, cost=cost)
        assert plan.padding <= 0.09
        assert plan.tail <= 0.001
    frames = GEOMETRY.frames(np.rint(durations * 16_000).astype(np.int64))
    by_hand = sum(plan.bucket_for(GEOMETRY.shortest(int(f))).frames for f in frames[:5000])  # type: ignore[union-attr]
    assert by_hand / frames[:5000].sum() - 1 == pytest.approx(plan.padding, abs=0.01)


def test_quantiles_are_the_worst_and_more_buckets_never_cost_more() -> None:
    traffic = Traffic.of(voice_queries(np.random.default_rng(0), 100_000), GEOMETRY)
    padding = {n: BucketPlan.of(f(traffic, 8), traffic).padding for n, f in PLANNERS.items()}
    assert max(padding, key=padding.__getitem__) == "quantile"
    costs = [plan_buckets(traffic, graphs=k).expected_cost for k in (1, 2, 3, 5, 8, 13, 21, 34, 55)]
    assert costs == sorted(costs, reverse=True)


def test_an_hour_of_frames_is_planned_too() -> None:
    rng = np.random.default_rng(0)
    plan = plan_buckets(rng.uniform(1, 3600, 50_000), graphs=16)
    assert plan.padding < 0.08


# What a plan says


def test_a_plan_counts_what_it_says() -> None:
    seconds = [1.0] * 6 + [1.5] * 2 + [4.0] * 8 + [30.0] * 4
    frames = {s: GEOMETRY.frames(round(s * 16_000)) for s in set(seconds)}
    cost = Cost(eager=(0.0, 1.05))
    plan = BucketPlan.of([frames[4.0], frames[1.5]], Traffic.of(seconds, GEOMETRY), cost=cost)
    first, second = plan.buckets
    filled = 6 * frames[1.0] + 2 * frames[1.5]
    assert first.padding == pytest.approx((8 * frames[1.5] - filled) / filled)
    assert (first.share, second.share, plan.tail) == (0.4, 0.4, 0.2)
    assert second.padding == 0
    assert first.samples == GEOMETRY.longest(frames[1.5])
    added = 6 * (frames[1.5] - frames[1.0])
    assert plan.padding == pytest.approx(added / (filled + 8 * frames[4.0]))
    paid = 8 * frames[1.5] + 8 * frames[4.0] + 4 * 1.05 * frames[30.0]
    assert plan.expected_cost == pytest.approx(paid / 20)
    ran = sum(frames[s] for s in seconds) * 1.05
    assert plan.eager_cost == pytest.approx(ran / 20)


@given(st.sets(st.integers(1, 900), min_size=1, max_size=20), st.integers(0, 320_000))
def test_the_smallest_bucket_that_fits_is_found(lengths: set[int], samples: int) -> None:
    plan = BucketPlan.of(lengths, Traffic((50,), (1,)))
    frames = GEOMETRY.frames(samples)
    fitting = [bucket for bucket in plan.buckets if bucket.frames >= frames >= 1]
    assert plan.bucket_for(samples) == (fitting[0] if fitting else None)


def test_a_bucket_holds_its_last_sample() -> None:
    plan = plan_buckets([1.0, 3.0], graphs=2)
    first, second = plan.buckets
    assert plan.bucket_for(first.samples) is first
    assert plan.bucket_for(first.samples + 1) is second
    assert plan.bucket_for(second.samples + 1) is None
    assert plan.bucket_for(400) is first
    assert plan.bucket_for(399) is None
    assert plan.bucket_for(0) is None


def test_fewer_buckets_than_asked_are_said() -> None:
    plan = plan_buckets([2.0, 2.0, 3.0], graphs=16)
    assert (len(plan.buckets), plan.asked, plan.padding) == (2, 16, 0.0)
    assert "16 were allowed" in rendered(plan)


def test_the_tail_is_left_where_a_bucket_gains_less() -> None:
    seconds = {1.0: 10_000, 1.6: 5_000, 60.0: 1}
    assert plan_buckets(seconds, graphs=2).tail == pytest.approx(1 / 15_001)
    assert plan_buckets(seconds, graphs=2, cost=COVERED).tail == 0
    assert plan_buckets(seconds, graphs=3).tail == 0


def test_the_cost_curve_moves_the_buckets() -> None:
    """Where short replays cost alike, short buckets gain nothing."""
    flat = Cost((100, 300), (2.0, 8.0), (40.0, 40.0), "ms")
    durations = voice_queries(np.random.default_rng(0), 50_000)
    by_frames, by_time = (plan_buckets(durations, graphs=8, cost=c) for c in (None, flat))
    assert by_time.buckets[0].frames >= 100 > by_frames.buckets[0].frames
    assert by_time.expected_cost < by_frames.on(durations, cost=flat).expected_cost


def test_a_plan_under_other_traffic_keeps_its_buckets() -> None:
    plan = plan_buckets([1.0, 2.0, 3.0], graphs=2, concurrency=3, batch_sizes=(1, 2))
    again = plan.on([1.0, 2.0, 3.0])
    assert again == plan
    longer = plan.on([2.9] * 9 + [8.0])
    assert [b.frames for b in longer.buckets] == [b.frames for b in plan.buckets]
    assert longer.tail == 0.1
    assert longer.padding > 0


# Ways to say the same


def test_durations_come_in_many_shapes() -> None:
    seconds = [1.0, 2.5, 2.5, 4.0]
    plan = plan_buckets(seconds, graphs=2)
    values, counts = [1.0, 2.5, 4.0], [1, 2, 1]
    for same in (
        tuple(seconds),
        iter(seconds),
        np.array(seconds),
        np.array(seconds, dtype=np.float32),
        {1.0: 1, 2.5: 2, 4.0: 1},
        {1.0: 1, 2.5: 2, 3.0: 0, 4.0: 1},
        (values, counts),
        (np.array(values), np.array(counts)),
        dict(zip(values, counts, strict=True)).items() and Traffic.of(seconds, GEOMETRY),
    ):
        assert plan_buckets(same, graphs=2) == plan
    assert plan_buckets([3, 4]).traffic.frames == plan_buckets((3.0, 4.0)).traffic.frames
    assert hash(plan) == hash(plan_buckets(seconds, graphs=2))


def test_a_million_durations_count_like_their_histogram() -> None:
    seconds = voice_queries(np.random.default_rng(0), 600_000)
    values, counts = np.unique(seconds, return_counts=True)
    assert Traffic.of(seconds, GEOMETRY) == Traffic.of((values, counts), GEOMETRY)
    frames = GEOMETRY.frames(np.rint(seconds * 16_000).astype(np.int64))
    there, times = np.unique(frames, return_counts=True)
    counted = Traffic.of(seconds, GEOMETRY)
    assert counted.frames == tuple(there)
    assert counted.counts == tuple(times)


def test_costs_come_in_many_shapes() -> None:
    seconds = voice_queries(np.random.default_rng(0), 2_000)

    def steps(frames: int) -> float:
        return 1.0 + frames // 64

    lengths = Traffic.of(seconds, GEOMETRY).frames
    by_call = plan_buckets(seconds, graphs=6, cost=steps)
    by_table = plan_buckets(seconds, graphs=6, cost={f: steps(f) for f in lengths})
    assert by_call == by_table
    assert by_call.eager_cost == pytest.approx(
        np.average([EAGER * steps(f) for f in lengths], weights=by_call.traffic.counts)
    )


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=20),
    st.integers(1, 4),
)
def test_measured_costs_do_not_fall_and_keep_their_mean(
    timings: list[tuple[float, float]], step: int
) -> None:
    replay, eager = zip(*timings, strict=True)
    frames = list(range(step, step * (len(timings) + 1), step))
    cost = Cost.measured(frames[::-1], replay[::-1], eager[::-1])  # order does not matter
    assert cost.frames == tuple(frames)
    assert np.all(np.diff(cost.replay) >= 0)
    assert np.mean(cost.replay) == pytest.approx(np.mean(replay))
    assert cost.eager == eager
    if np.all(np.diff(replay) > 0):
        assert cost.replay == pytest.approx(replay)


def test_costs_go_on_beyond_what_was_measured() -> None:
    cost = Cost((50, 100), (2.0, 3.0), (10.0, 9.0), "ms")
    at = np.array([1, 50, 75, 100, 150, 10_000])
    assert cost.replayed(at).tolist() == [2.0, 2.0, 2.5, 3.0, 4.0, 201.0]
    assert cost.run_eagerly(at).tolist() == [10.0, 10.0, 9.5, 9.0, 9.0, 9.0]
    assert Cost((7,), (2.0,), (3.0,)).replayed(at).tolist() == [2.0] * 6


# Long recordings


@pytest.mark.parametrize("strides", [None, 1.0, (2.0, 0.5), (0.0, 0.0)])
@given(st.integers(400, 700_000), st.sampled_from([3.0, 4.99, 10.0]))
@settings(deadline=None, max_examples=40)
def test_recordings_count_as_the_pipelines_chunks(
    strides: float | tuple[float, float] | None, samples: int, chunk: float
) -> None:
    from transformers.pipelines.automatic_speech_recognition import chunk_iter

    class Extractor:
        sampling_rate = 16_000

        def __call__(self, chunk: Durations, **_: object) -> dict[str, Durations]:
            return {"input_values": chunk}

    cut = Chunking.of(GEOMETRY, chunk, strides)
    assert cut.chunk == round(chunk * 16_000 / 320) * 320
    chunks = chunk_iter(np.zeros(samples), Extractor(), cut.chunk, cut.left, cut.right)
    lengths = [len(item["input_values"]) for item in chunks]
    assume(min(lengths) >= 400)
    traffic = Traffic.of([samples / 16_000], GEOMETRY, cut)
    expected = [GEOMETRY.frames(n) for n in lengths]
    assert dict(zip(traffic.frames, traffic.counts, strict=True)) == {
        frames: expected.count(frames) for frames in expected
    }


def test_chunks_of_many_recordings_add_up() -> None:
    cut = Chunking.of(GEOMETRY, 6.0, 1.0)  # a chunk begins every 4 s
    recordings = {2.0: 3, 6.0: 5, 10.0: 7, 13.0: 2}
    # 10 s: two whole chunks. 13 s: two, and one from 8 s on.
    expected = {2.0: 3, 5.0: 2, 6.0: 5 + 2 * 7 + 2 * 2}
    frames = {GEOMETRY.frames(int(s * 16_000)): float(n) for s, n in expected.items()}
    for durations in (recordings, [s for s, n in recordings.items() for _ in range(n)]):
        traffic = Traffic.of(durations, GEOMETRY, cut)
        assert dict(zip(traffic.frames, traffic.counts, strict=True)) == frames


def test_chunks_have_a_bucket_of_their_own() -> None:
    seconds = voice_queries(np.random.default_rng(0), 20_000)
    plain = plan_buckets(seconds, graphs=4)
    frames = GEOMETRY.frames(96_000)
    plan = plan_buckets(seconds, graphs=4, chunk_length_s=6.0)
    assert [b.frames for b in plan.buckets if b.pinned] == [frames]
    assert len(plan.buckets) == 4
    assert frames not in [b.frames for b in plain.buckets]
    # Nothing is longer than a chunk, and nothing runs eagerly.
    assert plan.buckets[-1].frames == frames
    assert plan.tail == 0
    assert "* chunks of long recordings" in rendered(plan)
    # Not a query that long: the bucket is there all the same.
    idle = plan_buckets([1.0, 2.0], graphs=2, chunk_length_s=10.0)
    assert [b.share > 0 for b in idle.buckets] == [True, False]
    assert idle.bucket_for(160_000) == idle.buckets[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_length_s": 0.01}, "too short for one frame"),
        ({"chunk_length_s": 6.0, "stride_length_s": 3.0}, "never advance"),
        ({"chunk_length_s": -6.0}, "seconds from 0 up"),
        ({"chunk_length_s": math.nan}, "seconds from 0 up"),
        ({"chunk_length_s": "6"}, "seconds from 0 up"),
        ({"chunk_length_s": 6.0, "stride_length_s": "1"}, "seconds from 0 up"),
        ({"chunk_length_s": 6.0, "stride_length_s": (1.0,)}, "one for each side"),
        ({"stride_length_s": 1.0}, "without chunk_length_s"),
    ],
)
def test_chunks_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_buckets([1.0], **options)


# Replicas and memory


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda xs: sum(xs) > 0),
    st.integers(1, 40),
)
def test_replicas_are_the_binomial_quantile(parts: list[float], concurrency: int) -> None:
    shares = [part / sum(parts) for part in parts]
    for share, copies in zip(shares, replicas(shares, concurrency), strict=True):

        def at_most(k: int, p: float = share) -> float:
            n = concurrency
            return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

        assert 1 <= copies <= concurrency
        assert at_most(copies) >= 0.95 - 1e-9
        assert copies == 1 or at_most(copies - 1) < 0.95 + 1e-9


def test_replicas_follow_time_not_queries() -> None:
    seconds = [1.0] * 50 + [20.0] * 50
    plan = plan_buckets(seconds, graphs=2, concurrency=8, batch_sizes=(2, 1, 2))
    short, long = plan.buckets
    assert short.share == long.share
    assert long.replicas == 8 > short.replicas
    assert plan.batch_sizes == (1, 2)
    assert plan.captures == 2 * (short.replicas + long.replicas)
    assert {b.replicas for b in plan_buckets(seconds).buckets} == {1}
    assert plan_buckets(seconds, concurrency=5000).buckets[-1].replicas > 4000
    free = plan_buckets(seconds, concurrency=8, cost={1: 0.0, 2: 0.0})
    assert {b.replicas for b in free.buckets} == {1}


MEMORY = Cost((0, 1), (0.0, 1.0), (0.0, 5.0), memory=(0.0, 1000.0), graph_memory=10_000.0)


@pytest.mark.parametrize("limit", [60_000, 150_000, 320_000, 10**9])
@pytest.mark.parametrize("sizes", [(1,), (1, 2)])
def test_the_memory_limit_holds_and_the_rest_is_optimal(limit: int, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.choice(np.arange(10, 300), 12, replace=False)
    traffic = Traffic(tuple(sorted(lengths.tolist())), tuple(rng.integers(1, 99, 12).tolist()))

    def memory(ends: tuple[int, ...]) -> float:
        return max(sizes) * 1000.0 * ends[-1] + 10_000.0 * len(ends) * len(sizes)

    plan = plan_buckets(traffic, graphs=4, cost=MEMORY, memory_limit=limit, batch_sizes=sizes)
    ends = tuple(bucket.frames for bucket in plan.buckets)
    assert plan.memory == pytest.approx(memory(ends))
    assert plan.memory <= limit
    assert plan.expected_cost == pytest.approx(
        min(
            BucketPlan.of(some, traffic, cost=MEMORY).expected_cost
            for m in range(1, 5)
            for some in combinations(traffic.frames, m)
            if memory(some) <= limit
        )
    )


def test_replicas_stay_within_the_memory_limit() -> None:
    seconds = voice_queries(np.random.default_rng(0), 5_000)
    free = plan_buckets(seconds, graphs=4, cost=MEMORY, concurrency=16)
    assert free.memory is not None
    for part in (0.3, 0.5, 0.9):
        plan = plan_buckets(
            seconds, graphs=4, cost=MEMORY, concurrency=16, memory_limit=part * free.memory
        )
        assert plan.memory is not None
        assert plan.memory <= part * free.memory
        assert plan.captures < free.captures
    # Pools nest: each replica of the longest bucket is one more pool, and pays for its length.
    alone = plan_buckets(seconds, graphs=4, cost=MEMORY).memory
    assert alone is not None
    assert free.memory < max(b.replicas for b in free.buckets) * alone


def test_memory_is_estimated_where_it_was_not_measured() -> None:
    from transformers import Wav2Vec2Config

    seconds = [1.0, 2.0, 30.0]
    limit = 100 * 2**20
    plan = plan_buckets(seconds, memory_limit=limit)
    assert plan.tail > 0
    assert plan.memory is not None
    assert plan.memory <= limit
    # 512 channels × 64 values a frame × 3 tensors × 4 bytes
    assert plan.memory == 512 * 64 * 12 * plan.buckets[-1].frames
    narrow = Wav2Vec2Config(conv_dim=(32,) * 7)
    assert plan_buckets(seconds, memory_limit=limit, model=narrow).tail == 0
    with pytest.raises(ValueError, match="holds no bucket of 49 frames at batch size 1"):
        plan_buckets(seconds, memory_limit=1000)
    with pytest.raises(ValueError, match="holds no bucket of 499 frames"):
        plan_buckets(seconds, memory_limit=limit, chunk_length_s=10)


# Bad input


@pytest.mark.parametrize(
    ("durations", "message"),
    [
        ([], "no durations"),
        (np.array([]), "no durations"),
        ({}, "no durations"),
        ({1.0: 0}, "no durations"),
        ([1.0, math.nan], "above 0 and up to a day, not nan"),
        ([1.0, math.inf], "above 0 and up to a day, not inf"),
        ([1.0, -2.0, -3.0], r"not -2.0 \(and 1 more\)"),
        ([0.0], "above 0 and up to a day, not 0.0"),
        ([1.0, 1e9], "up to a day, not 1000000000.0"),
        ([0.02, 1.0], "0.02 s holds fewer than the 400 samples of one frame; there are 1"),
        (["1.0", "2.0"], "one row of numbers; what was given has <U3 values"),
        ([None, 1.0], "object values"),
        ([[1.0, 2.0]], "has 2 dimensions"),
        ("1.0", "durations are a list or an array of numbers, not '1.0'"),
        (b"1.0", "durations are a list or an array"),
        (3.0, "durations are a list or an array of numbers, not 3.0"),
        (None, "durations are a list or an array"),
        ([True], "bool values"),
        ([1 + 2j], "complex128 values"),
        (([1.0, 2.0], [1]), "2 durations have 1 counts"),
        ({1.0: -1}, "counts are finite numbers from 0 up"),
        ({1.0: math.nan}, "counts are finite numbers from 0 up"),
        ({"1.0": 3}, "one row of numbers"),
    ],
)
def test_durations_that_cannot_be_planned_for(durations: Any, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            plan_buckets(durations)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graphs": 0}, "graphs must be a whole number from 1 up, not 0"),
        ({"graphs": 2.0}, "graphs must be a whole number"),
        ({"graphs": "16"}, "graphs must be a whole number"),
        ({"graphs": True}, "graphs must be a whole number"),
        ({"batch_sizes": ()}, "batch_sizes are empty"),
        ({"batch_sizes": (0,)}, "a batch size must be"),
        ({"batch_sizes": "12"}, "batch_sizes are whole numbers"),
        ({"batch_sizes": 4}, "batch_sizes are whole numbers"),
        ({"concurrency": 0}, "concurrency must be"),
        ({"memory_limit": 0}, "memory_limit is bytes above 0"),
        ({"memory_limit": math.nan}, "memory_limit is bytes above 0"),
        ({"memory_limit": "1 GiB"}, "memory_limit is bytes above 0"),
        ({"sampling_rate": 0}, "sampling_rate is a whole number"),
        ({"model": object()}, "object has no conv_kernel"),
        ({"cost": 3}, "cost is a Cost, a mapping or a callable of frames, not int"),
        ({"cost": lambda frames: -frames}, "replay holds finite numbers from 0 up"),
        ({"cost": lambda frames: 1000 - frames}, "replay falls from 951 at 49 frames"),
        ({"cost": {}}, "known at whole frames"),
        ({"cost": {100.5: 1.0}}, "known at whole frames"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_buckets([1.0, 2.0], **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BucketPlan.of([], Traffic((1,), (1,))), "a plan needs a bucket"),
        (lambda: BucketPlan.of([0], Traffic((1,), (1,))), "a bucket's frames must be"),
        (lambda: BucketPlan.of([5], Traffic((1,), (1,)), replicas=[1, 2]), "1 buckets have 2"),
        (lambda: BucketPlan.of([5], Traffic((1,), (1,)), pinned=[6]), r"\[6\] are no buckets"),
        (lambda: Traffic((), ()), "at least one"),
        (lambda: Traffic((2, 1), (1, 1)), "traffic ascend"),
        (lambda: Traffic((0,), (1,)), "from 1 up"),
        (lambda: Traffic((1,), (0,)), "above 0"),
        (lambda: Cost((1, 2), (1.0,), (1.0, 2.0)), "replay has 1 values for 2 lengths"),
        (lambda: Cost((2, 1), (1.0, 1.0), (1.0, 2.0)), "ascend"),
        (lambda: Cost(graph_memory=-1.0), "graph_memory"),
        (lambda: Cost(memory=(2.0, 1.0)), "memory falls"),
        (lambda: Cost.measured([1, 2], [1.0], [1.0, 2.0]), "1 values for 2 lengths"),
        (
            lambda: Cost().pool_memory(np.array([3]), 1, 1),
            "no memory curve to hold against a memory limit",
        ),
    ],
)
def test_parts_that_do_not_fit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Other geometries


def test_a_plan_refuses_a_model_of_another_geometry() -> None:
    from transformers import HubertConfig, Wav2Vec2Config

    plan = plan_buckets([1.0, 2.0], model=Wav2Vec2Config())
    plan.check_geometry(Wav2Vec2Config())
    plan.check_geometry(HubertConfig())
    plan.check_geometry(Geometry())
    other = Wav2Vec2Config(conv_stride=(5, 2, 2, 2, 2, 2, 1))
    with pytest.raises(
        ValueError, match=r"this plan is for .* 320 samples.* model=model"
    ) as caught:
        plan.check_geometry(other)
    assert "160 samples" in str(caught.value)
    with pytest.raises(ValueError, match="8,000 Hz"):
        plan.check_geometry(Geometry(sampling_rate=8_000))
    assert plan_buckets([1.0], model=other).buckets[0].frames == Geometry.of(other).frames(16_000)
    assert plan_buckets([1.0], sampling_rate=8_000).buckets[0].frames == GEOMETRY.frames(8_000)


# Files


@pytest.fixture
def plan() -> BucketPlan:
    return plan_buckets(
        voice_queries(np.random.default_rng(0), 3_000),
        graphs=5,
        model=Geometry(sampling_rate=8_000),
        batch_sizes=(1, 4),
        cost=Cost((10, 90), (1.5, 4.0), (9.0, 8.0), "ms", (1e6, 2e6), 5e4),
        chunk_length_s=6.0,
        concurrency=4,
    )


def test_a_plan_is_read_as_it_was_written(plan: BucketPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    plan.save(path)  # a plan may be replaced
    assert BucketPlan.load(path) == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    content = json.loads(path.read_text())
    assert content["summary"]["padding"] == plan.padding
    bare = plan_buckets([2.0])
    bare.save(path)
    assert BucketPlan.load(path) == bare


def test_lists_and_numpys_numbers_are_written_too(tmp_path: Path) -> None:
    frames, counts = np.array([3, 9]), np.array([2, 5], dtype=np.float32)
    traffic = Traffic([*frames], [*counts])  # type: ignore[arg-type]
    cost = Cost([*frames], [*counts], [*counts], graph_memory=np.float32(3))  # type: ignore[arg-type]
    plan = BucketPlan.of(frames, traffic, cost=cost, batch_sizes=frames, asked=np.int64(4))
    assert hash(plan) == hash(copy.deepcopy(plan))
    plan.save(tmp_path / "plan.json")
    assert BucketPlan.load(tmp_path / "plan.json") == plan


def test_a_plan_that_cannot_be_written_leaves_what_was_there(
    plan: BucketPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        plan_buckets([1.0]).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileNotFoundError, match="no folder"):
        plan.save(tmp_path / "missing" / "plan.json")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        plan.save(tmp_path)
    with pytest.raises(FileNotFoundError):
        BucketPlan.load(tmp_path / "other.json")


GONE = object()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ((GONE, "kind"), "is no plan"),
        ((2, "format"), "format 2, and this version reads 1"),
        ((GONE, "buckets"), "damaged plan: 'buckets' is missing"),
        ((GONE, "cost"), "damaged plan: 'cost' is missing"),
        (([], "buckets"), "a plan needs a bucket"),
        (({}, "buckets"), "buckets must be a list of objects"),
        (([3], "buckets"), "buckets must be a list of objects"),
        ((9999, "buckets", 0, "frames"), "must ascend"),
        (("40", "buckets", 0, "frames"), "frames must be a list of numbers"),
        ((1.5, "buckets", 0, "frames"), "frames must be a list of numbers"),
        ((0, "buckets", 0, "replicas"), "replicas must be a whole number"),
        (([], "geometry"), "geometry must be an object"),
        (([5, 2], "geometry", "strides"), "7 kernels and 2 strides"),
        (("fast", "geometry", "sampling_rate"), "sampling_rate is a whole number"),
        (([0], "batch_sizes"), "a batch size must be"),
        ((["1"], "batch_sizes"), "batch_sizes must be a list of numbers"),
        (([3.0, 1.0], "cost", "replay"), "replay falls"),
        ((None, "cost", "replay"), "replay must be a list of numbers"),
        (("0", "cost", "graph_memory"), "graph_memory must be"),
        (([1], "traffic", "counts"), "as many counts"),
        (([True], "traffic", "counts"), "counts must be a list of numbers"),
        (("many", "asked"), "asked must be a whole number"),
    ],
)
def test_a_damaged_plan_says_what_is_wrong(
    plan: BucketPlan, tmp_path: Path, damage: tuple[Any, ...], message: str
) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    content = json.loads(path.read_text())
    value, *keys, last = damage
    part = content
    for key in keys:
        part = part[key]
    if value is GONE:
        del part[last]
    else:
        part[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        BucketPlan.load(path)
    assert "plan.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000])
def test_a_file_that_is_no_plan(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"plan\.json is no"):
        BucketPlan.load(path)


# Seen


def rendered(plan: BucketPlan) -> str:
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as capture:
        console.print(plan)
    return capture.get()


def test_the_table_shows_every_bucket(plan: BucketPlan) -> None:
    shown = rendered(plan)
    for bucket in plan.buckets:
        assert f"{bucket.samples:,}" in shown
    for words in ("cost [ms]", "replicas", f"padding {plan.padding:.1%}", "batch size 1, 4", "MiB"):
        assert words in shown


def test_the_table_shows_the_tail() -> None:
    shown = rendered(plan_buckets({1.0: 9_999, 30.0: 1}, graphs=1))
    assert "> 1.00 s" in shown
    assert "< 0.1%" in shown
    assert "30.0" not in shown


def test_the_plot_draws_all_that_is_computed(plan: BucketPlan, tmp_path: Path) -> None:
    figure = plan.plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes()[1:4] == b"PNG"
    queries, frames = figure.axes
    for axes in (queries, frames):
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
        drawn = sorted({line.get_xdata()[0] for line in axes.lines})
        assert drawn == [plan.geometry.seconds(bucket.frames) for bucket in plan.buckets]


def test_one_length_can_be_drawn() -> None:
    figure = plan_buckets([2.0]).plot()
    assert figure.axes[0].get_title(loc="left").startswith("1 bucket: 0.0% padding")


def test_plans_are_values(plan: BucketPlan) -> None:
    plan.bucket_for(8_000)  # what is cached is no part of the value
    assert copy.deepcopy(plan) == plan
    assert len(repr(plan)) < 3_000
    with pytest.raises(AttributeError):
        plan.tail = 0.5  # type: ignore[misc]
    assert isinstance(plan.buckets[0], Bucket)
