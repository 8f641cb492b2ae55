"""A layer's maps: how they come to another grid, and how much the layer counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic resize of the last two axes: (..., h, w) → (..., H, W), float32."""
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    scaled = F.interpolate(flat, size, mode="bicubic", align_corners=False)
    return scaled.reshape(*maps.shape[:-2], *size)


def information(attention: torch.Tensor) -> float:
    """Mutual information between token and cell: what knowing the cell says about the token.

    It is 0 for a layer whose tokens all attend alike, however peaked, and grows as they divide
    the cells among themselves.

    Args:
        attention: mean probabilities of at least two tokens, (C, ...).

    Returns:
        In nats, at least 0.

    >>> information(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]))  # = log 2
    0.693...
    >>> information(torch.tensor([[9.0, 1.0], [9.0, 1.0]]))
    0.0
    """
    joint = attention.flatten(1).double()
    joint = joint / joint.sum()
    independent = joint.sum(dim=0, keepdim=True) * joint.sum(dim=1, keepdim=True)
    return max(0.0, float(torch.xlogy(joint, joint / independent).nansum()))
