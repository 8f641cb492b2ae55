"""CTC from raw audio to letters: the loop, its averaged weights and its log."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import jiwer
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

import recognizer
import snapshots
from corpus import Corpus
from cputime import cpu_seconds
from distil import distil
from lessons import Lessons
from recipe import Recipe, peak_share

logger = logging.getLogger(__name__)

# Where the batches lie that the convolutions start on: the training hears others.
_AHEAD = 10_000_000


def train(
    recipe: Recipe, accelerator: Accelerator, corpus: Corpus, dev: Corpus, spent: float = 0.0
) -> tuple[Wav2Vec2ForCTC, float]:
    """Train from the newest checkpoint, or from nothing.

    Args:
        recipe: all of it.
        accelerator: device, precision and processes.
        corpus: what is trained on.
        dev: what the training is watched on.
        spent: seconds of processor time behind the run when it begins from nothing.

    Returns:
        The model with averaged weights, on the CPU, and seconds of processor time in all.
    """
    torch.manual_seed(recipe.seed)
    processor = recognizer.build_processor(recipe.work / "processor")
    model = recognizer.build_model(recipe).to(accelerator.device)
    # On a CPU the fused attention's backward pass is slow in bf16; queries are short.
    model.set_attn_implementation("eager")
    lessons = Lessons(corpus, recipe)
    began = cpu_seconds()
    folder = recipe.work / "checkpoints"
    newest = snapshots.newest(folder)
    if newest is None and recipe.distil_steps:
        ahead = range(_AHEAD, _AHEAD + recipe.distil_steps)
        error = distil(model, _loader(lessons, recipe, accelerator, ahead), recipe, accelerator)
        logger.info("log-mel from the convolutions: mean squared error %.3f", error)
    average = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    wrapped, optimizer = accelerator.prepare(
        model,
        torch.optim.AdamW(
            model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay
        ),
    )
    start = 0
    if newest is not None:
        start, spent = snapshots.load(newest, model, optimizer, average)
        logger.info("resuming after %d of %d steps", start, recipe.steps)
    model.train()
    log = _Log(recipe.work / "log.jsonl", accelerator.is_main_process)
    batches = iter(_loader(lessons, recipe, accelerator, range(start, recipe.steps)))
    bar = tqdm(
        total=recipe.steps, initial=start, desc="ctc", disable=not accelerator.is_main_process
    )
    recent: list[tuple[float, float]] = []
    for step in range(start, recipe.steps):
        seed_masks(recipe.seed, step, accelerator.process_index)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * peak_share(step, recipe)
        recent.append(_step(wrapped, optimizer, accelerator, next(batches)))
        _towards(average, model, min(recipe.ema, (1 + step) / (10 + step)))
        bar.update()
        done = step + 1
        if done % recipe.log_every == 0:
            loss, gradient = np.mean(recent, axis=0)
            recent.clear()
            bar.set_postfix(loss=f"{loss:.3f}")
            log.write(
                step=done,
                loss=round(float(loss), 4),
                gradient=round(float(gradient), 2),
                cpu_seconds=round(spent + cpu_seconds() - began),
            )
        if accelerator.is_main_process:
            if done % recipe.judge_every == 0:
                log.write(step=done, **judge(with_weights(model, average), processor, dev))
            if done % recipe.save_every == 0 or done == recipe.steps:
                seconds = spent + cpu_seconds() - began
                snapshots.save(folder, done, seconds, model, optimizer, average)
    bar.close()
    return with_weights(model, average).cpu(), spent + cpu_seconds() - began


def judge(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, corpus: Corpus) -> dict[str, float]:
    """Greedy word error rates, of voices trained on ("dev_seen") and of others ("dev_unseen")."""
    rates = {}
    for name, first in (("dev_unseen", 0), ("dev_seen", 1)):  # they alternate in the plan
        chosen = range(first, len(corpus), 2)
        said = [corpus.utterances[index].text for index in chosen]
        heard = [
            recognizer.transcribe(model, processor, corpus.recording(index)) for index in chosen
        ]
        rates[name] = round(float(jiwer.wer(said, heard)), 4)
    return rates


def with_weights(model: Wav2Vec2ForCTC, weights: dict[str, Tensor]) -> Wav2Vec2ForCTC:
    """A copy of a model in evaluation mode with other weights."""
    other = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(weights[name])
    return other


class _Log:
    """Lines of JSON; nothing on any process but the first."""

    def __init__(self, path: Path, active: bool) -> None:
        self._path = path
        self._active = active

    def write(self, **values: float) -> None:
        if self._active:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    batch: dict[str, Tensor],
) -> tuple[float, float]:
    """One step of the optimizer; returns this process's loss and the norm of the gradient."""
    loss = model(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()}).loss
    optimizer.zero_grad()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), float(norm)


def _loader(
    lessons: Lessons, recipe: Recipe, accelerator: Accelerator, steps: range
) -> DataLoader[dict[str, Tensor]]:
    """This process's batches of some steps, prepared ahead."""
    processes, own = accelerator.num_processes, accelerator.process_index
    return DataLoader(
        lessons,
        batch_size=None,
        sampler=[step * processes + own for step in steps],
        num_workers=recipe.loaders,
        prefetch_factor=16 if recipe.loaders else None,
        generator=torch.Generator(),  # workers' seeds are not drawn from the global generator
    )


def seed_masks(seed: int, step: int, process: int) -> None:
    """SpecAugment draws from numpy's and torch's global generators, inside the host model."""
    first, second = np.random.SeedSequence([seed, step, process, 7]).generate_state(2)
    np.random.seed(int(first))
    torch.manual_seed(int(second))


@torch.no_grad()
def _towards(average: dict[str, Tensor], model: Wav2Vec2ForCTC, decay: float) -> None:
    names, weights = zip(*model.named_parameters(), strict=True)
    torch._foreach_lerp_(
        [average[name] for name in names], [w.detach() for w in weights], 1 - decay
    )
