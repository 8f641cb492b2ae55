"""Denoisers of images whose layers attend across, or in one sequence: each by every proof."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from proofs import (
    OTHER,
    Case,
    Facts,
    assert_values,
    cases,
    check_batches,
    check_bfloat16,
    check_negative,
    check_planted,
    check_self_attention,
    check_untouched,
    check_values,
    columns_of,
    denoisers_of,
    maps_of_stopped,
    owner,
    probabilities_of,
    stopped,
)
from tiny_cross import VARIANTS, chatglm_tokenizer
from tiny_pipelines import PROMPT, picture

from daam_diffusers import HeatMaps, TraceError, trace
from daam_diffusers.prompt import token_spans

ATTN1, ATTN2 = (rf"transformer_blocks\.\d+\.attn{n}" for n in (1, 2))
UNET = r"(down|up)_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.\d+\.attn2"
FIRST, SECOND = ((0, 1), 0), ((0, 1), 1)  # calls, and the part of their batch, of a negative prompt

PIXART = Facts(ATTN2, (1, 8, 12), block=1, negative=FIRST, mixes_pixels=True, alike=ATTN1)
SANA = Facts(ATTN2, (1, 32, 48), first=(1,), block=1, negative=FIRST, mixes_pixels=True, alike="")
HUNYUAN = Facts(
    r"blocks\.\d+\.attn2",
    (1, 4, 6),
    first=(1, 77),
    block=1,
    negative=FIRST,
    mixes_pixels=True,
    alike=r"blocks\.\d+\.attn1",
)
DEEPFLOYD = Facts(
    r"(down|up)_blocks\.\d+\.attentions\.\d+",
    (1, 16, 24),
    block=1,
    negative=FIRST,
    latents="sample",
    mixes_text=True,
    mixes_pixels=True,
)
PAG = {"exchanges": True, "alike": ""}
SD = Facts(
    UNET,
    (1, 8, 12),
    first=(1,),
    block=1,
    negative=FIRST,
    latents="sample",
    mixes_pixels=True,
    alike=r"(down|mid|up)_block.*attn1",
)

FACTS = {
    "pixart-alpha": PIXART,
    "pixart-sigma": PIXART,
    "pixart-sigma pag": replace(PIXART, **PAG),
    "sana": SANA,
    "sana pag": replace(SANA, **PAG),
    "sana sprint": replace(SANA, block=0, negative=None),
    "lumina2": Facts(
        r"layers\.\d+\.attn",
        (1, 4, 6),
        pixels=-24,
        first=(151,),
        calls=(0, 2),
        negative=((1, 3), 0),
        mixes_text=True,
        mixes_pixels=True,
    ),
    "z-image": Facts(
        r"layers\.\d+\.attention",
        (1, 8, 12),
        text=96,
        first=(6,),
        negative=SECOND,
        latents="x",
        mixes_text=True,
        mixes_pixels=True,
    ),
    "hunyuan-dit": HUNYUAN,
    "hunyuan-dit pag": replace(HUNYUAN, **PAG),
    "kolors": replace(SD, grid=(1, 16, 24), first=(-1,)),
    "cogview3": Facts(
        r"transformer_blocks\.\d+\.attn1", (1, 8, 12), pixels=32, block=1, negative=FIRST
    ),
    "cogview4": Facts(
        r"transformer_blocks\.\d+\.attn1",
        (1, 8, 12),
        pixels=16,
        first=(-1,),
        calls=(0, 2),
        negative=((1, 3), 0),
    ),
    "deepfloyd": DEEPFLOYD,
    "deepfloyd super-resolution": DEEPFLOYD,
    "lumina-next": Facts(
        r"layers\.\d+\.attn2",
        (1, 4, 6),
        first=(-1,),
        negative=SECOND,
        mixes_pixels=True,
        alike=r"layers\.\d+\.attn1",
    ),
    "instruct-pix2pix": replace(SD, block=0, negative=SECOND),
    "sdxl instruct-pix2pix": replace(SD, block=0, negative=SECOND),
    "latent diffusion": replace(SD, negative=None),
    "semantic": SD,
    "sd pag": replace(SD, exchanges=True),  # perturbed in the middle alone
    "sdxl pag": replace(SD, **PAG),
    "kandinsky": replace(DEEPFLOYD, grid=(1, 8, 16), text=10, first=(1,)),
    "kandinsky3": Facts(
        r"(down|up)_blocks\.[12]\.attentions\.[12]\.attention",
        (1, 8, 16),
        block=1,
        negative=FIRST,
        latents="sample",
        mixes_pixels=True,
        alike=r"(down|up)_blocks\.[12]\.attentions\.0\.attention",
    ),
}

TEXT = {
    "z-image": ("cap_feats",),
    "hunyuan-dit": ("encoder_hidden_states", "encoder_hidden_states_t5"),
    "hunyuan-dit pag": ("encoder_hidden_states", "encoder_hidden_states_t5"),
}
"""Arguments of denoisers that hold text, if not `encoder_hidden_states` alone."""

CHECKS = (
    check_untouched,
    check_bfloat16,
    check_values,
    check_planted,
    check_negative,
    check_self_attention,
)
case = cases(VARIANTS, FACTS)


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_images(check, name):
    check(case(name))


BATCH = {
    "deepfloyd super-resolution": {"image": [picture(8, 12)] * 2},
    "kandinsky": {f"{kind}image_embeds": torch.ones(2, 32) for kind in ("", "negative_")},
}
"""What goes with two prompts."""


ONE_IMAGE = pytest.mark.filterwarnings("ignore:You have passed .* text prompts:FutureWarning")


@pytest.mark.parametrize("name", [name for name in FACTS if name != "lumina2"])
@ONE_IMAGE
def test_batches(name):
    one = case(name)
    own = one.variant
    one.variant = replace(own, arguments=lambda dtype: own.arguments(dtype) | BATCH.get(name, {}))
    try:
        check_batches(one)
    finally:
        one.variant = own


# -- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTS)
def test_the_column_that_changes_most_is_that_of_the_token_that_was_changed(name):
    """Also where a refiner or a norm mixes the text before the first layer: so it stays by far."""
    one = case(name)
    plain = first_call(one, name, None)
    path = plain.layers[0].name
    words = len(PROMPT.split())
    for column in columns_of(one.facts, words, plain.prompt.columns)[-len(one.facts.first) :]:
        changed = first_call(one, name, column)
        moved = (plain.probabilities[path] - changed.probabilities[path]).abs().flatten(1).sum(1)
        if one.facts.mixes_text:  # also in the columns of a template, which are one map
            moved = moved[:-1]
        assert plain.columns[int(moved.argmax())] == column
        assert moved.max() > 0


def first_call(one: Case, name: str, column: int | None) -> HeatMaps:
    """Maps, by head, of the first layer's first call; one token's embedding is changed."""
    component, _ = owner(one)
    denoiser = denoisers_of(one.pipe)[component]
    names = inspect.signature(type(denoiser).forward)

    def change(module: Any, args: Any, kwargs: Any) -> Any:
        given = names.bind(module, *args, **kwargs).arguments
        given.pop("self")
        given |= given.pop("kwargs", {})
        place = column
        for argument in TEXT.get(name, ("encoder_hidden_states",)):
            length = len(given[argument][0])
            if 0 <= place < length:
                given[argument] = noisy(given[argument], place)
            place -= length
        return (), given

    with trace(one.pipe, keep=["head"]) as tracer, stopped(one), ExitStack() as stack:
        if column is not None:  # after the tracer's own hook, which tells texts by their values
            handle = denoiser.register_forward_pre_hook(change, with_kwargs=True)
            stack.callback(handle.remove)
        one.run()
    return maps_of_stopped(tracer)


def noisy(text: Any, column: int) -> Any:
    if isinstance(text, list):
        return [noisy(row[None], column)[0] for row in text]
    text = text.clone()
    noise = torch.randn(text.shape[-1], generator=torch.Generator().manual_seed(1))
    text[:, column] += noise * (text[:, column].std() + 0.1)
    return text


def test_words_of_a_slow_tokenizer_are_found_by_its_pieces():
    text = "A zebra, 中 car"
    spans = token_spans(text, chatglm_tokenizer())
    words = [text[start:end] for _, start, end in spans if start < end]
    assert words == [*"Azebra,", "中", "car"]


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "block", "negative", "changes"),
    [
        # [prompt, perturbed] without guidance, [negative, prompt, perturbed] with it
        ("sd pag", 0, None, {"guidance_scale": 1.0}),
        ("sdxl pag", 0, None, {"guidance_scale": 1.0}),
        ("pixart-sigma pag", 0, None, {"guidance_scale": 1.0}),
        ("sana pag", 0, None, {"guidance_scale": 1.0}),
        ("sd pag", 1, 0, {"negative_prompt": PROMPT}),
        ("sdxl pag", 1, 0, {"negative_prompt": PROMPT}),
        ("pixart-sigma pag", 1, 0, {"negative_prompt": PROMPT}),
        ("hunyuan-dit pag", 1, 0, {"negative_prompt": PROMPT}),
        # [prompt and image, image, neither]
        ("instruct-pix2pix", 0, 1, {"negative_prompt": PROMPT}),
        ("sdxl instruct-pix2pix", 0, 1, {"negative_prompt": PROMPT}),
        # [negative, prompt, edit]
        ("semantic", 1, 0, {"negative_prompt": PROMPT, "editing_prompt": PROMPT}),
        # [prompt, negative]
        ("lumina-next", 0, 1, {"negative_prompt": PROMPT}),
        ("z-image", 0, 1, {"negative_prompt": PROMPT}),
    ],
)
@pytest.mark.parametrize("images", [1, 2])
@ONE_IMAGE
def test_rows_of_one_text_are_told_apart(name, block, negative, changes, images):
    one = case(name)
    if images > 1:
        changes = {**changes, "num_images_per_prompt": images}
    _, slow = one.kept(**changes)
    with trace(one.pipe, keep=["step"], negative=negative is not None) as tracer:
        one.run(**changes)
    words = len(PROMPT.split())
    for image in range(images):
        with facts(one, block=block):
            assert_values(one, tracer.heat_maps(image), slow, words, image, images)
        if negative is not None:
            with facts(one, negative=((0, 1), negative), negative_first=one.facts.first):
                maps = tracer.heat_maps(image, negative=True)
                assert_values(one, maps, slow, words, image, images, negative=True)


@contextmanager
def facts(one: Case, **changes: Any) -> Iterator[None]:
    """Other facts of a case for a while."""
    own = one.facts
    one.facts = replace(own, **changes)
    try:
        yield
    finally:
        one.facts = own


def test_separate_passes_of_one_text_are_one_prompt():
    one = case("cogview4")
    _, slow = one.kept(negative_prompt=PROMPT)
    with trace(one.pipe, keep=["step"]) as tracer:
        one.run(negative_prompt=PROMPT)
    assert_values(one, tracer.heat_maps(), slow, len(PROMPT.split()))


def test_pixels_begin_after_the_text_that_the_denoiser_takes_for_a_samples_own():
    """Diffusers repeats masks in another order than prompts: sample 1 loses its last token."""
    one, texts = case("lumina2"), [PROMPT, PROMPT, OTHER, OTHER]
    changes = {"num_images_per_prompt": 2}
    _, slow = one.kept([PROMPT, OTHER], **changes)
    with trace(one.pipe, keep=["step"]) as tracer:
        one.run([PROMPT, OTHER], **changes)
    lengths = [int(count) - 24 for count in slow[0].mask.flatten(1).sum(1)]
    assert lengths == [158, 157, 158, 157]
    for image, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        maps = tracer.heat_maps(image)
        assert [token.column for token in maps.tokens] == [
            151 + i for i in range(len(text.split()))
        ]
        with facts(one, pixels=length):
            for layer in maps.layers:
                kept = probabilities_of(one, slow, layer.name, image, 4)
                values = maps.probabilities[layer.name].flatten(2).double()
                for index, column in enumerate(maps.columns):
                    own = kept[..., column] if column < length else torch.zeros_like(kept[..., 0])
                    torch.testing.assert_close(values[index], own, rtol=0, atol=1e-5)


def test_a_list_of_prompts_that_the_pipeline_writes_its_template_into_is_shown_as_it_was():
    one, prompts = case("z-image"), ["a dog", "a red car beside a blue house and a green tree"]
    with trace(one.pipe) as tracer:
        one.run(prompts)
    assert prompts[0] != "a dog"
    assert list(tracer.heat_maps(0)) == ["a", "dog"]
    assert tracer.heat_maps(1).prompt.text == "a red car beside a blue house and a green tree"


# -- what is refused, and why ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "denoiser", "reason"),
    [
        (diffusers.UnCLIPPipeline, None, "neither `unet` nor `transformer`"),
        (diffusers.WuerstchenDecoderPipeline, None, "neither `unet` nor `transformer`"),
        (diffusers.StableCascadeDecoderPipeline, None, "neither `unet` nor `transformer`"),
        (diffusers.KandinskyV22Pipeline, diffusers.UNet2DConditionModel, "encodes no prompt"),
        (
            diffusers.StableVideoDiffusionPipeline,
            diffusers.UNetSpatioTemporalConditionModel,
            "UNetSpatioTemporalConditionModel is not in the table",
        ),
        (
            diffusers.OmniGenPipeline,
            diffusers.OmniGenTransformer2DModel,
            "OmniGenTransformer2DModel is not in the table",
        ),
    ],
)
def test_pipelines_that_cannot_be_traced_are_refused_with_the_reason(pipeline, denoiser, reason):
    pipe = object.__new__(pipeline)
    if denoiser is not None:
        name = "transformer" if denoiser.__name__.startswith("Omni") else "unet"
        module = object.__new__(denoiser)
        torch.nn.Module.__init__(module)
        setattr(pipe, name, module)
    with pytest.raises(TraceError, match=reason), trace(pipe):
        pass


def test_a_picture_put_together_from_crops_is_refused():
    variant = VARIANTS["panorama"]
    pipe = variant.make()
    with trace(pipe) as tracer:
        variant.run(pipe)
    with pytest.raises(TraceError, match="crops"):
        tracer.heat_maps()


def test_several_images_at_once_are_refused():
    pipe = case("z-image").pipe
    with trace(pipe):
        text, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
        with pytest.raises(TraceError, match="several images at once"):
            pipe.transformer([[torch.zeros(4, 1, 16, 24)]], torch.ones(1), text)
