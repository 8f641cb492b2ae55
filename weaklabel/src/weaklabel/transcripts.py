"""Several hypotheses of a query → one transcript, with the probability that it is right.

`combine` aligns the hypotheses of a query into slots and lets them vote on each (ROVER: Fiscus,
ASRU 1997), or takes the hypothesis that is nearest to all (the medoid: minimum Bayes risk under the
word edit distance). How much a source's vote counts is estimated from the hypotheses alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from weaklabel import rover
from weaklabel.errors import WeakLabelError, WeakLabelWarning, counted
from weaklabel.queries import shown, validate
from weaklabel.schema import HYPOTHESES
from weaklabel.tables import read, to_polars
from weaklabel.text import Normalizer, find_normalizer
from weaklabel.wer import read_transcripts

#: Votes, of families and sources alone, from which on votes tell which are better.
LEAST_VOTES: Final = 3

Method: TypeAlias = Literal["rover", "medoid"]

# A fourth gains nothing; many let the sources that lead run away.
ROUNDS: Final = 3


@dataclass(frozen=True, eq=False)
class Combined:
    """One transcript a query, and what was learned about the sources.

    Attributes:
        transcripts: `query_id`, `transcript` and `weight`, sorted by `query_id`. `weight`, Float64
            in [0, 1], estimates the probability that all words are right: the product over the
            slots of the winner's share of exp(votes), where a mean source's vote counts 1 and a
            word that no source has takes part, as strong as leaves a mean source alone right at its
            own rate.
            It supposes that a word's correctness depends on no other's, and no source's errors on
            another's, so it ranks better than it counts: see "Measured" in the README.
        sources: `source`, `utterances`, `words`, `error_rate` and `weight`, sorted by `source`.
            `error_rate` is the share of slots in which the source lost the vote, drawn toward that
            of all sources, the more the less is known of this one (one in ten where no query has
            two families); `weight` is its vote's (its
            share of it, in a family), where 1 is the mean over the families of all queries. Of
            three and more families in a query none counts more than 0.8 of the others together.
        copies: groups of sources that make the same errors although no family holds them, or are
            practically always alike where at most one other has queries with both, or all are
            alike; the warning names them, too.
        left_out: rows without a text.
        without: queries that have no text at all, and so no transcript.
    """

    transcripts: pl.DataFrame
    sources: pl.DataFrame
    copies: tuple[tuple[str, ...], ...]
    left_out: int
    without: int


def combine(
    hypotheses: Any,
    *,
    method: Method = "rover",
    normalizer: str | Normalizer = "none",
    rounds: int = ROUNDS,
    families: Mapping[str, str] | None = None,
    progress: bool | None = False,
) -> Combined:
    """One transcript of each query's hypotheses.

    Args:
        hypotheses: any frame narwhals knows, with `query_id`, `source`, `text` and optionally
            `confidence`; or a path to one; or a path for each source, by its name, to its
            `query_id` and `transcript` (tables, folders and texts, see `weaklabel.wer`). A null
            text means that the source gave nothing; an empty one, that there were no words. A
            confidence scales the vote relative to the mean of its source's; without one (null) a
            vote counts as it is.
        method: `"rover"`, word by word; `"medoid"`, always one of the hypotheses as a whole.
        normalizer: a rule, or the name of a built-in one (see `weaklabel.text`), by which
            transcripts are spelled.
        rounds: of the estimation of the sources' weights; 0 keeps them equal, which is no worse
            where the sources are alike and their errors seldom coincide.
        families: the family of a source, by the source's name, such as `{"asr_a": "engine_x",
            "asr_b": "engine_x"}`: sources of one family (versions of a recognizer, copies) share
            one vote in each query. Without it every source is its own.
        progress: show a bar; None: on a terminal.

    The order of the rows changes nothing, and the sources' names nothing but their order.

    >>> texts = ["turn on tea tv", "turn in the tv", "burn on the tv"]
    >>> table = pl.DataFrame({"query_id": [7] * 3, "source": ["a", "b", "c"], "text": texts})
    >>> combine(table).transcripts["transcript"].item()
    'turn on the tv'

    Raises:
        WeakLabelError: a column is missing or has another type; query_id or source is null; rows
            share both; a confidence is not within [0, 1]; there is no text; an argument is unknown.
        FileNotFoundError, ImportError: a path cannot be read; see `weaklabel.tables.scan`.
        TypeError: `hypotheses` is no frame.
    """
    if method not in get_args(Method):
        raise WeakLabelError(f"no method {method!r}: choose rover or medoid")
    if rounds < 0:
        raise WeakLabelError(f"rounds must be 0 or more, got {rounds}")
    rule = find_normalizer(normalizer)
    given = _table(hypotheses)
    table = given.drop_nulls("text").sort("query_id", "text", "source")
    if table.is_empty():
        raise WeakLabelError("no hypothesis has a text: give at least one")
    # Split twice: the words of all texts at once are what would take most memory.
    spelled = [rule(text) for text in table["text"]]
    vocabulary = ["", *sorted({word for text in spelled for word in text.split()})]
    number = {word: index for index, word in enumerate(vocabulary) if index}
    texts = [tuple(map(number.__getitem__, text.split())) for text in spelled]
    del spelled

    queries = table["query_id"].rle_id().to_numpy().astype(np.int64)
    starts = [*np.flatnonzero(np.diff(queries, prepend=-1)).tolist(), len(texts)]
    spans = list(pairwise(starts))
    names = table["source"].unique().sort()
    sources = table["source"].replace_strict(names, range(len(names))).to_numpy().astype(np.int64)
    hidden = None if progress is None else not progress
    networked = tqdm(
        (texts[a:b] for a, b in spans), "aligned", len(spans), unit="query", disable=hidden
    )
    family = _family(names, families or {})
    apart = len(np.unique(family))
    if rounds and apart < min(LEAST_VOTES, len(names)):
        warnings.warn(
            f"{counted(len(names), 'source')} of {counted(apart, 'family')}: with fewer than"
            f" {LEAST_VOTES} votes it cannot be said which are better, so that all weigh alike",
            WeakLabelWarning,
            stacklevel=2,
        )
        rounds = 0
    voters = rover.Voters(queries, sources, family[sources])
    slots = rover.align(networked, voters.share.tolist())
    ballot = rover.vote(slots, voters, _trust(table), rounds=rounds)

    # An empty transcript is judged as one slot.
    log_weight = ballot.log_agreed * np.maximum(slots.agreed, np.diff(slots.offsets) == 0)
    if method == "rover":
        chosen = rover.chosen_words(slots, ballot.winner)
        log_weight += np.bincount(slots.query, ballot.log_probability[ballot.winner], len(spans))
    else:
        weights = ballot.weights.tolist()
        medoids = [a + rover.medoid(texts[a:b], weights[a:b]) for a, b in spans]
        chosen = [list(texts[index]) for index in medoids]
        voted = ballot.log_probability[slots.candidate]
        log_weight += np.bincount(slots.hypothesis, voted, len(texts))[medoids]
    return Combined(
        transcripts=pl.DataFrame(
            {
                "query_id": table["query_id"].gather(starts[:-1]),
                "transcript": [" ".join(map(vocabulary.__getitem__, words)) for words in chosen],
                "weight": np.exp(log_weight),
            }
        ),
        sources=_sources(names, voters, texts, ballot, rounds),
        copies=_copies(names, slots, voters),
        left_out=given.height - table.height,
        without=given["query_id"].n_unique() - len(spans),
    )


def _table(hypotheses: Any) -> pl.DataFrame:
    """The hypotheses in Polars, checked; texts may still be null."""
    if isinstance(hypotheses, Mapping) and hypotheses:
        parts = zip(hypotheses, read_transcripts(*hypotheses.values()), strict=True)
        table = pl.concat(
            part.select("query_id", text="transcript", source=pl.lit(name)) for name, part in parts
        )
    elif isinstance(hypotheses, str | os.PathLike):
        table = read(hypotheses)
    else:
        table = to_polars(hypotheses)
    if table.schema.get("text") == pl.Null:
        table = table.cast({"text": pl.String})
    # A null text is no problem here, so the check does not see it; the numbers of rows stay.
    sound = "text" in table.columns and table.schema["text"] == pl.String
    seen = table.with_columns(pl.col("text").fill_null("")) if sound else table
    found = validate(seen, contract=HYPOTHESES)
    if not found.ok:
        raise WeakLabelError(f"hypotheses: {found}")
    return found.accepted.collect().with_columns(table["text"])


def _trust(table: pl.DataFrame) -> rover.Floats:
    """(H,): the confidence over its source's mean; 1 where there is none."""
    if "confidence" not in table.columns:
        return np.ones(table.height)
    confidence = pl.col("confidence").cast(pl.Float64)
    relative = confidence / confidence.mean().over("source")
    return table.select(relative.fill_nan(1.0).fill_null(1.0)).to_series().to_numpy()


def _family(names: pl.Series, families: Mapping[str, str]) -> rover.Integers:
    """(number of sources,): the family of each, numbered by its first source."""
    if unknown := sorted(set(families) - set(names)):
        raise WeakLabelError(
            f"families: no hypothesis is of source {shown(unknown)}; there are {shown(names)}"
        )
    first: dict[str, int] = {}
    return np.array(
        [
            first.setdefault(families[name], number) if name in families else number
            for number, name in enumerate(names)
        ],
        dtype=np.int64,
    )


def _copies(
    names: pl.Series, slots: rover.Slots, voters: rover.Voters
) -> tuple[tuple[str, ...], ...]:
    """The sources that make the same errors, by name; a warning says what to do about them."""
    groups = tuple(tuple(names[place] for place in group) for group in rover.copies(slots, voters))
    if groups:
        listed = "; or ".join(", ".join(group) for group in groups)
        warnings.warn(
            f"sources that make the same errors: {listed}. If they are copies or versions of one"
            " recognizer, declare them a family (families=, --family), so that they share one vote:"
            " counted apart they outvote sources that are right, and the weights say no more than"
            " one of them would. If they are not, they may hardly ever be wrong, or the others be"
            " the copies, by which right words look like errors",
            WeakLabelWarning,
            stacklevel=3,
        )
    return groups


def _sources(
    names: pl.Series,
    voters: rover.Voters,
    texts: list[tuple[int, ...]],
    ballot: rover.Ballot,
    rounds: int,
) -> pl.DataFrame:
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    votes = 1 / np.maximum(ballot.rates, rover.LEAST_RATE) if rounds else np.ones(len(names))
    utterances = np.bincount(voters.source)
    votes *= np.bincount(voters.source, voters.share) / utterances
    return pl.DataFrame(
        {
            "source": names,
            "utterances": utterances,
            "words": np.bincount(voters.source, lengths).astype(np.int64),
            "error_rate": ballot.rates,
            "weight": votes * (voters.bloc.max() + 1) / votes[voters.source].sum(),
        }
    )
