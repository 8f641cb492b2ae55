"""The plain reference: every attention of a denoiser, its softmax in float64 and kept whole."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Attention:
    """One call of `F.scaled_dot_product_attention`.

    `call` counts the denoiser's calls, `index` the attentions of this module within one of them.
    """

    path: str
    call: int
    index: int
    query: torch.Tensor  # (B, H, N, D)
    key: torch.Tensor  # (B, H or fewer, K, D)
    mask: torch.Tensor | None
    probabilities: torch.Tensor  # (B, H, N, K), float64


def probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Softmax (B, H, N, K) in float64 of the arguments of `F.scaled_dot_product_attention`."""
    q, k = query.double(), key.double()
    if enable_gqa:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    scores = q @ k.mT * (scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.double()
    return scores.softmax(dim=-1)


class _Recorder(TorchFunctionMode):
    def __init__(self, seen: Callable[..., None]) -> None:
        self._seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._seen(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def attentions(
    denoiser: torch.nn.Module, keep: Callable[[str], bool] = lambda path: True
) -> Iterator[list[Attention]]:
    """Record the attentions of `denoiser`'s modules that have a `processor` and that `keep` names.

    Nothing of the package takes part, nor is anything computed in another way: the call goes on
    to PyTorch as it came, and its arguments are looked at on the way.
    """
    found: list[Attention] = []
    inside: list[str] = []
    calls = 0
    signature = inspect.signature(probabilities)

    def seen(*args: Any, **kwargs: Any) -> None:
        if not inside or not keep(inside[-1]):
            return
        given = signature.bind(*args, **kwargs).arguments
        before = sum(a.path == inside[-1] and a.call == calls - 1 for a in found)
        found.append(
            Attention(
                path=inside[-1],
                call=calls - 1,
                index=before,
                query=given["query"].detach(),
                key=given["key"].detach(),
                mask=given.get("attn_mask"),
                probabilities=probabilities(*args, **kwargs).detach(),
            )
        )

    def count(module: torch.nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1

    def enter(path: str) -> Callable[..., None]:
        return lambda module, args: inside.append(path)

    def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
        inside.pop()

    with ExitStack() as stack:
        handles = [denoiser.register_forward_pre_hook(count)]
        for path, module in denoiser.named_modules():
            if hasattr(module, "processor"):
                handles.append(module.register_forward_pre_hook(enter(path)))
                handles.append(module.register_forward_hook(leave, always_call=True))
        for handle in handles:
            stack.callback(handle.remove)
        stack.enter_context(_Recorder(seen))
        yield found


def is_near(maps: Any, seen: list[Attention], row: int) -> None:
    """Each layer's columns are the mean over calls and heads of a plain softmax's row."""
    for layer in maps.layers:
        own = [one.probabilities[row].mean(dim=0) for one in seen if one.path == layer.name]
        assert len(own) == maps.calls[layer.name]
        expected = torch.stack(own).mean(dim=0)[:, list(maps.columns)].T  # (C, N)
        values = maps.probabilities[layer.name][:-1].flatten(1)
        torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
