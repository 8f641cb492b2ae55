"""A batch is replayed in the cheapest way there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.packing import Replay, fewest_replays, pack
from hf_cudagraph_asr.plan import BucketPlan, Traffic

GEOMETRY = Geometry()
FRAMES = (50, 100, 200)
PLAN = BucketPlan(FRAMES, Traffic.of([1.0], GEOMETRY))
Price = Callable[[int, int], float]


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


def cheapest(lengths: Sequence[int], sizes: Sequence[int], price: Price) -> float:
    """By trying everything."""

    def cost(group: list[int]) -> float:
        fits = [size for size in sizes if size >= len(group)]
        bucket = PLAN.bucket_for(max(lengths[row] for row in group))
        return price(bucket.frames, fits[0]) if fits and bucket else float("inf")

    return min(sum(map(cost, groups)) for groups in groupings(range(len(lengths))))


def total(replays: Sequence[Replay], price: Price) -> float:
    return sum(price(replay.bucket.frames, replay.batch_size) for replay in replays)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """Cost that rises with frames and rows, in any way."""
    steps = {(frames, rows): draw(st.integers(0, 20)) for frames in FRAMES for rows in (1, 2, 3, 4)}
    return lambda frames, rows: float(
        sum(step for (f, r), step in steps.items() if f <= frames and r <= rows)
    )


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(400, GEOMETRY.longest(200)), min_size=1, max_size=6),
    sizes=st.sampled_from([(1,), (2,), (1, 2), (1, 4), (2, 3), (1, 2, 4)]),
    price=prices() | st.just(fewest_replays),
)
def test_nothing_is_cheaper_and_every_row_is_served_once(
    lengths: list[int], sizes: tuple[int, ...], price: Price
) -> None:
    replays = pack(lengths, PLAN, sizes, price)
    assert replays is not None
    assert sorted(row for replay in replays for row in replay.rows) == list(range(len(lengths)))
    for replay in replays:
        longest = max(lengths[row] for row in replay.rows)
        assert replay.bucket == PLAN.bucket_for(longest)
        assert replay.batch_size == min(s for s in sizes if s >= len(replay.rows))
    assert total(replays, price) == pytest.approx(cheapest(lengths, sizes, price))
    assert replays[0].bucket == PLAN.bucket_for(max(lengths))


def test_together_where_replays_cost_alone_where_frames_do() -> None:
    lengths = [GEOMETRY.longest(frames) for frames in (200, 50, 50)]
    by_replays = pack(lengths, PLAN, (1, 4), lambda frames, rows: 1.0)
    assert by_replays is not None
    assert [(r.bucket.frames, r.batch_size, r.rows) for r in by_replays] == [(200, 4, (0, 1, 2))]
    by_frames = pack(lengths, PLAN, (1, 2), lambda frames, rows: float(frames * rows))
    assert by_frames is not None
    assert {(r.bucket.frames, r.rows) for r in by_frames} <= {
        (200, (0,)),
        (50, (1,)),
        (50, (2,)),
        (50, (1, 2)),
    }


def test_a_row_that_fits_no_bucket_leaves_the_batch_to_others() -> None:
    assert pack([16_000, GEOMETRY.longest(200) + 1], PLAN, (1, 2), fewest_replays) is None
    assert pack([GEOMETRY.longest(200) + 1], PLAN, (1,), fewest_replays) is None
