"""A start for the convolutions without a label: they learn to tell the log-mel spectrum.

With random convolutions CTC stays for long at emitting blanks; with these it finds letters within
the first pass.
"""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

import perturb
from recipe import Recipe

BANDS, WINDOW, TRANSFORM = 40, 640, 1024
_SECONDS = 1.5  # of every recording


def log_mel(wave: Tensor, config: Wav2Vec2Config, frames: int) -> Tensor:
    """Log-mel energies centered on the model's frames: (B, N) → (B, frames, 40), standardized."""
    hop = math.prod(config.conv_stride)
    lead = (receptive_field(config) - TRANSFORM) // 2  # where the first window begins
    wave = nn.functional.pad(wave, (max(0, -lead), 2 * TRANSFORM))[:, max(0, lead) :]
    window = torch.hann_window(WINDOW, device=wave.device)
    spectrum = torch.stft(
        wave, TRANSFORM, hop, WINDOW, window, center=False, return_complex=True
    )  # (B, bins, frames + some)
    energy = _bands().to(wave.device) @ spectrum.abs().square()
    features = torch.log(energy + 0.1).transpose(1, 2)[:, :frames]
    return (features - features.mean((0, 1))) / features.std((0, 1))


def receptive_field(config: Wav2Vec2Config) -> int:
    """Samples that one frame of the convolutions sees."""
    field, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return field


def distil(
    model: Wav2Vec2ForCTC,
    lessons: torch.utils.data.DataLoader[dict[str, Tensor]],
    recipe: Recipe,
    accelerator: Accelerator,
) -> float:
    """Train the convolutions, in place; returns the mean squared error of the last steps.

    Args:
        model: its feature encoder and the norm behind it are trained.
        lessons: batches; labels are not looked at.
        recipe: steps and rate.
        accelerator: device and precision.
    """
    encoder = model.wav2vec2.feature_extractor
    norm = model.wav2vec2.feature_projection.layer_norm
    head = nn.Linear(model.config.conv_dim[-1], BANDS).to(accelerator.device)
    weights = [*encoder.parameters(), *norm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(weights, lr=recipe.distil_rate)
    error = 1.0
    bar = tqdm(lessons, desc="log-mel", disable=not accelerator.is_main_process)
    for step, batch in enumerate(bar):
        done = step / recipe.distil_steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.distil_rate * min(1, (step + 1) / 20) * max(0.05, 1 - done)
        wave = batch["input_values"][:, : round(_SECONDS * perturb.RATE)].to(accelerator.device)
        with accelerator.autocast():
            frames = encoder(wave).transpose(1, 2)  # (B, frames, channels)
        told = head(norm(frames.float()))
        loss = (told - log_mel(wave, model.config, frames.shape[1])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if accelerator.num_processes > 1:
            for weight in weights:
                weight.grad = accelerator.reduce(weight.grad, "mean")
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        error += 0.05 * (loss.item() - error)
        bar.set_postfix(error=f"{error:.3f}")
    return error


def _bands() -> Tensor:
    """Triangles on the mel scale, (40, bins)."""
    frequency = torch.linspace(0, perturb.RATE / 2, TRANSFORM // 2 + 1)
    mel = 1127 * torch.log1p(frequency / 700)
    edge = torch.linspace(1127 * math.log1p(60 / 700), 1127 * math.log1p(7800 / 700), BANDS + 2)
    rising = (mel - edge[:-2, None]) / (edge[1:-1] - edge[:-2])[:, None]
    falling = (edge[2:, None] - mel) / (edge[2:] - edge[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
