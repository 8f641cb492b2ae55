"""Training in miniature: batches, the start without labels, resumption, export."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

import corpus
import distil
import lessons
import perturb
import recognizer
import snapshots
import tinyvoice
import training
import voices
from recipe import Recipe, parse, peak_share

SMALL = Recipe(
    utterances=24,
    speakers=6,
    dev=4,
    distil_steps=3,
    steps=6,
    batch=4,
    save_every=2,
    judge_every=6,
    log_every=1,
    loaders=0,
    precision="no",
    cpu=True,
    width=16,
    layers=1,
    heads=2,
    inner=24,
    channels=(8, 8),
    kernels=(256, 6),
    strides=(80, 6),
)


@pytest.fixture(scope="module")
def spoken(
    tmp_path_factory: pytest.TempPathFactory, require: Callable[[object, str], None]
) -> Path:
    """A folder with a little speech."""
    for name in ("espeak-ng", "flite"):
        require(shutil.which(name), f"{name} is not installed")
    folder = tmp_path_factory.mktemp("speech")
    for part, count in (("train", SMALL.utterances), ("dev", SMALL.dev)):
        plan = voices.plan(part, count, SMALL.seed, SMALL.speakers)  # type: ignore[arg-type]
        corpus.prepare(folder / part, plan)
    return folder


def recipe(folder: Path, spoken: Path, **changes: Any) -> Recipe:
    """A small recipe whose speech is there already."""
    work = folder / "work"
    if not work.exists():
        shutil.copytree(spoken, work)
    return dataclasses.replace(SMALL, work=work, model=folder / "model", **changes)


def last(chosen: Recipe) -> dict[str, torch.Tensor]:
    newest = snapshots.newest(chosen.work / "checkpoints")
    assert newest is not None
    return load_file(newest)


def test_a_corpus_holds_its_plan_and_is_spoken_once(spoken: Path) -> None:
    plan = voices.plan("train", SMALL.utterances, SMALL.seed, SMALL.speakers)
    before = (spoken / "train" / "speech.npy").stat().st_mtime_ns
    held = corpus.prepare(spoken / "train", plan)
    assert (spoken / "train" / "speech.npy").stat().st_mtime_ns == before
    assert held.utterances == plan
    for index in (0, 7, 23):
        clip = voices.speak(plan[index].text, plan[index].speaker)
        np.testing.assert_allclose(held[index], clip / 32767, atol=1e-6)
        np.testing.assert_array_equal(held.recording(index), held.recording(index))
    assert corpus.spent(spoken / "train") > 0


def test_another_plan_is_spoken_anew(tmp_path: Path, spoken: Path) -> None:
    folder = tmp_path / "dev"
    shutil.copytree(spoken / "dev", folder)
    plan = voices.plan("dev", 3, seed=9)
    assert corpus.prepare(folder, plan).utterances == plan


def test_batches_depend_on_their_number_alone_and_a_pass_takes_each_utterance_once(
    spoken: Path,
) -> None:
    held = corpus.Corpus(spoken / "train")
    forward, backward = (lessons.Lessons(held, SMALL) for _ in range(2))
    batches = [forward[number] for number in range(9)]
    for number in reversed(range(9)):
        again = backward[number]
        for name, tensor in batches[number].items():
            torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)
    short = np.sort(np.concatenate([forward.rows(number) for number in range(3)]))
    np.testing.assert_array_equal(short, np.sort(np.argsort(held.samples, kind="stable")[:12]))
    whole = np.sort(np.concatenate([forward.rows(number) for number in range(3, 9)]))
    np.testing.assert_array_equal(whole, np.arange(24))


def test_a_batch_is_padded_normalized_and_spelled_as_the_processor_does_it(
    spoken: Path, tmp_path: Path
) -> None:
    held = corpus.Corpus(spoken / "train")
    taught = lessons.Lessons(held, SMALL)
    batch = taught[0]
    processor = recognizer.build_processor(tmp_path)
    for row, index in enumerate(taught.rows(0)):
        length = int(batch["attention_mask"][row].sum())
        values = batch["input_values"][row]
        assert not values[length:].any()
        raw = values[:length].numpy()
        inputs = processor(3 * raw + 1, sampling_rate=perturb.RATE, return_tensors="np")
        np.testing.assert_allclose(raw, inputs.input_values[0], rtol=1e-4, atol=1e-4)
        text = held.utterances[int(index)].text
        spelled = batch["labels"][row]
        assert spelled[spelled >= 0].tolist() == processor.tokenizer(text).input_ids
        assert not {recognizer.TOKENS.index("<unk>"), 0} & set(spelled.tolist())


def test_too_little_speech_for_two_batches_is_refused(spoken: Path) -> None:
    with pytest.raises(ValueError, match="24 utterances are fewer than two batches of 16"):
        lessons.Lessons(corpus.Corpus(spoken / "train"), dataclasses.replace(SMALL, batch=16))


def test_log_mel_frames_lie_where_the_models_frames_look() -> None:
    model = recognizer.build_model(Recipe())
    field = distil.receptive_field(model.config)
    wave = torch.zeros(1, 16_000)
    assert model.wav2vec2.feature_extractor(wave[:, :field]).shape[-1] == 1
    for start in (3_000, 9_000):
        click = wave.clone()
        click[0, start : start + 40] = torch.randn(40, generator=torch.manual_seed(0))
        frames = int(model._get_feat_extract_output_lengths(16_000))
        loudest = int(distil.log_mel(click, model.config, frames)[0].sum(1).argmax())
        center = loudest * 480 + field / 2
        assert abs(center - start) <= 300


def test_the_first_filters_are_centered_where_ears_space_them() -> None:
    filters = recognizer.mel_filters(64, 256)
    spectrum = torch.fft.rfft(filters, 16_000).abs()  # a bin a hertz
    center = spectrum.argmax(1).float()
    assert center[0] < 150
    assert 7_200 < center[-1] < 7_700
    mel = 1127 * torch.log1p(center / 700)
    steps = mel[2::2].diff()
    assert (steps - steps.mean()).abs().max() < 0.35 * steps.mean()
    # Each pair is a cosine and a sine: its power does not depend on where a wave begins.
    wave = torch.cos(2 * torch.pi * 1000 * torch.arange(4000) / 16_000)
    power = torch.nn.functional.conv1d(wave[None, None], filters[:, None]).square()[0]
    pairs = power[0::2] + power[1::2]
    best = pairs[pairs.mean(1).argmax()]
    assert best.std() < 0.01 * best.mean()


def test_an_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, spoken: Path
) -> None:
    whole = recipe(tmp_path / "whole", spoken)
    tinyvoice.run(whole)
    cut = recipe(tmp_path / "cut", spoken)
    tinyvoice.run(cut)
    for path in sorted((cut.work / "checkpoints").glob("*.safetensors"))[1:]:
        path.unlink()  # as if it had ended after two steps
    assert len(list((cut.work / "checkpoints").iterdir())) == 1
    tinyvoice.run(cut)
    one, other = last(whole), last(cut)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=0, msg=name)
    lines = [json.loads(line) for line in (cut.work / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6, 3, 4, 5, 6]
    assert {"dev_seen", "dev_unseen"} <= lines[-1].keys()


def test_a_run_exports_a_model_that_loads_and_says_what_it_cost(
    tmp_path: Path, spoken: Path
) -> None:
    chosen = recipe(tmp_path, spoken)
    tinyvoice.run(chosen)
    model = Wav2Vec2ForCTC.from_pretrained(chosen.model).eval()
    processor = Wav2Vec2Processor.from_pretrained(chosen.model)
    assert processor.feature_extractor.return_attention_mask
    saved = last(chosen)
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor, saved[f"average.{name}"], rtol=0, atol=0)
    audio = corpus.Corpus(chosen.work / "dev").recording(0)
    assert isinstance(recognizer.transcribe(model, processor, audio), str)
    facts = json.loads((chosen.model / "training.json").read_text())
    speech = sum(corpus.spent(chosen.work / part) for part in ("train", "dev"))
    assert facts["synthesis_cpu_seconds"] == round(speech)
    assert facts["cpu_seconds"] > speech
    assert facts["steps"] == chosen.steps


def test_training_lowers_the_loss_on_the_speech_it_has(tmp_path: Path, spoken: Path) -> None:
    chosen = recipe(tmp_path, spoken, steps=40, rate=5e-3, judge_every=100, distil_steps=0)
    held = {part: corpus.Corpus(chosen.work / part) for part in ("train", "dev")}
    training.train(chosen, Accelerator(cpu=True), held["train"], held["dev"])
    lines = [json.loads(line) for line in (chosen.work / "log.jsonl").read_text().splitlines()]
    loss = [line["loss"] for line in lines]
    assert np.mean(loss[-5:]) < 0.6 * np.mean(loss[:5])


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, spoken: Path) -> None:
    tinyvoice.run(recipe(tmp_path, spoken))
    with pytest.raises(ValueError, match="another model"):
        tinyvoice.run(recipe(tmp_path, spoken, width=24))


def test_the_rate_rises_stays_and_falls() -> None:
    chosen = Recipe(steps=100, warmup=0.1, cooldown=0.3)
    shares = [peak_share(step, chosen) for step in range(100)]
    assert shares[0] < shares[5] < shares[9] < 1
    assert set(shares[10:70]) == {1.0}
    assert shares[75] > shares[85] > shares[99] > 0


def test_every_setting_is_an_option() -> None:
    chosen = parse(["--steps", "7", "--channels", "8", "9", "--precision", "no", "--cpu"])
    assert (chosen.steps, chosen.channels, chosen.precision) == (7, (8, 9), "no")
    assert chosen.cpu
    assert parse([]) == Recipe()
