"""Households that talk to their television: a seeded simulator of a query log.

Every number in this folder is an assumption; nothing follows from it about real households.
`simulate` makes a log, `simulate.py` writes the one that ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from behavior import ACTIONS, Wish, first_wish, next_wish, react
from catalog import KINDS, Catalog, catalog
from people import DEVICES, SPEAKERS, Floats, Households, Ints, difficulty, move_in, sessions
from recognizers import RECOGNIZERS, recognize

START = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday
GOLD_ROWS = 300
LONGEST_SESSION = 30  # queries

SECONDS_A_WORD, SECONDS_BESIDE, DURATION_SPREAD = 0.36, 0.45, 0.18
NO_CONFIDENCE, NO_DWELL = 0.02, 0.05  # shares of rows that lack it
SAME_TIMESTAMP = 0.012  # of later queries were uploaded under the timestamp of the one before


@dataclass(frozen=True)
class Log:
    """A simulated query log. `queries` and `truth` have the same rows in the order of time.

    Args:
        queries: query_id, session_id, timestamp, transcript, second_transcript, confidence,
            duration, action, dwell.
        hypotheses: query_id, source, text, confidence: three rows a query.
        gold: query_id, transcript (what was said) of 300 rows, or of all where there are fewer.
        truth: query_id, transcript (what was said), right, done, kind, household, person, speaker,
            device: what nobody has in practice.
    """

    queries: pl.DataFrame
    hypotheses: pl.DataFrame
    gold: pl.DataFrame
    truth: pl.DataFrame


def simulate(households: int = 105, days: int = 14, seed: int = 11) -> Log:
    """The query log of some households over some days.

    Args:
        households: how many.
        days: for how many days from 2026-03-02.
        seed: the same log for the same seed, whatever else the process has drawn.

    Raises:
        ValueError: there would be no query.
    """
    if households < 1 or days < 1:
        raise ValueError(
            f"a log needs at least one household and one day, got {households} and {days}"
        )
    rng = np.random.default_rng(seed)
    words = catalog()
    homes = move_in(rng, words, households)
    home, person, begin = sessions(rng, homes, days)
    if not len(home):
        raise ValueError(
            f"nobody spoke in {households} households and {days} days: simulate more of either"
        )
    return _tables(rng, words, homes, _talk(rng, words, homes, home, person, begin))


def _talk(
    rng: np.random.Generator,
    words: Catalog,
    homes: Households,
    home: Ints,
    person: Ints,
    begin: Floats,
) -> pl.DataFrame:
    """Every query of every session; one round lets each session that goes on say one thing."""
    session, clock = np.arange(len(home)), begin
    wish = first_wish(rng, words, homes, home)
    rounds = []
    for position in range(LONGEST_SESSION):
        text = words.item_text[wish.item, wish.way]
        effort = difficulty(rng, homes, home, person, clock, wish.attempt)
        heard = recognize(rng, words, text, effort, homes.voices[home, person])
        said = pl.Series("said", words.texts).gather(text)
        right = (heard[0].text == said).to_numpy()
        length = (words.text_words[text] >= 0).sum(axis=1)
        duration = (SECONDS_BESIDE + SECONDS_A_WORD * length) * np.exp(
            DURATION_SPREAD * rng.standard_normal(len(text))
        )
        impatience = homes.impatience[home, person]
        reaction = react(rng, wish.kind, impatience, duration, right, heard[0].meant)
        columns: dict[str, Any] = {
            "session": session,
            "position": np.full(len(text), position),
            "time": clock,
            "home": home,
            "person": person,
            "kind": wish.kind,
            "said": said,
            "right": right,
            "done": reaction.done,
            "duration": duration,
            "action": reaction.action,
            "dwell": reaction.dwell,
        }
        for asr, answer in zip(RECOGNIZERS, heard, strict=True):
            columns[f"{asr.name}.text"] = answer.text
            columns[f"{asr.name}.confidence"] = answer.confidence
        rounds.append(pl.DataFrame(columns))
        on = ~reaction.ends
        if not on.any():
            break
        session, home, person = session[on], home[on], person[on]
        clock = (clock + reaction.wait)[on]
        before = Wish(wish.kind[on], wish.item[on], wish.way[on], wish.attempt[on])
        wish = next_wish(rng, words, homes, home, before, reaction.what[on])
    return pl.concat(rounds)


def _tables(rng: np.random.Generator, words: Catalog, homes: Households, rows: pl.DataFrame) -> Log:
    """The four tables, in the order of time: what was said first within a tie is first."""
    n = rows.height
    rows = rows.with_columns(
        pl.col("time").min().over("session").alias("begin"),
        pl.Series("tie", rng.random(n) < SAME_TIMESTAMP),
        pl.Series("no confidence", rng.random(n) < NO_CONFIDENCE),
        pl.Series("no dwell", rng.random(n) < NO_DWELL),
        pl.Series("gold", rng.random(n)),
    ).sort("begin", "session", "position")
    before = pl.when("tie").then(pl.col("time").shift(1).over("session"))
    millis = (pl.coalesce(before, "time") * 1000).round().cast(pl.Int64)
    start = pl.lit(START, pl.Datetime("ms", "UTC"))
    rows = (
        rows.with_columns(
            session_id=_numbered("s", pl.col("session").rle_id()),
            timestamp=start + pl.duration(milliseconds=millis, time_unit="ms"),
            confidence=pl.when(~pl.col("no confidence")).then("asr.confidence"),
        )
        .sort("timestamp", "session_id", "position")
        .with_columns(query_id=_numbered("q", pl.int_range(pl.len())))
    )
    queries = rows.select(
        "query_id",
        "session_id",
        "timestamp",
        pl.col("asr.text").alias("transcript"),
        pl.col("second_asr.text").alias("second_transcript"),
        "confidence",
        pl.col("duration").round(2),
        _named("action", ACTIONS),
        pl.when(~pl.col("no dwell")).then(pl.col("dwell").round(1)).alias("dwell"),
    )
    home, person = rows["home"].to_numpy(), rows["person"].to_numpy()
    truth = rows.select(
        "query_id",
        pl.col("said").alias("transcript"),
        "right",
        "done",
        _named("kind", KINDS),
        _numbered("h", pl.col("home")).alias("household"),
        pl.col("person") + 1,
        pl.Series("speaker", list(SPEAKERS)).gather(homes.speaker[home, person]),
        pl.Series("device", list(DEVICES)).gather(homes.device[home]),
    )
    hypotheses = pl.concat(
        rows.select(
            "query_id",
            pl.lit(asr.name).alias("source"),
            pl.col(f"{asr.name}.text").alias("text"),
            # The third-party ASR's confidence lacks where the log lacks it.
            pl.col("confidence" if i == 0 else f"{asr.name}.confidence").alias("confidence"),
        )
        for i, asr in enumerate(RECOGNIZERS)
    )
    chosen = rows["gold"].rank("ordinal") <= GOLD_ROWS
    gold = truth.filter(chosen).select("query_id", "transcript")
    return Log(queries, hypotheses, gold, truth)


def _numbered(prefix: str, number: pl.Expr) -> pl.Expr:
    return pl.format(f"{prefix}{{}}", (number + 1).cast(pl.String).str.zfill(7))


def _named(column: str, names: tuple[str, ...]) -> pl.Expr:
    return pl.col(column).replace_strict(dict(enumerate(names)), return_dtype=pl.String)
