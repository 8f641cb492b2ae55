"""An analysis as a terminal's table, as one self-contained HTML page, and as JSON.

The page holds everything it shows (plots, style, script) and its Content-Security-Policy forbids it
to load anything else. Names and transcripts are shown as text, whatever they contain. It shows a
few transcripts of gold queries: leave them out (`examples=0`) where it goes to people who may not
read them.
"""

from __future__ import annotations

import base64
import hashlib
import json as json_text
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weaklabel.analysis import Analysis, FunctionSummary, analyse
from weaklabel.atomic import written_beside
from weaklabel.inference.dependence import Dependence
from weaklabel.reporting import plots
from weaklabel.reporting.report_table import gold_note, print_report, scores

if TYPE_CHECKING:
    from weaklabel.models import Kind

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
        options: of `weaklabel.analysis.analyse`: threshold, wer_threshold, normalizer, resamples,
            seed, examples.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a file is not what it should be, or see `analyse`.
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
        found = analyse(
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
        "weights": plots.weights_histogram(analysis),
        "reliability": plots.reliability_diagram(gold) if gold else "",
        "wer": plots.wer_by_weight(gold) if gold else "",
        "agreement": "",
        "dependence": "",
    }
    if len(names) > 1:
        drawn["agreement"] = plots.heat_map(
            "agreement", names, _off_diagonal(analysis.agreement), _agreement_words(analysis)
        )
        drawn["dependence"] = plots.heat_map(
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
        few=plots.FEW,
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
    from weaklabel.engines.metadata import read_metadata

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
