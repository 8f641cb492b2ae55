"""A plan drawn against the traffic it was made for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hf_cudagraph_asr.plan import BucketPlan

__all__ = ["plot"]

BARS = 120  # bars from 0 to the end, at most
TRAFFIC, EDGE, WASTE, TAIL = "#7a9cc6", "#1f2933", "#e07a5f", "#b0b7c0"


def plot(plan: BucketPlan, path: str | os.PathLike[str] | None = None) -> Figure:
    """Queries and buckets above, frames filled and added below; see `BucketPlan.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "a plan's plot needs matplotlib: pip install 'hf-cudagraph-asr[plot]'"
        ) from error

    frames, counts = plan.traffic.arrays()
    lengths = np.array([bucket.frames for bucket in plan.buckets])
    a_frame = plan.geometry.hop / plan.geometry.sampling_rate  # seconds
    # A few very long queries would squeeze everything else: the axis ends soon after the buckets.
    end = min(max(lengths[-1] * 1.08, lengths[-1] + 2), max(frames[-1], lengths[-1]) + 2)

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    width = max(int(np.ceil(end / BARS)), 1)
    edges = np.arange(0.5, end + width, width)
    shares, _ = np.histogram(frames, edges, weights=counts / counts.sum())
    inside = edges[1:] <= lengths[-1] + 0.5 + width
    for part, colour, name in ((inside, TRAFFIC, "replayed"), (~inside, TAIL, "run eagerly")):
        if shares[part].any():
            above.bar(
                edges[:-1][part] * a_frame,
                shares[part] * 100,
                width=width * a_frame,
                align="edge",
                color=colour,
                label=name,
            )
    for bucket in plan.buckets:
        above.axvline(
            (bucket.frames + 0.5) * a_frame,
            color=EDGE,
            linewidth=1.6 if bucket.pinned else 0.9,
            linestyle="--" if bucket.pinned else "-",
        )
    above.set_ylabel(f"% of queries, each {width * a_frame:.2f} s")
    above.set_title(
        f"{len(plan.buckets)} buckets: {plan.padding:.1%} padding, {plan.tail:.2%} run eagerly",
        loc="left",
    )
    above.legend(frameon=False, loc="upper right")

    # Up to the last bucket; a step up behind each one's end.
    at = np.arange(1, lengths[-1] + 1)
    steps = lengths[np.searchsorted(lengths, at)]
    seconds = at * a_frame
    below.fill_between(seconds, 0, seconds, color=TRAFFIC, step="mid", linewidth=0, label="filled")
    below.fill_between(
        seconds, seconds, steps * a_frame, color=WASTE, step="mid", linewidth=0, label="padding"
    )
    below.set_ylabel("bucket (s)")
    below.set_xlabel("length of the query (s)")
    below.legend(frameon=False, loc="upper left")
    below.set_xlim(0, end * a_frame)
    below.set_ylim(0, None)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
