"""Load a real `hf-cudagraph-asr serve` for half an hour while its replicas are killed.

    python tests/faults/soak_server.py                 # 30 minutes
    python tests/faults/soak_server.py --minutes 2 --kill-every 25

The server has docs/examples/tinyvoice's model, two Recognizers and a Gateway, and listens on the
loopback address. It is sent whole recordings of many lengths and formats, damaged, too long and too
large bodies, clients that leave and clients that stall, on its own API and OpenAI's, at a bounded
rate and sometimes all at once. Meanwhile processes are killed with signal 9: at first a Recognizer,
both at once, or the Gateway; then always the younger Recognizer, so that the other processes live
on and their memory can be watched.

Whole recordings are to be answered with the text that a Transcriber has for each alone, in this
process; others as the server itself answers them once, alone, before all this. In place of either
may come a refusal that docs/serving.md names for a server under load. The Gateway's own death ends
the requests it holds: what Serve answers then counts for as long as the Gateway is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import record
import soundfile
from damage import damaged
from transformers import AutoConfig

from hf_cudagraph_asr import Transcriber, plan_buckets, read_audio

TINYVOICE = Path(__file__).parents[2] / "docs/examples/tinyvoice"
RATE = 16_000
REPLICAS = 2
COMMAND = [sys.executable, "-c", "from hf_cudagraph_asr.cli import script; script()", "serve"]
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,  # or Ray writes one to the home folder
    "RAY_worker_niceness": "0",  # or what else runs here comes first
    "OMP_NUM_THREADS": "1",
}
SETTINGS = {
    "timeout_s": 20,
    "max_seconds": 12,
    "max_bytes": 2**20,
    "max_ongoing": 8,
    "max_queued": 24,
    "calibrate": 1,
    "cpus": 0.1,
}
PATIENCE = 3 * SETTINGS["timeout_s"]  # seconds after which a request counts as unanswered

# What docs/serving.md allows a server under load to say to any request for a transcript.
LATER = {"overloaded", "not_ready", "timeout", "replica_died"}
NAMED = {
    400: {"empty", "undecodable", "unsupported_audio", "bad_request", "invalid_value",
          "unsupported_parameter"},
    404: {"not_found", "model_not_found"},
    405: {"method_not_allowed"},
    408: {"slow_body"},
    413: {"too_large", "too_long"},
    415: {"unsupported_type"},
    503: LATER,
}  # fmt: skip

LARGE = "bodies that are too large"

Answer = tuple[int, str]  # the status; the text, or the refusal's word


@dataclass(frozen=True)
class Query:
    """A request that can be sent again and again.

    Attributes:
        kind: for counts.
        method, path, options: of the request, as httpx takes them.
        read: finds the text in the body of an answer.
    """

    kind: str
    path: str = "/transcribe"
    method: str = "POST"
    options: dict[str, Any] = field(default_factory=dict)
    read: Callable[[httpx.Response], str] = lambda response: response.json()["text"]


@dataclass
class Found:
    """What happened; `wrong` holds a line for each thing that must not be."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            self.wrong.append(what)
            print(f"WRONG: {what}", file=sys.stderr, flush=True)


# Queries


def encoded(samples: Any, rate: int, kind: str) -> bytes:
    """A recording as a file: of soundfile's formats, or by ffmpeg."""
    options: dict[str, Any] = {
        "wav": {"format": "WAV", "subtype": "PCM_16"},
        "float": {"format": "WAV", "subtype": "FLOAT"},
        "flac": {"format": "FLAC"},
        "ogg": {"format": "OGG", "subtype": "VORBIS"},
        "mp3": {"format": "MP3"},
    }
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, **options.get(kind, options["wav"]))
    return stream.getvalue() if kind in options else by_ffmpeg(stream.getvalue(), "wav", kind)


def by_ffmpeg(content: bytes, kind: str, wanted: str) -> bytes:
    """A file in another format, by way of files, as M4A is not written to pipes."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / f"given.{kind}", Path(folder) / f"made.{wanted}"
        given.write_bytes(content)
        subprocess.run(["ffmpeg", "-loglevel", "error", "-i", given, made], check=True)
        return made.read_bytes()


def cue_text(response: httpx.Response) -> str:
    """The text of SubRip or WebVTT: what stands below a line of times."""
    lines = response.text.splitlines()
    return " ".join(lines[at + 1] for at, line in enumerate(lines) if " --> " in line)


READERS: dict[str, Callable[[httpx.Response], str]] = {
    "json": lambda response: response.json()["text"],
    "verbose_json": lambda response: response.json()["text"],
    "text": lambda response: response.text.removesuffix("\n"),
    "srt": cue_text,
    "vtt": cue_text,
}


def sent(body: bytes, kind: str, way: str) -> Query:
    """A file as the body itself, in a form, or in a form of OpenAI's with a format's name."""
    if way == "body":
        return Query(kind, options={"content": body})
    files = {"file": ("query", body)}
    if way == "form":
        return Query(kind, options={"files": files})
    fields = {"model": "tinyvoice", "response_format": way}
    options = {"files": files, "data": fields}
    return Query(kind, "/v1/audio/transcriptions", "POST", options, READERS[way])


def whole(rng: random.Random, count: int) -> Iterator[tuple[Query, bytes, bytes]]:
    """Recordings of .3 to 11 s: parts of the shipped ones, and several in a row.

    Yields:
        What to send, the file in it, and the file as `read_audio` takes it.
    """
    shipped = [read_audio(file, RATE) for file in sorted(TINYVOICE.glob("recordings/*.flac"))]
    kinds = ["wav", "float", "flac", "ogg", "mp3", *(["m4a"] if shutil.which("ffmpeg") else [])]
    ways = itertools.cycle(["body", "form", *READERS])
    for number in range(count):
        samples = np.concatenate(rng.sample(shipped, rng.choice((1, 1, 1, 1, 2, 3))))
        longest = min(len(samples), 11 * RATE)
        if rng.random() < 0.3:
            longest = rng.randint(int(0.3 * RATE), longest)
        samples, rate = samples[:longest], RATE
        if number % 9 == 4:  # to be resampled
            samples, rate = np.repeat(samples, 2), 2 * RATE
        if number % 7 == 3:
            samples = np.stack([samples, samples], 1)
        kind = kinds[number % len(kinds)]
        body = encoded(samples, rate, kind)
        readable = by_ffmpeg(body, kind, "wav") if kind == "m4a" else body
        yield sent(body, "whole recordings", next(ways)), body, readable


def others(bodies: Sequence[bytes], rng: random.Random) -> list[Query]:
    """What is to be refused, and what may be."""
    tone = np.sin(np.arange(13 * RATE) / 9)
    three = np.zeros((RATE, 3))
    broken = np.full(RATE, np.nan)
    found = [
        sent(
            damaged(rng.choice(bodies), rng, cut=True),
            "damaged files",
            rng.choice(("body", "json")),
        )
        for _ in range(60)
    ]
    found += [
        sent(b"", "no audio, or too much of it", "body"),
        sent(rng.randbytes(5000), "no audio, or too much of it", "form"),
        sent(encoded(tone, RATE, "flac"), "no audio, or too much of it", "body"),
        sent(encoded(three, RATE, "wav"), "no audio, or too much of it", "json"),
        sent(encoded(broken, RATE, "float"), "no audio, or too much of it", "body"),
        sent(bytes(SETTINGS["max_bytes"] + 1), LARGE, "body"),
        sent(bytes(2 * SETTINGS["max_bytes"]), LARGE, "form"),
        Query("other paths and fields", "/nothing", "GET"),
        Query("other paths and fields", "/transcribe", "GET"),
        Query("other paths and fields", options={"files": {"other": ("query", b"RIFF")}}),
        Query(
            "other paths and fields",
            options={"content": b"{}", "headers": {"content-type": "application/json"}},
        ),
    ]
    for fields in ({"model": "another"}, {"model": "tinyvoice", "prompt": "x"}, {}):
        options = {"files": {"file": ("query", bodies[0])}, "data": fields}
        path = "/v1/audio/transcriptions"
        found.append(Query("other paths and fields", path, options=options))
    return found


# Requests


def answer_of(query: Query, response: httpx.Response) -> Answer:
    """The status and the text, or the word of the refusal; a word of ours where it has none."""
    if response.status_code == 200:
        return 200, query.read(response)
    try:
        body = response.json()
    except ValueError:
        return response.status_code, f"Serve's own: {response.text[:60]}"
    error = body.get("error")
    word = error.get("code") if isinstance(error, dict) else error
    said = error.get("message") if isinstance(error, dict) else body.get("detail")
    return response.status_code, str(word) if said else "no reason"


class Load:
    """Sends queries and compares the answers."""

    def __init__(self, url: str, port: int, found: Found) -> None:
        self.url, self.port, self.found = url, port, found
        self.expected: dict[int, Answer] = {}
        self.gateway_gone = 0.0  # the moment until when it may be
        self.client = httpx.AsyncClient(
            timeout=PATIENCE, limits=httpx.Limits(max_connections=None, max_keepalive_connections=8)
        )

    async def once(self, query: Query) -> tuple[Answer, httpx.Headers]:
        response = await self.client.request(query.method, self.url + query.path, **query.options)
        return answer_of(query, response), response.headers

    async def alone(self, query: Query) -> Answer:
        """The answer; a body that is too large may have to be sent again, see `send`."""
        while True:
            with suppress(httpx.ReadError, httpx.WriteError):
                return (await self.once(query))[0]
            assert query.kind == LARGE, f"{query.kind}: the connection is lost"

    async def send(self, query: Query) -> None:
        """Send a query; its answer is the expected one, or a refusal that is allowed."""
        began = time.monotonic()
        counts, wanted = self.found.counts, self.expected[id(query)]
        counts[f"requests: {query.kind}"] += 1
        try:
            answer, headers = await self.once(query)
        except (httpx.TransportError, ValueError, KeyError) as error:
            if query.kind == LARGE and isinstance(error, httpx.ReadError | httpx.WriteError):
                # Where the rest comes later than is waited for, TCP may drop the answer with it.
                counts["too large, and closed while the rest was sent"] += 1
            elif began < self.gateway_gone:
                counts["lost with the Gateway's process"] += 1
            else:
                what = f"{query.kind}, {wanted}: {type(error).__name__} {error}"
                self.found.expect(False, what)
            return
        if answer == wanted:
            counts["answered as alone and undisturbed"] += 1
        elif answer[0] == 503 and answer[1] in LATER:
            counts[f"refused with 503: {answer[1]}"] += 1
            self.found.expect("retry-after" in headers, f"{answer} without Retry-After")
        elif began < self.gateway_gone and answer[0] in (500, 503):
            counts["lost with the Gateway's process"] += 1
        else:
            self.found.expect(False, f"{query.kind}: {answer} in place of {wanted}")

    async def leave(self, body: bytes, part: float) -> None:
        """Send a part of a body, and go."""
        self.found.counts["requests: clients that leave"] += 1
        try:
            _, writer = await self._begin(body, part)
            await asyncio.sleep(0.05)
            writer.close()
            await writer.wait_closed()
        except OSError as error:
            self.found.expect(False, f"a client that leaves: {error}")

    async def stall(self, body: bytes) -> None:
        """Send half a body and wait: the server is to end it within its limit."""
        self.found.counts["requests: clients that stall"] += 1
        began = time.monotonic()
        try:
            reader, writer = await self._begin(body, 0.5)
            async with asyncio.timeout(PATIENCE):
                line = await reader.readline()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            line = f"{type(error).__name__}".encode()
        if b" 408 " in line:
            self.found.counts["answered as alone and undisturbed"] += 1
        elif time.monotonic() < self.gateway_gone or began < self.gateway_gone:
            self.found.counts["lost with the Gateway's process"] += 1
        else:
            self.found.expect(False, f"a client that stalls gets {line!r}")

    async def _begin(
        self, body: bytes, part: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[: int(part * len(body))])
        await writer.drain()
        return reader, writer

    async def ready(self) -> bool:
        """Whether all Recognizers are."""
        with suppress(httpx.TransportError, ValueError):
            response = await self.client.get(f"{self.url}/healthz")
            return bool(response.json() == {"ready": REPLICAS, "expected": REPLICAS})
        return False


# The server


@dataclass
class Server:
    """The command's process and what it started."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Processes of a deployment, the eldest first."""
        found = [one for one in self.processes() if role(one) == deployment]
        return sorted(found, key=psutil.Process.create_time)


ROLES = {
    "ray::ServeReplica:hf-cudagraph-asr:": r"ServeReplica:hf-cudagraph-asr:(\w+)",
    "ray::ProxyActor": "HTTP proxy",
    "ray::ServeController": "Serve's controller",
    "/gcs_server": "Ray's control store",
    "/raylet": "Ray's node process",
    "ray::DashboardAgent": "Ray's agent",
    "ray::RuntimeEnvAgent": "Ray's agent of environments",
    "hf_cudagraph_asr.cli": "the command",
}


def role(process: psutil.Process) -> str:
    """What a process of the server is for; "" for others and those that ended."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return ""
    for mark, name in ROLES.items():
        if mark in words:
            found = re.search(name, words) if "(" in name else None
            return found[1] if found else name
    return ""


def memory(process: psutil.Process) -> int:
    """Bytes that a process has for itself, neither files nor what it shares (Linux)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", status)[0])


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """The command, on a free port, until the block ends; all that it started ends with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = AutoConfig.from_pretrained(TINYVOICE / "model")
    plan = plan_buckets([1.2, 1.6, 2.4, 3.0, 4.5], graphs=2, model=config, batch_sizes=(1, 4))
    plan.save(folder / "plan.json")
    options = f"--model {TINYVOICE / 'model'} --plan {folder / 'plan.json'} --backend export"
    options += f" --device cpu --replicas {REPLICAS} --port {port} --log-level warning"
    options += "".join(f" --set {name}={value}" for name, value in SETTINGS.items())
    options += " --set names=tinyvoice"
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*COMMAND, *options.split()],
            env=os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(folder)},
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,  # an interrupt is for this process, which then ends that one
        )
        server = Server(process, port, log)
        try:
            yield server
        finally:
            if process.poll() is None:
                every = server.processes()
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                for one in every:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()


# The soak


class DidNotStart(Exception):
    """The command ended before it was ready; what it said."""


@dataclass
class Plan:
    """How long, how much, how often."""

    minutes: float
    rate: float
    kill_every: float
    burst_every: float = 45.0
    burst: int = 40


async def calm(load: Load, queries: Sequence[Query], texts: dict[int, str]) -> None:
    """What each query is answered alone; whole recordings by a Transcriber's texts."""
    for query in queries:
        answer = await load.alone(query)
        status, word = answer
        if (text := texts.get(id(query))) is not None:
            load.found.expect(answer == (200, text), f"alone: {answer} in place of {text!r}")
            answer = (200, text)
        elif status != 200:
            named = word in NAMED.get(status, ())
            load.found.expect(named, f"{query.kind}, alone: {answer} is in no table")
        load.expected[id(query)] = answer


async def kill(load: Load, server: Server, plan: Plan, began: float, rng: random.Random) -> None:
    """Kill something every so often, and wait until all are ready again."""
    counts = load.found.counts
    while (now := time.monotonic() - began) < 60 * plan.minutes - 2 * plan.kill_every:
        await asyncio.sleep(plan.kill_every * rng.uniform(0.6, 1.2))
        recognizers, (gateway, *_) = server.replicas("Recognizer"), server.replicas("Gateway")
        chosen = "the younger"
        if now < 60 * plan.minutes / 3:
            chosen = ("any", "both", "the Gateway", "any")[sum(
                counts[name] for name in KILLS
            ) % 4]  # fmt: skip
        victims = {
            "any": [rng.choice(recognizers)],
            "the younger": recognizers[-1:],
            "both": recognizers,
            "the Gateway": [gateway],
        }[chosen]
        name = KILLS[{"both": 1, "the Gateway": 2}.get(chosen, 0)]
        counts[name] += 1
        killed = time.monotonic()
        if chosen == "the Gateway":
            load.gateway_gone = float("inf")
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        while await load.ready() and time.monotonic() < killed + 20:
            await asyncio.sleep(0.2)  # Serve has not noticed yet
        while not await load.ready():
            if time.monotonic() - killed > 600:
                load.found.expect(False, f"{name}: not all are ready after ten minutes")
                break
            await asyncio.sleep(1)
        load.found.recovered.append(time.monotonic() - killed)
        if chosen == "the Gateway":
            load.gateway_gone = time.monotonic()
        took = load.found.recovered[-1]
        print(f"{now / 60:.1f} min, {name}: all ready after {took:.0f} s", flush=True)


KILLS = ("kills of a Recognizer", "kills of both at once", "kills of the Gateway")


async def watch(server: Server, began: float, sizes: dict[Any, list[tuple[float, int]]]) -> None:
    """Note the memory of every process every five seconds."""
    while True:
        for process in await asyncio.to_thread(server.processes):
            if name := role(process):
                with suppress(OSError, IndexError, psutil.Error):
                    now = time.monotonic() - began
                    sizes[name, process.pid].append((now, memory(process)))
        await asyncio.sleep(5)


async def soak(server: Server, plan: Plan, seed: int, found: Found) -> dict[Any, Any]:
    """Calm, storm, calm."""
    rng = random.Random(seed)
    load = Load(f"http://127.0.0.1:{server.port}", server.port, found)
    made = list(whole(rng, 84))
    bodies = [body for _, body, _ in made]
    with Transcriber.from_pretrained(TINYVOICE / "model", device="cpu") as transcriber:
        texts = {
            id(query): transcriber.transcribe([read_audio(readable, RATE)])[0].text
            for query, _, readable in made
        }
    good, bad = [query for query, _, _ in made], others(bodies, rng)
    start = time.monotonic()
    while not await load.ready():
        if server.process.poll() is not None:
            raise DidNotStart(server.log.read_text())
        assert time.monotonic() - start < 600, "not ready within ten minutes"
        await asyncio.sleep(1)
    await calm(load, [*good, *bad], texts)
    print(f"{len(good) + len(bad)} queries alone, {len(found.wrong)} wrong", flush=True)
    sizes: dict[Any, list[tuple[float, int]]] = defaultdict(list)
    tasks: set[asyncio.Task[None]] = set()

    def begin(work: Any) -> None:
        tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(tasks.discard)

    began = time.monotonic()
    watcher = asyncio.create_task(watch(server, began, sizes))
    killer = asyncio.create_task(kill(load, server, plan, began, rng))
    next_burst, said = plan.burst_every, 0.0
    while (now := time.monotonic() - began) < 60 * plan.minutes:
        if now > next_burst:
            next_burst += plan.burst_every
            for query in rng.choices(good, k=plan.burst):
                begin(load.send(query))
        draw = rng.random()
        if draw < 0.03:
            begin(load.leave(rng.choice(bodies), rng.choice((0.0, 0.5, 1.0))))
        elif draw < 0.04:
            begin(load.stall(rng.choice(bodies)))
        else:
            begin(load.send(rng.choice(good if draw < 0.75 else bad)))
        if now > said:
            said += 60
            print(f"{now / 60:.0f} min: {json.dumps(found.counts)}", flush=True)
        await asyncio.sleep(min(rng.expovariate(plan.rate), 5))
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=2 * PATIENCE)
        found.expect(not late, f"{len(late)} requests are neither answered nor refused")
    await killer
    watcher.cancel()
    found.expect(await load.ready(), "not all are ready at the end")
    for query in [*good, *bad]:
        answer = await load.alone(query)
        wanted = load.expected[id(query)]
        found.expect(answer == wanted, f"at the end: {answer} in place of {wanted}")
    await load.client.aclose()
    return sizes


def soaked(plan: Plan, seed: int, found: Found) -> dict[Any, list[tuple[float, int]]]:
    """The soak of a server of its own, which must end well; memory as `watch` notes it."""
    with (
        # Short, as Ray's sockets lie in it.
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name,
        served(Path(name)) as server,
    ):
        sizes = asyncio.run(soak(server, plan, seed, found))
        every = server.processes()
        server.process.terminate()
        code = server.process.wait(60)
        found.expect(code == 0, f"the command ends with {code}")
        _, left = psutil.wait_procs(every[1:], 15)
        found.expect(not left, f"{left} are left behind")
    return sizes


def slopes(sizes: dict[Any, list[tuple[float, int]]], minutes: float) -> dict[str, str]:
    """Growth of memory in the second half, by least squares, of processes that lived through it."""
    found: dict[str, str] = {}
    for (name, _), pairs in sorted(sizes.items()):
        times, values = np.array(pairs, dtype=float).T
        half = times >= 30 * minutes
        if times[0] > 30 * minutes or times[-1] < 59 * minutes or half.sum() < 3:
            continue
        steps, bytes_ = times[half] / 60, values[half]
        slope, start = np.polyfit(steps, bytes_, 1)
        spread = np.std(bytes_ - (slope * steps + start))
        error = spread / (np.std(steps) * math.sqrt(len(steps)))
        text = f"{slope / 1024:+,.0f} ± {error / 1024:,.0f} KiB a minute at "
        text += f"{bytes_.mean() / 2**20:,.0f} MiB"
        found.setdefault(name, text)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=4, help="requests a second, beside bursts")
    parser.add_argument(
        "--kill-every", type=float, default=40, help="seconds, from the last that is mended on"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability alone")
    args = parser.parse_args()
    began, found = time.perf_counter(), Found()
    plan = Plan(args.minutes, args.rate, args.kill_every)
    for attempt in range(5):
        try:
            sizes = soaked(plan, args.seed, found)
        except DidNotStart as error:
            # Ray waits for half a minute for its own processes, on however busy a machine.
            if "timed out during startup" not in str(error) or attempt == 4:
                raise
        else:
            break
    for (role_name, pid), pairs in sizes.items():
        line = " ".join(f"{size / 2**20:.0f}" for _, size in pairs[:: max(len(pairs) // 20, 1)])
        print(f"{role_name} {pid}: {line}", flush=True)
    asked = {name: count for name, count in found.counts.items() if name.startswith("requests")}
    rest = {name: count for name, count in found.counts.items() if name not in asked}
    figures: dict[str, Any] = {
        "requests": sum(asked.values()),
        **asked,
        **dict(sorted(rest.items())),
    }
    figures["seconds until all were ready after a kill, median and most"] = (
        f"{np.median(found.recovered):.0f}, {max(found.recovered):.0f}"
    )
    for role_name, text in slopes(sizes, args.minutes).items():
        figures[f"memory in the second half: {role_name}"] = text
    figures["answers that are wrong, requests without an answer, things left behind"] = len(
        found.wrong
    )
    print(json.dumps(figures, indent=1))
    if not args.no_record:
        record.save(
            "server", figures, began=began, seed=args.seed,
            packages=("hf_cudagraph_asr", "ray", "torch", "transformers"),
        )  # fmt: skip
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
