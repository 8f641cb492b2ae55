"""`enable_cuda_graphs` and `disable_cuda_graphs`: a model's forward, replaced on the instance."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NoReturn

import torch

from hf_cudagraph_asr.capture import Backend, backend_for
from hf_cudagraph_asr.events import Observer
from hf_cudagraph_asr.plan import BucketPlan
from hf_cudagraph_asr.pool import GraphPool

__all__ = ["EnabledPool", "PooledForward", "disable_cuda_graphs", "enable_cuda_graphs"]

logger = logging.getLogger(__name__)


class PooledForward:
    """Stands in a model's `forward`, with the host's signature.

    A deep copy of the model is not enabled: what is copied in this place is the forward that was
    there before, of the copy. A program reads the weights it was captured with, so a copy needs
    programs of its own; enable it like any other model.

    Attributes:
        pool: what answers.
        host: the forward that was there before.
        was_own: it was the instance's own attribute, and not found in the class.
    """

    def __init__(self, pool: GraphPool, model: Any) -> None:
        self.pool = pool
        self.host = model.forward
        self.was_own = "forward" in vars(model)
        functools.update_wrapper(self, self.host)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the host's forward would return."""
        return self.pool.answer(self.host, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.host, memo)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a model with CUDA graphs enabled cannot be pickled: call disable_cuda_graphs(model) "
            "first, and enable it again where it is loaded"
        )


class EnabledPool(GraphPool):
    """A pool in a model's forward; leaving it as a context takes it out again."""

    def __enter__(self) -> EnabledPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the model, unless it was disabled, or enabled anew, in the meantime."""
        if self.closed:
            return
        forward = _pooled(self._model)
        if forward is not None and forward.pool is self:
            disable_cuda_graphs(self._model)
            return
        logger.warning(
            "the forward of %s was replaced while CUDA graphs were enabled and is left as it is; "
            "calls that reach the pool go on to the model's own forward",
            type(self._model).__name__,
        )
        self.close()


def enable_cuda_graphs(
    model: Any,
    plan: BucketPlan | None = None,
    *,
    backend: str | Backend = "auto",
    batch_sizes: Iterable[int] | None = None,
    dtype: torch.dtype | None = None,
    copy_outputs: bool = True,
    observers: Iterable[Observer] = (),
) -> EnabledPool:
    """Serve a model's calls from programs captured for the lengths of a plan.

        with enable_cuda_graphs(model, plan) as pool:    # or keep it on
            pipeline("automatic-speech-recognition", model=model, ...)("query.wav")
            print(pool.explain(samples=31_000))

    Args:
        model: a CTC model of transformers, in evaluation mode when it is called. Nothing of it
            changes but its instance's `forward`. One of a family without a length-exact forward
            keeps its own: a warning says why, and `explain` repeats it.
        plan: the lengths; not needed by the eager backend.
        backend: "cuda": a CUDA graph for each length and batch size. "compile": a program of
            torch.compile for each, inside a graph on CUDA. "export": a `torch.export` program for
            each. "eager": the length-exact forward, nothing captured. "auto": "cuda" where the
            model is on such a device and there is a plan, else "eager". Or a `Backend`.
        batch_sizes: rows to capture each length for; by default the plan's. Batches of other
            sizes are padded to one of these or split.
        dtype: compute float32 weights in torch.bfloat16 or torch.float16, by autocast. The weights
            stay as they are. By default, in their own dtype.
        copy_outputs: give each caller tensors of its own. Without, an output is right until the
            model's next call.
        observers: called with a `hf_cudagraph_asr.events.Served` for each call.

    Returns:
        The pool, installed already: with or without `with`.

    Raises:
        ValueError: the model is enabled already; the plan is missing or for another geometry;
            there is no such backend; the model's configuration names no blank; or the dtype does
            not fit the weights.
    """
    if (forward := _pooled(model)) is not None and not forward.pool.closed:
        raise ValueError(
            f"CUDA graphs are enabled on this {type(model).__name__} already: call "
            f"disable_cuda_graphs(model) first, or pool.rebuild() to capture it anew"
        )
    pool = EnabledPool(
        model,
        # Without a plan there is nothing to capture on any device.
        backend_for("eager" if plan is None and backend == "auto" else backend, model.device),
        plan,
        batch_sizes=batch_sizes,
        dtype=dtype,
        copy_outputs=copy_outputs,
        observers=observers,
    )
    model.forward = PooledForward(pool, model)
    return pool


def disable_cuda_graphs(model: Any) -> None:
    """Give a model the forward it had before, and drop the pool. Nothing to do is no error.

    Args:
        model: the model.
    """
    forward = _pooled(model)
    if forward is None:
        return
    if vars(model)["forward"] is not forward:
        logger.warning(
            "the forward of %s was wrapped while CUDA graphs were enabled and is left as it is; "
            "calls that reach the pool go on to the model's own forward",
            type(model).__name__,
        )
    elif forward.was_own:
        model.forward = forward.host
    else:
        del model.forward
    forward.pool.close()


def _pooled(model: Any) -> PooledForward | None:
    """What serves in a model's forward, also inside of what others wrapped around it."""
    forward = vars(model).get("forward")
    while forward is not None and not isinstance(forward, PooledForward):
        forward = getattr(forward, "__wrapped__", None)
    return forward
