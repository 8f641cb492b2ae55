"""How many queries a second a server takes: a simulation, by the package's own scheduler.

    python tests/benchmarks/bench_arrivals.py
    python tests/benchmarks/bench_arrivals.py --call .45 --row .0008 --rates 4000

Nothing of it has run on a GPU: what a replay and the host's work take are arguments. Queries arrive
by a Poisson process, their lengths are log-normal, and the buckets are planned for them. The
server's `Batcher` runs as it is, in an event loop whose clock jumps to the next event; batches
are chosen by the prices that `calibrate` would measure, and dispatched as a pool dispatches them.
Left out are HTTP, Ray, and what threads lose by handing over to each other.

The host works on one batch at a time, as one interpreter does, and so does the device. In series
there is one lane, whose host waits for its device and the other way around; with two lanes, as the
server has on a GPU, the host works on one batch while the device computes another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hf_cudagraph_asr import Cost, Dispatch, plan_buckets
from hf_cudagraph_asr.batching import Batcher
from hf_cudagraph_asr.dispatch import Prices, Programs, decide

SAMPLING_RATE = 16_000
BEFORE = 0.6  # of the host's work: what comes before the device, which is the features
EAGER = 10.0  # times a replay's milliseconds: assumed; few queries are longer than the last bucket


@dataclass(frozen=True)
class Service:
    """Milliseconds that things take.

    Attributes:
        call: a replay, beside its rows.
        row: a frame of a row of a replay; empty rows count.
        host: the host's work for a query.
        lanes: batches at a time.
    """

    call: float
    row: float
    host: float
    lanes: int


@dataclass(frozen=True)
class Outcome:
    """What a rate of arrivals leads to: percentiles are milliseconds from arrival to answer.

    Attributes:
        rate: queries a second.
        mean_batch: queries of a batch.
        busy: part of the time that the device computes.
    """

    rate: float
    mean_batch: float
    p50: float
    p95: float
    p99: float
    busy: float


class Jumping(selectors.SelectSelector):
    """Waits for nothing: the clock of its event loop jumps by what it would have waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return []


def simulated(work: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Run asyncio code in simulated time."""

    def loop() -> asyncio.AbstractEventLoop:
        selector = Jumping()
        made = asyncio.SelectorEventLoop(selector)
        made.time = lambda: selector.now  # type: ignore[method-assign]
        return made

    async def awaited() -> Outcome:
        return await work()

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(awaited())


def programs_of(
    durations: Sequence[float], graphs: int, rows: Sequence[int], service: Service
) -> Programs:
    """Programs planned for a traffic, with the prices that `calibrate` would measure."""
    plan = plan_buckets(durations, graphs=graphs, batch_sizes=rows)
    frames = [bucket.frames for bucket in plan.buckets]
    replays = {(f, r): service.call + service.row * f * r for f in frames for r in rows}
    one = [service.call + service.row * f for f in frames]
    eager = [EAGER * each for each in one]
    cost = Cost.measured(frames, one, eager)
    return Programs(plan, rows, Prices(cost, replays, dict(zip(frames, eager, strict=True))))


async def served(
    service: Service, programs: Programs, gaps: Sequence[float], lengths: Sequence[int]
) -> Outcome:
    """Let queries arrive, each so many seconds after the one before."""
    loop = asyncio.get_running_loop()
    host, device = asyncio.Lock(), asyncio.Lock()
    computed: list[tuple[int, float]] = []  # queries and milliseconds of each batch

    async def work(place: asyncio.Lock, milliseconds: float) -> None:
        async with place:
            await asyncio.sleep(milliseconds / 1e3)

    async def compute(samples: Sequence[int], waits: Sequence[float]) -> list[float]:
        cost = decide(samples, programs, Dispatch("exact")).cost
        if cost is None:  # longer than the last bucket
            cost = programs.price(max(samples), len(samples))
        computed.append((len(samples), cost))
        of_host = service.host * len(samples)
        await work(host, BEFORE * of_host)
        await work(device, cost)
        await work(host, (1 - BEFORE) * of_host)
        return [loop.time()] * len(samples)

    batcher = Batcher(compute, programs.price, service.lanes)
    batcher.most = programs.batch_sizes[-1]

    async def asked(samples: int) -> float:
        arrival = loop.time()
        return await batcher.ask(samples, samples) - arrival

    asking = []
    for gap, samples in zip(gaps, lengths, strict=True):
        await asyncio.sleep(gap)
        asking.append(asyncio.create_task(asked(samples)))
    milliseconds = 1e3 * np.array(await asyncio.gather(*asking))
    p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99)).tolist()
    sizes, busy = zip(*computed, strict=True)
    rate = len(gaps) / sum(gaps)
    return Outcome(rate, float(np.mean(sizes)), p50, p95, p99, sum(busy) / 1e3 / loop.time())


def largest(outcome: Callable[[float], Outcome], limit: float, low: float, high: float) -> Outcome:
    """The outcome at the largest rate whose p99 keeps the limit, to 2%."""
    best = outcome(low)
    while best.p99 > limit:
        high, low = low, low / 2
        best = outcome(low)
    while high / low > 1.02:
        found = outcome(middle := (low * high) ** 0.5)
        if found.p99 <= limit:
            best, low = found, middle
        else:
            high = middle
    return best


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--call", type=float, default=0.9, help="ms of a replay, beside its rows")
    parser.add_argument("--row", type=float, default=0.0011, help="ms of a frame of a row")
    parser.add_argument("--host", type=float, default=0.25, help="ms of the host, for a query")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1157, 2900])
    parser.add_argument("--limit", type=float, default=20, help="ms that p99 may be")
    parser.add_argument("--median", type=float, default=1.8, help="seconds of audio")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the lengths' logarithms")
    parser.add_argument("--graphs", type=int, default=16)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    draw = np.random.default_rng(0)
    durations = options.median * np.exp(options.sigma * draw.normal(size=options.queries))
    lengths = [round(SAMPLING_RATE * seconds) for seconds in durations]
    gaps = draw.exponential(size=options.queries)
    gaps /= gaps.mean()

    table = Table("lanes", "queries/s", "mean batch", "p50", "p95", "p99", "device busy")
    table.title = (
        f"simulated: {options.call:g} ms + {1e3 * options.row:g} µs a frame-row, "
        f"{options.host:g} ms of host a query"
    )
    rows: list[dict[str, Any]] = []
    for lanes in options.lanes:
        service = Service(options.call, options.row, options.host, lanes)
        programs = programs_of(durations.tolist(), options.graphs, options.rows, service)

        def outcome(
            rate: float, service: Service = service, programs: Programs = programs
        ) -> Outcome:
            return simulated(lambda: served(service, programs, (gaps / rate).tolist(), lengths))

        def row(found: Outcome, lanes: int, note: str = "") -> None:
            rows.append({"lanes": lanes, "largest": bool(note), **asdict(found)})
            table.add_row(
                str(lanes),
                f"{found.rate:,.0f}{note}",
                f"{found.mean_batch:.2f}",
                *(f"{value:.1f} ms" for value in (found.p50, found.p95, found.p99)),
                f"{found.busy:.0%}",
            )

        for rate in options.rates:
            row(outcome(rate), lanes)
        most = 1e3 / options.host  # no more is done by the host
        row(largest(outcome, options.limit, most / 2, most), lanes, " at most")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"at most: the largest rate found with p99 ≤ {options.limit:g} ms")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
