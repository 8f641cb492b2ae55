"""Gold: which transcripts are right, and what a model makes of knowing it."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl
import pytest

from weaklabel.errors import WeakLabelError
from weaklabel.gold import Gold, correctness, gold_patterns
from weaklabel.label_model import LabelModel
from weaklabel.models import WeakLabelWarning
from weaklabel.patterns import Patterns

LOG = pl.DataFrame(
    {"query_id": ["a", "b", "c", "d"], "transcript": ["Play jazz!", "stop", "", "turn it up"]}
)
GOLD = pl.DataFrame(
    {"query_id": ["d", "a", "c", "z"], "transcript": ["turn it off", "play jazz", "", "unseen"]}
)


def made(seed: int, rows: int = 5_000) -> tuple[pl.DataFrame, pl.Series]:
    """Votes of four functions that are right three times in four, and the truth."""
    rng = np.random.default_rng(seed)
    right = rng.random(rows) < 0.8
    truth = np.where(right, 1, -1)[:, None]
    votes = np.where(rng.random((rows, 4)) < 0.75, truth, -truth).astype(np.int8)
    table = pl.DataFrame({f"lf:f{i}": votes[:, i] for i in range(4)})
    return table.with_row_index("query_id"), pl.Series(right)


def checked(table: pl.DataFrame, right: pl.Series, rows: int, seed: int = 0) -> pl.DataFrame:
    return table.select("query_id", correct=right).sample(rows, seed=seed)


def test_a_transcript_is_right_up_to_a_word_error_rate_and_by_a_normaliser() -> None:
    assert correctness(LOG, GOLD).rows() == [("d", False), ("a", True), ("c", True)]
    assert correctness(LOG, GOLD, threshold=0.34)["correct"].to_list() == [True, True, True]
    assert correctness(LOG, GOLD, normalizer="none")["correct"].to_list() == [False, False, True]
    assert correctness(LOG.lazy(), GOLD.to_arrow()).rows() == correctness(LOG, GOLD).rows()


def test_gold_that_is_ambiguous_or_incomplete_is_refused() -> None:
    with pytest.raises(WeakLabelError, match=r"gold has queries more than once.*'d'"):
        correctness(LOG, pl.concat([GOLD, GOLD[:1]]))
    with pytest.raises(WeakLabelError, match=r"gold lacks the columns \['transcript'\]"):
        correctness(LOG, GOLD.select("query_id"))
    unheard = LOG.with_columns(transcript=pl.lit(None, pl.String))
    with pytest.raises(WeakLabelError, match="missing"):
        correctness(unheard, GOLD)


def test_gold_patterns_are_the_votes_of_checked_queries() -> None:
    table, right = made(1)
    some = checked(table, right, 100)

    gold = gold_patterns(table.lazy(), some)

    assert (gold.rows, gold.right.rows) == (100, some["correct"].sum())
    ids = some.filter("correct")["query_id"]
    assert gold.right == Patterns.count(table.filter(pl.col("query_id").is_in(ids.implode())))


def test_checked_queries_that_nobody_voted_on_are_named() -> None:
    table, right = made(1)
    with pytest.raises(WeakLabelError, match=r"1 queries of gold are not among the votes.*4999"):
        gold_patterns(table[:-1], table[-1:].select("query_id", correct=right[-1:]))
    with pytest.raises(WeakLabelError, match="true or false"):
        gold_patterns(table, table.select("query_id", correct=1))


def test_checked_queries_are_not_counted_twice() -> None:
    table, right = made(2)
    gold = gold_patterns(table, checked(table, right, 200))
    others = Patterns.count(
        table.filter(~pl.col("query_id").is_in(checked(table, right, 200)["query_id"].implode()))
    )
    apart = Gold(gold.right, gold.wrong, counted=False)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = LabelModel().fit(Patterns.count(table), gold=gold)
        outside = LabelModel().fit(others, gold=apart)

    assert inside == outside


def test_gold_said_to_be_among_the_rows_that_is_not_is_refused() -> None:
    table, right = made(2)
    gold = gold_patterns(table, checked(table, right, 200))
    with pytest.raises(WeakLabelError, match="counted=False"):
        LabelModel().fit(Patterns.count(table[:50]), gold=gold)
    other = Gold(Patterns.of(["x"], [[1]]), Patterns.of(["x"], [[-1]]))
    with pytest.raises(WeakLabelError, match="apply the same functions"):
        LabelModel().fit(Patterns.count(table), gold=other)


def test_the_model_is_compared_on_checked_queries_it_has_not_seen() -> None:
    table, right = made(3)
    some = checked(table, right, 300)

    model = LabelModel().fit(Patterns.count(table), gold=gold_patterns(table, some))

    gold = model.comparison.gold
    assert gold is not None
    votes = table.join(some, on="query_id").select("correct", sum=pl.sum_horizontal("^lf:.*$"))
    assert gold.rows == 300
    assert gold.always_accept == some["correct"].mean()
    assert gold.majority == ((votes["sum"] >= 0) == votes["correct"]).mean()
    labels = model.label(table).join(some, on="query_id")
    assert gold.accuracy == pytest.approx(
        ((labels["label"] == 1) == labels["correct"]).mean(), abs=0.02
    )


def test_gold_that_has_nothing_to_do_with_the_votes_is_found_out() -> None:
    table, right = made(4)
    mixed_up = checked(table, right.shuffle(seed=4), 400)
    gold = gold_patterns(table, mixed_up)

    with pytest.warns(WeakLabelWarning, match="on 400 checked queries") as caught:
        LabelModel().fit(Patterns.count(table), gold=gold)

    assert any("accepting every transcript is for" in str(w.message) for w in caught)


def test_three_copies_of_a_bad_function_are_seen_through_with_gold_and_warned_of() -> None:
    table, right = made(5)
    coin = np.random.default_rng(5).choice([-1, 1], len(table)).astype(np.int8)
    copies = {f"lf:coin{i}": coin for i in range(3)}
    votes = table.with_columns(**{name: pl.Series(x) for name, x in copies.items()})
    gold = gold_patterns(votes, checked(table, right, 300))

    with pytest.warns(WeakLabelWarning) as caught:
        LabelModel().fit(Patterns.count(votes), gold=gold)

    assert any("coin0 and coin1" in str(w.message) for w in caught)
    assert any("checked queries" in str(w.message) for w in caught)
