"""The buckets that suit a traffic best."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan.bucket_plan import Bucket, BucketPlan, rows_of, whole
from hf_cudagraph_asr.plan.concurrency import pools_memory, replicas
from hf_cudagraph_asr.plan.cost import Cost, CostLike, with_memory_estimate
from hf_cudagraph_asr.plan.partition import partition
from hf_cudagraph_asr.plan.traffic import Chunking, Traffic, finite

__all__ = ["Bucket", "BucketPlan", "plan_buckets"]

logger = logging.getLogger(__name__)


def plan_buckets(
    durations: Any,
    *,
    graphs: int = 16,
    model: Any = None,
    batch_sizes: Iterable[int] = (1,),
    cost: CostLike = None,
    memory_limit: float | None = None,
    chunk_length_s: float | None = None,
    stride_length_s: float | tuple[float, float] | None = None,
    concurrency: int = 1,
    sampling_rate: int | None = None,
) -> BucketPlan:
    """The buckets that cost this traffic least.

    Minimised exactly is the mean cost of a query: a replay of the shortest bucket that holds it, or
    an eager run where none does.

    Args:
        durations: seconds, as any iterable or array of numbers; or a histogram: a mapping of
            seconds to counts, or the pair `(seconds, counts)`; or a Traffic, taken as it is.
        graphs: how many lengths there may be. Each is captured once per batch size and replica.
        model: a model, config or Geometry whose frames count; by default Wav2Vec2's at 16 kHz.
        batch_sizes: rows to capture each length for. One query's cost chooses the lengths.
        cost: a `Cost`; or replay cost as a mapping or callable of frames. By default frames, an
            eager run being taken to cost `EAGER` times a replay.
        memory_limit: bytes of the pools, by the cost's memory curve, or else by an estimate from
            the first convolution's size. Limits lengths and their number, then replicas.
        chunk_length_s: the ASR pipeline's argument. Chunks get a bucket of their own, one of
            `graphs`, and recordings longer than it count as the chunks they are cut into.
        stride_length_s: the pipeline's argument; by default a sixth of a chunk on either side.
        concurrency: queries that may run at once. A bucket gets as many replicas as so many
            concurrent queries want of it at 95% of all moments, at least one: the binomial
            quantile at its share of the time.
        sampling_rate: of the waveforms; by default the Geometry's, or 16,000.

    Returns:
        The plan; of equally cheap ones that with the fewest buckets.

    Raises:
        ValueError: durations, counts or limits that cannot be planned for; the message says why.

    >>> plan = plan_buckets([1.2, 1.3, 1.9, 2.0, 4.8, 5.0], graphs=3)
    >>> [bucket.frames for bucket in plan.buckets], round(plan.padding, 3)
    ([64, 99, 249], 0.025)
    """
    geometry = _geometry(model, sampling_rate)
    graphs, concurrency = whole(graphs, "graphs"), whole(concurrency, "concurrency")
    sizes = rows_of(batch_sizes)
    chunking = None
    if chunk_length_s is not None:
        chunking = Chunking.of(geometry, chunk_length_s, stride_length_s)
    elif stride_length_s is not None:
        raise ValueError("stride_length_s without chunk_length_s: nothing is cut into chunks")
    traffic = Traffic.of(durations, geometry, chunking)

    frames, counts = traffic.arrays()
    pins = np.array([geometry.frames(chunking.chunk)] if chunking else [], dtype=np.int64)
    ends = np.union1d(frames, pins)
    weights = np.zeros(len(ends))
    weights[np.searchsorted(ends, frames)] = counts
    curves = Cost.of(cost, ends)
    longest = None
    if memory_limit is not None:
        if not (finite(memory_limit) and memory_limit > 0):
            raise ValueError(f"memory_limit is bytes above 0, not {memory_limit!r}")
        if curves.memory is None:
            curves = with_memory_estimate(curves, geometry, model)
        longest = np.array(
            [
                np.searchsorted(
                    curves.pool_memory(ends, sizes[-1], m * len(sizes)), memory_limit, "right"
                )
                - 1
                for m in range(1, graphs + 1)
            ]
        )
    found = partition(
        weights,
        curves.replayed(ends),
        curves.run_eagerly(ends),
        graphs,
        pinned=np.isin(ends, pins),
        longest=longest,
    )
    if found is None:
        needed = int(pins[-1] if len(pins) else ends[0])
        least = float(curves.pool_memory(np.array([needed]), sizes[-1], len(sizes))[0])
        raise ValueError(
            f"memory_limit of {memory_limit:,.0f} bytes holds no bucket of {needed} frames at "
            f"batch size {sizes[-1]}: that takes {least:,.0f}; raise it or drop the larger sizes"
        )
    if len(found.ends) < graphs:
        logger.info("%d buckets are enough, of %d allowed", len(found.ends), graphs)
    plan = BucketPlan.of(
        ends[list(found.ends)].tolist(),
        traffic,
        geometry=geometry,
        batch_sizes=sizes,
        cost=curves,
        pinned=pins.tolist(),
        asked=graphs,
    )
    if concurrency == 1:
        return plan
    return _replicated(plan, concurrency, memory_limit)


def _geometry(model: Any, sampling_rate: int | None) -> Geometry:
    return Geometry.of(Geometry() if model is None else model, sampling_rate=sampling_rate)


def _replicated(plan: BucketPlan, concurrency: int, memory_limit: float | None) -> BucketPlan:
    """The plan with replicas, as many as the memory limit leaves room for in each bucket."""
    whole_time = plan.expected_cost or 1.0  # a cost of nothing keeps nothing busy
    time = [bucket.share * bucket.cost / whole_time for bucket in plan.buckets]
    wanted = replicas(time, concurrency)

    def at_most(most: int) -> BucketPlan:
        copies = [min(count, most) for count in wanted]
        lengths = [bucket.frames for bucket in plan.buckets]
        return replace(
            plan,
            buckets=tuple(
                replace(bucket, replicas=count)
                for bucket, count in zip(plan.buckets, copies, strict=True)
            ),
            memory=None
            if plan.cost.memory is None
            else pools_memory(plan.cost, lengths, copies, plan.batch_sizes),
        )

    if memory_limit is None:
        return at_most(max(wanted))
    allowed = range(1, max(wanted) + 1)
    fitting = bisect_right(allowed, memory_limit, key=lambda most: at_most(most).memory or 0.0)
    return at_most(max(fitting, 1))
