"""CUDA graphs on a stand-in for a device: what a capture is refused for, and what it leaves behind.

Tensors are torch's fake ones, which know their device and no values; streams, events and graphs
are recorded in the place of run. `tests/gpu` has what only a device can say.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_models import CASES, asks_the_host, every_kind
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_cudagraph_asr import ExactForward, enable_cuda_graphs
from hf_cudagraph_asr.captured import cut
from hf_cudagraph_asr.cuda_graphs import CaptureCheck, CudaBackend

CUDA = torch.device("cuda", 0)


class Forward(torch.nn.Module):
    """Takes the place of an exact forward, as a graph sees it."""

    receptive_field = 10

    def __init__(self, doing: Callable[[torch.Tensor], object] | None = None) -> None:
        super().__init__()
        self.doing = doing
        self.threads: set[int] = set()
        self.collecting: list[bool] = []

    def forward(
        self, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.threads.add(threading.get_ident())
        self.collecting.append(gc.isenabled())
        if self.doing is not None:
            self.doing(input_values)
        return input_values * 2, lengths


class Machine:
    """A log of what was asked of torch.cuda."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.priorities: list[int] = []
        self.handed = 0
        self.fails = False  # the next end of a capture

    def stream(self, device: Any, priority: int = 0) -> Any:
        self.priorities.append(priority)
        self.handed += 1
        machine = self

        class Stream:
            cuda_stream = machine.handed % 32

            def synchronize(self) -> None:
                machine.log.append("wait for the stream")

            def wait_event(self, event: object) -> None: ...

        return Stream()

    def graph(self) -> Any:
        machine = self

        class Graph:
            def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
                machine.log.append(f"begin {capture_error_mode}")

            def capture_end(self) -> None:
                if machine.fails:
                    machine.fails = False
                    machine.log.append("end fails")
                    raise RuntimeError("operation failed due to a previous error during capture")
                machine.log.append("end")

            def replay(self) -> None:
                machine.log.append("replay")

            def reset(self) -> None:
                machine.log.append("reset")

        return Graph()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    current = machine.stream(CUDA)
    machine.priorities.clear()

    class Event:
        def record(self, stream: object) -> None: ...

        def synchronize(self) -> None:
            machine.log.append("wait for the replays")

    stand_ins: dict[str, Any] = {
        "Stream": machine.stream,
        "Event": Event,
        "CUDAGraph": machine.graph,
        "graph_pool_handle": lambda: (0, 7),
        "current_stream": lambda device=None: current,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "synchronize": lambda *_: machine.log.append("wait for the device"),
        "empty_cache": lambda: machine.log.append("empty the cache"),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(
            torch._C,
            name,
            lambda index, pool, name=name: machine.log.append(f"{name} {index} {pool}"),
            raising=False,
        )
    with FakeTensorMode():
        yield machine


def tensors(rows: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.zeros((rows, 50), device=CUDA),
        torch.full((rows,), 10, dtype=torch.int64, device=CUDA),
    )


# --- what is refused before a capture

REFUSED: dict[str, Callable[[torch.Tensor], object]] = {
    "a value read": lambda x: x.sum().item(),
    "a branch": lambda x: bool(x.sum() > 0),
    "a choice by values": lambda x: x[x > 0],
    "values written by a choice": lambda x: x.clone().index_put_((x > 0,), x.new_ones(())),
    "positions of values": lambda x: x.nonzero(),
    "a comparison of all": lambda x: torch.equal(x, x),
    "a table from the host": lambda x: x + torch.arange(50.0).to(x.device),
    "a constant list": lambda x: x[0, :3] + torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "a copy to the host": lambda x: x.cpu(),
    "a value written from the host": lambda x: x.new_zeros(3).__setitem__(1, torch.tensor(5.0)),
}
ALLOWED: dict[str, Callable[[torch.Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).softmax(-1),
    "a number of the host": lambda x: x * torch.tensor(2.0),
    "another dtype": lambda x: x.to(torch.bfloat16),
    "indices on the device": lambda x: x[:, torch.arange(3, device=x.device)],
    "a mask": lambda x: torch.where(x > 0, x, x.new_zeros(())),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_waits_for_the_device_is_refused_by_name(kind: str) -> None:
    with FakeTensorMode():
        values, _ = tensors()
        with CaptureCheck(), pytest.raises(RuntimeError, match=r"cannot be captured: \w+ "):
            REFUSED[kind](values)


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_stays_on_the_device_is_not(kind: str) -> None:
    with FakeTensorMode(), torch.no_grad():
        values, _ = tensors()
        with CaptureCheck():
            ALLOWED[kind](values)


@every_kind
def test_the_exact_forward_passes(name: str) -> None:
    """Except for WavLM with transformers before 5.18, which is refused before it is captured."""
    exact = ExactForward(CASES[name].build())
    with FakeTensorMode(), torch.no_grad():
        held = {
            key: torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
            for key, tensor in [*exact.named_parameters(), *exact.named_buffers()]
        }
        values = torch.empty((1, 900, *exact.geometry.features), device=CUDA)
        lengths = torch.empty((1,), dtype=torch.int64, device=CUDA)
        refused = pytest.raises(RuntimeError, match="cannot be captured: _to_copy")
        with refused if asks_the_host(name) else nullcontext(), CaptureCheck():
            torch.func.functional_call(exact, held, (values, lengths))


def test_a_forward_that_no_graph_can_hold_is_never_captured(machine: Machine) -> None:
    backend = CudaBackend()
    forward: Any = Forward(REFUSED["a copy to the host"])
    with pytest.raises(RuntimeError, match="cannot be captured"):
        backend.warm(forward, *tensors())
    assert not [entry for entry in machine.log if entry.startswith("begin")]
    backend.close()


# --- a capture


def test_a_capture_waits_for_no_device_and_is_ended_by_no_other_thread(machine: Machine) -> None:
    backend, forward, (values, lengths) = CudaBackend(), Forward(), tensors()
    exact: Any = forward
    backend.warm(exact, values, lengths)
    program = backend.capture(exact, values, lengths)
    asked = [entry for entry in machine.log if entry != "wait for the stream"]
    assert asked == ["empty the cache", "begin thread_local", "end"]
    backend.capture(exact, values, lengths)
    assert machine.log[-2:] == ["begin thread_local", "end"]  # the cache is emptied once
    with backend.in_order():
        found = program(values, lengths)
    assert machine.log[-1] == "replay"
    assert found[0].shape == values.shape
    with pytest.raises(ValueError, match=r"copy .* into them"):
        program(values.clone(), lengths)
    backend.close()
    assert machine.log[-3:] == ["wait for the replays", "reset", "reset"]


def test_nothing_is_collected_during_a_capture(machine: Machine) -> None:
    backend, forward, (values, lengths) = CudaBackend(), Forward(), tensors()
    exact: Any = forward
    backend.warm(exact, values, lengths)
    assert all(forward.collecting)
    backend.capture(exact, values, lengths)
    assert not forward.collecting[-1]
    assert gc.isenabled()
    backend.close()


def test_captures_are_on_streams_of_high_priority_that_nobody_else_has(machine: Machine) -> None:
    backends = [CudaBackend() for _ in range(32)]
    forward: Any = Forward()
    for backend in backends:
        backend.warm(forward, *tensors())
    assert set(machine.priorities) == {-1}
    one_more = CudaBackend()
    with pytest.raises(RuntimeError, match="32 pools of CUDA graphs are in use"):
        one_more.warm(forward, *tensors())
    backends.pop().close()
    gc.collect()
    one_more.warm(forward, *tensors())
    for backend in (*backends, one_more):
        backend.close()


def test_one_thread_captures_for_all_replicas_and_plans_of_a_pool(machine: Machine) -> None:
    backend, forward = CudaBackend(), Forward()
    exact: Any = forward
    for _ in range(2):  # two plans
        replicas = [backend.replica() for _ in range(2)]
        for replica in replicas:
            held = tensors()
            replica.warm(exact, *held)
            replica.capture(exact, *held)
        for replica in replicas:
            replica.close()
    (thread,) = forward.threads
    assert thread != threading.get_ident()
    assert thread in {other.ident for other in threading.enumerate()}
    backend.close()
    assert thread not in {other.ident for other in threading.enumerate()}


# --- a capture that fails


@pytest.mark.parametrize(("version", "undone"), [("2.11.0+cu130", True), ("2.13.0", False)])
def test_a_capture_that_fails_is_undone_where_torch_does_not(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, version: str, undone: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    backend = CudaBackend()
    held = tensors()
    forward: Any = Forward()
    backend.warm(forward, *held)

    def fail(values: torch.Tensor) -> None:
        machine.fails = True
        raise torch.OutOfMemoryError("no room")

    forward.doing = fail
    with pytest.raises(RuntimeError, match="cannot be captured: OutOfMemoryError: no room"):
        backend.capture(forward, *held)
    after = machine.log[machine.log.index("end fails") + 1 :]
    expected = [
        "_cuda_endAllocateToPool 0 (0, 7)",
        "_cuda_releasePool 0 (0, 7)",
        "begin thread_local",  # clears the generator of random numbers
        "end",
    ]
    assert after == (expected if undone else [])
    assert gc.isenabled()
    backend.close()


def test_a_failure_that_cannot_be_undone_is_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1")

    def gone(index: int, pool: object) -> None:
        raise RuntimeError("unspecified launch failure")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", gone, raising=False)
    backend, held = CudaBackend(), tensors()
    forward: Any = Forward()
    backend.warm(forward, *held)
    machine.fails = True
    with pytest.raises(RuntimeError, match="cannot be captured: RuntimeError: operation failed"):
        backend.capture(forward, *held)
    assert "random numbers may raise" in caplog.text
    backend.close()


# --- around the graphs


def test_an_uneven_batch_copies_nothing_from_the_host() -> None:
    class Host:
        receptive_field = 10

        def emitted(self, samples: int) -> int:
            return samples // 10

    host: Any = Host()
    with FakeTensorMode():
        host.blank_row = torch.zeros(12, device=CUDA)
        output = torch.zeros((4, 30, 12), device=CUDA), torch.zeros(4, device=CUDA).long()
        with CaptureCheck():
            found = cut(host, output, (200, 130, 5), copy=True)
    assert found.shape == (3, 20, 12)


@pytest.mark.parametrize(
    ("capability", "precision", "said"),
    [((9, 0), "tf32", True), ((9, 0), "ieee", False), ((7, 5), "tf32", False)],
)
def test_float32_in_fewer_bits_is_said(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: tuple[int, int],
    precision: str,
    said: bool,
) -> None:
    model = CASES["wav2vec2-layer"].build(num_hidden_layers=1)
    monkeypatch.setattr(type(model), "device", CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = precision
    try:
        with enable_cuda_graphs(model):
            assert ("allow_tf32" in caplog.text) is said
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
