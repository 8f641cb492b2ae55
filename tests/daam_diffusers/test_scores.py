"""Probability columns against a softmax kept whole in float64, whichever way they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from daam_diffusers import scores
from daam_diffusers.scores import AttentionCall, attention_with_log_sum_exp, text_probabilities

B, H, N, K, D = 3, 4, 30, 21, 8
COLUMNS = (0, 1, 4, 5, 6, 20)
CELLS = slice(5, 25)
aten = torch.ops.aten


def masks() -> dict[str, torch.Tensor | None]:
    torch.manual_seed(1)
    keys = torch.rand(B, 1, 1, K) > 0.3
    keys[..., 0] = True
    return {
        "none": None,
        "boolean, of keys": keys,
        "additive, of keys": torch.randn(B, 1, 1, K),
        "additive, for each cell": torch.randn(B, 1, N, K),
        "boolean, cells by keys": torch.rand(N, K) > 0.5,
        "additive, for each head": torch.randn(B, H, N, K),
        "a cell that attends to nothing": (torch.arange(N) != 7)[:, None].expand(N, K),
    }


def plain(call: AttentionCall) -> torch.Tensor:
    """(B, H, K, N), float64."""
    key = call.key.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], dim=1)
    attention = call.query.double() @ key.mT * call.scale
    if call.mask is not None and call.mask.dtype == torch.bool:
        attention = attention.masked_fill(~call.mask, -torch.inf)
    elif call.mask is not None:
        attention = attention + call.mask.double()
    return attention.softmax(dim=-1).nan_to_num(nan=0.0).mT


def expected(call: AttentionCall, rows: Any, columns: Any, cells: slice) -> torch.Tensor:
    own = plain(call)[rows][:, :, list(columns)][..., cells]
    return torch.cat([own, 1 - own.sum(dim=2, keepdim=True)], dim=2)


def attend(
    dtype: torch.dtype = torch.float32,
    mask: torch.Tensor | None = None,
    key_heads: int = H,
    scale: float = 0.5,
) -> AttentionCall:
    """A call with the log-sum-exp of the kernel that ran."""
    torch.manual_seed(0)
    query = (2 * torch.randn(B, N, H, D)).to(dtype).transpose(1, 2)
    key, value = torch.randn(2, B, K, key_heads, D).to(dtype).transpose(2, 3)
    options = {"attn_mask": mask, "scale": scale, "enable_gqa": key_heads != H}
    output, lse = attention_with_log_sum_exp(
        F.scaled_dot_product_attention, (query, key, value), options
    )
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value, **options))
    return AttentionCall(query, key, mask, scale, lse)


@pytest.fixture(params=["log-sum-exp", "softmax", "softmax, piece by piece", "one-hot values"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the ways to compute the columns, with few scores at once too."""
    name: str = request.param
    if name == "one-hot values":
        monkeypatch.setattr(scores, "_CHUNK_BYTES", {})
        monkeypatch.setattr(scores, "_CHUNK_BYTES_ACCELERATOR", 0)
    elif name == "softmax, piece by piece":
        monkeypatch.setitem(scores._CHUNK_BYTES, "cpu", 4 * K * 7)
    elif name == "log-sum-exp":
        monkeypatch.setitem(scores._CHUNK_BYTES, "cpu", 4 * len(COLUMNS) * 2 * N)
    return name


def given(call: AttentionCall, way: str) -> AttentionCall:
    """The call as it is seen where this way is taken."""
    if way == "log-sum-exp":
        assert call.log_sum_exp is not None
        return call
    return AttentionCall(call.query, call.key, call.mask, call.scale)


@pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())
@pytest.mark.parametrize("key_heads", [H, 2, 1], ids="{} key heads".format)
@pytest.mark.parametrize("keep_heads", [False, True], ids=["mean of heads", "heads apart"])
def test_columns_equal_a_softmax_over_all_keys(way, mask, key_heads, keep_heads):
    call = attend(mask=mask, key_heads=key_heads)
    for rows in (slice(1, 3), [0], [2, 0]):
        found = text_probabilities(
            given(call, way), rows=rows, columns=COLUMNS, cells=CELLS, keep_heads=keep_heads
        )
        slow = expected(call, rows, COLUMNS, CELLS)
        slow = slow if keep_heads else slow.mean(dim=1)
        assert found.dtype == torch.float32
        assert (found - slow).abs().max() <= 1e-5 * slow.max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_columns_of_half_precision_are_within_a_hundredth(way, dtype):
    call = attend(dtype)
    found = text_probabilities(given(call, way), rows=slice(0, B), columns=COLUMNS)
    slow = expected(call, slice(0, B), COLUMNS, slice(None)).mean(dim=1)
    assert (found - slow).abs().max() <= 1e-2 * slow.max()


@pytest.mark.parametrize("columns", [(), range(K), range(3, 9), (K - 1,)], ids=str)
def test_any_choice_of_columns_leaves_the_rest_in_the_last(way, columns):
    call = attend()
    found = text_probabilities(given(call, way), rows=[1], columns=columns)
    assert found.shape == (1, len(columns) + 1, N)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, N))
    slow = expected(call, [1], columns, slice(None)).mean(dim=1).float()
    torch.testing.assert_close(found, slow, rtol=1e-5, atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that an operator makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self.numbers = max(self.numbers, tensor.numel())
        return output


@pytest.mark.parametrize("name", ["log-sum-exp", "softmax", "one-hot values"])
def test_scores_of_all_cells_never_exist_at_once_even_of_one_head(name, monkeypatch):
    length, columns = 1500, range(20)
    query, key, value = torch.randn(3, 1, 2, length, 16)
    if name == "one-hot values":
        monkeypatch.setattr(scores, "_CHUNK_BYTES", {})
        monkeypatch.setattr(scores, "_CHUNK_BYTES_ACCELERATOR", 0)
    with torch.no_grad(), Largest() as largest:
        _, lse = attention_with_log_sum_exp(F.scaled_dot_product_attention, (query, key, value), {})
        call = AttentionCall(query, key, None, 0.25, lse if name == "log-sum-exp" else None)
        text_probabilities(call, rows=[0], columns=columns)
    assert 0 < largest.numbers <= length**2 / 4


class Passing(TorchFunctionMode):
    """Calls attention as a tap does, from within a mode of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.Tensor | None] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        output, lse = attention_with_log_sum_exp(func, args, kwargs or {})
        self.found.append(lse)
        return output


CONTEXTS = {
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())
@pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())
def test_the_log_sum_exp_is_picked_up_and_the_output_is_the_same_to_the_bit(context, mask):
    torch.manual_seed(0)
    query, key, value = (torch.randn(B, H, n, D, requires_grad=True) for n in (N, K, K))
    with context():
        alone = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        with Passing() as mode:
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.equal(alone, seen)
    assert alone.dtype == seen.dtype
    assert (alone.requires_grad, alone.is_inference()) == (seen.requires_grad, seen.is_inference())
    (lse,) = mode.found
    assert lse is not None
    call = AttentionCall(query.detach(), key.detach(), mask, D**-0.5, lse)
    tolerance = 1e-5 if alone.dtype == torch.float32 else 1e-2
    with context():
        found = text_probabilities(call, rows=slice(0, B), columns=COLUMNS)
    slow = expected(call, slice(0, B), COLUMNS, slice(None)).mean(dim=1)
    assert (found - slow).abs().max() <= tolerance * slow.max()


@pytest.mark.parametrize("options", [{"is_causal": True}, {"dropout_p": 0.5}], ids=str)
def test_attention_that_is_more_than_a_masked_softmax_gives_no_log_sum_exp(options):
    query, key, value = torch.randn(3, 1, H, N, D)
    torch.manual_seed(0)
    alone = F.scaled_dot_product_attention(query, key, value, **options)
    torch.manual_seed(0)
    seen, lse = attention_with_log_sum_exp(
        F.scaled_dot_product_attention, (query, key, value), options
    )
    assert lse is None
    assert torch.equal(alone, seen)


def test_an_attention_without_a_fused_kernel_gives_no_log_sum_exp():
    query, key, value = torch.randn(3, 1, H, N, D)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        output, lse = attention_with_log_sum_exp(
            F.scaled_dot_product_attention, (query, key, value), {}
        )
    assert lse is None
    assert output.shape == (1, H, N, D)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """A GPU's kernels with their layouts, made for the CPU; `shift` is added to the log-sum-exp."""
    monkeypatch.setattr(scores, "_HOLDS", {})
    settings = {"shift": 0.0}

    def attention(query, key, value, bias, scale):  # type: ignore[no-untyped-def]
        score = query @ key.mT * (D**-0.5 if scale is None else scale)
        score = score if bias is None else score + bias
        return score.softmax(dim=-1) @ value, score.logsumexp(dim=-1) + settings["shift"]

    def efficient(q, k, v, bias, lse, dropout_p=0.0, is_causal=False, *, scale=None):  # type: ignore[no-untyped-def]
        output, found = attention(q, k, v, bias, scale)
        found = F.pad(found, (0, -N % 32), value=torch.nan) if lse else found[..., :0]
        return output, found, torch.tensor(0), torch.tensor(0)

    def cudnn(q, k, v, bias, lse, p=0.0, causal=False, debug=False, *, scale=None):  # type: ignore[no-untyped-def]
        output, found = attention(q, k, v, bias, scale)
        found = found[..., None] if lse else found[..., :0, None]
        zero = torch.tensor(0)
        return output, found, zero, zero, N, K, zero, zero, zero

    def flash(q, k, v, p=0.0, causal=False, debug=False, *, scale=None):  # type: ignore[no-untyped-def]
        output, found = attention(q, k, v, None, scale)
        zero = torch.tensor(0)
        return output, found, zero, zero, N, K, zero, zero, zero

    library = torch.library.Library("aten", "IMPL")
    for name, kernel in (("efficient", efficient), ("cudnn", cudnn), ("flash", flash)):
        library.impl(f"_scaled_dot_product_{name}_attention", kernel, "CPU")
    yield settings
    library._destroy()


CALLS = {
    "flash": lambda q, k, v: aten._scaled_dot_product_flash_attention(q, k, v)[0],
    "efficient": lambda q, k, v: aten._scaled_dot_product_efficient_attention(
        q, k, v, torch.ones(B, H, N, K).tril(), False
    )[0],
    "efficient, for gradients": lambda q, k, v: aten._scaled_dot_product_efficient_attention(
        q, k, v, torch.ones(B, H, N, K).tril(), True, scale=0.3
    )[0],
    "cudnn, for gradients": lambda q, k, v: aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True
    )[0],
    "cudnn": lambda q, k, v: aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_layouts_of_a_gpu_s_kernels(kernels, name):
    torch.manual_seed(0)
    query, key, value = (torch.randn(B, H, n, D) for n in (N, K, K))
    alone = CALLS[name](query, key, value)
    for _ in range(2):  # the first call of a kind is tried, later ones rely on it
        output, lse = attention_with_log_sum_exp(CALLS[name], (query, key, value), {})
        assert torch.equal(output, alone)
        if name in ("cudnn", "efficient"):  # computed where a gradient is wanted only
            assert lse is None
            continue
        scale, bias = (0.3, torch.ones(N, K).tril()) if "efficient" in name else (D**-0.5, 0)
        slow = (query.double() @ key.double().mT * scale + bias).logsumexp(dim=-1)
        torch.testing.assert_close(lse.double(), slow, rtol=1e-5, atol=1e-5)


def test_a_second_result_of_another_meaning_is_not_relied_on(kernels):
    """Such as a logarithm to another base in another version of torch."""
    kernels["shift"] = 0.5
    for name in CALLS:
        inputs = [torch.randn(B, H, n, D) for n in (N, K, K)]
        output, lse = attention_with_log_sum_exp(CALLS[name], inputs, {})
        assert lse is None
        assert torch.equal(output, CALLS[name](*inputs))
