"""How the queries and keys of one attention call are seen while its processor runs untouched.

Two ways of looking, chosen by the kind of processor:

- `ProjectionTap`: q and k are what `to_q` and `to_k` return, so two forward hooks see them for
  next to nothing, whichever kernel multiplies them afterwards. Right for processors that are
  known to do nothing to q and k in between.
- `DispatchTap`: for any other processor, whatever reaches `scaled_dot_product_attention`; it
  costs some Python time for each torch function called inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention
from torch.overrides import TorchFunctionMode

from daam_diffusers.errors import TraceError
from daam_diffusers.scores import AttentionCall


class Tap(Protocol):
    """A context around one call of a processor, and what was seen in it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def call(self, attn: Attention, mask: torch.Tensor | None, keys: int) -> AttentionCall | None:
        """The attention over `keys` text keys, or None if this way of looking missed it."""


# Processors whose probabilities are softmax(to_q(x)·to_k(y)ᵀ·scale + mask), by exact class: a
# subclass may do something else. Those on the left hand the scores to a fused kernel that scales
# by 1/√d, those on the right scale by the layer's own factor.
_FUSED_KERNEL = (
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",
    "IPAdapterAttnProcessor2_0",
)
_LAYER_SCALE = (
    "AttnProcessor",
    "AttnProcessorNPU",
    "IPAdapterAttnProcessor",
    "IPAdapterXFormersAttnProcessor",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
)


def _classes(names: Iterable[str]) -> frozenset[type]:
    return frozenset(
        getattr(attention_processor, name) for name in names if hasattr(attention_processor, name)
    )


_SCALED_BY_KERNEL = _classes(_FUSED_KERNEL)
_PLAIN = _SCALED_BY_KERNEL | _classes(_LAYER_SCALE)


def tap_for(processor: Any, attn: Attention) -> Tap:
    """The way of looking that suits a processor."""
    # Norms on q and k come after the projections, so there the projections are not what is used.
    if type(processor) in _PLAIN and attn.norm_q is None and attn.norm_k is None:
        return ProjectionTap(attn, scaled_by_kernel=type(processor) in _SCALED_BY_KERNEL)
    return DispatchTap()


class ProjectionTap:
    """Sees q and k as `to_q`, and `to_k` or the fused `to_kv`, return them."""

    def __init__(self, attn: Attention, *, scaled_by_kernel: bool) -> None:
        self._attn = attn
        self._scaled_by_kernel = scaled_by_kernel
        self._hooks = ExitStack()
        self._seen: dict[str, torch.Tensor] = {}

    def __enter__(self) -> Self:
        for name in ("to_q", "to_k", "to_kv"):
            module = getattr(self._attn, name, None)
            if module is not None:
                handle = module.register_forward_hook(self._keep(name))
                self._hooks.callback(handle.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()

    def _keep(self, name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            self._seen[name] = output

        return hook

    def call(self, attn: Attention, mask: torch.Tensor | None, keys: int) -> AttentionCall | None:
        """See `Tap`."""
        query, key = self._seen.get("to_q"), self._seen.get("to_k")
        if key is None and "to_kv" in self._seen:
            key = self._seen["to_kv"].chunk(2, dim=-1)[0]
        if query is None or key is None or key.shape[1] != keys:
            return None
        if mask is not None:
            # As the host does it: broadcast to (B·H, 1 or N, K), then the heads apart.
            mask = attn.prepare_attention_mask(mask, keys, key.shape[0])
            mask = mask.view(key.shape[0], attn.heads, -1, mask.shape[-1])
        query, key = _split_heads(query, attn.heads), _split_heads(key, attn.heads)
        scale = query.shape[-1] ** -0.5 if self._scaled_by_kernel else attn.scale
        return AttentionCall(query, key, mask, scale)


def _split_heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    batch, length, _ = projected.shape
    return projected.view(batch, length, heads, -1).transpose(1, 2)  # (B, N, H·d) → (B, H, N, d)


_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


class DispatchTap(TorchFunctionMode):
    """Sees every `scaled_dot_product_attention` that is called inside, and lets it pass."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Mapping[str, Any]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch for each function; keeps the arguments of the one in question."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._calls.append({**dict(zip(_SDPA_ARGUMENTS, args, strict=False)), **kwargs})
        return func(*args, **kwargs)

    def call(self, attn: Attention, mask: torch.Tensor | None, keys: int) -> AttentionCall | None:
        """See `Tap`."""
        over_text = [call for call in self._calls if call["key"].shape[-2] == keys]
        if not over_text:
            return None
        if len(over_text) > 1:
            raise TraceError(
                f"{attn.processor.__class__.__name__} attends {len(over_text)} times to "
                f"{keys} keys in one call; which of them is the text cannot be told."
            )
        (seen,) = over_text
        scale = seen.get("scale")
        return AttentionCall(
            seen["query"],
            seen["key"],
            seen.get("attn_mask"),
            seen["query"].shape[-1] ** -0.5 if scale is None else scale,
        )
