"""The page docs/speechnet.md: tables between markers, and plots, from the committed results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl

from speechnet import evaluate, settings
from speechnet.settings import Size
from speechnet.waves import utterances

DOCS = settings.HERE.parents[1]
PAGE = DOCS / "speechnet.md"
NAMES = {"pocketsphinx": "pocketsphinx", "whisper": "Whisper tiny.en"}
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


def write(size: Size, page: Path = PAGE, figures: Path = DOCS / "figures") -> None:
    """Fill in the page's tables and draw its plots.

    Args:
        size: whose results.
        page: Markdown with pairs of lines `<!-- begin NAME -->` and `<!-- end NAME -->`; what is
            between them is replaced.
        figures: folder for the plots.

    Raises:
        ValueError: the page asks for a table that there is not.
        FileNotFoundError: nothing was evaluated yet.
    """
    results = Results(size)
    text = page.read_text(encoding="utf-8")

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"{page} asks for a table {name!r}: there are {', '.join(TABLES)}.")
        body = "\n".join(TABLES[name](results))
        return f"{match['begin']}\n{body}\n{match['end']}"

    filled = _BLOCK.sub(fill, text)
    draw(results, figures)
    page.write_text(filled, encoding="utf-8")


_BLOCK = re.compile(
    r"(?P<begin><!-- begin (?P<name>[a-z]+) -->)\n.*?(?P<end><!-- end (?P=name) -->)", re.DOTALL
)


class Results:
    """The committed JSON files of a size; those of steps that were not run are None.

    Raises:
        FileNotFoundError: nothing was evaluated yet.
    """

    def __init__(self, size: Size) -> None:
        self.size, self.folder = size, settings.results(size)
        found = self._read("scores")
        if found is None:
            raise FileNotFoundError(f"{self.folder}/scores.json is missing: run evaluate first.")
        self.scores: dict[str, Any] = found
        self.feedback = self._read("feedback")
        self.deploy = self._read("deploy")
        self.students = [row for row in self.scores["students"] if not row["noise"]]

    def student(self, third: str, name: str) -> dict[str, Any] | None:
        """A student's scores, trained on a log without feedback noise."""
        rows = [r for r in self.students if (r["third"], r["student"]) == (third, name)]
        return rows[0] if rows else None

    def run(self) -> dict[str, Any]:
        """One student's result, for what all have in common."""
        path = sorted((self.folder / "runs").glob("*-*.json"))[0]
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None


def setup(results: Results) -> Iterable[str]:
    """What was run, on what."""
    run, test = results.run(), results.scores["test"]
    train_rows = utterances(results.size, "train")
    hardware, versions = run["hardware"], run["versions"]
    yield from _table(
        ("", ""),
        [
            ("size", f"`{results.size.name}`"),
            ("recorded for training", f"{train_rows.height:,} utterances"),
            ("voices", f"{_voices(train_rows)} in training"),
            ("test", f"{test['utterances']:,} utterances, {test['words']:,} words"),
            ("a student", f"{run['settings']['steps']} steps of {run['settings']['batch']}"),
            ("processor time of a student", f"{_mean(results.students, 'cpu_seconds'):.0f} s"),
            ("seeds", ", ".join(map(str, results.size.seeds))),
            ("hardware", hardware["gpu"] or f"{hardware['cpu']}, one core a student"),
            ("versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ],
    )


def wer(results: Results) -> Iterable[str]:
    """Word error rates of all, in all modes."""
    scores = results.scores
    modes = list(scores["start"])
    rows: list[Row] = []
    for name, score in scores["third"].items():
        rows.append((_third(name), "", _wer(score["wer"]), *[""] * len(modes[1:]), ""))
    start = [_wer(scores["start"][mode]["wer"]) for mode in modes]
    rows.append(("shared start", "nothing yet", *start, ""))
    for third in settings.SOURCES:
        for name, learned in LEARNED.items():
            if (row := results.student(third, name)) is None:
                continue
            cells = [_wer(row["modes"][mode]["wer"]) for mode in modes]
            gain = row["modes"][scores["mode"]]["better"][third]
            rows.append((f"student of {NAMES[third]}", learned, *cells, _share(gain)))
    heads = [mode + (" (counts)" if mode == scores["mode"] else "") for mode in modes]
    yield from _table(("", "learned from", *heads, "fewer errors than its third party"), rows)


def claims(results: Results) -> Iterable[str]:
    """What was to be reached, and whether it was."""
    mode = results.scores["mode"]
    rows: list[Row] = []
    for third in settings.SOURCES:
        row = results.student(third, "all")
        if row is None:
            continue
        for other in (third, "raw", "random"):
            if (gain := row["modes"][mode]["better"].get(other)) is not None:
                whom = f"the student on {other} transcripts" if other != third else NAMES[third]
                goal = "from 30%" if other == third else "above 0"
                least = 0.3 if other == third else 0.0
                met = gain[0] >= least and gain[1] > 0
                rows.append((NAMES[third], f"fewer errors than {whom}", goal, _share(gain), met))
        model = row["modes"].get("ngram", {}).get("better", {}).get("pocketsphinx")
        if model is not None:
            what = "fewer errors than pocketsphinx, the language model on both sides"
            rows.append((NAMES[third], what, "above 0", _share(model), model[1] > 0))
        greedy = row["modes"]["greedy"]["better"][third]
        what = f"fewer errors than {NAMES[third]}, greedy"
        rows.append((NAMES[third], what, "above 0", _share(greedy), greedy[1] > 0))
    if results.deploy:
        factors = {n: s["real_time_factor"] for n, s in results.deploy["speed"].items()}
        times = min(factors[n] for n in settings.SOURCES) / factors[_captured(results.deploy)]
        what = "times as fast as the faster third party, one core"
        rows.append(("", what, "from 7", f"{times:.1f}", times >= 7))
    shown = [(*row[:-1], "yes" if row[-1] else "no") for row in rows]
    yield from _table(("third party", "the student on all built-ins", "goal", "is", "met"), shown)


def groups(results: Results) -> Iterable[str]:
    """Rates by voice, noise and device, in the mode that counts."""
    scores = results.scores
    columns: dict[str, Mapping[str, Any]] = {
        _third(name): scores["third"][name] for name in settings.SOURCES
    }
    columns["shared start"] = scores["start"][scores["mode"]]
    for third in settings.SOURCES:
        for name in ("raw", "all", "gold"):
            if (row := results.student(third, name)) is not None:
                columns[f"{name}, of {NAMES[third]}"] = row["modes"][scores["mode"]]
    heard = set(_voice_names(utterances(results.size, "train")))
    test = utterances(results.size, "test")
    rows: list[Row] = []
    for kind, parts in evaluate.GROUPS.items():
        counts = test.group_by(pl.concat_str(parts, separator=" ").alias("group")).len()
        number = dict(counts.iter_rows())
        for group in sorted(number):
            new = " (never heard)" if kind == "voices" and group not in heard else ""
            rates = [f"{score[kind][group]:.1%}" for score in columns.values()]
            rows.append((f"{group}{new}", number[group], *rates))
    yield from _table(("", "utterances", *columns), rows)


def labels(results: Results) -> Iterable[str]:
    """What the labels are worth, judged by what was said."""
    if results.feedback is None:
        yield "Not run."
        return
    rows = [
        (NAMES[third], row["set"], f"{row['raw_wer']:.1%}", f"{row['kept']:.0%}",
         f"{row['kept_wer']:.1%}", f"{row['auc']:.3f}")
        for third, found in results.feedback["third"].items()
        for row in found if not row["noise"]
    ]  # fmt: skip
    heads = ("third party", "functions", "WER of all", "kept", "WER of the kept", "AUC")
    yield from _table(heads, rows)


def functions(results: Results) -> Iterable[str]:
    """What each labeling function says, and how often it is right."""
    if results.feedback is None:
        yield "Not run."
        return
    rows = [
        (NAMES[third], f"`{row['name']}`", _percent(row["accepts"]), _percent(row["accept_right"]),
         _percent(row["rejects"]), _percent(row["reject_wrong"]),
         _signed(row.get("gain_auc"), ".3f"), _signed(row.get("gain_kept_wer"), ".2%"))
        for third, found in results.feedback["functions"].items()
        for row in found if not row["noise"]
    ]  # fmt: skip
    heads = (
        "third party", "function", "accepts", "of these right", "rejects", "of these wrong",
        "AUC it adds", "WER of the kept it adds",
    )  # fmt: skip
    yield from _table(heads, rows)


def feedback(results: Results) -> Iterable[str]:
    """Labels and students over the share of feedback that carries no information."""
    if results.feedback is None:
        yield "Not run."
        return
    mode = results.scores["mode"]
    rows: list[Row] = []
    for third, found in results.feedback["third"].items():
        for row in (one for one in found if one["set"] == "all"):
            cells = []
            for name in ("all", "raw"):
                scores = [
                    s for s in results.scores["students"]
                    if (s["third"], s["student"], s["noise"]) == (third, name, row["noise"])
                ]  # fmt: skip
                cells.append(_wer(scores[0]["modes"][mode]["wer"]) if scores else "not run")
            quality = (_percent(row["kept"]), f"{row['kept_wer']:.1%}", f"{row['auc']:.3f}")
            rows.append((NAMES[third], _percent(row["noise"]), *quality, *cells))
    heads = (
        "third party", "noise", "kept", "WER of the kept", "AUC", "student on labels",
        "student on all transcripts",
    )  # fmt: skip
    yield from _table(heads, rows)


def speed(results: Results) -> Iterable[str]:
    """Real-time factors and latencies, all on one core in one run."""
    if results.deploy is None:
        yield "Not run."
        return
    rows = [
        (NAMES.get(name, name), f"{row['real_time_factor']:.4f}", f"{row['p50_ms']:.1f}",
         f"{row['p95_ms']:.1f}", f"{row['p99_ms']:.1f}", f"{row['core_hours_per_million']:.1f}")
        for name, row in results.deploy["speed"].items()
    ]  # fmt: skip
    heads = ("", "real-time factor", "p50 ms", "p95 ms", "p99 ms", "core hours per million")
    yield from _table(heads, rows)


def load(results: Results) -> Iterable[str]:
    """Latencies under load."""
    if results.deploy is None:
        yield "Not run."
        return
    rows = [
        (backend, row["rate"], f"{row['busiest']:.0f}", f"{row['answered']:.0f}",
         f"{row['p50_ms']:.0f}", f"{row['p95_ms']:.0f}", f"{row['p99_ms']:.0f}")
        for backend, found in results.deploy["load"].items() for row in found
    ]  # fmt: skip
    heads = ("backend", "queries a second", "in the busiest tenth", "answered a second")
    yield from _table((*heads, "p50 ms", "p95 ms", "p99 ms"), rows)


def people(results: Results) -> Iterable[str]:
    """Real speakers, where `evaluate --speech` was run."""
    paths = sorted(results.folder.glob("speech-*.json"))
    if not paths:
        yield "Not run."
        return
    found = {path.stem.removeprefix("speech-"): json.loads(path.read_text()) for path in paths}
    names = list(dict.fromkeys(name for scores in found.values() for name in scores["wer"]))
    rows = [
        (NAMES.get(name, name), *[_wer(s["wer"][name]) if name in s["wer"] else "" for s in
                                  found.values()])
        for name in names
    ]  # fmt: skip
    heads = [f"{name}, {scores['clips']} recordings" for name, scores in found.items()]
    yield from _table(("", *heads), rows)


TABLES: dict[str, Callable[[Results], Iterable[str]]] = {
    one.__name__: one
    for one in (setup, wer, claims, groups, labels, functions, feedback, speed, load, people)
}


def draw(results: Results, folder: Path) -> None:
    """Draw what there are results for: `speechnet-NAME.png` in the folder."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    for plot in (_draw_wer, _draw_weight, _draw_feedback, _draw_load):
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        if plot(results, axes):
            axes.spines[["top", "right"]].set_visible(False)
            name = plot.__name__.removeprefix("_draw_")
            # Without the version, so that the same results give the same file.
            figure.savefig(folder / f"speechnet-{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


def _draw_wer(results: Results, axes: Any) -> bool:
    """Students' rates with their intervals, and the third parties' as lines."""
    mode, place, names = results.scores["mode"], 0, []
    for third in settings.SOURCES:
        axes.axvline(results.scores["third"][third]["wer"][0], color=COLORS[third], ls="--", lw=1)
        for name in LEARNED:
            if (row := results.student(third, name)) is not None:
                point, low, high = row["modes"][mode]["wer"]
                error = [[point - low], [high - point]]
                axes.errorbar(point, place, xerr=error, fmt="o", color=COLORS[third], capsize=3)
                names.append(f"{name}, of {third}")
                place += 1
    axes.set_yticks(range(place), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"word error rate, {mode}; dashed: the third party's own")
    return bool(names)


def _draw_weight(results: Results, axes: Any) -> bool:
    """The share of right transcripts by their weight."""
    said = utterances(results.size, "train").select(query_id="utterance_id", said="text")
    drawn = False
    for third in settings.SOURCES:
        path = results.folder / f"labels-{third}-all.parquet"
        if not path.exists():
            continue
        frame = pl.read_parquet(path).join(said, on="query_id")
        bins = np.minimum((frame["weight"].to_numpy() * 10).astype(int), 9)
        right = (frame["transcript"] == frame["said"]).to_numpy()
        there = np.unique(bins)
        axes.plot(
            [frame["weight"].to_numpy()[bins == b].mean() for b in there],
            [right[bins == b].mean() for b in there],
            "o-", color=COLORS[third], label=NAMES[third],
        )  # fmt: skip
        drawn = True
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    axes.set_xlabel("weight that the label model gives")
    axes.set_ylabel("share of the transcripts\nthat are right")
    if drawn:
        axes.legend(frameon=False)
    return drawn


def _draw_feedback(results: Results, axes: Any) -> bool:
    """Rates of the students on labels over feedback noise, divided by raw's."""
    mode, drawn = results.scores["mode"], False
    for third in settings.SOURCES:
        own = [s for s in results.scores["students"] if s["third"] == third]
        found = sorted((s["noise"], s["modes"][mode]) for s in own if s["student"] == "all")
        if len(found) > 1:
            points = np.array([score["wer"] for _, score in found])
            error = [points[:, 0] - points[:, 1], points[:, 2] - points[:, 0]]
            noise = [share for share, _ in found]
            style = {"color": COLORS[third], "label": f"labels of {NAMES[third]}", "capsize": 3}
            axes.errorbar(noise, points[:, 0], yerr=error, fmt="o-", **style)
            if (raw := results.student(third, "raw")) is not None:
                rate = raw["modes"][mode]["wer"][0]
                axes.axhline(rate, color=COLORS[third], ls=":", label="all its transcripts")
            drawn = True
    axes.set_xlabel("share of the feedback that carries no information")
    axes.set_ylabel(f"word error rate, {mode}")
    if drawn:
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    return drawn


def _draw_load(results: Results, axes: Any) -> bool:
    """Latencies over the rate of arrivals."""
    if results.deploy is None:
        return False
    for (backend, rows), color in zip(results.deploy["load"].items(), COLORS.values(), strict=True):
        rates = [row["rate"] for row in rows]
        for share, style in (("p50_ms", ":"), ("p99_ms", "-")):
            label = f"{backend}, {share.removesuffix('_ms')}"
            axes.plot(rates, [row[share] for row in rows], style, marker=".", color=color,
                      label=label)  # fmt: skip
    axes.axhline(100, color="0.7", lw=1)
    axes.set_yscale("log")
    axes.set_xlabel("queries a second, mean over the day")
    axes.set_ylabel("milliseconds to the answer")
    axes.legend(frameon=False)
    return True


def _captured(deployed: Mapping[str, Any]) -> str:
    return f"student, {deployed['backend']}"


def _third(name: str) -> str:
    source, *rest = name.split(", ")
    return ", ".join([NAMES[source], *rest])


def _voice_names(table: pl.DataFrame) -> list[str]:
    return table.select(pl.concat_str("engine", "voice", separator=" ")).to_series().to_list()


def _voices(table: pl.DataFrame) -> int:
    return len(set(_voice_names(table)))


def _mean(rows: Iterable[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _wer(interval: Sequence[float]) -> str:
    point, low, high = interval
    return f"{point:.1%} ({low:.1%} to {high:.1%})"


def _share(interval: Sequence[float]) -> str:
    point, low, high = interval
    return f"{point:.0%} ({low:.0%} to {high:.0%})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _signed(value: float | None, spec: str) -> str:
    return "" if value is None else f"{value:+{spec}}"


def _table(head: Row, rows: Iterable[Row]) -> Iterable[str]:
    """Lines of a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(map(str, row))} |"
