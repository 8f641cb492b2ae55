"""Rows of audio, padded, and what a model says of each of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tiny_models import BLANK

from hf_cudagraph_asr.exact import ExactForward

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


def queries(rows: Sequence[torch.Tensor], fill: float = 0.0) -> dict[str, torch.Tensor]:
    """Rows as the feature extractor batches them: right-padded, with a mask over the samples."""
    longest = max(map(len, rows))
    values, lengths = padded(rows, longest)
    mask = torch.arange(longest) < lengths[:, None]
    return {"input_values": values.masked_fill(~mask, fill), "attention_mask": mask.int()}


def alone(model: Any, row: torch.Tensor) -> torch.Tensor:
    """The stock model's logits of one row, whatever stands in the instance's forward."""
    with torch.no_grad():
        logits: torch.Tensor = type(model).forward(model, row[None]).logits[0]
    return logits


def agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal to a share of the largest logit of the row."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def answers(
    logits: torch.Tensor, expected: Sequence[torch.Tensor], tolerance: float = TOLERANCE
) -> None:
    """Each row of a batch has its own logits, and ones that decode to nothing after them."""
    assert logits.shape[:2] == (len(expected), max(map(len, expected)))
    for row, own in zip(logits, expected, strict=True):
        agree(row[: len(own)], own, tolerance)
        assert (row[len(own) :].argmax(-1) == BLANK).all()
