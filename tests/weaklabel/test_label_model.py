"""The label model: invariants, edge cases, files and engines. Quality is test_recovery.py's."""

from __future__ import annotations

import math
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weaklabel import (
    MISSING,
    Gold,
    LabelModel,
    LogisticRegression,
    MajorityVote,
    Patterns,
    WeakLabelError,
    WeakLabelWarning,
    accept_if,
    em,
    labeling_function,
    load_model,
)
from weaklabel.em import JOINT, Factor, by_family
from weaklabel.label_model import FittedLabelModel

pytestmark = pytest.mark.filterwarnings("ignore::weaklabel.WeakLabelWarning")

Votes = npt.NDArray[np.int8]


@st.composite
def vote_tables(draw: st.DrawFn, least: int = 1, most: int = 5) -> Votes:
    wide = draw(st.integers(least, most))
    row = st.lists(st.sampled_from([-1, 0, 1, MISSING]), min_size=wide, max_size=wide)
    return np.array(draw(st.lists(row, min_size=1, max_size=60)), dtype=np.int8)


def names(votes: Votes) -> list[str]:
    return [f"f{i}" for i in range(votes.shape[1])]


def patterns_of(votes: Votes, families: dict[str, str] | None = None) -> Patterns:
    return Patterns.of(names(votes), votes, families=families)


def useful_votes(
    seed: int, rows: int = 3_000, wide: int = 4
) -> tuple[Votes, npt.NDArray[np.bool_]]:
    """Functions that vote on half of the queries, truly on four fifths of these."""
    rng = np.random.default_rng(seed)
    right = rng.random(rows) < 0.8
    truth = np.where(right, 1, -1)[:, None]
    votes = np.where(rng.random((rows, wide)) < 0.8, truth, -truth)
    return (votes * (rng.random((rows, wide)) < 0.5)).astype(np.int8), right


def lost(votes: Votes, share: float, seed: int = 0) -> Votes:
    """The votes without a share of them, drawn at random."""
    gone = np.random.default_rng(seed).random(votes.shape) < share
    return np.where(gone, MISSING, votes).astype(np.int8)


def frame(votes: Votes) -> pl.DataFrame:
    columns = {f"lf:{name}": votes[:, i].astype(np.int16) for i, name in enumerate(names(votes))}
    table = pl.DataFrame({"query_id": np.arange(len(votes)), **columns})
    missing = pl.col("^lf:.*$").replace(MISSING, None).cast(pl.Int8)
    return table.with_columns(missing)


# Properties


@settings(max_examples=60, deadline=None)
@given(
    vote_tables(),
    st.sampled_from(["symbol", "ignore"]),
    st.sampled_from(["declared", "ignore"]),
    st.sampled_from(["ignore", "evidence"]),
)
def test_weights_are_probabilities_whatever_the_votes(
    votes: Votes, abstain: Any, families: Any, missing: Any
) -> None:
    if (votes == MISSING).all():
        return
    model = LabelModel(abstain, missing, families).fit(patterns_of(votes))

    everything = np.stack(
        np.meshgrid(*[np.array([-1, 0, 1, MISSING], dtype=np.int8)] * votes.shape[1]), axis=-1
    ).reshape(-1, votes.shape[1])
    weights = model.weights(everything)  # of votes that were seen and of those that were not
    assert np.isfinite(weights).all()
    assert ((weights >= 0) & (weights <= 1)).all()


@settings(max_examples=60, deadline=None)
@given(vote_tables(), st.sampled_from(["symbol", "ignore"]))
def test_the_penalized_log_likelihood_never_decreases(votes: Votes, abstain: Any) -> None:
    if (votes == MISSING).all():
        return
    families = dict.fromkeys(names(votes)[:2], "pair")
    trace = np.array(LabelModel(abstain).fit(patterns_of(votes, families)).log_likelihoods)
    assert (np.diff(trace) >= -1e-9 * np.abs(trace[1:])).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_the_order_of_rows_and_of_functions_does_not_matter(seed: int, order: list[int]) -> None:
    votes = lost(useful_votes(seed, rows=200)[0], 0.1, seed)
    rows = np.random.default_rng(seed).permutation(len(votes))
    turned = Patterns.of([f"f{i}" for i in order], votes[rows][:, order])

    model = LabelModel()
    assert model.fit(patterns_of(votes)) == model.fit(turned)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 199), min_size=1, max_size=4))
def test_a_fit_on_merged_shards_is_the_fit_on_all_rows(seed: int, ends: list[int]) -> None:
    votes = lost(useful_votes(seed, rows=200)[0], 0.1, seed)
    shards = [part for part in np.split(votes, sorted(ends)) if len(part)]

    whole = LabelModel().fit(patterns_of(votes))
    merged = LabelModel().fit(Patterns.merge(map(patterns_of, shards)))

    assert np.abs(whole.weights(votes) - merged.weights(votes)).max() <= 1e-12


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([None, "session"]),
    st.integers(0, 4),
    st.sampled_from(["declared", "ignore"]),
)
def test_a_function_that_always_abstains_changes_nothing(
    seed: int, family: str | None, place: int, how: Any
) -> None:
    votes, _ = useful_votes(seed, rows=200)
    families = dict.fromkeys(["f0", "f1"], "session")
    name = f"f{place}_silent"
    everybody = [*names(votes), name]
    table = np.column_stack([votes, np.zeros(len(votes), dtype=np.int8)])
    with_it = Patterns.of(
        everybody, table, families={**families, name: family} if family else families
    )

    without = LabelModel(families=how).fit(patterns_of(votes, families))
    model = LabelModel(families=how).fit(with_it)

    index = [everybody.index(f) for f in model.functions]
    assert np.abs(model.weights(table[:, index]) - without.weights(votes)).max() <= 1e-9


def test_ten_billion_rows_that_all_accept_are_no_certainty() -> None:
    patterns = Patterns.of("abc", np.ones((1, 3)), [10**10]) + Patterns.of("abc", np.zeros((1, 3)))
    weights = LabelModel().fit(patterns).weights(np.array([[1, 1, 1], [0, 0, 0]], dtype=np.int8))
    assert np.isfinite(weights).all()


# Against a plain reference


def symbols_of(vote_tuple: tuple[int, ...], seen: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The tuples of votes that one with missing inputs may be a part of."""
    return [
        other
        for other in seen
        if all(mine in (MISSING, theirs) for mine, theirs in zip(vote_tuple, other, strict=True))
    ]


@pytest.mark.parametrize("gone", [0.0, 0.3])
@pytest.mark.parametrize("abstain", ["symbol", "ignore"])
@pytest.mark.parametrize("families", [{}, {"f0": "x", "f2": "x"}])
def test_the_fit_is_a_fixed_point_of_em_written_out_row_by_row(
    gone: float, abstain: Any, families: dict[str, str]
) -> None:
    votes = lost(useful_votes(3, rows=400)[0], gone)
    model = LabelModel(abstain, tolerance=1e-14, belief=0).fit(patterns_of(votes, families))
    groups = [factor.functions for factor in model.factors]
    rows = [[tuple(int(row[int(f[1:])]) for f in group) for group in groups] for row in votes]
    seen = [
        [tuple(code // 4**i % 4 - 1 for i in range(len(factor.functions))) for code in factor.codes]
        for factor in model.factors
    ]

    def says_nothing(shown: tuple[int, ...]) -> bool:
        silent = (0, MISSING) if abstain == "ignore" else (MISSING,)
        return all(vote in silent for vote in shown)

    # E-step: naive Bayes of the fitted distributions, and of what is seen in part the sum.
    posterior = []
    for row in rows:
        odds = math.log(model.prior / (1 - model.prior))
        for factor, shown, known in zip(model.factors, row, seen, strict=True):
            if not says_nothing(shown):
                places = [known.index(symbol) for symbol in symbols_of(shown, known)]
                odds += math.log(sum(factor.right[place] for place in places))
                odds -= math.log(sum(factor.wrong[place] for place in places))
        posterior.append(1 / (1 + math.exp(-odds)))
    assert model.weights(votes) == pytest.approx(posterior, abs=1e-12)

    # M-step: shares of rows, each symbol counted once more, shared as the classes are. A row that
    # shows a symbol in part counts for each that it may be of, as likely as these are.
    assert model.prior == pytest.approx(sum(posterior) / len(votes), abs=1e-3)
    for g, (factor, known) in enumerate(zip(model.factors, seen, strict=True)):
        counts = dict.fromkeys(known, model.prior)
        for right, row in zip(posterior, rows, strict=True):
            if says_nothing(row[g]):
                continue
            parts = symbols_of(row[g], known)
            total = sum(factor.right[known.index(symbol)] for symbol in parts)
            for symbol in parts:
                counts[symbol] += right * factor.right[known.index(symbol)] / total
        shares = [count / sum(counts.values()) for count in counts.values()]
        assert factor.right == pytest.approx(shares, abs=1e-3)


def test_a_large_family_seen_in_part_is_a_sample_without_replacement() -> None:
    names_ = tuple(f"f{i}" for i in range(7))
    factor = Factor(names_)
    whole = np.array([[1, 1, -1, 0, 0, 1, -1]], dtype=np.int8)
    symbols = factor.shown[factor.whole(factor.shown)]
    place = np.flatnonzero(symbols == factor.codes(whole)[0])[0]
    rng = np.random.default_rng(1)
    drawn = [rng.permutation(7) < 4 for _ in range(40_000)]  # four of the seven have input
    shown = np.where(np.array(drawn), whole, MISSING).astype(np.int8)
    codes, counts = np.unique(factor.codes(shown), return_counts=True)

    probability = factor.parts(codes, symbols)[:, place]

    assert probability.sum() == pytest.approx(1)
    assert counts / len(drawn) == pytest.approx(probability, abs=0.01)


def test_both_ways_to_add_up_symbols_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = lost(useful_votes(3)[0], 0.2)
    dense = LabelModel().fit(patterns_of(votes))
    monkeypatch.setattr(em, "DENSE", 0)
    sparse = LabelModel().fit(patterns_of(votes))
    assert dense.weights(votes) == pytest.approx(sparse.weights(votes), abs=1e-9)


# Edges


def test_a_query_nobody_votes_on_has_the_share_that_is_right_among_such_queries() -> None:
    rng = np.random.default_rng(5)
    right = rng.random(20_000) < 0.7
    # Functions only accept, so that silence speaks against the transcript.
    votes = (rng.random((20_000, 4)) < np.where(right, 0.6, 0.1)[:, None]).astype(np.int8)
    silent = ~votes.any(axis=1)

    weight = LabelModel().fit(patterns_of(votes)).weights(np.zeros((1, 4), np.int8))[0]

    assert weight == pytest.approx(right[silent].mean(), abs=0.02)
    ignored = LabelModel(abstain="ignore", prior=0.7).fit(patterns_of(votes))
    assert ignored.weights(np.zeros((1, 4), np.int8))[0] == pytest.approx(0.7)


def test_queries_without_any_input_keep_the_prior_and_stay_out_of_the_comparison() -> None:
    votes, _ = useful_votes(5, rows=2_000)
    gone = votes.copy()
    gone[:600] = MISSING
    model = LabelModel().fit(patterns_of(gone))

    assert model.weights(gone[:1])[0] == pytest.approx(model.prior)
    assert model.comparison.no_input == 600
    alone = LabelModel().fit(patterns_of(votes[600:]))
    assert model.weights(votes) == pytest.approx(alone.weights(votes), abs=1e-3)
    assert model.comparison.accuracy == pytest.approx(alone.comparison.accuracy, abs=1e-3)
    assert model.comparison.always_accept == pytest.approx(alone.comparison.always_accept, abs=1e-3)


def test_queries_on_which_every_function_keeps_silent_are_evidence_and_said_to_be_many() -> None:
    votes, _ = useful_votes(5)
    votes[:1_900] = 0
    with pytest.warns(WeakLabelWarning, match=r"on [67]\d\.\d% of the queries every function"):
        model = LabelModel().fit(patterns_of(votes))
    assert model.comparison.no_input == 0
    assert model.weights(np.zeros((1, 4), np.int8))[0] != pytest.approx(model.prior, abs=1e-3)


def test_without_any_input_there_is_nothing_to_fit() -> None:
    with pytest.raises(WeakLabelError, match="no function has input on any query"):
        LabelModel().fit(patterns_of(np.full((9, 3), MISSING, dtype=np.int8)))


def test_missing_inputs_of_wrong_transcripts_are_noticed_and_can_be_evidence() -> None:
    votes, right = useful_votes(12, rows=20_000, wide=5)
    gone = np.random.default_rng(1).random(len(votes)) < np.where(right, 0.2, 0.4)
    votes[np.ix_(gone, [0, 1])] = MISSING
    with pytest.warns(WeakLabelWarning, match="lose their input at different rates: f0 .* f1"):
        model = LabelModel().fit(patterns_of(votes))
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeakLabelWarning)
        knowing = LabelModel(missing="evidence").fit(patterns_of(votes))

    rate = next(rate for rate in model.missing if rate.name == "f0")
    assert rate.rows == gone.sum()
    assert rate.right == pytest.approx(right[gone].mean(), abs=0.02)
    assert rate.right_elsewhere == pytest.approx(right[~gone].mean(), abs=0.02)
    assert [rate.name for rate in model.missing if rate.informative] == ["f0", "f1"]
    nothing = np.array([[MISSING, MISSING, 0, 0, 0]], dtype=np.int8)
    assert knowing.weights(nothing)[0] < model.weights(nothing)[0] - 0.05


def test_a_frame_needs_to_be_told_which_functions_share_a_family() -> None:
    @labeling_function(requires=["confidence"], family="pair")
    def f0() -> Any:
        """Accept what the ASR was sure of."""
        return accept_if(nw.col("confidence") > 0.9)

    votes, _ = useful_votes(7)
    with pytest.raises(WeakLabelError, match="give fit\\(votes, functions=…\\)"):
        LabelModel().fit(frame(votes))
    with pytest.raises(WeakLabelError, match="functions= lacks \\['f1', 'f2', 'f3'\\]"):
        LabelModel().fit(frame(votes), functions=[f0])
    paired = {"f0": "pair", "f1": "pair"}
    declared = LabelModel().fit(patterns_of(votes, paired))
    assert LabelModel().fit(frame(votes), families=paired) == declared
    assert not LabelModel(families="ignore").fit(frame(votes)).families
    (identity,) = LabelModel().fit(frame(votes[:, :1]), functions=[f0]).identities
    assert identity == f0.identity()


def test_no_rows_are_an_error_and_one_pattern_or_one_function_a_warning() -> None:
    empty = pl.DataFrame({"lf:a": []}, schema={"lf:a": pl.Int8})
    with pytest.raises(WeakLabelError, match="no rows of votes"):
        LabelModel().fit(empty, families={})
    one_pattern = np.tile(np.array([[1, -1, 0]], dtype=np.int8), (50, 1))
    for votes in (one_pattern, useful_votes(1)[0][:, :1]):
        with pytest.warns(WeakLabelWarning, match="fewer than 3") as caught:
            model = LabelModel().fit(patterns_of(votes))
        assert model.warnings == tuple(str(w.message) for w in caught)
        assert np.isfinite(model.weights(votes)).all()


def test_a_given_prior_is_kept() -> None:
    votes, _ = useful_votes(2)
    assert LabelModel(prior=0.66).fit(patterns_of(votes)).prior == 0.66


def test_functions_that_are_all_worse_than_chance_are_put_right_by_gold_alone() -> None:
    votes, right = useful_votes(4)
    swapped = -votes
    patterns = patterns_of(swapped)
    gold = Gold(patterns_of(swapped[:100][right[:100]]), patterns_of(swapped[:100][~right[:100]]))

    fooled = LabelModel().fit(patterns).weights(swapped) >= 0.5
    anchored = LabelModel(gold_weight=20).fit(patterns, gold=gold).weights(swapped) >= 0.5

    assert (fooled == right).mean() < 0.3
    assert (anchored == right).mean() > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"abstain": "missing"}, "abstain must be one of"),
        ({"missing": "symbol"}, "missing must be one of"),
        ({"families": "none"}, "families must be one of"),
        ({"prior": 1.0}, "prior must lie between"),
        ({"prior": "0.8"}, "prior must be a number, got '0.8'"),
        ({"prior": Decimal("0.8")}, "prior must be a number"),
        ({"prior": np.True_}, "prior must be a number"),
        ({"prior": True}, "prior must be a number, got True"),
        ({"belief": True}, "belief must be a number, got True"),
        ({"smoothing": 0.0}, "smoothing must be above 0"),
        ({"smoothing": math.inf}, "smoothing must be above 0 and finite, got inf"),
        ({"gold_weight": math.inf}, "gold_weight must be above 0 and finite, got inf"),
        ({"tolerance": math.inf}, "tolerance must be above 0 and finite, got inf"),
    ],
)
def test_impossible_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(WeakLabelError, match=message):
        LabelModel(**arguments)
    if "prior" in arguments:
        with pytest.raises(WeakLabelError, match=message):
            MajorityVote(**arguments)


def test_numbers_of_numpy_are_options_and_kept_as_pythons() -> None:
    half: Any = np.float32(0.5)
    one: Any = np.int64(1)
    for model, plain in (
        (MajorityVote(prior=half), MajorityVote(prior=0.5)),
        (LabelModel(prior=half, smoothing=one), LabelModel(prior=0.5, smoothing=1.0)),
        (LogisticRegression(c=one), LogisticRegression(c=1.0)),
    ):
        assert repr(model) == repr(plain)


@pytest.mark.parametrize(
    "arguments",
    [{"prior": 1e-300}, {"smoothing": 1.7e308}, {"belief": 1.7e308}, {"smoothing": 1e308}],
    ids=str,
)
def test_options_beyond_what_can_be_computed_are_refused(arguments: dict[str, Any]) -> None:
    patterns = Patterns.of("abc", np.random.default_rng(0).integers(-1, 2, (500, 3)))
    with pytest.raises(WeakLabelError, match=f"{next(iter(arguments))}.*does not come to numbers"):
        LabelModel(**arguments).fit(patterns)


@pytest.mark.parametrize("prior", [0.0001, 0.9999])
def test_a_prior_that_does_not_suit_the_votes_is_named(prior: float) -> None:
    rng = np.random.default_rng(0)
    right = np.where(rng.random(1_000) < 0.8, 1, -1)
    votes = np.stack([np.where(rng.random(1_000) < 0.85, right, -right) for _ in "abc"], axis=1)
    patterns = Patterns.of("abc", votes)
    message = f"with a prior of {prior:g} the functions agree no more .*the prior is far off"
    with pytest.warns(WeakLabelWarning, match=message):
        assert len(LabelModel(prior=prior).fit(patterns).warnings) == 1
    assert LabelModel().fit(patterns).warnings == ()


# Families


def test_a_family_of_identical_functions_counts_as_one() -> None:
    votes, _ = useful_votes(6, wide=4)
    tripled = np.column_stack([votes, votes[:, 0], votes[:, 0]])
    families = dict.fromkeys(["f0", "f4", "f5"], "same")

    one = LabelModel().fit(patterns_of(votes)).weights(votes)
    model = LabelModel().fit(patterns_of(tripled, families))

    assert model.families == (("f0", "f4", "f5"),)
    assert model.weights(tripled) == pytest.approx(one, abs=1e-6)


def test_a_family_beyond_the_joint_ones_counts_as_one_too() -> None:
    votes, _ = useful_votes(6, wide=4)
    wide = np.column_stack([votes, *[votes[:, 0]] * JOINT])
    families = dict.fromkeys(["f0", *(f"f{4 + i}" for i in range(JOINT))], "same")

    model = LabelModel().fit(patterns_of(wide, families))

    assert not Factor(model.families[0]).joint
    one = LabelModel().fit(patterns_of(votes)).weights(votes)
    assert model.weights(wide) == pytest.approx(one, abs=1e-6)


@given(st.integers(1, 8), st.integers(0, 1000))
def test_codes_as_expressions_are_those_of_arrays_and_tell_symbols_apart(
    wide: int, seed: int
) -> None:
    votes = lost(np.random.default_rng(seed).integers(-1, 2, (30, wide)).astype(np.int8), 0.2)
    (factor,) = by_family(names(votes), ["x"] * wide)

    codes = factor.codes(votes)

    expressed = nw.from_native(frame(votes)).select(code=factor.code()).to_native()
    assert expressed["code"].to_list() == codes.tolist()
    assert np.isin(codes, factor.shown).all()
    kinds = -1, 1, MISSING
    seen = votes if factor.joint else np.stack([(votes == kind).sum(1) for kind in kinds], axis=1)
    distinct = {tuple(row): code for row, code in zip(seen.tolist(), codes.tolist(), strict=True)}
    assert len(set(distinct.values())) == len(distinct)
    assert (factor.whole(codes) == (votes != MISSING).all(axis=1)).all()
    assert (factor.nothing(codes, "symbol") == (votes == MISSING).all(axis=1)).all()
    silent = np.isin(votes, (0, MISSING)).all(axis=1)
    assert (factor.nothing(codes, "ignore") == silent).all()


def test_a_combination_never_seen_is_read_as_the_nearest_that_was() -> None:
    votes, _ = useful_votes(8)
    votes = votes[~((votes[:, 0] == 1) & (votes[:, 1] == 1))]
    model = LabelModel().fit(patterns_of(votes, {"f0": "x", "f1": "x"}))

    weights = model.weights(np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], dtype=np.int8))

    assert min(weights[1:]) <= weights[0] <= max(weights[1:])


# Labels and files


@pytest.fixture(scope="module")
def fitted() -> FittedLabelModel:
    votes = lost(useful_votes(9, wide=9)[0], 0.05)
    families = {**dict.fromkeys(["f0", "f1"], "x"), **dict.fromkeys(["f2", "f3", "f4", "f5"], "y")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakLabelWarning)
        return LabelModel(missing="evidence").fit(patterns_of(votes, families))


def test_labels_are_the_same_in_every_engine_and_keep_rows_and_columns(
    fitted: FittedLabelModel,
) -> None:
    votes = lost(useful_votes(10, rows=500, wide=9)[0], 0.1)
    table = frame(votes).with_columns(note=pl.lit("keep"))
    relation = duckdb.from_arrow(table.to_arrow())

    labels = fitted.label(table)
    lazy = fitted.label(table.lazy())
    in_duckdb = fitted.label(relation)

    assert labels.columns == [*table.columns, "weight", "label"]
    assert labels.schema["weight"] == pl.Float64
    assert labels.schema["label"] == pl.Int8
    assert labels["weight"].to_numpy() == pytest.approx(fitted.weights(votes), abs=1e-14)
    assert ((labels["weight"] >= 0.5) == (labels["label"] == 1)).all()
    assert labels["query_id"].to_list() == table["query_id"].to_list()
    assert isinstance(lazy, pl.LazyFrame)
    assert lazy.collect().equals(labels)
    assert isinstance(in_duckdb, duckdb.DuckDBPyRelation)
    assert in_duckdb.pl()["weight"].to_numpy() == pytest.approx(labels["weight"].to_numpy())
    assert in_duckdb.pl()["label"].to_list() == labels["label"].to_list()


@pytest.mark.parametrize("odd", [2, 1.25, -128])
def test_votes_that_are_none_are_no_abstains(fitted: FittedLabelModel, odd: float) -> None:
    table = frame(np.zeros((2, 9), np.int8)).with_columns(pl.Series("lf:f3", [0.0, odd]))
    with pytest.raises(WeakLabelError, match="function 'f3' votes"):
        fitted.label(table)
    assert fitted.label(table.lazy()).collect()["weight"].is_null().to_list() == [False, True]
    assert fitted.label(table.lazy()).collect()["label"].is_null().to_list() == [False, True]


def test_a_nan_is_a_missing_input_in_labels_as_in_a_fit(fitted: FittedLabelModel) -> None:
    votes = lost(useful_votes(11, rows=50, wide=9)[0], 0.2)
    table = frame(votes).with_columns(pl.col("^lf:.*$").cast(pl.Float64).fill_null(math.nan))
    for one in (table, table.lazy(), duckdb.from_arrow(table.to_arrow()), table.to_pandas()):
        labels = nw.from_native(fitted.label(one)).lazy().collect("polars")
        assert labels["weight"].to_numpy() == pytest.approx(fitted.weights(votes), abs=1e-14)


def test_frames_of_other_functions_are_refused_where_these_are_given() -> None:
    @labeling_function(requires=["confidence"])
    def f0(high: float = 0.9) -> Any:
        """Accept what the ASR was sure of."""
        return accept_if(nw.col("confidence") > high)

    votes = frame(useful_votes(7)[0][:, :1])
    model = LabelModel().fit(votes, functions=[f0])
    assert model.label(votes, functions=[f0]).height == votes.height
    with pytest.raises(WeakLabelError, match=r"high 0\.9 → 0\.5"):
        model.label(votes, functions=[f0.with_parameters(high=0.5)])


def test_a_large_family_of_unlike_members_is_warned_of() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(20_000) < 0.85
    truth = np.where(right, 1, -1)
    rates = [0.92, *[0.6] * 5, 0.75, 0.75, 0.75]
    votes = np.stack([np.where(rng.random(20_000) < rate, truth, -truth) for rate in rates], axis=1)
    with pytest.warns(WeakLabelWarning, match="a family of 6 functions is read by how many"):
        LabelModel().fit(patterns_of(votes.astype(np.int8), {f"f{i}": "x" for i in range(6)}))
    alike = np.stack([np.where(rng.random(20_000) < 0.7, truth, -truth) for _ in rates], axis=1)
    model = LabelModel().fit(patterns_of(alike.astype(np.int8), {f"f{i}": "x" for i in range(6)}))
    assert not any("is read by how many" in warning for warning in model.warnings)


def test_votes_of_other_functions_are_refused_by_name(fitted: FittedLabelModel) -> None:
    votes = frame(np.zeros((1, 9), np.int8))
    with pytest.raises(WeakLabelError, match=r"lack: \['f8'\]"):
        fitted.label(votes.drop("lf:f8"))
    with pytest.raises(WeakLabelError, match=r"does not know: \['new'\]"):
        fitted.label(votes.with_columns(pl.lit(1).alias("lf:new")))
    with pytest.raises(WeakLabelError, match=r"columns \['weight'\] already"):
        fitted.label(votes.with_columns(weight=1.0))
    with pytest.raises(WeakLabelError, match="threshold"):
        fitted.label(votes, threshold=50)


def test_a_file_brings_the_same_model_back(fitted: FittedLabelModel, tmp_path: Path) -> None:
    assert load_model(fitted.save(tmp_path / "model.json")) == fitted
