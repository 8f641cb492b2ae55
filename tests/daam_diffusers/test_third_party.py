"""Attention as research code computes it: seen rightly, or refused at the denoiser's first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    CustomDiffusionAttnProcessor,
)
from slow import attentions, is_near
from tiny_pipelines import PROMPT, VARIANTS, stable_diffusion

from daam_diffusers import TraceError, trace

CPU = torch.device("cpu")


class Scores:
    """As in Prompt-to-Prompt and Attend-and-Excite: probabilities are taken from the layer."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):  # type: ignore[no-untyped-def]
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, text.shape[1], len(text))
        query, key, value = (
            attn.head_to_batch_dim(x)
            for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        mixed = self.mix(attn, query, key, value, mask)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(mixed)))

    def mix(self, attn, query, key, value, mask):  # type: ignore[no-untyped-def]
        return attn.get_attention_scores(query, key, mask) @ value


class InSlices(Scores):
    """Three rows of the batch of samples and heads at a time, so that heads are torn apart."""

    size = 3

    def mix(self, attn, query, key, value, mask):  # type: ignore[no-untyped-def]
        masks = [None] * len(query) if mask is None else mask.split(self.size)
        parts = zip(*(x.split(self.size) for x in (query, key, value)), masks, strict=False)
        return torch.cat([Scores.mix(self, attn, *part) for part in parts])


class RowByRow(InSlices):
    size = 1


class SampleBySample(InSlices):
    size = 4  # the heads of one sample


class HeadByHead(Scores):
    """One head of all samples at a time: as many rows a call as a sample has heads, of others."""

    def mix(self, attn, query, key, value, mask):  # type: ignore[no-untyped-def]
        parts = [query, key, value, *(() if mask is None else (mask,))]
        parts = [x.unflatten(0, (-1, attn.heads)) for x in parts]  # (B, H, ...)
        heads = [
            Scores.mix(self, attn, *[x[:, head] for x in parts[:3]],
                       parts[3][:, head] if mask is not None else None)
            for head in range(attn.heads)
        ]  # fmt: skip
        return torch.stack(heads, dim=1).flatten(0, 1)


class Subclass(AttnProcessor):
    def __call__(self, attn, hidden_states, *args, **kwargs):  # type: ignore[no-untyped-def]
        return super().__call__(attn, hidden_states, *args, **kwargs)


def custom_diffusion() -> CustomDiffusionAttnProcessor:
    return CustomDiffusionAttnProcessor(
        train_kv=False, train_q_out=False, hidden_size=32, cross_attention_dim=32
    )


PROCESSORS: dict[str, Callable[[], Any]] = {
    "scores": Scores,
    "slices": InSlices,
    "row by row": RowByRow,
    "sample by sample": SampleBySample,
    "head by head": HeadByHead,
    "custom diffusion": custom_diffusion,
    "subclass": Subclass,
}


def denoise(pipe: Any, mask: torch.Tensor | None) -> torch.Tensor:
    """Four samples, two of them conditional, so that samples and heads are as many."""
    latents = torch.randn(4, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(["a red dog", "the fog"], CPU, 1, True)
        text = torch.cat([negative, embeds])
        masks = None if mask is None else mask.expand(4, -1)
        return pipe.unet(latents, 500, text, encoder_attention_mask=masks).sample  # type: ignore[no-any-return]


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_that_take_scores_from_the_layer_are_seen(name, masked):
    pipe, twin = stable_diffusion(), stable_diffusion()
    mask = torch.ones(1, 77)
    mask[:, 5:] = 0
    mask = mask if masked else None
    if masked and name == "custom diffusion":
        pytest.skip("it adds no mask")
    pipe.unet.set_attn_processor(
        {
            path: PROCESSORS[name]() if ".attn2." in path else processor
            for path, processor in pipe.unet.attn_processors.items()
        }
    )
    plain = denoise(pipe, mask)
    with attentions(twin.unet) as seen:
        denoise(twin, mask)
    with trace(pipe) as tracer:
        assert torch.equal(denoise(pipe, mask), plain)
    for image in (0, 1):
        is_near(tracer.heat_maps(image), seen, 2 + image)
    for module in pipe.unet.modules():
        assert "get_attention_scores" not in vars(module)


def test_scores_that_a_layer_was_patched_to_return_are_seen_and_stay_patched():
    pipe, twin = stable_diffusion(), stable_diffusion()
    layers = [module for path, module in pipe.unet.named_modules() if path.endswith("attn2")]
    pipe.unet.set_attn_processor(Scores())
    kept: list[torch.Tensor] = []
    for layer in layers:

        def store(query, key, mask=None, layer=layer):  # type: ignore[no-untyped-def]
            kept.append(type(layer).get_attention_scores(layer, query, key, mask))
            return kept[-1]

        layer.get_attention_scores = store
    patches = [layer.get_attention_scores for layer in layers]
    with attentions(twin.unet) as seen:
        denoise(twin, None)
    with trace(pipe) as tracer:
        denoise(pipe, None)
    is_near(tracer.heat_maps(), seen, 2)
    assert len(kept) == len(layers)
    assert [layer.get_attention_scores for layer in layers] == patches


def own_softmax(attn, hidden_states, encoder_hidden_states=None, **kwargs):  # type: ignore[no-untyped-def]
    """What T-GATE and regional prompting put in a layer's or a block's place."""
    query, key, value = (
        attn.head_to_batch_dim(x)
        for x in (
            attn.to_q(hidden_states),
            attn.to_k(encoder_hidden_states),
            attn.to_v(encoder_hidden_states),
        )
    )
    mixed = (query @ key.mT * attn.scale).softmax(dim=-1) @ value
    return attn.to_out[0](attn.batch_to_head_dim(mixed))


def replace_forward(unet: Any, path: str) -> None:
    layer = unet.get_submodule(path)
    layer.forward = lambda *args, **kwargs: own_softmax(layer, *args, **kwargs)


def replace_class(unet: Any, path: str) -> None:
    layer = unet.get_submodule(path)
    layer.__class__ = type("Regional", (type(layer),), {"forward": own_softmax})


def replace_block(unet: Any, path: str) -> None:
    block = unet.get_submodule(path.removesuffix(".attn2"))
    block.forward = lambda hidden, *args, encoder_hidden_states, **kwargs: (
        hidden + own_softmax(block.attn2, block.norm2(hidden), encoder_hidden_states)
    )


@pytest.mark.parametrize("replace", [replace_forward, replace_class, replace_block])
def test_a_layer_that_runs_without_its_processor_is_refused_at_the_first_call(replace):
    pipe, steps = stable_diffusion(), []
    replace(pipe.unet, "down_blocks.1.attentions.0.transformer_blocks.0.attn2")
    found = rf"down_blocks\.1.*processor was not called: down_blocks\.1.* runs {__name__}\."
    with pytest.raises(TraceError, match=found), trace(pipe):
        VARIANTS["sd"].run(pipe, callback_on_step_end=lambda *args: steps.append(1) or args[-1])
    assert not steps


def test_a_layer_whose_forward_is_wrapped_is_seen():
    pipe, twin = stable_diffusion(), stable_diffusion()
    for path, layer in pipe.unet.named_modules():
        if path.endswith("attn2"):
            layer.forward = lambda *args, _own=layer.forward, **kwargs: _own(*args, **kwargs)
    with attentions(twin.unet) as seen:
        VARIANTS["sd"].run(twin)
    with trace(pipe) as tracer:
        VARIANTS["sd"].run(pipe)
    is_near(tracer.heat_maps(), seen, 1)


class OwnSoftmax(AttnProcessor2_0):
    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):  # type: ignore[no-untyped-def]
        if encoder_hidden_states is None:
            return super().__call__(attn, hidden_states, **kwargs)
        return own_softmax(attn, hidden_states, encoder_hidden_states)


class Merged(AttnProcessor2_0):
    """As token merging does it: one query stands for four."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):  # type: ignore[no-untyped-def]
        if encoder_hidden_states is None:
            return super().__call__(attn, hidden_states, **kwargs)
        some = super().__call__(attn, hidden_states[:, ::4], encoder_hidden_states, **kwargs)
        return some.repeat_interleave(4, dim=1)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (OwnSoftmax, r"7 layer.* with OwnSoftmax.*scaled_dot_product_attention or get_att"),
        (Merged, r"down_blocks\.0.*attn2 attends from 96 cells .* 16×24.*token merging"),
    ],
)
def test_processors_that_hide_or_merge_are_refused_at_the_first_call(processor, message):
    pipe, steps = stable_diffusion(), []
    pipe.unet.set_attn_processor(processor())
    with pytest.raises(TraceError, match=message), trace(pipe):
        VARIANTS["sd"].run(pipe, callback_on_step_end=lambda *args: steps.append(1) or args[-1])
    assert not steps


def test_a_host_that_skips_deep_layers_keeps_steps_of_layers_that_agree():
    """DeepCache computes the inner blocks at each second step only."""
    pipe = stable_diffusion()
    calls, kept = [-1], {}
    pipe.unet.register_forward_pre_hook(lambda *args: calls.__setitem__(0, calls[0] + 1))
    for name in ("down_blocks.1", "mid_block", "up_blocks.0"):
        block = pipe.unet.get_submodule(name)

        def forward(*args, _own=block.forward, _name=name, **kwargs):  # type: ignore[no-untyped-def]
            if calls[0] % 2 == 0:
                kept[_name] = _own(*args, **kwargs)
            return kept[_name]

        block.forward = forward
    with trace(pipe, keep=("step",)) as tracer:
        VARIANTS["sd"].run(pipe, PROMPT, num_inference_steps=5)
    for factor, count in ((1, 5), (2, 3)):
        maps = tracer.heat_maps(layers=lambda layer, factor=factor: layer.factor == factor)
        assert maps["dog"].values.shape == (count, 16, 24)
        assert set(maps.calls.values()) == {count}
    with pytest.raises(ValueError, match=r"different numbers of them, \[3, 5\].*cache skips"):
        tracer.heat_maps()
