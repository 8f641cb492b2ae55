"""Parts of speech and syntax: how large words' maps are, and how far those of two words overlap.

The statistics of "What the DAAM" (Tang et al., arXiv 2210.04885) over any spaCy `Doc` of a prompt,
and sums of them over many prompts. Maps come as boolean masks: this module needs no torch.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from itertools import combinations
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from daam_diffusers.prompt import Prompt, Word

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

Mask = npt.NDArray[np.bool_]
Key = tuple[str, str, str]
"""Table, row and column of a mean: `("relations", "amod", "IoU")`."""

# Rows that are no relation's own, and those of pairs of nouns.
ALL, UNRELATED = "all relations", "unrelated words"
SAME, TWO = "one category", "two categories"
NOUNS = ("NOUN", "PROPN")
_BLOCK = 1 << 16  # pixels multiplied at once: float32 counts them exactly
# Relations that spaCy's English models name otherwise than Universal Dependencies do.
_UNIVERSAL = {"dobj": "obj", "nsubjpass": "nsubj:pass", "poss": "nmod:poss", "relcl": "acl:relcl"}


@dataclass(frozen=True)
class Mean:
    """Mean over the words, or pairs of words, of many images, kept as sums.

    Words of one image are not independent of each other, so the interval is one over images: that
    of a ratio of sums over clusters (Cochran, "Sampling Techniques", 1977, chapter 6).

        >>> Mean.of([0.25, 0.75]) + Mean.of([0.5])
        Mean(images=2, count=3, total=1.5, squares=1.25, products=2.5, counts=5)
        >>> str(Mean.of([0.25, 0.75]) + Mean.of([0.5]) + Mean.of([0.75]))
        '0.562 ± 0.140'

    Attributes:
        images: how many images had at least one value.
        count: how many values there were.
        total: their sum.
        squares, products, counts: sums over images of (total of the image)², of total times
            count, and of count².
    """

    images: int = 0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    counts: int = 0

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The values of one image; those that are NaN do not exist and are left out."""
        known = [float(value) for value in values if not math.isnan(value)]
        if not known:
            return cls()
        n, total = len(known), sum(known)
        return cls(1, n, total, total**2, total * n, n**2)

    def __add__(self, other: Mean) -> Mean:
        return Mean(*map(add, astuple(self), astuple(other)))

    def __str__(self) -> str:
        return f"{self.value:.3f}" + f" ± {self.margin:.3f}" * (self.images > 1)

    @property
    def value(self) -> float:
        """The mean of all values, NaN if there are none."""
        return self.total / self.count if self.count else math.nan

    @property
    def margin(self) -> float:
        """Half the width of the 95% interval, 1.96 standard errors; NaN for one image alone."""
        if self.images < 2:
            return math.nan
        r, n = self.value, self.images
        spread = max(0.0, self.squares - 2 * r * self.products + r**2 * self.counts)
        return 1.96 * math.sqrt(spread * n / (n - 1)) / self.count


@dataclass(frozen=True)
class Statistics:
    """Means by table, row and column, and counts of what they are over; see `measure`.

    Its size does not grow with the number of images.
    """

    means: Mapping[Key, Mean] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def merge(self, *others: Statistics) -> Statistics:
        """The statistics of all images together, in any order and from any processes."""
        means, counts = dict(self.means), Counter(self.counts)
        for other in others:
            counts.update(other.counts)
            for key, mean in other.means.items():
                means[key] = means.get(key, Mean()) + mean
        return Statistics(means, counts)

    @classmethod
    def of(cls, values: Mapping[Key, Sequence[float]], **counts: int) -> Statistics:
        """The statistics of one image, from its values."""
        means = {key: Mean.of(found) for key, found in values.items()}
        return cls({key: mean for key, mean in means.items() if mean.count}, counts)


def align(doc: Doc, prompt: Prompt) -> list[Word | None]:
    """Find, for each token of a Doc, the columns of all tokens of the prompt that it overlaps.

    Parser and tokenizer may divide a word differently: where spaCy reads "do" and "n't" and CLIP
    "don" and "'t", the first has the column of "don" and the second those of both. White space
    and what the text encoder did not read are None.

    Raises:
        ValueError: the Doc is of another text.
    """
    if doc.text != prompt.text:
        raise ValueError(f"the Doc is of {doc.text!r:.80}, and the prompt is {prompt.text!r:.80}")
    return [
        None if token.is_space else _word(prompt, token.idx, token.idx + len(token))
        for token in doc
    ]


def _word(prompt: Prompt, start: int, end: int) -> Word | None:
    word = prompt._word(start, end)
    return word if word.columns else None


def relations(doc: Doc) -> Iterator[tuple[str, Token, Token]]:
    """Name, head and dependent of each relation, named as enhanced Universal Dependencies do.

    The names of spaCy's English models are turned into those: "a pile of oranges" has
    `nmod:of(pile, oranges)` and `case(oranges, of)`, "cat and dog" `conj:and(cat, dog)`. Names
    that are universal already, and those that have no such counterpart, stay as they are.

    Raises:
        ValueError: the Doc is not parsed.
    """
    if not doc.has_annotation("DEP"):
        raise ValueError("the Doc is not parsed: make it with a spaCy model that has a parser")
    for token in doc:
        head, name = token.head, token.dep_
        if head.i == token.i or token.is_space:
            continue
        if name == "pobj":
            yield "case", token, head
            kind = "nmod" if head.head.pos_ in (*NOUNS, "PRON") else "obl"
            if head.head.i != head.i:
                yield f"{kind}:{head.lower_}", head.head, token
        elif name == "prep" and any(child.dep_ == "pobj" for child in token.children):
            continue  # its object has said both
        elif name in ("nmod", "obl"):
            case = next((child.lower_ for child in token.children if child.dep_ == "case"), "")
            yield f"{name}:{case}".rstrip(":"), head, token
        elif name == "conj":
            yield f"conj:{_coordinator(token)}".rstrip(":"), head, token
        else:
            yield _UNIVERSAL.get(name, name), head, token


def _coordinator(token: Token) -> str:
    """The "and" of "a cat, a dog and a bird", for either noun that it joins to another."""
    joined = (token.head, token, *token.conjuncts)
    children = (child for each in joined for child in each.children)
    return next((str(child.lower_) for child in children if child.dep_ == "cc"), "")


def named_nouns(
    doc: Doc, prompt: Prompt, categories: Mapping[str, str]
) -> Iterator[tuple[str, str, Word]]:
    """Name, category and place of each noun, or group of words, that a table of categories has.

    A noun is found as written or by its lemma, in any letters: "zebras" is "zebra". Of "teddy
    bear" and "bear" the longer name counts.
    """
    longest = max((len(name.split()) for name in categories), default=0)
    known = {name.lower(): category for name, category in categories.items()}
    start = 0
    while start < len(doc):
        for end in range(min(len(doc), start + longest), start, -1):
            span = doc[start:end]
            lemma = " ".join(token.lemma_.lower() for token in span)
            name = next((form for form in (span.text.lower(), lemma) if form in known), None)
            if name is not None and span[-1].pos_ in NOUNS:
                if word := _word(prompt, span.start_char, span.end_char):
                    yield name, known[name], word
                start = end - 1
                break
        start += 1


def intersections(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Count the pixels that each two of (n, pixels) masks share, (n, n); areas on the diagonal."""
    shared = np.zeros((len(masks), len(masks)))
    for start in range(0, masks.shape[1], _BLOCK):
        block = masks[:, start : start + _BLOCK].astype(np.float32)
        shared += block @ block.T
    return shared


def measure(
    doc: Doc,
    prompt: Prompt,
    mask: Callable[[Word], Mask],
    categories: Mapping[str, str] | None = None,
) -> Statistics:
    """The statistics of one image.

    - `intensity`: by part of speech, the share of pixels in a word's mask. It is a thresholded
      area: how wide a word's map is, not how much the word changes the picture.
    - `relations`: by dependency relation, the overlap of head and dependent: intersection over
      union, `IoU`, over the dependent's mask, `IoD`, and over the head's, `IoH`. IoD above IoH
      says that the head's map is the wider one. Beside them all relations together, and the IoU
      of any two words without one.
    - `cohyponyms`: the IoU of each two different nouns of one category, and of two.

    Words that share a token, and so part of a map, are no pair. `counts` says how many `images`
    there were, words that have no map, `unread`, and pairs that are none, `shared`.

    Args:
        doc: parsed and tagged.
        prompt: of the same text.
        mask: of a word, bool, all of one shape; of a video that of all frames.
        categories: name of a noun to its category, `{"zebra": "animal", "fridge": "appliance"}`.

    Raises:
        ValueError: the Doc is of another text, not parsed or not tagged.
    """
    if not doc.has_annotation("POS"):
        raise ValueError("the Doc has no parts of speech: make it with a spaCy model that tags")
    words = align(doc, prompt)
    nouns = list(named_nouns(doc, prompt, categories or {}))
    masks: dict[tuple[int, ...], Mask] = {}
    for word in (*words, *(noun for _, _, noun in nouns)):
        if word is not None and word.columns not in masks:
            masks[word.columns] = mask(word).ravel()
    shared = intersections(np.stack([*masks.values()])) if masks else np.zeros((0, 0))
    at = {columns: index for index, columns in enumerate(masks)}
    values: defaultdict[Key, list[float]] = defaultdict(list)
    counts = {"images": 1, "unread": 0, "shared": 0}

    def overlap(one: Word | None, other: Word | None) -> dict[str, float]:
        if one is None or other is None or _share(one, other):
            return {}
        i, j = at[one.columns], at[other.columns]
        areas = {"IoU": shared[i, i] + shared[j, j] - shared[i, j]}
        areas |= {"IoD": shared[i, i], "IoH": shared[j, j]}
        return {name: shared[i, j] / area if area else math.nan for name, area in areas.items()}

    for token, word in zip(doc, words, strict=True):
        if word is not None:
            area = shared[at[word.columns], at[word.columns]]
            values["intensity", token.pos_, "area"].append(area / len(masks[word.columns]))
        elif not token.is_space:
            counts["unread"] += 1
    related = set()
    for name, head, dependent in relations(doc):
        related.add(frozenset((head.i, dependent.i)))
        for column, value in overlap(words[dependent.i], words[head.i]).items():
            values["relations", name, column].append(value)
            values["relations", ALL, column].append(value)
    for (i, one), (j, other) in combinations(enumerate(words), 2):
        counts["shared"] += one is not None and other is not None and _share(one, other)
        if frozenset((i, j)) not in related and (found := overlap(one, other)):
            values["relations", UNRELATED, "IoU"].append(found["IoU"])
    for (name, kind, noun), (other_name, other_kind, other_noun) in combinations(nouns, 2):
        if name != other_name and (found := overlap(noun, other_noun)):
            values["cohyponyms", SAME if kind == other_kind else TWO, "IoU"].append(found["IoU"])
    return Statistics.of(values, **counts)


def _share(one: Word, other: Word) -> bool:
    return not set(one.columns).isdisjoint(other.columns)


def adjectives(doc: Doc) -> Iterator[tuple[str, int, int]]:
    """Each adjective of a noun: the prompt with a gap in its place, adjective and noun.

    Two prompts with one frame differ in that adjective alone, "a" and "an" before it aside; the
    numbers of adjective and noun count the Doc's tokens.
    """
    for token in doc:
        if token.pos_ == "ADJ" and token.dep_ == "amod" and token.head.pos_ in NOUNS:
            words = [each.lower_ for each in doc]
            words[token.i] = "_"
            if token.i and words[token.i - 1] in ("a", "an"):
                words[token.i - 1] = "a(n)"
            yield " ".join(words), token.i, token.head.i


def change(
    before: npt.NDArray[np.floating[Any]], after: npt.NDArray[np.floating[Any]], inside: Mask
) -> tuple[float, float]:
    """Mean absolute difference of two images or maps, inside and outside a mask.

        >>> change(np.array([[0.0, 0.5]]), np.array([[1.0, 0.5]]), np.array([[True, False]]))
        (1.0, 0.0)

    Args:
        before, after: (H, W), (H, W, 3) or, of a video, (F, H, W).
        inside: bool, (H, W) or (F, H, W); where it covers nothing, or all, one of the two is NaN.
    """
    differences = np.abs(before - after)
    parts = (differences[inside], differences[~inside])
    inner, outer = (float(part.mean()) if part.size else math.nan for part in parts)
    return inner, outer
