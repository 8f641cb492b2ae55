"""Maps of several layers brought to one grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic resize of the last two axes: (..., h, w) → (..., H, W), float32."""
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    scaled = F.interpolate(flat, size, mode="bicubic", align_corners=False)
    return scaled.reshape(*maps.shape[:-2], *size)


def average_layers(maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """The mean of the layers' maps, each brought to `size`: (..., h, w) a layer → (..., H, W).

    Resizing is linear, so the layers of one grid are summed first and resized once.
    """
    by_grid: dict[torch.Size, torch.Tensor] = {}
    for layer in maps:
        grid = layer.shape[-2:]
        by_grid[grid] = by_grid[grid] + layer if grid in by_grid else layer
    return torch.stack([resize(m, size) for m in by_grid.values()]).sum(dim=0) / len(maps)
