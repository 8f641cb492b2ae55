"""What words carry beside their times: confidences; and the languages that they are in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tiny_models import CASES
from tiny_recognizer import RATE, VOCABULARY, read_lines, record, save_recognizer, waveform

from hf_cudagraph_asr import Transcriber, read_audio
from hf_cudagraph_asr.cli import main

TINYVOICE = Path(__file__).parents[2] / "docs/examples/tinyvoice"


@pytest.fixture(scope="module")
def tinyvoice() -> Iterator[Transcriber]:
    if not TINYVOICE.is_dir():
        pytest.skip("the package's tests run without its repository")
    with Transcriber.from_pretrained(TINYVOICE / "model", device="cpu") as transcriber:
        yield transcriber


def recordings(rate: int) -> tuple[list[str], list[Any]]:
    """What is really said, and the waveforms."""
    lines = read_lines(TINYVOICE / "recordings/recordings.jsonl")
    files = [TINYVOICE / "recordings" / line["file"] for line in lines]
    return [line["text"] for line in lines], [read_audio(file, rate) for file in files]


def letters(logits: Any) -> list[float]:
    """Of each letter or space that the best path writes, its highest probability."""
    found, before = [], 0
    for frame in logits.softmax(-1):  # (V,)
        token = int(frame.argmax())
        if token not in (0, before):
            found.append(0.0)
        if token:
            found[-1] = max(found[-1], float(frame[token]))
        before = token
    return found


def test_a_word_is_as_sure_as_its_least_sure_letter(tinyvoice: Transcriber) -> None:
    texts, waveforms = recordings(tinyvoice.sampling_rate)
    found = tinyvoice.transcribe(waveforms)
    with torch.inference_mode():
        for transcript, waveform in list(zip(found, waveforms, strict=True))[::4]:
            values = tinyvoice.extractor(
                waveform, sampling_rate=tinyvoice.sampling_rate, return_tensors="pt"
            ).input_values
            sure = iter(letters(tinyvoice.model(values).logits[0]))
            path = tinyvoice.tokenizer.decode(
                tinyvoice.model(values).logits[0].argmax(-1), output_char_offsets=True
            ).char_offsets
            words: list[list[float]] = [[]]
            for letter, probability in zip(path, sure, strict=True):
                if letter["char"] == " ":
                    words.append([])
                else:
                    words[-1].append(probability)
            expected = [min(word) for word in words if word]
            assert [word.confidence for word in transcript.words] == pytest.approx(
                expected, abs=1e-4
            )
    right, wrong = [], []
    for transcript, text in zip(found, texts, strict=True):
        for word in transcript.words:
            (right if word.text in text.split() else wrong).append(word.confidence)
    assert len(wrong) >= 5
    assert sum(wrong) / len(wrong) < 0.8 < sum(right) / len(right)


def test_words_of_a_recording_in_chunks_have_none(tmp_path: Path) -> None:
    folder = save_recognizer(tmp_path)
    with Transcriber.from_pretrained(folder, device="cpu", chunk_length_s=0.9) as transcriber:
        long, short = transcriber.transcribe([waveform(2000), waveform(300)])
    assert {word.confidence for word in long.words} == {None}
    assert all(0 < word.confidence <= 1 for word in short.words)  # type: ignore[operator]


GERMAN = [*VOCABULARY[:3], *"jklmnopqr"]


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two languages, as those of MMS are saved."""
    case = "wav2vec2-attention-adapter"
    folder = save_recognizer(tmp_path_factory.mktemp("languages"), case)
    vocabularies = {"eng": VOCABULARY, "deu": GERMAN}
    nested = {name: {token: i for i, token in enumerate(of)} for name, of in vocabularies.items()}
    (folder / "words.json").write_text(json.dumps(nested))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        str(folder / "words.json"), bos_token=None, eos_token=None, target_lang="eng"
    )
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    other = CASES[case].build(1, pad_token_id=0).state_dict()
    kept = {name: of for name, of in other.items() if "adapter_layer" in name or "lm_" in name}
    save_file(kept, folder / "adapter.deu.safetensors")
    return folder


def test_a_language_has_its_own_weights_and_letters(languages: Path) -> None:
    clip = waveform(900)
    model = transformers.AutoModelForCTC.from_pretrained(languages).eval()
    processor = transformers.AutoProcessor.from_pretrained(languages)
    values = processor(clip, sampling_rate=RATE, return_tensors="pt").input_values
    for name in (None, "deu"):
        if name is not None:
            model.load_adapter(name)
            processor.tokenizer.set_target_lang(name)
        with torch.inference_mode():
            expected = processor.tokenizer.decode(model(values).logits[0].argmax(-1))
        with Transcriber.from_pretrained(languages, device="cpu", target_lang=name) as transcriber:
            assert transcriber.transcribe([clip])[0].text == expected
        assert {*expected} & {*(VOCABULARY if name is None else GERMAN)} - {" "}


def test_a_language_that_is_not_there_is_refused(languages: Path, tmp_path: Path) -> None:
    plain = save_recognizer(tmp_path / "plain")
    for folder, name in ((languages, "fra"), (plain, "eng")):
        with pytest.raises(ValueError, match=f"target_lang is '{name}', of which the tokenizer"):
            Transcriber.from_pretrained(folder, device="cpu", target_lang=name)
    lost = shutil.copytree(languages, tmp_path / "lost")
    (lost / "adapter.deu.safetensors").unlink()
    with pytest.raises(OSError, match=r"adapter\.deu"):
        Transcriber.from_pretrained(lost, device="cpu", target_lang="deu")


def test_the_command_takes_a_language_and_does_not_mix_it_with_another(
    languages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = record(tmp_path / "a.wav", 900), tmp_path / "out.jsonl"
    command = ["transcribe", str(file), "--model", str(languages), "--device", "cpu"]
    assert main([*command, "--target-lang", "deu", "--out", str(out)]) == 0
    (line,) = read_lines(out)
    assert line["target_lang"] == "deu"
    assert {*line["text"].replace("<unk>", "")} <= {*GERMAN, " "}
    assert main([*command, "--out", str(out)]) == 2
    assert "write to another file, or overwrite it" in capsys.readouterr().err
    assert main(command) == 0
    assert not {*capsys.readouterr().out.replace("<unk>", "")} & {*GERMAN}
