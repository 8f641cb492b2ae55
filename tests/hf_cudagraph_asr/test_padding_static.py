"""The exact forward never waits for the device, and is taken as one graph.

`test_cuda_graphs` has what the check refuses.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from padded_rows import as_input, audio, each_arithmetic, padded
from tiny_models import CASES, asks_the_host, each, every_case
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hf_cudagraph_asr import ExactForward
from hf_cudagraph_asr.cuda_graphs import CaptureCheck

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # no package, like this folder

from bench_padding import KERNELS, kernels


def on_a_pretended_gpu(module: torch.nn.Module, shapes: dict[str, Any]) -> Any:
    """Call it on CUDA tensors without values, which need no device; no copy may cross to it.

    A constant made on the host, or a branch on a value, fails as it would in a capture.
    """
    with FakeTensorMode(), torch.no_grad():
        held = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        inputs = {
            name: torch.empty(shape, dtype=dtype, device="cuda")
            for name, (shape, dtype) in shapes.items()
        }
        with CaptureCheck():
            return torch.func.functional_call(module, held, kwargs=inputs)


def check(name: str, attention: str) -> None:
    if asks_the_host(name):
        pytest.skip("this transformers makes WavLM's positions on the CPU")
    model = CASES[name].build()
    model.set_attn_implementation(attention)
    shape = as_input(model, torch.empty(3, 900)).shape
    logits, frames = on_a_pretended_gpu(
        ExactForward(model),
        {"input_values": (shape, torch.float32), "lengths": ((3,), torch.int64)},
    )
    assert logits.device.type == frames.device.type == "cuda"
    assert logits.shape[0] == frames.shape[0] == 3


@every_case
def test_on_a_gpu_it_waits_for_nothing(name: str) -> None:
    check(name, "sdpa")


@each(["wav2vec2-group", "wavlm-group", "sew-squeeze-2", "conformer-relative", "lasr"])
def test_also_with_the_hosts_own_attention(name: str) -> None:
    check(name, "eager")


def test_the_stock_forward_fails_what_is_tested_here() -> None:
    values, mask = ((3, 900), torch.float32), ((3, 900), torch.int64)
    with pytest.raises(RuntimeError, match="copies between"):  # rotary embeddings, of the host
        on_a_pretended_gpu(CASES["conformer-rotary"].build(), {"input_values": values})
    with pytest.raises((RuntimeError, DataDependentOutputException)):  # is there any padding?
        on_a_pretended_gpu(
            CASES["wav2vec2-layer"].build(), {"input_values": values, "attention_mask": mask}
        )


@pytest.mark.parametrize("geometry", KERNELS)
def test_it_launches_no_more_kernels_than_it_is_to(geometry: str) -> None:
    _, exact = kernels(geometry)
    assert exact["attention"] == (12 if geometry == "base" else 24)
    assert exact.total() <= KERNELS[geometry]


@each_arithmetic
def test_export_takes_it_as_one_graph_also_by_its_bytecode(arithmetic: str) -> None:
    """As torch.compile does; pools export without, which `test_host_families` has of each kind."""
    exact = ExactForward(CASES["wav2vec2-group"].build(num_hidden_layers=1))
    example = padded([audio(300, 0), audio(800, 1)], 900)
    other = padded([audio(777, 2), audio(exact.receptive_field, 3)], 900)
    with torch.no_grad():
        program = torch.export.export(exact, example, strict=True)
        exported = program.module()
        for inputs in (example, other):
            (logits, frames), (expected, own) = exported(*inputs), exact(*inputs)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
            assert torch.equal(frames, own)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in names if "_local_scalar" in name or "nonzero" in name}
