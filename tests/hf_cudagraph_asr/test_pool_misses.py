"""What is not replayed is computed all the same, as the host would or exactly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pooled import (
    BLANK,
    agree,
    asked,
    audio,
    batch,
    stock,
    tiny,
)
from tiny_models import both_backends

from hf_cudagraph_asr.attach import EnabledPool, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan import BucketPlan, Cost, Traffic


@pytest.fixture
def model() -> Any:
    return tiny()


@pytest.fixture
def fresh(model: Any) -> Iterator[EnabledPool]:
    """An export pool over the shared model, one small bucket."""
    geometry = Geometry.of(model)
    plan = BucketPlan([14], Traffic.of([0.01], geometry), geometry=geometry)
    with enable_cuda_graphs(model, plan, backend="export") as pool:
        yield pool


def test_what_asks_for_more_than_logits_is_the_hosts(model: Any, fresh: EnabledPool) -> None:
    values = audio(300)
    with torch.no_grad():
        output, reasons = asked(model, fresh, values, labels=torch.tensor([[1, 2]]))
        assert output.loss is not None
        assert reasons == [Reason.LABELS]
        output, reasons = asked(model, fresh, values, output_hidden_states=True)
        assert len(output.hidden_states) == 2
        assert reasons == [Reason.OUTPUTS]
        model.config.output_hidden_states = True
        try:
            assert asked(model, fresh, values)[1] == [Reason.OUTPUTS]
            assert asked(model, fresh, values, output_hidden_states=False)[1] == []
        finally:
            model.config.output_hidden_states = False
        assert asked(model, fresh, values, anything=1)[1] == [Reason.ARGUMENTS]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert asked(model, fresh, values)[1] == [Reason.AUTOCAST]
    output, reasons = asked(model, fresh, values)
    assert output.logits.requires_grad
    assert reasons == [Reason.GRADIENTS]
    model.train()
    try:
        assert asked(model, fresh, values)[1] == [Reason.TRAINING]
    finally:
        model.eval()
    assert fresh.stats().hits == 1


def test_too_long_is_exact_all_the_same(model: Any, fresh: EnabledPool) -> None:
    with torch.no_grad():
        output, reasons = asked(model, fresh, audio(700))
        agree(output.logits[0], stock(model, audio(700)))
        assert reasons == [Reason.LONG]


def test_more_rows_than_planned_are_split(model: Any, fresh: EnabledPool) -> None:
    rows = [audio(300, 1), audio(150, 2), audio(309, 3)]
    with torch.no_grad():
        output, reasons = asked(model, fresh, **batch(rows, fill=float("nan")))
    assert not reasons
    for found, row in zip(output.logits, rows, strict=True):
        expected = stock(model, row)
        agree(found[: len(expected)], expected)
        assert (found[len(expected) :].argmax(-1) == BLANK).all()
    assert [(b.frames, b.batch_size, b.calls) for b in fresh.stats().buckets] == [(14, 1, 3)]
    assert [replay.rows for replay in fresh.explain([300, 150, 309]).replays] == [(2,), (0,), (1,)]


def test_more_rows_than_planned_run_eagerly_where_that_costs_less(model: Any) -> None:
    geometry = Geometry.of(model)
    cost = Cost((1, 50), replay=(1.0, 1.0), eager=(0.2, 0.2))
    traffic = Traffic.of([0.01], geometry)
    plan = BucketPlan([14], traffic, geometry=geometry, cost=cost)
    rows = [audio(300, 1), audio(150, 2)]
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend="export") as pool:
        output, reasons = asked(model, pool, **batch(rows))
        assert reasons == [Reason.ROWS]
        assert pool.explain([300, 150]).reason is Reason.ROWS
        assert pool.explain(300).route == "bucket"
    for found, row in zip(output.logits, rows, strict=True):
        expected = stock(model, row)
        agree(found[: len(expected)], expected)


@pytest.mark.parametrize("kind", ["left", "hole", "two", "shape"])
def test_masks_of_other_kinds_are_the_hosts(model: Any, fresh: EnabledPool, kind: str) -> None:
    mask = torch.ones(1, 300, dtype=torch.long)
    if kind == "left":
        mask[0, :10] = 0
    elif kind == "hole":
        mask[0, 100:200] = 0
    elif kind == "two":
        mask[0, 0] = 2
    values = torch.cat([audio(300)] * 2) if kind == "shape" else audio(300)
    with torch.no_grad():
        try:
            expected = type(model).forward(model, values, mask).logits
        except (RuntimeError, IndexError) as error:
            with pytest.raises(type(error)):
                model(values, mask)
            assert dict(fresh.stats().misses) == {Reason.MASK: 1}
            return
        output, reasons = asked(model, fresh, values, attention_mask=mask)
    assert reasons == [Reason.MASK]
    assert torch.equal(output.logits, expected)


@both_backends
@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(1, 0),
        torch.zeros(0, 300),
        torch.zeros(1, 29),
        torch.zeros(300),
        torch.zeros(1, 2, 300),
        torch.zeros(1, 300, dtype=torch.int16),
        torch.zeros(1, 300, dtype=torch.float64),
        torch.full((1, 300), float("nan")),
        torch.full((1, 300), float("inf")),
        [0.0] * 300,
        None,
    ],
    ids="empty no-rows short flat stereo int16 float64 nan inf list none".split(),
)
def test_bad_input_is_met_as_the_host_meets_it(model: Any, backend: str, values: Any) -> None:
    geometry = Geometry.of(model)
    plan = BucketPlan([14], Traffic.of([0.01], geometry), geometry=geometry)
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=backend):
        try:
            expected = type(model).forward(model, values).logits
        except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
            with pytest.raises(type(error), match=re.escape(str(error))):
                model(values)
        else:
            found = model(values).logits
            assert torch.equal(found.isnan(), expected.isnan())
        agree(model(audio(300)).logits[0], stock(model, audio(300)))
