"""The page docs/speechnet.md: tables between markers, and plots, from the committed results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl

import queries
from speechnet import evaluate, files, settings
from speechnet.files import utterances
from speechnet.settings import Size

DOCS = settings.HERE.parents[1]
PAGE = DOCS / "speechnet.md"
NAMES = {
    "pocketsphinx": "pocketsphinx",
    "whisper": "Whisper tiny.en",
    "whisper, rescored": "Whisper tiny.en, rescored",
}
RESCORED = {"whisper": "whisper, rescored"}  # by the trigram, which pocketsphinx has anyway
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

Row = Sequence[object]
Lines = Iterable[str]


def write(size: Size, page: Path = PAGE, figures: Path = DOCS / "figures") -> None:
    """Fill in the page's tables and draw its plots.

    Args:
        size: whose results.
        page: Markdown with pairs of lines `<!-- begin NAME -->` and `<!-- end NAME -->`; what is
            between them is replaced by a table, or by "Not run." where its step was not.
        figures: folder for the plots, `speechnet-NAME.png`.

    Raises:
        ValueError: the page asks for a table that there is not.
        FileNotFoundError: nothing was evaluated yet.
    """
    results = Results(size)

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"{page} asks for a table {name!r}: there are {', '.join(TABLES)}.")
        body = "\n".join(TABLES[name](results)) or "Not run."
        return f"{match['begin']}\n{body}\n{match['end']}"

    block = r"(?P<begin><!-- begin (?P<name>[a-z]+) -->)\n.*?(?P<end><!-- end (?P=name) -->)"
    filled = re.sub(block, fill, page.read_text(encoding="utf-8"), flags=re.DOTALL)
    draw(results, figures)
    page.write_text(filled, encoding="utf-8")


class Results:
    """The committed JSON files of a size; those of steps that were not run are empty.

    Raises:
        FileNotFoundError: nothing was evaluated yet.
    """

    def __init__(self, size: Size) -> None:
        self.size, self.folder = size, settings.results(size)
        self.scores = files.read(size, "scores.json")
        self.mode: str = self.scores["mode"]
        self.labels, self.deploy = self._read("feedback"), self._read("deploy")
        self._students = {
            (s["third"], s["student"], s["noise"]): s for s in self.scores["students"]
        }

    def student(self, third: str, name: str, noise: float = 0.0) -> dict[str, Any] | None:
        """A student's scores, or None."""
        return self._students.get((third, name, noise))

    def students(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Third party, name and scores of all whose feedback had no noise."""
        wanted = [(third, name) for third in settings.SOURCES for name in LEARNED]
        return [(*one, row) for one in wanted if (row := self.student(*one))]

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}


def setup(results: Results) -> Lines:
    """What was run, on what."""
    run = json.loads(next((results.folder / "runs").glob("*-*.json")).read_text())
    test, heard = results.scores["test"], utterances(results.size, "train")
    voices = heard["voice"].n_unique()
    logged = [
        f"{row['lessons']:,} ({NAMES[third]})"
        for third, name, row in results.students()
        if name == "raw"
    ]
    spent = np.mean([row["cpu_seconds"] for _, _, row in results.students()])
    steps, batch = run["settings"]["steps"], run["settings"]["batch"]
    said = " ".join(utterances(results.size, "test")["text"]).split()
    new = np.mean([word not in queries.words() for word in said])
    yield from _table("size", f"`{results.size.name}`", [
        ("recorded for training", f"{heard.height:,} utterances, {voices} voices"),
        ("of these, said once people had reacted, and so in the log", ", ".join(logged)),
        ("test", f"{test['utterances']:,} utterances, {test['words']:,} words"),
        ("of these, words that the shared start never heard", f"{new:.0%}"),
        ("a student", f"{steps} steps of {batch}, {spent:.0f} s of processor time"),
        ("hardware", run["hardware"]["gpu"] or f"{run['hardware']['cpu']}, a core a student"),
        ("versions", ", ".join(f"{name} {value}" for name, value in run["versions"].items())),
    ])  # fmt: skip


def wer(results: Results) -> Lines:
    """Word error rates of all, in all modes."""
    modes, start = list(results.scores["start"]), results.scores["start"]
    rows: list[Row] = [
        (NAMES[name], "", _rate(score["wer"]), *[""] * (len(modes) + 2))
        for name, score in results.scores["third"].items()
    ]
    rows.append(("shared start", "", *[_rate(start[mode]["wer"]) for mode in modes], "", "", ""))
    for third, name, row in results.students():
        rates = [_rate(row["modes"][mode]["wer"]) for mode in modes]
        rivals = ((results.mode, third), ("ngram", RESCORED.get(third, third)))
        gains = [_share(row["modes"][mode]["better"][other]) for mode, other in rivals]
        who = f"student of {NAMES[third]}"
        rows.append((who, LEARNED[name], *rates, len(row["seeds"]), *gains))
    heads = [f"{mode}, which counts" if mode == results.mode else mode for mode in modes]
    gained = "fewer errors than its third party"
    yield from _table(
        "", "learned from", *heads, "seeds", gained, f"{gained}, trigram on both sides", rows
    )


def claims(results: Results) -> Lines:
    """What was to be reached, and whether it was."""
    rows: list[Row] = []

    def claim(third: str, what: str, gain: Sequence[float] | None, least: float = 0.0) -> None:
        if gain is not None:
            met = gain[0] >= least and gain[1] > 0
            goal = f"from {least:.0%}" if least else "above 0"
            rows.append((third, what, goal, _share(gain), "yes" if met else "no"))

    for third, student, row in results.students():
        if student != "all":
            continue
        name, gains = NAMES[third], {m: scores["better"] for m, scores in row["modes"].items()}
        counts = gains[results.mode]
        claim(name, f"fewer errors than {name}", counts[third], 0.3)
        claim(name, f"fewer errors than {name}, greedy", gains["greedy"][third])
        for other, whose in (("raw", "all transcripts"), ("random", "a random part of them")):
            claim(name, f"fewer errors than the student of {whose}", counts.get(other))
        for other in dict.fromkeys((RESCORED.get(third, third), "pocketsphinx")):
            what = f"fewer errors than {NAMES[other]}, the trigram on both sides"
            claim(name, what, gains["ngram"].get(other))
    if results.deploy:
        factor = {n: row["real_time_factor"] for n, row in results.deploy["speed"].items()}
        fastest = min(factor[name] for name in settings.SOURCES)
        times = fastest / factor[f"student, {results.deploy['backend']}"]
        what = "as fast as the faster third party, one core each"
        rows.append(("", what, "from 7×", f"{times:.1f}×", "yes" if times >= 7 else "no"))
    yield from _table("third party", "the student of all labels", "goal", "is", "met", rows)


def groups(results: Results) -> Lines:
    """Rates by synthesizer, sentence, noise and device, in the mode that counts."""
    columns = {NAMES[name]: results.scores["third"][name] for name in settings.SOURCES}
    columns["start"] = results.scores["start"][results.mode]
    for third, name, row in results.students():
        if name in ("raw", "all", "gold"):
            columns[f"{name}, {NAMES[third]}"] = row["modes"][results.mode]
    heard, test = utterances(results.size, "train"), evaluate.tested(results.size)
    rows: list[Row] = []
    for kind in evaluate.GROUPS:
        for group, count in test.group_by(kind).len().sort(kind).iter_rows():
            new = ", never heard" if kind == "engine" and group not in set(heard[kind]) else ""
            rates = [f"{score[kind][group]:.1%}" for score in columns.values()]
            rows.append((f"{group}{new}", count, *rates))
    yield from _table("", "utterances", *columns, rows)


def labels(results: Results) -> Lines:
    """What the labels are worth, judged by what was said."""
    heads = ("third party", "functions", "WER of all", "kept", "WER of the kept", "AUC")
    yield from _table(*heads, [
        (NAMES[third], row["set"], f"{row['raw_wer']:.1%}", f"{row['kept']:.0%}",
         f"{row['kept_wer']:.1%}", f"{row['auc']:.3f}")
        for third, found in results.labels.get("third", {}).items()
        for row in found if not row["noise"]
    ])  # fmt: skip


def functions(results: Results) -> Lines:
    """What each labeling function says, how often it is right, and what the example's own add."""
    heads = ("third party", "function", "accepts", "right", "rejects", "right", "AUC it adds",
             "change of the kept's WER")  # fmt: skip
    yield from _table(*heads, [
        (NAMES[third], f"`{row['name']}`",
         *["" if row[key] is None else f"{row[key]:.0%}"
           for key in ("accepts", "accept_right", "rejects", "reject_wrong")],
         *[f"{row[key]:+{spec}}" if key in row else ""
           for key, spec in (("gain_auc", ".3f"), ("gain_kept_wer", ".2%"))])
        for third, found in results.labels.get("functions", {}).items()
        for row in found if not row["noise"]
    ])  # fmt: skip


def feedback(results: Results) -> Lines:
    """Labels and students over the share of feedback that carries no information."""
    heads = ("third party", "noise", "kept", "WER of the kept", "AUC", "student of labels",
             "student of all transcripts")  # fmt: skip
    rows: list[Row] = []
    for third, found in results.labels.get("third", {}).items():
        for row in (one for one in found if one["set"] == "all"):
            students = [results.student(third, name, row["noise"]) for name in ("all", "raw")]
            rates = [_rate(s["modes"][results.mode]["wer"]) if s else "not run" for s in students]
            quality = (f"{row['kept']:.0%}", f"{row['kept_wer']:.1%}", f"{row['auc']:.3f}")
            rows.append((NAMES[third], f"{row['noise']:.0%}", *quality, *rates))
    yield from _table(*heads, rows)
    if any(row["noise"] for row in results.scores["students"]):
        yield "\n![Word error rates over feedback noise](figures/speechnet-feedback.png)"


def speed(results: Results) -> Lines:
    """Real-time factors and latencies, all on one core in one run."""
    heads = ("", "real-time factor", "p50 ms", "p95 ms", "p99 ms", "core hours per million")
    yield from _table(*heads, [
        (NAMES.get(name, name), f"{row['real_time_factor']:.4f}",
         *[f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "core_hours_per_million")])
        for name, row in results.deploy.get("speed", {}).items()
    ])  # fmt: skip


def load(results: Results) -> Lines:
    """Latencies under load."""
    keys = ("rate", "busiest", "answered", "p50_ms", "p95_ms", "p99_ms")
    heads = ("queries a second", "in the busiest tenth", "answered", "p50 ms", "p95 ms", "p99 ms")
    yield from _table("backend", *heads, [
        (backend, *[f"{row[key]:.0f}" for key in keys])
        for backend, found in results.deploy.get("load", {}).items() for row in found
    ])  # fmt: skip


def people(results: Results) -> Lines:
    """Real speakers, where `evaluate --speech` was run."""
    paths = sorted(results.folder.glob("speech-*.json"))
    found = {path.stem.removeprefix("speech-"): json.loads(path.read_text()) for path in paths}
    names = list(dict.fromkeys(name for scores in found.values() for name in scores["wer"]))
    yield from _table("", *[f"{name}, {one['clips']} recordings" for name, one in found.items()], [
        (NAMES.get(name, name), *[_rate(one["wer"].get(name)) for one in found.values()])
        for name in names
    ])  # fmt: skip


TABLES = {
    one.__name__: one
    for one in (setup, wer, claims, groups, labels, functions, feedback, speed, load, people)
}


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
    for third, name, row in results.students():
        point, low, high = row["modes"][results.mode]["wer"]
        error = [[point - low], [high - point]]
        axes.errorbar(point, len(names), xerr=error, fmt="o", color=COLORS[third], capsize=3)
        names.append(f"{name}, {third}")
    for third, color in COLORS.items():
        axes.axvline(results.scores["third"][third]["wer"][0], color=color, ls="--", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"word error rate, {results.mode}; dashed: the third party's own")


def draw_weight(results: Results, axes: Any) -> None:
    """Draw the share of right transcripts by their weight."""
    said = utterances(results.size, "train").select(query_id="utterance_id", said="text")
    for third, color in COLORS.items():
        path = results.folder / f"labels-{third}-all.parquet"
        if path.exists():
            rows = pl.read_parquet(path).join(said, on="query_id")
            right = pl.col("transcript") == pl.col("said")
            bins = rows.group_by((pl.col("weight") * 9.99).floor()).agg(
                mean=pl.col("weight").mean(), right=right.mean()
            )
            bins = bins.sort("mean")
            axes.plot(bins["mean"], bins["right"], "o-", color=color, label=NAMES[third])
    axes.set_xlabel("weight that the label model gives")
    axes.set_ylabel("share of the transcripts\nthat are right")


def draw_feedback(results: Results, axes: Any) -> None:
    """Draw the rates of the students of labels over feedback noise, beside raw's."""
    for third, color in COLORS.items():
        own = [s for s in results.scores["students"] if s["third"] == third]
        found = sorted(
            (s["noise"], *s["modes"][results.mode]["wer"]) for s in own if s["student"] == "all"
        )
        raw = results.student(third, "raw")
        if len(found) > 1 and raw:
            noise, point, low, high = np.array(found).T
            style = {"color": color, "capsize": 3, "label": f"labels, {NAMES[third]}"}
            axes.errorbar(noise, point, yerr=[point - low, high - point], fmt="o-", **style)
            axes.axhline(
                raw["modes"][results.mode]["wer"][0],
                color=color,
                ls=":",
                label=f"all transcripts, {NAMES[third]}",
            )
            axes.set_ylim(bottom=0)
    axes.set_xlabel("share of the feedback that carries no information")
    axes.set_ylabel(f"word error rate, {results.mode}")


def draw_load(results: Results, axes: Any) -> None:
    """Draw latencies over the rate of arrivals."""
    found = results.deploy.get("load", {})
    for (backend, rows), color in zip(found.items(), COLORS.values(), strict=False):
        for key, style in (("p50_ms", ".:"), ("p99_ms", ".-")):
            label = f"{backend}, {key.removesuffix('_ms')}"
            rates, taken = [row["rate"] for row in rows], [row[key] for row in rows]
            axes.semilogy(rates, taken, style, color=color, label=label)
            axes.yaxis.set_major_formatter("{x:.0f}")
            axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("queries a second, mean over the day")
    axes.set_ylabel("milliseconds to the answer")


PLOTS = {"wer": draw_wer, "weight": draw_weight, "feedback": draw_feedback, "load": draw_load}


def _rate(interval: Sequence[float] | None) -> str:
    return "{:.1%} ({:.1%} to {:.1%})".format(*interval) if interval else ""


def _share(interval: Sequence[float]) -> str:
    return "{:.0%} ({:.0%} to {:.0%})".format(*interval)


def _table(*head_and_rows: Any) -> Lines:
    """Lines of a Markdown table: the heads one by one, then all rows; none without rows."""
    *head, rows = head_and_rows
    if rows:
        for row in (head, ["---"] * len(head), *rows):
            yield f"| {' | '.join(map(str, row))} |"
