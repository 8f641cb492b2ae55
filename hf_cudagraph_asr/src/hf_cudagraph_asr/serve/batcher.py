"""One device, and the batches it is given: by length, the oldest first. No Ray, no torch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.serve.answer import Answer, Fault
from hf_cudagraph_asr.serve.backlog import Backlog, length_class
from hf_cudagraph_asr.serve.counters import RecognizerCounts

if TYPE_CHECKING:
    from hf_cudagraph_asr.words import Transcript

__all__ = ["Batcher", "Query"]

logger = logging.getLogger(__name__)

Waveform = npt.NDArray[np.float32]


class Query:
    """A waveform, (T,) float32, and the future of its answer; made on the event loop."""

    def __init__(self, waveform: Waveform) -> None:
        self.waveform = waveform
        self.arrived = perf_counter()
        # Cancelled with the request it was made for: then nobody waits for it any more.
        self.answer: asyncio.Future[Answer | Fault] = asyncio.get_running_loop().create_future()


class Batcher:
    """Gives one thread one batch at a time, on the event loop it is first used on.

    While the device is busy the backlog grows, and so do the batches: under light load nothing
    waits, under heavy load the rows fill up.

    Args:
        transcribe: the transcripts of waveforms, in their order; called in a thread of its own.
        replica: whose answers these are.
        buckets: samples of each bucket, ascending; empty without a plan.
        rows: batch sizes captured, ascending; empty where nothing is.

    Attributes:
        most: queries of a batch.
        counts: what was done so far.
        failures: batches in a row that the device failed at.
    """

    def __init__(
        self,
        transcribe: Callable[[list[Waveform]], Sequence[Transcript]],
        replica: str,
        buckets: Sequence[int] = (),
        rows: Sequence[int] = (),
    ) -> None:
        self.most = 1
        self.counts = RecognizerCounts(replica)
        self.failures = 0
        self._transcribe = transcribe
        self._buckets = buckets
        self._rows = rows
        self._backlog: Backlog[Query] = Backlog()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._working: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Queries that wait."""
        return len(self._backlog)

    def add(self, queries: Sequence[Query]) -> None:
        """Let queries wait for the device. Returns at once; each has a future of its own."""
        for query in queries:
            self._backlog.add(query, length_class(len(query.waveform), self._buckets))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        """Batch after batch, until nothing waits."""
        while batch := self._backlog.take(
            self.most, self._rows, lambda query: not query.answer.done()
        ):
            now = perf_counter()
            self.counts.batch_sizes.observe(len(batch))
            for query in batch:
                self.counts.waited.observe(now - query.arrived)
            error = await self._run(batch, now)
            if error is not None and len(batch) > 1:
                # Whatever it was, it is not to cost the others theirs.
                for query in batch:
                    await self._run([query], now)

    async def _run(self, batch: list[Query], now: float) -> BaseException | None:
        """Answer these queries; a single one that fails gets a fault."""
        waveforms = [query.waveform for query in batch]
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._device, self._transcribe, waveforms)
        await asyncio.wait([future])
        error = future.exception()
        if error is None:
            self.failures = 0
            for query, transcript in zip(batch, future.result(), strict=True):
                waited = 1000 * (now - query.arrived)
                _tell(query, Answer(transcript, self.counts.replica, len(batch), waited))
        else:
            logger.error("a batch of %d failed", len(batch), exc_info=error)
            # What a ValueError refuses is the query's fault and not the device's.
            self.failures += not isinstance(error, ValueError)
            if len(batch) == 1:
                self.counts.failed += 1
                _tell(batch[0], Fault("failed", f"{type(error).__name__}: {error}"))
        return error


def _tell(query: Query, answer: Answer | Fault) -> None:
    if not query.answer.done():
        query.answer.set_result(answer)
