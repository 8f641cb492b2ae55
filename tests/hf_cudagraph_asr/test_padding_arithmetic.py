"""Frames of convolutions, and group norm over a row's own frames, as torch computes them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from padded_rows import TOLERANCE, as_input, audio, cut, each_arithmetic, padded
from tiny_models import CASES, every_kind

from hf_cudagraph_asr.exact import ExactForward, convolve_and_normalize
from hf_cudagraph_asr.geometry import Convolution


@given(
    kernel=st.integers(1, 12), stride=st.integers(1, 6), padding=st.integers(0, 2),
    length=st.integers(1, 60),
)  # fmt: skip
def test_a_convolution_counts_as_torch_does(
    kernel: int, stride: int, padding: int, length: int
) -> None:
    convolution = Convolution(kernel, stride, padding)
    out = convolution.out(length)
    if length + 2 * padding < kernel:
        assert out < 1
        return
    taken = torch.nn.functional.conv1d(
        torch.zeros(1, 1, length), torch.zeros(1, 1, kernel), stride=stride, padding=padding
    )
    assert taken.shape[-1] == out
    assert int(convolution.out(torch.tensor(length))) == out
    needed = convolution.needed(out)
    assert convolution.out(needed) >= out
    assert needed == 1 or convolution.out(needed - 1) < out


@every_kind
def test_counts_made_on_the_host_are_those_of_the_forward(name: str) -> None:
    exact = ExactForward(CASES[name].build())
    field, (few, some, total) = exact.receptive_field, (cut(exact.model, n) for n in (20, 401, 900))
    rows = [torch.zeros(0), *(audio(n, n) for n in (few, field, field + 1, some, total))]
    batch, lengths = padded(rows, total)
    lengths[1] = 2 * total
    counts = [exact.geometry.counts(samples, total) for samples in lengths.tolist()]
    on_host = torch.tensor(counts).mT
    assert torch.equal(on_host, torch.stack(exact.geometry.counts(lengths, total)))
    with torch.no_grad():
        batch = as_input(exact.model, batch)
        for found, expected in zip(exact(batch, on_host), exact(batch, lengths), strict=True):
            assert torch.equal(found, expected)


@each_arithmetic
@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("bias", [False, True])
def test_statistics_of_own_frames_err_hardly_more_than_those_of_all(
    offset: float, bias: bool, arithmetic: str
) -> None:
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv1d(1, 6, 10, 5, bias=bias), torch.nn.GroupNorm(6, 6)
    with torch.no_grad():
        norm.weight.normal_(1, 0.2)
        norm.bias.normal_()
        # Blind to slow waves, of which speech is full; and to everything.
        conv.weight[0, 0] = torch.tensor([1.0, -4, 6, -4, 1, 0, 0, 0, 0, 0])
        conv.weight[1] = 0
        rows = [torch.sin(torch.arange(n) / 40) * 3 + offset for n in (400, 57, 15)]
        rows = [row + 1e-3 * audio(len(row), len(row)) for row in rows]
        batch, lengths = padded(rows, 500)
        frames = Convolution(10, 5).out(lengths)
        own = torch.arange(500) < lengths[:, None]
        found = convolve_and_normalize(batch, own, lengths, frames, conv, norm)
        conv64, norm64 = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()
        for one, row, count in zip(found, rows, frames.tolist(), strict=True):
            truth = norm64(conv64(row.double()[None, None]))[0]
            stock = norm(conv(row[None, None]))[0]
            error = (one[:, :count] - truth).abs().amax(dim=1)  # (C,)
            allowed = 2 * (stock - truth).abs().amax(dim=1) + TOLERANCE * truth.abs().max()
            assert (error <= allowed).all()
