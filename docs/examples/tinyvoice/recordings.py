"""The recordings that ship with the model: FLAC files and what is said in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

import perturb
from corpus import Corpus

FOLDER = Path(__file__).resolve().parent / "recordings"
_INDEX = "recordings.jsonl"


@dataclass(frozen=True)
class Recording:
    """One shipped recording.

    Attributes:
        file: its name in the folder.
        text: what is said.
        voice: the synthesiser's voice.
        split: "seen" if the voice was trained on, else "unseen"; no sentence was.
        noise: its kind.
        snr: decibels of the speech over it.
    """

    file: str
    text: str
    voice: str
    split: str
    noise: str
    snr: float


def read(folder: Path = FOLDER) -> list[tuple[Recording, perturb.Floats]]:
    """All recordings with their audio, 16 kHz float32 (N,)."""
    lines = (folder / _INDEX).read_text(encoding="utf-8").splitlines()
    found = [Recording(**json.loads(line)) for line in lines]
    return [
        (recording, soundfile.read(folder / recording.file, dtype="float32")[0])
        for recording in found
    ]


def write(corpora: dict[str, Corpus], count: int = 20, folder: Path = FOLDER) -> None:
    """Write the first recordings of each test set, each of another sentence.

    Args:
        corpora: test sets by the name of their split.
        count: recordings of each.
        folder: where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for split, corpus in corpora.items():
        for number, index in enumerate(_other_sentences(corpus, count)):
            utterance = corpus.utterances[index]
            name = f"{split}-{number:02d}.flac"
            samples = np.round(corpus.recording(index) * 32767).astype(np.int16)
            soundfile.write(folder / name, samples, perturb.RATE, format="FLAC", subtype="PCM_16")
            row = Recording(
                name, utterance.text, utterance.speaker.voice, split, utterance.noise, utterance.snr
            )
            lines.append(json.dumps(asdict(row)))
    (folder / _INDEX).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _other_sentences(corpus: Corpus, count: int) -> Sequence[int]:
    chosen: dict[str, int] = {}
    for index, utterance in enumerate(corpus.utterances):
        chosen.setdefault(utterance.text, index)
        if len(chosen) == count:
            return list(chosen.values())
    raise ValueError(f"{len(chosen)} different sentences are too few for {count} recordings.")
