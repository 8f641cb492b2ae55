"""How many heads' scores to hold at once: what the constants in `scores.py` rest on.

    python tests/benchmarks/bench_scores.py

For each attention resolution of Stable Diffusion 1.5 at 512², `text_probabilities` with several
budgets is timed in turn with two yardsticks: the layer's own attention over the whole guided batch
(`scaled_dot_product_attention`), and the same columns from a softmax over all heads at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import measure

from daam_diffusers import scores
from daam_diffusers.scores import AttentionCall, text_probabilities

HEADS, KEYS, COLUMNS = 8, 77, 22  # a prompt of 20 tokens between its start and end token
RESOLUTIONS = {4096: 40, 1024: 80, 256: 160}  # cells: width of a head
MIB = 2**20
BUDGETS = {
    "one head": 0,
    **{f"{n} MiB": n * MIB for n in (1, 2, 4, 8)},
    "all heads": 1 << 40,
}
ROWS = slice(1, 2)  # of the guided batch of two, the row that carries the prompt


def own_attention(call: AttentionCall, value: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(call.query, call.key, value)


def all_at_once(call: AttentionCall) -> torch.Tensor:
    """What `text_probabilities` returns, without its loop over heads and its layout."""
    query, key = call.query[ROWS].float(), call.key[ROWS].float()
    probabilities = (query @ key.mT * call.scale).softmax(dim=-1).mean(dim=1)  # (1, N, K)
    own, rest = probabilities[..., :COLUMNS], probabilities[..., COLUMNS:]
    return torch.cat([own, rest.sum(dim=-1, keepdim=True)], dim=-1).mT


def with_budget(call: AttentionCall, budget: int) -> torch.Tensor:
    # Host and accelerator alike: on either, only one of the two constants is read.
    with (
        mock.patch.dict(scores._CHUNK_BYTES, {"cpu": budget}),
        mock.patch.object(scores, "_CHUNK_BYTES_ACCELERATOR", budget),
    ):
        return text_probabilities(call, rows=ROWS, columns=range(COLUMNS))


def bench(cells: int, *, device: str, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Median milliseconds of each contestant, all timed in turn."""
    width = RESOLUTIONS[cells]
    torch.manual_seed(0)
    # As the projections leave them: (B, N, H·d), heads apart by a view only.
    query, key, value = (
        torch.randn(2, length, HEADS, width, device=device, dtype=dtype).transpose(1, 2)
        for length in (cells, KEYS, KEYS)
    )
    call = AttentionCall(query, key, None, width**-0.5)
    contestants: dict[str, Callable[[], torch.Tensor]] = {
        "own attention": partial(own_attention, call, value),
        "all at once": partial(all_at_once, call),
        **{name: partial(with_budget, call, budget) for name, budget in BUDGETS.items()},
    }
    expected = all_at_once(call)
    for name in BUDGETS:
        torch.testing.assert_close(contestants[name](), expected, rtol=1e-3, atol=1e-5)
    clock = "cpu" if device == "cpu" else "wall"
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            taken[name].append(getattr(measure(contestant, device), clock))
    return {name: 1000 * statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    results = {
        cells: bench(cells, device=arguments.device, dtype=dtype, repeats=arguments.repeats)
        for cells in RESOLUTIONS
    }
    table = Table(
        "milliseconds", *(f"{cells} cells" for cells in results), "per step",
        title="Probability columns of one call of a layer",
        caption=f"{arguments.device}, {arguments.dtype}, {arguments.threads} thread(s), medians "
        f"of {arguments.repeats}; per step: 5 layers of each resolution; torch {torch.__version__}",
    )  # fmt: skip
    for name in results[4096]:
        times = [results[cells][name] for cells in results]
        table.add_row(name, *(f"{t:.2f}" for t in times), f"{5 * sum(times):.1f}")
    Console(width=100).print(table)
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    path: Path = arguments.json
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "ms": results}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--json", type=Path, default=Path("out/bench/scores.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
