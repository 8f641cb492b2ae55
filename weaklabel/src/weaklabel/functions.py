"""The built-in labeling functions, registered through the same hook as those of any plugin.

Session position, ASR confidence and rapid repetition are the three that SpeechNet (Tang et al.,
arXiv 2211.11740) names; the others are of the same spirit. No threshold is from that paper: each is
a parameter with a plain default, to be set for the traffic at hand.

The functions of what users did (how long they stayed, what they said next) are one family,
"behavior": who repeats a query has left it soon and is not at the session's end, right or wrong.

Each module-level name here is a `LabelingFunction`; its `with_parameters` changes a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import narwhals.stable.v2 as nw
from rapidfuzz.distance import Levenshtein

from weaklabel.labeling import LabelingFunction, labeling_function
from weaklabel.plugins import hookimpl
from weaklabel.text import find_normalizer
from weaklabel.votes import (
    ABSTAIN,
    ACCEPT,
    REJECT,
    SESSION_COLUMNS,
    Vote,
    accept_if,
    log_length,
    next_in_session,
    normalized,
    occurrences,
    position_in_session,
    reject_if,
    session_length,
    vote,
)


@labeling_function(requires=SESSION_COLUMNS, family="behavior")
def session_position(last: int = 1) -> nw.Expr:
    """Accept the last queries of a session: users who got what they wanted stop asking.

    Args:
        last: how many queries at the end count as the last.
    """
    return accept_if(session_length() - position_in_session() < last)


@labeling_function(requires=["confidence"])
def asr_confidence(high: float = 0.9, low: float = 0.5) -> nw.Expr:
    """Accept what the ASR was sure of, reject what it was not.

    Args:
        high: accept from this confidence on.
        low: reject below this one.
    """
    confidence = nw.col("confidence")
    known = confidence <= 1  # more is no confidence
    return vote(accept=known & (confidence >= high), reject=known & (confidence < low))


@labeling_function(requires=SESSION_COLUMNS, family="behavior")
def rapid_repetition(within: timedelta = timedelta(seconds=10)) -> nw.Expr:
    """Reject a query that its session follows up within seconds.

    Args:
        within: the time to the next query's timestamp, exclusive.
    """
    return reject_if(next_in_session("timestamp") - nw.col("timestamp") < within)


@labeling_function(requires=["dwell"], family="behavior")
def dwell(long: float = 60.0, short: float = 5.0) -> nw.Expr:
    """Accept where the user stayed with what came, reject where they left at once.

    Args:
        long: accept from this many seconds on.
        short: reject below this many.
    """
    seconds = nw.col("dwell")
    return vote(accept=seconds >= long, reject=seconds < short)


@labeling_function(requires=["action"], family="behavior")
def follow_up_action(
    accepted: tuple[str, ...] = ("play", "select"), rejected: tuple[str, ...] = ("back", "cancel")
) -> nw.Expr:
    """Accept or reject by what the user did next.

    Args:
        accepted: values of `action` that take up what came.
        rejected: values that turn it down.
    """
    action = nw.col("action")
    return vote(accept=action.is_in(accepted), reject=action.is_in(rejected))


@labeling_function(requires=[*SESSION_COLUMNS, "transcript"], family="behavior")
def rephrasing(within: timedelta = timedelta(seconds=60)) -> nw.Expr:
    """Reject a query that the session's next one repeats, extends or cuts short.

    Compared in lower case without punctuation, word by word: "play" is not in "display".

    Args:
        within: the time to the next query's timestamp, exclusive.
    """
    following = next_in_session("timestamp") - nw.col("timestamp") < within
    text = normalized("transcript")
    # A window over a normalized column would be another sort: normalize what the window found.
    after = normalized(next_in_session("transcript"))
    space = nw.lit(" ")
    this = nw.concat_str([space, text, space], ignore_nulls=True)
    that = nw.concat_str([space, after, space], ignore_nulls=True)
    found = that.str.contains(this, literal=True), this.str.contains(that, literal=True)
    # Nothing said is two spaces, which stand in no text but the like.
    said = this.str.len_chars() > 2
    # Counted, not combined by & and |, below which DuckDB computes anew what it has already.
    repeats = nw.max_horizontal(*(part.cast(nw.Int8) for part in found))
    repeats = repeats * said.cast(nw.Int8) * following.cast(nw.Int8)
    return reject_if(repeats > 0)


@labeling_function(
    requires=[*SESSION_COLUMNS, "transcript"],
    family="behavior",
    rowwise=True,
    optional=True,
    inputs={
        "next_timestamp": next_in_session("timestamp"),
        "next_transcript": next_in_session("transcript"),
    },
)
def rephrasing_edit_distance(
    row: Mapping[str, Any],
    similarity: float = 0.75,
    within: timedelta = timedelta(seconds=60),
) -> Vote:
    """Reject a query whose session says nearly the same again, by edit distance.

    Args:
        similarity: from which share of letters kept (1 − distance / longer length) on.
        within: the time to the next query's timestamp, exclusive.
    """
    this, that = row["transcript"], row["next_transcript"]
    if that is None or row["next_timestamp"] - row["timestamp"] >= within:
        return ABSTAIN
    rule = find_normalizer("basic")
    this, that = rule(this), rule(that)
    if not this or not that:
        return ABSTAIN
    near = Levenshtein.normalized_similarity(this, that, score_cutoff=similarity)
    return REJECT if near >= similarity else ABSTAIN


@labeling_function(requires=["transcript"], scope="log")
def rarity(rare: int = 1, common: float = 0.001, enough: int = 2000) -> nw.Expr:
    """Accept transcripts that many queries share, reject those that hardly any other has.

    In a small log, such as a day's, most of what is right occurs once: there a transcript that is
    not common says nothing, and its vote is missing. Give such a log a larger one as a reference.

    Args:
        rare: reject up to this many occurrences in the log.
        common: accept from this share of the log's queries on.
        enough: fewer queries than this are a small log.
    """
    count, queries = occurrences("transcript"), log_length()
    shared = (count > rare) & (count >= queries * common)
    cast = vote(accept=shared, reject=count <= rare)
    return nw.when(shared | (queries >= enough)).then(cast)


@labeling_function(requires=["transcript", "{other}"], family="second_asr")
def second_asr_agreement(other: str = "second_transcript", reject: bool = True) -> nw.Expr:
    """Accept where a second ASR wrote the same, in lower case without punctuation.

    Args:
        other: the column of the second ASR's transcript.
        reject: reject where it wrote something else.
    """
    first, second = nw.col("transcript"), nw.col(other)
    # Most pairs are equal as they stand: only the others are normalized.
    differ = first != second
    same = ~differ | (
        normalized(nw.when(differ).then(first)) == normalized(nw.when(differ).then(second))
    )
    return vote(accept=same, reject=~same) if reject else accept_if(same)


@labeling_function(
    requires=["transcript", "{other}"], family="second_asr", rowwise=True, optional=True
)
def second_asr_wer(
    row: Mapping[str, Any],
    other: str = "second_transcript",
    accept: float = 0.0,
    reject: float = 0.5,
) -> Vote:
    """Accept where a second ASR's words differ little, reject where they differ much.

    Args:
        other: the column of the second ASR's transcript.
        accept: up to this word error rate between the two.
        reject: from this one on. The rate is word edits over the longer one's words.
    """
    rule = find_normalizer("basic")
    this, that = rule(row["transcript"]).split(), rule(row[other]).split()
    rate = Levenshtein.normalized_distance(this, that)
    if (rate <= accept) == (rate >= reject):  # neither, or both
        return ABSTAIN
    return ACCEPT if rate <= accept else REJECT


@hookimpl
def weaklabel_labeling_functions(register: Callable[[LabelingFunction], None]) -> None:
    """Register the built-in functions, in the order above."""
    for item in list(globals().values()):
        if isinstance(item, LabelingFunction):
            register(item)
