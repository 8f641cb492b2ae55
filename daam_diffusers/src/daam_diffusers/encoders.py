"""The columns of the text embeddings that a prompt's tokens stand in.

A pipeline puts prompts into templates, cleans, cuts and pads them before a text encoder reads
them. So nothing is assumed about it: the ids that the encoder was called with are observed, and
the prompt's own ids are looked for in them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import ProcessorMixin

from daam_diffusers.errors import TraceWarning
from daam_diffusers.families import Encoder
from daam_diffusers.prompt import (
    SEPARATOR,
    Prompt,
    TokenSpan,
    place,
    token_spans,
    tokenize,
    warn_of_cut,
)


@dataclass(frozen=True)
class Reading:
    """Token ids that a text encoder was called with."""

    component: str
    ids: list[list[int]]  # a row a text, (b, L)
    valid: list[list[bool]]  # which of them are no padding; all if that was not said
    states: torch.Tensor | None  # what it returned first, (b, L, D), if that is such a tensor


class Readings(threading.local):
    """What text encoders read, of each thread apart, while `kept` is entered there."""

    all: list[Reading] | None = None

    @contextmanager
    def kept(self) -> Iterator[list[Reading]]:
        """A list of what is read inside."""
        before, self.all = self.all, []
        try:
            yield self.all
        finally:
            self.all = before


def placements(
    text: str | Sequence[str],
    encoders: Sequence[Encoder],
    pipe: Any,
    readings: Sequence[Reading],
    columns: int,
    texts: Mapping[str, str] | None = None,
) -> dict[str, Prompt]:
    """Place a text's tokens in embeddings of `columns` positions, by text encoder.

    Args:
        text: the prompt as the user wrote it; or one a window, see `tokenize`.
        encoders: those whose tokens the columns are; the pipeline has their tokenizers.
        readings: what the encoders read while the prompt was encoded; none if that was not seen.
        texts: the text of an encoder, where it is another one.

    Warns:
        TraceWarning: no encoder read all of the text, or none read any of it.
    """
    starts: dict[str | None, int] = {}
    found: dict[str, Prompt] = {}
    total: dict[str, int] = {}
    followed = {one.after for one in encoders}
    ended = {one.after for one in encoders if one.component in followed}  # columns with an end
    present = [one for one in encoders if getattr(pipe, one.component, None) is not None]
    for encoder in present or encoders:
        name, tokenizer = encoder.component, getattr(pipe, encoder.tokenizer, None)
        if isinstance(tokenizer, ProcessorMixin):  # of text and images
            tokenizer = tokenizer.tokenizer
        read = [one for one in readings if one.component == name]
        if tokenizer is None or (encoder.has_template if not readings else not read):
            continue
        own: Any = (texts or {}).get(name, text)
        convert = getattr(pipe, "maybe_convert_prompt", None)  # vectors of a textual inversion
        if convert is not None:
            convert = partial(convert, tokenizer=tokenizer)
        start = starts.get(encoder.after, 0)
        window = len(read[0].ids[0]) if read else int(tokenizer.model_max_length)
        starts[name] = start + window
        size = window if encoder.after in ended else columns - start
        if read:
            drop = getattr(pipe, encoder.drop) if isinstance(encoder.drop, str) else encoder.drop
            prompt, total[name] = _placed(own, tokenizer, convert, read, size, drop, encoder.suffix)
        else:  # only embeddings are there, or the encoder is called in a way that is not seen
            prompt = tokenize(own, tokenizer, size, convert=convert)
        found[name] = _moved(prompt, start, columns, name)
    whole = {name: one for name, one in found.items() if one.tokens and name in total}
    if whole and all(prompt.cut for prompt in whole.values()):
        name = max(whole, key=lambda name: len(whole[name].tokens))
        warn_of_cut(whole[name].cut, total[name], len(whole[name].tokens))
    if total and any(total.values()) and not whole:
        warnings.warn(
            f"the tokens of {text[:60]!r} were not found in what {', '.join(total)} read, so its "
            "words have no maps; columns can be looked at one by one",
            TraceWarning,
            stacklevel=2,
        )
    whole_text = text if isinstance(text, str) else SEPARATOR.join(text)
    return found or {encoders[0].component: Prompt(whole_text, (), columns)}


def _moved(prompt: Prompt, by: int, columns: int, encoder: str) -> Prompt:
    """A prompt that an encoder read, `by` columns later and among so many columns."""
    return replace(
        prompt,
        tokens=tuple(replace(t, column=t.column + by, encoder=encoder) for t in prompt.tokens),
        columns=columns,
        start=tuple(column + by for column in prompt.start),
        end=tuple(column + by for column in prompt.end),
    )


def merged(
    parts: Sequence[tuple[Mapping[str, Prompt], int]], columns: int, encoder: str | None
) -> Prompt:
    """One prompt of what several text encoders read of it.

    Args:
        parts: prompts by encoder, and the first column of the embeddings they stand in.
        columns: of all embeddings together.
        encoder: the one to take; by default all that read the first one's text.

    Raises:
        ValueError: there is no such encoder; the message names those there are.
    """
    known = {
        name: _moved(prompt, at, columns, name)
        for prompts, at in parts
        for name, prompt in prompts.items()
    }
    if encoder is not None and encoder not in known:
        raise ValueError(f"no text encoder {encoder!r} read the prompt; those that did: "
                         f"{', '.join(known)}")  # fmt: skip
    text = known[encoder or next(iter(known))].text
    chosen = [
        prompt for name, prompt in known.items() if encoder in (None, name) and prompt.text == text
    ]
    tokens = {(t.start, t.end, t.column): t for prompt in reversed(chosen) for t in prompt.tokens}
    # An encoder that was given nothing of the text did not cut it.
    lost = [set(prompt.cut) for prompt in chosen if prompt.tokens]
    return Prompt(
        text,
        tuple(tokens[key] for key in sorted(tokens)),
        columns,
        tuple(word for word in chosen[0].cut if all(word in cut for cut in lost)),
        added=tuple(sorted({span for prompt in chosen for span in prompt.added})),
        start=tuple(sorted({column for prompt in chosen for column in prompt.start})),
        end=tuple(sorted({column for prompt in chosen for column in prompt.end})),
    )


def _placed(
    text: str,
    tokenizer: Any,
    convert: Callable[[str], str] | None,
    readings: Sequence[Reading],
    columns: int,
    drop: int | None,
    suffix: int,
) -> tuple[Prompt, int]:
    """The prompt, and how many tokens its text has."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    special = {*tokenizer.all_special_ids, *(token for token, one in added if one.special)}
    rows = [pair for one in readings for pair in zip(one.ids, one.valid, strict=True)]
    row, valid = rows[0]
    score, found = 0, range(1, 1)
    own: Sequence[TokenSpan] = ()
    for spans in _variants(text, tokenizer, convert):
        own = own or spans
        for ids, mask in rows:
            match = _find([token for token, _, _ in spans], ids, special)
            if match[0] > score:
                (score, found), own, row, valid = match, spans, ids, mask
        if score > len(spans):  # all of it
            break
    column = _columns(len(row) - suffix, columns, valid, drop)
    # Padding next to the text is neither its start nor its end, though the id may be the same.
    special_column = {at: (one,) for at, one in column.items() if valid[at] and row[at] in special}
    prompt = place(
        text,
        own,
        [column.get(position) for position in found],
        columns,
        tokenizer,
        start=special_column.get(found.start - 1, ()),
        end=special_column.get(found.stop, ()) if found else (),
    )
    return prompt, sum(start < end for _, start, end in own)


def _variants(
    text: str, tokenizer: Any, convert: Callable[[str], str] | None
) -> Iterator[list[TokenSpan]]:
    """Ids with their spans in `text`, of the forms that pipelines give a text."""
    stripped = text.strip()
    lead = len(text) - len(text.lstrip())
    forms = {text: 0, stripped: lead, f" {stripped}": lead - 1}
    forms |= {form.lower(): at for form, at in forms.items() if len(form.lower()) == len(form)}
    for form, at in forms.items():
        spans = token_spans(form, tokenizer, convert)
        yield [(token, max(0, start + at), max(0, end + at)) for token, start, end in spans]


def _find(ids: Sequence[int], row: Sequence[int], special: set[int]) -> tuple[int, range]:
    """The best match of ids in a row: a score, and the positions of those that were found.

    A token next to a template may be merged with it, and the end of a text may be cut off. The
    last of equally good places is taken: templates come before the prompt. A whole match scores
    more than the ids' number, another one less.
    """
    best = 0, range(0)
    for at in range(len(row)):
        skip = int(len(ids) > 1 and row[at] != ids[0])
        count = skip
        while count < len(ids) and at + count < len(row) and row[at + count] == ids[count]:
            count += 1
        # A window ends with an end token, which is none of a text whose unknown tokens have its id.
        count -= count > skip and at + count == len(row) and row[-1] in special
        if count == skip:
            continue
        rest = row[at + count :]
        is_cut = len(rest) <= 2 and all(token in special for token in rest)
        if count == len(ids):
            score = count + (0 if skip else 1)
        elif is_cut and not skip:
            score = count
        elif count == len(ids) - 1 and count > 1 + skip and rest:
            count += 1
            score = len(ids) - 1
        else:
            continue
        if score >= best[0]:
            best = score, range(at, at + count)
    return best


def _columns(window: int, columns: int, valid: Sequence[bool], drop: int | None) -> dict[int, int]:
    """The column of each position of a text encoder's window that has one."""
    if drop is None and columns != window and sum(valid) == columns:
        kept = [position for position in range(window) if valid[position]]
        return {position: column for column, position in enumerate(kept)}
    lead = max(0, window - columns) if drop is None else drop
    return {lead + column: column for column in range(min(columns, window - lead))}
