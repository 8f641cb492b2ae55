"""Shares, ranking, calibration, deciles: against plain loops, scikit-learn and SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel.gold import (
    Deciles,
    auc,
    brier,
    calibration_error,
    reliability,
    share,
    wilson,
)

# Few values, so that there are ties, and both ends.
WEIGHTS = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.99, 1.0]) | st.floats(0, 1)
SCORED = st.lists(st.tuples(WEIGHTS, st.booleans()), max_size=40)


def arrays(scored: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    weights = np.array([weight for weight, _ in scored], dtype=np.float64)
    return weights, np.array([right for _, right in scored], dtype=np.bool_)


@given(st.integers(1, 500), st.integers(0, 500), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_wilson_interval_is_scipys(trials: int, part: int, level: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    part = min(part, trials)
    expected = stats.binomtest(part, trials).proportion_ci(level, method="wilson")
    found = wilson(part / trials, trials, level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= found.point <= found.high <= 1


def test_no_trials_leave_the_whole_interval_and_nothing_has_no_share() -> None:
    found = wilson(0.3, 0)
    assert (found.low, found.high) == pytest.approx((0, 1))
    assert share(0, 0) is None


@given(SCORED)
def test_the_auc_is_the_share_of_pairs_in_order_ties_half(scored: list[tuple[float, bool]]) -> None:
    weights, right = arrays(scored)
    pairs = [(a > b) + (a == b) / 2 for a, x in scored for b, y in scored if x and not y]
    found = auc(weights, right)
    if not pairs:
        assert found is None
        return
    assert found == pytest.approx(sum(pairs) / len(pairs))
    metrics = pytest.importorskip("sklearn.metrics")
    # scikit-learn takes weights that differ in the last place for equal.
    levels = np.unique(weights, return_inverse=True)[1]
    assert found == pytest.approx(metrics.roc_auc_score(right, levels))


@given(SCORED)
def test_the_brier_score_is_scikit_learns(scored: list[tuple[float, bool]]) -> None:
    weights, right = arrays(scored)
    if not scored:
        assert brier(weights, right) is None
        return
    metrics = pytest.importorskip("sklearn.metrics")
    assert brier(weights, right) == pytest.approx(
        metrics.brier_score_loss(right, weights, labels=[False, True])
    )


@given(SCORED)
def test_every_query_is_in_the_one_bin_that_holds_its_weight(
    scored: list[tuple[float, bool]],
) -> None:
    weights, right = arrays(scored)
    bins = reliability(weights, right)
    gaps = 0.0
    for number, part in enumerate(bins):
        own = [(w, r) for w, r in scored if min(int(w * 10), 9) == number]
        assert part.queries == len(own)
        if not own:
            assert part.mean_weight is None
            assert part.right is None
            continue
        mean, rate = sum(w for w, _ in own) / len(own), sum(r for _, r in own) / len(own)
        assert part.mean_weight == pytest.approx(mean)
        assert part.right is not None
        assert part.right.point == pytest.approx(rate)
        gaps += len(own) * abs(mean - rate)
    error = calibration_error(bins)
    assert error is None if not scored else error == pytest.approx(gaps / len(scored))


def test_bins_by_hand() -> None:
    weights = np.array([0.0, 0.1, 0.15, 0.95, 1.0])
    bins = reliability(weights, np.array([False, False, True, True, True]))
    assert [part.queries for part in bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins[1].mean_weight == pytest.approx(0.125)
    assert bins[1].right is not None
    assert bins[1].right.point == 0.5
    assert calibration_error(bins) == pytest.approx((2 * 0.375 + 2 * 0.025) / 5)


@given(st.lists(st.tuples(WEIGHTS, st.integers(1, 50)), min_size=1, max_size=20))
def test_deciles_never_part_equal_weights_and_lose_no_row(pairs: list[tuple[float, int]]) -> None:
    weights, counts = (np.array(column) for column in zip(*pairs, strict=True))
    found = Deciles.of(weights, counts)
    assert found.rows.sum() == counts.sum()
    tenths = found.find(weights)
    order = np.argsort(weights)
    assert (np.diff(tenths[order]) >= 0).all()
    for tenth in range(10):
        assert counts[tenths == tenth].sum() == found.rows[tenth]
        ends = found.range(tenth)
        if ends is None:
            assert not found.rows[tenth]
        else:
            own = weights[tenths == tenth].round(12)
            assert ends == (own.min(), own.max())
    # The middle of a weight's queries lies in its tenth: row by row.
    rows = np.sort(np.repeat(weights.round(12), counts))
    for weight in np.unique(rows):
        middle = np.flatnonzero(rows == weight).mean() + 0.5
        assert found.find(np.array([weight]))[0] == min(int(10 * middle / len(rows) + 1e-9), 9)


def test_deciles_of_distinct_weights_are_of_equal_size() -> None:
    weights = np.random.default_rng(0).permutation(1000) / 1000
    assert Deciles.of(weights, np.ones(1000, np.int64)).rows.tolist() == [100] * 10


def test_one_weight_alone_is_in_the_middle() -> None:
    found = Deciles.of(np.array([0.8, 0.8 + 1e-15]), np.array([3, 4]))
    assert found.rows.tolist() == [0, 0, 0, 0, 0, 7, 0, 0, 0, 0]
    assert found.range(5) == (0.8, 0.8)
    assert found.range(4) is None
