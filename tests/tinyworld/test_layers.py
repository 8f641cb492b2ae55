"""Rules that weight layers: planted attention, by hand and against one another."""

from __future__ import annotations

import dataclasses
import math
from itertools import islice

import pytest
import torch

import evaluate
import layers
import masks
import scenes
from daam_diffusers.evaluation import mean_iou


def test_even_attention_weighs_nothing() -> None:
    even = torch.full((3, 4, 4), 0.2)
    for rule in layers.RULES.values():
        assert rule(even) == pytest.approx(0, abs=1e-6)


def test_words_in_cells_of_their_own_reach_the_logarithm_of_their_number() -> None:
    planted = torch.zeros(4, 4, 4)
    for word in range(4):
        planted[word, word] = 0.1  # a row each
    assert layers.information(planted) == pytest.approx(math.log(4))
    assert layers.concentration(planted) == pytest.approx(math.log(16 / 4))


def test_information_is_not_fooled_by_a_sink_that_all_words_share() -> None:
    sink = torch.full((4, 8, 8), 0.01)
    sink[:, 0, 0] = 0.9
    planted = torch.full((4, 8, 8), 0.01)
    for word in range(4):
        planted[word, 2 * word : 2 * word + 2] = 0.04
    assert layers.information(planted) > 0.05
    assert layers.information(sink) == pytest.approx(0, abs=1e-6)
    assert layers.concentration(sink) > layers.concentration(planted)


@pytest.fixture(scope="module")
def shown() -> list[evaluate.Generated]:
    """Maps of barely drawn images beside the scenes that their captions stand for."""
    drawn = list(islice(scenes.stream(5), 2))
    made = evaluate.generate(
        evaluate.load(evaluate.HERE / "model"),
        [scene.caption for scene in drawn],
        steps=2,
        layers=lambda layer: True,
    )
    return [
        dataclasses.replace(
            image, image=scene.image, objects=masks.find(scene.image, scene.caption)
        )
        for image, scene in zip(made, drawn, strict=True)
    ]


def test_layers_are_judged_as_their_maps_are(shown: list[evaluate.Generated]) -> None:
    scores = {score.name: score for score in layers.judge(shown, (0.4,))}
    names = [layer.name for layer in shown[0].maps.layers]
    ways = ["plain mean", "weighted by concentration", "weighted by information"]
    assert list(scores) == [*names, *ways]
    for kind in ("noun", "color"):
        words = [word for word in evaluate.judged(shown) if word.kind == kind]
        expected = mean_iou((word.mask(0.4), word.own) for word in words)
        found = getattr(scores["plain mean"], kind)
        assert found == {"0.4": pytest.approx(expected, abs=1e-3)}
    assert scores[names[0]].rules["information"] > 0


def test_nothing_to_judge_is_said(shown: list[evaluate.Generated]) -> None:
    nothing = (masks.Found(shown[0].objects[0].mask, None),) * 2
    with pytest.raises(ValueError, match="none of 1 images"):
        layers.judge([dataclasses.replace(shown[0], objects=nothing)], (0.4,))
