"""Views of maps: by step and by layer, figures, animations, notebooks, NumPy."""

from __future__ import annotations

import base64
import io
import re
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from made_maps import made
from PIL import Image

from daam_diffusers.heat_map import HeatMap

mpl.use("Agg")


def test_each_step_has_maps_of_its_own_and_their_mean_is_the_map():
    maps = made(axes=("step", "layer", "head"))
    steps = [*maps.by_step()]
    assert [one.provenance["step"] for one in steps] == ["1", "2", "3"]
    whole = maps["dog"].values  # (step, layer, head, H, W)
    for number, one in enumerate(steps):
        assert one["dog"].axes == ("layer", "head")
        assert one.calls == {}
        assert torch.equal(one["dog"].values, whole[number])
    with pytest.raises(ValueError, match=r'keep=\("step",\)'):
        next(made().by_step())


@pytest.mark.parametrize("axes", [(), ("step", "layer"), ("step", "frame")])
def test_each_layer_has_maps_of_its_own(axes):
    maps = made(axes=axes)
    layers = dict(maps.by_layer())
    assert [*layers] == [*maps.layers]
    for layer, one in layers.items():
        assert one.layers == (layer,)
        assert [*one.calls] == [name for name in maps.calls if name == layer.name]
        assert one.probabilities[layer.name] is maps.probabilities[layer.name]
        assert "layer" not in one["dog"].axes
    if "layer" in axes:
        found = torch.stack([one["dog"].values for one in layers.values()], dim=1)
        assert torch.equal(found, maps["dog"].values)


@pytest.mark.parametrize("axes", [("step",), ("step", "head", "frame")])
def test_words_by_steps_are_drawn_each_on_its_own_scale(axes):
    maps = made(axes=axes)
    figure = maps.plot(["dog", "a red"], steps=2)
    assert [ax.get_yticklabels()[0].get_text() for ax in figure.axes] == ["dog", "a red"]
    assert [x.get_text() for x in figure.axes[1].get_xticklabels()] == ["1", "3"]
    drawn = figure.axes[0].images[0].get_array()
    drawn = np.delete(drawn, [12, 25], axis=1)  # gaps after 12 columns each
    values = maps["dog"].mean(("step",)).values[[0, 2]]
    values = values.mean(1) if "frame" in axes else values
    np.testing.assert_allclose(drawn, np.concatenate([*values.numpy()], axis=1), rtol=1e-6)
    assert len(maps.plot().axes) == 3
    place = maps.prompt.find("dog")
    assert [ax.get_yticklabels()[0].get_text() for ax in maps.plot(place).axes] == ["dog"]


def test_what_cannot_be_drawn_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r'keep=\("step",\)'):
        made().plot()
    maps = made(axes=("step",))
    whole = "whole number from 1"
    for given, message in (({"steps": 0}, whole), ({"steps": 2.5}, whole), ({"words": []}, "no w")):
        with pytest.raises(ValueError, match=message):
            maps.plot(**given)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"daam-diffusers\[plot\]"):
        maps.plot()


def test_a_word_over_the_steps_is_an_animation_on_one_scale(tmp_path):
    maps = made(axes=("step", "head"))
    image = Image.new("RGB", (48, 32), "navy")
    path = maps["dog"].save(tmp_path / "dog.webp", image, fps=4, steps=True)
    with Image.open(path) as found:
        assert (found.n_frames, found.size) == (3, image.size)
        found.seek(2)
        last = np.asarray(found.convert("RGB")).astype(float)
    steps = maps["dog"].mean(("step",)).upscale()
    low, high = steps.values.min(), steps.values.max()
    step = HeatMap("dog", (steps.values[2] - low) / (high - low), (), (32, 48))
    # A map from 0 to 1 is drawn as it is; the last step alone has another range.
    heat = step.values.numpy()
    assert abs(last.mean(axis=2) - overlay(image, heat)).mean() < 3
    for heat_map, given in ((made()["dog"], image), (made(axes=("frame",))["dog"], [image] * 5)):
        with pytest.raises(ValueError, match="steps=True"):
            heat_map.save(tmp_path / "no.webp", given, steps=True)
    assert not (tmp_path / "no.webp").exists()
    with pytest.raises(ValueError, match=r"steps are saved as .webp"):
        maps["dog"].save(tmp_path / "dog.png", image, steps=True)


def overlay(image: Image.Image, heat: np.ndarray) -> np.ndarray:
    from daam_diffusers.colors import blend

    return np.asarray(blend(image, heat, 0.75)).mean(axis=2)


@pytest.mark.parametrize("axes", [(), ("step", "head", "frame")])
def test_a_notebook_shows_small_pictures_and_text_as_text(axes):
    html = made("a <script>alert(1)</script> & a red dog " + "very " * 9, axes)._repr_html_()
    assert "<script" not in html
    assert "&lt;" in html
    assert len(html) < 60_000
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(found) == 12
    assert html.endswith("more words</p>")
    for one in found:
        with Image.open(io.BytesIO(base64.b64decode(one))) as picture:
            assert picture.size == (12, 8)
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 9


def test_large_maps_are_shown_small():
    maps = made(size=(400, 600))
    (first, *_) = re.findall(r"base64,([^\"]+)", maps._repr_html_())
    with Image.open(io.BytesIO(base64.b64decode(first))) as picture:
        assert picture.size == (96, 64)


@pytest.mark.parametrize("dtype", [np.float16, float, np.dtype("float64")])
def test_a_map_is_an_array_to_numpy(dtype):
    dog = made()["dog"]
    assert np.array_equal(np.asarray(dog), dog.values.numpy())
    assert np.asarray(dog, dtype=np.float64).dtype == np.float64
    assert np.shares_memory(np.asarray(dog), dog.values.numpy())
    assert not np.shares_memory(np.array(dog), dog.values.numpy())
    assert np.shares_memory(np.array(dog, copy=False), dog.values.numpy())
    with pytest.raises(ValueError, match="copy=False"):
        np.array(dog, dtype=dtype, copy=False)
