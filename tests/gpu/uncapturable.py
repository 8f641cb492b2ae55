"""Captures that fail, each in a process of its own: what one leaves behind is no other test's.

    python tests/gpu/uncapturable.py stock|asking [cuda|cpu]

Prints what happened, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1] / "hf_cudagraph_asr"))

from padded_rows import audio
from tiny_models import CASES, plan_for

from hf_cudagraph_asr.attach import enable_cuda_graphs
from hf_cudagraph_asr.exact import ExactForward


class HostReads(TorchDispatchMode):
    """Without a device: fails on what cannot be captured on one."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in self.WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if name in ("index_put", "index_put_"):  # a scalar of the host's becomes a tensor
            raise RuntimeError(f"cannot copy between CPU and CUDA tensors in a capture: {name}")
        return func(*args, **(kwargs or {}))


def captured(call: Any, device: str) -> str:
    """What the capture of a call raises, or nothing."""
    try:
        if device == "cpu":
            with HostReads():
                call()
        else:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    call()
            torch.cuda.synchronize()
            with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
                call()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def stock(device: str) -> dict[str, str]:
    """The host's own masked forward, and the exact one over the same padding."""
    model = CASES["wav2vec2-layer-stable"].build().to(device)
    exact = ExactForward(model)
    values = torch.zeros(2, 600, device=device)
    mask = torch.ones(2, 600, dtype=torch.long, device=device)
    mask[1, 400:] = 0
    lengths = torch.tensor([600, 400], device=device)
    with torch.no_grad():
        return {
            "exact": captured(lambda: exact(values, lengths), device),
            "stock": captured(lambda: model(values, attention_mask=mask), device),
        }


class Asking(torch.nn.Linear):
    """Asks the host for a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.abs().max().item() < 1e9 else x


def asking(device: str) -> dict[str, Any]:
    """A model that cannot be captured, enabled; and the same model when it can be."""
    model = CASES["wav2vec2-group"].build().to(device)
    plain = model.lm_head
    model.lm_head = Asking(plain.in_features, plain.out_features).to(device).eval()
    model.lm_head.load_state_dict(plain.state_dict())
    row = audio(500, 0).to(device)[None]
    backend = "cuda" if device == "cuda" else "export"
    with torch.no_grad():
        expected = model(row).logits
        with enable_cuda_graphs(model, plan_for(model), backend=backend) as pool:
            error = float((model(row).logits - expected).abs().max() / expected.abs().max())
            why = pool.explain(500)
            memory = pool.stats().memory
            model.lm_head = plain
            pool.rebuild()
            again = float((model(row).logits - expected).abs().max() / expected.abs().max())
            route = pool.explain(500).route
    return {
        "error": error,
        "reason": None if why.reason is None else why.reason.name,
        "detail": why.detail,
        "memory": memory,
        "after": again,
        "route": route,
    }


if __name__ == "__main__":
    name, device = sys.argv[1:]
    print(json.dumps({"stock": stock, "asking": asking}[name](device)))
