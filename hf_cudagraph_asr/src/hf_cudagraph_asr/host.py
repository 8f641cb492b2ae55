"""`HostModel`: a model as a pool saw it when it looked, and the calls of it."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from itertools import filterfalse
from operator import itemgetter
from typing import Any, NamedTuple

import torch

from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.exact import ExactForward, composed, head_of, keep_mask, moded
from hf_cudagraph_asr.families import UnsupportedModel, class_name, family_of
from hf_cudagraph_asr.geometry import FEATURES, Frames
from hf_cudagraph_asr.plan import BucketPlan

# In which the exact forward is tested.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A logit so far below 0 has no probability, and float16 still holds it.
NEVER = -1e4


class Call(NamedTuple):
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
        plan: what it is to be served by.
        refusal: why its own forward is to answer, known beforehand; by default that is looked for.

    Attributes:
        exact: the forward; without one an `AttributeError`.
        holds: tells whether the model's weights and modules are still those.
        blank_row: (V,) logits that say blank with certainty.

    Raises:
        ValueError: its configuration names no blank, or the plan is for another geometry.
    """

    def __init__(self, model: Any, plan: BucketPlan | None = None, *, refusal: str = "") -> None:
        self.model = model
        uncalled: list[Any] = []  # modules whose hooks the exact forward would pass over
        try:
            self.refusal = refusal or _unsuited(model)
            if not self.refusal:
                family_of(model)
                uncalled = composed(model)
                self.exact = ExactForward(model)
        except UnsupportedModel as error:
            self.refusal = str(error)
        self._fingerprint = _Fingerprint(model, uncalled)
        self.holds = self._fingerprint.holds
        self._input: str = model.main_input_name
        self._features: tuple[int, ...] = ()
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
        if plan is not None:
            plan.check_geometry(model)
        self.receptive_field = self.exact.receptive_field
        self._features = self.exact.geometry.features
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
        if not isinstance(values, torch.Tensor) or values.layout != torch.strided:
            return False
        rows, *rest = values.shape or (0,)
        # Weights that accelerate offloads are on another device than the input.
        here = self.refusal or (values.dtype, values.device) == self._place
        return bool(here and rows and rest and (*rest[1:],) == self._features)

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | Reason:
        """Read a call `model(*args, **kwargs)` as rows, or find why the host must answer it.

        The configuration is as `holds` saw it last. Reads the mask's values, for which it waits
        for the device: once, and only with a mask.
        """
        if self.refusal:
            return Reason.UNSUPPORTED
        if self.model.training:
            return Reason.TRAINING
        # What follows the first two has changed its order between versions of the host.
        named = dict(zip((self._input, "attention_mask"), args, strict=False), **kwargs)
        if len(args) > 2 or len(named) < len(args) + len(kwargs):
            return Reason.ARGUMENTS
        values, mask = named.pop(self._input, None), named.pop("attention_mask", None)
        attentions, states, return_dict, _ = self._fingerprint.settings
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
        rows, samples = values.shape[:2]
        if samples < self.receptive_field:
            return Reason.SHORT
        lengths = (samples,) * rows if mask is None else _lengths(values, mask)
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


# Called by C loops: a look at all weights runs next to no bytecode.
_ADDRESS, _CONTIGUOUS = torch.Tensor.data_ptr, torch.Tensor.is_contiguous
_TRAINING = itemgetter("training")

# In names of what a configuration keeps of the settings that are read.
_SETTINGS = ("attentions", "hidden_states", "return_dict", "attn_implementation", "encoder_config")


class _Fingerprint:
    """Places of a model's tensors, the modules it is made of, and what its configuration asks for.

    Weights changed in place (`load_state_dict`, an optimizer) leave it the same: programs read
    them where they lie. `.to`, `.half`, `load_state_dict(assign=True)`, an adapter that exchanges
    modules or is switched on or off, a parametrization that is removed, a matrix that is transposed
    where it lies, another attention implementation and a single module set to training do not.

    Compared before every answer. Tensors and submodules are found in the modules' own
    dictionaries, which a module's `parameters()` reads as well: `gc.get_referents` lists the values
    of all of them at once, in order, as CPython keeps them. Names are not compared: the same
    children in the same order by other names are taken for the same.

    Holds the memory it remembers: freed, it could be given to other weights, which would then
    seem to be where they always were, and a captured graph would read it.

    Attributes:
        settings: for a call that says nothing of its own: attentions and hidden states are asked
            for; no tuple is; and the attention implementation. As `holds` saw them last.
    """

    def __init__(self, model: Any, uncalled: Sequence[Any]) -> None:
        self._model = vars(model)
        self._read_settings()
        self._attention = self.settings[-1]
        modules = list(model.modules())
        self._holders = [
            holder
            for module in modules
            for holder in (module._modules, module._parameters, module._buffers)
            # A conformer's table of positions is exchanged for a longer one by each longer input.
            # What it held is the same in both, and kept below.
            if holder and not (holder is module._buffers and hasattr(module, "extend_pe"))
        ]
        self._held = gc.get_referents(*self._holders)
        tensors = [value for value in self._held if isinstance(value, torch.Tensor)]
        # Equality of lists takes the same object for equal without asking it. Two tensors of one
        # element would be asked, and compare by value.
        single = {id(tensor) for tensor in tensors if tensor.numel() == 1}
        self._single = [at for at, value in enumerate(self._held) if id(value) in single]
        self._tensors = tensors
        self._addresses = list(map(_ADDRESS, tensors))
        # `weight.data = weight.data.t()` leaves a tensor where it is.
        matrices = [tensor for tensor in tensors if tensor.ndim > 1]
        self._dense = list(filter(_CONTIGUOUS, matrices))
        self._strided = list(filterfalse(_CONTIGUOUS, matrices))
        self._strides = list(map(torch.Tensor.stride, self._strided))
        moded_modules = [vars(module) for module in modules if moded(module)]
        self._training = list(filter(_TRAINING, moded_modules))
        self._evaluating = list(filterfalse(_TRAINING, moded_modules))
        hooks = [module._forward_hooks for module in uncalled]
        hooks += [module._forward_pre_hooks for module in uncalled]
        self._hooked, self._unhooked = list(filter(None, hooks)), list(filterfalse(None, hooks))
        # PEFT's layers are switched without touching a tensor: the names are those of its
        # `BaseTunerLayer`.
        self._adapted = [module for module in modules if hasattr(module, "merged_adapters")]
        self._switched = copy.deepcopy(_switches(self._adapted))
        # Also of tensors that are no parameter or buffer, such as a table of positions.
        others = [*model.buffers(), *(v for module in modules for v in vars(module).values())]
        kept = [*tensors, *(value for value in others if isinstance(value, torch.Tensor))]
        self._storages = [tensor.untyped_storage() for tensor in kept]

    def holds(self) -> bool:
        """Tell whether the model is still as it was."""
        found = gc.get_referents(*self._holders)
        try:
            if found != self._held:
                return False
        except (RuntimeError, TypeError):
            return False  # tensors that are not the same object: they have no truth value
        same = self._model["config"] is self._config
        if not same or [look(config) for look, config in self._looks] != self._seen:
            self._read_settings()
        evaluating = not any(map(_TRAINING, self._evaluating))
        return (
            list(map(_ADDRESS, self._tensors)) == self._addresses
            and all(map(_CONTIGUOUS, self._dense))
            and list(map(torch.Tensor.stride, self._strided)) == self._strides
            # Between `model.train()` and `model.eval()` the host answers, and nothing has changed.
            and (self._model["training"] or (evaluating and all(map(_TRAINING, self._training))))
            and all(self._hooked)
            and not any(self._unhooked)
            and self.settings[-1] == self._attention
            and (not self._adapted or _switches(self._adapted) == self._switched)
            and (not self._single or all(found[at] is self._held[at] for at in self._single))
        )

    def _read_settings(self) -> None:
        """Read the configuration, of which the host computes each attribute in Python."""
        config = self._model["config"]
        configs = [config, *filter(None, [getattr(config, "encoder_config", None)])]
        # What the attributes below are computed of, and whether there is more than there was.
        looks: list[tuple[Callable[[Any], Any], Any]] = []
        for own in map(vars, configs):
            names = [name for name in own if any(part in name for part in _SETTINGS)]
            looks += [(len, own), (itemgetter(*names), own)]
        # Before the attributes: a change while they are read is then seen the next time.
        seen = [look(own) for look, own in looks]
        self.settings: tuple[bool, bool, bool, str | None] = (
            any(getattr(one, "output_attentions", False) for one in configs),
            any(getattr(one, "output_hidden_states", False) for one in configs),
            bool(getattr(config, "return_dict", True)),
            configs[-1]._attn_implementation,  # as `family_of` reads it
        )
        self._looks, self._seen, self._config = looks, seen, config  # last, for other threads


def _switches(adapted: list[Any]) -> list[tuple[Any, ...]]:
    """Settings of PEFT's layers that change what they compute, tensors apart."""
    names = ("merged_adapters", "active_adapters", "disable_adapters", "scaling")
    return [tuple(getattr(module, name, None) for name in names) for module in adapted]
