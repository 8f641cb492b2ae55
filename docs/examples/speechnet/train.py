"""Students: tinyvoice's model, trained further on what a third party wrote, or on what was said."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor
from transformers.utils.logging import disable_progress_bar

import perturb
import recipe
import recognizer
import snapshots
from cputime import cpu_seconds
from lessons import normalize
from speechnet import decode, files, settings
from speechnet.label import KEPT
from speechnet.settings import Size
from speechnet.waves import Waves
from training import seed_masks

START = recipe.HERE / "model"  # of every student
STUDENTS = ("all", "raw", "random", "gold", "three", "own", "all-threshold")
RATE, WARMUP, DECAY = 1e-3, 0.1, 0.01  # peak of the learning rate; share of the steps up to it
# What a recording becomes anew each time, and how often: another size and pace of the same voice,
# another microphone and room, and more noise. What labels keep is what a recognizer understood, so
# it is quieter than what people say, and without noise a student would only learn the quiet.
STRETCH, SNR = (0.87, 1.15), (0.0, 22.0)  # ratio of lengths; decibels of the recording above it
SHARES = {"stretched": 0.6, "room": 0.3, "echo": 0.3, "noise": 0.6}
HEARD = ("test", "decoders")  # settings that decide what a student hears, not what it is
CURVE, SAVE = 50, 100  # steps between two points of the curve, and between two checkpoints
_JITTER = 4_000  # samples by which lengths within a batch may differ
_BLANK = recognizer.TOKENS.index("<pad>")


@dataclass(frozen=True)
class Run:
    """One student.

    Attributes:
        size: whose utterances and steps.
        third: the third party whose transcripts it learns from.
        student: which of `STUDENTS`.
        seed: decides the order of the lessons and what SpecAugment masks.
        noise: share of the feedback that carries no information.
    """

    size: Size
    third: str
    student: str
    seed: int
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.student not in STUDENTS:
            raise ValueError(f"a student is one of {', '.join(STUDENTS)}, not {self.student!r}.")

    @property
    def name(self) -> str:
        return f"{self.third}-{self.student}{files.suffix(self.noise)}-{self.seed}"

    @property
    def path(self) -> Path:
        """The committed result."""
        return settings.results(self.size) / "runs" / f"{self.name}.json"

    @cached_property
    def lessons(self) -> pl.DataFrame:
        """What it learns: query_id, transcript, weight.

        `raw` takes every transcript that is not empty, as it is; `random` as many of them as `all`
        keeps; `gold` what was really said in every query of the log. `three`, `all` and `own` are
        labels with their weights, `all-threshold` those of `all` with a weight from 0.5 up.
        """
        log = files.read(self.size, f"log-{self.third}{files.suffix(self.noise)}")
        heard = log.filter(pl.col("transcript") != "").select(
            "query_id", "transcript", weight=pl.lit(1.0)
        )
        if self.student == "raw":
            return heard
        if self.student == "gold":
            said = files.utterances(self.size, "train").select(
                query_id="utterance_id", transcript="text", weight=pl.lit(1.0)
            )
            return said.join(log, on="query_id", how="semi")
        chosen = self.student if self.student in ("three", "own") else "all"
        name = f"labels-{self.third}-{chosen}{files.suffix(self.noise)}"
        labels = files.read(self.size, name).select("query_id", "transcript", "weight")
        kept = labels.filter(pl.col("weight") >= KEPT)
        if self.student == "all-threshold":
            return kept.with_columns(weight=pl.lit(1.0))
        if self.student == "random":
            return heard.sample(min(kept.height, heard.height), seed=self.seed)
        return labels

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides the weights; a run with other settings is trained anew."""
        return {
            "size": self.size.name,
            "third": self.third,
            "student": self.student,
            "seed": self.seed,
            "noise": self.noise,
            "steps": self.size.steps,
            "batch": self.size.batch,
            "rate": RATE,
            "warmup": WARMUP,
            "decay": DECAY,
            "varied": {"stretch": [*STRETCH], "snr": [*SNR], "shares": SHARES},
            "precision": "bf16",
            "lessons": self.lessons.height,
            "weight": round(float(self.lessons["weight"].sum()), 2),
            "data": files.digest(self.lessons) + files.digest(files.utterances(self.size, "train")),
        }

    @property
    def folder(self) -> Path:
        """Where its checkpoints and its model lie."""
        return settings.work(self.size) / "students" / f"{self.name}-{key(self.settings)}"


def key(own: Mapping[str, Any]) -> str:
    """The digest of a run's settings, those of its test left out: the same for the same weights."""
    return files.digest({name: own[name] for name in own if name not in HEARD})


class Batches:
    """Batches by the number of their step: each a function of the seed and the step alone.

    Recordings of like length come together. Where there are fewer lessons than rows of a batch,
    lessons repeat within it.
    """

    def __init__(self, lessons: pl.DataFrame, waves: Waves, seed: int, batch: int) -> None:
        # Without weight there is no loss, only an empty step.
        lessons = lessons.filter((pl.col("weight") > 0) & (pl.col("transcript") != ""))
        if lessons.is_empty():
            raise ValueError("no transcript has a weight above 0: there is nothing to learn.")
        index = {token: number for number, token in enumerate(recognizer.TOKENS)}
        self._ids: list[str] = lessons["query_id"].to_list()
        self._labels = [
            torch.tensor([index[letter] for letter in text.replace(" ", "|")])
            for text in lessons["transcript"]
        ]
        self._weights = torch.tensor(lessons["weight"].to_numpy(), dtype=torch.float32)
        self._waves, self._lengths = waves, waves.samples(self._ids)
        self._seed, self._batch = seed, batch
        self._pass = max(1, len(self._ids) // batch)  # batches of one pass
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """The lessons of a step, (B,)."""
        epoch, place = divmod(step, self._pass)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            pool = np.resize(rng.permutation(len(self._ids)), self._pass * self._batch)
            pool = pool[np.argsort(self._lengths[pool] + _JITTER * rng.random(len(pool)))]
            self._order = (epoch, rng.permutation(pool.reshape(-1, self._batch)))
        return self._order[1][place]

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Read the batch of a step.

        Returns:
            `input_values` (B, T) float32 and `attention_mask` (B, T); `labels` (B, L) int64, -100
            beyond a transcript's end; `weights` (B,) float32.
        """
        rows = self.rows(step).tolist()
        rng = np.random.default_rng([self._seed, step, *b"vary"])
        clips = [self._waves[self._ids[row]] for row in rows]
        waves = [torch.from_numpy(normalize(vary(clip, rng, clips))) for clip in clips]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_values": pad(waves, batch_first=True),
            "attention_mask": pad([torch.ones_like(w, dtype=torch.long) for w in waves], True),
            "labels": pad([self._labels[row] for row in rows], True, -100),
            "weights": self._weights[rows],
        }


def vary(
    wave: perturb.Floats, rng: np.random.Generator, others: Sequence[perturb.Floats]
) -> perturb.Floats:
    """A recording as it might have been on another day, see `SHARES`: (T',) of (T,).

    Args:
        wave: 16 kHz.
        rng: decides it.
        others: recordings that babble is made of.
    """
    stretched, room, echo, noise = rng.random(4) < list(SHARES.values())
    if stretched or room:
        ratio = float(rng.uniform(*STRETCH)) if stretched else 1.0
        wave = perturb.resample(wave, ratio, perturb.room(rng) if room else None)
    if echo:
        wave = perturb.echo(wave, rng)
    if noise:
        kind = perturb.NOISES[int(rng.integers(len(perturb.NOISES)))]
        level = np.sqrt(np.mean(wave**2)) * 10 ** (-rng.uniform(*SNR) / 20)
        wave = wave + np.float32(level) * perturb.noise(kind, len(wave), rng, others)
    return wave


def weighted_ctc(logits: Tensor, frames: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean of the transcripts' CTC losses a letter, each counting by its weight.

    Args:
        logits: (B, F, V).
        frames: (B,), how many of the F are of the recording.
        labels: (B, L), -100 beyond the end.
        weights: (B,), from 0 up.
    """
    letters = (labels >= 0).sum(-1)
    losses = torch.nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        labels.clamp(min=0),
        frames,
        letters,
        blank=_BLANK,
        reduction="none",
        zero_infinity=True,  # a transcript longer than its recording teaches nothing
    )
    return (weights * losses / letters).sum() / weights.sum()


def train(run: Run) -> Path:
    """Train a student from its newest checkpoint, or from the shared start.

    Returns:
        The folder with its model and processor, and `training.json`: the curve (step, mean loss of
        the last steps) and seconds of processor time.
    """
    folder = run.folder
    if (folder / "training.json").exists():
        return folder
    accelerator = Accelerator(mixed_precision="bf16", cpu=not torch.cuda.is_available())
    model = Wav2Vec2ForCTC.from_pretrained(START).to(accelerator.device)
    # On a CPU the fused attention's backward pass is slow in bf16; queries are short.
    model.set_attn_implementation("eager")
    wrapped, optimizer = accelerator.prepare(
        model,
        torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=DECAY),
    )
    begin, spent, began = 0, 0.0, cpu_seconds()
    own = {name: weight.detach() for name, weight in model.named_parameters()}
    if (newest := snapshots.newest(folder / "checkpoints")) is not None:
        begin, spent = snapshots.load(newest, model, optimizer, own)
    curve: list[tuple[int, float]] = []
    if begin:  # what was noted after that checkpoint is done again
        noted = json.loads((folder / "curve.json").read_text())
        curve = [(step, loss) for step, loss in noted if step <= begin]
    batches = Batches(run.lessons, Waves(run.size, "train"), run.seed, run.size.batch)
    schedule = recipe.Recipe(steps=run.size.steps, warmup=WARMUP, cooldown=1 - WARMUP)
    model.train()
    recent: list[float] = []
    steps = range(begin, run.size.steps)
    for step in (bar := progress(steps, run.name, initial=begin, total=run.size.steps)):
        seed_masks(run.seed, step, 0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * recipe.peak_share(step, schedule)
        batch = {name: tensor.to(accelerator.device) for name, tensor in batches[step].items()}
        labels, weights = batch.pop("labels"), batch.pop("weights")
        logits = wrapped(**batch).logits
        frames = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(-1))
        loss = weighted_ctc(logits, frames, labels, weights)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        done = step + 1
        if done % CURVE == 0 or done == run.size.steps:
            curve.append((done, round(float(np.mean(recent)), 4)))
            recent.clear()
            bar.set_postfix(loss=curve[-1][1])
        if done % SAVE == 0 and done < run.size.steps:
            seconds = spent + cpu_seconds() - began
            copies = {name: weight.clone() for name, weight in own.items()}  # no average is kept
            files.write_json(curve, folder / "curve.json")
            snapshots.save(folder / "checkpoints", done, seconds, model, optimizer, copies)
    model.cpu().save_pretrained(folder)
    Wav2Vec2Processor.from_pretrained(START).save_pretrained(folder)
    facts = {"curve": curve, "cpu_seconds": spent + cpu_seconds() - began}
    files.write_json(facts, folder / "training.json")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder


def listen(
    folder: Path,
    clips: Mapping[str, npt.NDArray[np.float32]],
    decoders: Mapping[str, Callable[[Tensor], str]],
    name: str,
) -> dict[str, dict[str, str]]:
    """Transcribe recordings one at a time, each decoded in several modes.

    Args:
        folder: of a student, or of the start.
        clips: waveforms (T,) by id, 16 kHz.
        decoders: modes by name, see `decode.decoders`.
        name: what the progress bar calls the model.

    Returns:
        Texts by mode and id.
    """
    torch.set_num_threads(1)
    model, processor = loaded(folder)
    texts: dict[str, dict[str, str]] = {mode: {} for mode in decoders}
    for clip, wave in progress(clips.items(), f"{name} transcribes", total=len(clips)):
        told = recognizer.log_probabilities(model, processor, wave)
        for mode, decoder in decoders.items():
            texts[mode][clip] = decoder(told)
    return texts


def loaded(folder: Path) -> tuple[Wav2Vec2ForCTC, Wav2Vec2Processor]:
    """A student and its processor."""
    model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    return model, Wav2Vec2Processor.from_pretrained(folder)


def progress(items: Iterable[Any], name: str, **options: Any) -> Any:
    """A progress bar on a line of this process's own, below the one that counts the students."""
    identity = multiprocessing.current_process()._identity or (1,)
    return tqdm(items, name, leave=False, position=identity[0], **options)


def examine(run: Run) -> int:
    """Train a student if need be, let it transcribe the test set, and write its result.

    Nothing is done where the result is there and of the same training, test set and decoders.

    Returns:
        1, the number of students.
    """
    torch.set_num_threads(1)  # so small a model is slower with more, and students run side by side
    disable_progress_bar()
    wanted = run.settings | heard_in(run.size)
    if not (run.path.exists() and json.loads(run.path.read_text())["settings"] == wanted):
        facts = json.loads((train(run) / "training.json").read_text())
        facts["cpu_seconds"] = round(facts["cpu_seconds"], 1)
        files.write_json({"settings": wanted} | facts | heard(run.folder, run.size), run.path)
    return 1


def examine_all(runs: Sequence[Run], processes: int = 2) -> None:
    """Train and examine students, some side by side; those whose result is there are left alone."""
    for part in settings.PARTS:  # decoded once, before several processes want it
        Waves(runs[0].size, part)
    files.side_by_side(examine, runs, processes, len(runs), "students")


def examine_start(size: Size) -> dict[str, Any]:
    """What the shared start hears in the test set, before any training here."""
    path = settings.results(size) / "runs" / "start.json"
    result = json.loads(path.read_text()) if path.exists() else {"settings": None}
    if result["settings"] != heard_in(size):
        result = {"settings": heard_in(size)} | heard(START, size)
        files.write_json(result, path)
    return result


def heard_in(size: Size) -> dict[str, Any]:
    """All that decides a model's texts of the test set, beside its weights."""
    test = files.digest(files.utterances(size, "test"))
    return dict(zip(HEARD, (test, decode.SETTINGS), strict=True))


def heard(model: Path, size: Size) -> dict[str, Any]:
    """What a model hears in the test set, and what that was made with."""
    texts = listen(model, Waves(size, "test"), decode.decoders(), model.name)
    return provenance() | {"hypotheses": texts}


def provenance() -> dict[str, Any]:
    """Commit, hardware and versions that a result was made with."""
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=settings.HERE, capture_output=True, text=True, check=False
    )
    name, info = platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": head.stdout.strip() or None,
        "hardware": {"cpu": name, "cores": os.cpu_count(), "gpu": gpu},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
    }
