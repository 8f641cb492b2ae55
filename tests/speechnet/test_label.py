"""The example's labeling functions, and what becomes of a log's transcripts."""

from __future__ import annotations

import json

import asked
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from speechnet import behave, feedback, files, functions, label, settings
from speechnet.settings import SIZES
from weaklabel.testing import (
    assert_votes,
    check_engines,
    check_labeling_function,
    synthetic_query_log,
)

OWN = (
    functions.repeated_phrase,
    functions.few_different_words,
    functions.characters_a_second,
    functions.mean_log_probability,
    functions.weakest_word,
)


@pytest.fixture(scope="module")
def said():
    return behave.spoken(*asked.tables(1_200), "whisper")


@pytest.fixture(scope="module")
def log(said):
    return behave.log(said)


@pytest.fixture(scope="module")
def gold(said):
    return said.select(pl.col("utterance_id").alias("query_id"), said="text")


def labeled(log, chosen):
    """The labels of a set of functions."""
    functions = label.functions_for(log, chosen)
    return label.labels(label.votes(log, functions), functions)


@pytest.fixture(scope="module")
def any_log():
    """The synthetic log of weaklabel's tests, with a recognizer's two further scores."""
    return synthetic_query_log().with_columns(
        score=pl.col("confidence").log(), words_min=pl.col("confidence")
    )


@pytest.mark.parametrize("function", OWN, ids=lambda function: function.name)
def test_own_functions_keep_the_contract_on_both_engines(function, any_log):
    check_labeling_function(function, any_log)
    check_engines(function, any_log)


def test_repetition_is_rejected_and_what_people_say_is_not():
    assert_votes(
        functions.repeated_phrase,
        [
            ({"transcript": "the the the"}, -1),
            ({"transcript": "play the moon the moon"}, -1),
            ({"transcript": "channel two two"}, 0),  # a number said digit by digit
            ({"transcript": "the moon and the moon"}, 0),
            ({"transcript": ""}, 0),
        ],
    )
    assert_votes(
        functions.few_different_words,
        [
            ({"transcript": "go go stop go stop go"}, -1),
            ({"transcript": "go go go"}, 0),  # too short to say anything
            ({"transcript": "show me the movie"}, 0),
        ],
    )


def test_more_letters_than_fit_the_time_are_rejected():
    assert_votes(
        functions.characters_a_second,
        [
            ({"transcript": "play the silver river", "duration": 1.5}, 0),
            ({"transcript": "play the silver river", "duration": 0.5}, -1),
            ({"transcript": "play", "duration": 3.0}, -1),
            ({"transcript": "play", "duration": 0.0}, 0),
            ({"transcript": "play", "duration": None}, None),
        ],
    )


# Labels


def test_the_sets_are_what_they_say(log):
    names = {
        chosen: {function.name for function in label.functions_for(log, chosen)}
        for chosen in label.SETS
    }
    assert names["three"] == {"session_position", "asr_confidence", "rapid_repetition"}
    assert names["three"] < names["all"]
    assert names["own"] - names["all"] == {function.name for function in OWN}


@pytest.mark.parametrize("chosen", label.SETS)
def test_what_is_kept_has_fewer_errors(log, gold, chosen):
    judged = feedback.judge(labeled(log, chosen), gold)
    assert judged["trusted"]
    assert judged["kept_wer"] < 0.9 * judged["raw_wer"]
    assert judged["auc"] > 0.65


@pytest.mark.parametrize("chosen", label.SETS)
def test_reactions_without_information_do_no_harm(said, gold, chosen):
    found = labeled(behave.log(said, noise=1.0), chosen)
    judged = feedback.judge(found, gold)
    assert judged["kept_wer"] <= judged["raw_wer"]
    if chosen == "three":  # of which one alone knows anything: nothing agrees with it
        assert not found.trusted
        assert found.rows["weight"].eq(1).all()
        assert found.rows["label"].eq(1).all()
    else:  # what two recognizers and their confidence say remains
        assert judged["kept_wer"] < 0.5 * judged["raw_wer"]


def test_the_scale_of_a_score_does_not_matter(log):
    other = log.with_columns(pl.col("score") * 1000 - 7, pl.col("words_min") / 2)
    assert labeled(log, "own").rows.equals(labeled(other, "own").rows)


def test_where_nothing_was_heard_nothing_is_labeled_and_the_session_still_knows(log):
    middle = log.with_columns(nth=pl.int_range(pl.len()).over("session_id")).filter(
        pl.col("nth") == 1
    )
    silenced = log.with_columns(
        transcript=pl.when(pl.col("query_id").is_in(middle["query_id"].implode()))
        .then(pl.lit(""))
        .otherwise("transcript")
    )
    functions = label.functions_for(silenced, "three")
    cast = label.votes(silenced, functions)
    assert set(cast["query_id"]) == set(log["query_id"]) - set(middle["query_id"])
    before = label.votes(log, functions).join(cast.select("query_id"), on="query_id", how="semi")
    assert_frame_equal(before.drop("transcript"), cast.drop("transcript"))


@pytest.fixture
def size(tmp_path, monkeypatch):
    """Smoke with its utterances, hypotheses and one log."""
    monkeypatch.setattr(settings, "WORK", tmp_path)
    size = SIZES["smoke"]
    for name, table in zip(("utterances", "hypotheses"), asked.tables(60), strict=True):
        files.write_table(table, settings.results(size) / f"{name}.parquet")
    behave.behave(size, "whisper")
    return size


def test_labels_are_a_file_that_only_a_difference_changes(size):
    path = label.label(size, "whisper", "three")
    table = pl.read_parquet(path)
    assert table.columns == ["query_id", "transcript", "weight", "label"]
    assert table["weight"].is_between(0, 1).all()
    assert "<html" in (settings.work(size) / "report-whisper-three.html").read_text()
    # The last digits, in which processors differ, are not written again.
    nearly = table.with_columns(pl.col("weight") - 1e-9)
    files.write_table(nearly, path)
    assert pl.read_parquet(label.label(size, "whisper", "three")).equals(nearly)
    files.write_table(table.with_columns(pl.col("weight") / 2), path)
    assert pl.read_parquet(label.label(size, "whisper", "three")).equals(table)


def test_the_grid_has_each_noise_and_set_and_what_functions_add(size, monkeypatch):
    monkeypatch.setattr(feedback, "NOISES", (0.0, 1.0))
    grid = json.loads(feedback.feedback(size).read_text())
    assert set(grid["third"]) == {"pocketsphinx", "whisper"}
    rows = grid["third"]["whisper"]
    assert [(row["noise"], row["set"]) for row in rows] == [
        (noise, chosen) for noise in (0.0, 1.0) for chosen in label.SETS
    ]
    gains = {row["name"] for row in grid["functions"]["whisper"] if "gain_auc" in row}
    assert gains == {function.name for function in OWN}
