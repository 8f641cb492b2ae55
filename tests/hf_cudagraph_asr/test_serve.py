"""The command on a real Ray: one service for this file, its tests in order, the rough ones last."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from served import encoded, written
from tiny_models import plan_for
from tiny_recognizer import RATE, save_recognizer
from transformers import AutoConfig

from hf_cudagraph_asr import Transcriber, read_audio

pytestmark = pytest.mark.slow

REPLICAS = 2
COMMAND = [sys.executable, "-c", "from hf_cudagraph_asr.cli import script; script()", "serve"]
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,  # or Ray writes one to the home folder
    "RAY_metrics_report_interval_ms": "250",
    "RAY_worker_niceness": "0",  # or what else runs here comes first
}

LOUD = written(np.full(300, 1e20, np.float32), format="WAV", subtype="FLOAT")


def mixed(count: int) -> list[bytes]:
    """Recordings of all buckets, and some longer than the last."""
    lengths = np.random.default_rng(0).integers(80, 1100, size=count)
    return [encoded(int(samples), seed) for seed, samples in enumerate(lengths)]


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


@dataclass
class Service:
    """The command's process, and what it answered before the first transcript."""

    process: subprocess.Popen[str]
    port: int
    client: httpx.Client
    log: Path
    early: list[httpx.Response] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, body: bytes, **headers: str) -> httpx.Response:
        return self.client.post(f"{self.url}/transcribe", content=body, headers=headers)

    def said(self, pattern: str) -> str:
        found = re.search(pattern, self.log.read_text())
        assert found is not None, self.log.read_text()
        return found[1]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        name = f"ray::ServeReplica:hf-cudagraph-asr:{deployment}"
        return [one for one in children if name in " ".join(cmdline(one))]

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Our samples by name, of Ray's page for Prometheus."""
        from prometheus_client.parser import text_string_to_metric_families

        lines = self.client.get(self.said(r"metrics: (\S+/metrics)")).text.splitlines()
        ours = "\n".join(line for line in lines if "ray_hf_cudagraph_asr_" in line)
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(f"{ours}\n"):
            for sample in family.samples:
                name = sample.name.removeprefix("ray_hf_cudagraph_asr_")
                found.setdefault(name, []).append((sample.labels, sample.value))
        return found

    async def post_all(
        self, bodies: Sequence[bytes], answered: Callable[[int], None] = lambda count: None
    ) -> list[httpx.Response]:
        """Post all at once."""
        done = 0
        limits = httpx.Limits(max_connections=len(bodies))
        async with httpx.AsyncClient(limits=limits, timeout=120) as client:

            async def post(body: bytes) -> httpx.Response:
                nonlocal done
                response = await client.post(f"{self.url}/transcribe", content=body)
                done += 1
                answered(done)
                return response

            return await asyncio.gather(*map(post, bodies))


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile
        return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = save_recognizer(tmp_path_factory.mktemp("model"))
    plan_for(AutoConfig.from_pretrained(found), (600,), (4,), RATE).save(found / "plan.json")
    return found


@pytest.fixture(scope="module")
def offline(folder: Path) -> Iterator[Callable[[bytes], str]]:
    """The text of an upload, from a Transcriber in this process, alone."""
    with Transcriber.from_pretrained(folder, device="cpu") as transcriber:
        yield lambda body: transcriber.transcribe([read_audio(body, RATE)])[0].text


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    options = f"--model {folder} --plan {folder / 'plan.json'} --backend export --device cpu"
    options += f" --replicas {REPLICAS} --port {port} --set cpus=0.1 --set start_timeout_s=0.5"
    options += " --set timeout_s=3 --set max_ongoing=8 --set max_queued=40 --set retry_after_s=7"
    # Short, as Ray's sockets lie in it; and not where others look for a Ray to connect to.
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as temporary,
        log.open("w") as output,
        httpx.Client(timeout=60) as client,
    ):
        process = subprocess.Popen(
            [*COMMAND, *options.split()],
            env=os.environ | ENVIRONMENT | {"RAY_TMPDIR": temporary},
            stdout=output,
            stderr=output,
            text=True,
        )
        found = Service(process, port, client, log)
        try:
            until(lambda: first_answer(found))
            until(lambda: "logs:" in log.read_text())
            yield found
        finally:
            if process.poll() is None:  # a test failed before the last one ended it
                children = psutil.Process(process.pid).children(recursive=True)
                process.terminate()
                psutil.wait_procs([psutil.Process(process.pid)], 60)
                for one in [*children, process]:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()


def first_answer(service: Service) -> bool:
    assert service.process.poll() is None, service.log.read_text()
    try:
        response = service.post(encoded(300))
    except httpx.TransportError:  # nobody listens yet
        return False
    service.early.append(response)
    return response.status_code == 200


def test_before_a_model_is_ready_clients_are_asked_to_retry(service: Service) -> None:
    refused = [one for one in service.early if one.headers["content-type"] == "application/json"]
    assert {one.status_code for one in refused} == {200, 503}
    for response in refused[:-1]:
        assert response.json()["error"] == "not_ready"
        assert response.headers["Retry-After"] == "7"


def test_openais_client_is_answered_by_the_command(
    service: Service, offline: Callable[[bytes], str]
) -> None:
    openai = pytest.importorskip("openai")
    body = encoded(300)
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        (model,) = client.models.list()
        found = client.audio.transcriptions.create(model=model.id, file=("q.wav", body))
    assert found.text == offline(body)


def test_it_says_where_it_answers_and_how_many_models_are_ready(service: Service) -> None:
    assert service.said(r"ready: .* (http://\S+)") == f"{service.url}/transcribe"
    until(lambda: service.client.get(f"{service.url}/healthz").json().get("ready") == REPLICAS)
    response = service.client.get(f"{service.url}/healthz")
    assert response.json() == {"ready": REPLICAS, "expected": REPLICAS}
    assert service.client.head(f"{service.url}/healthz").status_code == 200


def test_garbage_collections_of_a_replica_pass_over_what_its_start_has_made(
    service: Service,
) -> None:
    logs = Path(service.said(r"logs: (\S+)")).glob("replica_*_Recognizer_*.log")
    kept = [re.findall(r"(\d+) objects are kept from garbage", log.read_text()) for log in logs]
    assert len(kept) == REPLICAS
    assert all(int(count) > 100_000 for [count] in kept)


def test_with_the_loopback_address_only_replicas_have_a_port_on_others(service: Service) -> None:
    processes = [*psutil.Process(service.process.pid).children(recursive=True)]
    elsewhere = [
        (process.pid, connection.laddr)
        for process in [psutil.Process(service.process.pid), *processes]
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
        and not connection.laddr.ip.removeprefix("::ffff:").startswith("127.")
    ]
    pids = {one.pid for name in ("Gateway", "Recognizer") for one in service.replicas(name)}
    assert len(elsewhere) == len(pids) == REPLICAS + 1
    assert {pid for pid, _ in elsewhere} == pids


@pytest.mark.parametrize(("samples", "route"), [(300, "bucket"), (1000, "exact")])
def test_an_upload_is_answered_with_its_text_words_and_route(
    service: Service, offline: Callable[[bytes], str], samples: int, route: str
) -> None:
    body = encoded(samples)
    form = service.client.post(f"{service.url}/transcribe", files={"file": ("q.wav", body)})
    for response in (service.post(body), form):
        assert response.status_code == 200
        found = response.json()
        assert found["text"] == offline(body) != ""
        assert " ".join(word["text"] for word in found["words"]) == found["text"]
        assert (found["seconds"], found["batch"], found["route"]) == (samples / RATE, 1, route)
        assert (found["bucket"] is None) == (route == "exact")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "/transcribe", b"RIFF....WAVE", 400, "undecodable"),
        ("POST", "/transcribe", encoded(40_000), 413, "too_long"),
        ("POST", "/transcribe", bytes(17 * 2**20), 413, "too_large"),
        ("POST", "/transcribe", LOUD, 400, "unsupported_audio"),
        ("GET", "/transcribe", b"", 405, "method_not_allowed"),
        ("GET", "/metrics", b"", 404, "not_found"),
    ],
)
def test_what_is_no_query_is_refused_in_json(
    service: Service, method: str, path: str, body: bytes, status: int, error: str
) -> None:
    response = service.client.request(method, service.url + path, content=body)
    assert (response.status_code, response.json()["error"]) == (status, error)


def test_a_client_that_still_sends_what_is_too_large_reads_why(service: Service) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(24):
            yield bytes(2**20)
            await asyncio.sleep(0.01)

    async def sent() -> list[httpx.Response]:
        # Unlike the client of the service, this one reads no more once it cannot write.
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"{service.url}/transcribe"
            return [await client.post(url, content=slowly()) for _ in range(3)]

    assert [one.status_code for one in asyncio.run(sent())] == [413] * 3


def test_a_body_in_chunks_is_cut_off_at_the_limit(service: Service) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 2**20
            yield bytes(2**20)

    try:
        response = httpx.post(f"{service.url}/transcribe", content=chunks(), timeout=60)
    except httpx.WriteError:
        pass  # the connection was closed while this side was still sending
    else:
        assert (response.status_code, response.json()["error"]) == (413, "too_large")
    assert sent < 500 * 2**20


def test_bad_uploads_cost_the_others_in_their_batch_nothing(
    service: Service, offline: Callable[[bytes], str]
) -> None:
    good = mixed(20)
    bad = [b"RIFF", encoded(300)[:60], encoded(300, format="FLAC", subtype="PCM_16")[:90], b""] * 5
    bodies = [body for pair in zip(good, bad, strict=True) for body in pair]
    found = asyncio.run(service.post_all(bodies))
    assert [one.json()["text"] for one in found[::2]] == list(map(offline, good))
    assert {one.status_code for one in found[1::2]} == {400}


def test_clients_that_leave_keep_nothing_from_the_others(
    service: Service, offline: Callable[[bytes], str]
) -> None:
    async def leave(body: bytes, sent: int, seconds: float = 0.02) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:sent])
        await writer.drain()
        await asyncio.sleep(seconds)
        writer.close()
        await writer.wait_closed()

    async def all_at_once() -> list[httpx.Response]:
        bodies = mixed(30)
        leaving = [leave(body, len(body) // (1 + n % 2)) for n, body in enumerate(bodies[:10])]
        answers, *_ = await asyncio.gather(service.post_all(bodies), *leaving)
        return answers

    found = asyncio.run(all_at_once())
    assert [one.json()["text"] for one in found] == list(map(offline, mixed(30)))

    def noted() -> bool:
        # Beside the others, all may have left before the Gateway heard of them.
        asyncio.run(leave(mixed(1)[0], 100, seconds=0.3))
        return any(labels["status"] == "499" for labels, _ in service.metrics()["requests_total"])

    until(noted, 60)


def test_rays_metrics_hold_the_librarys_and_the_servers(service: Service) -> None:
    def totals() -> Counter[tuple[str, str]]:
        """Sums over replicas, by name and the label that tells most."""
        found: Counter[tuple[str, str]] = Counter()
        for name, samples in service.metrics().items():
            for labels, value in samples:
                if "le" not in labels:
                    label = labels.get("status") or labels.get("kind") or labels.get("route") or ""
                    found[name, label] += value
        return found

    def settled() -> Counter[tuple[str, str]]:
        """The sums once they have stood still for three seconds: a busy machine reports late."""
        now, since = totals(), time.monotonic()
        while time.monotonic() < since + 3:
            time.sleep(0.3)
            last, now = now, totals()
            if last != now:
                since = time.monotonic()
        return now

    before = settled()
    found = asyncio.run(service.post_all(mixed(40)))
    assert {one.status_code for one in found} == {200}
    counts = [("requests_total", "200"), ("request_seconds_count", ""), ("wait_seconds_count", "")]
    until(lambda: all((totals() - before)[count] >= 40 for count in counts))
    more = settled() - before
    assert more["requests_total", "200"] == more["request_seconds_count", ""] == 40
    assert more["wait_seconds_count", ""] == 40
    errors = {(of["status"], of["error"]) for of, _ in service.metrics()["requests_total"]}
    assert errors >= {("200", "none"), ("400", "undecodable"), ("413", "too_large")}
    routes = Counter(one.json()["route"] for one in found)
    assert {route: more["rows_total", route] for route in routes} == routes
    calls = sum(value for (name, _), value in more.items() if name == "calls_total")
    assert calls == more["batch_size_count", ""] < 40
    assert calls == sum(value for (name, _), value in more.items() if name == "call_seconds_count")
    assert more["frames_total", "filled"] > 0
    assert more["frames_total", "added"] > 0
    assert max(one.json()["batch"] for one in found) > 1


def test_too_many_are_refused_and_asked_to_retry(
    service: Service, offline: Callable[[bytes], str]
) -> None:
    bodies = [encoded(8_000, seed) for seed in range(300)]  # far more than wait or run at once
    found = asyncio.run(service.post_all(bodies))
    assert {one.status_code for one in found} == {200, 503}
    for body, one in zip(bodies, found, strict=True):
        if one.status_code == 200:
            assert one.json()["text"] == offline(body)
        else:
            assert one.json()["error"] in ("overloaded", "timeout")
            assert one.headers["Retry-After"] == "7"
    assert any(one.json().get("error") == "overloaded" for one in found)


def test_a_body_that_does_not_come_is_not_waited_for(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as slow:
        slow.sendall(b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\nRIFF")
        slow.settimeout(30)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_killed_replica_costs_no_wrong_answer_and_is_missed(
    service: Service, offline: Callable[[bytes], str]
) -> None:
    killed, kept = service.replicas("Recognizer")
    bodies = mixed(60)

    def kill(answered: int) -> None:
        if answered == 10:
            killed.send_signal(signal.SIGKILL)

    found = asyncio.run(service.post_all(bodies, kill))
    statuses = Counter(one.status_code for one in found)
    assert set(statuses) <= {200, 500, 503}, statuses
    assert statuses[200] > 30, statuses
    for body, one in zip(bodies, found, strict=True):
        if one.status_code == 200:
            assert one.json()["text"] == offline(body)
        else:
            assert one.json().keys() == {"error", "detail"}
    until(
        lambda: (
            service.client.get(f"{service.url}/healthz").json()
            == {"ready": REPLICAS - 1, "expected": REPLICAS}
        ),
        30,
    )
    again = asyncio.run(service.post_all(bodies[:20]))
    assert [one.json()["text"] for one in again] == list(map(offline, bodies[:20]))
    assert kept.is_running()


def test_a_terminated_command_ends_well_and_leaves_nothing_behind(service: Service) -> None:
    children = psutil.Process(service.process.pid).children(recursive=True)
    service.process.terminate()
    assert service.process.wait(60) == 0
    _, left = psutil.wait_procs(children, 10)
    assert not left
