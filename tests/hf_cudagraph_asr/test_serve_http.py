"""The HTTP API in this process: uploads, limits, errors, and what no request can do."""

from __future__ import annotations

import gc
import io
import json
import logging
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import answered, encoded, local_gateway, part, posted, request, transcribe, written
from tiny_recognizer import RATE, save_recognizer, waveform

from hf_cudagraph_asr import Transcriber
from hf_cudagraph_asr.serve import Gateway, api

LIMITS = {"max_bytes": 100_000, "max_seconds": 2.0, "timeout_s": 20.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_recognizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Gateway:
    return local_gateway(folder, **LIMITS)


@pytest.fixture(scope="module")
def text(folder: Path) -> Iterator[Callable[[int], str]]:
    """The text of a waveform of so many samples, from a Transcriber."""
    with Transcriber.from_pretrained(folder, device="cpu") as transcriber:
        yield lambda samples: transcriber.transcribe([waveform(samples)])[0].text


def flac(samples: Any, rate: int = RATE) -> bytes:
    return written(samples, rate, format="FLAC", subtype="PCM_16")


@pytest.mark.parametrize("kind", ["", "audio/x-wav", "application/octet-stream", "form"])
def test_a_recording_is_answered_whichever_way_it_is_sent(
    gateway: Gateway, text: Callable[[int], str], kind: str
) -> None:
    body = encoded(300)
    if kind == "form":
        response = request(gateway, "POST", "/transcribe", files={"file": ("q.wav", body)})
    else:
        response = transcribe(gateway, body, **({"Content-Type": kind} if kind else {}))
    assert response.status_code == 200
    found = response.json()
    assert found["text"] == text(300) != ""
    assert " ".join(word["text"] for word in found["words"]) == found["text"]
    assert all(0 <= word["start"] < word["end"] <= 0.3 for word in found["words"])
    assert (found["seconds"], found["batch"]) == (0.3, 1)
    assert found["milliseconds"] > 0 <= found["waited_milliseconds"]
    assert (found["route"], found["reason"], found["bucket"]) == ("exact", None, None)


def test_a_recording_too_short_for_a_frame_has_no_text(gateway: Gateway) -> None:
    response = transcribe(gateway, encoded(5))
    assert (response.status_code, response.json()["text"]) == (200, "")


def test_stereo_at_another_rate_is_converted(gateway: Gateway) -> None:
    samples = np.stack([waveform(4 * 300)] * 2, axis=1)
    response = transcribe(gateway, written(samples, 4 * RATE, format="FLAC"))
    assert (response.status_code, response.json()["seconds"]) == (200, 0.3)


def unknown_length() -> bytes:
    body = bytearray(flac(waveform(300)))
    # STREAMINFO's 36-bit number of samples, 21.5 bytes in; 0 is what an encoder of a pipe writes.
    body[21] &= 0xF0
    body[22:26] = bytes(4)
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "status", "error", "detail"),
    [
        (b"", 400, "undecodable", "the upload is empty"),
        (b"RIFF", 400, "undecodable", "the upload cannot be decoded"),
        (b"{}" * 500, 400, "undecodable", "or convert it to WAV or FLAC"),
        (encoded(300)[:800], 400, "undecodable", "is cut off"),
        (encoded(300)[:44], 400, "undecodable", ""),
        (flac(waveform(900))[:900], 400, "undecodable", "cut off"),
        (unknown_length(), 400, "undecodable", "does not say how long it is"),
        (written([np.nan] * 300, format="WAV", subtype="FLOAT"), 400, "undecodable", "NaN"),
        (encoded(300, format="AIFF"), 400, "undecodable",
         "the upload is AIFF, expected WAV, WAVEX, FLAC, OGG, MP3, MP4, M4A or WebM: convert it"),
        (written(np.zeros(8000 * 9), 8000, format="MP3"), 413, "too_long", "has 9.00 seconds"),
        (encoded(300, rate=44_101), 400, "undecodable", "44,101 samples a second"),
        (encoded(2001), 413, "too_long", "2.00 seconds, at most 2 are taken: cut it"),
        (flac(np.zeros(3600 * RATE, np.int16)), 413, "too_long", "has 3,600.00 seconds"),
        (bytes(100_001), 413, "too_large", "100,001 bytes or more, at most 100,000 are taken"),
    ],
    # Not the bytes: a WAV of floats tells when it was written.
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)  # fmt: skip
def test_what_cannot_be_transcribed_is_refused_with_the_actual_fault(
    gateway: Gateway, body: bytes, status: int, error: str, detail: str
) -> None:
    response = transcribe(gateway, body)
    found = response.json()
    assert (response.status_code, found["error"]) == (status, error)
    assert found.keys() == {"error", "detail"}
    assert detail in found["detail"]


def test_hours_of_silence_are_refused_before_anything_is_decoded(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("soundfile.SoundFile.read", never)
    assert transcribe(gateway, flac(np.zeros(3600 * RATE, np.int16))).status_code == 413


@pytest.mark.parametrize(
    ("options", "status", "error", "detail"),
    [
        ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, 415,
         "unsupported_type", "expected audio/wav, audio/flac, audio/mpeg, audio/ogg, audio/mp4"),
        ({"files": {"audio": ("q.wav", encoded(300))}}, 400, "bad_request", "field `file`"),
        ({"data": {"file": "q.wav"}, "files": {"x": b""}}, 400, "bad_request", "field `file`"),
        ({"files": [("file", b"a"), ("file", b"b")]}, 400, "bad_request", "Too many files"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400,
         "bad_request", "boundary"),
        ({"content": b"x" * 99, "headers": {"Content-Type": "multipart/form-data; boundary=y"}},
         400, "bad_request", ""),
        ({"files": {"file": bytes(100_000)}}, 413, "too_large", "at most 100,000"),
    ],
)  # fmt: skip
def test_bodies_of_other_kinds_are_refused(
    gateway: Gateway, options: dict[str, Any], status: int, error: str, detail: str
) -> None:
    response = request(gateway, "POST", "/transcribe", **options)
    found = response.json()
    assert (response.status_code, found["error"]) == (status, error)
    assert detail in found["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/transcribe", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/metrics", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
    ],
)
def test_other_paths_and_methods_say_what_there_is(
    gateway: Gateway, method: str, path: str, status: int, error: str
) -> None:
    response = request(gateway, method, path)
    assert (response.status_code, response.json()["error"]) == (status, error)
    assert "there are POST /transcribe and /v1/audio/transcriptions, GET" in response.text
    assert ("Allow" in response.headers) == (status == 405)


def test_fastapis_own_validation_answers_with_the_same_json(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    import served

    from hf_cudagraph_asr.serve import api

    def with_a_query(found: Any) -> Any:
        app = api(found)

        @app.get("/number")
        def number(value: int) -> int:
            return value

        return app

    monkeypatch.setattr(served, "api", with_a_query)
    response = request(gateway, "GET", "/number?value=x")
    assert response.status_code == 422
    assert response.json()["error"] == "invalid_request"
    assert "value: Input should be a valid integer" in response.json()["detail"]


def test_openapi_describes_the_real_request_and_answers(gateway: Gateway) -> None:
    assert request(gateway, "GET", "/docs").status_code == 200
    found = request(gateway, "GET", "/openapi.json").json()
    post = found["paths"]["/transcribe"]["post"]
    assert {"audio/wav", "audio/ogg", "multipart/form-data"} < {*post["requestBody"]["content"]}
    assert {*post["responses"]} == {"200", "400", "401", "408", "413", "415", "500", "503"}
    answer = transcribe(gateway, encoded(300)).json()
    assert answer.keys() == found["components"]["schemas"]["Transcription"]["properties"].keys()
    assert {*found["components"]["schemas"]["Error"]["required"]} == {"error", "detail"}


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="q.wav"\r\n\r\n'


@pytest.mark.parametrize("headers", [{}, FORM], ids=["raw", "form"])
def test_a_body_is_cut_off_at_the_limit_however_it_comes(
    gateway: Gateway, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled = 0
    write = tempfile.SpooledTemporaryFile.write

    def counting(self: Any, data: bytes) -> int:
        nonlocal spooled
        spooled += len(data)
        return write(self, data)

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", counting)
    endless = [part(HEAD), *[part(bytes(30_000))] * 1000]
    status, body, received = answered(gateway, headers, endless)
    assert (status, json.loads(body)["error"]) == (413, "too_large")
    assert received <= 1 + 4
    assert spooled <= 100_000


@pytest.mark.parametrize("length", ["100001", "9" * 5000])
def test_a_content_length_that_is_too_large_is_refused_before_anything_is_received(
    gateway: Gateway, length: str
) -> None:
    for headers in ({}, FORM):
        status, body, received = answered(gateway, {"Content-Length": length, **headers}, [])
        assert (status, received) == (413, 0)
        assert json.loads(body)["error"] == "too_large"


def test_a_content_length_that_lies_does_not_let_more_through(gateway: Gateway) -> None:
    for length in ("10", "-1", "1e3", "²"):
        messages = [part(bytes(60_000))] * 10
        status, _, received = answered(gateway, {"Content-Length": length}, messages)
        assert (status, received) == (413, 2)


@pytest.mark.parametrize("parts", [10, 1000])
@pytest.mark.parametrize("length", [{}, {"Content-Length": "100001"}], ids=["chunks", "length"])
def test_a_client_that_still_sends_has_its_answer_before_the_connection_closes(
    gateway: Gateway, length: dict[str, str], parts: int
) -> None:
    messages = [part(bytes(30_000), more=at < parts) for at in range(1, parts + 1)]
    (start, before), *bodies, (last, dropped) = posted(gateway, length, messages)
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]
    ((body, received),) = bodies
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    assert received == before < 5
    assert body["more_body"]  # or the connection closes
    assert last == {"type": "http.response.body"}
    assert dropped == min(parts, 4 * LIMITS["max_bytes"] // 30_000 + 1)


def test_a_client_that_sends_no_more_after_a_refusal_is_not_waited_for(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_cudagraph_asr.serve.application.LINGER", 0.1)
    start = time.monotonic()
    *_, (last, received) = posted(gateway, {"Content-Length": "100001"}, [], leaves=False)
    assert (last, received) == ({"type": "http.response.body"}, 0)
    assert 0.1 <= time.monotonic() - start < 10


@pytest.mark.parametrize("headers", [{}, FORM], ids=["raw", "form"])
def test_a_body_that_does_not_come_is_not_waited_for(
    folder: Path, gateway: Gateway, headers: dict[str, str]
) -> None:
    gateway.reconfigure(LIMITS | {"timeout_s": 0.2})
    try:
        status, body, _ = answered(gateway, headers, [part(HEAD)])
    finally:
        gateway.reconfigure(LIMITS)
    assert (status, json.loads(body)["error"]) == (408, "slow_body")
    assert f"{len(HEAD)} bytes came within 0.2 s" in json.loads(body)["detail"]


def test_a_client_that_leaves_with_half_its_body_is_no_error(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [part(HEAD), {"type": "http.disconnect"}]
    for headers in ({}, FORM):
        status, _, _ = answered(gateway, headers, messages)
        assert status == 499
    assert not caplog.records


# Starlette leaves the file of a form that ends within it to the garbage collector.
@pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning")
@given(st.binary(max_size=300), st.integers(0, 90), st.sampled_from(["WAV", "FLAC", "form"]))
@settings(max_examples=40)
def test_no_upload_is_an_error_of_the_server(
    gateway: Gateway, noise: bytes, keep: int, kind: str
) -> None:
    if kind == "form":
        status, *_ = answered(gateway, FORM, [part(HEAD[:keep] + noise, more=False)])
    else:
        good = encoded(50, format=kind, subtype="PCM_16")
        status = transcribe(gateway, good[:keep] + noise).status_code
    assert status in (200, 400, 413, 415)


def test_a_size_of_a_streaming_writer_is_read_to_the_end_and_no_further(gateway: Gateway) -> None:
    body = bytearray(encoded(300))
    at = body.index(b"data") + 4
    body[at : at + 4] = body[4:8] = struct.pack("<I", 0xFFFFFFFF)
    response = transcribe(gateway, bytes(body))
    assert (response.status_code, response.json()["seconds"]) == (200, 0.3)


def test_of_the_models_exception_a_client_gets_an_id_that_is_in_the_log(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error in /secret/path.py")

    monkeypatch.setattr(Transcriber, "transcribe", fails)
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    try:
        response = transcribe(gateway, encoded(300))
    finally:
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert (response.status_code, response.json()["error"]) == (500, "failed")
    detail = response.json()["detail"]
    assert "secret" not in detail
    name = detail.partition("under ")[2].partition(":")[0]
    assert len(name) == 12
    assert f"failure {name}" in caplog.text
    assert "CUDA error in /secret/path.py" in caplog.text


def test_in_a_process_of_the_users_nothing_is_kept_from_garbage_collections(
    folder: Path,
) -> None:
    kept = gc.get_freeze_count()  # of what other tests need, of which some may end
    assert transcribe(local_gateway(folder, **LIMITS), encoded(300)).status_code == 200
    assert gc.get_freeze_count() <= kept


def test_requests_leave_nothing_in_memory(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = api(lambda: gateway)  # one for all requests, as a server has
    monkeypatch.setattr("served.api", lambda _: application)
    bodies = [encoded(1200), flac(waveform(2000)), b"RIFF and no more", bytes(100_001)]

    def held_after(rounds: int) -> int:
        for _ in range(rounds):
            for body in bodies:
                transcribe(gateway, body)
                headers = {"content-length": str(len(body))}
                answered(gateway, headers, [part(body[:1000]), {"type": "http.disconnect"}])
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    rounds = 8
    tracemalloc.start()
    try:
        held = [held_after(rounds) for _ in range(5)]
    finally:
        tracemalloc.stop()
    # Caches fill at times; what requests leave behind grows every time.
    assert min(after - before for before, after in pairwise(held)) < 1000 * rounds


def test_with_a_key_only_those_who_send_it_are_answered(folder: Path) -> None:
    gateway = local_gateway(folder, api_key="sesame")
    for path in ("/transcribe", "/v1/audio/transcriptions"):
        for headers in ({}, {"Authorization": "Bearer open"}, {"Authorization": "Basic sesame"}):
            status, body, received = answered(gateway, headers, [part(b"RIFF", False)], path)
            assert (status, received) == (401, 0)
            assert "invalid_api_key" in body.decode()
    response = request(gateway, "GET", "/v1/models")
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "Authorization: Bearer KEY" in response.json()["error"]["message"]
    key = {"Authorization": "Bearer sesame"}
    assert request(gateway, "GET", "/v1/models", headers=key).status_code == 200
    assert transcribe(gateway, encoded(300), **key).status_code == 200
    gateway.reconfigure({"api_key": "other"})
    assert transcribe(gateway, encoded(300), **key).status_code == 401


def test_health_says_how_many_models_there_are_and_should_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def deployed(*states: str) -> None:
        found = {"replicas": [{"state": one} for one in states], "target_num_replicas": 3}
        details = {"applications": {"a": {"deployments": {"Recognizer": found}}}}
        client = SimpleNamespace(get_serve_details=lambda: details)
        monkeypatch.setattr("hf_cudagraph_asr.serve.application._get_global_client", lambda: client)

    handle: Any = SimpleNamespace(app_name="a", deployment_name="Recognizer")
    gateway = Gateway(handle)
    deployed("RUNNING", "RUNNING", "STOPPING")  # and the third cannot start
    response = request(gateway, "GET", "/healthz")
    assert (response.status_code, response.json()) == (200, {"ready": 2, "expected": 3})
    deployed("STARTING")
    response = request(gateway, "GET", "/healthz")
    assert (response.status_code, response.json()["error"]) == (503, "not_ready")
    assert "no model of 3 is ready" in response.json()["detail"]


class Recognizers:
    """A handle whose deployment fails, which a real one does not on demand."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.cancelled = 0

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *_: Any) -> Any:
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    def __await__(self) -> Iterator[Any]:
        if self.errors:
            raise self.errors.pop(0)
        import asyncio

        return asyncio.sleep(60).__await__()


def test_what_becomes_of_a_query_whose_recognizer_cannot_answer() -> None:
    from ray.exceptions import ActorDiedError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    none = DeploymentUnavailableError(deployment_id=None)
    cases: list[tuple[str, list[BaseException]]] = [
        ("overloaded", [full]),
        ("not_ready", [none]),
        ("not_ready", []),  # none answers in start_timeout_s
        ("replica_died", [ActorDiedError(), ActorDiedError()]),
        ("overloaded", [ActorDiedError(), full]),  # it was asked once more
    ]
    for error, raised in cases:
        handle = Recognizers(*raised)
        gateway: Any = Gateway(handle)  # type: ignore[arg-type]
        gateway.reconfigure({"start_timeout_s": 0.05, "retry_after_s": 7})
        response = transcribe(gateway, encoded(300))
        assert (response.status_code, response.json()["error"]) == (503, error)
        assert response.headers["Retry-After"] == "7"
        assert "in 7 s" in response.json()["detail"]
        assert handle.cancelled == (not raised)
    assert "the queue is full" in response.json()["detail"]


def test_an_error_of_the_server_is_json_with_an_id(caplog: pytest.LogCaptureFixture) -> None:
    gateway: Any = Gateway(Recognizers(KeyError("a secret")))  # type: ignore[arg-type]
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    try:
        response = transcribe(gateway, io.BytesIO(encoded(300)).getvalue())
    finally:
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert (response.status_code, response.json()["error"]) == (500, "internal")
    assert "secret" not in response.text
    name = response.json()["detail"].partition("under ")[2].partition(":")[0]
    assert f"failure {name}" in caplog.text
