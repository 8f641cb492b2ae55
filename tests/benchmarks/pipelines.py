"""Pipelines of known geometry with random weights, built offline for measurements.

The denoisers `sd15` and `sdxl` have the published configurations; text encoders and VAE are tiny,
since no measurement here is about them. Nothing in this file needs daam_diffusers, and it works
with diffusers 0.21 as with today's: the peers' environments import it too.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

WINDOW = 77
# One token each, so that a prompt's length in tokens can be counted by eye. Long words lead: their
# merges must outrank those of short words that they contain.
WORDS = (
    "standing running beside behind small large house green under with tree blue boat old red "
    "car dog the and an in it of on a"
).split()
PROMPT = "a red car beside a blue dog"
PROMPT_20 = (
    "a small red car beside the old blue house and a large green tree with a dog standing under it"
)


@dataclass(frozen=True)
class Geometry:
    """Shapes of a pipeline.

    Attributes:
        unet: configuration of its UNet2DConditionModel.
        text_widths: hidden sizes of its text encoders; two of them make it an SDXL pipeline.
        pixels: side of the square image it generates.
        vae_levels: the VAE's factor is 2 to the power of this less one.
    """

    unet: Mapping[str, Any]
    text_widths: tuple[int, ...]
    pixels: int
    vae_levels: int = 4


_SD15: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # despite its name, diffusers reads the number of heads here
}
_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

GEOMETRIES: Mapping[str, Geometry] = {
    "sd15": Geometry(_SD15, (768,), 512),
    "sdxl": Geometry(_SDXL, (768, 1280), 1024),
    # Stable Diffusion 1.5's grids, layers and heads with a tenth of its channels: what is recorded
    # of it has the same size.
    "sd15-narrow": Geometry(
        {**_SD15, "block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 32}, (32,), 512
    ),
    "tiny-sd": Geometry(
        {
            **_SD15,
            "sample_size": 16,
            "layers_per_block": 1,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
        },
        (32,),
        64,
        vae_levels=3,
    ),
    "tiny-sdxl": Geometry(
        {
            **_SDXL,
            "sample_size": 16,
            "layers_per_block": 1,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 64,
            "attention_head_dim": (2, 4),
            "transformer_layers_per_block": (1, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
        (32, 32),
        64,
        vae_levels=3,
    ),
}


def build(
    name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    """The pipeline of a geometry, ready to be called."""
    geometry = GEOMETRIES[name]
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    parts: dict[str, Any] = {
        "vae": _vae(geometry.vae_levels),
        "text_encoder": _text_encoder(tokenizer, geometry.text_widths[0]),
        "tokenizer": tokenizer,
        "unet": _unet(geometry.unet, device, dtype),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    }
    if len(geometry.text_widths) == 2:
        second = _text_encoder(tokenizer, geometry.text_widths[1], projected=True)
        pipe = StableDiffusionXLPipeline(
            **parts, text_encoder_2=second, tokenizer_2=tokenizer, add_watermarker=False
        )
    else:
        pipe = StableDiffusionPipeline(
            **parts,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


def generate(pipe: Any, name: str, *, prompt: str = PROMPT, steps: int = 1) -> torch.Tensor:
    """The latents of one seeded call with guidance: (1, 4, h, w)."""
    pixels = GEOMETRIES[name].pixels
    latents: torch.Tensor = pipe(
        prompt,
        height=pixels,
        width=pixels,
        num_inference_steps=steps,
        guidance_scale=7.5,
        output_type="latent",
        generator=torch.Generator().manual_seed(7),
    ).images
    return latents


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE as CLIP's: `WORDS` are one token each, all others single characters."""
    alphabet = [_BYTES[byte] for byte in range(256)]
    vocabulary = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = word[0]
        for right in [*word[1:-1], word[-1] + "</w>"] if len(word) > 1 else []:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            if left not in vocabulary:
                vocabulary.append(left)
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary += [start, end]
    settings = {
        "model_max_length": WINDOW,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }
    # Through files, since the constructors of transformers 4 and 5 agree on nothing else.
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "vocab.json": json.dumps({token: i for i, token in enumerate(vocabulary)}),
            "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
            "tokenizer_config.json": json.dumps({**settings, "tokenizer_class": "CLIPTokenizer"}),
            "special_tokens_map.json": json.dumps({k: v for k, v in settings.items() if "_t" in k}),
        }
        for file, text in files.items():
            (Path(folder) / file).write_text(text, encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder)


def _byte_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE writes for each byte (GPT-2, `bytes_to_unicode`)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {b: chr(256 + i) for i, b in enumerate(others)}


_BYTES = _byte_letters()


def _text_encoder(tokenizer: CLIPTokenizer, width: int, *, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _vae(levels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def _unet(config: Mapping[str, Any], device: str, dtype: torch.dtype) -> UNet2DConditionModel:
    # Made without storage and filled once: torch's own initialisation would take a minute for
    # 860 million weights that are never looked at.
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    unet = unet.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        for module in unet.modules():
            for name, weight in module.named_parameters(recurse=False):
                if name == "bias":
                    weight.zero_()
                elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                    weight.fill_(1)
                else:
                    # Uniform of variance 1 / fan-in: activations keep their size, none overflows.
                    bound = math.sqrt(3 / weight[0].numel())
                    weight.uniform_(-bound, bound)
    return unet
