"""Clean speech of a planned set of utterances, said once and kept in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

import perturb
import voices
from cputime import cpu_seconds
from voices import Speaker, Utterance


class Corpus:
    """Utterances and their clean speech, which stays on the disk until it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Open what `prepare` wrote."""
        lines = (folder / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        self.samples = np.array([row.pop("samples") for row in rows])  # (U,)
        self._ends = np.cumsum(self.samples)
        self._audio: npt.NDArray[np.int16] = np.load(folder / "speech.npy", mmap_mode="r")
        self.utterances = [
            Utterance(**{**row, "speaker": Speaker(**row["speaker"])}) for row in rows
        ]

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> perturb.Floats:
        """Clean speech, float32, (N,)."""
        end = int(self._ends[index])
        samples = self._audio[end - int(self.samples[index]) : end]
        return samples.astype(np.float32) / 32767

    def babble(self, rng: np.random.Generator, count: int = 8) -> list[perturb.Floats]:
        """Speech of others, for `perturb.noise`."""
        return [self[int(index)] for index in rng.integers(len(self), size=count)]

    def recording(self, index: int) -> perturb.Floats:
        """The utterance in its own noise, always the same: float32, (M,)."""
        utterance = self.utterances[index]
        others = self.babble(np.random.default_rng([utterance.seed, 1]))
        return voices.render(utterance, self[index], others)


def prepare(folder: Path, plan: Sequence[Utterance], processes: int = 2) -> Corpus:
    """Let the synthesisers say a plan, unless the folder holds it already.

    Args:
        folder: where `utterances.jsonl` and `speech.npy` go.
        plan: what is said.
        processes: synthesisers that run at a time.
    """
    wanted = _digest(plan)
    mark = folder / "prepared.json"
    if mark.exists() and json.loads(mark.read_text())["plan"] == wanted:
        return Corpus(folder)
    began = cpu_seconds()
    folder.mkdir(parents=True, exist_ok=True)
    # Threads do: the work is in the synthesisers, which are processes of their own.
    with ThreadPoolExecutor(processes) as pool:
        said = pool.map(lambda utterance: voices.speak(utterance.text, utterance.speaker), plan)
        clips = list(tqdm(said, total=len(plan), desc=folder.name))
    partial = folder / "speech.partial.npy"
    np.save(partial, np.concatenate(clips))
    os.replace(partial, folder / "speech.npy")
    rows = [
        json.dumps({**dataclasses.asdict(utterance), "samples": len(clip)})
        for utterance, clip in zip(plan, clips, strict=True)
    ]
    (folder / "utterances.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    # Last: a folder without it is said anew.
    mark.write_text(json.dumps({"plan": wanted, "cpu_seconds": round(cpu_seconds() - began, 1)}))
    return Corpus(folder)


def spent(folder: Path) -> float:
    """Processor seconds that the preparation of a corpus took."""
    return float(json.loads((folder / "prepared.json").read_text())["cpu_seconds"])


def _digest(plan: Sequence[Utterance]) -> str:
    text = json.dumps([dataclasses.asdict(utterance) for utterance in plan])
    return hashlib.sha256(text.encode()).hexdigest()
