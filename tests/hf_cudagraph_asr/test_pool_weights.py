"""Models that no program can serve, and captures that fail: named, and answered all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import accelerate
import pytest
import torch
from padded_rows import alone, audio, queries
from pooled import ROWS, Static, serves, tiny, warnings
from tiny_models import BLANK, plan_for
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from transformers import Wav2Vec2ForCTC

from hf_cudagraph_asr import ExactForward, UnsupportedModel, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Reason


def answered(model: Any, **options: Any) -> str:
    """Enable a model that has no exact forward; it answers by its own, and says why once."""
    single, batch = ROWS[0][None], queries(ROWS)
    with torch.no_grad():
        expected = [type(model).forward(model, single), type(model).forward(model, **batch)]
        options = {"plan": plan_for(model), "backend": Static(), **options}
        with enable_cuda_graphs(model, **options) as pool:
            for _ in range(2):
                assert torch.equal(model(single).logits, expected[0].logits)
                assert torch.equal(model(**batch).logits, expected[1].logits)
            dispatch = pool.explain(600)
            logits, row_by_row = pool.call(single)
            assert torch.equal(logits, expected[0].logits)
            assert dict(pool.stats().misses) == {Reason.UNSUPPORTED: 5}
    for found in (dispatch, row_by_row):
        assert (found.route, found.reason) == ("host", Reason.UNSUPPORTED)
    return dispatch.detail


def test_a_model_of_its_own_class_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Own(Wav2Vec2ForCTC):  # type: ignore[misc]
        """Might compute anything."""

    why = answered(Own(tiny().config).eval())
    assert "expected transformers.Wav2Vec2ForCTC" in why
    assert warnings(caplog) == [f"Own: {Reason.UNSUPPORTED.value}: {why}"]


# Layers and weights that are not plain


class Scaled(torch.nn.Linear):
    """A layer that lets the rows of a batch in on each other, as dynamic quantization does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().max() / 127
        return super().forward((x / scale).round() * scale)


class Wrapped(torch.Tensor):
    """A weight inside of another tensor, as torchao's quantized ones are."""

    inner: torch.Tensor

    def __new__(cls, inner: torch.Tensor) -> Self:
        outer: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, dtype=inner.dtype, device=inner.device
        )
        outer.inner = inner
        return outer

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(cls, lambda outer: outer.inner, (args, kwargs or {}))
        found = func(*args, **kwargs)
        return cls(found) if func is torch.ops.aten.detach.default else found


def quantized(module: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)


def quantized_encoder(model: Any) -> None:
    model.wav2vec2.encoder = quantized(model.wav2vec2.encoder)


def quantized_head(model: Any) -> None:
    (model.lm_head,) = quantized(torch.nn.Sequential(model.lm_head))


def a_layer_of_its_own(model: Any) -> None:
    layer = model.wav2vec2.encoder.layers[0].feed_forward
    old, layer.output_dense = layer.output_dense, Scaled(48, 32).eval()
    layer.output_dense.load_state_dict(old.state_dict())


def a_wrapped_weight(model: Any) -> None:
    layer = model.wav2vec2.encoder.layers[0].attention.k_proj
    layer.weight = torch.nn.Parameter(Wrapped(layer.weight.detach()), requires_grad=False)


NOT_PLAIN: dict[str, tuple[Callable[[Any], None], str]] = {
    "quantized encoder": (
        quantized_encoder,
        "wav2vec2.encoder.layers.0.attention.k_proj is a torch.ao.nn.quantized.dynamic.modules",
    ),
    "quantized head": (quantized_head, "lm_head is a torch.ao.nn.quantized.dynamic.modules"),
    "own layer": (a_layer_of_its_own, "feed_forward.output_dense is a "),
    "wrapped weight": (a_wrapped_weight, "attention.k_proj.weight is a "),
}
quantizes = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor"
)


@quantizes
@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_not_plain_is_named_and_not_called_exact(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, name = NOT_PLAIN[kind]
    model = tiny()
    change(model)
    for options in ({}, {"plan": None, "backend": "auto"}):
        caplog.clear()
        why = answered(model, **options)
        assert name in why
        assert warnings(caplog) == [f"Wav2Vec2ForCTC: {Reason.UNSUPPORTED.value}: {why}"]
    with pytest.raises(UnsupportedModel, match="run the model eagerly"):
        ExactForward(model)


@quantizes
@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_becomes_not_plain_is_noticed_before_the_next_call(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, name = NOT_PLAIN[kind]
    model = tiny()
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Static()) as pool:
        serves(model)
        change(model)
        for _ in range(2):
            assert torch.equal(model(ROWS[0][None]).logits[0], alone(model, ROWS[0]))
        assert name in pool.explain(600).detail
        (said,) = warnings(caplog)
        assert name in said
        pool.rebuild()
        assert pool.explain(600).reason is Reason.UNSUPPORTED
        assert dict(pool.stats().misses) == {Reason.UNSUPPORTED: 2}


# Weights that are elsewhere


@pytest.mark.parametrize("part", ["", "wav2vec2.encoder"], ids=["all", "part"])
def test_an_offloaded_model_is_the_hosts_and_says_why(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    expected = alone(model, ROWS[0])
    accelerate.cpu_offload(model.get_submodule(part), execution_device="cpu")
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Static()) as pool:
        for _ in range(3):
            assert torch.equal(model(ROWS[0][None]).logits[0], expected)
            logits, dispatch = pool.call(ROWS[0][None])
            assert torch.equal(logits[0], expected)
            assert (dispatch.route, dispatch.reason) == ("host", Reason.UNSUPPORTED)
        why = pool.explain(600)
    assert (why.route, why.reason) == ("host", Reason.UNSUPPORTED)
    assert "not in memory (device meta), as after offloading by accelerate" in why.detail
    assert len(warnings(caplog)) == 1  # though accelerate exchanges the weights in each call


def test_a_model_that_is_offloaded_while_enabled_goes_on_answering(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny()
    expected = alone(model, ROWS[0])
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Static()) as pool:
        accelerate.cpu_offload(model, execution_device="cpu")
        for _ in range(3):
            assert torch.equal(model(ROWS[0][None]).logits[0], expected)
        assert pool.explain(600).reason is Reason.UNSUPPORTED
        assert len(warnings(caplog)) == 1
    accelerate.hooks.remove_hook_from_module(model, recurse=True)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_weights_on_several_devices_are_named() -> None:
    model = tiny()
    with FakeTensorMode():  # knows its device, and needs none
        model.lm_head.weight = torch.nn.Parameter(torch.empty(12, 32, device="cuda:1"))
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Static()) as pool:
        why = pool.explain(600)
    assert (why.route, why.reason) == ("host", Reason.UNSUPPORTED)
    assert "its weights lie on cpu, cuda:1: move it to one device" in why.detail


def test_float64_is_the_hosts_and_what_was_before_can_come_back() -> None:
    model = tiny()
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Static()) as pool:
        model.double()
        values = ROWS[0][None].double()
        assert torch.equal(model(values).logits[0], alone(model, values[0]))
        assert "its weights are torch.float64, expected one of" in pool.explain(600).detail
        model.float()
        serves(model)
        assert pool.explain(600).reason is Reason.CHANGED
        pool.rebuild()
        serves(model)
        misses = {Reason.UNSUPPORTED: 1, Reason.CHANGED: 2}
        assert (pool.stats().hits, dict(pool.stats().misses)) == (2, misses)


# Captures that fail


@pytest.mark.parametrize("step", ["warm", "capture"])
@pytest.mark.parametrize("error", [KeyError, ImportError, torch.OutOfMemoryError])
def test_whatever_a_capture_raises_the_model_works(
    step: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Static):
        def warm(self, exact: Any, input_values: Any, lengths: Any) -> None:
            super().warm(exact, input_values, lengths)
            self.fail("warm", input_values)

        def capture(self, exact: Any, input_values: Any, lengths: Any) -> Any:
            self.fail("capture", input_values)
            return super().capture(exact, input_values, lengths)

        def fail(self, here: str, values: torch.Tensor) -> None:
            if here == step and values.shape[1] < 800:  # the second of two
                raise error("no such thing")

    model, backend = tiny(), Failing()
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=backend) as pool:
        assert backend.log[-1][0] == "close"  # nothing is left half made
        serves(model)
        why = pool.explain(900)
        assert (why.route, why.reason) == ("exact", Reason.FAILED)
        assert f"{error.__name__}: " in why.detail
        assert "no such thing" in str(why)
        (said,) = warnings(caplog)
        assert "the capture failed" in said
        assert dict(pool.stats().misses) == {Reason.FAILED: 2}


def test_a_rebuild_that_is_refused_leaves_the_model_working() -> None:
    model = tiny()
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Static()) as pool:
        model.config.pad_token_id = None
        with pytest.raises(ValueError, match="blank of CTC"):
            pool.rebuild()
        with pytest.raises(ValueError, match="nothing is captured that could be measured"):
            pool.calibrate()
        model.config.pad_token_id = BLANK
        serves(model)
        assert pool.explain(300).reason is Reason.CHANGED
        pool.rebuild()
        assert pool.explain(300).route == "bucket"
    with pytest.raises(ValueError, match=r"is disabled: call enable_cuda_graphs"):
        pool.rebuild()


def test_enabled_in_training_mode_it_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    plan = plan_for(model)
    with torch.no_grad(), enable_cuda_graphs(model.train(), plan, backend=Static()) as pool:
        (said,) = warnings(caplog)
        assert "call model.eval()" in said
        assert pool.explain(300).reason is Reason.TRAINING
        model.eval()
        assert "call model.eval()" in str(pool.explain(300))
        pool.rebuild()
        serves(model)
    assert pool.stats().hits == 2


def test_a_hook_that_would_be_passed_over_is_noticed_while_enabled() -> None:
    model = tiny()
    row = audio(300)[None]
    with torch.no_grad(), enable_cuda_graphs(model) as pool:
        model(row)
        hook = model.wav2vec2.encoder.register_forward_hook(lambda _, __, out: out.__class__(
            last_hidden_state=2 * out.last_hidden_state
        ))  # fmt: skip
        assert torch.equal(model(row).logits, type(model).forward(model, row).logits)
        assert pool.explain(300).reason is Reason.UNSUPPORTED
        hook.remove()
        model(row)
        assert pool.explain(300).route == "exact"


def test_weights_of_inference_mode_are_no_traceback() -> None:
    with torch.inference_mode():
        model = tiny()
        pool = enable_cuda_graphs(model, plan_for(model), backend="export")
        assert "load the model outside of it" in pool.explain(300).detail
