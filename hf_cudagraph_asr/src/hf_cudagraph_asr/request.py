"""A call of the model read as rows of audio, or the reason why it is something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.masks import keep_mask

__all__ = ["Request", "read"]

_ASKS_FOR_MORE = ("output_attentions", "output_hidden_states")


@dataclass(frozen=True)
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

    @property
    def longest(self) -> int:
        """Samples of the longest row."""
        return max(self.lengths)


def read(
    model: Any, receptive_field: int, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Request | Reason:
    """The request in a call `model(*args, **kwargs)`, or why the host must answer it itself.

    Reads the mask's values, for which it waits for the device: once a call, and only with a mask.

    Args:
        model: the model.
        receptive_field: the fewest samples that give a frame of logits.
        args: the call's positional arguments.
        kwargs: its other arguments.

    Raises:
        ValueError: a row among others is shorter than the receptive field. The host would answer
            with frames that no sample is in.
    """
    if model.training:
        return Reason.TRAINING
    named = dict(kwargs)
    # What follows the first two has changed its order between versions of the host.
    if len(args) > 2 or any(name in named for name in _NAMES[: len(args)]):
        return Reason.ARGUMENTS
    values, mask = (
        args[i] if i < len(args) else named.pop(name, None) for i, name in enumerate(_NAMES)
    )
    if named.pop("labels", None) is not None:
        return Reason.LABELS
    asked = [named.pop(name, None) for name in _ASKS_FOR_MORE]
    own = [getattr(model.config, name, False) for name in _ASKS_FOR_MORE]
    if any(default if wish is None else wish for wish, default in zip(asked, own, strict=True)):
        return Reason.OUTPUTS
    return_dict = named.pop("return_dict", None)
    if named:
        return Reason.ARGUMENTS
    weight = model.lm_head.weight
    if not _fits(values, weight):
        return Reason.INPUT
    if torch.is_autocast_enabled(values.device.type):
        return Reason.AUTOCAST
    if torch.is_grad_enabled() and (
        values.requires_grad or any(weight.requires_grad for weight in model.parameters())
    ):
        return Reason.GRADIENTS
    if values.shape[1] < receptive_field:
        return Reason.SHORT
    lengths = _lengths(values, mask)
    if lengths is None:
        return Reason.MASK
    short = [f"row {i} has {n}" for i, n in enumerate(lengths) if n < receptive_field]
    if short:
        raise ValueError(
            f"each row needs {receptive_field} samples or more, the receptive field of a frame, "
            f"but {', '.join(short)}: leave such rows out, or pad them with silence"
        )
    if return_dict is None:
        return_dict = getattr(model.config, "return_dict", True)
    return Request(values, lengths, as_tuple=not return_dict)


_NAMES = ("input_values", "attention_mask")


def _fits(values: Any, weight: torch.Tensor) -> bool:
    return (
        isinstance(values, torch.Tensor)
        and values.ndim == 2
        and len(values) > 0
        and values.dtype == weight.dtype
        and values.device == weight.device
    )


def _lengths(values: torch.Tensor, mask: Any) -> tuple[int, ...] | None:
    """Samples of each row, or None where the mask is no right padding of these values."""
    if mask is None:
        return (values.shape[1],) * len(values)
    if not isinstance(mask, torch.Tensor) or mask.shape != values.shape:
        return None
    if all(value == 1 for value in mask.aminmax()):  # soon said of most queries
        return (values.shape[1],) * len(values)
    lengths = mask.sum(dim=1).long()  # (B,)
    if not torch.equal(mask, keep_mask(lengths, mask.shape[1]).to(mask.dtype)):
        return None
    return tuple(lengths.tolist())
