"""Word error rates: against jiwer, hand-worked cases and a plain bootstrap."""

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel.errors import WeakLabelError
from weaklabel.wer import corpus_wer, mean_utterance_wer, utterance_errors, wer_interval

UTTERANCES = st.lists(st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join), min_size=1)


def split(sentences: list[str]) -> list[list[str]]:
    """A jiwer transform that leaves empty references be."""
    return [sentence.split() for sentence in sentences]


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    references = draw(UTTERANCES)
    lines = st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join)
    count = len(references)
    return references, draw(st.lists(lines, min_size=count, max_size=count))


@given(corpora())
def test_corpus_wer_is_jiwers(corpus: tuple[list[str], list[str]]) -> None:
    references, hypotheses = corpus
    assert corpus_wer(references, hypotheses) == pytest.approx(
        jiwer.process_words(references, hypotheses, split, split).wer
    )


@given(corpora())
def test_mean_utterance_wer_is_the_mean_of_jiwers(corpus: tuple[list[str], list[str]]) -> None:
    single = [jiwer.process_words(a, b, split, split).wer for a, b in zip(*corpus, strict=True)]
    assert mean_utterance_wer(*corpus) == pytest.approx(sum(single) / len(single))


def test_the_two_rates_differ_where_lengths_do() -> None:
    references, hypotheses = ["one two three four", "five"], ["one two three", "six"]
    assert corpus_wer(references, hypotheses) == 2 / 5
    assert mean_utterance_wer(references, hypotheses) == (1 / 4 + 1) / 2


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"), [("", "", 0), ("", "a", 1), ("", "a b", 2), ("a", "", 1)]
)
def test_empty_transcripts_are_counted_as_jiwer_does(
    reference: str, hypothesis: str, rate: float
) -> None:
    assert corpus_wer([reference], [hypothesis]) == rate
    assert mean_utterance_wer([reference], [hypothesis]) == rate


def test_errors_are_those_of_the_normalised_words() -> None:
    assert corpus_wer(["Don’t stop!"], ["don't stop"]) == 0
    assert corpus_wer(["Don’t stop!"], ["don't stop"], "none") == 1


def bootstrap(errors: list[int], words: list[int], resamples: int, seed: int) -> list[float]:
    """Sorted corpus WERs of resampled corpora, utterance by utterance."""
    pairs = sorted(set(zip(errors, words, strict=True)))
    shares = [
        sum((e, w) == pair for e, w in zip(errors, words, strict=True)) / len(errors)
        for pair in pairs
    ]
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        corpus = []
        for pair, count in zip(pairs, rng.multinomial(len(errors), shares), strict=True):
            corpus += [pair] * int(count)
        rates.append(sum(e for e, _ in corpus) / max(sum(w for _, w in corpus), 1))
    return sorted(rates)


def percentile(ordered: list[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_equals_a_plain_bootstrap_of_one_seed(level: float) -> None:
    rng = np.random.default_rng(7)
    words = rng.integers(0, 8, 60).tolist()
    errors = [int(rng.binomial(max(count, 1), 0.2)) for count in words]
    found = wer_interval(errors, words, level=level, resamples=200, seed=3)
    ordered = bootstrap(errors, words, 200, 3)
    assert found.point == sum(errors) / sum(words)
    assert found.low == pytest.approx(percentile(ordered, (1 - level) / 2), abs=1e-12)
    assert found.high == pytest.approx(percentile(ordered, (1 + level) / 2), abs=1e-12)


def test_interval_agrees_with_drawing_utterances_one_by_one() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(1, 12, 400)
    errors = rng.binomial(words, 0.15)
    drawn = rng.integers(0, 400, (4000, 400))  # (resamples, utterances)
    rates = errors[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    found = wer_interval(errors, words, resamples=4000)
    spread = rates.std()
    assert found.low == pytest.approx(np.quantile(rates, 0.025), abs=0.15 * spread)
    assert found.high == pytest.approx(np.quantile(rates, 0.975), abs=0.15 * spread)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_interval_does_not_depend_on_the_order(counts: list[tuple[int, int]]) -> None:
    shuffled = sorted(counts)
    first, second = (wer_interval(*np.array(rows).T, resamples=20) for rows in (counts, shuffled))
    assert first == second
    assert first.low <= first.high


def test_no_errors_at_all_have_an_interval_of_no_width() -> None:
    found = wer_interval([0, 0], [3, 4])
    assert (found.point, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("errors", "words", "options", "message"),
    [
        ([], [], {}, "no utterances"),
        ([1], [1, 2], {}, "1 counts of errors for 2 of words"),
        ([-1], [1], {}, "cannot be negative, got -1"),
        ([0.5], [1], {}, "whole numbers, got float64"),
        ([[1]], [[1]], {}, r"shape \(1, 1\)"),
        ([1], [1], {"level": 95}, "between 0 and 1, got 95"),
        ([1], [1], {"resamples": 0}, "at least one resample"),
    ],
)
def test_meaningless_counts_are_refused(
    errors: list[int], words: list[int], options: dict[str, float], message: str
) -> None:
    with pytest.raises(WeakLabelError, match=message):
        wer_interval(errors, words, **options)


def test_lists_of_two_lengths_are_refused() -> None:
    with pytest.raises(WeakLabelError, match="2 references for 1 hypotheses"):
        utterance_errors(["a", "b"], ["a"])


def test_a_missing_transcript_is_refused_by_its_number() -> None:
    with pytest.raises(
        WeakLabelError, match="hypothesis of utterance 1 must be a string, got None"
    ):
        corpus_wer(["a", "b"], ["a", None])
