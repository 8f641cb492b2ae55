"""The second half of training: a denoiser, UNet or transformer, by the diffusion loss alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

import checkpoints
import transformer
import unet
from loop import Progress
from settings import Config, peak_share

Denoiser = unet.Denoiser | transformer.Denoiser


def train(
    config: Config, accelerator: Accelerator, latents: Tensor, tokens: Tensor, empty: Tensor
) -> tuple[Denoiser, float]:
    """Train on cached latents, resuming from the newest checkpoint in `config.work`.

    Args:
        config: the run.
        accelerator: device, precision and processes.
        latents: (N, 4, 16, 16) float32.
        tokens: (N, L) int64, the captions.
        empty: (L,) int64, the empty prompt.

    Returns:
        A denoiser with the averaged weights, on the CPU, and the seconds spent on its training in
        this and all earlier sessions.
    """
    build: Callable[[Config], Denoiser]
    if config.denoiser == "transformer":
        build, batch = transformer.build, transformer.batch
    else:
        build, batch = unet.build, unet.batch
    module = build(config)
    optimizers = module.optimizers(config)
    # A schedule scales all rates alike.
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    average = [parameter.detach().clone() for parameter in module.parameters()]
    start, spent = checkpoints.load_newest(config.work, module, optimizers, average)
    average = [mean.to(accelerator.device) for mean in average]
    module.prepare_training(accelerator.device)
    model, *wrapped = accelerator.prepare(module, *optimizers)
    began = time.monotonic() - spent
    with Progress(accelerator, config, "denoiser", config.steps, start) as progress:
        for step in range(start, config.steps):
            share = peak_share(step, config.steps, config.warmup, config.cooldown)
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * share
            inputs, velocity = batch(config, accelerator, step, latents, tokens, empty)
            loss = F.mse_loss(model(*inputs).float(), velocity)
            model.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in wrapped:
                optimizer.step()
            decay = min(config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in module.parameters()], 1 - decay)
            progress.advance(loss)
            done = step + 1
            due = done % config.save_every == 0 or done == config.steps
            if due and accelerator.is_main_process:
                seconds = time.monotonic() - began
                checkpoints.save(config.work, done, seconds, module, optimizers, average)
    result = build(config)
    checkpoints.copy_into(result, average)
    return result.eval(), time.monotonic() - began
