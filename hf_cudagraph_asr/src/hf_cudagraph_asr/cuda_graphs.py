"""`CudaBackend`: one CUDA graph a shape, all of a replica's in one memory pool.

A graph replays with the addresses it was captured with, so what it reads must stay where it is:

- Weights, static inputs and outputs are held here. What lies between them belongs to the pool,
  which the graphs share, as no two of them run at once.
- The workspace of cuBLAS belongs to a stream. A pool captures on a stream that no other pool has,
  and nothing else is run there: a workspace allocated before the capture would lie outside the
  memory pool, and one of a stream that two pools have goes when the first of them does
  (pytorch/pytorch#193402).
- Graphs are destroyed together, never one alone.

A replay runs on its caller's stream. An event keeps replays from different streams apart as one
stream would, and spares the copies to and from another one's memory.
"""

from __future__ import annotations

import threading
import weakref
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

from hf_cudagraph_asr.capture import Program
from hf_cudagraph_asr.capture_thread import CaptureThread
from hf_cudagraph_asr.exact import ExactForward

__all__ = ["CudaBackend"]

_cuda: Any = torch.cuda  # partly without annotations

# The first run loads kernels, the second may choose among them; what is left is to be quick.
WARM_RUNS = 3

# PyTorch hands out so many streams of a device, and then the first again.
STREAMS = 32


class CudaBackend:
    """CUDA graphs, captured by one thread that lives as long as the backend.

    The device is that of the first tensors it is given.
    """

    name = "cuda"
    captures = True
    exclusive = True

    def __init__(self) -> None:
        self._thread = CaptureThread()
        self._site: _Site | None = None
        self._replays: list[_Replay] = []
        self._bytes: int | None = None

    def warm(self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor) -> None:
        """Run the forward a few times, on the thread that will capture it.

        Raises:
            ValueError: the tensors are not on one CUDA device, that of the others before.
            RuntimeError: the forward does not run.
        """
        site = self._at(input_values)
        # What the caller put in is there before another thread's stream reads it.
        torch.cuda.current_stream(site.device).synchronize()
        self._thread.run(partial(self._warm, site, exact, input_values, lengths), site.device)

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """A graph of the forward.

        The first comes after one of a small shape, which fails where this would, and leaves little
        behind: memory of a capture that failed stays taken.

        Raises:
            ValueError: the tensors are not on one CUDA device, that of the others before.
            RuntimeError: it cannot be captured. The backend is of no more use then: close it.
        """
        site = self._at(input_values)
        record = partial(self._record, site, exact, input_values, lengths)
        return self._thread.run(record, site.device)

    def turn(self) -> _Turn:
        """The caller's own stream, after the turn before and ahead of the next one."""
        if self._site is None:
            raise RuntimeError("nothing was captured: warm and capture a shape first")
        return self._site.turn

    def memory(self) -> int:
        """Bytes of the graphs' memory pool, as the allocator counts them. Slow after a capture."""
        site, known = self._site, self._bytes
        if site is None:
            return 0
        if known is None:
            pool = tuple(site.pool)
            known = self._bytes = sum(
                segment["total_size"]
                for segment in _cuda.memory_snapshot()
                if tuple(segment["segment_pool_id"]) == pool
            )
        return known

    def replica(self, *, live: bool = False) -> Self:
        """One with a stream, a memory pool and a thread of its own."""
        return type(self)()

    def close(self) -> None:
        """Wait for the last replay, destroy all graphs and end the thread."""
        if self._site is not None:
            self._site.turn.wait()
        for replay in self._replays:
            replay.reset()
        self._replays.clear()
        self._site, self._bytes = None, None
        self._thread.close()

    def program(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """What is warmed and captured for these shapes: the forward as it is."""
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
        self,
        site: _Site,
        exact: ExactForward,
        input_values: torch.Tensor,
        lengths: torch.Tensor,
    ) -> None:
        program = self.program(exact, input_values, lengths)
        for _ in range(WARM_RUNS):
            program(input_values, lengths)
        torch.cuda.current_stream(site.device).synchronize()

    def _record(
        self,
        site: _Site,
        exact: ExactForward,
        input_values: torch.Tensor,
        lengths: torch.Tensor,
    ) -> Program:
        if not self._replays:
            probe = input_values.new_zeros((1, 2 * exact.receptive_field))
            short = lengths.new_full((1,), exact.receptive_field)
            for _ in range(WARM_RUNS):
                exact(probe, short)
            self._graph(site, exact, exact, probe, short)
        program = self.program(exact, input_values, lengths)
        return self._graph(site, program, exact, input_values, lengths)

    def _graph(
        self,
        site: _Site,
        program: Program,
        exact: ExactForward,
        input_values: torch.Tensor,
        lengths: torch.Tensor,
    ) -> _Replay:
        graph = torch.cuda.CUDAGraph()
        first: Exception | None = None
        try:
            with (
                _CAPTURING,
                torch.cuda.graph(
                    graph,
                    pool=site.pool,
                    stream=site.stream,
                    # What other threads do does not end it.
                    capture_error_mode="thread_local",
                ),
            ):
                try:
                    outputs = program(input_values, lengths)
                except Exception as error:
                    first = error  # the end of the capture fails as well then, and says less
                    raise
        except RuntimeError as error:
            cause = first or error
            raise RuntimeError(
                f"the forward cannot be captured: {type(cause).__name__}: {cause}"
            ) from cause
        self._bytes = None
        replay = _Replay(graph, site.stream, input_values, lengths, outputs, memory_of(exact))
        self._replays.append(replay)
        return replay


# PyTorch allows one capture at a time in a process.
_CAPTURING = threading.Lock()


class _Site:
    """Where graphs are captured: a device, a stream of it, a memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _own_stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.turn = _Turn(device)


class _Turn:
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
        """Until the device has done what was asked of it in all turns so far."""
        self._done.synchronize()


class _Replay:
    """A captured graph. Holds what it reads, whatever becomes of the model and the pool."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        stream: torch.cuda.Stream,
        input_values: torch.Tensor,
        lengths: torch.Tensor,
        outputs: tuple[torch.Tensor, torch.Tensor],
        weights: tuple[torch.UntypedStorage, ...],
    ) -> None:
        self._graph = graph
        self._stream = stream  # nobody else's as long as there is a graph
        self._input_values = input_values
        self._lengths = lengths
        self._outputs = outputs
        self._weights = weights

    def __call__(
        self, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if input_values is not self._input_values or lengths is not self._lengths:
            raise ValueError(
                f"a graph of {tuple(self._input_values.shape)} reads the tensors it was captured "
                f"with, not those it is called with: copy {tuple(input_values.shape)} into them"
            )
        self._graph.replay()
        return self._outputs

    def reset(self) -> None:
        """Destroy the graph."""
        self._graph.reset()


def memory_of(exact: ExactForward) -> tuple[torch.UntypedStorage, ...]:
    """The memory of all a forward may read: also of tensors that are no parameter or buffer."""
    found = [*exact.parameters(), *exact.buffers()]
    for module in exact.modules():
        found += [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return tuple(tensor.untyped_storage() for tensor in found)


_TAKEN: weakref.WeakValueDictionary[tuple[torch.device, int], torch.cuda.Stream] = (
    weakref.WeakValueDictionary()
)
_TAKING = threading.Lock()


def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that no other backend captures on, as long as somebody holds it."""
    with _TAKING:
        for _ in range(STREAMS):
            stream: torch.cuda.Stream = _cuda.Stream(device)
            key = device, stream.cuda_stream
            if key not in _TAKEN:
                _TAKEN[key] = stream
                return stream
    raise RuntimeError(
        f"{STREAMS} pools of CUDA graphs are in use on {device}, as many as it has streams: "
        f"disable some, or plan fewer replicas"
    )
