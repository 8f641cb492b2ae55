"""Words, spans, occurrences and columns of a prompt."""

from __future__ import annotations

import re
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import clip_tokenizer

from daam_diffusers import Prompt, TraceError
from daam_diffusers.prompt import find_spans, kept_columns, tokenize, word_spans

PIECES = [
    "red",
    "dog",
    "Dog's",
    "t-shirt",
    "naïve",
    "猫",
    "走る",
    "🏠",
    "👩‍🚀",
    ",",
    "(",
    "!",
    "İ",
    "ß",
    "3",
]
texts = st.lists(st.sampled_from([*PIECES, " ", "  ", "\n"]), max_size=12).map("".join)


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red car, beside a dog.", ["A", "red", "car", ",", "beside", "a", "dog", "."]),
        ("the dog's t-shirt", ["the", "dog's", "t-shirt"]),
        ("rock 'n' roll -- now", ["rock", "'", "n", "'", "roll", "-", "-", "now"]),
        ("a 👩‍🚀 on the 🌙!", ["a", "👩‍🚀", "on", "the", "🌙", "!"]),
        ("cafe\u0301 हिन्दी", ["cafe\u0301", "हिन्दी"]),
        ("", []),
    ],
)
def test_words_are_split_as_a_reader_would(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("a car, a scar, a CAR", "car", [(2, 5), (17, 20)]),
        ("the dog's bone", "dog", [(4, 7)]),
        ("a red  car\nred car", "Red Car", [(2, 10), (11, 18)]),
        ("Straße STRASSE", "strasse", [(0, 6), (7, 14)]),
        ("caf\u00e9 cafe\u0301", "caf\u00e9", [(0, 4), (5, 10)]),
        ("犬が走る", "走る", [(2, 4)]),
        ("red", "", []),
        ("redder", "red", []),
    ],
)
def test_queries_match_whole_words_up_to_case_and_form(text, query, expected):
    assert list(find_spans(text, query)) == expected


@given(texts)
def test_word_spans_cover_everything_but_white_space_once(text):
    covered = [i for start, end in word_spans(text) for i in range(start, end)]
    assert covered == sorted(set(covered))
    assert {i for i, c in enumerate(text) if not c.isspace()} <= set(covered)


@given(texts)
def test_every_word_is_found_where_it_stands(text):
    for start, end in word_spans(text):
        assert (start, end) in list(find_spans(text, text[start:end]))


@given(texts, texts)
def test_found_spans_equal_the_query_and_do_not_overlap(text, query):
    def fold(s: str) -> str:
        once = unicodedata.normalize("NFKC", s).casefold()
        return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", once)).strip()

    last = 0
    for start, end in find_spans(text, query):
        assert start >= last
        assert fold(text[start:end]) == fold(query)
        last = end


@given(texts)
def test_tokens_lie_in_words_in_order(text):
    prompt = tokenize(text, clip_tokenizer(), 77)
    columns = [token.column for token in prompt.tokens]
    assert columns == sorted(set(columns))
    assert 0 not in columns  # the start token's
    for token in prompt.tokens:
        assert text[token.start : token.end] == token.text
        assert any(s < token.end and token.start < e for s, e in word_spans(text))
    # Whatever a word is made of, no column is lost between words.
    assert {c for word in prompt.words for c in word.columns} == set(columns)


def test_a_word_of_several_tokens_has_all_their_columns():
    prompt = tokenize("a zebra dog", clip_tokenizer(), 77)
    assert prompt.find("zebra").columns == (2, 3, 4, 5, 6)  # unknown: a token a letter
    assert prompt.find("zebra dog").columns == (2, 3, 4, 5, 6, 7)
    assert prompt.find("a").columns == (1,)


def test_occurrences_are_told_apart():
    prompt = tokenize("a dog beside a red dog", clip_tokenizer(), 77)
    assert prompt.find("DOG").columns == (2,)
    assert prompt.find("dog", occurrence=1).columns == (6,)
    with pytest.raises(KeyError, match="occurs 2 time"):
        prompt.find("dog", occurrence=2)


def test_a_missing_word_is_a_key_error_that_names_the_words():
    prompt = tokenize("a red dog.", clip_tokenizer(), 77)
    with pytest.raises(
        KeyError, match=r"'cat' is not in the prompt; its words are: 'a', 'red', 'dog', '\.'"
    ):
        prompt.find("cat")
    with pytest.raises(KeyError, match="none"):
        Prompt("", (), 77).find("cat")


def test_words_beyond_the_window_are_named_in_a_warning_and_have_no_map():
    text = " ".join(["red"] * 74 + ["car", "dog", "house"])
    with pytest.warns(UserWarning, match="77 tokens .* 75 of them; it never saw: 'dog', 'house'"):
        prompt = tokenize(text, clip_tokenizer(), 77)
    assert prompt.find("car").columns == (75,)
    assert prompt.cut == ("dog", "house")
    with pytest.raises(KeyError, match="beyond the text encoder's window"):
        prompt.find("dog")


def test_a_prompt_that_just_fits_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompt = tokenize(" ".join(["dog"] * 75), clip_tokenizer(), 77)
    assert [token.column for token in prompt.tokens] == list(range(1, 76))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        # Two windows, each with start and end token of its own.
        (154, {"car": 1, "dog": 75, "house": 78}),
        # One start and one end token around two windows' contents.
        (152, {"car": 1, "dog": 75, "house": 76}),
    ],
)
def test_long_embeddings_are_read_in_both_layouts(columns, expected):
    text = " ".join(["car"] + ["red"] * 73 + ["dog", "house"])
    prompt = tokenize(text, clip_tokenizer(), columns)
    assert {word: prompt.find(word).columns[0] for word in expected} == expected
    assert prompt.cut == ()


def test_embeddings_of_no_known_layout_are_an_error():
    with pytest.raises(TraceError, match="100 tokens fit no known layout for a window of 77"):
        tokenize("a dog", clip_tokenizer(), 100)


def test_a_tokenizer_without_offsets_is_an_error():
    class Slow:
        is_fast = False

    with pytest.raises(TraceError, match="Slow gives no character offsets"):
        tokenize("a dog", Slow(), 77)


def test_kept_columns_are_the_words_and_the_special_tokens_beside_them():
    tokenizer = clip_tokenizer()
    prompts = [tokenize(text, tokenizer, 77) for text in ("a dog", "a red dog")]
    assert kept_columns(prompts) == (0, 1, 2, 3, 4)
    assert kept_columns([tokenize("", tokenizer, 77)]) == (0,)
