"""Weights that change, models that are not served, captures that fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pooled import (
    BLANK,
    agree,
    audio,
    plan_for,
    stock,
    tiny,
)
from tiny_models import both_backends
from torch.nn.utils.parametrize import remove_parametrizations
from transformers import Wav2Vec2ForCTC

from hf_cudagraph_asr.attach import enable_cuda_graphs
from hf_cudagraph_asr.capture import EagerBackend, Program
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.exact import ExactForward


@pytest.fixture
def model() -> Any:
    return tiny()


def exchange_head(model: Any) -> None:
    model.lm_head = torch.nn.Linear(32, 12)


def assign(model: Any) -> None:
    model.load_state_dict({k: v + 0.01 for k, v in model.state_dict().items()}, assign=True)


def add_weight(model: Any) -> None:
    model.lm_head.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))


CHANGES = {
    "more": add_weight,
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "head": exchange_head,
    "assign": assign,
    "attention": lambda model: model.set_attn_implementation("eager"),
    "parametrisation": lambda model: remove_parametrizations(
        model.wav2vec2.encoder.pos_conv_embed.conv, "weight"
    ),
}


@both_backends
@pytest.mark.parametrize("change", CHANGES)
def test_exchanged_weights_are_noticed_before_the_next_replay(
    backend: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model, (1,)), backend=backend) as pool:
        model(audio(300))
        CHANGES[change](model)
        values = audio(300).to(model.lm_head.weight.dtype)
        for _ in range(2):
            agree(model(values).logits[0], stock(model, values))
        changed = backend == "export"
        assert dict(pool.stats().misses) == ({Reason.CHANGED: 2} if changed else {})
        assert [r.message for r in caplog.records].count(
            f"Wav2Vec2ForCTC: {Reason.CHANGED.value}"
        ) == changed
        assert pool.explain(300).reason is (Reason.CHANGED if changed else None)
        pool.rebuild()
        agree(model(values).logits[0], stock(model, values))
        assert pool.explain(300).reason is None
        assert pool.stats().hits == (2 if changed else 4)


def test_a_rebuild_that_is_refused_leaves_the_model_working() -> None:
    model = tiny()
    with (
        torch.no_grad(),
        enable_cuda_graphs(model, plan_for(model, (1,)), backend="export") as pool,
    ):
        model.config.pad_token_id = None
        with pytest.raises(ValueError, match="blank of CTC"):
            pool.rebuild()
        agree(model(audio(300)).logits[0], stock(model, audio(300)))
        assert pool.explain(300).reason is Reason.CHANGED
        model.config.pad_token_id = BLANK
        pool.rebuild()
        assert pool.explain(300).route == "bucket"


def test_weights_changed_in_place_are_used() -> None:
    model = tiny()
    with (
        torch.no_grad(),
        enable_cuda_graphs(model, plan_for(model, (1,)), backend="export") as pool,
    ):
        model(audio(300))
        model.load_state_dict(tiny(seed=1).state_dict())
        agree(model(audio(300)).logits[0], stock(model, audio(300)))
    assert pool.stats().hits == 2


# Models and captures that do not work


@both_backends
def test_float64_is_the_hosts_and_what_was_before_can_come_back(backend: str) -> None:
    model = tiny()
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model, (1,)), backend=backend) as pool:
        model.double()
        values = audio(300).double()
        assert torch.equal(model(values).logits[0], stock(model, values))
        assert "float64" in pool.explain(300).detail
        model.float()
        agree(model(audio(300)).logits[0], stock(model, audio(300)))
        pool.rebuild()
        agree(model(audio(300)).logits[0], stock(model, audio(300)))
        assert pool.stats().misses[Reason.UNSUPPORTED] == 1
        assert pool.stats().hits == (1 if backend == "export" else 2)


def test_a_model_without_an_exact_forward_stays_itself_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Own(Wav2Vec2ForCTC):
        pass

    model = Own(tiny().config).eval()
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend="export") as pool:
        for _ in range(2):
            assert torch.equal(model(audio(300)).logits[0], stock(model, audio(300)))
        dispatch = pool.explain(300)
    assert dispatch.route == "host"
    assert dispatch.reason is Reason.UNSUPPORTED
    assert "expected transformers.Wav2Vec2ForCTC" in str(dispatch)
    assert dict(pool.stats().misses) == {Reason.UNSUPPORTED: 2}
    assert len(caplog.records) == 1


def test_a_capture_that_fails_leaves_the_model_working(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(EagerBackend):
        captures = True

        def capture(self, exact: ExactForward, values: Any, lengths: Any) -> Program:
            if values.shape[1] < 600:
                raise torch.OutOfMemoryError("no room")
            return exact

    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Failing()) as pool:
        agree(model(audio(300)).logits[0], stock(model, audio(300)))
        assert str(pool.explain(900)).endswith("OutOfMemoryError: no room)")
    assert dict(pool.stats().misses) == {Reason.FAILED: 1}
    assert len(caplog.records) == 1


def test_enabled_in_training_mode_it_says_what_to_do(model: Any) -> None:
    plan = plan_for(model, (1,))
    with torch.no_grad(), enable_cuda_graphs(model.train(), plan, backend="export") as pool:
        assert "call model.eval()" in str(pool.explain(300))
        model.eval()
        pool.rebuild()
        agree(model(audio(300)).logits[0], stock(model, audio(300)))
    assert pool.stats().hits == 1
