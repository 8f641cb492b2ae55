"""The shipped pipeline: an ordinary folder, small, and good enough to judge attribution by."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextModel

import evaluate

MODEL = evaluate.HERE / "model"
MIB = 2**20


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return evaluate.load(MODEL)


def test_it_loads_as_a_stable_diffusion_pipeline() -> None:
    pipe = DiffusionPipeline.from_pretrained(MODEL)
    assert isinstance(pipe, StableDiffusionPipeline)
    assert isinstance(pipe.unet, UNet2DConditionModel)
    assert isinstance(pipe.vae, AutoencoderKL)
    assert isinstance(pipe.text_encoder, CLIPTextModel)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.safety_checker is None
    assert pipe.vae.config.latent_channels == 4


def test_the_folder_is_small_and_holds_safetensors_in_half_precision() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24 * MIB
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt"}
    for part, dtype in (
        ("unet", torch.float16),
        ("vae", torch.float16),
        ("text_encoder", torch.float32),
    ):
        (path,) = (MODEL / part).glob("*.safetensors")
        tensors = load_file(path).values()
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        assert {tensor.dtype for tensor in floats} == {dtype}
        assert all(tensor.isfinite().all() for tensor in floats)


def test_the_card_gives_data_steps_seed_hardware_time_and_scores() -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for fact in ("| data |", "steps of", "| seed |", "| hardware |", "| wall time |", "DAAM"):
        assert fact in card


def test_the_same_seed_draws_the_same_image(pipe: StableDiffusionPipeline) -> None:
    images = [
        pipe(
            "a red house left of a green tree",
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        for _ in range(2)
    ]
    assert images[0].shape == (1, 3, 64, 64)
    assert torch.equal(images[0], images[1])


def test_any_prompt_is_drawn_even_of_unknown_words(pipe: StableDiffusionPipeline) -> None:
    image = pipe("two zebras, 3 quaggas & a unicorn", num_inference_steps=2).images[0]
    assert image.size == (64, 64)


@pytest.mark.slow
def test_the_rule_for_masks_holds_after_the_autoencoder(pipe: StableDiffusionPipeline) -> None:
    rule = evaluate.rule_accuracy(pipe.vae, 40)
    assert rule.drawn_iou >= 0.99
    assert rule.drawn_noun >= 0.99
    assert rule.decoded_iou >= 0.9
    assert rule.decoded_noun >= 0.95


@pytest.mark.slow
def test_word_maps_lie_on_their_objects(pipe: StableDiffusionPipeline) -> None:
    report = evaluate.evaluate(pipe, captions=16, steps=15, batch=16)
    assert report.both >= 0.6
    floors = {("noun", 0.4): 0.4, ("color", 0.5): 0.4}  # of 200 captions: 0.54 and 0.52
    for score in report.words:
        if (score.kind, score.threshold) in floors:
            assert score.daam >= floors[score.kind, score.threshold]
            assert score.daam >= 4 * score.whole
            assert score.daam >= 4 * score.swapped
