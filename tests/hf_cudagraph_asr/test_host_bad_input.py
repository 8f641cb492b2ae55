"""Bad input in the middle of traffic: the host's own behavior, and the next query is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, answers, queries
from pooled import ROWS, Static, tiny
from tiny_models import plan_for

from hf_cudagraph_asr import GraphPool, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Reason

Call = dict[str, Any]
Enabled = tuple[Any, GraphPool]
ONE = ROWS[0][None]  # (1, 600)
NAN, INFINITY = float("nan"), float("inf")


def with_value(value: float) -> torch.Tensor:
    values = ONE.clone()
    values[0, 300] = value
    return values


def masked(mask: Any) -> Call:
    return {"input_values": ONE, "attention_mask": mask}


# What the host itself makes of it, an error or an answer, is what the enabled model must make.
BAD: dict[str, Call] = {
    "nothing": {},
    "none": {"input_values": None},
    "list": {"input_values": [0.0] * 300},
    "array": {"input_values": ONE.numpy()},
    "text": {"input_values": "query.wav"},
    "empty": {"input_values": torch.zeros(1, 0)},
    "no rows": {"input_values": torch.zeros(0, 600)},
    "number": {"input_values": torch.tensor(1.0)},
    "flat": {"input_values": ROWS[0]},
    "stereo": {"input_values": torch.stack([ROWS[0], ROWS[0]])[None]},
    "a frame short": {"input_values": ONE[:, :29]},
    "int16": {"input_values": (ONE * 1000).to(torch.int16)},
    "int64": {"input_values": (ONE * 1000).long()},
    "bool": {"input_values": ONE > 0},
    "float64": {"input_values": ONE.double()},
    "float16": {"input_values": ONE.half()},
    "complex": {"input_values": ONE.to(torch.complex64)},
    "wrong device": {"input_values": ONE.to("meta")},
    "nan": {"input_values": with_value(NAN)},
    "all nan": {"input_values": torch.full((1, 600), NAN)},
    "infinite": {"input_values": with_value(INFINITY)},
    "negative infinite": {"input_values": with_value(-INFINITY)},
    "huge": {"input_values": with_value(3e38)},
    "mask of another length": masked(torch.ones(1, 500, dtype=torch.long)),
    "mask of more rows": masked(torch.ones(2, 600, dtype=torch.long)),
    "flat mask": masked(torch.ones(600, dtype=torch.long)),
    "mask of twos": masked(torch.full((1, 600), 2)),
    "mask with a hole": masked((torch.arange(600) % 7 > 0).long()[None]),
    "mask padded left": masked((torch.arange(600) > 100).long()[None]),
    "unknown argument": {"input_values": ONE, "speed": 2},
    "labels out of range": {"input_values": ONE, "labels": torch.tensor([[99]])},
    "positional twice": {"input_values": ONE, "labels": "hello"},
}


@pytest.fixture(scope="module")
def enabled() -> Iterator[Enabled]:
    model = tiny()
    with enable_cuda_graphs(model, plan_for(model, (600,)), backend=Static()) as pool:
        yield model, pool


def outcome(
    forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> torch.Tensor | tuple[type[Exception], str]:
    """The logits, or what was raised instead."""
    try:
        with torch.no_grad():
            logits: torch.Tensor = forward(*args, **kwargs).logits
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
        return type(error), str(error)
    return logits


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert found == expected
    else:
        assert found.shape == expected.shape
        assert torch.equal(found.isfinite(), expected.isfinite())
        if expected.isfinite().all():
            agree(found[0], expected[0])


RIGHT = [alone(tiny(), row) for row in ROWS]


def serves(model: Any) -> None:
    with torch.no_grad():
        answers(model(**queries(ROWS)).logits, RIGHT)
        agree(model(ROWS[1][None]).logits[0], RIGHT[1])


@pytest.mark.parametrize("bad", BAD)
def test_it_is_met_as_the_host_meets_it_and_the_next_query_is_right(
    enabled: Enabled, bad: str
) -> None:
    model, pool = enabled
    expected = outcome(type(model).forward, model, **BAD[bad])
    same(outcome(model, **BAD[bad]), expected)
    hits = pool.stats().hits
    serves(model)
    assert pool.stats().hits == hits + 2


def test_a_sparse_tensor_is_met_as_the_host_meets_it(enabled: Enabled) -> None:
    model, _ = enabled
    call = {"input_values": ONE.to_sparse()}
    expected = outcome(type(model).forward, model, **call)
    same(outcome(model, **call), expected)
    serves(model)


@pytest.mark.parametrize("value", [NAN, INFINITY, 3e38])
def test_a_broken_row_of_a_batch_breaks_no_other_and_none_after_it(
    enabled: Enabled, value: float
) -> None:
    model, _ = enabled
    broken = [ROWS[0], with_value(value)[0, :431], ROWS[2]]
    with torch.no_grad():
        logits = model(**queries(broken)).logits
    agree(logits[0], RIGHT[0])
    agree(logits[2, : len(RIGHT[2])], RIGHT[2])
    serves(model)


@pytest.mark.parametrize(
    "values",
    [
        torch.stack([ONE, ONE], dim=-1)[..., 0],  # every other number in memory
        ROWS[0].expand(3, 600),
        ONE.flip(1).flip(1),
        torch.nn.Parameter(ONE),
    ],
    ids=["strided", "expanded", "flipped", "parameter"],
)
def test_tensors_of_other_layouts_are_good_input(enabled: Enabled, values: torch.Tensor) -> None:
    model, pool = enabled
    hits = pool.stats().hits
    with torch.no_grad():
        answers(model(values).logits, [alone(model, row) for row in values])
    assert pool.stats().hits == hits + 1


def test_in_the_traffic_of_several_threads(enabled: Enabled) -> None:
    model, pool = enabled
    expected = {name: outcome(type(model).forward, model, **call) for name, call in BAD.items()}
    before = pool.stats()

    def ask(thread: int) -> int:
        """Ask half of them, and say how many were answered."""
        names, answered = [*BAD], 0
        for i in range(0, len(names), 2):
            name = names[(i + thread * 7) % len(names)]
            same(outcome(model, **BAD[name]), expected[name])
            answered += not isinstance(expected[name], tuple)
            serves(model)
        return answered

    with ThreadPoolExecutor(3) as executor:
        answered = sum(executor.map(ask, range(3)))
    after = pool.stats()
    good = 2 * 3 * len(range(0, len(BAD), 2))
    assert after.calls - before.calls == good + answered  # what raised is no answer
    assert after.hits - before.hits >= good
    assert Reason.CHANGED not in after.misses
