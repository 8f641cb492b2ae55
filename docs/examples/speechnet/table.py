"""The page docs/speechnet.md: tables between markers, and plots, from the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.ticker import LogLocator, PercentFormatter

import queries
from speechnet import evaluate, files, settings, train
from speechnet.evaluate import MODE
from speechnet.settings import Size

DOCS = settings.HERE.parents[1]
PAGE = DOCS / "speechnet.md"
NAMES = {
    "pocketsphinx": "pocketsphinx",
    "whisper": "Whisper tiny.en",
    "whisper, rescored": "Whisper tiny.en, rescored",
}
# With the trigram model, which pocketsphinx has anyway.
EVEN = {"pocketsphinx": "pocketsphinx", "whisper": "whisper, rescored"}
LEARNED = {
    "raw": "all transcripts, as they are",
    "random": "a random part of them, as many as are kept",
    "three": "three functions' labels, by weight",
    "all": "all built-in functions' labels, by weight",
    "own": "these and the example's own, by weight",
    "all-threshold": "all built-in functions' labels, weight from 0.5 up",
    "gold": "what was really said (the ceiling)",
}
COLORS = {"pocketsphinx": "#b35900", "whisper": "#1f5fa8"}


class Results:
    """The results of a size; those of steps that were not run are empty.

    Attributes:
        train: the utterances of training.
        scores, feedback, deploy: the files of these names.
        people: `speech-NAME.json` by NAME.
        students: the scores of all students whose feedback had no noise.
    """

    def __init__(self, size: Size) -> None:
        self.size, self.folder = size, settings.results(size)
        self.train = files.utterances(size, "train")
        self.scores = files.read(size, "scores.json")
        found = {path.stem: json.loads(path.read_text()) for path in self.folder.glob("*.json")}
        self.feedback, self.deploy = found.get("feedback", {}), found.get("deploy", {})
        speech = sorted(name for name in found if name.startswith("speech-"))
        self.people = {name.removeprefix("speech-"): found[name] for name in speech}
        wanted = [(third, name) for third in settings.SOURCES for name in LEARNED]
        self.students = [row for one in wanted if (row := self.student(*one))]

    def student(self, third: str, name: str, noise: float = 0.0) -> dict[str, Any] | None:
        """A student's scores, or None."""
        wanted = {"third": third, "student": name, "noise": noise}
        return next((row for row in self.scores["students"] if row | wanted == row), None)


def write(size: Size, page: Path = PAGE, figures: Path = DOCS / "figures") -> None:
    """Fill in the page's tables and draw its plots.

    Args:
        size: whose results.
        page: Markdown with pairs of lines `<!-- begin NAME -->` and `<!-- end NAME -->`; what is
            between them is replaced by a table, or by "Not run." where its step was not.
        figures: folder for the plots, `speechnet-NAME.png`.
    """
    results = Results(size)
    made = tables(results)
    block = r"(<!-- begin ([a-z]+) -->\n).*?(<!-- end \2 -->)"
    filled = re.sub(
        block,
        lambda match: f"{match[1]}{made[match[2]]}\n{match[3]}",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    draw(results, figures)
    page.write_text(filled, encoding="utf-8")


def tables(results: Results) -> dict[str, str]:
    """The tables of `tables.md.jinja` by name, or "Not run."."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(settings.HERE), trim_blocks=True, autoescape=False
    )
    environment.filters["form"] = form
    template = environment.get_template("tables.md.jinja")
    test = evaluate.tested(results.size)
    new = [word not in queries.words() for text in test["text"] for word in text.split()]
    context = template.new_context({
        **vars(results),
        "NAMES": NAMES, "EVEN": EVEN, "LEARNED": LEARNED, "GROUPS": evaluate.GROUPS,
        "student": results.student,
        **training(results.folder / "runs"),
        "test": test, "new_words": np.mean(new),
        "goals": goals(results), "columns": columns(results),
        "heard": dict.fromkeys(name for one in results.people.values() for name in one["wer"]),
    })  # fmt: skip
    return {
        name: "".join(render(context)).strip() or "Not run."
        for name, render in template.blocks.items()
    }


def training(folder: Path) -> dict[str, list[str]]:
    """What students were trained and tested with, and their weights: each value of a run once."""
    runs = [
        {"name": path.stem, **json.loads(path.read_text())}
        for path in sorted(folder.glob("*-*.json"))
    ]
    tell = {
        "weights": lambda run: f"{run['name']}-{train.key(run['settings'])}",
        "steps": lambda run: "{steps} steps of {batch}".format(**run["settings"]),
        "hardware": lambda run: run["hardware"]["gpu"] or f"{run['hardware']['cpu']}, a core each",
        "versions": lambda run: ", ".join(map(" ".join, run["versions"].items())),
    }
    return {name: list(dict.fromkeys(map(one, runs))) for name, one in tell.items()}


def form(value: Any, spec: str) -> str:
    """Format a number, or an interval with its ends; "" where there is none."""
    if isinstance(value, list):
        return "{} ({} to {})".format(*(format(one, spec) for one in value))
    return "" if isinstance(value, jinja2.Undefined | None) else format(value, spec)


def goals(results: Results) -> list[tuple[str, str, list[float], list[float], float]]:
    """What the students of all labels were to reach.

    Returns:
        Third party, rival, the share of the rival's errors that is gone (drawing queries, and
        drawing households), and the least that was asked.
    """
    found = []
    for third, name in ((third, NAMES[third]) for third in settings.SOURCES):
        wanted = [
            (0.0, name, MODE, third, 0.08),
            (0.0, name, MODE, third, 0.3),
            (0.0, f"{name}, greedy", "greedy", third, 0.0),
            (0.0, "the student of all transcripts", MODE, "raw", 0.0),
            (0.0, "the student of a random part of them", MODE, "random", 0.0),
            *(
                (0.0, f"{NAMES[other]}, the trigram on both sides", "ngram", other, 0.0)
                for other in dict.fromkeys((EVEN[third], "pocketsphinx"))
            ),
            (1.0, "the student of all transcripts, feedback without meaning", MODE, "raw", -0.02),
        ]
        for noise, rival, mode, other, least in wanted:
            row = results.student(third, "all", noise)
            if row and other in row["modes"][mode]["better"]:
                gains = (row["modes"][mode][kind][other] for kind in ("better", "by_home"))
                found.append((name, rival, *gains, least))
    return found


def columns(results: Results) -> dict[str, dict[str, Any]]:
    """Whose rates are shown by synthesizer, sentence, noise and device."""
    found = {NAMES[name]: results.scores["third"][name] for name in settings.SOURCES}
    found["start"] = results.scores["start"][MODE]
    for row in results.students:
        if row["student"] in ("raw", "all", "gold"):
            found[f"{row['student']}, {NAMES[row['third']]}"] = row["modes"][MODE]
    return found


def draw(results: Results, folder: Path) -> None:
    """Draw what there are results for."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        plot(results, axes)
        if axes.has_data():
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
            # Without the version, so that the same results give the same file.
            figure.savefig(folder / f"speechnet-{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


def draw_wer(results: Results, axes: Any) -> None:
    """Draw students' rates with their intervals, and the third parties' as lines."""
    names = []
    for row in results.students:
        color = COLORS[row["third"]]
        point, low, high = row["modes"][MODE]["wer"]
        error = [[point - low], [high - point]]
        axes.errorbar(point, len(names), xerr=error, fmt="o", color=color, capsize=3)
        names.append(f"{row['student']}, {row['third']}")
    for third, color in COLORS.items():
        axes.axvline(results.scores["third"][third]["wer"][0], color=color, ls="--", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(f"word error rate, {MODE}; dashed: the third party's own")


def draw_weight(results: Results, axes: Any) -> None:
    """Draw the share of right transcripts by their weight."""
    said = results.train.select(query_id="utterance_id", said="text")
    for third, color in COLORS.items():
        path = results.folder / f"labels-{third}-all.parquet"
        if path.exists():
            rows = pl.read_parquet(path).join(said, on="query_id")
            right = pl.col("transcript") == pl.col("said")
            tenth = (pl.col("weight") * 9.99).floor()
            means = {"mean": pl.col("weight").mean(), "right": right.mean()}
            bins = rows.group_by(tenth).agg(**means).sort("mean")
            axes.plot(bins["mean"], bins["right"], "o-", color=color, label=NAMES[third])
    if axes.has_data():
        axes.axline((0, 0), slope=1, color="gray", ls="--", lw=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("weight that the label model gives; dashed: right as often as it says")
    axes.set_ylabel("share of the transcripts\nthat are right")


def draw_feedback(results: Results, axes: Any) -> None:
    """Draw the rates of the students of labels over feedback noise, beside raw's."""
    for third, color in COLORS.items():
        found = sorted(
            (row["noise"], *row["modes"][MODE]["wer"])
            for row in results.scores["students"]
            if (row["third"], row["student"]) == (third, "all")
        )
        raw = results.student(third, "raw")
        if len(found) > 1 and raw:
            noise, point, low, high = np.array(found).T
            style = {"color": color, "capsize": 3, "label": f"labels, {NAMES[third]}"}
            axes.errorbar(noise, point, yerr=[point - low, high - point], fmt="o-", **style)
            level, label = raw["modes"][MODE]["wer"][0], f"all transcripts, {NAMES[third]}"
            axes.axhline(level, color=color, ls=":", label=label)
            axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of the feedback that carries no information")
    axes.set_ylabel(f"word error rate, {MODE}")


def draw_load(results: Results, axes: Any) -> None:
    """Draw latencies over the rate of arrivals."""
    found = results.deploy.get("load", {})
    for (backend, rows), color in zip(found.items(), COLORS.values(), strict=False):
        for key, style in (("p50_ms", ".:"), ("p99_ms", ".-")):
            label = f"{backend}, {key.removesuffix('_ms')}"
            rates, taken = [row["rate"] for row in rows], [row[key] for row in rows]
            axes.semilogy(rates, taken, style, color=color, label=label)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:.0f}")
            axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("queries a second, mean over the day")
    axes.set_ylabel("milliseconds to the answer")


PLOTS = {"wer": draw_wer, "weight": draw_weight, "feedback": draw_feedback, "load": draw_load}
