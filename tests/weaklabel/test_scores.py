"""Shares, ranking, calibration, deciles, thresholds: against plain loops and other libraries."""

import duckdb
import narwhals.stable.v2 as nw
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel.errors import WeakLabelError
from weaklabel.gold import (
    auc,
    calibration,
    calibration_error,
    reliability,
    share,
    tenths,
    threshold_for_wer,
)

# Few values, so that there are ties, and both ends.
WEIGHTS = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.99, 1.0]) | st.floats(0, 1)
SCORED = st.lists(st.tuples(WEIGHTS, st.booleans()), max_size=40)


def arrays(scored: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    weights = np.array([weight for weight, _ in scored], dtype=np.float64)
    return weights, np.array([right for _, right in scored], dtype=np.bool_)


@given(st.integers(1, 500), st.integers(0, 500))
def test_the_interval_of_a_share_is_scipys_wilson(trials: int, part: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    part = min(part, trials)
    expected = stats.binomtest(part, trials).proportion_ci(0.95, method="wilson")
    found = share(part, trials)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= found.point <= found.high <= 1


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
def test_every_query_is_in_the_one_bin_that_holds_its_weight(
    scored: list[tuple[float, bool]],
) -> None:
    weights, right = arrays(scored)
    bins = reliability(weights, right)
    gaps = 0.0
    assert sum(part.right.trials for part in bins) == len(scored)
    for part in bins:
        own = [(w, r) for w, r in scored if min(int(w * 10), 9) == round(10 * part.low)]
        assert part.high == pytest.approx(part.low + 0.1)
        assert part.right.trials == len(own) > 0
        mean, rate = sum(w for w, _ in own) / len(own), sum(r for _, r in own) / len(own)
        assert part.mean_weight == pytest.approx(mean)
        assert part.right.point == pytest.approx(rate)
        gaps += len(own) * abs(mean - rate)
    if scored:
        assert calibration_error(bins) == pytest.approx(gaps / len(scored))


def test_bins_by_hand() -> None:
    weights = np.array([0.0, 0.1, 0.15, 0.95, 1.0])
    bins = reliability(weights, np.array([False, False, True, True, True]))
    assert [(part.low, part.right.trials) for part in bins] == [(0, 1), (0.1, 2), (0.9, 2)]
    assert bins[1].mean_weight == pytest.approx(0.125)
    assert bins[1].right.point == 0.5
    assert calibration_error(bins) == pytest.approx((2 * 0.375 + 2 * 0.025) / 5)


@given(st.lists(st.tuples(WEIGHTS, st.integers(1, 50)), min_size=1, max_size=20))
def test_tenths_never_part_equal_weights(pairs: list[tuple[float, int]]) -> None:
    weights, counts = (np.array(column) for column in zip(*pairs, strict=True))
    found = tenths(weights, counts, weights)
    assert (np.diff(found[np.argsort(weights)]) >= 0).all()
    # The middle of a weight's queries lies in its tenth: row by row.
    rows = np.sort(np.repeat(weights.round(12), counts))
    for weight, tenth in zip(weights.round(12), found, strict=True):
        middle = np.flatnonzero(rows == weight).mean() + 0.5
        assert tenth == min(int(10 * middle / len(rows) + 1e-9), 9)


def test_tenths_of_distinct_weights_are_of_equal_size() -> None:
    weights = np.random.default_rng(0).permutation(1000) / 1000
    found = tenths(weights, np.ones(1000, np.int64), weights)
    assert np.bincount(found).tolist() == [100] * 10


def test_one_weight_alone_is_in_the_middle() -> None:
    weights = np.array([0.8, 0.8 + 1e-15])
    assert tenths(weights, np.array([3, 4]), weights).tolist() == [5, 5]


# Thresholds and calibration


def log(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights that promise too much, which queries are right, errors and words."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(1.5, 1.5, rows)
    right = rng.random(rows) < 1 / (1 + np.exp(-odds))
    words = rng.integers(1, 8, rows)
    errors = np.where(right, 0, rng.integers(1, 4, rows))
    return 1 / (1 + np.exp(-(2.5 * odds + 1))), right, errors, words


def log_loss(weights: np.ndarray, right: np.ndarray) -> float:
    return -float(np.log(np.where(right, weights, 1 - weights)).mean())


@given(
    st.lists(st.tuples(WEIGHTS, st.integers(0, 3), st.integers(1, 6)), min_size=30, max_size=60),
    st.sampled_from([0.02, 0.1, 0.5]),
)
def test_the_threshold_is_the_lowest_of_all_that_keep_the_target(
    rows: list[tuple[float, int, int]], target: float
) -> None:
    weights, errors, words = (np.array(column) for column in zip(*rows, strict=True))
    possible = [
        weight
        for weight in set(weights.tolist())
        if (own := weights >= weight).sum() >= 30 and errors[own].sum() <= target * words[own].sum()
    ]
    if not possible:
        with pytest.raises(
            WeakLabelError, match=f"no threshold reaches a corpus WER of {100 * target:g}% on gold"
        ):
            threshold_for_wer(weights, errors, words, target)
        return
    found = threshold_for_wer(weights, errors, words, target)
    own = weights >= min(possible)
    assert found.weight == min(possible)
    assert (found.accepted, found.queries) == (own.sum(), len(rows))
    assert found.wer.point == pytest.approx(errors[own].sum() / words[own].sum())
    assert found.wer.point <= target
    assert found.bound >= found.wer.high


def test_a_threshold_says_how_sure_it_is() -> None:
    weights, _, errors, words = log(3000)
    found = threshold_for_wer(weights, errors, words, 0.05)
    assert found.bound >= found.wer.high > 0.05
    assert f"at most {found.bound:.1%}, which is above it" in str(found)
    # A third of the gold, all of it right, does not say that the others are.
    errors[weights >= 0.9] = 0
    few = np.concatenate([np.flatnonzero(weights >= 0.9)[:40], np.flatnonzero(weights < 0.5)])
    found = threshold_for_wer(weights[few], errors[few], words[few], 0.001)
    assert (found.wer.point, found.wer.high) == (0, 0)
    assert 0.01 < found.bound < 0.1


def test_what_gold_cannot_say_is_refused() -> None:
    weights, right, errors, words = log(200)
    with pytest.raises(WeakLabelError, match="a threshold needs at least 30 gold queries, got 20"):
        threshold_for_wer(weights[:20], errors[:20], words[:20], 0.05)
    with pytest.raises(WeakLabelError, match="above 0, got 0"):
        threshold_for_wer(weights, errors, words, 0)
    with pytest.raises(WeakLabelError, match="a calibration needs at least 30"):
        calibration(weights[:20], right[:20])
    with pytest.raises(WeakLabelError, match="all 200 are right"):
        calibration(weights, np.ones(200, np.bool_))
    with pytest.raises(WeakLabelError, match="the more often gold queries are wrong"):
        calibration(1 - weights, right)


def test_a_calibration_undoes_what_the_weights_promise_too_much() -> None:
    weights, right, _, _ = log(20_000)
    found = calibration(weights, right)
    # They are the logistic of 2.5 l + 1, where that of l is true.
    assert (found.slope, found.intercept) == pytest.approx((1 / 2.5, -1 / 2.5), abs=0.03)
    assert log_loss(found(weights), right) < log_loss(weights, right)
    fresh, truth, _, _ = log(20_000, seed=1)
    before, after = (reliability(values, truth) for values in (fresh, found(fresh)))
    errors = [calibration_error(bins) or 0 for bins in (before, after)]
    assert errors[1] < 0.02 < 0.05 < errors[0]


def test_a_calibration_is_scikit_learns_and_never_changes_an_order() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    weights, right, _, _ = log(5000)
    found = calibration(weights, right)
    odds = np.log(weights / (1 - weights))[:, None]
    expected = linear.LogisticRegression(C=1e6, tol=1e-10).fit(odds, right)
    # Platt's targets differ a little from 0 and 1.
    assert found.slope == pytest.approx(expected.coef_[0, 0], abs=0.005)
    assert found.intercept == pytest.approx(expected.intercept_[0], abs=0.005)
    ends = np.array([0.0, 1e-15, 0.2, 0.5, 0.9, 1.0])
    assert (np.diff(found(ends)) >= 0).all()
    assert (np.diff(found(ends)[1:5]) > 0).all()


@pytest.mark.parametrize("values", [[0.8], [0.0, 1.0], [1e-15, 0.5]])
def test_a_calibration_of_few_weights_or_of_certain_ones_is_finite(values: list[float]) -> None:
    weights = np.array(values * 60)
    right = np.arange(len(weights)) % len(values) == len(values) - 1
    right[:5] = ~right[:5]
    found = calibration(weights, right)
    assert np.isfinite([found.slope, found.intercept]).all()
    for value in set(values):
        own = weights == value
        assert found(np.array([value]))[0] == pytest.approx(right[own].mean(), abs=0.03)


def test_a_calibration_is_the_same_expression_on_every_engine() -> None:
    weights, right, _, _ = log(1000)
    found = calibration(weights, right)
    weighted = pl.DataFrame({"weight": [0.0, *weights, 1.0]})
    for frame in (weighted, weighted.lazy(), duckdb.sql("select * from weighted")):
        made = nw.from_native(frame).select(w=found.expression(nw.col("weight")))
        eager = made.collect() if isinstance(made, nw.LazyFrame) else made
        expected = found(weighted["weight"].to_numpy())
        assert eager["w"].to_numpy() == pytest.approx(expected, abs=1e-12)


def test_the_bound_of_a_threshold_holds_as_often_as_it_says() -> None:
    weights, _, errors, words = log(20_000)
    rng = np.random.default_rng(3)
    held = []
    for target in (0.01, 0.03):
        for _ in range(60):
            gold = rng.choice(len(weights), 400, replace=False)
            try:
                found = threshold_for_wer(weights[gold], errors[gold], words[gold], target)
            except WeakLabelError:
                continue
            own = weights >= found.weight
            held.append(errors[own].sum() <= found.bound * words[own].sum())
    assert len(held) > 80
    assert np.mean(held) > 0.93
