"""What the probability columns of one attention call cost, beside the attention itself.

    python tests/benchmarks/bench_scores.py
    python tests/benchmarks/bench_scores.py --layers joint --dtype bfloat16

For layers of published models, all timed in turn in one run: the layer's own attention
(`scaled_dot_product_attention`), the same watched for its log-sum-exp and with the columns computed
from that, and the columns alone in the ways that are left where a kernel gives none: a softmax over
all keys, piece by piece, and one-hot values through the fused kernel. Ratios are to the layer's own
attention, medians of the rounds' ratios. The peak is of what a call allocates, its output included.

`--budgets` asks how many scores to hold at once: what the constants in `scores.py` rest on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import figures
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import measure
from torch.profiler import ProfilerActivity, profile

from daam_diffusers import scores
from daam_diffusers.scores import AttentionCall, attention_with_log_sum_exp, text_probabilities

MIB = 2**20
BUDGETS = {"one cell": 0, **{f"{n} MiB": n * MIB for n in (1, 2, 4, 8)}, "all": 1 << 60}
# Of joint attention on the CPU, more than the attention alone, and bytes.
BOUND, PEAK_BOUND = 1.15, 64 * MIB


@dataclass(frozen=True)
class Layer:
    """Shapes of one attention call.

    Attributes:
        batch: samples, of which the last carries the prompt.
        heads: attention heads.
        width: of a head.
        cells: pixels.
        text: text tokens.
        columns: text tokens to keep, from the first on.
        joint: whether text and pixels, in this order, attend to text and pixels; else the pixels
            attend to the text.
    """

    batch: int
    heads: int
    width: int
    cells: int
    text: int
    columns: int = 22  # a prompt of 20 tokens between its start and end token
    joint: bool = False

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Query, key and value as the projections leave them: heads apart by a view only."""
        torch.manual_seed(0)
        queries = self.cells + self.text if self.joint else self.cells
        keys = self.cells + self.text if self.joint else self.text
        return tuple(
            torch.randn(self.batch, length, self.heads, self.width, device=device, dtype=dtype)
            .transpose(1, 2)
            for length in (queries, keys, keys)
        )  # fmt: skip

    @property
    def kept(self) -> dict[str, Any]:
        """The arguments of `text_probabilities`."""
        cells = slice(self.text, None) if self.joint else slice(None)
        return {
            "rows": slice(self.batch - 1, self.batch),
            "columns": range(self.columns),
            "cells": cells,
        }


LAYERS = {
    "sd15 64²": Layer(2, 8, 40, 4096, 77),
    "sd15 32²": Layer(2, 8, 80, 1024, 77),
    "sd15 16²": Layer(2, 8, 160, 256, 77),
    "pixart": Layer(2, 16, 72, 4096, 300),
    "wan": Layer(1, 12, 128, 7800, 512),
    "joint": Layer(1, 24, 64, 4096, 256, joint=True),
    "joint, all text": Layer(1, 24, 64, 4096, 256, 256, joint=True),
}


@contextmanager
def budget(size: int, *, one_hot: bool = False) -> Iterator[None]:
    """Few or many scores at once; with `one_hot`, as on a GPU whose memory they would not fit."""
    with (
        mock.patch.object(scores, "_CHUNK_BYTES", {} if one_hot else {"cpu": size, "cuda": size}),
        mock.patch.object(scores, "_CHUNK_BYTES_ACCELERATOR", size),
    ):
        yield


def peak(call: Callable[[], object], device: str) -> int:
    """Most bytes that a call held at once."""
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return int(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


class Contestants:
    """The ways to compute the columns of one layer."""

    def __init__(self, layer: Layer, device: str, dtype: torch.dtype) -> None:
        self.inputs = layer.inputs(device, dtype)
        self.kept = layer.kept
        query, key, _ = self.inputs
        self.gives_log_sum_exp = False
        self.unknown = AttentionCall(query, key, None, layer.width**-0.5)

    def attention(self) -> torch.Tensor:
        """The layer's own, alone."""
        with torch.no_grad():
            return F.scaled_dot_product_attention(*self.inputs)

    def traced(self) -> torch.Tensor:
        """The layer's own attention, and the columns from its log-sum-exp."""
        with torch.no_grad():
            output, lse = attention_with_log_sum_exp(
                F.scaled_dot_product_attention, self.inputs, {}
            )
        self.gives_log_sum_exp = lse is not None
        query, key, _ = self.inputs
        found = text_probabilities(
            AttentionCall(query, key, None, self.unknown.scale, lse), **self.kept
        )
        del output
        return found

    def softmax(self, size: int | None = None) -> torch.Tensor:
        """The columns alone, from a softmax over all keys."""
        own = scores._CHUNK_BYTES.get(self.inputs[0].device.type, scores._CHUNK_BYTES_ACCELERATOR)
        with budget(own if size is None else size):
            return text_probabilities(self.unknown, **self.kept)

    def one_hot(self) -> torch.Tensor:
        """The columns alone, from one-hot values."""
        with budget(0, one_hot=True):
            return text_probabilities(self.unknown, **self.kept)


def times(
    contestants: Mapping[str, Callable[[], object]], *, device: str, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each contestant, all timed in turn; on a CPU of the processor."""
    clock = "cpu" if device == "cpu" else "wall"
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            taken[name].append(getattr(measure(contestant, device), clock))
    return taken


def bench_ways(layer: Layer, *, device: str, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Seconds, ratios to the layer's own attention, and peaks of each way."""
    ways = Contestants(layer, device, dtype)
    # Before anything is timed, each way gives the same; it warms them up, too.
    expected = ways.softmax()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    contestants = {
        "attention": ways.attention,
        "traced": ways.traced,
        "softmax": ways.softmax,
        "one-hot": ways.one_hot,
    }
    if layer.columns > layer.width:  # as many calls of the kernel as the width goes into them
        del contestants["one-hot"]
    for name in [*contestants][1:]:
        assert (contestants[name]() - expected).abs().max() <= tolerance * expected.max(), name
    taken = times(contestants, device=device, repeats=repeats)
    rounds = {
        name: [a / b for a, b in zip(seconds, taken["attention"], strict=True)]
        for name, seconds in taken.items()
    }
    return {
        "gives_log_sum_exp": ways.gives_log_sum_exp,
        "seconds": {name: statistics.median(seconds) for name, seconds in taken.items()},
        "rounds": rounds,
        "ratios": {name: statistics.median(ratios) for name, ratios in rounds.items()},
        "peaks": {
            name: peak(call, device)
            for name, call in (("attention", ways.attention), ("traced", ways.traced),
                               ("softmax", ways.softmax))
        },
    }  # fmt: skip


def bench_budgets(layer: Layer, *, device: str, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Median seconds of a softmax over all keys, by how many scores may exist at once."""
    ways = Contestants(layer, device, dtype)
    contestants = {
        name: partial(ways.softmax, size)
        for name, size in BUDGETS.items()
        if not (layer.joint and name in ("one cell", "all"))  # minutes, and gigabytes
    }
    taken = times(contestants, device=device, repeats=repeats)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("json", "save")}
    options = {"device": arguments.device, "dtype": getattr(torch, arguments.dtype)}
    caption = f"{arguments.device}, {arguments.dtype}, {arguments.threads} thread(s), medians of "
    caption += f"{arguments.repeats}; torch {torch.__version__}"
    table = Table(
        "layer", "attention ms", "traced", "softmax alone", "one-hot alone",
        "peak of attention", "traced", "with softmax alone", title="Columns of one call",
        caption=f"{caption}; bounds of joint: {BOUND}, {PEAK_BOUND // MIB} MiB",
    )  # fmt: skip
    clock = "processor time" if arguments.device == "cpu" else "time"
    results: dict[str, Any] = {}
    for name in arguments.layers:
        layer = LAYERS[name]
        found = bench_ways(layer, repeats=arguments.repeats, **options)
        ratios, peaks = found["ratios"], found["peaks"]
        found["within_bound"] = ratios["traced"] <= BOUND and peaks["traced"] <= PEAK_BOUND
        results[name] = {"layer": asdict(layer), **found}
        _write(arguments.json, settings, results)  # one by one: a run may be cut short
        verdict = ("", " met") if found["within_bound"] else ("", " MISSED")
        table.add_row(
            f"{name}, {layer.columns} columns",
            f"{1000 * found['seconds']['attention']:.1f}",
            f"× {ratios['traced']:.3f}{verdict[layer.joint]}"
            + ("" if found["gives_log_sum_exp"] else ", no log-sum-exp"),
            *(f"+ {ratios[way]:.2f}" if way in ratios else "" for way in ("softmax", "one-hot")),
            *(f"{size / MIB:.0f} MiB" for size in peaks.values()),
        )
    Console(width=120).print(table)
    if arguments.budgets:
        table = Table("ms", *arguments.layers, title="Scores at once", caption=caption)
        budgets = {
            name: bench_budgets(LAYERS[name], repeats=arguments.repeats, **options)
            for name in arguments.layers
        }
        for size in BUDGETS:
            row = (budgets[name].get(size) for name in arguments.layers)
            table.add_row(size, *("" if ms is None else f"{1000 * ms:.1f}" for ms in row))
        Console(width=120).print(table)
        results["budgets"] = budgets
    _write(arguments.json, settings, results)
    said = {
        "traced": "attention watched, with the columns",
        "softmax": "the columns alone, by a softmax over all keys",
        "one-hot": "the columns alone, by one-hot values",
    }
    ratios = [
        figures.Figure.of(
            f"{clock} of {said[way]} / of the attention", pairs, along="layer", at=name
        )
        for name in arguments.layers
        for way, pairs in results[name]["rounds"].items()
        if way in said
    ]
    packages = ("daam_diffusers", "torch")
    figures.save("scores", ratios, arguments.save, packages=packages)


def _write(path: Path, settings: dict[str, Any], results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", nargs="+", choices=tuple(LAYERS), default=tuple(LAYERS))
    parser.add_argument("--budgets", action="store_true", help="several budgets, too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--json", type=Path, default=Path("out/bench/scores.json"))
    figures.add_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
