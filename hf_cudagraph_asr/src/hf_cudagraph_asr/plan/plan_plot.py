"""A plan drawn against the traffic it was made for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_cudagraph_asr.plan.bucket_plan import BucketPlan

__all__ = ["plot"]

BARS = 120  # bars from 0 to the end, about
REPLAYED, PADDING, EAGER, LINE = "#7a9cc6", "#e07a5f", "#8b95a1", "#1f2933"

Floats = npt.NDArray[np.float64]


def plot(plan: BucketPlan, path: str | os.PathLike[str] | None = None) -> Figure:
    """Queries above and the frames computed for them below; see `BucketPlan.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "a plan's plot needs matplotlib: pip install 'hf-cudagraph-asr[plot]'"
        ) from error

    frames, counts = plan.traffic.arrays()
    lengths = np.array([bucket.frames for bucket in plan.buckets])
    # A few very long queries would squeeze all others: the axis ends soon after the last bucket.
    end = int(min(lengths[-1] * 1.08 + 2, max(frames[-1], lengths[-1]) + 2))
    width = max(end // BARS, 1)
    edges = np.arange(0, end + width, width)  # in frames: a bar holds edge < frames ≤ next edge
    at = np.searchsorted(lengths, frames)
    held = at < len(lengths)
    computed = np.where(held, lengths[np.minimum(at, len(lengths) - 1)], frames)

    def bars(weights: Floats) -> Floats:
        return np.histogram(frames, edges + 0.5, weights=weights)[0].astype(np.float64)

    a_query, a_frame = 100 / counts.sum(), 100 / (counts @ computed)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    seconds = np.append(0.0, [plan.geometry.seconds(int(edge)) for edge in edges[1:]])
    layers = [
        ("replayed", REPLAYED, counts * held, counts * held * frames),
        ("padding", PADDING, counts * 0, counts * held * (computed - frames)),
        ("run eagerly", EAGER, counts * ~held, counts * ~held * frames),
    ]
    _stack(above, seconds, [(name, colour, bars(q) * a_query) for name, colour, q, _ in layers])
    _stack(below, seconds, [(name, colour, bars(f) * a_frame) for name, colour, _, f in layers])
    for axes in (above, below):
        for bucket in plan.buckets:
            axes.axvline(
                plan.geometry.seconds(bucket.frames),
                color=LINE,
                linewidth=1.6 if bucket.pinned else 0.6,
                linestyle="--" if bucket.pinned else "-",
            )
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, seconds[-1])
    above.set_ylabel("% of queries")
    below.set_ylabel("% of frames computed")
    below.set_xlabel("length of the query (s); lines: what the buckets hold")
    number = "1 bucket" if len(lengths) == 1 else f"{len(lengths)} buckets"
    above.set_title(
        f"{number}: {plan.padding:.1%} padding, {plan.tail:.2%} of queries run eagerly", loc="left"
    )
    handles, labels = below.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _stack(axes: Axes, edges: Floats, layers: list[tuple[str, str, Floats]]) -> None:
    base = np.zeros(len(edges) - 1)
    for name, colour, values in layers:
        if values.any():
            axes.bar(
                edges[:-1], values, np.diff(edges), base, align="edge", color=colour, label=name
            )
        base = base + values
    axes.set_ylim(0, 1.05 * base.max())
