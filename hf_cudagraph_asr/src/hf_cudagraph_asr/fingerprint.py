"""Notice that a model's weights are no longer those a program was captured with."""

from __future__ import annotations

import copy
from operator import is_
from typing import Any

import torch

from hf_cudagraph_asr.settings import ConfigView

__all__ = ["Fingerprint"]


class Fingerprint:
    """Where a model's tensors lie, and what modules it is made of.

    Weights changed in place (`load_state_dict`, an optimiser) leave it the same: programs read
    them where they lie. `.to`, `.half`, `load_state_dict(assign=True)`, an adapter that exchanges
    modules or is switched on or off, a parametrisation that is removed and another attention
    implementation do not.

    Compared before every answer, so it compares dictionaries made beforehand instead of walking
    the module tree. Tensors and submodules are looked up in the modules' own dictionaries, which a
    module's `parameters()` reads as well, at a fraction of its time.

    Holds the memory it remembers: freed, it could be given to other weights, which would then
    seem to be where they always were.

    Args:
        model: the model.
        config: a view of its configuration.
    """

    def __init__(self, model: Any, config: ConfigView) -> None:
        self._config = config
        self._attention = config.read().attention
        modules = list(model.modules())
        holders = [
            holder
            for module in modules
            for holder in (module._modules, module._parameters, module._buffers)
            # A conformer's table of positions is exchanged for a longer one by each longer input.
            # What it held is the same in both, and kept below.
            if holder and not (holder is module._buffers and hasattr(module, "extend_pe"))
        ]
        self._tables = [list(m.buffers()) for m in modules if hasattr(m, "extend_pe")]
        # PEFT's layers are switched without touching a tensor: the names are those of its
        # `BaseTunerLayer`.
        self._adapted = [module for module in modules if hasattr(module, "merged_adapters")]
        self._switched = copy.deepcopy(_switches(self._adapted))
        values = [value for holder in holders for value in holder.values()]
        self._tensors = [value for value in values if isinstance(value, torch.Tensor)]
        self._storages = [tensor.untyped_storage() for tensor in self._tensors]
        self._addresses = list(map(torch.Tensor.data_ptr, self._tensors))
        # Equality of dictionaries takes the same object for equal without asking it. Two tensors
        # of one element would be asked, and compare by value.
        self._single = [
            (holder, tuple(holder.values()))
            for holder in holders
            if any(isinstance(v, torch.Tensor) and v.numel() == 1 for v in holder.values())
        ]
        self._holders = holders
        self._held = [dict(holder) for holder in holders]

    def holds(self) -> bool:
        """The model is still as it was."""
        try:
            same = self._holders == self._held
        except (RuntimeError, TypeError):
            return False  # tensors that are not the same object: they have no truth value
        return (
            same
            and (not self._adapted or _switches(self._adapted) == self._switched)
            and list(map(torch.Tensor.data_ptr, self._tensors)) == self._addresses
            and self._config.read().attention == self._attention
            and all(
                len(holder) == len(held) and all(map(is_, holder.values(), held))
                for holder, held in self._single
            )
        )


def _switches(adapted: list[Any]) -> list[tuple[Any, ...]]:
    """What a PEFT layer computes with, tensors apart."""
    return [
        (
            module.merged_adapters,
            getattr(module, "active_adapters", None),
            getattr(module, "disable_adapters", None),
            getattr(module, "scaling", None),
        )
        for module in adapted
    ]
