"""Tracing on a CUDA device: the same bits, the same maps, no waiting, and placements of all kinds.

`TRACING_TEST_DEVICE=cpu pytest tests/gpu/test_tracing_gpu.py` runs the same functions without a
device, which checks the tests themselves; where they ask something of CUDA, they then ask the
nearest thing that a CPU can answer.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import accelerate
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from daam_diffusers import HeatMaps, trace
from daam_diffusers.scores import AttentionCall, attention_with_log_sum_exp, text_probabilities

DEVICE = os.environ.get("TRACING_TEST_DEVICE", "cuda")
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
CUDA_ONLY = pytest.mark.skipif(DEVICE != "cuda", reason="asks for CUDA's own counters")

GEOMETRIES = ("tiny-sd", "tiny-sdxl")
ALL = (*GEOMETRIES, "tiny-flux", "tiny-sd3")
STEPS = 3


def _load(name: str) -> ModuleType:
    # The benchmarks' folder is no package, and neither is this one.
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


pipelines = _load("pipelines")


def run(pipe: Any, geometry: str, steps: int = STEPS) -> torch.Tensor:
    latents: torch.Tensor = pipelines.generate(pipe, geometry, steps=steps)
    return latents


def traced(pipe: Any, geometry: str, steps: int = STEPS) -> tuple[torch.Tensor, HeatMaps]:
    with trace(pipe) as tracer:
        latents = run(pipe, geometry, steps)
    return latents, tracer.heat_maps()


@pytest.fixture(autouse=True)
def _exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    # cuDNN's convolutions round float32 to ten bits of mantissa unless told not to.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", ALL)
def test_traced_latents_are_bit_identical(geometry: str, dtype: torch.dtype) -> None:
    pipe = pipelines.build(geometry, device=DEVICE, dtype=dtype)
    plain = run(pipe, geometry)
    assert torch.isfinite(plain).all()
    assert torch.equal(plain, run(pipe, geometry)), "the host itself does not repeat its bits"

    latents, _ = traced(pipe, geometry)

    assert latents.device.type == DEVICE
    assert torch.equal(latents, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", ALL)
def test_columns_of_a_cell_sum_to_one(geometry: str, dtype: torch.dtype) -> None:
    pipe = pipelines.build(geometry, device=DEVICE, dtype=dtype)
    _, maps = traced(pipe, geometry)
    for layer in maps.layers:
        total = maps.probabilities[layer.name].sum(dim=0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


@pytest.mark.parametrize("geometry", ALL)
def test_maps_equal_those_of_the_cpu(geometry: str) -> None:
    pipe = pipelines.build(geometry)
    _, expected = traced(pipe, geometry)
    _, found = traced(pipe.to(DEVICE), geometry)
    for word in expected:
        torch.testing.assert_close(found[word].values, expected[word].values, rtol=1e-3, atol=1e-5)


def _offload_model(pipe: Any) -> None:
    if DEVICE == "cuda":
        pipe.enable_model_cpu_offload()
    else:  # what it does, for the one module that is traced
        accelerate.cpu_offload_with_hook(pipe.unet, torch.device("cpu"))


def _offload_sequentially(pipe: Any) -> None:
    if DEVICE == "cuda":
        pipe.enable_sequential_cpu_offload()
    else:
        accelerate.cpu_offload(pipe.unet, torch.device("cpu"))


@pytest.mark.parametrize("offload", [_offload_model, _offload_sequentially])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_offloaded_pipelines_give_the_same_maps(
    geometry: str, offload: Callable[[Any], None]
) -> None:
    _, expected = traced(pipelines.build(geometry, device=DEVICE), geometry)
    pipe = pipelines.build(geometry)
    offload(pipe)
    plain = run(pipe, geometry)

    latents, found = traced(pipe, geometry)

    assert torch.equal(latents, plain)
    for word in expected:
        torch.testing.assert_close(found[word].values, expected[word].values)
    assert torch.equal(run(pipe, geometry), plain), "offloading still works after the trace"


def test_a_trace_begun_before_offloading_still_records() -> None:
    _, expected = traced(pipelines.build("tiny-sd", device=DEVICE), "tiny-sd")
    pipe = pipelines.build("tiny-sd")
    with trace(pipe) as tracer:
        _offload_model(pipe)
        run(pipe, "tiny-sd")
    torch.testing.assert_close(tracer.heat_maps()["dog"].values, expected["dog"].values)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "Module.compile"])
def test_a_compiled_denoiser_is_traced_eagerly_and_then_compiled_again(in_place: bool) -> None:
    pipe = pipelines.build("tiny-sd", device=DEVICE)
    eager, expected = traced(pipe, "tiny-sd")
    # Inductor on a CPU would ask for a compiler and prove nothing more.
    options = {} if DEVICE == "cuda" else {"backend": "eager"}
    if in_place:
        pipe.unet.compile(**options)
    else:
        pipe.unet = torch.compile(pipe.unet, **options)
    compiled = run(pipe, "tiny-sd")

    latents, found = traced(pipe, "tiny-sd")

    assert torch.equal(latents, eager)
    assert torch.equal(found["dog"].values, expected["dog"].values)
    assert torch.equal(run(pipe, "tiny-sd"), compiled)


def test_the_record_does_not_grow_with_steps() -> None:
    pipe = pipelines.build("tiny-sd", device=DEVICE)
    sizes = []
    for steps in (2, 4):
        with trace(pipe) as tracer:
            run(pipe, "tiny-sd", steps)
        sizes.append(tracer.record_bytes())
    assert sizes[0] == sizes[1] > 0


@CUDA_ONLY
def test_the_record_is_all_that_stays_on_the_device() -> None:
    pipe = pipelines.build("tiny-sd", device=DEVICE)
    with trace(pipe) as tracer:
        run(pipe, "tiny-sd")  # kernels' workspaces, and the branch's text embeddings
        before = torch.cuda.memory_allocated() - tracer.record_bytes()
        run(pipe, "tiny-sd", 2 * STEPS)
        after = torch.cuda.memory_allocated() - tracer.record_bytes()
    assert abs(after - before) <= 64 * 1024


class HostReads(TorchDispatchMode):
    """Fails on what would make the host wait, were the tensors on a GPU."""

    WAITING = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.is_nonzero.default,
        torch.ops.aten.repeat_interleave.Tensor,
        # Indices in a list become a tensor of the host's, which is copied to the device.
        torch.ops.aten.index.Tensor,
    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self.WAITING:
            raise RuntimeError(f"called a synchronizing operation: {func}")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_synchronization() -> Iterator[None]:
    if DEVICE != "cuda":
        with HostReads():
            yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@contextmanager
def later_calls_must_not_synchronize(denoiser: torch.nn.Module) -> Iterator[list[int]]:
    """Guards the denoiser from its second call on, the tracer's own hooks included."""
    guards: list[Any] = []
    calls = [0]

    def enter(*_: Any) -> None:
        calls[0] += 1
        if calls[0] > 1:
            guards.append(no_synchronization())
            guards[-1].__enter__()

    def leave(*_: Any) -> None:
        if guards:
            guards.pop().__exit__(None, None, None)

    handles = [
        denoiser.register_forward_pre_hook(enter, prepend=True),
        # Also after an error, or every later test would run guarded.
        denoiser.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("geometry", ALL)
def test_tracing_never_makes_the_host_wait_after_the_first_step(geometry: str) -> None:
    pipe = pipelines.build(geometry, device=DEVICE)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    run(pipe, geometry)  # what kernels set up once may wait
    with later_calls_must_not_synchronize(denoiser) as calls:
        run(pipe, geometry)  # the host itself does not wait: else the test would prove nothing
        calls[0] = 0
        with trace(pipe):
            run(pipe, geometry)
    assert calls == [STEPS]


def test_the_guard_notices_a_tracer_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    from daam_diffusers import watch

    def waiting(*args: Any, **kwargs: Any) -> torch.Tensor:
        probabilities = text_probabilities(*args, **kwargs)
        probabilities.sum().item()
        return probabilities

    monkeypatch.setattr(watch, "text_probabilities", waiting)
    pipe = pipelines.build("tiny-sd", device=DEVICE)
    with (
        later_calls_must_not_synchronize(pipe.unet),
        trace(pipe),
        pytest.raises(RuntimeError, match="synchronizing"),
    ):
        run(pipe, "tiny-sd")
    run(pipe, "tiny-sd")


@pytest.mark.parametrize("columns", [range(5), (1, 2, 3), (0, 2, 3, 7)], ids=str)
def test_choosing_columns_never_makes_the_host_wait(columns: Any) -> None:
    torch.manual_seed(0)
    query, key = (torch.randn(2, 4, n, 8, device=DEVICE) for n in (64, 9))
    call = AttentionCall(query, key, None, 8**-0.5)
    with no_synchronization():
        found = text_probabilities(call, rows=slice(1, 2), columns=columns)
    probabilities = (query[1:] @ key[1:].mT * call.scale).softmax(dim=-1).mean(dim=1)  # (1, N, K)
    expected = torch.stack([probabilities[..., c] for c in columns], dim=1)
    torch.testing.assert_close(found[:, :-1], expected)
    torch.testing.assert_close(found.sum(dim=1), torch.ones_like(found[:, 0]))


KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "any": None,
}


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gradient", [False, True], ids=["", "for a gradient"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_columns_of_joint_attention_equal_a_softmax_whichever_kernel_runs(
    kernel: str, gradient: bool, dtype: torch.dtype, masked: bool
) -> None:
    """With the kernel's log-sum-exp where it gives one, and without, which are one-hot values."""
    torch.manual_seed(0)
    heads, cells, text, width = (24, 4096, 256, 64) if DEVICE == "cuda" else (2, 64, 9, 16)
    length, columns, place = cells + text, (0, 1, 2, 5), slice(text, None)
    query, key, value = torch.randn(3, 1, length, heads, width, device=DEVICE).to(dtype)
    query, key, value = (t.transpose(1, 2).requires_grad_(gradient) for t in (query, key, value))
    mask = None
    if masked:
        mask = (torch.arange(length, device=DEVICE) != 5).expand(1, 1, 1, length)
    backend = KERNELS[kernel]
    inputs, options = (query, key, value), {"attn_mask": mask}
    with sdpa_kernel(list(KERNELS.values())[:-1] if backend is None else backend):
        try:
            alone = F.scaled_dot_product_attention(*inputs, **options)
        except RuntimeError as error:  # not each kernel takes each of these
            pytest.skip(str(error).splitlines()[0])
        output, lse = attention_with_log_sum_exp(F.scaled_dot_product_attention, inputs, options)
    assert torch.equal(output, alone)
    print(f"{kernel}, {dtype}, {masked=}, {gradient=}: log-sum-exp {lse is not None}")
    with torch.no_grad():
        scores = query[0, :, place].double() @ key[0].double().mT * width**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[0], -torch.inf)
        slow = scores.softmax(dim=-1)[..., list(columns)].mean(dim=0).mT  # (C, N)
        del scores
    for known in (None,) if lse is None else (None, lse):
        call = AttentionCall(query, key, mask, width**-0.5, known)
        found = text_probabilities(call, rows=slice(0, 1), columns=columns, cells=place)[0, :-1]
        error = (found - slow).abs().max() / slow.max()
        assert error <= (1e-5 if dtype == torch.float32 else 1e-2), float(error)
