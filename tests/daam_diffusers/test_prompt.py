"""Words, spans, occurrences and columns of a prompt."""

from __future__ import annotations

import re
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import clip_tokenizer

from daam_diffusers import TraceError
from daam_diffusers.prompt import SEPARATOR, token_spans, tokenize
from daam_diffusers.words import closest_spans, find_spans, word_spans

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
    "❤️",
    "1️⃣",
    "‼️",
    "Red",
    "red-haired",
]
HIDDEN = ["\u00ad", "\ufeff", "\u200c", "\u200d", "\u200e", "\u2060", "\x07", "\u034f"]
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
        ("I ❤️ the 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ ‼️", ["I", "❤️", "the", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣", "‼️"]),
        ("\ufeffa \u200bred\u200b dog\u200d \u200e \ufe0f", ["a", "red", "dog"]),
        ("a red\u200bdog", ["a", "red", "dog"]),
        ("\U000e0041a \ufe0fb\u200b\ufe0fc d\U000e0041e", ["a", "b", "c", "d\U000e0041e"]),
        ("می\u200cخواهم re\u00add do\u00adg's", ["می\u200cخواهم", "re\u00add", "do\u00adg's"]),
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
        ("Straße", "Stras", []),
        ("a re\u00add\u200b dog", "red", [(2, 6)]),
        ("a red dog", "\u200bre\u00add", [(2, 5)]),
        ("I ❤️ it", "❤", [(2, 4)]),
        ("red\u200bdog", "reddog", [(0, 7)]),
        ("red\u200bdog", "dog", [(4, 7)]),
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


@given(st.lists(st.sampled_from([*PIECES, *HIDDEN, " "]), max_size=12).map("".join))
def test_characters_without_width_change_no_word(text):
    plain = "".join(char for char in text if char not in HIDDEN)
    assert ["".join(c for c in word if c not in HIDDEN) for word in words(text)] == words(plain)
    for start, end in word_spans(text):
        assert (start, end) in list(find_spans(text, text[start:end]))
        assert text[start] not in HIDDEN
        assert text[end - 1] not in HIDDEN


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("A red house and a green tree", "a", [(16, 17)]),
        ("A red house and a green tree", "A", [(0, 1)]),
        ("A red house", "a", [(0, 1)]),
        ("a red-haired girl in a red dress, red", "red", [(23, 26), (34, 37)]),
        ("a t-shirt, a Shirt, a shirt", "shirt", [(22, 27)]),
        ("a t-shirt and a SHIRT", "shirt", [(16, 21)]),
        ("a t-shirt", "shirt", [(4, 9)]),
        ("the dog's Dog and a dog", "dog", [(20, 23)]),
        ("the dog's Dog and a dog", "Dog", [(10, 13)]),
        ("Red dog, red dog", "red  dog", [(9, 16)]),
        ("blood-red dog and Red\ndog", "red dog", [(18, 25)]),
        ("A a a", "a a", [(2, 5)]),
        ("cafe\u0301 caf\u00e9", "caf\u00e9", [(6, 10)]),
        ("- well-made", "-", [(0, 1)]),
        ("🏠🏠 and 🏠", "🏠", [(7, 8)]),
        ("犬が走る 走る", "走る", [(5, 7)]),
    ],
)
def test_a_word_as_written_comes_before_other_letters_and_before_parts_of_words(
    text, query, expected
):
    assert closest_spans(text, query) == expected


@given(st.lists(st.sampled_from([*PIECES, *HIDDEN, " ", "\u200b"]), max_size=12).map("".join))
def test_every_listed_word_is_found_at_all_its_places_and_no_other(text):
    prompt = tokenize(text, clip_tokenizer(999), 999)
    for listed in dict.fromkeys(word.text for word in prompt.words):
        places = [word for word in prompt.words if word.text == listed]
        assert [prompt.find(listed, i) for i in range(len(places))] == places
        with pytest.raises(KeyError, match=f"occurs {len(places)} time"):
            prompt.find(listed, len(places))


@given(texts, texts)
def test_found_spans_equal_the_query_and_the_closest_do_not_overlap(text, query):
    def fold(s: str) -> str:
        once = unicodedata.normalize("NFKC", s).casefold()
        return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", once)).strip()

    for start, end in find_spans(text, query):
        assert fold(text[start:end]) == fold(query)
    last = 0
    for start, end in closest_spans(text, query):
        assert start >= last
        last = end


@given(texts)
def test_tokens_lie_in_words_in_order(text):
    prompt = tokenize(text, clip_tokenizer(999), 999)
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
    prompt = tokenize("A dog's t-shirt and a dog", clip_tokenizer(), 77)
    with pytest.raises(KeyError, match="occurs 1 time"):
        prompt.find("dog", occurrence=1)


def test_a_missing_word_is_a_key_error_that_names_the_words():
    prompt = tokenize("a red dog.", clip_tokenizer(), 77)
    with pytest.raises(
        KeyError, match=r"'cat' is not in the prompt; its words are: 'a', 'red', 'dog', '\.'"
    ):
        prompt.find("cat")
    with pytest.raises(KeyError, match=r"Did you mean 'red'\?"):
        prompt.find("rad")
    long = tokenize(" ".join(f"{'x' * 99}{i}" for i in range(60)), clip_tokenizer(9000), 9000)
    with pytest.raises(KeyError, match="and 40 more") as caught:
        long.find("cat")
    assert len(str(caught.value)) < 1000


def test_words_beyond_the_window_are_named_in_a_warning_and_have_no_map():
    text = " ".join(["red"] * 74 + ["car", "dog", "house"])
    with pytest.warns(UserWarning, match="77 tokens .* 75 of them; it never saw: 'dog', 'house'"):
        prompt = tokenize(text, clip_tokenizer(), 77)
    assert prompt.find("car").columns == (75,)
    assert prompt.cut == ("dog", "house")
    with pytest.raises(KeyError, match="beyond the text encoder's window"):
        prompt.find("dog")


def test_a_warning_of_words_beyond_the_window_is_short_whatever_the_prompt():
    for text in (" ".join(f"word{i}" for i in range(1000)), "x" * 10_000, "a, " * 1000):
        with pytest.warns(UserWarning, match="it never saw: ") as caught:
            cut = tokenize(text, clip_tokenizer(), 77).cut
        assert len(str(caught[0].message)) < 400
        assert len(cut) < 6 or f"and {len(cut) - 5} more" in str(caught[0].message)


def test_a_word_that_was_cut_is_not_taken_for_another_place():
    text = " ".join(["Dog", "dog's"] + ["red"] * 75 + ["dog"])
    with pytest.warns(UserWarning, match="'dog'"):
        prompt = tokenize(text, clip_tokenizer(), 77)
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


def test_start_and_end_tokens_are_told_from_padding():
    tokenizer = clip_tokenizer()  # pads with its end token
    dog = tokenize("a dog", tokenizer, 77)
    assert (dog.start, dog.end) == ((0,), (3,))
    empty = tokenize("", tokenizer, 77)
    assert (empty.start, empty.end) == ((0,), (1,))
    full = tokenize(" ".join(["dog"] * 75), tokenizer, 77)
    assert (full.start, full.end) == ((0,), (76,))
    long = tokenize(" ".join(["dog"] * 80), tokenizer, 154)
    assert (long.start, long.end) == ((0, 77), (76, 83))
    joined = tokenize(" ".join(["dog"] * 80), tokenizer, 152)
    assert (joined.start, joined.end) == ((0,), (151,))


def test_windows_of_a_prompt_stand_where_each_begins():
    prompt = tokenize(["a red car", "a blue dog"], clip_tokenizer(), 154)
    assert prompt.text == f"a red car{SEPARATOR}a blue dog"
    assert prompt.find("car").columns == (3,)
    assert prompt.find("dog").columns == (80,)
    assert [prompt.find("a", i).columns for i in (0, 1)] == [(1,), (78,)]
    assert prompt.text[prompt.find("dog").start :] == "dog"
    assert (prompt.start, prompt.end) == ((0, 77), (4, 81))
    joined = tokenize(["a red car", "a blue dog"], clip_tokenizer(), 152)
    assert joined.find("dog").columns == (78,)
    assert tokenize(["a dog"], clip_tokenizer(), 77) == tokenize("a dog", clip_tokenizer(), 77)


def test_a_window_that_is_overfull_loses_its_own_last_words():
    texts = [" ".join(["red"] * 75 + ["house"]), "a dog"]
    with pytest.warns(UserWarning, match="78 tokens .* 77 of them; it never saw: 'house'"):
        prompt = tokenize(texts, clip_tokenizer(), 154)
    assert prompt.find("dog").columns == (79,)


@pytest.mark.parametrize("texts", [["a dog"], ["a", "red", "dog"], []])
def test_texts_that_are_not_as_many_as_the_windows_are_an_error(texts):
    with pytest.raises(ValueError, match=f"hold 2 window.*list of 2 text.*got {len(texts)}: "):
        tokenize(texts, clip_tokenizer(), 154)
    with pytest.raises(ValueError, match="of 77 columns hold 1 window"):
        tokenize(["a", "red"], clip_tokenizer(), 77)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (", ".join(["a red car left of the house"] * 9) + ", and a blue dog", 154),
        ("a red car a blue dog", 154),  # one window would have done
        (", ".join(["a red car"] * 20), 152),
    ],
)
def test_a_layout_that_is_a_guess_is_warned_of(text, columns):
    with pytest.warns(UserWarning, match=r"is a guess: .*prompt=\[text of the first window"):
        tokenize(text, clip_tokenizer(), columns)


@pytest.fixture
def cat_toy():
    """A tokenizer with an added token of three vectors, and diffusers' conversion for it."""
    tokenizer = clip_tokenizer.__wrapped__()
    tokenizer.add_tokens(["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2", "<hat>"])

    def convert(text: str) -> str:
        for token in set(tokenizer.tokenize(text)):
            vectors = [token]
            while token in tokenizer.added_tokens_encoder:
                if (vector := f"{token}_{len(vectors)}") not in tokenizer.added_tokens_encoder:
                    break
                vectors.append(vector)
            text = text.replace(token, " ".join(vectors))
        return text

    return tokenizer, convert


def test_an_added_token_is_one_word_and_its_vectors_are_its_columns(cat_toy):
    tokenizer, convert = cat_toy
    text = "a <cat-toy> beside a <cat-toy> dog, a <hat>s"
    prompt = tokenize(text, tokenizer, 77, convert=convert)
    assert prompt.text == text
    assert [word.text for word in prompt.words] == [
        "a", "<cat-toy>", "beside", "a", "<cat-toy>", "dog", ",", "a", "<hat>", "s",
    ]  # fmt: skip
    assert prompt.find("<cat-toy>").columns == (2, 3, 4)
    assert prompt.find("<cat-toy>", 1).columns == (7, 8, 9)
    assert prompt.find("dog").columns == (10,)
    assert prompt.find("<cat-toy> dog").columns == (7, 8, 9, 10)
    with pytest.raises(KeyError, match="occurs 2 time"):
        prompt.find("<cat-toy>", 2)
    windows = tokenize(["a <cat-toy>", "a <hat>"], tokenizer, 154, convert=convert)
    assert windows.find("<cat-toy>").columns == (2, 3, 4)
    assert windows.find("<hat>").columns == (79,)


@given(st.lists(st.sampled_from(["<cat-toy>", "<hat>", "dog", " ", "a", ",", "<"]), max_size=9))
def test_tokens_of_the_converted_text_keep_the_spans_of_the_text(pieces):
    tokenizer = clip_tokenizer.__wrapped__()
    tokenizer.add_tokens(["<cat-toy>", "<cat-toy>_1", "<hat>"])
    text = "".join(pieces)

    def convert(piece: str) -> str:
        return piece.replace("<cat-toy>", "<cat-toy> <cat-toy>_1")

    spans = token_spans(text, tokenizer, convert)
    ids = tokenizer(convert(text), add_special_tokens=False)["input_ids"]
    assert [token for token, _, _ in spans] == ids
    plain = token_spans(text, tokenizer)
    second = tokenizer.added_tokens_encoder["<cat-toy>_1"]
    assert [span for span in spans if span[0] != second] == plain
    first = tokenizer.added_tokens_encoder["<cat-toy>"]
    assert [span[1:] for span in spans if span[0] == second] == [
        span[1:] for span in plain if span[0] == first
    ]
