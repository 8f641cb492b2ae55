"""Tokens, words and character spans of a prompt, and the embedding columns they stand in.

Pure logic over strings and offsets; of a tokenizer only its public call is used.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from daam_diffusers.errors import TraceError


@dataclass(frozen=True)
class Token:
    """One of the prompt's own tokens.

    Attributes:
        text: as written in the prompt.
        start: its first character there.
        end: one past its last.
        column: the column of the text embeddings that it stands in.
        encoder: pipeline component that read it, e.g. `"text_encoder_3"`; empty if there is one.
    """

    text: str
    start: int
    end: int
    column: int
    encoder: str = ""


@dataclass(frozen=True)
class Word:
    """A word or group of words: its text as written, its span, the columns of its tokens."""

    text: str
    start: int
    end: int
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt and where its tokens stand in the text embeddings.

    Attributes:
        text: the prompt as given; empty if only embeddings were given.
        tokens: its own tokens that the text encoder read, in order.
        columns: length of the text embeddings, special tokens and padding included.
        cut: words that lie, in part or whole, beyond the text encoder's window.
        start: columns of start tokens: none, one, or one a window.
        end: columns of end tokens, likewise.
    """

    text: str
    tokens: tuple[Token, ...]
    columns: int
    cut: tuple[str, ...] = ()
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """Words and punctuation marks that have tokens, in the order of the prompt."""
        found = (self._word(start, end) for start, end in word_spans(self.text))
        return tuple(word for word in found if word.columns)

    def find(self, text: str, occurrence: int = 0) -> Word:
        """The `occurrence`-th place, from 0, where a word or group of words stands.

        Upper and lower case, Unicode's compatible forms and the amount of white space do not
        matter; whole words do, except in scripts that do not separate them.

        Raises:
            KeyError: it is not in the prompt, or not as often; the message names what is.
        """
        places = list(find_spans(self.text, text))
        words = [self._word(start, end) for start, end in places]
        words = [word for word in words if word.columns]
        if 0 <= occurrence < len(words):
            return words[occurrence]
        if words:
            raise KeyError(
                f"{text!r} occurs {len(words)} time(s) in the prompt, so occurrence "
                f"{occurrence} does not exist; the first is occurrence 0"
            )
        if places:
            raise KeyError(f"{text!r} lies beyond the text encoder's window and drew nothing")
        there = ", ".join(repr(word) for word in dict.fromkeys(w.text for w in self.words))
        raise KeyError(f"{text!r} is not in the prompt; its words are: {there or 'none'}")

    def _word(self, start: int, end: int) -> Word:
        columns = tuple(t.column for t in self.tokens if t.start < end and start < t.end)
        return Word(self.text[start:end], start, end, columns)


def tokenize(text: str, tokenizer: Any, columns: int) -> Prompt:
    """Place a prompt's tokens in text embeddings of `columns` positions.

    Up to the tokenizer's own window (77 for CLIP) the tokens stand as the tokenizer places them.
    Longer embeddings are understood in the two layouts in use: whole windows one after the other,
    each with its own start and end token (77·n), or one start and one end token around all
    (75·n + 2).

    Warns:
        UserWarning: words lie beyond the window; it names them.

    Raises:
        TraceError: the tokenizer gives no character offsets, or `columns` fits no known layout.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TraceError(
            f"{type(tokenizer).__name__} gives no character offsets; load the pipeline with a "
            "fast tokenizer (the default in transformers 5)."
        )
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = [(int(start), int(end)) for start, end in whole["offset_mapping"]]
    places = _columns(text, tokenizer, columns, len(offsets))
    tokens = tuple(
        Token(text[start:end], start, end, column)
        for (start, end), column in zip(offsets, places, strict=False)
        if end > start
    )
    lost = offsets[len(places) :]
    cut = tuple(
        text[start:end]
        for start, end in word_spans(text)
        if any(s < end and start < e for s, e in lost)
    )
    if cut:
        warnings.warn(
            f"the prompt has {len(offsets)} tokens and the text encoder read {len(places)} of "
            f"them; it never saw: {', '.join(repr(word) for word in cut)}",
            stacklevel=2,
        )
    return Prompt(text, tokens, columns, cut)


def _columns(text: str, tokenizer: Any, columns: int, tokens: int) -> list[int]:
    """The columns of the first of `tokens` tokens, as many as have one."""
    window = min(int(tokenizer.model_max_length), 1_000_000)
    if columns <= window:
        placed = tokenizer(
            text,
            padding="max_length",
            truncation=True,
            max_length=columns,
            return_special_tokens_mask=True,
        )
        return [i for i, special in enumerate(placed["special_tokens_mask"]) if not special]
    content = window - 2
    if columns % window == 0:
        every = [c for c in range(columns) if c % window not in (0, window - 1)]
    elif (columns - 2) % content == 0:
        every = list(range(1, columns - 1))
    else:
        raise TraceError(
            f"text embeddings of {columns} tokens fit no known layout for a window of {window}: "
            f"expected at most {window}, a multiple of {window}, or a multiple of {content} plus 2."
        )
    return every[:tokens]


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Spans of words, of punctuation marks one by one, and of runs of symbols such as emoji."""
    start = 0
    while start < len(text):
        kind = _kind(text[start])
        end = start + 1
        if kind in ("word", "symbol"):
            while end < len(text) and (_kind(text[end]) == kind or _joins(text, end, kind)):
                end += 1
        if kind != "space":
            yield start, end
        start = end


def find_spans(text: str, query: str) -> Iterator[tuple[int, int]]:
    """Spans of `text` that equal `query` up to case, compatible forms and white space."""
    haystack, origin = _fold(text)
    needle = " ".join(_fold(query)[0].split())
    at = haystack.find(needle) if needle else -1
    while at >= 0:
        last = at + len(needle)
        start, end = origin[at], origin[last - 1] + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1  # a mark folded into the letter before it belongs to that letter
        if _boundary(text, start) and _boundary(text, end):
            yield start, end
            at = haystack.find(needle, last)
        else:
            at = haystack.find(needle, at + 1)


def _fold(text: str) -> tuple[str, list[int]]:
    """Case-folded text with single spaces, and for each of its characters the index it came from.

    Compatible forms are composed a base letter with its marks at a time: a letter written in one
    code point equals the same letter written in two.
    """
    folded: list[str] = []
    origin: list[int] = []
    index = 0
    while index < len(text):
        end = index + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        piece = unicodedata.normalize("NFKC", text[index:end]).casefold()
        piece = unicodedata.normalize("NFKC", piece)
        if piece.isspace():
            piece = "" if folded and folded[-1] == " " else " "
        folded.extend(piece)
        origin.extend([index] * len(piece))
        index = end
    return "".join(folded), origin


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


def _joins(text: str, index: int, kind: str) -> bool:
    """An apostrophe or hyphen inside a word; a variation selector or joiner inside an emoji."""
    if kind == "symbol":
        return unicodedata.category(text[index]) in ("Mn", "Cf", "Sk")
    inside = index + 1 < len(text) and _kind(text[index + 1]) == "word"
    return inside and text[index] in "'’-\u2010\u2011"


# Scripts written without spaces between words: any place between two characters may divide them.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")


def _boundary(text: str, index: int) -> bool:
    if index in (0, len(text)):
        return True
    before, after = text[index - 1], text[index]
    if _kind(before) != "word" or _kind(after) != "word":
        return True
    return any(unicodedata.name(c, "").startswith(_UNSPACED) for c in (before, after))


def kept_columns(prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """The columns that any of the prompts' tokens, or their start and end tokens, stand in.

    The column before the first token and the one after the last are the special tokens that
    attention likes to rest on; they are kept apart from padding.
    """
    columns: set[int] = set()
    for prompt in prompts:
        own = {token.column for token in prompt.tokens}
        columns |= own | {c + 1 for c in own} | {c - 1 for c in own} | {0}
    limit = min(prompt.columns for prompt in prompts)
    return tuple(sorted(c for c in columns if 0 <= c < limit))
