"""What people do follows from what the television did, and from nothing else."""

from __future__ import annotations

from datetime import timedelta

import asked
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from speechnet import behave, files, phrases, settings
from speechnet.settings import SIZES

SMOKE = SIZES["smoke"]


@pytest.fixture(scope="module")
def made():
    return asked.tables(1_500)


@pytest.fixture(scope="module")
def said(made):
    return behave.spoken(*made, "whisper")


def test_the_television_gets_over_a_wrong_letter_and_not_over_other_words():
    some = phrases.sentences()[::197]
    heard = behave.resolve(phrase.text for phrase in some)
    misheard = behave.resolve(phrase.text[:-1] + "x" for phrase in some)
    for phrase in some:
        assert heard[phrase.text] == phrase.item
        if len(phrase.text) > 12:
            assert misheard[phrase.text[:-1] + "x"] == phrase.item
    nothing = ["colorless green ideas sleep furiously", ""]
    assert behave.resolve(nothing) == dict.fromkeys(nothing)


def test_a_session_goes_on_from_what_was_said_before(said):
    log = behave.log(said)
    assert log["timestamp"].is_sorted()
    assert log["query_id"].is_unique().all()
    rows = log.join(said, left_on="query_id", right_on="utterance_id").sort("query_id")
    spoken = set(rows.select("session", "wish", "attempt").iter_rows())
    assert len(spoken) < said.height  # much of what people were ready to say never happened
    assert {session for session, *_ in spoken} == set(said["session"])
    for session, wish, attempt in spoken:
        if attempt:
            assert (session, wish, attempt - 1) in spoken
        elif wish:
            assert (session, wish - 1, 0) in spoken
    pause = rows.select(
        (pl.col("timestamp").diff() - pl.duration(seconds=pl.col("duration").shift(1)))
        .over("session", order_by="query_id")
        .min()
    ).item()
    assert pause >= timedelta(milliseconds=-1)  # nobody speaks before having spoken


def test_people_say_again_what_failed_and_stay_with_what_did_not(said):
    log = behave.log(said).join(said.select("right", query_id="utterance_id"), on="query_id")
    dwell = dict(log.group_by("right").agg(pl.col("dwell").median()).iter_rows())
    assert dwell[True] > 5 * dwell[False]
    # Of those who have another attempt ready, so many make it.
    ready = said.filter(pl.col("further") >= 0)
    again = said["utterance_id"].gather(ready["further"])
    tried = ready.with_columns(again=again).join(
        log.select(utterance_id="query_id"), on="utterance_id", how="semi"
    )
    share = dict(
        tried.group_by("right")
        .agg(pl.col("again").is_in(log["query_id"].implode()).mean())
        .iter_rows()
    )
    assert share[False] > 0.4
    assert share[True] < 0.15


def test_only_the_consequence_of_a_transcript_is_noticed(made, said):
    utterances, hypotheses = made
    # A wrong transcript that the television still gets right, in place of every right one.
    other = hypotheses.with_columns(
        text=pl.when(pl.col("text").str.len_chars() > 8)
        .then(pl.col("text") + "s")
        .otherwise("text")
    )
    misspelled = behave.spoken(utterances, other, "whisper")
    assert (misspelled["right"] == said["right"]).mean() > 0.95
    forced = misspelled.with_columns(said["right"])
    unlike = ["transcript", "second_transcript"]
    assert_frame_equal(behave.log(said).drop(unlike), behave.log(forced).drop(unlike))
    assert (behave.log(said)["transcript"] != behave.log(forced)["transcript"]).mean() > 0.8


@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 0.3, 1.0), (1.0, -0.06, 0.06)])
def test_noise_takes_the_information_out_of_reactions(said, noise, least, most):
    log = behave.log(said, noise).join(said.select("right", query_id="utterance_id"), on="query_id")
    long = log.drop_nulls("dwell").with_columns(long=pl.col("dwell") >= 60)
    share = dict(long.group_by("right").agg(pl.col("long").mean()).iter_rows())
    assert least < share[True] - share[False] < most


def test_some_households_send_no_metadata(said):
    log = behave.log(said).join(said, left_on="query_id", right_on="utterance_id")
    silent = log.group_by("household").agg(
        action=pl.col("action").is_null().mean(), dwell=pl.col("dwell").is_null().mean()
    )
    assert silent["action"].is_in([0.0, 1.0]).all()
    assert silent["action"].equals(silent["dwell"])
    assert 0 < silent["action"].mean() < 0.4


def test_utterances_without_a_text_are_refused(made):
    utterances, hypotheses = made
    with pytest.raises(ValueError, match="1 utterances lack a text of whisper: run the step"):
        behave.spoken(utterances, hypotheses.tail(-2), "whisper")


def test_a_log_follows_from_its_inputs_and_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "WORK", tmp_path)
    folder = settings.results(SMOKE)
    with pytest.raises(FileNotFoundError, match=r"utterances.parquet .*: run the step simulate"):
        behave.behave(SMOKE, "whisper")
    utterances, hypotheses = asked.tables(20)
    files.write_table(utterances, folder / "utterances.parquet")
    files.write_table(hypotheses, folder / "hypotheses.parquet")
    path = behave.behave(SMOKE, "whisper")
    first = path.read_bytes()
    assert np.isfinite(pl.read_parquet(path)["duration"].to_numpy()).all()
    assert behave.behave(SMOKE, "whisper").read_bytes() == first
    assert behave.behave(SMOKE, "whisper", 1.0).name == "log-whisper-noise100.parquet"
    stop = hypotheses.with_columns(text=pl.lit("stop"))
    files.write_table(stop, folder / "hypotheses.parquet")
    again = pl.read_parquet(behave.behave(SMOKE, "whisper"))
    assert set(again["transcript"]) == {"stop"}
