"""Normalizers of transcripts, by name: a word error rate means nothing without one."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

from weaklabel.errors import WeakLabelError
from weaklabel.plugins import hookimpl


@dataclass(frozen=True)
class Normalizer:
    """A named rule that makes two spellings of the same words equal.

    Args:
        name: what outputs and the command line call it.
        description: the rule in a sentence.
        function: text in, text out: words separated by single spaces.
    """

    name: str
    description: str
    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        """`text` with its words spelled by the rule, separated by single spaces."""
        return self.function(text)


_APOSTROPHES: Final = re.compile("[\u2018\u2019\u02bc]")


def _basic(text: str) -> str:
    if not text.isascii():
        # A caseless match as Unicode defines it (D146): folding can undo a normal form, and
        # decomposing first makes canonically equivalent strings fold alike.
        for _ in range(2):
            text = unicodedata.normalize("NFKD", text).casefold()
        text = _APOSTROPHES.sub("'", unicodedata.normalize("NFKC", text))
        text = "".join(map(_letter, text))
        # Marks may have met their letters where a joiner between them is gone.
        text = unicodedata.normalize("NFC", text)
    else:
        text = text.lower().translate(_ASCII)
    return _words(text)


def _words(text: str) -> str:
    # An apostrophe within a word belongs to it: "don't", "o'clock".
    return " ".join(filter(None, (word.strip("'") for word in text.split())))


def _letter(letter: str) -> str:
    # Not `\w`: marks belong to the letter before them (Devanagari vowels), and are not in it.
    category = unicodedata.category(letter)
    if category == "Cf":  # joiners within words, byte order marks
        return ""
    return " " if letter != "'" and category[0] in "PSZC" else letter


_ASCII: Final = {code: _letter(chr(code)) for code in range(128)}

# The scripts that put no space between words, by the names of their characters.
_UNSPACED: Final = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI SYLLABLE", "THAI", "LAO",
    "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI ", "BALINESE", "JAVANESE",
)  # fmt: skip


def _characters(text: str) -> str:
    units: list[str] = []
    alone = False  # the unit that `letter` would join
    for letter in _basic(text):
        if unicodedata.category(letter)[0] == "M":  # a mark belongs to the character before it
            units.append(letter)
            continue
        before, alone = alone, _unspaced(letter)
        units.append(f" {letter}" if alone or before else letter)
    return _words("".join(units))


@lru_cache(maxsize=1 << 14)
def _unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_UNSPACED)


_NUMBER: Final = re.compile(r"([$€£¢]?)([0-9]+(?:\.[0-9]+)?)(st\b|nd\b|rd\b|th\b|s\b)?(%?)")
_UNITS: Final = {"$": "dollar", "€": "euro", "£": "pound", "¢": "cent"}
_AND: Final = re.compile(r"\b(hundred|thousand|million) and\b")
_LONGEST: Final = 15  # digits that are read as one number


def _english(text: str) -> str:
    text = _english_rule()(_APOSTROPHES.sub("'", text)).replace("cannot", "can not")
    return _basic(_AND.sub(r"\1", text))


@lru_cache(maxsize=1)
def _english_rule() -> Callable[[str], str]:
    """Whisper's normalizer, but that numbers are spelled out where it writes digits."""
    try:
        import inflect

        with warnings.catch_warnings():  # its docstrings' escapes are invalid
            warnings.simplefilter("ignore")
            english = import_module("whisper_normalizer.english")
    except ImportError as error:
        raise ImportError(
            f"the normalizer 'english' needs {error.name}: pip install 'weaklabel[english]'"
        ) from error
    engine: Any = inflect.engine()

    def in_words(number: str) -> str:
        return str(engine.number_to_words(number, andword=""))

    def spoken(found: re.Match[str]) -> str:
        sign, number, suffix, percent = found.groups()
        whole = int(number) if number.isdigit() and number[0] != "0" else 0
        if len(number) > _LONGEST or (number[0] == "0" and number.isdigit()):
            words = " ".join(map(in_words, number))
        elif 1100 <= whole < 2100 and not (2000 <= whole < 2010 or sign):  # a year
            century, year = divmod(whole, 100)
            rest = in_words(f"{year}") if year > 9 else f"oh {in_words(f'{year}')}"
            words = f"{in_words(f'{century}')} {rest if year else 'hundred'}"
        else:
            words = in_words(number + (suffix if suffix and suffix != "s" else ""))
        if suffix == "s":
            words = engine.plural(words)
        unit = "" if not sign else _UNITS[sign] if whole == 1 else f"{_UNITS[sign]}s"
        return f" {words} {unit} {'percent' if percent else ''} "

    rule: Any = english.EnglishTextNormalizer()
    rule.standardize_numbers = lambda text: _NUMBER.sub(spoken, text)
    return lambda text: str(rule(text))


_BUILT_IN: Final = (
    Normalizer(
        "none", "words as they are, separated by single spaces", lambda text: " ".join(text.split())
    ),
    Normalizer(
        "basic",
        "Unicode NFKC, case folded, punctuation and symbols become spaces, apostrophes stay within"
        " words",
        _basic,
    ),
    Normalizer(
        "english",
        "Whisper's rule for English (contractions expanded, American spelling, fillers and"
        " bracketed remarks left out), with numbers in words",
        _english,
    ),
    Normalizer(
        "characters",
        "as basic, and every character of a script without spaces (Chinese, Japanese, Thai, Lao,"
        " Khmer, Burmese, Tibetan, …) is a word",
        _characters,
    ),
)


@hookimpl
def weaklabel_normalizers(register: Callable[[Normalizer], None]) -> None:
    """Register the normalizers that come with weaklabel."""
    for rule in _BUILT_IN:
        register(rule)


def find_normalizer(normalizer: str | Normalizer) -> Normalizer:
    """The normalizer itself, or the built-in one of that name.

    >>> find_normalizer("basic")("Don’t stop -- ROCK'n'roll!")
    "don't stop rock'n'roll"
    >>> find_normalizer("characters")("放送 in 東京")
    '放 送 in 東 京'

    Raises:
        WeakLabelError: there is none of that name. Those of plugins are in
            `load_registry().normalizers`.
    """
    if isinstance(normalizer, Normalizer):
        return normalizer
    known = {rule.name: rule for rule in _BUILT_IN}
    if normalizer not in known:
        raise WeakLabelError(
            f"no normalizer {normalizer!r}: choose {', '.join(known)}, or give a Normalizer of your"
            " own"
        )
    return known[normalizer]
