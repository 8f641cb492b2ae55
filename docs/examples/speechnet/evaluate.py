"""Word error rates of third parties and students on utterances that no training heard."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from tqdm.auto import tqdm

import lexicon
import queries
from hf_cudagraph_asr import read_audio
from speechnet import decode, files, language_model, settings, third_party, train
from speechnet.settings import Size
from weaklabel.wer import utterance_errors

MODE = "lexicon"  # that counts; named before any student had transcribed the test set
RESAMPLES = 2_000
GROUPS = ("engine", "sentence", "noise", "device")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Interval = tuple[float, float, float]  # point, and the ends of 95%


class Bootstrap:
    """Resamples of the same queries, (R, Q) counts, for all that is compared.

    Args:
        words: (Q,) words of each reference.
        group: (Q,) the group of each query; groups are then drawn, with all of their queries.
    """

    def __init__(self, words: Ints, group: Ints | None = None) -> None:
        self.words = words
        drawn = np.arange(len(words)) if group is None else group
        _, row = np.unique(drawn, return_inverse=True)  # (Q,)
        size = row.max() + 1
        draws = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), RESAMPLES)
        self.counts = draws[:, row]

    def rates(self, errors: Ints) -> Floats:
        """Corpus WER of each resample, (R,), from the errors of each seed and query, (S, Q).

        Seeds are drawn with replacement as queries are, the same ones for all that have as many.
        """
        seeds = len(errors)
        picked = np.random.default_rng(seeds).integers(seeds, size=(len(self.counts), seeds))
        by_seed = self.counts @ errors.T  # (R, S)
        return np.take_along_axis(by_seed, picked, 1).mean(1) / (self.counts @ self.words)

    def rate(self, errors: Ints) -> Interval:
        """Corpus WER, the mean of the seeds, with its interval."""
        return _interval(errors.sum(1).mean() / self.words.sum(), self.rates(errors))

    def better(self, errors: Ints, others: Ints) -> Interval:
        """The share of the others' errors that is gone, with its interval: paired by query.

        Others without an error in a resample, as may be in a tiny test set, count as half of one.
        """
        least = 0.5 / self.words.sum()
        point = 1 - errors.sum(1).mean() / max(others.sum(1).mean(), 0.5)
        return _interval(point, 1 - self.rates(errors) / np.maximum(self.rates(others), least))


def errors_of(said: Sequence[str], heard: Sequence[str]) -> Ints:
    """Word errors of each utterance, (Q,): the fewest substitutions, deletions and insertions."""
    return utterance_errors(said, heard, "none")[0]


def evaluate(size: Size) -> dict[str, Any]:
    """Score all results that there are, write `scores.json` and return it.

    Raises:
        ValueError: a result is of another test set, or of other decoders.
    """
    test = tested(size)
    said = test["text"].to_list()
    words = np.array([len(text.split()) for text in said])
    bootstrap, by_home = Bootstrap(words), Bootstrap(words, test["household"].to_numpy())

    def errors(*heard: Mapping[str, str]) -> Ints:
        """Errors (S, Q) in the texts of some seeds, which are by utterance."""
        return np.stack(
            [errors_of(said, [texts[name] for name in test["utterance_id"]]) for texts in heard]
        )

    every = files.read(size, "hypotheses").join(test, on="utterance_id", how="semi")
    best = {source: every.filter(source=source, rank=0) for source in settings.SOURCES}
    best["whisper, rescored"] = language_model.rescore(every.filter(source="whisper"))
    thirds = {
        name: errors(dict(table.select("utterance_id", "text").iter_rows()))
        for name, table in best.items()
    }
    start = train.examine_start(size)["hypotheses"]
    students = _students(size)

    scores: dict[str, Any] = {
        "mode": MODE,
        "resamples": RESAMPLES,
        "test": {"utterances": test.height, "words": int(words.sum())},
        "third": {name: _score(found, bootstrap, test) for name, found in thirds.items()},
        "start": {m: _score(errors(start[m]), bootstrap, test) for m in decode.MODES},
        "students": [],
    }
    for (third, student, noise), runs in sorted(students.items()):
        modes = {}
        for mode in decode.MODES:
            found, others = errors(*(run["hypotheses"][mode] for run in runs)), dict(thirds)
            for name in ("raw", "random"):
                # Feedback changes what is said again, so each noise has a raw of its own.
                other = students.get((third, name, noise)) or students.get((third, name, 0.0))
                if other is not None and name != student:
                    others[name] = errors(*(run["hypotheses"][mode] for run in other))
            modes[mode] = _score(found, bootstrap, test) | {
                "seeds": [_rounded(one.sum() / words.sum()) for one in found],
                "better": {name: bootstrap.better(found, other) for name, other in others.items()},
                "by_home": {name: by_home.better(found, other) for name, other in others.items()},
            }
        scores["students"].append({
            "third": third, "student": student, "noise": noise,
            "seeds": [run["settings"]["seed"] for run in runs],
            "cpu_seconds": round(float(np.mean([run["cpu_seconds"] for run in runs])), 1),
            "lessons": runs[0]["settings"]["lessons"],
            "modes": modes,
        })  # fmt: skip
    files.write_json(scores, settings.results(size) / "scores.json")
    return scores


def tested(size: Size) -> pl.DataFrame:
    """The test's utterances, with `sentence`: whether anybody in training says the same."""
    known = pl.col("text").is_in(files.utterances(size, "train")["text"].to_list())
    told = pl.when(known).then(pl.lit("said in training, too")).otherwise(pl.lit("a new sentence"))
    return files.utterances(size, "test").with_columns(sentence=told)


def speech(folder: Path, size: Size, limit: int = 100) -> dict[str, Any]:
    """Score all on at most so many of one's own recordings (`clips`); write `speech-FOLDER.json`.

    The lexicon is then the words of the texts themselves: the catalog's would know few of them.
    """
    found = clips(folder, limit)
    said = [text for _, text, _ in found]
    waves = {name: wave for name, _, wave in found}
    bootstrap = Bootstrap(np.array([len(text.split()) for text in said]))
    heard: dict[str, list[str]] = {}
    for source in settings.SOURCES:
        recognize = third_party.recognizer(source, nbest=1)
        heard[source] = [recognize(wave)[0].text for wave in tqdm(waves.values(), source)]
    models = {"start": train.START}
    for third, student in product(settings.SOURCES, ("raw", "all", "gold")):
        run = train.Run(size, third, student, 0)
        if run.path.exists() and run.folder.exists():
            models[f"{student} of {third}"] = run.folder
    decoders = {
        "greedy": decode.decoders()["greedy"],
        "lexicon of the texts": lexicon.word_decoder(sorted(set(" ".join(said).split()))),
    }
    for name, model in models.items():
        for mode, texts in train.listen(model, waves, decoders, name).items():
            heard[f"{name}, {mode}"] = list(texts.values())
    rates = {name: bootstrap.rate(errors_of(said, texts)[None]) for name, texts in heard.items()}
    scores = {
        "clips": len(found),
        "words": int(bootstrap.words.sum()),
        "seconds": round(sum(map(len, waves.values())) / settings.RATE, 1),
        "wer": rates,
    }
    files.write_json(scores, settings.results(size) / f"speech-{folder.name}.json")
    return scores


def clips(folder: Path, limit: int) -> list[tuple[str, str, npt.NDArray[np.float32]]]:
    """Names, texts and waveforms (T,) at 16 kHz of at most so many recordings.

    Args:
        folder: audio files and one table, NAME.tsv, with the columns file and text; or files named
            DIGIT_SPEAKER_NUMBER.wav, of which three to six of one speaker at a time are joined.
        limit: recordings at most.

    Raises:
        ValueError: the folder holds neither.
    """
    tables = list(folder.glob("*.tsv"))
    if len(tables) == 1:
        table = pl.read_csv(tables[0], separator="\t", quote_char=None).select("file", "text")
        return [
            (file, language_model.normalize(text), read_audio(folder / file, settings.RATE))
            for file, text in table.head(limit).iter_rows()
        ]
    digits: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("[0-9]_*_*.wav")):
        digits[path.name.split("_")[1]].append(path)
    if tables or not digits:
        raise ValueError(
            f"{folder} has {len(tables)} tables (.tsv) and recordings DIGIT_SPEAKER_NUMBER.wav of "
            f"{len(digits)} speakers: give it one table with the columns file and text."
        )
    rng, found = np.random.default_rng(settings.SEED), []
    for number, speaker in zip(range(limit), cycle(sorted(digits)), strict=False):
        chosen = rng.integers(len(digits[speaker]), size=rng.integers(3, 7))
        pieces, said = [], []
        for path in (digits[speaker][row] for row in chosen):
            pieces.append(np.zeros(int(rng.uniform(0.05, 0.2) * settings.RATE), np.float32))
            pieces.append(read_audio(path, settings.RATE))
            said.append(queries.DIGITS[int(path.name[0])])
        found.append((f"{speaker}-{number}", " ".join(said), np.concatenate(pieces)))
    return found


def _students(size: Size) -> dict[tuple[str, str, float], list[dict[str, Any]]]:
    """The results of all seeds by third party, student and noise."""
    groups: defaultdict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    current = train.heard_in(size)
    for path in sorted((settings.results(size) / "runs").glob("*-*.json")):
        run = json.loads(path.read_text())
        own = run["settings"]
        if own | current != own:
            raise ValueError(
                f"{path} is of another test set or of other decoders: run the step train again."
            )
        groups[own["third"], own["student"], own["noise"]].append(run)
    return groups


def _score(errors: Ints, bootstrap: Bootstrap, test: pl.DataFrame) -> dict[str, Any]:
    """Rate with its interval, and rates by group: those of few words say little."""
    scores: dict[str, Any] = {"wer": bootstrap.rate(errors)}
    rows = test.with_columns(errors=errors.mean(0), words=bootstrap.words)
    rate = pl.col("errors").sum() / pl.col("words").sum()
    for name in GROUPS:
        groups = rows.group_by(name).agg(rate=rate).sort(name)
        scores[name] = {group: _rounded(one) for group, one in groups.iter_rows()}
    return scores


def _interval(point: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return _rounded(point), _rounded(low), _rounded(high)


def _rounded(value: Any) -> float:
    return round(float(value), 4)
