"""Contexts in which an operation that waits for the device, or that no graph can hold, raises."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def no_synchronization(device: str) -> Iterator[None]:
    """Raise where the host waits for the device; without one, where it would."""
    if device != "cuda":
        with HostReads():
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set_sync_debug_mode("error")
        yield
    finally:
        _set_sync_debug_mode(before)


def _set_sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        # "A prototype feature", it warns, when the mode is set already: where warnings are errors,
        # the mode would stay on for all that follows in the process.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


class HostReads(TorchDispatchMode):
    """Without a device, raises where a capture would fail on one."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in self.WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if name in ("index_put", "index_put_"):  # a number of the host becomes a tensor
            raise RuntimeError(f"cannot copy between CPU and CUDA tensors in a capture: {name}")
        return func(*args, **(kwargs or {}))
