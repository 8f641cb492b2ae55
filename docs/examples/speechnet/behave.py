"""What the television did with a recognizer's transcript, and what people did then: the query log.

The television looks in its catalog for what it was asked for: the very words, else the sentence
that is nearest in letters. People react to whether that is what they wanted, as the simulated
households do, with their impatience, curiosity and interruptions; what was said enters in no other
way. So a wrong word that the television gets over passes unnoticed, and some right transcripts are
given up.

With feedback noise p a reaction is, with that probability, the one that somebody else had to some
other query. At 1 what people do says nothing of what was recognized.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from rapidfuzz import process
from rapidfuzz.distance import Indel

from behavior import ACTIONS, AGAIN, OTHERWISE, react
from catalog import KINDS
from speechnet import files, phrases, settings
from speechnet.settings import SEED, SILENT_HOUSEHOLDS, SOURCES, START, Size

Bools = npt.NDArray[np.bool_]

# The share of letters that two sentences have in common, below which the television does nothing.
ALIKE = 0.8


@dataclass(frozen=True)
class Spoken:
    """What is spoken in n utterances, session by session, and what recognizers make of it.

    Attributes:
        rows: utterances of the training part in the order of session, wish and attempt.
        further: int64, (n,): the row of the same wish's next attempt; -1 where there is none.
        afterwards: int64, (n,): the row in which the session's next wish is first said, or -1.
        right: bool, (n,): the television does what is wanted.
    """

    rows: pl.DataFrame
    further: npt.NDArray[np.int64]
    afterwards: npt.NDArray[np.int64]
    right: Bools


def behave(size: Size, third: str, noise: float = 0.0) -> Path:
    """Write the log of queries in which people saw one recognizer's transcripts, and name its file.

    Args:
        third: the recognizer.
        noise: feedback noise, see `log`.
    """
    said = spoken(files.read(size, "utterances"), files.read(size, "hypotheses"), third)
    path = settings.results(size) / f"log-{third}{files.suffix(noise)}.parquet"
    return files.write_table(log(said, noise), path)


def resolve(transcripts: Iterable[str]) -> dict[str, str | None]:
    """The item that the television takes each transcript to ask for.

    >>> resolve(["watches cinema gold", ""])
    {'watches cinema gold': 'cinema gold', '': None}
    """
    meanings = {phrase.text: phrase.item for phrase in phrases.sentences()}
    sentences = list(meanings)
    found = {text: meanings.get(text) for text in transcripts}
    for text in (text for text, item in found.items() if text and item is None):
        nearest = process.extractOne(
            text, sentences, scorer=Indel.normalized_similarity, score_cutoff=ALIKE
        )
        found[text] = meanings[nearest[0]] if nearest else None
    return found


def spoken(utterances: pl.DataFrame, hypotheses: pl.DataFrame, third: str) -> Spoken:
    """The training utterances with what both recognizers wrote, and what came of it.

    Args:
        utterances: of `simulate`.
        hypotheses: of `third_party`; the best of each recognizer are read.
        third: the recognizer whose transcripts the television acts on; the other one is the second
            opinion.

    Raises:
        ValueError: there is no such recognizer, or utterances lack its hypothesis.
    """
    if third not in SOURCES:
        raise ValueError(f"a third party is one of {', '.join(SOURCES)}, not {third!r}.")
    second = SOURCES[1 - SOURCES.index(third)]
    best = hypotheses.filter(rank=0)
    own = best.filter(source=third).select(
        "utterance_id", "confidence", "words_min", "score", transcript="text"
    )
    other = best.filter(source=second).select("utterance_id", second_transcript="text")
    rows = (
        utterances.filter(part="train")
        .join(own, on="utterance_id", how="left")
        .join(other, on="utterance_id", how="left")
        .sort("session", "wish", "attempt")
    )
    if lacking := rows.filter(pl.col("transcript").is_null())["utterance_id"].to_list():
        raise ValueError(
            f"{len(lacking)} utterances were not given to {third}, {lacking[0]} first: run the step"
            " third_party to its end."
        )
    place = {key: i for i, key in enumerate(rows.select("session", "wish", "attempt").iter_rows())}
    further = [place.get((s, w, a + 1), -1) for s, w, a in place]
    afterwards = [place.get((s, w + 1, 0), -1) for s, w, _ in place]
    understood = resolve(rows["transcript"].unique())
    right = [understood[t] == w for w, t in rows.select("item", "transcript").iter_rows()]
    return Spoken(rows, np.array(further), np.array(afterwards), np.array(right, dtype=bool))


def log(said: Spoken, noise: float = 0.0, seed: int = SEED) -> pl.DataFrame:
    """What happened, as the television's maker sees it: weaklabel's query log, in order of time.

    Args:
        said: what people say, if it comes to that.
        noise: the probability, in [0, 1], that a reaction is that of another household to another
            query.
        seed: of people's reactions.

    Returns:
        query_id (the utterance's), session_id, timestamp (UTC), transcript, second_transcript,
        confidence, words_min, score, duration, action and dwell; the last two are null in
        households that send no metadata. What nobody came to say is not in it. A transcript is
        empty where the recognizer heard nothing.

    Raises:
        ValueError: the noise is no probability.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"feedback noise is a probability, not {noise}.")
    rng = np.random.default_rng([seed, round(1000 * noise)])
    kind = np.array([KINDS.index(name) for name in said.rows["kind"]], np.int32)
    duration = said.rows["duration"].to_numpy()
    impatience, silent = _temper(rng, said.rows)
    at = np.flatnonzero((said.rows["wish"] == 0) & (said.rows["attempt"] == 0))
    clock = said.rows["clock"].to_numpy()[at]
    rounds = []
    while len(at):
        # Everything that a reaction depends on is that of the other query.
        to = np.where(rng.random(len(at)) < noise, rng.integers(len(kind), size=len(at)), at)
        right = said.right[to]
        done = react(rng, kind[to], impatience[to], duration[to], right, right)
        rounds.append((at, clock, done.action, done.dwell))
        again = np.isin(done.what, (AGAIN, OTHERWISE)) & (said.further[at] >= 0)
        following = np.where(again, said.further[at], said.afterwards[at])
        on = ~done.ends & (following >= 0)
        clock = (clock + np.maximum(done.wait, duration[at]))[on]
        at = following[on]
    row, time, action, dwell = (np.concatenate(column) for column in zip(*rounds, strict=True))
    metadata = pl.Series(~silent[row])
    return (
        said.rows[row]
        .with_columns(
            action=pl.when(metadata).then(pl.Series([ACTIONS[i] for i in action])),
            dwell=pl.when(metadata).then(pl.Series(dwell.round(1))),
            timestamp=pl.Series([START + timedelta(seconds=float(s)) for s in time]).cast(
                pl.Datetime("ms", "UTC")
            ),
        )
        .sort("timestamp", "utterance_id")
        .select(
            pl.col("utterance_id").alias("query_id"),
            pl.format("s{}", pl.col("session").cast(pl.String).str.zfill(6)).alias("session_id"),
            *("timestamp", "transcript", "second_transcript", "confidence", "words_min", "score"),
            *("duration", "action", "dwell"),
        )
    )


def _temper(rng: np.random.Generator, rows: pl.DataFrame) -> tuple[npt.NDArray[np.float64], Bools]:
    """Of each row's speaker the impatience, in [0, 1), and whether the household sends nothing."""
    people = rows.select(pl.struct("household", "person").rank("dense")).to_series().to_numpy() - 1
    homes = rows.select(pl.col("household").rank("dense")).to_series().to_numpy() - 1
    impatience = rng.random(people.max() + 1)
    silent = rng.random(homes.max() + 1) < SILENT_HOUSEHOLDS
    return impatience[people], silent[homes]
