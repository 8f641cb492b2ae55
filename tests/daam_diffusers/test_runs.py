"""A run is one call of the pipeline: which denoiser calls count, in which step, for which text."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from slow import attentions, is_near
from tiny_cross import VARIANTS as CROSS
from tiny_pipelines import VARIANTS, picture, quiet, sd_parts

from daam_diffusers import HeatMaps, TraceError, Tracer, TraceWarning, trace

CPU = torch.device("cpu")
SD = VARIANTS["sd"]
EMBEDS = ["latents", "prompt_embeds"]


def numbers(part: int, whole: int) -> str:
    return rf"of {part} of the run's {whole} denoiser calls"


# Runs that carry the prompt in part


@pytest.mark.parametrize("steps", [2, 5])
def test_embeddings_that_a_callback_changes_are_told_with_both_numbers(sd, steps):
    def noise(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        return {**kwargs, "prompt_embeds": kwargs["prompt_embeds"] + 1e-3}

    with trace(sd) as tracer:
        SD.run(
            sd,
            num_inference_steps=steps,
            callback_on_step_end=noise,
            callback_on_step_end_tensor_inputs=EMBEDS,
        )
    with pytest.warns(UserWarning, match=numbers(1, steps)):
        assert set(tracer.heat_maps().calls.values()) == {1}


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_embeddings_that_a_callback_changes_in_place_are_told_too(sd, guidance):
    other = sd.encode_prompt("the house left of the dog", CPU, 1, False)[0]

    def change(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        if step == 0:
            kwargs["prompt_embeds"][-1].copy_(other[0])
        return kwargs

    more = {
        "guidance_scale": guidance,
        "callback_on_step_end": change,
        "callback_on_step_end_tensor_inputs": EMBEDS,
    }
    with attentions(sd.unet) as seen:
        SD.run(sd, **more)
    with trace(sd) as tracer:
        SD.run(sd, **more)
    with pytest.warns(UserWarning, match=numbers(1, 3)):
        maps = tracer.heat_maps()
    is_near(maps, [one for one in seen if one.call == 0], -1)


def test_a_prompt_exchanged_beside_the_same_negative_prompt_is_told(sd):
    """The negative half alone is known: that the call is guided does not make it the run's."""
    embeds, negative = sd.encode_prompt("the house and a dog", CPU, 1, True)

    def exchange(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        return {**kwargs, "prompt_embeds": torch.cat([negative, embeds])} if step == 1 else kwargs

    with trace(sd) as tracer:
        SD.run(
            sd,
            num_inference_steps=4,
            callback_on_step_end=exchange,
            callback_on_step_end_tensor_inputs=EMBEDS,
        )
    with pytest.warns(UserWarning, match=numbers(2, 4)):
        assert set(tracer.heat_maps().calls.values()) == {2}


def test_a_buffer_that_a_loop_of_ones_own_uses_again_is_read_again(sd):
    latents = torch.randn(1, 4, 8, 12)
    with trace(sd) as tracer:
        embeds, _ = sd.encode_prompt("a red dog", CPU, 1, False)
        other, _ = sd.encode_prompt("the house", CPU, 1, False)
        text = torch.empty_like(embeds)
        for one in (embeds, other, embeds):
            text.copy_(one)
            sd.unet(latents, 500, encoder_hidden_states=text)
    with pytest.warns(UserWarning, match=numbers(2, 3)):
        assert set(tracer.heat_maps(prompt="a red dog").calls.values()) == {2}


def test_a_prompt_switched_on_purpose_gives_maps_of_both(sd):
    def switch(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        if step == 1:
            embeds, negative = pipe.encode_prompt("a blue dog", CPU, 1, True)
            kwargs["prompt_embeds"] = torch.cat([negative, embeds])
        return kwargs

    more = {
        "prompt": "a red car",
        "num_inference_steps": 4,
        "callback_on_step_end": switch,
        "callback_on_step_end_tensor_inputs": EMBEDS,
    }
    with attentions(sd.unet) as seen:
        SD.run(sd, **more)
    with trace(sd) as tracer:
        SD.run(sd, **more)
    for prompt, calls in (("a red car", (0, 1)), ("a blue dog", (2, 3))):
        with pytest.warns(UserWarning, match=numbers(2, 4)):
            maps = tracer.heat_maps(prompt=prompt)
        assert maps.prompt.text == prompt
        is_near(maps, [one for one in seen if one.call in calls], 1)
    with pytest.warns(UserWarning, match="a blue dog"):
        assert tracer.heat_maps().prompt.text == "a red car"


@pytest.mark.parametrize("when", ["in a callback", "after the run"])
def test_encoding_another_prompt_does_not_touch_the_run(sd, when):
    def encode(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        pipe.encode_prompt("the fog", CPU, 1, True)
        return kwargs

    more = {"callback_on_step_end": encode} if when == "in a callback" else {}
    with trace(sd) as tracer:
        SD.run(sd, "a red car", **more)
        if when == "after the run":
            sd.encode_prompt("the fog", CPU, 1, True)
    maps = tracer.heat_maps()
    assert (maps.prompt.text, maps.provenance["calls"], tracer.runs) == ("a red car", "3", 1)


def test_embeddings_without_a_text_ask_for_prompt_when_a_word_is_looked_up(sd):
    embeds, negative = sd.encode_prompt("a blue dog", CPU, 1, True)
    with trace(sd) as tracer:
        SD.run(sd, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    maps = tracer.heat_maps()
    with pytest.raises(ValueError, match=re.escape("heat_maps(prompt=")):
        maps["dog"]
    named = tracer.heat_maps(prompt="a blue dog")
    assert torch.equal(maps.column(3).values, named["dog"].values)


# Steps


@pytest.mark.parametrize(
    ("scheduler", "options", "steps", "calls"),
    [
        ("HeunDiscreteScheduler", {}, 5, 9),
        ("KDPM2DiscreteScheduler", {}, 5, 9),
        ("PNDMScheduler", {"skip_prk_steps": True}, 10, 11),
        ("PNDMScheduler", {}, 10, 19),
        ("EulerDiscreteScheduler", {}, 5, 5),
        ("UniPCMultistepScheduler", {}, 5, 5),
        ("LCMScheduler", {}, 4, 4),
        ("DPMSolverSinglestepScheduler", {}, 5, 5),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_steps_are_those_the_scheduler_was_asked_for(sd, scheduler, options, steps, calls):
    sd.scheduler = getattr(diffusers, scheduler)(**options)
    with trace(sd, keep=("step",), layers=lambda layer: layer.block == "mid") as tracer:
        SD.run(sd, height=16, width=16, num_inference_steps=steps)
    maps = tracer.heat_maps()
    assert maps["dog"].values.shape[0] == steps
    assert (maps.provenance["steps"], maps.provenance["calls"]) == (str(steps), str(calls))
    assert set(maps.calls.values()) == {calls}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("scheduler", "calls"), [("Heun", "9"), ("Euler", "5")])
def test_image_to_image_counts_the_steps_it_makes(scheduler, calls):
    pipe = VARIANTS["img2img"].make()
    pipe.scheduler = getattr(diffusers, f"{scheduler}DiscreteScheduler")()
    with trace(pipe, keep=("step",)) as tracer:
        VARIANTS["img2img"].run(pipe, num_inference_steps=10, strength=0.5)
    maps = tracer.heat_maps()
    assert maps["dog"].values.shape[0] == 5
    assert (maps.provenance["steps"], maps.provenance["calls"]) == ("5", calls)


# Several pipelines, several runs


def test_another_pipeline_on_the_same_denoiser_does_not_count(sd):
    other = quiet(StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False))
    with attentions(sd.unet) as seen:
        SD.run(sd, "a red car")
    with trace(sd) as tracer:
        SD.run(sd, "a red car")
        other("a blue dog", image=picture(64, 64), num_inference_steps=2, output_type="latent")
        assert tracer.runs == 1
        SD.run(sd, "the fog", height=48, width=64)
    first, second = tracer.heat_maps(run=0), tracer.heat_maps()
    assert (first.size, second.size) == ((16, 24), (24, 32))
    assert (first.prompt.text, second.prompt.text) == ("a red car", "the fog")
    is_near(first, seen, 1)


def test_a_drop_in_spelled_twice_after_an_exception_traces(sd):
    def fail(*args: Any) -> Any:
        raise ZeroDivisionError

    tracer = Tracer(sd)
    sd.unet.set_attn_processor(tracer.processors())
    with pytest.raises(ZeroDivisionError):
        SD.run(sd, callback_on_step_end=fail)
    tracer = Tracer(sd)
    sd.unet.set_attn_processor(tracer.processors())
    SD.run(sd)
    assert set(tracer.heat_maps().calls.values()) == {3}
    tracer.remove()
    assert type(sd) is StableDiffusionPipeline
    assert {type(one).__name__ for one in sd.unet.attn_processors.values()} == {"AttnProcessor2_0"}


def test_a_tracer_decorates_a_function(sd):
    tracer = trace(sd)

    @tracer
    def generate(prompt):
        return sd(prompt, num_inference_steps=1, output_type="latent")

    generate("a dog")
    generate("a red car")
    assert [*tracer.heat_maps()] == ["a", "red", "car"]
    assert tracer.runs == 2
    assert type(sd) is StableDiffusionPipeline


# Threads


class Research(AttnProcessor):
    """Not known to look at, so its attention is seen by the layer's `get_attention_scores`."""


def beside(pipe: Any) -> Any:
    """Another pipeline of the same models."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    parts = {**pipe.components, "scheduler": scheduler}
    return quiet(StableDiffusionPipeline(**parts, requires_safety_checker=False))


@contextmanager
def amid(module: torch.nn.Module, *acts: Callable[[], Any]) -> Iterator[list[Future[Any]]]:
    """Let another thread do all of this inside the first call that this thread makes."""
    here, done = threading.get_ident(), list[Future[Any]]()

    def hook(*_: Any) -> None:
        if threading.get_ident() == here and not done:
            done.extend(pool.submit(act) for act in acts)
            wait(done)

    handle = module.register_forward_hook(hook)
    with ThreadPoolExecutor(1) as pool:
        yield done
    handle.remove()


def inside_attention(pipe: Any) -> torch.nn.Module:
    """A part of the first layer that reads the prompt, called after its q and k are there."""
    modules = pipe.unet.named_modules()
    return next(module for name, module in modules if name.endswith("attn2.to_out.0"))


@pytest.mark.parametrize("processor", [AttnProcessor2_0, Research])
def test_what_another_thread_does_with_the_models_is_not_of_the_run(sd, processor, recwarn):
    sd.unet.set_attn_processor(processor())
    other = beside(sd)

    def encode() -> Any:
        return sd.encode_prompt("the fog", CPU, 1, True, "a house")

    with trace(sd) as alone:
        image, blue, fog = SD.run(sd, "a red car"), SD.run(other, "a blue dog"), encode()
    acts = (lambda: SD.run(other, "a blue dog"), encode)
    with trace(sd) as tracer, amid(inside_attention(sd), *acts) as done:
        assert SD.run(sd, "a red car").equal(image)
    assert done[0].result().equal(blue)
    assert all(one.equal(own) for one, own in zip(done[1].result(), fog, strict=True))
    maps, before = tracer.heat_maps(), alone.heat_maps()
    assert (tracer.runs, maps.provenance["calls"]) == (1, "3")
    assert maps["red"].values.equal(before["red"].values)
    assert not [one for one in recwarn if issubclass(one.category, UserWarning)]


def test_a_traced_pipeline_called_in_two_threads_at_once_is_refused_in_the_second(sd):
    other, elsewhere = beside(sd), Tracer(sd)
    with trace(sd, probe=True) as alone:
        image = SD.run(sd, "a red car")
    acts = [
        lambda: SD.run(sd, "a blue dog"),
        lambda: trace(other).__enter__(),
        lambda: tracer(SD.run)(sd, "a blue dog"),
        lambda: elsewhere.processors(),
        lambda: house.probe("blue", ["blue"]),
    ]
    with trace(sd, probe=True) as tracer:
        SD.run(sd, "a house")
        house = tracer.heat_maps()
        with amid(inside_attention(sd), *acts) as done:
            assert SD.run(sd, "a red car").equal(image)
        for one in done:
            with pytest.raises(TraceError, match="in another thread, and traced there"):
                one.result()
        assert tracer.runs == 2
        SD.run(sd, "a blue dog")
    maps, before = tracer.heat_maps(run=1), alone.heat_maps()
    assert maps["red"].values.equal(before["red"].values)
    assert [*tracer.heat_maps()] == ["a", "blue", "dog"]


@pytest.mark.parametrize("processor", [AttnProcessor2_0, Research])
def test_a_tracer_that_another_thread_takes_off_lets_the_image_be(sd, processor):
    sd.unet.set_attn_processor(processor())
    image = SD.run(sd, "a red car")
    with trace(sd) as tracer, amid(inside_attention(sd), lambda: tracer.remove()) as done:
        assert SD.run(sd, "a red car").equal(image)
    assert done[0].exception() is None
    assert {type(one) for one in sd.unet.attn_processors.values()} == {processor}
    with pytest.raises(TraceError, match="taken off while another thread"):
        tracer.heat_maps()


def test_a_tracer_follows_from_thread_to_thread(sd):
    with trace(sd) as tracer:
        SD.run(sd, "a red car")
        for prompt in ("a red car", "a blue dog"):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(SD.run, sd, prompt).result()
        embeds, negative = sd.encode_prompt("a red car", CPU, 1, True, "")
        with ThreadPoolExecutor(1) as pool:
            given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
            pool.submit(SD.run, sd, None, **given).result()
    first, second, other, last = (tracer.heat_maps(run=run) for run in range(4))
    assert [*other] == ["a", "blue", "dog"]
    for maps in (second, last):
        assert maps["red"].values.equal(first["red"].values)


def test_a_loop_of_ones_own_goes_from_thread_to_thread_beside_others(sd):
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    other = beside(sd)

    def step(embeds: torch.Tensor, timestep: int) -> torch.Tensor:
        with torch.no_grad():
            return sd.unet(latents, timestep, embeds).sample

    with trace(sd) as alone:
        embeds, _ = sd.encode_prompt("a red car", CPU, 1, False)
        drawn = [step(embeds, timestep) for timestep in (900, 500)]
    with trace(sd) as tracer:
        embeds, _ = sd.encode_prompt("a red car", CPU, 1, False)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(step, embeds, 900).result().equal(drawn[0])
        with amid(inside_attention(sd), lambda: SD.run(other, "a blue dog")) as done:
            assert step(embeds, 500).equal(drawn[1])
    done[0].result()
    with pytest.warns(TraceWarning, match=numbers(2, 5) + "; 3 carried text"):
        maps = tracer.heat_maps()
    assert maps["red"].values.equal(alone.heat_maps()["red"].values)


def test_a_loop_of_ones_own_goes_on_in_another_thread_after_a_call_that_raised(sd):
    """Before the first layer, and after some: as in one thread."""
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))

    def step(embeds: torch.Tensor, timestep: int) -> None:
        with torch.no_grad():
            sd.unet(latents, timestep, embeds)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    def loop(go_on: Callable[..., Any]) -> HeatMaps:
        with trace(sd) as tracer:
            embeds, _ = sd.encode_prompt("a red car", CPU, 1, False)
            for timestep, part in ((900, sd.unet.conv_in), (500, sd.unet.mid_block)):
                handle = part.register_forward_pre_hook(fail)
                with pytest.raises(torch.OutOfMemoryError):
                    step(embeds, timestep)
                handle.remove()
                go_on(step, embeds, timestep)
        return tracer.heat_maps()

    with ThreadPoolExecutor(1) as pool:
        maps = loop(lambda *given: pool.submit(*given).result())
    before = loop(lambda act, *given: act(*given))
    assert maps.provenance["calls"] == before.provenance["calls"] == "4"
    assert maps["red"].values.equal(before["red"].values)


def test_a_thread_whose_tracer_another_thread_displaced_does_not_get_into_its_maps(sd):
    """Until it has left its own."""
    with trace(sd) as before:
        with ThreadPoolExecutor(1) as pool:
            tracer = pool.submit(trace(sd).__enter__).result()
            pool.submit(SD.run, sd, "a blue dog").result()
        with pytest.raises(TraceError, match="in another thread, and traced there"):
            SD.run(sd, "a red car")
        sd.encode_prompt("a red car", CPU, 1, False)
        assert (tracer.runs, [*tracer.heat_maps()]) == (1, ["a", "blue", "dog"])
    with pytest.raises(TraceError, match="and took over from this one"):
        before.heat_maps()
    SD.run(sd, "a house")
    assert [*tracer.heat_maps()] == ["a", "house"]
    with before:
        SD.run(sd, "a red car")
    assert [*before.heat_maps()] == ["a", "red", "car"]


# Loops of one's own


@pytest.mark.parametrize("seeds", [[3, 14, 15, 9], [3]])
def test_an_image_of_a_batch_tells_its_own_seed(sd, seeds):
    """Of one generator it has noise that no run of that seed alone has."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with trace(sd) as tracer:
        sd(
            ["a dog", "a red car"],
            num_images_per_prompt=2,
            generator=generators if len(seeds) > 1 else generators[0],
            num_inference_steps=1,
            output_type="latent",
        )
    told = [tracer.heat_maps(image).provenance["seed"] for image in range(4)]
    batch = [f"3, image {image} of a batch" for image in range(4)]
    assert told == ([str(seed) for seed in seeds] if len(seeds) > 1 else batch)


def test_two_loops_of_ones_own_in_one_context(sd):
    """The batch in an order of one's own, several images, the negative prompt as well."""
    latents = torch.randn(4, 4, 8, 12, generator=torch.Generator().manual_seed(1))

    def loop(prompts: list[str]) -> None:
        embeds, negative = sd.encode_prompt(prompts, CPU, 1, True, ["the fog"] * 2)
        for timestep in (900, 500):
            sd.unet(latents, timestep, torch.cat([embeds, negative]))

    texts = [["a red car", "a blue dog"], ["a house", "the night"]]
    with torch.no_grad(), attentions(sd.unet) as seen:
        for prompts in texts:
            loop(prompts)
    with torch.no_grad(), trace(sd, negative=True) as tracer:
        for prompts in texts:
            loop(prompts)
    assert tracer.runs == 2
    for run, prompts in enumerate(texts):
        own = [one for one in seen if one.call // 2 == run]
        for image, prompt in enumerate(prompts):
            maps = tracer.heat_maps(image, run=run)
            assert maps.prompt.text == prompt
            is_near(maps, own, image)
            is_near(tracer.heat_maps(image, run=run, negative=True), own, 2 + image)


def test_a_loop_that_encodes_nothing_is_told_to(sd):
    embeds, _ = sd.encode_prompt("a dog", CPU, 1, False)
    with trace(sd) as tracer:
        sd.unet(torch.randn(1, 4, 8, 8), 500, embeds)
    with pytest.raises(TraceError, match="encode_prompt"):
        tracer.heat_maps()


# Calls that draw nothing


class Loop(StableDiffusionPipeline):
    """A pipeline with a denoising loop of its own; `calls` is what it does in a step."""

    steps = 3
    tiles = 1

    @torch.no_grad()
    def __call__(self, prompt: str, **kwargs: Any) -> tuple[torch.Tensor]:
        embeds, negative = self.encode_prompt(prompt, CPU, 1, True)
        for _ in range(self.tiles):
            self.scheduler.set_timesteps(self.steps)
            latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
            with self.progress_bar(total=self.steps) as bar:
                for timestep in self.scheduler.timesteps:
                    noise = self.noise(latents, timestep, embeds, negative)
                    latents = self.scheduler.step(noise, timestep, latents).prev_sample
                    bar.update()
        return (latents,)

    def noise(self, latents, timestep, embeds, negative):  # type: ignore[no-untyped-def]
        text = torch.cat([negative, embeds])
        return self.unet(torch.cat([latents] * 2), timestep, text).sample[1:]


class Reference(Loop):
    def noise(self, latents, timestep, *text):  # type: ignore[no-untyped-def]
        super().noise(torch.ones_like(latents), timestep, *text)
        return super().noise(latents, timestep, *text)


class OneStep(Reference):
    steps = 1


class Plain(Reference):
    """As the oldest pipelines: a bar around the timesteps, which tells no steps."""

    def progress_bar(self, iterable=None, total=None):  # type: ignore[no-untyped-def]
        return super().progress_bar(range(total))

    @torch.no_grad()
    def __call__(self, prompt: str, **kwargs: Any) -> tuple[torch.Tensor]:
        embeds, negative = self.encode_prompt(prompt, CPU, 1, True)
        self.scheduler.set_timesteps(self.steps)
        latents = torch.randn(1, 4, 8, 8)
        for index in self.progress_bar(total=self.steps):
            self.noise(latents, self.scheduler.timesteps[index], embeds, negative)
        return (latents,)


class Tiles(Loop):
    """One after the other, each denoised to its end."""

    steps, tiles = 2, 3


class InOneBatch(Loop):
    def noise(self, latents, timestep, embeds, negative):  # type: ignore[no-untyped-def]
        crops = torch.cat([latents, latents.roll(3, dims=-1)] * 2)
        text = torch.cat([negative, negative, embeds, embeds])
        return self.unet(crops, timestep, text).sample[2:3]


def traced(pipe: Any, **arguments: Any) -> HeatMaps:
    with trace(pipe) as tracer:
        pipe("a red dog", **arguments)
    return tracer.heat_maps()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Reference, "called 6 times with the prompt, where the scheduler asks for 3"),
        (OneStep, "called 2 times with the prompt, where the scheduler asks for 1"),
        (Plain, "called 6 times with the prompt, where the scheduler asks for 3"),
        (Tiles, "called 6 times with the prompt, where the scheduler asks for 2"),
        (InOneBatch, "has the prompt in 2 places, with latents of their own"),
    ],
)
def test_calls_for_other_things_with_the_same_prompt_are_refused(cls, message):
    pipe = quiet(cls(**sd_parts()))
    with pytest.raises(TraceError, match=message):
        traced(pipe)


@pytest.mark.parametrize(("views", "message"), [(1, r"called 6 times.* for 2"), (3, "in 3 places")])
def test_panoramas_are_refused(views, message):
    pipe = CROSS["panorama"].make()
    size = {"height": 64, "width": 128, "num_inference_steps": 2, "output_type": "latent"}
    with pytest.raises(TraceError, match=message):
        traced(pipe, view_batch_size=views, **size)


def test_latents_decoded_in_tiles_are_traced_as_ever(sd):
    sd.vae.enable_tiling()
    with trace(sd) as tracer:
        image = sd("a dog", height=32, width=96, num_inference_steps=2).images[0]
    maps = tracer.heat_maps()
    assert (maps.size, maps.image_size) == ((16, 48), (32, 96))
    assert maps["dog"].overlay(image).size == image.size


class Optimized(Loop):
    """As Attend-and-Excite: the latents of a step are changed by a gradient before it."""

    def noise(self, latents, timestep, embeds, negative):  # type: ignore[no-untyped-def]
        with torch.enable_grad():
            own = latents.clone().requires_grad_(True)
            for _ in range(2):
                loss = self.unet(own, timestep, embeds).sample.square().mean()
                (gradient,) = torch.autograd.grad(loss, own)
                own = (own - 0.1 * gradient).detach().requires_grad_(True)
        return super().noise(own.detach(), timestep, embeds, negative)


class WithGradients(Loop):
    __call__ = Loop.__call__.__wrapped__  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", [Loop, Optimized, WithGradients])
def test_calls_for_a_gradient_do_not_count_unless_all_have_one(cls):
    pipe = quiet(cls(**sd_parts()))
    with attentions(pipe.unet) as seen:
        (plain,) = pipe("a red dog")
    with trace(pipe) as tracer:
        assert torch.equal(pipe("a red dog")[0], plain)
    maps = tracer.heat_maps()
    assert maps.provenance["steps"] == maps.provenance["calls"] == "3"
    batched = {one.call for one in seen if len(one.query) == 2}
    is_near(maps, [one for one in seen if one.call in batched], 1)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_the_hosts_attend_and_excite_counts_its_steps_alone():
    from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
        StableDiffusionAttendAndExcitePipeline,
    )

    pipe = quiet(StableDiffusionAttendAndExcitePipeline(**sd_parts()))

    def run() -> torch.Tensor:
        return pipe(  # type: ignore[no-any-return]
            "a red car beside a blue dog",
            [3, 7],
            height=32,
            width=32,
            num_inference_steps=3,
            max_iter_to_alter=2,
            thresholds={0: 0.9},
            attn_res=(8, 8),
            output_type="latent",
            generator=torch.Generator().manual_seed(7),
        ).images

    plain = run()
    with trace(pipe) as tracer:
        assert torch.equal(run(), plain)
    maps = tracer.heat_maps()
    assert set(maps.calls.values()) == {3}
    assert maps.provenance["calls"] == "3"
