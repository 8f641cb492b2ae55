"""What the exact forward costs over the stock one on input of the same length.

    python tests/benchmarks/bench_padding.py
    python tests/benchmarks/bench_padding.py --seconds 1 5 --layers 4 --geometry base large

The models have the published widths, a few layers and random weights. The stock forward is timed
twice: as a bare call, which knows no lengths, and with the attention mask that the ASR pipeline
passes. The bound holds against the bare call, the faster of the two. All three calls alternate in
one process; judged is processor time, which other processes stretch less than the clock's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from speech import GEOMETRIES, RATE, random_model
from timing import Comparison, compare

from hf_cudagraph_asr import ExactForward

BOUND = 1.03
Call = Callable[[], object]


def calls(model: Any, samples: int) -> tuple[Call, Call, Call]:
    """The stock forward, the stock forward with a mask, the exact forward; all warmed up."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, samples, generator=generator)
    mask = torch.ones(1, samples, dtype=torch.long)
    mask[:, samples - RATE // 10 :] = 0  # one of ones only is not used by every kernel
    # A row as long as the batch: what it costs does not depend on the value.
    exact, lengths = ExactForward(model), torch.tensor([samples])
    three = (partial(model, values), partial(model, values, mask), partial(exact, values, lengths))
    for call in three * 2:
        call()
    return three


def bench(model: Any, samples: int, pairs: int) -> dict[str, Comparison]:
    """The exact forward against the bare and the masked one."""
    bare, masked, exact = calls(model, samples)
    return {
        "bare": compare(bare, exact, pairs=pairs, device="cpu"),
        "masked": compare(masked, exact, pairs=pairs, device="cpu"),
    }


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    settings = {
        "layers": arguments.layers,
        "dtype": "float32",
        "threads": arguments.threads,
        "pairs": arguments.pairs,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bound": BOUND,
    }
    table = Table(
        "geometry", "seconds", "stock", "stock ms", "exact ms", "exact / stock", "bound",
        title="Cost of the exact forward, processor time",
        caption=", ".join(f"{key} {value}" for key, value in settings.items()),
    )  # fmt: skip
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for geometry in arguments.geometry:
            model = random_model(geometry, num_hidden_layers=arguments.layers)
            for seconds in arguments.seconds:
                for stock, found in bench(model, round(seconds * RATE), arguments.pairs).items():
                    ratio, (plain, exact) = found.ratio("cpu"), found.median("cpu")
                    met = exact / plain <= BOUND
                    table.add_row(
                        geometry, f"{seconds:g}", stock, f"{plain * 1e3:.1f}",
                        f"{exact * 1e3:.1f}", f"{exact / plain:.4f}; by pairs {ratio}",
                        f"≤ {BOUND}: {'met' if met else 'MISSED'}" if stock == "bare" else "",
                    )  # fmt: skip
                    results.append(
                        {
                            "geometry": geometry,
                            "seconds": seconds,
                            "stock": stock,
                            "ratio_of_medians": exact / plain,
                            "cpu_ratio": asdict(ratio),
                            "wall_ratio": asdict(found.ratio("wall")),
                            "within_bound": met if stock == "bare" else None,
                            **asdict(found),
                        }
                    )
    Console(width=120).print(table)
    path: Path = arguments.json
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--geometry", nargs="+", choices=tuple(GEOMETRIES), default=["base"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[1, 2, 3, 5])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--json", type=Path, default=Path("out/bench/padding.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
