"""Cuts of sorted lengths into buckets: the exact optimum, by dynamic programming.

Lengths 1 … n, with weight wⱼ and non-decreasing cost fⱼ of a bucket that ends at j: a bucket that
serves the lengths i+1 … j costs W(i, j) = (Σ wᵢ₊₁ … wⱼ)·fⱼ, and

    D(m, j) = min over i < j of D(m − 1, i) + W(i, j)

is the least cost of the lengths up to j in at most m buckets, the last one ending at j. For columns
a ≤ b and ends c ≤ d

    W(a, c) + W(b, d) − W(a, d) − W(b, c) = (Σ wₐ₊₁ … w_b)·(f_c − f_d) ≤ 0,

so W is Monge, D(m − 1, ·) adds to columns only, and the leftmost best i never falls as j grows
(Aggarwal et al., "Geometric applications of a matrix-searching algorithm", 1987; 1-D partitions:
Wang and Song, "Ckmeans.1d.dp", R Journal 2011). What is not allowed costs infinity: an end before
its start, a bucket that skips a pinned length, a start that no m − 1 buckets reach. Each of them,
where it makes the left side of the inequality infinite, makes the right side infinite too, so the
argument stands. Hence divide and conquer finds a layer in O(n log n), all rows of a level at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Partition", "partition"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """Optimal ends of buckets.

    Attributes:
        ends: indices of the lengths that buckets end at, ascending.
        cost: of all weight: in buckets, and beyond the last one.
    """

    ends: tuple[int, ...]
    cost: float


def partition(
    weights: Floats,
    replay: Floats,
    eager: Floats,
    graphs: int,
    *,
    pinned: npt.NDArray[np.bool_] | None = None,
    longest: Ints | None = None,
) -> Partition | None:
    """The cheapest ends of at least 1 and at most `graphs` buckets.

    Args:
        weights: (n,) weight of each length, from 0 up.
        replay: (n,) cost of a query in a bucket of that length; must not fall.
        eager: (n,) cost of a query of that length beyond the last bucket.
        graphs: how many buckets there may be.
        pinned: (n,) lengths that buckets must end at.
        longest: (graphs,) the index that m = 1, 2, … buckets may reach; −1: none. Must not rise.

    Returns:
        The optimum with the fewest buckets, or None where nothing is allowed.
    """
    n = len(weights)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    # tail[j]: all beyond the first j lengths, run eagerly.
    tail = np.concatenate([np.cumsum((weights * eager)[::-1])[::-1], [0.0]])
    pins = np.flatnonzero(pinned) + 1 if pinned is not None else np.zeros(0, dtype=np.int64)
    rows = np.arange(n + 1)
    passed = np.searchsorted(pins, rows)  # pinned lengths before each row
    before = np.concatenate([[0], pins])[passed]  # the last of them, where a bucket must start
    final = pins[-1] if len(pins) else 1

    best = Partition((), np.inf)
    cost = np.full(n + 1, np.inf)
    cost[0] = 0.0
    starts: list[Ints] = []
    f = np.concatenate([[0.0], replay])
    for m in range(1, min(graphs, n) + 1):
        # Rows 1 … feasible have fewer than m pins before them.
        feasible = int(np.searchsorted(passed[1:], m))
        cost, start = _layer(cost, total, f, before, feasible)
        starts.append(start)
        until = min(feasible, n if longest is None else int(longest[m - 1]) + 1)
        if until < final:
            continue
        whole = cost[final : until + 1] + tail[final : until + 1]
        end = until - int(np.argmin(whole[::-1]))  # of equals the longest, which leaves no tail
        # Fewer buckets are kept unless more of them gain more than sums round.
        if whole[end - final] < best.cost * (1 - 1e-12) or not best.ends:
            best = Partition(_ends(starts, end), float(whole[end - final]))
    return best if best.ends else None


def _layer(
    cost: Floats, total: Floats, f: Floats, before: Ints, feasible: int
) -> tuple[Floats, Ints]:
    """One more bucket: D(m, ·) and its best starts from D(m − 1, ·), level by level.

    Args:
        cost: (n + 1,) D(m − 1, ·).
        total: (n + 1,) cumulated weights.
        f: (n + 1,) cost of a bucket.
        before: (n + 1,) the first start each row may have; does not fall.
        feasible: the last row that m buckets reach.
    """
    best = np.full(len(cost), np.inf)
    best[0] = 0.0  # no bucket at all: where "at most" begins
    start = np.zeros(len(cost), dtype=np.int64)
    step = 1 << max(feasible.bit_length() - 1, 0)
    while step and feasible:
        row = np.arange(step, feasible + 1, 2 * step)
        low = np.maximum(before[row], start[row - step])
        high = row - 1
        known = row + step <= feasible
        high[known] = np.minimum(high[known], start[row[known] + step])
        width = high - low + 1
        first = np.cumsum(width) - width
        column = np.arange(width.sum()) + np.repeat(low - first, width)
        end = np.repeat(row, width)
        value = cost[column] + (total[end] - total[column]) * f[end]
        least = np.minimum.reduceat(value, first)
        at = np.flatnonzero(value == np.repeat(least, width))
        best[row] = least
        start[row] = column[at[np.searchsorted(at, first)]]
        step //= 2
    return best, start


def _ends(starts: list[Ints], end: int) -> tuple[int, ...]:
    ends: list[int] = []
    for start in reversed(starts):
        if end == 0:
            break
        ends.append(end - 1)
        end = int(start[end])
    return tuple(reversed(ends))
