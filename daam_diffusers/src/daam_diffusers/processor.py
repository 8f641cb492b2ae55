"""The attention processor that traces: it runs the processor it wraps and looks on."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from diffusers.models.attention_processor import Attention

from daam_diffusers.scores import AttentionCall
from daam_diffusers.tap import tap_for


class Observer(Protocol):
    """What a `TracingProcessor` reports to."""

    def wants(self, layer: str, attn: Attention, cells: int, keys: int) -> bool:
        """Whether this call of this layer is to be looked at."""

    def observe(self, layer: str, attn: Attention, call: AttentionCall) -> None:
        """Take note of one attention call."""


class TracingProcessor:
    """Wraps any attention processor and reports the attention it computes.

    The wrapped processor runs untouched, with the arguments it was given, so its output is the
    same to the bit. To the host the wrapper is the processor: the same class for `isinstance`, the
    same attributes to read and to write, the same signature.

    Attributes:
        inner: the processor that was there.
    """

    inner: Any

    def __init__(self, inner: Any, layer: str, observer: Observer) -> None:
        own = functools.partial(object.__setattr__, self)
        own("inner", inner)
        own("_layer", layer)
        own("_observer", observer)

        # Hosts drop the keyword arguments that inspect.signature(processor.__call__) does not
        # name. Looked up on the instance, that is this function, which carries inner's signature.
        @functools.wraps(inner.__call__)
        def call(attn: Attention, *args: Any, **kwargs: Any) -> Any:
            return TracingProcessor.__call__(self, attn, *args, **kwargs)

        own("__call__", call)

    def __call__(self, attn: Attention, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped processor with these arguments, look on, return what it returns."""
        fields = object.__getattribute__(self, "__dict__")
        inner, layer, observer = fields["inner"], fields["_layer"], fields["_observer"]
        # Every host passes these three first, in this order, by position or by name.
        pixels, text, mask = (
            args[i] if i < len(args) else kwargs.get(name)
            for i, name in enumerate(("hidden_states", "encoder_hidden_states", "attention_mask"))
        )
        if isinstance(text, tuple):  # IP-Adapter: the text, and the image prompts
            text = text[0]
        if text is None or pixels is None:
            return inner(attn, *args, **kwargs)
        cells = pixels.shape[2:].numel() if pixels.ndim == 4 else pixels.shape[1]
        keys = text.shape[1]
        if not observer.wants(layer, attn, cells, keys):
            return inner(attn, *args, **kwargs)
        with tap_for(inner, attn) as tap:
            output = inner(attn, *args, **kwargs)
        seen = tap.call(attn, mask, keys)
        if seen is not None:
            with torch.no_grad():
                observer.observe(layer, attn, seen)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "inner"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.inner, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.inner)

    def __repr__(self) -> str:
        return f"TracingProcessor({self.inner!r})"


def is_tracing(processor: Any) -> bool:
    """Whether a processor is a `TracingProcessor`; `isinstance` says what it wraps."""
    return type(processor) is TracingProcessor
