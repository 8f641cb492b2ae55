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
from pooled import (
    BLANK,
    BUCKETS,
    StaticOutputs,
    agree,
    audio,
    batch,
    plan_for,
    stock,
    tiny,
)
from transformers.modeling_outputs import CausalLMOutput

from hf_cudagraph_asr.attach import EnabledPool, enable_cuda_graphs
from hf_cudagraph_asr.capture import ExportBackend, Program
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.exact import ExactForward
from hf_cudagraph_asr.geometry import Geometry


@pytest.fixture
def model() -> Any:
    return tiny()


Enabled = tuple[Any, EnabledPool]


@pytest.fixture(
    scope="module", params=["eager", "export", StaticOutputs()], ids=["eager", "export", "static"]
)
def enabled(request: pytest.FixtureRequest) -> Iterator[Enabled]:
    """A model and its pool, the same for many tests: programs take their time."""
    model = tiny()
    with enable_cuda_graphs(model, plan_for(model), backend=request.param) as pool:
        yield model, pool


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(30, 929), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_every_row_of_a_batch_is_as_the_model_answers_it_alone(
    enabled: Enabled, lengths: list[int], seed: int
) -> None:
    model, pool = enabled
    rows = [audio(n, seed + i) for i, n in enumerate(lengths)]
    with torch.inference_mode():
        output = model(**batch(rows, fill=float("nan")))
    assert isinstance(output, CausalLMOutput)
    for found, row in zip(output.logits, rows, strict=True):
        expected = stock(model, row)
        agree(found[: len(expected)], expected)
        rest = found[len(expected) :]
        assert (rest.argmax(-1) == BLANK).all()
        assert torch.isfinite(rest).all()
        assert (rest.softmax(-1)[:, BLANK] == 1).all()
    assert output.logits.shape[1] == Geometry.of(model).frames(max(lengths))
    assert not pool.stats().misses


def test_rows_without_a_mask_are_full_length(enabled: Enabled) -> None:
    model, _ = enabled
    values = torch.cat([audio(400, 1), audio(400, 2)])
    with torch.no_grad():
        logits = model(values).logits
    for found, row in zip(logits, values, strict=True):
        agree(found, stock(model, row[None]))


def test_a_loud_long_query_is_not_heard_in_the_silent_short_one_after_it(enabled: Enabled) -> None:
    model, _ = enabled
    silence = torch.zeros(1, 330)
    with torch.no_grad():
        alone = model(silence).logits
        model(1000 * audio(620))
        assert torch.equal(model(silence).logits, alone)
        model(**batch([1000 * audio(620, i) for i in range(4)]))
        together = model(**batch([silence, silence[:, :320]])).logits
    agree(together[0], stock(model, silence))


def test_static_inputs_hold_nothing_of_the_query_before(model: Any) -> None:
    seen: list[torch.Tensor] = []

    class Watched(ExportBackend):
        def capture(self, exact: ExactForward, values: Any, lengths: Any) -> Program:
            def program(values: Any, lengths: Any) -> Any:
                seen.append(values.clone())
                return exact(values, lengths)

            return program

    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=Watched()):
        model(**batch([audio(629, i) for i in range(4)]))
        model(**batch([audio(330, 7), audio(320, 8)]))
    before, after = seen
    assert before.shape == after.shape == (4, 629)
    assert before.count_nonzero(1).min() > 600
    assert after[:2, 330:].count_nonzero() == after[2:].count_nonzero() == 0


def test_outputs_stay_as_they_are(enabled: Enabled) -> None:
    model, _ = enabled
    with torch.no_grad():
        first = model(audio(300, 1)).logits
        kept = first.clone()
        model(audio(310, 2))
    assert torch.equal(first, kept)


def test_without_copies_the_next_call_overwrites(model: Any) -> None:
    plan = plan_for(model, (1,))
    pool = enable_cuda_graphs(model, plan, backend=StaticOutputs(), copy_outputs=False)
    with torch.no_grad(), pool:
        first = model(audio(300, 1)).logits
        agree(first[0], stock(model, audio(300, 1)))
        second = model(audio(300, 2)).logits
    assert torch.equal(first, second)


def test_built_in_inference_mode_used_outside(model: Any) -> None:
    with torch.inference_mode():
        pool = enable_cuda_graphs(model, plan_for(model, (1,)), backend="export")
    with pool, torch.no_grad():
        agree(model(audio(300)).logits[0], stock(model, audio(300)))
    assert pool.stats().hits == 1


def test_a_tuple_for_who_wants_one(enabled: Enabled) -> None:
    model, _ = enabled
    with torch.no_grad():
        (logits,) = model(audio(300), return_dict=False)
    agree(logits[0], stock(model, audio(300)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32], ids=str)
def test_masks_of_any_dtype_give_the_lengths(enabled: Enabled, dtype: torch.dtype) -> None:
    model, pool = enabled
    rows = [audio(300, 1), audio(150, 2)]
    call = batch(rows)
    missed = dict(pool.stats().misses)
    with torch.no_grad():
        logits = model(call["input_values"], call["attention_mask"].to(dtype)).logits
        alone = model(rows[0], torch.ones(1, 300, dtype=dtype)).logits
    agree(alone[0], stock(model, rows[0]))
    agree(logits[0], stock(model, rows[0]))
    expected = stock(model, rows[1])
    agree(logits[1, : len(expected)], expected)
    assert pool.stats().misses == missed


def test_a_row_too_short_among_others_is_refused(enabled: Enabled) -> None:
    model, _ = enabled
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"each row needs 30 samples .* row 1 has 29"):
            model(**batch([audio(300), audio(29)]))
        agree(model(audio(300)).logits[0], stock(model, audio(300)))


# What it says of itself


def test_explain_says_where_a_call_would_go(model: Any) -> None:
    plan = plan_for(model)
    with enable_cuda_graphs(model, plan, backend="export") as pool:
        single = pool.explain(samples=309)
        assert (single.route, single.bucket, single.batch_size) == ("bucket", plan.buckets[0], 1)
        assert (single.padding, single.cost) == (0, plan.buckets[0].cost)
        assert pool.explain(310).bucket == plan.buckets[1]
        rows = pool.explain([300, 100])
        frames = [plan.geometry.frames(n) for n in (300, 100)]
        assert rows.batch_size == 4
        assert rows.padding == pytest.approx(4 * 14 / sum(frames) - 1)
        assert str(rows).startswith("bucket of 14 frames, 4 rows, ")
        split = pool.explain([300] * 5)
        assert [replay.rows for replay in split.replays] == [(0, 1, 2, 3), (4,)]
        assert split.padding == pytest.approx(14 / frames[0] - 1)
        assert pool.explain(930).reason is Reason.LONG
        assert pool.explain(29).reason is Reason.SHORT
        with pytest.raises(ValueError, match="no rows"):
            pool.explain([])
        with pytest.raises(dataclasses.FrozenInstanceError):
            single.route = "host"  # type: ignore[misc]
    assert pool.explain(300).reason is Reason.CLOSED
    with pytest.raises(ValueError, match="enable_cuda_graphs"):
        pool.rebuild()


def test_statistics_count_calls_frames_and_reasons(model: Any) -> None:
    plan = plan_for(model)
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend="export") as pool:
        empty = pool.stats()
        for n in (309, 200, 629):
            model(audio(n))
        model(**batch([audio(300), audio(100)]))
        model(audio(1000))
        stats = pool.stats()
    assert (empty.calls, empty.padding, empty.buckets) == (0, 0, ())
    assert (stats.calls, stats.hits, dict(stats.misses)) == (5, 4, {Reason.LONG: 1})
    frames = plan.geometry.frames
    assert [(b.frames, b.batch_size, b.calls, b.filled) for b in stats.buckets] == [
        (14, 1, 2, 14 + frames(200)),
        (14, 4, 1, frames(300) + frames(100)),
        (30, 1, 1, 30),
    ]
    computed = 14 * 2 + 14 * 4 + 30
    assert stats.padding == pytest.approx(computed / sum(b.filled for b in stats.buckets) - 1)
    assert all(b.seconds > 0 for b in stats.buckets)
    with pytest.raises(TypeError):
        stats.misses[Reason.LONG] = 0  # type: ignore[index]


def test_a_disabled_pool_keeps_no_program(model: Any) -> None:
    programs: list[weakref.ref[Any]] = []

    class Counted(ExportBackend):
        def capture(self, exact: ExactForward, values: Any, lengths: Any) -> Program:
            program = super().capture(exact, values, lengths)
            programs.append(weakref.ref(program))
            return program

    with enable_cuda_graphs(model, plan_for(model, (1,)), backend=Counted()):
        assert len(programs) == len(BUCKETS)
        assert all(program() is not None for program in programs)
    gc.collect()
    assert all(program() is None for program in programs)
