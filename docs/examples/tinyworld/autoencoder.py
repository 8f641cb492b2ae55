"""The first half of training: an autoencoder on drawn scenes, and the latents it makes of them."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import parts
from loop import Progress, batch_generator
from settings import Config, peak_share


def to_signal(images: Tensor) -> Tensor:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return images.float() / 127.5 - 1


class _Reconstruction(nn.Module):
    """Encode, sample, decode in one forward pass, so that it can be wrapped as one module."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) and (B, 4, h, w) -> reconstruction (B, 3, H, W), divergence (B,)."""
        posterior = self.vae.encode(target).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.kl()


def train(config: Config, accelerator: Accelerator, images: Tensor) -> AutoencoderKL:
    """Train the autoencoder, or load the one that an earlier run left in `config.work`.

    Args:
        config: the run.
        accelerator: device, precision and processes.
        images: (N, 3, 64, 64) uint8 scenes.
    """
    folder = config.work / "vae"
    if folder.exists():
        vae = AutoencoderKL.from_pretrained(folder)
        vae.register_to_config(_name_or_path="")  # this machine's path is no part of the model
        return vae.to(accelerator.device).eval()
    torch.manual_seed(config.seed)
    vae = parts.build_vae(config.sizes)
    with torch.no_grad():
        # Begin with nearly noiseless latents: at unit noise the first steps would learn nothing.
        vae.quant_conv.bias[vae.config.latent_channels :] -= 5
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.vae_rate, weight_decay=0)
    model, optimizer = accelerator.prepare(_Reconstruction(vae), optimizer)
    side = images.shape[-1] // 4
    share = config.vae_batch // accelerator.num_processes
    with Progress(accelerator, config, "autoencoder", config.vae_steps) as progress:
        for step in range(config.vae_steps):
            generator = batch_generator(config.seed, step, accelerator.process_index)
            picks = torch.randint(len(images), (share,), generator=generator)
            target = to_signal(images[picks].to(accelerator.device))
            noise = torch.randn((share, 4, side, side), generator=generator)
            for group in optimizer.param_groups:
                group["lr"] = config.vae_rate * peak_share(step, config.vae_steps, 0.1, 0.5)
            decoded, divergence = model(target, noise.to(accelerator.device))
            error = F.l1_loss(decoded.float(), target) + F.mse_loss(decoded.float(), target)
            optimizer.zero_grad()
            accelerator.backward(error + config.kl * divergence.float().mean())
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.advance(error)
    vae = vae.eval()
    standardize(vae, encode(vae, images[:2000]))
    if accelerator.is_main_process:
        vae.save_pretrained(folder)
    accelerator.wait_for_everyone()
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 100) -> Tensor:
    """Posterior means of (N, 3, 64, 64) uint8 images, as (N, 4, 16, 16) float32 on the CPU."""
    device = next(vae.parameters()).device
    chunks = [
        vae.encode(to_signal(chunk.to(device))).latent_dist.mean.float().cpu()
        for chunk in torch.split(images, batch)
    ]
    return torch.cat(chunks)


def latents_of(
    config: Config, accelerator: Accelerator, vae: AutoencoderKL, images: Tensor
) -> Tensor:
    """`encode`, once a run: a resumed one reads the latents from `config.work`."""
    path = config.work / "latents.safetensors"
    if not path.exists():
        if accelerator.is_main_process:
            save_file({"latents": encode(vae, images)}, path)
        accelerator.wait_for_everyone()
    latents = load_file(path)["latents"]
    if len(latents) != len(images):
        raise ValueError(
            f"{path} holds {len(latents)} latents and this run has {len(images)} scenes; delete "
            "the file, or give the run another --work folder."
        )
    return latents


@torch.no_grad()
def standardize(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold a shift and a scale a channel into the autoencoder: its latents get mean 0 and std 1.

    Both 1 x 1 convolutions around the latents are affine, so what is decoded does not change, and
    the pipeline's `scaling_factor` is 1.

    Args:
        vae: changed in place.
        latents: (N, 4, h, w) means of the posterior over the training scenes.
    """
    device = next(vae.parameters()).device
    mean, std = latents.mean((0, 2, 3)).to(device), latents.std((0, 2, 3)).to(device)
    channels = len(mean)
    into, out_of = vae.quant_conv, vae.post_quant_conv
    # Rows 0 to 3 are the posterior's mean, rows 4 to 7 its log-variance.
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= std[None, :, None, None]
