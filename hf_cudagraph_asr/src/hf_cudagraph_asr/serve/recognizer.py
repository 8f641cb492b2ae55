"""The deployment Recognizer: a model with a pool, and the batches it is given."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from ray import serve

from hf_cudagraph_asr.serve.answer import Answer, Facts, Fault
from hf_cudagraph_asr.serve.batcher import Batcher, Query
from hf_cudagraph_asr.serve.counters import PoolCounts, RecognizerCounts
from hf_cudagraph_asr.serve.settings import Batching, ModelSettings

__all__ = ["Recognizer"]

logger = logging.getLogger(__name__)

Waveform = npt.NDArray[np.float32]

# A device that failed may fail for good, as CUDA does after an illegal access: so many batches
# in a row, and Serve is told to start another replica.
MOST_FAILURES = 3


class Recognizer:
    """One replica. It is ready when all is captured, which its constructor waits for.

    `serve.batch` collects what arrives within `batch_wait_s`, and the batcher groups it by length
    with what waits already. Texts do not depend on the batch, so nothing else has to be asked.

    Args:
        settings: of the model.
    """

    def __init__(self, settings: ModelSettings) -> None:
        from hf_cudagraph_asr.geometry import Frames
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
        self._batcher = Batcher(
            self._transcriber.transcribe, self._replica, self._buckets, self._rows
        )
        self._arrive: Any = serve.batch(self._admit)
        self.reconfigure({})

    def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Take other settings of batching, without a restart.

        Args:
            user_config: of the deployment; see `Batching`.

        Raises:
            ValueError: they are none.
        """
        batching = Batching.of(user_config)
        asked, most = batching.max_batch_size, batching.rows(self._rows)
        if asked is not None and asked > most:
            logger.warning("max_batch_size is %d, but the plan has %d rows at most", asked, most)
        self._batcher.most = most
        # A window that so many came in is full.
        self._arrive.set_max_batch_size(most)
        self._arrive.set_batch_wait_timeout_s(batching.batch_wait_s)

    def check_health(self) -> None:
        """Serve asks this every few seconds, and replaces a replica that raises.

        Raises:
            RuntimeError: the model failed several times in a row.
        """
        failures = self._batcher.failures
        if failures >= MOST_FAILURES:
            raise RuntimeError(f"the model failed {failures} times in a row: see the log")

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
            self._batcher.most,
            str(pool.explain(longest)),
        )

    async def counts(self) -> RecognizerCounts:
        """What it did so far."""
        pool = PoolCounts.of(self._transcriber.pool.stats())
        counts = copy.deepcopy(self._batcher.counts)  # it is sent from another thread
        return replace(counts, waiting=len(self._batcher), pool=pool)

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
        query = Query(np.array(waveform, dtype=np.float32))
        try:
            await self._arrive(query)
            return await query.answer
        except asyncio.CancelledError:
            query.answer.cancel()
            self._batcher.counts.dropped += 1
            raise

    async def _admit(self, queries: list[Query]) -> list[None]:
        """What came within a window. Returns at once, so that the next window opens."""
        self._batcher.add(queries)
        return [None] * len(queries)
