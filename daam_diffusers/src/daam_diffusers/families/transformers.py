"""Rows of the table for transformers, those that draw images first and then those of videos."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

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
    pixels_first,
    read_lengths,
    remembered,
)

_DOUBLE = r"transformer_blocks\.\d+\.attn"
_SINGLE = r"single_transformer_blocks\.\d+\.attn"
_ATTN1 = r"transformer_blocks\.\d+\.attn1"
_ATTN2 = r"transformer_blocks\.\d+\.attn2"
_WAN = r"blocks\.\d+\.attn2"
_WAN_WINDOW = 512  # WanAttnProcessor splits image and text embeddings there, whatever they are
_SECOND = Encoder("text_encoder_2", "tokenizer_2", "prompt_2")
_THIRD = Encoder("text_encoder_3", "tokenizer_3", "prompt_3", after="text_encoder")
_TEMPLATE = (Text(encoders=(Encoder(has_template=True),)),)
_QWEN = (Text(encoders=(Encoder(drop="prompt_template_encode_start_idx", has_template=True),)),)


def _read_ids(ids: torch.Tensor) -> Grid:
    ids = ids[0] if ids.ndim == 3 else ids
    own = ids[ids[:, 0] == ids[0, 0]]  # reference images have other numbers there
    height, width = (own[-1, 1:3] - own[0, 1:3] + 1).tolist()
    return 1, int(height), int(width)


def _ids(call: Call) -> Grid:
    if call.arguments.get("kv_cache_mode") is not None:
        raise TraceError(
            "FLUX.2 with a cache of its reference images' keys attends in pieces that are not "
            "looked at; trace Flux2KleinPipeline, which has no such cache."
        )
    return remembered(call["img_ids"], _read_ids)


def _with_references(call: Call, grid: Grid, lengths: Sequence[int]) -> Segments:
    """Text, the image, and the tokens of reference images after it."""
    own = cells(grid)
    rest = call["hidden_states"].shape[1] - own
    return (("text", lengths[0]), ("pixels", own), ("reference", rest))


def _read_last(positions: torch.Tensor) -> Grid:
    _, row, column = positions[-1].tolist()
    return 1, int(row) + 1, int(column) + 1


def _img_shapes(call: Call) -> Grid:
    if call.config("use_layer3d_rope"):
        raise TraceError(
            "Qwen-Image-Layered draws several pictures in one sequence, of which each would need "
            "maps of its own: it cannot be traced."
        )
    shapes = call["img_shapes"][0]
    frames, height, width = shapes[0] if isinstance(shapes, list) else shapes
    return int(frames), int(height), int(width)


def _after_registers(call: Call, grid: Grid, lengths: Sequence[int]) -> Segments:
    registers = call.denoiser.register_tokens.shape[1]  # type: ignore[index]
    return (("registers", int(registers)), ("text", lengths[0]), ("pixels", cells(grid)))


def _hidream(call: Call, grid: Grid, lengths: Sequence[int]) -> Segments:
    # Images that are not square are padded to the longest sequence; the picture comes first.
    own, height, width = cells(grid), grid[1], grid[2]
    padded = own if height == width else max(own, int(call.denoiser.max_seq))  # type: ignore[arg-type]
    llama = 2 * call["encoder_hidden_states_llama3"].shape[2]
    return (("pixels", own), ("padding", padded - own), ("text", lengths[0]), ("llama", llama))


def _own_text_first(call: Call, grid: Grid, lengths: Sequence[int]) -> list[Segments]:
    """Each sample's own text, its pixels right after it, padding to the longest."""
    valid = remembered(call["encoder_attention_mask"], read_lengths)
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
            ("text padding", max(texts) - text),
        )
        for text in lengths
    ]


def _wan_context(call: Call, lengths: Sequence[int]) -> Segments:
    """Image and text embeddings in one sequence: the last 512 are taken for text."""
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


_flux_like = functools.partial(
    Family, layers={_DOUBLE: "joint", _SINGLE: "joint"}, grid=_ids, sequence=_with_references
)

FAMILIES = (
    _flux_like("FluxTransformer2DModel", text=(Text(encoders=(_SECOND,)),)),
    _flux_like("Flux2Transformer2DModel", text=_TEMPLATE),
    Family(
        "SD3Transformer2DModel",
        layers={_DOUBLE: "joint"},
        sequence=pixels_first,
        text=(Text(encoders=(Encoder(), _SECOND, _THIRD)),),
        skips=("skip_layers",),
    ),
    _flux_like("ChromaTransformer2DModel"),
    Family(
        "AuraFlowTransformer2DModel",
        layers={r"joint_transformer_blocks\.\d+\.attn": "joint", _SINGLE: "joint"},
        sequence=_after_registers,
    ),
    Family(
        "QwenImageTransformer2DModel",
        layers={_DOUBLE: "joint"},
        grid=_img_shapes,
        sequence=_with_references,
        text=_QWEN,
    ),
    Family(
        "HiDreamImageTransformer2DModel",
        layers={r"(double|single)_stream_blocks\.\d+\.block\.attn1": "joint"},
        sequence=_hidream,
        text=(Text("encoder_hidden_states_t5", (replace(_THIRD, after=None),)),),
    ),
    _flux_like("LongCatImageTransformer2DModel", text=(Text(encoders=(Encoder(suffix=5),)),)),
    _flux_like(
        "OvisImageTransformer2DModel",
        text=(Text(encoders=(Encoder(drop="user_prompt_begin_id", has_template=True),)),),
    ),
    _flux_like("BriaTransformer2DModel"),
    _flux_like("BriaFiboTransformer2DModel"),
    Family("PRXTransformer2DModel", layers={r"blocks\.\d+\.attention": "added"}),
    Family(
        "NucleusMoEImageTransformer2DModel",
        layers={_DOUBLE: "cross"},
        grid=_img_shapes,
        context=lambda call, text: (("image", call["hidden_states"].shape[1]), ("text", text[0])),
        text=(Text(encoders=(Encoder(tokenizer="processor", has_template=True),)),),
    ),
    Family(
        "Krea2Transformer2DModel",
        layers={_DOUBLE: "joint"},
        grid=lambda call: remembered(call["position_ids"], _read_last),
        text=_QWEN,
    ),
    Family("PixArtTransformer2DModel", layers={_ATTN2: "cross", _ATTN1: "self"}),
    Family("SanaTransformer2DModel", layers={_ATTN2: "cross"}),
    Family(
        "Lumina2Transformer2DModel",
        layers={r"layers\.\d+\.attn": "joint"},
        sequence=_own_text_first,
    ),
    Family(
        "ZImageTransformer2DModel",
        layers={r"layers\.\d+\.attention": "joint"},
        grid=_zimage_grid,
        sequence=_padded_pixels_first,
        text=(Text("cap_feats"),),
        latents="x",
        conditional_first=True,
    ),
    Family(
        "HunyuanDiT2DModel",
        layers={r"blocks\.\d+\.attn2": "cross", r"blocks\.\d+\.attn1": "self"},
        text=(
            Text(),
            Text("encoder_hidden_states_t5", (Encoder("text_encoder_2", "tokenizer_2"),)),
        ),
    ),
    Family("CogView3PlusTransformer2DModel", layers={_ATTN1: "joint"}),
    Family("CogView4Transformer2DModel", layers={_ATTN1: "joint"}),
    Family(
        "LuminaNextDiT2DModel",
        layers={r"layers\.\d+\.attn2": "cross", r"layers\.\d+\.attn1": "self"},
        conditional_first=True,
    ),
    Family("WanTransformer3DModel", layers={_WAN: "cross"}, context=_wan_context),
    Family("WanVACETransformer3DModel", layers={rf"(vace_)?{_WAN}": "cross"}),
    Family("SkyReelsV2Transformer3DModel", layers={_WAN: "cross"}, context=_wan_context),
    Family(
        "LTXVideoTransformer3DModel",
        layers={_ATTN2: "cross"},
        grid=_ltx,
        before=lambda call, grid: call["hidden_states"].shape[1] - cells(grid),  # conditions
    ),
    Family("CogVideoXTransformer3DModel", layers={_ATTN1: "joint"}, grid=_frames_before_channels),
    Family(
        "HunyuanVideoTransformer3DModel",
        layers={_DOUBLE: "joint", _SINGLE: "joint"},
        sequence=pixels_first,
    ),
    Family(
        "HunyuanVideo15Transformer3DModel",
        layers={_DOUBLE: "joint"},
        sequence=_valid_text_first_of_rest,
    ),
    Family("MochiTransformer3DModel", layers={_ATTN1: "joint"}, sequence=_valid_text_last),
    Family("CosmosTransformer3DModel", layers={_ATTN2: "cross"}),
    Family("SanaVideoTransformer3DModel", layers={_ATTN2: "cross"}),
    Family(
        "Kandinsky5Transformer3DModel",
        layers={r"visual_transformer_blocks\.\d+\.cross_attention": "cross"},
        grid=_kandinsky,
    ),
    Family(
        "LatteTransformer3DModel",
        layers={_ATTN2: "cross"},
        text=(Text(encoders=(Encoder(drop=0),)),),
    ),
    Family("AllegroTransformer3DModel", layers={_ATTN2: "cross"}),
    Family("EasyAnimateTransformer3DModel", layers={_ATTN1: "joint"}),
)
