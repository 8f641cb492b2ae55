"""What is put into a family and what is not, in votes whose truth is known; missing inputs; files.

10,000 queries, 80% of the transcripts right. Five functions vote as their accuracies say, on a part
of the queries; of near-copies each query in twenty has a vote of its own.
"""

import time
import warnings

import numpy as np
import polars as pl
import pytest

from weaklabel import MISSING, Gold, LabelModel, MajorityVote, Patterns, load_model
from weaklabel.label_model import FittedLabelModel
from weaklabel.models import fit
from weaklabel_families import AutomaticFamilies

QUERIES = 10_000
ACCURACY = {"action": 0.85, "confidence": 0.75, "dwell": 0.8, "rarity": 0.7, "second": 0.9}


def make_log(seed, copies=(), missing=0.0):
    """Votes by name, int8 (N,), and what is right, bool (N,)."""
    rng = np.random.default_rng(seed)
    right = rng.random(QUERIES) < 0.8
    votes = {}
    for name, share in ACCURACY.items():
        true = rng.random(QUERIES) < share
        votes[name] = np.where(rng.random(QUERIES) < 0.6, np.where(true == right, 1, -1), 0)
    for number, name in enumerate(copies, start=2):
        own = rng.random(QUERIES) < 0.05
        votes[f"{name}_{number}"] = np.where(own, rng.permutation(votes[name]), votes[name])
    for name, own in votes.items():
        votes[name] = np.where(rng.random(QUERIES) < missing, MISSING, own).astype(np.int8)
    return votes, right


def patterns_of(votes, families=None):
    return Patterns.of(tuple(votes), np.stack(list(votes.values()), axis=1), families=families)


def accuracy(model, votes, right):
    weights = model.weights(np.stack([votes[name] for name in model.functions], axis=1))
    return ((weights >= 0.5) == right).mean()


@pytest.mark.parametrize(
    ("name", "missing"), [("confidence", 0.0), ("second", 0.0), ("second", 0.15)]
)
def test_near_copies_are_found_and_do_no_harm(name, missing):
    votes, right = make_log(1, [name] * 3, missing)
    without = {own: votes[own] for own in ACCURACY}

    model = AutomaticFamilies().fit(patterns_of(votes))

    assert [set(family) for family in model.families] == [{name} | (set(votes) - set(ACCURACY))]
    # Where inputs are missing, copies fill gaps: they may do good.
    alone = accuracy(LabelModel().fit(patterns_of(without)), without, right)
    assert accuracy(model, votes, right) > alone - 0.005
    assert accuracy(model, votes, right) > accuracy(
        MajorityVote().fit(patterns_of(votes)), votes, right
    )


@pytest.mark.parametrize("missing", [0.0, 0.15])
def test_independent_functions_are_left_alone(missing):
    votes, _ = make_log(2, missing=missing)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutomaticFamilies().fit(patterns_of(votes))

    assert model.families == ()
    assert model.to_dict() == LabelModel().fit(patterns_of(votes)).to_dict()


def test_a_declared_family_is_kept_whole_unless_families_are_to_be_ignored():
    votes, _ = make_log(3, ["dwell"])
    declared = patterns_of(votes, {"action": "behavior", "rarity": "behavior"})

    kept = AutomaticFamilies().fit(declared)
    apart = AutomaticFamilies(families="ignore").fit(declared)

    assert set(kept.families) == {("action", "rarity"), ("dwell", "dwell_2")}
    assert apart.families == (("dwell", "dwell_2"),)


def test_a_function_that_never_changes_its_vote_is_in_no_family():
    votes, _ = make_log(4, ["dwell"])
    votes["still"] = np.ones(QUERIES, np.int8)
    votes["without_input"] = np.full(QUERIES, MISSING, np.int8)

    assert AutomaticFamilies().fit(patterns_of(votes)).families == (("dwell", "dwell_2"),)


@pytest.mark.parametrize("counted", [True, False])
def test_gold_of_any_families_can_anchor_it(counted):
    votes, right = make_log(5, ["dwell"])
    families = {"action": "behavior", "confidence": "behavior"}
    checked = {name: own[:200] for name, own in votes.items()}
    wrong, right_ = (
        patterns_of({name: own[right[:200] == truth] for name, own in checked.items()}, families)
        for truth in (False, True)
    )
    gold = Gold(right_, wrong, counted=counted)

    model = fit(AutomaticFamilies(), patterns_of(votes, families), gold)

    assert set(model.families) == {("action", "confidence"), ("dwell", "dwell_2")}
    assert model.comparison.gold.rows == 200


def test_what_it_saves_loads_as_a_label_model_without_the_plugin(tmp_path):
    votes, _ = make_log(6, ["dwell"])
    table = pl.DataFrame({f"lf:{name}": own for name, own in votes.items()})

    model = AutomaticFamilies(prior=0.8).fit(table, families={})
    loaded = load_model(model.save(tmp_path / "model.json"))

    assert loaded == model
    assert isinstance(loaded, FittedLabelModel)
    assert loaded.prior == 0.8


def test_forty_functions_take_a_few_times_as_long_as_the_label_model():
    rng = np.random.default_rng(7)
    right = rng.random(4_000) < 0.8
    true = rng.random((4_000, 40)) < 0.7
    table = np.where(rng.random(true.shape) < 0.3, np.where(true == right[:, None], 1, -1), 0)
    patterns = Patterns.of([f"function_{i}" for i in range(40)], table)
    start = time.process_time()
    LabelModel().fit(patterns)
    plain = time.process_time() - start
    start = time.process_time()

    model = AutomaticFamilies().fit(patterns)

    assert model.families == ()
    assert time.process_time() - start < 5 * plain
