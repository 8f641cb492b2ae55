"""`Config`, one run of training, and the command line that reads it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from parts import Sizes

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Config:
    """One run of training.

    Attributes:
        denoiser: "unet", with an autoencoder and a text encoder of its own, or "transformer".
        base: folder of the UNet whose autoencoder and text encoder a transformer takes over.
        work: folder for checkpoints and losses; a run with the same folder resumes.
        model: folder the pipeline and its card are written to.
        seed: decides the scenes, the weights' start, every batch and all noise.
        scenes: drawn once and trained on again and again.
        vae_steps, vae_batch, vae_rate: the autoencoder's training; `vae_rate` is its peak.
        kl: weight of the divergence from a unit normal, beside mean absolute and squared error.
        steps, batch, rate: the denoiser's; `batch` counts all processes, `rate` is its peak.
        warmup, cooldown: the shares of `steps` in which the rate rises to its peak and falls to 0.
        drop: share of captions replaced by the empty prompt, for classifier-free guidance.
        ema: decay a step of the averaged weights, which are those exported.
        save_every: steps between checkpoints.
        log_every: steps between two lines of the log of losses.
        precision: Accelerate's mixed precision: "no", "bf16" or "fp16".
        cpu: train on the CPU even where there is a GPU.
        sizes: the shapes of all weights.
    """

    denoiser: str = "unet"
    base: Path = HERE / "model"
    work: Path = Path("runs/tinyworld")
    model: Path = HERE / "model"
    seed: int = 0
    scenes: int = 16_000
    vae_steps: int = 1600
    vae_batch: int = 8
    vae_rate: float = 1e-3
    kl: float = 2e-6
    steps: int = 4500
    batch: int = 32
    rate: float = 1.2e-3
    warmup: float = 0.02
    cooldown: float = 0.3
    drop: float = 0.1
    ema: float = 0.998
    save_every: int = 100
    log_every: int = 25
    precision: str = "bf16"
    cpu: bool = False
    sizes: Sizes = field(default_factory=Sizes)


UNET = Config()
TRANSFORMER = Config(
    denoiser="transformer",
    work=Path("runs/tinyworld-transformer"),
    model=HERE / "model-transformer",
    scenes=12_000,
    steps=4200,
    rate=1e-3,
    warmup=0.04,
    cooldown=0.45,
)
_DEFAULTS = {config.denoiser: config for config in (UNET, TRANSFORMER)}


def peak_share(step: int, steps: int, warmup: float, cooldown: float) -> float:
    """The learning rate at a step, as a share of its peak: up, level, down, each linear."""
    done = (step + 0.5) / steps
    return min(1.0, done / max(warmup, 1e-9), (1 - done) / max(cooldown, 1e-9))


def parse(arguments: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Read a configuration from the command line: every field, and every size, is an option.

    The other defaults depend on the denoiser.
    """
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--denoiser", choices=_DEFAULTS, default=UNET.denoiser)
    defaults = _DEFAULTS[which.parse_known_args(arguments)[0].denoiser]
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[which],
    )
    for owner in (defaults, defaults.sizes):
        for entry in dataclasses.fields(owner):
            if entry.name != "denoiser":
                _add_option(parser, entry.name, getattr(owner, entry.name))
    options = vars(parser.parse_args(arguments))
    sizes = {entry.name: options.pop(entry.name) for entry in dataclasses.fields(Sizes)}
    for name, value in sizes.items():
        sizes[name] = tuple(value) if isinstance(value, list) else value
    return Config(**options, sizes=Sizes(**sizes))


def _add_option(parser: argparse.ArgumentParser, name: str, default: object) -> None:
    """One option, of the type of its default; `Sizes` itself is none, its fields are."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(default, bool):
        parser.add_argument(flag, action="store_true")
    elif isinstance(default, tuple):
        parser.add_argument(flag, type=int, nargs="+", default=default, metavar="N")
    elif isinstance(default, Path):
        parser.add_argument(flag, type=Path, default=default)
    elif isinstance(default, int | float | str):
        parser.add_argument(flag, type=type(default), default=default)
