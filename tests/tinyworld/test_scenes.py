"""Drawn scenes: what the caption says is what is drawn, and nothing else."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import masks
import nouns
import scenes

SPLITS = ("train", "held_out")
seeds = st.integers(0, 2**32 - 1)
splits = st.sampled_from(SPLITS)


def scene_of(seed: int, split: scenes.Split) -> scenes.Scene:
    return scenes.sample(np.random.default_rng(seed), split)


@given(seeds, splits)
def test_objects_lie_apart_and_inside_the_image(seed: int, split: scenes.Split) -> None:
    first, second = scene_of(seed, split).object_masks
    assert not (first & second).any()
    for mask in (first, second):
        assert mask.sum() >= masks.MIN_AREA
        # Nothing is cut off: an object may touch the border, but not with a whole side.
        assert max(mask[0].sum(), mask[-1].sum(), mask[:, 0].sum(), mask[:, -1].sum()) <= 12


@given(seeds, splits)
def test_an_object_has_its_adjective_s_color_and_its_noun_s_accents(
    seed: int, split: scenes.Split
) -> None:
    scene = scene_of(seed, split)
    accents = {scenes.INK_RGB, scenes.PAPER_RGB}
    for phrase, mask in zip(scene.caption.phrases, scene.object_masks, strict=True):
        shown = {tuple(int(v) for v in pixel) for pixel in scene.image[mask]}
        assert scenes.COLORS[phrase.color] in shown
        assert shown <= accents | {scenes.COLORS[phrase.color]}
    outside = scene.image[~scene.object_masks[0] & ~scene.object_masks[1]]
    assert (outside == scenes.PLACES[scene.caption.place]).all()


@given(seeds, splits)
def test_word_masks_belong_to_nouns_and_colors_only(seed: int, split: scenes.Split) -> None:
    scene = scene_of(seed, split)
    words = str(scene.caption).split()
    assert words == list(scene.caption.words)
    assert set(words) <= set(scenes.vocabulary())
    named = {*scenes.COLORS, *nouns.DRAWINGS, *nouns.PLURALS.values()}
    for word, mask in zip(words, scene.word_masks, strict=True):
        assert (mask is not None) == (word in named)


@given(seeds)
def test_objects_stand_as_the_relation_says(seed: int) -> None:
    scene = scene_of(seed, "train")
    first, second = scene.object_masks
    assert masks.stand_as_told(scene.caption.relation, first, second)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    wrong = opposite.get(scene.caption.relation, "above")
    assert not masks.stand_as_told(wrong, first, second)


@given(seeds, splits)
def test_objects_differ_in_noun_and_color(seed: int, split: scenes.Split) -> None:
    first, second = scene_of(seed, split).caption.phrases
    assert first.noun != second.noun
    assert first.color != second.color


@given(seeds, splits)
def test_the_same_seed_draws_the_same_scenes(seed: int, split: scenes.Split) -> None:
    for one, other in zip(
        islice(scenes.stream(seed, split), 3), islice(scenes.stream(seed, split), 3), strict=True
    ):
        assert one.caption == other.caption
        np.testing.assert_array_equal(one.image, other.image)


def pair(caption: scenes.Caption) -> frozenset[tuple[str, str]]:
    return frozenset((phrase.color, phrase.noun) for phrase in caption.phrases)


def test_no_held_out_pair_of_colored_nouns_is_ever_trained_on() -> None:
    rng = np.random.default_rng(3)
    trained = {pair(scenes.sample_caption(rng, "train")) for _ in range(4000)}
    held_out = {pair(scenes.sample_caption(rng, "held_out")) for _ in range(1000)}
    assert not trained & held_out
    # 28 pairs of nouns x 30 ordered pairs of colors; about a tenth of them held out
    assert 0.05 * 840 < len(held_out) < 0.15 * 840
    assert len(trained) > 0.8 * 840


@given(seeds)
def test_the_split_ignores_order_determiners_and_place(seed: int) -> None:
    caption = scenes.sample_caption(np.random.default_rng(seed))
    turned = scenes.Caption(caption.second, "above", caption.first, "at night")
    assert scenes.is_held_out(turned) == scenes.is_held_out(caption)


def test_every_word_is_used() -> None:
    rng = np.random.default_rng(0)
    seen: set[str] = set()
    for _ in range(4000):
        seen.update(scenes.sample_caption(rng).words)
    assert seen == set(scenes.vocabulary())


def test_captions_read_as_english() -> None:
    caption = scenes.Caption(
        scenes.Phrase("a", "", "orange", "house"),
        "left of",
        scenes.Phrase("two", "", "green", "tree"),
        "at night",
    )
    assert str(caption) == "an orange house left of two green trees at night"
    assert [caption.words[caption.noun_index(which)] for which in (0, 1)] == ["house", "trees"]


def test_an_unknown_noun_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'dragon'.*house"):
        nouns.draw("dragon", (32, 32), 12, 64)
