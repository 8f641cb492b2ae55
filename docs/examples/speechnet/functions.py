"""The example's own labeling functions: rules by which large collections drop recognized speech.

    weaklabel apply log.parquet --functions docs/examples/speechnet/functions.py --out votes.parquet

They look at the transcript alone (a recognizer that has lost its way repeats itself, or writes
more or less than could be said in the time) and at what the recognizer itself thinks of it. None
looks at what users did, so they still say something where reactions say nothing.

The ideas' sources stand with each function; thresholds are parameters of ours, for queries of a few
words. `label.py` sets those of the recognizer's scores, whose scales differ, from the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import narwhals.stable.v2 as nw

from weaklabel import labeling_function, reject_if, vote
from weaklabel.votes import ABSTAIN, REJECT, Vote


@labeling_function(requires=["transcript"], family="text", rowwise=True)
def repeated_phrase(row: Mapping[str, Any], longest: int = 4, words: int = 3) -> Vote:
    """Reject a transcript that says a phrase twice running, or a word three times.

    Repeated n-grams are a sign of invented text by which the Granary data set was filtered
    (Koluguri et al., arXiv 2505.13404); Whisper looks for them by how well a text compresses
    (Radford et al., arXiv 2212.04356, section 4.5).

    Args:
        longest: words of the longest phrase that is looked for.
        words: a phrase counts where it and its repetitions in a row are so many words.
    """
    said = row["transcript"].split()
    for size in range(1, longest + 1):
        times = max(2, -(-words // size))
        for begin in range(len(said) - size * times + 1):
            phrase = said[begin : begin + size]
            if said[begin : begin + size * times] == phrase * times:
                return REJECT
    return ABSTAIN


@labeling_function(requires=["transcript"], family="text", rowwise=True)
def few_different_words(row: Mapping[str, Any], share: float = 0.6, least: int = 4) -> Vote:
    """Reject a transcript of which many words occur more than once.

    The share of unique words is how NeMo's Speech Data Processor, which Granary was made with,
    finds invented text.

    Args:
        share: reject where fewer of the words than this are different ones.
        least: a transcript of fewer words says nothing.
    """
    said = row["transcript"].split()
    return REJECT if len(said) >= least and len(set(said)) < share * len(said) else ABSTAIN


@labeling_function(requires=["transcript", "duration"], family="text")
def characters_a_second(slowest: float = 4.0, fastest: float = 22.0) -> nw.Expr:
    """Reject a transcript with fewer or more letters than people say in its time.

    A bound on the character rate is usual in such pipelines, NeMo's among them: lost words and
    invented ones show here.

    Args:
        slowest: reject below so many characters a second, silence around the speech included.
        fastest: reject above so many.
    """
    rate = nw.col("transcript").str.len_chars() / nw.col("duration")
    said = nw.col("duration") > 0
    return reject_if(said & ((rate < slowest) | (rate > fastest)))


@labeling_function(requires=["score"], family="confidence")
def mean_log_probability(high: float = -0.3, low: float = -1.0) -> nw.Expr:
    """Accept what the recognizer found likely word by word, reject what it did not.

    Whisper tries again where the mean log-probability of its tokens is below -1 (Radford et al.,
    arXiv 2212.04356, section 4.5).

    Args:
        high: accept from this score on.
        low: reject below this one.
    """
    return vote(accept=nw.col("score") >= high, reject=nw.col("score") < low)


@labeling_function(requires=["words_min"], family="confidence")
def weakest_word(high: float = 0.8, low: float = 0.3) -> nw.Expr:
    """Accept or reject by the word of which the recognizer was least sure.

    One wrong word makes a transcript wrong, and a mean over words hides it. Word posteriors as a
    measure of confidence: Wessel et al., IEEE Transactions on Speech and Audio Processing 9 (2001).

    Args:
        high: accept where even this word has at least so much probability.
        low: reject where it has less.
    """
    return vote(accept=nw.col("words_min") >= high, reject=nw.col("words_min") < low)
