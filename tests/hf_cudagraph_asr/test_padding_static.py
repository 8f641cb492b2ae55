"""The exact forward never waits for the device, and is taken as one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from padded_rows import audio, padded
from tiny_models import CASES, asks_the_host, every_case, every_kind
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_cudagraph_asr.exact import ExactForward


class NoHostSync(TorchDispatchMode):
    """Fails on what waits for a GPU, or copies between it and the host."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "item")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in self.FORBIDDEN, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            kinds = [index.dtype for index in args[1] if index is not None]
            assert torch.bool not in kinds, "indexing with a mask looks for its nonzero entries"
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            assert source.device == result.device, f"{name} from {source.device}"
        return result


def test_the_guard_sees_the_stock_forward_wait() -> None:
    model = CASES["wav2vec2-layer"].build()
    with pytest.raises(AssertionError, match=r"waits|nonzero"), torch.no_grad(), NoHostSync():
        model(torch.zeros(1, 600), attention_mask=torch.ones(1, 600, dtype=torch.long))


@every_case
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_host_synchronisation(name: str, attention: str) -> None:
    exact = ExactForward(CASES[name].build())
    exact.model.set_attn_implementation(attention)
    batch, lengths = padded([audio(500, 0), audio(900, 1)], 1000)
    with torch.no_grad(), NoHostSync():
        exact(batch, lengths)


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
        with NoHostSync():
            return torch.func.functional_call(module, held, kwargs=inputs)


@every_case
def test_on_a_gpu_nothing_is_copied_to_or_from_the_host(name: str) -> None:
    if asks_the_host(name):
        pytest.skip("this transformers makes WavLM's positions on the CPU")
    logits, frames = on_a_pretended_gpu(
        ExactForward(CASES[name].build()),
        {"input_values": ((3, 900), torch.float32), "lengths": ((3,), torch.int64)},
    )
    assert logits.device.type == frames.device.type == "cuda"
    assert logits.shape[0] == frames.shape[0] == 3


def test_the_pretended_gpu_sees_the_stock_forward_copy() -> None:
    values = ((3, 900), torch.float32)
    with pytest.raises(AssertionError, match="from cpu"):  # rotary embeddings, made on the host
        on_a_pretended_gpu(CASES["conformer-rotary"].build(), {"input_values": values})
    mask = ((3, 900), torch.int64)
    with pytest.raises((AssertionError, DataDependentOutputException)):  # is there any padding?
        on_a_pretended_gpu(
            CASES["wav2vec2-layer"].build(), {"input_values": values, "attention_mask": mask}
        )


@every_kind
@pytest.mark.parametrize("strict", [False, True])
def test_export_takes_it_as_one_graph(name: str, strict: bool) -> None:
    exact = ExactForward(CASES[name].build())
    example = padded([audio(300, 0), audio(800, 1)], 900)
    other = padded([audio(777, 2), audio(exact.receptive_field, 3)], 900)
    with torch.no_grad():
        program = torch.export.export(exact, example, strict=strict)
        exported = program.module()
        for inputs in (example, other):
            (logits, frames), (expected, own) = exported(*inputs), exact(*inputs)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
            assert torch.equal(frames, own)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in names if "_local_scalar" in name or "nonzero" in name}
