"""An analysis on the terminal, as one self-contained HTML page, and as JSON.

The page holds everything it shows (plots, style, script) and its Content-Security-Policy forbids it
to load anything else. Names and transcripts are shown as text, whatever they contain. It shows a
few transcripts of gold queries: leave them out (`examples=0`) where it goes to people who may not
read them.
"""

from __future__ import annotations

import base64
import hashlib
import json as json_text
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weaklabel.analysis import Analysis, FunctionSummary, analyze
from weaklabel.errors import counted
from weaklabel.files import written_beside
from weaklabel.gold import FEW, GoldAnalysis, GroupScore
from weaklabel.wer import RESAMPLES, Interval, printable, shortened

if TYPE_CHECKING:
    from weaklabel.plugins import Kind
    from weaklabel.text import Normalizer

FORMAT = 2
NARROW = 60  # cells, below which only what a function is worth is printed
ROOMY = 116  # cells, from which on there is room for overlaps, conflicts and intervals
_LONGEST = 40  # cells of a name

FilePath = str | os.PathLike[str]


# Files


def report_files(
    votes: FilePath,
    model: FilePath,
    *,
    html: FilePath | None = None,
    json: FilePath | None = None,
    gold: FilePath | None = None,
    queries: FilePath | None = None,
    normalizer: str | Normalizer = "basic",
    kinds: Mapping[str, Kind] | None = None,
    **options: Any,
) -> Analysis:
    """Analyze votes and a model in files, and write what is asked for.

    Args:
        votes: a file, a folder or a glob; without gold, saved patterns will do.
        model: what `weaklabel fit` wrote.
        html: write the page here.
        json: write all numbers here.
        gold: a table `query_id`, `transcript`: the correct transcripts of some queries.
        queries: the query log; needed with gold, unless the votes carry the transcripts.
        normalizer: by whose rule words are the same, see `weaklabel.text`.
        kinds: kinds of models by name, where there are more than the package's own.
        options: of `weaklabel.analysis.analyze`: threshold, max_wer, examples, allow_changed.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a file is not what it should be, or see `analyze`.
        ImportError: a page is asked for, and jinja2 is missing.
    """
    from weaklabel.labels import count_files, gold_of_files
    from weaklabel.models import load_model
    from weaklabel.runs import read_metadata

    if html is not None:
        _environment()  # what is missing is said before the work, not after
    fitted = load_model(model, kinds)
    patterns = count_files([votes])
    checked = None
    if gold is not None:
        checked = gold_of_files([votes], queries, gold, normalizer, fitted.functions)
    named = {"votes": votes, "model": model, "gold": gold, "queries": queries}
    digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()[:12]
    found = analyze(
        patterns,
        fitted,
        gold=checked,
        errors=read_metadata(votes).get("errors", ()),
        provenance=[
            *((name, Path(path).name) for name, path in named.items() if path is not None),
            ("model, SHA-256", f"{digest}…"),
            ("weaklabel", version("weaklabel")),
        ],
        **options,
    )
    texts: dict[FilePath | None, Callable[[Analysis], str]] = {json: to_json, html: to_html}
    for path, text in texts.items():
        if path is not None:
            with written_beside(path) as beside:
                # Bytes: translated line ends would no longer match the hashes of the policy.
                beside.write_bytes(text(found).encode("utf-8"))
    return found


def to_json(analysis: Analysis) -> str:
    """All numbers as JSON, what does not exist as null."""
    content = {"weaklabel": "analysis", "format": FORMAT, **asdict(analysis)}
    return json_text.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# The page


def to_html(analysis: Analysis) -> str:
    """The page as a string, to be stored as UTF-8.

    Raises:
        ImportError: jinja2 is missing.
    """
    gold = analysis.gold
    page: str = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            analysis=analysis,
            gold=gold,
            strengths={(one.first, one.second): one.strength for one in analysis.dependences},
            gold_note=gold_note(gold) if gold else "",
            scores=scores(gold) if gold else (),
            few=FEW,
        )
    )
    return page


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            'the HTML report needs jinja2: pip install "weaklabel[report]"'
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("weaklabel"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        axis=_axis,
        breakable=_breakable,
        csp_hash=_csp_hash,
        decimal=lambda value, digits=3: "–" if value is None else f"{value:.{digits}f}",
        percent=lambda value, digits=1: "–" if value is None else f"{value:.{digits}%}",
        whole="{:,}".format,
        counted=counted,
        within=lambda pair, families: any({pair.first, pair.second} <= {*f} for f in families),
        # Places in a plot's frame, of shares of its width and height.
        x=lambda share: f"{44 + 308 * share:.1f}",
        y=lambda share: f"{214 - 192 * share:.1f}",
    )
    return environment


def _axis(top: float) -> tuple[float, list[tuple[float, str]]]:
    """An axis of shares from 0 to `top` or above: its end, and places on it with their texts.

    >>> _axis(0.33)
    (0.35, [(0.0, '0%'), (0.2, '7%'), (0.4, '14%'), (0.6, '21%'), (0.8, '28%'), (1.0, '35%')])
    """
    end = max(math.ceil(20 * top) / 20, 0.05)  # whole percents, then, at every fifth
    return end, [(fifth / 5, f"{end * fifth / 5:.0%}") for fifth in range(6)]


def _breakable(name: str) -> Any:
    """The name as markup that may be broken into lines between its words."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_.\-])(?=.)", r"\1<wbr>", str(escape(name))))


def _csp_hash(source: str) -> str:
    """The source expression that allows exactly this inline style or script."""
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


# Words of the page and the terminal


def gold_note(gold: GoldAnalysis) -> str:
    """Say which WER, normalizer and queries the rates are of: without these they mean nothing."""
    exact = "without a word error" if gold.max_wer == 0 else f"up to WER {gold.max_wer}"
    note = (
        f"{counted(gold.queries, 'gold query')}, {gold.right:,} of them right ({exact});"
        f" normalizer “{gold.normalizer}” ({gold.normalizer_description}). Corpus WER is all word"
        " errors over all reference words, with a 95% bootstrap interval"
        f" ({RESAMPLES:,} resamples of utterances; a group without any error has none, which"
        " does not mean that it never errs); mean utterance WER averages the utterances' own rates."
    )
    if gold.left_out:
        note += (
            f" {gold.left_out:,} further gold queries are not in the log or the votes: left out."
        )
    return note


def scores(gold: GoldAnalysis) -> tuple[tuple[str, str, str], ...]:
    """Names, values and intervals of the figures that judge weights and labels."""
    accuracy = gold.label_accuracy
    return (
        ("labels right", f"{accuracy.point:.1%}", f"{accuracy.low:.1%} to {accuracy.high:.1%}"),
        *(
            (f"right by {baseline.name}", f"{baseline.right:.1%}", f"labels {baseline.interval}")
            for baseline in gold.baselines
        ),
        ("AUC of the weights", "–" if gold.auc is None else f"{gold.auc:.3f}", ""),
        ("Brier score", f"{gold.brier:.3f}", ""),
        ("expected calibration error", f"{gold.calibration_error:.3f}", ""),
    )


# The terminal


def print_report(analysis: Analysis, console: Console) -> None:
    """Print verdict and warnings, then the functions; with gold, WER by label and the scores."""
    console.print(Text(analysis.verdict.text, style="bold"), highlight=False)
    for warning in analysis.warnings:
        console.print(Text(f"warning: {printable(warning)}", style="yellow"), highlight=False)
    console.print(_functions(analysis, console.width))
    for line in _summary(analysis):
        console.print(Text(line), highlight=False)
    if analysis.gold is not None:
        gold = analysis.gold
        rates = map(_wer, (gold.everything, gold.accepted, gold.rejected))
        for name, value, interval in (*rates, *scores(gold)):
            line = f"{name}: {value}" + (f" ({interval})" if interval else "")
            console.print(Text(line), highlight=False)
        console.print(Text(gold_note(gold), style="dim"), highlight=False)


def _wer(group: GroupScore) -> tuple[str, str, str]:
    name, rate = f"corpus WER of {group.name}", group.corpus_wer
    if rate is None:
        return name, "–", "no gold query"
    interval = f"{rate.low:.1%} to {rate.high:.1%}, " if rate.low < rate.high else ""
    return name, f"{rate.point:.1%}", f"{interval}{counted(group.queries, 'gold query')}"


def _functions(analysis: Analysis, width: int) -> Table:
    title = "labeling functions, as the model learned them"
    if analysis.gold is not None:
        title += "; and on gold"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("function", overflow="fold", min_width=12)
    shares = {"covers": "coverage"}
    roomy = width >= ROOMY
    if roomy:
        shares |= {"overlaps": "overlaps", "conflicts": "conflicts"}
    missing = width >= NARROW and any(function.missing for function in analysis.functions)
    names = [*shares, *(["no input"] if missing else [])]
    for name in (*names, "right if it\naccepts", "wrong if it\nrejects"):
        table.add_column(name, justify="right", no_wrap=True)
    for function in analysis.functions:
        cells = [Text(shortened(function.name, _LONGEST))]
        cells += [Text(f"{getattr(function, share):.1%}") for share in shares.values()]
        if missing:
            cells.append(_missing(function, analysis.rows))
        cells.append(_accuracy(function.learned_accept, function.gold_accept, roomy))
        cells.append(_accuracy(function.learned_reject, function.gold_reject, roomy))
        table.add_row(*cells)
    return table


def _missing(function: FunctionSummary, rows: int) -> Text:
    """The share without input; below it how many of these are right, and of the others."""
    if not function.missing:
        return Text("–", style="dim")
    text = Text(f"{function.missing / rows:.1%}")
    rate = function.missing_rate
    if rate is not None and rate.right is not None:
        text.append(f"\nright {rate.right:.1%}", style="yellow" if rate.informative else "dim")
        if rate.right_elsewhere is not None:
            text.append(f"\nelse {rate.right_elsewhere:.1%}", style="dim")
    return text


def _accuracy(learned: float | None, gold: Interval | None, roomy: bool) -> Text:
    """The accuracy that the model learned; below it that on gold."""
    text = Text("–", style="dim") if learned is None else Text(f"{learned:.1%}")
    if gold is not None:
        text.append(f"\ngold {gold.point:.1%}")
        if roomy:
            text.append(f" {gold.low:.0%}–{gold.high:.0%}", style="dim")
    return text


def _summary(analysis: Analysis) -> Iterator[str]:
    yield (
        f"{analysis.rows:,} queries in {analysis.patterns:,} patterns of votes;"
        f" {analysis.silent / analysis.rows:.1%} silent (no function voted),"
        f" {analysis.no_input / analysis.rows:.1%} without input to any function"
    )
    prior = "" if analysis.prior is None else f"P(right) {analysis.prior:.3f}, "
    yield (
        f"model {printable(analysis.model)}: {prior}mean weight {analysis.mean_weight:.3f};"
        f" {analysis.accepted / analysis.rows:.1%} accepted (weight of {analysis.threshold:g} or"
        " more)"
    )
    for family in analysis.families:
        yield f"one piece of evidence: {', '.join(map(printable, family))}"
    for function in analysis.functions:
        if function.errors is not None:
            first = "".join(f", first {q}: {error}" for q, error in function.errors.first[:1])
            yield printable(f"{function.name} raised on {function.errors.total:,} queries{first}")
