"""Captures that fail, each in a process of its own: what one leaves behind is no other test's.

    python tests/gpu/uncapturable.py stock|asking|waiting|torch [cuda|cpu]

- stock: the model's own masked forward and the exact one, captured by torch alone.
- asking: a pool over a model that reads a value back, which can be seen before any capture.
- waiting: a pool over a model that waits for its stream, which only a capture shows.
- torch: what torch itself leaves behind after a capture that failed.

Prints what happened, as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "hf_cudagraph_asr"))

from guards import HostReads
from padded_rows import audio
from tiny_models import CASES, plan_for

from hf_cudagraph_asr import ExactForward, enable_cuda_graphs

SCRATCH, PLENTY = 2**26, 2**28  # bytes


def captured(call: Callable[[], object], device: str) -> str:
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


def left_behind(device: str, before: int) -> dict[str, Any]:
    """What a process is like: CUDA random numbers, and memory beyond `before`, in bytes."""
    if device == "cpu":
        return {"random": "", "taken": 0, "given_back": PLENTY}
    gc.collect()
    torch.cuda.set_stream(torch.cuda.default_stream())
    random = ""
    try:
        torch.randn(3, device=device)
    except RuntimeError as error:
        random = str(error)
    taken = reserved(device) - before
    plenty = torch.empty(PLENTY, dtype=torch.uint8, device=device)
    del plenty
    held = torch.cuda.memory_reserved()
    return {"random": random, "taken": taken, "given_back": held - reserved(device)}


def reserved(device: str) -> int:
    """Bytes that the allocator holds, after it gave back what it can."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    # 32 MiB for each thread and stream; no graph that would need one is alive here.
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def stock(device: str) -> dict[str, Any]:
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


def asking(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """A hook that reads a value back."""
    return output if output.abs().max().item() < 1e9 else -output


def waiting(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """A hook that waits for its stream, which no operator shows, with memory taken before."""
    torch.empty(SCRATCH, dtype=torch.uint8, device=output.device)
    torch.cuda.current_stream().synchronize()
    return output


def pooled(hook: Callable[..., torch.Tensor], device: str) -> dict[str, Any]:
    """A model that cannot be captured, enabled; and the same model when it can be."""
    model = CASES["wav2vec2-group"].build().to(device)
    hindrance = model.lm_head.register_forward_hook(hook)
    row = audio(500, 0).to(device)[None]

    def error(expected: torch.Tensor) -> float:
        return float((model(row).logits - expected).abs().max() / expected.abs().max())

    with torch.no_grad():
        expected = model(row).logits
        before = reserved(device)
        backend = "cuda" if device == "cuda" else "export"
        plan = plan_for(model, samples=(600,), batch_sizes=(1,))
        with enable_cuda_graphs(model, plan, backend=backend) as pool:
            wrong, why = error(expected), pool.explain(500)
            left = left_behind(device, before)
            hindrance.remove()
            pool.rebuild()
            again, after = error(expected), pool.explain(500)
    return {
        "reason": None if why.reason is None else why.reason.name,
        "detail": why.detail,
        "error": wrong,
        **left,
        "error_after": again,
        "route_after": after.route,
    }


def alone(device: str) -> dict[str, Any]:
    """What torch leaves behind of a capture that failed, with nothing of ours around it."""
    x = torch.ones(2**20, device=device)
    before = reserved(device)
    failure = captured(lambda: (x * 2).sum().item(), device)
    return {"failure": failure, **left_behind(device, before)}


if __name__ == "__main__":
    name, device = sys.argv[1:]
    torch.set_num_threads(1)  # tiny tensors: a second thread only waits for the first
    ways: dict[str, Callable[[str], dict[str, Any]]] = {
        "stock": stock,
        "asking": lambda device: pooled(asking, device),
        "waiting": lambda device: pooled(waiting, device),
        "torch": alone,
    }
    print(json.dumps(ways[name](device)))
