"""The host's output does not change by a bit, and the host is left as it was."""

from __future__ import annotations

import copy
import gc
import io
import logging
import pickle
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0

from daam_diffusers import TraceError, Tracer, trace


def state(pipe: Any) -> dict[str, Any]:
    """Everything a tracer could have left behind, by identity."""
    found: dict[str, Any] = {f"pipe.{k}": id(v) for k, v in vars(pipe).items() if k[0] != "_"}
    found["class"] = type(pipe)
    found["text"] = tuple(pipe.text_encoder._forward_hooks)
    for name, module in pipe.unet.named_modules():
        for key, value in vars(module).items():
            if "hooks" in key:
                found[f"{name}.{key}"] = tuple(value)
        found[f"{name}.attributes"] = frozenset(vars(module))
        if hasattr(module, "processor"):
            found[f"{name}.processor"] = id(module.processor)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_traced_latents_are_bit_identical_and_the_pipeline_is_restored(variant, dtype):
    pipe = variant.make().to(dtype)
    plain = variant.run(pipe)
    before = state(pipe)

    with trace(pipe) as tracer:
        traced = variant.run(pipe)

    assert torch.equal(plain, traced)
    assert state(pipe) == before
    maps = tracer.heat_maps()
    for layer in maps.layers:
        total = maps.probabilities[layer.name].sum(dim=0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
    assert torch.equal(variant.run(pipe), plain)


def test_drop_in_processors_trace_until_removed(sd, build):
    variant = build["variant"]("sd")
    plain = variant.run(sd)
    before = state(sd)
    tracer = Tracer(sd)
    sd.unet.set_attn_processor(tracer.processors())
    assert torch.equal(variant.run(sd), plain)
    dog = tracer.heat_maps()["dog"].values
    tracer.remove()
    assert state(sd) == before

    with trace(sd) as again:
        variant.run(sd)
    assert torch.equal(again.heat_maps()["dog"].values, dog)


def test_processors_can_be_set_twice_though_the_host_empties_the_dict(sd, build):
    tracer = Tracer(sd)
    given = tracer.processors()
    names = set(given)
    sd.unet.set_attn_processor(given)
    assert given == {}
    assert set(tracer.processors()) == names == set(sd.unet.attn_processors)


def test_an_exception_inside_the_context_leaves_the_pipeline_as_it_was(sd, build):
    before = state(sd)

    def fail(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        raise ZeroDivisionError("in the middle of a run")

    with pytest.raises(ZeroDivisionError), trace(sd):
        build["variant"]("sd").run(sd, callback_on_step_end=fail)
    assert state(sd) == before


def test_an_exception_inside_attention_leaves_no_hook_behind(sd, build, monkeypatch):
    layer = next(m for n, m in sd.unet.named_modules() if n.endswith("attn2"))
    before = state(sd)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise FloatingPointError

    with monkeypatch.context() as patch:
        patch.setitem(vars(layer.to_v), "forward", broken)
        with pytest.raises(FloatingPointError), trace(sd):
            build["variant"]("sd").run(sd)
    assert state(sd) == before


def test_ip_adapter_scale_changes_while_traced(build):
    variant = build["variant"]("ip-adapter")

    def generate(pipe: Any) -> torch.Tensor:
        def rescale(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
            pipe.set_ip_adapter_scale(0.1 * step)
            return kwargs

        return variant.run(pipe, callback_on_step_end=rescale)

    plain, pipe = generate(variant.make()), variant.make()
    constant = variant.run(variant.make())
    assert not torch.equal(plain, constant)  # the scale matters, so the test could fail
    with trace(pipe):
        assert torch.equal(generate(pipe), plain)


def test_wrapped_processors_pass_for_what_they_wrap(build):
    pipe = build["variant"]("ip-adapter").make()
    keys = set(pipe.unet.state_dict())
    with trace(pipe):
        wrapped = pipe.unet.attn_processors[
            "mid_block.attentions.0.transformer_blocks.0.attn2.processor"
        ]
        assert isinstance(wrapped, IPAdapterAttnProcessor2_0)
        assert set(pipe.unet.state_dict()) == keys
        wrapped.scale = [0.25]
        assert wrapped.inner.scale == [0.25]


def test_keyword_arguments_that_only_the_inner_processor_names_reach_it(sd, build):
    class Scaled(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *args, my_gain=1.0, **kwargs):  # type: ignore[no-untyped-def]
            return super().__call__(attn, hidden_states, *args, **kwargs) * my_gain

    sd.unet.set_attn_processor(Scaled())
    variant = build["variant"]("sd")
    gain = {"cross_attention_kwargs": {"my_gain": 0.5}}
    plain = variant.run(sd, **gain)
    assert not torch.equal(plain, variant.run(sd))
    with trace(sd) as tracer:
        assert torch.equal(variant.run(sd, **gain), plain)
    assert tracer.heat_maps()["dog"].values.max() > 0


def test_processors_exchanged_while_traced_are_traced_and_stay(sd, build):
    variant = build["variant"]("sd")
    with trace(sd) as tracer:
        sd.unet.set_default_attn_processor()
        traced = variant.run(sd)
        assert tracer.heat_maps()["dog"].values.max() > 0
    assert {type(p).__name__ for p in sd.unet.attn_processors.values()} == {"AttnProcessor"}
    assert torch.equal(variant.run(sd), traced)


def test_sequential_offload_is_traced_and_restored(sd, build):
    from accelerate import cpu_offload

    variant = build["variant"]("sd")
    plain = variant.run(sd)
    cpu_offload(sd.unet, execution_device=torch.device("cpu"))
    before = state(sd)
    with trace(sd) as tracer:
        assert torch.equal(variant.run(sd), plain)
    assert state(sd) == before
    assert tracer.heat_maps()["dog"].values.max() > 0


@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_a_compiled_denoiser_runs_eagerly_while_traced_and_says_so_once(build, how, caplog):
    # One level: the compiler takes seconds for each.
    sd = build["sd"](
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
    )
    variant = build["variant"]("sd")
    plain = variant.run(sd)
    compiled_calls = 0

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal compiled_calls
            compiled_calls += 1
            return graph.forward(*args)

        return run

    if how == "torch.compile":
        sd.unet = torch.compile(sd.unet, backend=backend)
    else:
        sd.unet.compile(backend=backend)
    with caplog.at_level(logging.WARNING, "daam_diffusers"), trace(sd) as tracer:
        for _ in range(2):
            assert torch.equal(variant.run(sd), plain)
    assert compiled_calls == 0
    assert [r.message for r in caplog.records if "compiled" in r.message] == [
        "UNet2DConditionModel is compiled; while it is traced it runs eagerly."
    ]
    assert tracer.heat_maps()["dog"].values.max() > 0
    variant.run(sd)
    assert compiled_calls > 0


def test_a_new_tracer_takes_over_from_one_that_is_still_at_work(sd, build):
    before = state(sd)
    with trace(sd) as first:
        build["variant"]("sd").run(sd)
        with trace(sd) as second:
            build["variant"]("sd").run(sd, "a blue dog")
        assert state(sd) == before
    assert state(sd) == before
    assert first.heat_maps().prompt.text != second.heat_maps().prompt.text == "a blue dog"
    assert (first.runs, second.runs) == (1, 1)


def test_a_tracer_that_was_forgotten_is_taken_off_by_the_next(sd):
    before = state(sd)
    sd.unet.set_attn_processor(Tracer(sd).processors())
    gc.collect()
    with trace(sd):
        pass
    assert state(sd) == before


def test_a_tracer_that_was_entered_by_hand_and_dropped_takes_itself_off(sd):
    before = state(sd)
    trace(sd).__enter__()
    gc.collect()
    assert state(sd) == before
    tracer = Tracer(sd)
    sd.unet.set_attn_processor(tracer.processors())
    del tracer
    gc.collect()
    assert state(sd) == before


def test_projections_fused_while_traced_leave_no_wrapper_when_they_are_unfused(sd, build):
    before = dict(sd.unet.attn_processors)
    with trace(sd) as tracer:
        sd.fuse_qkv_projections(vae=False)
        build["variant"]("sd").run(sd)
        assert tracer.heat_maps()["dog"].values.max() > 0
    sd.unfuse_qkv_projections(vae=False)
    after = sd.unet.attn_processors
    assert {name: id(one) for name, one in after.items()} == {n: id(p) for n, p in before.items()}


def test_copies_of_what_is_traced_are_not_traced_and_pickles_say_what_to_do(sd, build):
    with trace(sd) as tracer:
        unet, pipe = copy.deepcopy(sd.unet), copy.deepcopy(sd)
        for saving in (pickle.dumps, lambda what: torch.save(what, io.BytesIO())):
            with pytest.raises(TraceError, match=r"leave `with trace\(pipe\)`"):
                saving(sd.unet)
        build["variant"]("sd").run(pipe)
        assert tracer.runs == 0
    assert type(pipe) is type(sd)
    assert {type(p).__name__ for p in unet.attn_processors.values()} == {"AttnProcessor2_0"}
    pickle.dumps(sd.unet)


def test_random_state_is_not_touched(sd, build):
    variant = build["variant"]("sd")
    torch.manual_seed(3)
    variant.run(sd)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with trace(sd):
        variant.run(sd)
    assert torch.equal(torch.rand(4), expected)
