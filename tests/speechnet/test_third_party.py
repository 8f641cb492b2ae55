"""Both recognizers on real audio, the trigram model, and the three ways to read a student."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import jiwer
import little
import numpy as np
import pocketsphinx
import polars as pl
import pytest
import soundfile
import torch

import recognizer as tinyvoice
from speechnet import decode, files, language_model, phrases, settings, speech, third_party
from speechnet.language_model import BEGIN, END, UNKNOWN, normalize
from speechnet.settings import Size
from speechnet.waves import recording

Require = Callable[[object, str], None]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Play, The Office!", "play the office"),
        ("Channel 21.", "channel twenty one"),
        ("S03E07", "s three e seven"),
        ("What’s new on T.V.?", "what's new on tv"),
        ("Rock & Roll 100%", "rock and roll one hundred percent"),
        ("Pokémon", "pokemon"),
        ("the year 2024", "the year two zero two four"),
        ("'quoted' — ' text", "'quoted' text"),
        (" ... ", ""),
    ],
)
def test_texts_are_written_in_the_logs_letters(written: str, expected: str) -> None:
    assert normalize(written) == expected


@pytest.mark.parametrize("context", [(), (BEGIN,), ("the",), (BEGIN, "play"), ("no", "such")])
def test_the_probabilities_after_a_context_add_up_to_one(context: tuple[str, ...]) -> None:
    model = language_model.history()
    words = (*phrases.words(), END, UNKNOWN)
    total = sum(math.exp(model.score(context, word)) for word in words)
    assert total == pytest.approx(1)


def test_what_is_asked_for_often_is_likely_and_other_orders_of_its_words_are_not() -> None:
    model = language_model.history()
    asked = "play " + next(name for name in language_model.popular(60) if len(name.split()) > 2)
    backwards = " ".join(reversed(asked.split()))
    assert model.sentence(asked) > model.sentence(backwards) + math.log(1000)
    assert model.sentence("zzyzx") < model.sentence(asked)


def test_another_reader_of_the_arpa_file_gives_the_same_scores(tmp_path: Path) -> None:
    model = language_model.history()
    path = tmp_path / "history.arpa"
    model.write_arpa(path)
    reader = pocketsphinx.NGramModel.readfile(str(path))
    rng = np.random.default_rng(0)
    words = phrases.words()
    for phrase in phrases.sentences()[:: len(phrases.sentences()) // 20]:
        said = [BEGIN, *phrase.text.split()]
        for place in range(1, len(said)):
            for word in (said[place], words[int(rng.integers(len(words)))]):
                before = tuple(said[max(0, place - 2) : place])
                # pocketsphinx takes the last word first and counts in powers of 1.0001.
                logarithm = reader.prob([word, *reversed(before)]) * math.log(1.0001)
                assert logarithm == pytest.approx(model.score(before, word), abs=0.005)


def test_hypotheses_are_chosen_by_both_scores() -> None:
    popular = "play " + language_model.popular(1)[0]
    odd = " ".join(reversed(popular.split()))
    rows = pl.DataFrame(
        [
            ("b", 0, odd, -0.40),
            ("b", 1, popular, -0.45),
            ("a", 0, odd, -0.1),
            ("a", 1, popular, -9),
        ],
        schema=["utterance_id", "rank", "text", "score"],
        orient="row",
    )
    chosen = language_model.rescore(rows)
    assert dict(chosen.select("utterance_id", "text").rows()) == {"b": popular, "a": odd}


def _told(*choices: dict[str, float]) -> torch.Tensor:
    """Log-probabilities, (frames, tokens), of which every second frame is a blank."""
    frames = []
    for choice in choices:
        for frame in ({"<pad>": 1.0}, choice):
            row = torch.full((len(tinyvoice.TOKENS),), 1e-6)
            for token, share in frame.items():
                row[tinyvoice.TOKENS.index(token)] = share
            frames.append((row / row.sum()).log())
    return torch.stack(frames)


def test_the_trigram_decides_where_the_student_wavers() -> None:
    model = language_model.history()
    words = set(phrases.words())
    # Two words that differ in one letter, of which a sentence begins with one far more often.
    gap, likely, other = max(
        (model.score((BEGIN,), one) - model.score((BEGIN,), two), one, two)
        for one in words
        for two in words
        if len(one) == len(two) and sum(a != b for a, b in zip(one, two, strict=True)) == 1
    )
    assert gap > 1
    letters = [
        {one: 1.0} if one == two else {one: 0.48, two: 0.52}
        for one, two in zip(likely, other, strict=True)
    ]
    told = _told(*letters, {"|": 1.0})
    heard = {mode: read(told) for mode, read in decode.decoders().items()}
    assert heard == {"greedy": other, "lexicon": other, "ngram": likely}


@pytest.fixture
def size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Size:
    """Five real recordings, of which one is silence."""
    made = little.make(tmp_path, monkeypatch)
    results = settings.results(made)
    rows = pl.read_parquet(results / "utterances.parquet")
    few = pl.concat([rows.filter(part="train").head(3), rows.filter(part="test").head(2)])
    few.write_parquet(results / "utterances.parquet")
    silence = settings.audio(made, "train", few["utterance_id"][1])
    soundfile.write(silence, np.zeros(16_000, np.float32), 16_000)
    (results / "hypotheses.parquet").unlink()
    monkeypatch.setattr(third_party, "SHARD", 2)
    return made


def test_all_recordings_are_recognized_and_a_broken_run_goes_on(
    size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = third_party.third_party(size, processes=1)
    columns = "utterance_id source rank text confidence score words_min seconds"
    assert found.columns == columns.split()
    best = found.filter(rank=0)
    said = pl.read_parquet(settings.results(size) / "utterances.parquet")
    assert best.height == 2 * said.height
    assert best["seconds"].min() > 0
    assert found.filter(pl.col("rank") > 0)["seconds"].is_null().all()
    assert (
        found.group_by("utterance_id", "source")
        .agg(pl.col("text").n_unique() == pl.len())["text"]
        .all()
    )
    assert found.group_by("utterance_id", "source").len()["len"].max() > 1
    rated = found.filter(pl.col("confidence").is_not_null())
    assert rated["confidence"].is_between(0, 1).all()
    assert np.allclose(rated["confidence"], np.exp(rated["score"]))
    silent = best.filter(utterance_id=said["utterance_id"][1], source="whisper")
    assert silent["text"].item() == ""

    def broken(source: str) -> third_party.Recognize:
        raise AssertionError(f"{source} is asked again")

    # Nothing is recognized twice: neither when all is there, nor when only shards are.
    monkeypatch.setattr(third_party, "recognizer", broken)
    assert third_party.third_party(size, processes=1).equals(found)
    (settings.results(size) / "hypotheses.parquet").unlink()
    assert third_party.third_party(size, processes=1).equals(found)
    other = said.with_columns(seed=pl.col("seed") + 1)
    other.write_parquet(settings.results(size) / "utterances.parquet")
    with pytest.raises(AssertionError, match="is asked again"):
        third_party.third_party(size, processes=1)


@pytest.mark.parametrize("source", settings.SOURCES)
def test_a_text_does_not_depend_on_what_was_recognized_before(size: Size, source: str) -> None:
    names = pl.read_parquet(settings.results(size) / "utterances.parquet")["utterance_id"]
    first, second = (
        soundfile.read(settings.audio(size, "train", names[at]), dtype="float32")[0]
        for at in (0, 2)
    )
    recognize = third_party.recognizer(source)
    before = recognize(first)
    recognize(second)
    assert recognize(first) == before


def test_committed_texts_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require: Require
) -> None:
    """The recordings are made anew by the synthesizers and recognized by both recognizers."""
    for engine in ("espeak-ng", "flite"):
        require(shutil.which(engine), f"{engine} is not installed")
    cpu = settings.SIZES["cpu"]
    test = files.utterances(cpu, "test").filter(pl.col("engine").is_in(["espeak-ng", "flite"]))
    hypotheses = files.read(cpu, "hypotheses").filter(rank=0)
    # Where both are sure, the last digits of another processor change no word.
    sure = hypotheses.group_by("utterance_id").agg(sure=pl.col("confidence").min())
    few = test.join(sure, on="utterance_id").sort("sure", descending=True)
    few = few.group_by("engine", maintain_order=True).head(3).drop("sure")
    monkeypatch.setattr(settings, "WORK", tmp_path)
    speech.record(few, cpu)
    for source in settings.SOURCES:
        recognize = third_party.recognizer(source)
        committed = few.join(hypotheses.filter(source=source), on="utterance_id", suffix="_heard")
        heard = [recognize(recording(cpu, "test", i))[0].text for i in committed["utterance_id"]]
        assert jiwer.wer(committed["text_heard"].to_list(), heard) <= 0.1


def test_whisper_takes_thirty_seconds_at_most() -> None:
    with pytest.raises(ValueError, match=r"31\.0 s: expected 30 s at most"):
        third_party.recognizer("whisper")(np.zeros(31 * 16_000, np.float32))
