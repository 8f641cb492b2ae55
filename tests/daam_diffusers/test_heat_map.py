"""What users do with maps: masks, overlays, files."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis.extra import numpy as arrays
from PIL import Image
from safetensors.torch import save_file

from daam_diffusers import HeatMap, HeatMaps, trace
from daam_diffusers.evaluation import iou, mean_iou, random_half, whole_image
from daam_diffusers.upsample import _box

masks = arrays.arrays(bool, (5, 7))


def heat(values: torch.Tensor, size: tuple[int, int] = (16, 32)) -> HeatMap:
    return HeatMap("dog", values, (), size)


@pytest.fixture
def maps(sd, build) -> HeatMaps:
    with trace(sd) as tracer:
        build["variant"]("sd").run(sd, 'a Red dog, beside the "dog"')
    return tracer.heat_maps()


def test_a_map_is_frozen_and_on_the_cpu(maps):
    dog = maps["dog"]
    assert dog.values.device.type == "cpu"
    assert dog.values.dtype == torch.float32
    with pytest.raises(FrozenInstanceError):
        dog.text = "cat"


def test_maps_are_a_mapping_by_word_in_the_order_of_the_prompt(maps):
    assert list(maps) == ["a", "Red", "dog", ",", "beside", "the", '"']
    assert len(maps) == 7
    assert torch.equal(maps["red"].values, maps["RED"].values)
    assert maps["red dog"].text == "Red dog"
    assert "cat" not in maps
    assert not torch.equal(maps.word("dog").values, maps.word("dog", occurrence=1).values)
    assert [token.text for token in maps.tokens] == list('a Red dog , beside the " dog "'.split())


def test_a_group_of_words_is_the_mean_of_its_tokens(maps):
    both = (maps["red"].values + maps.word("dog").values) / 2
    torch.testing.assert_close(maps["red dog"].values, both, rtol=1e-5, atol=1e-7)


def test_upscaling_keeps_rows_rows_and_columns_columns():
    values = torch.zeros(4, 8)
    values[0, 7] = 1.0  # top right
    scaled = heat(values).upscale().values
    assert scaled.shape == (16, 32)
    row, column = divmod(int(scaled.argmax()), 32)
    assert row < 4
    assert column >= 28
    assert scaled.min() >= 0
    assert scaled.max() <= 1


def test_normalizing_spans_zero_to_one_and_a_flat_map_is_zero():
    spread = heat(torch.tensor([[0.2, 0.3], [0.4, 0.25]])).normalized().values
    assert spread.min() == 0
    assert spread.max() == 1
    flat = heat(torch.full((16, 16), 0.3), (64, 64))
    assert flat.normalized().values.abs().max() == 0
    assert flat.upscale().values.unique().numel() > 1  # as bicubic weights round
    assert not flat.mask(0.4).any()
    assert not flat.mask("otsu", guide=Image.radial_gradient("L")).any()


def test_a_mask_is_what_reaches_the_threshold_after_upscaling_and_normalizing():
    values = torch.zeros(8, 16)
    values[2:6, 4:12] = 0.01  # low in absolute terms: masks are relative
    true = torch.zeros(16, 32, dtype=torch.bool)
    true[4:12, 8:24] = True
    found = heat(values).mask(0.5)
    assert found.dtype == torch.bool
    assert iou(found, true) > 0.9
    assert heat(values).iou(true, threshold=0.5) == iou(found, true)
    assert heat(values).iou(Image.fromarray(true.numpy()), threshold=0.5) == iou(found, true)
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 40"):
        heat(values).mask(40)
    with pytest.raises(ValueError, match="mask must be"):
        heat(values).iou(torch.zeros(3, 4, 4))
    assert heat(values).iou(true.numpy().astype(np.uint16), 0.5) == iou(found, true)
    for wrong in (torch.nan, -0.5, 255.0):
        with pytest.raises(ValueError, match=r"floats must be in \[0, 1\]"):
            heat(values).iou(torch.full((4, 4), wrong))


@pytest.mark.parametrize(
    "size",
    [64, (64.0, 64.0), (True, True), "64x64", "ab", (64,), (0, 8), (8, 8, 8), (), torch.ones(2)],
)
def test_a_size_that_is_not_rows_and_columns_is_named(size):
    with pytest.raises(ValueError, match=r"size must be two whole numbers >= 1, .*, got "):
        heat(torch.rand(4, 8)).mask(size=size)
    wide = heat(torch.rand(4, 8)).upscale(np.array([8, 24]))
    assert wide.values.shape == (8, 24)


def test_shares_and_axes_of_a_wrong_kind_are_named():
    for wrong in ("0.4", None, True, [0.4]):
        with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got "):
            heat(torch.rand(4, 8)).mask(wrong)
    with pytest.raises(ValueError, match=r"opacity must be in \[0, 1\], got '1'"):
        heat(torch.rand(4, 8)).overlay(Image.new("L", (8, 8)), opacity="1")
    with pytest.raises(ValueError, match=r"keep must be of .*got \['time'\]"):
        heat(torch.rand(4, 8)).mean(("step", "time"))


def test_an_overlay_colors_hot_pixels_and_leaves_cold_ones(maps):
    values = torch.zeros(8, 16)
    values[:4, 12:] = 1.0
    image = Image.new("RGB", (320, 160), (10, 120, 10))  # (width, height)
    drawn = np.asarray(heat(values).overlay(image))
    assert drawn.shape == (160, 320, 3)
    changed = np.abs(drawn.astype(int) - [10, 120, 10]).sum(axis=-1)
    assert changed[20, 300] > 150
    assert changed[140, 20] <= 3
    assert np.array_equal(np.asarray(heat(values).overlay(image, opacity=0)), np.asarray(image))
    assert maps["dog"].overlay(Image.new("L", (48, 32))).mode == "RGB"
    with pytest.raises(ValueError, match="opacity"):
        heat(values).overlay(image, opacity=2)


def test_a_plot_shows_the_map_in_given_axes(maps):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    assert maps["dog"].plot(ax) is ax
    assert np.array_equal(ax.images[0].get_array(), maps["dog"].values.numpy())
    assert ax.get_title() == "dog"
    video = HeatMap("dog", torch.rand(3, 6, 10), ("frame",), (12, 20), 9)
    assert np.array_equal(video.plot(ax).images[-1].get_array(), video.values.mean(dim=0).numpy())
    plt.close(figure)


def test_saved_maps_load_bit_for_bit_with_their_provenance(maps, tmp_path):
    path = maps.save(tmp_path / "maps.safetensors")
    loaded = HeatMaps.load(path)
    assert loaded.prompt == maps.prompt
    assert loaded.layers == maps.layers
    assert loaded.provenance == maps.provenance
    assert {"model", "torch", "diffusers", "steps"} <= set(loaded.provenance)
    for word in maps:
        assert torch.equal(loaded[word].values, maps[word].values)
    assert [p.name for p in tmp_path.iterdir()] == ["maps.safetensors"]


def test_kept_axes_survive_saving(sd, build, tmp_path):
    with trace(sd, keep=("step", "head")) as tracer:
        build["variant"]("sd").run(sd)
    maps = tracer.heat_maps(clamp="per_map")
    loaded = HeatMaps.load(maps.save(tmp_path / "m.safetensors"))
    assert loaded.axes == ("step", "head")
    assert torch.equal(loaded["dog"].values, maps["dog"].values)


def test_loading_something_else_says_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        HeatMaps.load(tmp_path / "missing.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        HeatMaps.load(tmp_path)
    (tmp_path / "m.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"written by to_npz\? numpy.load reads it"):
        HeatMaps.load(tmp_path / "m.npz")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a safetensors file"):
        HeatMaps.load(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no heat maps"):
        HeatMaps.load(tmp_path / "other.safetensors")


def test_a_write_that_fails_leaves_the_old_file(maps, tmp_path, monkeypatch):
    path = maps.save(tmp_path / "maps.safetensors")
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("daam_diffusers.files.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        maps.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["maps.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to write maps"):
        maps.save(tmp_path / "nowhere" / "maps.safetensors")
    for inside in ("maps.safetensors", "maps.safetensors/deeper"):
        with pytest.raises(OSError, match=r"no folder .* in: .*maps\.safetensors is a file$"):
            maps.save(path / inside)


def test_npz_holds_every_word_without_pickles(maps, tmp_path):
    path = maps.to_npz(tmp_path / "maps.npz")
    with np.load(path, allow_pickle=False) as file:
        assert file["words"].tolist() == ["a", "Red", "dog", ",", "beside", "the", '"', "dog", '"']
        assert file["values"].shape == (9, 16, 24)
        assert np.array_equal(file["values"][7], maps.word("dog", occurrence=1).values.numpy())
        assert file["spans"][2].tolist() == [6, 9]
        assert json.loads(str(file["provenance"]))["steps"] == "3"


def test_coco_run_lengths_decode_to_the_masks(maps):
    from pycocotools import mask as coco

    annotations = maps.to_coco_rle(0.5)
    json.dumps(annotations)  # plain enough for a COCO file
    assert [(a["word"], a["occurrence"]) for a in annotations if a["word"] == "dog"] == [
        ("dog", 0),
        ("dog", 1),
    ]
    for annotation in annotations:
        mask = maps.word(annotation["word"], annotation["occurrence"]).mask(0.5)
        decoded = coco.decode(annotation["segmentation"])
        assert np.array_equal(decoded, mask.numpy())
        assert annotation["area"] == mask.sum()


@given(masks, masks)
def test_iou_is_the_ratio_of_counted_pixels(a, b):
    pixels = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    union = sum(x or y for x, y in pixels)
    both = sum(x and y for x, y in pixels)
    assert iou(a, b) == (both / union if union else 1.0)
    assert iou(a, b) == iou(torch.from_numpy(b), torch.from_numpy(a))


@given(masks)
def test_the_whole_image_scores_the_objects_share_of_it(mask):
    assert iou(whole_image(mask.shape), mask) == pytest.approx(mask.mean())


def test_iou_refuses_values_and_unlike_shapes():
    with pytest.raises(TypeError, match="boolean, got float32"):
        iou(torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(2, 3\)"):
        iou(whole_image((2, 2)), whole_image((2, 3)))
    with pytest.raises(ValueError, match="no pairs"):
        mean_iou([])
    half = random_half((200, 200), np.random.default_rng(0))
    assert 0.45 < half.mean() < 0.55
    assert mean_iou([(half, half), (half, ~half)]) == 0.5


def test_otsu_s_threshold_has_the_largest_variance_between_its_classes():
    torch.manual_seed(0)
    low, high = torch.rand(24) * 0.4, 0.7 + torch.rand(8) * 0.3
    values = torch.cat([low, high])[torch.randperm(32)].view(4, 8)
    found = heat(values, (4, 8)).mask("otsu")
    pixels = heat(values, (4, 8)).normalized().values
    between = []
    for cut in torch.linspace(0.002, 0.998, 499):
        one, other = pixels[pixels < cut], pixels[pixels >= cut]
        gap = (one.mean() - other.mean()) ** 2 if len(one) and len(other) else 0.0
        between.append(float(gap) * len(one) * len(other))
    best = 0.002 + 0.002 * between.index(max(between))
    assert torch.equal(found, pixels >= best)
    assert torch.equal(found, values >= 0.7)


def test_otsu_of_a_flat_map_and_of_a_video_s_frames():
    assert heat(torch.full((4, 8), 0.5)).mask("otsu").shape == (16, 32)
    values = torch.zeros(2, 4, 8)
    values[1, :2] = 0.9
    found = HeatMap("dog", values, ("frame",), (4, 8), 2).mask("otsu")
    assert torch.equal(found, values > 0.5)  # one threshold for all frames


def test_a_guide_draws_the_map_to_its_edges():
    shape = np.zeros((32, 64, 3), dtype=np.uint8)
    shape[:, :22] = (200, 40, 40)  # the edge is off the cells', which are 8 pixels wide
    values = torch.zeros(4, 8)
    values[:, :3] = 0.5
    guide = Image.fromarray(shape)
    true = torch.zeros(32, 64, dtype=torch.bool)
    true[:, :22] = True
    plain, guided = (heat(values, (32, 64)).mask(0.5, guide=one) for one in (None, guide))
    assert iou(guided, true) == 1.0
    assert iou(plain, true) < 0.95
    larger = heat(values, (32, 64)).upscale((64, 128), guide=guide)
    assert larger.values.shape == (64, 128)
    assert larger.values.min() >= 0
    assert larger.values.max() <= 1


def test_a_guide_of_one_color_smooths_and_keeps_the_mean():
    values = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    guide = Image.new("RGB", (32, 16), "gray")
    found = heat(values).upscale(guide=guide).values
    assert found.std() < heat(values).upscale().values.std()
    assert abs(found.mean() - values.mean()) < 0.05


def test_a_guide_must_be_an_image_and_the_map_of_one():
    video = HeatMap("dog", torch.zeros(2, 4, 8), ("frame",), (4, 8), 2)
    with pytest.raises(ValueError, match="a guide is for images, and this map is of a video"):
        video.upscale(guide=Image.new("RGB", (8, 4)))
    with pytest.raises(ValueError, match="the map is of"):
        heat(torch.zeros(4, 8)).upscale(guide="dog.png")


@pytest.mark.parametrize("radius", [1, 3, 40])
def test_means_over_squares_are_those_of_pooling(radius):
    maps = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    side = 2 * radius + 1
    pooled = F.avg_pool2d(maps, side, 1, radius, count_include_pad=False)
    torch.testing.assert_close(_box(maps, radius), pooled)


@pytest.mark.parametrize("threshold", ["Otsu", -0.1, 1.5])
def test_other_thresholds_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        heat(torch.zeros(4, 8)).mask(threshold)
