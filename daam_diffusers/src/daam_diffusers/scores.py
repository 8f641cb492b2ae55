"""Probability columns of the prompt's tokens, from the queries and keys of one attention call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

# Scores of as many heads at once as fit this many bytes. A processor's caches want few, a GPU
# wants few launches. The former is measured by tests/benchmarks/bench_scores.py, the latter is not.
_CHUNK_BYTES = {"cpu": 2 << 20}
_CHUNK_BYTES_ACCELERATOR = 128 << 20


@dataclass(frozen=True)
class AttentionCall:
    """What one scaled-dot-product attention was computed from.

    Attributes:
        query: (B, H, N, d), any floating dtype.
        key: (B, H, K, d).
        mask: None, or broadcastable to (B, H, N, K): boolean (True attends) or additive.
        scale: factor on the scores before the softmax.
    """

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scale: float


@torch.no_grad()
def text_probabilities(
    call: AttentionCall, *, rows: slice, columns: Sequence[int], keep_heads: bool = False
) -> torch.Tensor:
    """Attention probabilities of some keys, the others summed into one more column.

    softmax(q·kᵀ·scale + mask) over all K keys, in float32 whatever the dtype of q and k; never
    more than a few heads' scores exist at once.

    Args:
        call: queries, keys, mask and scale.
        rows: the samples of the batch that carry the prompt, B' of them.
        columns: increasing key positions to keep, C of them.
        keep_heads: keep the heads apart instead of averaging over them.

    Returns:
        float32, (B', C + 1, N), or (B', H, C + 1, N) with `keep_heads`. The last column is the
        sum of the keys that were not kept, so the columns of one cell sum to 1.
    """
    query, key = call.query[rows], call.key[rows]
    batch, heads, cells, _ = query.shape
    keys = key.shape[2]
    if heads != key.shape[1]:  # grouped-query attention: several query heads share a key head
        key = key.repeat_interleave(heads // key.shape[1], dim=1)
    mask = None if call.mask is None else _rows_of(call.mask, rows)
    chunk = _heads_at_once(query.device, batch * cells * keys * 4)
    kept: list[torch.Tensor] = []
    total: torch.Tensor | None = None
    with _without_autocast(query.device):
        for start in range(0, heads, chunk):
            part = slice(start, start + chunk)
            # Keys lead: the softmax then runs over the slower axis, and a column is contiguous.
            scores = key[:, part].float().mul(call.scale) @ query[:, part].float().mT
            if mask is not None:
                scores = _masked(scores, mask if mask.shape[1] == 1 else mask[:, part])
            probabilities = scores.softmax(dim=2)  # (B', heads, K, N)
            if keep_heads:
                kept.append(_kept(probabilities, columns))
            else:
                summed = probabilities.sum(dim=1)
                total = summed if total is None else total.add_(summed)
    return torch.cat(kept, dim=1) if total is None else _kept(total.div_(heads), columns)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _heads_at_once(device: torch.device, bytes_per_head: int) -> int:
    budget = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ACCELERATOR)
    return max(1, budget // bytes_per_head)


def _rows_of(mask: torch.Tensor, rows: slice) -> torch.Tensor:
    mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    return mask if mask.shape[0] == 1 else mask[rows]


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mask = mask.mT  # (B', 1 or heads, K, 1 or N)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    return scores + mask.float()


def _kept(probabilities: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
    """(..., K, N) → (..., C + 1, N): the columns, then the sum of all others."""
    own: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    seen = 0
    # Runs of columns are slices: a list of indices would be copied to a GPU, and the host wait.
    for start, stop in _runs(columns):
        others.append(probabilities[..., seen:start, :])
        own.append(probabilities[..., start:stop, :])
        seen = stop
    others.append(probabilities[..., seen:, :])
    rest = [part.sum(dim=-2, keepdim=True) for part in others if part.shape[-2]]
    total = sum(rest[1:], start=rest[0]) if rest else torch.zeros_like(probabilities[..., :1, :])
    return torch.cat([*own, total], dim=-2)


def _runs(columns: Sequence[int]) -> list[tuple[int, int]]:
    """Increasing columns as half-open runs of neighbours."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return runs
