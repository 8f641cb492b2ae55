"""What cannot be traced says so, and never gives an empty or partial map."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from diffusers import KandinskyV22Pipeline, UNet2DConditionModel, VQModel
from diffusers.models.attention_processor import AttnProcessor2_0

from daam_diffusers import TraceError, Tracer, trace


def test_no_call_inside_the_context(sd):
    with trace(sd) as tracer:
        pass
    with pytest.raises(TraceError, match="StableDiffusionPipeline was not called"):
        tracer.heat_maps()


def test_a_pipeline_without_text(build):
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=4,
        addition_embed_type="image",
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )
    movq = VQModel(block_out_channels=[16], norm_num_groups=8)
    from diffusers import DDPMScheduler

    pipe = KandinskyV22Pipeline(unet=unet, movq=movq, scheduler=DDPMScheduler())
    with pytest.raises(TraceError, match="KandinskyV22Pipeline encodes no prompt"), trace(pipe):
        pass


def test_an_unknown_denoiser_names_the_known_ones(sd):
    class Other(torch.nn.Module):
        pass

    class Pipe:
        unet = Other()

    with pytest.raises(
        TraceError, match=r"Other is not in the table.*docs/families.md.*register_family"
    ):
        Tracer(Pipe())
    with pytest.raises(TraceError, match="neither `unet` nor `transformer`"):
        Tracer(object())


def test_a_denoiser_without_cross_attention(build):
    pipe = build["sd"](
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        mid_block_type="UNetMidBlock2D",
    )
    with pytest.raises(TraceError, match="no attention layer that reads a prompt"):
        Tracer(pipe)


def test_a_processor_that_hides_its_attention_is_named(sd, build):
    class Hidden(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):  # type: ignore[no-untyped-def]
            return (
                hidden_states
                if encoder_hidden_states is not None
                else super().__call__(attn, hidden_states)
            )

    sd.unet.set_attn_processor(Hidden())
    with (
        pytest.raises(TraceError, match=r"7 layer.* down_blocks\.0.*attn2 with Hidden"),
        trace(sd),
    ):
        build["variant"]("sd").run(sd)


def test_a_processor_that_hides_its_attention_at_some_steps_only_is_named_too(sd, build):
    """The mean would be over the other steps, and nobody would know."""

    class Sometimes(AttnProcessor2_0):
        calls = 0

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):  # type: ignore[no-untyped-def]
            Sometimes.calls += 1
            if Sometimes.calls > 20:
                return hidden_states
            return super().__call__(attn, hidden_states, encoder_hidden_states, **kwargs)

    sd.unet.set_attn_processor(Sometimes())
    with trace(sd) as tracer:
        build["variant"]("sd").run(sd)
    with pytest.raises(TraceError, match=r"was not seen, first .* with Sometimes"):
        tracer.heat_maps()


def test_processors_exchanged_after_the_drop_in_are_noticed(sd, build):
    tracer = Tracer(sd)
    sd.unet.set_attn_processor(tracer.processors())
    sd.unet.set_attn_processor(AttnProcessor2_0())
    build["variant"]("sd").run(sd)
    with pytest.raises(TraceError, match=r"exchanged after Tracer.processors"):
        tracer.heat_maps()
    tracer.remove()


def test_embeddings_changed_between_encoding_and_denoising_are_noticed(sd, build):
    embeds = sd.encode_prompt("a dog", torch.device("cpu"), 1, True)
    with trace(sd) as tracer:
        sd.encode_prompt("a dog", torch.device("cpu"), 1, True)
        latents = torch.randn(1, 4, 8, 8)
        sd.unet(latents, 500, encoder_hidden_states=embeds[0] + 1)
    with pytest.raises(TraceError, match=r"called 1 time.*never with the embeddings"):
        tracer.heat_maps()


def test_guidance_switched_off_by_a_callback_is_followed(sd, build):
    """The usual way to save time: the last steps without the unconditional half."""

    def halve(pipe, step, timestep, kwargs):  # type: ignore[no-untyped-def]
        if step == 1:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return kwargs

    with trace(sd) as tracer:
        build["variant"]("sd").run(
            sd,
            num_inference_steps=4,
            callback_on_step_end=halve,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    assert tracer.heat_maps().provenance["steps"] == "4"


def test_latents_that_change_size_within_a_run(sd):
    with trace(sd) as tracer:
        embeds, _ = sd.encode_prompt("a dog", torch.device("cpu"), 1, False)
        for size in (8, 12):
            sd.unet(torch.randn(1, 4, size, size), 500, encoder_hidden_states=embeds)
    with pytest.raises(TraceError, match=r"changed from \(8, 8\) to \(12, 12\)"):
        tracer.heat_maps()


def test_arguments_that_mean_nothing(sd, build):
    with pytest.raises(ValueError, match="keep must be"):
        Tracer(sd, keep=("token",))
    with pytest.raises(ValueError, match="keep must be"):
        Tracer(sd, keep="step")
    with pytest.raises(ValueError, match="layers must be a function of a LayerInfo, got 'auto'"):
        Tracer(sd, layers="auto")
    with pytest.raises(ValueError, match=r"whole number from 1, got 1\.5"):
        Tracer(sd, runs=1.5)
    with trace(sd) as tracer:
        build["variant"]("sd").run(sd)
    with pytest.raises(ValueError, match="layers must be"):
        tracer.heat_maps(layers="foo")
    for number in (-2, "x"):
        with pytest.raises(IndexError, match=f"run {number!r} does not exist: 1 are held"):
            tracer.heat_maps(run=number)
    with pytest.raises(IndexError, match="image '0' does not exist"):
        tracer.heat_maps(image="0")
    with pytest.raises(ValueError, match="clamp must be"):
        tracer.heat_maps(clamp="never")
    with pytest.raises(ValueError, match="chose none"):
        tracer.heat_maps(layers=lambda layer: layer.factor == 16)
    with trace(sd, layers=lambda layer: False) as tracer:
        build["variant"]("sd").run(sd)
    with pytest.raises(TraceError, match="chose none"):
        tracer.heat_maps()


def test_a_later_call_starts_a_new_run(sd, build):
    with trace(sd) as tracer:
        for prompt in ("a red car", "a blue dog"):
            build["variant"]("sd").run(sd, prompt)
            assert tracer.heat_maps().prompt.text == prompt


def test_maps_keep_neither_the_pipeline_nor_the_tracer_alive(build):
    pipe = build["sd"]()
    with trace(pipe) as tracer:
        build["variant"]("sd").run(pipe)
    maps = tracer.heat_maps()
    alive = weakref.ref(pipe), weakref.ref(tracer)
    del pipe, tracer
    gc.collect()
    assert [reference() for reference in alive] == [None, None]
    assert maps["dog"].values.max() > 0


def test_other_processors_of_the_host_are_seen_through_their_attention_call(sd, build):
    """A subclass may do anything, so it is watched at scaled_dot_product_attention."""

    class Doubled(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *args, **kwargs):  # type: ignore[no-untyped-def]
            return super().__call__(attn, hidden_states * 2, *args, **kwargs)

    variant = build["variant"]("sd")
    sd.unet.set_attn_processor(Doubled())
    plain = variant.run(sd)
    with trace(sd) as tracer:
        assert torch.equal(variant.run(sd), plain)
    watched = tracer.heat_maps()["dog"].values
    sd.unet.set_attn_processor(AttnProcessor2_0())
    for name, module in sd.unet.named_modules():  # the same doubling, where hooks can see it
        if name.endswith(("attn1", "attn2")):
            module.to_q.weight.data *= 2
            if name.endswith("attn1"):
                module.to_k.weight.data *= 2
                module.to_v.weight.data *= 2
    with trace(sd) as tracer:
        torch.testing.assert_close(variant.run(sd), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tracer.heat_maps()["dog"].values, watched, rtol=1e-4, atol=1e-6)
