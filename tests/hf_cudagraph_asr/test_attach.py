"""The forward of an instance is replaced, and given back as it was."""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, audio
from pooled import Static, tiny
from tiny_models import plan_for
from transformers import Wav2Vec2ForCTC

from hf_cudagraph_asr import disable_cuda_graphs, enable_cuda_graphs, plan_buckets
from hf_cudagraph_asr.dispatch import Reason

ROW = audio(300)[None]


@pytest.fixture
def model() -> Iterator[Any]:
    model = tiny()
    yield model
    disable_cuda_graphs(model)


def test_forward_is_the_classes_own_again(model: Any) -> None:
    before = dict(vars(model))
    with enable_cuda_graphs(model) as pool:
        assert "forward" in vars(model)
        model(ROW)
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


def test_disabling_that_is_interrupted_at_any_line_leaves_no_open_pool_behind(model: Any) -> None:
    line, ended = 0, False
    while not ended:
        line += 1
        pool = enable_cuda_graphs(model, backend="eager")
        left = line

        def interrupting(frame: Any, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code is disable_cuda_graphs.__code__ and event == "line":
                left -= 1
                if not left:
                    raise KeyboardInterrupt
            return interrupting

        sys.settrace(interrupting)
        try:
            disable_cuda_graphs(model)
            ended = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert pool.closed or "forward" in vars(model), line
        disable_cuda_graphs(model)
        assert pool.closed
    assert line > 5


def test_a_backend_that_cannot_be_closed_leaves_the_models_own_forward(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = enable_cuda_graphs(model, backend="eager")

    def fail() -> None:
        raise RuntimeError("from the device")

    monkeypatch.setattr(pool.backend, "close", fail)
    with pytest.raises(RuntimeError, match="from the device"):
        disable_cuda_graphs(model)
    assert pool.closed
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
        assert model(ROW).logits.shape[0] == 1
    assert [*pool.stats().misses] == [Reason.CLOSED]
    del model.forward


def test_disabling_a_model_whose_forward_was_wrapped_ends_the_pool_and_says_so(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = enable_cuda_graphs(model, plan_for(model), backend=Static())
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
        agree(model(ROW).logits[0], alone(model, ROW[0]))
    assert pool.stats().hits == 0


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
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Static()):
        output = model(input_values=ROW)
    assert seen == [((1, 300), output.logits.shape)]


def test_an_enabled_model_without_references_is_freed() -> None:
    model = tiny()
    pool = enable_cuda_graphs(model, plan_for(model, (300,), (1,)), backend="export")
    with torch.no_grad():
        model(ROW)
    assert pool.stats().hits == 1
    weight, held = weakref.ref(model.lm_head.weight), weakref.ref(pool)
    del model, pool
    gc.collect()
    assert weight() is None
    assert held() is None


# What cannot be enabled


def test_a_refused_plan_leaves_the_model_alone(model: Any) -> None:
    for backend in ("eager", "export"):
        with pytest.raises(ValueError, match="plan again with plan_buckets"):
            enable_cuda_graphs(model, plan_buckets([1.0], graphs=1), backend=backend)
    with pytest.raises(ValueError, match=r"the export backend captures.*pass plan_buckets"):
        enable_cuda_graphs(model, backend="export")
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="blank of CTC, is None, expected 0 to 11"):
        enable_cuda_graphs(model)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("org/model", r"'org/model' is no model.*AutoModelForCTC\.from_pretrained"),
        (None, "a NoneType is no model"),
        (Wav2Vec2ForCTC, "a type is no model"),
        (torch.nn.Linear(1, 1), "a Linear is no model"),
    ],
    ids=["name", "none", "class", "layer"],
)
def test_what_is_no_model_is_refused_with_the_remedy(given: Any, message: str) -> None:
    for verb in (enable_cuda_graphs, disable_cuda_graphs):
        with pytest.raises(TypeError, match=message):
            verb(given)


def test_a_plan_may_be_given_by_its_file(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan = plan_for(model)
    plan.save(file)
    for given in (file, str(file)):
        with enable_cuda_graphs(model, given) as pool:
            assert pool.plan == plan


def test_what_is_no_plan_is_refused_with_the_remedy(model: Any, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"plan\.json"):
        enable_cuda_graphs(model, str(tmp_path / "plan.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("[1.5, 2.5]")
    with pytest.raises(ValueError, match=r"broken\.json"):
        enable_cuda_graphs(model, broken)
    durations: Any = [1.5, 2.5]
    with pytest.raises(TypeError, match=r"plan is a list, expected.*plan_buckets\(durations"):
        enable_cuda_graphs(model, durations)
    assert "forward" not in vars(model)


# Backends by name


def test_backends_by_name(model: Any) -> None:
    plan = plan_for(model, (300,), (1,))
    for choice, name in (("auto", "eager"), ("eager", "eager"), ("export", "export")):
        with enable_cuda_graphs(model, plan, backend=choice) as pool:
            assert pool.backend.name == name
    with pytest.raises(ValueError, match=r"no backend 'tensorrt': .*'cuda', 'compile', 'export'"):
        enable_cuda_graphs(model, plan, backend="tensorrt")
    assert "forward" not in vars(model)


@pytest.mark.parametrize("choice", ["cuda", "compile"])
def test_graphs_of_a_model_on_the_cpu_are_refused_before_anything_is_done(
    model: Any, choice: str
) -> None:
    with pytest.raises(ValueError, match=rf"the {choice} backend .* on cpu.*model\.to\('cuda'\)"):
        enable_cuda_graphs(model, plan_for(model), backend=choice)
    assert "forward" not in vars(model)


def test_on_a_gpu_auto_is_for_graphs_where_there_is_a_plan(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with enable_cuda_graphs(model) as pool:
        assert pool.backend.name == "eager"
    for choice, name in (("auto", "cuda"), ("cuda", "cuda"), ("compile", "compile")):
        # The weights are not where the model says: so much for the capture.
        with enable_cuda_graphs(model, plan_for(model), backend=choice) as pool:
            assert pool.backend.name == name
    with pytest.raises(ValueError, match="the cuda backend captures the buckets of a plan"):
        enable_cuda_graphs(model, backend="cuda")
