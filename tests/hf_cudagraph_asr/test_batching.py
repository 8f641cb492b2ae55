"""Which queries go together, and what happens beside the device: without a model, in made time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cudagraph_asr import Cost, Geometry
from hf_cudagraph_asr.batching import Batcher
from hf_cudagraph_asr.dispatch import Prices, Programs, batches
from hf_cudagraph_asr.plan import BucketPlan, Traffic

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # no package, like this folder

from bench_arrivals import Service, largest, programs_of, served, simulated

GEOMETRY = Geometry()
FRAMES = (50, 100, 200)
PLAN = BucketPlan(FRAMES, Traffic.of([1.0], GEOMETRY))
Price = Callable[[int, int], float]


def measured(call: float, row: float = 1.0) -> Programs:
    """Programs of 1, 2 and 4 rows that take so long, and so long for each frame of a row."""
    replays = {(f, r): call + row * f * r for f in FRAMES for r in (1, 2, 4)}
    one = [call + row * f for f in FRAMES]
    eager = dict(zip(FRAMES, [10 * each for each in one], strict=True))
    cost = Cost(FRAMES, tuple(one), tuple(eager.values()), "ms")
    return Programs(PLAN, (1, 2, 4), Prices(cost, replays, eager))


def samples(*frames: int) -> list[int]:
    return [GEOMETRY.longest(count) for count in frames]


LINES = st.tuples(st.integers(0, 500), st.integers(0, 5)).map(
    lambda line: lambda samples, rows: line[0] + line[1] * samples * rows
)


def order(waiting: Sequence[int], most: int, price: Price) -> list[list[int]]:
    """Batches of queries that all wait, the first one first: their positions in `waiting`."""
    found: list[list[int]] = []

    async def compute(given: list[int], waits: list[float]) -> list[int]:
        found.append(given)
        return given

    async def all_at_once() -> list[int]:
        batcher = Batcher(compute, price, lanes=1)
        batcher.most = most
        asked = [batcher.ask(at, length) for at, length in enumerate(waiting)]
        return list(await asyncio.gather(*asked))

    assert simulated(all_at_once) == [*range(len(waiting))]
    return found


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(1, 6), LINES)
@settings(deadline=None)
def test_the_oldest_goes_first_and_all_that_wait_is_computed_at_the_least_cost(
    waiting: list[int], most: int, price: Price
) -> None:
    def cost(cuts: Sequence[Sequence[int]]) -> float:
        return sum(price(max(waiting[at] for at in cut), len(cut)) for cut in cuts)

    found = order(waiting, most, price)
    left = [*range(len(waiting))]
    for batch in found:
        assert batch[0] == left[0]
        assert len(batch) <= most
        assert cost([batch]) <= cost([[at] for at in batch])
        left = [at for at in left if at not in batch]
    assert not left
    assert cost(found) == cost(batches(waiting, most, price))


def test_others_of_any_length_join_where_that_costs_less_than_apart() -> None:
    waiting = samples(100, 200, 50, 50)
    dear_call, dear_rows = measured(call=1_000), measured(call=1)
    assert order(waiting, 4, dear_call.price) == [[0, 1, 2, 3]]
    assert order(waiting, 4, dear_rows.price) == [[0], [1], [2, 3]]
    # What is too long for a program takes nothing along that has one.
    for programs in (dear_call, Programs(PLAN, (1, 2, 4))):
        assert order(samples(201, 50, 202, 50), 4, programs.price) == [[0], [1, 3], [2]]


class Lanes:
    """Batches that take a second each, and notes of when they begin."""

    def __init__(self, lanes: int = 1) -> None:
        self.notes: list[str] = []
        self.bad: set[str] = set()
        self.batcher = Batcher(self.compute, lambda length, rows: 1.0, lanes)
        self.batcher.most = 8

    async def compute(self, names: Sequence[str], waits: Sequence[float]) -> list[str]:
        self.notes.append(f"{asyncio.get_running_loop().time():g} s {''.join(names)}")
        if self.bad & {*names}:
            raise RuntimeError("it cannot")
        await asyncio.sleep(1)
        return [f"{name} {wait:g}" for name, wait in zip(names, waits, strict=True)]

    def run(self, **arrivals: float) -> list[Any]:
        """Let queries arrive, each after so many seconds; their answers say what they waited."""

        async def ask(name: str, after: float) -> Any:
            await asyncio.sleep(after)
            return await self.batcher.ask(name, 1)

        async def all_of_them() -> list[Any]:
            asked = [ask(name, after) for name, after in arrivals.items()]
            return await asyncio.gather(*asked, return_exceptions=True)

        found: list[Any] = simulated(all_of_them)
        return found


def test_what_arrives_meanwhile_goes_together_when_a_lane_is_free() -> None:
    one, two = Lanes(1), Lanes(2)
    assert one.run(a=0, b=0.25, c=0.75, d=2) == ["a 0", "b 0.75", "c 0.25", "d 0"]
    assert one.notes == ["0 s a", "1 s bc", "2 s d"]
    assert two.run(a=0, b=0.25, c=0.5, d=0.75) == ["a 0", "b 0", "c 0.5", "d 0.25"]
    assert two.notes == ["0 s a", "0.25 s b", "1 s cd"]


def test_queries_may_wait_for_others_although_a_lane_is_free() -> None:
    lanes = Lanes()
    lanes.batcher.wait_s = 0.5
    assert lanes.run(a=0, b=0.25) == ["a 0.5", "b 0.25"]


def test_a_query_that_fails_fails_alone_and_the_next_is_computed() -> None:
    lanes = Lanes()
    lanes.bad = {"b"}
    first, second, third, last = lanes.run(a=0, b=0, c=0, d=3)
    assert (first, third, last) == ("a 0", "c 1", "d 0")
    assert isinstance(second, RuntimeError)


def test_answers_that_are_not_as_many_as_queries_reach_nobody() -> None:
    async def compute(given: list[int], waits: list[float]) -> list[int]:
        return [0]

    async def both() -> list[Any]:
        batcher = Batcher(compute, lambda length, rows: 1.0, lanes=1)
        batcher.most = 2
        return await asyncio.gather(batcher.ask(0, 1), batcher.ask(1, 1))

    assert simulated(both) == [0, 0]  # each alone


@pytest.mark.parametrize("own", [False, True], ids=["the computation", "its lane"])
def test_what_is_canceled_leaves_nobody_waiting(own: bool) -> None:
    async def compute(given: list[int], waits: list[float]) -> list[int]:
        if own:
            [lane] = batcher._working
            lane.cancel()
            await asyncio.sleep(0)
        if 1 in given:
            raise asyncio.CancelledError
        return given

    async def ask() -> list[Any]:
        batcher.most = 2
        asked = [batcher.ask(at, 100) for at in range(2)]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)

    batcher = Batcher(compute, lambda samples, rows: 1.0, lanes=1)
    first, second = asyncio.run(ask())
    if own:
        assert isinstance(first, asyncio.CancelledError)
        assert isinstance(second, asyncio.CancelledError)
    else:
        assert (first, str(second)) == (0, "the computation was cancelled")


def test_a_price_that_fails_or_is_no_number_leaves_nobody_waiting() -> None:
    lanes = Lanes()

    def price(length: int, rows: int) -> float:
        raise KeyError(length)

    lanes.batcher._price = price
    first, second, third = lanes.run(a=0, b=0, c=2)
    assert all(isinstance(error, KeyError) for error in (first, second, third))
    assert lanes.batcher._free == 1
    lanes.batcher._price = lambda length, rows: float("nan")
    assert lanes.run(a=0, b=0) == ["a 0", "b 1"]
    assert batches([1, 2], 0, lambda length, rows: 1.0) == [(1,), (0,)]


def test_a_batch_may_be_larger_than_what_is_looked_at_by_default() -> None:
    assert order([1] * 40, 40, lambda length, rows: 1.0) == [[*range(40)]]


def test_a_query_whose_client_left_is_not_computed() -> None:
    lanes = Lanes()

    async def leave() -> list[Any]:
        asked = [asyncio.create_task(lanes.batcher.ask(name, 1)) for name in "abc"]
        asked.append(asyncio.create_task(lanes.batcher.ask("d", 1)))
        await asyncio.sleep(0)
        asked[1].cancel()
        await asyncio.sleep(0.5)
        asked[2].cancel()  # while it is computed
        return await asyncio.gather(*asked, return_exceptions=True)

    first, left, gone, last = simulated(leave)
    assert (first, last) == ("a 0", "d 0")
    assert isinstance(left, asyncio.CancelledError)
    assert isinstance(gone, asyncio.CancelledError)
    assert lanes.notes == ["0 s acd"]


def test_nor_is_it_where_its_batch_failed() -> None:
    lanes = Lanes()
    lanes.bad = {"a"}

    async def leave() -> list[Any]:
        asked = [asyncio.create_task(lanes.batcher.ask(name, 1)) for name in "abc"]
        await asyncio.sleep(0.5)  # b is tried alone now
        asked[2].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    failed, answer, left = simulated(leave)
    assert isinstance(failed, RuntimeError)
    assert answer == "b 0"
    assert isinstance(left, asyncio.CancelledError)
    assert lanes.notes == ["0 s abc", "0 s a", "0 s b"]


def test_a_simulated_server_keeps_up_until_its_host_or_its_device_does_not() -> None:
    """One bucket, one row: a queue with a constant service, whose mean wait is known."""
    service = Service(call=1.0, row=0.0, host=0.0, lanes=1)
    programs = programs_of([1.0], 1, (1,), service)
    lengths = [16_000] * 4_000
    gaps = [0.002] * len(lengths)
    found = simulated(lambda: served(service, programs, gaps, lengths))
    assert (found.rate, found.mean_batch) == (pytest.approx(500), 1)
    assert (found.p50, found.p99, found.busy) == pytest.approx((1.0, 1.0, 0.5), rel=1e-3)
    slower = simulated(lambda: served(service, programs, [0.0005] * 100, lengths[:100]))
    assert slower.p99 == pytest.approx(50, rel=0.1)

    def outcome(rate: float) -> object:
        return simulated(lambda: served(service, programs, [1 / rate] * 200, lengths[:200]))

    assert 960 <= largest(outcome, 1.5, 100, 4_000).rate <= 1_010  # type: ignore[arg-type]
