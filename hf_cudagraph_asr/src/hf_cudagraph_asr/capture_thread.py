"""The thread that captures: the same one for every run of a backend."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["CaptureThread"]

Result = TypeVar("Result")


class CaptureThread:
    """Runs one call after the other, all in one thread, which ends with `close`.

    What libraries keep for each thread, handles and plans for kernels, is then there at the capture
    from the warm-up before.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="cuda-graph-capture")

    def run(self, call: Callable[[], Result], device: torch.device) -> Result:
        """What `call()` returns or raises, once it is done.

        It runs without gradients and outside of inference mode, on that device, and under the
        caller's autocast, if any: but without the cache of autocast, whose tensors would be those
        of one capture and missing in the next.

        Args:
            call: what to run.
            device: of the tensors in it.

        Raises:
            RuntimeError: the thread has ended.
        """
        kind = device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def within() -> Result:
            enabled, dtype = autocast
            with torch.no_grad(), torch.autocast(kind, dtype, enabled, cache_enabled=False):
                if kind == "cuda":
                    with torch.cuda.device(device):
                        return call()
                return call()

        return self._executor.submit(within).result()

    def close(self) -> None:
        """End the thread, after what it was given."""
        self._executor.shutdown()
