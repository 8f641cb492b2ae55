"""Words of a text, and the places where a word or group of words stands: pure logic over strings.

Characters without width (soft hyphens, joiners, byte order marks, marks of direction) are no words.
Within a word they belong to it, at its edges they do not, and no search depends on them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

Span = tuple[int, int]

_ZERO_WIDTH_SPACE = "\u200b"  # the one that divides words, as white space does
# Default_Ignorable_Code_Point of Unicode beyond the categories Cf and Cc.
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)
# What has no width but belongs to the character before it: selectors of its variant, and tags,
# which spell the region of a flag.
_SELECTOR = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_TAG = re.compile("[\U000e0020-\U000e007f]")


def word_spans(text: str, whole: Sequence[Span] = ()) -> Iterator[Span]:
    """Spans of words, of punctuation marks one by one, and of runs of symbols such as emoji.

    Args:
        text: any text.
        whole: increasing spans of `text` that are one word each, whatever they are made of.
    """
    position = 0
    for start, end in (*whole, (len(text), len(text))):
        for first, last in _plain_spans(text[position:start]):
            yield position + first, position + last
        if start < end:
            yield start, end
        position = end


def _plain_spans(text: str) -> Iterator[Span]:
    chars: list[str] = []
    origin: list[int] = []
    for index, char in enumerate(text):
        if char == _ZERO_WIDTH_SPACE:
            char = " "
        elif _is_hidden(char):
            if not origin or origin[-1] < index - 1 or chars[-1].isspace():
                continue
            if not _SELECTOR.match(char) and not (
                _TAG.match(char) and _kind(chars[-1]) == "symbol"
            ):
                continue
        chars.append(char)
        origin.append(index)
    start = 0
    while start < len(chars):
        kind = _kind(chars[start])
        end = start + 1
        while end < len(chars) and _continues(chars, end, kind):
            end += 1
        if kind != "space" and not all(map(_is_hidden, chars[start:end])):
            yield origin[start], origin[end - 1] + 1
        start = end


def closest_spans(text: str, query: str, whole: Sequence[Span] = ()) -> list[Span]:
    """The spans of `text` that are `query`, of the closest kind that there is.

    The kinds are those of `Prompt.find`. One is not mixed with another, so that a word's
    occurrences are what a reader counts.

    Args:
        text: any text.
        query: a word, or a group of words that are adjacent.
        whole: see `word_spans`.
    """
    starts, ends = _edges(text, tuple(whole))
    exact = r"\s+".join(re.escape(part) for part in query.split())
    places = [match.span(1) for match in re.finditer(f"(?=({exact}))", text)] if exact else []
    if at_words := [(start, end) for start, end in places if start in starts and end in ends]:
        return list(_apart(at_words))
    places = list(find_spans(text, query))
    at_words = [(start, end) for start, end in places if start in starts and end in ends]
    return list(_apart(at_words or places))


@lru_cache(maxsize=16)
def _edges(text: str, whole: tuple[Span, ...]) -> tuple[set[int], set[int]]:
    """Starts and ends of words."""
    spans = list(word_spans(text, whole))
    return {start for start, _ in spans}, {end for _, end in spans}


def _apart(spans: Iterable[Span]) -> Iterator[Span]:
    """Drop from increasing spans those that overlap one before."""
    last = 0
    for start, end in spans:
        if start >= last:
            yield start, end
            last = end


def find_spans(text: str, query: str) -> Iterator[Span]:
    """Spans of `text` that equal `query` up to case, form and white space; they may overlap.

    They begin and end at the edge of a word or at a mark inside one: "red" is found in
    "red-haired" and not in "redder". Compatible forms (NFKC) are equal, and characters without
    width do not count.
    """
    haystack, origin = _fold(text)
    needle = " ".join(_fold(query)[0].split())
    at = haystack.find(needle) if needle else -1
    while at >= 0:
        last = at + len(needle) - 1
        start, end = origin[at], origin[last] + 1
        while end < len(text) and (
            unicodedata.combining(text[end]) or _SELECTOR.match(text[end]) or _TAG.match(text[end])
        ):
            end += 1  # it belongs to the character before it
        # Not half of a letter that folds into two, such as ß.
        halved = origin[at - 1 : at] == [start] or origin[last + 1 : last + 2] == [origin[last]]
        if not halved and _boundary(text, start) and _boundary(text, end):
            yield start, end
        at = haystack.find(needle, at + 1)


@lru_cache(maxsize=16)
def _fold(text: str) -> tuple[str, list[int]]:
    """Case-folded text with single spaces, and for each of its characters the index it came from.

    Compatible forms are composed a base letter with its marks at a time: a letter written in one
    code point equals the same letter written in two.
    """
    shown = [(index, char) for index, char in enumerate(text) if not _is_hidden(char)]
    folded: list[str] = []
    origin: list[int] = []
    at = 0
    while at < len(shown):
        end = at + 1
        while end < len(shown) and unicodedata.combining(shown[end][1]):
            end += 1
        piece = unicodedata.normalize("NFKC", "".join(char for _, char in shown[at:end])).casefold()
        piece = unicodedata.normalize("NFKC", piece)
        if piece.isspace():
            piece = "" if folded and folded[-1] == " " else " "
        folded.extend(piece)
        origin.extend([shown[at][0]] * len(piece))
        at = end
    return "".join(folded), origin


def _is_hidden(char: str) -> bool:
    """Whether a character has no width and no ink."""
    if _IGNORABLE.match(char):
        return True
    return unicodedata.category(char) in ("Cf", "Cc") and not char.isspace()


def _kind(char: str) -> str:
    if char.isspace():
        return "space"
    match unicodedata.category(char)[0]:
        case "L" | "N" | "M":
            return "word"
        case "S" | "C":
            return "symbol"
        case _:
            return "mark"


def _continues(chars: Sequence[str], index: int, kind: str) -> bool:
    """Whether the character at `index` goes on with a word, a run of symbols or a mark."""
    char = chars[index]
    if unicodedata.category(char)[0] == "M":
        return kind != "space"
    if kind == "word":
        inside = index + 1 < len(chars) and _kind(chars[index + 1]) == "word"
        return _kind(char) == "word" or (inside and char in "'’-\u2010\u2011")
    return kind == "symbol" and _kind(char) == "symbol"


# Scripts written without spaces between words: any place between two characters may divide them.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")


def _boundary(text: str, index: int) -> bool:
    before = index
    while before and _is_hidden(text[before - 1]):
        before -= 1
    after = index
    while after < len(text) and _is_hidden(text[after]):
        after += 1
    if before == 0 or after == len(text) or _ZERO_WIDTH_SPACE in text[before:after]:
        return True
    sides = (text[before - 1], text[after])
    if any(_kind(char) != "word" for char in sides):
        return True
    return any(unicodedata.name(char, "").startswith(_UNSPACED) for char in sides)
