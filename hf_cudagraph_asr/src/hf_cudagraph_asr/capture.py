"""Backends: what turns the exact forward into a program of one shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from hf_cudagraph_asr.padding import ExactForward

__all__ = ["Backend", "EagerBackend", "ExportBackend", "Program", "backend_for"]

Program = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Backend(Protocol):
    """Makes the programs of a pool.

    Attributes:
        name: as `enable_cuda_graphs` takes it.
        captures: it makes a program for each shape. One that does not runs the exact forward as
            it is, for any shape, and needs neither plan nor buffers.
    """

    name: str
    captures: bool

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """A program for tensors of these shapes, warmed.

        Args:
            exact: the forward.
            input_values: (B, S) the static input. The program is called with this very tensor.
            lengths: (B,) int64 likewise, at least one of them shorter than S.

        Raises:
            RuntimeError: it cannot be captured.
        """
        ...


class EagerBackend:
    """The exact forward with nothing captured: batches become exact, and enabling costs nothing."""

    name = "eager"
    captures = False

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """The forward itself."""
        return exact


class ExportBackend:
    """One `torch.export` program a shape: static shapes, and none of the model's Python at replay.

    So it fails where the capture of a CUDA graph would ask the host, which makes it the twin that
    the pool is tested with where there is no GPU. Forward hooks do not fire in it.
    """

    name = "export"
    captures = True

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """The exported program, run once."""
        program: Any = torch.export.export(exact, (input_values, lengths), strict=False).module()
        program(input_values, lengths)
        return program  # type: ignore[no-any-return]


_BACKENDS: dict[str, Callable[[], Backend]] = {"eager": EagerBackend, "export": ExportBackend}


def backend_for(choice: str | Backend) -> Backend:
    """A backend by its name, or itself; "auto" is the eager one.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(choice, str):
        return choice
    name = "eager" if choice == "auto" else choice
    if name not in _BACKENDS:
        raise ValueError(
            f"no backend {choice!r}: expected 'auto', {', '.join(map(repr, _BACKENDS))}, or an "
            f"object with `name`, `captures` and `capture`"
        )
    return _BACKENDS[name]()
