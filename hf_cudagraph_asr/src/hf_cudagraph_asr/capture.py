"""Backends: what turns the exact forward into a program of one shape."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

import torch

from hf_cudagraph_asr.exact import ExactForward

__all__ = ["Backend", "EagerBackend", "ExportBackend", "Program", "backend_for"]

logger = logging.getLogger(__name__)

Program = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Backend(Protocol):
    """Makes the programs of one replica of a pool, which runs one of them at a time.

    A pool warms every shape first and captures them afterwards, the largest first. What grows
    while another shape is warmed, a workspace or a cache, is then at rest during each capture.

    Attributes:
        name: as `enable_cuda_graphs` takes it.
        captures: it makes a program for each shape. One that does not runs the exact forward as
            it is, for any shape, and needs neither plan nor buffers.
        exclusive: while it captures, no other thread may use the device or the model.
    """

    name: str
    captures: bool
    exclusive: bool

    def warm(self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor) -> None:
        """Do whatever a first run of these shapes does lazily.

        Args:
            exact: the forward.
            input_values: (B, S) the static input.
            lengths: (B,) int64 likewise, at least one of them shorter than S.

        Raises:
            RuntimeError: the forward does not run.
        """
        ...

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """A program for these tensors, ready to be called with them and no others.

        Args:
            exact: the forward.
            input_values: (B, S) the static input, warmed before.
            lengths: (B,) int64 likewise.

        Raises:
            RuntimeError: it cannot be captured.
        """
        ...

    def turn(self) -> AbstractContextManager[object]:
        """Where the copy in, the program and the copy out of one replay run, after all that the
        caller did before and before all that the caller does next.

        It leaves the caller on its own stream: what it allocates in its turn is its own, and ready
        for whatever it does next. The next turn begins, on the device, after all of this one.
        """
        ...

    def memory(self) -> int:
        """Bytes that its programs hold on the device, static inputs and weights apart."""
        ...

    def replica(self, *, live: bool = False) -> Self:
        """Another such backend, which shares nothing with this one that a replay writes to.

        Args:
            live: others may call the model while it captures.
        """
        ...

    def close(self) -> None:
        """Drop what it holds. Its programs are not called any more."""
        ...


class EagerBackend:
    """The exact forward with nothing captured: batches become exact, and enabling costs nothing."""

    name = "eager"
    captures = False
    exclusive = False

    def warm(self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor) -> None:
        """Run the forward once."""
        exact(input_values, lengths)

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """The forward itself."""
        return exact

    def turn(self) -> AbstractContextManager[object]:
        """Nothing: each call runs where its caller is."""
        return _HERE

    def memory(self) -> int:
        """Nothing."""
        return 0

    def replica(self, *, live: bool = False) -> Self:
        """A copy."""
        return copy.copy(self)

    def close(self) -> None:
        """Nothing is held."""


class ExportBackend(EagerBackend):
    """One `torch.export` program a shape: static shapes, and none of the model's Python at replay.

    So it fails where the capture of a CUDA graph would ask the host, which makes it the twin that
    the pool is tested with where there is no GPU. Forward hooks do not fire in it.
    """

    name = "export"
    captures = True
    # While torch.export traces a model, tensors without values stand in the place of its weights.
    exclusive = True

    def __init__(self) -> None:
        self._live = False

    def replica(self, *, live: bool = False) -> Self:
        """One for a model at rest, or in use."""
        other = copy.copy(self)
        other._live = live
        return other

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """The exported program, run once."""
        # The quick way to trace changes the call of every module there is, also for threads that
        # are on their way to wait. The strict one does not, but takes longer, and not all models:
        # those it refuses are traced quickly all the same.
        if self._live:
            try:
                return self._export(exact, input_values, lengths, strict=True)
            except Exception as error:  # noqa: BLE001 - tracing raises anything; the other is next
                logger.info("torch.export in its strict mode: %s", error)
        return self._export(exact, input_values, lengths, strict=False)

    def _export(
        self,
        exact: ExactForward,
        input_values: torch.Tensor,
        lengths: torch.Tensor,
        *,
        strict: bool,
    ) -> Program:
        program: Any = torch.export.export(exact, (input_values, lengths), strict=strict).module()
        program(input_values, lengths)
        return program  # type: ignore[no-any-return]


_HERE = nullcontext()

_NAMES = ("cuda", "compile", "export", "eager")


def backend_for(choice: str | Backend, device: torch.device) -> Backend:
    """A backend by its name, or itself; "auto" is "cuda" where the model is on such a device.

    Args:
        choice: the name.
        device: of the model.

    Raises:
        ValueError: there is none of that name, or it does not work on that device.
    """
    if not isinstance(choice, str):
        return choice
    if choice == "auto":
        choice = "cuda" if device.type == "cuda" else "eager"
    if choice == "eager":
        return EagerBackend()
    if choice == "export":
        return ExportBackend()
    # Imported here: they are built on what is above.
    if choice == "cuda":
        if device.type != "cuda":
            there = "" if torch.cuda.is_available() else ", and there is no CUDA device here"
            raise ValueError(
                f"the cuda backend captures on a CUDA device, but the model is on {device}{there}: "
                f"call model.to('cuda') first, or take backend='auto', which is eager on {device}"
            )
        from hf_cudagraph_asr.cuda_graphs import CudaBackend

        return CudaBackend()
    if choice == "compile":
        from hf_cudagraph_asr.compiled import CompileBackend, CompiledGraphBackend

        return CompiledGraphBackend() if device.type == "cuda" else CompileBackend()
    raise ValueError(
        f"no backend {choice!r}: expected 'auto', {', '.join(map(repr, _NAMES))}, or an "
        f"object with the methods of `hf_cudagraph_asr.capture.Backend`"
    )
