"""A tiny recognizer in a folder, and recordings for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from tiny_models import CASES

RATE = 1000  # samples a second, so that seconds of audio are few frames
VOCABULARY = ["<pad>", "<unk>", "|", *"abcdefghi"]

Waveform = np.ndarray[Any, np.dtype[np.float32]]


def waveform(samples: int, seed: int = 0) -> Waveform:
    """Neither of zero mean nor of unit variance: the feature extractor has something to do."""
    generator = np.random.default_rng([samples, seed])
    loud = 0.15 * generator.normal(size=samples) * (1.2 + np.sin(np.arange(samples) / 40)) + 0.05
    return np.clip(loud, -1, 1).astype(np.float32)


def save_recognizer(folder: Path, case: str = "wav2vec2-group", seed: int = 0) -> Path:
    """A model and its processor, as `from_pretrained` finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "words.json"
    file.write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)
    extractor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=RATE, return_attention_mask="group" not in case
    )
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    model = CASES[case].build(seed, pad_token_id=0)
    with torch.no_grad():
        model.lm_head.bias[VOCABULARY.index("|")] += 1  # words of a few letters
    model.save_pretrained(folder)
    return folder


def stock_pipeline(folder: Path) -> Any:
    """The host's own pipeline with the model as it is."""
    return transformers.pipeline(
        "automatic-speech-recognition", model=str(folder), dtype=torch.float32, device="cpu"
    )


def record(path: Path, samples: int, seed: int = 0, rate: int = RATE) -> Path:
    """A file whose samples are those of `waveform`, bit for bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform(samples, seed), rate, subtype="FLOAT", format="WAV")
    return path


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
