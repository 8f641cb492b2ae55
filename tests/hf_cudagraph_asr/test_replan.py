"""Proposals of new plans against direct computation, and against chance."""

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_plan import TRAFFICS

from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan import (
    BucketPlan,
    Cost,
    LengthSketch,
    Proposal,
    Traffic,
    plan_buckets,
    propose,
)

GEOMETRY = Geometry()

Seconds = npt.NDArray[np.float64]


def voice(median: float, queries: int, seed: int) -> Seconds:
    """Log-normal durations, σ = 0.5."""
    drawn = np.random.default_rng(seed).lognormal(math.log(median), 0.5, queries)
    return np.maximum(drawn, 0.1)


def seen(durations: Seconds, *, half_life: float | None = None) -> LengthSketch:
    sketch = LengthSketch(GEOMETRY, half_life=half_life)
    for samples in np.rint(durations * GEOMETRY.sampling_rate).astype(int).tolist():
        sketch.add(samples)
    return sketch


def lengths(plan: BucketPlan) -> list[int]:
    return [bucket.frames for bucket in plan.buckets]


# The gain


@pytest.mark.parametrize("shapes", [*permutations(TRAFFICS, 2)], ids=" to ".join)
def test_a_drifted_traffic_gains_what_planning_anew_gains(shapes: tuple[str, str]) -> None:
    before, after = (TRAFFICS[shape](np.random.default_rng(0), 20_000) for shape in shapes)
    plan = plan_buckets(before, graphs=8)
    proposal = propose(plan, seen(after))
    best, current = plan_buckets(after, graphs=8), plan.on(after)
    assert proposal.gain == pytest.approx(1 - best.expected_cost / current.expected_cost)
    assert lengths(proposal.plan) == lengths(best)
    assert proposal.plan.expected_cost == pytest.approx(best.expected_cost)
    assert lengths(proposal.current) == lengths(plan)
    assert proposal.padding == pytest.approx((current.padding, best.padding))
    assert proposal.queries == 20_000
    assert proposal.worthwhile  # these shapes have little in common


@pytest.mark.parametrize("shape", TRAFFICS)
def test_the_traffic_a_plan_was_made_for_gains_nothing(shape: str) -> None:
    durations = TRAFFICS[shape](np.random.default_rng(0), 20_000)
    plan = plan_buckets(durations, graphs=8)
    proposal = propose(plan, seen(durations))
    assert proposal.plan is proposal.current
    assert lengths(proposal.plan) == lengths(plan)
    assert (proposal.gain, proposal.assured, proposal.worthwhile) == (0.0, 0.0, False)


def test_queries_that_grow_longer_are_worth_a_swap() -> None:
    plan = plan_buckets(voice(1.8, 100_000, 0))
    durations = voice(4.0, 20_000, 1)
    proposal = propose(plan, seen(durations))
    direct = plan_buckets(durations).expected_cost / plan.on(durations).expected_cost
    assert proposal.gain == pytest.approx(1 - direct)
    assert proposal.gain > 0.1
    assert 0.02 < proposal.assured < proposal.gain
    assert proposal.worthwhile
    assert not propose(plan, seen(durations), least_gain=0.5).worthwhile


def test_an_assured_gain_is_nearly_always_had_by_queries_to_come() -> None:
    plan, fresh = plan_buckets(voice(1.8, 100_000, 0)), voice(2.2, 200_000, 1)
    now = plan.on(fresh).expected_cost
    kept = 0
    for seed in range(40):
        proposal = propose(plan, seen(voice(2.2, 2_000, 2 + seed)))
        kept += proposal.assured <= 1 - proposal.plan.on(fresh).expected_cost / now
    assert kept >= 38  # 95%


def test_chance_alone_is_worth_no_swap() -> None:
    plan = plan_buckets(voice(1.8, 100_000, 0))
    proposals = [
        propose(plan, seen(voice(1.8, 1_000, 1 + seed)), least_gain=0) for seed in range(40)
    ]
    # A plan made of few queries suits these better …
    assert np.mean([proposal.gain for proposal in proposals]) > 0.01
    # … and others worse.
    assert sum(proposal.worthwhile for proposal in proposals) <= 2  # 5%


def test_traffic_half_forgotten_is_planned_for_as_it_weighs() -> None:
    plan = plan_buckets(voice(1.8, 20_000, 0))
    sketch = seen(np.concatenate([voice(1.8, 20_000, 1), voice(4.0, 20_000, 2)]), half_life=5_000)
    proposal = propose(plan, sketch)
    traffic = sketch.traffic()
    direct = plan_buckets(traffic).expected_cost / plan.on(traffic).expected_cost
    assert proposal.gain == pytest.approx(1 - direct)
    assert proposal.queries == pytest.approx(sketch.total)
    assert proposal.queries < 8_000
    assert proposal.worthwhile


def test_queries_of_which_none_weighs_a_whole_one_still_assure_a_gain() -> None:
    sketch = LengthSketch(GEOMETRY, half_life=1_500)
    for frames in np.random.default_rng(0).permutation(2_000):  # each length once
        sketch.add(GEOMETRY.longest(int(frames) + 1))
    assert max(sketch.traffic().counts) == 1
    assert propose(plan_buckets([1.0, 40.0], graphs=8), sketch).worthwhile


def test_the_same_seed_assures_the_same() -> None:
    plan, sketch = plan_buckets(voice(1.8, 10_000, 0)), seen(voice(3.0, 2_000, 1))
    assert propose(plan, sketch) == propose(plan, sketch)
    assert propose(plan, sketch, seed=1).assured != propose(plan, sketch).assured


# What stays


@st.composite
def problems(draw: st.DrawFn) -> tuple[BucketPlan, LengthSketch, dict[str, Any]]:
    """A present plan, lengths seen, and options."""
    frames = st.integers(1, 40)
    counts = st.dictionaries(frames, st.integers(1, 30), min_size=1, max_size=12)
    before, after = draw(counts), draw(counts)
    ends = draw(st.sets(frames, min_size=1, max_size=6))
    rates = st.lists(st.floats(0, 10, allow_subnormal=False), min_size=2, max_size=2)
    replay, eager = np.cumsum(draw(rates)), draw(rates)
    plan = BucketPlan.of(
        ends,
        Traffic(tuple(sorted(before)), tuple(float(before[f]) for f in sorted(before))),
        batch_sizes=draw(st.sets(st.integers(1, 8), min_size=1, max_size=3)),
        cost=Cost((0, 40), tuple(replay.tolist()), tuple(eager)),
        pinned=draw(st.sets(st.sampled_from(sorted(ends)), max_size=1)),
        asked=draw(st.integers(len(ends), 8)),
    )
    sketch = LengthSketch(GEOMETRY, half_life=draw(st.none() | st.floats(1, 100)))
    for length in draw(st.permutations([f for f, count in after.items() for _ in range(count)])):
        sketch.add(GEOMETRY.shortest(length))
    options: dict[str, Any] = {"minimum_queries": 1}
    if draw(st.booleans()):
        options["graphs"] = draw(st.integers(1, 8))
    return plan, sketch, options


@given(problems())
@settings(deadline=None, max_examples=200)
def test_no_proposal_is_dearer_or_of_another_kind(
    problem: tuple[BucketPlan, LengthSketch, dict[str, Any]],
) -> None:
    plan, sketch, options = problem
    proposal = propose(plan, sketch, **options)
    new, current = proposal.plan, proposal.current
    assert current == plan.on(sketch.traffic())
    assert new.expected_cost <= current.expected_cost
    assert 0 <= proposal.gain <= 1
    assert math.isfinite(proposal.assured)
    assert new is current or (len(new.buckets) <= options.get("graphs", plan.asked))
    assert (new is current) == (proposal.gain == 0)
    assert proposal.gain > 0 or not proposal.worthwhile
    assert (new.geometry, new.batch_sizes, new.cost) == (plan.geometry, plan.batch_sizes, plan.cost)
    assert new.traffic == sketch.traffic()
    pinned = [bucket.frames for bucket in plan.buckets if bucket.pinned]
    assert [bucket.frames for bucket in new.buckets if bucket.pinned] == pinned
    assert str(proposal)


convolutions = st.tuples(st.integers(1, 8), st.integers(1, 4))


@given(
    st.lists(convolutions, min_size=1, max_size=4), st.integers(1, 3_000), st.integers(1, 48_000)
)
@settings(deadline=None)
def test_a_pinned_chunk_stays_pinned_in_every_geometry(
    layers: list[tuple[int, int]], chunk: int, rate: int
) -> None:
    geometry = Geometry(tuple(k for k, _ in layers), tuple(s for _, s in layers), rate)
    traffic = Traffic((chunk, chunk + 10), (1.0, 1.0))
    plan = BucketPlan.of([chunk, chunk + 10], traffic, geometry=geometry, pinned=[chunk])
    sketch = LengthSketch(geometry)
    for length in (chunk + 5, chunk + 7):
        sketch.add(geometry.longest(min(length, 2_048)))
    proposal = propose(plan, sketch, minimum_queries=1)
    assert [bucket.frames for bucket in proposal.plan.buckets if bucket.pinned] == [chunk]


def test_the_chunk_of_a_pipeline_stays() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0), chunk_length_s=10, stride_length_s=(2, 1))
    proposal = propose(plan, seen(voice(4.0, 5_000, 1)))
    (chunk,) = [bucket.frames for bucket in plan.buckets if bucket.pinned]
    assert proposal.worthwhile
    assert [bucket.frames for bucket in proposal.plan.buckets if bucket.pinned] == [chunk]


def test_a_plan_may_be_proposed_for_other_numbers_and_costs() -> None:
    plan, durations = plan_buckets(voice(1.8, 5_000, 0), graphs=4), voice(4.0, 5_000, 1)
    milliseconds = Cost((0, 100, 1_000), (2.0, 3.0, 40.0), (9.0, 10.0, 60.0), unit="ms")
    proposal = propose(plan, seen(durations), graphs=9, cost=milliseconds)
    best = plan_buckets(durations, graphs=9, cost=milliseconds)
    current = plan.on(durations, cost=milliseconds)
    assert lengths(proposal.plan) == lengths(best)
    assert proposal.gain == pytest.approx(1 - best.expected_cost / current.expected_cost)
    assert proposal.plan.cost is proposal.current.cost is milliseconds
    by_callable = propose(plan, seen(durations), graphs=9, cost=lambda frames: 2 + frames / 50)
    assert by_callable.plan.cost == by_callable.current.cost


def test_more_memory_is_not_taken_than_there_is() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0), memory_limit=2**25)
    sketch = seen(voice(4.0, 5_000, 1))
    free, limited = propose(plan, sketch), propose(plan, sketch, memory_limit=2**25)
    assert free.plan.memory is not None
    assert free.plan.memory > 2**25
    assert limited.plan.memory is not None
    assert limited.plan.memory <= 2**25


def test_replicas_are_planned_anew() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0), graphs=4, concurrency=4)
    sketch = seen(voice(4.0, 5_000, 1))
    with pytest.raises(ValueError, match="has replicas: give the concurrency"):
        propose(plan, sketch)
    proposal = propose(plan, sketch, concurrency=4)
    direct = plan_buckets(voice(4.0, 5_000, 1), graphs=4, concurrency=4)
    assert [b.replicas for b in proposal.plan.buckets] == [b.replicas for b in direct.buckets]


# What is refused


def test_few_queries_are_not_planned_for() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0))
    with pytest.raises(ValueError, match=r"^999 queries were seen and 1,000 are needed") as caught:
        propose(plan, seen(voice(1.8, 999, 1)))
    assert "half-life" not in str(caught.value)
    assert propose(plan, seen(voice(1.8, 1_000, 1))).queries == 1_000
    with pytest.raises(ValueError, match="0 queries were seen and 1 are needed"):
        propose(plan, LengthSketch(GEOMETRY), minimum_queries=1)
    with pytest.raises(ValueError, match="minimum_queries must be a whole number from 1 up"):
        propose(plan, seen(voice(1.8, 10, 1)), minimum_queries=0)


def test_a_sketch_that_forgets_too_fast_says_so() -> None:
    plan, sketch = plan_buckets(voice(1.8, 5_000, 0)), seen(voice(1.8, 9_000, 1), half_life=100)
    with pytest.raises(
        ValueError, match=r"^145 queries .* half-life of 100 .* more than 145: make"
    ):
        propose(plan, sketch)


def test_a_single_query_assures_nothing() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0))
    proposal = propose(plan, seen(np.array([3.0])), minimum_queries=1, least_gain=0)
    assert proposal.gain > 0
    assert not proposal.worthwhile


def test_what_does_not_fit_the_plan_is_refused() -> None:
    plan, sketch = plan_buckets(voice(1.8, 5_000, 0)), seen(voice(1.8, 2_000, 1))
    other = LengthSketch(replace(GEOMETRY, sampling_rate=8_000))
    with pytest.raises(ValueError, match=r"the plan is for .* 16,000 Hz; .* 8,000 Hz"):
        propose(plan, other)
    for least in (-0.1, 1, math.nan, "2%"):
        with pytest.raises(ValueError, match="least_gain is a share from 0 up and below 1"):
            propose(plan, sketch, least_gain=least)  # type: ignore[arg-type]
    pinned = BucketPlan.of([50, 100, 200], sketch.traffic(), pinned=[50, 100])
    with pytest.raises(ValueError, match=r"pinned at \[50, 100\] frames, and plan_buckets pins"):
        propose(pinned, sketch)


# As people see it


def rendered(proposal: Proposal) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(proposal)
    return capture.get()


def test_a_proposal_shows_both_plans() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0), graphs=4, memory_limit=2**40)
    proposal = propose(plan, seen(voice(4.0, 5_000, 1)))
    for text in (str(proposal), rendered(proposal)):
        assert "worth a swap" in text
        assert f"{proposal.gain:.1%} saved on 5,000 queries" in text
        assert f"{proposal.assured:.1%} assured of others (2.0% needed)" in text
        for found in (proposal.current, proposal.plan):
            assert f"{found.padding:.1%}" in text
            assert f"{found.expected_cost:,.4g}" in text
            assert f"{found.geometry.seconds(lengths(found)[-1]):.2f} s" in text
        assert "[frames]" in text
        assert "MiB" in text


def test_a_proposal_of_the_present_plan_says_so() -> None:
    durations = voice(1.8, 5_000, 0)
    proposal = propose(plan_buckets(durations), seen(durations))
    assert str(proposal).startswith("nothing to gain on 5,000 queries")
    assert "nothing to gain" in rendered(proposal)
    assert "MiB" not in rendered(proposal)
