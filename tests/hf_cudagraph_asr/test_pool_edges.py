"""What others do around a pool: modes they are in, wrappers, races, half-precision masks."""

from __future__ import annotations

import functools
import gc
import threading
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, answers, audio, queries
from tiny_models import CASES, plan_for

from hf_cudagraph_asr.attach import disable_cuda_graphs, enable_cuda_graphs
from hf_cudagraph_asr.capture import EagerBackend, Program
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.exact import ExactForward
from hf_cudagraph_asr.gate import Gate


class Direct(EagerBackend):
    """Programs that are the forward itself."""

    captures = True


@pytest.fixture
def model() -> Any:
    return CASES["wav2vec2-layer"].build(num_hidden_layers=1)


def test_a_pool_made_under_autocast_does_not_keep_it(model: Any) -> None:
    row = audio(600, 1)
    plan = plan_for(model, (600,), (1,))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        pool = enable_cuda_graphs(model, plan, backend="export")
        pool.calibrate(repeats=1)
    with pool, torch.no_grad():
        agree(model(row[None]).logits[0], alone(model, row))
        assert pool.stats().hits == 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pool.rebuild()
        agree(model(row[None]).logits[0], alone(model, row))
        assert pool.stats().hits == 2


def test_a_new_plan_keeps_the_batch_sizes_that_were_asked_for(model: Any) -> None:
    plan = plan_for(model, (300, 900), batch_sizes=(1,))
    with (
        torch.no_grad(),
        enable_cuda_graphs(model, plan, backend=Direct(), batch_sizes=(1, 4)) as pool,
    ):
        for i in range(60):
            pool.sketch.add(400 + i % 3)
        proposal = pool.replan(swap=True, minimum_queries=20)
        assert proposal.worthwhile
        assert pool.plan is proposal.plan
        assert pool.batch_sizes == (1, 4)
        rows = [audio(n, n) for n in (400, 380)]
        answers(model(**queries(rows)).logits, [alone(model, row) for row in rows])
        assert [bucket.batch_size for bucket in pool.stats().buckets] == [4]


def test_without_a_plan_auto_is_eager_on_any_device(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    with enable_cuda_graphs(model) as pool:
        assert pool.backend.name == "eager"
    with pytest.raises(ValueError, match="the cuda backend captures the buckets of a plan"):
        enable_cuda_graphs(model, backend="cuda")


def test_who_keeps_a_disabled_pool_does_not_keep_the_model(model: Any) -> None:
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend="export") as pool:
        model(audio(600, 1)[None])
    assert not any(isinstance(found, torch.nn.Module) for found in reachable(pool))
    assert (pool.stats().hits, pool.stats().memory) == (1, 0)
    assert pool.explain(600).reason is Reason.CLOSED


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


def test_a_call_overtaken_by_a_swap_is_replayed_by_the_new_plan(model: Any) -> None:
    row = audio(600, 1)
    expected = alone(model, row)
    held, go = threading.Event(), threading.Event()

    class Slow(Direct):
        def capture(self, exact: ExactForward, values: Any, lengths: Any) -> Program:
            def program(values: Any, lengths: Any) -> Any:
                held.set()
                assert go.wait(60)
                return exact(values, lengths)

            return program

    results: list[torch.Tensor] = []

    def ask() -> None:
        with torch.no_grad():
            results.append(model(row[None]).logits[0])

    with enable_cuda_graphs(model, plan_for(model, (600,)), backend=Slow()) as pool:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert held.wait(60)  # one runs, the others wait for its replica
        swapping = threading.Thread(target=pool.swap, args=(plan_for(model, (900,)),))
        swapping.start()
        go.set()
        for thread in (*threads, swapping):
            thread.join(60)
        assert not pool.stats().misses
        assert pool.stats().hits == 3
    for found in results:
        agree(found, expected)


def test_after_a_rebuild_that_was_refused_nothing_is_there_to_measure(model: Any) -> None:
    with enable_cuda_graphs(model, plan_for(model), backend=Direct()) as pool:
        blank, model.config.pad_token_id = model.config.pad_token_id, None
        with pytest.raises(ValueError, match="blank of CTC"):
            pool.rebuild()
        with pytest.raises(ValueError, match="nothing is captured that could be measured"):
            pool.calibrate()
        model.config.pad_token_id = blank


def test_a_batch_that_the_exact_forward_refuses_is_the_hosts_row_by_row() -> None:
    model = CASES["conformer-relative"].build(max_source_positions=20)
    rows = [audio(1000, 1), audio(700, 2)]
    call = queries(rows)
    expected = [alone(CASES["conformer-relative"].build(), row) for row in rows]
    with torch.no_grad(), enable_cuda_graphs(model) as pool:
        answers(model(**call).logits, expected)  # the first call, before the host makes room
        assert dict(pool.stats().misses) == {Reason.REFUSED: 1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_mask_in_half_precision_counts_right(model: Any, dtype: torch.dtype) -> None:
    rows = [audio(3001, 1), audio(2777, 2)]  # neither can be written in so few bits
    call = queries(rows)
    with torch.no_grad(), enable_cuda_graphs(model) as pool:
        logits = model(call["input_values"], attention_mask=call["attention_mask"].to(dtype)).logits
        answers(logits, [alone(model, row) for row in rows])
        assert not pool.stats().misses


def test_explain_names_the_row_that_is_too_short(model: Any) -> None:
    with enable_cuda_graphs(model, plan_for(model), backend=Direct()) as pool:
        dispatch = pool.explain([300, 5])
    assert (dispatch.reason, dispatch.detail) == (Reason.SHORT, "5 samples")


def test_disabling_a_model_whose_forward_was_wrapped_ends_the_pool_and_says_so(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    row = audio(600, 1)
    pool = enable_cuda_graphs(model, plan_for(model), backend=Direct())
    inner = model.forward

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    model.forward = wrapper
    with pytest.raises(ValueError, match="are enabled on this Wav2Vec2ForCTC already"):
        enable_cuda_graphs(model)
    disable_cuda_graphs(model)
    assert "was wrapped while CUDA graphs were enabled" in caplog.text
    assert pool.closed
    with torch.no_grad():
        agree(model(row[None]).logits[0], alone(model, row))
    assert pool.stats().hits == 0


@pytest.mark.parametrize("error", [KeyError, ImportError, torch.OutOfMemoryError])
def test_whatever_a_capture_raises_the_model_works(model: Any, error: type[Exception]) -> None:
    class Failing(Direct):
        def capture(self, exact: ExactForward, values: Any, lengths: Any) -> Program:
            raise error("no such thing")

    row = audio(600, 1)
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Failing()) as pool:
        agree(model(row[None]).logits[0], alone(model, row))
        assert error.__name__ in pool.explain(600).detail


# The gate


def test_the_gate_waits_for_calls_inside_and_holds_back_others() -> None:
    gate, log = Gate(), []
    gate.enter()

    def shut() -> None:
        with gate.shut():
            log.append("alone")

    def call() -> None:
        gate.enter()
        log.append("call")
        gate.leave()

    shutting = threading.Thread(target=shut)
    shutting.start()
    while not gate._shut:
        pass
    calling = threading.Thread(target=call)
    calling.start()
    calling.join(0.05)
    assert not log
    gate.leave()
    shutting.join(10)
    calling.join(10)
    assert log == ["alone", "call"]


def test_the_gate_is_patient_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_cudagraph_asr.gate.PATIENCE", 0.02)
    gate = Gate()
    gate.enter()
    with gate.shut():
        pass
    gate.enter()  # open again
