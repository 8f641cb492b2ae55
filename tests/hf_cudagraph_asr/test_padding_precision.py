"""In lower precision padding changes logits no more than rounding does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from padded_rows import as_input, audio, cut, deviation, each_arithmetic, padded
from tiny_models import CASES, every_kind

from hf_cudagraph_asr import ExactForward

HALF = 2.5  # of what bfloat16 or float16 themselves err: two runs that round differently


def in_half(model: Any, rows: Sequence[torch.Tensor], total: int) -> tuple[float, float, float]:
    """Largest differences over all rows, as shares of the largest logit.

    Of the exact from the eager run; of the eager run from float32 with the same weights and input;
    and of the stock model's masked run, padded, from its eager run.
    """
    full = copy.deepcopy(model).float()
    batch, lengths = padded(rows, total)
    batch = as_input(model, batch)
    exact = own = stock = scale = 0.0
    with torch.no_grad():
        logits, frames = ExactForward(model)(batch, lengths)
        assert logits.dtype == rows[0].dtype
        assert torch.isfinite(logits).all()
        masked = model(batch, attention_mask=(torch.arange(total) < lengths[:, None]).long()).logits
        for i, row in enumerate(rows):
            alone = model(as_input(model, row[None])).logits[0].float()
            truth = full(as_input(model, row[None]).float()).logits[0]
            count = int(frames[i])
            scale = max(scale, float(truth.abs().max()))
            exact = max(exact, float((logits[i, :count].float() - alone).abs().max()))
            own = max(own, float((alone - truth).abs().max()))
            stock = max(stock, float((masked[i, :count].float() - alone).abs().max()))
    return exact / scale, own / scale, stock / scale


@each_arithmetic
@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_in_half_precision_it_is_within_the_dtypes_own_error(
    name: str, dtype: torch.dtype, arithmetic: str
) -> None:
    model = CASES[name].build().to(dtype)
    lengths = [cut(model, length) for length in (90, 250, 400, 401, 599)]
    rows = [audio(length, seed).to(dtype) for seed, length in enumerate(lengths)]
    exact, own, _ = in_half(model, rows, cut(model, 640))
    assert 0 < own < 0.05
    assert exact <= HALF * own


def test_a_block_without_any_key_reaches_no_frame_of_a_row() -> None:
    """In float16 the lowest number and a score below 0 are −inf."""
    model = CASES["granite-speech-5"].build(context_size=8)
    model.set_attn_implementation("eager")
    for layer in model.encoder.layers:
        layer.self_attn.k_proj.weight.data = -8 * layer.self_attn.q_proj.weight.data
    rows = [audio(length, length).half() for length in (90, 33, 17, 5)]
    assert deviation(model.half(), rows, 90) <= 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_in_half_precision_it_scatters_as_the_stock_mask_does_where_that_is_right(
    dtype: torch.dtype,
) -> None:
    model = CASES["wav2vec2-layer-stable"].build().to(dtype)
    rows = [audio(length, seed).to(dtype) for seed, length in enumerate((90, 250, 400, 401, 599))]
    exact, _, stock = in_half(model, rows, 640)
    assert 0 < stock < 0.05
    assert exact <= HALF * stock


@each_arithmetic
@every_kind
def test_in_double_precision_it_is_as_much_closer(name: str, arithmetic: str) -> None:
    model = CASES[name].build().double()
    lengths = [cut(model, length) for length in (90, 250, 400, 401, 599)]
    rows = [audio(length, seed).double() for seed, length in enumerate(lengths)]
    assert deviation(model, rows, cut(model, 640)) <= 1e-12
