"""The application on a real Ray, deployed with `serve run` from what the command writes.

One Ray for this file. Its tests run in order, and the rough ones come last.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import yaml
from test_serve_metrics import read
from tiny_models import CASES, plan_for

from hf_cudagraph_asr.cli.serve import serve as command

pytestmark = [
    pytest.mark.slow,
    # Ray Serve's own settings, and its driver's sockets and processes at the end.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

RATE = 1000  # samples a second, so that seconds of audio are few frames
REPLICAS = 2
NAME = "hf-cudagraph-asr"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # of this machine alone, so it needs no token in the home folder
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # or what else runs here comes first
}


def wave(samples: int, seed: int = 0) -> Any:
    generator = np.random.default_rng([samples, seed])
    loud = 0.2 * generator.normal(size=samples) * (1.2 + np.sin(np.arange(samples) / 40))
    return loud.astype(np.float32)


def encoded(samples: int, seed: int = 0, format: str = "WAV") -> bytes:
    stream = io.BytesIO()
    subtype = "PCM_16" if format == "FLAC" else "FLOAT"
    soundfile.write(stream, wave(samples, seed), RATE, format=format, subtype=subtype)
    return stream.getvalue()


def mixed(count: int) -> list[bytes]:
    """Queries of all buckets, and some longer than the last."""
    lengths = np.random.default_rng(0).integers(80, 1100, size=count)
    return [encoded(int(samples), seed) for seed, samples in enumerate(lengths)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its processor and a plan."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    found = tmp_path_factory.mktemp("model")
    letters = ["<unk>", "|", "a", "<pad>", *"bcdefghi"]
    model = CASES["wav2vec2-group"].build(num_hidden_layers=1)
    model.save_pretrained(found)
    vocabulary = found / "vocab.json"
    vocabulary.write_text(json.dumps({letter: at for at, letter in enumerate(letters)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), bos_token=None, eos_token=None)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=False)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(found)
    plan_for(model, (400, 900), (1, 4), rate=RATE).save(found / "plan.json")
    return found


@pytest.fixture(scope="module")
def offline(folder: Path) -> Iterator[Callable[[bytes], str]]:
    """The text of an upload, from a Transcriber in this process, alone."""
    from hf_cudagraph_asr.audio import read_audio
    from hf_cudagraph_asr.transcriber import Transcriber

    with Transcriber.from_pretrained(folder, device="cpu") as transcriber:
        yield lambda body: transcriber.transcribe([read_audio(body, RATE)])[0].text


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """A Ray of our own on this machine, gone afterwards whatever happens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(sys, "path", list(sys.path))  # `serve run` puts the current folder there
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        import ray
        from ray import serve

        folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: sockets lie in it
        # Where a cluster writes its address, for others to find it: not where all look.
        patch.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        cluster = started(folder)
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
            yield
            serve.shutdown()
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            with warnings.catch_warnings(action="ignore", category=ResourceWarning):
                gc.collect()  # of Ray's handles that it did not close


def started(folder: str, attempts: int = 3) -> Any:
    """A cluster of this machine; the caller shuts it down."""
    from ray.cluster_utils import Cluster

    # A raylet gives its agents 15 seconds to name ports of their own choice, and has 30 to start
    # itself. Ports that are given are not waited for; on a busy machine it may still be late.
    agents = "metrics_agent metrics_export dashboard_agent_listen runtime_env_agent gcs_server"
    names = [f"{agent}_port" for agent in agents.split()]
    for attempt in range(attempts):
        cluster = Cluster()
        try:
            cluster.add_node(
                num_cpus=1,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                temp_dir=f"{folder}/{attempt}",
                **dict(zip(names, free_ports(len(names)), strict=True)),
            )
        except Exception as error:
            cluster.shutdown()
            if attempt + 1 == attempts or "timed out during startup" not in str(error):
                raise
        else:
            return cluster
    raise AssertionError


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Service:
    """The deployed application, and the configuration that it was deployed from."""

    config: dict[str, Any]
    path: Path
    # One for all requests: to make one takes longer than most of them.
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    @property
    def url(self) -> str:
        return "http://127.0.0.1:{port}".format(**self.config["http_options"])

    def deploy(self, changes: dict[str, dict[str, Any]]) -> None:
        """Run the configuration with other options of some deployments, and wait for it."""
        from click.testing import CliRunner
        from ray import serve
        from ray.serve.scripts import cli

        config = deepcopy(self.config)
        for deployment in config["applications"][0]["deployments"]:
            options = deepcopy(changes.get(deployment["name"], {}))
            deployment["user_config"].update(options.pop("user_config", {}))
            if "autoscaling_config" in options:
                del deployment["num_replicas"]
            deployment.update(options)
        self.path.write_text(yaml.safe_dump(config))
        result = CliRunner().invoke(cli, ["run", "--non-blocking", str(self.path)])
        assert "Submitted deploy config successfully" in result.output, (
            f"{result.output}\n{result.exception}"
        )
        until(lambda: serve.status().applications[NAME].status in ("RUNNING", "DEPLOY_FAILED"))
        assert serve.status().applications[NAME].status == "RUNNING"

    def post(self, body: bytes, **headers: str) -> httpx.Response:
        return self.client.post(f"{self.url}/transcribe", content=body, headers=headers)

    def health(self) -> httpx.Response:
        return self.client.get(f"{self.url}/healthz")

    def replicas(self) -> list[str]:
        return sorted(one["replica"] for one in self.health().json()["replicas"])

    def metrics(self) -> Any:
        response = self.client.get(f"{self.url}/metrics")
        assert response.status_code == 200
        return read(response.text)

    async def post_all(
        self, bodies: Sequence[bytes], answered: Callable[[int], None] = lambda count: None
    ) -> list[httpx.Response]:
        """All at once."""
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


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


def total(metrics: Any, name: str, **labels: str) -> float:
    """The sum of a metric over replicas, and over whatever else is not named."""
    wanted = labels.items()
    return sum(value for (key, has), value in metrics.items() if key == name and wanted <= has)


@pytest.fixture(scope="module")
def cold(
    folder: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The application with a Gateway, and no Recognizer until there are requests."""
    path = tmp_path_factory.mktemp("serve") / "serve.yaml"
    command(
        model=str(folder),
        plan=folder / "plan.json",
        backend="export",
        device="cpu",
        replicas=REPLICAS,
        cpus=0.1,
        port=free_ports(1)[0],
        config_out=path,
    )
    service = Service(yaml.safe_load(path.read_text()), path)
    none_yet = {"min_replicas": 0, "initial_replicas": 0, "max_replicas": REPLICAS}
    service.deploy(
        {
            "Gateway": {"user_config": {"start_timeout_s": 0.3}},
            "Recognizer": {"autoscaling_config": none_yet},
        }
    )
    with service.client:
        yield service


@pytest.fixture(scope="module")
def service(cold: Service) -> Service:
    cold.deploy({})
    until(lambda: len(cold.replicas()) == REPLICAS)
    return cold


def test_it_is_not_ready_before_a_model_is(cold: Service) -> None:
    for response in (cold.health(), cold.post(encoded(300))):
        assert response.status_code == 503
        assert response.json()["error"] == "not_ready"
        assert response.headers["Retry-After"] == "1"


def test_requests_start_a_model_where_there_was_none(cold: Service) -> None:
    until(lambda: cold.post(encoded(300)).status_code == 200)


def test_it_is_ready_once_all_is_captured(service: Service) -> None:
    response = service.health()
    assert response.status_code == 200
    for replica in response.json()["replicas"]:
        assert replica["backend"] == "export"
        assert (replica["buckets"], replica["max_batch_size"]) == (2, 4)
        assert replica["longest"].startswith("bucket of")


def test_the_deployments_are_those_of_the_configuration(service: Service) -> None:
    from ray import serve

    deployed = serve.status().applications[NAME].deployments
    named = [entry["name"] for entry in service.config["applications"][0]["deployments"]]
    assert sorted(deployed) == sorted(named) == ["Gateway", "Recognizer"]


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
@pytest.mark.parametrize(("samples", "bucket"), [(300, 400), (500, 900), (1000, None)])
def test_an_upload_is_answered_with_its_text_words_and_bucket(
    service: Service,
    offline: Callable[[bytes], str],
    format: str,
    samples: int,
    bucket: int | None,
) -> None:
    body = encoded(samples, format=format)
    response = service.post(body, **{"Content-Type": f"audio/{format.lower()}"})
    assert response.status_code == 200
    found = response.json()
    assert found["text"] == offline(body) != ""
    assert " ".join(word["text"] for word in found["words"]) == found["text"]
    assert all(0 <= word["start"] < word["end"] <= samples / RATE for word in found["words"])
    assert found["seconds"] == samples / RATE
    assert found["milliseconds"] > 0
    assert found["batch"] == 1
    assert found["replica"] in service.replicas()
    if bucket is None:
        assert found["bucket"] is None
        assert "longer than the last bucket" in found["dispatch"]
    else:
        assert bucket <= found["bucket"]["samples"] < bucket + 20  # the last sample of a frame
        assert found["bucket"]["seconds"] == found["bucket"]["samples"] / RATE


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "error"),
    [
        ("POST", "/transcribe", b"", {}, 400, "empty"),
        ("POST", "/transcribe", b"RIFF....WAVE", {}, 400, "undecodable"),
        ("POST", "/transcribe", encoded(20), {}, 400, "too_short"),
        ("POST", "/transcribe", encoded(40_000), {}, 413, "too_long"),
        ("POST", "/transcribe", bytes(17 * 2**20), {}, 413, "too_large"),
        ("POST", "/transcribe", encoded(300), {"Content-Type": "text/plain"}, 415, None),
        ("GET", "/transcribe", b"", {}, 405, "method_not_allowed"),
        ("POST", "/metrics", b"", {}, 405, "method_not_allowed"),
        ("GET", "/transcript", b"", {}, 404, "not_found"),
    ],
)
def test_what_is_no_query_is_refused_in_json(
    service: Service,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    error: str | None,
) -> None:
    response = service.client.request(method, service.url + path, content=body, headers=headers)
    assert response.status_code == status
    found = response.json()
    assert found.keys() == {"error", "detail"}
    assert error is None or found["error"] == error


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


def test_bad_uploads_cost_their_batch_mates_nothing(
    service: Service, offline: Callable[[bytes], str]
) -> None:
    good = mixed(20)
    bad = [b"RIFF", encoded(20), encoded(300)[:60], encoded(300, format="FLAC")[:90]] * 5
    bodies = [body for pair in zip(good, bad, strict=True) for body in pair]
    found = asyncio.run(service.post_all(bodies))
    assert [one.json()["text"] for one in found[::2]] == list(map(offline, good))
    assert {one.status_code for one in found[1::2]} == {400}


def test_clients_that_go_away_leave_the_others_their_answers(
    service: Service, offline: Callable[[bytes], str]
) -> None:
    host, port = "127.0.0.1", service.config["http_options"]["port"]
    before = service.metrics()

    async def leave(body: bytes, sent: int) -> None:
        _, writer = await asyncio.open_connection(host, port)
        head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:sent])
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.close()
        await writer.wait_closed()

    async def all_at_once() -> list[httpx.Response]:
        bodies = mixed(30)
        leaving = [leave(body, len(body) // (1 + n % 2)) for n, body in enumerate(bodies[:10])]
        answers, *_ = await asyncio.gather(service.post_all(bodies), *leaving)
        return answers

    found = asyncio.run(all_at_once())
    assert [one.json()["text"] for one in found] == list(map(offline, mixed(30)))

    def accounted() -> bool:
        now = service.metrics()
        names = {"path": "/transcribe"}
        count = total(now, "requests_total", **names) - total(before, "requests_total", **names)
        return count >= 30 + 5 and total(now, "waiting_queries") == 0

    until(accounted, 30)
    gone = total(service.metrics(), "requests_total", status="499")
    assert gone > total(before, "requests_total", status="499")


def test_the_metrics_are_those_of_all_replicas(service: Service) -> None:
    before = service.metrics()
    found = asyncio.run(service.post_all(mixed(40)))
    assert {one.status_code for one in found} == {200}
    now = service.metrics()

    def more(name: str, **labels: str) -> float:
        return total(now, name, **labels) - total(before, name, **labels)

    assert more("requests_total", path="/transcribe", status="200") == 40
    assert more("request_seconds_count") == 40
    assert more("batch_size_sum") == more("wait_seconds_count") == 40
    calls = more("pool_hits_total") + more("pool_misses_total", reason="long")
    assert calls == more("batch_size_count")
    busy = Counter(one.json()["replica"] for one in found)
    assert sorted(busy) == service.replicas()
    for replica, queries in busy.items():
        assert more("batch_size_sum", replica=replica) == queries
    assert more("frames_filled_total") > 0
    assert more("frames_padded_total") > 0
    assert total(now, "scraped_replicas", deployment="Recognizer") == REPLICAS
    assert total(now, "silent_replicas") == 0
    assert max(one.json()["batch"] for one in found) > 1


def test_limits_change_without_a_restart_and_overload_is_told(
    service: Service, offline: Callable[[bytes], str]
) -> None:
    before = service.replicas()
    service.deploy(
        {
            "Gateway": {"user_config": {"max_seconds": 0.9, "timeout_s": 5.0, "retry_after_s": 7}},
            "Recognizer": {
                "user_config": {"max_batch_size": 1},
                "max_ongoing_requests": 1,
                "max_queued_requests": 1,
            },
        }
    )
    until(lambda: service.post(encoded(1000)).status_code == 413)
    assert service.replicas() == before
    until(lambda: {one["max_batch_size"] for one in service.health().json()["replicas"]} == {1})

    bodies = [encoded(800, seed) for seed in range(60)]
    found = asyncio.run(service.post_all(bodies))
    assert {one.status_code for one in found} == {200, 503}
    for body, one in zip(bodies, found, strict=True):
        if one.status_code == 200:
            assert one.json()["text"] == offline(body)
            assert one.json()["batch"] == 1
        else:
            assert one.json()["error"] == "overloaded"
            assert one.headers["Retry-After"] == "7"


def test_a_body_that_does_not_come_is_not_waited_for(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.config["http_options"]["port"])) as slow:
        slow.sendall(b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\nRIFF")
        slow.settimeout(30)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_killed_replica_costs_no_wrong_answer_and_comes_back(
    service: Service, offline: Callable[[bytes], str]
) -> None:
    service.deploy({})
    until(lambda: service.health().json()["replicas"][0]["max_batch_size"] == 4)
    before = service.health().json()["replicas"]
    assert len(before) == REPLICAS
    pid = before[0]["pid"]
    assert b"Recognizer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    bodies = mixed(200)

    def kill(answered: int) -> None:
        if answered == 30:
            os.kill(pid, signal.SIGKILL)

    found = asyncio.run(service.post_all(bodies, kill))
    statuses = Counter(one.status_code for one in found)
    assert set(statuses) <= {200, 500, 503}, statuses
    assert statuses[200] > 100, statuses
    for body, one in zip(bodies, found, strict=True):
        if one.status_code == 200:
            assert one.json()["text"] == offline(body)
        else:
            assert one.json().keys() == {"error", "detail"}

    until(lambda: len(service.health().json().get("replicas", ())) == REPLICAS)
    after = service.health().json()["replicas"]
    assert before[0]["replica"] not in [one["replica"] for one in after]
    assert before[1]["replica"] in [one["replica"] for one in after]
    again = asyncio.run(service.post_all(bodies[:40]))
    assert [one.json()["text"] for one in again] == list(map(offline, bodies[:40]))
    assert {one.json()["replica"] for one in again} == {one["replica"] for one in after}
