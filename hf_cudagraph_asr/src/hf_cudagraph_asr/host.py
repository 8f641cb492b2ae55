"""`HostModel`: a model as a pool saw it when it looked, and the calls of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_, itemgetter
from typing import Any

import torch

from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.exact import ExactForward, composed, head_of, keep_mask, moded
from hf_cudagraph_asr.families import UnsupportedModel, class_name, family_of
from hf_cudagraph_asr.geometry import FEATURES, Frames

__all__ = ["Call", "HostModel", "row_by_row"]

# In which the exact forward is tested.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A logit so far below 0 has no probability, and float16 still holds it.
NEVER = -1e4


@dataclass(frozen=True, slots=True)
class Call:
    """Rows of audio to give logits for.

    Attributes:
        input_values: (B, S), or (B, T, F) features, as the caller gave them, in the model's dtype
            and on its device.
        lengths: samples of each row, at most S.
        as_tuple: the caller wants a tuple.
        unmasked: it came without an attention mask, so that nothing tells rows from padding.
    """

    input_values: torch.Tensor
    lengths: tuple[int, ...]
    as_tuple: bool = False
    unmasked: bool = False


class HostModel:
    """A model between two changes of its weights or modules.

    Args:
        model: the model.
        refusal: why its own forward is to answer, known beforehand; by default that is looked for.

    Attributes:
        exact: the forward; without one an `AttributeError`.
        holds: tells whether the model's weights and modules are still those.
        blank_row: (V,) logits that say blank with certainty.

    Raises:
        ValueError: its configuration names no blank.
    """

    def __init__(self, model: Any, refusal: str = "") -> None:
        self.model = model
        self._config = _ConfigView(model)
        uncalled: list[Any] = []  # modules whose hooks the exact forward would pass over
        try:
            self.refusal = refusal or _unsuited(model)
            if not self.refusal:
                family_of(model)
                uncalled = composed(model)
                self.exact = ExactForward(model)
        except UnsupportedModel as error:
            self.refusal = str(error)
        self.holds = _Fingerprint(model, self._config, uncalled).holds
        if self.refusal:
            return
        head = self.exact.head.weight
        self._place = head.dtype, head.device
        blank, words = model.config.pad_token_id, head.shape[0]
        if not isinstance(blank, int) or not 0 <= blank < words:
            raise ValueError(
                f"config.pad_token_id, the blank of CTC, is {blank!r}, expected 0 to {words - 1}: "
                f"set it to the tokenizer's pad token"
            )
        self.receptive_field = self.exact.receptive_field
        self._weights = list(model.parameters())
        self.emitted = functools.lru_cache(4096)(self._emitted)
        with torch.inference_mode(False), torch.no_grad():
            row = torch.full((words,), NEVER, dtype=head.dtype)
            row[blank] = 0
            # Once, here: from the host's memory, a copy makes the host wait for the device.
            self.blank_row = row.to(head.device)

    def mode(self) -> Reason | None:
        """Find what keeps a call that is made here and now from programs and the exact forward."""
        if self.refusal:
            return Reason.UNSUPPORTED
        if self.model.training:
            return Reason.TRAINING
        kind = self._place[1].type
        if torch.is_autocast_enabled(kind):
            return Reason.AUTOCAST
        if kind == "cuda" and torch.cuda.is_current_stream_capturing():
            return Reason.CAPTURING
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self._weights):
            return Reason.GRADIENTS
        return None

    def takes(self, values: Any) -> bool:
        """Tell whether these are rows of its input in the model's dtype, on its device."""
        features = () if self.refusal else self.exact.geometry.features
        return (
            isinstance(values, torch.Tensor)
            and values.ndim >= 2
            and values.shape[2:] == features
            and values.shape[0] > 0
            and values.layout == torch.strided
            # Weights that accelerate offloads are on another device than the input.
            and (bool(self.refusal) or (values.dtype, values.device) == self._place)
        )

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | Reason:
        """Read a call `model(*args, **kwargs)` as rows, or find why the host must answer it.

        The configuration is as `holds` saw it last. Reads the mask's values, for which it waits
        for the device: once, and only with a mask.
        """
        if self.refusal:
            return Reason.UNSUPPORTED
        if self.model.training:
            return Reason.TRAINING
        named = dict(kwargs)
        # What follows the first two has changed its order between versions of the host.
        taken = self.model.main_input_name
        if len(args) > 2 or any(name in named for name in (taken, "attention_mask")[: len(args)]):
            return Reason.ARGUMENTS
        values = args[0] if args else named.pop(taken, None)
        mask = args[1] if len(args) > 1 else named.pop("attention_mask", None)
        attentions, states, return_dict, _ = self._config.last_read()
        if named:
            if named.pop("labels", None) is not None:
                return Reason.LABELS
            # None leaves it to the configuration.
            asked = named.pop("output_attentions", None)
            attentions = attentions if asked is None else bool(asked)
            asked = named.pop("output_hidden_states", None)
            states = states if asked is None else bool(asked)
            asked = named.pop("return_dict", None)
            return_dict = return_dict if asked is None else bool(asked)
        if attentions or states:
            return Reason.OUTPUTS
        if named:
            return Reason.ARGUMENTS
        if not self.takes(values):
            return Reason.INPUT
        if (reason := self.mode()) is not None:
            return reason
        if torch.is_grad_enabled() and values.requires_grad:
            return Reason.GRADIENTS
        if values.shape[1] < self.receptive_field:
            return Reason.SHORT
        lengths = _lengths(values, mask)
        if lengths is None:
            return Reason.MASK
        return Call(values, lengths, not return_dict, mask is None)

    def _emitted(self, samples: int) -> int:
        """Frames of logits of a row of so many samples."""
        return int(self.exact.geometry.emitted(samples)) if samples >= self.receptive_field else 0


def row_by_row(host: Callable[..., Any], call: Call, model: Any) -> torch.Tensor:
    """Ask the model's own forward for each row alone: logits (B, T, V), blank beyond a row.

    A row that is shorter than the receptive field has no frames.
    """
    config: Any = model.config
    known = config.model_type in FEATURES or hasattr(config, "conv_kernel")
    shortest = Frames(config).receptive_field if known else 0
    found = {
        row: host(call.input_values[row : row + 1, :length], return_dict=True).logits[0]
        for row, length in enumerate(call.lengths)
        if length >= shortest
    }
    if not found:
        return call.input_values.new_empty((len(call.lengths), 0, config.vocab_size))
    first: torch.Tensor = next(iter(found.values()))  # (T, V)
    total = max(len(logits) for logits in found.values())
    stacked = first.new_full((len(call.lengths), total, first.shape[-1]), NEVER)
    stacked[..., config.pad_token_id or 0] = 0
    for row, logits in found.items():
        stacked[row, : len(logits)] = logits
    return stacked


def _unsuited(model: Any) -> str:
    """Why a pool cannot serve such weights, whatever the architecture; empty where it can."""
    devices = {weight.device for weight in model.parameters()}
    if any(device.type == "meta" for device in devices):
        return (
            "its weights are not in memory (device meta), as after offloading by accelerate: "
            "load the model onto one device, and enable it there"
        )
    if len(devices) > 1:
        return f"its weights lie on {', '.join(sorted(map(str, devices)))}: move it to one device"
    head = head_of(model)
    weight = getattr(head, "weight", None)
    if head is not None and not isinstance(weight, torch.Tensor):
        name = "lm_head" if hasattr(model, "lm_head") else "ctc_head"
        return f"{name} is a {class_name(head)}, expected a layer with a weight, as torch.nn.Linear"
    if isinstance(weight, torch.Tensor) and weight.dtype not in DTYPES:
        return f"its weights are {weight.dtype}, expected one of {', '.join(map(str, DTYPES))}"
    return ""


def _lengths(values: torch.Tensor, mask: Any) -> tuple[int, ...] | None:
    """Samples of each row, or None where the mask is no right padding of these values."""
    rows, samples = values.shape[:2]
    if mask is None:
        return (samples,) * rows
    if not isinstance(mask, torch.Tensor) or mask.shape != values.shape[:2]:
        return None
    if mask.device.type == "cpu":  # quick, for most queries
        lowest, highest = mask.aminmax()
        if lowest.item() == 1 == highest.item():
            return (samples,) * rows
    lengths = mask.sum(dim=1, dtype=torch.int64)  # (B,)
    right = (mask == keep_mask(lengths, samples)).all()
    # One transfer, which a GPU is waited for.
    *found, valid = torch.cat((lengths, right.long()[None])).tolist()
    return tuple(found) if valid else None


class _ConfigView:
    """Defaults of a model's configuration for a call that says nothing of its own.

    The host's configurations compute each attribute in Python. Whether anything changed at all is
    one comparison of dictionaries, made before every replay.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen = self._look()

    def read(self) -> tuple[bool, bool, bool, str | None]:
        """Attentions and hidden states are asked for; no tuple is; the attention implementation."""
        configs, before, _ = self._seen
        if self._model.config is not configs[0] or [*map(vars, configs)] != before:
            self._seen = self._look()
        return self._seen[2]

    def last_read(self) -> tuple[bool, bool, bool, str | None]:
        """What `read` found last: a look in each call is enough."""
        return self._seen[2]

    def _look(self) -> tuple[list[Any], list[dict[str, Any]], tuple[bool, bool, bool, str | None]]:
        config = self._model.config
        configs = [config, *filter(None, [getattr(config, "encoder_config", None)])]
        # Copied first: a change while the attributes are read is then seen the next time.
        before = [dict(vars(one)) for one in configs]
        found = (
            any(getattr(one, "output_attentions", False) for one in configs),
            any(getattr(one, "output_hidden_states", False) for one in configs),
            bool(getattr(config, "return_dict", True)),
            configs[-1]._attn_implementation,  # as `family_of` reads it
        )
        return configs, before, found


_MODE = itemgetter("training")


class _Fingerprint:
    """Places of a model's tensors, and the modules it is made of.

    Weights changed in place (`load_state_dict`, an optimizer) leave it the same: programs read
    them where they lie. `.to`, `.half`, `load_state_dict(assign=True)`, an adapter that exchanges
    modules or is switched on or off, a parametrization that is removed, a matrix that is transposed
    where it lies, another attention implementation and a single module set to training do not.

    Compared before every answer, so it compares dictionaries made beforehand instead of walking
    the module tree. Tensors and submodules are looked up in the modules' own dictionaries, which a
    module's `parameters()` reads as well, at a fraction of its time.

    Holds the memory it remembers: freed, it could be given to other weights, which would then
    seem to be where they always were, and a captured graph would read it.
    """

    def __init__(self, model: Any, config: _ConfigView, uncalled: Sequence[Any]) -> None:
        self._config = config
        self._attention = config.read()[-1]
        modules = list(model.modules())
        self._model = vars(model)
        self._moded = [vars(module) for module in modules if moded(module)]
        self._modes = list(map(_MODE, self._moded))
        holders = [
            holder
            for module in modules
            for holder in (module._modules, module._parameters, module._buffers)
            # A conformer's table of positions is exchanged for a longer one by each longer input.
            # What it held is the same in both, and kept below.
            if holder and not (holder is module._buffers and hasattr(module, "extend_pe"))
        ]
        holders += [hooks for module in uncalled for hooks in _hooks(module)]
        # PEFT's layers are switched without touching a tensor: the names are those of its
        # `BaseTunerLayer`.
        self._adapted = [module for module in modules if hasattr(module, "merged_adapters")]
        self._switched = copy.deepcopy(_switches(self._adapted))
        values = [value for holder in holders for value in holder.values()]
        self._tensors = [value for value in values if isinstance(value, torch.Tensor)]
        self._addresses = list(map(torch.Tensor.data_ptr, self._tensors))
        # `weight.data = weight.data.t()` leaves a tensor where it is.
        self._matrices = [tensor for tensor in self._tensors if tensor.ndim > 1]
        self._contiguous = list(map(torch.Tensor.is_contiguous, self._matrices))
        # Also of tensors that are no parameter or buffer, such as a table of positions.
        others = [*model.buffers(), *(v for module in modules for v in vars(module).values())]
        kept = [*self._tensors, *(value for value in others if isinstance(value, torch.Tensor))]
        self._storages = [tensor.untyped_storage() for tensor in kept]
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
        """Tell whether the model is still as it was."""
        try:
            same = self._holders == self._held
        except (RuntimeError, TypeError):
            return False  # tensors that are not the same object: they have no truth value
        return (
            same
            and (not self._adapted or _switches(self._adapted) == self._switched)
            and list(map(torch.Tensor.data_ptr, self._tensors)) == self._addresses
            and list(map(torch.Tensor.is_contiguous, self._matrices)) == self._contiguous
            # Between `model.train()` and `model.eval()` the host answers, and nothing has changed.
            and (self._model["training"] or list(map(_MODE, self._moded)) == self._modes)
            and self._config.read()[-1] == self._attention
            and all(
                len(holder) == len(held) and all(map(is_, holder.values(), held))
                for holder, held in self._single
            )
        )


def _hooks(module: Any) -> tuple[Any, Any]:
    return module._forward_hooks, module._forward_pre_hooks


def _switches(adapted: list[Any]) -> list[tuple[Any, ...]]:
    """Settings of PEFT's layers that change what they compute, tensors apart."""
    names = ("merged_adapters", "active_adapters", "disable_adapters", "scaling")
    return [tuple(getattr(module, name, None) for name in names) for module in adapted]
