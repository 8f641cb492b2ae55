"""Rows of audio, padded, and what a model says of each of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import BLANK

from hf_cudagraph_asr import ExactForward, Geometry
from hf_cudagraph_asr.geometry import Frames

TOLERANCE = 1e-5  # of the largest logit of the row, in float32

each_arithmetic = pytest.mark.parametrize("arithmetic", ["cpu", "gpu"], indirect=True)
FIRST, HOP = 30, 20  # samples of a tiny model's first frame, and to the next one
ROUGH = 0.1  # in bfloat16 and float16; differences that matter are far larger


def audio(samples: int, seed: int = 0) -> torch.Tensor:
    """(samples,): a chirp in noise, loud in the middle, of zero mean and unit variance."""
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    time = torch.linspace(0, 1, samples)
    wave = (noise * 0.3 + torch.sin(40 * time + 90 * time**2)) * (0.2 + torch.sin(3.1 * time))
    return (wave - wave.mean()) / wave.std() if samples > 1 else wave


def cut(model: Any, samples: int) -> int:
    """The length of an input with as many frames as a tiny model of waveforms makes of `samples`.

    A tiny model that takes features makes 3 to 20 times as many of as many positions, and costs as
    many times the time.
    """
    geometry = Geometry.of(model)
    if not Frames(model.config).features:
        return samples
    if samples < FIRST:
        return samples * geometry.receptive_field // FIRST
    frames, rest = divmod(samples - FIRST, HOP)
    return geometry.receptive_field + frames * geometry.hop + rest * geometry.hop // HOP


def padded(rows: Sequence[torch.Tensor], total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, total) and (B,): rows with zeros after them, and their samples."""
    batch = torch.stack([torch.nn.functional.pad(row, (0, total - len(row))) for row in rows])
    return batch, torch.tensor([len(row) for row in rows])


def as_input(model: Any, values: torch.Tensor) -> torch.Tensor:
    """Samples as the model takes them: themselves, or (…, F) features of each of them alone."""
    if model.main_input_name == "input_values":
        return values
    (features,) = Frames(model.config).features
    each = torch.arange(1.0, features + 1).to(values)
    return torch.sin(values[..., None] * each + each**2)


def queries(
    rows: Sequence[torch.Tensor], fill: float = 0.0, model: Any = None
) -> dict[str, torch.Tensor]:
    """Rows as the feature extractor batches them: right-padded, with a mask over the samples."""
    longest = max(map(len, rows))
    values, lengths = padded(rows, longest)
    mask = torch.arange(longest) < lengths[:, None]
    values = values.masked_fill(~mask, fill)
    if model is not None:
        return {model.main_input_name: as_input(model, values), "attention_mask": mask.int()}
    return {"input_values": values, "attention_mask": mask.int()}


def alone(model: Any, row: torch.Tensor) -> torch.Tensor:
    """(T, V): the stock model's logits of one row, whatever stands in the instance's forward."""
    with torch.no_grad():
        logits: torch.Tensor = type(model).forward(model, as_input(model, row[None])).logits[0]
    return logits


def deviation(model: Any, rows: Sequence[torch.Tensor], *totals: int) -> float:
    """Largest difference from the unpadded runs, over all rows, as a share of the row's largest.

    The rows are a batch padded to each of these totals.
    """
    expected = [alone(model, row) for row in rows]
    exact, worst = ExactForward(model), 0.0
    for total in totals:
        with torch.no_grad():
            values, lengths = padded(rows, total)
            logits, frames = exact(as_input(model, values), lengths)
        assert torch.isfinite(logits).all()
        assert frames.tolist() == [len(own) for own in expected]
        for found, own in zip(logits, expected, strict=True):
            worst = max(worst, float((found[: len(own)] - own).abs().max() / own.abs().max()))
    return worst


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to a share of the largest logit of the row."""
    assert found.shape == expected.shape
    if expected.numel():
        tolerance = TOLERANCE if found.dtype == torch.float32 else ROUGH
        assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def answers(logits: torch.Tensor, expected: Sequence[torch.Tensor]) -> None:
    """Each row of a batch has its own logits, and after them a certain blank."""
    assert logits.shape[:2] == (len(expected), max(map(len, expected)))
    for row, own in zip(logits, expected, strict=True):
        agree(row[: len(own)], own)
        assert (row[len(own) :].float().softmax(-1)[:, BLANK] == 1).all()
