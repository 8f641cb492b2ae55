"""Where text and pixels lie for each class of denoiser.

A family answers four questions about a denoiser: which attention layers read the prompt, which of
its arguments hold the latents and the text embeddings, which grid a layer's queries form, and
which layers the reference averages. `family_of` looks the class up; another family is another
entry in `FAMILIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from daam_diffusers.errors import TraceError


@dataclass(frozen=True)
class LayerInfo:
    """One attention layer that reads the prompt, as seen in a run.

    Attributes:
        name: module path inside the denoiser, e.g. `down_blocks.0.attentions.0...attn2`.
        block: `"down"`, `"mid"` or `"up"`.
        index: position in the order of the forward pass, from 0.
        grid: rows and columns of its cells, (h, w).
        factor: how many latent cells one of its cells is wide: 1, 2, 4, ...
        heads: number of attention heads.
    """

    name: str
    block: str
    index: int
    grid: tuple[int, int]
    factor: int
    heads: int


@dataclass(frozen=True)
class Family:
    """How one class of denoiser is traced.

    Attributes:
        layers: the attention modules that read the prompt, by path, in forward order.
        inputs: from the denoiser's own call, the latents and the text embeddings.
        encoded: from what `encode_prompt` returned, the text embeddings of the prompt and of the
            negative prompt, (B, K, D) each; None for the latter without guidance.
        layer_info: a `LayerInfo` from path, module, index, latent size (h, w) and cell count.
        default_layers: the selection of the reference implementation.
    """

    layers: Callable[[nn.Module], dict[str, Attention]]
    inputs: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[torch.Tensor, torch.Tensor]]
    encoded: Callable[[Any], tuple[torch.Tensor, torch.Tensor | None]]
    layer_info: Callable[[nn.Module, str, Attention, int, tuple[int, int], int], LayerInfo]
    default_layers: Callable[[LayerInfo], bool]


_FORWARD_ORDER = {"down": 0, "mid": 1, "up": 2}


def _unet_block(name: str) -> str:
    return name.split("_block", 1)[0]


def _unet_layers(unet: nn.Module) -> dict[str, Attention]:
    found = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }
    added = [name for name, module in found.items() if module.added_kv_proj_dim is not None]
    if added:
        raise TraceError(
            f"{type(unet).__name__} attends to text and image keys at once in {added[0]} "
            f"({len(added)} such layers); only plain cross-attention is supported."
        )
    # named_modules lists up blocks before the middle block; sorting is stable within a block.
    return dict(sorted(found.items(), key=lambda item: _FORWARD_ORDER.get(_unet_block(item[0]), 3)))


def _unet_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False))
    named.update(kwargs)
    return named["sample"], named["encoder_hidden_states"]


def _unet_layer_info(
    unet: nn.Module, name: str, attn: Attention, index: int, latent: tuple[int, int], cells: int
) -> LayerInfo:
    # A level's size follows from the strided convolutions above it and never from a square root:
    # with padding 1 they round odd sizes up, with padding 0 (and one row added) down.
    rounding = math.ceil if getattr(unet.config, "downsample_padding", 1) else math.floor
    height, width = latent
    factor = 1
    while height * width > cells:
        height, width, factor = rounding(height / 2), rounding(width / 2), factor * 2
    if height * width != cells:
        raise TraceError(
            f"{name} attends from {cells} cells, which is no level of a latent of "
            f"{latent[0]}×{latent[1]}; this denoiser resizes in a way that is not known here."
        )
    return LayerInfo(name, _unet_block(name), index, (height, width), factor, attn.heads)


def _reference_unet_layers(layer: LayerInfo) -> bool:
    # castorini/daam 0.2.0: up and down blocks without the middle block, and nothing at factor 8.
    return layer.block != "mid" and layer.factor != 8


FAMILIES: Mapping[str, Family] = {
    "UNet2DConditionModel": Family(
        layers=_unet_layers,
        inputs=_unet_inputs,
        encoded=itemgetter(0, 1),
        layer_info=_unet_layer_info,
        default_layers=_reference_unet_layers,
    ),
}


def denoiser_of(pipe: Any) -> nn.Module:
    """The pipeline's denoiser, without the wrapper that `torch.compile` puts around a module.

    Raises:
        TraceError: the pipeline has no denoiser of a known kind.
    """
    candidates = (getattr(pipe, name, None) for name in ("unet", "transformer"))
    denoiser = next((module for module in candidates if module is not None), None)
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    if not isinstance(denoiser, nn.Module):
        raise TraceError(
            f"{type(pipe).__name__} has neither `unet` nor `transformer`: nothing to trace."
        )
    return denoiser


def family_of(denoiser: nn.Module) -> Family:
    """The table's entry for a denoiser's class, subclasses included.

    Raises:
        TraceError: no entry; the message names the classes there are.
    """
    for cls in type(denoiser).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise TraceError(
        f"{type(denoiser).__name__} is not supported; supported denoisers: {', '.join(FAMILIES)}."
    )
