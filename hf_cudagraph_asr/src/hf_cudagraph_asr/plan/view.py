"""A plan as people see it: as a table of text, and drawn against the traffic it was made for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.plan.cost import EAGER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hf_cudagraph_asr.plan.plan import BucketPlan

BARS = 120  # bars from 0 to the end, about
REPLAYED, PADDING, EAGERLY, LINE = "#7a9cc6", "#e07a5f", "#8b95a1", "#1f2933"


def table(plan: BucketPlan) -> str:
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
    return "\n".join([_count(plan), "", *lines, "", *_summary(plan)])


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


def plot(plan: BucketPlan, path: str | os.PathLike[str] | None = None) -> Figure:
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
    computed = np.where(held, ends[np.minimum(at, len(ends) - 1)], frames)
    # A few very long queries would squeeze all others: the axis ends soon after the last bucket.
    end = int(min(ends[-1] * 1.08 + 2, max(frames[-1], ends[-1]) + 2))
    edges = np.arange(0, end + 1, max(end // BARS, 1))
    second = plan.geometry.sampling_rate / plan.geometry.hop  # in frames

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    names, colors = ("replayed", "padding", "run eagerly"), (REPLAYED, PADDING, EAGERLY)
    layers: dict[str, tuple[npt.NDArray[np.float64], ...]] = {
        "% of queries": (counts * held, counts * 0, counts * ~held),
        "% of frames computed": (
            counts * held * frames,
            counts * held * (computed - frames),
            counts * ~held * frames,
        ),
    }
    for axes, (label, weights) in zip((above, below), layers.items(), strict=True):
        axes.hist(
            [(frames - 0.5) / second] * 3,  # a bar holds the lengths up to its right edge
            edges / second,
            weights=[100 * layer / sum(map(np.sum, weights)) for layer in weights],
            stacked=True,
            color=colors,
            label=names,
        )
        for bucket in plan.buckets:
            axes.axvline(
                bucket.frames / second,
                color=LINE,
                linewidth=1.6 if bucket.pinned else 0.6,
                linestyle="--" if bucket.pinned else "-",
            )
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, edges[-1] / second)
        axes.set_ylabel(label)
    below.set_xlabel("length of the query (s); lines: what the buckets hold")
    above.set_title(
        f"{_count(plan)}: {plan.padding:.1%} padding, {plan.tail:.2%} of queries run eagerly",
        loc="left",
    )
    handles, labels = below.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _count(plan: BucketPlan) -> str:
    return "1 bucket" if len(plan.lengths) == 1 else f"{len(plan.lengths)} buckets"
