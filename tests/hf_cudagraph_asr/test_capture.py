"""Backends: what is captured computes what the model does, and what cannot be captured says so."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from padded_rows import TOLERANCE, audio, padded
from tiny_models import CASES, plan_for
from torch._dynamo.utils import counters

from hf_cudagraph_asr.attach import enable_cuda_graphs
from hf_cudagraph_asr.capture import Backend, EagerBackend, ExportBackend, Program, backend_for
from hf_cudagraph_asr.capture_thread import CaptureThread
from hf_cudagraph_asr.compiled import CompileBackend, CompiledGraphBackend, compiled
from hf_cudagraph_asr.cuda_graphs import CudaBackend, memory_of
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.exact import ExactForward

# What torch 2.11's compiler uses of torch itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def small() -> Any:
    return CASES["wav2vec2-group"].build(num_hidden_layers=1)


def graphs_compiled() -> int:
    return int(counters["stats"]["unique_graphs"])


def deviation(program: Program, model: Any, values: torch.Tensor, lengths: torch.Tensor) -> float:
    """Largest difference from the model's unpadded runs, as a share of the row's largest logit."""
    worst = 0.0
    with torch.no_grad():
        logits, frames = program(values, lengths)
        for row, count, value, length in zip(logits, frames, values, lengths, strict=True):
            alone = model(value[None, :length]).logits[0]
            assert len(alone) == count
            worst = max(worst, float((row[:count] - alone).abs().max() / alone.abs().max()))
    return worst


# --- by name


@pytest.mark.parametrize(
    ("choice", "device", "kind"),
    [
        ("auto", CPU, EagerBackend),
        ("auto", CUDA, CudaBackend),
        ("eager", CUDA, EagerBackend),
        ("export", CPU, ExportBackend),
        ("cuda", CUDA, CudaBackend),
        ("compile", CPU, CompileBackend),
        ("compile", CUDA, CompiledGraphBackend),
    ],
)
def test_backends_by_name_and_device(choice: str, device: torch.device, kind: type) -> None:
    backend = backend_for(choice, device)
    assert type(backend) is kind
    assert backend_for(backend, CPU) is backend
    assert choice in (backend.name, "auto")
    assert backend.memory() == 0


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no backend 'tensorrt': .*'cuda', 'compile', 'export'"):
        backend_for("tensorrt", CPU)


def test_cuda_for_a_model_on_the_cpu_is_refused_before_anything_is_done() -> None:
    with pytest.raises(ValueError, match=r"model is on cpu.*model\.to\('cuda'\)"):
        backend_for("cuda", CPU)
    model = small()
    with pytest.raises(ValueError, match="model is on cpu"):
        enable_cuda_graphs(model, plan_for(model), backend="cuda")
    assert "forward" not in vars(model)


@pytest.mark.parametrize("kind", [CudaBackend, CompiledGraphBackend])
def test_a_pool_whose_model_left_the_device_is_eager_and_says_why(kind: type[CudaBackend]) -> None:
    # What a rebuild meets after model.to("cpu"): the backend is given tensors where it has no use.
    model = small()
    row = audio(500, 0)[None]
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=kind()) as pool:
        found = model(row).logits
        why = pool.explain(500)
    with torch.no_grad():
        torch.testing.assert_close(found, model(row).logits, rtol=0, atol=1e-5)
    assert why.reason is Reason.FAILED
    assert "model.to('cuda')" in why.detail


def test_a_graph_backend_without_graphs_has_no_turn_and_can_be_closed() -> None:
    backend = CudaBackend()
    other = backend.replica()
    assert type(other) is CudaBackend
    assert other is not backend
    with pytest.raises(RuntimeError, match="nothing was captured"):
        backend.turn()
    backend.close()
    backend.close()


def test_all_memory_that_a_forward_may_read_is_held() -> None:
    model = CASES["conformer-relative"].build()
    model.lm_head.table = torch.ones(5)  # neither parameter nor buffer
    tensors = [*model.parameters(), *model.buffers(), model.lm_head.table]
    read = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}
    held = memory_of(ExactForward(model))
    model.load_state_dict(CASES["conformer-relative"].build(1).state_dict(), assign=True)
    del model.lm_head.table, tensors
    addresses = {storage.data_ptr() for storage in held}
    assert read.keys() <= addresses
    # Still taken: nothing new lies there.
    new = [torch.zeros(nbytes, dtype=torch.uint8).data_ptr() for nbytes in read.values()]
    assert not addresses & set(new)


# --- the thread that captures


def seen() -> dict[str, Any]:
    return {
        "thread": threading.get_ident(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        "cache": torch.is_autocast_cache_enabled(),
    }


def test_all_is_captured_in_one_thread_whoever_asks() -> None:
    thread = CaptureThread()
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: thread.run(seen, CPU)["thread"], range(20)))
    assert len(set(found)) == 1
    assert threading.get_ident() not in found
    alive = {other.ident for other in threading.enumerate()}
    assert found[0] in alive
    thread.close()
    assert found[0] not in {other.ident for other in threading.enumerate()}
    with pytest.raises(RuntimeError, match="shutdown"):
        thread.run(seen, CPU)


def test_the_thread_is_under_its_callers_autocast_without_gradients_or_cache() -> None:
    thread = CaptureThread()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        cast = thread.run(seen, CPU)
        made = thread.run(lambda: torch.ones(2, 2) @ torch.ones(2, 2), CPU)
        assert torch.is_autocast_cache_enabled()
    assert cast["autocast"] is torch.bfloat16
    assert not cast["cache"]
    assert made.dtype is torch.bfloat16
    assert not made.is_inference()
    plain = thread.run(seen, CPU)
    assert not plain["autocast"]
    for state in (cast, plain):
        assert not state["grad"]
        assert not state["inference"]
    assert torch.is_grad_enabled()
    thread.close()


def test_an_error_in_the_thread_is_the_callers() -> None:
    thread = CaptureThread()
    with pytest.raises(ZeroDivisionError):
        thread.run(lambda: 1 / 0, CPU)
    assert thread.run(lambda: 7, CPU) == 7
    thread.close()


# --- what cannot be captured


class Doubled(torch.nn.Module):
    """Takes the place of a forward where only shapes matter."""

    def forward(
        self, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return input_values * 2, lengths + input_values.shape[1]


class Asking(torch.nn.Linear):
    """Asks the host for a value, which no capture can answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.abs().max().item() < 1e9 else x


@pytest.mark.parametrize("backend", ["export", "compile"])
def test_a_forward_that_asks_the_host_is_not_captured_and_works_eagerly(backend: str) -> None:
    model = small()
    plain = model.lm_head
    model.lm_head = Asking(plain.in_features, plain.out_features).eval()
    model.lm_head.load_state_dict(plain.state_dict())
    row = audio(500, 0)[None]
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=backend) as pool:
        found = model(row).logits
        why = pool.explain(500)
    with torch.no_grad():
        torch.testing.assert_close(found, model(row).logits, rtol=0, atol=1e-5)
    assert why.reason is Reason.FAILED
    assert "data-dependent" in why.detail


def test_a_missing_compiler_is_named() -> None:
    import torch._inductor.config as inductor

    forward: Any = Doubled()
    with (
        inductor.patch({"cpp.cxx": (None, "/nowhere/g++")}),
        pytest.raises(RuntimeError, match=r"\(1, 150\) does not compile.*/nowhere/g\+\+.*CXX"),
    ):
        CompileBackend().warm(forward, torch.ones(1, 150), torch.tensor([1]))


# --- torch.compile

SHAPES = ((1, 409), (2, 300))


@pytest.fixture(scope="module")
def warmed(require: Callable[[object, str], None]) -> tuple[Any, dict[Any, Any], CompileBackend]:
    """A model, tensors for each shape, and a backend that has compiled both."""
    require(shutil.which("g++"), "no g++, which torch.compile calls on a CPU")
    model = small()
    exact, backend = ExactForward(model), CompileBackend()
    before = graphs_compiled()
    tensors: dict[Any, Any] = {}
    for rows, total in SHAPES:
        short = [audio(total - 90 * row, row) for row in range(rows)]
        tensors[rows, total] = padded(short, total)
        backend.warm(exact, *tensors[rows, total])
    assert graphs_compiled() - before == len(SHAPES)
    return model, tensors, backend


Warmed = tuple[Any, dict[Any, Any], CompileBackend]


def programs(warmed: Warmed) -> dict[Any, Program]:
    model, tensors, backend = warmed
    exact = ExactForward(model)
    return {shape: backend.capture(exact, *tensors[shape]) for shape in SHAPES}


def test_compiled_programs_give_the_models_logits_whoever_calls(warmed: Warmed) -> None:
    model, tensors, _ = warmed
    before = graphs_compiled()
    found = programs(warmed)
    for shape, program in found.items():
        assert deviation(program, model, *tensors[shape]) <= TOLERANCE

    def call(mode: Callable[[], Any], shape: Any) -> torch.Tensor:
        with mode():
            return found[shape](*tensors[shape])[0].clone()

    modes = (torch.no_grad, torch.inference_mode, torch.enable_grad)
    for shape in SHAPES:
        expected = call(torch.no_grad, shape)
        for mode in modes:
            assert torch.equal(call(mode, shape), expected)
        with ThreadPoolExecutor(4) as threads:
            for logits in threads.map(partial(call, torch.no_grad), [shape] * 8):
                assert torch.equal(logits, expected)
    assert graphs_compiled() == before, "what the warm-up compiled was compiled again"


def test_compiled_programs_compute_with_the_weights_the_model_has(warmed: Warmed) -> None:
    model, tensors, _ = warmed
    shape = SHAPES[0]
    program = programs(warmed)[shape]
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(CASES["wav2vec2-group"].build(3, num_hidden_layers=1).state_dict())
        with torch.no_grad():
            changed = program(*tensors[shape])[0]
        assert deviation(program, model, *tensors[shape]) <= TOLERANCE
    finally:
        model.load_state_dict(kept)
    with torch.no_grad():
        assert (program(*tensors[shape])[0] - changed).abs().max() > 0.1


def test_a_compiled_pool_answers_as_the_model_does(warmed: Warmed) -> None:
    # Of a shape above: what Inductor wrote for it is found in its cache.
    model = warmed[0]
    plan = plan_for(model, samples=(400,), batch_sizes=(1,))
    rows = [audio(length, length)[None] for length in (400, 231, 60)]
    with torch.no_grad():
        expected = [model(row).logits for row in rows]
        with enable_cuda_graphs(model, plan, backend="compile") as pool:
            found = [model(row).logits for row in rows]
            assert pool.stats().hits == len(rows)
            assert pool.stats().capture_seconds > 0
    for logits, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, alone, rtol=0, atol=TOLERANCE * float(alone.abs().max()))


def test_more_shapes_than_dynamo_keeps_for_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without Inductor, whose compiler would take its time for every shape.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    count = 2 * torch._dynamo.config.recompile_limit + 1
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    forward: Any = Doubled()
    programs: list[Program] = []
    for total in range(10, 10 + count):
        program = compiled(forward)
        program(torch.ones(1, total), torch.tensor([1]))
        programs.append(program)
    before = graphs_compiled()
    for total, program in enumerate(programs, start=10):
        values, lengths = program(torch.full((1, total), 3.0), torch.tensor([4]))
        assert torch.equal(values, torch.full((1, total), 6.0))
        assert lengths.tolist() == [4 + total]
    assert graphs_compiled() == before


@pytest.mark.parametrize("kind", [EagerBackend, ExportBackend, CompileBackend, CudaBackend])
def test_a_replica_shares_nothing_that_is_written_to(kind: type[Any]) -> None:
    backend: Backend = kind()
    other = backend.replica()
    assert type(other) is kind
    assert other is not backend
    held, mine = vars(other), vars(backend)
    assert held.keys() == mine.keys()
    constant = (bool, type(None))
    shared = [name for name in held if held[name] is mine[name]]
    assert not [name for name in shared if not isinstance(held[name], constant)]
