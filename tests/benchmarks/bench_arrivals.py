"""How many queries a second a server takes: a simulation, by the package's own scheduler.

    python tests/benchmarks/bench_arrivals.py
    python tests/benchmarks/bench_arrivals.py --call .45 --row .0008 --rates 4000
    python tests/benchmarks/bench_arrivals.py --collections
    python tests/benchmarks/bench_arrivals.py --limit 200 --rates 5 --serve OTHER/src THIS/src

Nothing of it has run on a GPU: what a replay and the host's work take are arguments. Queries arrive
by a Poisson process, their lengths are log-normal, and the buckets are planned for them. The
server's `Batcher` runs as it is, in an event loop whose clock jumps to the next event; batches
are chosen by the prices that `calibrate` would measure, and dispatched as a pool dispatches them.
Left out are HTTP, Ray, and what threads lose by handing over to each other.

The host works on one batch at a time, as one interpreter does, and so does the device. In series
there is one lane, whose host waits for its device and the other way around; with two lanes, as the
server has on a GPU, the host works on one batch while the device computes another.

With --serve nothing is simulated: `hf-cudagraph-asr serve` of each source folder answers over HTTP,
with docs/examples/tinyvoice on this machine's cores, which the client shares. All get the same
arrivals, in turns, at rates that rise by a quarter while p99 keeps the limit once in two tries.
Beside the model is a request's time, when it is the only one, without what its answer says that
the model took; processor is what all processes of a server use.

With --collections it is the milliseconds of a full garbage collection in a process that holds what
a Recognizer holds, during which no query is answered: before `gc.freeze()`, and after.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import figures
import httpx
import numpy as np
import psutil
import soundfile
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from hf_cudagraph_asr import Cost, Dispatch, plan_buckets
from hf_cudagraph_asr.batching import Batcher
from hf_cudagraph_asr.dispatch import Prices, Programs, decide

TINYVOICE = Path(__file__).parents[2] / "docs/examples/tinyvoice"
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
    cost = Cost(tuple(frames), tuple(one), tuple(eager), "ms")
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


@dataclass(frozen=True)
class Server:
    """A server that runs: its address, and the process that has started all others."""

    source: Path
    url: str
    process: psutil.Process

    def processor(self) -> float:
        """Seconds that its processes have used."""
        spent = 0.0
        for one in (self.process, *self.process.children(recursive=True)):
            times = one.cpu_times()
            spent += times.user + times.system
        return spent

    async def loaded(self, bodies: Sequence[bytes], rate: float, seed: int) -> tuple[Outcome, Any]:
        """What arrivals of these recordings at a rate lead to, and the answers."""
        arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(bodies)))
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            start = perf_counter()

            async def post(arrival: float, body: bytes) -> tuple[float, Any]:
                await asyncio.sleep(start + arrival - perf_counter())
                response = await client.post(self.url, content=body)
                spent = perf_counter() - start - arrival
                if response.status_code == 200:
                    return 1e3 * spent, response.json()
                return np.inf, {"batch": 1, "milliseconds": 0.0}  # refused

            posted = [post(*each) for each in zip(arrivals.tolist(), bodies, strict=True)]
            milliseconds, answers = zip(*await asyncio.gather(*posted), strict=True)
            spent = perf_counter() - start
        p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99), method="higher").tolist()
        batches = sum(1 / answer["batch"] for answer in answers)
        busy = sum(answer["milliseconds"] / answer["batch"] for answer in answers) / 1e3 / spent
        return Outcome(rate, len(bodies) / batches, p50, p95, p99, busy), answers


@contextmanager
def server(source: Path, plan: Path) -> Iterator[Server]:
    """Run `hf-cudagraph-asr serve` of a source folder, on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from hf_cudagraph_asr.cli import script; script()", "serve"]
    command += ["--model", str(TINYVOICE / "model"), "--plan", str(plan), "--port", str(port)]
    command += ["--device", "cpu", "--backend", "export"]
    # Short, as Ray's sockets lie in it; and not where others look for a Ray to connect to.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as temporary:
        environment = os.environ | {"PYTHONPATH": str(source.resolve()), "RAY_TMPDIR": temporary}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                if not any(line.startswith("metrics: ") for line in process.stdout):
                    raise RuntimeError(f"the server of {source} did not start")
                url = f"http://127.0.0.1:{port}/transcribe"
                yield Server(source, url, psutil.Process(process.pid))
            finally:
                process.terminate()


def real(options: argparse.Namespace, table: Table) -> list[dict[str, Any]]:
    """Load real servers; a row for each rate of each."""
    files = sorted((TINYVOICE / "recordings").glob("*.flac"))
    recordings = [file.read_bytes() for file in files]
    plan = plan_buckets(
        [soundfile.info(file).duration for file in files],
        graphs=4,
        batch_sizes=options.rows,
        model=AutoConfig.from_pretrained(TINYVOICE / "model"),
    )
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan.save(folder / "plan.json")
        servers = [stack.enter_context(server(one, folder / "plan.json")) for one in options.serve]
        beside = {}
        for one in servers:
            alone = []
            for body in [recordings[0], *recordings]:
                outcome, [answer] = asyncio.run(one.loaded([body], 1e9, 0))
                inside = answer["milliseconds"] + answer["waited_milliseconds"]
                alone.append(outcome.p50 - inside)
            beside[one] = float(np.median(alone[1:]))
        rate = options.rates[0]
        while servers:
            for one in tuple(servers):
                for seed in range(2):
                    draw = np.random.default_rng(seed)
                    count = max(round(rate * options.seconds), 20)
                    bodies = [recordings[draw.integers(len(recordings))] for _ in range(count)]
                    before = one.processor()
                    found, _ = asyncio.run(one.loaded(bodies, rate, seed))
                    processor = 1e3 * (one.processor() - before) / count
                    row = {"processor": processor, "beside": beside[one]}
                    rows.append({"source": str(one.source), **asdict(found), **row})
                    table.add_row(
                        str(1 + options.serve.index(one.source)),
                        f"{rate:,.1f}",
                        f"{found.mean_batch:.2f}",
                        *(f"{value:.0f} ms" for value in (found.p50, found.p95, found.p99)),
                        f"{found.busy:.0%}",
                        f"{processor:.1f} ms",
                        f"{beside[one]:.1f} ms",
                    )
                    if found.p99 <= options.limit:
                        break
                else:
                    servers.remove(one)
            rate *= 1.25
    return rows


def collections() -> list[float]:
    """Milliseconds of full collections around `gc.freeze()`: one before it, and one after."""
    import hf_cudagraph_asr.serve  # noqa: F401 - a replica has its modules too
    from hf_cudagraph_asr import Transcriber

    taken: list[float] = []

    def timed(phase: str, about: dict[str, int]) -> None:
        if about["generation"] == 2:
            taken.append((1e3 if phase == "stop" else -1e3) * perf_counter())

    files = sorted((TINYVOICE / "recordings").glob("*.flac"))
    config = AutoConfig.from_pretrained(TINYVOICE / "model")
    durations = [soundfile.info(file).duration for file in files]
    plan = plan_buckets(durations, graphs=4, batch_sizes=(1, 4), model=config)
    with Transcriber.from_pretrained(TINYVOICE / "model", plan=plan, backend="export"):
        gc.collect()  # the garbage of the start
        gc.callbacks.append(timed)
        gc.collect()
        gc.freeze()
        gc.collect()
        gc.callbacks.remove(timed)
        gc.unfreeze()
    return [sum(taken[:2]), sum(taken[2:])]


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
    parser.add_argument("--serve", type=Path, nargs="+", help="source folders of real servers")
    parser.add_argument("--collections", action="store_true", help="time garbage collections")
    parser.add_argument("--seconds", type=float, default=20, help="of each rate of real servers")
    parser.add_argument("--json", type=Path)
    figures.add_option(parser)
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 100)
    if options.collections:
        before, after = collections()
        console.print(f"a full collection: {before:.0f} ms, and {after:.2f} ms after gc.freeze()")
        return written([{"before": before, "after": after}], options.json)
    if options.serve:
        table = Table("server", "queries/s", "mean batch", "p50", "p95", "p99", "model busy")
        table.add_column("processor, a query")
        table.add_column("beside the model")
        table.title = "; ".join(f"{at}: {one}" for at, one in enumerate(options.serve, 1))
        rows = real(options, table)
        console.print(table)
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        console.print(f"load of the machine at the end, of {os.cpu_count()} cores: {load}")
        return written(rows, options.json)
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
    console.print(table)
    largest_of = {row["lanes"]: row["rate"] for row in rows if row["largest"]}
    first, *others = largest_of
    what = f"simulated queries a second with p99 ≤ {options.limit:g} ms"
    ratios = [
        figures.Figure.of(
            f"{what}: {lanes} lanes / {first}",
            largest_of[lanes] / largest_of[first],
            better="higher",
            margin=0.05,
        )
        for lanes in others
    ]
    figures.save("arrivals", ratios, options.save, packages=("hf_cudagraph_asr",))
    console.print(f"at most: the largest rate found with p99 ≤ {options.limit:g} ms")
    return written(rows, options.json)


def written(rows: Sequence[dict[str, Any]], file: Path | None) -> int:
    if file is not None:
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
