"""Ways to choose bucket lengths that do not minimise anything, to compare the optimum with.

Each takes the traffic and how many buckets there may be, and gives lengths in frames, ascending,
the last of them the longest query's. Where lengths coincide there are fewer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hf_cudagraph_asr.plan import Traffic

__all__ = ["PLANNERS", "equal_duration", "geometric", "quantile", "uniform"]


def uniform(traffic: Traffic, graphs: int) -> tuple[int, ...]:
    """Equal steps up to the longest query."""
    return _lengths(np.ceil(traffic.frames[-1] * np.arange(1, graphs + 1) / graphs))


def geometric(traffic: Traffic, graphs: int) -> tuple[int, ...]:
    """Equal ratios from the shortest query to the longest."""
    shortest, longest = traffic.frames[0], traffic.frames[-1]
    ratios = np.geomspace(shortest, longest, graphs + 1)[1:]
    # Rounded first: 10 ** log10(x) may end a hair above x.
    return _lengths(np.minimum(np.ceil(np.round(ratios, 6)), longest))


def quantile(traffic: Traffic, graphs: int) -> tuple[int, ...]:
    """As many queries in each bucket, as far as equal lengths allow."""
    frames, counts = traffic.arrays()
    upto = np.cumsum(counts)
    wanted = upto[-1] * np.arange(1, graphs) / graphs
    return _lengths(np.append(frames[np.searchsorted(upto, wanted)], frames[-1]))


def equal_duration(traffic: Traffic, graphs: int) -> tuple[int, ...]:
    """As many frames in each bucket: the rule of Lhotse's `estimate_duration_buckets`.

    Lhotse walks over the sorted queries and begins a bucket at the one before which more than a
    `graphs`-th of all frames has gathered. A bucket here is as long as its longest query; Lhotse's
    own upper bounds, one length further, would pad more.
    """
    frames, counts = traffic.arrays()
    limit = float(frames @ counts) / graphs
    bounds: list[int] = []
    gathered = 0.0
    for i, (length, count) in enumerate(zip(frames.tolist(), counts.tolist(), strict=True)):
        while count > 0:
            if gathered > limit:
                bounds.append(i)
                gathered = 0.0
            taken = min(count, np.floor((limit - gathered) / length) + 1)
            gathered += taken * length
            count -= taken
    # A bound may fall among queries of one length; all of them are then in the bucket it begins.
    return _lengths(np.array([*(frames[i - 1] for i in bounds[: graphs - 1] if i), frames[-1]]))


PLANNERS: dict[str, Callable[[Traffic, int], tuple[int, ...]]] = {
    "uniform": uniform,
    "geometric": geometric,
    "quantile": quantile,
    "equal duration": equal_duration,
}
"""By name."""


def _lengths(lengths: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> tuple[int, ...]:
    return tuple(np.unique(lengths.astype(np.int64)).tolist())
