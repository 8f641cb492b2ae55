"""The report's plots, as SVG to be written into an HTML page.

Colours that belong to the page are CSS variables of it, so that one plot serves light and dark, and
text is text in the page's font. Matplotlib's object API draws: no global state, no display.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len

from weaklabel.analysis import HISTOGRAM, Analysis
from weaklabel.comparison_table import printable
from weaklabel.reporting.gold_analysis import GoldAnalysis, GroupScore

FEW = 30  # queries; what rests on fewer is shown faint
FAINT = 0.35
NAME = 26  # characters of a function's name

# Matplotlib is given colours that nothing else has, and the page's variables take their place.
_VARIABLES = {
    "#010101": "ink",
    "#020202": "soft",
    "#030303": "line",
    "#040404": "accept",
    "#050505": "reject",
    "#060606": "card",
}
INK, SOFT, LINE, ACCEPT, REJECT, CARD = _VARIABLES

_OPTIONS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11.5,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "weaklabel",  # the same page for the same numbers
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
}


def weights_histogram(analysis: Analysis) -> str:
    """Queries by weight, coloured by label."""
    with _options():
        figure, axes = _figure()
        edges = np.arange(HISTOGRAM + 1) / HISTOGRAM
        rows = np.array(analysis.histogram)
        for low, high, share in zip(edges[:-1], edges[1:], rows / analysis.rows, strict=True):
            # The threshold may lie inside a bin, whose queries cannot be told apart here.
            accepted = (low + high) / 2 >= analysis.threshold
            axes.bar(
                low,
                share,
                high - low,
                align="edge",
                color=ACCEPT if accepted else REJECT,
                edgecolor=CARD,
                linewidth=1,
            )
        axes.axvline(analysis.threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, max(float(rows.max()) / analysis.rows * 1.05, 1e-9))
        axes.grid(axis="y")
        _percent(axes.yaxis, float(rows.max()) / analysis.rows)
        axes.set_xlabel("weight: P(the transcript is right)")
        axes.set_ylabel("share of all queries")
        return _svg(figure, "weights", _histogram_words(analysis))


def reliability_diagram(gold: GoldAnalysis) -> str:
    """Share right against weight; below it, how many queries each bin has."""
    with _options():
        figure, (axes, below) = _figure(2, (4, 1))
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)))
        for part in gold.bins:
            if part.mean_weight is None or part.right is None:
                continue
            _whisker(axes, part.mean_weight, part.right, part.queries, ACCEPT)
        most = max(part.queries for part in gold.bins)
        for part in gold.bins:
            below.bar(
                part.low,
                part.queries,
                part.high - part.low,
                align="edge",
                color=SOFT,
                edgecolor=CARD,
                linewidth=1,
            )
            if part.queries:
                below.annotate(
                    str(part.queries),
                    ((part.low + part.high) / 2, part.queries),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
        below.set_ylim(0, most * 1.5)
        below.set_yticks([])
        below.spines["left"].set_visible(False)
        below.set_ylabel("queries")
        axes.set_ylim(-0.02, 1.02)
        axes.grid()
        for each in (axes, below):
            each.set_xlim(-0.02, 1.02)
            each.set_xticks(np.arange(6) / 5)
        axes.tick_params(labelbottom=False)
        axes.set_ylabel("share of transcripts right")
        below.set_xlabel("weight: P(the transcript is right)")
        return _svg(figure, "reliability", _reliability_words(gold))


def wer_by_weight(gold: GoldAnalysis) -> str:
    """Corpus WER of rejected and accepted transcripts, and of every decile of weight."""
    groups = [(0.0, gold.rejected, REJECT), (2.6, gold.accepted, ACCEPT)]
    groups += [(5.0 + number, group, INK) for number, group in enumerate(gold.deciles)]
    with _options():
        figure, axes = _figure()
        top = 0.0
        for x, group, colour in groups:
            if group.corpus_wer is not None:
                _whisker(axes, x, group.corpus_wer, group.queries, colour)
                top = max(top, group.corpus_wer.high)
        if gold.everything.corpus_wer is not None:
            axes.axhline(
                gold.everything.corpus_wer.point, color=SOFT, linewidth=1.2, linestyle=(0, (4, 3))
            )
        axes.axvline(4.1, color=LINE, linewidth=1)
        axes.set_ylim(0, top * 1.08 or 0.01)
        axes.set_xlim(-1.3, 14.6)
        ticks = [x for x, _, _ in groups]
        labels = ["rejected", "accepted", *map(str, range(1, 11))]
        axes.set_xticks(ticks, labels, fontsize=9.5)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y")
        _percent(axes.yaxis, top)
        axes.set_xlabel("label; decile of weight, 10 the highest")
        axes.set_ylabel("corpus WER")
        return _svg(figure, "wer", _wer_words(gold))


def heat_map(
    name: str, functions: Sequence[str], values: Sequence[Sequence[float | None]], words: str
) -> str:
    """(F, F) values from 0 to 1, None where there is none; functions are numbered from 1.

    Args:
        name: of the plot, part of its ids.
        functions: their names.
        values: a row a function.
        words: what the plot says, for those who do not see it.
    """
    wide = len(functions)
    # Names may be in any script, or look like formulas: Matplotlib is given letters instead.
    stand_ins = [f"{number:04d}".ljust(_cells(name), "x") for number, name in enumerate(functions)]
    longest = max(map(len, stand_ins))
    cell = max(0.2, min(0.42, 3.0 / wide))  # inches
    with _options():
        from matplotlib import colormaps

        figure, axes = _figure(size=(wide * cell + longest * 0.085 + 1.2, wide * cell + 0.5))
        colours = colormaps["cividis"].resampled(10)
        table = np.ma.masked_invalid(
            np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
        )
        mesh = axes.pcolormesh(
            table,
            vmin=0,
            vmax=1,
            cmap=colours,
            edgecolors=CARD,
            linewidth=1.5 if wide < 20 else 0.6,
        )
        if wide <= 12:
            for (row, column), value in np.ndenumerate(table.filled(np.nan)):
                if not np.isnan(value):
                    # cividis is dark below the middle.
                    axes.text(
                        column + 0.5,
                        row + 0.5,
                        "1" if value > 0.995 else f"{value:.2f}".removeprefix("0"),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="#ffffff" if value < 0.5 else "#000000",
                    )
        numbers = [str(number + 1) for number in range(wide)]
        places = np.arange(wide) + 0.5
        size = 8 if wide > 12 else 10
        axes.set_yticks(
            places,
            [f"{stand_in}  {n}" for stand_in, n in zip(stand_ins, numbers, strict=True)],
            fontsize=size,
        )
        axes.set_xticks(places, numbers, fontsize=size if wide <= 20 else 6.5)
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.invert_yaxis()
        axes.set_aspect("equal")
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, shrink=min(1.0, 2.4 / (wide * cell)), pad=0.02)
        bar.set_ticks([0, 0.5, 1])
        bar.outline.set_visible(False)
        source = _svg(figure, name, words)
    for stand_in, function in zip(stand_ins, functions, strict=True):
        # Isolated: a right-to-left name must not carry its number to its other side.
        shown = html.escape(f"\u2068{_short(function)}\u2069")
        source = source.replace(f">{stand_in}  ", f">{shown}  ")
    return source


# What the plots say


def _histogram_words(analysis: Analysis) -> str:
    fullest = int(np.argmax(analysis.histogram))
    share = analysis.histogram[fullest] / analysis.rows
    return (
        f"Histogram of the weights of {analysis.rows:,} queries."
        f" {analysis.accepted / analysis.rows:.1%} reach the threshold of {analysis.threshold:g}."
        f" The fullest bin, {fullest / HISTOGRAM:.2f} to {(fullest + 1) / HISTOGRAM:.2f},"
        f" holds {share:.1%}."
    )


def _reliability_words(gold: GoldAnalysis) -> str:
    bins = "; ".join(
        f"mean weight {part.mean_weight:.2f}: {part.right.point:.0%} right of {part.queries}"
        for part in gold.bins
        if part.mean_weight is not None and part.right is not None
    )
    return f"Reliability diagram of {gold.queries:,} gold queries. {bins}."


def _wer_words(gold: GoldAnalysis) -> str:
    return "Corpus WER with 95% intervals. " + "; ".join(
        f"{group.name}: {_range_words(group)}"
        for group in (gold.rejected, gold.accepted, *gold.deciles)
        if group.queries
    )


def _range_words(group: GroupScore) -> str:
    rate = group.corpus_wer
    return "" if rate is None else f"{rate.point:.1%} ({rate.low:.1%} to {rate.high:.1%})"


# Drawing


def _options() -> Any:
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError('the plots need matplotlib: pip install "weaklabel[report]"') from error
    return rc_context(_OPTIONS)


def _figure(
    rows: int = 1, ratios: Sequence[float] = (1,), size: tuple[float, float] = (5.0, 3.6)
) -> Any:
    """A figure and its axes; small, so that its text can be read on a telephone, too."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, height_ratios=ratios)


def _whisker(axes: Any, x: float, rate: Any, queries: int, colour: str) -> None:
    """A point with its interval, faint where few queries are behind it."""
    alpha = FAINT if queries < FEW else 1.0
    axes.vlines(x, rate.low, rate.high, color=colour, alpha=alpha, linewidth=2.2, zorder=3)
    axes.plot(
        x,
        rate.point,
        "o",
        color=colour,
        alpha=alpha,
        markersize=6.5,
        markeredgewidth=0,
        zorder=4,
        clip_on=False,
    )


def _percent(axis: Any, top: float) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=0 if top > 0.08 else None))


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= NAME else f"{name[: NAME - 9]}…{name[-8:]}"


def _cells(name: str) -> int:
    return max(cell_len(_short(name)), 5)


def _svg(figure: Any, name: str, words: str) -> str:
    """The figure as an element that says in words what it shows."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    source = buffer.getvalue()
    source = source[source.index("<svg") :]
    # Its style would be one for the whole page; the page has it for plots.
    source = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", source, count=1, flags=re.DOTALL)
    head, _, body = source.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    # An id is the only one of its name in the page. Text cannot hold a "<", so this is markup.
    body = re.sub(r'(<[^<>]*?\s)id="', rf'\1id="{name}-', body)
    body = re.sub(r'(<[^<>]*?\s(?:xlink:)?href="#)', rf"\1{name}-", body)
    body = body.replace("url(#", f"url(#{name}-")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="0 0 {box[1]} {box[2]}" role="img" aria-label="{html.escape(words)}"'
        f' style="--width: {float(box[1]):.0f}">{body}'
    )
