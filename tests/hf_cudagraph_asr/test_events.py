"""Events, and observers that fail."""

import dataclasses
import logging
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cudagraph_asr.dispatch import Dispatch, Reason
from hf_cudagraph_asr.events import Observers, Served
from hf_cudagraph_asr.packing import Replay
from hf_cudagraph_asr.plan import Bucket

HOST = Served(Dispatch("host", Reason.LABELS), (), 0.25)


def bucket(frames: int) -> Bucket:
    return Bucket(frames, frames * 320 + 399, share=1.0, padding=0.0, cost=float(frames))


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 64), st.data()), min_size=1))
def test_frames_filled_and_added_are_exact(replays: list[tuple[int, int, st.DataObject]]) -> None:
    filled = [
        data.draw(st.integers(1, frames * rows), label="filled") for frames, rows, data in replays
    ]
    computed = sum(frames * rows for frames, rows, _ in replays)
    event = Served(
        Dispatch(
            "bucket",
            replays=tuple(Replay(bucket(frames), rows, (0,)) for frames, rows, _ in replays),
            padding=(computed - sum(filled)) / sum(filled),  # as the pool reckons it
        ),
        (16_000,),
        0.01,
    )
    assert (event.filled, event.added) == (sum(filled), computed - sum(filled))


def test_a_call_without_a_bucket_has_no_frames() -> None:
    assert (HOST.filled, HOST.added) == (0, 0)


def test_an_event_cannot_be_changed_and_is_compared_by_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HOST.seconds = 1.0  # type: ignore[misc]
    assert dataclasses.replace(HOST) == HOST
    assert hash(dataclasses.replace(HOST)) == hash(HOST)


def test_observers_hear_of_each_event_in_their_order() -> None:
    heard: list[tuple[str, Served]] = []
    observers = Observers([lambda e: heard.append(("a", e)), lambda e: heard.append(("b", e))])
    observers.notify(HOST)
    assert heard == [("a", HOST), ("b", HOST)]


def test_without_observers_there_is_nobody_to_notify() -> None:
    assert not Observers()
    assert Observers([print])
    Observers().notify(HOST)


def test_what_cannot_be_called_is_no_observer() -> None:
    with pytest.raises(TypeError, match="'metrics' cannot be called"):
        Observers(["metrics"])  # type: ignore[list-item]


def test_a_failing_observer_is_logged_once_for_each_kind_and_the_others_still_hear(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[Served] = []
    fault: Exception = OSError("disk full")

    def failing(event: Served) -> None:
        raise fault

    def failing_too(event: Served) -> None:
        raise OSError("no route")

    observers = Observers([failing, heard.append, failing_too])
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            observers.notify(HOST)
    assert heard == [HOST] * 3
    assert len(caplog.records) == 2
    assert "failing" in caplog.records[0].message
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is fault
    assert "disk full" in caplog.text
    assert "no route" in caplog.text
    assert "Traceback" in caplog.text

    fault = ValueError("another kind")
    with caplog.at_level(logging.ERROR):
        observers.notify(HOST)
        observers.notify(HOST)
    assert len(caplog.records) == 3
    assert "another kind" in caplog.text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_not_kept_back(kind: type[BaseException]) -> None:
    def interrupted(event: Served) -> None:
        raise kind

    with pytest.raises(kind):
        Observers([interrupted]).notify(HOST)


def test_an_observer_that_fails_in_all_threads_costs_no_event() -> None:
    heard: list[Any] = []

    def failing(event: Served) -> None:
        raise RuntimeError("always")

    observers = Observers([failing, heard.append])

    def work() -> None:
        for _ in range(200):
            observers.notify(HOST)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 8 * 200
