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
from speechnet.settings import SEED, SILENT_HOUSEHOLDS, START, Size

Bools = npt.NDArray[np.bool_]

# The share of letters that two sentences have in common, below which the television does nothing.
ALIKE = 0.8


def behave(size: Size, third: str, noise: float = 0.0) -> Path:
    """Write the log of queries in which people saw one recognizer's transcripts; name its file."""
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
    unknown = [text for text, item in found.items() if text and item is None]
    for start in range(0, len(unknown), 64):  # at once, and no more than fits the memory
        some = unknown[start : start + 64]
        alike = process.cdist(
            some,
            sentences,
            scorer=Indel.normalized_similarity,
            score_cutoff=ALIKE,
            dtype=np.float64,
        )
        for text, row in zip(some, alike, strict=True):
            nearest = int(row.argmax())  # the first of them; below the least it is 0
            found[text] = meanings[sentences[nearest]] if row[nearest] else None
    return found


def spoken(utterances: pl.DataFrame, hypotheses: pl.DataFrame, third: str) -> pl.DataFrame:
    """What is said in training, what both recognizers wrote, and what the television makes of it.

    It acts on the best texts of one recognizer; the other one is the second opinion.

    Returns:
        The utterances by session, wish and attempt, with transcript, second_transcript,
        confidence, words_min and score; with `right`, whether the television does what is wanted;
        and with the rows of what may be said next: `further`, the same wish's next attempt, and
        `afterwards`, the session's next wish. They are -1 where there is none.

    Raises:
        ValueError: utterances lack a text.
    """
    best = hypotheses.filter(rank=0)
    own = best.filter(source=third).rename({"text": "transcript"})
    other = best.filter(pl.col("source") != third).select("utterance_id", second_transcript="text")
    rows = (
        utterances.filter(part="train")
        .join(own, on="utterance_id", how="left")
        .join(other, on="utterance_id", how="left")
        .sort("session", "wish", "attempt")
    )
    if lacking := rows["transcript"].null_count():
        raise ValueError(f"{lacking} utterances lack a text of {third}: run the step third_party.")
    place = {key: i for i, key in enumerate(rows.select("session", "wish", "attempt").iter_rows())}
    meant = resolve(rows["transcript"].unique())
    heard = rows["transcript"].replace_strict(meant, return_dtype=pl.String)
    return rows.with_columns(
        right=rows["item"].eq_missing(heard),
        further=pl.Series([place.get((s, w, a + 1), -1) for s, w, a in place]),
        afterwards=pl.Series([place.get((s, w + 1, 0), -1) for s, w, _ in place]),
    )


def log(said: pl.DataFrame, noise: float = 0.0, seed: int = SEED) -> pl.DataFrame:
    """What happened, as the television's maker sees it: weaklabel's query log, in order of time.

    Args:
        said: what people say, if it comes to that, see `spoken`.
        noise: feedback noise, from 0 to 1.
        seed: of people's reactions.

    Returns:
        query_id (the utterance's), session_id, timestamp (UTC), transcript, second_transcript,
        confidence, words_min, score, duration, action and dwell; the last two are null in
        households that send no metadata. What nobody came to say is not in it. A transcript is
        empty where the recognizer heard nothing.
    """
    rng = np.random.default_rng([seed, round(1000 * noise)])
    kind = np.array([KINDS.index(name) for name in said["kind"]], np.int32)
    names = ("duration", "right", "further", "afterwards")
    duration, right, further, afterwards = (said[name].to_numpy() for name in names)
    impatience, silent = _temper(rng, said)
    at = np.flatnonzero((said["wish"] == 0) & (said["attempt"] == 0))
    clock = said["clock"].to_numpy()[at]
    rounds = []
    while len(at):
        # Everything that a reaction depends on is that of the other query.
        to = np.where(rng.random(len(at)) < noise, rng.integers(len(kind), size=len(at)), at)
        done = react(rng, kind[to], impatience[to], duration[to], right[to], right[to])
        rounds.append((at, clock, done.action, done.dwell))
        again = np.isin(done.what, (AGAIN, OTHERWISE)) & (further[at] >= 0)
        following = np.where(again, further[at], afterwards[at])
        on = ~done.ends & (following >= 0)
        clock = (clock + np.maximum(done.wait, duration[at]))[on]
        at = following[on]
    row, time, action, dwell = (np.concatenate(column) for column in zip(*rounds, strict=True))
    metadata = pl.Series(~silent[row])
    return (
        said[row]
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
