"""Views of a plan: a table of text, and a plot against its traffic."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from hf_cudagraph_asr.plan.cost import EAGER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hf_cudagraph_asr.plan.plan import BucketPlan

BARS = 120  # bars from 0 to the end, about
REPLAYED, PADDING, EAGERLY, LINE = "#7a9cc6", "#e07a5f", "#8b95a1", "#1f2933"


def tabulate(plan: BucketPlan) -> str:
    """Buckets by ascending length, then what holds for the whole plan; see `BucketPlan.table`."""
    rows = [["up to", "frames", "samples", "queries", "padding", f"cost ({plan.cost.unit})"]]
    rows += [
        [
            f"{'* ' * bucket.pinned}{plan.geometry.seconds(bucket.frames):.2f} s",
            f"{bucket.frames:,}",
            f"{bucket.samples:,}",
            percent(bucket.share),
            percent(bucket.padding) if bucket.share else "–",
            f"{bucket.cost:,.4g}" if bucket.cost < 1000 else f"{bucket.cost:,.0f}",
        ]
        for bucket in plan.buckets
    ]
    if plan.tail:
        longest = plan.geometry.seconds(plan.lengths[-1])
        rows.append([f"> {longest:.2f} s", "", "", percent(plan.tail), "", "run eagerly"])
    if max(plan.replicas) > 1:
        for row, cell in zip(rows, ["replicas", *map(str, plan.replicas), ""], strict=False):
            row.append(cell)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", *_summary(plan)])


def _summary(plan: BucketPlan) -> list[str]:
    total = f"{plan.traffic.total:,.0f}"
    eager = f"{plan.eager_cost:,.4g} if all of them ran eagerly"
    if plan.cost.eager is None:
        eager += f", assumed to cost {EAGER:g} times a replay: pool.calibrate() measures it"
    lines = [
        f"padding {percent(plan.padding)}; run eagerly {percent(plan.tail)} of {total} queries",
        f"{plan.expected_cost:,.4g} {plan.cost.unit} a query ({eager})",
        f"{plan.captures} graphs at batch size {', '.join(map(str, plan.batch_sizes))}",
        f"made for waveforms at {plan.geometry.sampling_rate:,} Hz",
    ]
    if len(plan.lengths) < plan.graphs:
        limit = "" if plan.most_frames is None else ", or exceed the memory limit"
        lines.append(f"{plan.graphs} buckets were allowed: more than these gain nothing{limit}")
    if plan.pinned:
        lines.append("* chunks of long recordings")
    return lines


def percent(share: float) -> str:
    """A share as a percentage, without rounding a few queries to none."""
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def draw(plan: BucketPlan, path: str | os.PathLike[str] | None = None) -> Figure:
    """Queries above and the frames computed for them below; see `BucketPlan.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'a plan\'s plot needs matplotlib: pip install "hf-cudagraph-asr[plot]"'
        ) from error

    frames, counts = plan.traffic.arrays()
    ends = np.array(plan.lengths)
    at = np.searchsorted(ends, frames)
    held = at < len(ends)
    added = held * (ends[np.minimum(at, len(ends) - 1)] - frames)
    # A few very long queries would squeeze all others: the axis ends soon after the last bucket.
    last = int(min(ends[-1] * 1.08 + 2, max(frames[-1], ends[-1]) + 2))
    edges = np.arange(0, last + 1, max(last // BARS, 1))
    second = plan.geometry.sampling_rate / plan.geometry.hop  # in frames

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    queries = [counts * held, counts * 0, counts * ~held]
    computed = [counts * held * frames, counts * added, counts * ~held * frames]
    for axes, layers in ((above, queries), (below, computed)):
        axes.hist(
            [(frames - 0.5) / second] * 3,  # a bar holds the lengths up to its right edge
            edges / second,
            weights=[100 * layer / np.sum(layers) for layer in layers],
            stacked=True,
            color=(REPLAYED, PADDING, EAGERLY),
            label=("replayed", "padding", "run eagerly"),
        )
        for end in plan.lengths:
            width, style = (1.6, "--") if end in plan.pinned else (0.6, "-")
            axes.axvline(end / second, color=LINE, linewidth=width, linestyle=style)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, edges[-1] / second)
    above.set_ylabel("% of queries")
    below.set_ylabel("% of frames computed")
    below.set_xlabel("length of the query (s); lines: what the buckets hold")
    title = f"buckets: {len(ends)}; padding: {plan.padding:.1%}; run eagerly: {plan.tail:.2%}"
    above.set_title(title, loc="left")
    handles, labels = below.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
