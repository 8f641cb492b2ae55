"""The second half of training: text encoder and UNet together, by the diffusion loss alone."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

import checkpoints
import parts
import scenes
from loop import Progress, batch_generator
from settings import Config, peak_share


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that they are trained and wrapped as one."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predict velocity: (B, 4, 16, 16), (B,), (B, L) int64 -> (B, 4, 16, 16)."""
        states = self.text_encoder(tokens).last_hidden_state  # (B, L, text_width)
        velocity: Tensor = self.unet(noisy, timesteps, encoder_hidden_states=states).sample
        return velocity


def build(config: Config) -> Denoiser:
    """A denoiser as training begins with it."""
    torch.manual_seed(config.seed)
    tokenizer = parts.build_tokenizer(scenes.vocabulary(), config.sizes.tokens)
    unet = parts.build_unet(config.sizes)
    return Denoiser(unet, parts.build_text_encoder(tokenizer, config.sizes))


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
    module = build(config)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=1e-3
    )
    average = [parameter.detach().clone() for parameter in module.parameters()]
    start, spent = checkpoints.load_newest(config.work, module, optimizer, average)
    average = [mean.to(accelerator.device) for mean in average]
    if accelerator.device.type == "cpu":
        # The fused kernel's backward pass is three times slower there, with heads this narrow.
        module.unet.set_attn_processor(AttnProcessor())
    model, optimizer = accelerator.prepare(module, optimizer)
    began = time.monotonic() - spent
    with Progress(accelerator, config, "denoiser", config.steps, start) as progress:
        for step in range(start, config.steps):
            share = peak_share(step, config.steps, config.warmup, config.cooldown)
            for group in optimizer.param_groups:
                group["lr"] = config.rate * share
            inputs, velocity = _batch(config, accelerator, step, latents, tokens, empty)
            loss = F.mse_loss(model(*inputs).float(), velocity)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay = min(config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in module.parameters()], 1 - decay)
            progress.advance(loss)
            done = step + 1
            due = done % config.save_every == 0 or done == config.steps
            if due and accelerator.is_main_process:
                seconds = time.monotonic() - began
                checkpoints.save(config.work, done, seconds, module, optimizer, average)
    result = build(config)
    checkpoints.copy_into(result, average)
    return result.eval(), time.monotonic() - began


def _batch(
    config: Config,
    accelerator: Accelerator,
    step: int,
    latents: Tensor,
    tokens: Tensor,
    empty: Tensor,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """This process's inputs of a step and the velocity to predict, on its device."""
    schedule = parts.build_scheduler()
    generator = batch_generator(config.seed, step, accelerator.process_index)
    share = config.batch // accelerator.num_processes
    picks = torch.randint(len(latents), (share,), generator=generator)
    noise = torch.randn((share, *latents.shape[1:]), generator=generator)
    levels = schedule.config.num_train_timesteps
    timesteps = torch.randint(levels, (share,), generator=generator)
    dropped = torch.rand(share, generator=generator) < config.drop
    prompts = torch.where(dropped[:, None], empty[None], tokens[picks])
    noisy = schedule.add_noise(latents[picks], noise, timesteps)
    velocity = schedule.get_velocity(latents[picks], noise, timesteps)
    device = accelerator.device
    return (noisy.to(device), timesteps.to(device), prompts.to(device)), velocity.to(device)
