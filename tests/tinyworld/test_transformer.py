"""The transformer in miniature: it is trained on what its pipeline gives it, and resumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0
from safetensors.torch import load_file

import checkpoints
import evaluate
import parts
import settings
import train
import transformer
from settings import Config, parse

BASE = evaluate.HERE / "model"
CAPTION = "a red house left of a green tree at night"


def tiny(folder: Path, **changes: object) -> Config:
    config = dataclasses.replace(
        settings.TRANSFORMER,
        work=folder / "work",
        model=folder / "model",
        scenes=12,
        steps=4,
        batch=4,
        save_every=2,
        log_every=1,
        precision="no",
        cpu=True,
        sizes=parts.Sizes(transformer_layers=2, transformer_heads=2, transformer_head_width=8),
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = tiny(tmp_path_factory.mktemp("transformer"))
    train.run(config)
    return config


@pytest.fixture(scope="module")
def pipe(made: Config) -> StableDiffusion3Pipeline:
    """The folder as anyone loads it, with weights far enough from zero to be told apart."""
    pipe = DiffusionPipeline.from_pretrained(made.model)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return pipe


def draw(pipe: StableDiffusion3Pipeline, **options: Any) -> torch.Tensor:
    images: torch.Tensor = pipe(
        CAPTION,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **options,
    ).images
    return images


def test_a_run_writes_an_ordinary_folder_and_its_card(
    made: Config, pipe: StableDiffusion3Pipeline
) -> None:
    assert isinstance(pipe, StableDiffusion3Pipeline)
    assert draw(pipe).shape == (1, 3, 64, 64)
    text = (made.model / "README.md").read_text(encoding="utf-8")
    for fact in ("StableDiffusion3Pipeline", "12 drawn scenes", "4 steps of 4", "`model/`, frozen"):
        assert fact in text


@pytest.mark.parametrize("columns", sorted(set(transformer.EMPTY_COLUMNS)))
def test_training_gives_the_transformer_what_its_pipeline_does(
    pipe: StableDiffusion3Pipeline, columns: int
) -> None:
    captions = [CAPTION, "two boats beside the big blue sun", ""]
    tokens = train.tokenize(pipe.tokenizer, captions)
    embeds, _, pooled, _ = pipe.encode_prompt(
        captions,
        None,
        None,
        do_classifier_free_guidance=False,
        max_sequence_length=columns,
    )
    assert embeds.shape[1] == tokens.shape[1] + columns
    noisy, times = torch.randn(3, 4, 16, 16), torch.tensor([0.1, 0.5, 1.0])
    denoiser = transformer.Denoiser(pipe.transformer, [pipe.text_encoder, pipe.text_encoder_2])
    with torch.no_grad():
        expected = pipe.transformer(
            hidden_states=noisy,
            timestep=1000 * times,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
        ).sample
        denoiser.prepare_training(torch.device("cpu"))
        try:
            seen = denoiser(noisy, times, tokens, torch.full((3,), float(columns)).log())
        finally:
            pipe.transformer.set_attn_processor(JointAttnProcessor2_0())
    assert expected.std() > 0.1
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)


def test_a_batch_blends_image_and_noise_and_its_target_leads_from_one_to_the_other() -> None:
    latents = torch.randn(5, 4, 16, 16)
    tokens, empty = torch.arange(5)[:, None].expand(5, 20), torch.full((20,), -1)
    config = dataclasses.replace(settings.TRANSFORMER, batch=512)
    inputs, velocity = transformer.batch(config, Accelerator(cpu=True), 0, latents, tokens, empty)
    noisy, times, prompts, bias = inputs
    image = noisy - times[:, None, None, None] * velocity
    named = prompts[:, 0] >= 0
    torch.testing.assert_close(image[named], latents[prompts[named, 0]], atol=1e-4, rtol=1e-4)
    assert float((image + velocity).std()) == pytest.approx(1, abs=0.02)  # the noise
    assert 0.05 < float((~named).float().mean()) < 0.15
    assert {round(float(value.exp())) for value in bias} == set(transformer.EMPTY_COLUMNS)


def test_an_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    made: Config, tmp_path: Path
) -> None:
    cut = tiny(tmp_path)
    train.run(cut)
    last = checkpoints.newest(cut.work)
    assert last is not None
    last.unlink()
    train.run(cut)
    whole, again = (checkpoints.newest(config.work) for config in (made, cut))
    assert whole is not None
    assert again is not None
    expected, found = load_file(whole), load_file(again)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


def test_every_trained_weight_has_one_optimizer_and_muon_the_matrices_of_the_blocks() -> None:
    denoiser = transformer.build(settings.TRANSFORMER)
    muon, adamw = denoiser.optimizers(settings.TRANSFORMER)
    parts_of = [
        [id(weight) for group in optimizer.param_groups for weight in group["params"]]
        for optimizer in (muon, adamw)
    ]
    names = {id(weight): name for name, weight in denoiser.named_parameters()}
    trained = {names[id(w)] for w in denoiser.transformer.parameters()}
    assert sorted(names[one] for part in parts_of for one in part) == sorted(trained)
    assert {names[one] for one in parts_of[0]} == {
        name for name in trained if ".transformer_blocks." in name and name.endswith("weight")
        and ".norm_" not in name
    }  # fmt: skip


def test_fp16_and_checkpoints_of_another_optimizer_are_refused(made: Config) -> None:
    with pytest.raises(ValueError, match="--precision bf16"):
        train.run(dataclasses.replace(made, precision="fp16"))
    denoiser = transformer.build(made)
    last = checkpoints.newest(made.work)
    assert last is not None
    average = [weight.detach().clone() for weight in denoiser.parameters()]
    before = [weight.clone() for weight in average]
    with pytest.raises(ValueError, match="other optimizers"):
        checkpoints.load(last, denoiser, denoiser.optimizers(made)[:1], average)
    for weight, old in zip(denoiser.parameters(), before, strict=True):
        assert torch.equal(weight, old)


def test_the_two_clips_are_the_halves_of_the_base_s_text_encoder() -> None:
    _, encoder, tokenizer = transformer.load_base(BASE)
    tokens = train.tokenize(tokenizer, [CAPTION])
    outputs = [
        half(tokens, output_hidden_states=True) for half in transformer.split_text_encoder(encoder)
    ]
    states = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    expected = encoder.embeddings(tokens)
    torch.testing.assert_close(states / states.std(), expected / expected.std())
    assert 0.5 < float(states.std()) < 2
    assert not any(output.text_embeds.any() for output in outputs)


def test_the_third_encoder_reads_nothing(pipe: StableDiffusion3Pipeline) -> None:
    tokens = pipe.tokenizer_3([CAPTION, "\n"], padding="max_length", max_length=8).input_ids
    assert tokens[0] == tokens[1]
    whole = draw(pipe)
    encoder, tokenizer = pipe.text_encoder_3, pipe.tokenizer_3
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    try:
        assert torch.equal(draw(pipe), whole)
    finally:
        pipe.text_encoder_3, pipe.tokenizer_3 = encoder, tokenizer


def test_a_base_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model_index.json.*--base"):
        train.run(tiny(tmp_path, base=tmp_path))


def test_defaults_depend_on_the_denoiser() -> None:
    assert parse(["--denoiser", "transformer"]) == settings.TRANSFORMER
    config = parse(["--denoiser", "transformer", "--steps", "7", "--transformer-layers", "3"])
    assert (config.steps, config.sizes.transformer_layers) == (7, 3)
    assert config.work != parse([]).work
