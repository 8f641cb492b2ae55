"""`CudaBackend`: one CUDA graph a shape, all of a replica's in one memory pool.

A graph replays with the addresses it was captured with, so what it reads must stay in its place:

- Static inputs and outputs are held here, weights by the pool. What lies between them belongs to
  the memory pool, which the graphs share, as no two of them run at once.
- The workspace of cuBLAS belongs to a stream. A replica captures on a stream of its own: a
  workspace allocated before the capture would lie outside the memory pool, and one of a stream
  that two pools have goes when the first of them does (pytorch/pytorch#193402).
- Graphs are destroyed together, never one alone.

A replay runs on its caller's stream. An event keeps replays from different streams in order as one
stream would, and spares the copies to and from another one's memory.

While a graph is captured, other threads may use the device, but must not draw CUDA random numbers:
the generator is shared, and torch raises.
"""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_cudagraph_asr.backends import Backend, Program, compiled
from hf_cudagraph_asr.exact import ExactForward

logger = logging.getLogger(__name__)

_cuda: Any = torch.cuda  # partly without annotations

# The first run loads kernels, the second may choose among them; what is left is to be quick.
WARM_RUNS = 3

# PyTorch hands out so many streams of a device and a priority, and then the first again.
STREAMS = 32

Result = TypeVar("Result")


class CudaBackend(Backend):
    """CUDA graphs, captured by one thread that all replicas of a pool share.

    What libraries keep for each thread, handles and plans for kernels, is then there from the
    warm-up before, and for the next plan as well. The device is that of the first tensors given.

    Args:
        thread: captures; by default a new one.
    """

    name = "cuda"

    def __init__(self, thread: _CaptureThread | None = None) -> None:
        self._thread = _CaptureThread() if thread is None else thread
        self._owns_thread = thread is None
        self._site: _Site | None = None
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._bytes: int | None = None

    def warm(self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor) -> None:
        """Run the forward a few times, on the thread that will capture it.

        The first time a small input is run before, to refuse a forward that no graph can hold: on
        torch before 2.13 a capture that fails leaves the process in disorder.
        """
        site = self._at(input_values)
        # What the caller put in is there before another thread's stream reads it.
        torch.cuda.current_stream(site.device).synchronize()
        self._thread.run(partial(self._warm, site, exact, input_values, lengths), site.device)

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """Capture a graph of the forward; where that fails, the backend is of no more use."""
        site = self._at(input_values)
        record = partial(self._record, site, exact, input_values, lengths)
        return self._thread.run(record, site.device)

    def in_order(self) -> _Order:
        """Context for one replay on the caller's stream, after the replay before."""
        if self._site is None:
            raise RuntimeError("nothing was captured: warm and capture a shape first")
        return self._site.order

    def memory(self) -> int:
        """Count the bytes of the graphs' memory pool, by the allocator. Slow after a capture."""
        site, known = self._site, self._bytes
        if site is None:
            return 0
        if known is None:
            segments = _cuda.memory_snapshot(mempool_id=site.pool, include_traces=False)
            known = self._bytes = sum(segment["total_size"] for segment in segments)
        return known

    def replica(self) -> Self:
        """Return one with a stream and a memory pool of its own."""
        return type(self)(self._thread)

    def close(self) -> None:
        """Wait for the last replay, destroy all graphs, and end the thread if it is its own."""
        if self._site is not None:
            self._site.order.wait()
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._site, self._bytes = None, None
        if self._owns_thread:
            self._thread.close()

    def program(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """Return what is warmed and captured for these shapes: the forward as it is."""
        return exact

    def _at(self, values: torch.Tensor) -> _Site:
        if not values.is_cuda:
            raise ValueError(
                f"the {self.name} backend captures on a CUDA device, but the model is on "
                f"{values.device}: call model.to('cuda') first, or take backend='eager'"
            )
        if self._site is None:
            self._site = _Site(values.device)
        if values.device != self._site.device:
            raise ValueError(
                f"this backend captures on {self._site.device} and was given tensors on "
                f"{values.device}: take a replica() of it for each device"
            )
        return self._site

    def _warm(
        self, site: _Site, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> None:
        if not site.checked:
            shape = 1, 2 * exact.receptive_field, *input_values.shape[2:]
            probe = input_values.new_zeros(shape)
            short = lengths.new_full((1,), exact.receptive_field)
            exact(probe, short)  # what happens at a first run only is no reason to refuse
            with CaptureCheck():  # type: ignore[no-untyped-call]
                exact(probe, short)
            site.checked = True
        program = self.program(exact, input_values, lengths)
        for _ in range(WARM_RUNS):
            program(input_values, lengths)
        torch.cuda.current_stream(site.device).synchronize()

    def _record(
        self, site: _Site, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        program = self.program(exact, input_values, lengths)
        if not self._graphs:
            # During a capture nothing is collected, and the allocator gives nothing back.
            gc.collect()
            torch.cuda.empty_cache()
        graph, outputs = _captured(site, partial(program, input_values, lengths))
        self._bytes = None
        self._graphs.append(graph)

        def replay(values: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if values is not input_values or given is not lengths:
                raise ValueError(
                    f"a graph of {tuple(input_values.shape)} reads the tensors it was captured "
                    f"with, not those it is called with: copy {tuple(values.shape)} into them"
                )
            graph.replay()
            return outputs

        return replay


class CompiledGraphBackend(CudaBackend):
    """CUDA graphs of the forward as torch.compile compiles it, for each shape."""

    name = "compile"

    def __init__(self, thread: _CaptureThread | None = None) -> None:
        super().__init__(thread)
        self._programs: dict[tuple[int, ...], Program] = {}

    def program(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """Return the forward compiled for these shapes, when they are first asked for."""
        shape = tuple(input_values.shape)
        if shape not in self._programs:
            self._programs[shape] = compiled(exact, input_values, lengths)
        return self._programs[shape]

    def close(self) -> None:
        """Forget the programs as well."""
        super().close()
        self._programs.clear()


class CaptureCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode under which a forward raises where no CUDA graph can hold it; the error names where.

    That is where the host reads a value of the device, and where a tensor is copied between
    devices from memory that is not pinned: both wait, which ends a capture.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator that a graph can hold."""
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        tensors = _tensors((args, kwargs))
        indexed = name.startswith("index") and any(
            tensor.dtype in (torch.bool, torch.uint8) for tensor in _tensors(args[1:2])
        )
        if name in _HOST_READS or indexed:
            raise RuntimeError(
                f"the forward cannot be captured: {name} makes the host wait for values of the "
                f"device"
            )
        # A single value of the host is handed over with a kernel's arguments, but copied it is not.
        copies = name in ("_to_copy", "copy_")
        held = [tensor for tensor in tensors if tensor.ndim or copies]
        devices = {tensor.device for tensor in held}
        if (target := (kwargs or {}).get("device")) is not None and held:
            devices.add(torch.device(target))
        kinds = {device.type for device in devices}
        if len(kinds) > 1 and not (copies and tensors[-1].is_pinned()):
            between = " and ".join(sorted(kinds))
            raise RuntimeError(
                f"the forward cannot be captured: {name} copies between {between}, for which the "
                f"host waits"
            )
        return func(*args, **(kwargs or {}))


_HOST_READS = frozenset(
    {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"}
)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _captured(
    site: _Site, forward: Callable[[], tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, torch.Tensor]]:
    """A graph of what `forward` does, and its outputs.

    Not by `torch.cuda.graph`, which waits for the whole device before each capture, and so for
    callers, and empties the allocator's cache each time.
    """
    graph = torch.cuda.CUDAGraph()
    failure: Exception | None = None
    with _CAPTURING, torch.cuda.stream(site.stream), ExitStack() as stack:
        if gc.isenabled():  # a collection may destroy another graph and so end this capture
            gc.disable()
            stack.callback(gc.enable)
        # What other threads do does not end it.
        graph.capture_begin(pool=site.pool, capture_error_mode="thread_local")
        try:
            outputs = forward()
        except Exception as error:  # noqa: BLE001 - raised again below, once the capture is ended
            failure = error
        try:
            graph.capture_end()
        except RuntimeError as error:
            failure = failure or error  # the first says more
            if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
                _undo(site)
    if failure is not None:
        raise RuntimeError(
            f"the forward cannot be captured: {type(failure).__name__}: {failure}"
        ) from failure
    return graph, outputs


def _undo(site: _Site) -> None:
    """Take back what a capture that failed leaves behind before torch 2.13 (pytorch#180395).

    The allocator goes on giving the stream memory of the graphs' pool, which is never returned,
    and the generator believes in a capture, so that random numbers raise: a capture that succeeds
    tells it otherwise.
    """
    index = site.device.index
    allocator: Any = torch._C
    try:
        allocator._cuda_endAllocateToPool(index, site.pool)
        allocator._cuda_releasePool(index, site.pool)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        site.one.add(1)
        graph.capture_end()
    except (RuntimeError, AttributeError) as error:
        logger.warning(
            "a capture failed and could not be undone (%s): CUDA random numbers may raise in this "
            "process, and its memory stays taken",
            error,
        )


# PyTorch allows one capture at a time in a process.
_CAPTURING = threading.Lock()


class _CaptureThread:
    """One thread that runs one call after the other, until `close`."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    def run(self, call: Callable[[], Result], device: torch.device) -> Result:
        """Return or raise what `call()` does, without gradients and on that device."""

        def within() -> Result:
            with torch.no_grad(), torch.cuda.device(device):
                return call()

        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="cuda-graph-capture")
        return self._executor.submit(within).result()

    def close(self) -> None:
        """End the thread, after what it was given; another call starts one anew."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


class _Site:
    """Place of captures: a device, a stream of it, a memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _own_stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.order = _Order(device)
        self.one = torch.ones((), device=device)
        self.checked = False


class _Order:
    """One replay after the other, whatever streams their callers are on.

    A context that can be entered again and again, by one thread at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._done = _cuda.Event()
        self._stream: Any = None

    def __enter__(self) -> None:
        self._stream = torch.cuda.current_stream(self._device)
        self._stream.wait_event(self._done)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.record(self._stream)

    def wait(self) -> None:
        """Wait until the device has done all replays so far."""
        self._done.synchronize()


_TAKEN: weakref.WeakValueDictionary[tuple[torch.device, int], torch.cuda.Stream] = (
    weakref.WeakValueDictionary()
)
_TAKING = threading.Lock()


def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that nobody else has, as long as somebody holds it.

    Of high priority: `torch.cuda.Stream()` in other code never returns one of these, which are
    apart. On a stream that a caller has too, its own work would be captured in the place of run.
    """
    with _TAKING:
        for _ in range(STREAMS):
            stream: torch.cuda.Stream = _cuda.Stream(device, priority=-1)
            key = device, stream.cuda_stream
            if key not in _TAKEN:
                _TAKEN[key] = stream
                return stream
    raise RuntimeError(
        f"{STREAMS} pools of CUDA graphs are in use on {device}, as many as it has streams: "
        f"disable some, or plan fewer replicas"
    )
