"""Denoisers whose layers attend over text and pixels at once, each by every proof."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    ChromaPipeline,
    FluxPipeline,
    OvisImagePipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
)
from proofs import (
    Facts,
    cases,
    check_batches,
    check_bfloat16,
    check_negative,
    check_perturbed_token,
    check_planted,
    check_self_attention,
    check_untouched,
    check_values,
)
from tiny_joint import VARIANTS
from tiny_pipelines import PROMPT

from daam_diffusers import TraceWarning, trace

pytestmark = [  # what diffusers and PyTorch warn of
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype"),
]
FIRST, SECOND = (0, 2), (1, 3)  # of two calls a step
BOTH = r"(single_)?transformer_blocks\.\d+\.attn"
FLUX = Facts(BOTH, (1, 8, 12), pixels=-96)
SEPARATE = replace(FLUX, calls=FIRST, negative=(SECOND, 0))
STACKED = replace(FLUX, block=1, negative=((0, 1), 0))
SD3 = Facts(BOTH, (1, 8, 12), text=96, first=(1, 77), block=1, negative=((0, 1), 0))
QWEN = Facts(BOTH, (1, 4, 6), pixels=-24)
QWEN_SEPARATE = replace(QWEN, calls=FIRST, negative=(SECOND, 0))

FACTS = {
    "flux dev": FLUX,
    "flux schnell": FLUX,
    "flux true guidance": SEPARATE,
    "flux kontext": replace(FLUX, pixels=-120),  # 4 x 6 cells of the reference image follow
    "flux fill": FLUX,
    "flux2": replace(FLUX, first=(43,)),
    "flux2 reference": replace(FLUX, first=(43,), pixels=-480),
    "flux2 klein": replace(FLUX, first=(3,), calls=FIRST),
    "flux2 klein distilled": replace(FLUX, first=(3,)),
    "sd3": SD3,
    "sd3 without t5": replace(SD3, first=(1,)),
    "sd3 without guidance": replace(SD3, block=0, negative=None),
    "sd3.5": SD3,
    "sd3.5 skip-layer guidance": SD3,  # the third call is the one that skips a layer
    # The third part of the batch, and a second attention, are perturbed.
    "sd3 pag": replace(SD3, exchanges=True),
    "sd3 pag without guidance": replace(SD3, block=0, negative=None, exchanges=True),
    "chroma": SEPARATE,
    "auraflow": replace(STACKED, layers=r"(joint|single)_transformer_blocks\.\d+\.attn", text=8),
    "qwen": QWEN,
    "qwen true guidance": QWEN_SEPARATE,
    "hidream": replace(
        STACKED, layers=r"(double|single)_stream_blocks\.\d+\.block\.attn1", text=144, pixels=0
    ),
    "qwen edit": replace(QWEN, first=(16,), pixels=-32, batches=False),
    "qwen edit plus": replace(QWEN, first=(38,), pixels=-40, batches=False),
    "longcat": SEPARATE,
    "ovis": replace(SEPARATE, first=(1,)),
    "bria": STACKED,
    "fibo": replace(STACKED, grid=(1, 4, 6), pixels=-24),
    "prx": replace(STACKED, layers=r"blocks\.\d+\.attention", pixels=0, first=(-1,), batches=False),
    "nucleus": replace(QWEN_SEPARATE, text=24, pixels=0, first=(61,), alike=""),
    "krea2": replace(QWEN_SEPARATE, mixes_text=True),
    "kandinsky5": replace(
        QWEN_SEPARATE,
        layers=r"visual_transformer_blocks\.\d+\.cross_attention",
        pixels=0,
        order="fhwc",
        mixes_text=True,
        mixes_pixels=True,
        bfloat16=False,
        alike="",
    ),
}

CHECKS = (
    check_untouched,
    check_bfloat16,
    check_values,
    check_perturbed_token,
    check_planted,
    check_negative,
    check_self_attention,
    check_batches,
)
case = cases(VARIANTS, FACTS)


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_joint_attention(check, name):
    check(case(name))


def test_prompts_of_three_text_encoders_have_words_and_columns_of_their_own():
    pipe = VARIANTS["sd3"].make()
    texts = {"prompt": "a red car", "prompt_2": "the blue dog", "prompt_3": "a house beside a dog"}
    with trace(pipe) as tracer:
        VARIANTS["sd3"].run(pipe, num_inference_steps=2, **texts)
    first, second, third = (
        tracer.heat_maps(encoder=name)
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3")
    )
    assert tracer.heat_maps().prompt == first.prompt
    assert [token.column for token in first.tokens] == [1, 2, 3]
    assert (second.prompt.text, [t.column for t in second.tokens]) == (texts["prompt_2"], [1, 2, 3])
    assert [token.column for token in third.tokens] == [77, 78, 79, 80, 81]
    assert torch.equal(second["dog"].values, first["car"].values)  # the same columns
    with pytest.raises(ValueError, match=r"'text_encoder_4'.*text_encoder_2, text_encoder_3"):
        tracer.heat_maps(encoder="text_encoder_4")


def test_a_prompt_that_one_text_encoder_reads_whole_is_not_cut():
    pipe = VARIANTS["sd3"].make()
    long = "a red car beside " * 20 + "the house"  # 82 tokens: CLIP reads 75, T5 all
    with trace(pipe) as tracer, warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)
        VARIANTS["sd3"].run(pipe, long, num_inference_steps=2, max_sequence_length=100)
        maps = tracer.heat_maps()
    assert maps.prompt.cut == ()
    assert maps.prompt.find("house").columns == (77 + 81,)
    assert set(maps.prompt.find("red").columns) == {2, 77 + 1}
    with trace(pipe), pytest.warns(TraceWarning, match="read 75"):
        VARIANTS["sd3"].run(pipe, long, num_inference_steps=2, max_sequence_length=20)


def test_a_prompt_in_a_template_that_is_cut_keeps_its_columns():
    pipe = VARIANTS["qwen"].make()
    with trace(pipe) as tracer, pytest.warns(TraceWarning, match="never saw: 'a', 'blue', 'dog'"):
        VARIANTS["qwen"].run(pipe, num_inference_steps=2, max_sequence_length=4)
    maps = tracer.heat_maps()
    assert [(token.text, token.column) for token in maps.tokens] == [
        ("a", 0), ("red", 1), ("car", 2), ("beside", 3)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["flux dev", "sd3", "chroma", "auraflow"])
def test_embeddings_get_their_words_from_the_prompt_given_afterwards(name):
    facts, variant = FACTS[name], VARIANTS[name]
    pipe = variant.make()
    given = embeddings(pipe)
    with trace(pipe) as tracer:
        variant.run(pipe, None, num_inference_steps=2, **given)
    maps = tracer.heat_maps(prompt=PROMPT)
    assert [token.column for token in maps.tokens] == [
        first + word for word in range(7) for first in facts.first
    ]
    with trace(pipe) as tracer:
        variant.run(pipe, PROMPT, num_inference_steps=2, negative_prompt=None)
    torch.testing.assert_close(maps["dog"].values, tracer.heat_maps()["dog"].values)


@pytest.mark.parametrize("name", ["flux2", "flux2 klein", "qwen", "ovis"])
def test_embeddings_of_a_template_need_to_be_seen_being_made(name):
    facts, variant = FACTS[name], VARIANTS[name]
    pipe = variant.make()
    given = embeddings(pipe)
    with trace(pipe) as tracer:
        variant.run(pipe, None, num_inference_steps=2, **given)
    with pytest.raises(ValueError, match=r"Call pipe\.encode_prompt\(\.\.\.\) inside the context"):
        tracer.heat_maps(prompt=PROMPT)
    with trace(pipe) as tracer:
        given = embeddings(pipe)
        variant.run(pipe, None, num_inference_steps=2, **given)
    maps = tracer.heat_maps()
    assert maps.prompt.text == PROMPT
    assert [token.column for token in maps.tokens] == [facts.first[0] + word for word in range(7)]


def embeddings(pipe: Any) -> dict[str, Any]:
    """What `encode_prompt` makes of the prompt, as arguments of the pipeline."""
    names = inspect.signature(pipe.encode_prompt).parameters
    wanted = {
        "prompt": PROMPT,
        "prompt_2": None,
        "prompt_3": None,
        "max_sequence_length": 64 if "text_encoder_out_layers" in names else 16,
        "text_encoder_out_layers": (1, 2, 3),
        "negative_prompt": "",
    }
    result = pipe.encode_prompt(**{key: value for key, value in wanted.items() if key in names})
    if isinstance(pipe, StableDiffusion3Pipeline):
        keys = ["prompt_embeds", "negative_prompt_embeds"]
        keys += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    elif isinstance(pipe, ChromaPipeline):
        keys = ["prompt_embeds", "", "prompt_attention_mask", "negative_prompt_embeds", ""]
        keys += ["negative_prompt_attention_mask"]
    elif isinstance(pipe, AuraFlowPipeline):
        keys = ["prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds"]
        keys += ["negative_prompt_attention_mask"]
    elif isinstance(pipe, OvisImagePipeline):
        keys = ["prompt_embeds", "negative_prompt_embeds"]
    elif isinstance(pipe, QwenImagePipeline):
        keys = ["prompt_embeds", "prompt_embeds_mask"]
    elif isinstance(pipe, FluxPipeline):
        keys = ["prompt_embeds", "pooled_prompt_embeds"]
    else:
        keys = ["prompt_embeds"]
    given = {key: value for key, value in zip(keys, result, strict=False) if key}
    return given | ({"negative_prompt": None} if "negative_prompt" in names else {})
