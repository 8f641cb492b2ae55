"""A trigram model of what people ask for, from the days before the log, and what it is good for.

The same model goes to pocketsphinx (as an ARPA file), to the students' decoder (`decode`) and to
the choice among Whisper's hypotheses (`rescore`). It knows what was asked for on earlier days: of
a title that appears later it knows the words alone.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl

import queries
from speechnet import phrases, settings

ORDER = 3
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
# Queries of a day that the counts stand for: with more of them rare continuations weigh less.
QUERIES_A_DAY = 1_000
# Of Whisper's hypotheses: the share of the language model, chosen on training utterances of smoke.
RESCORE_WEIGHT = 0.2

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class LanguageModel:
    """An n-gram model that backs off to shorter contexts.

    Attributes:
        probability: of an n-gram's last word after the others, natural logarithm; up to `ORDER`
            words.
        backoff: what a context costs whose continuation is not in `probability`.
    """

    probability: Mapping[Ngram, float]
    backoff: Mapping[Ngram, float]

    def score(self, context: Ngram, word: str) -> float:
        """The log-probability of a word after others; one that is not known counts as `UNKNOWN`."""
        if (word,) not in self.probability:
            word = UNKNOWN
        context = context[-(ORDER - 1) :]
        cost = 0.0
        while (*context, word) not in self.probability:
            cost += self.backoff.get(context, 0.0)
            context = context[1:]
        return cost + self.probability[(*context, word)]

    def sentence(self, text: str) -> float:
        """The log-probability of a whole text and its end."""
        said = (BEGIN, *text.split(), END)
        return sum(self.score(said[:place], said[place]) for place in range(1, len(said)))

    def write_arpa(self, path: Path) -> None:
        """Write the model as an ARPA file, which pocketsphinx and KenLM read.

        Probabilities are decimal logarithms there; `BEGIN` follows nothing, so its own is -99.
        """
        decimal = {ngram: log / math.log(10) for ngram, log in self.probability.items()}
        decimal[(BEGIN,)] = -99.0
        ngrams = {
            order: sorted(ngram for ngram in decimal if len(ngram) == order)
            for order in range(1, ORDER + 1)
        }
        lines = ["\\data\\", *(f"ngram {order}={len(them)}" for order, them in ngrams.items())]
        for order, them in ngrams.items():
            lines += ["", f"\\{order}-grams:"]
            for ngram in them:
                line = f"{decimal[ngram]:.5f}\t{' '.join(ngram)}"
                if order < ORDER:
                    line += f"\t{self.backoff.get(ngram, 0.0) / math.log(10):.5f}"
                lines.append(line)
        path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")


@cache
def history() -> LanguageModel:
    """The model of what was asked for on the days before the log.

    Counts are expected ones, interpolated over the orders by Witten and Bell's rule; below single
    words stands the same probability for every word of the catalog.
    """
    # How often each word comes after each context of 0 to ORDER - 1 words.
    counts: defaultdict[Ngram, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for phrase, expected in _asked().items():
        said = (BEGIN, *phrase.text.split(), END)
        for place in range(1, len(said)):
            for begin in range(max(0, place - ORDER + 1), place + 1):
                counts[said[begin:place]][said[place]] += expected
    vocabulary = (*phrases.words(), END, UNKNOWN)
    probability: dict[Ngram, float] = {}
    backoff: dict[Ngram, float] = {}
    for context in sorted(counts, key=len):  # what follows it also follows its shorter contexts
        after = counts[context]
        weight = sum(after.values()) + len(after)
        backoff[context] = len(after) / weight
        for word in after if context else vocabulary:
            below = probability[(*context[1:], word)] if context else 1 / len(vocabulary)
            count = after.get(word, 0.0)
            probability[(*context, word)] = count / weight + backoff[context] * below
    return LanguageModel(
        {ngram: math.log(share) for ngram, share in probability.items()},
        {context: math.log(share) for context, share in backoff.items() if context},
    )


def popular(count: int) -> list[str]:
    """The things that were asked for most on the days before the log, in falling order."""
    asked: Counter[str] = Counter()
    for phrase, expected in _asked().items():
        asked[phrase.item] += expected
    return [item for item, _ in asked.most_common(count)]


def rescore(hypotheses: pl.DataFrame) -> pl.DataFrame:
    """The hypothesis of each utterance that its recognizer and the language model agree on most.

    Its score is the mean log-probability of a token, whose number that of words stands for.
    """
    model = history()
    total = [
        score * (len(text.split()) + 1) + RESCORE_WEIGHT * model.sentence(text)
        for score, text in hypotheses.select("score", "text").iter_rows()
    ]
    scored = hypotheses.with_columns(total=pl.Series(total))
    ranked = scored.sort("total", descending=True, maintain_order=True)
    return ranked.unique("utterance_id", keep="first", maintain_order=True)


def normalize(text: str) -> str:
    """A recognizer's text in the log's letters: a to z, apostrophes, single spaces.

    >>> normalize("Go back 10 seconds, S03 on T.V. 24!")
    'go back ten seconds s three on tv twenty four'
    """
    plain = unicodedata.normalize("NFKD", text.replace("’", "'")).lower()
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    plain = plain.replace("t.v.", "tv").replace("&", " and ").replace("%", " percent ")
    spelled = re.sub(r"\d+", lambda digits: f" {_spell(digits[0])} ", plain)
    letters = re.sub(r"[^a-z' ]", " ", spelled)
    return " ".join(word for word in letters.split() if word.strip("'"))


def _spell(digits: str) -> str:
    if int(digits) < 1000:
        return queries.spell(int(digits))
    return " ".join(queries.DIGITS[int(digit)] for digit in digits)


@cache
def _asked() -> Counter[phrases.Phrase]:
    """How often each thing is expected to have been asked for on the days before the log."""
    asked: Counter[phrases.Phrase] = Counter()
    for day in range(settings.HISTORY):
        for phrase, share in phrases.asked(day).items():
            asked[phrase] += share * QUERIES_A_DAY
    return asked
