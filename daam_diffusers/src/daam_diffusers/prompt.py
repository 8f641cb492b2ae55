"""Tokens and words of a prompt, and the embedding columns they stand in.

Pure logic over strings and offsets; of a tokenizer only its public calls are used.
"""

from __future__ import annotations

import difflib
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

from daam_diffusers.errors import TraceError, TraceWarning, UnknownPromptError
from daam_diffusers.words import Span, closest_spans, word_spans

TokenSpan = tuple[int, int, int]  # id, start, end

SEPARATOR = "\n"  # between the windows of a prompt that is given window by window


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
        added: spans of tokens that were added to the tokenizer, such as those of textual
            inversion; each is one word.
    """

    text: str
    tokens: tuple[Token, ...]
    columns: int
    cut: tuple[str, ...] = ()
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    added: tuple[Span, ...] = ()

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """Words and punctuation marks that have tokens, in the order of the prompt."""
        found = (self._word(start, end) for start, end in word_spans(self.text, self.added))
        return tuple(word for word in found if word.columns)

    @cached_property
    def occurrences(self) -> tuple[int, ...]:
        """Number of times, for each of `words`, that the same text stands before it."""
        texts = [word.text for word in self.words]
        return tuple(texts[:i].count(text) for i, text in enumerate(texts))

    def find(self, text: str, occurrence: int = 0) -> Word:
        """The `occurrence`-th place, from 0, where a word or group of words stands.

        What stands in the prompt exactly as written is found before the same words in upper or
        lower case or in Unicode's compatible forms, and both before parts of words ("red" in
        "red-haired"); only places of the first such kind that there is are counted. The amount of
        white space and characters without width do not matter.

        Raises:
            KeyError: it is not in the prompt, or not as often; the message names what is.
            TypeError: the occurrence is no whole number.
        """
        try:
            occurrence = operator.index(occurrence)
        except TypeError:
            message = f"occurrence must be a whole number from 0, got {occurrence!r}"
            raise TypeError(message) from None
        words = self.places(text)
        if 0 <= occurrence < len(words):
            return words[occurrence]
        raise KeyError(
            f"{text!r} occurs {len(words)} time(s) in the prompt, so occurrence "
            f"{occurrence} does not exist; the first is occurrence 0"
        )

    def places(self, text: str) -> tuple[Word, ...]:
        """All places of a word or group of words, at least one; see `find`.

        Raises:
            KeyError: it is not in the prompt.
            UnknownPromptError: only embeddings were given, not what they mean.
        """
        if not (self.text or self.start or self.end):
            raise UnknownPromptError(
                f"{text!r} is not in the prompt, which is not known: of embeddings, say what they "
                "mean, heat_maps(prompt=...), or look at single columns, maps.column(1)"
            )
        spans = closest_spans(self.text, text, self.added)
        words = tuple(word for start, end in spans if (word := self._word(start, end)).columns)
        if words:
            return words
        if spans:
            raise KeyError(f"{text!r} lies beyond the text encoder's window and drew nothing")
        listed = list(dict.fromkeys(word.text for word in self.words))
        folded = {word.casefold(): word for word in reversed(listed)}
        close = difflib.get_close_matches(text.casefold(), folded, n=1)
        hint = f". Did you mean {folded[close[0]]!r}?" if close else ""
        raise KeyError(f"{text!r} is not in the prompt; its words are: {_listed(listed, 20)}{hint}")

    def _word(self, start: int, end: int) -> Word:
        columns = [t.column for t in self.tokens if t.start < end and start < t.end]
        # Two encoders may read the same columns: CLIPs whose embeddings stand side by side.
        return Word(self.text[start:end], start, end, tuple(dict.fromkeys(columns)))


def tokenize(
    text: str | Sequence[str],
    tokenizer: Any,
    columns: int,
    *,
    convert: Callable[[str], str] | None = None,
) -> Prompt:
    """Place a prompt's tokens in text embeddings of `columns` positions.

    Up to the tokenizer's own window (77 for CLIP) the tokens stand as the tokenizer places them.
    Longer embeddings are understood in the two layouts in use: whole windows one after the other,
    each with its own start and end token (77·n), or one start and one end token around all
    (75·n + 2).

    Args:
        text: the prompt as the user wrote it; or a text for each window, then the prompt is all
            of them with a line break between, and occurrences are counted over all.
        tokenizer: a fast tokenizer.
        columns: length of the text embeddings.
        convert: see `token_spans`.

    Warns:
        TraceWarning: words lie beyond the window; or the embeddings hold several windows and where
            each begins in the text is a guess.

    Raises:
        TraceError: the tokenizer gives no character offsets, or `columns` fits no known layout.
        ValueError: there are not as many texts as windows.
    """
    texts = [text] if isinstance(text, str) else list(text)
    parts: list[list[TokenSpan]] = []
    offset = 0
    for each in texts:
        spans = token_spans(each, tokenizer, convert)
        parts.append([(token, start + offset, end + offset) for token, start, end in spans])
        offset += len(each) + len(SEPARATOR)
    window = min(int(tokenizer.model_max_length), 1_000_000)
    windows = [range(columns)] if columns <= window else _windows(window, columns)
    if texts != [text] and len(texts) != len(windows):
        raise ValueError(
            f"text embeddings of {columns} columns hold {len(windows)} window(s) of "
            f"{min(window, columns)}, so prompt must be a list of {len(windows)} text(s), one a "
            f"window; got {len(texts)}: {_listed(texts)}"
        )
    if len(windows) == 1:
        read = convert(texts[0]) if convert else texts[0]
        slots, start, end = _own_layout(read, tokenizer, columns)
    else:
        if texts == [text]:
            parts = _guessed(texts[0], parts[0], len(windows), len(windows[0]))
        slots, start, end = _layout(windows, [len(part) for part in parts], columns)
    spans = [span for part in parts for span in part]
    prompt = place(SEPARATOR.join(texts), spans, slots, columns, tokenizer, start, end)
    warn_of_cut(prompt.cut, len(spans), len(prompt.tokens))
    return prompt


def _guessed(text: str, spans: list[TokenSpan], windows: int, size: int) -> list[list[TokenSpan]]:
    """Tokens shared out to windows that are filled one after the other."""
    if -(-len(spans) // size) != windows or re.search(r"[^\w\s]", text):
        # Helpers end a window at a punctuation mark, or give each of several prompts its own.
        warnings.warn(
            f"where the prompt's {len(spans)} tokens stand in {windows} windows of {size} tokens "
            "is a guess: say which text each window holds, "
            "prompt=[text of the first window, text of the second, …]",
            TraceWarning,
            stacklevel=3,
        )
    ends = [size * i for i in range(1, windows)] + [len(spans)]
    return [spans[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def token_spans(
    text: str, tokenizer: Any, convert: Callable[[str], str] | None = None
) -> list[TokenSpan]:
    """Ids of a text's tokens, without special tokens, and the span of `text` each stands for.

    Args:
        text: as the user wrote it.
        tokenizer: a fast tokenizer, or one whose pieces can be found in the text.
        convert: what the pipeline does to the text before it is tokenized: it writes an added
            token that has several vectors as several tokens, `"<cat> <cat>_1 <cat>_2"`. All of
            them get the span of what the user wrote, `"<cat>"`.

    Returns:
        A triple (id, start, end) a token. White space at the edge of a token is no part of its
        span; the span of a token without text of its own is empty.

    Raises:
        TraceError: the tokenizer gives neither character offsets nor pieces.
    """
    if getattr(tokenizer, "is_fast", False):
        given = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = given["input_ids"], given["offset_mapping"]
    elif hasattr(tokenizer, "convert_ids_to_tokens"):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        offsets = _piece_spans(text, tokenizer.convert_ids_to_tokens(ids))
    else:
        raise TraceError(
            f"{type(tokenizer).__name__} gives no character offsets; load the pipeline with a "
            "fast tokenizer (the default in transformers 5)."
        )
    spans: list[TokenSpan] = []
    for token, (start, end) in zip(ids, offsets, strict=True):
        piece = text[start:end]
        first = int(start) + len(piece) - len(piece.lstrip())
        spans.append((int(token), first, max(first, first + len(piece.strip()))))
    if convert is None:
        return spans
    added = added_spans(text, spans, tokenizer)
    written: list[TokenSpan] = []
    for token, start, end in spans:
        vectors = [token]
        if (start, end) in added:
            read = convert(text[start:end])
            vectors = tokenizer(read, add_special_tokens=False, verbose=False)["input_ids"]
        written += [(vector, start, end) for vector in vectors]
    return written


def _piece_spans(text: str, pieces: Sequence[str]) -> list[Span]:
    """Spans of a slow tokenizer's pieces, which are looked for in the text one after the other.

    Pieces that are not in it, such as single bytes, share what lies between their neighbors.
    """
    spans: list[Span] = []
    position = missing = 0
    folded = text.lower() if len(text.lower()) == len(text) else text
    for piece in pieces:
        own = piece.replace("▁", "").replace("</w>", "").removeprefix("##")
        own = own or " " * (missing > 0 or text.startswith(" ", position))
        places = [form.find(own, position) for form in (text, folded)]
        start = min((at for at in places if at >= 0), default=-1)
        if start < 0 or not piece:
            missing += 1
            continue
        spans += [(position, start)] * missing + [(start, start + len(own))]
        position, missing = start + len(own), 0
    return spans + [(position, len(text))] * missing


def added_spans(text: str, spans: Iterable[TokenSpan], tokenizer: Any) -> tuple[Span, ...]:
    """Spans of a text that are one added token of the tokenizer each, from its `token_spans`."""
    names = {token: name for name, token in tokenizer.get_added_vocab().items()}
    unknown = tokenizer.unk_token_id  # CLIP's is an added token, too: its end token
    found = (
        (start, end)
        for token, start, end in spans
        if token in names and start < end and (token != unknown or text[start:end] == names[token])
    )
    return tuple(dict.fromkeys(found))


def place(
    text: str,
    spans: Sequence[TokenSpan],
    slots: Sequence[int | None],
    columns: int,
    tokenizer: Any,
    start: tuple[int, ...],
    end: tuple[int, ...],
) -> Prompt:
    """A prompt whose tokens stand in known columns; see `Prompt` for what is not named.

    Args:
        text: as the user wrote it.
        spans: its tokens, from `token_spans`.
        slots: the column of each, None for one that the text encoder did not read; tokens beyond
            the end of `slots` were not read.
        tokenizer: the one that `spans` are from.
    """
    added = added_spans(text, spans, tokenizer)
    tokens: list[Token] = []
    lost: list[Span] = []
    for (_, first, last), column in zip_longest(spans, slots[: len(spans)]):
        if first == last:
            continue
        if column is None:
            lost.append((first, last))
        else:
            tokens.append(Token(text[first:last], first, last, column))
    cut = tuple(
        text[first:last]
        for first, last in word_spans(text, added)
        if any(s < last and first < e for s, e in lost)
    )
    return Prompt(text, tuple(tokens), columns, cut, start, end, added)


def warn_of_cut(cut: Sequence[str], tokens: int, read: int) -> None:
    """Warn of words that a text encoder never saw; name the first few and count the others."""
    if cut:
        warnings.warn(
            f"the prompt has {tokens} tokens and the text encoder read {read} of them; it never "
            f"saw: {_listed(cut)}",
            TraceWarning,
            stacklevel=3,
        )


def _listed(words: Sequence[object], limit: int = 5) -> str:
    """The first `limit` of some words, each cut at 40 characters, and how many more there are."""
    shown = [text if len(text) <= 40 else f"{text[:39]}…" for text in map(repr, words[:limit])]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(shown) + more or "none"


def _own_layout(
    text: str, tokenizer: Any, columns: int
) -> tuple[list[int | None], tuple[int, ...], tuple[int, ...]]:
    """Columns of tokens, start tokens and end tokens as the tokenizer itself places them."""
    placed = tokenizer(
        text,
        padding="max_length",
        truncation=True,
        max_length=columns,
        return_special_tokens_mask=True,
    )
    special = placed["special_tokens_mask"]
    own = [column for column, is_special in enumerate(special) if not is_special]
    # Special tokens that are no padding, though the id may be the same (CLIP pads with its end).
    others = [c for c, real in enumerate(placed["attention_mask"]) if real and special[c]]
    if own:
        start = tuple(column for column in others if column < own[0])
    else:
        start = tuple(c for c in others if placed["input_ids"][c] == tokenizer.bos_token_id)
    return [*own], start, tuple(column for column in others if column not in start)


def _windows(window: int, columns: int) -> list[range]:
    """The columns of each window that hold its text."""
    content = window - 2
    if columns % window == 0:
        return [range(i + 1, i + 1 + content) for i in range(0, columns, window)]
    if (columns - 2) % content == 0:
        return [range(i, i + content) for i in range(1, columns - 1, content)]
    raise TraceError(
        f"text embeddings of {columns} tokens fit no known layout for a window of {window}: "
        f"expected at most {window}, a multiple of {window}, or a multiple of {content} plus 2."
    )


def _layout(
    windows: Sequence[range], lengths: Sequence[int], columns: int
) -> tuple[list[int | None], tuple[int, ...], tuple[int, ...]]:
    """Columns of tokens, start tokens and end tokens, of windows of so many tokens each."""
    slots: list[int | None] = []
    for content, length in zip(windows, lengths, strict=True):
        slots += [*content[:length], *[None] * (length - len(content))]
    if windows[0].stop == windows[1].start:  # one start and one end token around all
        return slots, (0,), (columns - 1,)
    pairs = zip(windows, lengths, strict=True)
    ends = tuple(min(content.start + length, content.stop) for content, length in pairs)
    return slots, tuple(content.start - 1 for content in windows), ends
