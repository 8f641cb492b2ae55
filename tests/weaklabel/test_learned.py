"""Intervals of what a model learned: do they hold the truth as often as they say?"""

from dataclasses import astuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weaklabel import analysis as learned
from weaklabel.analysis import learned_shares
from weaklabel.gold import wilson
from weaklabel.label_model import LabelModel
from weaklabel.patterns import Patterns

PRIOR = 0.8
COVERAGE = np.array([0.8, 0.5, 0.6, 0.3, 0.4, 0.9])
GOOD = np.array([0.95, 0.8, 0.75, 0.85, 0.7, 0.9])
POOR = np.array([0.8, 0.7, 0.65, 0.75, 0.6, 0.72])
NAMES = tuple("abcdef")

Votes = npt.NDArray[np.int8]


def simulated(accuracy: npt.NDArray[np.float64], rows: int, seed: int) -> Votes:
    """Independent functions that are right so often, whatever they vote: (rows, 6)."""
    rng = np.random.default_rng(seed)
    right = rng.random(rows) < PRIOR
    correct = rng.random((rows, len(accuracy))) < accuracy
    vote = np.where(right, 1, -1)[:, None] * np.where(correct, 1, -1)
    return np.where(rng.random(vote.shape) < COVERAGE, vote, 0).astype(np.int8)


def truths(accuracy: float) -> tuple[float, float]:
    """P(right | accept), P(wrong | reject)."""
    return (
        PRIOR * accuracy / (PRIOR * accuracy + (1 - PRIOR) * (1 - accuracy)),
        (1 - PRIOR) * accuracy / ((1 - PRIOR) * accuracy + PRIOR * (1 - accuracy)),
    )


@pytest.mark.parametrize("accuracy", [GOOD, POOR], ids=["good", "poor"])
def test_intervals_hold_the_truth_as_often_as_they_say(
    accuracy: npt.NDArray[np.float64],
) -> None:
    held, naive, intervals = 0, 0, 0
    for seed in range(30):
        patterns = Patterns.of(NAMES, simulated(accuracy, 2000, seed))
        model = LabelModel().fit(patterns)
        found = learned_shares(patterns, model.weights(patterns.votes), model.families)
        for index, function in enumerate(found):
            for share, vote, truth in zip(
                (function.accept, function.reject), (1, -1), truths(accuracy[index]), strict=True
            ):
                assert share is not None
                rows = int(patterns.counts @ (patterns.votes[:, index] == vote))
                as_if_known = wilson(share.point, rows)
                held += share.low <= truth <= share.high
                naive += as_if_known.low <= truth <= as_if_known.high
                intervals += 1
    assert 0.92 <= held / intervals <= 0.985  # 0.944 and 0.961 of 360 were measured
    assert naive / intervals < 0.9  # 0.861 and 0.492


def test_a_family_is_one_piece_of_evidence_in_the_intervals_too() -> None:
    votes = simulated(GOOD, 3000, 0)
    copies = np.concatenate([votes, votes[:, :1]], axis=1)
    alone = Patterns.of(NAMES, votes)
    model = LabelModel().fit(alone)
    patterns = Patterns.of((*NAMES, "copy"), copies)
    weights = model.weights(patterns.votes[:, :6])
    first, *_, copy = learned_shares(patterns, weights, [("a", "copy")])
    expected = learned_shares(alone, model.weights(alone.votes))[0]
    for found in (first, copy):
        assert found.accept is not None
        assert expected.accept is not None
        assert astuple(found.accept) == pytest.approx(astuple(expected.accept))


def test_classes_that_are_known_give_wilsons_interval() -> None:
    votes = simulated(GOOD, 4000, 1)
    right = np.random.default_rng(1).random(4000) < PRIOR  # as in `simulated`
    votes[:, 0] = np.where(right, 1, -1)
    patterns = Patterns.of(NAMES, votes)
    weights = (patterns.votes[:, 0] == 1).astype(np.float64)
    for index, function in enumerate(learned_shares(patterns, weights)):
        if index == 0:
            continue
        accepts = patterns.votes[:, index] == 1
        rows = int(patterns.counts @ accepts)
        assert function.accept is not None
        assert function.accept.point == pytest.approx(
            int(patterns.counts[accepts] @ weights[accepts]) / rows
        )
        assert function.accept.trials == pytest.approx(rows, rel=0.1)
        assert function.accept.trials <= rows


def test_weights_that_are_all_the_same_tell_next_to_nothing() -> None:
    patterns = Patterns.of(NAMES, simulated(GOOD, 100_000, 2))
    for function in learned_shares(patterns, np.full(len(patterns), 0.7)):
        assert function.accept is not None
        assert function.accept.point == pytest.approx(0.7)
        assert function.accept.trials < 5
        assert function.accept.high - function.accept.low > 0.5


def test_four_times_the_rows_halve_the_interval() -> None:
    patterns = Patterns.of(NAMES, simulated(GOOD, 20_000, 3))
    more = Patterns.of(NAMES, patterns.votes, patterns.counts * 4)
    weights = LabelModel().fit(patterns).weights(patterns.votes)
    for one, four in zip(
        learned_shares(patterns, weights), learned_shares(more, weights), strict=True
    ):
        assert one.reject is not None
        assert four.reject is not None
        ratio = (one.reject.high - one.reject.low) / (four.reject.high - four.reject.low)
        assert ratio == pytest.approx(2, abs=0.1)


def test_a_billion_rows_and_a_rare_vote_are_no_trouble() -> None:
    rare = np.zeros((1, 6), np.int8)
    rare[0, 3] = -1
    patterns = Patterns.of(NAMES, simulated(GOOD, 5000, 4))
    votes = np.concatenate(
        [np.where(patterns.votes == [2, 2, 2, -1, 2, 2], 0, patterns.votes), rare]
    )
    counts = np.concatenate([patterns.counts * 200_000, [1]])
    large = Patterns.of(NAMES, votes, counts)
    weights = LabelModel().fit(large).weights(large.votes)
    found = learned_shares(large, weights)
    assert found[3].reject is not None
    assert found[3].reject.trials <= 1
    assert found[3].reject.high - found[3].reject.low > 0.7
    assert found[0].accept is not None
    assert found[0].accept.high - found[0].accept.low < 1e-3


@given(
    st.lists(st.tuples(*[st.sampled_from([-1, 0, 1])] * 3), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), min_size=12, max_size=12),
    st.sampled_from([(), (("a", "b"),), (("a", "b", "c"),)]),
)
@settings(max_examples=80)
def test_any_votes_and_weights_have_intervals_around_the_mean_weight(
    rows: list[tuple[int, ...]], values: list[float], families: tuple[tuple[str, ...], ...]
) -> None:
    patterns = Patterns.of("abc", rows)
    weights = np.array(values[: len(patterns)])
    for index, function in enumerate(learned_shares(patterns, weights, families)):
        for share, vote, sure in (
            (function.accept, 1, weights),
            (function.reject, -1, 1 - weights),
        ):
            own = patterns.votes[:, index] == vote
            assert (share is None) == (not own.any())
            if share is None:
                continue
            assert share.point == pytest.approx(np.average(sure[own], weights=patterns.counts[own]))
            assert 0 <= share.low <= share.point <= share.high <= 1
            assert 0 < share.trials <= patterns.counts[own].sum()


def test_large_families_count_their_votes() -> None:
    """Seven near-copies: which of them votes does not matter, and nor does their order."""
    base = simulated(GOOD, 3000, 5)
    rng = np.random.default_rng(6)
    copies = np.where(rng.random((3000, 7)) < 0.95, base[:, :1], 0).astype(np.int8)
    family = [f"copy{i}" for i in range(7)]
    patterns = Patterns.of(
        [*NAMES[1:], *family],
        np.concatenate([base[:, 1:], copies], axis=1),
        families=dict.fromkeys(family, "copies"),
    ).ordered()
    model = LabelModel().fit(patterns)
    weights = model.weights(patterns.votes)
    found = learned_shares(patterns, weights, model.families)
    copied = [patterns.functions.index(name) for name in family]
    trials = [function.accept.trials for function in (found[i] for i in copied) if function.accept]
    assert len(trials) == 7
    assert trials == pytest.approx([trials[0]] * 7, rel=0.1)


def test_too_many_parameters_leave_the_whole_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "MOST", 3)
    patterns = Patterns.of(NAMES, simulated(GOOD, 100, 7))
    for function in learned_shares(patterns, np.full(len(patterns), 0.7)):
        assert function.accept is not None
        assert (function.accept.low, function.accept.high) == pytest.approx((0, 1))
