"""A plan for the traffic a pool has seen, and whether it is worth a swap."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from hf_cudagraph_asr.plan.cost import DEVIATIONS, Cost
from hf_cudagraph_asr.plan.plan import BucketPlan
from hf_cudagraph_asr.plan.traffic import LengthSketch, Traffic, finite, whole
from hf_cudagraph_asr.plan.view import percent


@dataclass(frozen=True)
class Proposal:
    """The best plan for the traffic seen, beside the present one. `propose` makes it.

    Attributes:
        plan: the buckets that cost least. Where none cost less, these are `current`.
        current: the present buckets under the traffic seen.
        gain: share of the present cost that the proposed plan saves on the traffic seen, 0 to 1.
        assured: lower bound, at 95% confidence, of what a plan made of one half of the queries
            saves on the other half. Below 0 where it may cost more.
        queries: how many were seen; those that a sketch half forgot count half.
        least_gain: the assured gain from which a swap is worthwhile.
    """

    plan: BucketPlan
    current: BucketPlan
    gain: float
    assured: float
    queries: float
    least_gain: float

    @property
    def worthwhile(self) -> bool:
        """True if enough is assured for queries to come, not only for those the plan is made of."""
        return self.assured > 0 and self.assured >= self.least_gain

    def __str__(self) -> str:
        now, then = self.current, self.plan
        verdict = f"nothing to gain on {self.queries:,.0f} queries"
        if self.gain > 0:
            verdict = (
                f"{'worth' if self.worthwhile else 'not worth'} a swap: {self.gain:.1%} saved on "
                f"{self.queries:,.0f} queries, {self.assured:.1%} assured of others "
                f"({self.least_gain:.1%} needed)"
            )
        rows = [
            verdict,
            f"buckets: {len(now.lengths)} → {len(then.lengths)}",
            f"padding: {percent(now.padding)} → {percent(then.padding)}",
            f"run eagerly: {percent(now.tail)} → {percent(then.tail)}",
            f"{then.cost.unit} a query: {now.expected_cost:,.4g} → {then.expected_cost:,.4g}",
        ]
        return "\n".join(rows)


def propose(
    plan: BucketPlan,
    sketch: LengthSketch,
    *,
    graphs: int | None = None,
    cost: Cost | None = None,
    minimum_queries: int = 1_000,
    least_gain: float = 0.02,
) -> Proposal:
    """Plan anew for the traffic seen, and tell whether that is worth a swap.

    Geometry, batch sizes, the pinned chunk, the memory limit and the concurrency stay.

    A plan made of few queries suits them better than it will suit others. So the queries are
    halved at random, and each half is priced by the best plan of the other half and by the
    present one. The saving is a ratio of two means, and its lower bound comes from that ratio's
    standard error (Cochran, Sampling Techniques, 3rd ed., ch. 6). Queries are taken to be
    independent, which those of one speaker are not: `least_gain` is there to cover that.

    Args:
        plan: the present one.
        sketch: the lengths seen since.
        graphs: how many lengths there may be; by default as many as the present plan was allowed.
        cost: as in `plan_buckets`; by default the present plan's.
        minimum_queries: fewer are not planned for.
        least_gain: the assured gain, 0 to 1, from which a swap is worthwhile.

    Raises:
        ValueError: too few queries; lengths of another geometry; or options out of range.
    """
    if sketch.geometry != plan.geometry:
        raise ValueError(
            f"the plan is for {plan.geometry}; these lengths are in frames of {sketch.geometry}"
        )
    if not (finite(least_gain) and 0 <= least_gain < 1):
        raise ValueError(f"least_gain is a share from 0 up and below 1, not {least_gain!r}")
    needed, seen = whole(minimum_queries, "minimum_queries"), sketch.total
    if seen < needed:
        raise ValueError(
            f"{seen:,.0f} queries were seen and {needed:,} are needed to plan anew: wait for more, "
            f"lower minimum_queries, or give the sketch a longer half-life, by which it forgets"
        )
    traffic = sketch.traffic()
    allowed = plan.graphs if graphs is None else whole(graphs, "graphs")
    price = plan.cost if cost is None else cost
    current = replace(plan, traffic=traffic, graphs=allowed, cost=price)
    best = current.anew(traffic)
    # Sums of as many numbers round by less.
    if best.expected_cost >= current.expected_cost * (1 - 1e-12):
        return Proposal(current, current, 0.0, 0.0, traffic.total, least_gain)
    gain = 1 - best.expected_cost / current.expected_cost
    return Proposal(best, current, gain, _assured(current), traffic.total, least_gain)


def _assured(current: BucketPlan) -> float:
    """Lower bound of the saving on queries that the plan was not made of."""
    frames, counts = current.traffic.arrays()
    rng = np.random.default_rng(0)
    # A query half forgotten is there or not, by chance. As no weight exceeds 1, that makes the
    # sample no larger than it is.
    kept = np.floor(counts + rng.random(len(counts))).astype(np.int64)
    first = rng.binomial(kept, 0.5)
    halves = first, kept - first
    if not all(half.any() for half in halves):
        return 0.0
    now = current.costs(frames)
    plans = [current.anew(Traffic(current.traffic.frames, tuple(half))) for half in halves]
    saving = np.concatenate([now - plan.costs(frames) for plan in plans])
    # Each plan is priced on the half that it was not made of.
    weight, price = np.concatenate(halves[::-1]), np.tile(now, 2)
    paid, n = float(weight @ price), float(weight.sum())
    if not paid:  # what costs is too rare to be in either half
        return 0.0
    gain = float(weight @ saving) / paid
    spread = float(weight @ (saving - gain * price) ** 2) / (n - 1)
    return gain - DEVIATIONS * math.sqrt(spread * n) / paid
