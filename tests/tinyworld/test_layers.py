"""Rules that weight layers: planted attention, by hand and against one another."""

from __future__ import annotations

import math

import pytest
import torch

import layers


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
