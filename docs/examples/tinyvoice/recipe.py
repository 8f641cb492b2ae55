"""`Recipe`, one run of training, and the command line that reads it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """One run of training.

    Attributes:
        work: folder for speech, checkpoints and the log; a run with the same folder resumes.
        model: folder the model, its processor and its card are written to.
        seed: decides the speech, the weights' start, every batch and all that perturbs it.
        utterances: said once by the synthesisers and trained on again and again.
        speakers: simulated ones, who say them.
        dev: utterances that the training is watched on.
        processes: synthesisers that run at a time.
        distil_steps, distil_rate: of the convolutions' training on log-mel, before all else.
        steps, batch, rate: `batch` counts one process, `rate` is the peak.
        warmup, cooldown: the shares of `steps` in which the rate rises to its peak and falls to 0.
        decay: of weights, in AdamW.
        ema: decay a step of the averaged weights, which are those exported.
        slowest, fastest: bounds of the resampling in training.
        mask_time, mask_features: SpecAugment's shares of frames and of features.
        save_every: steps between checkpoints.
        judge_every: steps between two word error rates on the development utterances.
        log_every: steps between two lines of the log.
        loaders: processes that prepare batches; 0 prepares them in the training's own.
        precision: Accelerate's mixed precision: "no", "bf16" or "fp16".
        cpu: train on the CPU even where there is a GPU.
        width, layers, heads, inner: of the transformer.
        channels, kernels, strides: of the convolutions on the waveform.
    """

    work: Path = Path("runs/tinyvoice")
    model: Path = HERE / "model"
    seed: int = 0
    utterances: int = 24_000
    speakers: int = 240
    dev: int = 150
    processes: int = 2
    distil_steps: int = 900
    distil_rate: float = 3e-3
    steps: int = 15_000
    batch: int = 16
    rate: float = 2e-3
    warmup: float = 0.02
    cooldown: float = 0.6
    decay: float = 0.01
    ema: float = 0.999
    slowest: float = 1.18
    fastest: float = 0.85
    mask_time: float = 0.06
    mask_features: float = 0.04
    save_every: int = 500
    judge_every: int = 1000
    log_every: int = 50
    loaders: int = 1
    precision: str = "bf16"
    cpu: bool = False
    width: int = 192
    layers: int = 4
    heads: int = 4
    inner: int = 576
    channels: tuple[int, ...] = (64, 128, 160)
    kernels: tuple[int, ...] = (256, 6, 6)
    strides: tuple[int, ...] = (80, 2, 3)


def peak_share(step: int, recipe: Recipe) -> float:
    """The learning rate at a step, as a share of its peak: up, level, down, each linear."""
    done = (step + 0.5) / recipe.steps
    return min(1.0, done / max(recipe.warmup, 1e-9), (1 - done) / max(recipe.cooldown, 1e-9))


def parse(arguments: Sequence[str] | None = None, description: str | None = None) -> Recipe:
    """Read a recipe from the command line: every field is an option."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for entry in dataclasses.fields(Recipe):
        flag, default = f"--{entry.name.replace('_', '-')}", entry.default
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(flag, type=int, nargs="+", default=default, metavar="N")
        else:
            parser.add_argument(flag, type=_kind(default), default=default)
    options = vars(parser.parse_args(arguments))
    return Recipe(
        **{
            key: tuple(value) if isinstance(value, list) else value
            for key, value in options.items()
        }
    )


def _kind(default: object) -> type:
    return Path if isinstance(default, Path) else type(default)
