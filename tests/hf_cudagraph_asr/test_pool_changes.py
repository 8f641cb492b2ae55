"""What changes in a pool while it serves: replicas, plans, prices, observers."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, answers, audio, queries
from pooled import Exclusive, Static, serves
from tiny_models import CASES, plan_for

from hf_cudagraph_asr import (
    BucketPlan,
    Geometry,
    GraphPool,
    Served,
    enable_cuda_graphs,
    plan_buckets,
)
from hf_cudagraph_asr.backends import ExportBackend
from hf_cudagraph_asr.dispatch import Reason


@pytest.fixture
def model() -> Any:
    return CASES["wav2vec2-layer"].build(num_hidden_layers=1)


def replicated(model: Any) -> BucketPlan:
    """Two replicas of the shorter bucket, one of the longer."""
    return replace(plan_for(model, (600, 900), (1,)), replicas=(2, 1))


def test_everything_is_warmed_padded_and_then_captured_and_run_largest_first(model: Any) -> None:
    backend, plan = Static(), plan_for(model)
    with enable_cuda_graphs(model, plan, backend=backend) as pool:
        shapes = [(rows, bucket.samples) for bucket in plan.buckets for rows in (1, 4)]
        shapes.sort(key=lambda shape: -shape[0] * shape[1])
        made = [(step, *shape) for shape in shapes for step in ("capture", "replay")]
        assert backend.log == [*(("warm", *shape) for shape in shapes), *made]
        inputs = sum(rows * samples * 4 + 4 * rows * 8 for rows, samples in shapes)
        assert pool.stats().memory == inputs
        assert 0 < pool.stats().capture_seconds < 60
        assert pool.stats().calls == 0
    assert backend.log[-1] == ("close", 0, 0)
    assert pool.stats().memory == 0


# Replicas


def test_replicas_of_a_bucket_run_at_the_same_time(model: Any) -> None:
    backend, row = Static(), audio(600, 1)
    expected = alone(model, row)
    plan = replicated(model)
    with enable_cuda_graphs(model, plan, backend=backend):
        captured = sorted(shape for step, _, shape in backend.log if step == "capture")
        assert captured == [plan.buckets[0].samples] * 2 + [plan.buckets[1].samples]
        together = threading.Barrier(2, timeout=60)
        backend.hooks.append(lambda _: together.wait())

        def ask(_: int) -> torch.Tensor:
            with torch.no_grad():
                logits: torch.Tensor = model(row[None]).logits[0]
            return logits

        with ThreadPoolExecutor(2) as executor:  # in one replica the first would wait for ever
            for logits in executor.map(ask, range(4)):
                agree(logits, expected)


def test_a_split_batch_runs_in_a_replica_that_has_all_its_buckets(model: Any) -> None:
    rows = [audio(900, 1), audio(600, 2)]
    expected = [alone(model, row) for row in rows]
    with torch.no_grad(), enable_cuda_graphs(model, replicated(model), backend=Static()) as pool:
        for _ in range(2):  # the second time another replica would be taken
            answers(model(**queries(rows)).logits, expected)
        assert [(b.frames, b.calls) for b in pool.stats().buckets] == [(29, 2), (44, 2)]


def test_a_bucket_without_another_replica_runs_once_at_a_time(model: Any) -> None:
    backend, row = Static(), audio(900, 1)
    running, most = 0, 0

    def watch(_: torch.Tensor) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.002)
        running -= 1

    with (
        enable_cuda_graphs(model, replicated(model), backend=backend),
        ThreadPoolExecutor(3) as executor,
    ):
        backend.hooks.append(watch)

        def ask(_: int) -> None:
            with torch.no_grad():
                model(row[None])

        list(executor.map(ask, range(9)))
    assert most == 1


# Another plan


@pytest.mark.parametrize("backend", [Static(), Exclusive(), ExportBackend()], ids=type)
def test_plans_are_swapped_under_traffic_and_no_call_is_lost(model: Any, backend: Any) -> None:
    swaps = 2 if isinstance(backend, ExportBackend) else 6
    plans = [plan_for(model, (longest,), (2,)) for longest in (900, 910)]
    rows = [audio(n, n) for n in (200, 480, 890)]
    expected = [alone(model, row) for row in rows]
    done = threading.Event()

    with enable_cuda_graphs(model, plans[0], backend=backend) as pool:

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

        with ThreadPoolExecutor(3) as executor:
            threads = [executor.submit(ask, thread) for thread in range(3)]
            try:
                for i in range(1, swaps + 1):
                    time.sleep(0.02)
                    pool.swap(plans[i % 2])
                    assert pool.plan is plans[i % 2]
            finally:
                done.set()
            asked = sum(thread.result() for thread in threads)
        stats = pool.stats()
        assert stats.calls == stats.hits == asked
        with torch.no_grad():
            assert pool.explain(650).bucket == plans[swaps % 2].bucket_for(650)


def test_a_plan_that_cannot_be_captured_leaves_the_old_one(model: Any) -> None:
    class Small(Static):
        def capture(self, exact: Any, input_values: Any, lengths: Any) -> Any:
            if input_values.shape[1] > 1000:
                raise torch.OutOfMemoryError("no room")
            return super().capture(exact, input_values, lengths)

    backend, plan = Small(), plan_for(model)
    with enable_cuda_graphs(model, plan, backend=backend) as pool:
        with pytest.raises(RuntimeError, match=r"the old one stays: OutOfMemoryError: no room"):
            pool.swap(plan_for(model, (900, 1500)))
        assert backend.log[-1] == ("close", 0, 0)  # of the new one, which is not left half made
        assert pool.plan is plan
        serves(model)
        with pytest.raises(ValueError, match="plan again"):
            pool.swap(plan_buckets([1.0], graphs=1))
        with pytest.raises(ValueError, match="for another sampling rate"):
            pool.swap(plan_for(model, rate=8_000))
        assert pool.stats().hits == 2
        model.to(torch.bfloat16)
        with pytest.raises(RuntimeError, match=r"call pool\.rebuild\(\) before pool\.swap"):
            pool.swap(plan_for(model, (700,)))
    with pytest.raises(ValueError, match="is disabled"):
        pool.swap(plan)


def test_an_eager_pool_may_be_given_another_plan(model: Any) -> None:
    with enable_cuda_graphs(model, plan_for(model)) as pool:
        pool.swap(plan_for(model, (700,)))
        serves(model)
        assert (pool.stats().hits, pool.stats().memory) == (2, 0)


def test_a_call_overtaken_by_a_swap_is_replayed_by_the_new_plan(model: Any) -> None:
    backend, row = Static(), audio(600, 1)
    expected = alone(model, row)
    held, go = threading.Event(), threading.Event()

    def wait(_: torch.Tensor) -> None:
        if threading.current_thread() in callers:  # not the one that captures
            held.set()
            assert go.wait(60)

    results: list[torch.Tensor] = []

    def ask() -> None:
        with torch.no_grad():
            results.append(model(row[None]).logits[0])

    callers = [threading.Thread(target=ask) for _ in range(3)]
    with enable_cuda_graphs(model, plan_for(model, (600,)), backend=backend) as pool:
        backend.hooks.append(wait)
        for thread in callers:
            thread.start()
        assert held.wait(60)  # one runs, the others wait for its replica
        swapping = threading.Thread(target=pool.swap, args=(plan_for(model, (900,)),))
        swapping.start()
        go.set()
        for thread in (*callers, swapping):
            thread.join(60)
        assert (pool.stats().hits, dict(pool.stats().misses)) == (3, {})
    for found in results:
        agree(found, expected)


def test_replan_follows_the_lengths_that_were_seen(model: Any) -> None:
    plan = plan_for(model, (300, 900), batch_sizes=(1,))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=Static()) as pool:
        with pytest.raises(ValueError, match="0 queries"):
            pool.replan(minimum_queries=20)
        for i in range(30):
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


def test_a_new_plan_keeps_the_batch_sizes_that_were_asked_for(model: Any) -> None:
    plan = plan_for(model, (300, 900), batch_sizes=(1,))
    with enable_cuda_graphs(model, plan, backend=Static(), batch_sizes=(1, 4)) as pool:
        for i in range(60):
            pool.sketch.add(400 + i % 3)
        proposal = pool.replan(swap=True, minimum_queries=20)
        assert proposal.worthwhile
        assert pool.plan is proposal.plan
        assert pool.batch_sizes == (1, 4)
        pool.call(torch.randn(2, 400))
        assert [bucket.batch_size for bucket in pool.stats().buckets] == [4]


# Prices


@pytest.mark.parametrize("slow", [1, 4])
def test_batches_go_by_what_was_measured(model: Any, slow: int) -> None:
    backend = Static()
    plan = plan_for(model, (600, 900), batch_sizes=(1, 4))
    rows = [audio(n, n) for n in (300, 880, 410)]
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=backend) as pool:
        # A replay of one size takes so much longer than the others that no noise turns it round.
        backend.hooks.append(lambda values: time.sleep(0.2 if len(values) == slow else 0))
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
        assert plan_buckets(plan.traffic, model=model, cost=cost).cost.unit == "ms"
        pool.rebuild()  # other weights, other times
        assert [r.batch_size for r in pool.explain([300, 880, 410]).replays] == [4]


def test_many_rows_run_eagerly_where_that_was_measured_to_cost_less(model: Any) -> None:
    backend = Static()
    plan = plan_for(model, (900,), batch_sizes=(1,))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=backend) as pool:
        backend.hooks.append(lambda _: time.sleep(0.2))
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


# Observers


def observed(model: Any, **options: Any) -> tuple[list[Served], GraphPool]:
    events: list[Served] = []
    return events, enable_cuda_graphs(model, observers=[events.append], **options)


def test_observers_get_an_event_of_every_call(model: Any) -> None:
    plan = plan_for(model, batch_sizes=(1, 2))
    events, pool = observed(model, plan=plan, backend=Static())
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
    assert [event.dispatch.filled for event in events] == [
        frames(500),
        frames(500) + frames(300) + frames(880),
        0,
        0,
    ]
    added = sum(event.dispatch.computed - event.dispatch.filled for event in events)
    assert added == sum(b.added for b in pool.stats().buckets)


def test_an_observer_that_fails_fails_no_query(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Served) -> None:
        raise KeyError("no such metric")

    seen: list[Served] = []
    with (
        caplog.at_level(logging.ERROR),
        enable_cuda_graphs(model, observers=[broken, seen.append]),
    ):
        serves(model)
    assert len(seen) == 2
    assert [record.levelname for record in caplog.records] == ["ERROR"]
