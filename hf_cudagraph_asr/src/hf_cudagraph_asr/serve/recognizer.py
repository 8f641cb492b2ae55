"""The deployment Recognizer: a model with a pool, and the batches it is given."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from ray import serve

from hf_cudagraph_asr.serve.answer import Answer, Facts, Fault
from hf_cudagraph_asr.serve.backlog import Backlog, length_class
from hf_cudagraph_asr.serve.counters import PoolCounts, RecognizerCounts
from hf_cudagraph_asr.serve.settings import Batching, ModelSettings

if TYPE_CHECKING:
    from hf_cudagraph_asr.words import Transcript

__all__ = ["Recognizer"]

logger = logging.getLogger(__name__)

Waveform = npt.NDArray[np.float32]

# A device that failed may fail for good, as CUDA does after an illegal access: so many batches
# in a row, and Serve is told to start another replica.
MOST_FAILURES = 3


class _Query:
    """A waveform and the future of its answer."""

    def __init__(self, waveform: Waveform) -> None:
        self.waveform = waveform
        self.arrived = perf_counter()
        # Cancelled with the request it was made for: then nobody waits for it any more.
        self.answer: asyncio.Future[Answer | Fault] = asyncio.get_running_loop().create_future()


class Recognizer:
    """One replica. It is ready when all is captured, which its constructor waits for.

    `serve.batch` collects what arrives within `batch_wait_s`; the backlog groups it by length
    with what waits already; one thread runs one batch at a time. While the device is busy the
    backlog grows, and so do the batches: under light load nothing waits, under heavy load the
    rows fill up. Texts do not depend on the batch, so nothing else has to be asked of it.

    Args:
        settings: of the model.
    """

    def __init__(self, settings: ModelSettings) -> None:
        from hf_cudagraph_asr.families import Frames
        from hf_cudagraph_asr.transcriber import Transcriber

        self._transcriber = Transcriber.from_pretrained(
            settings.model,
            plan=settings.plan,
            backend=settings.backend,
            device=settings.device,
            dtype=settings.dtype,
            batch_sizes=settings.batch_sizes,
        )
        pool = self._transcriber.pool
        self._buckets: tuple[int, ...] = ()
        if pool.plan is not None:
            self._buckets = tuple(bucket.samples for bucket in pool.plan.buckets)
        captures = pool.backend.captures and bool(self._buckets)
        self._rows: tuple[int, ...] = tuple(pool.batch_sizes) if captures else ()
        self._shortest = Frames.of(self._transcriber.model.config).receptive_field
        self._replica = serve.get_replica_context().replica_tag
        self._batching = Batching()
        self._backlog: Backlog[_Query] = Backlog()
        self._counts = RecognizerCounts(self._replica)
        self._failures = 0
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._working: asyncio.Task[None] | None = None
        self._arrive: Any = serve.batch(self._admit)
        self.reconfigure({})

    def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Take other settings of batching, without a restart.

        Args:
            user_config: of the deployment; see `Batching`.

        Raises:
            ValueError: they are none.
        """
        self._batching = Batching.of(user_config)
        asked, most = self._batching.max_batch_size, self._most
        if asked is not None and asked > most:
            logger.warning("max_batch_size is %d, but the plan has %d rows at most", asked, most)
        # A window that so many came in is full.
        self._arrive.set_max_batch_size(most)
        self._arrive.set_batch_wait_timeout_s(self._batching.batch_wait_s)

    @property
    def _most(self) -> int:
        return self._batching.rows(self._rows)

    def check_health(self) -> None:
        """Serve asks this every few seconds, and replaces a replica that raises.

        Raises:
            RuntimeError: the model failed several times in a row.
        """
        if self._failures >= MOST_FAILURES:
            raise RuntimeError(f"the model failed {self._failures} times in a row: see the log")

    async def facts(self) -> Facts:
        """What a Gateway must know."""
        pool = self._transcriber.pool
        longest = self._buckets[-1] if self._buckets else self._transcriber.sampling_rate
        return Facts(
            self._replica,
            os.getpid(),
            self._transcriber.sampling_rate,
            self._shortest,
            pool.backend.name,
            self._buckets if self._rows else (),
            self._rows,
            self._most,
            str(pool.explain(longest)),
        )

    async def counts(self) -> RecognizerCounts:
        """What it did so far."""
        pool = PoolCounts.of(self._transcriber.pool.stats())
        counts = copy.deepcopy(self._counts)  # it is sent from another thread
        return replace(counts, waiting=len(self._backlog), pool=pool)

    async def transcribe(self, waveform: Waveform, sampling_rate: int) -> Answer | Fault:
        """Transcribe one query, in a batch with others.

        Args:
            waveform: (T,) float32, finite: the Gateway has checked it.
            sampling_rate: samples a second that the Gateway took the model to take.
        """
        expected = self._transcriber.sampling_rate
        if sampling_rate != expected:
            return Fault("stale", f"{sampling_rate} samples a second, expected {expected}")
        # Before it is in a batch: what is refused there would be refused with all the others.
        if (fault := self._transcriber.fault(waveform)) is not None:
            return Fault("refused", fault)
        # A copy: what Ray hands over lies in shared memory, which is not writable.
        query = _Query(np.array(waveform, dtype=np.float32))
        try:
            await self._arrive(query)
            return await query.answer
        except asyncio.CancelledError:
            query.answer.cancel()
            self._counts.dropped += 1
            raise

    async def _admit(self, queries: list[_Query]) -> list[None]:
        """Let what came within a window wait. Returns at once: each has a future of its own."""
        for query in queries:
            self._backlog.add(query, length_class(len(query.waveform), self._buckets))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return [None] * len(queries)

    async def _work(self) -> None:
        """Batch after batch, until nothing waits."""
        while batch := self._backlog.take(
            self._most, self._rows, lambda query: not query.answer.done()
        ):
            now = perf_counter()
            self._counts.batch_sizes.observe(len(batch))
            for query in batch:
                self._counts.waited.observe(now - query.arrived)
            error = await self._run(batch, now)
            if error is not None and len(batch) > 1:
                # Whatever it was, it is not to cost the others theirs.
                for query in batch:
                    await self._run([query], now)

    async def _run(self, batch: list[_Query], now: float) -> BaseException | None:
        """Answer these queries; a single one that fails gets a fault."""
        waveforms = [query.waveform for query in batch]
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._device, self._transcriber.transcribe, waveforms)
        await asyncio.wait([future])
        error = future.exception()
        if error is None:
            self._failures = 0
            for query, transcript in zip(batch, future.result(), strict=True):
                self._answer(query, self._done(query, transcript, len(batch), now))
        else:
            logger.error("a batch of %d failed", len(batch), exc_info=error)
            # What a ValueError refuses is the query's fault and not the device's.
            self._failures += not isinstance(error, ValueError)
            if len(batch) == 1:
                self._counts.failed += 1
                detail = f"{type(error).__name__}: {error}"
                self._answer(batch[0], Fault("failed", detail))
        return error

    def _done(self, query: _Query, transcript: Transcript, batch: int, now: float) -> Answer:
        return Answer(transcript, self._replica, batch, 1000 * (now - query.arrived))

    def _answer(self, query: _Query, answer: Answer | Fault) -> None:
        if not query.answer.done():
            query.answer.set_result(answer)
