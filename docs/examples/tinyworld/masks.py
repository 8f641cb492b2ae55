"""True masks of a tinyworld image, from its colors alone: nothing here knows of attention.

The rule, for an image and the caption it was generated from:

1. every pixel takes the nearest color of the palette: the caption's background, the six colors,
   ink and paper;
2. an object's body is the largest patch of its color word, gaps of up to four pixels bridged (the
   two largest, after "two", if the second reaches a fifth of the first);
3. every body grows, one pixel a step and both at once, over neighboring pixels that are neither
   background nor body: so ink and paper fall to the object they touch. What is reached within
   `_REACH` steps is the object's mask;
4. an object is *present* if its mask has at least `MIN_AREA` pixels;
5. its noun is the one whose drawing, scaled to the same bounding box, is nearest.

Steps 1 to 4 judge color, step 5 silhouette and texture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

import nouns
import scenes

MIN_AREA = 80
"""Pixels below which an object counts as absent; the smallest drawn one has about 150."""

_REACH = 9  # pixels; half of a big boat's widest accent
_GRID = 12  # cells a side of a template
_STRAY = 0.2  # of the largest patch's area

Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Found:
    """One object as an image shows it.

    Attributes:
        mask: (H, W) bool, body and accents; all False where nothing has the caption's color.
        noun: the noun that the object looks most like, or None if it is absent.
    """

    mask: Mask
    noun: str | None

    @property
    def present(self) -> bool:
        """Whether there is enough of it to speak of an object."""
        return self.noun is not None


def _grow(mask: Mask) -> Mask:
    """The mask and its four-connected neighbors."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _patches(mask: Mask) -> list[Mask]:
    """Connected patches of a mask, largest first."""
    left = mask.copy()
    patches: list[Mask] = []
    while left.any():
        patch = np.zeros_like(left)
        patch.flat[int(left.argmax())] = True
        size = 0
        while size != (size := int(patch.sum())):
            patch = _grow(patch) & left
        patches.append(patch)
        left &= ~patch
    return sorted(patches, key=lambda patch: -int(patch.sum()))


def _nearest(image: Image, palette: list[scenes.RGB]) -> NDArray[np.int64]:
    """(H, W) index of each pixel's nearest palette color."""
    offsets = image[:, :, None, :].astype(np.int64) - np.asarray(palette)[None, None]
    nearest: NDArray[np.int64] = (offsets**2).sum(-1).argmin(-1)
    return nearest


def _body(nearest: Mask, count: int) -> Mask:
    """Step 2: the patches of one color that make up `count` objects.

    Ink and paper may cut a body in two (a mast, a fish's stripes), so patches are counted after the
    gaps of up to four pixels between them are bridged.
    """
    bridged = _grow(_grow(nearest))
    patches = [patch & nearest for patch in _patches(bridged)[:count]]
    if not patches:
        return nearest
    floor = _STRAY * patches[0].sum()
    body: Mask = np.logical_or.reduce([patch for patch in patches if patch.sum() >= floor])
    return body


def _label(image: Image, caption: scenes.Caption) -> tuple[NDArray[np.int64], list[str]]:
    """Step 1: (H, W) indices into the palette's names."""
    palette = {
        "background": scenes.PLACES[caption.place],
        "ink": scenes.INK_RGB,
        "paper": scenes.PAPER_RGB,
        **scenes.COLORS,
    }
    return _nearest(image, list(palette.values())), list(palette)


def find(image: Image, caption: scenes.Caption) -> tuple[Found, Found]:
    """Segment an image's two objects, in the caption's order.

    Args:
        image: (H, W, 3) uint8 RGB, drawn or generated.
        caption: what it shows, or was asked to show.
    """
    indices, names = _label(image, caption)
    bodies = [
        _body(indices == names.index(phrase.color), phrase.count) for phrase in caption.phrases
    ]
    free = (indices != names.index("background")) & ~bodies[0] & ~bodies[1]
    grown = [body.copy() for body in bodies]
    for _ in range(_REACH):
        reached = [_grow(mask) & free for mask in grown]
        grown[0] |= reached[0] & ~grown[1]
        grown[1] |= reached[1] & ~grown[0]
    labels = np.full(indices.shape, nouns.BODY, dtype=np.uint8)
    labels[indices == names.index("ink")] = nouns.INK
    labels[indices == names.index("paper")] = nouns.PAPER
    found = [
        _identify(mask, body, labels, phrase.count)
        for mask, body, phrase in zip(grown, bodies, caption.phrases, strict=True)
    ]
    return found[0], found[1]


def _identify(mask: Mask, body: Mask, labels: NDArray[np.uint8], count: int) -> Found:
    """Steps 4 and 5 for one object; of a pair, the larger one is classified."""
    if mask.sum() < MIN_AREA or body.sum() < MIN_AREA / 2:
        return Found(np.zeros_like(mask), None)
    one = mask if count == 1 else _patches(mask)[0]
    return Found(mask, classify(np.where(one, labels, nouns.NOTHING).astype(np.uint8)))


def stand_as_told(relation: str, first: Mask, second: Mask) -> bool:
    """Whether two objects lie to each other as a relation says, by their centers.

    "beside" and "and" ask for no order: the objects have to lie side by side.

    Args:
        relation: one of scenes.RELATIONS.
        first: (H, W) bool, not empty: the object named first.
        second: likewise, the other.
    """
    (y1, x1), (y2, x2) = (np.argwhere(mask).mean(0) for mask in (first, second))
    across, down = x2 - x1, y2 - y1
    holds = {
        "left of": across > abs(down),
        "right of": -across > abs(down),
        "above": down > abs(across),
        "below": -down > abs(across),
    }
    return bool(holds.get(relation, abs(across) > abs(down)))


def _template(labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of body, ink and paper in each cell of a square around an object.

    The square is the bounding box, padded to be square, so that width against height counts too.

    Returns:
        (12, 12, 3) float64.
    """
    ys, xs = np.nonzero(labels)
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    side = max(y1 - y0, x1 - x0)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - (y1 - y0)) // 2, (side - (x1 - x0)) // 2
    square[top : top + y1 - y0, left : left + x1 - x0] = labels[y0:y1, x0:x1]
    fine = np.arange(4 * _GRID) * side // (4 * _GRID)  # four samples a cell and axis
    resized = square[fine][:, fine]
    parts = np.stack([resized == label for label in (nouns.BODY, nouns.INK, nouns.PAPER)], -1)
    shares: NDArray[np.float64] = parts.reshape(_GRID, 4, _GRID, 4, 3).mean((1, 3))
    return shares


@cache
def _templates() -> dict[str, NDArray[np.float64]]:
    """One template a noun, from its drawing at the usual size."""
    center = (scenes.SIDE / 2, scenes.SIDE / 2)
    return {
        noun: _template(nouns.draw(noun, center, scenes.RADII[""], scenes.SIDE))
        for noun in nouns.DRAWINGS
    }


def classify(labels: NDArray[np.uint8]) -> str:
    """Step 5: the noun whose template a label image is nearest to.

    Args:
        labels: (H, W) of nouns.NOTHING, BODY, INK and PAPER, with something on it.
    """
    seen = _template(labels)
    distances = {noun: float(((seen - drawn) ** 2).sum()) for noun, drawn in _templates().items()}
    return min(distances, key=distances.__getitem__)
