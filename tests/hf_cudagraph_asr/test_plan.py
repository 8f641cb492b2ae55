"""Plans against brute force, against the pipeline, as files, and as people see them."""

import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hf_cudagraph_asr import Bucket, BucketPlan, Cost, Geometry, plan_buckets
from hf_cudagraph_asr.plan import Traffic, chunks_of

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


# Optimality


def chunk_of(frames: int) -> float:
    """Seconds of the chunk that gives so many frames."""
    return GEOMETRY.longest(frames) // GEOMETRY.hop * GEOMETRY.hop / GEOMETRY.sampling_rate


@st.composite
def problems(draw: st.DrawFn) -> tuple[Traffic, Cost, dict[str, Any]]:
    """A traffic, a replay cost that does not fall, any eager cost, and limits."""
    counts = draw(st.dictionaries(st.integers(5, 40), st.integers(0, 50), min_size=1, max_size=7))
    assume(any(counts.values()))
    frames = sorted(counts)
    values = st.floats(0, 100, allow_subnormal=False)
    steps, eager = (
        draw(st.lists(values | st.just(0.0), min_size=41, max_size=41)) for _ in range(2)
    )
    cost = Cost(tuple(range(41)), tuple(np.cumsum(steps).tolist()), tuple(eager))
    options: dict[str, Any] = {"graphs": draw(st.integers(1, 4))}
    if draw(st.booleans()):
        options["chunk_length_s"] = chunk_of(draw(st.integers(8, 40)))
    if draw(st.booleans()):  # a row of a frame is taken to need 393,216 bytes
        options["memory_limit"] = 393_216.0 * draw(st.integers(1, 80))
        options["batch_sizes"] = draw(st.sampled_from([(1,), (1, 2)]))
    return Traffic(tuple(frames), tuple(float(counts[f]) for f in frames)), cost, options


@given(problems())
@settings(max_examples=80)
def test_no_choice_of_lengths_is_cheaper(problem: tuple[Traffic, Cost, dict[str, Any]]) -> None:
    traffic, cost, options = problem
    pinned = set()
    if "chunk_length_s" in options:
        chunk, _ = chunks_of(GEOMETRY, options["chunk_length_s"])
        pinned = {GEOMETRY.frames(chunk)}
    rows = max(options.get("batch_sizes", (1,)))
    longest = options.get("memory_limit", math.inf) / 393_216 / rows

    def price(lengths: tuple[int, ...]) -> float:
        """One query after the other."""
        total = 0.0
        for frames, count in zip(traffic.frames, traffic.counts, strict=True):
            held = [length for length in lengths if length >= frames]
            curve = cost.replay if held else cost.eager
            assert curve is not None
            total += count * curve[held[0] if held else frames]
        return total / sum(traffic.counts)

    allowed = [
        lengths
        for m in range(1, options["graphs"] + 1)
        for lengths in combinations(sorted({*traffic.frames, *pinned}), m)
        if pinned <= set(lengths) and lengths[-1] <= longest
    ]
    if not allowed:
        with pytest.raises(ValueError, match=r"is needed, .* frames fit in memory"):
            plan_buckets(traffic, cost=cost, **options)
        return
    plan = plan_buckets(traffic, cost=cost, **options)
    assert plan.lengths in allowed
    assert price(plan.lengths) == pytest.approx(min(map(price, allowed)), rel=1e-9, abs=1e-9)
    assert plan.expected_cost == pytest.approx(price(plan.lengths), rel=1e-9, abs=1e-9)
    assert plan.pinned == tuple(pinned)


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


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 20))
@settings(max_examples=25)
def test_long_histograms_are_planned_as_the_quadratic_recurrence_plans_them(
    seed: int, n: int, graphs: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 1000, n).astype(float)
    # Steps, flat stretches and slopes.
    replay = np.cumsum(rng.exponential(1, n) * (rng.random(n) < rng.random()))
    eager = rng.uniform(0, 10) * replay.max() * rng.random(n)
    frames = tuple(range(1, n + 1))
    plan = plan_buckets(
        Traffic(frames, tuple(weights)),
        graphs=graphs,
        cost=Cost(frames, tuple(replay), tuple(eager)),
    )
    least = quadratic(weights, replay, eager, graphs) / weights.sum()
    assert plan.expected_cost == pytest.approx(least, rel=1e-9)


def test_padding_of_short_queries() -> None:
    """At most 9% with 16 buckets, whether or not the longest queries may run eagerly."""
    durations = voice_queries(np.random.default_rng(0), 200_000)
    for cost in (None, COVERED):
        plan = plan_buckets(durations, graphs=16, cost=cost)
        assert plan.padding <= 0.09
        assert plan.tail <= 0.001
    frames = GEOMETRY.frames(np.rint(durations * 16_000).astype(np.int64))
    by_hand = sum(plan.bucket_for(GEOMETRY.shortest(int(f))).frames for f in frames[:5000])  # type: ignore[union-attr]
    assert by_hand / frames[:5000].sum() - 1 == pytest.approx(plan.padding, abs=0.01)


def test_more_buckets_never_cost_more() -> None:
    traffic = Traffic.of(voice_queries(np.random.default_rng(0), 50_000), GEOMETRY)
    costs = [plan_buckets(traffic, graphs=k).expected_cost for k in (1, 2, 3, 5, 8, 13, 21, 34, 55)]
    assert costs == sorted(costs, reverse=True)


def test_an_hour_of_frames_is_planned_too() -> None:
    frames = np.unique(np.random.default_rng(0).integers(50, 180_000, 50_000))
    traffic = Traffic(tuple(frames.tolist()), (1.0,) * len(frames))
    assert plan_buckets(traffic, graphs=16).padding < 0.08


# What a plan says


def test_a_plan_counts_what_it_says() -> None:
    seconds = [1.0] * 6 + [1.5] * 2 + [4.0] * 8 + [30.0] * 4
    frames = {s: GEOMETRY.frames(round(s * 16_000)) for s in set(seconds)}
    cost = Cost(eager=(0.0, 1.05))
    plan = BucketPlan((frames[1.5], frames[4.0]), Traffic.of(seconds, GEOMETRY), cost=cost)
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
@settings(max_examples=50)
@example({49, 149}, 400)
@example({49, 149}, 399)
@example({49, 149}, GEOMETRY.longest(49))
@example({49, 149}, GEOMETRY.longest(49) + 1)
@example({49, 149}, GEOMETRY.longest(149) + 1)
def test_the_smallest_bucket_that_fits_is_found(lengths: set[int], samples: int) -> None:
    plan = BucketPlan(tuple(sorted(lengths)), Traffic((50,), (1,)))
    frames = GEOMETRY.frames(samples)
    fitting = [bucket for bucket in plan.buckets if bucket.frames >= frames >= 1]
    assert plan.bucket_for(samples) == (fitting[0] if fitting else None)


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


def under(plan: BucketPlan, durations: Any) -> BucketPlan:
    return replace(plan, traffic=Traffic.of(durations, plan.geometry))


def test_a_plan_under_other_traffic_keeps_its_buckets() -> None:
    plan = plan_buckets([1.0, 2.0, 3.0], graphs=2, concurrency=3, batch_sizes=(1, 2))
    again = under(plan, [1.0, 2.0, 3.0])
    assert again == plan
    longer = under(plan, [2.9] * 9 + [8.0])
    assert longer.lengths == plan.lengths
    assert longer.tail == 0.1
    assert longer.padding > 0


# Ways to say the same


def test_durations_come_in_many_shapes() -> None:
    seconds = [1.0, 2.5, 2.5, 4.0]
    plan = plan_buckets(seconds, graphs=2)
    for same in (
        tuple(seconds),
        iter(seconds),
        np.array(seconds),
        np.array(seconds, dtype=np.float32),
        {1.0: 1, 2.5: 2, 4.0: 1},
        {1.0: 1, 2.5: 2, 3.0: 0, 4.0: 1},
        Traffic.of(seconds, GEOMETRY),
    ):
        assert plan_buckets(same, graphs=2) == plan
    assert plan_buckets([3, 4]).traffic.frames == plan_buckets((3.0, 4.0)).traffic.frames
    assert hash(plan) == hash(plan_buckets(seconds, graphs=2))


def test_many_durations_count_like_their_histogram() -> None:
    seconds = voice_queries(np.random.default_rng(0), 100_000)
    counted = Traffic.of(seconds, GEOMETRY)
    values, counts = np.unique(seconds, return_counts=True)
    assert counted == Traffic.of(dict(zip(values, counts, strict=True)), GEOMETRY)
    frames = GEOMETRY.frames(np.rint(seconds * 16_000).astype(np.int64))
    there, times = np.unique(frames, return_counts=True)
    assert (counted.frames, counted.counts) == (tuple(there), tuple(times))


def test_costs_go_on_beyond_what_was_measured() -> None:
    cost = Cost((50, 100), (2.0, 3.0), (10.0, 9.0), "ms")
    at = np.array([1, 50, 75, 100, 150, 10_000])
    assert cost.replayed(at).tolist() == [2.0, 2.0, 2.5, 3.0, 4.0, 201.0]
    assert cost.run_eagerly(at).tolist() == [10.0, 10.0, 9.5, 9.0, 9.0, 9.0]
    assert Cost((7,), (2.0,), (3.0,)).replayed(at).tolist() == [2.0] * 6
    assert Cost((50, 100), (2.0, 3.0)).run_eagerly(at)[2] == 5 * 2.5  # not measured


# Long recordings


@given(st.integers(400, 700_000), st.sampled_from([3.0, 4.99, 10.0]))
@settings(max_examples=30)
def test_recordings_count_as_the_pipelines_chunks(samples: int, seconds: float) -> None:
    from transformers.pipelines.automatic_speech_recognition import chunk_iter

    class Extractor:
        sampling_rate = 16_000

        def __call__(self, chunk: Durations, **_: object) -> dict[str, Durations]:
            return {"input_values": chunk}

    chunk, stride = chunks_of(GEOMETRY, seconds)
    # As the pipeline rounds its own arguments.
    assert chunk == round(seconds * 16_000 / 320) * 320
    assert stride == round(seconds / 6 * 16_000 / 320) * 320
    chunks = chunk_iter(np.zeros(samples), Extractor(), chunk, stride, stride)
    lengths = [len(item["input_values"]) for item in chunks]
    assume(min(lengths) >= 400)
    traffic = Traffic.of([samples / 16_000], GEOMETRY, seconds)
    expected = [GEOMETRY.frames(n) for n in lengths]
    assert dict(zip(traffic.frames, traffic.counts, strict=True)) == {
        frames: expected.count(frames) for frames in expected
    }


def test_chunks_of_many_recordings_add_up() -> None:
    recordings = {2.0: 3, 6.0: 5, 10.0: 7, 13.0: 2}  # a chunk of 6 s begins every 4 s
    # 10 s: two whole chunks. 13 s: two, and one from 8 s on.
    expected = {2.0: 3, 5.0: 2, 6.0: 5 + 2 * 7 + 2 * 2}
    frames = {GEOMETRY.frames(int(s * 16_000)): float(n) for s, n in expected.items()}
    for durations in (recordings, [s for s, n in recordings.items() for _ in range(n)]):
        traffic = Traffic.of(durations, GEOMETRY, 6.0)
        assert dict(zip(traffic.frames, traffic.counts, strict=True)) == frames


def test_chunks_have_a_bucket_of_their_own() -> None:
    seconds = voice_queries(np.random.default_rng(0), 20_000)
    plan = plan_buckets(seconds, graphs=4, chunk_length_s=6.0)
    frames = GEOMETRY.frames(96_000)
    assert plan.pinned == (frames,)
    assert [bucket.pinned for bucket in plan.buckets] == [False, False, False, True]
    assert frames not in plan_buckets(seconds, graphs=4).lengths
    # Nothing is longer than a chunk, and nothing runs eagerly.
    assert plan.lengths[-1] == frames
    assert plan.tail == 0
    assert "* chunks of long recordings" in str(plan)
    # Not a query that long: the bucket is there all the same.
    idle = plan_buckets([1.0, 2.0], graphs=2, chunk_length_s=10.0)
    assert [b.share > 0 for b in idle.buckets] == [True, False]
    assert idle.bucket_for(160_000) == idle.buckets[-1]


# Replicas and memory


@given(st.sampled_from([0.5, 1.0, 4.0, 12.0]), st.integers(1, 99), st.integers(1, 40))
@settings(max_examples=50)
def test_a_bucket_has_as_many_replicas_as_95_percent_of_all_moments_want(
    longer: float, queries: int, concurrency: int
) -> None:
    traffic = Traffic((10, 100), (float(queries), 100.0 - queries))
    cost = Cost((10, 100), (1.0, longer + 1.0))
    plan = plan_buckets(traffic, graphs=2, cost=cost, concurrency=concurrency)
    busy = [bucket.share * bucket.cost for bucket in plan.buckets]
    for share, copies in zip(busy, plan.replicas, strict=True):
        p = share / sum(busy)

        def at_most(k: int, p: float = p) -> float:
            n = concurrency
            return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

        assert 1 <= copies <= concurrency
        assert at_most(copies) >= 0.95 - 1e-9
        assert copies <= 2 or at_most(copies - 2) < 0.95 + 1e-9  # and hardly more


def test_replicas_follow_time_not_queries() -> None:
    seconds = [1.0] * 50 + [20.0] * 50
    plan = plan_buckets(seconds, graphs=2, concurrency=8, batch_sizes=(2, 1, 2))
    short, long = plan.buckets
    assert short.share == long.share
    assert long.replicas == 8 > short.replicas
    assert plan.batch_sizes == (1, 2)
    assert plan.captures == 2 * (short.replicas + long.replicas)
    assert set(plan_buckets(seconds).replicas) == {1}
    assert plan_buckets(seconds, concurrency=10**9).replicas[-1] > 0.9e9
    free = plan_buckets(seconds, concurrency=8, cost=Cost((1, 2), (0.0, 0.0)))
    assert set(free.replicas) == {1}


def test_replicas_stay_within_the_memory_limit() -> None:
    seconds = voice_queries(np.random.default_rng(0), 5_000)
    free = plan_buckets(seconds, graphs=4, concurrency=16)

    def needed(plan: BucketPlan) -> int:
        """Bytes of pools that each hold the buckets with replicas for it."""
        pools = range(max(plan.replicas))
        longest = [max(b.frames for b in plan.buckets if b.replicas > pool) for pool in pools]
        return 393_216 * sum(longest)

    for part in (0.3, 0.5, 0.9):
        limit = part * needed(free)
        plan = plan_buckets(seconds, graphs=4, concurrency=16, memory_limit=limit)
        assert needed(plan) <= limit
        assert free.captures > plan.captures >= len(plan.lengths)


def test_memory_is_estimated_from_the_models_first_convolution() -> None:
    from transformers import Wav2Vec2Config

    seconds = [1.0, 2.0, 30.0]
    limit = 100 * 2**20
    # 512 channels × 64 values a frame × 3 tensors × 4 bytes
    assert plan_buckets(seconds, memory_limit=512 * 64 * 12 * 99).lengths == (49, 99)
    assert plan_buckets(seconds, memory_limit=512 * 64 * 12 * 99 - 1).lengths == (49,)
    narrow = Wav2Vec2Config(conv_dim=(32,) * 7)
    assert plan_buckets(seconds, memory_limit=limit).tail > 0
    assert plan_buckets(seconds, memory_limit=limit, model=narrow).tail == 0
    with pytest.raises(ValueError, match="a bucket of 49 frames at batch size 1 is needed"):
        plan_buckets(seconds, memory_limit=1000)
    with pytest.raises(ValueError, match="a bucket of 499 frames at batch size 1 is needed"):
        plan_buckets(seconds, memory_limit=limit, chunk_length_s=10)


# Bad input


@pytest.mark.parametrize(
    ("durations", "message"),
    [
        ([], "no durations"),
        ({}, "no durations"),
        ({1.0: 0}, "no query counts above 0"),
        ([1.0, math.nan], "durations must be finite numbers from 0 up, not nan"),
        ([1.0, math.inf], "durations must be finite numbers from 0 up, not inf"),
        ([1.0, -2.0, -3.0], "durations must be finite numbers from 0 up, not -2.0"),
        ([0.0], "from one frame up to a day, and 1 are not, such as 0.0"),
        ([1.0, 160_000], "1 are not, such as 160000.0: .* convert them to seconds from millisec"),
        ([0.02, 1.0], "1 are not, such as 0.02: .* milliseconds, samples or minutes"),
        (["1.0", "2.0"], "durations must be one row of numbers"),
        ([None, 1.0], "one row of numbers"),
        ([[1.0, 2.0]], "one row of numbers"),
        ("1.0", "one row of numbers, not array"),
        (3.0, "one row of numbers"),
        (None, "one row of numbers"),
        ([True], "one row of numbers"),
        ([1 + 2j], "one row of numbers"),
        ({1.0: -1}, "counts must be finite numbers from 0 up"),
        ({1.0: math.nan}, "counts must be finite numbers from 0 up"),
        ({"1.0": 3}, "one row of numbers"),
    ],
)
def test_durations_that_cannot_be_planned_for(durations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_buckets(durations)


@pytest.mark.parametrize(
    ("durations", "message"),
    [
        # milliseconds
        (
            [800, 1900, 2400],
            "3 of 3 durations are above 120 s, up to .* milliseconds or samples, con",
        ),
        (np.array([1.2, 2.4, 1800, 3.1]), "1 of 4 durations are above 120 s, up to 1,800 s"),
        ({1.5: 10_000, 4000.0: 3}, "3 of 10,003 durations are above"),
        # samples, of 16,000 a second
        ([16_000, 40_000, 80_000], "if they are milliseconds or samples, convert them to seconds"),
        # whole recordings
        ([900.0, 3600.0, 1800.0], "up to 3,600 s: .*chunk_length_s cuts recordings"),
    ],
)
def test_durations_that_are_hardly_seconds_are_said(durations: Any, message: str) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        plan_buckets(durations)
    assert caught[0].filename == __file__  # the caller's line is the one to mend


def test_durations_that_may_be_meant_are_planned_without_a_word() -> None:
    plan_buckets([900.0, 3600.0, 7200.0], chunk_length_s=20)
    plan_buckets({1.8: 10_000, 300.0: 1, 0.1: 500})
    plan_buckets(Traffic((3, 20_000), (9.0, 1.0)))  # frames, whatever their unit was


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graphs": 0}, "graphs must be a whole number from 1 up, not 0"),
        ({"graphs": 2.0}, "graphs must be a whole number"),
        ({"graphs": True}, "graphs must be a whole number"),
        ({"batch_sizes": ()}, "batch_sizes must be whole numbers from 1 up"),
        ({"batch_sizes": (0,)}, "a batch size must be"),
        ({"batch_sizes": "12"}, "a batch size must be"),
        ({"batch_sizes": 4}, "batch_sizes must be whole numbers"),
        ({"concurrency": 0}, "concurrency must be"),
        ({"memory_limit": 0}, "memory_limit must be bytes above 0"),
        ({"memory_limit": math.nan}, "memory_limit must be bytes above 0"),
        ({"memory_limit": "1 GiB"}, "memory_limit must be bytes above 0"),
        ({"sampling_rate": 0}, "sampling_rate is a whole number"),
        ({"model": object()}, "object has no conv_kernel"),
        ({"cost": {100: 1.0}}, "cost must be a Cost, as pool.calibrate"),
        ({"chunk_length_s": 0.01}, "a chunk of 0.01 s is too short"),
        ({"chunk_length_s": -6.0}, "chunk_length_s must be seconds up to a day"),
        ({"chunk_length_s": 1e300}, "chunk_length_s must be seconds up to a day"),
        ({"chunk_length_s": math.nan}, "chunk_length_s must be seconds up to a day"),
        ({"chunk_length_s": "6"}, "chunk_length_s must be seconds up to a day"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_buckets([1.0, 2.0], **options)


ONE = Traffic((1,), (1,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BucketPlan((), ONE), "the lengths of a plan must be whole numbers from 1 up"),
        (lambda: BucketPlan((0,), ONE), "must be whole numbers from 1 up"),
        (lambda: BucketPlan((5, 4), ONE), "in ascending order"),
        (lambda: BucketPlan((5,), ONE, replicas=(1, 2)), "1 lengths have 2 replicas"),
        (lambda: BucketPlan((5,), ONE, pinned=(6,)), r"\[6\] are pinned"),
        (lambda: BucketPlan((5, 6), ONE, pinned=(5, 6), graphs=1).anew(ONE), "raise memory_limit"),
        (lambda: Traffic((), ()), "at least one"),
        (lambda: Traffic((2, 1), (1, 1)), "the lengths of traffic must be .* in ascending order"),
        (lambda: Traffic((0,), (1,)), "from 1 up"),
        (lambda: Traffic((1, 2), (1,)), "must be 2 numbers, one for each length, not 1"),
        (lambda: Traffic((1,), (0,)), "no query counts above 0"),
        (lambda: Cost((1, 2), (1.0,)), "replay must be 2 numbers, one for each length, not 1"),
        (lambda: Cost((2, 1), (1.0, 1.0)), "ascending"),
        (lambda: Cost((100.5,), (1.0,)), "the frames of a cost must be whole numbers from 0 up"),
        (lambda: Cost((1,), (-1.0,)), "replay must be finite numbers from 0 up, not -1.0"),
        (lambda: Cost((49, 50), (2.0, 1.0)), r"replay must not fall, as \(2.0, 1.0\)"),
    ],
)
def test_parts_that_do_not_fit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Other geometries


def test_a_plan_refuses_a_model_of_another_geometry() -> None:
    from transformers import HubertConfig, Wav2Vec2Config

    plan = plan_buckets([1.0, 2.0], model=Wav2Vec2Config())
    for same in (Wav2Vec2Config(), HubertConfig(), Geometry()):
        plan.check_geometry(same)
    other = Wav2Vec2Config(conv_stride=(5, 2, 2, 2, 2, 2, 1))
    with pytest.raises(
        ValueError, match=r"this plan is for .* 320 samples.* model=model"
    ) as caught:
        plan.check_geometry(other)
    assert "160 samples" in str(caught.value)
    with pytest.raises(ValueError, match="8,000 Hz"):
        plan.check_geometry(Geometry(sampling_rate=8_000))
    assert plan_buckets([1.0], model=other).lengths == (Geometry.of(other).frames(16_000),)
    assert plan_buckets([1.0], sampling_rate=8_000).lengths == (GEOMETRY.frames(8_000),)


# Files


@pytest.fixture(scope="module")
def plan() -> BucketPlan:
    return plan_buckets(
        voice_queries(np.random.default_rng(0), 3_000),
        graphs=5,
        model=Geometry(sampling_rate=8_000),
        batch_sizes=(1, 4),
        cost=Cost((10, 90), (1.5, 4.0), (9.0, 8.0), "ms"),
        memory_limit=2.0**33,
        chunk_length_s=6.0,
        concurrency=4,
    )


def test_a_plan_is_read_as_it_was_written(plan: BucketPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    plan.save(path)  # a plan may be replaced
    assert BucketPlan.load(path) == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    bare = plan_buckets([2.0])
    bare.save(path)
    assert BucketPlan.load(path) == bare


def test_lists_and_numpys_numbers_are_written_too(tmp_path: Path) -> None:
    frames, counts = np.array([3, 9]), np.array([2, 5], dtype=np.float32)
    traffic = Traffic([*frames], [*counts])  # type: ignore[arg-type]
    cost = Cost([*frames], [*counts], [*counts])  # type: ignore[arg-type]
    plan = BucketPlan([*frames], traffic, cost=cost, batch_sizes=[*frames], graphs=np.int64(4))  # type: ignore[arg-type]
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


def test_a_plan_is_written_through_a_link(plan: BucketPlan, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "plan.json"
    link.symlink_to(Path("store", "kept"))
    for _ in range(2):  # what the link names is not there the first time
        plan.save(link)
        assert link.is_symlink()
        assert BucketPlan.load(tmp_path / "store" / "kept") == plan
    assert sorted(os.listdir(tmp_path / "store")) == ["kept"]


GONE = object()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ((GONE, "kind"), "is no plan"),
        ((1, "format"), "format 1, and this version reads 2: plan again, or read it with"),
        ((GONE, "lengths"), "damaged plan: 'lengths' is missing"),
        ((GONE, "cost"), "damaged plan: 'cost' is missing"),
        ((GONE, "cost", "eager"), "damaged plan: 'eager' is missing"),
        (([], "lengths"), "the lengths of a plan must be whole numbers"),
        ((9999, "lengths", 0), "in ascending order"),
        (("40", "lengths", 0), "the lengths of a plan must be whole numbers"),
        ((1.5, "lengths", 0), "the lengths of a plan must be whole numbers"),
        ((0, "replicas", 0), "replicas must be a whole number"),
        ((3, "replicas"), "damaged plan: .* iterable"),
        (([], "geometry"), "damaged plan: list indices"),
        (([5, 2], "geometry", "strides"), "7 kernels and 2 strides"),
        (("fast", "geometry", "sampling_rate"), "sampling_rate is a whole number"),
        (([0], "batch_sizes"), "a batch size must be"),
        ((["1"], "batch_sizes"), "a batch size must be"),
        (([3.0, 1.0], "cost", "replay"), "replay must not fall"),
        (([[]], "pinned"), "damaged plan: unhashable"),
        (([1], "traffic", "counts"), "the counts of traffic must be"),
        ((["9"], "traffic", "counts"), "the counts of traffic must be"),
        (("many", "graphs"), "graphs must be a whole number"),
        (("much", "most_frames"), "most_frames must be a number, or None, not 'much'"),
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


def test_a_plan_prints_its_buckets_and_what_holds_for_all(plan: BucketPlan) -> None:
    shown = plan.table()
    assert str(plan) == shown
    heads, *rows = shown.splitlines()[: len(plan.buckets) + 1]
    assert heads.split() == "up to frames samples queries padding cost (ms) replicas".split()
    for bucket, row in zip(plan.buckets, rows, strict=True):
        assert row.split()[-6:-3] == [
            f"{bucket.frames}",
            f"{bucket.samples:,}",
            f"{bucket.share:.1%}",
        ]
    assert f"padding {plan.padding:.1%}; run eagerly 0.0% of" in shown
    assert f"{plan.captures} graphs at batch size 1, 4" in shown
    assert "made for input at 8,000 Hz" in shown
    assert f"{plan.eager_cost:,.4g} if all of them ran eagerly)" in shown  # as measured


def test_what_is_not_measured_and_not_captured_is_said() -> None:
    shown = str(plan_buckets({1.0: 9_999, 30.0: 1}, graphs=1))
    assert "ran eagerly, assumed to cost 5 times a replay: pool.calibrate() measures it" in shown
    assert "> 1.00 s" in shown
    assert "< 0.1%" in shown
    assert "30.0" not in shown
    assert "at 16,000 Hz" in shown
    few = plan_buckets([2.0, 2.0, 3.0], graphs=16)
    assert len(few.buckets) == 2
    assert "16 buckets were allowed: more than these gain nothing\n" in f"{few}\n"
    limited = plan_buckets([2.0, 2.0, 3.0], graphs=16, memory_limit=2.0**30)
    assert "gain nothing, or exceed the memory limit" in str(limited)


def test_the_plot_draws_all_that_is_computed(plan: BucketPlan, tmp_path: Path) -> None:
    figure = plan.plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes()[1:4] == b"PNG"
    (axes,) = figure.axes
    frames, counts = plan.traffic.arrays()
    computed = np.array(plan.lengths)[np.searchsorted(plan.lengths, frames)] @ counts
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(computed)
    second = plan.geometry.sampling_rate / plan.geometry.hop
    assert [line.get_xdata()[0] * second for line in axes.lines] == pytest.approx(plan.lengths)
    assert plan_buckets([2.0]).plot().axes[0].get_title() == "padding 0.0%, run eagerly 0.00%"


def test_plans_are_values(plan: BucketPlan) -> None:
    plan.bucket_for(8_000)  # what is cached is no part of the value
    assert copy.deepcopy(plan) == plan
    assert len(repr(plan)) < 3_000
    with pytest.raises(AttributeError):
        plan.graphs = 5  # type: ignore[misc]
    assert isinstance(plan.buckets[0], Bucket)
