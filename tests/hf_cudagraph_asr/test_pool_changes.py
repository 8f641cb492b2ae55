"""What changes in a pool while it serves: replicas, plans, prices, dtypes, observers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, answers, audio, queries
from tiny_models import CASES, both_backends, plan_for

from hf_cudagraph_asr.attach import EnabledPool, enable_cuda_graphs
from hf_cudagraph_asr.capture import EagerBackend, ExportBackend, Program
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.events import Served
from hf_cudagraph_asr.exact import ExactForward
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan import BucketPlan, Traffic, plan_buckets


class Direct(EagerBackend):
    """Programs that are the forward itself, and a log of what was asked of the backend."""

    name = "direct"
    captures = True

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []
        self.hooks: list[Callable[[int], None]] = []  # the same list in every replica

    def warm(self, exact: ExactForward, values: Any, lengths: Any) -> None:
        self.log.append(("warm", *values.shape))
        assert int(lengths.min()) < values.shape[1]
        super().warm(exact, values, lengths)

    def capture(self, exact: ExactForward, values: Any, lengths: Any) -> Program:
        self.log.append(("capture", *values.shape))

        def program(values: Any, lengths: Any) -> Any:
            for hook in self.hooks:
                hook(len(values))
            return exact(values, lengths)

        return program

    def close(self) -> None:
        self.log.append(("close", 0, 0))


class Exclusive(Direct):
    exclusive = True


@pytest.fixture
def model() -> Any:
    return CASES["wav2vec2-layer"].build(num_hidden_layers=1)


def replicated(model: Any, counts: Sequence[int], samples: Sequence[int] = (600, 900)) -> Any:
    geometry = Geometry.of(model)
    return BucketPlan(
        [geometry.frames(n) for n in samples],
        Traffic.of([0.03], geometry),
        geometry=geometry,
        replicas=counts,
    )


def test_everything_is_warmed_padded_and_then_captured_largest_first(model: Any) -> None:
    backend = Direct()
    plan = plan_for(model, batch_sizes=(1, 4))
    with enable_cuda_graphs(model, plan, backend=backend) as pool:
        shapes = [(rows, bucket.samples) for bucket in plan.buckets for rows in (1, 4)]
        shapes.sort(key=lambda shape: -shape[0] * shape[1])
        assert backend.log == [(step, *shape) for step in ("warm", "capture") for shape in shapes]
        inputs = sum(rows * samples * 4 + rows * 8 for rows, samples in shapes)
        assert pool.stats().memory == inputs
        assert 0 < pool.stats().capture_seconds < 60
    assert backend.log[-1] == ("close", 0, 0)
    assert pool.stats().memory == 0


# Replicas


def test_replicas_of_a_bucket_run_at_the_same_time(model: Any) -> None:
    backend = Direct()
    row = audio(600, 1)
    expected = alone(model, row)
    with enable_cuda_graphs(model, replicated(model, [2, 1]), backend=backend):
        captured = [shape for step, *shape in backend.log if step == "capture"]
        assert sorted(samples for _, samples in captured) == sorted(
            [replicated(model, [2, 1]).buckets[0].samples] * 2
            + [replicated(model, [2, 1]).buckets[1].samples]
        )
        together = threading.Barrier(2, timeout=60)
        backend.hooks.append(lambda rows: bool(together.wait()) and None)

        def ask(_: int) -> torch.Tensor:
            with torch.no_grad():
                logits: torch.Tensor = model(row[None]).logits[0]
            return logits

        with ThreadPoolExecutor(2) as executor:  # in one replica the first would wait for ever
            for logits in executor.map(ask, range(6)):
                agree(logits, expected)


def test_a_bucket_without_another_replica_runs_once_at_a_time(model: Any) -> None:
    backend = Direct()
    running, most = 0, 0

    def watch(rows: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.002)
        running -= 1

    row = audio(900, 1)
    with (
        enable_cuda_graphs(model, replicated(model, [2, 1]), backend=backend),
        ThreadPoolExecutor(4) as executor,
    ):
        backend.hooks.append(watch)

        def ask(_: int) -> None:
            with torch.no_grad():
                model(row[None])

        list(executor.map(ask, range(12)))
    assert most == 1


# Another plan


@pytest.mark.parametrize(
    ("backend", "swaps"),
    [(Direct, 7), (Exclusive, 7), (ExportBackend, 2)],
    ids=["direct", "exclusive", "export"],
)
def test_plans_are_swapped_under_traffic_and_no_call_is_lost(
    model: Any, backend: type[EagerBackend], swaps: int
) -> None:
    lengths = (600, 900), (500, 700, 900), (900,)
    sizes = (1, 4) if backend is not ExportBackend else (2,)
    plans = [plan_for(model, longest, sizes) for longest in lengths]
    rows = [audio(n, n) for n in (200, 480, 590, 650, 890)]
    expected = [alone(model, row) for row in rows]
    done = threading.Event()

    with enable_cuda_graphs(model, plans[0], backend=backend()) as pool:

        def ask(thread: int) -> int:
            asked = 0
            while not done.is_set() or asked < 5:
                which = (asked + thread) % len(rows)
                with torch.inference_mode():
                    if asked % 3:
                        agree(model(rows[which][None]).logits[0], expected[which])
                    else:
                        pair = [which, (which + 1) % len(rows)]
                        logits = model(**queries([rows[i] for i in pair])).logits
                        answers(logits, [expected[i] for i in pair])
                asked += 1
            return asked

        with ThreadPoolExecutor(4) as executor:
            threads = [executor.submit(ask, thread) for thread in range(4)]
            try:
                for i in range(1, swaps + 1):
                    time.sleep(0.02)
                    pool.swap(plans[i % len(plans)])
                    assert pool.plan is plans[i % len(plans)]
            finally:
                done.set()
            asked = sum(thread.result() for thread in threads)
        stats = pool.stats()
        assert stats.calls == stats.hits == asked
        last = plans[swaps % len(plans)]
        assert pool.explain(650).bucket == last.bucket_for(650)


def test_a_plan_that_cannot_be_captured_leaves_the_old_one(model: Any) -> None:
    class Small(Direct):
        def capture(self, exact: ExactForward, values: Any, lengths: Any) -> Program:
            if values.shape[1] > 1000:
                raise torch.OutOfMemoryError("no room")
            return super().capture(exact, values, lengths)

    backend, plan, row = Small(), plan_for(model), audio(600, 1)
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=backend) as pool:
        with pytest.raises(RuntimeError, match=r"the old one stays: OutOfMemoryError: no room"):
            pool.swap(plan_for(model, (900, 1500)))
        assert backend.log[-1] == ("close", 0, 0)  # of the new one, which is not left half made
        assert pool.plan is plan
        agree(model(row[None]).logits[0], alone(model, row))
        with pytest.raises(ValueError, match="plan again"):
            pool.swap(BucketPlan([50], Traffic.of([1.0], Geometry())))
        with pytest.raises(ValueError, match="for another sampling rate"):
            pool.swap(plan_for(model, rate=8_000))
        model.to(torch.bfloat16)
        with pytest.raises(RuntimeError, match=r"call pool\.rebuild\(\) before pool\.swap"):
            pool.swap(plan_for(model, (700,)))
    with pytest.raises(ValueError, match="is disabled"):
        pool.swap(plan)


def test_replan_follows_the_lengths_that_were_seen(model: Any) -> None:
    plan = plan_for(model, (300, 900), batch_sizes=(1,))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=Direct()) as pool:
        with pytest.raises(ValueError, match="0 queries"):
            pool.replan(minimum_queries=20)
        for i in range(60):
            model(audio(400 + i % 3, i)[None])
        proposal = pool.replan(minimum_queries=20)
        assert pool.plan is plan
        seen = Geometry.of(model).frames(402)
        assert seen in [bucket.frames for bucket in proposal.plan.buckets]
        now = plan.bucket_for(402)
        assert now is not None
        expected = plan_buckets(pool.sketch.traffic(), graphs=2, model=model).expected_cost
        assert proposal.gain == pytest.approx(1 - expected / now.cost, rel=1e-6)
        swapped = pool.replan(swap=True, minimum_queries=20)
        assert pool.plan is not plan
        assert pool.plan == swapped.plan
        agree(model(audio(401, 7)[None]).logits[0], alone(model, audio(401, 7)))
        assert pool.replan(swap=True, minimum_queries=20).gain == 0
    with enable_cuda_graphs(model) as eager, pytest.raises(ValueError, match="no plan to compare"):
        eager.replan()


# Prices


@pytest.mark.parametrize("slow", [1, 4])
def test_batches_go_by_what_was_measured(model: Any, slow: int) -> None:
    backend = Direct()
    # A replay of one size takes so much longer than the others that no noise turns it round.
    backend.hooks.append(lambda rows: time.sleep(0.2 if rows == slow else 0))
    plan = plan_for(model, (600, 900), batch_sizes=(1, 4))
    rows = [audio(n, n) for n in (300, 880, 410)]
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=backend) as pool:
        assert [r.batch_size for r in pool.explain([300, 880, 410]).replays] == [4]
        cost = pool.calibrate(repeats=1)
        assert cost.unit == "ms"
        assert cost.frames == tuple(bucket.frames for bucket in plan.buckets)
        assert (min(cost.replay) > 199) == (slow == 1)
        dispatch = pool.explain([300, 880, 410])
        assert [r.batch_size for r in dispatch.replays] == ([4] if slow == 1 else [1, 1, 1])
        assert dispatch.cost is not None
        answers(model(**queries(rows)).logits, [alone(model, row) for row in rows])
        assert sum(b.calls for b in pool.stats().buckets) == len(dispatch.replays)
        assert plan_buckets([0.03, 0.04], model=model, cost=cost).cost.unit == "ms"
        pool.rebuild()  # other weights, other times
        assert [r.batch_size for r in pool.explain([300, 880, 410]).replays] == [4]


def test_many_rows_run_eagerly_where_that_was_measured_to_cost_less(model: Any) -> None:
    backend = Direct()
    plan = plan_for(model, (900,), batch_sizes=(1,))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=backend) as pool:
        backend.hooks.append(lambda rows: time.sleep(0.1))
        pool.calibrate(repeats=1)
        assert pool.explain([800, 700]).reason is Reason.ROWS
        rows = [audio(800, 1), audio(700, 2)]
        answers(model(**queries(rows)).logits, [alone(model, row) for row in rows])
        assert dict(pool.stats().misses) == {Reason.ROWS: 1}


def test_what_is_not_captured_cannot_be_measured(model: Any) -> None:
    with (
        enable_cuda_graphs(model) as pool,
        pytest.raises(ValueError, match="nothing is captured that could be measured"),
    ):
        pool.calibrate()


# The dtype


@both_backends
def test_autocast_computes_in_fewer_bits_and_leaves_the_weights(model: Any, backend: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [audio(n, n) for n in (600, 440)]
    with torch.no_grad():
        exact = [alone(model, row) for row in rows]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = [alone(model, row) for row in rows]
    noise = max(float((a - b).abs().max()) for a, b in zip(coarse, exact, strict=True))
    plan = plan_for(model, batch_sizes=(2,))
    with (
        torch.no_grad(),
        enable_cuda_graphs(model, plan, backend=backend, dtype=torch.bfloat16) as pool,
    ):
        logits = model(**queries(rows)).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            same = model(**queries(rows)).logits
        assert not pool.stats().misses
        with torch.autocast("cpu", dtype=torch.float16):
            other = model(rows[0][None]).logits
        assert other.dtype == torch.float16
        assert dict(pool.stats().misses) == {Reason.AUTOCAST: 1}
    assert logits.dtype == same.dtype == coarse[0].dtype == torch.bfloat16
    assert torch.equal(logits, same)
    assert noise > 0
    for found, expected in zip(logits, exact, strict=True):
        error = float((found[: len(expected)].float() - expected).abs().max())
        assert 0 < error <= 2.5 * noise
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_dtype_that_does_not_fit_the_weights_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"dtype=torch\.float64 of a model in torch\.float32"):
        enable_cuda_graphs(model, dtype=torch.float64)
    assert "forward" not in vars(model)
    model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"load the model in the dtype"):
        enable_cuda_graphs(model, dtype=torch.float32)
    with enable_cuda_graphs(model, dtype=torch.bfloat16) as pool:  # what it is in anyway
        assert pool.explain(600).route == "exact"


# Observers


def served(model: Any, **options: Any) -> tuple[list[Served], EnabledPool]:
    events: list[Served] = []
    return events, enable_cuda_graphs(model, observers=[events.append], **options)


def test_observers_hear_of_every_call(model: Any) -> None:
    plan = plan_for(model, batch_sizes=(1, 2))
    events, pool = served(model, plan=plan, backend=Direct())
    with torch.no_grad(), pool:
        model(audio(500, 1)[None])
        model(**queries([audio(500, 1), audio(300, 2), audio(880, 3)]))
        model(audio(1000, 1)[None])
        model(audio(500, 1)[None], output_hidden_states=True)
    assert [(event.dispatch.route, event.lengths) for event in events] == [
        ("bucket", (500,)),
        ("bucket", (500, 300, 880)),
        ("exact", (1000,)),
        ("host", ()),
    ]
    assert [event.dispatch.reason for event in events[2:]] == [Reason.LONG, Reason.OUTPUTS]
    assert all(event.seconds > 0 for event in events)
    frames = plan.geometry.frames
    assert [event.filled for event in events] == [
        frames(500),
        frames(500) + frames(300) + frames(880),
        0,
        0,
    ]
    assert sum(event.added for event in events) == sum(b.added for b in pool.stats().buckets)


def test_an_observer_that_fails_fails_no_query(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Served) -> None:
        raise KeyError("no such metric")

    heard: list[Served] = []
    row = audio(500, 1)
    with (
        torch.no_grad(),
        caplog.at_level(logging.ERROR),
        enable_cuda_graphs(model, observers=[broken, heard.append]),
    ):
        for _ in range(3):
            agree(model(row[None]).logits[0], alone(model, row))
    assert len(heard) == 3
    assert [record.levelname for record in caplog.records] == ["ERROR"]
