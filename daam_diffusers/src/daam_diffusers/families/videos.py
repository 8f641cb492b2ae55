"""Rows of the table for transformers that draw videos."""

from __future__ import annotations

from collections.abc import Sequence

from daam_diffusers.families.table import (
    Call,
    Family,
    Grid,
    Segments,
    cells,
    patches,
    pixels_first,
    read_lengths,
    remembered,
)

_ATTN1 = r"transformer_blocks\.\d+\.attn1"
_ATTN2 = r"transformer_blocks\.\d+\.attn2"
_SEPARATE = "separate calls, the prompt first"
_WAN_WINDOW = 512  # WanAttnProcessor splits image and text embeddings there, whatever they are


def _wan_context(call: Call, lengths: Sequence[int]) -> Segments:
    """Of image and text embeddings in one sequence the last 512 are taken for text."""
    images = call.arguments.get("encoder_hidden_states_image")
    total = lengths[0] + (0 if images is None else images.shape[1])
    return (("image", min(total, _WAN_WINDOW) - lengths[0]), ("text", lengths[0]))


def _ltx(call: Call) -> Grid:
    return tuple(int(call[name]) for name in ("num_frames", "height", "width"))  # type: ignore[return-value]


def _frames_before_channels(call: Call) -> Grid:
    _, frames, _, height, width = call["hidden_states"].shape
    size, time = call.config("patch_size"), call.config("patch_size_t") or 1
    return frames // time, height // size, width // size


def _valid_text_last(call: Call, grid: Grid, lengths: Sequence[int]) -> list[Segments]:
    """Pixels, then those of each sample's text embeddings that are no padding."""
    valid: list[int] = remembered(call["encoder_attention_mask"], read_lengths)
    return [(("pixels", cells(grid)), ("text", text)) for text in valid]


FAMILIES = (
    Family(
        denoiser="WanTransformer3DModel",
        name="Wan 2.1, 2.2",
        pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
        layers={r"blocks\.\d+\.attn2": "cross"},
        context=_wan_context,
        guidance=_SEPARATE,
        notes="Wan 2.2 has two transformers, one for the first steps; both are traced.",
    ),
    Family(
        denoiser="LTXVideoTransformer3DModel",
        name="LTX-Video",
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline"),
        layers={_ATTN2: "cross"},
        grid=_ltx,
    ),
    Family(
        denoiser="CogVideoXTransformer3DModel",
        name="CogVideoX",
        pipelines=("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"),
        layers={_ATTN1: "joint"},
        grid=_frames_before_channels,
    ),
    Family(
        denoiser="HunyuanVideoTransformer3DModel",
        name="HunyuanVideo",
        pipelines=("HunyuanVideoPipeline",),
        layers={r"(single_)?transformer_blocks\.\d+\.attn": "joint"},
        grid=patches(),
        sequence=pixels_first,
        guidance="embedded: one call; true guidance in separate calls, the prompt first",
        notes="Words are Llama's; the refiner of its tokens mixes them before the first layer.",
    ),
    Family(
        denoiser="MochiTransformer3DModel",
        name="Mochi",
        pipelines=("MochiPipeline",),
        layers={_ATTN1: "joint"},
        sequence=_valid_text_last,
        notes="Each sample attends apart, to its own text without padding.",
    ),
)
