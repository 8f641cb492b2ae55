"""Scores: rates and intervals that can be reckoned by hand, and folders of one's own recordings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jiwer
import little
import numpy as np
import polars as pl
import pytest
import soundfile

import recordings
from speechnet import decode, evaluate, files, settings, train
from speechnet.evaluate import Bootstrap, clips, errors_of
from speechnet.files import utterances


@pytest.fixture
def size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Size:
    return little.make(tmp_path, monkeypatch)


def heard(size: settings.Size, wrong: set[int], word: str = "so") -> dict[str, str]:
    """Transcripts of the test set, those of some rows with a word too many."""
    table = utterances(size, "test")
    return {
        name: f"{word} {text}" if row in wrong else text
        for row, (name, text) in enumerate(table.select("utterance_id", "text").iter_rows())
    }


def result(size: settings.Size, name: str, texts: dict[str, str], **own: object) -> None:
    path = settings.results(size) / "runs" / f"{name}.json"
    content = {
        "settings": own | train.heard_in(size), "cpu_seconds": 10.0,
        "hypotheses": dict.fromkeys(decode.MODES, texts),
    }  # fmt: skip
    files.write_json(content, path)


def student(size: settings.Size, name: str, seed: int, wrong: set[int]) -> None:
    own = {"third": "whisper", "student": name, "noise": 0.0, "lessons": 28, "seed": seed}
    result(size, f"whisper-{name}-{seed}", heard(size, wrong), **own)


def test_errors_of_utterances_add_up_to_jiwers_rate() -> None:
    said = ["put on the office", "mute", "go to channel one", "find friends"]
    wrong = ["put the office on", "", "go to channel one one", "find friends"]
    errors = errors_of(said, wrong)
    assert errors.tolist() == [2, 1, 1, 0]
    assert errors.sum() / 11 == pytest.approx(jiwer.wer(said, wrong))


def test_intervals_are_paired_by_query_and_widen_with_seeds_that_differ() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(1, 6, 400)
    third = rng.binomial(words, 0.3)[None]
    same = np.concatenate([third, third])
    draws = Bootstrap(words)
    # The same errors on the same queries: nothing gained, whatever is drawn.
    assert draws.better(third, third) == (0.0, 0.0, 0.0)
    point, low, high = draws.rate(third)
    assert point == pytest.approx(third.sum() / words.sum(), abs=1e-4)
    assert low < point < high
    spread = np.sqrt(((third[0] - point * words) ** 2).sum()) / words.sum()
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    assert draws.rate(same) == draws.rate(third)
    unlike = np.concatenate([third, np.zeros_like(third)])
    wide = draws.rate(unlike)
    assert wide[0] == pytest.approx(point / 2, abs=1e-4)
    assert (wide[1], wide[2]) == (0.0, pytest.approx(point, rel=0.15))
    # Half of the third party's errors are gone on every query that has any.
    half, third = np.full((1, 400), 1), np.full((1, 400), 2)
    assert draws.better(half, third) == (0.5, 0.5, 0.5)


def test_intervals_that_draw_groups_are_those_of_the_groups_alone() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(1, 6, 40)
    errors = rng.binomial(words, 0.3)
    once = Bootstrap(words).rate(errors[None])
    # Three times the same queries: no more is known than from one of them.
    thrice, group = np.tile(errors, 3)[None], np.tile(np.arange(40), 3)
    assert Bootstrap(np.tile(words, 3), group).rate(thrice) == once
    narrow = Bootstrap(np.tile(words, 3)).rate(thrice)
    assert narrow[2] - narrow[1] < 0.75 * (once[2] - once[1])


def test_scores_count_errors_of_students_by_mode_group_and_against_others(
    size: settings.Size,
) -> None:
    student(size, "raw", 0, {0, 1, 2, 3})
    student(size, "all", 0, {0})
    student(size, "all", 1, {0, 5, 7})
    result(size, "start", heard(size, set(range(12))))
    scores = evaluate.evaluate(size)
    assert json.loads((settings.results(size) / "scores.json").read_text())["mode"] == "lexicon"
    table = utterances(size, "test")
    words = scores["test"]["words"]
    assert words == sum(len(text.split()) for text in table["text"])
    missed = [row for row in range(28, 40) if row % 3 == 0]  # the third party, see `little`
    whisper = len(missed) / words
    assert scores["third"]["whisper"]["wer"][0] == pytest.approx(whisper, abs=1e-4)
    assert scores["start"]["greedy"]["wer"][0] == pytest.approx(12 / words, abs=1e-4)
    both, raw = scores["students"]
    assert (both["student"], both["seeds"]) == ("all", [0, 1])
    found = both["modes"]["lexicon"]
    assert found["wer"][0] == pytest.approx(2 / words, abs=1e-4)
    assert found["seeds"] == pytest.approx([1 / words, 3 / words], abs=1e-4)
    assert found["better"]["raw"][0] == pytest.approx(0.5)
    assert found["better"]["whisper"][0] == pytest.approx(1 - 2 / len(missed), abs=1e-4)
    assert found["by_home"]["raw"] == found["better"]["raw"]  # each query is a household's only one
    assert "raw" not in raw["modes"]["lexicon"]["better"]
    name = table["noise"][0]
    own = [row for row, noise in enumerate(table["noise"]) if noise == name]
    wrong = sum(row in own for row in (0, 0, 5, 7)) / 2  # the mean of both seeds
    there = sum(len(table["text"][row].split()) for row in own)
    assert found["noise"][name] == pytest.approx(wrong / there, abs=1e-4)


def test_sentences_that_training_has_are_told_from_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = little.make(tmp_path, monkeypatch)
    path = settings.results(size) / "utterances.parquet"
    rows = pl.read_parquet(path)
    old = rows.filter(part="test")["text"][3]
    first = pl.int_range(pl.len()) == 0
    rows.with_columns(text=pl.when(first).then(pl.lit(old)).otherwise("text")).write_parquet(path)
    told = evaluate.tested(size)
    for text, sentence in told.select("text", "sentence").iter_rows():
        assert sentence == ("said in training, too" if text == old else "a new sentence")
    assert told["sentence"].n_unique() == 2


def test_results_of_another_test_set_are_refused(size: settings.Size) -> None:
    student(size, "raw", 0, set())
    path = settings.results(size) / "utterances.parquet"
    pl.read_parquet(path).head(39).write_parquet(path)
    result(size, "start", heard(size, set()))
    with pytest.raises(ValueError, match=r"whisper-raw-0.json is of another test set"):
        evaluate.evaluate(size)


def test_recordings_of_ones_own_are_read_with_their_texts(tmp_path: Path) -> None:
    found = recordings.read()[:3]
    lines = ["file\ttext"]
    for recording, _ in found:
        shutil.copy(recordings.FOLDER / recording.file, tmp_path)
        lines.append(f"{recording.file}\t{recording.text.upper()}!")
    (tmp_path / "truth.tsv").write_text("\n".join(lines) + "\n")
    read = clips(tmp_path, 2)
    assert [text for _, text, _ in read] == [recording.text for recording, _ in found[:2]]
    np.testing.assert_array_equal(read[1][2], found[1][1])
    (tmp_path / "other.tsv").write_text("file\ttext\n")
    with pytest.raises(ValueError, match="has 2 tables"):
        clips(tmp_path, 2)


def test_spoken_digits_are_joined_by_speaker_at_the_models_rate(tmp_path: Path) -> None:
    tones = {"ann": 400.0, "bob": 1_200.0}
    times = np.arange(2_000) / 8_000
    for digit in range(10):
        for name, pitch in tones.items():
            wave = 0.5 * np.sin(2 * np.pi * pitch * times)
            soundfile.write(tmp_path / f"{digit}_{name}_0.wav", wave, 8_000)
    read = clips(tmp_path, 6)
    assert len(read) == 6
    for name, text, wave in read:
        count = len(text.split())
        assert 3 <= count <= 6
        assert set(text.split()) <= set("zero one two three four five six seven eight nine".split())
        assert count * (4_000 + 800) <= len(wave) <= count * (4_000 + 3_200)
        loudest = np.fft.rfftfreq(len(wave), 1 / 16_000)[np.abs(np.fft.rfft(wave)).argmax()]
        assert loudest == pytest.approx(tones[name.split("-")[0]], abs=20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has 0 tables .* of 0 speakers"):
        clips(tmp_path / "empty", 5)
