"""What becomes of a batch is decided without torch: the cheapest replays there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cudagraph_asr import BucketPlan, Cost, Dispatch, Geometry
from hf_cudagraph_asr.dispatch import Prices, Programs, Reason, Replay, decide
from hf_cudagraph_asr.plan import Traffic

GEOMETRY = Geometry()
FRAMES = (50, 100, 200)
PLAN = BucketPlan(FRAMES, Traffic.of([1.0], GEOMETRY))
EXACT = Dispatch("exact")
Price = Callable[[int, int], float]


def programs(sizes: Sequence[int], price: Price | None = None, eager: float = 1e9) -> Programs:
    """Those of the plan, at these prices of a replay, and at that of an eager row."""
    if price is None:
        return Programs(PLAN, sizes)
    replays = {(frames, rows): price(frames, rows) for frames in FRAMES for rows in sizes}
    cost = Cost(FRAMES, (1.0,) * 3, (1.0,) * 3)
    return Programs(PLAN, sizes, Prices(cost, replays, dict.fromkeys(FRAMES, eager)))


def groupings(rows: Sequence[int]) -> Iterator[list[list[int]]]:
    """All ways to put rows in groups."""
    if not rows:
        yield []
        return
    first, *rest = rows
    for others in groupings(rest):
        yield [[first], *others]
        for i in range(len(others)):
            yield [*others[:i], [first, *others[i]], *others[i + 1 :]]


def bucket_for(lengths: Sequence[int]) -> int:
    return min(frames for frames in FRAMES if GEOMETRY.longest(frames) >= max(lengths))


def cheapest(lengths: Sequence[int], sizes: Sequence[int], price: Price) -> float:
    """By trying everything."""

    def cost(group: list[int]) -> float:
        fits = [size for size in sizes if size >= len(group)]
        return price(bucket_for([lengths[row] for row in group]), fits[0]) if fits else float("inf")

    return min(sum(map(cost, groups)) for groups in groupings(range(len(lengths))))


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """Cost that rises with frames and rows, in any way."""
    steps = {(frames, rows): draw(st.integers(0, 20)) for frames in FRAMES for rows in (1, 2, 3, 4)}
    return lambda frames, rows: float(
        sum(step for (f, r), step in steps.items() if f <= frames and r <= rows)
    )


@settings(max_examples=100)
@given(
    # Some shorter than the receptive field: they have no frames, and go with the others.
    lengths=st.lists(st.integers(0, GEOMETRY.longest(200)), min_size=1, max_size=5),
    sizes=st.sampled_from([(1,), (2,), (1, 2), (1, 4), (2, 3), (1, 2, 4)]),
    price=prices() | st.none(),
)
def test_nothing_is_cheaper_and_every_row_is_served_once(
    lengths: list[int], sizes: tuple[int, ...], price: Price | None
) -> None:
    dispatch = decide(lengths, programs(sizes, price), EXACT)
    replays = dispatch.replays
    if price is None and len(lengths) > sizes[-1]:  # run eagerly, by the plan's guess
        assert dispatch.route == "bucket" or dispatch.reason is Reason.ROWS
        return
    assert dispatch.route == "bucket"
    assert sorted(row for replay in replays for row in replay.rows) == [*range(len(lengths))]
    for replay in replays:
        own = [lengths[row] for row in replay.rows]
        assert replay.bucket.frames == bucket_for(own)
        assert replay.batch_size == min(s for s in sizes if s >= len(replay.rows))
        assert replay.filled == sum(map(GEOMETRY.frames, own))
        assert replay.computed == replay.bucket.frames * replay.batch_size
    assert dispatch.bucket == replays[0].bucket
    assert dispatch.bucket.frames == bucket_for(lengths)
    if price is None:  # nothing is measured: as few replays as can be
        by_count: Price = lambda frames, rows: 1e9 + frames * rows  # noqa: E731
        found = sum(by_count(r.bucket.frames, r.batch_size) for r in replays)
        assert found == cheapest(lengths, sizes, by_count)
    else:
        assert dispatch.cost == pytest.approx(cheapest(lengths, sizes, price))


def test_a_single_row_is_decided_once_for_its_frames_and_again_by_other_prices() -> None:
    unmeasured, measured = programs((1, 2)), programs((1, 2), lambda frames, rows: 7.0)
    shortest, longest = GEOMETRY.shortest(60), GEOMETRY.longest(60)
    found = decide([shortest], unmeasured, EXACT)
    assert decide([longest], unmeasured, EXACT) is found
    assert decide([longest + 1], unmeasured, EXACT).filled == 61
    again = decide([longest], measured, EXACT)
    assert (again.replays, again.cost) == (found.replays, 7.0)


@pytest.mark.parametrize(
    ("price", "sizes", "expected"),
    [
        (lambda frames, rows: 1.0, (1, 4), [(200, 4, (0, 1, 2))]),
        (lambda frames, rows: float(frames * rows), (1, 2), [(200, 1, (0,)), (50, 2, (1, 2))]),
    ],
    ids=["replays", "frames"],
)
def test_together_where_replays_cost_alone_where_frames_do(
    price: Price, sizes: tuple[int, ...], expected: list[tuple[int, int, tuple[int, ...]]]
) -> None:
    lengths = [GEOMETRY.longest(frames) for frames in (200, 50, 50)]
    replays = decide(lengths, programs(sizes, price), EXACT).replays
    assert [(r.bucket.frames, r.batch_size, r.rows) for r in replays] == expected


def test_what_no_program_serves() -> None:
    long = GEOMETRY.longest(200) + 1
    for lengths in ([long], [16_000, long], [long, 5]):
        dispatch = decide(lengths, programs((1, 2)), EXACT)
        assert (dispatch.route, dispatch.reason) == ("exact", Reason.LONG)
        assert str(long) in dispatch.detail
        assert str(long - 1) in dispatch.detail
    cheap_eager = programs((1, 2), lambda frames, rows: 10.0, eager=1.0)
    assert decide([16_000] * 3, cheap_eager, EXACT).reason is Reason.ROWS
    assert decide([16_000] * 2, cheap_eager, EXACT).reason is None
    failed = Dispatch("exact", Reason.FAILED, "no room")
    assert decide([16_000], None, failed) is failed


def test_a_dispatch_counts_in_whole_frames_and_says_them_in_a_sentence() -> None:
    frames = GEOMETRY.frames
    dispatch = decide([16_000, 9_000, 300], programs((1, 4)), EXACT)
    assert (dispatch.filled, dispatch.computed) == (frames(16_000) + frames(9_000), 50 * 4)
    assert dispatch.padding == pytest.approx(dispatch.computed / dispatch.filled - 1)
    assert str(dispatch) == f"bucket of 50 frames, 4 rows, {dispatch.padding:.0%} padding"
    assert (dispatch.bucket, dispatch.batch_size) == (PLAN.buckets[0], 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dispatch.route = "host"  # type: ignore[misc]
    for nothing in (EXACT, Dispatch("host", Reason.LABELS, "two")):
        assert (nothing.filled, nothing.computed, nothing.padding) == (0, 0, 0)
        assert (nothing.bucket, nothing.batch_size) == (None, 0)
    assert str(EXACT) == "the exact forward"
    labels = "the model's own forward, because: labels were given (two)"
    assert str(Dispatch("host", Reason.LABELS, "two")) == labels


def test_a_split_batch_is_cost_and_frames_of_all_its_replays() -> None:
    first = Replay(PLAN.buckets[2], 1, (0,), 180)
    second = Replay(PLAN.buckets[0], 2, (1, 2), 70)
    dispatch = Dispatch("bucket", replays=(first, second))
    assert (dispatch.filled, dispatch.computed) == (250, 300)
    assert dispatch.padding == pytest.approx(0.2)
    assert str(dispatch).startswith("bucket of 200 frames, 1 rows, then bucket of 50 frames, 2")
