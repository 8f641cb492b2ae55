"""Running sums of attention probabilities while a pipeline runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from daam_diffusers.families import LayerInfo

Axis = Literal["step", "layer", "head"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass
class Sum:
    """A running sum of tensors of one shape."""

    total: torch.Tensor
    calls: int = 1

    def add(self, values: torch.Tensor) -> None:
        """Add one more."""
        self.total += values
        self.calls += 1


@dataclass
class LayerRecord:
    """What one layer attended to: one running sum, or one a step.

    Attributes:
        info: the layer.
        sums: float32 sums over calls, (B, [H,] C, N), by step; under one key if steps are not
            kept apart. A step may be several calls (Heun's method) and is their mean.
    """

    info: LayerInfo
    sums: dict[int, Sum] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """How many calls were added."""
        return sum(one.calls for one in self.sums.values())

    def add(self, probabilities: torch.Tensor, step: int) -> None:
        """Add one call's probabilities, (B, [H,] C, N)."""
        if step in self.sums:
            self.sums[step].add(probabilities)
        else:
            self.sums[step] = Sum(probabilities)

    def mean(self, sample: int, *, steps: bool, frames: bool) -> torch.Tensor:
        """Mean probability of one sample: float32 on the CPU, (C, [S,] [heads,] [f,] h, w)."""
        means = [one.total[sample] / one.calls for one in self.sums.values()]  # ([H,] C, N)
        values = (torch.stack(means) if steps else means[0]).movedim(-2, 0)
        grid = (self.info.frames, *self.info.grid) if frames else self.info.grid
        return values.reshape(*values.shape[:-1], *grid).float().cpu()

    def bytes(self) -> int:
        """Size of what is held."""
        return sum(one.total.nbytes for one in self.sums.values())
