"""What the exact forward costs over the stock one on input of the same length.

    python tests/benchmarks/bench_padding.py
    python tests/benchmarks/bench_padding.py --seconds 1 5 --layers 4 --geometry base large
    python tests/benchmarks/bench_padding.py --kernels     kernels on a GPU, counted without one

The models have the published widths, a few layers and random weights. The stock forward is timed
twice: as a bare call, which knows no lengths, and with the attention mask that the ASR pipeline
passes. The bound holds against the bare call, the faster of the two. All three calls alternate in
one process; judged is processor time, which other processes stretch less than the clock's.

Kernels are the operators of PyTorch that a forward of the whole model runs on CUDA tensors without
values: attention counts as one, views and allocations as none. It is a count, no time: what a
library launches besides for one operator, to change a layout for instance, is not in it. Of the
forward that torch.compile compiles no count is had without a GPU: Inductor asks the device for its
properties to choose what it fuses, and what it makes for a CPU are loops of C++, others than
Triton's kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import figures
import torch
import transformers
from rich.console import Console
from rich.table import Table
from speech import GEOMETRIES, RATE, random_model
from timing import Comparison, compare
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_cudagraph_asr import ExactForward

BOUND = 1.03
# Of the exact forward in float32, at most; the stock one without a mask has 167 and 317.
KERNELS = {"base": 165, "large": 280}
Call = Callable[[], object]


# --- kernels


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that launch a kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        made = isinstance(result, (torch.Tensor, tuple, list))  # a view of one is no kernel
        if made and not (func.is_view or name.startswith(_FREE)):
            self.found[name] += _SEVERAL.get(name, 1)
        return result


_FREE = ("empty", "new_empty", "_unsafe_view", "_reshape_alias", "detach", "lift", "alias")
_SEVERAL = {"masked_fill": 2, "constant_pad_nd": 2}  # a copy of the input, or a fill, before


class _Attention(TorchFunctionMode):
    """Takes attention as one kernel, which writes as those of a GPU do: no copy follows."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._found["attention"] += 1
        batch, heads, frames, size = args[0].shape
        return args[0].new_empty((batch, frames, heads, size)).transpose(1, 2)


def kernels(
    geometry: str, dtype: torch.dtype = torch.float32, rows: int = 1, seconds: float = 5
) -> tuple[Counter[str], Counter[str]]:
    """Kernels, by operator, of the stock forward without a mask and of the exact one."""
    found = []
    config = transformers.Wav2Vec2Config(**GEOMETRIES[geometry])
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        model = transformers.AutoModelForCTC.from_config(config, dtype=dtype).eval()
        exact = ExactForward(model)
        values = torch.empty(rows, round(seconds * RATE), dtype=dtype)
        lengths = torch.empty(4, rows, dtype=torch.int64)  # as a captured graph is given them
        for call in (partial(model, values), partial(exact, values, lengths)):
            with _Operators() as operators, _Attention(operators.found):
                call()
            found.append(operators.found)
    return found[0], found[1]


def print_kernels(show: bool) -> bool:
    """Print counts; whether they are as few as they are to be."""
    met = True
    for geometry, bound in KERNELS.items():
        for dtype, rows in ((torch.float32, 1), (torch.bfloat16, 1), (torch.bfloat16, 16)):
            stock, exact = kernels(geometry, dtype, rows)
            verdict = ""
            if (dtype, rows) == (torch.float32, 1):
                met &= exact.total() <= bound
                verdict = f", at most {bound}: {'met' if exact.total() <= bound else 'MISSED'}"
            print(
                f"{geometry}, {str(dtype).removeprefix('torch.')}, {rows} rows: stock "
                f"{stock.total()}, exact {exact.total()}{verdict}"
            )
            if show:
                print(f"  stock without exact: {dict(stock - exact)}")
                print(f"  exact without stock: {dict(exact - stock)}")
    return met


# --- time


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


def main() -> int:
    arguments = _arguments()
    if arguments.kernels:
        return int(not print_kernels(arguments.show))
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
    ratios: list[figures.Figure] = []
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
                    against = "stock one" if stock == "bare" else "stock one with a mask"
                    what = f"{geometry}: processor time of the exact forward / of the {against}"
                    along = {"along": "seconds of audio", "at": seconds, "margin": 0.1}
                    ratios.append(figures.Figure.of(what, found.ratios("cpu"), **along))
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
    packages = ("hf_cudagraph_asr", "transformers", "torch")
    figures.save("padding", ratios, arguments.save, packages=packages)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--geometry", nargs="+", choices=tuple(GEOMETRIES), default=["base"])
    parser.add_argument("--kernels", action="store_true", help="count kernels, and time nothing")
    parser.add_argument("--show", action="store_true", help="with --kernels: name the operators")
    parser.add_argument("--seconds", nargs="+", type=float, default=[1, 2, 3, 5])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--json", type=Path, default=Path("out/bench/padding.json"))
    figures.add_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
