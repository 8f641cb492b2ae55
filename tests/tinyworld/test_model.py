"""The shipped pipelines: ordinary folders, small, and good enough to judge attribution by."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

import evaluate
import masks
import settings
from daam_diffusers import trace

UNET, TRANSFORMER = evaluate.HERE / "model", evaluate.HERE / "model-transformer"
MODELS = pytest.mark.parametrize("pipe", [UNET, TRANSFORMER], indirect=True, ids=lambda p: p.name)
MIB = 2**20


@pytest.fixture(scope="module")
def pipe(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return evaluate.load(request.param)


def test_it_loads_as_a_stable_diffusion_pipeline() -> None:
    pipe = DiffusionPipeline.from_pretrained(UNET)
    assert isinstance(pipe, StableDiffusionPipeline)
    assert isinstance(pipe.unet, UNet2DConditionModel)
    assert isinstance(pipe.vae, AutoencoderKL)
    assert isinstance(pipe.text_encoder, CLIPTextModel)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.safety_checker is None
    assert pipe.vae.config.latent_channels == 4


def test_the_other_loads_as_a_stable_diffusion_3_pipeline() -> None:
    pipe = DiffusionPipeline.from_pretrained(TRANSFORMER)
    assert isinstance(pipe, StableDiffusion3Pipeline)
    assert isinstance(pipe.transformer, SD3Transformer2DModel)
    assert isinstance(pipe.text_encoder, CLIPTextModelWithProjection)
    assert isinstance(pipe.text_encoder_2, CLIPTextModelWithProjection)
    assert isinstance(pipe.text_encoder_3, T5EncoderModel)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)


@pytest.mark.parametrize(
    ("model", "denoiser", "size"),
    [(UNET, "unet", 24), (TRANSFORMER, "transformer", 12)],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_folder_is_small_and_holds_safetensors_in_half_precision(
    model: Path, denoiser: str, size: int
) -> None:
    files = [path for path in model.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= size * MIB
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt"}
    encoders = {path.name for path in model.iterdir() if path.name.startswith("text_encoder")}
    dtypes = {
        denoiser: torch.float16,
        "vae": torch.float16,
        **dict.fromkeys(encoders, torch.float32),
    }
    for part, dtype in dtypes.items():
        (path,) = (model / part).glob("*.safetensors")
        tensors = load_file(path).values()
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        assert {tensor.dtype for tensor in floats} == {dtype}
        assert all(tensor.isfinite().all() for tensor in floats)


def test_the_two_share_one_autoencoder() -> None:
    (one,), (other,) = ((m / "vae").glob("*.safetensors") for m in (UNET, TRANSFORMER))
    expected, found = load_file(one), load_file(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


@pytest.mark.parametrize("model", [UNET, TRANSFORMER], ids=lambda model: model.name)
def test_the_card_gives_data_steps_seed_hardware_time_and_scores(model: Path) -> None:
    card = (model / "README.md").read_text(encoding="utf-8")
    for fact in ("| data |", "steps of", "| seed |", "| hardware |", "| wall time |", "DAAM"):
        assert fact in card


def test_the_transformer_s_card_is_of_the_run_that_is_the_default() -> None:
    card = (TRANSFORMER / "README.md").read_text(encoding="utf-8")
    run = settings.TRANSFORMER
    for fact in (
        f"{run.scenes:,} drawn scenes",
        f"{run.steps:,} steps of {run.batch}, peak rate {run.rate:g}",
        f"| seed | {run.seed} |",
    ):
        assert fact in card


@MODELS
def test_the_same_seed_draws_the_same_image(pipe: DiffusionPipeline) -> None:
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


@MODELS
def test_any_prompt_is_drawn_even_of_unknown_words(pipe: DiffusionPipeline) -> None:
    image = pipe("two zebras, 3 quaggas & a unicorn", num_inference_steps=2).images[0]
    assert image.size == (64, 64)


@MODELS
@pytest.mark.parametrize("prompt", ["a red é house", "中国 house é é tree", "red\u200bhouse"])
def test_characters_without_a_token_take_a_column_a_byte(
    pipe: DiffusionPipeline, prompt: str
) -> None:
    """Their token is the end token, an added one; the words after them keep their places."""
    with trace(pipe) as tracer:
        pipe(prompt, num_inference_steps=1, output_type="latent")
    maps = tracer.heat_maps()
    ids = pipe.tokenizer(prompt).input_ids
    for word in ("red", "house", "tree"):
        if word in prompt:
            (token,) = pipe.tokenizer(word, add_special_tokens=False).input_ids
            assert maps.prompt.find(word).columns == (ids.index(token),)
    for character in "é中\u200b":
        size = len(character.encode()) * prompt.count(character)
        assert sum(token.text == character for token in maps.tokens) == size


@pytest.mark.slow
@pytest.mark.parametrize("pipe", [UNET], indirect=True, ids=lambda path: path.name)
def test_the_rule_for_masks_holds_after_the_autoencoder(pipe: DiffusionPipeline) -> None:
    rule = evaluate.rule_accuracy(pipe.vae, 40)
    assert rule.drawn_iou >= 0.99
    assert rule.drawn_noun >= 0.99
    assert rule.decoded_iou >= 0.9
    assert rule.decoded_noun >= 0.95


@pytest.fixture
def _few_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports judge the rule for masks on two drawn scenes: more take longer than the maps."""
    monkeypatch.setattr(evaluate, "rule_accuracy", partial(evaluate.rule_accuracy, count=2))


@pytest.mark.slow
@pytest.mark.usefixtures("_few_drawn")
@MODELS
def test_word_maps_lie_on_their_objects(pipe: DiffusionPipeline) -> None:
    report = evaluate.evaluate(pipe, captions=12, steps=8, batch=12)
    assert report.both >= 0.6
    floors = {
        ("noun", 0.4): 0.4,
        ("color", 0.5): 0.4,
    }  # of 200 captions: the UNet 0.57 and 0.52, the transformer 0.42 and 0.54
    for score in report.words:
        if (score.kind, score.threshold) in floors:
            assert score.daam >= floors[score.kind, score.threshold]
            assert score.daam >= 4 * score.whole
            assert score.daam >= 4 * score.swapped


@pytest.mark.usefixtures("_few_drawn")
@pytest.mark.parametrize("pipe", [TRANSFORMER], indirect=True, ids=lambda path: path.name)
def test_one_layer_alone_is_judged_by_its_own_maps(pipe: DiffusionPipeline) -> None:
    name = "transformer_blocks.3.attn"
    report = evaluate.evaluate(pipe, captions=2, steps=6, batch=2, layers=name)
    assert f"Maps are of the layer {name} alone." in evaluate.to_markdown(report)
    # All layers are traced and one is chosen afterwards.
    captions = evaluate.held_out(2, evaluate.SEED)
    with trace(pipe, keep=["layer"]) as tracer:
        images = pipe(
            [str(caption) for caption in captions],
            guidance_scale=evaluate.GUIDANCE,
            num_inference_steps=6,
            generator=[torch.Generator().manual_seed(index) for index in range(2)],
            output_type="np",
        ).images
    made = []
    for index, caption in enumerate(captions):
        maps = tracer.heat_maps(image=index, layers=lambda layer: layer.name == name)
        image = (images[index] * 255).round().astype("uint8")
        made.append(evaluate.Generated(caption, image, maps, masks.find(image, caption)))
    words = evaluate.judged(made)
    assert words
    for score in report.words:
        pairs = [
            (word.mask(score.threshold), word.own) for word in words if word.kind == score.kind
        ]
        shares = [(mask & own).sum() / (mask | own).sum() for mask, own in pairs]
        assert score.daam == pytest.approx(sum(shares) / len(shares))


def test_a_layer_that_is_not_there_is_refused_with_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--model", str(TRANSFORMER), "--captions", "1", "--steps", "1", "--layers", "nope"]
    with pytest.raises(SystemExit):
        evaluate.main(few)
    assert "--layers nope" in capsys.readouterr().err
