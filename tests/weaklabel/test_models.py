"""What all models share, and the two simple ones."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import narwhals.stable.v2 as nw
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel import (
    MISSING,
    Gold,
    Identity,
    Kind,
    LogisticRegression,
    MajorityVote,
    Patterns,
    WeakLabelError,
    WeakLabelWarning,
    load_model,
    load_registry,
    models,
)
from weaklabel.baselines import FittedLogistic, FittedMajority
from weaklabel.models import Fitted

IDENTITY = Identity("a", "theirs", "1.0", "cafe", {"high": 0.9})
VOTES = np.array([[1, 1, 0], [1, -1, 0], [-1, -1, -1], [0, 0, 0]], dtype=np.int8)


def gold(seed: int = 1, rows: int = 400) -> Gold:
    rng = np.random.default_rng(seed)
    right = rng.random(rows) < 0.7
    truth = np.where(right, 1, -1)[:, None]
    votes = np.where(rng.random((rows, 3)) < [0.9, 0.7, 0.5], truth, -truth)
    votes = votes * (rng.random((rows, 3)) < 0.6)
    votes = np.where(rng.random((rows, 3)) < 0.1, MISSING, votes)
    return Gold(Patterns.of("abc", votes[right]), Patterns.of("abc", votes[~right]))


def everything(checked: Gold) -> Patterns:
    return checked.right + checked.wrong


def frame(votes: np.ndarray) -> pl.DataFrame:
    table = pl.DataFrame({f"lf:{name}": votes[:, i] for i, name in enumerate("abc")})
    return table.with_columns(pl.all().replace(MISSING, None))


def test_a_majority_is_the_share_of_accepts_smoothed_by_one_vote_of_the_prior() -> None:
    model = MajorityVote(prior=0.8).fit(Patterns.of("abc", VOTES))
    assert model.weights(VOTES).tolist() == pytest.approx([2.8 / 3, 1.8 / 3, 0.8 / 4, 0.8])
    missing = np.array([[1, MISSING, 0], [MISSING] * 3], dtype=np.int8)
    assert model.weights(missing).tolist() == pytest.approx([1.8 / 2, 0.8])
    assert model.label(frame(VOTES))["weight"].to_numpy() == pytest.approx(model.weights(VOTES))


def test_the_prior_of_a_majority_comes_from_gold_or_from_all_votes() -> None:
    patterns = Patterns.of("abc", VOTES)
    assert MajorityVote().fit(patterns).prior == pytest.approx((3 + 1) / (7 + 2))
    checked = Gold(Patterns.of("abc", VOTES[:3]), Patterns.of("abc", VOTES[3:]))
    assert MajorityVote().fit(patterns, gold=checked).prior == pytest.approx(4 / 6)


def test_a_logistic_regression_is_at_the_optimum_of_its_penalized_likelihood() -> None:
    checked = gold()
    model = LogisticRegression(c=0.5).fit(everything(checked), gold=checked)

    slope = np.zeros(10)
    for part, is_right in ((checked.right, 1), (checked.wrong, 0)):
        error = (is_right - model.weights(part.votes)) * part.counts
        slope[0] += error.sum()
        slope[1:4] += error @ (part.votes == -1)
        slope[4:7] += error @ (part.votes == 1)
        slope[7:] += error @ (part.votes == MISSING)
    slope[1:] -= np.array([*model.reject, *model.accept, *model.missing]) / 0.5

    assert np.abs(slope).max() < 1e-3
    assert model.accept[0] > model.accept[1] > model.accept[2]


def test_a_logistic_regression_without_two_kinds_of_gold_says_what_to_do() -> None:
    checked = gold()
    with pytest.raises(WeakLabelError, match="check more queries"):
        LogisticRegression().fit(everything(checked))
    one_sided = Gold(Patterns.of("abc", VOTES[:0]), checked.wrong)
    with pytest.raises(WeakLabelError, match="got 0 and"):
        LogisticRegression().fit(everything(checked), gold=one_sided)


@given(st.integers(0, 100), st.sampled_from([1, 3, 20]), st.sampled_from("CF"))
def test_arrays_and_frames_have_the_weights_worked_out_row_by_row(
    seed: int, rows: int, layout: str
) -> None:
    rng = np.random.default_rng(seed)
    votes = rng.choice([-1, 0, 1, MISSING], (rows, 3)).astype(np.int8, order=layout)
    intercept, slopes = rng.normal(), rng.normal(size=(3, 3))  # of rejects, accepts, missing inputs
    odds = [
        intercept + sum(slopes[(-1, 1, MISSING).index(v), i] for i, v in enumerate(row) if v)
        for row in votes.tolist()
    ]
    shares = [(row.count(1) + 0.8) / (row.count(1) + row.count(-1) + 1) for row in votes.tolist()]
    logistic = FittedLogistic(("a", "b", "c"), intercept, *(tuple(own) for own in slopes))
    for model, expected in (
        (logistic, 1 / (1 + np.exp(-np.array(odds)))),
        (FittedMajority(("a", "b", "c"), 0.8), shares),
    ):
        assert model.weights(votes) == pytest.approx(expected, abs=1e-14)
        assert model.label(frame(votes))["weight"].to_list() == model.weights(votes).tolist()


def test_models_and_their_configurations_are_frozen() -> None:
    model = MajorityVote()
    with pytest.raises(FrozenInstanceError):
        model.prior = 0.5  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        model.fit(Patterns.of("abc", VOTES)).prior = 0.5  # type: ignore[misc]


def test_every_kind_comes_back_from_its_file(tmp_path: Path) -> None:
    checked = gold()
    for name, kind in load_registry().label_models.items():
        votes = replace(everything(checked), identities=(IDENTITY, None, None))
        fitted = kind.model().fit(votes, gold=checked)
        assert fitted.identities == (IDENTITY, None, None)
        path = fitted.save(tmp_path / f"{name}.json")
        assert fitted.kind == name == json.loads(path.read_text("utf-8"))["kind"]
        assert load_model(path) == fitted


def test_a_plugin_s_kind_is_loaded_by_the_table_it_is_in(tmp_path: Path) -> None:
    class Theirs(FittedMajority):
        kind = "theirs"

    path = Theirs(("a", "b", "c"), 0.25).save(tmp_path / "model.json")
    with pytest.raises(WeakLabelError, match="install the plugin"):
        load_model(path)
    known = {**load_registry().label_models, "theirs": Kind("theirs", MajorityVote, Theirs)}
    loaded = load_model(path, known)
    assert isinstance(loaded, Theirs)
    assert loaded.prior == 0.25


@dataclass(frozen=True)
class Constant(Fitted):
    """A model of one's own: what it says of its fields, JSON holds."""

    kind: ClassVar[str] = "constant"
    functions: tuple[str, ...]
    share: float
    known: tuple[tuple[int, ...], ...]
    identities: tuple[Identity | None, ...] = ()

    def weight(self) -> nw.Expr:
        return nw.lit(self.share)


def test_a_model_that_says_its_weight_once_has_weights_labels_and_files(tmp_path: Path) -> None:
    model = Constant(("a", "b", "c"), 0.25, ((1, 2), ()), (IDENTITY, None, None))
    assert model.weights(VOTES).tolist() == model.weights(VOTES * 1.0).tolist() == [0.25] * 4
    assert model.weights(VOTES[:0]).tolist() == []
    assert model.label(frame(VOTES))["weight"].to_list() == [0.25] * 4
    known = {"constant": Kind("constant", object, Constant)}
    assert load_model(model.save(tmp_path / "model.json"), known) == model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON file"),
        ("[]", "holds no model"),
        ('{"weaklabel": "model", "format": 1}', "format 1.*apply the functions and fit it again"),
        ('{"weaklabel": "model", "format": 2, "kind": "majority"}', "broken model, KeyError"),
    ],
)
def test_files_that_hold_no_model_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(WeakLabelError, match=message):
        load_model(tmp_path / "model.json")


def test_arrays_that_are_not_the_votes_of_the_functions_are_refused() -> None:
    model = FittedMajority(("a", "b", "c"), 0.8)
    with pytest.raises(WeakLabelError, match=r"got shape \(4, 2\)"):
        model.weights(VOTES[:, :2])
    with pytest.raises(WeakLabelError, match="function 'a' votes -2, 2"):
        model.weights(VOTES * 2)


def test_a_model_that_knows_no_missing_inputs_gets_abstains_for_them() -> None:
    class Theirs:
        functions = ("a", "b", "c")

        def fit(self, votes: Any, *, gold: Gold | None = None) -> Any:
            assert gold is not None
            seen = (votes, gold.right, gold.wrong)
            assert not any((patterns.votes == MISSING).any() for patterns in seen)
            assert votes.rows == checked.rows
            return self

        def weights(self, votes: np.ndarray) -> np.ndarray:
            assert np.isin(votes, (-1, 0, 1)).all()
            return votes.sum(axis=1) * 0.5

    checked = gold()
    fitted = models.fit(Theirs(), everything(checked), checked)  # type: ignore[arg-type]
    votes = np.array([[1, MISSING, MISSING], [-1, 0, MISSING], [1, 1, 1]], dtype=np.int8)
    assert models.weights(fitted, votes).tolist() == [0.5, 0.0, 1.0]
    known = models.fit(MajorityVote(), everything(checked), checked)
    assert models.weights(known, votes).tolist() == known.weights(votes).tolist()


def test_votes_of_other_functions_of_the_same_name_are_refused() -> None:
    known = FittedMajority(("a", "b"), 0.8, (IDENTITY, None))
    models.check_identities(known, {"a": IDENTITY, "b": IDENTITY})
    models.check_identities(known, {})
    changed = replace(IDENTITY, source="beef", parameters={"high": 0.1, "low": 0.5})
    with pytest.raises(WeakLabelError, match=r"a \(source cafe → beef, high 0.9 → 0.1, low None"):
        models.check_identities(known, {"a": changed})
    with pytest.warns(WeakLabelWarning, match="source cafe → beef"):
        models.check_identities(known, {"a": changed}, allow_changed=True)
    with pytest.warns(WeakLabelWarning, match=r"another version: a \(theirs 1.0 → theirs 2.0\)"):
        models.check_identities(known, {"a": replace(IDENTITY, version="2.0")})


def test_importing_the_models_loads_no_optional_package() -> None:
    code = (
        "import sys, weaklabel.label_model, weaklabel.baselines, weaklabel.gold;"
        "sys.exit(', '.join({'sklearn', 'duckdb', 'pyspark', 'pandas'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_fitted_model_that_says_its_weight_only_once_cannot_be_made() -> None:
    class Halfway(Fitted):
        kind = "halfway"

        def to_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(TypeError, match="weight"):
        Halfway()
