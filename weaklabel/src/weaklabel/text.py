"""Normalisers of transcripts, by name: a word error rate means nothing without one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from weaklabel.errors import WeakLabelError


@dataclass(frozen=True)
class Normalizer:
    """A named rule that makes two spellings of the same words equal.

    Args:
        name: what outputs call it.
        description: the rule in a sentence.
        function: text in, text out: words separated by single spaces.
    """

    name: str
    description: str
    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        """`text` with its words spelled by the rule, separated by single spaces."""
        return self.function(text)


def _none(text: str) -> str:
    return " ".join(text.split())


_APOSTROPHES = re.compile("[\u2018\u2019\u02bc]")


def _basic(text: str) -> str:
    text = _APOSTROPHES.sub("'", unicodedata.normalize("NFKC", text)).casefold()
    spaced = "".join(map(_letter, text))
    # An apostrophe within a word belongs to it: "don't", "o'clock".
    return " ".join(filter(None, (word.strip("'") for word in spaced.split())))


def _letter(letter: str) -> str:
    # Not `\w`: marks belong to the letter before them (Devanagari vowels), and are not in it.
    category = unicodedata.category(letter)
    if category == "Cf":  # joiners within words, byte order marks
        return ""
    return " " if letter != "'" and category[0] in "PSZC" else letter


NORMALIZERS = {
    rule.name: rule
    for rule in (
        Normalizer("none", "words as they are, separated by single spaces", _none),
        Normalizer(
            "basic",
            "Unicode NFKC, case folded, punctuation and symbols become spaces, apostrophes stay"
            " within words",
            _basic,
        ),
    )
}


def normalizer(name: str) -> Normalizer:
    """The normaliser called `name`.

    >>> normalizer("basic")("Don’t stop -- ROCK'n'roll!")
    "don't stop rock'n'roll"

    Raises:
        WeakLabelError: there is none of that name.
    """
    try:
        return NORMALIZERS[name]
    except KeyError:
        known = ", ".join(NORMALIZERS)
        raise WeakLabelError(f"no normaliser {name!r}: choose one of {known}") from None
