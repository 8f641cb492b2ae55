"""Backends: what is captured computes what the model does, and what cannot be captured says so."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, audio, padded
from pooled import Static, serves, tiny
from tiny_models import CASES, plan_for
from torch._dynamo.utils import counters

from hf_cudagraph_asr import ExactForward, enable_cuda_graphs
from hf_cudagraph_asr.backends import Backend, EagerBackend, ExportBackend, compiled
from hf_cudagraph_asr.cuda_graphs import CompiledGraphBackend, CudaBackend
from hf_cudagraph_asr.dispatch import Reason

# What torch 2.11's compiler uses of torch itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


def graphs_compiled() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    "kind", [EagerBackend, ExportBackend, CudaBackend, CompiledGraphBackend], ids=lambda k: k.name
)
def test_a_backend_without_programs_holds_nothing_and_can_be_closed(kind: type[Any]) -> None:
    backend: Backend = kind()
    other = backend.replica()
    assert type(other) is kind
    assert other is not backend
    assert (backend.memory(), other.memory()) == (0, 0)
    if kind in (CudaBackend, CompiledGraphBackend):
        with pytest.raises(RuntimeError, match="nothing was captured: warm and capture"):
            backend.in_order()
    for closed in (other, backend, backend):
        closed.close()


@pytest.mark.parametrize("kind", [CudaBackend, CompiledGraphBackend])
def test_a_pool_whose_model_left_the_device_is_eager_and_says_why(kind: type[CudaBackend]) -> None:
    # What a rebuild meets after model.to("cpu"): the backend is given tensors where it has no use.
    model = tiny()
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=kind()) as pool:
        serves(model)
        why = pool.explain(500)
    assert (why.route, why.reason) == ("exact", Reason.FAILED)
    assert "model.to('cuda')" in why.detail


def test_all_memory_that_a_program_may_read_is_held() -> None:
    model = CASES["conformer-relative"].build()
    model.lm_head.table = torch.ones(5000)  # neither parameter nor buffer
    tensors = [*model.parameters(), *model.buffers(), model.lm_head.table]
    read = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}
    with enable_cuda_graphs(model, plan_for(model, (600,), (1,)), backend=Static()):
        for parameter in model.parameters():  # as model.half() does
            parameter.data = parameter.data * 2
        model.lm_head.table = None
        del tensors
        gc.collect()
        # Still taken until the pool looks again: nothing new lies there.
        new = [torch.zeros(nbytes, dtype=torch.uint8) for nbytes in read.values()]
        assert not read.keys() & {tensor.data_ptr() for tensor in new}


# What cannot be captured


def test_a_forward_that_asks_the_host_is_not_captured_and_works_eagerly() -> None:
    model = tiny()
    model.lm_head.register_forward_hook(lambda _, __, output: output if output.max() < 1e9 else 0)
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend="export") as pool:
        serves(model)
        why = pool.explain(500)
    assert (why.route, why.reason) == ("exact", Reason.FAILED)
    assert "data-dependent" in why.detail


# torch.compile


def test_a_missing_compiler_is_named() -> None:
    import torch._inductor.config as inductor

    forward: Any = Doubled()
    with (
        inductor.patch({"cpp.cxx": (None, "/nowhere/g++")}),
        pytest.raises(RuntimeError, match=r"\(1, 150\) does not compile.*/nowhere/g\+\+.*CXX"),
    ):
        compiled(forward, torch.ones(1, 150), torch.tensor([1]))


class Doubled(torch.nn.Module):
    """Takes the place of a forward where only shapes matter."""

    def forward(
        self, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return input_values * 2, lengths + input_values.shape[1]


@pytest.mark.slow
def test_a_compiled_program_gives_the_models_logits_whoever_calls(
    require: Callable[[object, str], None],
) -> None:
    require(shutil.which("g++"), "no g++, which torch.compile calls on a CPU")
    model = tiny()
    rows = [audio(300, 0), audio(211, 1)]
    values, lengths = padded(rows, 300)
    before = graphs_compiled()
    program = compiled(ExactForward(model), values, lengths)
    assert graphs_compiled() == before + 1

    def call(mode: Callable[[], Any]) -> torch.Tensor:
        with mode():
            logits, frames = program(values, lengths)
            for found, count, row in zip(logits, frames.tolist(), rows, strict=True):
                agree(found[:count], alone(model, row))
            return logits.clone()

    modes = (torch.no_grad, torch.inference_mode, torch.enable_grad)
    first = call(torch.no_grad)
    assert all(torch.equal(call(mode), first) for mode in modes)
    with ThreadPoolExecutor(2) as threads:
        assert all(torch.equal(logits, first) for logits in threads.map(call, [torch.no_grad] * 4))
    # The weights are the model's own: values changed in place are used.
    model.load_state_dict(tiny(seed=3).state_dict())
    assert (call(torch.no_grad) - first).abs().max() > 0.1
    assert graphs_compiled() == before + 1, "what was compiled was compiled again"


def test_more_shapes_than_dynamo_keeps_for_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without Inductor, whose compiler would take its time for every shape.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    count = torch._dynamo.config.recompile_limit + 2
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    forward: Any = Doubled()
    programs = [
        compiled(forward, torch.ones(1, total), torch.tensor([1]))
        for total in range(10, 10 + count)
    ]
    before = graphs_compiled()
    for total, program in enumerate(programs, start=10):
        values, lengths = program(torch.full((1, total), 3.0), torch.tensor([4]))
        assert torch.equal(values, torch.full((1, total), 6.0))
        assert lengths.tolist() == [4 + total]
    assert graphs_compiled() == before
