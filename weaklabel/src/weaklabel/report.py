"""An analysis as a terminal's table, as one self-contained HTML page, and as JSON.

The page holds everything it shows (plots, style, script) and its Content-Security-Policy forbids it
to load anything else. Names and transcripts are shown as text, whatever they contain. It shows a
few transcripts of gold queries: leave them out (`examples=0`) where it goes to people who may not
read them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json as json_text
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weaklabel.analysis import HISTOGRAM, Analysis, FunctionSummary, analyze
from weaklabel.dependence import Dependence
from weaklabel.files import written_beside
from weaklabel.gold import GoldAnalysis, GroupScore, Proportion
from weaklabel.wer import printable

if TYPE_CHECKING:
    from weaklabel.plugins import Kind


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
        _percent_axis(axes.yaxis, float(rows.max()) / analysis.rows)
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
        _percent_axis(axes.yaxis, top)
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


def _percent_axis(axis: Any, top: float) -> None:
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


WIDE = 116  # cells, from which on there is room for intervals and dependences
GOLD = 40  # more, where gold has intervals, too
NARROW = 60  # cells, below which two columns are left out
_LONGEST = 40  # cells of a name


def print_report(analysis: Analysis, console: Console) -> None:
    """Print the function table and the model's own words; with gold, WER by label and decile."""
    console.print(_functions(analysis, console.width))
    for line in _summary(analysis):
        console.print(Text(line), highlight=False)
    for warning in analysis.model.warnings:
        console.print(Text(f"warning: {printable(warning)}", style="yellow"), highlight=False)
    if analysis.gold is not None:
        console.print()
        console.print(_groups(analysis.gold, console.width))
        for name, value in scores(analysis.gold):
            console.print(Text(f"{name}: {value}"), highlight=False)
        console.print(Text(gold_note(analysis.gold), style="dim"), highlight=False)


def gold_note(gold: GoldAnalysis) -> str:
    """Which WER, which normaliser, how many queries: what no rate means anything without."""
    exact = "without a word error" if gold.wer_threshold == 0 else f"up to WER {gold.wer_threshold}"
    note = (
        f"{gold.queries:,} gold queries, {gold.right:,} of them right ({exact});"
        f" normaliser “{gold.normalizer}” ({gold.normalizer_description}). Corpus WER is all word"
        " errors over all reference words, with a 95% bootstrap interval"
        f" ({gold.resamples:,} resamples of utterances; a group without any error has none, which"
        " does not mean that it never errs); mean utterance WER averages the utterances' own rates."
    )
    if gold.missing:
        note += f" {gold.missing:,} further gold queries are not in the log or the votes: left out."
    return note


def scores(gold: GoldAnalysis) -> tuple[tuple[str, str], ...]:
    """Names and values of the figures that judge weights and labels."""
    accuracy = gold.label_accuracy
    return (
        ("labels right", "–" if accuracy is None else ranged(accuracy)),
        ("right if all were accepted", f"{gold.right / gold.queries:.1%}"),
        ("AUC of the weights", _number(gold.auc)),
        ("Brier score", _number(gold.brier)),
        ("expected calibration error", _number(gold.calibration_error)),
    )


def ranged(value: Proportion) -> str:
    """A share with its interval, in percent."""
    return f"{value.point:.1%} ({value.low:.1%} to {value.high:.1%})"


def _functions(analysis: Analysis, width: int) -> Table:
    wide = width >= WIDE + (0 if analysis.gold is None else GOLD)
    title = "labeling functions, as the model learned them"
    if analysis.gold is not None:
        title += "; and on gold"
    table = Table(title=title, title_justify="left", box=HEAVY_HEAD if wide else SIMPLE_HEAD)
    table.add_column("function", overflow="fold", min_width=12)
    # Where there is hardly room for a name, it and what the function is worth come first.
    narrow = width < NARROW
    for name in ("covers",) if narrow else ("covers", "overlaps", "conflicts"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("right if it\naccepts", justify="right", no_wrap=True)
    table.add_column("wrong if it\nrejects", justify="right", no_wrap=True)
    if wide:
        table.add_column("depends most on", overflow="fold")
    for function in analysis.functions:
        shares = (function.coverage, function.overlaps, function.conflicts)[: 1 if narrow else 3]
        cells = [_name(function.name), *(Text(f"{value:.1%}") for value in shares)]
        cells.append(_accuracy(function.learned_accept, function.gold_accept, wide))
        cells.append(_accuracy(function.learned_reject, function.gold_reject, wide))
        if wide:
            cells.append(_partner_text(function))
        table.add_row(*cells)
    return table


def _groups(gold: GoldAnalysis, width: int) -> Table:
    table = Table(
        title=f"transcripts against {gold.queries:,} gold queries",
        title_justify="left",
        box=HEAVY_HEAD if width >= WIDE else SIMPLE_HEAD,
    )
    table.add_column("group", no_wrap=True)
    for name in ("weights", "gold", "corpus WER", "mean\nutterance\nWER", "exact"):
        table.add_column(name, justify="right", no_wrap=width >= 76)
    named = (gold.everything, gold.accepted, gold.rejected)
    for group in (*named, *(group for group in gold.deciles if group.rows)):
        table.add_row(*_group(group), end_section=group is gold.rejected)
    return table


def _group(group: GroupScore) -> tuple[Text, ...]:
    weights = "–" if group.weights is None else "{:.3f} {:.3f}".format(*group.weights)
    head = (Text(group.name), Text(weights, style="dim"), Text(f"{group.queries:,}"))
    wer, mean, exact = group.corpus_wer, group.mean_utterance_wer, group.exact
    if wer is None or mean is None or exact is None:
        return (*head, *(Text("–", style="dim") for _ in range(3)))
    rate = Text(f"{wer.point:.1%}")
    if wer.low < wer.high:
        rate.append(f" {wer.low:.1%}–{wer.high:.1%}", style="dim")
    return (*head, rate, Text(f"{mean:.1%}"), Text(f"{exact.point:.1%}"))


def _summary(analysis: Analysis) -> Iterator[str]:
    model = analysis.model
    yield (
        f"{analysis.rows:,} queries in {analysis.patterns:,} patterns of votes,"
        f" {analysis.silent / analysis.rows:.1%} without a vote"
    )
    prior = "" if model.prior is None else f"P(right) {model.prior:.3f}, "
    yield (
        f"model {printable(model.kind)}: {prior}mean weight {analysis.mean_weight:.3f};"
        f" {analysis.accepted / analysis.rows:.1%} accepted (weight of {analysis.threshold:g} or"
        " more)"
    )
    for family in model.families:
        yield f"one piece of evidence: {', '.join(map(printable, family))}"


def _name(name: str) -> Text:
    text = printable(name)
    return Text(text if cell_len(text) <= _LONGEST else set_cell_size(text, _LONGEST - 1) + "…")


def _accuracy(learned: Proportion | None, gold: Proportion | None, wide: bool) -> Text:
    """What the model learned; beside or below it what gold says."""
    text = _estimate(learned, wide)
    if gold is not None:
        text.append("; " if wide else "\n").append("gold ").append_text(_estimate(gold, wide))
    return text


def _estimate(value: Proportion | None, wide: bool) -> Text:
    if value is None:
        return Text("–", style="dim")
    text = Text(f"{value.point:.1%}")
    return text.append(f" {value.low:.0%}–{value.high:.0%}", style="dim") if wide else text


def _partner_text(function: FunctionSummary) -> Text:
    pair = function.dependence
    if pair is None:
        return Text("–", style="dim")
    other = pair.second if pair.first == function.name else pair.first
    style = "yellow" if pair.significant else "dim"
    return _name(other).append(f" {pair.strength:.2f}", style=style)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


__all__ = ["print_report", "render", "report_files", "to_html", "to_json"]

FORMAT = 1
PAIRS = 10  # pairs of functions listed

FilePath = str | os.PathLike[str]


def report_files(
    votes: FilePath,
    model: FilePath,
    *,
    html: FilePath | None = None,
    json: FilePath | None = None,
    gold: FilePath | None = None,
    queries: FilePath | None = None,
    kinds: Mapping[str, Kind] | None = None,
    **options: Any,
) -> Analysis:
    """Analyse votes and a model in files, and write what is asked for.

    Args:
        votes: a file, a folder or a glob; without gold, saved patterns will do.
        model: what `weaklabel fit` wrote.
        html: write the page here.
        json: write all numbers here.
        gold: a table `query_id`, `transcript`: the correct transcripts of some queries.
        queries: the query log; needed with gold, unless the votes carry the transcripts.
        kinds: kinds of models by name, where there are more than the package's own.
        options: of `weaklabel.analysis.analyze`: threshold, wer_threshold, normalizer, resamples,
            seed, examples.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a file is not what it should be, or see `analyze`.
        ImportError: a page is asked for, and jinja2 or matplotlib is missing.
    """
    from weaklabel import tables
    from weaklabel.labels import count_files
    from weaklabel.models import load_model

    if html is not None:
        _environment()  # what is missing is said before the work, not after
    fitted = load_model(model, kinds)
    patterns = count_files([votes])
    given: Any = patterns
    if gold is not None and not _holds_patterns(votes):
        given = (tables.scan(votes), patterns)
    named = {"votes": votes, "model": model, "gold": gold, "queries": queries}
    provenance = [(name, Path(path).name) for name, path in named.items() if path is not None]
    digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()[:12]
    checked = None if gold is None else tables.read(gold)
    log = None if gold is None or queries is None else tables.scan(queries)
    # The votes were read to the end when they were counted: what breaks now is the log.
    with tables.naming(votes if queries is None else queries):
        found = analyze(
            given,
            fitted,
            gold=checked,
            queries=log,
            provenance=[*provenance, ("model, SHA-256", f"{digest}…"), ("weaklabel", _version())],
            **options,
        )
    if json is not None:
        to_json(found, json)
    if html is not None:
        to_html(found, html)
    return found


def to_json(analysis: Analysis, path: FilePath | None = None) -> str:
    """All numbers as JSON, what does not exist as null; written to `path` if one is given.

    Returns:
        The JSON text.

    Raises:
        FileNotFoundError: the folder does not exist; it is not created.
    """
    content = {"weaklabel": "analysis", "format": FORMAT, **asdict(analysis)}
    text = json_text.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if path is not None:
        _write(path, text)
    return text


def to_html(analysis: Analysis, path: FilePath, *, title: str = "Labeling functions") -> Path:
    """Write the page, beside its place first and then renamed.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: the folder does not exist; it is not created.
        IsADirectoryError: `path` is a folder.
        ImportError: jinja2 or matplotlib is missing.
    """
    return _write(path, render(analysis, title=title))


def render(analysis: Analysis, *, title: str = "Labeling functions") -> str:
    """The page as a string, to be stored as UTF-8.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
    """
    environment = _environment()
    gold = analysis.gold
    names = [function.name for function in analysis.functions]
    drawn = {
        "weights": weights_histogram(analysis),
        "reliability": reliability_diagram(gold) if gold else "",
        "wer": wer_by_weight(gold) if gold else "",
        "agreement": "",
        "dependence": "",
    }
    if len(names) > 1:
        drawn["agreement"] = heat_map(
            "agreement", names, _off_diagonal(analysis.agreement), _agreement_words(analysis)
        )
        drawn["dependence"] = heat_map(
            "dependence", names, _dependence(analysis), _dependence_words(analysis)
        )
    page: str = environment.get_template("report.html.jinja").render(
        title=title,
        analysis=analysis,
        gold=gold,
        model=analysis.model,
        plots=drawn,
        pairs=analysis.dependences[:PAIRS],
        gold_note=gold_note(gold) if gold else "",
        scores=scores(gold) if gold else (),
        few=FEW,
        longest=max(map(len, names)),
        identities=any(function.identity for function in analysis.functions),
    )
    return page


def _environment() -> Any:
    try:
        import jinja2
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'the HTML report needs {error.name}: pip install "weaklabel[report]"'
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("weaklabel"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        csp_hash=_csp_hash,
        percent=_percent,
        decimal=_decimal,
        partner=_partner,
        within=_within,
        breakable=_breakable,
    )
    return environment


def _off_diagonal(
    table: tuple[tuple[float | None, ...], ...],
) -> list[list[float | None]]:
    # A function agrees with itself: that is no news.
    return [
        [None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(table)
    ]


def _dependence(analysis: Analysis) -> list[list[float | None]]:
    index = {function.name: number for number, function in enumerate(analysis.functions)}
    table: list[list[float | None]] = [[None] * len(index) for _ in index]
    for pair in analysis.dependences:
        first, second = index[pair.first], index[pair.second]
        table[first][second] = table[second][first] = pair.strength
    return table


def _agreement_words(analysis: Analysis) -> str:
    names = [function.name for function in analysis.functions]
    pairs = [
        (value, names[i], names[j])
        for i, row in enumerate(analysis.agreement)
        for j, value in enumerate(row)
        if i < j and value is not None
    ]
    if not pairs:
        return "Agreement of functions: no two functions vote on the same query."
    least, most = min(pairs), max(pairs)
    return (
        f"How often two functions that both vote agree. Least: {least[1]} and {least[2]},"
        f" {least[0]:.0%}. Most: {most[1]} and {most[2]}, {most[0]:.0%}."
    )


def _dependence_words(analysis: Analysis) -> str:
    most = analysis.dependences[0]
    return (
        "How much two functions depend on each other given the transcript's class. Most:"
        f" {most.first} and {most.second}, {most.strength:.2f}."
    )


def _partner(function: FunctionSummary) -> str:
    """The other one of the pair in which a function's dependence is strongest."""
    pair = function.dependence
    if pair is None:
        return ""
    return pair.second if pair.first == function.name else pair.first


def _within(pair: Dependence, families: tuple[tuple[str, ...], ...]) -> bool:
    """Whether the two share their evidence in the model already."""
    return any(pair.first in family and pair.second in family for family in families)


def _breakable(name: str) -> Any:
    """The name as markup that may be broken into lines between its words."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_.\-])(?=.)", r"\1<wbr>", str(escape(name))))


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def _decimal(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _holds_patterns(path: FilePath) -> bool:
    from weaklabel.runs import read_metadata

    return "patterns" in read_metadata(path)


def _version() -> str:
    from importlib.metadata import version

    return version("weaklabel")


def _write(path: FilePath, text: str) -> Path:
    with written_beside(path) as beside:
        # Bytes: translated line ends would no longer match the hashes of the policy.
        beside.write_bytes(text.encode("utf-8"))
    return Path(path)


def _csp_hash(source: str) -> str:
    """The source expression that allows exactly this inline style or script."""
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
