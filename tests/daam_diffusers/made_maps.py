"""Heat maps of numbers made up, for tests that need no pipeline."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from tiny_tokenizer import clip_tokenizer

from daam_diffusers import HeatMaps, LayerInfo
from daam_diffusers.prompt import Prompt, tokenize

LENGTHS = {"step": 3, "head": 2, "frame": 2}


def layer(name: str, index: int, grid: tuple[int, int], **changes: Any) -> LayerInfo:
    values = {"name": name, "block": "up", "index": index, "grid": grid, "factor": 1, "heads": 2}
    known = {field.name for field in fields(LayerInfo)}
    return LayerInfo(**{**values, **{k: v for k, v in changes.items() if k in known}})


def made(
    text: str | list[str] = "a red dog", axes: tuple[str, ...] = (), **changes: Any
) -> HeatMaps:
    """Maps of two layers on an 8 × 12 and a 4 × 6 grid, random, summing to 1 over the columns."""
    windows = 1 if isinstance(text, str) else len(text)
    prompt = changes.pop("prompt", None) or tokenize(text, clip_tokenizer(), 77 * windows)
    assert isinstance(prompt, Prompt)
    own = {token.column for token in prompt.tokens}
    columns = tuple(sorted(own | {*prompt.start, *prompt.end}))
    generator = torch.Generator().manual_seed(0)
    frames = LENGTHS["frame"] if "frame" in axes else 1
    layers = (
        layer("up.0", 0, (8, 12), frames=frames),
        layer("up.1", 1, (4, 6), frames=frames),
    )
    lengths = [LENGTHS[axis] for axis in axes if axis != "layer"]
    probabilities = {}
    for info in layers:
        values = torch.rand(len(columns) + 1, *lengths, *info.grid, generator=generator)
        probabilities[info.name] = values / values.sum(dim=0)
    values: dict[str, Any] = {
        "prompt": prompt,
        "layers": layers,
        "probabilities": probabilities,
        "columns": columns,
        "axes": axes,
        "size": (8, 12),
        "image_size": (32, 48),
        "clamp": "once",
        "provenance": {"model": "made up"},
        "frames": 5 if "frame" in axes else None,
    }
    return HeatMaps(**{**values, **changes})
