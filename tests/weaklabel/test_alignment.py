"""Networks of aligned transcripts, against a plain edit distance and what must always hold."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel import rover as alignment
from weaklabel.rover import NO_WORD, Words, network, total_distances

texts_of = st.lists(st.integers(1, 4), max_size=8).map(tuple)


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """The textbook's table, all of it."""
    table = [[max(i, j) for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(
                table[i - 1][j] + 1,
                table[i][j - 1] + 1,
                table[i - 1][j - 1] + (a[i - 1] != b[j - 1]),
            )
    return table[-1][-1]


def column(slots: Sequence[Sequence[int]], index: int) -> Words:
    return tuple(slot[index] for slot in slots if slot[index] != NO_WORD)


@given(texts_of, texts_of)
def test_two_texts_are_aligned_at_their_edit_distance(a: Words, b: Words) -> None:
    slots = network([a, b], [1.0, 1.0])
    assert sum(left != right for left, right in slots) == edit_distance(a, b)


@given(st.lists(st.tuples(texts_of, st.floats(0.1, 10)), min_size=1, max_size=6))
def test_each_text_stands_in_its_column_and_no_slot_is_empty(
    given_: list[tuple[Words, float]],
) -> None:
    texts, weights = zip(*given_, strict=True)
    slots = network(texts, weights)
    assert all(len(slot) == len(texts) and any(slot) for slot in slots)
    assert tuple(column(slots, i) for i in range(len(texts))) == texts


@given(st.lists(texts_of, min_size=1, max_size=5))
def test_stretches_too_long_to_align_keep_every_word(texts: list[Words]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "MOST_STEPS", 1)
        slots = network(texts, [1.0] * len(texts))
    assert [column(slots, i) for i in range(len(texts))] == texts


def test_a_third_text_joins_a_slot_that_the_second_has_put_in() -> None:
    assert network([(1, 2), (1, 3, 2), (1, 3, 2)], [1.0] * 3) == [
        [1, 1, 1],
        [NO_WORD, 3, 3],
        [2, 2, 2],
    ]


@given(st.lists(st.tuples(texts_of, st.floats(0, 10)), min_size=1, max_size=6))
def test_total_distances_are_the_weighted_sums_of_edit_distances(
    given_: list[tuple[Words, float]],
) -> None:
    texts, weights = zip(*given_, strict=True)
    expected = [
        sum(weight * edit_distance(text, other) for other, weight in given_) for text in texts
    ]
    assert total_distances(texts, weights) == pytest.approx(expected)
