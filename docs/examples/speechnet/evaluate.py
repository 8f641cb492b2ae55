"""Word error rates of third parties and students on utterances that no training heard."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from tqdm.auto import tqdm

import lexicon
import queries
from hf_cudagraph_asr import read_audio
from speechnet import decode, language_model, settings, third_party, train
from speechnet.settings import Size
from speechnet.train import Run
from speechnet.waves import Waves, digest, utterances
from weaklabel.wer import utterance_errors

MODE = "lexicon"  # that counts; named before any student had transcribed the test set
RESAMPLES = 2_000
GROUPS = {"voices": ("engine", "voice"), "noises": ("noise",), "devices": ("device",)}

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Interval = tuple[float, float, float]  # point, and the ends of 95%


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of the same queries for all that is compared.

    Attributes:
        words: (Q,) words of each reference.
        counts: (R, Q) how often each query was drawn.
    """

    words: Ints
    counts: Ints

    @classmethod
    def of(cls, words: Ints, resamples: int = RESAMPLES, seed: int = 0) -> Bootstrap:
        """Draw; each resample has as many queries as there are."""
        size = len(words)
        drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), resamples)
        return cls(words, drawn)

    def rates(self, errors: Ints) -> Floats:
        """Corpus WER of each resample, (R,).

        Seeds are drawn with replacement as queries are, the same ones for all that have as many.

        Args:
            errors: (S, Q), of each seed and query.
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
    """Score all results that there are and write `scores.json`.

    Returns:
        What it wrote.
    """
    torch.set_num_threads(1)
    test = utterances(size, "test")
    said = test["text"].to_list()
    bootstrap = Bootstrap.of(np.array([len(text.split()) for text in said], np.int64))
    thirds = {
        name: errors_of(said, texts)[None] for name, texts in _third_parties(size, test).items()
    }
    students = _students(size, test, said)
    scores: dict[str, Any] = {
        "mode": MODE,
        "resamples": RESAMPLES,
        "test": {"utterances": test.height, "words": int(bootstrap.words.sum())},
        "third": {name: _score(found, bootstrap, test) for name, found in thirds.items()},
        "start": {},
        "students": [],
    }
    began = _start(size, test)
    for mode, texts in began["hypotheses"].items():
        found = errors_of(said, [texts[name] for name in test["utterance_id"]])[None]
        scores["start"][mode] = _score(found, bootstrap, test)
    for (third, student, noise), runs in sorted(students.items()):
        row: dict[str, Any] = {
            "third": third,
            "student": student,
            "noise": noise,
            "seeds": runs["seeds"],
            "cpu_seconds": round(float(np.mean(runs["cpu_seconds"])), 1),
            "lessons": runs["lessons"],
            "modes": {},
        }
        for mode, found in runs["errors"].items():
            others = dict(thirds)
            for name in ("raw", "random"):
                # Feedback changes what is said again, so each noise has a raw of its own.
                other = students.get((third, name, noise)) or students.get((third, name, 0.0))
                if other is not None and name != student:
                    others[name] = other["errors"][mode]
            row["modes"][mode] = _score(found, bootstrap, test) | {
                "seeds": [_rounded(one.sum() / bootstrap.words.sum()) for one in found],
                "better": {name: bootstrap.better(found, other) for name, other in others.items()},
                "real_time_factor": _rounded(np.mean(runs["factors"][mode])),
            }
        scores["students"].append(row)
    train.write_json(settings.results(size) / "scores.json", scores)
    return scores


def speech(folder: Path, size: Size, limit: int = 100) -> dict[str, Any]:
    """Score third parties and students on recordings of one's own; writes `speech-FOLDER.json`.

    The lexicon is then the words of the texts themselves: the catalog's would know few of them.

    Args:
        folder: audio files and one table (TSV, CSV, JSON lines or Parquet) with the columns file
            and text; or files named DIGIT_SPEAKER_NUMBER.wav, which are joined to connected digits.
        size: whose students.
        limit: recordings at most.

    Raises:
        ValueError: the folder holds neither.
    """
    torch.set_num_threads(1)
    found = clips(folder, limit)
    said = [text for _, text, _ in found]
    waves = {name: wave for name, _, wave in found}
    words = sorted({word for text in said for word in text.split()})
    bootstrap = Bootstrap.of(np.array([len(text.split()) for text in said], np.int64))
    scores: dict[str, Any] = {
        "clips": len(found),
        "words": int(bootstrap.words.sum()),
        "seconds": round(sum(map(len, waves.values())) / settings.RATE, 1),
        "wer": {},
    }
    for source in settings.SOURCES:
        recognize = third_party.recognizer(source)
        heard = [recognize(wave)[0].text for wave in tqdm(waves.values(), source)]
        scores["wer"][source] = bootstrap.rate(errors_of(said, heard)[None])
    decoders = {
        "greedy": decode.decoders()["greedy"],
        "lexicon of the texts": lexicon.word_decoder(words),
    }
    models = {"start": train.START}
    for third in settings.SOURCES:
        for student in ("raw", "all", "gold"):
            path = settings.results(size) / "runs" / f"{third}-{student}-0.json"
            if path.exists() and (model := Run(size, third, student, 0).folder).exists():
                models[f"{student} of {third}"] = model
    for name, model in models.items():
        texts, _ = train.listen(*train.loaded(model), waves, decoders, name)
        for mode, heard_by in texts.items():
            errors = errors_of(said, [heard_by[clip] for clip in waves])[None]
            scores["wer"][f"{name}, {mode}"] = bootstrap.rate(errors)
    train.write_json(settings.results(size) / f"speech-{folder.name}.json", scores)
    return scores


def clips(folder: Path, limit: int) -> list[tuple[str, str, npt.NDArray[np.float32]]]:
    """Read recordings with their texts: id, text, waveform (T,) at 16 kHz; see `speech`."""
    readers = {
        ".tsv": lambda path: pl.read_csv(path, separator="\t", quote_char=None),
        ".csv": pl.read_csv,
        ".jsonl": pl.read_ndjson,
        ".parquet": pl.read_parquet,
    }
    tables = [path for path in sorted(folder.iterdir()) if path.suffix in readers]
    digits = [path for path in sorted(folder.glob("*.wav")) if _DIGIT.fullmatch(path.name)]
    if len(tables) == 1:
        table = readers[tables[0].suffix](tables[0])
        if not {"file", "text"} <= set(table.columns):
            raise ValueError(
                f"{tables[0]} has the columns {', '.join(table.columns)}: file and text are needed."
            )
        return [
            (file, language_model.normalize(text), read_audio(folder / file, settings.RATE))
            for file, text in table.select("file", "text").head(limit).iter_rows()
        ]
    if tables or not digits:
        raise ValueError(
            f"{folder} has {len(tables)} tables (.tsv, .csv, .jsonl, .parquet) and {len(digits)} "
            "files DIGIT_SPEAKER_NUMBER.wav: give it one table with the columns file and text."
        )
    return _connected(digits, limit)


_DIGIT = re.compile(r"(\d)_([a-z]+)_\d+\.wav")


def _connected(files: Sequence[Path], limit: int) -> list[tuple[str, str, npt.NDArray[np.float32]]]:
    """Three to six digits of one speaker each, with short pauses between them."""
    by_speaker: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        match = _DIGIT.fullmatch(file.name)
        assert match
        by_speaker[match[2]].append(file)
    rng, speakers = np.random.default_rng(settings.SEED), sorted(by_speaker)
    found = []
    for number in range(limit):
        own = by_speaker[speakers[number % len(speakers)]]
        chosen = [own[row] for row in rng.integers(len(own), size=rng.integers(3, 7))]
        pieces: list[npt.NDArray[np.float32]] = []
        for file in chosen:
            pause = np.zeros(int(rng.uniform(0.05, 0.2) * settings.RATE), np.float32)
            pieces += [pause, read_audio(file, settings.RATE)]
        text = " ".join(queries.DIGITS[int(file.name[0])] for file in chosen)
        found.append((f"{speakers[number % len(speakers)]}-{number}", text, np.concatenate(pieces)))
    return found


def _third_parties(size: Size, test: pl.DataFrame) -> dict[str, list[str]]:
    """Texts of the test set by source, in the test's order, also of n-best lists chosen anew."""
    table = pl.read_parquet(settings.results(size) / "hypotheses.parquet").join(
        test.select("utterance_id"), on="utterance_id", how="semi"
    )
    found = {
        source: table.filter((pl.col("source") == source) & (pl.col("rank") == 0))
        for source in settings.SOURCES
    }
    whisper = table.filter(pl.col("source") == "whisper")
    if whisper["rank"].max():
        found["whisper, rescored"] = language_model.rescore(whisper)
    texts = {}
    for name, frame in found.items():
        joined = test.select("utterance_id").join(
            frame.select("utterance_id", "text"), "utterance_id", "left", maintain_order="left"
        )
        if joined["text"].null_count():
            raise ValueError(
                f"{joined['text'].null_count()} of {test.height} test utterances have no "
                f"hypothesis of {name}: run the step third_party again."
            )
        texts[name] = joined["text"].to_list()
    return texts


def _students(
    size: Size, test: pl.DataFrame, said: list[str]
) -> dict[tuple[str, str, float], dict[str, Any]]:
    """Errors (S, Q) by mode, and facts, of all committed runs, by third party, student, noise."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    current = digest(test)
    for path in sorted((settings.results(size) / "runs").glob("*.json")):
        run = json.loads(path.read_text())
        if run["settings"]["test"] != current:
            raise ValueError(f"{path} is of other test utterances: run the step train again.")
        if "student" in run["settings"]:
            own = run["settings"]
            groups[own["third"], own["student"], own["noise"]].append(run)
    return {
        key: {
            "seeds": [run["settings"]["seed"] for run in runs],
            "cpu_seconds": [run["cpu_seconds"] for run in runs],
            "lessons": runs[0]["settings"]["lessons"],
            "factors": {m: [run["real_time_factor"][m] for run in runs] for m in decode.MODES},
            "errors": {
                mode: np.stack([
                    errors_of(said, [run["hypotheses"][mode][i] for i in test["utterance_id"]])
                    for run in runs
                ])
                for mode in decode.MODES
            },
        }
        for key, runs in groups.items()
    }  # fmt: skip


def _start(size: Size, test: pl.DataFrame) -> dict[str, Any]:
    """What the shared start hears in the test set, before any training here."""
    path = settings.results(size) / "runs" / "start.json"
    wanted = {"test": digest(test)}
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text())
        if result["settings"] == wanted:
            return result
    waves = Waves(size, "test")
    texts, factors = train.listen(*train.loaded(train.START), waves, decode.decoders(), "start")
    result = {
        "settings": wanted,
        **train.provenance(),
        "real_time_factor": factors,
        "hypotheses": texts,
    }
    train.write_json(path, result)
    return result


def _score(errors: Ints, bootstrap: Bootstrap, test: pl.DataFrame) -> dict[str, Any]:
    """Rate with its interval, and rates by group: those of few words say little."""
    mean, words = errors.mean(0), bootstrap.words
    scores: dict[str, Any] = {"wer": bootstrap.rate(errors)}
    for name, columns in GROUPS.items():
        rows = test.with_row_index("row").with_columns(group=pl.concat_str(columns, separator=" "))
        scores[name] = {
            group: _rounded(mean[chosen].sum() / words[chosen].sum())
            for (group,), part in sorted(rows.group_by("group"))
            if len(chosen := part["row"].to_numpy())
        }
    return scores


def _interval(point: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return _rounded(point), _rounded(low), _rounded(high)


def _rounded(value: Any) -> float:
    return round(float(value), 4)
