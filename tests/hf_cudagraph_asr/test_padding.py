"""Padding changes no logits: against the model's own eager, unpadded runs at batch 1."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from padded_rows import TOLERANCE, as_input, audio, cut, deviation, each_arithmetic, padded
from tiny_models import CASES, STABLE, WAVLM, Case, every_case, every_kind, randomized

from hf_cudagraph_asr.exact import ExactForward
from hf_cudagraph_asr.geometry import Frames, Geometry


def boundaries(model: Any, frames: Sequence[int]) -> list[int]:
    """Lengths around those where a row gets one frame more: the first, and a sample less."""
    geometry = Frames(model.config)
    lengths = {geometry.receptive_field, geometry.receptive_field + 1}
    for count in frames:
        first = Geometry.of(model).shortest(count)
        lengths |= {first - 1, first, first + 1}
    return sorted(length for length in lengths if length >= geometry.receptive_field)


@each_arithmetic
@every_case
def test_every_row_of_every_bucket_has_the_logits_of_its_unpadded_run(
    name: str, arithmetic: str
) -> None:
    model = CASES[name].build()
    lengths = boundaries(model, (2, 3, 4, 9, 30))
    rows = [audio(length, seed) for seed, length in enumerate(lengths)]
    total = Geometry.of(model).longest(44)
    assert deviation(model, rows, max(lengths), max(lengths) + 1, total) <= TOLERANCE


@each_arithmetic
@every_kind
def test_also_with_the_hosts_own_attention(name: str, arithmetic: str) -> None:
    model = CASES[name].build()
    model.set_attn_implementation("eager")
    rows = [audio(length, length) for length in boundaries(model, (9,))]
    assert deviation(model, rows, cut(model, 251)) <= TOLERANCE


@every_kind
@settings(max_examples=5)
@given(
    lengths=st.lists(st.integers(50, 700), min_size=1, max_size=4),
    extra=st.integers(0, 300),
    seed=st.integers(0, 99),
)
def test_any_lengths_in_any_bucket(name: str, lengths: list[int], extra: int, seed: int) -> None:
    model = CASES[name].build(seed)
    rows = [audio(cut(model, length), seed + row) for row, length in enumerate(lengths)]
    assert deviation(model, rows, cut(model, max(lengths) + extra)) <= TOLERANCE


@every_kind
def test_a_batch_of_one_at_full_length_is_the_model_itself(name: str) -> None:
    model = CASES[name].build()
    length = cut(model, 700)
    assert deviation(model, [audio(length, 0)], length) <= TOLERANCE


def test_the_stock_forward_fails_what_is_tested_here() -> None:
    model = CASES["wav2vec2-group"].build()
    row = audio(500, 0)
    batch, _ = padded([row], 1000)
    mask = (torch.arange(1000) < 500).long()[None]
    with torch.no_grad():
        alone, masked = model(row[None]).logits[0], model(batch, attention_mask=mask).logits[0]
    assert (masked[: len(alone)] - alone).abs().max() / alone.abs().max() > 0.05


@WAVLM
@pytest.mark.parametrize("stem", ["Wav2Vec2", "Hubert", "WavLM"])
def test_the_published_seven_layers(stem: str) -> None:
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    model = Case(
        stem,
        {
            "conv_kernel": kernels,
            "conv_stride": strides,
            "conv_dim": (16,) * 7,
            "num_feat_extract_layers": 7,
            "num_conv_pos_embeddings": 128,
        },
    ).build()
    exact = ExactForward(model)
    assert exact.receptive_field == 400
    lengths = [400, 719, 720, 721, 5_199, 5_200, 6_479, 6_480]
    rows = [audio(length, seed) for seed, length in enumerate(lengths)]
    assert deviation(model, rows, 320 * 25 + 399) <= TOLERANCE


@pytest.mark.parametrize(
    ("own", "arithmetic"),
    [({}, "cpu"), ({}, "gpu"), (STABLE, "gpu")],
    indirect=["arithmetic"],
    ids=["base-cpu", "base-gpu", "large-gpu"],
)
def test_two_layers_of_the_published_widths(own: dict[str, Any], arithmetic: str) -> None:
    width = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    config = transformers.Wav2Vec2Config(
        **{**(width if own else {}), **own, "num_hidden_layers": 2}
    )
    torch.manual_seed(0)
    model = randomized(transformers.Wav2Vec2ForCTC(config)).eval()
    assert deviation(model, [audio(4_123, 0), audio(2_600, 1)], 5_000) <= TOLERANCE


@each_arithmetic
@every_kind
def test_nothing_beyond_a_rows_length_is_used(name: str, arithmetic: str) -> None:
    exact = ExactForward(CASES[name].build())
    some, more, total = (cut(exact.model, length) for length in (401, 800, 900))
    rows = [audio(length, 0) for length in (exact.receptive_field, some, more)]
    quiet, lengths = padded(rows, total)
    loud = quiet.clone()
    for row, length in zip(loud, lengths, strict=True):
        row[length:] = torch.nan
        row[length] = 1e30
    with torch.no_grad():
        expected, _ = exact(as_input(exact.model, quiet), lengths)
        logits, frames = exact(as_input(exact.model, loud), lengths)
    assert torch.equal(logits, expected)
    assert frames.tolist() == exact.geometry.emitted(lengths).tolist()


@each_arithmetic
@every_kind
def test_a_broken_row_breaks_no_other(name: str, arithmetic: str) -> None:
    exact = ExactForward(CASES[name].build())
    early, late, some, more, total = (cut(exact.model, n) for n in (100, 300, 450, 700, 900))
    batch, lengths = padded([audio(more, 0), audio(more, 1), audio(some, 2)], total)
    broken = batch.clone()
    broken[1, early], broken[1, late] = torch.nan, torch.inf
    with torch.no_grad():
        expected, frames = exact(as_input(exact.model, batch), lengths)
        logits, _ = exact(as_input(exact.model, broken), lengths)
    for row in (0, 2):
        own = slice(int(frames[row]))
        torch.testing.assert_close(logits[row, own], expected[row, own], rtol=0, atol=1e-5)


def test_threads_get_their_own_logits() -> None:
    model = CASES["conformer-rotary"].build()
    exact = ExactForward(model)
    rows = [audio(300 + 17 * seed, seed) for seed in range(24)]

    def error(row: torch.Tensor) -> float:
        with torch.no_grad():
            logits, frames = exact(*padded([row], 750 + len(row) % 3))
            return float((logits[0, : frames[0]] - alone[len(row)]).abs().max())

    with torch.no_grad():
        alone = {len(row): model(row[None]).logits[0] for row in rows}
    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(error, rows)) < 1e-5


@each_arithmetic
@every_kind
def test_a_row_below_the_receptive_field_counts_as_padded_up_to_it(
    name: str, arithmetic: str
) -> None:
    exact = ExactForward(CASES[name].build())
    field_, total = exact.receptive_field, cut(exact.model, 900)
    least = field_ * 2 // 3
    batch, _ = padded([audio(least, 0), torch.zeros(0), audio(total, 2)], total)
    batch = as_input(exact.model, batch)
    dirty = batch.clone()
    dirty[0, least:], dirty[1] = torch.nan, 1e4
    batch[0, least:], batch[1] = 0, 0
    with torch.no_grad():
        logits, frames = exact(dirty, torch.tensor([least, 0, 10_000]))
        up_to, _ = exact(batch, torch.tensor([field_, field_, total]))
    assert torch.isfinite(logits).all()
    assert frames.tolist() == exact.geometry.emitted(torch.tensor([field_, field_, total])).tolist()
    assert torch.equal(logits, up_to)


@each_arithmetic
def test_silence_is_finite(arithmetic: str) -> None:
    exact = ExactForward(CASES["wav2vec2-group"].build())
    with torch.no_grad():
        logits, _ = exact(torch.zeros(2, 600), torch.tensor([600, 100]))
    assert torch.isfinite(logits).all()
