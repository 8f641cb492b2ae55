"""What a query waits for with graphs and without, beside what the hardware allows.

    python tests/benchmarks/bench_graphs.py --device cuda --geometry base large
    python tests/benchmarks/bench_graphs.py --device cpu --geometry tiny --queries 50

Queries are timed by the functions behind `hf-cudagraph-asr bench`, on models with random weights.
The traffic is log-normal (median 1.8 s, at most 8 s); the buckets are planned for another draw of
it. The study adds:

- fixed lengths beside their roofline: the longer of reading all weights once and computing what
  the samples need, at the device's peaks, which are options;
- batches, with --rows;
- with --reduce-overhead, torch.compile(mode="reduce-overhead", dynamic=False) of the stock model
  over the buckets of the fixed lengths, compiled from an empty cache;
- on a CPU, the stock model over as many samples as the bucket has: what a pool is judged by there,
  in processor time, which other processes stretch less than the clock's.

--out is written after each geometry and dtype. Attention is not cuDNN's unless --cudnn-attention is
given: on Hopper it plans each new number of frames, and the percentiles of an eager baseline would
be those of planning. Bars are judged for base and large only; the exit status is 1 where one is
missed.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# Before torch is imported, so that the start of a compiled contender finds nothing compiled.
_CACHE = tempfile.TemporaryDirectory(prefix="bench-graphs-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _CACHE.name

import figures  # noqa: E402
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from speech import GEOMETRIES, LONGEST, RATE, in_samples, random_model, traffic  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from hf_cudagraph_asr import BucketPlan, plan_buckets  # noqa: E402
from hf_cudagraph_asr.cli import bench as harness  # noqa: E402
from hf_cudagraph_asr.cli.bench import Contender  # noqa: E402

ROOT = Path(__file__).parents[2]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MEBIBYTE = 2**20

# To reach
SPEEDUP = {"base": 5.0, "large": 3.0}  # over the stock model with a mask, in bf16
EQUAL = 1.03  # times slower that two equals may seem
SOONER = 10.0
JITTER = 1.5  # p99 over p50 within a bucket
POOL = 1024 * MEBIBYTE  # 16 graphs of base
ENOUGH = 50  # queries of a bucket, for a 99th percentile

Times = dict[str, npt.NDArray[np.float64]]  # milliseconds of each query, by contender


@dataclass(frozen=True)
class Bar:
    """A measurement and what it should be; not judged where `met` is None."""

    what: str
    found: str
    wanted: str
    met: bool | None

    def __str__(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "not judged"}[self.met]
        return f"{self.what}: {self.found}, wanted {self.wanted}: {verdict}"


def at_bucket(model: Any, plan: BucketPlan) -> Contender:
    """The stock model over as many samples as the query's bucket has, without a mask."""
    return Contender("at bucket", _padded(lambda values: model(values).logits, model, plan))


def reduce_overhead(model: Any, plan: BucketPlan, seconds: Sequence[int]) -> Contender:
    """What torch.compile makes of the stock model over the buckets of these lengths.

    Its outputs are overwritten by the next run; here they are read before.
    """
    buckets = [plan.bucket_for(second * RATE) for second in seconds]
    totals = {bucket.samples for bucket in buckets if bucket is not None}
    # Each length is compiled by itself; Dynamo would stop after a few.
    torch._dynamo.config.recompile_limit = 4 * len(totals)
    compiled: Any = torch.compile(
        lambda values: model(values).logits, mode="reduce-overhead", dynamic=False
    )

    def run(values: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        logits: torch.Tensor = compiled(values)
        return logits

    start = time.perf_counter()
    with torch.inference_mode():  # in which it is called: else it would be compiled again then
        for total in sorted(totals, reverse=True):
            values = torch.zeros(1, total, device=model.device, dtype=model.dtype)
            for _ in range(3):  # compiled, recorded, replayed
                run(values).cpu()
    return Contender("reduce-overhead", _padded(run, model, plan), time.perf_counter() - start)


def _padded(
    run: Callable[[torch.Tensor], torch.Tensor], model: Any, plan: BucketPlan
) -> Callable[[torch.Tensor], torch.Tensor]:
    device, dtype = model.device, model.dtype

    def call(samples: torch.Tensor) -> torch.Tensor:
        count = samples.shape[1]
        bucket = plan.bucket_for(count)
        total = count if bucket is None else bucket.samples
        values = torch.nn.functional.pad(samples.to(device, dtype), (0, total - count))
        return run(values)[:, : plan.geometry.frames(count)].argmax(dim=-1).cpu()

    return call


def batched(contenders: Sequence[Contender], rows: int) -> list[Contender]:
    """The same contenders, each query repeated in a batch of so many rows."""
    return [
        replace(contender, call=lambda samples, call=contender.call: call(samples.expand(rows, -1)))
        for contender in contenders
    ]


def roofline(model: Any, seconds: int, arguments: argparse.Namespace) -> float:
    """Milliseconds that a query takes at least, at the device's peaks."""
    ghost = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.empty(1, seconds * RATE, device="meta", dtype=model.dtype))
    peak = arguments.fp32_tflops if model.dtype == torch.float32 else arguments.half_tflops
    weights = sum(weight.nbytes for weight in model.parameters())
    return 1e3 * max(
        weights / (arguments.bandwidth * 1e12), counter.get_total_flops() / (peak * 1e12)
    )


def study(geometry: str, dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of one model; its bars under the key "bars"."""
    on_gpu = arguments.device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    model = random_model(geometry).to(arguments.device, DTYPES[dtype])
    plan = plan_buckets(
        np.append(traffic(10_000, seed=1), LONGEST),
        graphs=arguments.graphs,
        model=model,
        batch_sizes=sorted({1, *arguments.rows}),
    )
    lengths = in_samples(traffic(arguments.queries))
    fixed = [second * RATE for second in arguments.seconds]
    with harness.contending(model, plan, arguments.backends) as contenders:
        with torch.no_grad():
            longest = round(LONGEST * RATE)
            ways = {c.name: str(c.pool.explain(longest)) for c in contenders if c.pool}
        if not on_gpu:
            contenders.append(at_bucket(model, plan))
        harness.replay(contenders, [*fixed, *lengths[:10]])  # what is lazy is done before
        taken, same = harness.replay(contenders, lengths, clock)
        found = harness.results(contenders, taken, same)
        single = list(contenders)
        if arguments.reduce_overhead:
            single.append(reduce_overhead(model, plan, arguments.seconds))
        exact = {second: medians(single, second, clock, arguments) for second in arguments.seconds}
        batches = {
            rows: {
                second: medians(batched(contenders, rows), second, clock, arguments)
                for second in arguments.seconds
            }
            for rows in arguments.rows
        }
    times = {contender.name: taken[at] for at, contender in enumerate(contenders)}
    if on_gpu:
        start = {contender.name: contender.start_seconds for contender in single}
        bars = [*_gpu_bars(geometry, dtype, arguments, plan, lengths, times, found, exact, start)]
    else:
        bars = [*_cpu_bars(geometry, dtype, arguments, times)]
    limits = {s: roofline(model, s, arguments) for s in arguments.seconds} if on_gpu else {}
    _show(geometry, dtype, found, ways, exact, batches, limits, bars)
    return {
        "geometry": geometry,
        "dtype": dtype,
        "buckets": [bucket.samples for bucket in plan.buckets],
        "longest_query": ways,
        "results": [asdict(one) for one in found],
        "fixed_ms": exact,
        "batches_ms": batches,
        "roofline_ms": limits,
        "bars": [asdict(bar) for bar in bars],
        "figures": list(_figures(f"{geometry} {dtype}", arguments, times, exact, single)),
    }


def _figures(
    what: str,
    arguments: argparse.Namespace,
    times: Times,
    exact: dict[int, dict[str, float]],
    contenders: Sequence[Contender],
) -> Iterator[figures.Figure]:
    """Of each backend to the stock model, query by query; of compiled programs to both."""
    clock = "time" if arguments.device == "cuda" else "processor time"
    if not arguments.reduce_overhead:
        for name in arguments.backends:
            for other in ("at bucket", "no mask", "stock"):
                if other in times:
                    said = {
                        "at bucket": "stock model at the bucket's length",
                        "stock": "stock model",
                    }
                    against = said.get(other, "stock model without a mask")
                    ratios = (times[name] / times[other]).tolist()
                    line = f"{what}: {clock} of a query, {name} / {against}"
                    yield figures.Figure.of(line, ratios, margin=0.1)
        return
    start = {contender.name: contender.start_seconds for contender in contenders}
    for name in (*arguments.backends, "no mask"):
        for second, each in exact.items():
            line = f"{what}: {clock} of a query, torch.compile / {name}"
            ratio = each["reduce-overhead"] / each[name]
            along = {"along": "seconds of audio", "at": second}
            yield figures.Figure.of(line, ratio, better="higher", **along)
        if name != "eager" and start.get(name):  # which captures nothing
            line = f"{what}: time to start, torch.compile / {name}"
            ratio = start["reduce-overhead"] / start[name]
            yield figures.Figure.of(line, ratio, margin=1.0, better="higher")


def medians(
    contenders: Sequence[Contender],
    seconds: int,
    clock: Callable[[], float],
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Milliseconds of each contender for queries of one length."""
    taken, _ = harness.replay(contenders, [seconds * RATE] * (3 + arguments.repeats), clock)
    middle = np.median(taken[:, 3:], axis=1).tolist()  # the first three warm a new shape up
    return dict(zip([contender.name for contender in contenders], middle, strict=True))


def _gpu_bars(
    geometry: str,
    dtype: str,
    arguments: argparse.Namespace,
    plan: BucketPlan,
    lengths: Sequence[int],
    times: Times,
    found: Sequence[harness.Result],
    exact: dict[int, dict[str, float]],
    start: dict[str, float],
) -> Iterator[Bar]:
    known, by_name = geometry in SPEEDUP, {one.name: one for one in found}
    for name in arguments.backends:
        ours, say = by_name[name], f"{geometry} {dtype} {name}"
        least = SPEEDUP.get(geometry, 1.0)
        met = ours.over_stock >= least if known and dtype == "bf16" else None
        ratio = f"{ours.over_stock:.2f}× ({ours.over_no_mask:.2f}× over it without a mask)"
        yield Bar(f"{say} over the stock model with a mask", ratio, f"≥ {least:g}×", met)
        if "reduce-overhead" in start:
            ratios = [each[name] / each["reduce-overhead"] for each in exact.values()]
            met = max(ratios) <= EQUAL if known else None
            what = f"{say} in times of reduce-overhead, worst length"
            yield Bar(what, f"{max(ratios):.3f}", f"≤ {EQUAL}", met)
            # Of as many graphs each: reduce-overhead has those of the fixed lengths alone.
            graphs = len({plan.bucket_for(second * RATE) for second in arguments.seconds})
            sooner = start["reduce-overhead"] / graphs / (start[name] / plan.captures)
            met = sooner >= SOONER if known and name == "cuda" else None
            what = f"{say} captures a graph sooner than reduce-overhead"
            yield Bar(what, f"{sooner:.1f}×", f"≥ {SOONER:g}×", met)
        jitter = _jitter(plan, lengths, times[name])
        met = None if jitter is None or not known else jitter <= JITTER
        shown = "too few queries" if jitter is None else f"{jitter:.2f}"
        yield Bar(f"{say} p99 over p50, worst bucket", shown, f"≤ {JITTER}", met)
        met = ours.memory <= POOL if geometry == "base" and plan.captures == 16 else None
        what, shown = f"{say} pool of {plan.captures} graphs", f"{ours.memory / MEBIBYTE:.0f} MiB"
        yield Bar(what, shown, f"≤ {POOL // MEBIBYTE} MiB", met)


def _cpu_bars(
    geometry: str, dtype: str, arguments: argparse.Namespace, times: Times
) -> Iterator[Bar]:
    for name in arguments.backends:
        # The eager backend computes a query at its own length, the others at their bucket's.
        for other in ("at bucket", "no mask") if name == "eager" else ("at bucket",):
            ratio = float(np.median(times[name] / times[other]))
            met = ratio <= EQUAL if geometry in SPEEDUP and name != "compile" else None
            what = f"{geometry} {dtype} {name} in times of the stock model, {other}"
            yield Bar(what, f"{ratio:.3f}", f"≤ {EQUAL}", met)


def _jitter(
    plan: BucketPlan, lengths: Sequence[int], times: npt.NDArray[np.float64]
) -> float | None:
    grouped: dict[object, list[float]] = {}
    for length, taken in zip(lengths, times.tolist(), strict=True):
        grouped.setdefault(plan.bucket_for(length), []).append(taken)
    quantiles = [np.percentile(g, (50, 99)) for g in grouped.values() if len(g) >= ENOUGH]
    return max((float(p99 / p50) for p50, p99 in quantiles), default=None)


def _show(
    geometry: str,
    dtype: str,
    found: Sequence[harness.Result],
    ways: dict[str, str],
    exact: dict[int, dict[str, float]],
    batches: dict[int, dict[int, dict[str, float]]],
    limits: dict[int, float],
    bars: Sequence[Bar],
) -> None:
    print(f"{geometry}, {dtype}; an 8 s query goes to: {ways}")
    print(*harness.lines(found), sep="\n")
    for rows, fixed in {1: exact, **batches}.items():
        for second, middle in fixed.items():
            shown = ", ".join(f"{name} {ms:.2f}" for name, ms in middle.items())
            limit = f"; roofline {limits[second]:.3f}" if limits and rows == 1 else ""
            print(f"{rows} × {second} s, median ms: {shown}{limit}")
    print(*bars, sep="\n", flush=True)


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    # float32 as the tests have it: with ten bits of mantissa it would be another dtype.
    torch.backends.cudnn.allow_tf32 = arguments.tf32
    torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    torch.backends.cuda.enable_cudnn_sdp(arguments.cudnn_attention)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        **{name: value for name, value in vars(arguments).items() if name not in ("out", "save")},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device_name": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "studies": [],
    }
    ratios: list[figures.Figure] = []
    for geometry in arguments.geometry:
        for dtype in arguments.dtype:
            done = study(geometry, dtype, arguments)
            ratios += done.pop("figures")
            content["studies"].append(done)
            beside = arguments.out.with_suffix(".part")
            beside.write_text(json.dumps(content, indent=2) + "\n")
            beside.replace(arguments.out)
            gc.collect()
            if arguments.device == "cuda":
                torch.compiler.reset()
                torch.cuda.empty_cache()
    figures.save(
        "torch-compile" if arguments.reduce_overhead else "graphs",
        ratios,
        arguments.save,
        packages=("hf_cudagraph_asr", "transformers", "torch"),
    )
    return int(any(bar["met"] is False for done in content["studies"] for bar in done["bars"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--geometry", nargs="+", choices=tuple(GEOMETRIES), default=["base"])
    add("--device", choices=("cuda", "cpu"), help="default: cuda, where there is one")
    add("--dtype", nargs="+", choices=tuple(DTYPES), help="default: all; fp32 on a CPU")
    add("--backends", nargs="+", help="default: cuda; eager and export on a CPU")
    add("--graphs", type=int, help="lengths to capture (default: 16; 4 on a CPU)")
    add("--queries", type=int, default=2000, help="of the log-normal traffic")
    add("--seconds", nargs="+", type=int, choices=range(1, 9), default=[1, 2, 5, 8],
        help="fixed lengths (default: 1 2 5 8)")  # fmt: skip
    add("--repeats", type=int, help="of each fixed length (default: 100; 3 on a CPU)")
    add("--rows", nargs="+", type=int, default=[], help="of batches (default: none)")
    add("--reduce-overhead", action="store_true", help="compare with it; compiles for minutes")
    add("--cudnn-attention", action="store_true", help="allow it (default: not)")
    add("--tf32", action="store_true", help="allow ten bits of mantissa in fp32")
    add("--threads", type=int, default=1, help="of torch, on the CPU")
    add("--bandwidth", type=float, default=4.8, help="peak, in TB/s")
    add("--half-tflops", type=float, default=800.0, help="peak in bf16 and fp16")
    add("--fp32-tflops", type=float, default=60.0, help="peak in fp32")
    add("--out", type=Path, default=ROOT / "out" / "bench" / "graphs.json")
    figures.add_option(parser)
    arguments = parser.parse_args()
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = arguments.device == "cuda"
    arguments.dtype = arguments.dtype or (list(DTYPES) if on_gpu else ["fp32"])
    arguments.backends = arguments.backends or (["cuda"] if on_gpu else ["eager", "export"])
    arguments.graphs = arguments.graphs or (16 if on_gpu else 4)
    arguments.repeats = arguments.repeats or (100 if on_gpu else 3)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
