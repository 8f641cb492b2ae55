"""Cuts of sorted lengths into buckets: the exact optimum, by dynamic programming.

Lengths 1 … n, with weight wⱼ and non-decreasing cost fⱼ of a bucket that ends at j, and with
Sⱼ = w₁ + … + wⱼ:

    D(m, j) = min over i < j of D(m − 1, i) + (Sⱼ − Sᵢ)·fⱼ

is the least cost of the lengths up to j in at most m buckets, the last of which serves i+1 … j.
Each i has a line over fⱼ, of slope −Sᵢ. Slopes fall with i, and fⱼ rises with j, so in a queue of
the lines that are lowest somewhere ahead the first is the lowest now (the convex hull trick): all j
of one m take O(n).
"""

from __future__ import annotations

from collections import deque
from math import inf

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def partition(
    weights: Floats, replay: Floats, eager: Floats, graphs: int, pinned: npt.NDArray[np.bool_]
) -> list[int] | None:
    """Choose the cheapest ends of at least 1 and at most `graphs` buckets.

    Args:
        weights: (n,) weight of each length, from 0 up.
        replay: (k,) cost of a query in a bucket of that length; must not fall. Buckets may end at
            the first k ≤ n lengths.
        eager: (n,) cost of a query of that length beyond the last bucket.
        graphs: how many buckets there may be.
        pinned: (n,) lengths that buckets must end at.

    Returns:
        Indices of the lengths that buckets end at, ascending: of the optima one with the fewest.
        None where nothing is allowed.
    """
    total = [0.0, *np.cumsum(weights).tolist()]
    # tail[j]: all beyond the first j lengths, run eagerly, which no pinned one may be.
    tail = np.append(np.cumsum((weights * eager)[::-1])[::-1], 0.0)
    tail[: max(np.flatnonzero(pinned), default=0) + 1] = inf
    cost = [0.0] + [inf] * len(weights)
    starts: list[list[int]] = []
    least = inf
    best: list[int] | None = None
    for _ in range(min(graphs, len(replay))):
        cost, start = _one_more(cost, total, replay.tolist(), pinned.tolist())
        starts.append(start)
        whole = cost + tail
        end = len(weights) - int(np.argmin(whole[::-1]))  # of equals the longest: no tail
        # Fewer buckets are kept unless more of them gain more than sums round.
        if whole[end] < least * (1 - 1e-12):
            least, best = whole[end], []
            for start in reversed(starts):
                if end:
                    best.insert(0, end - 1)
                    end = start[end]
    return best


def _one_more(
    cost: list[float], total: list[float], replay: list[float], pinned: list[bool]
) -> tuple[list[float], list[int]]:
    """Make D(m, ·) and its starts i of D(m − 1, ·), all of n + 1 numbers."""
    lines: deque[int] = deque()
    best, starts = [inf] * len(cost), [0] * len(cost)
    best[0] = 0.0  # no bucket at all: where "at most" begins
    for end, price in enumerate(replay, 1):
        new = end - 1
        if new and pinned[new - 1]:
            lines.clear()  # a bucket from further back would skip the pinned length
        if cost[new] < inf:
            while len(lines) > 1:
                a, b = lines[-2], lines[-1]
                ahead = (cost[b] - cost[a]) * (total[new] - total[b])
                if (cost[new] - cost[b]) * (total[b] - total[a]) > ahead:
                    break
                lines.pop()  # before it falls below the line behind it, the new one is lower
            lines.append(new)
        while len(lines) > 1:
            a, b = lines[0], lines[1]
            if cost[b] - cost[a] >= (total[b] - total[a]) * price:
                break
            lines.popleft()
        if lines:
            starts[end] = a = lines[0]
            best[end] = cost[a] + (total[end] - total[a]) * price
    return best, starts
