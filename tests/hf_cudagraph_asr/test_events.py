"""Observers get an event for each call, and none of them can fail a query."""

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hf_cudagraph_asr import Dispatch, Served
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.observe import Observers

HOST = Served(Dispatch("host", Reason.LABELS), (), 0.25)


def test_an_event_cannot_be_changed_and_is_compared_by_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HOST.seconds = 1.0  # type: ignore[misc]
    assert dataclasses.replace(HOST) == HOST
    assert hash(dataclasses.replace(HOST)) == hash(HOST)


def test_observers_get_each_event_in_their_order() -> None:
    seen: list[tuple[str, Served]] = []
    observers = Observers([lambda e: seen.append(("a", e)), lambda e: seen.append(("b", e))])
    observers.notify(HOST)
    assert seen == [("a", HOST), ("b", HOST)]


def test_without_observers_there_is_nothing_to_notify() -> None:
    assert not Observers()
    assert Observers([print])
    Observers().notify(HOST)


def test_what_cannot_be_called_is_no_observer() -> None:
    with pytest.raises(TypeError, match="'metrics' cannot be called"):
        Observers(["metrics"])  # type: ignore[list-item]


def test_a_failing_observer_is_logged_once_for_each_kind_and_the_others_get_their_events(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Served] = []
    fault: Exception = OSError("disk full")

    def failing(event: Served) -> None:
        raise fault

    def failing_too(event: Served) -> None:
        raise OSError("no route")

    observers = Observers([failing, seen.append, failing_too])
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            observers.notify(HOST)
    assert seen == [HOST] * 3
    assert len(caplog.records) == 2
    assert "failing" in caplog.records[0].message
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is fault
    for logged in ("disk full", "no route", "Traceback"):
        assert logged in caplog.text

    fault = ValueError("another kind")
    with caplog.at_level(logging.ERROR):
        observers.notify(HOST)
        observers.notify(HOST)
    assert len(caplog.records) == 3
    assert "another kind" in caplog.text


def test_what_ends_the_process_is_not_kept_back() -> None:
    def interrupted(event: Served) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers([interrupted]).notify(HOST)


def test_an_observer_that_fails_in_all_threads_costs_no_event() -> None:
    seen: list[Any] = []

    def failing(event: Served) -> None:
        raise RuntimeError("always")

    observers = Observers([failing, seen.append])
    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(lambda _: observers.notify(HOST), range(400)):
            pass
    assert len(seen) == 400
