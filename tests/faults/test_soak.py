"""What the soak calls wrong, and how it measures memory; soak_server.py runs the server itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from soak_server import Found, Load, Query, answer_of, sent, slopes


def sent_once(handler: Callable[[httpx.Request], httpx.Response], query: Query) -> Found:
    """What a query of which the text "yes" is expected leads to."""
    found = Found()

    async def ask() -> None:
        load = Load("http://here", 1, found)
        await load.client.aclose()
        load.client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
        load.expected[id(query)] = (200, "yes")
        await load.send(query)
        await load.client.aclose()

    asyncio.run(ask())
    return found


def later(word: str, **headers: str) -> httpx.Response:
    return httpx.Response(503, json={"error": word, "detail": "why"}, headers=headers)


def lost(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("closed")


def test_the_expected_answer_and_a_refusal_to_come_again_are_right():
    for answer, counted in (
        (httpx.Response(200, json={"text": "yes"}), "answered as alone and undisturbed"),
        (later("overloaded", **{"Retry-After": "1"}), "refused with 503: overloaded"),
    ):
        found = sent_once(lambda _, answer=answer: answer, sent(b"", "x", "body"))
        assert found.counts == {"requests: x": 1, counted: 1}
        assert not found.wrong


WRONG: dict[str, Callable[[httpx.Request], httpx.Response]] = {
    "another text": lambda _: httpx.Response(200, json={"text": "no"}),
    "503 without Retry-After": lambda _: later("overloaded"),
    "503 in no table": lambda _: later("asleep", **{"Retry-After": "1"}),
    "500": lambda _: httpx.Response(500, json={"error": "internal", "detail": "why"}),
    "Serve's own text": lambda _: httpx.Response(503, text="of Serve's own"),
    "no JSON": lambda _: httpx.Response(200, text="no JSON"),
    "a lost connection": lost,
}


@pytest.mark.parametrize("name", WRONG)
def test_other_answers_and_none_are_wrong(name):
    assert len(sent_once(WRONG[name], sent(b"", "x", "body")).wrong) == 1


@pytest.mark.parametrize(
    ("way", "body"),
    [
        ("text", "a b\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:01,000\na\n\n2\n00:00:02,000 --> 00:00:03,000\nb\n\n"),
        ("vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na b\n\n"),
    ],
)
def test_a_text_is_found_in_each_of_openais_formats(way, body):
    assert answer_of(sent(b"", "x", way), httpx.Response(200, text=body)) == (200, "a b")


def test_memory_grows_by_the_slope_of_its_second_half_in_processes_that_live_through_it():
    times = np.arange(0, 600, 5)
    grows = [(time, int(2**30 + 1024 * 3 * time)) for time in times]
    young = [(time, 2**20) for time in times[80:]]
    found = slopes({("proxy", 1): grows, ("Recognizer", 2): young}, 10)
    assert found == {"proxy": "+180 ± 0 KiB a minute at 1,025 MiB"}
