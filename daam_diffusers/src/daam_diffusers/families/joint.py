"""Rows of the table for image transformers whose layers attend over text and pixels at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

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
    remembered,
)

_DOUBLE = r"transformer_blocks\.\d+\.attn"
_SINGLE = r"single_transformer_blocks\.\d+\.attn"
_T5 = (Text(encoders=(Encoder("text_encoder_2", "tokenizer_2", "prompt_2"),)),)
_TEMPLATE = (Text(encoders=(Encoder(has_template=True),)),)
_QWEN = (Text(encoders=(Encoder(drop="prompt_template_encode_start_idx", has_template=True),)),)
_SEPARATE = "separate calls, the prompt first"
_EMBEDDED = "embedded: one call; true guidance in separate calls, the prompt first"


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
    grid: Grid = remembered(call["img_ids"], _read_ids)
    return grid


def _with_references(call: Call, grid: Grid, lengths: Sequence[int]) -> Segments:
    """Text, the image, and the tokens of reference images after it."""
    own = cells(grid)
    rest = call["hidden_states"].shape[1] - own
    return (("text", lengths[0]), ("pixels", own), ("reference", rest))


def _read_last(positions: torch.Tensor) -> Grid:
    _, row, column = positions[-1].tolist()
    return 1, int(row) + 1, int(column) + 1


def _positions(call: Call) -> Grid:
    grid: Grid = remembered(call["position_ids"], _read_last)
    return grid


def _img_shapes(call: Call) -> Grid:
    config: Mapping[str, Any] = call.denoiser.config  # type: ignore[assignment]
    if config.get("use_layer3d_rope"):
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


def _nucleus_context(call: Call, lengths: Sequence[int]) -> Segments:
    return (("image", call["hidden_states"].shape[1]), ("text", lengths[0]))


def _pipelines(name: str, kinds: str) -> tuple[str, ...]:
    return tuple(f"{name}{kind}Pipeline" for kind in kinds.split(" "))


_flux_like = functools.partial(
    Family, layers={_DOUBLE: "joint", _SINGLE: "joint"}, grid=_ids, sequence=_with_references
)

FAMILIES = (
    _flux_like(
        denoiser="FluxTransformer2DModel",
        name="Flux.1 dev, schnell, Kontext, Fill, Control",
        pipelines=_pipelines(
            "Flux",
            " Img2Img Inpaint Kontext KontextInpaint Fill Control ControlImg2Img ControlInpaint"
            " ControlNet ControlNetImg2Img ControlNetInpaint",
        ),
        text=_T5,
        guidance=_EMBEDDED,
        notes="Words are those of T5; CLIP gives one vector for the whole prompt.",
    ),
    _flux_like(
        denoiser="Flux2Transformer2DModel",
        name="Flux.2 dev, Klein",
        pipelines=_pipelines("Flux2", " Klein KleinInpaint"),
        text=_TEMPLATE,
        guidance="embedded: one call; Klein in separate calls, the prompt first",
        notes="Klein's variant with a cache of reference images is refused if there are some.",
    ),
    Family(
        denoiser="SD3Transformer2DModel",
        name="Stable Diffusion 3, 3.5",
        pipelines=_pipelines(
            "StableDiffusion3", " Img2Img Inpaint ControlNet ControlNetInpainting PAG PAGImg2Img"
        ),
        layers={_DOUBLE: "joint"},
        sequence=pixels_first,
        text=(
            Text(
                encoders=(
                    Encoder(),
                    Encoder("text_encoder_2", "tokenizer_2", "prompt_2"),
                    Encoder("text_encoder_3", "tokenizer_3", "prompt_3", after="text_encoder"),
                )
            ),
        ),
        skips=("skip_layers",),
        notes="Both CLIPs share columns, T5 has its own. Calls that skip layers do not count.",
    ),
    _flux_like(
        denoiser="ChromaTransformer2DModel",
        name="Chroma",
        pipelines=_pipelines("Chroma", " Img2Img Inpaint"),
        guidance=_SEPARATE,
    ),
    Family(
        denoiser="AuraFlowTransformer2DModel",
        name="AuraFlow",
        pipelines=("AuraFlowPipeline",),
        layers={r"joint_transformer_blocks\.\d+\.attn": "joint", _SINGLE: "joint"},
        sequence=_after_registers,
        notes="Eight registers stand before the text.",
    ),
    Family(
        denoiser="QwenImageTransformer2DModel",
        name="Qwen-Image, Qwen-Image-Edit",
        pipelines=_pipelines(
            "QwenImage", " Img2Img Inpaint ControlNet ControlNetInpaint Edit EditPlus EditInpaint"
        ),
        layers={_DOUBLE: "joint"},
        grid=_img_shapes,
        sequence=_with_references,
        text=_QWEN,
        guidance=_SEPARATE,
        notes="Qwen-Image-Layered is refused: it draws several pictures in one sequence.",
    ),
    Family(
        denoiser="HiDreamImageTransformer2DModel",
        name="HiDream",
        pipelines=("HiDreamImagePipeline",),
        layers={r"(double|single)_stream_blocks\.\d+\.block\.attn1": "joint"},
        sequence=_hidream,
        text=(
            Text(
                "encoder_hidden_states_t5", (Encoder("text_encoder_3", "tokenizer_3", "prompt_3"),)
            ),
        ),
        notes="Words are those of T5; Llama's two columns a token are left out.",
    ),
    _flux_like(
        denoiser="LongCatImageTransformer2DModel",
        name="LongCat-Image",
        pipelines=("LongCatImagePipeline", "LongCatImageEditPipeline"),
        text=(Text(encoders=(Encoder(suffix=5),)),),
        guidance=_SEPARATE,
        notes="Words are those of the prompt as LongCat rewrites it, if it does.",
    ),
    _flux_like(
        denoiser="OvisImageTransformer2DModel",
        name="Ovis-Image",
        pipelines=("OvisImagePipeline",),
        text=(Text(encoders=(Encoder(drop="user_prompt_begin_id", has_template=True),)),),
        guidance=_SEPARATE,
    ),
    _flux_like(denoiser="BriaTransformer2DModel", name="Bria 3.2", pipelines=("BriaPipeline",)),
    _flux_like(
        denoiser="BriaFiboTransformer2DModel",
        name="Bria FIBO",
        pipelines=("BriaFiboPipeline", "BriaFiboEditPipeline"),
    ),
    Family(
        denoiser="PRXTransformer2DModel",
        name="PRX",
        pipelines=("PRXPipeline",),
        layers={r"blocks\.\d+\.attention": "added"},
    ),
    Family(
        denoiser="NucleusMoEImageTransformer2DModel",
        name="Nucleus-Image",
        pipelines=("NucleusMoEImagePipeline",),
        layers={_DOUBLE: "cross"},
        grid=_img_shapes,
        context=_nucleus_context,
        text=(Text(encoders=(Encoder(tokenizer="processor", has_template=True),)),),
        guidance=_SEPARATE,
    ),
    Family(
        denoiser="Krea2Transformer2DModel",
        name="Krea 2",
        pipelines=("Krea2Pipeline",),
        layers={_DOUBLE: "joint"},
        grid=_positions,
        text=_QWEN,
        guidance=_SEPARATE,
        notes="Tokens are mixed before the first layer that is looked at.",
    ),
)
