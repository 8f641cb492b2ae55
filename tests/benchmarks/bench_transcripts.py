"""One transcript out of several: word error rates, speed and calibration on CrowdSpeech.

    python tests/benchmarks/bench_transcripts.py

weaklabel's vote and medoid, with the sources' weights estimated and with equal ones, crowd-kit's
ROVER in an environment of its own (made if missing), NIST's rover, a worker on average and the best
of the seven. All tools get the same normalized texts; speed is by processor time. With
`--hypotheses 7 5 3` fewer of the seven are drawn at random; with `--sweep` the constants of
`weaklabel.rover` are moved one by one, to see whether the figures hang on them.

NIST's rover is part of SCTK: `apt-get install sctk` on Debian and Ubuntu, or its path (`--rover`).
Without it the benchmark says so and goes on. What WER the vote takes off it is shown with a 95%
interval, by a bootstrap of utterances: both tools are scored on those drawn.

The exit status is 1 where dev-clean's corpus WER is above 5.1 %, the vote is less than 20 times as
fast as crowd-kit's, the interval of what it takes off NIST's rover reaches 0, or a tool cannot run.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import crowdspeech
import figures
import numpy as np
import polars as pl
from environments import ToolError, environment, run
from rapidfuzz.distance import Levenshtein
from rich.console import Console
from rich.table import Table
from sklearn.metrics import brier_score_loss, roc_auc_score

from weaklabel import rover as consensus
from weaklabel.transcripts import ROUNDS, combine

HERE = Path(__file__).parent
CROWDKIT = "crowd-kit==1.4.2"
ROVER = shutil.which("rover") or "/usr/lib/sctk/bin/rover"  # Debian keeps it off the path
WER_BAR, SPEED_BAR = 5.1, 20.0
SWEEP = {
    "HANDICAP": (0.0, 0.25, 0.5, 0.75, 1.0),
    "OWN": (0.0, 0.25, 0.5, 0.75, 1.0),
    "MOST_OF_OTHERS": (0.5, 0.66, 0.8, 1.0, 100.0),
    "ROUNDS": (1, 2, 3, 5, 10),
}


def scored(transcripts: Mapping[str, str], references: Mapping[str, str]) -> dict[str, float]:
    """Both word error rates, in percent, and the share of transcripts that are right."""
    pairs = [(references[query].split(), text.split()) for query, text in transcripts.items()]
    errors = [Levenshtein.distance(reference, text) for reference, text in pairs]
    lengths = [len(reference) for reference, _ in pairs]
    rates = [error / length for error, length in zip(errors, lengths, strict=True)]
    return {
        "corpus_wer": 100 * sum(errors) / sum(lengths),
        "mean_utterance_wer": 100 * sum(rates) / len(rates),
        "right": errors.count(0) / len(errors),
    }


def ours(
    hypotheses: pl.DataFrame, references: Mapping[str, str], **options: Any
) -> dict[str, float]:
    """Scores, speed and how well the weights tell right transcripts from wrong ones."""
    wall, cpu = time.perf_counter(), time.process_time()
    done = combine(hypotheses, **options).transcripts
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    texts = dict(done.select("query_id", "transcript").iter_rows())
    right = np.array([references[query] == text for query, text in texts.items()])
    weight = done["weight"].to_numpy()
    return {
        **scored(texts, references),
        "transcripts": texts,
        "utterances_per_second": len(texts) / cpu,
        "wall": wall,
        "auc": float(roc_auc_score(right, weight)),
        "brier": float(brier_score_loss(right, weight)),
        "mean_weight": float(weight.mean()),
    }


def single(hypotheses: pl.DataFrame, references: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """A worker on average, and the best of each utterance's, which no choice can beat."""
    errors: dict[str, list[int]] = {}
    for query, text in hypotheses.select("query_id", "text").iter_rows():
        distance = Levenshtein.distance(references[query].split(), text.split())
        errors.setdefault(query, []).append(distance)
    words = sum(len(references[query].split()) for query in errors)
    mean = sum(sum(found) / len(found) for found in errors.values())
    return {
        "a worker on average": {"corpus_wer": 100 * mean / words},
        "the best of each utterance": {"corpus_wer": 100 * sum(map(min, errors.values())) / words},
    }


def crowdkit(
    hypotheses: pl.DataFrame, references: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    """crowd-kit's ROVER on the same hypotheses."""
    given, out = folder / "hypotheses.json", folder / "transcripts.json"
    given.write_text(json.dumps(hypotheses.to_dict(as_series=False)), encoding="utf-8")
    run(environment("crowd-kit", CROWDKIT), HERE / "crowdkit_driver.py", given, out)
    done = json.loads(out.read_text(encoding="utf-8"))
    texts = done["transcripts"]
    return {
        **scored(texts, references),
        "utterances_per_second": len(texts) / done["cpu"],
        "wall": done["wall"],
        "version": done["version"],
    }


def nist(
    hypotheses: pl.DataFrame, references: Mapping[str, str], folder: Path, rover: str
) -> dict[str, Any]:
    """NIST's rover on the same hypotheses: a word has the votes of those who have it.

    An utterance's hypotheses are its systems, first to last as they are given.
    """
    queries = sorted(references)
    texts: dict[str, list[str]] = {query: [] for query in queries}
    for query, text in hypotheses.select("query_id", "text").iter_rows():
        texts[query].append(text)
    command = [rover, "-m", "meth1", "-a", "1.0", "-c", "0.0", "-f", "0"]
    for system in range(max(map(len, texts.values()))):
        path = folder / f"system{system}.ctm"
        with open(path, "w", encoding="utf-8") as file:
            for number, query in enumerate(queries):
                given = texts[query][system].split() if system < len(texts[query]) else []
                # A system that has nothing still names the utterance: "@" is no word.
                for place, word in enumerate(given or ["@"]):
                    file.write(f"u{number:06} 1 {place}.0 1.0 {word} 1.0\n")
        command += ["-h", str(path), "ctm"]
    out = folder / "rover.ctm"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter()
    run(*command, "-o", out)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    chosen: dict[str, list[str]] = {query: [] for query in queries}
    for line in out.read_text(encoding="utf-8").splitlines():
        name, _, _, _, word, *_ = line.split()
        if word != "@":
            chosen[queries[int(name[1:])]].append(word)
    transcripts = {query: " ".join(words) for query, words in chosen.items()}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        **scored(transcripts, references),
        "transcripts": transcripts,
        "utterances_per_second": len(transcripts) / cpu,
        "wall": wall,
    }


def gain(
    ours: Mapping[str, str], theirs: Mapping[str, str], references: Mapping[str, str]
) -> dict[str, float]:
    """Corpus WER, in percent, that `ours` has less: by how much, and a paired 95% interval."""
    queries = sorted(references)
    fewer = np.array(
        [
            Levenshtein.distance(references[query].split(), theirs[query].split())
            - Levenshtein.distance(references[query].split(), ours[query].split())
            for query in queries
        ]
    )
    words = np.array([len(references[query].split()) for query in queries])
    drawn = np.random.default_rng(0).integers(0, len(queries), (2000, len(queries)))
    gains = 100 * fewer[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    low, high = np.quantile(gains, [0.025, 0.975])
    return {"gain": 100 * fewer.sum() / words.sum(), "low": float(low), "high": float(high)}


def sweep(
    hypotheses: pl.DataFrame, references: Mapping[str, str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Corpus WER where one constant is another."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, values in SWEEP.items():
        found[name] = {}
        for value in values:
            if name == "ROUNDS":
                result = ours(hypotheses, references, rounds=int(value))
            else:
                with _constant(name, value):
                    result = ours(hypotheses, references)
            found[name][f"{value:g}"] = result
    return found


@contextmanager
def _constant(name: str, value: float) -> Iterator[None]:
    before = getattr(consensus, name)
    setattr(consensus, name, value)
    try:
        yield
    finally:
        setattr(consensus, name, before)


def measure(arguments: argparse.Namespace, name: str, count: int) -> dict[str, Any]:
    """All that is measured of one set, with `count` hypotheses an utterance."""
    hypotheses, references = crowdspeech.load(name, arguments.data)
    hypotheses = crowdspeech.thinned(hypotheses, count, seed=arguments.seed)
    rows: dict[str, Any] = {
        "vote": ours(hypotheses, references),
        "vote, equal sources": ours(hypotheses, references, rounds=0),
        "medoid": ours(hypotheses, references, method="medoid"),
        "medoid, equal sources": ours(hypotheses, references, method="medoid", rounds=0),
        **single(hypotheses, references),
    }
    found: dict[str, Any] = {"rows": rows}
    if arguments.sweep:
        found["sweep"] = sweep(hypotheses, references)
    if count == max(arguments.hypotheses) and not arguments.without_crowdkit:
        try:
            rows["crowd-kit's ROVER"] = crowdkit(hypotheses, references, arguments.folder.resolve())
        except ToolError as error:
            found["failure"] = f"crowd-kit failed, {error}"
    if shutil.which(arguments.rover):
        try:
            rows["NIST's rover"] = nist(
                hypotheses, references, arguments.folder.resolve(), arguments.rover
            )
        except ToolError as error:
            found["failure"] = f"NIST's rover failed, {error}"
        else:
            texts = [rows[name]["transcripts"] for name in ("vote", "NIST's rover")]
            found["gain"] = gain(*texts, references)
    for row in rows.values():
        row.pop("transcripts", None)
    return found


def main() -> int:
    arguments = _arguments()
    if not (arguments.data / f"{arguments.sets[0]}-gt.txt").exists():
        raise SystemExit(f"CrowdSpeech is not in {arguments.data}: get it, and name it with --data")
    for folder in (arguments.folder, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    failures: dict[str, str] = {}
    console = Console(width=120)
    for name in arguments.sets:
        for count in arguments.hypotheses:
            found = measure(arguments, name, count)
            results[f"{name}, {count} hypotheses"] = found
            console.print(_table(f"{name}, {count} hypotheses an utterance", found))
            if "failure" in found:
                failures[name] = found["failure"]
            for constant, values in found.get("sweep", {}).items():
                line = ", ".join(f"{k}: {v['corpus_wer']:.2f}" for k, v in values.items())
                console.print(f"corpus WER by {constant}: {line}")
    if not shutil.which(arguments.rover):
        failures["NIST's rover"] = "apt-get install sctk"
        console.print(f"no {arguments.rover}: NIST's rover is left out (apt-get install sctk)")
    bars = list(_bars(arguments, results))
    for text, met in bars:
        console.print(f"{text}: {'met' if met else 'MISSED'}")
    settings = {k: str(v) for k, v in vars(arguments).items()}
    text = json.dumps({"settings": settings, "rounds": ROUNDS, "results": results}, indent=2)
    (arguments.out / "transcripts.json").write_text(text + "\n", encoding="utf-8")
    figures.save(
        "peers-transcripts",
        _figures(results),
        arguments.save,
        packages=("weaklabel", "polars"),
        failures=failures,
        versions={"crowd-kit": CROWDKIT.partition("==")[2]},
    )
    return 0 if all(met for _, met in bars) else 1


def _figures(results: Mapping[str, Any]) -> Iterator[figures.Figure]:
    """Our word errors over each tool's, and our speed over crowd-kit's."""
    for name, found in results.items():
        rows = found["rows"]
        for tool, row in rows.items():
            if not tool.startswith(("vote", "medoid")):
                line = "word errors of weaklabel's vote / of " + tool
                ratio = rows["vote"]["corpus_wer"] / row["corpus_wer"]
                yield figures.Figure.of(line, ratio, margin=0.02, along="CrowdSpeech", at=name)
        if peer := rows.get("crowd-kit's ROVER"):
            line = "utterances a second of processor time: weaklabel's vote / crowd-kit's ROVER"
            ratio = rows["vote"]["utterances_per_second"] / peer["utterances_per_second"]
            yield figures.Figure.of(line, ratio, better="higher", along="CrowdSpeech", at=name)


def _bars(arguments: argparse.Namespace, results: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    for name, found in results.items():
        if gained := found.get("gain"):
            interval = f"{gained['low']:.2f} to {gained['high']:.2f}"
            less = f"{gained['gain']:.2f} ({interval}) points of WER less than NIST's rover"
            yield f"{name}: {less}, the interval above 0", gained["low"] > 0
    most = max(arguments.hypotheses)
    for name in arguments.sets:
        found = results[f"{name}, {most} hypotheses"]
        vote, peer = found["rows"]["vote"], found["rows"].get("crowd-kit's ROVER")
        if name == "dev-clean" and most == 7:
            wer = vote["corpus_wer"]
            yield f"{name}: corpus WER {wer:.2f} %, at most {WER_BAR}", wer <= WER_BAR
        if "failure" in found:
            yield f"{name}: {found['failure']}", False
        if peer:
            ratio = vote["utterances_per_second"] / peer["utterances_per_second"]
            yield (
                f"{name}: {ratio:.0f} × crowd-kit's speed, at least {SPEED_BAR:.0f}",
                (ratio >= SPEED_BAR),
            )


def _table(title: str, found: Mapping[str, Any]) -> Table:
    table = Table(
        "", "corpus WER", "mean utterance WER", "all right", "mean weight", "AUC", "Brier",
        "utterances/s", title=title,
        caption="%; AUC and Brier score: of the weight, against whether all words are right",
    )  # fmt: skip
    for name, row in found["rows"].items():
        version = f" {row['version']}" if "version" in row else ""
        cells = (
            ("corpus_wer", ".2f"), ("mean_utterance_wer", ".2f"), ("right", ".3f"),
            ("mean_weight", ".3f"), ("auc", ".3f"), ("brier", ".3f"),
            ("utterances_per_second", ",.0f"),
        )  # fmt: skip
        shown = (f"{row[key]:{form}}" if key in row else "" for key, form in cells)
        table.add_row(name + version, *shown)
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=crowdspeech.FOLDER)
    parser.add_argument("--sets", nargs="+", choices=crowdspeech.SETS, default=crowdspeech.SETS)
    parser.add_argument("--hypotheses", nargs="+", type=int, default=[7])
    parser.add_argument("--seed", type=int, default=0, help="of the hypotheses drawn")
    parser.add_argument("--sweep", action="store_true", help="move the constants, one by one")
    parser.add_argument("--without-crowdkit", action="store_true")
    parser.add_argument("--rover", default=ROVER, help="NIST's rover, of SCTK")
    parser.add_argument("--folder", type=Path, default=Path("out/bench/transcripts"))
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    figures.add_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
