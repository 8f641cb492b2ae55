"""Rows of the table for UNets."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from daam_diffusers.families.table import Call, Encoder, Family, LayerInfo, Segments, Text, patches

_TWO_ENCODERS = (Encoder(), Encoder("text_encoder_2", "tokenizer_2", "prompt_2"))


def _context(call: Call, lengths: Sequence[int]) -> Segments:
    """Text; in Kandinsky 2.1 the tokens of an image embedding before it."""
    tokens = getattr(getattr(call.denoiser, "encoder_hid_proj", None), "num_image_text_embeds", 0)
    return (("image", int(tokens)), ("text", lengths[0]))


def _with_image(call: Call, lengths: Sequence[int]) -> Segments:
    """Text, then I2VGen-XL's first frame: 32×32 halved twice, and a few embeddings."""
    return (("text", lengths[0]), ("image", 64 + int(call.config("in_channels"))))


def _halvings(unet: nn.Module, path: str) -> int:
    """Number of times that a UNet halved its latents above a module, read off its blocks."""
    kind, _, rest = path.partition("_block")
    down = [getattr(block, "downsamplers", None) for block in unet.down_blocks]  # type: ignore[union-attr]
    deepest = sum(sampler is not None for sampler in down)
    if kind == "mid":
        return deepest
    number = int(rest.split(".")[1])
    if kind == "down":
        return sum(sampler is not None for sampler in down[:number])
    up = [getattr(block, "upsamplers", None) for block in unet.up_blocks]  # type: ignore[union-attr]
    return deepest - sum(sampler is not None for sampler in up[:number])


def _kandinsky3_halvings(unet: nn.Module, path: str) -> int:
    """Attention comes before a down block's own halving, and after an up block's doubling."""
    number = int(path.split(".")[1])
    return number if path.startswith("down") else len(unet.up_blocks) - 1 - number  # type: ignore[arg-type]


def _reference(layer: LayerInfo) -> bool:
    # castorini/daam 0.2.0: up and down blocks without the middle block, and nothing at factor 8.
    return layer.block != "mid" and layer.factor != 8


_BLOCK = r"(down|mid|up)_block[^.]*(\.\d+)?"
_CROSS = rf"{_BLOCK}\.attentions\.\d+\.transformer_blocks\.\d+\.attn2"
_SELF = _CROSS.replace("attn2", "attn1")
_ADDED = rf"{_BLOCK}\.attentions\.\d+"

_unet = functools.partial(
    Family,
    layers={_CROSS: "cross", _SELF: "self"},
    grid=patches("sample"),
    latents="sample",
    halvings=_halvings,
    default_layers=_reference,
)

FAMILIES = (
    _unet(
        "UNet2DConditionModel",
        layers={_CROSS: "cross", _SELF: "self", _ADDED: "added"},
        context=_context,
        text=(Text(encoders=(*_TWO_ENCODERS, Encoder("bert"))),),
    ),
    _unet("UNetMotionModel", text=(Text(encoders=_TWO_ENCODERS),)),
    _unet("UNet3DConditionModel"),
    _unet("I2VGenXLUNet", context=_with_image),
    _unet(
        "Kandinsky3UNet",
        # The first attention of each block is self-attention, whatever its class says.
        layers={
            r"(down|up)_blocks\.\d+\.attentions\.[1-9]\d*\.attention": "cross",
            r"(down|up)_blocks\.\d+\.attentions\.0\.attention": "self",
        },
        text=(Text(encoders=(Encoder(drop=0),)),),  # padding is cut off after encoding
        halvings=_kandinsky3_halvings,
    ),
)
