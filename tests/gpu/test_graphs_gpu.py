"""A pool of CUDA graphs on a device: right in any order, from any stream, and gone afterwards.

`GRAPHS_TEST_DEVICE=cpu pytest tests/gpu/test_graphs_gpu.py` runs the same functions on
`torch.export` programs without a device, which checks the tests themselves; what asks for CUDA's
own counters is left out then. run.sh runs them on a bare machine.
"""

from __future__ import annotations

import copy
import gc
import inspect
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers

HERE = Path(__file__).parent
# This folder is no package, and neither are its neighbors.
sys.path[:0] = [str(HERE), str(HERE.parent / "hf_cudagraph_asr")]

from guards import no_synchronization  # noqa: E402
from padded_rows import TOLERANCE, audio  # noqa: E402
from tiny_models import CASES, KINDS, asks_the_host, each, plan_for  # noqa: E402

from hf_cudagraph_asr import GraphPool, enable_cuda_graphs, plan_buckets  # noqa: E402

DEVICE = os.environ.get("GRAPHS_TEST_DEVICE", "cuda")
BACKEND = {"cuda": "cuda", "cpu": "export"}[DEVICE]
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
CUDA_ONLY = pytest.mark.skipif(DEVICE != "cuda", reason="asks for CUDA itself")

# An export takes seconds, a capture does not.
CAPTURED = [name for name in CASES if not asks_the_host(name)]
COVERED = tuple(CAPTURED) if DEVICE == "cuda" else ("wav2vec2-group", "conformer-relative")
HALF = 2.5  # as in test_padding_precision
WAITS = r"synchron|not permitted"
MEBIBYTE = 2**20


@pytest.fixture(autouse=True, scope="module")
def _exact_float32(require: Callable[[object, str], None]) -> Iterator[None]:
    require(DEVICE != "cuda" or torch.cuda.is_available(), "no CUDA device")
    # Convolutions and matrices in float32 round to ten bits of mantissa where told or left to.
    kept = [(part, part.allow_tf32) for part in (torch.backends.cudnn, torch.backends.cuda.matmul)]
    for part, _ in kept:
        part.allow_tf32 = False
    yield
    for part, allowed in kept:
        part.allow_tf32 = allowed


def rows_of(lengths: Sequence[int], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [audio(length, seed).to(DEVICE, dtype) for seed, length in enumerate(lengths)]


def batch(rows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """NaN where there is no sample: whatever is heard of it shows."""
    values = torch.full((len(rows), max(map(len, rows))), torch.nan, dtype=rows[0].dtype)
    values = values.to(DEVICE)
    mask = torch.zeros(values.shape, dtype=torch.long, device=DEVICE)
    for i, row in enumerate(rows):
        values[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_values": values, "attention_mask": mask}


def unpadded(model: Any, row: torch.Tensor) -> torch.Tensor:
    """The stock model's answer to the row alone, enabled or not."""
    with torch.no_grad():
        logits: torch.Tensor = type(model).forward(model, row[None]).logits[0]
        return logits


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    found = found[: len(expected)].float()
    return float((found - expected.float()).abs().max() / expected.float().abs().max())


def stream() -> AbstractContextManager[Any]:
    """A stream of one's own, which starts when all work before is done."""
    if DEVICE != "cuda":
        return nullcontext()
    torch.cuda.synchronize()
    return torch.cuda.stream(torch.cuda.Stream())


def reason(pool: GraphPool, samples: int) -> str | None:
    why = pool.explain(samples).reason
    return None if why is None else why.name


def settle() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


# --- what is captured computes what the model does


@each(COVERED)
def test_every_family_is_captured_and_gives_the_logits_of_each_row_alone(name: str) -> None:
    model = CASES[name].build().to(DEVICE)
    rows = rows_of((900, 611, 350))
    expected = [unpadded(model, row) for row in rows]
    plan = plan_for(model, samples=(900,), batch_sizes=(4,))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=BACKEND) as pool:
        assert pool.explain(900).reason is None, pool.explain(900)
        logits = model(**batch(rows)).logits
        assert pool.stats().hits == 1
    for found, alone in zip(logits, expected, strict=True):
        assert difference(found, alone) <= TOLERANCE


@each([name for name in KINDS if name in CAPTURED] if DEVICE == "cuda" else KINDS[:1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_in_half_precision_it_is_within_the_dtypes_own_error(name: str, dtype: torch.dtype) -> None:
    model = CASES[name].build().to(DEVICE, dtype)
    full = copy.deepcopy(model).float()
    rows = rows_of((90, 250, 400, 401, 599), dtype)
    plan = plan_for(model, samples=(640,), batch_sizes=(5,))
    exact = own = scale = 0.0
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=BACKEND) as pool:
        logits = model(**batch(rows)).logits
        assert pool.stats().hits == 1, pool.explain([90] * 5)
        for found, row in zip(logits, rows, strict=True):
            alone = unpadded(model, row).float()
            truth = unpadded(full, row.float())
            exact = max(exact, float((found[: len(alone)].float() - alone).abs().max()))
            own = max(own, float((alone - truth).abs().max()))
            scale = max(scale, float(truth.abs().max()))
    assert torch.isfinite(logits).all()
    assert 0 < own / scale < 0.05
    assert exact <= HALF * own


Enabled = tuple[Any, GraphPool]
LENGTHS = (901, 880, 700, 599, 420, 333, 120, 60)


@pytest.fixture(scope="module")
def enabled(_exact_float32: None) -> Iterator[Enabled]:
    """A model and its pool of two replicas, the same for all tests that change nothing of it."""
    model = CASES["wav2vec2-group"].build().to(DEVICE)
    plan = plan_for(model, samples=(420, 901), batch_sizes=(1, 2))
    plan = replace(plan, replicas=(2,) * len(plan.lengths))
    with enable_cuda_graphs(model, plan, backend=BACKEND) as pool:
        with torch.no_grad():
            assert pool.explain(420).reason is None, pool.explain(420)
        yield model, pool


def test_replays_in_any_order_after_other_work_stay_right(enabled: Enabled) -> None:
    model, pool = enabled
    rows = rows_of(LENGTHS)
    expected = [unpadded(model, row) for row in rows]
    other = CASES["hubert-layer-stable"].build().to(DEVICE)
    chooser = random.Random(0)
    kept: list[torch.Tensor] = []
    hits = pool.stats().hits
    calls = 200 if DEVICE == "cuda" else 50
    for i in range(calls):
        which = chooser.randrange(len(rows))
        with torch.inference_mode():
            logits = model(rows[which][None]).logits[0]
            # Memory taken and given back in between, some of it full of what must not be read.
            kept.append(torch.full((chooser.randrange(1, 300_000),), torch.nan, device=DEVICE))
            if len(kept) > 20:
                kept.pop(chooser.randrange(20))
            if i % 10 == 0:
                other(rows[which][None])
                gc.collect()
        assert logits.shape == expected[which].shape
        assert difference(logits, expected[which]) <= TOLERANCE
    assert pool.stats().hits - hits == calls


def test_sixteen_threads_on_streams_of_their_own_get_their_own_answers(enabled: Enabled) -> None:
    model, pool = enabled
    rows = rows_of(LENGTHS)
    expected = [unpadded(model, row) for row in rows]
    calls = 60 if DEVICE == "cuda" else 10

    def ask(thread: int) -> float:
        worst = 0.0
        # Half of them share the default stream.
        with torch.no_grad(), stream() if thread % 2 else nullcontext():
            for i in range(calls):
                first, second = (i * 7 + thread * 3) % len(rows), (i + thread) % len(rows)
                if i % 3:
                    # Copied on this stream: the value is made here and read here.
                    found = model(rows[first][None] + 0.0).logits[0]
                    worst = max(worst, difference(found, expected[first]))
                else:
                    logits = model(**batch([rows[first], rows[second]])).logits
                    for found, which in zip(logits, (first, second), strict=True):
                        worst = max(worst, difference(found, expected[which]))
        return worst

    settle()
    before = pool.stats()
    with ThreadPoolExecutor(16) as threads:
        worst = list(threads.map(ask, range(16)))
    settle()
    assert max(worst) <= TOLERANCE
    assert pool.stats().hits - before.hits == 16 * calls
    assert pool.stats().misses == before.misses


def test_a_slow_consumers_output_is_not_overwritten(enabled: Enabled) -> None:
    model, _ = enabled
    rows = rows_of(LENGTHS)
    expected = unpadded(model, rows[0])
    busy = torch.randn(512 if DEVICE == "cpu" else 8192, 512, device=DEVICE)
    with torch.no_grad():
        with stream():
            output = model(rows[0][None]).logits[0]
            for _ in range(500 if DEVICE == "cuda" else 2):  # what it waits for before it reads
                busy = busy @ (busy.mT @ busy).softmax(-1)
            seen = output.clone()
            # Given back while it is still to be read: the memory is this stream's to reuse.
            del output
        for i in range(50):
            model(rows[i % len(rows)][None] * 1000)
            torch.full((1, 901), torch.nan, device=DEVICE)
    settle()
    assert difference(seen, expected) <= TOLERANCE


def test_a_loud_query_is_not_heard_in_the_silent_one_after_it(enabled: Enabled) -> None:
    model, _ = enabled
    silence = torch.zeros(1, 430, device=DEVICE)
    loud = 1000 * audio(901, 0).to(DEVICE)[None]
    with torch.no_grad():
        first = model(silence).logits
        model(loud)
        model(**batch([loud[0], loud[0, :880]]))
        assert torch.equal(model(silence).logits, first)
        together = model(**batch([silence[0], silence[0, :425]])).logits
    assert difference(together[0], unpadded(model, silence[0])) <= TOLERANCE


def test_a_replay_without_a_mask_never_waits_for_the_device(enabled: Enabled) -> None:
    model, pool = enabled
    rows = rows_of((901, 333))
    expected = [unpadded(model, row) for row in rows]
    settle()
    hits = pool.stats().hits
    with torch.no_grad():
        with no_synchronization(DEVICE):
            found = [model(row[None]).logits[0] for row in rows]
        with no_synchronization(DEVICE), pytest.raises(RuntimeError, match=WAITS):
            found[0].sum().item()  # the guard sees what waits
    assert pool.stats().hits - hits == 2
    for logits, alone in zip(found, expected, strict=True):
        assert difference(logits, alone) <= TOLERANCE


@CUDA_ONLY
def test_an_uneven_batch_never_waits_for_the_device(enabled: Enabled) -> None:
    model, pool = enabled
    lengths = (901, 333)
    rows = rows_of(lengths)
    expected = [unpadded(model, row) for row in rows]
    inputs = batch(rows)
    values, mask = inputs["input_values"], inputs["attention_mask"].cpu()
    settle()
    hits = pool.stats().hits
    with torch.no_grad(), no_synchronization(DEVICE):
        masked = model(values, attention_mask=mask).logits
        told, dispatch = pool.call(values, lengths)
        split, _ = pool.call(torch.cat([values, values[:1]]), [*lengths, 901])  # two replays
    assert pool.stats().hits - hits == 3
    assert dispatch.route == "bucket"
    for logits in (masked, told, split):
        for found, alone in zip(logits, expected, strict=False):
            assert difference(found, alone) <= TOLERANCE


# --- the model changes


def test_weights_changed_in_place_are_used_and_exchanged_ones_noticed() -> None:
    model = CASES["wav2vec2-group"].build().to(DEVICE)
    row = rows_of((420,))[0]
    plan = plan_for(model, samples=(420,), batch_sizes=(1,))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=BACKEND) as pool:
        before = model(row[None]).logits[0]
        model.load_state_dict(CASES["wav2vec2-group"].build(1).state_dict())
        found = model(row[None]).logits[0]
        assert difference(found, unpadded(model, row)) <= TOLERANCE
        assert difference(found, before) > 0.1
        assert pool.stats().hits == 2

        state = CASES["wav2vec2-group"].build(2).to(DEVICE).state_dict()
        model.load_state_dict(state, assign=True)
        gc.collect()
        assert difference(model(row[None]).logits[0], unpadded(model, row)) <= TOLERANCE
        assert reason(pool, 420) == "CHANGED"
        pool.rebuild()
        assert difference(model(row[None]).logits[0], unpadded(model, row)) <= TOLERANCE
        assert pool.stats().hits == 3


def test_another_plan_under_traffic_drops_breaks_and_delays_no_call() -> None:
    model = CASES["wav2vec2-layer"].build().to(DEVICE)
    rows = rows_of(LENGTHS)
    expected = [unpadded(model, row) for row in rows]
    stop = [False]
    answered = [0] * 4

    def ask(thread: int) -> float:
        worst = 0.0
        with torch.no_grad(), stream():
            while not stop[0] or answered[thread] < 5:
                which = (thread + answered[thread]) % len(rows)
                found = model(rows[which][None]).logits[0]
                worst = max(worst, difference(found, expected[which]))
                answered[thread] += 1
        return worst

    plans = [plan_for(model, samples=ends, batch_sizes=(1,)) for ends in ((901,), (420, 901))]
    with (
        enable_cuda_graphs(model, plans[0], backend=BACKEND) as pool,
        ThreadPoolExecutor(4) as threads,
    ):
        asked = [threads.submit(ask, thread) for thread in range(4)]
        try:
            while min(answered) < 3:
                time.sleep(0.01)
            for plan in plans[::-1]:
                before = min(answered)
                pool.swap(plan)
                assert pool.plan is plan
                # An export has the model for itself; of CUDA graphs a capture stops nobody.
                assert DEVICE != "cuda" or min(answered) - before >= 3
        finally:
            stop[0] = True
        worst = [future.result() for future in asked]
        assert pool.stats().calls == sum(answered)
        assert not pool.stats().misses
    assert max(worst) <= TOLERANCE


# --- how graphs are captured


@dataclass(frozen=True)
class Circumstances:
    """Of one capture."""

    thread: int
    stream: int
    collects: bool


class Noted(torch.cuda.CUDAGraph):
    """Graphs of a pool, with notes of how each was captured and how often it was replayed."""

    captures: ClassVar[list[Circumstances]] = []
    replays: ClassVar[list[int]] = []

    def capture_begin(self, *args: Any, **kwargs: Any) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        self.captures.append(Circumstances(threading.get_ident(), stream, gc.isenabled()))
        super().capture_begin(*args, **kwargs)

    def replay(self) -> None:
        self.replays.append(id(self))
        super().replay()


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> type[Noted]:
    Noted.captures.clear()
    Noted.replays.clear()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Noted)
    return Noted


@CUDA_ONLY
def test_captures_have_a_thread_and_a_stream_apart_and_end_with_a_replay(
    noted: type[Noted],
) -> None:
    # As many as an application may hold: PyTorch hands the first ones out again after them.
    callers = {torch.cuda.Stream().cuda_stream for _ in range(64)}
    model = CASES["wav2vec2-group"].build().to(DEVICE)
    plans = [plan_for(model, samples=ends, batch_sizes=(1, 2)) for ends in ((901,), (420, 901))]
    with torch.no_grad(), enable_cuda_graphs(model, plans[0], backend=BACKEND) as pool:
        assert len(noted.captures) == plans[0].captures, pool.explain(901)
        pool.swap(plans[1])
        assert len(noted.captures) == sum(plan.captures for plan in plans)
        # The first replay of a graph loads it onto the device: no query is to wait for that.
        assert sorted(map(noted.replays.count, set(noted.replays))) == [1] * len(noted.captures)
        # What cuDNN plans for a shape it keeps by thread.
        assert len({capture.thread for capture in noted.captures}) == 1
        assert threading.get_ident() not in {capture.thread for capture in noted.captures}
        # Work of a caller on such a stream would be captured in the place of run.
        assert not {capture.stream for capture in noted.captures} & callers
        # Garbage collection may destroy another graph, which ends a capture.
        assert not any(capture.collects for capture in noted.captures)
        assert gc.isenabled()


@CUDA_ONLY
def test_callers_on_any_stream_work_on_while_plans_are_swapped() -> None:
    model = CASES["wav2vec2-group"].build().to(DEVICE)
    plans = [plan_for(model, samples=ends, batch_sizes=(1,)) for ends in ((901,), (420, 901))]
    streams = [torch.cuda.Stream() for _ in range(32)]  # all that there are
    stop = [False]

    def work(own: Sequence[torch.cuda.Stream]) -> int:
        done = 0
        while not stop[0] or not done:
            for one in own:
                with torch.cuda.stream(one):
                    values = torch.full((1000,), float(done % 1000), device=DEVICE)
                    assert float((values * 2).sum()) == 2000 * (done % 1000)  # waits for its stream
            done += 1
        return done

    with (
        torch.no_grad(),
        enable_cuda_graphs(model, plans[0], backend=BACKEND) as pool,
        ThreadPoolExecutor(4) as threads,
    ):
        asked = [threads.submit(work, streams[i::4]) for i in range(4)]
        try:
            for plan in plans[::-1] * 2:
                pool.swap(plan)
        finally:
            stop[0] = True
        assert min(future.result() for future in asked) > 0


@CUDA_ONLY
def test_a_caller_that_is_capturing_gets_the_models_own_forward_in_its_graph() -> None:
    model = CASES["wav2vec2-group"].build().to(DEVICE)
    row = rows_of((600,))[0][None].clone()
    plan = plan_for(model, samples=(600,), batch_sizes=(1,))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=BACKEND) as pool:
        expected = [unpadded(model, row[0])]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = model(row).logits
        assert {why.name: n for why, n in pool.stats().misses.items()} == {"CAPTURING": 1}
        graph.replay()
        found = [logits[0].clone()]
        row.copy_(audio(600, 7)[None])  # the graph reads it where it lies
        expected.append(unpadded(model, row[0]))
        graph.replay()
        found.append(logits[0].clone())
        for one, other in zip(found, expected, strict=True):
            assert difference(one, other) <= TOLERANCE
        assert difference(model(row).logits[0], expected[1]) <= TOLERANCE
        assert pool.stats().hits == 1


@CUDA_ONLY
def test_reduced_precision_of_float32_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = CASES["wav2vec2-group"].build().to(DEVICE)
    plan = plan_for(model, samples=(600,), batch_sizes=(1,))
    try:
        for allowed in (True, False):  # torch starts with the first
            torch.backends.cudnn.allow_tf32 = allowed
            caplog.clear()
            with torch.no_grad(), enable_cuda_graphs(model, plan, backend=BACKEND):
                for _ in range(2):
                    model(torch.zeros(1, 600, device=DEVICE))
            said = [record.message for record in caplog.records]
            assert sum("TensorFloat32" in line for line in said) == allowed, said
    finally:
        torch.backends.cudnn.allow_tf32 = False


# --- what cannot be captured


def fails(name: str) -> dict[str, Any]:
    """In a process of its own, as a capture that failed may leave its memory taken."""
    done = subprocess.run(
        [sys.executable, str(HERE / "uncapturable.py"), name, DEVICE],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_stock_masked_forward_fails_to_capture_and_the_exact_one_does_not() -> None:
    found = fails("stock")
    assert not found["exact"]
    assert "captur" in found["stock"], found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("asking", "host wait|data-dependent|_local_scalar_dense", id="seen before"),
        pytest.param("waiting", "captur", id="seen in the capture", marks=CUDA_ONLY),
    ],
)
def test_what_cannot_be_captured_leaves_the_model_right_and_the_process_in_order(
    name: str, words: str
) -> None:
    found = fails(name)
    assert found["reason"] == "FAILED", found
    assert re.search(words, found["detail"]), found
    assert found["error"] <= TOLERANCE
    # Before torch 2.13 a failed capture leaves the generator and the allocator in it.
    assert found["random"] == "", "CUDA random numbers raise after it"
    assert found["taken"] < 32 * MEBIBYTE, "memory of the failed capture stays taken"
    assert found["given_back"] >= 2**28, "the allocator gives nothing back any more"
    assert found["error_after"] <= TOLERANCE
    assert found["route_after"] == "bucket", "it can be captured once the cause is gone"


@CUDA_ONLY
@each([name for name in CASES if asks_the_host(name)][:1])
def test_a_model_that_copies_from_the_host_is_refused_before_any_capture(
    name: str, noted: type[Noted]
) -> None:
    model = CASES[name].build().to(DEVICE)
    row = rows_of((600,))[0]
    with torch.no_grad(), enable_cuda_graphs(model, plan_for(model), backend=BACKEND) as pool:
        assert reason(pool, 600) == "FAILED"
        assert "copies between" in pool.explain(600).detail
        assert not noted.captures
        torch.randn(3, device=DEVICE)
        assert difference(model(row[None]).logits[0], unpadded(model, row)) <= TOLERANCE


# --- memory


def published(layers: int, **changes: Any) -> Any:
    """The published base geometry with random weights."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(num_hidden_layers=layers, **changes)
    return transformers.Wav2Vec2ForCTC(config).eval().to(DEVICE)


def reserved() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


@CUDA_ONLY
def test_memory_returns_when_a_pool_is_disabled() -> None:
    model = published(2)
    values = torch.randn(1, 128_000, device=DEVICE)
    plan = plan_buckets([2.0, 8.0], graphs=2, model=model)
    with torch.no_grad():
        model(values)
        before = reserved()
        held = []
        for _ in range(2):
            with enable_cuda_graphs(model, plan, backend=BACKEND) as pool:
                model(values)
                held.append(pool.stats().memory)
                assert pool.stats().hits == 1, pool.explain(128_000)
                assert reserved() - before >= 0.8 * held[-1]
    assert min(held) > 100 * MEBIBYTE
    # What a library keeps for each stream, such as the workspace of cuBLAS, may stay; no pool does.
    assert reserved() - before < min(held)


@CUDA_ONLY
def test_out_of_memory_leaves_the_model_eager_and_right() -> None:
    model = published(2)
    row = torch.randn(1, 16_000, device=DEVICE)
    plan = plan_buckets([1.0, 60.0], graphs=2, model=model)
    total = torch.cuda.get_device_properties(0).total_memory
    with torch.no_grad():
        expected = model(row).logits[0]
        before = reserved()
        limit = before + 256 * MEBIBYTE  # enough for a second of audio, not for a minute
        torch.cuda.set_per_process_memory_fraction(limit / total)
        try:
            with enable_cuda_graphs(model, plan, backend=BACKEND) as pool:
                assert reason(pool, 16_000) == "FAILED"
                assert "memory" in pool.explain(16_000).detail
                # The thread that captures keeps its workspace of cuBLAS.
                assert reserved() <= before + 100 * MEBIBYTE
                torch.randn(3, device=DEVICE)
                assert difference(model(row).logits[0], expected) <= TOLERANCE
                torch.cuda.set_per_process_memory_fraction(1.0)
                pool.rebuild()
                assert difference(model(row).logits[0], expected) <= TOLERANCE
                assert pool.explain(16_000).route == "bucket"
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


@CUDA_ONLY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_sixteen_graphs_of_base_are_within_a_gibibyte(dtype: torch.dtype) -> None:
    model = published(12).to(dtype)
    durations = np.random.default_rng(0).lognormal(np.log(1.8), 0.5, 10_000).clip(0.1, 8)
    plan = plan_buckets(np.append(durations, 8.0), graphs=16, model=model)
    assert len(plan.buckets) == 16
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=BACKEND) as pool:
        assert pool.explain(16_000).reason is None, pool.explain(16_000)
        assert 0 < pool.stats().memory <= 1024 * MEBIBYTE


# --- CUDA's own guards


CHECKED = "check_input_liveness" in inspect.signature(torch.cuda.CUDAGraph.capture_begin).parameters


class Watched(torch.cuda.CUDAGraph):
    """A graph that raises at a replay where something it reads is gone."""

    def capture_begin(self, *args: Any, **kwargs: Any) -> None:
        super().capture_begin(*args, **{**kwargs, "check_input_liveness": True})


@CUDA_ONLY
@pytest.mark.skipif(not CHECKED, reason="torch before 2.13 does not look")
def test_all_that_graphs_read_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Watched)
    graph, dead = Watched(), torch.ones(1000, device=DEVICE)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        dead + 1
    del dead
    with pytest.raises(RuntimeError, match="dead tensor"):  # it does look
        graph.replay()

    for name in ("wav2vec2-group", "conformer-relative", "conformer-rotary"):
        model = CASES[name].build().to(DEVICE)
        row = rows_of((600,))[0]
        with (
            torch.no_grad(),
            enable_cuda_graphs(model, plan_for(model, batch_sizes=(1,)), backend=BACKEND) as pool,
        ):
            gc.collect()
            torch.cuda.empty_cache()
            assert difference(model(row[None]).logits[0], unpadded(model, row)) <= TOLERANCE
            assert pool.stats().hits == 1


@CUDA_ONLY
# Both are of torch 2.11: its own import, and a product of float32 that is lowered.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.filterwarnings("ignore:TensorFloat32")
@each(("wav2vec2-group", "wav2vec2-layer-stable"))
def test_graphs_of_the_compiled_forward_give_the_models_logits(name: str) -> None:
    model = CASES[name].build().to(DEVICE)
    rows = rows_of((900, 611))
    expected = [unpadded(model, row) for row in rows]
    plan = plan_for(model, samples=(600, 900), batch_sizes=(1, 2))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend="compile") as pool:
        assert pool.explain(900).reason is None, pool.explain(900)
        alone = [model(row[None]).logits[0] for row in rows]
        together = model(**batch(rows)).logits
        assert pool.stats().hits == 3
    for found, stock in zip([*alone, *together], [*expected, *expected], strict=True):
        assert difference(found, stock) <= TOLERANCE


@CUDA_ONLY
def test_pools_capture_on_streams_of_their_own() -> None:
    # PyTorch hands out the same stream again after 32 others.
    model = CASES["wav2vec2-group"].build().to(DEVICE)
    row = rows_of((420,))[0]
    plan = plan_for(model, samples=(420,), batch_sizes=(1,))
    with torch.no_grad(), enable_cuda_graphs(model, plan, backend=BACKEND) as pool:
        expected = model(row[None]).logits[0].clone()
        for _ in range(33):
            other = CASES["wav2vec2-group"].build(1).to(DEVICE)
            with enable_cuda_graphs(other, plan, backend=BACKEND):
                assert difference(other(row[None]).logits[0], unpadded(other, row)) <= TOLERANCE
        assert torch.equal(model(row[None]).logits[0], expected)
        assert pool.stats().hits == 2
