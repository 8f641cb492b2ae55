"""Whether a captured program still computes with the weights that the model has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
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

    Holds the memory it remembers: freed, it could be given to other weights, which would then
    seem to be where they always were.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._attention = model.config._attn_implementation
        self._holders: list[dict[str, Any]] = [
            holder
            for module in model.modules()
            for holder in (module._modules, module._parameters, module._buffers)
            if holder
        ]
        self._held = [*_values(self._holders), _END]
        self._tensors = [held for held in self._held if isinstance(held, torch.Tensor)]
        self._storages = [tensor.untyped_storage() for tensor in self._tensors]
        self._addresses = list(map(torch.Tensor.data_ptr, self._tensors))

    def holds(self) -> bool:
        """The model is still as it was."""
        # By identity: tensors and modules compare by value, if at all. The end tells a longer
        # list from a shorter one.
        return (
            self._model.config._attn_implementation == self._attention
            and all(map(is_, chain(_values(self._holders), (_END,)), self._held))
            and list(map(torch.Tensor.data_ptr, self._tensors)) == self._addresses
        )


_END = object()


def _values(holders: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, holders))
