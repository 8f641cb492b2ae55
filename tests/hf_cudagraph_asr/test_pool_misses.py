"""What is not replayed is computed all the same, as the host would or exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from padded_rows import alone, answers, as_input, audio, queries
from pooled import ROWS, Static, asked, serves, tiny, warnings
from tiny_models import CASES, plan_for

from hf_cudagraph_asr import BucketPlan, Cost, GraphPool, disable_cuda_graphs, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Reason

ONE = ROWS[2][None]  # (1, 211)


@pytest.fixture
def model() -> Iterator[Any]:
    model = tiny()
    yield model
    disable_cuda_graphs(model)


@pytest.fixture
def pool(model: Any) -> GraphPool:
    """One small bucket, for single rows."""
    return enable_cuda_graphs(model, plan_for(model, (300,), (1,)), backend=Static())


def test_what_asks_for_more_than_logits_is_the_hosts(
    model: Any, pool: GraphPool, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():
        output, reasons = asked(model, pool, ONE, labels=torch.tensor([[1, 2]]))
        assert output.loss is not None
        assert reasons == [Reason.LABELS]
        output, reasons = asked(model, pool, ONE, output_hidden_states=True)
        assert len(output.hidden_states) == 2
        assert reasons == [Reason.OUTPUTS]
        model.config.output_hidden_states = True
        assert asked(model, pool, ONE)[1] == [Reason.OUTPUTS]
        assert asked(model, pool, ONE, output_hidden_states=False)[1] == []
        model.config.output_hidden_states = False
        assert asked(model, pool, ONE, anything=1)[1] == [Reason.ARGUMENTS]
    model.train()
    assert asked(model, pool, ONE)[1] == [Reason.TRAINING]
    assert pool.stats().hits == 1
    assert not warnings(caplog)  # all that was asked for


def test_what_the_encoders_own_configuration_asks_for_is_the_hosts() -> None:
    model = CASES["parakeet"].build()
    with torch.no_grad(), enable_cuda_graphs(model) as pool:
        values = as_input(model, ONE)
        assert asked(model, pool, values)[1] == []
        model.config.encoder_config.output_hidden_states = True
        output, reasons = asked(model, pool, values)
    assert output.hidden_states is not None
    assert reasons == [Reason.OUTPUTS]


def test_too_long_is_exact_all_the_same(model: Any, pool: GraphPool) -> None:
    with torch.no_grad():
        output, reasons = asked(model, pool, **queries([audio(700), *ROWS]))
    assert reasons == [Reason.LONG]
    answers(output.logits, [alone(model, row) for row in (audio(700), *ROWS)])


def test_more_rows_than_planned_run_eagerly_where_that_costs_less(model: Any) -> None:
    plan = plan_for(model, (300,), (1,))
    cheap = BucketPlan(
        plan.lengths,
        plan.traffic,
        geometry=plan.geometry,
        cost=Cost((1, 50), replay=(1.0, 1.0), eager=(0.2, 0.2)),
    )
    rows = [audio(300, 1), audio(150, 2)]
    for given, reason in ((plan, []), (cheap, [Reason.ROWS])):
        with torch.no_grad(), enable_cuda_graphs(model, given, backend=Static()) as pool:
            output, reasons = asked(model, pool, **queries(rows))
            answers(output.logits, [alone(model, row) for row in rows])
            assert reasons == reason
            assert pool.explain([300, 150]).reason is (reason[0] if reason else None)
            assert pool.explain(300).route == "bucket"


def left(mask: torch.Tensor) -> None:
    mask[0, :10] = 0


def hole(mask: torch.Tensor) -> None:
    mask[0, 100:200] = 0


def two(mask: torch.Tensor) -> None:
    mask[0, 0] = 2


@pytest.mark.parametrize("change", [left, hole, two])
def test_masks_of_other_kinds_are_the_hosts(
    model: Any, pool: GraphPool, change: Callable[[torch.Tensor], None]
) -> None:
    mask = torch.ones(1, 211, dtype=torch.long)
    change(mask)
    with torch.no_grad():
        expected = type(model).forward(model, ONE, mask).logits
        output, reasons = asked(model, pool, ONE, attention_mask=mask)
    assert reasons == [Reason.MASK]
    assert torch.equal(output.logits, expected)


# What a caller can mend is said once


def test_gradients_that_are_on_are_said_once_and_explain_knows(
    model: Any, pool: GraphPool, caplog: pytest.LogCaptureFixture
) -> None:
    assert torch.is_grad_enabled()  # the default after from_pretrained
    for _ in range(3):
        output, reasons = asked(model, pool, ONE)
    assert output.logits.requires_grad
    assert reasons == [Reason.GRADIENTS]
    (said,) = warnings(caplog)
    assert "Wav2Vec2ForCTC: its own forward answers" in said
    assert "call it under torch.no_grad() or torch.inference_mode()" in said
    dispatch = pool.explain(211)
    assert (dispatch.route, dispatch.reason) == ("host", Reason.GRADIENTS)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert pool.explain(211).route == "bucket"
            assert asked(model, pool, ONE)[1] == []
    assert len(warnings(caplog)) == 1


def test_gradients_of_nothing_keep_no_call_from_a_program(model: Any, pool: GraphPool) -> None:
    model.requires_grad_(False)
    assert pool.explain(211).route == "bucket"
    output, reasons = asked(model, pool, ONE)
    assert reasons == []
    assert not output.logits.requires_grad
    wanted = ONE.clone().requires_grad_()
    output, reasons = asked(model, pool, wanted)
    assert reasons == [Reason.GRADIENTS]
    output.logits.sum().backward()
    assert wanted.grad is not None


def test_each_pool_says_it_anew(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with enable_cuda_graphs(model):
            model(ONE)
    assert len(warnings(caplog)) == 2


@pytest.mark.parametrize("reason", [Reason.AUTOCAST, Reason.MASK])
def test_other_calls_that_nothing_is_replayed_for_are_said_once(
    model: Any, pool: GraphPool, caplog: pytest.LogCaptureFixture, reason: Reason
) -> None:
    cast = reason is Reason.AUTOCAST
    mask = None if cast else torch.eye(211)[1:2]
    with torch.no_grad():
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                model(ONE, attention_mask=mask)
                assert pool.explain(211).reason is (reason if cast else None)
        (said,) = warnings(caplog)
        assert reason.value in said
        assert dict(pool.stats().misses) == {reason: 2}
        serves(model)


# Several rows without a mask


def test_several_rows_without_a_mask_are_said_once(
    model: Any, pool: GraphPool, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():
        model(ONE)
        model(ONE, attention_mask=torch.ones_like(ONE))
        model(**queries(ROWS))
        assert not warnings(caplog)  # nothing is missing
        for _ in range(3):
            model(torch.cat([ONE, ONE]))
    (said,) = warnings(caplog)
    assert "several rows came without an attention mask" in said
    assert "return_attention_mask=True" in said  # the remedy
    assert "normalizes over the padding" in said  # and what no pool can undo


def test_what_padding_without_a_mask_makes_of_a_row_is_what_the_warning_is_for(
    model: Any, pool: GraphPool
) -> None:
    rows = [ROWS[0], ROWS[2]]
    with torch.no_grad():
        logits = model(queries(rows)["input_values"]).logits
    own = alone(model, rows[1])
    assert logits.shape[1] > len(own)
    assert float((logits[1, : len(own)] - own).abs().max()) > 0.01
