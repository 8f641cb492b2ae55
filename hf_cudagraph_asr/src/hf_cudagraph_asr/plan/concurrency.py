"""How many graphs of one bucket: as many as queries want of it at the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hf_cudagraph_asr.plan.cost import Cost

__all__ = ["pools_memory", "replicas"]

MOMENTS = 0.95  # share of all moments at which no query waits for a bucket's replica


def replicas(busy: Sequence[float], concurrency: int) -> list[int]:
    """The 95% quantile of how many of `concurrency` running queries are in each bucket.

    A running query is in a bucket with the probability of that bucket's share of the time, not of
    the queries: long ones take longer. How many are is then binomial.

    Args:
        busy: each bucket's share of the time, 0 to 1.
        concurrency: queries that run at once.

    Returns:
        For each bucket at least 1 and at most `concurrency`.
    """
    return [max(_quantile(concurrency, share), 1) for share in busy]


def pools_memory(
    cost: Cost, lengths: Sequence[int], copies: Sequence[int], batch_sizes: Sequence[int]
) -> float:
    """Bytes of all pools: the r-th holds the buckets with at least r replicas.

    Args:
        cost: with a memory curve.
        lengths: frames of each bucket, ascending.
        copies: replicas of each.
        batch_sizes: rows, ascending.
    """
    needed = 0.0
    for pool in range(1, max(copies) + 1):
        held = [length for length, count in zip(lengths, copies, strict=True) if count >= pool]
        graphs = len(held) * len(batch_sizes)
        needed += float(cost.pool_memory(np.array(held[-1:]), batch_sizes[-1], graphs)[0])
    return needed


def _quantile(n: int, p: float) -> int:
    p = min(max(p, 0.0), 1.0)
    if p in (0.0, 1.0):
        return round(n * p)
    cumulated = 0.0
    for k in range(n + 1):
        # Logarithms, as the binomial coefficients of many queries exceed a float.
        logarithm = (
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(p)
            + (n - k) * math.log1p(-p)
        )
        cumulated += math.exp(logarithm)
        if cumulated >= MOMENTS:
            return k
    return n
