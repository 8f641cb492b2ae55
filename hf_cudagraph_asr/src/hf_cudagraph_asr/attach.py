"""`enable_cuda_graphs` and `disable_cuda_graphs`: a model's forward, replaced on the instance."""

from __future__ import annotations

import copy
import functools
import logging
import os
from collections.abc import Iterable
from typing import Any, NoReturn, Self

import torch

from hf_cudagraph_asr.backends import Backend, EagerBackend, ExportBackend
from hf_cudagraph_asr.cuda_graphs import CompiledGraphBackend, CudaBackend
from hf_cudagraph_asr.observe import Observer
from hf_cudagraph_asr.plan import BucketPlan
from hf_cudagraph_asr.pool import GraphPool

logger = logging.getLogger(__name__)


def enable_cuda_graphs(
    model: Any,
    plan: BucketPlan | str | os.PathLike[str] | None = None,
    *,
    backend: str | Backend = "auto",
    batch_sizes: Iterable[int] | None = None,
    observers: Iterable[Observer] = (),
) -> EnabledPool:
    """Serve a model's calls from programs captured for the lengths of a plan.

    Args:
        model: a CTC model of transformers, in evaluation mode and without gradients when it is
            called. Nothing of it changes but its instance's `forward`. One of a family without a
            length-exact forward keeps its own: a warning says why, and `explain` repeats it.
        plan: the lengths, or the file they were saved to; not needed by the eager backend.
        backend: "cuda": a CUDA graph for each length and batch size. "compile": the same, of what
            torch.compile makes of the forward. "export": a `torch.export` program for each, on any
            device. "eager": the length-exact forward, nothing captured. "auto": "cuda" where the
            model is on such a device and there is a plan, else "eager". Or a `Backend`.
        batch_sizes: rows to capture each length for; by default the plan's. Batches of other
            sizes are padded to one of these or split.
        observers: called with a `Served` for each call.

    Returns:
        The pool, installed already; as a context, `with enable_cuda_graphs(model, plan) as pool`,
        it is taken out at the end.

    Raises:
        TypeError: the model is no model, or the plan is no plan.
        ValueError: the model is enabled already; the plan is missing or for another geometry;
            there is no such backend; or the model's configuration names no blank.
        OSError: there is no such file of a plan.
    """
    _check_model(model)
    if isinstance(plan, (str, os.PathLike)):
        plan = BucketPlan.load(plan)
    if plan is not None and not isinstance(plan, BucketPlan):
        raise TypeError(
            f"plan is a {type(plan).__name__}, expected a BucketPlan or the file of one: pass "
            f"plan_buckets(durations, model=model)"
        )
    if (forward := _pooled(model)) is not None and not forward.pool.closed:
        raise ValueError(
            f"CUDA graphs are enabled on this {type(model).__name__} already: call "
            f"disable_cuda_graphs(model) first, or pool.rebuild() to capture it anew"
        )
    if backend == "auto":  # without a plan there is nothing to capture on any device
        backend = "cuda" if plan is not None and model.device.type == "cuda" else "eager"
    made = _backend(backend, model.device)
    _warn_of_tf32(model)
    pool = EnabledPool(model, made, plan, batch_sizes=batch_sizes, observers=observers)
    model.forward = _PooledForward(pool, model)  # last: what is interrupted leaves it as it was
    return pool


def disable_cuda_graphs(model: Any) -> None:
    """Give a model the forward it had before, and drop the pool. Nothing to do is no error.

    Raises:
        TypeError: the model is no model.
    """
    _check_model(model)
    if (forward := _pooled(model)) is None:
        return
    try:
        forward.pool.close()
    finally:
        if not forward.pool.closed:
            pass  # interrupted: it is still found in the model, to be disabled again
        elif vars(model)["forward"] is not forward:
            logger.warning(_LEFT, type(model).__name__, "wrapped")
        elif forward.was_own:
            model.forward = forward.host
        else:
            del model.forward


class EnabledPool(GraphPool):
    """A pool in a model's forward; leaving it as a context takes it out again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the model, unless it was disabled, or enabled anew, in the meantime."""
        if self.closed:
            return
        forward = _pooled(self._model)
        if forward is not None and forward.pool is self:
            disable_cuda_graphs(self._model)
        else:
            logger.warning(_LEFT, type(self._model).__name__, "replaced")
            self.close()


_LEFT = (
    "the forward of %s was %s while CUDA graphs were enabled and is left as it is; calls that "
    "reach the pool go on to the model's own forward"
)


class _PooledForward:
    """Takes the place of a model's `forward`, with the host's signature.

    A deep copy of the model is not enabled, as a program reads the weights it was captured with:
    what is copied in this place is the forward that was there before, of the copy.
    """

    def __init__(self, pool: GraphPool, model: Any) -> None:
        self.pool = pool
        self.host = model.forward
        self.was_own = "forward" in vars(model)  # an attribute of the instance, not of the class
        functools.update_wrapper(self, self.host)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.pool.forward(self.host, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.host, memo)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a model with CUDA graphs enabled cannot be pickled: call disable_cuda_graphs(model) "
            "first, and enable it again where it is loaded"
        )


def _pooled(model: Any) -> _PooledForward | None:
    """What serves in a model's forward, also inside of what others wrapped around it."""
    forward = vars(model).get("forward")
    while forward is not None and not isinstance(forward, _PooledForward):
        forward = getattr(forward, "__wrapped__", None)
    return forward


def _backend(choice: str | Backend, device: torch.device) -> Backend:
    """A backend by its name, or itself."""
    if isinstance(choice, Backend):
        return choice
    kinds: list[Any] = [CudaBackend, CompiledGraphBackend, ExportBackend, EagerBackend]
    made = {kind.name: kind for kind in kinds}
    if choice not in made:
        raise ValueError(
            f"no backend {choice!r}: expected 'auto', {', '.join(map(repr, made))}, or an object "
            f"with the methods of `hf_cudagraph_asr.backends.Backend`"
        )
    if choice in ("cuda", "compile") and device.type != "cuda":
        there = "" if torch.cuda.is_available() else ", and there is no CUDA device here"
        raise ValueError(
            f"the {choice} backend captures on a CUDA device, but the model is on {device}{there}: "
            f"call model.to('cuda') first, or take backend='auto', which is eager on {device}"
        )
    found: Backend = made[choice]()
    return found


def _check_model(model: Any) -> None:
    if not (isinstance(model, torch.nn.Module) and hasattr(model, "device")):
        remedy = "load one with AutoModelForCTC.from_pretrained(name)"
        if isinstance(getattr(model, "model", None), torch.nn.Module):
            remedy = "pass its model, as in pipe.model"
        given = repr(model) if isinstance(model, str) else f"a {type(model).__name__}"
        raise TypeError(f"{given} is no model of transformers: {remedy}")


def _warn_of_tf32(model: Any) -> None:
    """Say that float32 on this GPU is not what the tolerance is stated for."""
    if model.device.type != "cuda" or model.dtype != torch.float32:
        return
    backends: Any = torch.backends
    reduced = "tf32" in (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision)
    if reduced and torch.cuda.get_device_capability(model.device)[0] >= 8:
        logger.warning(
            "%s computes float32 with TensorFloat32, to 10 bits, so that rows agree to about 1e-3 "
            "instead of 1e-5: set torch.backends.cudnn.allow_tf32 and "
            "torch.backends.cuda.matmul.allow_tf32 to False for exact texts",
            type(model).__name__,
        )
