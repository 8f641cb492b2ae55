"""Rows of the table for transformers that draw videos."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from daam_diffusers.errors import TraceError
from daam_diffusers.families.table import (
    SEPARATE,
    Call,
    Encoder,
    Family,
    Grid,
    Segments,
    Text,
    cells,
    pixels_first,
    read_lengths,
    remembered,
)

_ATTN1 = r"transformer_blocks\.\d+\.attn1"
_ATTN2 = r"transformer_blocks\.\d+\.attn2"
_WAN = r"blocks\.\d+\.attn2"
_WAN_WINDOW = 512  # WanAttnProcessor splits image and text embeddings there, whatever they are


def _wan_context(call: Call, lengths: Sequence[int]) -> Segments:
    """Of image and text embeddings in one sequence the last 512 are taken for text."""
    images = call.arguments.get("encoder_hidden_states_image")
    rest = 0 if images is None else min(images.shape[1], _WAN_WINDOW - lengths[0])
    return (("image", max(0, rest)), ("text", lengths[0]))


def _read_coordinates(coordinates: torch.Tensor) -> Grid:
    times, rows, columns = coordinates[0]
    height, width = len(rows.unique()), len(columns.unique())
    starts: list[float] = times[:: height * width].tolist()
    frames = 1  # counted from the end: frames given as conditions come first, at any time
    while frames < len(starts) and starts[-frames - 1] < starts[-frames]:
        frames += 1
    return frames, height, width


def _ltx(call: Call) -> Grid:
    if call.arguments.get("num_frames") is None:
        return remembered(call["video_coords"], _read_coordinates)
    return int(call["num_frames"]), int(call["height"]), int(call["width"])


def _kandinsky(call: Call) -> Grid:
    if (call.arguments.get("sparse_params") or {}).get("to_fractal"):
        raise TraceError(
            "this Kandinsky 5 attends sparsely (attention_type 'nabla'), with its cells in another "
            "order; the models of 5 seconds can be traced."
        )
    frames, height, width = call["visual_rope_pos"]
    return len(frames), len(height), len(width)


def _frames_before_channels(call: Call) -> Grid:
    _, frames, _, height, width = call["hidden_states"].shape
    size, time = call.config("patch_size"), call.config("patch_size_t") or 1
    return frames // time, height // size, width // size


def _valid_text_last(call: Call, grid: Grid, lengths: Sequence[int]) -> list[Segments]:
    """Pixels, then those of each sample's text embeddings that are no padding."""
    valid = remembered(call["encoder_attention_mask"], read_lengths)
    return [(("pixels", cells(grid)), ("text", text)) for text in valid]


def _valid_text_first_of_rest(call: Call, grid: Grid, lengths: Sequence[int]) -> list[Segments]:
    """Pixels, what is valid of image, quoted text and text, then all that is not."""
    image = call["image_embeds"].shape[1]
    own = image if remembered(call["image_embeds"], _any) else 0
    quoted = remembered(call["encoder_attention_mask_2"], read_lengths)
    valid = remembered(call["encoder_attention_mask"], read_lengths)
    rest = image + call["encoder_hidden_states_2"].shape[1] + lengths[0]
    return [
        (
            ("pixels", cells(grid)),
            ("image", own),
            ("quoted", quotation),
            ("text", text),
            ("padding", rest - own - quotation - text),
        )
        for quotation, text in zip(quoted, valid, strict=True)
    ]


def _any(tensor: torch.Tensor) -> bool:
    return bool(tensor.any())


FAMILIES = (
    Family(
        denoiser="WanTransformer3DModel",
        name="Wan 2.1, 2.2",
        pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
        layers={_WAN: "cross"},
        context=_wan_context,
        guidance=SEPARATE,
        notes="Wan 2.2 has two transformers, one for the first steps; both are traced.",
    ),
    Family(
        denoiser="WanVACETransformer3DModel",
        name="Wan VACE",
        pipelines=("WanVACEPipeline",),
        layers={rf"(vace_)?{_WAN}": "cross"},
        guidance=SEPARATE,
        notes="Reference images cannot be traced: they are frames in front of the video's.",
    ),
    Family(
        denoiser="SkyReelsV2Transformer3DModel",
        name="SkyReels V2",
        pipelines=("SkyReelsV2Pipeline",),
        layers={_WAN: "cross"},
        context=_wan_context,
        guidance=SEPARATE,
    ),
    Family(
        denoiser="LTXVideoTransformer3DModel",
        name="LTX-Video",
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
        layers={_ATTN2: "cross"},
        grid=_ltx,
        before=lambda call, grid: call["hidden_states"].shape[1] - cells(grid),  # conditions
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
        sequence=pixels_first,
        guidance="embedded: one call; true guidance in separate calls, the prompt first",
        notes="Words are Llama's; the refiner of its tokens mixes them before the first layer.",
    ),
    Family(
        denoiser="HunyuanVideo15Transformer3DModel",
        name="HunyuanVideo 1.5",
        pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
        layers={r"transformer_blocks\.\d+\.attn": "joint"},
        sequence=_valid_text_first_of_rest,
        guidance=SEPARATE,
        notes="Words are Qwen's, mixed by a refiner; ByT5's columns of quoted text are left out.",
    ),
    Family(
        denoiser="MochiTransformer3DModel",
        name="Mochi",
        pipelines=("MochiPipeline",),
        layers={_ATTN1: "joint"},
        sequence=_valid_text_last,
        notes="Each sample attends apart, to its own text without padding.",
    ),
    Family(
        denoiser="CosmosTransformer3DModel",
        name="Cosmos 1, Cosmos Predict 2",
        pipelines=("CosmosTextToWorldPipeline", "Cosmos2TextToImagePipeline"),
        layers={_ATTN2: "cross"},
        guidance=SEPARATE,
    ),
    Family(
        denoiser="SanaVideoTransformer3DModel",
        name="Sana Video",
        pipelines=("SanaVideoPipeline",),
        layers={_ATTN2: "cross"},
        notes="Self-attention is linear and is not looked at.",
    ),
    Family(
        denoiser="Kandinsky5Transformer3DModel",
        name="Kandinsky 5",
        pipelines=("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"),
        layers={r"visual_transformer_blocks\.\d+\.cross_attention": "cross"},
        grid=_kandinsky,
        guidance=SEPARATE,
        notes="Words are Qwen's, mixed by text blocks. Sparse attention is refused.",
    ),
    Family(
        denoiser="LatteTransformer3DModel",
        name="Latte",
        pipelines=("LattePipeline",),
        layers={_ATTN2: "cross"},
        text=(Text(encoders=(Encoder(drop=0),)),),
        notes="Frames lie in the batch. Temporal blocks read no text.",
    ),
    Family(
        denoiser="AllegroTransformer3DModel",
        name="Allegro",
        pipelines=("AllegroPipeline",),
        layers={_ATTN2: "cross"},
    ),
    Family(
        denoiser="EasyAnimateTransformer3DModel",
        name="EasyAnimate",
        pipelines=("EasyAnimatePipeline",),
        layers={_ATTN1: "joint"},
    ),
)
