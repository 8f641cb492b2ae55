"""The forward of an instance is replaced, and given back as it was."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import CASES, both_backends, plan_for
from transformers import Wav2Vec2ForCTC

from hf_cudagraph_asr.attach import disable_cuda_graphs, enable_cuda_graphs
from hf_cudagraph_asr.plan import plan_buckets


@pytest.fixture
def model() -> Iterator[Any]:
    model = CASES["wav2vec2-group"].build()
    yield model
    disable_cuda_graphs(model)


def test_forward_is_the_classes_own_again(model: Any) -> None:
    before = dict(vars(model))
    with enable_cuda_graphs(model) as pool:
        assert "forward" in vars(model)
        model(torch.zeros(1, 300))
    assert "forward" not in vars(model)
    assert vars(model) == before
    assert model.forward.__func__ is Wav2Vec2ForCTC.forward
    assert pool.stats().calls == 1


def test_forward_is_restored_after_an_exception(model: Any) -> None:
    with pytest.raises(KeyError), enable_cuda_graphs(model):
        raise KeyError
    assert "forward" not in vars(model)


def test_a_forward_of_the_instances_own_comes_back_as_it_was(model: Any) -> None:
    own = model.forward  # as accelerate's hooks leave one
    model.forward = own
    enable_cuda_graphs(model)
    assert model.forward is not own
    disable_cuda_graphs(model)
    assert vars(model)["forward"] is own
    del model.forward


def test_a_refused_plan_leaves_the_model_alone(model: Any) -> None:
    for backend in ("eager", "export"):
        with pytest.raises(ValueError, match="plan again with plan_buckets"):
            enable_cuda_graphs(model, plan_buckets([1.0], graphs=1), backend=backend)
    with pytest.raises(ValueError, match="pass plan_buckets"):
        enable_cuda_graphs(model, backend="export")
    with pytest.raises(ValueError, match="no backend 'tensorrt'"):
        enable_cuda_graphs(model, backend="tensorrt")
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="blank of CTC"):
        enable_cuda_graphs(model)
    assert "forward" not in vars(model)


def test_enabling_twice_names_the_remedy(model: Any) -> None:
    enable_cuda_graphs(model)
    with pytest.raises(ValueError, match=r"call disable_cuda_graphs\(model\) first"):
        enable_cuda_graphs(model)
    disable_cuda_graphs(model)
    enable_cuda_graphs(model)


def test_disabling_what_is_not_enabled_is_no_error(model: Any) -> None:
    with enable_cuda_graphs(model):
        disable_cuda_graphs(model)
        disable_cuda_graphs(model)
    assert "forward" not in vars(model)


def test_leaving_a_context_keeps_what_replaced_the_forward_within(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with enable_cuda_graphs(model) as pool:
        pooled = model.forward

        def logged(*args: Any, **kwargs: Any) -> Any:
            return pooled(*args, **kwargs)

        model.forward = logged
    assert vars(model)["forward"] is logged
    assert "was replaced while" in caplog.text
    with torch.no_grad():
        assert model(torch.zeros(1, 300)).logits.shape[0] == 1
    assert [reason.name for reason in pool.stats().misses] == ["CLOSED"]
    del model.forward


def test_the_signature_is_the_hosts(model: Any) -> None:
    host = inspect.signature(model.forward)
    with enable_cuda_graphs(model):
        assert inspect.signature(model.forward) == host


def test_hooks_on_the_model_see_its_calls(model: Any) -> None:
    seen: list[tuple[torch.Size, torch.Size]] = []
    model.register_forward_hook(
        lambda _, args, kwargs, output: seen.append(
            (kwargs["input_values"].shape, output.logits.shape)
        ),
        with_kwargs=True,
    )
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend="export"):
        output = model(input_values=torch.zeros(2, 300))
    assert seen == [((2, 300), output.logits.shape)]


@both_backends
def test_an_enabled_model_that_nobody_holds_is_freed(backend: str) -> None:
    model = CASES["wav2vec2-group"].build()
    pool = enable_cuda_graphs(model, plan_for(model, (300,), (1,)), backend=backend)
    with torch.no_grad():
        model(torch.zeros(1, 300))
    weight, held = weakref.ref(model.lm_head.weight), weakref.ref(pool)
    del model, pool
    gc.collect()
    assert weight() is None
    assert held() is None
