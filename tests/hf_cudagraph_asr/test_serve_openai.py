"""OpenAI's API, by its own client over HTTP, with the shipped model and recordings."""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from served import encoded, local_gateway, request

from hf_cudagraph_asr.serve import Gateway, api
from hf_cudagraph_asr.serve.openai import LONGEST, PAUSE, WIDEST, segments
from hf_cudagraph_asr.serve.recognizer import Word

TINYVOICE = Path(__file__).parents[2] / "docs/examples/tinyvoice"
RECORDING = TINYVOICE / "recordings/seen-04.flac"
TEXT = "switch to channel five hundred fifty seven"
PATH = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def gateway() -> Gateway:
    if not TINYVOICE.is_dir():
        pytest.skip("the package's tests run without its repository")
    return local_gateway(TINYVOICE / "model", names=["tinyvoice", "whisper-1"], language="en")


@pytest.fixture(scope="module")
def url(gateway: Gateway) -> Iterator[str]:
    """The API on a port of this machine."""
    # Without WebSockets: Uvicorn's first versions allowed import what websockets deprecates.
    config = uvicorn.Config(api(lambda: gateway), log_level="error", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found


def ask(gateway: Gateway, body: bytes | None = None, **fields: Any) -> Any:
    body = RECORDING.read_bytes() if body is None else body
    data = {"model": "tinyvoice"} | {name.replace("__", "[]"): of for name, of in fields.items()}
    return request(gateway, "POST", PATH, files={"file": ("q.flac", body)}, data=data)


def test_openais_client_gets_each_format(client: Any) -> None:
    def create(**options: Any) -> Any:
        return client.audio.transcriptions.create(model="whisper-1", file=RECORDING, **options)

    assert create().text == create(response_format="json", language="en").text == TEXT
    assert create(response_format="text") == f"{TEXT}\n"
    segment = create(response_format="verbose_json")
    assert (segment.text, segment.language, segment.words) == (TEXT, "en", None)
    assert [one.text for one in segment.segments] == [TEXT]
    timed = create(response_format="verbose_json", timestamp_granularities=["word"], temperature=0)
    assert timed.segments is None
    assert [one.word for one in timed.words] == TEXT.split()
    assert all(0 <= one.start < one.end <= timed.duration for one in timed.words)
    assert all(0 < one.confidence <= 1 for one in timed.words)
    assert segment.segments[0].start == timed.words[0].start
    assert segment.segments[0].end == timed.words[-1].end
    clock = r"00:00:0\d{}\d\d\d"
    for kind, head, point in (("srt", "1\n", ","), ("vtt", "WEBVTT\n\n", r"\.")):
        time_ = clock.format(point)
        assert re.fullmatch(f"{head}{time_} --> {time_}\n{TEXT}\n\n", create(response_format=kind))


def test_openais_client_lists_the_names_and_raises_its_own_errors(client: Any) -> None:
    import openai

    assert [one.id for one in client.models.list()] == ["tinyvoice", "whisper-1"]
    assert client.models.retrieve("whisper-1").id == "whisper-1"
    with pytest.raises(openai.NotFoundError, match="ask for tinyvoice or whisper-1"):
        client.models.retrieve("openai/whisper-2")
    create = client.audio.transcriptions.create
    with pytest.raises(openai.NotFoundError, match="ask for tinyvoice or whisper-1") as missing:
        create(model="whisper-2", file=RECORDING)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="prompt is not supported") as prompted:
        create(model="tinyvoice", file=RECORDING, prompt="hello")
    assert (prompted.value.code, prompted.value.param) == ("unsupported_parameter", "prompt")


@pytest.mark.parametrize(
    ("fields", "status", "code", "param", "message"),
    [
        ({"model": ""}, 400, "invalid_value", "model", "model is None: Field required"),
        ({"language": "de"}, 400, "invalid_value", "language", "the model hears en: leave it"),
        ({"response_format": "xml"}, 400, "invalid_value", "response_format", "'verbose_json'"),
        ({"temperature": "0.5"}, 400, "invalid_value", "temperature", "less than or equal to 0"),
        ({"model": ["tinyvoice", "tinyvoice"]}, 400, "invalid_value", "model", "is given twice"),
        ({"stream": "true"}, 400, "invalid_value", "stream", "should be 'false'"),
        ({"include__": "logprobs"}, 400, "unsupported_parameter", "include", "supported are file"),
        ({"timestamp_granularities__": "word"}, 400, "invalid_value", "timestamp_granularities",
         "['word']: timestamp_granularities need response_format=verbose_json"),
        ({"body": b"RIFF"}, 400, "undecodable", None, "the upload cannot be decoded"),
        ({"body": encoded(31 * 1000)}, 413, "too_long", None, "at most 30 are taken"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_in_openais_form(
    gateway: Gateway, fields: Any, status: int, code: str, param: str | None, message: str
) -> None:
    response = ask(gateway, **fields)
    found = response.json()["error"]
    assert (response.status_code, found["code"], found["param"]) == (status, code, param)
    assert found["type"] == "invalid_request_error"
    assert message in found["message"]


def test_other_errors_have_openais_form_too(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"data": {"model": "tinyvoice"}}
    assert "no file" in request(gateway, "POST", PATH, **form).json()["error"]["message"]
    assert request(gateway, "GET", PATH).json()["error"]["code"] == "method_not_allowed"
    other = request(gateway, "POST", "/v1/audio/translations")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "not_found")
    monkeypatch.setattr(Gateway, "transcribe", None)
    failed = ask(gateway)
    assert failed.status_code == 500
    assert (failed.json()["error"]["type"], failed.json()["error"]["code"]) == (
        "server_error", "internal",
    )  # fmt: skip


def test_without_a_known_language_none_may_be_named(gateway: Gateway) -> None:
    given = gateway.limits
    gateway.reconfigure({})
    try:
        response = ask(gateway, model="hf-cudagraph-asr", language="en")
        plain = ask(gateway, model="hf-cudagraph-asr", response_format="verbose_json")
    finally:
        gateway.reconfigure(given.model_dump())
    assert "has not been told its language" in response.json()["error"]["message"]
    assert (plain.json()["text"], plain.json()["language"]) == (TEXT, "und")


def test_the_page_describes_the_fields(gateway: Gateway) -> None:
    found = request(gateway, "GET", "/openapi.json").json()["paths"][PATH]["post"]["requestBody"]
    fields = json.dumps(found["content"]["multipart/form-data"])
    assert all(name in fields for name in ("file", "response_format", "srt", "language"))


words = st.lists(
    st.tuples(st.text("abc", min_size=1, max_size=30), st.floats(0, 2), st.floats(0.02, 2)),
    max_size=40,
)


@given(words)
def test_segments_hold_all_words_in_order_and_are_as_long_as_they_may_be(
    timed: list[tuple[str, float, float]],
) -> None:
    spoken: list[Word] = []
    now = 0.0
    for text, pause, spent in timed:
        spoken.append(Word(text=text, start=now + pause, end=now + pause + spent))
        now = spoken[-1].end
    found = segments(spoken)
    assert [word for part in found for word in part] == spoken
    for part in found:
        assert len(part) == 1 or part[-1].end - part[0].start <= LONGEST
        assert len(part) == 1 or len(" ".join(word.text for word in part)) <= WIDEST
        assert all(b.start - a.end < PAUSE for a, b in itertools.pairwise(part))
    for one, two in itertools.pairwise(found):
        longer = " ".join(word.text for word in [*one, two[0]])
        assert (
            two[0].start - one[-1].end >= PAUSE
            or two[0].end - one[0].start > LONGEST
            or len(longer) > WIDEST
        )
