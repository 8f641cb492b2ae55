"""Probability columns of the prompt's tokens, from the queries and keys of one attention call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

# As many scores at once as fit this many bytes. A processor's caches want few, a GPU wants few
# launches. The former is measured by tests/benchmarks/bench_scores.py, the latter is not.
_CHUNK_BYTES = {"cpu": 2 << 20}
_CHUNK_BYTES_ACCELERATOR = 128 << 20

# cuDNN's kernel is left out where we call one: it may draw from the random numbers of the host.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class AttentionCall:
    """Inputs, and if known results, of one scaled-dot-product attention."""

    query: torch.Tensor  # (B, H, N, d), any floating dtype
    key: torch.Tensor  # (B, Hk, K, d); Hk divides H (grouped-query attention)
    mask: torch.Tensor | None  # broadcastable to (B, H, N, K): boolean (True attends) or additive
    scale: float  # factor on the scores before the softmax
    # float32 (B, H, N): the logarithm of the sum over all K keys of exp(q·kᵀ·scale + mask), where
    # the kernel that ran gave it.
    log_sum_exp: torch.Tensor | None = None
    output: torch.Tensor | None = None  # what the attention returned, (B, H, N, d')


@torch.no_grad()
def text_probabilities(
    call: AttentionCall,
    *,
    rows: Sequence[int] | slice,
    columns: Sequence[int],
    cells: slice = slice(None),
    keep_heads: bool = False,
) -> torch.Tensor:
    """Attention probabilities of some keys, the others summed into one more column.

    softmax(q·kᵀ·scale + mask) over all K keys, in float32 whatever the dtype of q and k. The
    scores of all cells and heads never exist at once, and where the call has its log-sum-exp only
    those of `columns` are computed. A cell that may attend to no key has 0 in each kept column.

    Args:
        call: queries, keys, mask and scale, and the log-sum-exp if it is known.
        rows: the samples of the batch that carry the prompt, B' of them.
        columns: increasing key positions to keep, C of them, each below K.
        cells: the query positions to keep, N' of them, such as the pixels of a joint sequence.
        keep_heads: keep the heads apart instead of averaging over them.

    Returns:
        float32, (B', C + 1, N'), or (B', H, C + 1, N') with `keep_heads`. The last column is what
        the kept ones leave of 1.
    """
    known = call.log_sum_exp is not None
    call = _narrowed(call, rows, cells, columns if known else None)
    batch, heads, count, _ = call.query.shape
    shape = (batch, heads if keep_heads else 1, len(columns) + 1, count)
    result = torch.zeros(shape, dtype=torch.float32, device=call.query.device)
    own, rest = result[:, :, :-1], result[:, :, -1]
    with torch.autocast(call.query.device.type, enabled=False):
        for part, some, values in _probabilities(call, columns):
            if call.mask is not None:  # nothing to attend to is not a number in most kernels
                values = values.nan_to_num(nan=0.0)
            if keep_heads:
                own[:, part, :, some] = values
            else:
                own[..., some] += values.sum(dim=1, keepdim=True)
    if not keep_heads:
        own /= heads
    rest.copy_(1 - own.sum(dim=2)).clamp_(min=0)
    return result if keep_heads else result[:, 0]


@torch.no_grad()
def output_shares(
    call: AttentionCall,
    *,
    rows: slice,
    columns: Sequence[int],
    cells: slice,
    keep_heads: bool = False,
) -> torch.Tensor:
    """Likeness of a cell's attention output to each token's: shares of 1 among the tokens.

    A softmax over the tokens of ten times the cosine of their output vectors and the cell's, all
    heads side by side. The idea is Helbling et al.'s ("ConceptAttention", arXiv 2502.04320), whose
    dot products of wide vectors leave one token all of a cell.

    Args:
        call: with its output, of joint attention: queries are text and pixels.
        rows: the samples of the batch, B' of them.
        columns: the tokens' places among the queries, C of them.
        cells: the pixels' places, N' of them.
        keep_heads: compare each head's own part of the vectors.

    Returns:
        float32, (B', C + 1, N'), or (B', H, C + 1, N') with `keep_heads`; the last column is 0.
    """
    assert call.output is not None  # a caller's duty
    output = call.output[rows] if keep_heads else call.output[rows].transpose(1, 2).flatten(2)
    parts = output[..., cells, :], _taken(output, columns, output.ndim - 2)
    pixels, tokens = (F.normalize(part.float(), dim=-1) for part in parts)
    with torch.autocast(output.device.type, enabled=False):
        return F.pad((10 * tokens @ pixels.mT).softmax(dim=-2), (0, 0, 0, 1))


@torch.no_grad()
def self_attention(
    call: AttentionCall, *, rows: slice, cells: slice, keys: slice, grid: tuple[int, int], pool: int
) -> torch.Tensor:
    """Attention among cells: the image's block of the attention, the mean over heads.

    Each row is a softmax over the pixels' keys alone, in float32: what the call's own softmax
    gives them, divided by its sum. With `pool` above 1 queries and keys are first averaged over
    squares of cells, so that N×N scores never exist. A mask plays no part: it hides text and
    padding, and between pixels there is none.

    Args:
        call: queries, keys and scale.
        rows: the samples of the batch, B' of them.
        cells, keys: where the pixels lie among queries and keys; both have h·w.
        grid: rows and columns of the cells, (h, w).
        pool: side of a square, in cells; squares at the far edges may be cut.

    Returns:
        float32, (B', M, M), where M is ⌈h/pool⌉·⌈w/pool⌉; each row sums to 1.
    """
    call = _narrowed(replace(call, mask=None, log_sum_exp=None), rows, cells, keys)
    if pool > 1:
        query, key = (_pooled(x, grid, pool) for x in (call.query, call.key))
        call = replace(call, query=query, key=key)
    batch, heads, count, _ = call.query.shape
    result = torch.zeros((batch, count, count), dtype=torch.float32, device=call.query.device)
    with torch.autocast(call.query.device.type, enabled=False):
        for _, some, scores in _scores(call):
            result[:, some] += scores.softmax(dim=-1).sum(dim=1)
    return result.div_(heads)


def _pooled(tensor: torch.Tensor, grid: tuple[int, int], pool: int) -> torch.Tensor:
    """Means over squares of cells, a head at a time: (B, H, h·w, d) → float32 (B, H, M, d)."""
    batch, _, _, width = tensor.shape
    squares = (head.float().mT.reshape(batch, width, *grid) for head in tensor.unbind(1))
    means = [F.avg_pool2d(one, pool, ceil_mode=True).flatten(2).mT for one in squares]
    return torch.stack(means, dim=1)


def _narrowed(
    call: AttentionCall,
    rows: Sequence[int] | slice,
    cells: slice,
    columns: Sequence[int] | slice | None,
) -> AttentionCall:
    """The call of these rows, cells and, unless None, keys; its mask is (B', H, N', K), Hk is H."""
    query, key = _taken(call.query, rows, 0)[:, :, cells], _taken(call.key, rows, 0)
    key = key if columns is None else _taken(key, columns, 2)
    shared = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(shared, dim=1) if shared > 1 else key
    lse = None if call.log_sum_exp is None else _taken(call.log_sum_exp, rows, 0)[:, :, cells]
    mask = call.mask
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
        mask = mask if mask.shape[0] == 1 else _taken(mask, rows, 0)
        mask = mask if mask.shape[2] == 1 else mask[:, :, cells]
        mask = mask if mask.shape[3] == 1 or columns is None else _taken(mask, columns, 3)
        mask = mask.expand(*query.shape[:3], key.shape[2])
    return AttentionCall(query, key, mask, call.scale, lse)


# Some heads, some cells, and a tensor of these.
_Pieces = Iterator[tuple[slice, slice, torch.Tensor]]


def _probabilities(call: AttentionCall, columns: Sequence[int]) -> _Pieces:
    """The kept probabilities, float32 (B', heads, C, cells), in the cheapest way that there is."""
    batch, heads, cells, _ = call.query.shape
    whole = 4 * batch * heads * cells * call.key.shape[2]
    if not columns:
        return
    if call.log_sum_exp is not None:
        for part, some, scores in _scores(call, keys_lead=True):
            yield part, some, scores.sub_(call.log_sum_exp[:, part, some].unsqueeze(2)).exp_()
    # To a GPU, a softmax that goes through memory costs several times the fused kernel. On a CPU
    # it is the other way round.
    elif call.query.device.type not in _CHUNK_BYTES and whole > _CHUNK_BYTES_ACCELERATOR:
        yield slice(None), slice(None), _from_one_hot_values(call, columns)
    else:
        for part, some, scores in _scores(call):
            yield part, some, _taken(scores.softmax(dim=-1), columns, 3).mT


def _from_one_hot_values(call: AttentionCall, columns: Sequence[int]) -> torch.Tensor:
    """Let the kernel return probabilities: a one-hot vector for each key's value makes them so.

    One call of the fused kernel for as many columns as a head is wide.
    """
    batch, heads, keys, width = call.key.shape
    pieces = []
    for first in range(0, len(columns), width):
        chosen = columns[first : first + width]
        values = call.query.new_zeros(keys, width)
        at = 0
        for start, stop in _runs(chosen):
            values[start:stop, at : at + stop - start].fill_diagonal_(1)
            at += stop - start
        with sdpa_kernel(_KERNELS):
            found = F.scaled_dot_product_attention(
                call.query,
                call.key,
                values.expand(batch, heads, keys, width),
                attn_mask=call.mask,
                scale=call.scale,
            )
        pieces.append(found[..., : len(chosen)].float().mT)
    return torch.cat(pieces, dim=2)


def _scores(call: AttentionCall, *, keys_lead: bool = False) -> _Pieces:
    """Scaled and masked scores, as many at once as the budget allows.

    float32 (B', heads, cells, K), or (B', heads, K, cells), which suits few keys.
    """
    batch, heads, cells, width = call.query.shape
    budget = _CHUNK_BYTES.get(call.query.device.type, _CHUNK_BYTES_ACCELERATOR)
    row = 4 * batch * (call.key.shape[2] + width)  # a cell's scores and its query
    cells_at_once = min(cells, max(1, budget // row))
    heads_at_once = max(1, budget // (row * cells_at_once))
    for first in range(0, heads, heads_at_once):
        part = slice(first, first + heads_at_once)
        key = call.key[:, part].float() * call.scale
        for start in range(0, cells, cells_at_once):
            some = slice(start, start + cells_at_once)
            query = call.query[:, part, some].float()
            scores = key @ query.mT if keys_lead else query @ key.mT
            if call.mask is not None:
                mask = call.mask[:, part, some].mT if keys_lead else call.mask[:, part, some]
                boolean = mask.dtype == torch.bool
                scores = scores.masked_fill_(~mask, -torch.inf) if boolean else scores.add_(mask)
            yield part, some, scores


def _taken(tensor: torch.Tensor, places: Sequence[int] | slice, dim: int) -> torch.Tensor:
    """`places` of one dimension, without the copy of an index to a GPU for which the host waits."""
    if isinstance(places, slice):
        return tensor[(slice(None),) * dim + (places,)]
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in _runs(places) or [(0, 0)]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open runs of neighbors."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def attention_with_log_sum_exp(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, torch.Tensor | None]:
    """Call a scaled-dot-product attention, and pick up the log-sum-exp that its kernel returned.

    Args:
        function: `torch.nn.functional.scaled_dot_product_attention`, or what calls it once.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        What the function returned, and the log-sum-exp, float32 (B, H, N), see `AttentionCall`;
        None where the kernel gives none, or another than a masked softmax's.
    """
    with _KernelWatch() as watch:
        output = function(*args, **kwargs)
    return output, watch.found[0] if len(watch.found) == 1 else None


class _KernelWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the log-sum-exp of each fused attention kernel that runs inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[torch.Tensor | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each operator, which runs as it is."""
        kwargs, name = kwargs or {}, func._schema.name
        if name == "aten::scaled_dot_product_attention":  # inference mode leaves it in one piece
            with self:
                return func.decompose(*args, **kwargs)
        output = func(*args, **kwargs)
        if name in _FUSED:
            # A list: a generator that is not run to its end swallows an interrupt as it closes.
            named = dict(zip([a.name for a in func._schema.arguments], args, strict=False))
            self.found.append(_log_sum_exp(name, output[1], named | kwargs))
        return output


_FUSED = (
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
)
# Whether the second result of a kernel is the log-sum-exp. Tried once for each kernel, device and
# dtype, since operators with an underscore may change from one torch to the next.
_HOLDS: dict[tuple[Any, ...], bool] = {}


def _log_sum_exp(kernel: str, found: Any, named: Mapping[str, Any]) -> torch.Tensor | None:
    query, mask = named["query"], named.get("attn_mask", named.get("attn_bias"))
    if not isinstance(found, torch.Tensor) or named.get("is_causal") or named.get("dropout_p"):
        return None
    # One kernel pads the cells, another's has a last dimension of 1; empty if it was not computed.
    found = (found.squeeze(-1) if found.ndim == 4 else found)[..., : query.shape[2]].float()
    if found.shape != query.shape[:3]:
        return None
    kind = (kernel, query.device.type, query.dtype, mask is None)
    if kind not in _HOLDS:
        scale = named.get("scale") or query.shape[-1] ** -0.5
        _HOLDS[kind] = _holds(found, AttentionCall(query, named["key"], mask, scale))
    return found if _HOLDS[kind] else None


def _holds(found: torch.Tensor, call: AttentionCall) -> bool:
    """Whether this is the log-sum-exp of the scores, by a few cells of the last sample."""
    holds = True
    for part, some, scores in _scores(_narrowed(call, slice(-1, None), slice(0, 8), None)):
        expected = scores.logsumexp(dim=-1)
        close = torch.isclose(found[-1:, part, :8][..., some], expected, rtol=1e-3, atol=1e-2)
        holds &= bool((close | expected.isinf()).all())
    return holds
