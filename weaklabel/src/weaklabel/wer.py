"""Word error rates: of a corpus, of the mean utterance, of characters, with an interval.

Two rates go by the one name. Corpus WER is all errors over all reference words; mean utterance WER
averages each utterance's own rate, so that short utterances weigh as much as long ones. Everything
here is named after the one it is.

Where there are no reference words, errors are divided by one word, as jiwer does: the rate of
nothing against nothing is 0, of nothing against "a b" it is 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weaklabel.errors import WeakLabelError
from weaklabel.text import normalizer as find_normalizer

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A rate and its bootstrap confidence interval.

    Attributes:
        point: the rate of the utterances themselves.
        low: lower end of the interval.
        high: upper end.
    """

    point: float
    low: float
    high: float


def utterance_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "basic"
) -> tuple[Counts, Counts]:
    """Word errors and reference words of each utterance, both int64 of shape (utterances,).

    Errors are the fewest substitutions, deletions and insertions of words.

    Raises:
        WeakLabelError: the lengths differ, a transcript is no string, or no such normaliser.
    """
    from rapidfuzz.distance import Levenshtein

    pairs = list(normalized_pairs(references, hypotheses, normalizer))
    errors = [Levenshtein.distance(a.split(), b.split()) for a, b in pairs]
    words = [len(reference.split()) for reference, _ in pairs]
    return np.asarray(errors, dtype=np.int64), np.asarray(words, dtype=np.int64)


def corpus_wer(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "basic"
) -> float:
    """All word errors over all reference words.

    >>> corpus_wer(["turn it on", "stop"], ["turn it off", "Stop!"])
    0.25

    Raises:
        WeakLabelError: as `utterance_errors`, or there are no utterances.
    """
    errors, words = utterance_errors(references, hypotheses, normalizer)
    at_least_one(len(errors))
    return rate(int(errors.sum()), int(words.sum()))


def mean_utterance_wer(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "basic"
) -> float:
    """The mean over utterances of errors over reference words.

    >>> mean_utterance_wer(["turn it on", "stop"], ["turn it off", "Stop!"])
    0.16666666666666666

    Raises:
        WeakLabelError: as `corpus_wer`.
    """
    errors, words = utterance_errors(references, hypotheses, normalizer)
    at_least_one(len(errors))
    return float(np.mean(errors / np.maximum(words, 1)))


def wer_interval(
    errors: npt.ArrayLike,
    words: npt.ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Corpus WER with the percentile bootstrap's interval, utterances resampled as wholes.

    Words of one utterance go wrong together, so that they may not be resampled one by one (Bisani
    and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP
    2004). Utterances with equal counts are drawn together, as a multinomial: the time depends on
    how many different pairs (errors, words) there are, not on how many utterances.

    Args:
        errors: integers, shape (utterances,): word errors of each.
        words: integers, the same shape: reference words of each.
        level: of confidence, between 0 and 1.
        resamples: how many resampled corpora the interval's ends are percentiles of.
        seed: of the resampling; one seed, one interval, whatever the order of the utterances.

    Raises:
        WeakLabelError: no utterances, shapes that differ, negative counts, or a level or number
            of resamples that means nothing.
    """
    errors, words = _counts(errors, "errors"), _counts(words, "words")
    if errors.shape != words.shape:
        raise WeakLabelError(f"{len(errors)} counts of errors for {len(words)} of words: give both")
    at_least_one(len(errors))
    if not 0 < level < 1:
        raise WeakLabelError(f"the level must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise WeakLabelError(f"at least one resample is needed, got {resamples}")
    pairs, counts = np.unique(np.stack([errors, words], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    rates = np.empty(resamples)
    for resample in range(resamples):
        drawn = rng.multinomial(len(errors), counts / len(errors))
        rates[resample] = rate(*(drawn @ pairs))
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(rate(int(errors.sum()), int(words.sum())), float(low), float(high))


def rate(errors: int, words: int) -> float:
    """Errors over words, or over one where there are no words."""
    return float(errors / max(words, 1))


def at_least_one(utterances: int) -> None:
    """Refuse an empty corpus."""
    if not utterances:
        raise WeakLabelError("there are no utterances: their WER does not exist")


def _counts(values: npt.ArrayLike, name: str) -> Counts:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise WeakLabelError(
            f"{name} must be a list of whole numbers, got {array.dtype} of shape {array.shape}"
        )
    if array.size and array.min() < 0:
        raise WeakLabelError(f"{name} cannot be negative, got {array.min()}")
    return array.astype(np.int64)


def normalized_pairs(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: str
) -> Iterator[tuple[str, str]]:
    """Reference and hypothesis of each utterance, both normalised.

    Raises:
        WeakLabelError: the lengths differ, a transcript is no string, or no such normaliser.
    """
    rule = find_normalizer(normalizer)
    if len(references) != len(hypotheses):
        raise WeakLabelError(
            f"{len(references)} references for {len(hypotheses)} hypotheses: give one of each for"
            " every utterance"
        )
    for number, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        for text, kind in ((reference, "reference"), (hypothesis, "hypothesis")):
            if not isinstance(text, str):
                raise WeakLabelError(
                    f"the {kind} of utterance {number} must be a string, got {text!r}: where"
                    ' nothing was said, give ""'
                )
        yield rule(reference), rule(hypothesis)
