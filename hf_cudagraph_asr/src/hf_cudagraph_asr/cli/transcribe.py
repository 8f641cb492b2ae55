"""`hf-cudagraph-asr transcribe`: from recordings to a file of transcripts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_cudagraph_asr.cli.console import (
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

if TYPE_CHECKING:
    from hf_cudagraph_asr.plan import BucketPlan
    from hf_cudagraph_asr.transcript_file import TranscriptFile


def transcribe(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Files of audio, folders with audio, and manifests (.json, .jsonl: an object a "
            "line, with audio_filepath)."
        ),
    ],
    model: Annotated[str, typer.Option(help="The model's folder, or its name on the hub.")],
    out: Annotated[
        Path,
        typer.Option(help="Transcripts, a JSON object a line. What is there already is continued."),
    ],
    plan: Plan = None,
    backend: Annotated[str, typer.Option(help="auto, cuda, export, compile or eager.")] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Queries at a time. Default: the largest of the plan's, or 8 without a plan.",
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
        bool, typer.Option("--overwrite", help="Begin anew, whatever --out holds.")
    ] = False,
    progress: Progress = True,
) -> None:
    """Transcribe recordings, each as if it were alone, into a file of JSON lines.

    The lines come in the order of the queries. Interrupted, and run again with the same --out, it
    goes on where it stopped. What cannot be read or transcribed has a line with `error` in the
    place of `text`; if there are such lines, the exit code is 1.
    """
    from hf_cudagraph_asr.files import checked
    from hf_cudagraph_asr.manifest import queries_in
    from hf_cudagraph_asr.plan import BucketPlan

    keep_apart(checked(out), [*sources, plan])
    queries = queries_in(sources)
    lengths = None if plan is None else BucketPlan.load(plan)
    if lengths is None and backend not in ("auto", "eager"):
        raise ValueError(
            f"--backend {backend} captures the lengths of a plan: give --plan, a file that "
            f"`hf-cudagraph-asr plan` writes"
        )
    rows = batch_size or (8 if lengths is None else lengths.batch_sizes[-1])

    import torch

    from hf_cudagraph_asr.offline import transcribe_queries
    from hf_cudagraph_asr.provenance import provenance
    from hf_cudagraph_asr.transcriber import Transcriber
    from hf_cudagraph_asr.transcript_file import TranscriptFile

    quiet_host(progress)
    with (
        Transcriber.from_pretrained(
            model,
            plan=lengths,
            backend=backend,
            device=device,
            dtype=dtype,
            batch_sizes=_captured(lengths, rows),
            chunk_length_s=chunk or None,
        ) as transcriber,
        TranscriptFile(out, queries, provenance(transcriber), overwrite=overwrite) as file,
    ):
        before, start, heard = file.done, perf_counter(), 0.0
        if before:
            going = "all is there" if before == len(queries) else "going on"
            say(f"{out} has {before:,} of {counted(len(queries), 'query')}: {going}")
        try:
            for outcome in _shown(
                transcribe_queries(transcriber, queries[before:], batch_size=rows),
                before,
                len(queries),
                progress,
            ):
                file.write(outcome)
                heard += 0.0 if outcome.transcript is None else outcome.transcript.seconds
        except KeyboardInterrupt:
            warn(
                f"interrupted after {file.done:,} of {counted(len(queries), 'query')}: run the "
                f"same command again to go on"
            )
            raise
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"out of memory after {file.done:,} of {counted(len(queries), 'query')}: run the "
                f"same command again with a --batch-size below {rows} or a shorter --chunk"
            ) from error
        seconds = perf_counter() - start
        padding = transcriber.pool.stats().padding
    if heard:
        say(
            f"{heard:,.1f} s of audio in {seconds:,.1f} s, {heard / seconds:,.1f} times as fast"
            + (f"; {padding:.1%} padding" if lengths is not None else "")
        )
    failed = _told(file)
    say(f"{counted(len(queries), 'query')} → {out}")
    if failed:
        warn(f"{counted(failed, 'query')} could not be transcribed: see `error` in {out}")
        raise typer.Exit(1)


def _captured(plan: BucketPlan | None, rows: int) -> tuple[int, ...] | None:
    """The batch sizes to capture: the plan's, unless another one was asked for."""
    if plan is None or rows in plan.batch_sizes:
        return None
    return tuple(sorted({1, rows}))


def _shown(outcomes: Any, before: int, total: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(
        outcomes,
        desc="transcribing",
        unit="query",
        initial=before,
        total=total,
        disable=None if progress else True,  # None: unless on a terminal
    )


def _told(file: TranscriptFile) -> int:
    """How many queries failed, in this run and before; the error rate where texts are known."""
    failed, references, texts = 0, [], []
    for line in file.lines():
        if "error" in line:
            failed += 1
        elif "reference" in line:
            references.append(line["reference"])
            texts.append(line["text"])
    if references and importlib.util.find_spec("jiwer") is not None:
        import jiwer

        found = jiwer.process_words(references, texts)
        words = found.hits + found.substitutions + found.deletions
        say(
            f"word error rate {found.wer:.2%} over {counted(words, 'word')} of "
            f"{counted(len(references), 'query')} with a known text, compared as written"
        )
    elif references:
        say("for the word error rate against the manifest's texts: pip install jiwer")
    return failed
