"""Gold: which transcripts are right, and what a model makes of knowing it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import polars as pl
import pytest

from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.gold import Gold, join_gold
from weaklabel.label_model import LabelModel
from weaklabel.patterns import Patterns
from weaklabel.votes import MISSING

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


def gold_of(table: pl.DataFrame, judged: pl.DataFrame) -> Gold:
    """Gold of queries that were judged to be right or wrong."""
    transcribed = table.select("query_id", transcript=pl.lit("on"))
    said = judged.select(
        "query_id", transcript=pl.when("correct").then(pl.lit("on")).otherwise(pl.lit("off"))
    )
    return join_gold(table, said, transcribed).patterns()


def checked(table: pl.DataFrame, right: pl.Series, rows: int, seed: int = 0) -> pl.DataFrame:
    return table.select("query_id", correct=right).sample(rows, seed=seed)


VOTES = LOG.select("query_id", pl.Series("lf:one", [1, -1, None, 0], pl.Int8))


def right(log: object, gold: object, max_wer: float = 0.0, **options: object) -> list[bool]:
    joined = join_gold(VOTES, gold, log, **options)  # type: ignore[arg-type]
    assert joined.ids == ("d", "a", "c")
    return joined.right(max_wer).tolist()


def test_a_transcript_is_right_up_to_a_word_error_rate_and_by_a_normalizer() -> None:
    known = GOLD[:3]
    assert right(LOG, known) == [False, True, True]
    assert right(LOG, known, 0.34) == [True, True, True]
    for rate in (math.inf, math.nan, -1.0):
        with pytest.raises(WeakLabelError, match="max_wer must be 0 or more and finite"):
            right(LOG, known, rate)
    assert right(LOG, known, normalizer="none") == [False, False, True]
    assert right(LOG.lazy(), known.to_arrow()) == right(LOG, known)


def test_gold_is_joined_with_votes_and_transcripts_and_missing_inputs_stay_missing() -> None:
    found = join_gold(VOTES, GOLD[:3], LOG)
    assert (found.functions, found.votes.tolist()) == (("one",), [[0], [1], [MISSING]])
    assert found.correct == ("turn it off", "play jazz", "")
    assert found.transcripts == ("turn it up", "Play jazz!", "")
    assert (found.errors.tolist(), found.words.tolist()) == ([1, 0, 0], [3, 2, 0])
    assert found.left_out == 0


def test_gold_that_is_ambiguous_or_incomplete_is_refused() -> None:
    with pytest.raises(WeakLabelError, match="gold: query_id must be unique, 1 are not: 'd'"):
        join_gold(VOTES, pl.concat([GOLD, GOLD[:1]]), LOG)
    with pytest.raises(WeakLabelError, match="gold must have the columns query_id, transcript"):
        join_gold(VOTES, GOLD.select("query_id"), LOG)
    with pytest.raises(WeakLabelError, match="votes: query_id must be unique, 1 are not: 'a'"):
        join_gold(pl.concat([VOTES, VOTES[:1]]), GOLD[:3], LOG)
    unknown = LOG.with_columns(transcript=pl.lit(None, pl.String))
    with pytest.raises(WeakLabelError, match="queries: 3 of 3 rows have no transcript"):
        join_gold(VOTES, GOLD[:3], unknown)
    with pytest.raises(WeakLabelError, match="give the query log, too"):
        join_gold(VOTES, GOLD)


def test_gold_that_votes_or_log_do_not_have_is_left_out_and_counted() -> None:
    message = "1 of 4 gold queries are not among the votes and the log, and are left out: 'z'"
    with pytest.warns(WeakLabelWarning, match=message):
        found = join_gold(VOTES, GOLD, LOG)
    assert found.left_out == 1
    assert (found.patterns().rows, found.patterns().right.rows) == (3, 2)
    with pytest.warns(WeakLabelWarning, match="2 of 4 gold queries"):
        join_gold(VOTES[:3], GOLD, LOG)
    others = GOLD.with_columns(pl.col("query_id") + "x")
    with pytest.raises(WeakLabelError, match=r"none of the 4 gold queries is among .* 'dx'"):
        join_gold(VOTES, others, LOG)
    with pytest.raises(WeakLabelError, match="gold has no rows"):
        join_gold(VOTES, GOLD[:0], LOG)


def test_gold_is_the_votes_of_checked_queries() -> None:
    table, right = made(1)
    some = checked(table, right, 100)

    gold = gold_of(table, some)

    assert (gold.rows, gold.right.rows) == (100, some["correct"].sum())
    ids = some.filter("correct")["query_id"]
    assert gold.right == Patterns.count(table.filter(pl.col("query_id").is_in(ids.implode())))


def test_gold_without_missing_inputs_has_abstains() -> None:
    gold = gold_of(VOTES, VOTES.select("query_id", correct=True))
    assert MISSING in gold.right.votes
    assert gold.without_missing().right.votes.tolist() == [[-1], [0], [1]]
    assert gold.without_missing().right.counts.tolist() == [1, 2, 1]


def test_checked_queries_are_not_counted_twice() -> None:
    table, right = made(2)
    gold = gold_of(table, checked(table, right, 200))
    others = Patterns.count(
        table.filter(~pl.col("query_id").is_in(checked(table, right, 200)["query_id"].implode()))
    )
    everything = Patterns.merge([others, gold.right, gold.wrong])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = LabelModel().fit(Patterns.count(table), gold=gold)
        outside = LabelModel().fit(everything, gold=gold)

    assert inside == outside


def test_gold_said_to_be_among_the_rows_that_is_not_is_refused() -> None:
    table, right = made(2)
    gold = gold_of(table, checked(table, right, 200))
    with pytest.raises(
        WeakLabelError, match=r"fit to Patterns.merge\(\[patterns, gold.right, gold.wrong\]\)"
    ):
        LabelModel().fit(Patterns.count(table[:50]), gold=gold)
    other = Gold(Patterns.of(["x"], [[1]]), Patterns.of(["x"], [[-1]]))
    with pytest.raises(WeakLabelError, match="apply the same functions"):
        LabelModel().fit(Patterns.count(table), gold=other)


def test_the_model_is_compared_on_checked_queries_it_has_not_seen() -> None:
    table, right = made(3)
    some = checked(table, right, 300)

    model = LabelModel().fit(Patterns.count(table), gold=gold_of(table, some))

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
    gold = gold_of(table, mixed_up)

    with pytest.warns(WeakLabelWarning, match="on 400 checked queries") as caught:
        LabelModel().fit(Patterns.count(table), gold=gold)

    assert any("accepting every transcript is for" in str(w.message) for w in caught)


def test_three_copies_of_a_bad_function_are_seen_through_with_gold_and_warned_of() -> None:
    table, right = made(5)
    coin = np.random.default_rng(5).choice([-1, 1], len(table)).astype(np.int8)
    copies = {f"lf:coin{i}": coin for i in range(3)}
    votes = table.with_columns(**{name: pl.Series(x) for name, x in copies.items()})
    gold = gold_of(votes, checked(table, right, 300))

    with pytest.warns(WeakLabelWarning) as caught:
        LabelModel().fit(Patterns.count(votes), gold=gold)

    assert any("coin0 and coin1" in str(w.message) for w in caught)
    assert any("checked queries" in str(w.message) for w in caught)
