"""Rows of the table for image transformers with cross-attention, or one stream a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from daam_diffusers.errors import TraceError
from daam_diffusers.families.table import (
    Call,
    Encoder,
    Family,
    Grid,
    Segments,
    Text,
    cells,
    read_lengths,
    remembered,
)

_CROSS = r"transformer_blocks\.\d+\.attn2"
_JOINT = r"transformer_blocks\.\d+\.attn1"
_BINNED = (
    "A size between the resolution bins is drawn in the nearest bin and cropped. At two edges maps "
    "then are off by up to 3.4% of the picture (7.2% beyond 2:1), with "
    "use_resolution_binning=False not at all."
)
_SEPARATE = "separate calls, the prompt first"


def _own_text_first(call: Call, grid: Grid, lengths: Sequence[int]) -> list[Segments]:
    """Each sample's own text, its pixels right after it, padding to the longest."""
    valid: list[int] = remembered(call["encoder_attention_mask"], read_lengths)
    own = cells(grid)
    return [(("text", text), ("pixels", own), ("padding", max(valid) - text)) for text in valid]


def _zimage_grid(call: Call) -> Grid:
    image = call["x"][0]
    if not isinstance(image, torch.Tensor):
        raise TraceError(
            "this Z-Image pipeline draws from several images at once, and where its text and "
            "pixels lie is not known; ZImagePipeline can be traced."
        )
    size, time = call.arguments.get("patch_size", 2), call.arguments.get("f_patch_size", 1)
    return image.shape[1] // time, image.shape[2] // size, image.shape[3] // size


def _padded_pixels_first(call: Call, grid: Grid, lengths: Sequence[int]) -> list[Segments]:
    """Pixels, then text, either padded to a multiple of 32; the batch padded to the longest."""
    own = cells(grid)
    texts = [-(-text // 32) * 32 for text in lengths]
    return [
        (
            ("pixels", own),
            ("padding", -own % 32),
            ("text", text),
            ("text padding", padded - text + max(texts) - padded),
        )
        for text, padded in zip(lengths, texts, strict=True)
    ]


FAMILIES = (
    Family(
        denoiser="PixArtTransformer2DModel",
        name="PixArt-α, PixArt-Σ",
        pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline", "PixArtSigmaPAGPipeline"),
        layers={_CROSS: "cross"},
        notes=_BINNED,
    ),
    Family(
        denoiser="SanaTransformer2DModel",
        name="Sana, Sana Sprint",
        pipelines=("SanaPipeline", "SanaSprintPipeline", "SanaPAGPipeline"),
        layers={_CROSS: "cross"},
        notes=_BINNED,
    ),
    Family(
        denoiser="Lumina2Transformer2DModel",
        name="Lumina 2",
        pipelines=("Lumina2Pipeline",),
        layers={r"layers\.\d+\.attn": "joint"},
        sequence=_own_text_first,
        guidance=_SEPARATE,
        notes="Pixels begin right after each sample's own text. Refiners are not looked at.",
    ),
    Family(
        denoiser="ZImageTransformer2DModel",
        name="Z-Image",
        pipelines=("ZImagePipeline",),
        layers={r"layers\.\d+\.attention": "joint"},
        grid=_zimage_grid,
        sequence=_padded_pixels_first,
        text=(Text("cap_feats"),),
        latents="x",
        conditional_first=True,
        guidance="one call with lists, the prompt first",
        notes="Refiners are not looked at.",
    ),
    Family(
        denoiser="HunyuanDiT2DModel",
        name="HunyuanDiT",
        pipelines=("HunyuanDiTPipeline", "HunyuanDiTPAGPipeline"),
        layers={r"blocks\.\d+\.attn2": "cross"},
        text=(
            Text(),
            Text("encoder_hidden_states_t5", (Encoder("text_encoder_2", "tokenizer_2"),)),
        ),
        notes="The columns of CLIP, then those of T5.",
    ),
    Family(
        denoiser="CogView3PlusTransformer2DModel",
        name="CogView3-Plus",
        pipelines=("CogView3PlusPipeline",),
        layers={_JOINT: "joint"},
    ),
    Family(
        denoiser="CogView4Transformer2DModel",
        name="CogView4",
        pipelines=("CogView4Pipeline", "CogView4ControlPipeline"),
        layers={_JOINT: "joint"},
        guidance=_SEPARATE,
    ),
    Family(
        denoiser="LuminaNextDiT2DModel",
        name="Lumina-Next",
        pipelines=("LuminaPipeline",),
        layers={r"layers\.\d+\.attn2": "cross"},
        conditional_first=True,
        guidance="one batch, the prompt first",
    ),
)
