"""Word transition networks: several transcripts of one utterance, word beside word.

The alignment step of ROVER (Fiscus, "A post-processing system to yield reduced word error rates:
recognizer output voting error reduction", ASRU 1997). Transcripts are sequences of numbers, one a
word, from 1 on; 0 stands where a transcript has no word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from rapidfuzz.distance import Levenshtein

NO_WORD: Final = 0

# A stretch without a common word is aligned in slots × words steps of Python, up to this many, and
# beyond it word by word from the left. Utterances have a handful; a text of another file, millions.
MOST_STEPS: Final = 10_000

Words: TypeAlias = tuple[int, ...]
Unlikeness: TypeAlias = Callable[[int, int], float]
Share: TypeAlias = dict[int, float]  # of a slot: the weight of every word there


def total_distances(texts: Sequence[Words], weights: Sequence[float]) -> list[float]:
    """Of every text, the weighted sum of its word edit distances to all of them."""
    sums = [0.0] * len(texts)
    for i, text in enumerate(texts):
        for j in range(i):
            distance = Levenshtein.distance(text, texts[j])
            sums[i] += distance * weights[j]
            sums[j] += distance * weights[i]
    return sums


def network(
    texts: Sequence[Words], weights: Sequence[float], unlikeness: Unlikeness
) -> list[list[int]]:
    """Slots, in order; a slot lists the word that every text has there, or NO_WORD.

    The first text makes the slots. Each one that follows is aligned with all before it at once, at
    the least expected cost, and may put new slots between theirs.

    Args:
        texts: at least one; the best first.
        weights: one a text, positive.
        unlikeness: cost of two different words in one slot, between 0 and 1; a word beside no word
            costs 1.
    """
    slots = [[word] for word in texts[0]]
    shares: list[Share] = [{word: weights[0]} for word in texts[0]]
    total = weights[0]
    for count, (text, weight) in enumerate(zip(texts[1:], weights[1:], strict=True), 1):
        grown: list[list[int]] = []
        grown_shares: list[Share] = []
        for first, last, words in _stretches(shares, text):
            pairs: Iterable[tuple[int | None, int]]
            if last - first == 1 == len(words):  # nearly always
                pairs = ((0, words[0]),)
            else:
                pairs = _aligned(shares[first:last], words, total, unlikeness)
            for place, word in pairs:
                if place is None:
                    slot, share = [NO_WORD] * count, {NO_WORD: total}
                else:
                    slot, share = slots[first + place], shares[first + place]
                slot.append(word)
                share[word] = share.get(word, 0.0) + weight
                grown.append(slot)
                grown_shares.append(share)
        slots, shares = grown, grown_shares
        total += weight
    return slots


def _stretches(shares: Sequence[Share], text: Words) -> Iterator[tuple[int, int, Words]]:
    """Ranges of slots and the words of `text` that belong there, cut at the words in common.

    In common with the slots' heaviest words: nearly all of them are, and rapidfuzz finds them
    hundreds of times sooner than Python aligns.
    """
    heaviest = [
        max(share, key=share.__getitem__) if len(share) > 1 else next(iter(share))
        for share in shares
    ]
    places = [place for place, word in enumerate(heaviest) if word != NO_WORD]
    spine = [heaviest[place] for place in places]
    slot = position = 0
    for block in Levenshtein.opcodes(spine, text).as_matching_blocks():
        for i in range(block.size):
            at, word = places[block.a + i], block.b + i
            if at > slot or word > position:
                yield slot, at, text[position:word]
            yield at, at + 1, text[word : word + 1]
            slot, position = at + 1, word + 1
    if slot < len(shares) or position < len(text):
        yield slot, len(shares), text[position:]


def _aligned(
    shares: Sequence[Share], words: Words, total: float, unlikeness: Unlikeness
) -> Iterator[tuple[int | None, int]]:
    """A slot's index, or None for a new slot, and the word of `words` there, in order."""
    rows, columns = len(shares), len(words)
    if min(rows, columns) == 0 or rows * columns > MOST_STEPS:
        for i in range(max(rows, columns)):
            yield i if i < rows else None, words[i] if i < columns else NO_WORD
        return
    skip = [total - share.get(NO_WORD, 0.0) for share in shares]
    # Expected edits of the slots from i on against the words from j on: (rows + 1, columns + 1).
    edits = [[total * (columns - j) for j in range(columns + 1)] for _ in range(rows + 1)]
    beside = [[0.0] * columns for _ in range(rows)]  # … where word j stands in slot i
    for i in reversed(range(rows)):
        share, here, below = shares[i], edits[i], edits[i + 1]
        here[columns] = below[columns] + skip[i]
        for j in reversed(range(columns)):
            beside[i][j] = below[j + 1] + _cost(share, words[j], unlikeness)
            here[j] = min(beside[i][j], below[j] + skip[i], here[j + 1] + total)
    i = j = 0
    while i < rows and j < columns:
        if edits[i][j] == beside[i][j]:
            yield i, words[j]
            i, j = i + 1, j + 1
        elif edits[i][j] == edits[i + 1][j] + skip[i]:
            yield i, NO_WORD
            i += 1
        else:
            yield None, words[j]
            j += 1
    for place in range(i, rows):
        yield place, NO_WORD
    for word in words[j:]:
        yield None, word


def _cost(share: Share, word: int, unlikeness: Unlikeness) -> float:
    cost = 0.0
    for other, weight in share.items():
        if other == NO_WORD:
            cost += weight
        elif other != word:
            cost += weight * unlikeness(other, word)
    return cost
