"""Training in miniature: it runs, resumes to the same weights, and writes a pipeline."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

import autoencoder
import checkpoints
import scenes
import train
from parts import Sizes, build_text_encoder, build_tokenizer, build_vae
from settings import Config, parse, peak_share

TINY = Sizes(
    vae_channels=(8, 8, 8), unet_channels=(8, 16), unet_heads=(1, 2), text_width=16, text_layers=1
)


def tiny(folder: Path, **changes: object) -> Config:
    config = Config(
        work=folder / "work",
        model=folder / "model",
        scenes=12,
        vae_steps=2,
        vae_batch=2,
        steps=4,
        batch=4,
        save_every=2,
        log_every=1,
        precision="no",
        cpu=True,
        sizes=TINY,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def averaged(config: Config) -> dict[str, torch.Tensor]:
    path = checkpoints.newest(config.work)
    assert path is not None
    return load_file(path)


def losses(config: Config) -> list[dict[str, Any]]:
    text = (config.work / "losses.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_writes_losses_checkpoints_a_pipeline_and_its_card(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    train.run(config)
    lines = losses(config)
    assert [(line["part"], line["step"]) for line in lines] == [
        ("autoencoder", 1), ("autoencoder", 2),
        ("denoiser", 1), ("denoiser", 2), ("denoiser", 3), ("denoiser", 4),
    ]  # fmt: skip
    pipe = DiffusionPipeline.from_pretrained(config.model)
    assert isinstance(pipe, StableDiffusionPipeline)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red house left of a green tree", num_inference_steps=2).images[0]
    assert image.size == (scenes.SIDE, scenes.SIDE)
    text = (config.model / "README.md").read_text()
    for fact in ("12 drawn scenes", "4 steps of 4", "| seed | 0 |", "wall time", "hardware"):
        assert fact in text


def test_an_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = tiny(tmp_path / "whole")
    train.run(whole)
    # The same run, cut off after two steps: the rate at a step depends on the planned number.
    cut = tiny(tmp_path / "cut")
    train.run(cut)
    last = checkpoints.newest(cut.work)
    assert last is not None
    last.unlink()
    train.run(cut)
    steps = [line["step"] for line in losses(cut) if line["part"] == "denoiser"]
    assert steps == [1, 2, 3, 4, 3, 4]
    one, other = averaged(whole), averaged(cut)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: Path) -> None:
    train.run(tiny(tmp_path))
    larger = dataclasses.replace(TINY, text_layers=2)
    with pytest.raises(ValueError, match="other sizes"):
        train.run(tiny(tmp_path, sizes=larger))


def test_standardizing_leaves_what_is_decoded_as_it_was() -> None:
    torch.manual_seed(0)
    vae = build_vae(TINY).eval()
    images, _ = train.draw_dataset(20, 0)
    before = vae.decode(autoencoder.encode(vae, images)).sample
    autoencoder.standardize(vae, autoencoder.encode(vae, images))
    latents = autoencoder.encode(vae, images)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(vae.decode(latents).sample, before, atol=1e-4, rtol=1e-3)


def test_every_word_of_the_world_is_one_token_and_others_are_spelled() -> None:
    tokenizer = build_tokenizer(scenes.vocabulary(), 20)
    for word in scenes.vocabulary():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert len(tokenizer.tokenize("zebra")) > 1
    assert tokenizer("a zebra").input_ids[-1] == tokenizer.eos_token_id


def test_the_longest_caption_fits_into_the_prompt() -> None:
    longest = scenes.Caption(
        scenes.Phrase("the", "small", "red", "house"),
        "left of",
        scenes.Phrase("one", "big", "green", "tree"),
        "in the fog",
    )
    tokenizer = build_tokenizer(scenes.vocabulary(), Sizes().tokens)
    assert len(tokenizer(str(longest)).input_ids) <= tokenizer.model_max_length


def test_the_rate_rises_stays_and_falls() -> None:
    shares = [peak_share(step, 100, 0.1, 0.3) for step in range(100)]
    assert shares[0] < shares[5] < shares[9] < 1
    assert set(shares[10:70]) == {1.0}
    assert shares[75] > shares[85] > shares[99] > 0


def test_every_setting_is_an_option() -> None:
    config = parse(["--steps", "7", "--unet-channels", "8", "16", "--precision", "no", "--cpu"])
    assert (config.steps, config.precision, config.cpu) == (7, "no", True)
    assert config.sizes.unet_channels == (8, 16)
    assert parse([]) == Config()


def test_the_text_encoder_begins_with_the_two_phrases_apart() -> None:
    tokenizer = build_tokenizer(scenes.vocabulary(), Sizes().tokens)
    torch.manual_seed(0)
    encoder = build_text_encoder(tokenizer, Sizes())
    rows = encoder.embeddings.position_embedding.weight.detach()
    rows = rows / rows.norm(dim=1, keepdim=True)
    likeness = rows @ rows.T
    # "a red house left of a green tree": the nouns are tokens 3 and 8, the colors 2 and 7
    assert likeness[3, 8] < 0.4
    assert likeness[2, 7] < 0.4
    assert likeness[2, 3] > 0.6
    assert likeness[7, 8] > 0.6
