"""`hf-cudagraph-asr bench`: how long a query takes, with graphs and without."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_cudagraph_asr.cli.console import (
    Column,
    Device,
    Dtype,
    Plan,
    Progress,
    console,
    keep_apart,
    quiet_host,
    say,
    usable,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hf_cudagraph_asr.geometry import Geometry

PLANNED = 10_000  # durations a plan is made from where none are given: others than those replayed


def bench(
    model: Annotated[
        str,
        typer.Option(
            help="A model's folder, or its name on the hub; or base, large or tiny: random weights."
        ),
    ],
    out: Annotated[Path, typer.Option(help="All figures, a JSON file; replaced if it exists.")],
    plan: Plan = None,
    durations: Annotated[
        Path | None,
        typer.Option(
            help="The traffic, as `plan` reads it. Default: log-normal, median 1.8 s, sigma 0.5."
        ),
    ] = None,
    column: Column = "duration",
    queries: Annotated[int, typer.Option(min=1, help="How many are replayed.")] = 2000,
    backends: Annotated[
        str,
        typer.Option(
            metavar="eager,cuda",
            help="Of eager, export, compile and cuda, with +mask behind it to pass the attention "
            "mask that the host's pipeline passes. auto: eager, and cuda on a GPU or export on a "
            "CPU.",
        ),
    ] = "auto",
    graphs: Annotated[
        int, typer.Option(min=1, help="How many lengths there may be, without a plan.")
    ] = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the traffic, the noise, the weights.")] = 0,
    progress: Progress = True,
) -> None:
    """Replay a traffic through the stock model and through each backend, in turns.

    The stock model is called as the host's pipeline calls it, with an attention mask, and without.
    Timed is a query alone: copy in, model, best tokens, copy out.
    """
    from hf_cudagraph_asr.files import checked

    keep_apart(checked(out), [plan, durations])
    quiet_host(progress)

    from hf_cudagraph_asr.bench import benchmark
    from hf_cudagraph_asr.plan import BucketPlan, plan_buckets

    lengths = None if plan is None else BucketPlan.load(plan)
    network, geometry = _model(model, device, dtype, seed)
    log, replayed = _traffic(durations, column, geometry, queries, seed, progress)
    report = benchmark(
        network,
        replayed,
        lengths or plan_buckets(log, graphs=graphs, model=geometry),
        backends=_backends(backends, network.device.type),
        seed=seed,
        progress=progress and sys.stderr.isatty(),
    )
    report.save(out)
    console.print(report)
    say(out)


def _backends(text: str, device: str) -> list[str]:
    if text == "auto":
        return ["eager", "cuda" if device == "cuda" else "export"]
    return [word.strip() for word in text.split(",")]


def _model(name: str, device: str, dtype: str, seed: int) -> tuple[Any, Geometry]:
    from transformers import AutoFeatureExtractor, AutoModelForCTC

    from hf_cudagraph_asr.bench import RANDOM, random_model
    from hf_cudagraph_asr.geometry import Geometry
    from hf_cudagraph_asr.loading import device_of, dtype_of, loaded

    target, kind = device_of(device), dtype_of(dtype)
    if name in RANDOM:
        model = random_model(name, seed=seed)
        model = model.to(target) if kind == "auto" else model.to(target, kind)
        return model, Geometry.of(model)
    rate = loaded(AutoFeatureExtractor, name).sampling_rate
    model = loaded(AutoModelForCTC, name, dtype=kind).eval().to(target)
    return model, Geometry.of(model, sampling_rate=rate)


def _traffic(
    source: Path | None, column: str, geometry: Geometry, queries: int, seed: int, progress: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Durations to plan for, and those that are replayed."""
    import numpy as np

    from hf_cudagraph_asr.bench import lognormal
    from hf_cudagraph_asr.durations import read_durations

    if source is None:
        return lognormal(PLANNED, seed=seed + 1), lognormal(queries, seed=seed)
    found = read_durations(source, column=column, progress=progress and sys.stderr.isatty())
    seconds = usable(found, geometry).seconds
    drawn = np.random.default_rng(seed).choice(seconds, queries, replace=len(seconds) < queries)
    return seconds, drawn
