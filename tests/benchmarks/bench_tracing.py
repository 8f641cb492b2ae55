"""What tracing costs: time and memory, traced and untraced generations alternating in one run.

    python tests/benchmarks/bench_tracing.py
    python tests/benchmarks/bench_tracing.py --refine
    python tests/benchmarks/bench_tracing.py --geometry flux sd3 pixart wan --pairs 3
    python tests/benchmarks/bench_tracing.py --device cuda --geometry sd15 sdxl --dtype bfloat16

The denoisers have the published geometry and random weights: what they compute takes as long as
with trained ones. Transformers have one or two blocks of each kind, or with `--full` all of them:
fewer blocks make what is traced a larger share of the step, or leave the share as it is. A
generation is of one image or video, guided as its pipeline is by default, and ends with its
latents; making maps of the record afterwards is not part of it.

On a CPU the bound is judged by processor time: other processes stretch the clock's time of a
traced and an untraced run by different amounts, and hardly change the processor's time. On a GPU
the clock is judged, from the first kernel to the last, for there the cost to fear is the host
falling behind the device.

On a busy machine the ratios of single pairs still scatter by several per cent, more than tracing
costs on a CPU. So the processor time inside `Watch.observe`, where probabilities are computed and
added up, is taken as well: the bulk of the cost, and it hardly scatters.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import figures
import pipelines
import torch
from rich.console import Console
from rich.table import Table
from timing import Comparison, compare

from daam_diffusers import Tracer, trace
from daam_diffusers.watch import Watch

JUDGED = {"cpu": "cpu", "cuda": "wall"}
RECORD_BOUND = 8 * 2**20


REFINE_SHARE, REFINE_BYTES = 0.05, 16 * 2**20  # what `refine=True` may cost more


def bound(name: str, device: str, *, refine: bool) -> float:
    """What a traced generation may take, relative to an untraced one."""
    own = 1.05 if device == "cuda" or name in ("flux", "sd3") else 1.03
    return own + refine * REFINE_SHARE


@dataclass(frozen=True)
class Memory:
    """Bytes that are recorded of one generation with a prompt of `tokens` tokens, by steps."""

    tokens: int
    by_steps: dict[int, int]


def bench_time(
    name: str,
    *,
    device: str,
    dtype: torch.dtype,
    steps: int,
    pairs: int,
    full: bool = False,
    refine: bool = False,
    size: tuple[int, int] | None = None,
) -> tuple[Comparison, list[float], Memory]:
    """Traced against untraced generations of one geometry, of height and width `size`.

    Returns:
        The timings, the processor seconds inside the tracer, and the size of the record.
    """
    pipe = pipelines.build(name, device=device, dtype=dtype, full=full)
    recorded: list[Tracer] = []
    inside: list[float] = []

    def plain() -> None:
        pipelines.generate(pipe, name, prompt=pipelines.PROMPT_20, steps=steps, size=size)

    def traced() -> None:
        with observing() as seconds, trace(pipe, refine=refine) as tracer:
            plain()
        recorded[:] = [tracer]
        inside.append(sum(seconds))

    traced()  # warms both up
    comparison = compare(plain, traced, pairs=pairs, device=device)
    return comparison, inside[1:], _memory(recorded[0], steps)


@contextmanager
def observing() -> Iterator[list[float]]:
    """Processor seconds of each call of `Watch.observe`."""
    seconds: list[float] = []
    original = Watch.observe

    def observe(*args: Any) -> None:
        start = time.process_time()
        original(*args)
        seconds.append(time.process_time() - start)

    with mock.patch.object(Watch, "observe", observe):
        yield seconds


def bench_memory(steps: tuple[int, ...] = (2, 4, 50), *, refine: bool = False) -> Memory:
    """The record of Stable Diffusion 1.5 at 512², for several numbers of steps.

    Its size depends on grids, layers and tokens alone, so a denoiser with a tenth of the channels
    shows it, in seconds a step fewer; `bench_time` adds that the full one's has the same size.
    """
    pipe = pipelines.build("sd15-narrow")
    found: dict[int, int] = {}
    tokens = 0
    for count in steps:
        with trace(pipe, refine=refine) as tracer:
            pipelines.generate(pipe, "sd15-narrow", prompt=pipelines.PROMPT_20, steps=count)
        memory = _memory(tracer, count)
        found |= memory.by_steps
        tokens = memory.tokens
    return Memory(tokens, found)


def _memory(tracer: Tracer, steps: int) -> Memory:
    return Memory(len(tracer.heat_maps().tokens), {steps: tracer.record_bytes()})


def main() -> None:
    arguments = _arguments()
    device: str = arguments.device
    torch.set_num_threads(arguments.threads)
    diffusers.utils.logging.set_verbosity_error()
    judged = JUDGED[device]
    settings = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "steps": arguments.steps,
        "pairs": arguments.pairs,
        "blocks": "all" if arguments.full else "few",
        "judged": judged,
        "refine": arguments.refine,
    }
    table = Table(
        "geometry", "clock", "untraced s", "traced s", "traced / untraced", "record", "bound",
        title="Cost of tracing",
        caption=", ".join(f"{key} {value}" for key, value in settings.items()),
    )  # fmt: skip
    results: dict[str, Any] = {}
    ratios: list[figures.Figure] = []
    time_of = {"cpu": "processor time", "wall": "time"}[judged]
    for name in arguments.geometry:
        comparison, inside, memory = bench_time(
            name,
            device=device,
            dtype=getattr(torch, arguments.dtype),
            steps=arguments.steps,
            pairs=arguments.pairs,
            full=arguments.full,
            refine=arguments.refine,
        )
        limit = bound(name, device, refine=arguments.refine)
        for clock in ("wall", "cpu"):
            ratio, (plain, traced) = comparison.ratio(clock), comparison.median(clock)
            verdict = _verdict(ratio.median <= limit, f"≤ {limit}")
            table.add_row(
                name, clock, f"{plain:.3f}", f"{traced:.3f}", str(ratio), "",
                verdict if clock == judged else "not judged",
            )  # fmt: skip
        # On a GPU it is the time to launch kernels, which the device may well hide.
        spent = statistics.median(inside)
        table.add_row(
            name, "cpu, in observe", "", f"{spent:.3f}",
            f"1 + {spent / comparison.median('cpu')[0]:.4f}", "", "not judged",
        )  # fmt: skip
        refined = ", refine=True" if arguments.refine else ""
        what = f"{name}{refined}: {time_of} of a traced generation / of an untraced one"
        ratios.append(figures.Figure.of(what, comparison.ratios(judged), margin=0.05))
        if device == "cpu":
            shares = [
                spent / plain.cpu for spent, plain in zip(inside, comparison.plain, strict=True)
            ]
            what = f"{name}{refined}: {time_of} spent on maps / of an untraced generation"
            ratios.append(figures.Figure.of(what, shares))
        results[name] = {
            **asdict(comparison),
            "wall_ratio": asdict(comparison.ratio("wall")),
            "cpu_ratio": asdict(comparison.ratio("cpu")),
            "observe_cpu": spent,
            "bound": limit,
            "within_bound": comparison.ratio(judged).median <= limit,
            "memory": asdict(memory),
        }
        for steps, size in memory.by_steps.items():
            table.add_row(
                f"{name}, {steps} steps, {memory.tokens} tokens", "", "", "", "", _mib(size), ""
            )
        _write(arguments.json, settings, results)  # one by one: a run may be cut short
        gc.collect()
    if arguments.memory:
        memory = bench_memory(refine=arguments.refine)
        most = RECORD_BOUND + arguments.refine * REFINE_BYTES
        for steps, size in memory.by_steps.items():
            table.add_row(
                f"sd15-narrow, {steps} steps, {memory.tokens} tokens", "", "", "", "", _mib(size),
                _verdict(size <= most, _mib(most)),
            )  # fmt: skip
        results["memory"] = asdict(memory)
        few, many = min(memory.by_steps), max(memory.by_steps)
        what = f"bytes recorded of {many} steps / of {few}"
        grown = memory.by_steps[many] / memory.by_steps[few]
        ratios.append(figures.Figure.of(what, grown, margin=0.01))
    Console(width=120).print(table)
    _write(arguments.json, settings, results)
    packages = ("daam_diffusers", "diffusers", "torch")
    figures.save("tracing", ratios, arguments.save, packages=packages)


def _write(path: Path, settings: dict[str, Any], results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"


def _verdict(met: bool, bound: str) -> str:
    return f"{bound}: {'met' if met else 'MISSED'}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", help="default: float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument(
        "--geometry",
        nargs="+",
        choices=(*pipelines.GEOMETRIES, *pipelines.TRANSFORMERS),
        help="default: sd15, and on a GPU sdxl too",
    )
    parser.add_argument("--steps", type=int, help="default: 1 on the CPU, 20 on a GPU")
    parser.add_argument("--pairs", type=int, help="default: 5 on the CPU, 10 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--full", action="store_true", help="all blocks of a transformer")
    parser.add_argument("--refine", action="store_true", help="record self-attention as well")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, default=Path("out/bench/tracing.json"))
    figures.add_option(parser)
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    arguments.dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    arguments.geometry = arguments.geometry or (["sd15", "sdxl"] if on_gpu else ["sd15"])
    arguments.steps = arguments.steps or (20 if on_gpu else 1)
    arguments.pairs = arguments.pairs or (10 if on_gpu else 5)
    return arguments


if __name__ == "__main__":
    main()
