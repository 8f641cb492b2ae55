"""Threads on one pool: each gets its own answers, and keeps them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, answers, audio, queries
from pooled import Static, tiny
from tiny_models import plan_for

from hf_cudagraph_asr import GraphPool, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Reason

THREADS, QUERIES = 6, 60
CLIPS = [audio(40 + 37 * i, i) for i in range(24)]  # 40 to 891 samples
LONG = audio(1200, 99)

Enabled = tuple[Any, GraphPool]


@pytest.fixture(scope="module", params=["eager", "export", "static"])
def enabled(request: pytest.FixtureRequest) -> Iterator[Enabled]:
    model, backend = tiny(), request.param
    plan = plan_for(model, (900,) if backend == "export" else (300, 900))
    if backend == "static":
        backend = Static()
    with enable_cuda_graphs(model, plan, backend=backend) as pool:
        yield model, pool


def test_each_thread_gets_its_own_answers_and_keeps_them(enabled: Enabled) -> None:
    model, pool = enabled
    expected = [alone(model, clip) for clip in CLIPS]
    long = alone(model, LONG)
    before = pool.stats()
    begin, done = threading.Barrier(THREADS + 1), threading.Event()
    Kept = list[tuple[torch.Tensor, list[torch.Tensor]]]

    def ask(thread: int) -> Kept:
        """All queries of one thread; it looks at nothing before the last of them."""
        kept: Kept = []
        begin.wait()
        for i in range(QUERIES):
            one, two, three = ((i * step + thread * 5) % len(CLIPS) for step in (7, 11, 13))
            with torch.inference_mode() if i % 2 else torch.no_grad():
                if i % 20 == 10:  # the host's own
                    output = model(CLIPS[one][None], output_hidden_states=True)
                    assert len(output.hidden_states) == 2
                    kept.append((output.logits, [expected[one]]))
                elif i % 20 == 15:  # longer than the last bucket
                    kept.append((model(LONG[None]).logits, [long]))
                elif i % 5 == 3:
                    rows = [one, two, three]
                    call = queries([CLIPS[row] for row in rows])
                    kept.append((model(**call).logits, [expected[row] for row in rows]))
                elif i % 5 == 1:  # as long as each other, so without a mask
                    values = torch.stack([CLIPS[one], CLIPS[one].flip(0), CLIPS[one]])
                    logits = model(values).logits
                    kept += [(logits[:1], [expected[one]]), (logits[2:], [expected[one]])]
                else:
                    kept.append((model(CLIPS[one][None]).logits, [expected[one]]))
        return kept

    def look() -> int:
        """Somebody reads statistics all the while."""
        begin.wait()
        looks, calls = 0, 0
        while not done.wait(0.002):
            stats = pool.stats()
            assert stats.calls >= calls
            assert stats.calls == stats.hits + sum(stats.misses.values())
            calls = stats.calls
            with torch.no_grad():
                assert pool.explain([100, 600]).reason is None
            assert pool.explain(29).reason is Reason.SHORT
            looks += 1
        return looks

    with ThreadPoolExecutor(THREADS + 1) as executor:
        looks = executor.submit(look)
        try:
            answered = list(executor.map(ask, range(THREADS)))
        finally:
            done.set()
    assert looks.result() > 0
    for kept in answered:
        for logits, own in kept:
            answers(logits, own)

    after = pool.stats()
    assert after.calls - before.calls == THREADS * QUERIES
    misses = {reason: n - before.misses.get(reason, 0) for reason, n in after.misses.items()}
    hosts = {Reason.OUTPUTS: THREADS * QUERIES // 20}
    longs = {Reason.LONG: THREADS * QUERIES // 20} if pool.backend.captures else {}
    assert misses == hosts | longs


def test_answers_do_not_share_memory(enabled: Enabled) -> None:
    model, _ = enabled

    def ask(which: int) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(CLIPS[which % 4][None]).logits
        return logits

    with ThreadPoolExecutor(4) as executor:
        outputs = list(executor.map(ask, range(16)))
    assert len({output.data_ptr() for output in outputs}) == len(outputs)
    for i, output in enumerate(outputs):  # whoever writes into an answer writes into its own
        output.fill_(i)
    assert all((output == i).all() for i, output in enumerate(outputs))
    agree(ask(0)[0], alone(model, CLIPS[0]))
