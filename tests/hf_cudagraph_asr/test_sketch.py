"""Sketches of lengths against plain counting."""

import json
import math
import random
import sys
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan import EXACT, LONGEST, Cost, LengthSketch, Traffic, plan_buckets

GEOMETRY = Geometry()
SMALL = Geometry((4, 3), (3, 2), 8_000)
COVERED = Cost((0, 1), (0.0, 1.0), (0.0, 1e6))  # an eager run so dear that every query is replayed

# All bins, written out: up to 2,048 frames each length, then 1,024 an octave.
BINS = list(range(1, EXACT + 1))
while BINS[-1] < LONGEST:
    BINS += range(BINS[-1] + BINS[-1] // 1024, 2 * BINS[-1] + 1, BINS[-1] // 1024)

lengths = st.integers(1, 2_000) | st.integers(1, 2 * LONGEST)


def sketch_of(
    frames: list[int], *, geometry: Geometry = GEOMETRY, half_life: float | None = None
) -> LengthSketch:
    sketch = LengthSketch(geometry, half_life=half_life)
    for length in frames:
        sketch.add(geometry.longest(length))
    return sketch


def histogram(sketch: LengthSketch) -> dict[int, float]:
    if not sketch.total:
        return {}
    traffic = sketch.traffic()
    return dict(zip(traffic.frames, traffic.counts, strict=True))


# What is counted


def test_there_are_as_many_bins_as_the_documentation_says() -> None:
    assert len(BINS) == 13_312
    assert BINS[-1] == LONGEST
    assert len(histogram(sketch_of(BINS))) == 13_312  # and each is a length of its own


@given(st.lists(lengths, max_size=50))
def test_lengths_are_counted_by_bins(frames: list[int]) -> None:
    expected = Counter(BINS[min(bisect_left(BINS, length), len(BINS) - 1)] for length in frames)
    assert histogram(sketch_of(frames)) == expected
    assert sketch_of(frames).total == len(frames)


@given(st.integers(1, LONGEST))
def test_a_length_counts_as_no_shorter_and_hardly_longer(frames: int) -> None:
    (counted,) = histogram(sketch_of([frames]))
    assert frames <= counted
    assert counted == frames or frames > EXACT
    assert counted - frames < frames / 1024


@given(st.integers(0, 10**6))
def test_samples_count_as_the_frames_of_their_geometry(samples: int) -> None:
    sketch = LengthSketch(SMALL)
    sketch.add(samples)
    frames = SMALL.frames(samples)
    if frames == 0:
        assert sketch.total == 0
    else:
        (counted,) = histogram(sketch)
        assert counted == BINS[bisect_left(BINS, frames)]


@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=30), st.integers(1, 4))
@settings(deadline=None)
def test_buckets_planned_for_a_sketch_hold_every_query_in_it(
    frames: list[int], graphs: int
) -> None:
    plan = plan_buckets(sketch_of(frames).traffic(), graphs=graphs, cost=COVERED)
    assert all(plan.bucket_for(GEOMETRY.longest(length)) is not None for length in frames)


def test_a_plan_for_a_sketch_is_that_for_the_durations() -> None:
    samples = np.random.default_rng(0).lognormal(math.log(1.8 * 16_000), 0.5, 5_000).astype(int)
    sketch = LengthSketch(GEOMETRY, half_life=None)
    for n in samples:
        sketch.add(n)
    assert sketch.traffic() == Traffic.of(samples / 16_000, GEOMETRY)
    assert plan_buckets(sketch.traffic()) == plan_buckets(samples / 16_000)


def test_nothing_seen_is_no_traffic() -> None:
    sketch = LengthSketch(GEOMETRY)
    with pytest.raises(ValueError, match="no query was seen yet"):
        sketch.traffic()
    sketch.add(16_000)
    sketch.reset()
    with pytest.raises(ValueError, match="no query was seen yet"):
        sketch.traffic()


# Forgetting


@given(st.integers(1, 1_500), st.floats(1, 4), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_a_query_halves_its_weight_every_half_life(
    queries: int, half_life: float, rng: random.Random
) -> None:
    # Long enough for weights to be scaled down, which happens each 256 half-lives.
    frames = rng.choices(range(1, 6), k=queries)
    expected: Counter[int] = Counter()
    for age, length in enumerate(reversed(frames)):
        expected[length] += 2 ** (-age / half_life)  # type: ignore[assignment]
    found = histogram(sketch_of(frames, half_life=half_life))
    # Long forgotten ones may be gone, or left until the next clearing.
    for length in expected.keys() | found.keys():
        assert found.get(length, 0.0) == pytest.approx(expected[length], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("half_life", [1, 10, 100.5])
def test_all_weights_together_have_a_limit(half_life: float) -> None:
    sketch = sketch_of([7] * 5_000, half_life=half_life)
    limit = 1 / (1 - 2 ** (-1 / half_life))
    assert sketch.total <= limit * (1 + 1e-12)
    assert sketch.total == pytest.approx(limit, rel=1e-6)
    assert limit <= 1.4427 * half_life + 1


def test_what_is_forgotten_takes_no_room() -> None:
    sketch = sketch_of(list(range(1, 2_001)), half_life=1)
    for _ in range(1_000):
        sketch.add(GEOMETRY.longest(5_000))
    assert len(sketch.traffic().frames) == 1


def test_yesterdays_traffic_gives_way_to_todays() -> None:
    sketch = sketch_of([50] * 10_000 + [100] * 1_000, half_life=200)
    assert histogram(sketch)[50] / sketch.total == pytest.approx(2**-5, rel=1e-3)


@pytest.mark.parametrize("half_life", [0, 0.5, -1, math.inf, math.nan, "many"])
def test_a_half_life_is_queries(half_life: Any) -> None:
    with pytest.raises(ValueError, match="half_life is a number of queries from 1 up, or None"):
        LengthSketch(GEOMETRY, half_life=half_life)


# Several of them


@given(st.lists(lengths, max_size=30), st.lists(lengths, max_size=30))
def test_merging_is_counting_both(one: list[int], other: list[int]) -> None:
    merged, reverse = sketch_of(one), sketch_of(other)
    merged.merge(sketch_of(other))
    reverse.merge(sketch_of(one))
    assert histogram(merged) == histogram(reverse) == histogram(sketch_of(one + other))


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=300),
    st.lists(st.integers(1, 5), min_size=1, max_size=300),
    st.floats(1, 10),
    st.floats(1, 10),
)
def test_merged_queries_weigh_what_they_weighed(
    one: list[int], other: list[int], half_life: float, others: float
) -> None:
    a, b = sketch_of(one, half_life=half_life), sketch_of(other, half_life=others)
    expected = Counter(histogram(a))
    expected.update(histogram(b))
    a.merge(b)
    assert histogram(a) == pytest.approx(expected, rel=1e-9)
    # From then on they fade alike.
    a.add(GEOMETRY.longest(9))
    assert a.total == pytest.approx(1 + sum(expected.values()) * 2 ** (-1 / half_life), rel=1e-9)


def test_a_sketch_merged_into_itself_counts_twice() -> None:
    sketch = sketch_of([3, 4, 4])
    sketch.merge(sketch)
    assert histogram(sketch) == {3: 2, 4: 4}


def test_frames_of_another_geometry_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="only lengths of the same geometry add up"):
        LengthSketch(GEOMETRY).merge(LengthSketch(SMALL))


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def run(*targets: Any) -> None:
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.usefixtures("restless")
def test_no_query_of_any_thread_is_lost() -> None:
    sketch, totals = LengthSketch(GEOMETRY, half_life=None), []

    def add() -> None:
        for length in range(2_000):
            sketch.add(GEOMETRY.longest(1 + length % 7))

    def read() -> None:
        totals.extend(sketch.total for _ in range(200))

    run(*[add] * 8, read)
    assert sketch.total == 16_000
    assert totals == sorted(totals)


@pytest.mark.usefixtures("restless")
def test_two_sketches_may_be_merged_into_each_other_at_once() -> None:
    one, other = sketch_of([1]), sketch_of([2])

    def merge(a: LengthSketch, b: LengthSketch) -> None:
        for _ in range(100):
            a.merge(b)
            b.reset()
            b.add(GEOMETRY.longest(2))

    run(lambda: merge(one, other), lambda: merge(other, one))


# As a file


@given(st.lists(lengths, max_size=40), st.none() | st.floats(1, 20))
@settings(deadline=None)
def test_a_saved_sketch_goes_on_where_it_was(
    tmp_path_factory: pytest.TempPathFactory, frames: list[int], half_life: float | None
) -> None:
    path = tmp_path_factory.mktemp("sketch") / "lengths.json"
    sketch = sketch_of(frames, geometry=SMALL, half_life=half_life)
    sketch.save(path)
    loaded = LengthSketch.load(path)
    assert loaded.geometry == SMALL
    assert loaded.half_life == half_life
    assert histogram(loaded) == histogram(sketch)
    for one in (sketch, loaded):
        for length in (3, 3_000, 3):
            one.add(SMALL.longest(length))
    assert histogram(loaded) == pytest.approx(histogram(sketch), rel=1e-12)
    loaded.save(path)  # over the old one
    assert histogram(LengthSketch.load(path)) == histogram(loaded)
    assert [file.name for file in path.parent.iterdir()] == ["lengths.json"]


def test_numpy_integers_are_samples_too(tmp_path: Path) -> None:
    sketch = LengthSketch(GEOMETRY)
    for samples in np.array([16_000, 10**6, 10**7]):
        sketch.add(samples)
    sketch.save(tmp_path / "lengths.json")
    assert histogram(LengthSketch.load(tmp_path / "lengths.json")) == histogram(sketch)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lengths.json"
    sketch_of([1, 2]).save(path)

    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        sketch_of([3]).save(path)
    assert histogram(LengthSketch.load(path)) == {1: 1, 2: 1}
    assert [file.name for file in tmp_path.iterdir()] == ["lengths.json"]


def test_a_sketch_is_written_to_a_file_in_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        LengthSketch(GEOMETRY).save(tmp_path / "nowhere" / "lengths.json")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        LengthSketch(GEOMETRY).save(tmp_path)
    with pytest.raises(FileNotFoundError):
        LengthSketch.load(tmp_path / "lengths.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "a plan"}, "does not say that it is"),
        ({"format": 7}, "format 7, and this version reads 1"),
        ({"weights": None}, "frames and weights must be lists"),
        ({"weights": [1.0]}, "2 lengths and 1 counts"),
        ({"weights": [1.0, -1.0]}, "finite numbers above 0"),
        ({"weights": [1.0, True]}, "weights must be numbers"),
        ({"frames": [1, "2"]}, "frames must be numbers"),
        ({"frames": [2, 1]}, "ascend"),
        ({"frames": [0, 1]}, "from 1 up"),
        ({"frames": [1, 2_049]}, "2049 frames are not the length of a bin"),
        ({"frames": [1, LONGEST + 1024]}, "not the length of a bin"),
        ({"half_life": 0}, "half_life is a number"),
        ({"geometry": [10, 5]}, "geometry must be an object"),
        ({"geometry": {"kernels": [0], "strides": [1], "sampling_rate": 16_000}}, "kernels are"),
        ({"geometry": {"kernels": [3], "sampling_rate": 16_000}}, "'strides' is missing"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "lengths.json"
    sketch_of([1, 2]).save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))
    with pytest.raises(ValueError, match=message) as caught:
        LengthSketch.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000])
def test_what_is_no_sketch_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lengths.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"is no JSON|holds no lengths"):
        LengthSketch.load(path)


def test_a_sketch_describes_itself() -> None:
    assert repr(sketch_of([1] * 1_500)) == "<LengthSketch of 1,500 queries, forgets nothing>"
    assert "half-life 100,000" in repr(LengthSketch(GEOMETRY))


def test_memory_is_bounded_whatever_comes() -> None:
    sketch, rng = LengthSketch(GEOMETRY, half_life=1_000), random.Random(0)
    for _ in range(50_000):
        sketch.add(rng.randrange(1 << rng.randrange(1, 64)))
    assert len(sketch.traffic().frames) <= len(BINS)
