"""Taps, which see the queries and keys of attention calls while a processor runs untouched.

Two ways of looking, chosen by the kind of processor:

- `ProjectionTap`: q and k are what `to_q` and `to_k` return, so two forward hooks see them for
  next to nothing, whichever kernel multiplies them afterwards. Right for processors that are
  known to do nothing to q and k in between.
- `DispatchTap`: for any other processor, whatever reaches `scaled_dot_product_attention` or the
  layer's own `get_attention_scores`; it costs some Python time for each torch function called
  inside.

Other threads may call the same layer meanwhile: a tap sees what its own thread does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.models import attention_processor
from torch import nn
from torch.overrides import TorchFunctionMode

from daam_diffusers.scores import AttentionCall, attention_with_log_sum_exp

# Processors whose probabilities are softmax(to_q(x)·to_k(y)ᵀ·scale + mask), by exact class: a
# subclass may do something else. The former hand the scores to a fused kernel that scales by 1/√d,
# the latter scale by the layer's own factor.
_SCALED_BY_KERNEL = frozenset(
    {"AttnProcessor2_0", "FusedAttnProcessor2_0", "IPAdapterAttnProcessor2_0"}
)
_SCALED_BY_LAYER = frozenset(
    {
        "AttnProcessor",
        "AttnProcessorNPU",
        "IPAdapterAttnProcessor",
        "IPAdapterXFormersAttnProcessor",
        "SlicedAttnProcessor",
        "XFormersAttnProcessor",
    }
)


def tap_for(processor: Any, attn: nn.Module) -> ProjectionTap | DispatchTap:
    """The way of looking that suits a processor, as a context around one call of it.

    An interrupt may come before the context's exit has begun: `close` makes up for it. Afterwards
    its `calls(mask)` are the attention calls seen inside, in order; `mask` is the
    processor's argument.
    """
    cls = type(processor)
    is_plain = cls.__name__ in _SCALED_BY_KERNEL | _SCALED_BY_LAYER
    # Norms on q and k come after the projections, so there the projections are not what is used.
    if (
        is_plain
        and cls.__module__ == attention_processor.__name__
        and isinstance(attn, attention_processor.Attention)
        and attn.norm_q is None
        and attn.norm_k is None
    ):
        return ProjectionTap(attn, scaled_by_kernel=cls.__name__ in _SCALED_BY_KERNEL)
    return DispatchTap(attn)


class ProjectionTap:
    """Sees q and k as `to_q`, and `to_k` or the fused `to_kv` or `to_qkv`, return them."""

    def __init__(self, attn: attention_processor.Attention, *, scaled_by_kernel: bool) -> None:
        self._attn = attn
        self._scaled_by_kernel = scaled_by_kernel
        self._hooks = ExitStack()
        self._thread = threading.get_ident()
        self._seen: dict[str, torch.Tensor] = {}

    def __enter__(self) -> Self:
        for name in ("to_q", "to_k", "to_kv", "to_qkv"):
            module = getattr(self._attn, name, None)
            if module is not None:
                handle = module.register_forward_hook(partial(self._keep, name))
                self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off, if they are on."""
        self._hooks.close()

    def _keep(self, name: str, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if threading.get_ident() == self._thread:
            self._seen[name] = output

    def calls(self, mask: torch.Tensor | None) -> list[AttentionCall]:
        """See `tap_for`."""
        attn = self._attn
        query, key = self._seen.get("to_q"), self._seen.get("to_k")
        if key is None and "to_kv" in self._seen:
            key = self._seen["to_kv"].chunk(2, dim=-1)[0]
        if "to_qkv" in self._seen:
            query, key, _ = self._seen["to_qkv"].chunk(3, dim=-1)
        if query is None or key is None:
            return []
        if mask is not None:
            # As the host does it: broadcast to (B·H, 1 or N, K), then the heads apart.
            mask = attn.prepare_attention_mask(mask, key.shape[1], key.shape[0])
            mask = mask.view(key.shape[0], attn.heads, -1, mask.shape[-1])
        query, key = _split_heads(query, attn.heads), _split_heads(key, attn.heads)
        scale = query.shape[-1] ** -0.5 if self._scaled_by_kernel else attn.scale
        return [AttentionCall(query, key, mask, scale)]


def _split_heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    batch, length, _ = projected.shape
    return projected.view(batch, length, heads, -1).transpose(1, 2)  # (B, N, H·d) → (B, H, N, d)


Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Arguments of `get_attention_scores`: query, key, mask, (B·H, N, d) whole or in slices."""

_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


class DispatchTap(TorchFunctionMode):
    """Sees every `scaled_dot_product_attention` and `get_attention_scores` called inside."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self._attn = attn
        self._seen: list[AttentionCall] = []
        self._scores: list[Scores] = []
        self._undo = ExitStack()
        self._thread = threading.get_ident()
        self._entered = False

    def __enter__(self) -> Self:
        # Processors of research code multiply q and k by the layer's method, which a mode around
        # torch functions would see as a product of any two matrices.
        original = getattr(self._attn, "get_attention_scores", None)
        if original is not None:

            def get_attention_scores(query: Any, key: Any, attention_mask: Any = None) -> Any:
                if threading.get_ident() == self._thread:
                    self._scores.append((query, key, attention_mask))
                return original(query, key, attention_mask)

            own = vars(self._attn)
            before = own.get("get_attention_scores")
            if before is None:
                self._undo.callback(own.pop, "get_attention_scores")
            else:
                self._undo.callback(own.update, get_attention_scores=before)
            own["get_attention_scores"] = get_attention_scores
        super().__enter__()  # type: ignore[no-untyped-call]
        self._entered = True
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the method off, and in the tap's own thread the mode, if they are on."""
        if self._entered and threading.get_ident() == self._thread:
            self._entered = False
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._undo.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each function; keeps the arguments of the one in question."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        output, log_sum_exp = attention_with_log_sum_exp(func, args, kwargs)
        seen = {**dict(zip(_SDPA_ARGUMENTS, args, strict=False)), **kwargs}
        query, scale = seen["query"], seen.get("scale")
        self._seen.append(
            AttentionCall(
                query,
                seen["key"],
                seen.get("attn_mask"),
                query.shape[-1] ** -0.5 if scale is None else scale,
                log_sum_exp,
                output,
            )
        )
        return output

    def calls(self, mask: torch.Tensor | None) -> list[AttentionCall]:
        """See `tap_for`."""
        return self._seen + _apart(self._attn, self._scores)


def _apart(attn: Any, scores: Sequence[Scores]) -> list[AttentionCall]:
    """Calls of `get_attention_scores`, slices put together and heads apart."""
    by_shape: dict[tuple[int, int], list[Scores]] = {}
    for one in scores:
        by_shape.setdefault((one[0].shape[1], one[1].shape[1]), []).append(one)
    calls = []
    for parts in by_shape.values():
        if len(parts) == attn.heads and not all(query.is_contiguous() for query, _, _ in parts):
            # A head at a time, of all samples.
            parts = [_joined(parts, lambda tensors: torch.stack(tensors, dim=1).flatten(0, 1))]
        elif any(len(query) % attn.heads for query, _, _ in parts):
            parts = [_joined(parts, torch.cat)]
        for query, key, mask in parts:
            heads = attn.heads if len(query) % attn.heads == 0 else 1
            if mask is not None and len(mask) == len(query):
                mask = mask.reshape(-1, heads, *mask.shape[1:])
            query, key = (x.reshape(-1, heads, *x.shape[1:]) for x in (query, key))
            calls.append(AttentionCall(query, key, mask, attn.scale))
    return calls


def _joined(parts: Sequence[Scores], join: Callable[[list[torch.Tensor]], torch.Tensor]) -> Scores:
    masks = [mask.expand(len(query), -1, -1) for query, _, mask in parts if mask is not None]
    query, key = (join([part[n] for part in parts]) for n in (0, 1))  # type: ignore[misc]
    return query, key, join(masks) if masks else None
