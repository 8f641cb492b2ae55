"""Which columns of the text embeddings a prompt's tokens stand in.

A pipeline puts prompts into templates, cleans, cuts and pads them before a text encoder reads
them. So nothing is assumed about it: the ids that the encoder was called with are observed, and
the prompt's own ids are looked for in them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import ProcessorMixin

from daam_diffusers.errors import TraceWarning
from daam_diffusers.families import Encoder
from daam_diffusers.prompt import (
    Prompt,
    added_spans,
    place,
    token_spans,
    tokenize,
    warn_of_cut,
)

Spans = Sequence[tuple[int, int, int]]
"""Ids of a text's tokens and the span of the text that each stands for."""


@dataclass(frozen=True)
class Reading:
    """Token ids that a text encoder was called with.

    Attributes:
        component: the pipeline's attribute.
        ids: a row a text, (b, L).
        valid: which of them are no padding, likewise; None if that was not said.
        states: what the encoder returned first, (b, L, D).
    """

    component: str
    ids: tuple[tuple[int, ...], ...]
    valid: tuple[tuple[bool, ...], ...] | None
    states: torch.Tensor | None = None


def placements(
    text: str | Sequence[str],
    encoders: Sequence[Encoder],
    pipe: Any,
    readings: Sequence[Reading],
    columns: int,
    texts: Mapping[str, str] | None = None,
) -> dict[str, Prompt]:
    """Where a text's tokens stand in embeddings of `columns` positions, by text encoder.

    Args:
        text: the prompt as the user wrote it; or one a window, see `tokenize`.
        encoders: those whose tokens the columns are.
        pipe: the pipeline, for its tokenizers.
        readings: what the encoders read while the prompt was encoded; none if that was not seen.
        columns: length of the embeddings.
        texts: the text of an encoder, where it is another one.

    Warns:
        TraceWarning: no encoder read all of the text, or none read any of it.
    """
    starts: dict[str, int] = {}
    found: dict[str, Prompt] = {}
    total: dict[str, int] = {}
    followed = {one.after for one in encoders}
    ended = {one.after for one in encoders if one.component in followed}  # columns with an end
    present = [one for one in encoders if getattr(pipe, one.component, None) is not None]
    for encoder in present or encoders:
        name, tokenizer = encoder.component, tokenizer_of(pipe, encoder)
        read = [one for one in readings if one.component == name]
        if tokenizer is None or (encoder.has_template if not readings else not read):
            continue
        own: Any = (texts or {}).get(name, text)
        convert = getattr(pipe, "maybe_convert_prompt", None)  # vectors of a textual inversion
        if convert is not None:
            convert = partial(convert, tokenizer=tokenizer)
        start = starts.get(encoder.after, 0) if encoder.after is not None else 0
        window = len(read[0].ids[0]) if read else int(tokenizer.model_max_length)
        starts[name] = start + window
        size = window if encoder.after in ended else columns - start
        if read:
            drop = getattr(pipe, encoder.drop) if isinstance(encoder.drop, str) else encoder.drop
            prompt, total[name] = _placed(own, tokenizer, convert, read, size, drop, encoder.suffix)
        else:  # only embeddings are there, or the encoder is called in a way that is not seen
            prompt = tokenize(own, tokenizer, size, convert=convert)
        found[name] = replace(
            prompt,
            tokens=tuple(
                replace(token, column=token.column + start, encoder=name) for token in prompt.tokens
            ),
            start=tuple(column + start for column in prompt.start),
            end=tuple(column + start for column in prompt.end),
            columns=columns,
        )
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
    return found or {
        encoders[0].component: Prompt(
            "\n".join([*text]) if not isinstance(text, str) else text, (), columns
        )
    }


def tokenizer_of(pipe: Any, encoder: Encoder) -> Any:
    """The tokenizer of a text encoder; None if the pipeline has none."""
    found = getattr(pipe, encoder.tokenizer, None)
    return found.tokenizer if isinstance(found, ProcessorMixin) else found  # of text and images


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
    known = {name: (prompt, at) for prompts, at in parts for name, prompt in prompts.items()}
    if encoder is not None and encoder not in known:
        raise ValueError(f"no text encoder {encoder!r} read the prompt; those that did: "
                         f"{', '.join(known)}")  # fmt: skip
    text = (known[encoder] if encoder else next(iter(known.values())))[0].text
    chosen = [
        (prompt, at)
        for name, (prompt, at) in known.items()
        if (name == encoder or encoder is None) and prompt.text == text
    ]
    tokens = {
        (token.start, token.end, token.column + at): replace(token, column=token.column + at)
        for prompt, at in reversed(chosen)
        for token in prompt.tokens
    }
    # An encoder that was given nothing of the text did not cut it.
    lost = [set(prompt.cut) for prompt, _ in chosen if prompt.tokens]
    return Prompt(
        text,
        tuple(tokens[key] for key in sorted(tokens)),
        columns,
        tuple(word for word in chosen[0][0].cut if all(word in cut for cut in lost)),
        added=tuple(sorted({span for prompt, _ in chosen for span in prompt.added})),
        start=tuple(sorted({c + at for prompt, at in chosen for c in prompt.start})),
        end=tuple(sorted({c + at for prompt, at in chosen for c in prompt.end})),
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
    best: tuple[int, list[int]] = (0, [])
    own: Spans = ()
    row: tuple[int, ...] = ()
    valid: tuple[bool, ...] | None = None
    for spans in _variants(text, tokenizer, convert):
        own = own or spans
        for reading in readings:
            for number, ids in enumerate(reading.ids):
                found = _find([token for token, _, _ in spans], ids, special)
                if found[0] > best[0]:
                    best, own, row = found, spans, ids
                    valid = None if reading.valid is None else reading.valid[number]
        if best[0] > len(spans):  # all of it
            break
    row = row or readings[0].ids[0]
    column = _columns(len(row) - suffix, columns, valid, drop)
    first, last = (best[1][0], best[1][-1]) if best[1] else (1, -1)
    if valid is not None:  # padding next to the text is neither its start nor its end
        column = {at: one for at, one in column.items() if valid[at]}
    prompt = place(
        text,
        own,
        [column.get(position) for position in best[1]],
        columns=columns,
        start=_special(first - 1, row, special, column),
        end=_special(last + 1, row, special, column) if best[1] else (),
        added=added_spans(own, tokenizer),
    )
    return prompt, sum(start < end for _, start, end in own)


def _variants(text: str, tokenizer: Any, convert: Callable[[str], str] | None) -> Iterator[Spans]:
    """Ids with their spans in `text`, of the forms that pipelines give a text."""
    stripped = text.strip()
    lead = len(text) - len(text.lstrip())
    forms = {text: 0, stripped: lead, f" {stripped}": lead - 1}
    forms |= {form.lower(): at for form, at in forms.items() if len(form.lower()) == len(form)}
    for form, at in forms.items():
        spans = token_spans(form, tokenizer, convert)
        yield [(token, max(0, start + at), max(0, end + at)) for token, start, end in spans]


def _find(ids: Sequence[int], row: Sequence[int], special: set[int]) -> tuple[int, list[int]]:
    """The best match of ids in a row: a score, and the position of each id that was found.

    A token next to a template may be merged with it, and the end of a text may be cut off. The
    last of equally good places is taken: templates come before the prompt. A whole match scores
    more than the ids' number, another one less.
    """
    best: tuple[int, list[int]] = (0, [])
    for at in range(len(row)):
        skip = int(len(ids) > 1 and row[at] != ids[0])
        count = skip
        while count < len(ids) and at + count < len(row) and row[at + count] == ids[count]:
            count += 1
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
            best = score, list(range(at, at + count))
    return best


def _columns(
    window: int, columns: int, valid: tuple[bool, ...] | None, drop: int | None
) -> dict[int, int]:
    """The column of each position of a text encoder's window that has one."""
    if drop is None and columns != window and valid is not None and sum(valid) == columns:
        kept = [position for position in range(window) if valid[position]]
        return {position: column for column, position in enumerate(kept)}
    lead = max(0, window - columns) if drop is None else drop
    return {lead + column: column for column in range(min(columns, window - lead))}


def _special(
    position: int, ids: Sequence[int], special: set[int], column: Mapping[int, int]
) -> tuple[int, ...]:
    is_special = 0 <= position < len(ids) and ids[position] in special
    return (column[position],) if is_special and position in column else ()
