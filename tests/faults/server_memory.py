"""Say whose memory grows while the server answers: its own, or that of any Ray Serve application.

    python tests/faults/server_memory.py                 # 8,000 requests to each of two

Two applications share one Ray: the server with docs/examples/tinyvoice's model, and a bare one that
has the same deployments, an ingress of FastAPI and what it asks, and answers without a model. They
are sent the same requests in turn. At the end a thread in every process counts the objects that
Python's garbage collector knows, and has glibc's malloc give back what is free (malloc_trim): what
is left is in use. Memory is `RssAnon`, as in soak_server.py.
"""

# Annotations stay objects here: FastAPI is to read them in a process that lacks this module.
import argparse
import asyncio
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import ray
import record
from damage import damaged
from fastapi import FastAPI, Request
from ray import serve
from soak_server import ENVIRONMENT, RATE, SETTINGS, TINYVOICE, encoded, memory
from transformers import AutoConfig

from hf_cudagraph_asr import plan_buckets, read_audio
from hf_cudagraph_asr.serve import app

PATHS = ("/transcribe", "/bare/transcribe")
CLIENTS = 4
PROXY = "Serve's HTTP proxy, of both"
PROCESS = re.compile(r"ray::(?:ServeReplica:(\w+):(\w+)|ProxyActor)")
FOLDER = "SERVER_MEMORY_FOLDER"  # an environment variable: where files ask processes, and answer

# Python imports this at the start of every process that has its folder on PYTHONPATH.
ASKED = """
import ctypes, gc, os, threading, time
from pathlib import Path

def answer():
    folder = Path(os.environ["SERVER_MEMORY_FOLDER"])
    for name in ("before", "after"):
        while not (folder / name).exists():
            time.sleep(0.5)
        gc.collect()
        count = len(gc.get_objects())
        if name == "after":
            ctypes.CDLL(None).malloc_trim(0)
        (folder / f"{name}.{os.getpid()}").write_text(str(count))

threading.Thread(target=answer, daemon=True).start()
"""

api = FastAPI()


class Model:
    """What the bare gateway asks."""

    async def transcribe(self, waveform: Any, rate: int) -> dict[str, Any]:
        return {"text": "", "seconds": len(waveform) / rate}


@serve.ingress(api)
class Ingress:
    """The bare gateway."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @api.post("/transcribe")
    async def transcribe(self, request: Request) -> Any:
        samples = np.zeros(len(await request.body()), np.float32)
        return await self._model.transcribe.remote(samples, RATE)


def bodies(rng: random.Random) -> list[bytes]:
    """Recordings of .3 to 1.5 s in four formats, and damaged ones."""
    shipped = [read_audio(file, RATE) for file in sorted(TINYVOICE.glob("recordings/*.flac"))]
    whole = [
        encoded(rng.choice(shipped)[: rng.randint(int(0.3 * RATE), int(1.5 * RATE))], RATE, kind)
        for kind in ("wav", "flac", "ogg", "mp3")
        for _ in range(16)
    ]
    return [*whole, *(damaged(rng.choice(whole), rng, cut=True) for _ in range(16))]


def processes() -> dict[str, int]:
    """Who answers requests, by what it is for, and its process's id."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        if match := PROCESS.search(" ".join(process.cmdline())):
            found[f"{match[1]}: {match[2]}" if match[1] else PROXY] = process.pid
    return found


async def ask(folder: Path, name: str, pids: Sequence[int]) -> dict[int, int]:
    """Have processes count their objects, and after the load also trim their memory."""
    (folder / name).touch()
    files = {pid: folder / f"{name}.{pid}" for pid in pids}
    async with asyncio.timeout(120):
        while not all(file.exists() and file.read_text() for file in files.values()):
            await asyncio.sleep(0.5)
    return {pid: int(file.read_text()) for pid, file in files.items()}


async def load(
    url: str, requests: int, rounds: int, folder: Path, rng: random.Random
) -> tuple[Counter[str], dict[str, str]]:
    """Send the requests in rounds.

    Returns:
        How they were answered; and by process what its memory did.
    """
    sent, answers, pids = bodies(rng), Counter[str](), processes()
    sizes: dict[str, list[float]] = defaultdict(list)  # KiB

    async def client(path: str, count: int) -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            for _ in range(count):
                response = await http.post(url + path, content=rng.choice(sent))
                answers[f"requests answered with {response.status_code}"] += 1

    each = requests // rounds // CLIENTS
    for at in range(rounds + 1):  # the first round is not measured: it loads what is loaded once
        for path in PATHS:
            await asyncio.gather(*(client(path, each) for _ in range(CLIENTS)))
        if at == 0:
            before = await ask(folder, "before", [*pids.values()])
        for name, pid in pids.items():
            sizes[name].append(memory(psutil.Process(pid)) / 1024)
        print(at, {name: f"{size[-1] / 1024:.1f}" for name, size in sizes.items()}, flush=True)
    after = await ask(folder, "after", [*pids.values()])
    found = {}
    for name, pid in pids.items():
        every = sizes[name]
        count = each * CLIENTS * (len(PATHS) if name == PROXY else 1)
        first, second = (
            np.polyfit(count * np.arange(len(half)), half, 1)[0]
            for half in (every[: rounds // 2 + 1], every[rounds // 2 :])
        )
        trimmed = memory(psutil.Process(pid)) / 1024
        found[name] = (
            f"{first:+.2f}, then {second:+.2f} KiB a request; "
            f"{every[0] / 1024:.0f} to {every[-1] / 1024:.0f} MiB, trimmed {trimmed / 1024:.0f}; "
            f"{after[pid] - before[pid]:+,} objects"
        )
    return answers, found


def deployed(folder: Path) -> str:
    """Start both applications; their address."""
    config = AutoConfig.from_pretrained(TINYVOICE / "model")
    plan = plan_buckets([0.6, 1.0, 1.5], graphs=2, model=config, batch_sizes=(1, 4))
    plan.save(folder / "plan.json")
    given = SETTINGS | {"model": TINYVOICE / "model", "plan": folder / "plan.json"}
    given |= {"backend": "export", "device": "cpu"}
    ours = app({name: str(value) for name, value in given.items()})
    part = serve.deployment(ray_actor_options={"num_cpus": 0})
    bare = part(Ingress).bind(part(Model).bind())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs: Any = {"log_level": "WARNING"}
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=logs)
    serve.run(ours, name="ours", logging_config=logs)
    serve.run(bare, name="bare", route_prefix="/bare", logging_config=logs)
    return f"http://127.0.0.1:{port}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=8_000, help="to each application")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability alone")
    args = parser.parse_args()
    if FOLDER not in os.environ:  # Ray reads the environment where it is imported
        # Short, as Ray's sockets lie in it.
        with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:
            (Path(name) / "sitecustomize.py").write_text(ASKED)
            path = f"{name}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
            added = ENVIRONMENT | {"PYTHONPATH": path, "RAY_TMPDIR": name, FOLDER: name}
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | added).returncode)
    began, rng = time.perf_counter(), random.Random(args.seed)
    folder = Path(os.environ[FOLDER])
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False,
        logging_level=logging.WARNING,
    )  # fmt: skip
    try:
        url = deployed(folder)
        answers, found = asyncio.run(load(url, args.requests, args.rounds, folder, rng))
    finally:
        ray.shutdown()
    figures = dict(sorted(answers.items())) | found
    print(json.dumps(figures, indent=1))
    if not args.no_record:
        record.save(
            "server_memory", figures, began=began, seed=args.seed,
            packages=("hf_cudagraph_asr", "ray", "torch", "transformers"),
        )  # fmt: skip
    sys.exit(not {*answers} <= {f"requests answered with {status}" for status in (200, 400)})


if __name__ == "__main__":
    main()
