"""The rule for true masks, where the truth is known: on drawn scenes."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import masks
import nouns
import scenes


def iou(one: masks.Mask, other: masks.Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


@given(st.integers(0, 2**32 - 1))
def test_drawn_objects_are_found_to_the_pixel(seed: int) -> None:
    scene = scenes.sample(np.random.default_rng(seed), "held_out")
    found = masks.find(scene.image, scene.caption)
    for one, mask, phrase in zip(found, scene.object_masks, scene.caption.phrases, strict=True):
        assert one.noun == phrase.noun
        assert iou(one.mask, mask) >= 0.99


def test_the_rule_survives_noise_of_the_autoencoder_s_size() -> None:
    rng = np.random.default_rng(0)
    ious, right = [], []
    for scene in islice(scenes.stream(7, "held_out"), 40):
        noise = rng.normal(0, 12, scene.image.shape)
        image = (scene.image + noise).round().clip(0, 255).astype(np.uint8)
        found = masks.find(image, scene.caption)
        for one, mask, phrase in zip(found, scene.object_masks, scene.caption.phrases, strict=True):
            ious.append(iou(one.mask, mask))
            right.append(one.noun == phrase.noun)
    assert np.mean(ious) >= 0.95
    assert np.mean(right) >= 0.95


def test_what_is_not_there_is_not_found() -> None:
    scene = scenes.sample(np.random.default_rng(0))
    image = scene.image.copy()
    image[scene.object_masks[1]] = scenes.PLACES[scene.caption.place]
    first, second = masks.find(image, scene.caption)
    assert first.present
    assert not second.present
    assert second.noun is None
    assert not second.mask.any()


def test_an_object_of_the_wrong_color_does_not_count() -> None:
    scene = scenes.sample(np.random.default_rng(0))
    named = {phrase.color for phrase in scene.caption.phrases}
    other = next(color for color in scenes.COLORS if color not in named)
    image = scene.image.copy()
    body = (image == scenes.COLORS[scene.caption.first.color]).all(-1)
    image[body] = scenes.COLORS[other]
    assert not masks.find(image, scene.caption)[0].present


@pytest.mark.parametrize("noun", list(nouns.DRAWINGS))
@pytest.mark.parametrize("radius", list(scenes.RADII.values()))
def test_a_noun_is_recognized_at_every_size_and_place(noun: str, radius: float) -> None:
    for center in ((32.0, 32.0), (20.3, 35.7)):
        assert masks.classify(nouns.draw(noun, center, radius, scenes.SIDE)) == noun
