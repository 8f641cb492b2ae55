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

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from rapidfuzz import process
from rapidfuzz.distance import Indel

from behavior import ACTIONS, AGAIN, OTHERWISE, react
from catalog import KINDS
from speechnet import phrases
from speechnet.settings import SEED, SILENT_HOUSEHOLDS, SOURCES, START, Size, results
from weaklabel.files import written_beside

Bools = npt.NDArray[np.bool_]

# The share of letters that two sentences have in common, below which the television does nothing.
ALIKE = 0.8
AT_ONCE = 256  # transcripts compared with all sentences: bounds the memory
TRAIN = "train"


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
    """Write the log of queries in which people saw one recognizer's transcripts.

    Args:
        size: whose utterances and hypotheses, in its folder of results.
        third: the recognizer whose transcripts the television acted on.
        noise: feedback noise, see `log`.

    Returns:
        The file. Where it is there already, of the same inputs, nothing is done.
    """
    path = results(size) / f"log-{third}{suffix(noise)}.parquet"
    inputs = [results(size) / f"{name}.parquet" for name in ("utterances", "hypotheses")]
    about = {"third": third, "noise": noise, "alike": ALIKE, "seed": SEED, "inputs": digest(inputs)}
    if not is_made(path, about):
        utterances, hypotheses = (pl.read_parquet(file) for file in inputs)
        write(log(spoken(utterances, hypotheses, third), noise), path, about)
    return path


def suffix(noise: float) -> str:
    """What the names of files end in that are made with feedback noise.

    >>> suffix(0.0), suffix(1.0)
    ('', '-noise100')
    """
    return f"-noise{round(100 * noise):03d}" if noise else ""


@cache
def _meanings() -> dict[str, frozenset[str]]:
    """Every sentence of the catalog, and what it may ask for."""
    found: dict[str, frozenset[str]] = {}
    for phrase in phrases.sentences():
        found[phrase.text] = found.get(phrase.text, frozenset()) | {phrase.item}
    return found


def resolve(transcripts: Iterable[str]) -> dict[str, frozenset[str]]:
    """What the television takes transcripts to ask for; nothing where no sentence is like one.

    >>> resolve([""])
    {'': frozenset()}
    """
    meanings = _meanings()
    sentences = list(meanings)
    found = {text: meanings.get(text, frozenset()) for text in transcripts}
    unknown = [text for text, meaning in found.items() if text and not meaning]
    for start in range(0, len(unknown), AT_ONCE):
        some = unknown[start : start + AT_ONCE]
        # 0 where less alike than that.
        alike = process.cdist(
            some, sentences, scorer=Indel.normalized_similarity, score_cutoff=ALIKE
        )
        for text, row in zip(some, alike, strict=True):
            nearest = int(row.argmax())
            if row[nearest] > 0:
                found[text] = meanings[sentences[nearest]]
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
    best = hypotheses.filter(pl.col("rank") == 0)
    own = best.filter(pl.col("source") == third).select(
        "utterance_id", pl.col("text").alias("transcript"), "confidence", "words_min", "score"
    )
    other = best.filter(pl.col("source") == second).select(
        "utterance_id", pl.col("text").alias("second_transcript")
    )
    rows = (
        utterances.filter(pl.col("part") == TRAIN)
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
    right = [w in understood[t] for w, t in rows.select("item", "transcript").iter_rows()]
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


# Files that say what they were made from


def digest(paths: Sequence[Path]) -> list[str]:
    """A short digest of each file's bytes."""
    return [sha256(path.read_bytes()).hexdigest()[:16] for path in paths]


def is_made(path: Path, about: Mapping[str, Any]) -> bool:
    """Whether a Parquet file is there and was made with these settings, as `write` stores them."""
    if not path.exists():
        return False
    return pl.read_parquet_metadata(path).get("speechnet") == json.dumps(about)


def write(table: pl.DataFrame, path: Path, about: Mapping[str, Any]) -> None:
    """Write a table beside and rename it, with its settings in the file's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as beside:
        table.write_parquet(
            beside,
            compression="zstd",
            compression_level=19,
            metadata={"speechnet": json.dumps(about)},
        )
