"""Train tinyworld from nothing: an autoencoder on drawn scenes, then a text-to-image denoiser.

    python docs/examples/tinyworld/train.py                # on this machine's CPU or GPU
    accelerate launch docs/examples/tinyworld/train.py     # on several GPUs
    python docs/examples/tinyworld/train.py --denoiser transformer

The last one trains a transformer alone: it takes autoencoder and text encoder from `--base`, a
folder that the first has written.

No mask takes part in it. Every batch, its noise and its timesteps are functions of the seed, the
step and the process alone, so an interrupted run resumes from its last checkpoint to the very
weights it would have had.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from itertools import islice

import accelerate
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

import autoencoder
import card
import denoiser
import nouns
import parts
import scenes
import transformer
from settings import Config, parse

logger = logging.getLogger(__name__)


def draw_dataset(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Training scenes as ((N, 3, 64, 64) uint8, N captions)."""
    drawn = list(islice(scenes.stream(seed, "train"), count))
    images = torch.from_numpy(np.stack([scene.image for scene in drawn])).permute(0, 3, 1, 2)
    return images.contiguous(), [str(scene.caption) for scene in drawn]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(N, L) int64, padded and cut exactly as the pipeline does it."""
    tokens: Tensor = tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens


def run(config: Config) -> None:
    """Train whatever of the run is not there yet, then export it with its card.

    Raises:
        ValueError: if a batch cannot be shared out evenly among the processes, or if the
            transformer is to be trained in fp16.
    """
    if config.denoiser == "transformer" and config.precision == "fp16":
        # Accelerate's scaler starts anew after each optimizer's step: the second would take its
        # gradients divided by the scale twice.
        raise ValueError(
            "the transformer has two optimizers, and fp16 scales losses for one: give "
            "--precision bf16 or no."
        )
    accelerator = Accelerator(mixed_precision=config.precision, cpu=config.cpu)
    processes = accelerator.num_processes
    if config.batch % processes or config.vae_batch % processes:
        raise ValueError(
            f"batch ({config.batch}) and vae_batch ({config.vae_batch}) count all processes and "
            f"must be multiples of their number, {processes}."
        )
    config.work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    logger.info("drawing %d scenes", config.scenes)
    images, captions = draw_dataset(config.scenes, config.seed)
    if config.denoiser == "transformer":
        vae, _, tokenizer = transformer.load_base(config.base)
        vae.to(accelerator.device)
    else:
        vae = autoencoder.train(config, accelerator, images)
        tokenizer = parts.build_tokenizer(scenes.vocabulary(), config.sizes.tokens)
    latents = autoencoder.latents_of(config, accelerator, vae, images)
    prepared = time.monotonic() - began
    tokens, empty = tokenize(tokenizer, captions), tokenize(tokenizer, [""])[0]
    trained, seconds = denoiser.train(config, accelerator, latents, tokens, empty)
    if accelerator.is_main_process:
        export(config, trained, vae.cpu(), tokenizer, accelerator.device, prepared + seconds)
        logger.info("exported to %s", config.model)


def export(
    config: Config,
    trained: denoiser.Denoiser,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    device: torch.device,
    seconds: float,
) -> None:
    """Write the pipeline's folder and its card."""
    if isinstance(trained, transformer.Denoiser):
        transformer.save_pipeline(config.model, tokenizer, vae, trained)
    else:
        parts.save_pipeline(config.model, tokenizer, trained.text_encoder, vae, trained.unet)
    weights = [*trained.parameters(), *vae.parameters()]
    card.write(
        config.model,
        card.KINDS[config.denoiser],
        _facts(config, device, seconds),
        parameters=sum(weight.numel() for weight in weights),
        nouns=len(nouns.DRAWINGS),
        colors=len(scenes.COLORS),
    )


def _facts(config: Config, device: torch.device, seconds: float) -> dict[str, object]:
    """The card's table on training."""
    transformer_alone = config.denoiser == "transformer"
    others = ("unet_", "vae_", "text_") if transformer_alone else ("transformer_",)
    sizes = ", ".join(
        f"{name} {value}"
        for name, value in dataclasses.asdict(config.sizes).items()
        if not name.startswith(others)
    )
    muon = (
        f" (of the blocks' matrices, by Muon, {transformer.MUON:g} times as much)"
        if transformer_alone
        else ""
    )
    taken_over = f"of `{config.base.name}/`, frozen; so is the text encoder"
    return {
        "data": f"{config.scenes:,} drawn scenes, none with a held-out pair of colored nouns",
        "autoencoder": taken_over
        if transformer_alone
        else f"{config.vae_steps:,} steps of {config.vae_batch}, peak rate {config.vae_rate:g}",
        "denoiser": f"{config.steps:,} steps of {config.batch}, peak rate {config.rate:g}"
        f"{muon}, averaged weights ({config.ema:g})",
        "sizes": sizes,
        "seed": config.seed,
        "hardware": card.hardware(device),
        "precision": config.precision,
        "wall time": f"{seconds / 60:.0f} minutes",
        "versions": f"torch {torch.__version__}, accelerate {accelerate.__version__}",
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(parse(description=__doc__))
