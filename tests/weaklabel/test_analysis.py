"""What functions and models did, against plain loops over the rows, and by hand."""

import json
import warnings
from dataclasses import asdict
from functools import cache
from typing import Any

import duckdb
import jiwer
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weaklabel import analysis
from weaklabel.analysis import Analysis
from weaklabel.baselines import FittedLogistic, FittedMajority
from weaklabel.dependence import dependences
from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.gold import join_gold, share
from weaklabel.label_model import LabelModel
from weaklabel.labeling import Identity
from weaklabel.models import FittedModel
from weaklabel.patterns import Patterns
from weaklabel.text import find_normalizer
from weaklabel.votes import MISSING
from weaklabel.wer import Interval

NAMES = ("a", "b", "c")
# Its weights: 1 / (1 + exp(-x)) with x the sum of the votes' evidence.
MODEL = FittedLogistic(NAMES, 0.5, (-2.0, -0.3, 0.4), (1.0, 2.0, -0.5), (0.2, 0.0, -0.3))
ROWS = st.lists(st.tuples(*[st.sampled_from([-1, 0, 1, MISSING])] * 3), min_size=1, max_size=30)
WORDS = st.lists(st.sampled_from(["turn", "it", "on", "Off!"]), max_size=3).map(" ".join)


def table(rows: list[tuple[int, ...]], names: tuple[str, ...] = NAMES) -> pl.DataFrame:
    columns = {
        f"lf:{name}": [None if row[i] == MISSING else row[i] for row in rows]
        for i, name in enumerate(names)
    }
    schema = dict.fromkeys(columns, pl.Int8)
    return pl.DataFrame({"query_id": range(len(rows)), **columns}, schema_overrides=schema)


def transcripts(texts: list[str], ids: list[Any] | None = None) -> pl.DataFrame:
    ids = list(range(len(texts))) if ids is None else ids
    return pl.DataFrame(
        {"query_id": ids, "transcript": texts}, schema_overrides={"transcript": pl.String}
    )


def analyze(
    votes: Any,
    fitted: Any,
    *,
    gold: Any = None,
    queries: Any = None,
    normalizer: str = "basic",
    **options: Any,
) -> Analysis:
    """The analysis of a table, or of a table and its patterns, with gold joined to the table."""
    table, patterns = votes if isinstance(votes, tuple) else (votes, votes)
    checked = None
    if gold is not None:
        checked = join_gold(table, gold, queries, functions=fitted.functions, normalizer=normalizer)
    return analysis.analyze(patterns, fitted, gold=checked, **options)


@cache  # few rows differ
def weight(row: tuple[int, ...], model: FittedModel = MODEL) -> float:
    return float(model.weights(np.array([row], dtype=np.int8))[0])


# Without gold


@given(ROWS)
def test_functions_are_summed_up_as_row_by_row(rows: list[tuple[int, ...]]) -> None:
    found = analyze(table(rows), MODEL)
    total = len(rows)
    assert (found.rows, found.patterns) == (total, len(set(rows)))
    looked = [[v for v in row if v != MISSING] for row in rows]
    assert found.silent == sum(bool(own) and not any(own) for own in looked)
    assert found.no_input == sum(not own for own in looked)
    for index, function in enumerate(found.functions):
        own = [row[index] for row in rows]
        others = [[v for i, v in enumerate(row) if i != index and v != MISSING] for row in rows]
        both = [(v, o) for v, o in zip(own, others, strict=True) if v != MISSING and o]
        numbers = [function.rejects, function.abstains, function.accepts, function.missing]
        assert function.name == NAMES[index]
        assert numbers == [own.count(vote) for vote in (-1, 0, 1, MISSING)]
        cast = function.accepts + function.rejects
        assert function.coverage == pytest.approx(cast / max(total - function.missing, 1))
        assert function.overlaps == pytest.approx(
            sum(v != 0 and any(o) for v, o in both) / max(len(both), 1)
        )
        assert function.conflicts == pytest.approx(
            sum(v != 0 and -v in o for v, o in both) / max(len(both), 1)
        )
        for vote, learned in ((1, function.learned_accept), (-1, function.learned_reject)):
            sure = [
                weight(row) if vote == 1 else 1 - weight(row) for row in rows if row[index] == vote
            ]
            assert (learned is None) == (not sure)
            if learned is not None:
                assert learned == pytest.approx(sum(sure) / len(sure))


@given(ROWS, st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_weights_are_summed_up_as_row_by_row(rows: list[tuple[int, ...]], threshold: float) -> None:
    found = analyze(table(rows), MODEL, threshold=threshold)
    weights = [weight(row) for row in rows]
    assert found.accepted == sum(w >= threshold for w in weights)
    assert found.mean_weight == pytest.approx(sum(weights) / len(rows))
    assert list(found.histogram) == [
        sum(min(int(w * 20), 19) == number for w in weights) for number in range(20)
    ]
    frequent = {pattern.votes: pattern for pattern in found.frequent}
    assert len(frequent) == min(len(set(rows)), 20)
    assert [p.rows for p in found.frequent] == sorted(
        (p.rows for p in found.frequent), reverse=True
    )
    for votes, pattern in frequent.items():
        row = tuple(MISSING if vote is None else vote for vote in votes)
        assert pattern.rows == rows.count(row)
        assert pattern.weight == pytest.approx(weight(row))


def test_a_table_by_hand() -> None:
    rows = [(1, 1, 0)] * 6 + [(1, -1, 0)] * 2 + [(0, -1, 0)] + [(0, 0, 0)]
    identity = Identity("a", "us", "1", "0123456789ab", {"long": 2})
    patterns = Patterns.count(table(rows), {"a": "session", "b": "session"}, {"a": identity})
    found = analyze(patterns, FittedMajority(NAMES, 0.5))
    a, b, c = found.functions
    assert (a.coverage, a.overlaps, a.conflicts) == (0.8, 0.8, 0.2)
    assert (b.coverage, b.overlaps, b.conflicts) == (0.9, 0.8, 0.2)
    assert (c.coverage, c.overlaps, c.conflicts) == (0, 0, 0)
    assert (a.family, a.identity, c.family, c.identity) == ("session", identity, None, None)
    # Majority weights: (accepts + ½) / (votes + 1)
    assert a.learned_accept == pytest.approx((6 * 2.5 / 3 + 2 * 1.5 / 3) / 8)
    assert b.learned_reject == pytest.approx((2 * 0.5 + 0.75) / 3)
    assert (a.learned_reject, c.learned_accept, c.learned_reject) == (None, None, None)
    assert found.silent == 1
    assert found.accepted == 9  # a weight of exactly the threshold is accepted
    assert found.gold is None
    assert found.model == "majority"
    assert found.families == ()


@given(ROWS)
@settings(max_examples=20)
def test_dependence_is_the_label_models_own_statistic(rows: list[tuple[int, ...]]) -> None:
    patterns = Patterns.count(table(rows))
    found = analyze(patterns, MODEL)
    pairs = dependences(patterns, MODEL.weights(patterns.votes))
    assert sorted(found.dependences, key=str) == sorted(pairs, key=str)
    assert [p.strength for p in found.dependences] == sorted(
        (p.strength for p in pairs), reverse=True
    )
    for function in found.functions:
        assert function.dependence is not None
        assert function.dependence.strength == max(
            p.strength for p in pairs if function.name in (p.first, p.second)
        )


def test_a_copy_is_found_to_depend_on_its_original() -> None:
    rng = np.random.default_rng(5)
    right = rng.random(2000) < 0.8
    votes = np.where(rng.random((2000, 4)) < 0.75, np.where(right, 1, -1)[:, None], 0)
    votes[:, 3] = np.where(rng.random(2000) < 0.95, votes[:, 1], 0)
    patterns = Patterns.of(["a", "b", "c", "copy"], votes)
    found = analyze(patterns, FittedMajority(("a", "b", "c", "copy"), 0.8))
    strongest = found.dependences[0]
    assert (strongest.first, strongest.second, strongest.significant) == ("b", "copy", True)
    assert found.functions[3].dependence == strongest
    assert found.functions[1].dependence == strongest


def test_one_function_alone_depends_on_none() -> None:
    found = analyze(table([(1,), (0,)], ("a",)), FittedMajority(("a",), 0.5))
    assert found.functions[0].dependence is None
    assert found.dependences == ()


def test_without_a_vote_nothing_warns() -> None:
    rows = [(0, 0, 0)] * 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = analyze(
            table(rows), MODEL, gold=transcripts(["on"] * 5), queries=transcripts(["on"] * 5)
        )
    assert found.silent == found.rows == 5
    assert {function.coverage for function in found.functions} == {0}
    assert all(f.learned_accept is f.gold_accept is None for f in found.functions)
    assert found.gold is not None
    assert found.gold.auc is None


@given(ROWS, st.permutations(range(3)))
def test_the_order_of_rows_and_columns_changes_nothing(
    rows: list[tuple[int, ...]], order: list[int]
) -> None:
    frame = table(rows)
    other = frame.select("query_id", *(f"lf:{NAMES[i]}" for i in order)).reverse()
    assert analyze(other, MODEL) == analyze(frame, MODEL)


def test_shards_that_are_merged_say_the_same_as_all_rows() -> None:
    rng = np.random.default_rng(3)
    frame = table([tuple(row) for row in rng.integers(-1, 2, (500, 3)).tolist()])
    shards = Patterns.merge([Patterns.count(frame[:200]), Patterns.count(frame[200:])])
    assert analyze(shards, MODEL) == analyze(frame, MODEL)


def test_a_fitted_label_model_is_summed_up() -> None:
    rng = np.random.default_rng(4)
    right = rng.random(3000) < 0.8
    vote = np.where(right, 1, -1)[:, None] * np.where(rng.random((3000, 4)) < 0.85, 1, -1)
    votes = np.where(rng.random((3000, 4)) < 0.6, vote, 0)
    patterns = Patterns.of("abcd", votes, families={"a": "ab", "b": "ab"})
    model = LabelModel().fit(patterns)
    found = analyze(patterns, model)
    assert found.model == "label-model"
    assert found.prior == model.prior
    assert found.families == (("a", "b"),)
    assert found.warnings == tuple(model.warnings)
    for index, function in enumerate(found.functions):
        truth = right[votes[:, index] == 1].mean()
        assert function.learned_accept == pytest.approx(truth, abs=0.03)


# With gold


@st.composite
def checked_logs(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[str], dict[int, str]]:
    rows = draw(ROWS)
    transcribed = [draw(WORDS) for _ in rows]
    ids = draw(st.lists(st.integers(0, len(rows) - 1), unique=True, min_size=1))
    return rows, transcribed, {i: draw(st.just(transcribed[i]) | WORDS) for i in ids}


@cache
def rate_of(said: str, written: str) -> float:
    return float(jiwer.wer(said, written))


def of_gold(part: int, whole: int) -> Interval | None:
    return share(part, whole) if whole else None


@given(checked_logs(), st.sampled_from([0.0, 0.5]), st.sampled_from(["none", "basic"]))
@settings(max_examples=60)
def test_gold_is_scored_as_query_by_query(
    log: tuple[list[tuple[int, ...]], list[str], dict[int, str]], max_wer: float, rule: str
) -> None:
    rows, transcribed, truth = log
    found = analyze(
        table(rows),
        MODEL,
        gold=transcripts(list(truth.values()), list(truth)),
        queries=transcripts(transcribed),
        max_wer=max_wer,
        normalizer=rule,
    )
    gold = found.gold
    assert gold is not None
    same = find_normalizer(rule)
    pairs = {i: (same(text), same(transcribed[i])) for i, text in truth.items()}
    right = {i: rate_of(said, written) <= max_wer for i, (said, written) in pairs.items()}
    assert (gold.queries, gold.left_out, gold.right) == (len(truth), 0, sum(right.values()))
    assert gold.normalizer == rule

    def check(group: Any, ids: list[int]) -> None:
        assert group.queries == len(ids)
        if not ids:
            assert group.corpus_wer is group.mean_utterance_wer is group.exact is None
            return
        rates = [rate_of(*pairs[i]) for i in ids]
        words = [len(pairs[i][0].split()) for i in ids]
        errors = sum(rate * max(n, 1) for rate, n in zip(rates, words, strict=True))
        assert group.corpus_wer.point == pytest.approx(errors / max(sum(words), 1))
        assert group.corpus_wer.low <= group.corpus_wer.high
        assert group.mean_utterance_wer == pytest.approx(sum(rates) / len(ids))
        assert group.exact.point == pytest.approx(sum(rate == 0 for rate in rates) / len(ids))

    accepted = [i for i in truth if weight(rows[i]) >= 0.5]
    check(gold.everything, list(truth))
    check(gold.accepted, accepted)
    check(gold.rejected, [i for i in truth if i not in accepted])
    labeled = [(i in accepted) == right[i] for i in truth]
    assert gold.label_accuracy == share(sum(labeled), len(truth))
    votes = {i: [v for v in rows[i] if v != MISSING] for i in truth}
    for baseline, its in zip(
        gold.baselines,
        (list(right.values()), [(sum(votes[i]) >= 0) == right[i] for i in truth]),
        strict=True,
    ):
        gains = np.array(labeled, float) - its
        assert baseline.right == pytest.approx(sum(its) / len(its))
        assert baseline.gain == pytest.approx(gains.mean())
        assert baseline.error == pytest.approx(gains.std() / len(gains) ** 0.5)
    # Deciles: the middle of all queries of one weight, among all queries of the log.
    everything = sorted(round(weight(row), 12) for row in rows)
    tenths = {}
    for i in truth:
        places = [n for n, w in enumerate(everything) if w == round(weight(rows[i]), 12)]
        tenths[i] = min(int(10 * (places[0] + places[-1] + 1) / 2 / len(rows) + 1e-9), 9)
    for number, group in enumerate(gold.deciles):
        check(group, [i for i in truth if tenths[i] == number])
        assert (group.weights is None) == (group.queries == 0)
    for index, function in enumerate(found.functions):
        accepts = [i for i in truth if rows[i][index] == 1]
        rejects = [i for i in truth if rows[i][index] == -1]
        without = [i for i in truth if rows[i][index] == MISSING]
        assert function.gold_missing == of_gold(sum(right[i] for i in without), len(without))
        assert function.gold_accept == of_gold(sum(right[i] for i in accepts), len(accepts))
        assert function.gold_reject == of_gold(sum(not right[i] for i in rejects), len(rejects))
    wrongly = {example.id for example in gold.wrongly_accepted}
    assert wrongly <= {str(i) for i in accepted if not right[i]}
    assert len(wrongly) == min(10, sum(not right[i] for i in accepted))


def checked_votes(rejecting: float, rows: int = 400) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Votes of a function that rejects so many of the right ones, and gold: 80% are right."""
    rng = np.random.default_rng(1)
    right = rng.random(rows) < 0.8
    reject = np.where(right, rng.random(rows) < rejecting, rng.random(rows) < 0.9)
    votes = table([(1, -1 if bad else 1, 0) for bad in reject])
    votes = votes.with_columns(transcript=pl.lit("on"))
    return votes, transcripts(np.where(right, "on", "off").tolist())


def test_gold_says_when_the_labels_are_no_better_than_none() -> None:
    model = FittedLogistic(NAMES, 0.0, (0.0, -1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
    votes, gold = checked_votes(0.3)
    found = analyze(votes, model, gold=gold)
    assert found.gold is not None
    verdict = found.verdict
    assert (verdict.by, verdict.better) == ("gold", False)
    assert verdict.right == found.gold.label_accuracy.point
    assert verdict.accepting_everything == found.gold.right / 400 > verdict.right
    assert verdict.majority_vote == verdict.accepting_everything  # ties are accepts
    assert verdict.text.startswith(f"{verdict.right:.1%} of the labels are right; accepting every")
    assert len(found.warnings) == 2
    assert "no better than accepting everything: on 400 gold queries" in found.warnings[0]
    assert f"is for {verdict.accepting_everything:.1%}" in found.warnings[0]
    assert "no better than a majority vote" in found.warnings[1]


def test_labels_that_gain_are_not_warned_of() -> None:
    model = FittedLogistic(NAMES, 0.0, (0.0, -1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
    votes, gold = checked_votes(0.02)
    found = analyze(votes, model, gold=gold)
    assert found.verdict.better
    assert found.warnings == ()
    assert found.gold is not None
    assert all(baseline.gain > 2 * baseline.error for baseline in found.gold.baselines)
    # As good is no better.
    everything = FittedLogistic(NAMES, 5.0, (0.0, -1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
    warned = analyze(votes, everything, gold=gold).warnings
    assert warned == tuple(
        f"the labels are those of {name} on all 400 gold queries"
        for name in ("accepting everything", "a majority vote")
    )


def test_without_gold_the_verdict_is_the_models_own_expectation() -> None:
    rows = [(1, 1, 0)] * 6 + [(-1, -1, 0)] * 3 + [(MISSING,) * 3] * 5
    found = analyze(table(rows), MODEL)
    yes, no = weight(rows[0]), weight(rows[6])
    verdict = found.verdict
    assert verdict.by == "model"
    assert "its own account: no gold was given" in verdict.text
    # Queries without any input stay out of it.
    assert verdict.right == pytest.approx((6 * yes + 3 * (1 - no)) / 9)
    assert verdict.accepting_everything == pytest.approx((6 * yes + 3 * no) / 9)
    assert verdict.majority_vote == pytest.approx(verdict.right)


def test_what_a_missing_input_says_is_shown_by_function() -> None:
    rng = np.random.default_rng(8)
    right = rng.random(20_000) < 0.8
    votes = np.where(rng.random((20_000, 4)) < 0.85, np.where(right, 1, -1)[:, None], 0)
    votes[rng.random(20_000) < np.where(right, 0.1, 0.4), 0] = MISSING
    patterns = Patterns.of("abcd", votes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakLabelWarning)
        fitted = LabelModel().fit(patterns)
    first, *others = analyze(patterns, fitted).functions
    assert first.missing == (votes[:, 0] == MISSING).sum()
    assert first.missing_rate is not None
    assert first.missing_rate.right == pytest.approx(right[votes[:, 0] == MISSING].mean(), abs=0.03)
    assert first.missing_rate.informative
    assert all(function.missing_rate is None for function in others)


def test_a_model_that_knows_of_no_missing_inputs_gets_abstains() -> None:
    class Plain:
        functions = NAMES

        def weights(self, votes: Any) -> Any:
            assert set(np.unique(votes)) <= {-1, 0, 1}
            return 0.5 + votes.sum(axis=1) / 10

    votes, gold = checked_votes(0.1)
    votes = votes.with_columns(pl.lit(None, pl.Int8).alias("lf:c"))
    found = analyze(votes, Plain(), gold=gold)  # type: ignore[arg-type]
    assert found.functions[2].missing == 400
    assert found.functions[2].gold_missing == share(found.gold.right if found.gold else 0, 400)


def test_votes_of_another_function_than_the_models_are_refused() -> None:
    before = Identity("a", "us", "1", "0123456789ab", {"long": 2})
    after = Identity("a", "us", "1", "0123456789ab", {"long": 3})
    rows = table([(1, 1, 0), (0, -1, 0)])
    fitted = FittedMajority(NAMES, 0.5, (before, None, None))
    patterns = Patterns.count(rows, identities={"a": after})
    with pytest.raises(WeakLabelError, match=r"a \(long 2 → 3\)"):
        analyze(patterns, fitted)
    with pytest.warns(WeakLabelWarning, match=r"a \(long 2 → 3\)"):
        found = analyze(patterns, fitted, allow_changed=True)
    assert found.functions[0].identity == after


def test_rows_on_which_a_function_raised_are_kept_by_function() -> None:
    entry = {
        "name": "b",
        "total": 12,
        "first": [["q7", "ValueError: no number"]],
        "traceback": "Traceback …",
    }
    found = analyze(table([(1, 1, 0)]), MODEL, errors=[entry])
    assert [function.errors is None for function in found.functions] == [True, False, True]
    assert found.functions[1].errors is not None
    assert found.functions[1].errors.total == 12
    assert found.functions[1].errors.first == [("q7", "ValueError: no number")]


def small_log() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    votes = table([(1, 1, 0), (1, 1, 0), (-1, 0, 0), (-1, -1, 0), (0, 0, 0)])
    transcribed = transcripts(["play you two", "stop", "lights of", "volume up", "next"])
    gold = transcripts(["play U2", "Stop!", "lights off", "volume up"], [0, 1, 2, 3])
    return votes, transcribed, gold


def test_gold_by_hand() -> None:
    votes, transcribed, gold = small_log()
    found = analyze(votes, MODEL, gold=gold, queries=transcribed).gold
    assert found is not None
    # "play you two" has 2 errors in the 2 words of "play u2"; "lights of" 1 in 2.
    assert found.accepted.corpus_wer is not None
    assert found.accepted.corpus_wer.point == pytest.approx(2 / 3)
    assert found.accepted.mean_utterance_wer == pytest.approx(1 / 2)
    assert found.rejected.corpus_wer is not None
    assert found.rejected.corpus_wer.point == pytest.approx(1 / 4)
    assert found.rejected.mean_utterance_wer == pytest.approx(1 / 4)
    assert (found.queries, found.right) == (4, 2)
    (accepted,) = found.wrongly_accepted
    assert (accepted.id, accepted.hypothesis, accepted.reference) == (
        "0",
        "play you two",
        "play U2",
    )
    assert (accepted.errors, accepted.words, accepted.accepting) == (2, 2, ("a", "b"))
    (rejected,) = found.wrongly_rejected
    assert (rejected.id, rejected.rejecting) == ("3", ("a", "b"))
    # Weights of 0 and 1 are equal, that of 2 is above that of 3: ½ + 1 and 0 + 0 of 4 pairs.
    assert found.auc == pytest.approx((0.5 + 1 + 0 + 0) / 4)


def test_the_votes_own_transcripts_serve_without_a_log() -> None:
    votes, transcribed, gold = small_log()
    joined = votes.join(transcribed, on="query_id")
    assert analyze(joined, MODEL, gold=gold) == analyze(
        votes, MODEL, gold=gold, queries=transcribed
    )


@pytest.mark.parametrize("frame", ["lazy", "duckdb", "pandas", "text ids"])
def test_every_frame_and_either_type_of_id_gives_the_same(frame: str) -> None:
    votes, transcribed, gold = small_log()
    expected = analyze(votes, MODEL, gold=gold, queries=transcribed)
    if frame == "lazy":
        found = analyze(votes.lazy(), MODEL, gold=gold.lazy(), queries=transcribed.lazy())
    elif frame == "duckdb":
        found = analyze(
            duckdb.sql("select * from votes"),
            MODEL,
            gold=gold,
            queries=duckdb.sql("select * from transcribed"),
        )
    elif frame == "pandas":
        found = analyze(
            votes.to_pandas(), MODEL, gold=gold.to_pandas(), queries=transcribed.to_pandas()
        )
    else:
        found = analyze(
            votes,
            MODEL,
            gold=gold.cast({"query_id": pl.String}),
            queries=transcribed.cast({"query_id": pl.String}),
        )
    assert found == expected


def test_patterns_give_families_where_the_table_gives_the_rows() -> None:
    votes, transcribed, gold = small_log()
    patterns = Patterns.count(votes, {"a": "x"})
    found = analyze((votes, patterns), MODEL, gold=gold, queries=transcribed)
    assert found.functions[0].family == "x"
    assert found.gold == analyze(votes, MODEL, gold=gold, queries=transcribed).gold


def test_gold_of_other_days_is_left_out_and_counted() -> None:
    votes, transcribed, gold = small_log()
    more = pl.concat([gold, transcripts(["hello"], [77])])
    with pytest.warns(WeakLabelWarning, match="1 of 5 gold queries are not among .*: 77"):
        found = analyze(votes, MODEL, gold=more, queries=transcribed)
    expected = analyze(votes, MODEL, gold=gold, queries=transcribed)
    assert found.gold is not None
    assert expected.gold is not None
    assert (found.gold.left_out, expected.gold.left_out) == (1, 0)
    assert asdict(found.gold) | {"left_out": 0} == asdict(expected.gold)


@pytest.mark.parametrize("text", ["right", "wrong"])
def test_a_single_class_has_no_auc_and_the_other_group_no_wer(text: str) -> None:
    votes = table([(1, 1, 0)] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = analyze(
            votes, MODEL, gold=transcripts([text] * 3), queries=transcripts(["right"] * 3)
        ).gold
    assert found is not None
    assert found.auc is None
    assert found.brier is not None
    assert found.accepted.queries == 3
    assert (found.rejected.queries, found.rejected.weights, found.rejected.corpus_wer) == (
        0,
        None,
        None,
    )
    assert [group.queries for group in found.deciles] == [0] * 5 + [3] + [0] * 4


def test_everything_is_plain_data_that_json_can_hold() -> None:
    votes, transcribed, gold = small_log()
    found = analyze(
        votes, MODEL, gold=gold, queries=transcribed, provenance=[("votes", "v.parquet")]
    )
    assert isinstance(found, Analysis)
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["provenance"] == [
        ["votes", "v.parquet"]
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"votes": table([]), "gold": None}, "no rows of votes"),
        ({"votes": table([(1, 1)], ("a", "b")), "gold": None}, r"the votes lack: \['c'\]"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\], got 1.5"),
        ({"queries": None}, "give the query log, too"),
        ({"gold": transcripts(["x"], [99])}, "none of the 1 gold queries"),
        ({"gold": transcripts(["x", "y"], [1, 1])}, "gold: query_id must be unique, 1 are not: 1"),
        (
            {"gold": pl.DataFrame({"query_id": [1]})},
            "gold must have the columns query_id, transcript",
        ),
        ({"gold": pl.DataFrame({"transcript": ["x"]})}, "gold must have the columns query_id"),
        (
            {"gold": pl.DataFrame({"query_id": [1], "transcript": [None]})},
            "gold: 1 of 1 rows have no transcript",
        ),
        (
            {"gold": pl.DataFrame({"query_id": [1], "transcript": [7]})},
            "must be strings, got Int64",
        ),
        (
            {"queries": pl.DataFrame({"text": ["x"]})},
            "queries must have the columns query_id",
        ),
        ({"normalizer": "best"}, "no normalizer 'best'"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_analyzed_is_named(options: dict[str, Any], message: str) -> None:
    votes, transcribed, gold = small_log()
    given = {"votes": votes, "gold": gold, "queries": transcribed} | options
    with pytest.raises(WeakLabelError, match=message):
        analyze(given.pop("votes"), MODEL, **given)


def test_gold_of_other_functions_than_the_models_is_refused() -> None:
    votes, transcribed, gold = small_log()
    checked = join_gold(votes, gold, transcribed, functions=("b", "a", "c"))
    with pytest.raises(WeakLabelError, match=r"gold is of functions \['b', 'a', 'c'\]"):
        analysis.analyze(votes, MODEL, gold=checked)
