"""A layer's maps: on another grid, spread by self-attention, and how much the layer counts."""

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


def spread(
    maps: torch.Tensor, attention: torch.Tensor, *, power: float, passes: int
) -> torch.Tensor:
    """Replace each cell by the mean of the cells that it attends to, so many times.

    Args:
        maps: (..., h', w'); they come to the attention's grid first, by means of cells if that is
            coarser, bicubically if it is finer.
        attention: (h·w, h, w), where each cell attends to, from 0. Entries are raised to `power`
            and rows divided by their sums, so that a sum over maps stays what it was.
        power: above 1 keeps to the cells that are most alike.
        passes: how often.

    Returns:
        float32, (..., h, w).

    >>> alike = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])  # two cells that hardly attend across
    >>> spread(torch.tensor([[1.0, 0.0]]), alike, power=1, passes=1)
    tensor([[0.9000, 0.1000]])
    >>> spread(torch.tensor([[1.0, 0.0]]), alike, power=2, passes=1)
    tensor([[0.9878, 0.0122]])
    """
    grid = (attention.shape[-2], attention.shape[-1])
    if maps.shape[-2] > grid[0] or maps.shape[-1] > grid[1]:
        flat = maps.reshape(1, -1, *maps.shape[-2:])
        maps = F.adaptive_avg_pool2d(flat, grid).reshape(*maps.shape[:-2], *grid)
    rows = attention.flatten(1)
    rows = (rows / rows.amax(dim=1, keepdim=True)) ** power  # by the maximum: powers underflow
    rows /= rows.sum(dim=1, keepdim=True)
    values = resize(maps, grid).flatten(-2)
    for _ in range(passes):
        values = values @ rows.mT
    return values.reshape(*values.shape[:-1], *grid)


def follow_edges(
    maps: torch.Tensor, image: torch.Tensor, *, radius: int, softness: float = 0.01
) -> torch.Tensor:
    """Guided filter: in each window a map becomes the linear function of color nearest to it.

    He, Sun and Tang, "Guided Image Filtering" (2013), with a color guide.

    Args:
        maps: (..., H, W).
        image: (3, H, W) in [0, 1].
        radius: of the square windows, in pixels.
        softness: variance of color below which a window counts as flat.

    Returns:
        float32, (..., H, W).
    """
    flat, guide = maps.float().reshape(-1, *maps.shape[-2:]), image.float()
    color, mean = _box(guide, radius), _box(flat, radius)  # (3, H, W), (M, H, W)
    spread = _box((guide[:, None] * guide).flatten(0, 1), radius).view(3, *guide.shape)
    spread = spread - color[:, None] * color + softness * torch.eye(3)[..., None, None]
    joint = _box((flat[:, None] * guide).flatten(0, 1), radius).view(-1, *guide.shape)
    joint = joint - mean[:, None] * color  # (M, 3, H, W)
    slope = torch.linalg.solve(spread.permute(2, 3, 0, 1), joint.permute(2, 3, 1, 0))
    slope = slope.permute(3, 2, 0, 1)  # (H, W, 3, M) → (M, 3, H, W)
    rest = mean - (slope * color).sum(dim=1)
    slope = _box(slope.flatten(0, 1), radius).view(slope.shape)
    return ((slope * guide).sum(dim=1) + _box(rest, radius)).reshape(maps.shape)


def _box(maps: torch.Tensor, radius: int) -> torch.Tensor:
    """Means over squares around each pixel, cut at the edges: (M, H, W)."""
    for axis in (-1, -2):  # by running sums, whose cost does not grow with the square
        place = torch.arange(maps.shape[axis])
        end = (place + radius + 1).clamp(max=len(place))
        begin = (place - radius).clamp(min=0)
        sums = F.pad(maps.double().cumsum(axis), (1, 0) if axis == -1 else (0, 0, 1, 0))
        sums = sums.index_select(axis, end) - sums.index_select(axis, begin)
        count = end - begin
        maps = (sums / (count if axis == -1 else count[:, None])).float()
    return maps


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
