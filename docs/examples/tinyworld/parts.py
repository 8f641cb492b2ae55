"""The five parts of tinyworld's pipeline, with random weights, and the folder they are saved to."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import scenes

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"
_START, _END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Sizes:
    """Everything that decides the shape of a weight.

    Attributes:
        vae_channels: channels a level of the autoencoder; two downsamplings, so a factor of 4.
        vae_layers: residual blocks a level of the autoencoder.
        unet_channels: channels at each of the denoiser's resolutions, 16 x 16 first.
        unet_heads: attention heads at each of them.
        transformer_layers, transformer_heads, transformer_head_width: of the other denoiser; all
            its layers attend jointly over words and pixels.
        text_width: width of the text encoder, and so of the cross-attention's keys.
        text_layers: transformer layers of the text encoder; 0 is embedding and norm only.
        tokens: prompt length in tokens, with the start and end token.
    """

    vae_channels: tuple[int, ...] = (24, 32, 48)
    vae_layers: int = 1
    unet_channels: tuple[int, ...] = (64, 128)
    unet_heads: tuple[int, ...] = (2, 4)
    transformer_layers: int = 6
    transformer_heads: int = 4
    transformer_head_width: int = 32
    text_width: int = 96
    text_layers: int = 0
    tokens: int = 20


def build_tokenizer(words: Sequence[str], tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer with one token a word; any other word falls apart into letters.

    Raises:
        ValueError: if the merges of one word would cut another into pieces.
    """
    vocabulary = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    merges: list[tuple[str, str]] = []
    # Longest first: byte-pair encoding applies the earliest merge it can, so a short word's merges
    # ("a" + "n") must not come before those of a longer word that contains them ("orange").
    for word in sorted(words, key=lambda word: (-len(word), word)):
        piece, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for letter in rest:
            if (piece, letter) not in merges:
                merges.append((piece, letter))
            piece += letter
            vocabulary.append(piece)
    entries = dict.fromkeys([*vocabulary, _START, _END])
    tokenizer = CLIPTokenizer(
        vocab={entry: index for index, entry in enumerate(entries)},
        merges=merges,
        model_max_length=tokens,
    )
    torn = [word for word in words if len(tokenizer.tokenize(word)) != 1]
    if torn:
        raise ValueError(f"expected one token a word, but these are torn: {', '.join(torn)}.")
    return tokenizer


def build_text_encoder(tokenizer: CLIPTokenizer, sizes: Sizes) -> CLIPTextModel:
    """A small causal CLIP text encoder for the tokenizer.

    Its position embeddings start as sinusoids of about a trained token's length. From CLIP's own
    start, a tenth of that, they stayed small in a run whose denoiser drew a caption's two nouns at
    each other's place; with sinusoids added it soon no longer did.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.text_width,
            intermediate_size=2 * sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=4,
            max_position_embeddings=sizes.tokens,
            projection_dim=sizes.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        positions = encoder.embeddings.position_embedding.weight
        positions += sinusoids(sizes.tokens, sizes.text_width, norm=0.7)
    return encoder


def sinusoids(positions: int, width: int, norm: float) -> torch.Tensor:
    """(positions, width) float32 of sines and cosines, wavelengths 6 to 60, rows of one norm."""
    frequencies = 2 * math.pi / torch.logspace(math.log10(6), math.log10(60), width // 2)
    angles = torch.arange(positions)[:, None] * frequencies  # (positions, width / 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return waves * (norm / (width // 2) ** 0.5)


def build_vae(sizes: Sizes) -> AutoencoderKL:
    """An autoencoder from (3, 64, 64) images to (4, 16, 16) latents."""
    levels = len(sizes.vae_channels)
    return AutoencoderKL(
        block_out_channels=sizes.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=sizes.vae_layers,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=scenes.SIDE,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # the latents are standardized inside the autoencoder, see train.py
    )


def build_unet(sizes: Sizes) -> UNet2DConditionModel:
    """A denoiser with text cross-attention at every resolution, in its down and up blocks.

    The middle block has none, so whatever a word draws passes through layers that DAAM reads.
    """
    levels = len(sizes.unet_channels)
    return UNet2DConditionModel(
        sample_size=scenes.SIDE // 4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=sizes.unet_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=sizes.text_width,
        attention_head_dim=sizes.unet_heads,  # diffusers reads this as the number of heads
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of training and, as DDIM, of sampling; the denoiser predicts velocity."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # without effect on trailing spacing; pipelines warn at 0
    )


def save_pipeline(
    folder: Path,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
) -> None:
    """Write a StableDiffusionPipeline folder, safetensors only; the parts stay as they are.

    UNet and autoencoder are saved in half precision. The text encoder, small as it is, stays in
    single precision: transformers loads weights as they were saved and diffusers in single
    precision, so that a plain `from_pretrained(folder)` would mix the two.
    """
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet).half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
