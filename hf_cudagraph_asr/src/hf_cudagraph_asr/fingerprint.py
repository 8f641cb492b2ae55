"""Whether a captured program still computes with the weights that the model has."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch

__all__ = ["Fingerprint"]


class Fingerprint:
    """Where a model's tensors lie, and what modules it is made of.

    Weights changed in place (`load_state_dict`, an optimiser) leave it the same: programs read
    them where they lie. `.to`, `.half`, `load_state_dict(assign=True)`, an adapter that exchanges
    modules, a parametrisation that is removed and another attention implementation do not.

    Compared before every replay, so it walks lists made beforehand instead of the module tree.
    Tensors and submodules are looked up in the modules' own dictionaries, which a module's
    `parameters()` reads as well, at a fraction of its time.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._attention = model.config._attn_implementation
        self._tensors: list[tuple[dict[str, Any], str, torch.Tensor, int, torch.dtype]] = []
        self._parts: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        for module in model.modules():
            if module._modules:
                self._parts.append((module._modules, tuple(module._modules.values())))
            for holder in (module._parameters, module._buffers):
                self._tensors += [
                    (holder, name, tensor, tensor.data_ptr(), tensor.dtype)
                    for name, tensor in holder.items()
                    if tensor is not None
                ]

    def holds(self) -> bool:
        """The model is still as it was."""
        return (
            self._model.config._attn_implementation == self._attention
            and all(
                holder.get(name) is tensor and tensor.data_ptr() == pointer and tensor.dtype == kind
                for holder, name, tensor, pointer, kind in self._tensors
            )
            # By identity: comparing modules or tensors by value would mean something else.
            and all(
                len(parts) == len(now) and all(map(is_, parts.values(), now))
                for parts, now in self._parts
            )
        )
