"""The pool answers each call as the model answers each row alone, and says how."""

from __future__ import annotations

import dataclasses
import gc
import re
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.utils.parametrize import remove_parametrizations
from transformers import Wav2Vec2ForCTC
from transformers.modeling_outputs import CausalLMOutput

from hf_cudagraph_asr.attach import EnabledPool, enable_cuda_graphs
from hf_cudagraph_asr.bucket_plan import BucketPlan
from hf_cudagraph_asr.capture import EagerBackend, ExportBackend, Program
from hf_cudagraph_asr.cost import Cost
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.padding import ExactForward
from hf_cudagraph_asr.traffic import Traffic

TOLERANCE = 1e-5  # of the largest logit of the row
COARSE = 0.1  # in bfloat16, where one rounding says little; what is told apart is far more
BUCKETS = (14, 30, 45)  # frames: up to 309, 629 and 929 samples
BLANK = 3
both_backends = pytest.mark.parametrize("backend", ["eager", "export"])


def tiny(seed: int = 0, stem: str = "Wav2Vec2", **changes: Any) -> Any:
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": 12,
        "pad_token_id": BLANK,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_feat_extract_layers": 3,
        "conv_dim": (24, 24, 24),
        "conv_kernel": (10, 3, 2),
        "conv_stride": (5, 2, 2),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
    }
    config = getattr(transformers, f"{stem}Config")(**{**options, **changes})
    model = getattr(transformers, f"{stem}ForCTC")(config).eval()
    with torch.no_grad():  # the initial weights give nearly the same logits for everything
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * (2 / parameter[0].numel()) ** 0.5)
    return model


def plan_for(model: Any, batch_sizes: Sequence[int] = (1, 4)) -> BucketPlan:
    geometry = Geometry.of(model)
    traffic = Traffic.of([0.01, 0.03, 0.05], geometry)
    return BucketPlan.of(BUCKETS, traffic, geometry=geometry, batch_sizes=batch_sizes)


def audio(samples: int, seed: int = 0) -> torch.Tensor:
    """(1, samples)"""
    noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))
    return noise * (1.2 + torch.sin(torch.arange(samples) / 40))


def batch(rows: Sequence[torch.Tensor], fill: float = 0.0) -> dict[str, torch.Tensor]:
    longest = max(row.shape[1] for row in rows)
    pad = torch.nn.functional.pad
    return {
        "input_values": torch.cat([pad(r, (0, longest - r.shape[1]), value=fill) for r in rows]),
        "attention_mask": torch.cat(
            [pad(torch.ones_like(r, dtype=torch.int32), (0, longest - r.shape[1])) for r in rows]
        ),
    }


def stock(model: Any, values: torch.Tensor) -> Any:
    """The model's own answer to one row, enabled or not."""
    with torch.no_grad():
        return type(model).forward(model, values).logits[0]


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    tolerance = TOLERANCE if found.dtype == torch.float32 else COARSE
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.fixture
def model() -> Any:
    return tiny()


class StaticOutputs(ExportBackend):
    """Programs that overwrite what they returned before, as replays of a CUDA graph do."""

    def capture(self, exact: ExactForward, values: Any, lengths: Any) -> Program:
        program = super().capture(exact, values, lengths)
        static = program(values, lengths)

        def replay(values: Any, lengths: Any) -> Any:
            for held, new in zip(static, program(values, lengths), strict=True):
                held.copy_(new)
            return static

        return replay


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


def test_sixteen_threads_get_their_own_answers(enabled: Enabled) -> None:
    model, pool = enabled
    clips = [audio(100 + 37 * i, i) for i in range(25)]
    expected = [stock(model, clip) for clip in clips]

    def ask(thread: int) -> None:
        for i in range(25):
            which = (i * 7 + thread * 3) % 25
            other = (which + thread) % 25
            with torch.inference_mode():
                if i % 3:
                    agree(model(clips[which]).logits[0], expected[which])
                else:
                    logits = model(**batch([clips[which], clips[other]])).logits
                    agree(logits[0, : len(expected[which])], expected[which])
                    agree(logits[1, : len(expected[other])], expected[other])

    before = pool.stats().calls
    with ThreadPoolExecutor(16) as executor:
        list(executor.map(ask, range(16)))
    assert pool.stats().calls - before == 16 * 25


def test_built_in_inference_mode_used_outside(model: Any) -> None:
    with torch.inference_mode():
        pool = enable_cuda_graphs(model, plan_for(model, (1,)), backend="export")
    with pool, torch.no_grad():
        agree(model(audio(300)).logits[0], stock(model, audio(300)))
    assert pool.stats().hits == 1


# What is not replayed


def asked(model: Any, pool: EnabledPool, *args: Any, **kwargs: Any) -> tuple[Any, list[Reason]]:
    before = pool.stats().misses
    output = model(*args, **kwargs)
    after = pool.stats().misses
    return output, [r for r in after if after[r] > before.get(r, 0)]


@pytest.fixture
def fresh(model: Any) -> Iterator[EnabledPool]:
    """An export pool over the shared model, one small bucket."""
    geometry = Geometry.of(model)
    plan = BucketPlan.of([14], Traffic.of([0.01], geometry), geometry=geometry)
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


def test_a_tuple_for_who_wants_one(enabled: Enabled) -> None:
    model, _ = enabled
    with torch.no_grad():
        (logits,) = model(audio(300), return_dict=False)
    agree(logits[0], stock(model, audio(300)))


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
    plan = BucketPlan.of([14], traffic, geometry=geometry, cost=cost)
    rows = [audio(300, 1), audio(150, 2)]
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend="export") as pool:
        output, reasons = asked(model, pool, **batch(rows))
        assert reasons == [Reason.ROWS]
        assert pool.explain([300, 150]).reason is Reason.ROWS
        assert pool.explain(300).route == "bucket"
    for found, row in zip(output.logits, rows, strict=True):
        expected = stock(model, row)
        agree(found[: len(expected)], expected)


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
    plan = BucketPlan.of([14], Traffic.of([0.01], geometry), geometry=geometry)
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


def test_a_row_too_short_among_others_is_refused(enabled: Enabled) -> None:
    model, _ = enabled
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"each row needs 30 samples .* row 1 has 29"):
            model(**batch([audio(300), audio(29)]))
        agree(model(audio(300)).logits[0], stock(model, audio(300)))


# Other families

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2-adapter": ("Wav2Vec2", {"add_adapter": True, "num_adapter_layers": 2}),
    "hubert-layer": ("Hubert", {"feat_extract_norm": "layer"}),
    "sew": ("SEW", {"squeeze_factor": 2}),
    "data2vec": ("Data2VecAudio", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}),
    "conformer": (
        "Wav2Vec2Conformer",
        {"position_embeddings_type": "relative", "conv_depthwise_kernel_size": 7},
    ),
}


@both_backends
@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_are_cut_at_their_own_frames(name: str, backend: str) -> None:
    stem, changes = FAMILIES[name]
    model = tiny(stem=stem, **changes)
    rows = [audio(600, 1), audio(431, 2), audio(211, 3)]
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model, (4,)), backend=backend) as pool:
        logits = model(**batch(rows)).logits
    assert logits.shape[1] == len(stock(model, rows[0]))
    for found, row in zip(logits, rows, strict=True):
        expected = stock(model, row)
        agree(found[: len(expected)], expected)
        assert (found[len(expected) :].argmax(-1) == BLANK).all()
    assert pool.stats().hits == 1


# Weights


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
