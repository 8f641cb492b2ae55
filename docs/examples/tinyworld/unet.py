"""The UNet of tinyworld: trained together with its text encoder, to predict velocity."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel

import parts
import scenes
from loop import batch_generator
from settings import Config


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that they are trained and wrapped as one."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def prepare_training(self, device: torch.device) -> None:
        """Use the attention that is fastest to train."""
        if device.type == "cpu":
            # The fused kernel's backward pass is three times slower, with heads this narrow.
            self.unet.set_attn_processor(AttnProcessor())

    def optimizers(self, config: Config) -> list[torch.optim.Optimizer]:
        """What trains it, at the peak rate."""
        return [
            torch.optim.AdamW(
                self.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=1e-3
            )
        ]

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


def batch(
    config: Config,
    accelerator: Accelerator,
    step: int,
    latents: Tensor,
    tokens: Tensor,
    empty: Tensor,
) -> tuple[tuple[Tensor, ...], Tensor]:
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
