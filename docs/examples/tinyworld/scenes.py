"""Tinyworld's scenes: two objects on a background, a caption in plain English, exact masks.

    >>> import numpy as np
    >>> import scenes
    >>> scene = scenes.sample(np.random.default_rng(0))
    >>> str(scene.caption)
    'a purple cloud below one orange flower at night'
    >>> scene.image.shape, scene.image.dtype
    ((64, 64, 3), dtype('uint8'))

A caption is `DETERMINER [SIZE] COLOR NOUN RELATION DETERMINER [SIZE] COLOR NOUN [PLACE]`, as in
"a red house left of the small green tree at night". Its two objects differ in noun and in color.
A tenth of all unordered pairs of colored nouns is held out: no scene of the training split shows
such a pair, in any arrangement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nouns import BODY, DRAWINGS, INK, NOTHING, PAPER, PLURALS, draw

SIDE = 64
"""Height and width of a scene in pixels."""

RGB = tuple[int, int, int]
Mask = NDArray[np.bool_]
Split = Literal["train", "held_out"]

COLORS: Mapping[str, RGB] = MappingProxyType(
    {
        "red": (214, 32, 32),
        "orange": (255, 140, 0),
        "yellow": (255, 228, 40),
        "green": (30, 165, 60),
        "blue": (30, 80, 225),
        "purple": (150, 45, 190),
    }
)
INK_RGB: RGB = (16, 16, 20)
PAPER_RGB: RGB = (250, 250, 246)

PLACES: Mapping[str, RGB] = MappingProxyType(
    {
        "": (170, 212, 240),
        "at night": (48, 50, 104),
        "at dusk": (222, 150, 160),
        "in the fog": (148, 152, 152),
    }
)
"""What a caption ends with, and the background it stands for; "" is a plain day."""

RADII: Mapping[str, float] = MappingProxyType({"small": 10.0, "": 12.5, "big": 15.0})
"""Size word to half the object's extent in pixels; "" is no size word."""

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below", "beside", "and")
DETERMINERS: tuple[str, ...] = ("a", "the", "one", "two")

_PAIR_RADIUS = 7.5  # of each of "two ..." objects, which share one object's place
# Captions mostly name objects in reading order. When every relation was equally likely, the
# denoiser did not learn within 3,000 steps which phrase belongs to which place.
_RELATION_ODDS = (0.32, 0.05, 0.32, 0.05, 0.13, 0.13)
_DETERMINER_ODDS = (0.62, 0.25, 0.1, 0.03)
_SIZE_ODDS = (0.06, 0.88, 0.06)
_PLACE_ODDS = (0.46, 0.18, 0.18, 0.18)
_HELD_OUT_OF = 10


@dataclass(frozen=True)
class Phrase:
    """One object as the caption names it: `determiner [size] color noun`."""

    determiner: str
    size: str
    color: str
    noun: str

    @property
    def count(self) -> int:
        """How many are drawn: 2 after "two", else 1."""
        return 2 if self.determiner == "two" else 1

    @property
    def words(self) -> tuple[str, ...]:
        """The phrase's words, "an" and plurals in their places."""
        article = (
            "an"
            if self.determiner == "a" and not self.size and self.color == "orange"
            else self.determiner
        )
        noun = PLURALS[self.noun] if self.count == 2 else self.noun
        return tuple(word for word in (article, self.size, self.color, noun) if word)


@dataclass(frozen=True)
class Caption:
    """What a scene says, before it is drawn: two phrases, their relation and a place."""

    first: Phrase
    relation: str
    second: Phrase
    place: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words of `str(self)`, in order."""
        return (*self.first.words, *self.relation.split(), *self.second.words, *self.place.split())

    @property
    def phrases(self) -> tuple[Phrase, Phrase]:
        """Both objects, in the order in which they are named."""
        return self.first, self.second

    def noun_index(self, which: int) -> int:
        """Index into `words` of the first (0) or second (1) noun; its color comes before it."""
        if which == 0:
            return len(self.first.words) - 1
        return len(self.words) - len(self.place.split()) - 1

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class Scene:
    """A drawn caption.

    Attributes:
        caption: what was drawn.
        image: (64, 64, 3) uint8 RGB.
        object_masks: two disjoint (64, 64) bool masks, body and accents, in the caption's order.
    """

    caption: Caption
    image: NDArray[np.uint8]
    object_masks: tuple[Mask, Mask]

    @property
    def word_masks(self) -> tuple[Mask | None, ...]:
        """One entry a word of the caption: the object's mask for nouns and colors, else None."""
        masks: list[Mask | None] = [None] * len(self.caption.words)
        for which, mask in enumerate(self.object_masks):
            noun = self.caption.noun_index(which)
            masks[noun] = masks[noun - 1] = mask
        return tuple(masks)


def vocabulary() -> tuple[str, ...]:
    """Every word a caption can hold, sorted."""
    phrases = " ".join((*RELATIONS, *PLACES))
    words = {*DETERMINERS, "an", *RADII, *COLORS, *DRAWINGS, *PLURALS.values(), *phrases.split()}
    return tuple(sorted(words - {""}))


def is_held_out(caption: Caption) -> bool:
    """Whether the caption's pair of colored nouns is kept out of training, in any arrangement."""
    pair = sorted(f"{phrase.color} {phrase.noun}" for phrase in caption.phrases)
    digest = hashlib.blake2b(" + ".join(pair).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT_OF == 0


def sample_caption(rng: np.random.Generator, split: Split = "train") -> Caption:
    """Draw a caption of one split at random."""
    while True:
        nouns = rng.choice(list(DRAWINGS), 2, replace=False)
        colors = rng.choice(list(COLORS), 2, replace=False)
        phrases = []
        for noun, color in zip(nouns, colors, strict=True):
            determiner = str(rng.choice(DETERMINERS, p=_DETERMINER_ODDS))
            size = str(rng.choice(list(RADII), p=_SIZE_ODDS)) if determiner != "two" else ""
            phrases.append(Phrase(determiner, size, str(color), str(noun)))
        relation = str(rng.choice(RELATIONS, p=_RELATION_ODDS))
        caption = Caption(
            phrases[0], relation, phrases[1], str(rng.choice(list(PLACES), p=_PLACE_ODDS))
        )
        if is_held_out(caption) == (split == "held_out"):
            return caption


def _centers(
    caption: Caption, rng: np.random.Generator
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the two objects go, (x, y) each, in the caption's order."""
    relation = caption.relation
    upright = relation in ("above", "below")
    first_comes_first = relation not in ("right of", "below")
    centers = []
    for which, phrase in enumerate(caption.phrases):
        radius = RADII[phrase.size]
        slack = max(0.0, SIDE / 4 - radius - 1)  # keeps each object in its own half
        near = (which == 0) == first_comes_first
        along = SIDE * (0.25 if near else 0.75) + rng.uniform(-slack, slack)
        across = SIDE / 2 + rng.uniform(-7, 7)
        centers.append((across, along) if upright else (along, across))
    return centers[0], centers[1]


def _labels(phrase: Phrase, center: tuple[float, float], upright: bool) -> NDArray[np.uint8]:
    """(64, 64) uint8 labels of one phrase's object, or of its pair of objects."""
    if phrase.count == 1:
        return draw(phrase.noun, center, RADII[phrase.size], SIDE)
    offset = _PAIR_RADIUS + 1
    dx, dy = (offset, 0.0) if upright else (0.0, offset)  # across the relation: there is the room
    halves = [
        draw(phrase.noun, (center[0] + sign * dx, center[1] + sign * dy), _PAIR_RADIUS, SIDE)
        for sign in (-1, 1)
    ]
    return np.maximum(halves[0], halves[1])


def draw_scene(caption: Caption, rng: np.random.Generator) -> Scene:
    """Draw a caption; the generator decides on what the caption leaves open, the exact places."""
    image = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    image[:] = PLACES[caption.place]
    masks = []
    upright = caption.relation in ("above", "below")
    for phrase, center in zip(caption.phrases, _centers(caption, rng), strict=True):
        labels = _labels(phrase, center, upright)
        image[labels == BODY] = COLORS[phrase.color]
        image[labels == INK] = INK_RGB
        image[labels == PAPER] = PAPER_RGB
        masks.append(labels != NOTHING)
    return Scene(caption, image, (masks[0], masks[1]))


def sample(rng: np.random.Generator, split: Split = "train") -> Scene:
    """Draw a random scene of one split."""
    return draw_scene(sample_caption(rng, split), rng)


def stream(seed: int, split: Split = "train") -> Iterator[Scene]:
    """Scenes of one split without end; the same ones in the same order for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield sample(rng, split)
