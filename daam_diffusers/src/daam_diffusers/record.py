"""Running sums of attention probabilities while a pipeline runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from daam_diffusers.families import LayerInfo
from daam_diffusers.prompt import Prompt
from daam_diffusers.scores import AttentionCall, text_probabilities

Axis = Literal["step", "layer", "head"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass
class LayerRecord:
    """What one layer attended to: a running sum, or one tensor a step.

    Attributes:
        info: the layer.
        calls: how many of its calls were added.
        total: float32 sum over the calls, (B, [H,] C, N).
        steps: the same a call, if steps are kept; else empty.
    """

    info: LayerInfo
    calls: int = 0
    total: torch.Tensor | None = None
    steps: list[torch.Tensor] = field(default_factory=list)

    def add(self, probabilities: torch.Tensor, *, keep_step: bool) -> None:
        """Add one call's probabilities, (B, [H,] C, N)."""
        self.calls += 1
        if keep_step:
            self.steps.append(probabilities)
        elif self.total is None:
            self.total = probabilities
        else:
            self.total += probabilities

    def mean(self, sample: int) -> torch.Tensor:
        """Mean probability of one sample: float32 on the CPU, (C, [steps,] [heads,] h, w)."""
        if self.steps:
            values = torch.stack([step[sample] for step in self.steps])  # (S, [H,] C, N)
        else:
            assert self.total is not None  # a record exists once a call was added
            values = self.total[sample] / self.calls  # ([H,] C, N)
        values = values.movedim(-2, 0)
        return values.reshape(*values.shape[:-1], *self.info.grid).float().cpu()

    def bytes(self) -> int:
        """Size of what is held."""
        tensors = self.steps or ([] if self.total is None else [self.total])
        return sum(tensor.nbytes for tensor in tensors)


@dataclass
class Branch:
    """One branch of guidance in one run: the rows that carry the prompt, or the negative prompt.

    Attributes:
        prompts: the prompt of each image, or None if only embeddings were given.
        embeds: text embeddings as the pipeline encoded them, (B, K, D); what rows are told by.
        columns: embedding columns that are kept apart.
        layers: the layers seen so far, by path.
        calls: denoiser calls that carried this branch.
        asked: how many calls of each layer should have been seen.
    """

    prompts: tuple[Prompt, ...] | None
    embeds: torch.Tensor
    columns: tuple[int, ...]
    layers: dict[str, LayerRecord] = field(default_factory=dict)
    calls: int = 0
    asked: Counter[str] = field(default_factory=Counter)

    def hidden(self) -> list[str]:
        """Layers that were called more often than their attention was seen."""
        seen = {name: record.calls for name, record in self.layers.items()}
        return [name for name, calls in self.asked.items() if seen.get(name, 0) < calls]

    def rows_in(self, text: torch.Tensor) -> slice | None:
        """Where in a denoiser's batch of text embeddings this branch stands, by value.

        Guidance stacks the branches in one batch in either order, in three parts, or not at all;
        comparing values tells them apart without knowing the pipeline. Two equal branches are
        interchangeable, and the last is taken.
        """
        batch = self.embeds.shape[0]
        if text.shape[1:] != self.embeds.shape[1:]:
            return None
        embeds = self.embeds.to(device=text.device, dtype=text.dtype)
        for start in range(text.shape[0] - batch, -1, -batch):
            if torch.equal(text[start : start + batch], embeds):
                return slice(start, start + batch)
        return None

    def add(
        self,
        info: LayerInfo,
        call: AttentionCall,
        rows: slice,
        keep: Sequence[Axis],
    ) -> None:
        """Add one attention call of one layer."""
        probabilities = text_probabilities(
            call, rows=rows, columns=self.columns, keep_heads="head" in keep
        )
        record = self.layers.setdefault(info.name, LayerRecord(info))
        record.add(probabilities, keep_step="step" in keep)

    def bytes(self) -> int:
        """Size of what is held of all layers."""
        return sum(record.bytes() for record in self.layers.values())


@dataclass
class Run:
    """One call of a pipeline.

    Attributes:
        branches: what is recorded, `"prompt"` and, on request, `"negative"`.
        latent: rows and columns of the latents; None before the denoiser's first call.
        calls: calls of the denoiser, whatever they carried.
        infos: every layer that attended to text, by path; None if it is not to be recorded.
        rows: the branches that the denoiser's present call carries, and their rows.
        fault: why no heat map can be made of this run, if so.
    """

    branches: dict[str, Branch]
    latent: tuple[int, int] | None = None
    calls: int = 0
    infos: dict[str, LayerInfo | None] = field(default_factory=dict)
    rows: dict[str, slice] = field(default_factory=dict)
    fault: str | None = None
    _known: list[tuple[torch.Tensor, dict[str, slice]]] = field(default_factory=list)

    def denoise(self, latents: torch.Tensor, text: torch.Tensor) -> None:
        """Take note of a call of the denoiser: its size, and which rows carry which branch."""
        size = (latents.shape[-2], latents.shape[-1])
        self.calls += 1
        if self.latent not in (None, size):
            self.fault = f"the latents changed from {self.latent} to {size} (h, w) within one run"
        self.latent = size
        self.rows = {} if self.fault else self._rows(text)
        for name in self.rows:
            self.branches[name].calls += 1

    def _rows(self, text: torch.Tensor) -> dict[str, slice]:
        # Pipelines pass the same tensor at every step; comparing values once is enough, and the
        # tensors are held so that an identity cannot be taken over by another.
        for known, rows in self._known:
            if known is text:
                return rows
        found = {name: branch.rows_in(text) for name, branch in self.branches.items()}
        rows = {name: where for name, where in found.items() if where is not None}
        self._known = [*self._known[-3:], (text, rows)]
        return rows

    def select(
        self, name: str, make: Callable[[], LayerInfo], choose: Callable[[LayerInfo], bool]
    ) -> LayerInfo | None:
        """The layer's info if it is to be recorded, made and chosen at its first call."""
        if name not in self.infos:
            info = make()
            self.infos[name] = info if choose(info) else None
        return self.infos[name]

    def bytes(self) -> int:
        """Size of all running sums."""
        return sum(branch.bytes() for branch in self.branches.values())
