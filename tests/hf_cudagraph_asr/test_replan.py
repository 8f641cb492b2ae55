"""Proposals of new plans against direct computation, and against chance."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import TRAFFICS, under

from hf_cudagraph_asr import BucketPlan, Cost, Geometry, LengthSketch, plan_buckets
from hf_cudagraph_asr.plan import Traffic, propose

GEOMETRY = Geometry()

Seconds = npt.NDArray[np.float64]


def voice(median: float, queries: int, seed: int) -> Seconds:
    """Log-normal durations, σ = 0.5."""
    drawn = np.random.default_rng(seed).lognormal(math.log(median), 0.5, queries)
    return np.maximum(drawn, 0.1)


def seen(durations: Seconds, *, half_life: float = math.inf) -> LengthSketch:
    sketch = LengthSketch(GEOMETRY, half_life=half_life)
    for samples in np.rint(durations * GEOMETRY.sampling_rate).astype(int).tolist():
        sketch.add(samples)
    return sketch


# The gain


@pytest.mark.parametrize(
    "shapes",
    [("log-normal", "bimodal"), ("bimodal", "LibriSpeech-like"), ("one length", "log-normal")],
    ids=" to ".join,
)
def test_a_drifted_traffic_gains_what_planning_anew_gains(shapes: tuple[str, str]) -> None:
    before, after = (TRAFFICS[shape](np.random.default_rng(0), 20_000) for shape in shapes)
    plan = plan_buckets(before, graphs=8)
    proposal = propose(plan, seen(after))
    best, current = plan_buckets(after, graphs=8), under(plan, after)
    assert proposal.gain == pytest.approx(1 - best.expected_cost / current.expected_cost)
    assert proposal.plan.lengths == best.lengths
    assert proposal.plan.expected_cost == pytest.approx(best.expected_cost)
    assert proposal.current.lengths == plan.lengths
    assert proposal.current.padding == pytest.approx(current.padding)
    assert proposal.plan.padding == pytest.approx(best.padding)
    assert proposal.queries == 20_000
    assert proposal.worthwhile  # these shapes have little in common


@pytest.mark.parametrize("shape", TRAFFICS)
def test_the_traffic_a_plan_was_made_for_gains_nothing(shape: str) -> None:
    durations = TRAFFICS[shape](np.random.default_rng(0), 20_000)
    plan = plan_buckets(durations, graphs=8)
    proposal = propose(plan, seen(durations))
    assert proposal.plan is proposal.current
    assert proposal.plan.lengths == plan.lengths
    assert (proposal.gain, proposal.assured, proposal.worthwhile) == (0.0, 0.0, False)


def test_queries_that_grow_longer_are_worth_a_swap() -> None:
    plan = plan_buckets(voice(1.8, 20_000, 0))
    durations = voice(4.0, 20_000, 1)
    proposal = propose(plan, seen(durations))
    direct = plan_buckets(durations).expected_cost / under(plan, durations).expected_cost
    assert proposal.gain == pytest.approx(1 - direct)
    assert proposal.gain > 0.1
    assert 0.02 < proposal.assured < proposal.gain
    assert proposal.worthwhile
    assert not propose(plan, seen(durations), least_gain=0.5).worthwhile


def test_an_assured_gain_is_nearly_always_had_by_queries_to_come() -> None:
    plan, fresh = plan_buckets(voice(1.8, 20_000, 0)), voice(2.2, 50_000, 1)
    now = under(plan, fresh).expected_cost
    kept = 0
    for seed in range(20):
        proposal = propose(plan, seen(voice(2.2, 2_000, 2 + seed)))
        kept += proposal.assured <= 1 - under(proposal.plan, fresh).expected_cost / now
    assert kept >= 19  # 95%


def test_chance_alone_is_worth_no_swap() -> None:
    plan = plan_buckets(voice(1.8, 20_000, 0))
    proposals = [
        propose(plan, seen(voice(1.8, 1_000, 1 + seed)), least_gain=0) for seed in range(20)
    ]
    # A plan made of few queries suits these better …
    assert np.mean([proposal.gain for proposal in proposals]) > 0.01
    # … and others worse.
    assert sum(proposal.worthwhile for proposal in proposals) <= 1  # 5%


def test_traffic_half_forgotten_is_planned_for_as_it_weighs() -> None:
    plan = plan_buckets(voice(1.8, 20_000, 0))
    sketch = seen(np.concatenate([voice(1.8, 20_000, 1), voice(4.0, 20_000, 2)]), half_life=5_000)
    proposal = propose(plan, sketch)
    traffic = sketch.traffic()
    direct = plan_buckets(traffic).expected_cost / under(plan, traffic).expected_cost
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


def test_the_same_queries_are_proposed_the_same() -> None:
    plan, sketch = plan_buckets(voice(1.8, 10_000, 0)), seen(voice(3.0, 2_000, 1))
    assert propose(plan, sketch) == propose(plan, sketch)


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
    plan = BucketPlan(
        tuple(sorted(ends)),
        Traffic(tuple(sorted(before)), tuple(float(before[f]) for f in sorted(before))),
        batch_sizes=(1, 4),
        cost=Cost((0, 40), tuple(replay.tolist()), tuple(eager)),
        pinned=tuple(draw(st.sets(st.sampled_from(sorted(ends)), max_size=2))),
        graphs=draw(st.integers(len(ends), 8)),
        concurrency=draw(st.integers(1, 3)),
    )
    sketch = LengthSketch(GEOMETRY, half_life=draw(st.just(math.inf) | st.floats(1, 100)))
    for length in draw(st.permutations([f for f, count in after.items() for _ in range(count)])):
        sketch.add(GEOMETRY.shortest(length))
    options: dict[str, Any] = {"minimum_queries": 1}
    if draw(st.booleans()):
        options["graphs"] = draw(st.integers(2, 8))
    return plan, sketch, options


@given(problems())
@settings(max_examples=40)
def test_no_proposal_is_dearer_or_of_another_kind(
    problem: tuple[BucketPlan, LengthSketch, dict[str, Any]],
) -> None:
    plan, sketch, options = problem
    proposal = propose(plan, sketch, **options)
    new, current = proposal.plan, proposal.current
    assert replace(current, graphs=plan.graphs) == under(plan, sketch.traffic())
    assert new.expected_cost <= current.expected_cost
    assert 0 <= proposal.gain <= 1
    assert math.isfinite(proposal.assured)
    assert new is current or (len(new.buckets) <= options.get("graphs", plan.graphs))
    assert (new is current) == (proposal.gain == 0)
    assert proposal.gain > 0 or not proposal.worthwhile
    for name in ("geometry", "batch_sizes", "cost", "pinned", "concurrency", "most_frames"):
        assert getattr(new, name) == getattr(plan, name)
    assert new.traffic == sketch.traffic()
    assert str(proposal)


def test_the_chunk_of_a_pipeline_stays() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0), chunk_length_s=10)
    proposal = propose(plan, seen(voice(4.0, 5_000, 1)))
    assert proposal.worthwhile
    assert proposal.plan.pinned == plan.pinned == (GEOMETRY.frames(160_000),)


def test_a_plan_may_be_proposed_for_other_numbers_and_costs() -> None:
    plan, durations = plan_buckets(voice(1.8, 5_000, 0), graphs=4), voice(4.0, 5_000, 1)
    milliseconds = Cost((0, 100, 1_000), (2.0, 3.0, 40.0), (9.0, 10.0, 60.0), unit="ms")
    proposal = propose(plan, seen(durations), graphs=9, cost=milliseconds)
    best = plan_buckets(durations, graphs=9, cost=milliseconds)
    current = under(replace(plan, cost=milliseconds), durations)
    assert proposal.plan.lengths == best.lengths
    assert proposal.gain == pytest.approx(1 - best.expected_cost / current.expected_cost)
    assert proposal.plan.cost is proposal.current.cost is milliseconds


def test_more_memory_is_not_taken_than_the_plan_was_made_for() -> None:
    limit = 393_216 * 200.0  # of 200 frames
    plan = plan_buckets(voice(1.8, 5_000, 0), memory_limit=limit)
    assert plan.lengths[-1] <= 200
    proposal = propose(plan, seen(voice(4.0, 5_000, 1)))
    assert proposal.plan.lengths[-1] <= 200
    assert proposal.plan.tail > 0


def test_replicas_are_planned_anew() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0), graphs=4, concurrency=4)
    proposal = propose(plan, seen(voice(4.0, 5_000, 1)))
    direct = plan_buckets(voice(4.0, 5_000, 1), graphs=4, concurrency=4)
    assert proposal.plan.replicas == direct.replicas
    by_hand = BucketPlan((100, 500), plan.traffic, replicas=(3, 1))
    assert max(propose(by_hand, seen(voice(4.0, 5_000, 1))).plan.replicas) == 3


# What is refused


def test_few_queries_are_not_planned_for() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0))
    with pytest.raises(ValueError, match=r"^999 queries were seen and 1,000 are needed") as caught:
        propose(plan, seen(voice(1.8, 999, 1)))
    assert "longer half-life" in str(caught.value)
    assert propose(plan, seen(voice(1.8, 1_000, 1))).queries == 1_000
    with pytest.raises(ValueError, match="0 queries were seen and 1 are needed"):
        propose(plan, LengthSketch(GEOMETRY), minimum_queries=1)
    with pytest.raises(ValueError, match="minimum_queries must be a whole number from 1 up"):
        propose(plan, seen(voice(1.8, 10, 1)), minimum_queries=0)


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


# As people see it


def test_a_proposal_shows_both_plans() -> None:
    plan = plan_buckets(voice(1.8, 5_000, 0), graphs=4)
    proposal = propose(plan, seen(voice(4.0, 5_000, 1)))
    text = str(proposal)
    assert text.startswith(f"worth a swap: {proposal.gain:.1%} saved on 5,000 queries")
    assert f"{proposal.assured:.1%} assured of others (2.0% needed)" in text
    for found in (proposal.current, proposal.plan):
        assert f"{found.padding:.1%}" in text
        assert f"{found.expected_cost:,.4g}" in text
    assert "frames a query" in text


def test_a_proposal_of_the_present_plan_says_so() -> None:
    durations = voice(1.8, 5_000, 0)
    proposal = propose(plan_buckets(durations), seen(durations))
    assert str(proposal).startswith("nothing to gain on 5,000 queries")
