"""Refined maps against a plain computation: attention weights kept whole, loops over cells."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from made_maps import made
from slow import attentions
from tiny_joint import VARIANTS as JOINT
from tiny_pipelines import PROMPT
from tiny_video import VIDEOS

from daam_diffusers import HeatMaps, TraceError, trace, watch
from daam_diffusers.scores import AttentionCall, self_attention

OTHER = "the dog beside a red house"


def plain_spread(maps: torch.Tensor, attention: torch.Tensor, power: float, passes: int):
    """(C, h, w): each cell takes the mean of all cells, weighted by attention to a power."""
    values = maps.double().flatten(1)
    for _ in range(passes):
        new = torch.zeros_like(values)
        for cell, row in enumerate(attention.double().flatten(1)):
            weights = row**power
            new[:, cell] = (values * weights).sum(1) / weights.sum()
        values = new
    return values.view(maps.shape)


def made_alike(**changes) -> HeatMaps:
    rows = torch.rand(24, 4, 6, generator=torch.Generator().manual_seed(1))
    rows = rows / rows.sum(dim=(1, 2), keepdim=True)
    return made(self_attention=rows, **changes)


@pytest.mark.parametrize(
    ("images", "arguments"),
    [
        (1, {"guidance_scale": 1.0}),
        (1, {"height": 24, "width": 56}),
        (2, {"num_images_per_prompt": 2}),
        (4, {"prompt": [PROMPT, OTHER], "num_images_per_prompt": 2}),
    ],
    ids=["no guidance", "not square", "two images", "a batch"],
)
def test_each_image_has_the_mean_of_its_own_rows(sd, build, images, arguments):
    """Of layers of the finest level, all heads and all steps; the negative prompt's never count."""
    with attentions(sd.unet, lambda path: path.endswith("attn1")) as seen:
        build["variant"]("sd").run(sd, **arguments)
    with trace(sd, refine=True) as tracer:
        build["variant"]("sd").run(sd, **arguments)
    finest = max(one.query.shape[2] for one in seen)
    kept = [one.probabilities for one in seen if one.query.shape[2] == finest]
    for image in range(images):
        own = torch.stack([rows[len(rows) - images + image].mean(0) for rows in kept]).mean(0)
        found = tracer.heat_maps(image=image).self_attention
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), own.view(found.shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sliced", "default processor", "fused qkv"])
def test_other_processors_tell_the_same(build, name):
    variant = build["variant"](name)
    found = []
    for one in (variant, build["variant"]("sd")):
        with trace(pipe := one.make(), refine=True) as tracer:
            one.run(pipe)
        found.append(tracer.heat_maps().self_attention)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("power", "passes"), [(1, 1), (3, 2), (2.5, 1)])
def test_refined_maps_equal_the_loops(sd, build, power, passes):
    with trace(sd, refine=True) as tracer:
        build["variant"]("sd").run(sd)
    maps = tracer.heat_maps()
    refined = maps.refined(power=power, passes=passes)
    grid = maps.self_attention.shape[1:]
    expected = []
    for layer in maps.layers:
        rows = maps.probabilities[layer.name][None, :]
        rows = F.interpolate(rows, grid, mode="bicubic", align_corners=False)[0]
        expected.append(plain_spread(rows, maps.self_attention, power, passes))
        assert refined.probabilities[layer.name].shape == rows.shape
    mean = torch.stack(expected).mean(0)
    for token in maps.tokens:
        own = F.interpolate(
            mean[None, [maps.columns.index(token.column)]], maps.size, mode="bicubic"
        )[0, 0].clamp(0, 1)
        found = refined.column(token.column).values
        torch.testing.assert_close(found.double(), own, rtol=1e-4, atol=1e-6)
    assert refined.provenance["refined"] == f"power {power:g}, passes {passes}"
    again = refined.refined(power=2).provenance["refined"]
    assert again == f"power {power:g}, passes {passes}; power 2, passes 1"


def test_without_it_nothing_is_recorded_and_the_error_says_how(sd, build):
    with trace(sd) as plain:
        build["variant"]("sd").run(sd)
    with trace(sd, refine=True) as tracer:
        build["variant"]("sd").run(sd)
    maps = plain.heat_maps()
    assert maps.self_attention is None
    with pytest.raises(ValueError, match="refine=True"):
        maps.refined()
    cells = tracer.heat_maps().self_attention.shape[0]
    assert tracer.record_bytes() - plain.record_bytes() == 4 * cells**2


def test_the_finest_level_that_is_small_enough_is_recorded(sd, build, monkeypatch, caplog):
    monkeypatch.setattr(watch, "_MOST_CELLS", 8 * 12)
    with trace(sd, refine=True) as tracer, caplog.at_level("INFO"):
        build["variant"]("sd").run(sd)
    assert tracer.heat_maps().self_attention.shape == (96, 8, 12)  # of 16 × 24 and 8 × 12
    assert "self-attention of 8×12 cells: 0.0 MiB an image" in caplog.text


def test_more_cells_are_averaged_over_squares(monkeypatch):
    monkeypatch.setattr(watch, "_MOST_CELLS", 30)
    variant = JOINT["flux dev"]
    pipe = variant.make()
    with attentions(pipe.transformer, lambda path: path.endswith("attn")) as seen:
        variant.run(pipe, num_inference_steps=2)
    with trace(pipe, refine=True) as tracer:
        variant.run(pipe, num_inference_steps=2)
    rows = []
    for one in seen:
        query, key = (pooled(x[0, :, -96:].double(), (8, 12), 2) for x in (one.query, one.key))
        rows.append((query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1).mean(0))
    found = tracer.heat_maps().self_attention
    expected = torch.stack(rows).mean(0).view(24, 4, 6)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def pooled(tensor: torch.Tensor, grid: tuple[int, int], size: int) -> torch.Tensor:
    """(H, h·w, d): the mean of each square of cells, those at the far edges cut."""
    cells = tensor.view(len(tensor), *grid, -1)
    return torch.stack(
        [
            cells[:, y : y + size, x : x + size].flatten(1, 2).mean(1)
            for y in range(0, grid[0], size)
            for x in range(0, grid[1], size)
        ],
        dim=1,
    )


@pytest.mark.parametrize("key_heads", [4, 2])
def test_squares_at_the_far_edges_are_cut(key_heads):
    torch.manual_seed(0)
    query, key = torch.randn(3, 4, 20, 8), torch.randn(3, key_heads, 20, 8)
    call = AttentionCall(query, key, None, 0.3)
    cells = slice(2, 17)
    found = self_attention(call, rows=slice(1, 3), cells=cells, keys=cells, grid=(3, 5), pool=2)
    assert found.shape == (2, 6, 6)
    for row in (1, 2):
        own = key[row].repeat_interleave(4 // key_heads, 0)
        q, k = (pooled(x[:, cells], (3, 5), 2) for x in (query[row], own))
        expected = (q @ k.mT * 0.3).softmax(-1).mean(0)
        torch.testing.assert_close(found[row - 1], expected, rtol=1e-5, atol=1e-6)


def test_what_a_cell_s_words_share_stays_what_it_was():
    refined = made_alike().refined(power=2, passes=3)
    for values in refined.probabilities.values():
        torch.testing.assert_close(values.sum(0), torch.ones(4, 6), rtol=0, atol=1e-5)


def test_cells_that_attend_to_themselves_alone_keep_their_maps():
    maps = replace(made_alike(), self_attention=torch.eye(96).view(96, 8, 12))
    torch.testing.assert_close(maps.refined(passes=2)["dog"].values, maps["dog"].values)


def test_the_default_power_is_3_for_a_unet_and_1_for_a_transformer():
    maps = made_alike()
    assert maps.refined().provenance["refined"] == "power 3, passes 1"
    layers = tuple(replace(layer, block="transformer_blocks") for layer in maps.layers)
    assert replace(maps, layers=layers).refined().provenance["refined"] == "power 1, passes 1"


def test_a_high_power_does_not_underflow():
    values = made_alike().refined(power=500)["dog"].values
    assert values.isfinite().all()
    assert values.max() > 0


def test_kept_axes_are_refined_alike():
    kept = made_alike(axes=("step", "layer", "head"))
    mean = {name: x.mean((1, 2)) for name, x in kept.probabilities.items()}
    plain = replace(kept, axes=(), probabilities=mean)
    values = kept.refined()["dog"]
    assert values.axes == ("step", "layer", "head")
    torch.testing.assert_close(values.mean().values, plain.refined()["dog"].values)


def test_files_keep_what_refines(tmp_path):
    maps = made_alike()
    loaded = HeatMaps.load(maps.save(tmp_path / "maps.safetensors"))
    assert torch.equal(loaded.self_attention, maps.self_attention)
    assert torch.equal(loaded.refined()["dog"].values, maps.refined()["dog"].values)
    for factor in (-1, 0):
        spoiled = replace(maps, self_attention=factor * maps.self_attention)
        with pytest.raises(ValueError, match="damaged: self_attention must hold shares"):
            HeatMaps.load(spoiled.save(tmp_path / "spoiled.safetensors"))


@pytest.mark.parametrize(
    "arguments", [{"power": 0}, {"power": math.nan}, {"passes": 0}, {"passes": 1.5}]
)
def test_powers_and_passes_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        made_alike().refined(**arguments)


def test_self_attention_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="self_attention"):
        made(self_attention=torch.rand(24, 6, 6))


@pytest.mark.parametrize("name", ["animatediff", "cogvideox"])
def test_videos_are_refused(name):
    variant = VIDEOS[name]
    with pytest.raises(TraceError, match="video"), trace(pipe := variant.make(), refine=True):
        variant.run(pipe, num_inference_steps=1)
