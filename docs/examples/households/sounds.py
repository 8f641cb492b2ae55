"""How far apart words sound: a rough English pronunciation and an edit distance between two.

Rough on purpose: it has to say that "night" is near "knight" and "light" and far from "garden", so
that simulated recognizers confuse what real ones could. It is no phonetic model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# One symbol a phone. Vowels: a e i o u, long A I Y O U, diphthong W, and R as in "her".
RULES = [
    (r"^kn", "n"),
    (r"^wr", "r"),
    (r"^wh", "w"),
    (r"eigh", "A"),
    (r"igh", "Y"),
    (r"ough|augh|aw|au", "O"),
    (r"ph", "f"),
    (r"tch|ch", "C"),
    (r"sh|ti(?=on)", "S"),
    (r"th", "T"),
    (r"ck|q", "k"),
    (r"x", "ks"),
    (r"dge", "J"),
    (r"sc(?=[eiy])|c(?=[eiy])", "s"),
    (r"c", "k"),
    (r"g(?=[eiy])", "J"),
    (r"ee|ea|ie|(?<=.)y$|ey$", "I"),
    (r"ai|ay|a(?=[^aeiou]e$)", "A"),
    (r"oo|ue|ew|u(?=[^aeiou]e$)", "U"),
    (r"ou|ow", "W"),
    (r"oa|o(?=[^aeiou]e$)|o$", "O"),
    (r"i(?=[^aeiou]e$)|ye|y", "Y"),
    (r"[eiou]r(?=[^aeiou]|$)", "R"),
    (r"(?<=[^aeiouAIYOUWR])e$", ""),
    (r"(.)\1", r"\1"),
]
# Spellings that the rules get wrong, and titles that are not in Latin letters.
SPOKEN = {
    "one": "wun",
    "for": "fOr",
    "four": "fOr",
    "your": "yOr",
    "or": "Or",
    "war": "wOr",
    "you": "yU",
    "do": "dU",
    "where": "wAr",
    "wear": "wAr",
    "two": "tU",
    "to": "tU",
    "eight": "At",
    "ate": "At",
    "eye": "Y",
    "sea": "sI",
    "the": "Te",
    "of": "ov",
    "great": "grAt",
    "bear": "bAr",
    "bare": "bAr",
    "heart": "hart",
    "blood": "blud",
    "wore": "wOr",
    "our": "WR",
    "hour": "WR",
    "夜の港": "yOrunOminatO",
    "синий": "sinI",
    "трамвай": "tramvY",
    "قمر": "kamar",
    "المدينة": "almadIna",
}

VOWELS = "aeiouAIYOUWR"
ALIKE = [
    *("pb", "td", "kg", "fv", "sz", "SJ", "CJ", "SC", "Tt", "Tf", "Td", "mn", "lr", "wv", "sS"),
    *("aA", "eI", "iI", "iY", "oO", "uU", "ei", "ea", "oW", "OW", "uo", "eR", "oR"),
]


def pronounce(word: str) -> str:
    """`word` in phones, a character each; letters lose their accents.

    >>> pronounce("knight"), pronounce("night"), pronounce("Brücke")
    ('nYt', 'nYt', 'brUk')
    """
    if word in SPOKEN:
        return SPOKEN[word]
    letters = unicodedata.normalize("NFKD", word.casefold())
    phones = "".join(letter for letter in letters if letter.isalnum())
    for pattern, phone in RULES:
        phones = re.sub(pattern, phone, phones)
    return phones


def distances(a: Sequence[str], b: Sequence[str]) -> npt.NDArray[np.float32]:
    """Edit distance from every pronunciation in `a` to every one in `b`: float32, (A, B).

    Like phones cost less to exchange than unlike ones, and vowels less to drop than consonants.
    """
    phones = sorted(set("".join([*a, *b])))
    exchange = np.array([[_exchange(p, q) for q in phones] for p in phones], np.float32)
    drop = np.array([0.5 if p in VOWELS or p in "hy" else 0.8 for p in phones], np.float32)
    # One more row and column for the padding, which costs nothing.
    exchange = np.pad(exchange, (0, 1))
    drop = np.append(drop, np.float32(0))
    rows, columns = _padded(a, phones), _padded(b, phones)  # (A, L), (B, M)
    across = np.cumsum(drop[columns], axis=1)  # (B, M)
    above = [np.zeros((len(a), len(b)), np.float32)]
    above += [np.repeat(across[None, :, j], len(a), axis=0) for j in range(columns.shape[1])]
    for i in range(rows.shape[1]):
        cost = drop[rows[:, i]][:, None]  # (A, 1)
        inside = (rows[:, i] < len(phones))[:, None]
        current = [above[0] + cost]
        for j in range(columns.shape[1]):
            step = np.minimum(above[j + 1] + cost, current[j] + drop[columns[:, j]][None, :])
            swapped = above[j] + exchange[rows[:, i][:, None], columns[:, j][None, :]]
            # Past either end nothing happens: the distance is that of the shorter prefix.
            step = np.minimum(step, swapped)
            step = np.where((columns[:, j] < len(phones))[None, :], step, current[j])
            current.append(np.where(inside, step, above[j + 1]))
        above = current
    return above[-1]


def _exchange(p: str, q: str) -> float:
    if p == q:
        return 0.0
    if p + q in ALIKE or q + p in ALIKE:
        return 0.3
    if (p in VOWELS) != (q in VOWELS):
        return 1.3
    return 0.6 if p in VOWELS else 0.9


def _padded(spoken: Sequence[str], phones: Sequence[str]) -> npt.NDArray[np.int64]:
    index = {phone: i for i, phone in enumerate(phones)}
    table = np.full((len(spoken), max(map(len, spoken), default=0)), len(phones))
    for row, word in enumerate(spoken):
        table[row, : len(word)] = [index[phone] for phone in word]
    return table
