"""Normalizers: what they make equal, over all of Unicode and by hand."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel import WeakLabelError, load_registry
from weaklabel import text as module
from weaklabel.text import Normalizer, find_normalizer

BASIC, CHARACTERS = find_normalizer("basic"), find_normalizer("characters")


def test_every_character_is_normalized_once_and_in_all_its_spellings() -> None:
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if unicodedata.category(letter) in ("Cn", "Co"):  # 9 of 10, and all are alike
            continue
        # Between letters: what becomes of a mark or a joiner depends on what it stands at.
        text = f"{letter} a{letter}e"
        found = BASIC(text)
        assert BASIC(found) == found, f"U+{code:04X}"
        for form in ("NFC", "NFD"):
            if (other := unicodedata.normalize(form, text)) != text:
                assert BASIC(other) == found, f"U+{code:04X} in {form}"


# Marks, joiners, letters that fold into several, apostrophes, wide and narrow forms.
texts = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("aİıſßςΐΰǰ\u0345\u0308\u0301\u200c\u200d\u00ad'’ \ufb01\u1e9eｶﾞ가각\u1161"),
    ),
    max_size=8,
)


@given(texts)
def test_texts_are_normalized_once_and_in_all_their_spellings(text: str) -> None:
    for rule in (BASIC, CHARACTERS):
        found = rule(text)
        assert rule(found) == found
        assert rule(unicodedata.normalize("NFD", text)) == found
        assert rule(unicodedata.normalize("NFC", text)) == found
        assert found == " ".join(found.split())


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("\u0390", "\u1fd3"),  # ΐ, in two spellings
        ("\u03b0", "\u1fe3"),
        ("Straße", "STRASSE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("ﬁlm", "FILM"),
        ("ａｂｃ", "abc"),
        ("don’t", "DON'T"),
        ("naïve", "nai\u0308ve"),
        ("co\u00adop", "coop"),
        ("play, the --- news!", "Play the news"),
    ],
)
def test_basic_makes_spellings_equal(left: str, right: str) -> None:
    assert BASIC(left) == BASIC(right)


def test_a_fast_path_for_ascii_changes_nothing() -> None:
    text = "".join(map(chr, range(128))) + " 'Tis O'Clock' "
    assert BASIC(text) == BASIC(text + "\u200d")


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("放送 in 東京tv", "放 送 in 東 京 tv"),
        ("カタカナー、1日。", "カ タ カ ナ ー 1 日"),
        ("カ'a o'clock", "カ a o'clock"),  # no apostrophe within a word
        ("ガ", "ガ"),  # of two characters, one after NFKC
        ("ภาษาไทย", "ภ า ษ า ไ ท ย"),
        ("ที่นี่", "ที่ นี่"),  # vowels and tones belong to their consonant
        ("မြန်မာ", "မြ န် မာ"),
        ("한국어 문장", "한국어 문장"),  # Korean has spaces
        ("Turn it ON", "turn it on"),
    ],
)
def test_characters_are_words_where_nothing_stands_between_words(text: str, units: str) -> None:
    assert CHARACTERS(text) == units


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Channel 5", "channel five"),
        ("21 movies", "twenty-one movies"),
        ("105", "one hundred and five"),
        ("1,000", "one thousand"),
        ("movies from 1984", "movies from nineteen eighty-four"),
        ("1905", "nineteen oh five"),
        ("2005", "two thousand five"),
        ("2024", "twenty twenty-four"),
        ("the 1990s", "the nineteen nineties"),
        ("the 21st", "the twenty-first"),
        ("10:30", "ten thirty"),
        ("3.5", "three point five"),
        ("$21", "twenty-one dollars"),
        ("$1", "one dollar"),
        ("7%", "seven percent"),
        ("007", "zero zero seven"),
        ("don’t stop", "do not stop"),
        ("I can't", "I cannot"),
        ("we won't", "we will not"),
        ("they're gonna", "they are going to"),
        ("uh the colour", "the color"),
    ],
)
def test_english_makes_numbers_and_contractions_equal(left: str, right: str) -> None:
    english = find_normalizer("english")
    assert english(left) == english(right)


def test_english_writes_words() -> None:
    english = find_normalizer("english")
    assert english("It's channel 5, don't stop!") == "it is channel five do not stop"
    digits = "12345678901234567890"
    assert english(digits).split()[:3] == ["one", "two", "three"]


@given(
    st.lists(st.sampled_from("one 2 30 405 $3 1.5 9th 70s % and oh don't it's . , 12:05".split()))
)
def test_english_normalizes_once(words: list[str]) -> None:
    english = find_normalizer("english")
    found = english(" ".join(words))
    assert english(found) == found
    assert not any(letter.isdigit() for letter in found)


@given(texts)
def test_english_takes_any_text(text: str) -> None:
    assert isinstance(find_normalizer("english")(text), str)


def test_english_names_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    module._english_rule.cache_clear()
    monkeypatch.setitem(sys.modules, "inflect", None)
    with pytest.raises(ImportError, match=r"needs inflect: pip install 'weaklabel\[english\]"):
        find_normalizer("english")("a")


def test_normalizers_are_found_by_name_or_are_given() -> None:
    own = Normalizer("own", "reversed", lambda text: text[::-1])
    assert find_normalizer(own) is own
    assert find_normalizer("none")("  A  b\n") == "A b"
    with pytest.raises(WeakLabelError, match="no normalizer 'loud': choose none, basic, english"):
        find_normalizer("loud")


def test_the_built_in_ones_come_through_the_hook() -> None:
    found = load_registry().normalizers
    assert list(found)[:4] == ["none", "basic", "english", "characters"]
    assert found["basic"] is BASIC
