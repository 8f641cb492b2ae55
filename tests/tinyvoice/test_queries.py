"""The grammar: what it says, and which sentences are kept from training."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import queries

NUMBERS = {word: value for value, word in enumerate(queries.DIGITS + queries.TEENS)}
TENS = {word: 10 * (place + 2) for place, word in enumerate(queries.TENS)}


def value(words: list[str]) -> int:
    """What spelled-out words amount to, read from the left."""
    total = 0
    for word in words:
        total = total * 100 if word == "hundred" else total + (NUMBERS | TENS)[word]
    return total


@given(st.integers(0, 999))
def test_a_spelled_number_reads_back(number: int) -> None:
    assert value(queries.spell(number).split()) == number


def test_a_number_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 999"):
        queries.spell(1000)


@given(st.integers(0, 2**32), st.sampled_from(["train", "dev", "test"]))
def test_a_drawn_query_is_of_its_part_and_of_the_grammars_words(
    seed: int, part: queries.Part
) -> None:
    text = queries.draw(np.random.default_rng(seed), part)
    assert queries.part_of(text) == part
    assert set(text.split()) <= set(queries.words())
    assert text == queries.draw(np.random.default_rng(seed), part)


def test_no_sentence_is_in_two_parts_and_all_words_are_heard_in_training() -> None:
    rng = np.random.default_rng(0)
    said = {part: {queries.draw(rng, part) for _ in range(3000)} for part in ("train", "test")}  # type: ignore[arg-type]
    assert not said["train"] & said["test"]
    assert len(said["test"]) > 250
    heard = {word for text in said["train"] for word in text.split()}
    assert heard == set(queries.words())
    assert len(heard) >= 200


def test_the_parts_have_the_shares_they_state() -> None:
    texts = [f"channel {queries.spell(number)}" for number in range(1000)]
    parts = [queries.part_of(text) for text in texts]
    assert parts.count("test") / 1000 == pytest.approx(queries.TEST_SHARE, abs=0.03)
    assert parts.count("dev") / 1000 == pytest.approx(queries.DEV_SHARE, abs=0.02)
