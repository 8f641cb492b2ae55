"""Rows of audio, padded, and what a model says of each of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_cudagraph_asr.padding import ExactForward

TOLERANCE = 1e-5  # of the largest logit of the row, in float32


def audio(samples: int, seed: int) -> torch.Tensor:
    """(samples,): a chirp in noise, loud in the middle, of zero mean and unit variance."""
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    time = torch.linspace(0, 1, samples)
    wave = (noise * 0.3 + torch.sin(40 * time + 90 * time**2)) * (0.2 + torch.sin(3.1 * time))
    return (wave - wave.mean()) / wave.std()


def padded(rows: Sequence[torch.Tensor], total: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.stack([torch.nn.functional.pad(row, (0, total - len(row))) for row in rows])
    return batch, torch.tensor([len(row) for row in rows])


def deviation(model: Any, rows: Sequence[torch.Tensor], total: int) -> float:
    """Largest difference from the unpadded runs, over all rows, as a share of the row's largest."""
    with torch.no_grad():
        logits, frames = ExactForward(model)(*padded(rows, total))
        assert torch.isfinite(logits).all()
        worst = 0.0
        for own, count, row in zip(logits, frames.tolist(), rows, strict=True):
            alone = model(row[None]).logits[0]
            assert alone.shape[0] == count
            worst = max(worst, float((own[:count] - alone).abs().max() / alone.abs().max()))
    return worst
