"""Frames of convolutions, and group norm over a row's own frames, as torch computes them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from padded_rows import TOLERANCE, audio, padded

from hf_cudagraph_asr.exact import convolve_and_normalize
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


@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("bias", [False, True])
def test_statistics_from_windows_err_hardly_more_than_those_of_the_frames(
    offset: float, bias: bool
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
        found = convolve_and_normalize(batch, frames, conv, norm)
        conv64, norm64 = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()
        for own, row, count in zip(found, rows, frames.tolist(), strict=True):
            truth = norm64(conv64(row.double()[None, None]))[0]
            stock = norm(conv(row[None, None]))[0]
            error = (own[:, :count] - truth).abs().amax(dim=1)  # (C,)
            allowed = 2 * (stock - truth).abs().amax(dim=1) + TOLERANCE * truth.abs().max()
            assert (error <= allowed).all()
