"""What ships: the model and forty recordings, as good as the card says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

import lexicon
import model_card
import perturb
import queries
import recordings
import score
import voices

MODEL = Path(recordings.__file__).resolve().parent / "model"
BARS = {"seen": 0.12, "unseen": 0.20}


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    return (
        Wav2Vec2ForCTC.from_pretrained(MODEL).eval(),
        Wav2Vec2Processor.from_pretrained(MODEL),
    )


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((MODEL / "scores.json").read_text(encoding="utf-8"))
    return read


def test_the_model_is_small_and_safe(shipped: tuple[Any, Any]) -> None:
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert files["model.safetensors"] <= 12e6
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    model, processor = shipped
    facts = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))
    assert facts["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert facts["cpu_seconds"] <= 3 * 3600
    assert processor.feature_extractor.return_attention_mask
    assert processor.feature_extractor.do_normalize


def test_forty_recordings_lie_there_with_held_out_sentences() -> None:
    rows = recordings.read()
    assert [row.split for row, _ in rows] == ["seen"] * 20 + ["unseen"] * 20
    assert {row.file for row, _ in rows} == {path.name for path in recordings.FOLDER.glob("*.flac")}
    for row, audio in rows:
        about = soundfile.info(str(recordings.FOLDER / row.file))
        assert (about.samplerate, about.channels, about.subtype) == (16_000, 1, "PCM_16")
        assert 0.5 < len(audio) / perturb.RATE < 8
        assert queries.part_of(row.text) == "test"
        assert (row.voice in {*voices.UNHEARD, voices.FLITE_UNHEARD}) == (row.split == "unseen")
        assert row.noise in perturb.NOISES
        assert 10 <= row.snr <= 30
    assert len({row.voice for row, _ in rows if row.split == "unseen"}) == 8


def test_the_recordings_are_heard_as_well_as_the_scores_say(
    shipped: tuple[Any, Any], scores: dict[str, Any], require: Callable[[object, str], None]
) -> None:
    torch.set_num_threads(1)
    require(find_spec("flashlight"), "flashlight-text is not installed")
    decode = lexicon.word_decoder(queries.words())
    clips = [(row.split, row.text, audio) for row, audio in recordings.read()]
    heard = score.listen(*shipped, decode, clips)
    for split, rates in score.by_group(heard).items():
        stated = scores["recordings"]["groups"][split]
        # Another processor may round a frame to another letter: one word of room.
        room = 1.01 / rates.words
        assert rates.greedy == pytest.approx(stated["greedy"], abs=room)
        assert rates.lexicon == pytest.approx(stated["lexicon"], abs=room)


@pytest.mark.parametrize("split", ["seen", "unseen"])
@pytest.mark.parametrize("decoder", ["greedy", "lexicon"])
def test_the_stated_error_rates_are_within_their_bars(
    split: str, decoder: str, scores: dict[str, Any]
) -> None:
    assert scores[split]["all"]["utterances"] >= 600
    assert scores[split]["all"][decoder] <= BARS[split]
    voices_heard = scores[split]["groups"].values()
    assert sum(one["utterances"] for one in voices_heard) == scores[split]["all"]["utterances"]


def test_the_card_is_the_one_its_numbers_make(tmp_path: Path) -> None:
    for name in ("training.json", "scores.json", "config.json"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    model_card.write(tmp_path)
    assert (tmp_path / "README.md").read_text() == (MODEL / "README.md").read_text()


def test_the_readme_states_the_numbers_of_the_scores(scores: dict[str, Any]) -> None:
    text = (MODEL.parent / "README.md").read_text(encoding="utf-8")
    for split in ("seen", "unseen"):
        for decoder in ("greedy", "lexicon"):
            assert re.search(rf"\b{100 * scores[split]['all'][decoder]:.1f}%", text)
