"""The eight things of tinyworld: one silhouette and one texture a noun, in any color.

A noun decides where an object's pixels lie and how its two accents, near-black ink and near-white
paper, are laid out inside it; the color of the rest, its body, is left to the adjective. Neither
word can be read off the other, and both are needed all over the object.

Each drawing is a function of unit coordinates: x grows to the right and y downwards, and the object
fits into the square [-1, 1] x [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Coordinates = NDArray[np.float64]
Labels = NDArray[np.uint8]

NOTHING, BODY, INK, PAPER = range(4)


def _paint(*layers: tuple[NDArray[np.bool_], int]) -> Labels:
    """Stack (where, label) layers, later ones on top."""
    labels = np.full(layers[0][0].shape, NOTHING, dtype=np.uint8)
    for where, label in layers:
        labels[where] = label
    return labels


def _box(
    x: Coordinates, y: Coordinates, x0: float, x1: float, y0: float, y1: float
) -> NDArray[np.bool_]:
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)


def _disc(x: Coordinates, y: Coordinates, cx: float, cy: float, radius: float) -> NDArray[np.bool_]:
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def _house(x: Coordinates, y: Coordinates) -> Labels:
    roof = (y >= -1) & (y <= 0) & (np.abs(x) <= y + 1)
    walls = _box(x, y, -0.78, 0.78, 0, 1)
    door = _box(x, y, -0.2, 0.2, 0.4, 1)
    windows = _box(np.abs(x), y, 0.32, 0.64, 0.12, 0.56) | _disc(x, y, 0, -0.38, 0.2)
    return _paint((roof | walls, BODY), (windows, PAPER), (door, INK))


def _tree(x: Coordinates, y: Coordinates) -> Labels:
    tiers = [
        (y >= top) & (y <= top + 0.72) & (np.abs(x) <= width * (y - top) / 0.72)
        for top, width in ((-1.0, 0.62), (-0.56, 0.8), (-0.12, 0.96))
    ]
    crown = tiers[0] | tiers[1] | tiers[2]
    garlands = crown & ((np.abs(y + 0.36) <= 0.11) | (np.abs(y - 0.12) <= 0.11))
    trunk = _box(x, y, -0.18, 0.18, 0.55, 1)
    return _paint((trunk, INK), (crown, BODY), (garlands, INK))


def _sun(x: Coordinates, y: Coordinates) -> Labels:
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    rays = (radius <= 1) & (np.abs(np.sin(4 * angle)) >= 0.62)
    disc = radius <= 0.66
    return _paint((rays | disc, BODY), (radius <= 0.4, PAPER))


def _boat(x: Coordinates, y: Coordinates) -> Labels:
    hull = (y >= 0.3) & (y <= 0.95) & (np.abs(x) <= 1 - 0.6 * (y - 0.3))
    right = (x >= 0.06) & (y >= -1) & (y <= 0.2) & (x <= 0.06 + 0.8 * (y + 1) / 1.2)
    left = (x <= -0.06) & (y >= -0.8) & (y <= 0.2) & (-x <= 0.06 + 0.7 * (y + 0.8))
    mast = _box(x, y, -0.1, 0.1, -1, 0.3)
    bands = (hull & (np.abs(y - 0.58) <= 0.12)) | ((left | right) & (np.abs(y + 0.14) <= 0.12))
    return _paint((hull | left | right, BODY), (bands, PAPER), (mast, INK))


def _car(x: Coordinates, y: Coordinates) -> Labels:
    chassis = _box(x, y, -1, 1, -0.1, 0.5)
    cabin = (y >= -0.68) & (y <= 0) & (np.abs(x) <= 0.62 + 0.2 * (y + 0.1))
    windows = _box(np.abs(x), y, 0.08, 0.42, -0.5, -0.12)
    wheels = _disc(np.abs(x), y, 0.55, 0.5, 0.3)
    return _paint((chassis | cabin, BODY), (windows, PAPER), (wheels, INK))


def _cloud(x: Coordinates, y: Coordinates) -> Labels:
    puffs = (
        _disc(x, y, -0.55, 0.12, 0.45)
        | _disc(x, y, 0.0, -0.2, 0.52)
        | _disc(x, y, 0.55, 0.1, 0.45)
        | _box(x, y, -0.6, 0.6, 0.1, 0.57)
    )
    rows = (np.abs(y - 0.3) <= 0.12) & (np.abs(np.abs(x) - 0.32) <= 0.18)
    top = (np.abs(y + 0.2) <= 0.12) & (np.abs(x) <= 0.2)
    return _paint((puffs, BODY), (rows | top, PAPER))


def _fish(x: Coordinates, y: Coordinates) -> Labels:
    trunk = ((x - 0.22) / 0.78) ** 2 + (y / 0.6) ** 2 <= 1
    tail = (x >= -1) & (x <= -0.3) & (np.abs(y) <= 0.62 - 0.75 * (x + 1))
    stripes = trunk & ((np.abs(x + 0.12) <= 0.12) | (np.abs(x - 0.34) <= 0.12))
    eye = _disc(x, y, 0.72, -0.1, 0.15)
    return _paint((trunk | tail, BODY), (stripes, INK), (eye, PAPER))


def _flower(x: Coordinates, y: Coordinates) -> Labels:
    petals = np.zeros(x.shape, dtype=np.bool_)
    for k in range(6):
        angle = np.pi * k / 3
        petals |= _disc(x, y, 0.6 * np.cos(angle), 0.6 * np.sin(angle), 0.36)
    petals |= _disc(x, y, 0, 0, 0.5)
    return _paint((petals, BODY), (_disc(x, y, 0, 0, 0.33), INK))


DRAWINGS: Mapping[str, Callable[[Coordinates, Coordinates], Labels]] = MappingProxyType(
    {
        "house": _house,
        "tree": _tree,
        "sun": _sun,
        "boat": _boat,
        "car": _car,
        "cloud": _cloud,
        "fish": _fish,
        "flower": _flower,
    }
)
"""Noun to drawing; `PLURALS` has the same keys."""

PLURALS: Mapping[str, str] = MappingProxyType(
    {
        "house": "houses",
        "tree": "trees",
        "sun": "suns",
        "boat": "boats",
        "car": "cars",
        "cloud": "clouds",
        "fish": "fishes",
        "flower": "flowers",
    }
)


def draw(noun: str, center: tuple[float, float], radius: float, side: int) -> Labels:
    """Draw one object on an empty canvas.

    Args:
        noun: a key of `DRAWINGS`.
        center: (x, y) in pixels, from the canvas's top left corner.
        radius: half the object's extent in pixels.
        side: the canvas's height and width in pixels.

    Returns:
        (side, side) uint8 of NOTHING, BODY, INK and PAPER.

    Raises:
        ValueError: if the noun is not one of tinyworld's.
    """
    if noun not in DRAWINGS:
        raise ValueError(f"no drawing for {noun!r}: tinyworld's nouns are {', '.join(DRAWINGS)}.")
    pixels = np.arange(side) + 0.5  # pixel centers
    x, y = np.meshgrid((pixels - center[0]) / radius, (pixels - center[1]) / radius)
    return DRAWINGS[noun](x, y)
