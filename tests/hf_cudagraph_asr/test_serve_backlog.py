"""The choice of what goes through the model together."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hf_cudagraph_asr.serve.backlog import STEP, Backlog, length_class

# What happens at a replica: a query of some class arrives, or the device is free.
events = st.lists(st.none() | st.integers(0, 4), max_size=60)
captured = st.sampled_from([(), (1,), (1, 4), (2, 8), (1, 2, 4, 8)])
buckets = st.sets(st.integers(1, 2000), max_size=5).map(lambda found: tuple(sorted(found)))


@given(events, st.integers(1, 8), captured)
def test_every_query_is_taken_once_the_oldest_first_and_by_length(
    events: list[int | None], most: int, rows: tuple[int, ...]
) -> None:
    backlog: Backlog[tuple[int, int]] = Backlog()
    waiting: list[tuple[int, int]] = []  # (ticket, class), the plain reference
    for ticket, kind in enumerate([*events, *[None] * len(events)]):
        if kind is not None:
            backlog.add((ticket, kind), kind)
            waiting.append((ticket, kind))
            continue
        batch = backlog.take(most, rows)
        assert bool(batch) == bool(waiting)
        if not batch:
            continue
        assert len(set(batch)) == len(batch) <= most
        assert batch[0] == waiting[0]
        longest = batch[0][1]
        alike = [query for query in waiting if query[1] == longest]
        shorter = [query for query in waiting if query[1] < longest]
        same = alike[:most]
        room = min(next((size for size in rows if size >= len(same)), len(same)), most)
        assert batch == same + shorter[: room - len(same)]
        waiting = [query for query in waiting if query not in batch]
        assert len(backlog) == len(waiting)
    assert not waiting


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.integers(1, 8))
def test_nobody_is_computed_whose_client_is_gone(
    queries: list[tuple[int, bool]], most: int
) -> None:
    backlog: Backlog[tuple[int, bool]] = Backlog()
    for number, (kind, gone) in enumerate(queries):
        backlog.add((number, gone), kind)
    taken = []
    while batch := backlog.take(most, (1, 4), lambda query: not query[1]):
        taken += batch
    assert sorted(taken) == [(n, gone) for n, (_, gone) in enumerate(queries) if not gone]
    assert len(backlog) == 0


def test_a_row_that_is_computed_anyway_is_given_to_a_shorter_query() -> None:
    backlog: Backlog[str] = Backlog()
    for name, kind in [("long", 2), ("short", 0), ("long too", 2), ("middle", 1), ("longest", 3)]:
        backlog.add(name, kind)
    assert backlog.take(8, (1, 4)) == ["long", "long too", "short", "middle"]
    assert backlog.take(8, (1, 4)) == ["longest"]


def test_without_captured_rows_nothing_longer_than_needed_is_computed() -> None:
    backlog: Backlog[str] = Backlog()
    for name, kind in [("long", 2), ("short", 0), ("long too", 2)]:
        backlog.add(name, kind)
    assert backlog.take(8) == ["long", "long too"]
    assert backlog.take(8) == ["short"]


@given(buckets, st.lists(st.integers(1, 5000), min_size=1, max_size=30))
def test_classes_ascend_with_length_and_are_the_buckets_where_there_are_some(
    buckets: tuple[int, ...], lengths: list[int]
) -> None:
    found = [(n, length_class(n, buckets)) for n in sorted(lengths)]
    for (_, shorter), (_, longer) in pairwise(found):
        assert shorter <= longer
    for samples, kind in found:
        inside = [at for at, end in enumerate(buckets) if samples <= end]
        assert (kind < len(buckets)) == bool(inside)
        assert not inside or kind == inside[0]
    for (short, a), (long, b) in pairwise(found):
        if a == b >= len(buckets):
            assert long <= short * STEP * (1 + 1e-9)
