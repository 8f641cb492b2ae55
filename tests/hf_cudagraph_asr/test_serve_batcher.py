"""One device and its batches: by length, nobody's failure another's, nobody's leaving either."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hf_cudagraph_asr.dispatch import Dispatch
from hf_cudagraph_asr.serve.answer import Answer, Fault
from hf_cudagraph_asr.serve.batcher import Batcher, Query
from hf_cudagraph_asr.words import Transcript

BUCKETS = (100, 200)


class Device:
    """Says how long each waveform is, once it is let; notes what it was given together.

    A real one that fails cannot be had on demand: this one fails at what contains a 1.
    """

    def __init__(self, error: type[Exception] = RuntimeError) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.error = error

    def transcribe(self, waveforms: Sequence[Any]) -> list[Transcript]:
        assert self.free.wait(30)
        self.batches.append([len(waveform) for waveform in waveforms])
        if any(waveform.any() for waveform in waveforms):
            raise self.error("it cannot")
        return [Transcript(str(len(w)), (), 0.0, 1.0, Dispatch("exact")) for w in waveforms]


def texts(answers: Sequence[Answer | Fault]) -> list[str]:
    return [
        answer.transcript.text if isinstance(answer, Answer) else answer.detail
        for answer in answers
    ]


async def ask(batcher: Batcher, lengths: Sequence[int], bad: Sequence[int] = ()) -> list[Query]:
    """Queries of these lengths, the first of which is on the device when this returns."""
    queries = [Query(np.full(n, float(at in bad), np.float32)) for at, n in enumerate(lengths)]
    batcher.add(queries[:1])
    await asyncio.sleep(0.05)
    batcher.add(queries[1:])
    return queries


def test_what_waits_for_the_device_goes_together_by_length() -> None:
    async def run() -> None:
        device = Device()
        batcher = Batcher(device.transcribe, "r", BUCKETS, (1, 2))
        batcher.most = 2
        lengths = [50, 60, 150, 70, 160, 80, 400]
        queries = await ask(batcher, lengths)
        assert len(batcher) == 6
        device.free.set()
        answers = await asyncio.gather(*(query.answer for query in queries))
        assert texts(answers) == [str(n) for n in lengths]
        assert device.batches == [[50], [60, 70], [150, 160], [80], [400]]
        assert [answer.batch for answer in answers] == [1, 2, 2, 2, 2, 1, 1]
        assert batcher.counts.batch_sizes.total == 7
        assert sum(batcher.counts.waited.counts) == 7
        assert len(batcher) == 0

    asyncio.run(run())


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_failure_costs_nobody_else_an_answer(error: type[Exception]) -> None:
    async def run() -> None:
        device = Device(error)
        batcher = Batcher(device.transcribe, "r", BUCKETS)
        batcher.most = 8
        queries = await ask(batcher, [50, 60, 70, 80], bad=[2])
        device.free.set()
        answers = await asyncio.gather(*(query.answer for query in queries))
        assert texts(answers) == ["50", "60", f"{error.__name__}: it cannot", "80"]
        assert device.batches == [[50], [60, 70, 80], [60], [70], [80]]
        assert batcher.counts.failed == 1
        assert batcher.failures == 0  # in a row: the last one went well

    asyncio.run(run())


def test_a_device_that_only_fails_is_told_from_queries_that_are_refused() -> None:
    async def run(error: type[Exception]) -> int:
        device = Device(error)
        device.free.set()
        batcher = Batcher(device.transcribe, "r")
        for _ in range(3):
            (query,) = await ask(batcher, [50], bad=[0])
            assert isinstance(await query.answer, Fault)
        return batcher.failures

    assert asyncio.run(run(RuntimeError)) == 3
    assert asyncio.run(run(ValueError)) == 0


def test_whoever_left_is_not_computed_and_disturbs_nobody() -> None:
    async def run() -> None:
        device = Device()
        batcher = Batcher(device.transcribe, "r", BUCKETS)
        batcher.most = 8
        queries = await ask(batcher, [50, 60, 70, 80])
        queries[0].answer.cancel()  # on the device already
        queries[2].answer.cancel()
        device.free.set()
        assert texts(await asyncio.gather(queries[1].answer, queries[3].answer)) == ["60", "80"]
        assert device.batches == [[50], [60, 80]]

    asyncio.run(run())
