"""`Batcher`: the way of queries through a model, in batches by cost.

No torch and no Ray: a simulation runs it in simulated time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_cudagraph_asr.dispatch import batches

LOOK = 32  # waiting queries, the oldest, from which a batch of no more is chosen: .2 ms


@dataclass(eq=False)
class _Query:
    """`answer` is cancelled with the client's request, and then the query is not computed."""

    given: Any
    samples: int
    arrived: float  # of the event loop's clock, in seconds
    answer: asyncio.Future[Any] = field(default_factory=asyncio.Future)


class Batcher:
    """Computes queries in batches, a few at a time: one on the device, and one on the host.

    While all lanes are busy, arrivals wait. When one is free, the oldest goes next, with those that
    share its batch where all that wait cost least: others of any length, if apart they cost more.
    So nothing waits under light load, batches grow with the load, and no query waits for ever.

    Args:
        compute: makes an answer for each query of a batch, of the queries and the seconds that each
            has waited. Where it fails, each query of the batch is computed again alone.
        price: as in `batches`.
        lanes: batches at a time.

    Attributes:
        most: queries of a batch.
        wait_s: seconds that queries wait for others although a lane is free.
    """

    def __init__(
        self,
        compute: Callable[[list[Any], list[float]], Awaitable[Sequence[Any]]],
        price: Callable[[int, int], float],
        lanes: int,
    ) -> None:
        self._compute, self._price = compute, price
        self._free = lanes
        self._waiting: list[_Query] = []
        self._working: set[asyncio.Task[None]] = set()  # the event loop does not hold them
        self.most, self.wait_s = 1, 0.0

    async def ask(self, given: Any, samples: int) -> Any:
        """Answer a query of so many samples; raises what was raised for it alone, or by `price`."""
        query = _Query(given, samples, asyncio.get_running_loop().time())
        self._waiting.append(query)
        if self._free:
            self._free -= 1
            task = asyncio.create_task(self._work())
            self._working.add(task)
            task.add_done_callback(self._working.discard)
        return await query.answer

    async def _work(self) -> None:
        """Compute batch after batch, until nothing waits."""
        try:
            await asyncio.sleep(self.wait_s)
            while batch := self._take():
                if not await self._computed(batch) and len(batch) > 1:
                    # Retry one by one, so that one bad query does not fail the batch.
                    for query in batch:
                        if not query.answer.done():
                            await self._computed([query])
        finally:  # at once: whatever arrives from here on starts a lane
            self._free += 1

    def _take(self) -> list[_Query]:
        """Take the batch of the oldest query out of those that wait."""
        waiting = [query for query in self._waiting if not query.answer.done()]
        oldest = waiting[: max(LOOK, self.most)]
        try:
            cuts = batches([query.samples for query in oldest], self.most, self._price)
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            for query in waiting:
                query.answer.set_exception(error)
            cuts, waiting = [], []
        taken = [oldest[at] for at in next((cut for cut in cuts if 0 in cut), ())]
        self._waiting = [query for query in waiting if query not in taken]
        return taken

    async def _computed(self, batch: list[_Query]) -> bool:
        """Answer a batch. Where that fails, answer a single query only, and return False."""
        now = asyncio.get_running_loop().time()
        waits = [now - query.arrived for query in batch]
        try:
            answers = await self._compute([query.given for query in batch], waits)
            answered = [*zip(batch, answers, strict=True)]
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # not the computation, but this lane ends
                for query in batch:
                    query.answer.cancel()
                raise
            if isinstance(error, asyncio.CancelledError):  # which would seem to be the asker's own
                error = RuntimeError("the computation was cancelled")
            if len(batch) == 1 and not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return False
        for query, answer in answered:
            if not query.answer.done():  # or the client left
                query.answer.set_result(answer)
        return True
