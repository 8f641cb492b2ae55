"""A plan for the traffic a pool has seen, and whether it is worth a swap. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.plan.bucket_plan import BucketPlan, whole
from hf_cudagraph_asr.plan.cost import Cost, CostLike
from hf_cudagraph_asr.plan.plan import plan_buckets
from hf_cudagraph_asr.plan.plan_table import percent
from hf_cudagraph_asr.plan.sketch import LengthSketch
from hf_cudagraph_asr.plan.traffic import Traffic, finite

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["CONFIDENCE", "Proposal", "propose"]

CONFIDENCE = 0.95
"""How sure the assured gain is."""

_DEVIATIONS = 1.645  # the normal quantile of that, one-sided

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Proposal:
    """The best plan for what was seen, beside the present one. `propose` makes it.

    Attributes:
        plan: the buckets that cost least. Where none cost less, these are `current`.
        current: the present buckets, reckoned for the traffic seen.
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
        """Whether queries to come are to gain enough too, not only those the plan was made of."""
        return self.assured > 0 and self.assured >= self.least_gain

    @property
    def padding(self) -> tuple[float, float]:
        """Frames added over frames filled, of all queries replayed: now, and as proposed."""
        return self.current.padding, self.plan.padding

    def table(self) -> Table:
        """Both plans side by side, as a rich table.

        Raises:
            ImportError: rich is missing.
        """
        try:
            from rich import box
            from rich.table import Table
        except ImportError as error:
            raise ImportError("a proposal's table needs rich: pip install rich") from error

        made = Table(box=box.SIMPLE_HEAD, caption=self._verdict(), caption_justify="left")
        made.add_column("")
        made.add_column("now", justify="right")
        made.add_column("proposed", justify="right")
        for name, now, then in self._rows():
            made.add_row(name.replace("[", "\\["), now, then)
        return made

    __rich__ = table

    def __str__(self) -> str:
        rows = [f"{name}: {now} → {then}" for name, now, then in self._rows()]
        return "\n".join([self._verdict(), *rows])

    def _verdict(self) -> str:
        if self.gain == 0:
            return f"nothing to gain on {self.queries:,.0f} queries"
        verdict = "worth a swap" if self.worthwhile else "not worth a swap"
        return (
            f"{verdict}: {self.gain:.1%} saved on {self.queries:,.0f} queries, "
            f"{self.assured:.1%} assured of others ({self.least_gain:.1%} needed)"
        )

    def _rows(self) -> list[tuple[str, str, str]]:
        plans = self.current, self.plan

        def row(name: str, *values: str) -> tuple[str, str, str]:
            now, then = values
            return name, now, then

        rows = [
            row("buckets", *(f"{len(p.buckets)}" for p in plans)),
            row("up to", *(f"{p.geometry.seconds(p.buckets[-1].frames):.2f} s" for p in plans)),
            row("padding", *(percent(p.padding) for p in plans)),
            row("run eagerly", *(percent(p.tail) for p in plans)),
            row(
                f"cost a query [{self.plan.cost.unit}]",
                *(f"{p.expected_cost:,.4g}" for p in plans),
            ),
            row("graphs", *(f"{p.captures}" for p in plans)),
        ]
        memory = [p.memory for p in plans]
        if any(m is not None for m in memory):
            known = ("unknown" if m is None else f"{m / 2**20:,.0f} MiB" for m in memory)
            rows.append(row("memory", *known))
        return rows


def propose(
    plan: BucketPlan,
    sketch: LengthSketch,
    *,
    graphs: int | None = None,
    cost: CostLike = None,
    minimum_queries: int = 1_000,
    least_gain: float = 0.02,
    memory_limit: float | None = None,
    concurrency: int | None = None,
    seed: int = 0,
) -> Proposal:
    """Plan anew for the traffic seen. Geometry, batch sizes and the pinned chunk stay.

    A plan made of few queries suits them better than it will suit others. So the queries are
    halved at random, and each half is priced by the best plan of the other half and by the
    present one. The saving is a ratio of two means, and its lower bound comes from that ratio's
    standard error (Cochran, Sampling Techniques, 3rd ed., ch. 6). Queries are taken to be
    independent, which those of one speaker are not: `least_gain` is there to cover that.

    Args:
        plan: the present one.
        sketch: what was seen since.
        graphs: how many lengths there may be; by default as many as the present plan was allowed.
        cost: as in `plan_buckets`; by default the present plan's.
        minimum_queries: fewer are not planned for.
        least_gain: the assured gain, 0 to 1, from which a swap is worthwhile.
        memory_limit: as in `plan_buckets`. The limit the present plan was made with is not known.
        concurrency: as in `plan_buckets`; needed where the present plan has replicas.
        seed: of the halving.

    Raises:
        ValueError: too few queries; lengths of another geometry; or what cannot be planned with.

    >>> from hf_cudagraph_asr import Geometry
    >>> sketch = LengthSketch(Geometry())
    >>> for samples in range(16_000, 48_000, 16):
    ...     sketch.add(samples)
    >>> print(propose(plan_buckets([1.0, 4.0], graphs=2), sketch))
    worth a swap: 37.6% saved on 1,986 queries, 37.0% assured of others (2.0% needed)
    buckets: 2 → 2
    up to: 4.00 s → 3.00 s
    padding: 99.9% → 24.8%
    run eagerly: 0.0% → 0.0%
    cost a query [frames]: 198.6 → 124
    graphs: 2 → 2
    """
    if sketch.geometry != plan.geometry:
        raise ValueError(
            f"the plan is for {plan.geometry}; these lengths are in frames of {sketch.geometry}"
        )
    if not (finite(least_gain) and 0 <= least_gain < 1):
        raise ValueError(f"least_gain is a share from 0 up and below 1, not {least_gain!r}")
    if concurrency is None and any(bucket.replicas > 1 for bucket in plan.buckets):
        raise ValueError(
            "the present plan has replicas: give the concurrency that the new one is for"
        )
    traffic = _enough(sketch, whole(minimum_queries, "minimum_queries"))
    pins = [bucket.frames for bucket in plan.buckets if bucket.pinned]
    ends = {*traffic.frames, *pins, *(bucket.frames for bucket in plan.buckets)}
    curves = Cost.of(plan.cost if cost is None else cost, np.array(sorted(ends)))
    options: dict[str, Any] = {
        "graphs": plan.asked if graphs is None else whole(graphs, "graphs"),
        "model": plan.geometry,
        "batch_sizes": plan.batch_sizes,
        "cost": curves,
        "memory_limit": memory_limit,
        "concurrency": 1 if concurrency is None else concurrency,
        **_chunks(plan, pins),
    }

    current = plan.on(traffic, cost=curves)
    best = plan_buckets(traffic, **options)
    # Sums of as many numbers round by less.
    if best.expected_cost >= current.expected_cost * (1 - 1e-12):
        return Proposal(current, current, 0.0, 0.0, traffic.total, least_gain)
    halves = _halves(traffic, np.random.default_rng(seed))
    return Proposal(
        plan=best,
        current=current,
        gain=1 - best.expected_cost / current.expected_cost,
        assured=0.0 if halves is None else _assured(current, halves, options),
        queries=traffic.total,
        least_gain=least_gain,
    )


def _enough(sketch: LengthSketch, needed: int) -> Traffic:
    seen = sketch.total
    if seen >= needed:
        return sketch.traffic()
    never = ""
    if sketch.half_life is not None:
        most = 1 / -math.expm1(-math.log(2) / sketch.half_life)  # all weights of an endless traffic
        if most < needed:
            never = (
                f". With a half-life of {sketch.half_life:,.0f} queries the sketch never counts "
                f"more than {most:,.0f}: make it longer"
            )
    raise ValueError(
        f"{seen:,.0f} queries were seen and {needed:,} are needed to plan anew: wait for more, or "
        f"lower minimum_queries{never}"
    )


def _chunks(plan: BucketPlan, pins: list[int]) -> dict[str, float]:
    """The pinned length, as `plan_buckets` takes it: as chunks that give as many frames."""
    if not pins:
        return {}
    if len(pins) > 1:
        raise ValueError(
            f"the present plan has buckets pinned at {pins} frames, and plan_buckets pins one: "
            "make the new plan with BucketPlan.of(lengths, sketch.traffic(), ...)"
        )
    geometry = plan.geometry
    # Inputs of one number of frames span a hop, so just one of them is a multiple of it.
    chunk = geometry.longest(pins[0]) // geometry.hop * geometry.hop
    return {"chunk_length_s": chunk / geometry.sampling_rate, "stride_length_s": 0.0}


def _halves(traffic: Traffic, rng: np.random.Generator) -> tuple[Traffic, Traffic] | None:
    """Each query in one half or the other; None where one half got none.

    A query half forgotten is there or not, by chance. As no weight exceeds 1, that makes the
    sample no larger than it is.
    """
    frames, counts = traffic.arrays()
    kept = np.floor(counts)
    kept += rng.random(len(counts)) < counts - kept
    first = rng.binomial(kept.astype(np.int64), 0.5)
    halves = [
        Traffic(tuple(frames[part > 0].tolist()), tuple(part[part > 0].tolist()))
        for part in (first, kept - first)
        if part.any()
    ]
    return (halves[0], halves[1]) if len(halves) == 2 else None


def _assured(
    current: BucketPlan, halves: tuple[Traffic, Traffic], options: dict[str, Any]
) -> float:
    """Lower bound of the saving on queries that the plan was not made of."""
    now, saved, counts = [], [], []
    for made_of, priced in (halves, halves[::-1]):
        frames, count = priced.arrays()
        costs = _costs(current, frames)
        now.append(costs)
        saved.append(costs - _costs(plan_buckets(made_of, **options), frames))
        counts.append(count)
    price, saving, weight = (np.concatenate(parts) for parts in (now, saved, counts))
    n = float(weight.sum())
    if not price.any():  # what costs is too rare to be in either half
        return 0.0
    gain = float(weight @ saving / (weight @ price))
    spread = float(weight @ (saving - gain * price) ** 2) / (n - 1)
    return gain - _DEVIATIONS * math.sqrt(spread / n) / float(weight @ price / n)


def _costs(plan: BucketPlan, frames: Ints) -> Floats:
    """What a query of each length costs."""
    ends = np.array([bucket.frames for bucket in plan.buckets])
    at = np.searchsorted(ends, frames)
    replayed = plan.cost.replayed(ends)[np.minimum(at, len(ends) - 1)]
    return np.where(at < len(ends), replayed, plan.cost.run_eagerly(frames))
