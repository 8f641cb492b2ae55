"""What all models share, and the two simple ones."""

from __future__ import annotations

import json
import math
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
from weaklabel.labels import label_files
from weaklabel.models import Fitted

IDENTITY = Identity("a", "theirs", "1.0", "cafe", {"high": 0.9, "words": ["play"]})
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


@pytest.mark.parametrize("c", [True, "a", None, 0, math.nan])
def test_a_penalty_that_is_none_is_refused(c: Any) -> None:
    with pytest.raises(WeakLabelError, match="c must be"):
        LogisticRegression(c=c)


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
        (
            '{"weaklabel": "model", "format": 2, "kind": "majority"}',
            "broken.* missing 2",
        ),
    ],
)
def test_files_that_hold_no_model_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(WeakLabelError, match=message):
        load_model(tmp_path / "model.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the file of a model of every kind holds."""
    path, checked = tmp_path_factory.mktemp("models") / "model.json", gold()
    found = {}
    for name in ("label-model", "majority", "logistic"):
        model = load_registry().label_models[name].model()
        model.fit(everything(checked), gold=checked).save(path)
        found[name] = json.loads(path.read_text("utf-8"))
    assert found["label-model"]["factors"][0]["codes"] == [0, 1, 2]
    return found


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("majority", "functions", ["a", "b", "a"], "functions must be different names"),
        ("majority", "functions", "abc", r"functions must be tuple\[str, ...\], got 'abc'"),
        ("majority", "identities", [None], "identities must be none or 3"),
        ("majority", "prior", 2, "prior must lie between 0 and 1, got 2"),
        ("majority", "prior", True, "prior must be float, got True"),
        ("logistic", "intercept", float("inf"), "intercept must be float, got inf"),
        ("logistic", "accept", [0.1], "accept must be 3 numbers"),
        ("logistic", "missing", [0.1, "a", 0.2], r"missing\[1\] must be float, got 'a'"),
        ("label-model", "prior", 0, "prior must lie between 0 and 1, got 0"),
        ("label-model", "prior", "0.5", "prior must be float, got '0.5'"),
        ("label-model", "factors", [], r"factors must hold each of the functions .* got \[\]"),
        ("label-model", "factors", None, r"factors must be tuple\[.*, got None"),
        ("label-model", "factors", [None], r"factors\[0\] must be .*FittedFactor, got None"),
        ("factor", "functions", ["z"], "factors must hold each of the functions"),
        ("factor", "codes", [0, 1], r"wrong, of the factor of \['a'\], .* its 2 codes"),
        ("factor", "codes", [0, 1, 1.5], r"factors\[0\].codes\[2\] must be int, got 1.5"),
        ("factor", "right", [-0.5, 0.5, 1.0], "right, .* must be probabilities of its 3 codes"),
        ("factor", "right", [0, 0, 0], "right, .* must be probabilities of its 3 codes, 1 in all"),
        ("factor", "right", ["a", 0, 0], r"factors\[0\].right\[0\] must be float, got 'a'"),
        ("factor", "abstain", "foo", r"abstain must be Literal\['symbol', 'ignore'\], got 'foo'"),
    ],
)
def test_a_model_s_file_with_what_cannot_be_is_refused(
    saved: dict[str, Any], tmp_path: Path, kind: str, field: str, value: Any, message: str
) -> None:
    content = json.loads(json.dumps(saved["label-model" if kind == "factor" else kind]))
    edited = content["factors"][0] if kind == "factor" else content
    assert field in edited
    edited[field] = value
    (tmp_path / "edited.json").write_text(json.dumps(content))
    with pytest.raises(WeakLabelError, match=f"edited.json holds a broken model: .*{message}"):
        load_model(tmp_path / "edited.json")


@dataclass(frozen=True)
class Inner:
    share: float
    rows: int = 0


HELD = [
    (dict[str, float], {"a": 1.0}),
    (dict[str, tuple[float, ...]], {"a": (1.0,)}),
    (dict[str, Inner], {"a": Inner(1.0)}),
    (list[float], [1.0]),
    (tuple, (1.0, "a")),
    (tuple[Inner, ...] | None, (Inner(1.0),)),
    (tuple[Inner, ...] | None, None),
    (tuple[str, Inner], ("a", Inner(1.0))),
    (str | Inner, Inner(1.0)),
    (Inner | str, "a"),
    (Inner | None, Inner(1.0)),
    (bool | float, True),
    (Any, {"a": [1, None]}),
]
NOT_HELD = [
    (dict[int, float], {1: 1.0}),
    (tuple[float, ...], [1.0]),
    (Any, {"a": (1.0,)}),
    (float, "a"),
    (tuple[int, int], (1,)),
    (frozenset, 1),
]


def made_of(kind: Any, value: Any) -> Any:
    """A model of one's own with a field of a type."""
    held = {"held": kind, "functions": tuple[str, ...], "share": float}
    names = {"__annotations__": held, "kind": "theirs", "share": 0.5}
    names["weight"] = lambda self: nw.lit(self.share)
    return dataclass(frozen=True)(type("Theirs", (Fitted,), names))(value, ("a", "b", "c"))


@pytest.mark.parametrize(("kind", "value"), HELD)
def test_a_field_comes_back_from_a_file_by_its_type_or_its_default(
    tmp_path: Path, kind: Any, value: Any
) -> None:
    model = made_of(kind, value)
    path = model.save(tmp_path / "model.json")
    content = json.loads(path.read_text("utf-8"))
    del content["share"]  # of a file from before the field
    path.write_text(json.dumps(content))
    assert load_model(path, {"theirs": Kind("theirs", object, type(model))}) == model


@pytest.mark.parametrize(("kind", "value"), NOT_HELD)
def test_a_field_that_would_not_come_back_from_a_file_is_refused(
    tmp_path: Path, kind: Any, value: Any
) -> None:
    with pytest.raises(WeakLabelError, match="held"):
        made_of(kind, value).save(tmp_path / "model.json")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = replace(made_of(float, 0.0), share=float("nan"))
    with pytest.raises(WeakLabelError, match="'theirs', has weights that are NaN"):
        models.weights(model, VOTES)
    with pytest.raises(WeakLabelError, match="'theirs', has weights that are NaN"):
        model.label(frame(VOTES))
    assert model.label(frame(VOTES).lazy()).collect()["label"].to_list() == [None] * 4
    frame(VOTES).with_row_index("query_id").write_parquet(tmp_path / "votes.parquet")
    with pytest.raises(WeakLabelError, match="'theirs', has weights that are NaN"):
        label_files(tmp_path / "votes.parquet", model, tmp_path / "labels.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["votes.parquet"]


def test_arrays_that_are_not_the_votes_of_the_functions_are_refused() -> None:
    model = FittedMajority(("a", "b", "c"), 0.8)
    assert model.weights(list(VOTES)).tolist() == model.weights(VOTES).tolist()
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
