"""`hf-cudagraph-asr transcribe`: from recordings to texts, or to a file of transcripts."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from hf_cudagraph_asr.cli import (
    Device,
    Dtype,
    Plan,
    Progress,
    counted,
    keep_apart,
    quiet_host,
    say,
    warn,
)


def transcribe(
    sources: Annotated[list[Path], typer.Argument(help="Audio files, and folders of audio files.")],
    model: Annotated[str, typer.Option(help="The model's folder, or its name on the hub.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file for the transcripts, a JSON object a line; an unfinished one is "
            "continued. Without it, the texts are printed."
        ),
    ] = None,
    plan: Plan = None,
    backend: Annotated[
        str, typer.Option(help="The backend: auto, cuda, export, compile or eager.")
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many recordings go through the model at a time. Default: the largest batch "
            "size of the plan, or 8 without a plan.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    chunk: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="Transcribe longer recordings in overlapping chunks of this length; 0: never.",
        ),
    ] = 30.0,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Discard the lines of --out and begin anew."),
    ] = False,
    progress: Progress = True,
) -> None:
    """Transcribe recordings. In float32 each text is the stock pipeline's for that recording alone.

    The texts come in the order of the recordings. Interrupted, and run again with the same --out,
    it goes on where it stopped. A recording that cannot be decoded or transcribed has a line with
    `error` in the place of `text`; if there are such lines, the exit code is 1.
    """
    from hf_cudagraph_asr.audio import recordings_in
    from hf_cudagraph_asr.files import checked
    from hf_cudagraph_asr.plan import BucketPlan

    if out is not None:
        keep_apart(checked(out), [*sources, plan])
    recordings = recordings_in(sources)
    lengths = None if plan is None else BucketPlan.load(plan)
    if lengths is None and backend not in ("auto", "eager"):
        raise ValueError(
            f"--backend {backend} captures the lengths of a plan: give --plan, a file that "
            f"`hf-cudagraph-asr plan` writes"
        )
    rows = batch_size or (8 if lengths is None else lengths.batch_sizes[-1])
    captured = None if lengths is None or rows in lengths.batch_sizes else sorted({1, rows})

    import torch
    from tqdm.auto import tqdm

    from hf_cudagraph_asr.batch import TranscriptFile, transcribe_files
    from hf_cudagraph_asr.transcriber import Transcriber

    quiet_host(progress)
    with (
        Transcriber.from_pretrained(
            model,
            plan=lengths,
            backend=backend,
            device=device,
            dtype=dtype,
            batch_sizes=captured,
            chunk_length_s=chunk or None,
        ) as transcriber,
        nullcontext()
        if out is None
        else TranscriptFile(
            out,
            recordings,
            model=model,
            dtype=str(transcriber.model.dtype).removeprefix("torch."),
            overwrite=overwrite,
        ) as file,
    ):
        done, failed = (0, 0) if file is None else (file.done, file.failed)
        total = counted(len(recordings), "recording")
        if done:
            say(f"{out} has {done:,} of {total}: going on")
        start, seconds = perf_counter(), 0.0
        results = transcribe_files(transcriber, recordings[done:], batch_size=rows)
        bar = tqdm(
            results,
            "transcribing",
            len(recordings),
            unit="file",
            initial=done,
            disable=None if progress else True,
        )
        try:
            for result in bar:
                if file is not None:
                    file.write(result)
                elif isinstance(result, str):
                    warn(result)
                else:
                    say(result.text)
                done += 1
                failed += isinstance(result, str)
                seconds += 0.0 if isinstance(result, str) else result.seconds
        except KeyboardInterrupt:
            warn(f"interrupted after {done:,} of {total}: run the same command again to go on")
            raise
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"out of memory after {done:,} of {total}: run the same command again with a "
                f"--batch-size below {rows} or a shorter --chunk"
            ) from error
    if out is not None:
        spent = perf_counter() - start
        say(f"{total} → {out}; {seconds:,.1f} s of audio in {spent:,.1f} s")
        if failed:
            warn(f"{counted(failed, 'recording')} could not be transcribed: see `error` in {out}")
    if failed:
        raise typer.Exit(1)
