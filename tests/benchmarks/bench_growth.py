"""How cost grows: one thing is varied at a time, and each point is a ratio to the first one.

    python tests/benchmarks/bench_growth.py maps       # steps, tokens, resolution, families
    python tests/benchmarks/bench_growth.py dispatch   # buckets, threads
    python tests/benchmarks/bench_growth.py labels     # rows, functions, share of missing inputs

All points of a series are measured in turns, so that other work of the machine hits all of them;
a ratio is of two measurements of one round. Time is processor time, all threads together, but for
threads, where it is the clock's.

Maps: Stable Diffusion 1.5's grids and layers with a tenth of its channels (`sd15-narrow`), so that
what is spent on maps is a larger share than of the published model; families have the published
widths, one or two blocks, and smaller images than bench_tracing.py. Dispatch: programs that return
at once what they computed before, as in bench_dispatch.py. Labels: the log of bench_weaklabel.py,
its eight functions, in memory.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import figures
from figures import Figure

Costs = dict[str, float]
Points = Mapping[float, Callable[[], Costs]]

STEPS, TOKENS, SIDES = (1, 2, 4), (5, 20, 40, 75), (256, 384, 512)
# Height and width, multiples of what each family asks for.
FAMILIES = {"pixart": (384, 384), "sd3": (384, 384),
            "flux": (384, 384), "wan": (240, 416)}  # fmt: skip
BUCKETS, THREADS = (1, 4, 16, 64), (1, 2, 4, 8)
ROWS, FUNCTIONS, MISSING = (30_000, 100_000, 300_000, 1_000_000), (4, 6, 8), (0, 0.2, 0.4, 0.6)
MIDDLE = 300_000  # rows where functions and missing inputs are varied


def growth(along: str, points: Points, repeats: int) -> Iterator[Figure]:
    """The figures of a series, after a round that warms up."""
    first = next(iter(points))
    rounds = [{at: cost() for at, cost in points.items()} for _ in range(repeats + 1)][1:]
    for what in rounds[0][first]:
        for at in points:
            ratios = [costs[at][what] / costs[first][what] for costs in rounds]
            yield Figure.of(f"{what} / at {first:,}", ratios, along=along, at=at)


# --- maps


def maps(repeats: int) -> Iterator[Figure]:
    """What tracing costs, and the maps afterwards."""
    import bench_tracing
    import diffusers
    import pipelines
    import torch

    from daam_diffusers import trace

    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    name = "sd15-narrow"
    pipe = pipelines.build(name)
    words = list(itertools.islice(itertools.cycle(pipelines.WORDS), max(TOKENS)))

    def cost(steps: int = 1, tokens: int = 20, side: int = 512) -> Costs:
        options = {"prompt": " ".join(words[:tokens]), "steps": steps, "size": (side, side)}
        start = time.process_time()
        with bench_tracing.observing() as seconds, trace(pipe) as tracer:
            pipelines.generate(pipe, name, **options)
        made = time.process_time()
        for _, heat_map in tracer.heat_maps().by_word():
            heat_map.values.sum()
        return {
            "time of a traced generation": made - start,
            "time spent on maps meanwhile": sum(seconds),
            "time to make all words' maps": time.process_time() - made,
            "bytes recorded": tracer.record_bytes(),
        }

    yield from growth("steps", {n: partial(cost, steps=n) for n in STEPS}, repeats)
    yield from growth("tokens", {n: partial(cost, tokens=n) for n in TOKENS}, repeats)
    yield from growth("pixels a side", {n: partial(cost, side=n) for n in SIDES}, repeats)
    for family, size in FAMILIES.items():
        comparison, inside, _ = bench_tracing.bench_time(
            family, device="cpu", dtype=torch.float32, steps=1, pairs=repeats, size=size
        )
        series: dict[str, Any] = {"along": "family", "at": family}
        what = "time of a traced generation / of an untraced one"
        yield Figure.of(what, comparison.ratios("cpu"), margin=0.1, **series)
        pairs = zip(inside, comparison.plain, strict=True)
        what = "time spent on maps / of an untraced generation"
        yield Figure.of(what, [spent / plain.cpu for spent, plain in pairs], **series)


# --- dispatch


def dispatch(repeats: int) -> Iterator[Figure]:
    """What a call costs the host."""
    import torch
    import transformers
    from bench_dispatch import Instant, per_query
    from speech import RATE, in_samples, traffic

    from hf_cudagraph_asr import enable_cuda_graphs, plan_buckets

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    narrow = transformers.Wav2Vec2Config(
        hidden_size=48, num_attention_heads=4, intermediate_size=64, conv_dim=(16,) * 7
    )
    seconds = traffic(1000)
    with torch.inference_mode(), ExitStack() as stack:
        models, longest = {}, []
        for graphs in BUCKETS:
            models[graphs] = model = transformers.Wav2Vec2ForCTC(narrow).eval()
            plan = plan_buckets(seconds, graphs=graphs, model=model)
            stack.enter_context(enable_cuda_graphs(model, plan, backend=Instant()))
            longest.append(plan.buckets[-1].samples)
        # Those that every pool has a bucket for.
        queries = [torch.randn(1, it) for it in in_samples(seconds) if it <= min(longest)]

        def call(model: Any) -> Costs:
            return {"time of a call": per_query(model, queries, 1)}

        points = {graphs: partial(call, model) for graphs, model in models.items()}
        yield from growth("buckets", points, repeats)

        model = models[4]

        def shared(threads: int) -> Costs:
            def work(own: list[torch.Tensor]) -> None:
                with torch.inference_mode():  # which is each thread's own
                    for query in own:
                        model(query)

            with ThreadPoolExecutor(threads) as pool:
                start = time.perf_counter()
                list(pool.map(work, [queries[at::threads] for at in range(threads)]))
            return {f"clock's time of {len(queries):,} calls": time.perf_counter() - start}

        yield from growth("threads", {n: partial(shared, n) for n in THREADS}, repeats)

        stock = transformers.Wav2Vec2ForCTC(narrow).eval()
        short = [torch.randn(1, RATE // 2)] * 50
        ratios = [per_query(model, short, 3) / per_query(stock, short, 3) for _ in range(repeats)]
        what = (
            "time of a call on programs that compute nothing / of the stock call "
            "(12 layers 48 wide, half a second)"
        )
        yield Figure.of(what, ratios)


# --- labels


def labels(repeats: int) -> Iterator[Figure]:
    """Votes, a fit and labels of a log in memory."""
    import numpy as np
    import polars as pl
    from bench_weaklabel import NULLS, functions, make_log

    from weaklabel import LabelModel, Patterns, WeakLabelWarning, apply

    warnings.simplefilter("ignore", WeakLabelWarning)  # four functions are few
    with tempfile.TemporaryDirectory() as folder:
        make_log(Path(folder), max(ROWS))
        log = pl.read_parquet(Path(folder, "queries.parquet"))
        right = pl.read_parquet(Path(folder, "truth.parquet"))["right"].to_numpy()
    every = functions()

    def cost(log: pl.DataFrame, count: int = len(every)) -> Costs:
        used, times = every[:count], [time.process_time()]
        votes = apply(used, log)
        times.append(time.process_time())
        patterns = Patterns.count(votes, {one.name: one.family for one in used})
        model = LabelModel().fit(patterns)
        times.append(time.process_time())
        weight = model.label(votes)["weight"].to_numpy()
        times.append(time.process_time())
        applied, fitted, labeled = (b - a for a, b in itertools.pairwise(times))
        return {
            "time for votes": applied,
            "time to count and fit": fitted,
            "time for labels": labeled,
            "labels that are wrong": float(((weight >= 0.5) != right[: len(weight)]).mean()),
        }

    yield from growth("rows", {n: partial(cost, log.head(n)) for n in ROWS}, repeats)
    middle = log.head(MIDDLE)
    yield from growth("functions", {n: partial(cost, middle, n) for n in FUNCTIONS}, repeats)
    draw, points = np.random.default_rng(0), {}
    for share in MISSING:
        kept = (
            pl.when(pl.Series(draw.random(MIDDLE) >= share)).then(column).alias(column)
            for column in NULLS
        )
        points[share] = partial(cost, middle.with_columns(kept))
    yield from growth("share of missing inputs", points, repeats)


SUBJECTS = {
    "maps": (maps, ("daam_diffusers", "diffusers", "torch")),
    "dispatch": (dispatch, ("hf_cudagraph_asr", "transformers", "torch")),
    "labels": (labels, ("weaklabel", "polars")),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each series")
    figures.add_option(parser)
    options = parser.parse_args()
    measure, packages = SUBJECTS[options.subject]
    found = []
    for figure in measure(options.repeats):
        found.append(figure)
        where = f"{figure.along} {figure.at}: " if figure.along else ""
        print(f"{where}{figure.what}: {figure.median:.3f} ({figure.low:.3f} to {figure.high:.3f})")
    figures.save(f"growth-{options.subject}", found, options.save, packages=packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
