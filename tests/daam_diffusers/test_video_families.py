"""Denoisers of videos, each by every proof; and what a pipeline's frames make of its maps."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXPipeline,
    WanPipeline,
)
from PIL import Image
from proofs import (
    Facts,
    assert_values,
    cases,
    check_batches,
    check_bfloat16,
    check_negative,
    check_perturbed_token,
    check_planted,
    check_untouched,
    check_values,
)
from tiny_pipelines import PROMPT, quiet
from tiny_video import (
    VIDEOS,
    Video,
    cogvideox,
    given,
    picture,
    wan_image_to_video,
    wan_parts,
)

from daam_diffusers import HeatMaps, TraceError, trace

# Mochi asks for an autocast that a CPU does not have.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

REFERENCE = r"(down|up)_block[^.]*(\.\d+)?\.attentions\.\d+\.transformer_blocks\.\d+\.attn2"
ATTN1, ATTN2 = r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.attn2"
GRID = (5, 4, 6)  # 120 cells
BATCH: dict[str, Any] = {"block": 1, "negative": ((0, 1), 0)}  # one call a step, the prompt second
APART: dict[str, Any] = {"calls": (0, 2), "negative": ((1, 3), 0)}  # two, the prompt first

# Pixels are mixed by the attention to themselves that comes before the one to text.
UNET = Facts(
    REFERENCE,
    (5, 8, 12),
    first=(1,),
    is_flat=True,
    latents="sample",
    mixes_pixels=True,
    **BATCH,
)
WAN = Facts(r"blocks\.\d+\.attn2", GRID, mixes_pixels=True, **APART)
# The first of two steps is one denoiser's, the second is the other's.
WAN22 = replace(WAN, calls=(0,), negative=((1,), 0))
CROSS = Facts(ATTN2, GRID, mixes_pixels=True, **BATCH)
LTX = replace(CROSS, grid=(5, 8, 16))
COGVIDEOX = Facts(ATTN1, GRID, pixels=16, order="fchw", batches=False, **BATCH)
HUNYUAN = Facts(r"(single_)?transformer_blocks\.\d+\.attn", GRID, text=120, mixes_text=True)

FACTS = {
    "animatediff": replace(UNET, batches=False),
    "wan": WAN,
    "wan 2.2": WAN22,
    "wan image-to-video": replace(WAN, index=1, batches=False),  # the first is to the image
    "wan 2.2 image-to-video": WAN22,
    "ltx": LTX,
    "ltx image-to-video": LTX,
    "ltx condition": replace(LTX, pixels=128, batches=False),  # 8 x 16 cells of an image first
    "cogvideox": COGVIDEOX,
    "cogvideox image-to-video": COGVIDEOX,
    "hunyuan-video": HUNYUAN,
    # Each sample attends apart, to its own text without padding.
    "mochi": Facts(
        ATTN1, GRID, text=120, index=1, negative=((0, 1), 0), batches=False, mixes_text=True
    ),
    "text-to-video-sd": UNET,
    "i2vgen-xl": replace(UNET, batches=False),
    "latte": replace(CROSS, is_flat=True),
    "allegro": replace(CROSS, batches=False),
    "easyanimate": Facts(ATTN1, GRID, pixels=256, first=(6,), **BATCH),
    "skyreels-v2": WAN,
    "wan vace": replace(WAN, layers=r"(vace_)?blocks\.\d+\.attn2", batches=False),
    "cosmos": replace(CROSS, **{"block": 0, **APART}),
    "kandinsky5": replace(
        WAN,
        layers=r"visual_transformer_blocks\.\d+\.cross_attention",
        order="fhwc",
        bfloat16=False,
        batches=False,
        mixes_text=True,
    ),
    "sana-video": CROSS,
    "hunyuan-video 1.5": replace(HUNYUAN, batches=False, **APART),
}

CHECKS = (
    check_untouched,
    check_bfloat16,
    check_values,
    check_perturbed_token,
    check_planted,
    check_negative,
    check_batches,
)
case = cases(VIDEOS, FACTS)


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_attention_of_videos(check: Any, name: str) -> None:
    if (check, name) == (check_planted, "ltx condition"):
        pytest.skip("its latents do not begin with the video's; check_values tells its cells")
    check(case(name))


@pytest.mark.parametrize("name", ["animatediff", "cogvideox", "allegro", "mochi"])
def test_two_prompts_of_pipelines_that_make_one_video_of_each(name: str) -> None:
    prompts, found = [PROMPT, "the left dog beside a red house"], case(name)
    _, slow = found.kept(prompts)
    with trace(found.pipe, keep=["step"]) as tracer:
        found.run(prompts)
    for video, text in enumerate(prompts):
        maps = tracer.heat_maps(video)
        assert maps.prompt.text == text
        if name == "mochi":  # attends once for each sample, the negative prompt's first
            own = copy.copy(found)
            own.facts = replace(own.facts, index=2 + video)
            assert_values(own, maps, slow, len(text.split()))
        else:
            assert_values(found, maps, slow, len(text.split()), video, 2)


# Which frames


def traced(name: str, **changes: Any) -> tuple[HeatMaps, Any]:
    found = case(name)
    with trace(found.pipe) as tracer:
        frames = found.run(**{"output_type": "pil", **changes})
    return tracer.heat_maps(), frames[0]


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        pytest.param("wan", {}, [0, *[1] * 4, *[2] * 4, *[3] * 4, *[4] * 4], id="wan"),
        pytest.param("wan", {"num_frames": 1}, [0], id="one-frame"),
        pytest.param("animatediff", {}, [*range(5)], id="animatediff"),
        pytest.param("mochi", {"num_frames": 13}, [0, *[1] * 6, *[2] * 6], id="mochi"),
        # An even number of latent frames is decoded in pairs: 16 frames where 13 were asked for.
        pytest.param(
            "cogvideox", {"num_frames": 13}, [k for k in range(4) for _ in range(4)], id="cogvideox"
        ),
    ],
)
def test_a_frame_is_shown_the_map_of_the_latent_frame_it_was_decoded_from(
    name: str, changes: dict[str, Any], expected: list[int]
) -> None:
    maps, frames = traced(name, **changes)
    heat = maps["dog"]
    assert maps.frames == len(frames) == len(expected)
    assert maps.image_size == (frames[0].height, frames[0].width)
    assert heat.axes == ("frame",)
    assert len(heat.values) == expected[-1] + 1
    whole = heat.upscale().values
    assert whole.shape == (len(frames), *maps.image_size)
    for frame, latent in enumerate(expected):
        alone = replace(heat, values=heat.values[latent : latent + 1], frames=1).upscale().values[0]
        assert torch.equal(whole[frame], alone)


def test_latents_of_two_time_steps_a_patch_are_decoded_to_the_frames_of_their_patch() -> None:
    # CogVideoX 1.5: 5 latent frames are padded by one in front, which is thrown away.
    variant = Video(
        lambda: cogvideox(CogVideoXPipeline, patch_size_t=2, patch_bias=False),
        given(max_sequence_length=16),
    )
    pipe = variant.make()
    with trace(pipe) as tracer:
        (frames,) = variant.run(pipe, num_inference_steps=2, output_type="pil")
    heat = tracer.heat_maps()["dog"]
    assert (len(frames), len(heat.values)) == (17, 3)
    whole, alone = heat.upscale().values, replace(heat, frames=3).upscale().values
    # Latent frames: (thrown away, 0), (1, 2), (3, 4).
    for frame, patch in enumerate([0, *[1] * 8, *[2] * 8]):
        assert torch.equal(whole[frame], alone[patch])


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_frames_are_taken_as_the_pipeline_returned_them(tmp_path: Any, kind: str) -> None:
    maps, frames = traced("wan", output_type=kind)
    drawn = maps["dog"].overlay(frames)
    assert len(drawn) == 17
    assert {picture.size for picture in drawn} == {(96, 64)}
    assert maps["dog"].mask().shape == (17, 64, 96)
    with Image.open(maps["dog"].save(tmp_path / "dog.webp", frames)) as saved:
        assert saved.n_frames > 1
    maps.to_html(tmp_path / "maps.html", frames)
    again = HeatMaps.load(maps.save(tmp_path / "maps.safetensors"))
    assert (again.frames, again.calls) == (17, maps.calls)
    assert torch.equal(again["dog"].values, maps["dog"].values)


def test_latents_of_three_frames_are_no_colors() -> None:
    maps, _ = traced("wan", output_type="latent", num_frames=9)
    assert (maps.frames, maps.image_size) == (9, (64, 96))


@pytest.mark.parametrize(("name", "steps"), [("wan", 2), ("animatediff", 2), ("cogvideox", 2)])
def test_frames_are_the_last_of_all_axes(name: str, steps: int) -> None:
    found = case(name)
    with trace(found.pipe, keep=["step", "layer", "head"]) as tracer:
        found.run()
    maps, plain = tracer.heat_maps(), found.tracer.heat_maps()
    heat = maps["dog"]
    layers, heads = len(maps.layers), maps.layers[0].heads
    assert heat.axes == ("step", "layer", "head", "frame")
    assert heat.values.shape == (steps, layers, heads, *found.facts.grid)
    torch.testing.assert_close(heat.mean().values, plain["dog"].mean().values, atol=1e-5, rtol=0)


# Pipelines that are parts of others, or more than one can tell


@pytest.mark.parametrize(("missing", "boundary"), [("transformer_2", None), ("transformer", 1.1)])
def test_one_of_two_denoisers_may_be_missing(missing: str, boundary: float | None) -> None:
    parts = {**wan_parts(two=True), missing: None, "boundary_ratio": boundary}
    pipe = quiet(WanPipeline(**parts))
    variant = VIDEOS["wan"]
    plain = variant.run(pipe, num_inference_steps=2)
    with trace(pipe) as tracer:
        assert torch.equal(variant.run(pipe, num_inference_steps=2), plain)
    maps = tracer.heat_maps()
    assert [layer.name for layer in maps.layers] == ["blocks.0.attn2", "blocks.1.attn2"]
    assert set(maps.calls.values()) == {2}


def test_time_steps_of_each_cell_change_nothing() -> None:
    pipe = quiet(WanPipeline(**wan_parts(), expand_timesteps=True))
    variant = VIDEOS["wan"]
    with trace(pipe) as tracer:
        variant.run(pipe, num_inference_steps=2)
    maps = tracer.heat_maps()
    assert maps["dog"].values.shape == GRID


@pytest.mark.parametrize("length", [16, 512])
def test_text_of_any_length_is_told_from_the_embeddings_of_an_image(length: int) -> None:
    # The host cuts image and text at 512 from the end, whatever the text's length.
    pipe = wan_image_to_video()
    variant = Video(lambda: pipe, given(image=picture(64, 96), max_sequence_length=length))
    with trace(pipe) as tracer:
        variant.run(pipe, num_inference_steps=2)
    values = tracer.heat_maps().probabilities["blocks.0.attn2"]
    torch.testing.assert_close(values.sum(dim=0), torch.ones(GRID), atol=1e-5, rtol=0)


def test_text_that_the_host_cuts_itself_is_refused() -> None:
    pipe = wan_image_to_video()
    variant = Video(lambda: pipe, given(image=picture(64, 96), max_sequence_length=600))
    message = "512 keys where keys are expected to be 600 of text"
    with pytest.raises(TraceError, match=message), trace(pipe):
        variant.run(pipe, num_inference_steps=2)


def test_blended_prompts_are_refused() -> None:
    variant = VIDEOS["animatediff free noise"]
    pipe = variant.make()
    with trace(pipe) as tracer:
        variant.run(pipe, num_inference_steps=2)
    with pytest.raises(TraceError, match="FreeNoise"):
        tracer.heat_maps()


def test_reference_images_among_the_frames_are_refused() -> None:
    variant, pipe = VIDEOS["wan vace"], case("wan vace").pipe
    with trace(pipe) as tracer:
        variant.run(pipe, num_inference_steps=2, reference_images=[picture(64, 96)])
    message = "6 latent frames, and the 17 of the video are decoded from 5"
    with pytest.raises(TraceError, match=message):
        tracer.heat_maps()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the pipeline, which is deprecated
def test_frames_in_a_batch_of_images_are_refused() -> None:
    variant = VIDEOS["text-to-video-zero"]
    pipe = variant.make()
    with pytest.raises(TraceError, match="the prompt in 5 places"), trace(pipe):
        variant.run(pipe, num_inference_steps=3)
