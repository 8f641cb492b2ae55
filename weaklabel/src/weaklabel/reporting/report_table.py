"""An analysis on the terminal: functions, then what gold says, with every rate by its name."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weaklabel.analysis import Analysis, FunctionSummary
from weaklabel.comparison_table import printable
from weaklabel.reporting.gold_analysis import GoldAnalysis, GroupScore
from weaklabel.reporting.scores import Proportion

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
            cells.append(_partner(function))
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


def _partner(function: FunctionSummary) -> Text:
    pair = function.dependence
    if pair is None:
        return Text("–", style="dim")
    other = pair.second if pair.first == function.name else pair.first
    style = "yellow" if pair.significant else "dim"
    return _name(other).append(f" {pair.strength:.2f}", style=style)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
