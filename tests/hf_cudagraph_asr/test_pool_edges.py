"""What others do around a pool: modes they are in, calls while it captures, who keeps it."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, audio
from pooled import ROWS, Exclusive, Static, serves, tiny
from tiny_models import plan_for

from hf_cudagraph_asr import enable_cuda_graphs
from hf_cudagraph_asr.backends import EagerBackend, ExportBackend
from hf_cudagraph_asr.dispatch import Reason


@pytest.fixture
def model() -> Any:
    return tiny()


def test_a_pool_made_under_a_callers_modes_does_not_keep_them(model: Any) -> None:
    plan = plan_for(model, (600,), (4,))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        pool = enable_cuda_graphs(model, plan, backend="export")
        pool.calibrate(repeats=1)
    with pool:
        serves(model)
        assert pool.stats().hits == 2
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            pool.rebuild()
        serves(model)
        assert pool.stats().hits == 4


@pytest.mark.parametrize("backend", ["eager", "export"])
def test_outputs_of_inference_mode_are_used_like_the_hosts(model: Any, backend: str) -> None:
    row = ROWS[0][None]
    with enable_cuda_graphs(model, plan_for(model, (600,), (1,)), backend=backend):
        with torch.inference_mode():
            inferred = model(row).logits
        with torch.no_grad():
            plain = model(row).logits
            in_place = model(row).logits.softmax(-1).mul_(2)
        assert inferred.is_inference()
        assert not plain.is_inference()
        assert not plain.requires_grad
        assert torch.equal(plain, inferred)
        assert float(in_place.sum(-1).max()) == pytest.approx(2, abs=1e-5)


def test_who_keeps_a_disabled_pool_does_not_keep_the_model(model: Any) -> None:
    plan = plan_for(model, (600,), (1,))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend="export") as pool:
        model(ROWS[0][None])
    assert not any(isinstance(found, torch.nn.Module) for found in reachable(pool))
    assert (pool.stats().hits, pool.stats().memory) == (1, 0)
    assert pool.explain(600).reason is Reason.CLOSED
    assert pool.plan is plan


def reachable(start: object) -> list[object]:
    """Whatever an object leads to, modules of code and classes apart."""
    seen: dict[int, object] = {}
    waiting = [start]
    while waiting:
        for found in gc.get_referents(waiting.pop()):
            if id(found) in seen or isinstance(found, type) or hasattr(found, "__spec__"):
                continue
            if callable(found) and hasattr(found, "__globals__"):
                continue
            seen[id(found)] = found
            waiting.append(found)
    return list(seen.values())


def test_a_backend_that_captures_nothing_needs_no_plan(model: Any) -> None:
    with enable_cuda_graphs(model, backend=EagerBackend()) as pool:
        serves(model)
        with torch.no_grad():
            assert str(pool.explain([600, 300])) == "the exact forward"
    assert (pool.stats().hits, pool.stats().calls) == (2, 2)


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "frames"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_program_that_returns_too_few_rows_or_frames_answers_nothing(
    model: Any, axis: int, rows: int
) -> None:
    class Cut(Static):
        def capture(self, exact: Any, input_values: Any, lengths: Any) -> Any:
            program = super().capture(exact, input_values, lengths)

            def cut(values: torch.Tensor, own: torch.Tensor) -> Any:
                logits, frames = program(values, own)
                return logits.narrow(axis, 0, logits.size(axis) - 1), frames

            return cut

    values = ROWS[0].expand(rows, -1)
    plan = plan_for(model, (600,), (rows,))
    enabled = enable_cuda_graphs(model, plan, backend=Cut())
    with torch.no_grad(), enabled, pytest.raises(RuntimeError, match="length"):
        model(values)


# A backend that needs the model for itself


class Slow(Exclusive):
    """Captures when it is let, and says when it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def capture(self, exact: Any, input_values: Any, lengths: Any) -> Any:
        self.begun.set()
        assert self.go.wait(60)
        return super().capture(exact, input_values, lengths)


@pytest.mark.parametrize("own", [False, True], ids=["replayed", "hosts"])
def test_calls_wait_while_a_backend_captures_alone(model: Any, own: bool) -> None:
    backend = Slow()
    backend.go.set()
    results: list[Any] = []

    def ask() -> None:
        with torch.no_grad():
            results.append(model(ROWS[0][None], output_hidden_states=own))

    with enable_cuda_graphs(model, plan_for(model, (600,), (1,)), backend=backend) as pool:
        for event in (backend.go, backend.begun):
            event.clear()
        swapping = threading.Thread(target=pool.swap, args=(plan_for(model, (700,), (1,)),))
        swapping.start()
        assert backend.begun.wait(60)
        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(0.1)
        assert not results
        backend.go.set()
        for thread in (swapping, asking):
            thread.join(60)
        agree(results[0].logits[0], alone(model, ROWS[0]))
        assert pool.stats().hits == (not own)


def test_no_call_looks_at_what_stands_for_the_weights_during_a_capture(model: Any) -> None:
    looks: list[Any] = []

    class Traced(torch.Tensor):  # a tracer's tensors are for its own thread
        @classmethod
        def __torch_function__(cls, function: Any, *args: Any, **kwargs: Any) -> Any:
            looks.append(function)
            return super().__torch_function__(function, *args, **kwargs)

    class Tracing(Slow):
        def capture(self, exact: Any, input_values: Any, lengths: Any) -> Any:
            held = model.lm_head._parameters
            weight, held["weight"] = held["weight"], torch.zeros(2, 2).as_subclass(Traced)
            try:
                self.begun.set()
                assert self.go.wait(60)
            finally:
                held["weight"] = weight
            return super().capture(exact, input_values, lengths)

    backend = Tracing()
    backend.go.set()
    with enable_cuda_graphs(model, plan_for(model, (600,), (1,)), backend=backend) as pool:
        for event in (backend.go, backend.begun):
            event.clear()
        calls = (lambda: model(ROWS[0][None]), lambda: pool.call(ROWS[0][None]), pool.stats)
        threads = [
            threading.Thread(target=pool.swap, args=(plan_for(model, (700,), (1,)),)),
            *(threading.Thread(target=call) for call in calls),
            threading.Thread(target=pool.explain, args=(600,)),
        ]
        threads[0].start()
        assert backend.begun.wait(60)
        for thread in threads[1:]:
            thread.start()
        threads[-1].join(0.1)
        backend.go.set()
        for thread in threads:
            thread.join(60)
        assert not looks
        assert pool.stats().calls == 2


def test_a_call_that_comes_during_an_export_waits_and_does_not_disturb_it(model: Any) -> None:
    expected = alone(model, ROWS[0])
    came: list[threading.Thread] = []
    results: list[Any] = []

    def ask() -> None:
        with torch.no_grad():
            results.append(model(ROWS[0][None]).logits[0])

    def come(*_: object) -> None:
        if not came:
            came.append(threading.Thread(target=ask))
            came[0].start()
            came[0].join(0.2)

    with enable_cuda_graphs(model, plan_for(model, (600,), (1,)), backend="export") as pool:
        hook = model.wav2vec2.encoder.layers[0].register_forward_hook(come)
        with pytest.MonkeyPatch.context() as patch:
            # The hook is to fire in the export, not in the warm-up, which calls do not wait for.
            patch.setattr(ExportBackend, "warm", lambda *_: None)
            pool.swap(plan_for(model, (700,), (1,)))
        hook.remove()
        came[0].join(60)
        agree(results[0], expected)
        serves(model)
        assert not pool.stats().misses


def test_a_capture_waits_for_calls_but_not_for_ever(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_cudagraph_asr.pool.PATIENCE", 0.2)
    backend = Exclusive()
    inside, go, swapped = threading.Event(), threading.Event(), threading.Event()

    def stay(*_: object) -> None:
        if threading.current_thread() is staying:
            inside.set()
            assert go.wait(60)

    model.lm_head.register_forward_hook(stay)
    staying = threading.Thread(target=lambda: model(audio(1000)[None]))  # by no replica

    def swap() -> None:
        pool.swap(plan_for(model, (700,), (1,)))
        swapped.set()

    with enable_cuda_graphs(model, plan_for(model, (600,), (1,)), backend=backend) as pool:
        staying.start()
        assert inside.wait(60)
        swapping = threading.Thread(target=swap)
        swapping.start()
        assert not swapped.wait(0.1)
        assert swapped.wait(60)  # one of the calls waited for may itself wait for the swap
        go.set()
        for thread in (staying, swapping):
            thread.join(60)
        serves(model)
