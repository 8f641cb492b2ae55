"""The attention processor that traces: it runs the processor it wraps and looks on."""

from __future__ import annotations

import copy
import functools
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from daam_diffusers.errors import TraceError
from daam_diffusers.tap import tap_for

if TYPE_CHECKING:
    from daam_diffusers.watch import Watch


class TracingProcessor:
    """Wraps any attention processor and reports the attention it computes.

    The wrapped processor runs untouched, with the arguments it was given, so its output is the
    same to the bit. To the host the wrapper is the processor: the same class for `isinstance`, the
    same attributes to read and to write, the same signature. A copy is a copy of the wrapped
    processor.

    Attributes:
        inner: the processor that was there.
    """

    inner: Any

    def __init__(self, inner: Any, layer: str, observer: Watch) -> None:
        vars(self).update(inner=inner, _layer=layer, _observer=observer)

        me: Any = weakref.ref(self)  # a circle would keep what was recorded until it is looked for

        # Hosts drop the keyword arguments that inspect.signature(processor.__call__) does not
        # name. Looked up on the instance, that is this function, which carries inner's signature.
        @functools.wraps(inner.__call__)
        def call(attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return TracingProcessor.__call__(me(), attn, *args, **kwargs)

        vars(self)["__call__"] = call

    def __call__(self, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped processor with these arguments, look on, return what it returns.

        For a probe it runs once for each step whose pixels were kept, with these in their place.
        """
        if not self._observer.wants(self._layer):
            return self.inner(attn, *args, **kwargs)
        # Every host passes pixels first, then text, then the mask, by position or by name.
        mask = args[2] if len(args) > 2 else kwargs.get("attention_mask")
        given: Any = [*args] if args else kwargs
        pixels: Any = 0 if args else next(iter(kwargs))
        for states in self._observer.inputs(self._layer, given[pixels]):
            given[pixels] = states
            tap = tap_for(self.inner, attn)
            self._observer.taps.append(tap)  # in case that an interrupt keeps the exit from running
            with tap:
                output = self.inner(attn, *(given if args else ()), **kwargs)
            self._observer.taps.remove(tap)
            with torch.no_grad():
                self._observer.observe(self._layer, tap.calls(mask))
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.inner, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TraceError(NO_PICKLE)

    def __repr__(self) -> str:
        return f"TracingProcessor({self.inner!r})"


NO_PICKLE = (
    "a denoiser cannot be pickled or saved with torch.save while it is traced: leave "
    "`with trace(pipe)`, or call the tracer's remove(), first. (Copies and save_pretrained work.)"
)


def is_tracing(processor: Any) -> bool:
    """Whether a processor is a `TracingProcessor`; `isinstance` says what it wraps."""
    return type(processor) is TracingProcessor
