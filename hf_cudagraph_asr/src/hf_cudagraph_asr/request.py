"""A call of the model read as rows of audio, or the reason why it is something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.exact import keep_mask
from hf_cudagraph_asr.settings import ConfigView

__all__ = ["Reader", "Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """Rows to transcribe.

    Attributes:
        input_values: (B, S) as the caller gave them, in the model's dtype and on its device.
        lengths: samples of each row, at least the receptive field.
        as_tuple: the caller wants a tuple.
    """

    input_values: torch.Tensor
    lengths: tuple[int, ...]
    as_tuple: bool


class Reader:
    """Reads calls of a model.

    Args:
        model: the model, while its fingerprint holds.
        config: a view of its configuration.
        receptive_field: the fewest samples that give a frame of logits.
        autocast: the dtype its programs compute in by autocast; None: without autocast.
    """

    def __init__(
        self,
        model: Any,
        config: ConfigView,
        receptive_field: int,
        autocast: torch.dtype | None = None,
    ) -> None:
        weight = model.lm_head.weight
        self._model = model
        self._config = config
        self._shortest = receptive_field
        self._autocast = autocast
        self._dtype, self._device = weight.dtype, weight.device
        self._weights = list(model.parameters())

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Request | Reason:
        """The request in a call `model(*args, **kwargs)`, or why the host must answer it itself.

        Reads the mask's values, for which it waits for the device: once, and only with a mask.

        Args:
            args: the call's positional arguments.
            kwargs: its other arguments.

        Raises:
            ValueError: a row among others is shorter than the receptive field. The host would
                answer with frames that no sample is in.
        """
        if self._model.training:
            return Reason.TRAINING
        named = dict(kwargs)
        # What follows the first two has changed its order between versions of the host.
        if len(args) > 2 or any(name in named for name in _NAMES[: len(args)]):
            return Reason.ARGUMENTS
        values = args[0] if args else named.pop("input_values", None)
        mask = args[1] if len(args) > 1 else named.pop("attention_mask", None)
        settings = self._config.read()
        outputs = settings.output_attentions or settings.output_hidden_states
        return_dict = None
        if named:
            if named.pop("labels", None) is not None:
                return Reason.LABELS
            attentions = named.pop("output_attentions", None)
            states = named.pop("output_hidden_states", None)
            outputs = bool(
                (settings.output_attentions if attentions is None else attentions)
                or (settings.output_hidden_states if states is None else states)
            )
            return_dict = named.pop("return_dict", None)
        if outputs:
            return Reason.OUTPUTS
        if named:
            return Reason.ARGUMENTS
        if not (
            isinstance(values, torch.Tensor)
            and values.ndim == 2
            and values.shape[0] > 0
            and values.dtype == self._dtype
            and values.device == self._device
            and values.layout == torch.strided
        ):
            return Reason.INPUT
        kind = self._device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != self._autocast:
            return Reason.AUTOCAST
        if torch.is_grad_enabled() and (
            values.requires_grad or any(weight.requires_grad for weight in self._weights)
        ):
            return Reason.GRADIENTS
        if values.shape[1] < self._shortest:
            return Reason.SHORT
        lengths = _lengths(values, mask)
        if lengths is None:
            return Reason.MASK
        if min(lengths) < self._shortest:
            short = [f"row {i} has {n}" for i, n in enumerate(lengths) if n < self._shortest]
            raise ValueError(
                f"each row needs {self._shortest} samples or more, the receptive field of a frame, "
                f"but {', '.join(short)}: leave such rows out, or pad them with silence"
            )
        if return_dict is None:
            return_dict = settings.return_dict
        return Request(values, lengths, not return_dict)


_NAMES = ("input_values", "attention_mask")


def _lengths(values: torch.Tensor, mask: Any) -> tuple[int, ...] | None:
    """Samples of each row, or None where the mask is no right padding of these values."""
    rows, samples = values.shape
    if mask is None:
        return (samples,) * rows
    if not isinstance(mask, torch.Tensor) or mask.shape != values.shape:
        return None
    if mask.device.type == "cpu":  # soon said of most queries
        lowest, highest = mask.aminmax()
        if lowest.item() == 1 == highest.item():
            return (samples,) * rows
    lengths = mask.sum(dim=1, dtype=torch.int64)  # (B,)
    right = (mask == keep_mask(lengths, samples)).all()
    # One transfer, which a GPU is waited for.
    *found, valid = torch.cat((lengths, right.long()[None])).tolist()
    return tuple(found) if valid else None
