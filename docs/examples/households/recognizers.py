"""What three simulated recognizers make of what was said, and how sure they say they are.

A word is heard wrongly with log-odds that add up: the recognizer's own level, the speaker, the
device, the noise of the moment, the word (`Catalog.hardness`), how this speaker says this word, a
part that all recognizers share (some inputs are hard for everybody) and a part of its own. A wrong
word becomes one that sounds like it; the speaker's way of saying it suggests which, so recognizers
often agree in error, and saying it again may not help. Words also get lost and slip in, a late
button clips the first one, a pause makes the television stop listening too early, and a language
model may prefer a popular title to the rare one said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from catalog import FILLERS, Catalog

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Indices = npt.NDArray[np.integer[Any]]

# Spreads of a word's log-odds.
PERSONAL_SPREAD = 1.5  # how this speaker always says this word
SHARED_SPREAD = 1.0  # how it came out this time, the same for all recognizers
OWN_SPREAD = 0.6  # each recognizer's own
SAME_LUCK = 0.6  # of the words are decided by one draw for all recognizers
SAME_CONFUSION = 0.8  # of the wrong words take the confusion that this speaker's sound suggests
DELETED = (0.55, 0.08)  # of the errors: in function words, in other words
INSERTED = 0.0035  # chance of a filler after a word, times e to the difficulty
CLIPPED = 0.008  # chance that the button was pressed late
CUT = 0.03  # chance that listening ends before the last words, times e to the difficulty
NOTICED = 0.75  # of the errors lower the confidence (`Recognizer.alarm`)
AFFECTED = 0.85  # of the recognizers suffer from either: some buffer more sound
LOOKALIKE = 0.14  # chance that a title with a popular look-alike is taken for it
SAME_TEMPTATION = 0.5  # of these are decided by one draw for all recognizers


@dataclass(frozen=True)
class Recognizer:
    """One ASR system.

    Args:
        name: its `source` in the table of hypotheses.
        level: log-odds of an error in a word of no difficulty.
        prior: how strongly its language model pulls rare titles to popular ones.
        center, slope, spread: its confidence is a sigmoid of center + slope × (log-odds that all
            words are right, as it sees them) + spread × noise.
        alarm: how far an error that it half notices lowers its confidence's log-odds.
        digits: decimals of the confidence.
    """

    name: str
    level: float
    prior: float
    center: float
    slope: float
    spread: float
    alarm: float
    digits: int


# The first is the third-party ASR, whose transcripts are to be judged.
RECOGNIZERS = (
    Recognizer("asr", -4.8, 1.0, 2.05, 0.27, 1.05, 0.7, 3),
    Recognizer("second_asr", -4.4, 0.5, 0.6, 0.6, 1.0, 1.0, 3),
    Recognizer("third_asr", -4.0, 0.8, 2.6, 0.25, 0.7, 0.6, 2),
)


@dataclass(frozen=True)
class Heard:
    """One recognizer's answers to n queries.

    Args:
        text: n transcripts.
        confidence: float64, (n,), in (0, 1).
        meant: bool, (n,): no word is wrong but function words, so a television may still find what
            was meant.
    """

    text: pl.Series
    confidence: Floats
    meant: npt.NDArray[np.bool_]


def recognize(
    rng: np.random.Generator,
    words: Catalog,
    texts: Ints,
    difficulty: Floats,
    voices: npt.NDArray[np.int64],
) -> tuple[Heard, ...]:
    """What each of RECOGNIZERS hears.

    Args:
        rng: randomness.
        words: the catalog.
        texts: int32, (n,): what is said, as indices of the catalog's texts.
        difficulty: float64, (n,): speaker, device and noise, in log-odds.
        voices: int64, (n,): who speaks; the same voice says the same word alike.
    """
    moment = _moment(rng, words, texts, difficulty)
    return tuple(_hear(rng, words, texts, difficulty, voices, moment, asr) for asr in RECOGNIZERS)


@dataclass(frozen=True)
class _Moment:
    """What all recognizers share in n queries of at most L words.

    Args:
        effort: float64, (n,): e to the difficulty, bounded.
        odds: float64, (n, L): how each word came out.
        luck: float64, (n, L), in [0, 1).
        clipped: bool, (n,): the button was pressed late.
        kept: int64, (n,): words before listening ended; L where it did not end early.
        tempting: float64, (n,), in [0, 1): how little it takes to hear a popular title.
    """

    effort: Floats
    odds: Floats
    luck: Floats
    clipped: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.int64]
    tempting: Floats


def _moment(rng: np.random.Generator, words: Catalog, texts: Ints, difficulty: Floats) -> _Moment:
    n, longest = len(texts), words.text_words.shape[1]
    effort = np.exp(np.minimum(difficulty, 1.5))
    length = (words.text_words[texts] >= 0).sum(axis=1)
    kept = 1 + (rng.random(n) * (length - 1)).astype(np.int64)
    return _Moment(
        effort=effort,
        odds=SHARED_SPREAD * rng.standard_normal((n, longest)),
        luck=rng.random((n, longest)),
        clipped=rng.random(n) < CLIPPED,
        kept=np.where(rng.random(n) < CUT * effort, kept, longest),
        tempting=rng.random(n),
    )


def _hear(
    rng: np.random.Generator,
    words: Catalog,
    texts: Ints,
    difficulty: Floats,
    voices: npt.NDArray[np.int64],
    moment: _Moment,
    asr: Recognizer,
) -> Heard:
    """What one recognizer hears."""
    n, longest = moment.luck.shape
    shape = (n, longest)
    swapped = _swap(rng, words, texts, asr, moment.tempting)
    said = words.text_words[swapped]  # (n, L)
    spoken = said >= 0
    function_word = words.is_function_word[said]
    personal, suggested = _manner(voices, said)
    own = OWN_SPREAD * rng.standard_normal(shape)
    odds = asr.level + difficulty[:, None] + words.hardness[said] + personal + moment.odds + own
    luck = np.where(rng.random(shape) < SAME_LUCK, moment.luck, rng.random(shape))
    wrong = spoken & (luck < _sigmoid(odds))

    choice = np.where(rng.random(shape) < SAME_CONFUSION, suggested, rng.random(shape))
    rank = (choice[..., None] > words.nearest_up_to[said]).sum(axis=-1)
    like = words.nearest[said, np.minimum(rank, words.nearest.shape[1] - 1)]
    deleted = wrong & (rng.random(shape) < np.where(function_word, *DELETED))
    affected = rng.random((n, 1)) < AFFECTED
    position = np.arange(longest)
    deleted |= affected & moment.clipped[:, None] & (position == 0)
    deleted |= affected & spoken & (position >= moment.kept[:, None])
    # No recognizer answers with nothing.
    deleted &= (spoken & ~deleted).any(axis=1, keepdims=True)
    inserted = spoken & ~deleted & (rng.random(shape) < INSERTED * moment.effort[:, None])

    out = np.where(deleted | ~spoken, -1, np.where(wrong, like, said))
    filler = np.where(inserted, rng.random(shape) * len(FILLERS), -1).astype(np.int64)
    amiss, same = wrong | deleted, swapped == texts
    # A swapped title sounds right to the recognizer: its confidence does not suffer.
    alarmed = same & amiss.any(axis=1) & (rng.random(n) < NOTICED)
    return Heard(
        text=_join(words, out, filler),
        confidence=_confidence(rng, asr, np.where(spoken, odds, -np.inf), alarmed),
        meant=same & ~(amiss & ~function_word).any(axis=1),
    )


def _confidence(
    rng: np.random.Generator, asr: Recognizer, odds: Floats, alarmed: npt.NDArray[np.bool_]
) -> Floats:
    """What a recognizer says it is sure of, from its words' log-odds of an error (n, L)."""
    log_right = -np.log1p(np.exp(odds)).sum(axis=1)  # of all words
    certainty = log_right - np.log(-np.expm1(log_right))
    noise = asr.spread * rng.standard_normal(len(odds))
    confidence = _sigmoid(asr.center + asr.slope * certainty + noise - asr.alarm * alarmed)
    return np.clip(confidence, 0.01, 0.99).round(asr.digits)


def _swap(
    rng: np.random.Generator, words: Catalog, texts: Ints, asr: Recognizer, tempting: Floats
) -> Ints:
    """The texts with some titles replaced by a popular look-alike: int32, (n,)."""
    item, way = words.text_item[texts], words.text_way[texts]
    like = words.lookalike[item]
    tempted = np.where(rng.random(len(texts)) < SAME_TEMPTATION, tempting, rng.random(len(texts)))
    swaps = (like >= 0) & (tempted < LOOKALIKE * asr.prior)
    return np.where(swaps, words.item_text[like, way], texts).astype(np.int32)


def _manner(voices: npt.NDArray[np.int64], said: Ints) -> tuple[Floats, Floats]:
    """How a voice always says a word: log-odds, and a number in [0, 1) that picks the confusion.

    Both are (n, L), and hashes of voice and word, so that no table of all pairs is needed.
    """
    pair = (voices[:, None] * 100_003 + said).astype(np.uint64)
    first, second = _hash(pair, 1), _hash(pair, 2)
    # The logistic distribution has the standard deviation π / √3.
    logistic = np.log((first + 1e-9) / (1 - first + 1e-9))
    return PERSONAL_SPREAD * np.sqrt(3) / np.pi * logistic, second


def _hash(numbers: npt.NDArray[np.uint64], salt: int) -> Floats:
    """A number in [0, 1) for each, by the finaliser of SplitMix64 (Steele et al., 2014)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15 * salt % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _join(words: Catalog, out: Indices, filler: Indices) -> pl.Series:
    """Transcripts of word indices (n, L) with fillers after them (n, L); −1 is no word."""
    vocabulary = pl.Series("text", words.words)
    fillers = pl.Series("text", FILLERS)
    columns = []
    for i in range(out.shape[1]):
        columns.append(_pick(vocabulary, out[:, i]).alias(f"word {i}"))
        columns.append(_pick(fillers, filler[:, i]).alias(f"filler {i}"))
    joined = pl.concat_str(pl.all(), separator=" ", ignore_nulls=True).alias("text")
    return pl.DataFrame(columns).select(joined).to_series()


def _pick(strings: pl.Series, indices: Indices) -> pl.Series:
    at = pl.Series(indices.astype(np.int64))
    return strings.gather(at.set(at < 0, None))


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))
