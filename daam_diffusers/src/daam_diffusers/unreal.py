"""Prompts of things that hardly go together, from prompts of things that do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spacy.tokens import Doc


def unreal(prompts: Sequence[str], docs: Iterable[Doc], *, seed: int = 0) -> list[str]:
    """The prompts with their nouns and adjectives exchanged at random.

    It makes Unreal-Gen of COCO-Gen's captions (arXiv 2210.04885). A word changes places with words
    of its own fine-grained tag, a plural with plurals, so that each occurs as often as before. All
    other characters stay as they are, articles too: "a" may come before a vowel. (The reference's
    code drops all words but nouns and adjectives, and repeats some.)

    Args:
        prompts: the texts.
        docs: what spaCy makes of each of them, in their order: `nlp.pipe(prompts)`.
        seed: of the exchange.

    Raises:
        ValueError: another number of docs than of prompts, or the doc of another text.
    """
    read = list(docs)
    if len(read) != len(prompts):
        raise ValueError(f"there must be one doc a prompt, got {len(read)} for {len(prompts)}")
    places: dict[tuple[str, str], list[tuple[int, int, str, bool]]] = {}  # by tag
    for number, (prompt, doc) in enumerate(zip(prompts, read, strict=True)):
        if doc.text != prompt:
            raise ValueError(f"doc {number} is of {doc.text!r:.80}, its prompt is {prompt!r:.80}")
        for token in doc:
            if token.pos_ in ("NOUN", "ADJ"):
                begins = token.i == 0 and token.text.istitle()  # a capital of the sentence's
                place = (number, token.idx, token.text, begins)
                places.setdefault((token.pos_, token.tag_), []).append(place)
    rng = np.random.default_rng(seed)
    changes = []
    for alike in places.values():
        order = rng.permutation(len(alike))
        for (number, start, old, begins), other in zip(alike, order, strict=True):
            _, _, new, began = alike[other]
            new = new.lower() if began else new
            changes.append((number, start, old, new[0].upper() + new[1:] if begins else new))
    changed = list(prompts)
    for number, start, old, new in sorted(changes, reverse=True):  # from the end: offsets hold
        changed[number] = changed[number][:start] + new + changed[number][start + len(old) :]
    return changed
