"""Students: what each is given, the weighted loss, resumption, and the committed result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import little
import numpy as np
import polars as pl
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from speechnet import settings, train
from speechnet.files import utterances
from speechnet.train import Batches, Run, weighted_ctc
from speechnet.waves import Waves


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Other tests of this process train in another precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Size:
    return little.make(tmp_path, monkeypatch)


def test_the_recordings_on_the_disk_are_those_in_the_files(size: settings.Size) -> None:
    waves = Waves(size, "test")
    assert list(waves) == utterances(size, "test")["utterance_id"].to_list()
    assert len(waves) == 12
    for name, wave in waves.items():
        held, _ = soundfile.read(settings.audio(size, "test", name), dtype="float32")
        np.testing.assert_array_equal(wave, held)
        assert waves.samples([name])[0] == len(held)


def test_a_missing_recording_is_named(size: settings.Size) -> None:
    settings.audio(size, "train", "u0000003").unlink()
    with pytest.raises(FileNotFoundError, match=r"u0000003\.flac is missing: run the step"):
        Waves(size, "train")


def test_each_student_is_given_what_its_name_says(size: settings.Size) -> None:
    log = settings.results(size) / "log-whisper.parquet"
    silent = pl.col("query_id") == "u0000004"
    table = pl.read_parquet(log).with_columns(
        transcript=pl.when(silent).then(pl.lit("")).otherwise("transcript")
    )
    table.write_parquet(log)
    given = {name: Run(size, "whisper", name, 0).lessons for name in train.STUDENTS}
    right = 28 - 10  # every third transcript lacks a word
    assert given["raw"].height == 27
    assert given["raw"]["weight"].unique().to_list() == [1.0]
    assert given["random"].height == given["all-threshold"].height == right
    assert set(given["random"]["query_id"]) <= set(given["raw"]["query_id"])
    assert given["all-threshold"]["weight"].unique().to_list() == [1.0]
    assert sorted(given["all"]["weight"].unique()) == [0.1, 0.95]
    said = pl.read_parquet(settings.results(size) / "utterances.parquet")
    both = given["gold"].join(said, left_on="query_id", right_on="utterance_id")
    assert both.height == 28
    assert both["transcript"].to_list() == both["text"].to_list()
    other = Run(size, "whisper", "random", 1).lessons
    assert set(other["query_id"]) != set(given["random"]["query_id"])


def test_a_student_without_its_table_says_which_step_makes_it(size: settings.Size) -> None:
    with pytest.raises(FileNotFoundError, match=r"log-pocketsphinx.parquet.*step behave"):
        _ = Run(size, "pocketsphinx", "raw", 0).lessons
    with pytest.raises(FileNotFoundError, match=r"log-whisper-noise050.parquet.*step behave"):
        _ = Run(size, "whisper", "all", 0, noise=0.5).lessons
    with pytest.raises(ValueError, match=r"a student is one of all, .* not 'bronze'"):
        Run(size, "whisper", "bronze", 0)


def test_batches_depend_on_seed_and_step_alone_and_a_pass_takes_each_lesson_once(
    size: settings.Size,
) -> None:
    lessons, waves = Run(size, "whisper", "raw", 0).lessons, Waves(size, "train")
    forward, backward = (Batches(lessons, waves, 0, 4) for _ in range(2))
    first = [forward[step] for step in range(14)]
    for step in reversed(range(14)):
        for name, tensor in backward[step].items():
            torch.testing.assert_close(tensor, first[step][name], rtol=0, atol=0)
    taken = np.concatenate([forward.rows(step) for step in range(7)])
    np.testing.assert_array_equal(np.sort(taken), np.arange(28))
    assert (Batches(lessons, waves, 1, 4).rows(0) != forward.rows(0)).any()
    few = Batches(lessons.head(3), waves, 0, 4)
    assert set(few.rows(5)) == {0, 1, 2}
    with pytest.raises(ValueError, match="there is nothing to learn"):
        Batches(lessons.with_columns(weight=pl.lit(0.0)), waves, 0, 4)


def test_recordings_are_varied_as_often_and_as_much_as_the_settings_say(
    size: settings.Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = next(iter(Waves(size, "train").values()))

    def varied(count: int = 1, **shares: float) -> list[np.ndarray]:
        monkeypatch.setattr(train, "SHARES", dict.fromkeys(train.SHARES, 0.0) | shares)
        rng = np.random.default_rng(0)
        return [train.vary(wave, rng, [wave]) for _ in range(count)]

    np.testing.assert_array_equal(varied()[0], wave)
    ratios = [len(one) / len(wave) for one in varied(40, stretched=1.0)]
    assert 0.86 < min(ratios) < 0.95
    assert 1.07 < max(ratios) < 1.16
    added = [one - wave for one in varied(40, noise=1.0)]
    below = [-10 * np.log10(np.mean(one**2) / np.mean(wave**2)) for one in added]
    assert -0.1 < min(below) < 4
    assert 18 < max(below) < 22.1
    for name in ("room", "echo"):
        (other,) = varied(**{name: 1.0})
        assert len(other) == pytest.approx(len(wave), rel=0.01)
        assert not np.array_equal(other[: len(wave)], wave[: len(other)])
    same = sum(np.array_equal(one, wave) for one in varied(60, noise=0.6))
    assert 15 <= same <= 33


def test_a_weighted_loss_is_the_loss_of_each_row_counted_by_its_weight() -> None:
    torch.manual_seed(0)
    logits, frames = torch.randn(3, 20, 30), torch.tensor([20, 15, 20])
    labels = torch.tensor([[5, 6, 7, 8], [9, 10, -100, -100], [5, 5, 6, -100]])
    alone = torch.stack([
        weighted_ctc(logits[row : row + 1], frames[row : row + 1], labels[row : row + 1],
                     torch.ones(1))
        for row in range(3)
    ])  # fmt: skip
    weights = torch.tensor([0.2, 0.0, 0.6])
    mixed = weighted_ctc(logits, frames, labels, weights)
    torch.testing.assert_close(mixed, 0.25 * alone[0] + 0.75 * alone[2])
    # Frames beyond a recording's end and the padding of its transcript count for nothing.
    cut = weighted_ctc(logits[1:2, :15], frames[1:2], labels[1:2, :2], torch.ones(1))
    torch.testing.assert_close(alone[1], cut)


def test_an_interrupted_training_resumes_to_the_same_weights(
    size: settings.Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVE", 2)
    monkeypatch.setattr(train, "CURVE", 1)
    whole = train.train(Run(size, "whisper", "all", 0))
    weights = load_file(whole / "model.safetensors")
    facts = json.loads((whole / "training.json").read_text())
    whole.rename(whole.with_name("whole"))

    save = train.snapshots.save

    def interrupted(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        monkeypatch.setattr(train.recipe, "peak_share", fail)

    def fail(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.snapshots, "save", interrupted)
        share = train.recipe.peak_share
        with pytest.raises(KeyboardInterrupt):
            train.train(Run(size, "whisper", "all", 0))
        monkeypatch.setattr(train.recipe, "peak_share", share)
    AcceleratorState._reset_state(reset_partial_state=True)
    again = train.train(Run(size, "whisper", "all", 0))
    assert again == whole
    resumed = load_file(again / "model.safetensors")
    for name, tensor in weights.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0)
    other = json.loads((again / "training.json").read_text())
    assert [step for step, _ in other["curve"]] == [1, 2, 3, 4]
    assert other["curve"] == facts["curve"]


def test_a_result_is_kept_until_what_it_was_made_from_changes(
    size: settings.Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(replace(size, steps=2), "whisper", "all-threshold", 0)
    path = run.path
    train.examine(run)
    result = json.loads(path.read_text())
    assert path.name == "whisper-all-threshold-0.json"
    assert set(result["hypotheses"]) == {"greedy", "lexicon", "ngram"}
    for texts in result["hypotheses"].values():
        assert sorted(texts) == list(Waves(size, "test"))
    # The start has heard nothing of these sentences; two steps leave it far better than nothing.
    said = utterances(size, "test")
    exact = sum(
        result["hypotheses"]["greedy"][row["utterance_id"]] == row["text"]
        for row in said.iter_rows(named=True)
    )
    assert exact >= 6
    stamp = path.stat().st_mtime_ns
    train.examine(run)
    assert path.stat().st_mtime_ns == stamp
    # Other decoders: the same student transcribes again.
    with monkeypatch.context() as patch:
        patch.setitem(train.decode.SETTINGS, "weight", 0.5)
        patch.setattr(train, "Accelerator", None)
        train.examine(run)
    again = json.loads(path.read_text())
    assert again["settings"]["decoders"]["weight"] == 0.5
    assert again["hypotheses"]["greedy"] == result["hypotheses"]["greedy"]
    labels = settings.results(size) / "labels-whisper-all.parquet"
    pl.read_parquet(labels).head(20).write_parquet(labels)
    AcceleratorState._reset_state(reset_partial_state=True)
    train.examine(Run(run.size, "whisper", "all-threshold", 0))
    assert json.loads(path.read_text())["settings"]["lessons"] < result["settings"]["lessons"]
