"""The pool answers each call as the model answers each row alone, and says how."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from padded_rows import agree, alone, answers, audio, queries
from pooled import ROWS, Static, serves, tiny
from tiny_models import plan_for
from transformers.modeling_outputs import CausalLMOutput

from hf_cudagraph_asr import GraphPool, disable_cuda_graphs, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Reason

Enabled = tuple[Any, GraphPool]
NOTHING = torch.empty(0, 12)


@pytest.fixture
def model() -> Any:
    return tiny()


@pytest.fixture(scope="module", params=["eager", "export", "static"])
def enabled(request: pytest.FixtureRequest) -> Iterator[Enabled]:
    """A model and its pool, the same for many tests: programs take their time."""
    model = tiny()
    # Exported programs of two shapes are enough: batches of others go together or are split.
    samples = (900,) if request.param == "export" else (300, 600, 900)
    backend = Static() if request.param == "static" else request.param
    with enable_cuda_graphs(model, plan_for(model, samples), backend=backend) as pool:
        yield model, pool


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(30, 909), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_every_row_of_a_batch_is_as_the_model_answers_it_alone(
    enabled: Enabled, lengths: list[int], seed: int
) -> None:
    model, pool = enabled
    rows = [audio(n, seed + i) for i, n in enumerate(lengths)]
    with torch.inference_mode():
        output = model(**queries(rows, fill=float("nan")))
    assert isinstance(output, CausalLMOutput)
    answers(output.logits, [alone(model, row) for row in rows])
    # Too many rows for one program may be run eagerly where that is thought to cost less.
    assert {*pool.stats().misses} <= {Reason.ROWS}


def test_rows_without_a_mask_are_full_length(enabled: Enabled) -> None:
    model, _ = enabled
    values = torch.stack([audio(400, 1), audio(400, 2)])
    with torch.no_grad():
        answers(model(values).logits, [alone(model, row) for row in values])


def test_a_loud_long_query_leaves_no_trace_in_the_silent_short_one_after_it(
    enabled: Enabled,
) -> None:
    model, _ = enabled
    silence = torch.zeros(330)
    with torch.no_grad():
        first = model(silence[None]).logits
        model(1000 * audio(890)[None])
        assert torch.equal(model(silence[None]).logits, first)
        model(**queries([1000 * audio(890, i) for i in range(4)]))
        together = model(**queries([silence, silence[:320]])).logits
    answers(together, [alone(model, silence), alone(model, silence[:320])])


@pytest.mark.parametrize("samples", [30, 31])
def test_the_shortest_query_is_no_longer_after_another(enabled: Enabled, samples: int) -> None:
    model, _ = enabled
    row = audio(samples, 1)
    with torch.no_grad():
        for other in (290, 890):
            model(audio(other)[None])
            answers(model(row[None]).logits, [alone(model, row)])
            model(**queries([audio(other), audio(280)]))
            answers(model(**queries([row, row])).logits, [alone(model, row)] * 2)


def test_outputs_stay_as_they_are(enabled: Enabled) -> None:
    model, _ = enabled
    with torch.no_grad():
        for call in ({"input_values": audio(300, 1)[None]}, queries(ROWS)):
            first = model(**call).logits
            kept = first.clone()
            model(**queries([audio(310, 2), audio(290, 3), audio(280, 4)]))
            model(audio(290, 2)[None])
            assert torch.equal(first, kept)


def test_a_tuple_for_who_wants_one(enabled: Enabled) -> None:
    model, _ = enabled
    with torch.no_grad():
        (logits,) = model(ROWS[0][None], return_dict=False)
        agree(logits[0], alone(model, ROWS[0]))
        model.config.return_dict = False
        try:
            assert torch.equal(model(ROWS[0][None])[0], logits)
            assert torch.equal(model(ROWS[0][None], return_dict=True).logits, logits)
        finally:
            model.config.return_dict = True


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int32, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_masks_of_any_dtype_give_the_lengths(enabled: Enabled, dtype: torch.dtype) -> None:
    model, pool = enabled
    rows = [audio(811, 1), audio(787, 2)]  # in bfloat16 neither number can be written
    call = queries(rows)
    missed = dict(pool.stats().misses)
    with torch.no_grad():
        logits = model(call["input_values"], call["attention_mask"].to(dtype)).logits
        single = model(rows[0][None], torch.ones(1, 811, dtype=dtype)).logits
    answers(logits, [alone(model, row) for row in rows])
    answers(single, [alone(model, rows[0])])
    assert pool.stats().misses == missed


@pytest.mark.parametrize("short", [0, 1, 29])
def test_a_row_too_short_for_a_frame_says_nothing_and_costs_no_other(
    enabled: Enabled, short: int
) -> None:
    model, pool = enabled
    hits, row = pool.stats().hits, torch.ones(short)
    with torch.no_grad():
        answers(model(**queries([*ROWS, row])).logits, [*(alone(model, r) for r in ROWS), NOTHING])
        assert pool.stats().hits == hits + 1
        # A batch of nothing else, padded to what holds a frame.
        mask = (torch.arange(600) < short).long()[None]
        logits = model(torch.randn(2, 600), torch.cat([mask, mask])).logits
        assert logits.shape == (2, 0, 12)
        assert model(torch.randn(1, 600), mask).logits.shape == (1, 0, 12)
    serves(model)


# What it says of itself


def test_explain_says_where_a_call_would_go(model: Any) -> None:
    plan = plan_for(model, (300, 900))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=Static()) as pool:
        single = pool.explain(samples=300)
        assert (single.route, single.bucket, single.batch_size) == ("bucket", plan.buckets[0], 1)
        assert (single.padding, single.cost) == (0, plan.buckets[0].cost)
        assert pool.explain(310).bucket == plan.buckets[1]
        rows = pool.explain([300, 100])
        frames = [plan.geometry.frames(n) for n in (300, 100)]
        assert (rows.batch_size, rows.filled, rows.computed) == (4, sum(frames), 4 * 14)
        assert str(rows).startswith("bucket of 14 frames, 4 rows, ")
        split = pool.explain([300] * 5)
        assert [replay.rows for replay in split.replays] == [(0, 1, 2, 3), (4,)]
        assert (split.filled, split.computed) == (5 * frames[0], 5 * 14)
        assert pool.explain(920).reason is Reason.LONG
        short = pool.explain([29, 5])
        assert (short.route, short.reason, short.detail) == ("host", Reason.SHORT, "29 samples")
        assert pool.explain([300, 5]).filled == frames[0]
        with pytest.raises(ValueError, match="no rows"):
            pool.explain([])
    assert pool.explain(300).reason is Reason.CLOSED


def test_statistics_count_calls_frames_and_reasons(model: Any) -> None:
    plan = plan_for(model, (300, 600))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=Static()) as pool:
        empty = pool.stats()
        for n in (300, 200, 600):
            model(audio(n)[None])
        model(**queries([audio(290), audio(100)]))
        model(audio(1000)[None])
        stats = pool.stats()
    assert (empty.calls, empty.padding, empty.buckets) == (0, 0, ())
    assert (stats.calls, stats.hits, dict(stats.misses)) == (5, 4, {Reason.LONG: 1})
    frames = plan.geometry.frames
    assert [(b.frames, b.batch_size, b.calls, b.filled) for b in stats.buckets] == [
        (14, 1, 2, 14 + frames(200)),
        (14, 4, 1, frames(290) + frames(100)),
        (29, 1, 1, 29),
    ]
    computed = 14 * 2 + 14 * 4 + 29
    assert stats.padding == pytest.approx(computed / sum(b.filled for b in stats.buckets) - 1)
    assert all(b.seconds > 0 for b in stats.buckets)
    with pytest.raises(TypeError):
        stats.misses[Reason.LONG] = 0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.hits = 0  # type: ignore[misc]


def test_a_disabled_pool_keeps_no_program(model: Any) -> None:
    programs: list[weakref.ref[Any]] = []

    class Counted(Static):
        def capture(self, exact: Any, input_values: Any, lengths: Any) -> Any:
            program = super().capture(exact, input_values, lengths)
            programs.append(weakref.ref(program))
            return program

    enable_cuda_graphs(model, plan_for(model, (600, 900), (1,)), backend=Counted())
    assert len(programs) == 2
    assert all(program() is not None for program in programs)
    disable_cuda_graphs(model)
    gc.collect()
    assert all(program() is None for program in programs)
