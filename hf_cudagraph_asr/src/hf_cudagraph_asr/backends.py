"""Backends: what turns the exact forward into a program of one shape."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Self

import torch
from torch import nn

from hf_cudagraph_asr.exact import ExactForward

Program = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

_NOTHING = nullcontext()


class Backend(ABC):
    """Makes the programs of one replica of a pool, which runs one of them at a time.

    A pool warms every shape first and captures them afterwards, the largest first. What grows
    while another shape is warmed, a workspace or a cache, is then at rest during each capture.

    Attributes:
        name: as `enable_cuda_graphs` takes it.
        captures: it makes a program for each shape. One that does not runs the exact forward as
            it is, for any shape, and needs neither plan nor buffers.
        exclusive: while it captures, no other thread may call the model.
    """

    name: str
    captures = True
    exclusive = False

    def warm(self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor) -> None:
        """Do whatever a first run of these shapes does lazily.

        Args:
            exact: the forward.
            input_values: (B, S) the static input.
            lengths: (4, B) int64 likewise, `Frames.counts` of rows, at least one shorter than S.

        Raises:
            RuntimeError: the forward does not run.
        """
        exact(input_values, lengths)

    @abstractmethod
    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """Make a program for these tensors, to be called with them and no others.

        Args:
            exact: the forward.
            input_values: (B, S) the static input, warmed before.
            lengths: (4, B) int64 likewise.

        Raises:
            RuntimeError: it cannot be captured.
        """

    def in_order(self) -> AbstractContextManager[object]:
        """Context for one replay: copy in, run, copy out, on the caller's stream.

        It starts after the caller's earlier work and after the previous replay; later work sees
        its result.
        """
        return _NOTHING

    def memory(self) -> int:
        """Count the bytes that its programs hold on the device, static inputs and weights apart."""
        return 0

    def replica(self) -> Self:
        """Make another such backend, which shares no memory with this one that a replay writes."""
        return copy.copy(self)

    def close(self) -> None:
        """Drop what it holds. Its programs are not called any more."""
        return None


class EagerBackend(Backend):
    """The exact forward with nothing captured: batches become exact, and enabling costs nothing."""

    name = "eager"
    captures = False

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """Return the forward itself."""
        return exact


class ExportBackend(Backend):
    """One `torch.export` program a shape: static shapes, and none of the model's Python at replay.

    It fails where the forward branches on a tensor's values, as a capture would, which makes it the
    twin that the pool is tested with where there is no GPU. Forward hooks do not fire in it.
    """

    name = "export"
    # Tracing changes the call of every module there is, and puts tensors without values in the
    # place of the model's weights, for all threads.
    exclusive = True

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """Export the forward."""
        if any(weight.is_inference() for weight in exact.parameters()):
            raise RuntimeError(
                "the weights were made under torch.inference_mode(), and cannot be exported: load "
                "the model outside of it"
            )
        exported = torch.export.export(_Parts(exact), (input_values, lengths), strict=False)
        program: Program = exported.module()
        return program


class _Parts(nn.Module):
    """An exact forward and the parts of its model, without the model itself.

    The tracer keeps a stack of the calls, by whichever thread, of modules that it traces: a call of
    the model that has come no further than the gate is not to be on it.
    """

    def __init__(self, exact: ExactForward) -> None:
        super().__init__()
        for name, part in exact.model.named_children():
            self.add_module(name, part)
        self.forward = exact.forward
        self.training = exact.training


def compiled(exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor) -> Program:
    """Compile the forward for one shape, and run it once.

    Dynamo keeps what it compiled with a function's code, and tells the entries apart by guards
    that look at the model and at global state in every call. Here each shape has code of its own,
    with a single entry and no guards: a program is called with one shape, and the pool notices by
    itself when weights are exchanged. So no shape makes another one compile again, nor does a
    caller in inference mode. The weights are the model's own: values changed in place are used.
    """

    def program(
        input_values: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs: tuple[torch.Tensor, torch.Tensor] = exact(input_values, lengths)
        return outputs

    # A copy of the code: what is compiled of it belongs to this program alone.
    own = FunctionType(program.__code__.replace(), globals(), "program", None, program.__closure__)
    found: Program = torch.compile(
        own,
        dynamic=False,
        fullgraph=True,
        options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
    )
    try:
        with torch.inference_mode(False), torch.no_grad():
            found(input_values, lengths)
    except RuntimeError as error:
        # Dynamo's and Inductor's errors go on for pages after a first line, or a second, that says
        # what it is.
        lines = str(error).strip().splitlines() or [""]
        first = lines[1] if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]
        remedy = ""
        if "compiler" in f"{type(error).__name__}: {first}":
            remedy = "; install g++, or name a compiler in the variable CXX"
        raise RuntimeError(
            f"the forward of {tuple(input_values.shape)} does not compile: "
            f"{type(error).__name__}: {first}{remedy}, or take another backend"
        ) from error
    return found
