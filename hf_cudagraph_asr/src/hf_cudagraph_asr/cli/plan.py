"""`hf-cudagraph-asr plan`: from a log's durations to the lengths to capture."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_cudagraph_asr.cli.console import (
    Column,
    Progress,
    console,
    counted,
    keep_apart,
    say,
    size_in_bytes,
    sizes,
    usable,
)


def plan(
    source: Annotated[
        Path,
        typer.Argument(
            help="A table (.parquet, .csv, .tsv), JSON lines or a NeMo manifest, or a folder with "
            "audio."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The plan, a JSON file; replaced if it exists.")],
    graphs: Annotated[int, typer.Option(min=1, help="How many lengths there may be.")] = 16,
    column: Column = "duration",
    model: Annotated[
        str | None,
        typer.Option(help="A model's folder or name, whose frames count. Default: Wav2Vec2's."),
    ] = None,
    batch_sizes: Annotated[
        str, typer.Option(metavar="1,4", help="Rows to capture each length for.")
    ] = "1",
    chunk: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Longer recordings come in chunks of this length."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Queries that may run at once.")] = 1,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="1GiB", help="What all pools may take.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw the plan against the traffic: .png, .svg or .pdf."),
    ] = None,
    progress: Progress = True,
) -> None:
    """Choose the input lengths that suit a log best, and print what they mean for it."""
    from hf_cudagraph_asr.durations import read_durations
    from hf_cudagraph_asr.files import checked, written_beside
    from hf_cudagraph_asr.geometry import Geometry
    from hf_cudagraph_asr.plan import plan_buckets

    keep_apart(checked(out), [source, plot])
    if plot is not None:
        keep_apart(checked(plot), [source])
    rows, limit = sizes(batch_sizes), size_in_bytes(memory_limit)
    found = read_durations(source, column=column, progress=progress and sys.stderr.isatty())
    config, rate = _config(model)
    made = plan_buckets(
        usable(found, Geometry.of(config, sampling_rate=rate)).seconds,
        graphs=graphs,
        model=config,
        sampling_rate=rate,
        batch_sizes=rows or (1,),
        memory_limit=limit,
        chunk_length_s=chunk,
        concurrency=concurrency,
    )
    with ExitStack() as stack:
        if plot is not None:
            made.plot(stack.enter_context(written_beside(plot)))
        made.save(out)
    console.print(made)
    say(f"{counted(len(found), 'query')} → {out}" + (f", {plot}" if plot is not None else ""))


def _config(model: str | None) -> tuple[Any, int | None]:
    """What knows the convolutions, and the sampling rate, which a configuration does not know."""
    if model is None:
        from hf_cudagraph_asr.geometry import Geometry

        return Geometry(), None
    from transformers import AutoConfig, AutoFeatureExtractor

    from hf_cudagraph_asr.transcriber import loaded

    return loaded(AutoConfig, model), loaded(AutoFeatureExtractor, model).sampling_rate
