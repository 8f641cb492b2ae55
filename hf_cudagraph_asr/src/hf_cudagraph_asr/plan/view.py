"""Views of a plan: a table of text, and a plot of what it computes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from hf_cudagraph_asr.extras import imported
from hf_cudagraph_asr.plan.cost import EAGER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hf_cudagraph_asr.plan.plan import BucketPlan

BARS = 120


def table(plan: BucketPlan) -> str:
    """Write the plan as text: a row for each bucket, and what holds for the whole plan."""
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
    total = f"{plan.traffic.total:,.0f}"
    eager = f"{plan.eager_cost:,.4g} if all of them ran eagerly"
    if plan.cost.eager is None:
        eager += f", assumed to cost {EAGER:g} times a replay: pool.calibrate() measures it"
    lines += [
        "",
        f"padding {percent(plan.padding)}; run eagerly {percent(plan.tail)} of {total} queries",
        f"{plan.expected_cost:,.4g} {plan.cost.unit} a query ({eager})",
        f"{plan.captures} graphs at batch size {', '.join(map(str, plan.batch_sizes))}",
        f"made for input at {plan.geometry.sampling_rate:,} Hz",
    ]
    if len(plan.lengths) < plan.graphs:
        limit = "" if plan.most_frames is None else ", or exceed the memory limit"
        lines.append(f"{plan.graphs} buckets were allowed: more than these gain nothing{limit}")
    if plan.pinned:
        lines.append("* chunks of long recordings")
    return "\n".join(lines)


def percent(share: float) -> str:
    """A share as a percentage, without rounding a few queries to none."""
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def plot(plan: BucketPlan, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the frames that are computed for the queries of each length.

    Args:
        path: also write it there; the ending chooses the format.

    Raises:
        ImportError: matplotlib is missing.
    """
    drawing = imported("matplotlib.figure", "plot", "a plan's plot")
    frames, counts = plan.traffic.arrays()
    at = np.searchsorted(plan.lengths, frames)
    held, ends = at < len(plan.lengths), np.append(plan.lengths, 0)[at]
    second = plan.geometry.sampling_rate / plan.geometry.hop  # in frames
    # A few very long queries would squeeze all others: the axis ends after the last bucket.
    edges = np.arange(0, 1.05 * plan.lengths[-1] + 1, max(plan.lengths[-1] // BARS, 1))
    figure: Figure = drawing.Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(
        [(frames - 0.5) / second] * 3,  # a bar holds the lengths up to its right edge
        (edges / second).tolist(),
        weights=[*(counts * [frames * held, (ends - frames) * held, frames * ~held])],
        stacked=True,
        label=["replayed", "padding", "run eagerly"],
    )
    for end in plan.lengths:
        axes.axvline(end / second, color="black", linewidth=0.6)
    axes.set(xlabel="seconds of the query; lines: what buckets hold", ylabel="frames computed")
    axes.set_title(f"padding {plan.padding:.1%}, run eagerly {plan.tail:.2%}")
    axes.legend()
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
