"""The server in this process: deployments in Ray's local testing mode, HTTP without a socket."""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import soundfile
from tiny_recognizer import RATE, waveform

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Ray Serve's own settings, which pydantic finds old
    from ray import serve

from hf_cudagraph_asr.serve import Gateway, ModelSettings, Recognizer, api


def encoded(samples: int, seed: int = 0, rate: int = RATE, **options: Any) -> bytes:
    """A recording as an upload: WAV of floats, unless `options` of soundfile say otherwise."""
    options = {"format": "WAV", "subtype": "FLOAT"} | options
    return written(waveform(samples, seed), rate, **options)


def written(samples: Any, rate: int = RATE, **options: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, **options)
    return stream.getvalue()


def local_gateway(model: Path | ModelSettings, **limits: Any) -> Gateway:
    """A Gateway beside a Recognizer of this model."""
    if isinstance(model, Path):
        model = ModelSettings(model=str(model), device="cpu")
    recognizer = serve.deployment(Recognizer).bind(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Ray does not manage in this mode
        handle = serve.run(recognizer, _local_testing_mode=True)
    gateway = Gateway(handle)
    gateway.reconfigure(limits)
    return gateway


def request(gateway: Any, method: str, path: str, **options: Any) -> httpx.Response:
    """Ask the HTTP API once."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(api(lambda: gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


def transcribe(gateway: Any, body: Any, **headers: str) -> httpx.Response:
    return request(gateway, "POST", "/transcribe", content=body, headers=headers)


def answered(
    gateway: Any, headers: dict[str, str], messages: Sequence[Any], path: str = "/transcribe"
) -> tuple[int, bytes, int]:
    """Post a body as a server passes it on, message by message.

    Returns:
        The status, the body of the answer, and how many messages were received before it.
    """
    sent = posted(gateway, headers, messages, path)
    body = b"".join(message.get("body", b"") for message, _ in sent)
    return sent[0][0]["status"], body, sent[0][1]


def posted(
    gateway: Any,
    headers: dict[str, str],
    messages: Sequence[Any],
    path: str = "/transcribe",
    *,
    leaves: bool = True,
) -> list[tuple[Any, int]]:
    """The answer's messages, each with how many of the body's were received before it.

    A client that `leaves` does so once all is sent and answered; another one stays silent.
    """
    sent: list[tuple[Any, int]] = []
    received = 0
    named = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http", "method": "POST", "path": path, "root_path": "",
        "query_string": b"", "headers": named, "http_version": "1.1", "scheme": "http",
    }  # fmt: skip

    async def receive() -> Any:
        nonlocal received
        if received == len(messages):
            if sent and leaves:
                return {"type": "http.disconnect"}
            await asyncio.sleep(60)
        received += 1
        return messages[received - 1]

    async def send(message: Any) -> None:
        sent.append((message, received))

    asyncio.run(api(lambda: gateway)(scope, receive, send))
    return sent


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}
