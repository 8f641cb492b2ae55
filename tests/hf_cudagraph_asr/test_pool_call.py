"""`pool.call` executes rows of audio once, and returns what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, answers, audio, padded
from pooled import ROWS, Static, tiny, warnings
from tiny_models import CASES, plan_for
from transformers import Wav2Vec2ForCTC

from hf_cudagraph_asr import (
    Dispatch,
    GraphPool,
    LengthSketch,
    Served,
    disable_cuda_graphs,
    enable_cuda_graphs,
)
from hf_cudagraph_asr.dispatch import Reason

LENGTHS = [*map(len, ROWS)]
LONG = audio(1000, 3)
SHORT = audio(29, 4)  # a sample less than the receptive field
NOTHING = torch.empty(0, 12)  # no frames, of a vocabulary of 12


class Watched:
    """A model in a pool, with what its last call ran and the events of all."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.events: list[Served] = []
        self.runs: list[int] = []  # rows of each run of the last layer, in the last call
        self.backend = Static()
        options = {"plan": plan_for(model), "backend": self.backend, **options}
        self.pool: GraphPool = enable_cuda_graphs(model, observers=[self.events.append], **options)
        self.model = model
        self._all: list[int] = []
        model.lm_head.register_forward_hook(lambda _, args, __: self._all.append(len(args[0])))

    def call(self, rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Dispatch]:
        """Call with rows padded with NaN; check that it was executed once."""
        values, lengths = padded(rows, max(map(len, rows)))
        values[torch.arange(values.shape[1]) >= lengths[:, None]] = torch.nan
        before, events = self.pool.stats(), len(self.events)
        self._all.clear()
        logits, dispatch = self.pool.call(values, lengths.tolist())
        self.runs = [*self._all]
        after = self.pool.stats()
        assert not logits.requires_grad
        assert len(self.events) == events + 1
        assert self.events[-1].dispatch is dispatch
        assert self.events[-1].lengths == tuple(lengths.tolist())
        assert after.calls == before.calls + 1
        assert after.hits - before.hits == (dispatch.reason is None)
        replays = sum(b.calls for b in after.buckets) - sum(b.calls for b in before.buckets)
        assert replays == len(dispatch.replays)
        return logits, dispatch


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched(tiny())
    yield watched
    disable_cuda_graphs(watched.model)


def expected(model: Any, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [NOTHING if len(row) < 30 else alone(model, row) for row in rows]


# What it says happened


def test_rows_that_fit_a_bucket_are_replayed(watched: Watched) -> None:
    logits, dispatch = watched.call(ROWS)
    answers(logits, expected(watched.model, ROWS))
    assert (dispatch.route, dispatch.reason) == ("bucket", None)
    with torch.no_grad():
        assert dispatch == watched.pool.explain(LENGTHS)
    assert [(replay.batch_size, replay.rows) for replay in dispatch.replays] == [(4, (0, 1, 2))]
    assert watched.runs == [4]


def test_more_rows_than_planned_are_split(watched: Watched) -> None:
    rows = [*ROWS, audio(880, 5), audio(300, 6)]
    logits, dispatch = watched.call(rows)
    answers(logits, expected(watched.model, rows))
    assert sorted(row for replay in dispatch.replays for row in replay.rows) == [0, 1, 2, 3, 4]
    assert watched.runs == [replay.batch_size for replay in dispatch.replays]
    assert sorted(watched.runs) == [1, 4]


def test_rows_longer_than_the_last_bucket_are_computed_exactly(watched: Watched) -> None:
    rows = [LONG, *ROWS]
    logits, dispatch = watched.call(rows)
    answers(logits, expected(watched.model, rows))
    assert (dispatch.route, dispatch.reason) == ("exact", Reason.LONG)
    assert watched.runs == [4]


def test_rows_of_one_length_need_no_lengths_and_no_warning(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    values = torch.stack([audio(500, 1), audio(500, 2)])
    logits, dispatch = watched.pool.call(values)
    answers(logits, expected(watched.model, [*values]))
    assert dispatch.route == "bucket"
    same, _ = watched.pool.call(values, torch.tensor([500, 500]))
    assert torch.equal(same, logits)
    assert not warnings(caplog)


def test_gradients_that_are_on_make_no_difference(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    assert torch.is_grad_enabled()
    logits, dispatch = watched.call(ROWS)
    with torch.inference_mode():
        again, same = watched.call(ROWS)
    assert torch.equal(logits, again)
    assert dispatch == same
    assert not warnings(caplog)


# Rows that are too short for a frame


@pytest.mark.parametrize(
    "rows",
    [[*ROWS, SHORT], [SHORT, *ROWS, SHORT, *ROWS], [SHORT, LONG, audio(30, 7)]],
    ids=["bucket", "split", "exact"],
)
def test_a_short_row_among_others_has_no_frames(watched: Watched, rows: list[torch.Tensor]) -> None:
    logits, dispatch = watched.call(rows)
    answers(logits, expected(watched.model, rows))
    assert dispatch.route == ("exact" if LONG is rows[1] else "bucket")
    frames = [len(own) for own in expected(watched.model, rows)]
    assert dispatch.filled == (0 if dispatch.route == "exact" else sum(frames))


@pytest.mark.parametrize("rows", [[SHORT], [SHORT, audio(7, 1)]], ids=["one", "two"])
def test_short_rows_alone_have_no_frames(watched: Watched, rows: list[torch.Tensor]) -> None:
    logits, dispatch = watched.call(rows)
    assert logits.shape == (len(rows), 0, 12)
    assert logits.dtype == torch.float32
    assert (dispatch.route, dispatch.reason) == ("exact", Reason.SHORT)
    assert "29 samples" in dispatch.detail
    assert watched.runs == []


def test_a_row_without_samples_has_no_frames(watched: Watched) -> None:
    values = torch.zeros(2, 600)
    values[0] = ROWS[0]
    logits, _ = watched.pool.call(values, [600, 0])
    answers(logits, [alone(watched.model, ROWS[0]), NOTHING])
    assert watched.pool.call(values, [0, 0])[0].shape == (2, 0, 12)
    assert watched.pool.call(values[:, :0])[0].shape == (2, 0, 12)


# The model's own forward, row by row


def test_in_training_mode_each_row_is_the_hosts(watched: Watched) -> None:
    model = watched.model
    model.config.apply_spec_augment = False  # by numpy's random numbers; dropout's are torch's
    rows = [ROWS[0], SHORT, ROWS[1]]
    model.train()
    torch.manual_seed(0)
    logits, dispatch = watched.call(rows)
    assert (dispatch.route, dispatch.reason) == ("host", Reason.TRAINING)
    assert watched.runs == [1, 1]
    torch.manual_seed(0)
    answers(logits, expected(model, rows))
    model.eval()
    assert watched.call(rows)[1].route == "bucket"
    assert watched.events[-1].dispatch.reason is None


def test_under_autocast_each_row_is_the_hosts(watched: Watched) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits, dispatch = watched.call(ROWS)
        answers(logits, [alone(watched.model, row) for row in ROWS])
    assert logits.dtype == torch.bfloat16
    assert (dispatch.route, dispatch.reason) == ("host", Reason.AUTOCAST)


def test_a_model_without_an_exact_forward_answers_row_by_row() -> None:
    class Own(Wav2Vec2ForCTC):  # type: ignore[misc]
        """Might compute anything."""

    model = Own(tiny().config).eval()
    watched = Watched(model)
    for rows in (ROWS, [SHORT, *ROWS], [SHORT], [LONG]):
        logits, dispatch = watched.call(rows)
        answers(logits, expected(model, rows))
        assert (dispatch.route, dispatch.reason) == ("host", Reason.UNSUPPORTED)
        assert len(watched.runs) == sum(len(row) >= 30 for row in rows)
    disable_cuda_graphs(model)


def test_what_the_exact_forward_refuses_the_host_answers_row_by_row() -> None:
    watched = Watched(CASES["conformer-relative"].build(max_source_positions=20), backend="eager")
    rows = [audio(1000, 1), audio(700, 2), SHORT]
    logits, dispatch = watched.call(rows)  # more frames than positions: the host makes room
    answers(logits, expected(CASES["conformer-relative"].build(), rows))
    assert (dispatch.route, dispatch.reason) == ("host", Reason.REFUSED)
    disable_cuda_graphs(watched.model)


# What changes around it


def test_after_a_swap_it_is_replayed_by_the_new_plan(watched: Watched) -> None:
    before = watched.call(ROWS)[1]
    plan = plan_for(watched.model, (700,))
    watched.pool.swap(plan)
    logits, dispatch = watched.call(ROWS)
    answers(logits, expected(watched.model, ROWS))
    assert dispatch.bucket == plan.buckets[0] != before.bucket


def test_after_an_exchange_of_weights_it_is_computed_with_the_new_ones(watched: Watched) -> None:
    first = watched.call(ROWS)[0]
    watched.model.load_state_dict(tiny(seed=1).state_dict(), assign=True)
    logits, dispatch = watched.call(ROWS)
    answers(logits, expected(watched.model, ROWS))
    assert float((logits - first).abs().max()) > 0.1
    assert (dispatch.route, dispatch.reason) == ("exact", Reason.CHANGED)
    watched.pool.rebuild()
    assert watched.call(ROWS)[1].route == "bucket"


class Overtaking(LengthSketch):
    """Does something in the middle of the next call, once that knows the plan it is to go by."""

    def meanwhile(self, change: Callable[[], object]) -> None:
        self.changes = [change]

    def add(self, samples: int) -> None:
        super().add(samples)
        if self.changes:
            self.changes.pop()()


def exchanged(watched: Watched) -> None:
    watched.model.load_state_dict(tiny(seed=1).state_dict(), assign=True)
    watched.pool.explain(600)  # notices, as a call in another thread would


def swapped(watched: Watched) -> None:
    watched.pool.swap(plan_for(watched.model, (700,)))


@pytest.mark.parametrize(
    ("change", "route", "reason"),
    [
        (swapped, "bucket", None),
        (lambda watched: watched.pool.rebuild(), "bucket", None),
        (exchanged, "exact", Reason.CHANGED),
        (lambda watched: disable_cuda_graphs(watched.model), "host", Reason.CLOSED),
    ],
    ids=["swap", "rebuild", "exchange", "disable"],
)
def test_what_overtakes_a_call_is_what_it_says(
    watched: Watched, change: Callable[[Watched], object], route: str, reason: Reason | None
) -> None:
    overtaking = watched.pool.sketch = Overtaking(watched.pool.sketch.geometry)
    overtaking.meanwhile(lambda: change(watched))
    logits, dispatch = watched.call([*ROWS, SHORT])
    answers(logits, expected(watched.model, [*ROWS, SHORT]))
    assert (dispatch.route, dispatch.reason) == (route, reason)
    if route == "bucket":
        assert dispatch.bucket in watched.pool.plan.buckets


def test_in_a_race_with_swaps_each_call_says_which_program_it_was() -> None:
    model, backend = tiny(), Static()
    want, ran, said = alone(model, ROWS[0]), Counter[int](), Counter[int]()
    plans = [plan_for(model, (samples,), (1,)) for samples in (600, 700)]
    with enable_cuda_graphs(model, plans[0], backend=backend) as pool, ThreadPoolExecutor(3) as do:
        backend.hooks.append(lambda values: ran.update([values.shape[1]]))

        def ask(_: int) -> int:
            logits, dispatch = pool.call(ROWS[0][None])
            agree(logits[0], want)
            assert dispatch.bucket is not None
            return dispatch.bucket.samples

        asked = [do.submit(ask, i) for i in range(90)]
        for swap in range(1, 7):
            pool.swap(plans[swap % 2])
        said.update(call.result() for call in asked)
    ran.subtract([plan.buckets[0].samples for plan in plans] * 3)  # once at each capture's end
    assert ran == said
    assert said.total() == pool.stats().hits == 90


# What is refused


def test_a_closed_pool_raises_and_names_the_remedy(watched: Watched) -> None:
    disable_cuda_graphs(watched.model)
    with pytest.raises(ValueError, match=r"is disabled: call enable_cuda_graphs\(model"):
        watched.pool.call(ROWS[0][None])


@pytest.mark.parametrize(
    ("values", "given"),
    [
        (torch.zeros(1, 600, dtype=torch.float64), r"Tensor torch\.Size\(\[1, 600\]\) in .*64"),
        (torch.zeros(1, 600, dtype=torch.int16), r"in torch\.int16 on cpu"),
        (torch.zeros(1, 600, device="meta"), "on meta"),
        (torch.zeros(600), r"Size\(\[600\]\)"),
        (torch.zeros(0, 600), r"Size\(\[0, 600\]\)"),
        (torch.zeros(1, 1, 600), r"Size\(\[1, 1, 600\]\)"),
        ([0.0] * 600, "got list"),
        (None, "got NoneType"),
    ],
    ids="float64 int16 device flat no-rows stereo list none".split(),
)
def test_values_that_are_no_rows_raise_with_what_was_given(
    watched: Watched, values: Any, given: str
) -> None:
    with pytest.raises(ValueError, match=rf"\(rows, samples\) tensor in the model's.*{given}"):
        watched.pool.call(values)
    assert watched.pool.stats().calls == 0
    assert watched.call(ROWS)[1].route == "bucket"


@pytest.mark.parametrize("lengths", [[600], [600, 431, 2], [601, 431], [-1, 431], [1.5, 2.5], []])
def test_lengths_that_are_not_of_these_rows_raise_with_what_was_given(
    watched: Watched, lengths: list[Any]
) -> None:
    values, _ = padded(ROWS[:2], 600)
    with pytest.raises(ValueError, match=r"lengths are .*, expected (2|whole) numbers"):
        watched.pool.call(values, lengths)
    assert watched.pool.stats().calls == 0


def test_what_cannot_be_meant_is_named() -> None:
    model = tiny()
    with torch.no_grad(), enable_cuda_graphs(model) as pool:
        for samples in ("x", -5, 1.5, [300, None]):
            with pytest.raises(ValueError, match="expected whole numbers of samples"):
                pool.explain(samples)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="is a str, expected a BucketPlan"):
            pool.swap("plan.json")  # type: ignore[arg-type]
    for call in (pool.replan, pool.calibrate, pool.rebuild):
        with pytest.raises(ValueError, match="the pool is disabled"):
            call()
    with pytest.raises(TypeError, match=r"give \[observer\]"):
        enable_cuda_graphs(model, observers=print)  # type: ignore[arg-type]
