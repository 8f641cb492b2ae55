"""Students: tinyvoice's model, trained further on what a third party wrote, or on what was said."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from lessons import normalise
from speechnet import decode, settings
from speechnet.behave import suffix
from speechnet.settings import Size
from speechnet.waves import Waves, digest, utterances
from training import seed_masks

START = recipe.HERE / "model"  # of every student
STUDENTS = ("raw", "all", "gold", "random", "three", "own", "all-threshold")
KEPT = 0.5  # weight from which a transcript counts as right
RATE, WARMUP, DECAY = 1e-3, 0.1, 0.01  # peak of the learning rate; share of the steps up to it
# Ratios by which recordings are resampled anew each time: other sizes and paces of the same voices.
STRETCH, STRETCHED = (0.87, 1.15), 0.6  # and the share of the recordings that are
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
        return f"{self.third}-{self.student}{suffix(self.noise)}-{self.seed}"

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
        folder, end = settings.results(self.size), f"{suffix(self.noise)}.parquet"
        log = _read(folder / f"log-{self.third}{end}", "behave")
        heard = log.filter(pl.col("transcript") != "").select(
            "query_id", "transcript", weight=pl.lit(1.0)
        )
        if self.student == "raw":
            return heard
        if self.student == "gold":
            said = utterances(self.size, "train").select(
                query_id="utterance_id", transcript="text", weight=pl.lit(1.0)
            )
            return said.join(log.select("query_id"), on="query_id", how="semi")
        chosen = self.student if self.student in ("three", "own") else "all"
        labels = _read(folder / f"labels-{self.third}-{chosen}{end}", "label").select(
            "query_id", "transcript", "weight"
        )
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
            "stretch": [*STRETCH, STRETCHED],
            "precision": "bf16",
            "lessons": self.lessons.height,
            "weight": round(float(self.lessons["weight"].sum()), 2),
            "data": digest(self.lessons) + digest(utterances(self.size, "train")),
        }

    @property
    def folder(self) -> Path:
        """Where its checkpoints and its model lie."""
        key = digest(pl.DataFrame({"settings": [json.dumps(self.settings)]}))
        return settings.work(self.size) / "students" / f"{self.name}-{key}"


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
        rng = np.random.default_rng([self._seed, step, *b"stretch"])
        waves = []
        for row in rows:
            wave = self._waves[self._ids[row]]
            if rng.random() < STRETCHED:
                wave = perturb.resample(wave, float(rng.uniform(*STRETCH)))
            waves.append(torch.from_numpy(normalise(wave)))
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_values": pad(waves, batch_first=True),
            "attention_mask": pad([torch.ones_like(w, dtype=torch.long) for w in waves], True),
            "labels": pad([self._labels[row] for row in rows], True, -100),
            "weights": self._weights[rows],
        }


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
    for step in (bar := progress(steps, run.name, initial=begin)):
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
            write_json(folder / "curve.json", curve)
            snapshots.save(folder / "checkpoints", done, seconds, model, optimizer, copies)
    model.cpu().save_pretrained(folder)
    Wav2Vec2Processor.from_pretrained(START).save_pretrained(folder)
    facts = {"curve": curve, "cpu_seconds": spent + cpu_seconds() - began}
    write_json(folder / "training.json", facts)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder


def listen(
    model: Wav2Vec2ForCTC,
    processor: Wav2Vec2Processor,
    clips: Mapping[str, npt.NDArray[np.float32]] | Waves,
    decoders: Mapping[str, Callable[[Tensor], str]],
    name: str,
) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """Transcribe recordings one at a time, each decoded in several modes.

    Args:
        model, processor: of the student.
        clips: waveforms (T,) by id, 16 kHz.
        decoders: modes by name, see `decode.decoders`.
        name: what the progress bar calls the model.

    Returns:
        Texts by mode and id; and by mode the real-time factor in processor time, model included.
    """
    ids = clips.ids if isinstance(clips, Waves) else list(clips)
    texts: dict[str, dict[str, str]] = {mode: {} for mode in decoders}
    spent = dict.fromkeys([*decoders, "model"], 0.0)
    audio = 0.0
    for clip in progress(ids, f"{name} transcribes"):
        wave = clips[clip]
        audio += len(wave) / settings.RATE
        start = time.process_time()
        told = recognizer.log_probabilities(model, processor, wave)
        spent["model"] += time.process_time() - start
        for mode, decoder in decoders.items():
            start = time.process_time()
            texts[mode][clip] = decoder(told)
            spent[mode] += time.process_time() - start
    factors = {mode: (spent[mode] + spent["model"]) / audio for mode in decoders}
    return texts, {mode: round(factor, 5) for mode, factor in factors.items()}


def loaded(folder: Path) -> tuple[Wav2Vec2ForCTC, Wav2Vec2Processor]:
    """A student and its processor."""
    model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    return model, Wav2Vec2Processor.from_pretrained(folder)


def progress(items: Sequence[Any], name: str, **options: Any) -> Any:
    """A progress bar on a line of this process's own; the first line counts the students."""
    identity = multiprocessing.current_process()._identity
    return tqdm(items, name, leave=False, position=identity[0] if identity else 0, **options)


def examine(run: Run, again: bool = False) -> Path:
    """Train a student if need be, let it transcribe the test set, and write its result.

    Args:
        run: which.
        again: transcribe although the result is there, as after a change of the decoders.
    """
    torch.set_num_threads(1)  # so small a model is slower with more, and students run side by side
    disable_progress_bar()
    waves = Waves(run.size, "test")
    wanted = run.settings | {"test": waves.digest}
    if not again and run.path.exists() and json.loads(run.path.read_text())["settings"] == wanted:
        return run.path
    folder = train(run)
    texts, factors = listen(*loaded(folder), waves, decode.decoders(), run.name)
    facts = json.loads((folder / "training.json").read_text())
    result = {
        "settings": wanted,
        **provenance(),
        "curve": facts["curve"],
        "cpu_seconds": round(facts["cpu_seconds"], 1),
        "real_time_factor": factors,
        "hypotheses": texts,
    }
    write_json(run.path, result)
    return run.path


def examine_all(runs: Sequence[Run], processes: int = 2, again: bool = False) -> None:
    """Train and examine students, some side by side; those whose result is there are left alone."""
    if not runs:
        return
    for part in ("train", "test"):  # decoded once, before several processes want it
        Waves(runs[0].size, part)
    # Spawned: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        jobs = [pool.submit(examine, run, again) for run in runs]
        for job in tqdm(as_completed(jobs), "students", len(jobs)):
            job.result()


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


def write_json(path: Path, value: Any) -> None:
    """Write a file beside its place and rename it, so that none is ever half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _read(path: Path, step: str) -> pl.DataFrame:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the step {step} first.")
    return pl.read_parquet(path)
