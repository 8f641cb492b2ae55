"""`HeatMaps` as a mapping, over the axes that were kept, and its special columns."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_maps import layer, made

from daam_diffusers import HeatMaps
from daam_diffusers.prompt import Prompt
from daam_diffusers.video import latent_frames


@pytest.mark.parametrize(
    ("text", "word", "place"),
    [
        ("A red house and a green tree", "A", 0),
        ("A red house and a green tree", "a", 16),
        ("a red-haired girl in a red dress", "red", 23),
        ("a t-shirt beside a shirt", "shirt", 19),
        ("the dog's house and the dog", "dog", 24),
        ("the dog and a Dog", "Dog", 14),
    ],
)
def test_a_listed_word_is_the_map_of_its_own_place(text, word, place):
    maps = made(text)
    (own,) = [found for listed, found in maps.by_word() if listed.start == place]
    assert torch.equal(maps[word].values, own.values)
    assert torch.equal(dict(maps)[word].values, own.values)
    assert maps[word].text == word


@settings(max_examples=30)
@given(
    st.lists(
        st.sampled_from(["red", "Red", "RED", "red-haired", "dog", "Dog's", "dog's", ",", "t-red"]),
        max_size=9,
    )
)
def test_mapping_places_and_occurrences_agree(pieces):
    maps = made(" ".join(pieces))
    by_word = list(maps.by_word())
    assert list(maps) == list(dict.fromkeys(word.text for word, _ in by_word))
    for (word, found), occurrence in zip(by_word, maps.prompt.occurrences, strict=True):
        assert torch.equal(maps.word(word.text, occurrence).values, found.values)
        assert maps.prompt.find(word.text, occurrence) == word
    rows = [found.values for found in dict(maps).values()]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(rows, 2))


def test_words_that_are_not_adjacent_are_the_mean_of_their_tokens():
    maps = made("a red zebra in a blue dress, red")
    tokens = {token.column: maps.column(token.column).values for token in maps.tokens}
    red, dress = maps.prompt.find("red", 1), maps.prompt.find("dress")
    found = maps.combine(red, "dress")
    assert found.text == "red + dress"
    plain = torch.stack([tokens[c] for c in (*red.columns, *dress.columns)]).mean(dim=0)
    torch.testing.assert_close(found.values, plain)
    assert torch.equal(maps.combine("dress").values, maps["dress"].values)
    assert torch.equal(maps.combine("dress", "dress").values, maps["dress"].values)
    assert torch.equal(maps.column(*dress.columns).values, maps["dress"].values)
    with pytest.raises(KeyError, match="'cat' is not in the prompt"):
        maps.combine("red", "cat")
    with pytest.raises(TypeError, match=r'combine\("red", "house"\), got \[\'red\', \'dog\'\]'):
        maps.combine(["red", "dog"])
    with pytest.raises(TypeError, match="occurrence must be a whole number from 0, got '0'"):
        maps.word("red", "0")
    with pytest.raises(IndexError, match=r"no token 77: the prompt has \d+, from 0"):
        maps.token(77)
    with pytest.raises(TypeError, match="combine needs words"):
        maps.combine()


def test_start_end_and_padding_are_named_and_sum_with_the_words_to_one():
    maps = made(["a red dog", "the blue car"])
    parts = [maps.special(kind) for kind in ("start", "end", "padding")]
    assert [part.text for part in parts] == ["[start]", "[end]", "[padding]"]
    start = maps.column(0).values + maps.column(77).values
    torch.testing.assert_close(parts[0].values, start)
    end = maps.column(4).values + maps.column(81).values
    torch.testing.assert_close(parts[1].values, end)
    torch.testing.assert_close(sum(part.values for part in parts), maps.special().values)
    # On one grid, where no resizing rounds the edges, everything sums to one.
    flat = made(["a red dog", "the blue car"], layers=maps.layers[:1])
    words = sum(flat.token(i).values for i in range(len(flat.tokens)))
    torch.testing.assert_close(words + flat.special().values, torch.ones(8, 12))
    with pytest.raises(ValueError, match="kind must be"):
        maps.special("pad")
    alone = made(prompt=Prompt("", (), 77))
    with pytest.raises(KeyError, match="no start token"):
        alone.special("start")


@pytest.mark.parametrize("axes", [("frame",), ("step", "layer", "head", "frame"), ("step", "head")])
def test_axes_come_in_one_order_and_average_to_the_plain_map(axes):
    maps = made(axes=axes)
    dog = maps["dog"]
    lengths = {"step": 3, "layer": 2, "head": 2, "frame": 2}
    assert dog.axes == axes
    assert dog.values.shape == (*(lengths[axis] for axis in axes), 8, 12)
    assert dog.frames == (5 if "frame" in axes else None)
    row = maps.columns.index(maps.prompt.find("dog").columns[0])
    plain = [maps.probabilities[info.name][row] for info in maps.layers]
    small = plain[1].reshape(1, -1, 4, 6)
    scaled = torch.nn.functional.interpolate(small, (8, 12), mode="bicubic", align_corners=False)
    plain[1] = scaled.reshape(plain[0].shape)
    if "layer" in axes:
        torch.testing.assert_close(dog.values, torch.stack(plain, dim=1).clamp(0, 1))
    else:
        torch.testing.assert_close(dog.values, ((plain[0] + plain[1]) / 2).clamp(0, 1))


def test_layers_that_see_time_at_several_lengths_are_brought_to_the_longest():
    maps = made(axes=("frame",))
    short = maps.probabilities["up.1"][:, :1]
    layers = (maps.layers[0], layer("up.1", 1, (4, 6), frames=1))
    found = made(
        axes=("frame",), layers=layers, probabilities={**maps.probabilities, "up.1": short}
    )
    repeated = short[:, latent_frames(2, 1)]
    wanted = made(axes=("frame",), probabilities={**maps.probabilities, "up.1": repeated})
    assert torch.equal(found["dog"].values, wanted["dog"].values)


@pytest.mark.parametrize("kind", [ValueError, KeyError])
def test_words_of_embeddings_whose_prompt_is_not_known_are_an_error_that_names_it(kind):
    columns = {x.name: torch.rand(4, *x.grid) for x in made().layers}
    maps = made(prompt=Prompt("", (), 77), columns=(0, 1, 5), probabilities=columns)
    with pytest.raises(kind, match=r"'dog' is not in .*not known.*heat_maps\(prompt=\.\.\.\)"):
        maps["dog"]
    with pytest.raises(kind, match=r"heat_maps\(prompt="):
        maps.combine("dog")
    assert "dog" not in maps
    assert list(maps) == []
    assert torch.equal(maps.column(5).values, maps.column(5, 5).values)
    said = made("")  # a prompt of no words is another matter
    with pytest.raises(KeyError, match="'dog' is not in the prompt; its words are: none"):
        said["dog"]


def changed(maps: HeatMaps, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**maps.probabilities, "up.1": tensor}


def test_steps_that_layers_have_in_different_numbers_are_an_error_that_names_them():
    maps = made(axes=("step",))
    fewer = changed(maps, maps.probabilities["up.1"][:, :2])
    with pytest.raises(ValueError, match=r"different numbers of them, \[2, 3\] .*3 steps have: up"):
        made(axes=("step",), probabilities=fewer)
    made(axes=("step",), probabilities=fewer, layers=maps.layers[:1])  # a choice that agrees


def test_what_does_not_fit_together_is_an_error():
    maps = made()
    tensor = maps.probabilities["up.1"]
    for wrong in (tensor[:-1], tensor[..., :3], tensor[:, None], tensor[..., :0]):
        with pytest.raises(ValueError, match=r"layer up.1 must be \(6, 4, 6\), got "):
            made(probabilities=changed(maps, wrong))
    with pytest.raises(ValueError, match="axes must be of"):
        made(axes=("head", "step"))
    with pytest.raises(ValueError, match='"equal" or "information", got \'foo\''):
        made(weighting="foo")
    with pytest.raises(ValueError, match="got 0 layers"):
        made(layers=())
    with pytest.raises(ValueError, match="columns that were not kept"):
        made(columns=(0, 1, 2, 90, 91))


def test_layers_count_by_what_their_words_tell_if_that_is_asked_for():
    """One layer divides the cells among the words; in the other all words look at one sink."""
    equal = made("a red dog")
    fine, coarse = equal.probabilities["up.0"], equal.probabilities["up.1"]
    fine[:], coarse[:] = 1e-3, 1e-3
    for row in range(3):
        fine[1 + row, row] += 0.5  # each word has a line of cells of its own
    coarse[:, -1, -1] = 0.9
    informed = made("a red dog", probabilities=equal.probabilities, weighting="information")
    assert equal.weights == (0.5, 0.5)
    assert informed.weights[0] > 0.99
    assert sum(informed.weights) == pytest.approx(1)
    assert int(informed["red"].values.argmax()) // 12 == 1
    assert int(equal["red"].values.argmax()) // 12 == 7
    single = made("dog", weighting="information")  # one word has nothing to be told from
    assert single.weights == (0.5, 0.5)
