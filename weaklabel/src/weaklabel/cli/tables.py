"""`weaklabel combine`, `export` and `wer`: transcripts in and out."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from weaklabel.cli.console import (
    Functions,
    Json,
    Plugins,
    Progress,
    Strict,
    app,
    console,
    counted,
    keep_apart,
    print_json,
    registry,
)
from weaklabel.errors import WeakLabelError


class Method(StrEnum):
    """How several hypotheses become one transcript."""

    rover = "rover"
    medoid = "medoid"


@app.command()
def combine(
    hypotheses: Annotated[
        str, typer.Argument(help="query_id, source, text[, confidence]: a file, folder or glob.")
    ],
    out: Annotated[Path, typer.Option(help="Transcripts: .parquet, .csv or .jsonl.")],
    sources: Annotated[
        Path | None, typer.Option(help="Write what was learned about the sources.")
    ] = None,
    method: Annotated[
        Method, typer.Option(help="rover: word by word; medoid: one hypothesis as a whole.")
    ] = Method.rover,
    normalizer: Annotated[
        str, typer.Option(help="By whose rule transcripts are spelled: none or basic.")
    ] = "none",
    rounds: Annotated[
        int, typer.Option(min=0, help="How often sources are weighed anew; 0: all alike.")
    ] = 3,
    progress: Progress = True,
) -> None:
    """Make one transcript out of several, weighing the sources without labels."""
    from weaklabel.transcripts import combine_files

    keep_apart([out, sources], [hypotheses])
    combined = combine_files(
        hypotheses,
        out,
        sources=sources,
        method=method.value,
        normalizer=normalizer,
        rounds=rounds,
        progress=None if progress else False,
    )
    best = combined.sources.sort("weight", descending=True).head(10)
    table = Table(*best.columns)
    for row in best.iter_rows():
        table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)
    more = combined.sources.height - best.height
    left = [
        f"{counted(count, noun)}{what}"
        for count, noun, what in (
            (more, "more source", ""),
            (combined.left_out, "row", " without a text left out"),
            (combined.without, "query", " without any text"),
        )
        if count
    ]
    suffix = f" ({', '.join(left)})" if left else ""
    console.print(
        f"{counted(combined.transcripts.height, 'transcript')} → {out}{suffix}",
        highlight=False,
        soft_wrap=True,
    )


class Unmatched(StrEnum):
    """What is done about queries that are not in every table."""

    error = "error"
    drop = "drop"


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.")],
    labels: Annotated[
        str | None,
        typer.Argument(help="Labels: query_id, weight. Without them, --transcripts' weights."),
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option(help="The query log: transcript, audio, duration. Without it, the labels'."),
    ] = None,
    format: Annotated[
        str, typer.Option(help="huggingface, nemo, lhotse, kaldi, or a plugin's.")
    ] = "huggingface",
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Keep this weight and more, if a trainer ignores weights."),
    ] = None,
    transcripts: Annotated[
        str | None, typer.Option(help="Take the transcripts of `weaklabel combine`.")
    ] = None,
    unmatched: Annotated[
        Unmatched, typer.Option(help="Queries that are not in every table.")
    ] = Unmatched.error,
    audio_root: Annotated[
        Path | None, typer.Option(help="What relative audio paths are relative to.")
    ] = None,
    check_audio: Annotated[bool, typer.Option(help="Each audio path must be a file.")] = True,
    read_audio: Annotated[
        bool, typer.Option("--read-audio", help="Durations from the files' headers.")
    ] = False,
    functions: Functions = None,
    plugin: Plugins = None,
    strict: Strict = None,
) -> None:
    """Write weighted transcripts as a trainer wants them."""
    from weaklabel.export import export_files

    keep_apart([out], [queries, labels, transcripts, functions])
    loaded = registry(plugin, functions, strict)
    known = loaded.exporters
    if format not in known:
        raise WeakLabelError(f"no format {format!r}: there are {', '.join(known)}")
    done = export_files(
        queries,
        labels,
        out,
        known[format],
        threshold,
        transcripts=transcripts,
        unmatched=unmatched.value,
        audio_root=audio_root,
        check_audio=check_audio,
        read_audio=read_audio,
    )
    left = [
        f"{count:,} {why}"
        for count, why in (
            (done.below_threshold, f"below {threshold}"),
            (done.dropped, "without a partner"),
        )
        if count
    ]
    suffix = f" (left out: {', '.join(left)})" if left else ""
    console.print(
        f"{counted(done.rows, 'transcript')} as {done.format} → {done.folder}{suffix}",
        highlight=False,
        soft_wrap=True,
    )


class Missing(StrEnum):
    """What is done about references without a hypothesis."""

    error = "error"
    empty = "empty"


class Extra(StrEnum):
    """What is done about hypotheses without a reference."""

    error = "error"
    ignore = "ignore"


@app.command()
def wer(
    references: Annotated[str, typer.Argument(help="What was said: lines of text, or a table.")],
    hypotheses: Annotated[str, typer.Argument(help="What was written.")],
    normalizer: Annotated[
        str, typer.Option(help="By whose rule words are the same: basic or none.")
    ] = "basic",
    kaldi: Annotated[bool, typer.Option("--kaldi", help="Lines begin with an id.")] = False,
    missing: Annotated[
        Missing, typer.Option(help="References without a hypothesis.")
    ] = Missing.error,
    extra: Annotated[Extra, typer.Option(help="Hypotheses without a reference.")] = Extra.error,
    worst: Annotated[int, typer.Option(min=0, help="How many alignments to show.")] = 5,
    as_json: Json = False,
) -> None:
    """Compare transcripts with what was said: corpus WER, CER, alignments, confusions."""
    from weaklabel.wer import compare_files, print_comparison

    found = compare_files(
        references,
        hypotheses,
        normalizer,
        kaldi=kaldi,
        missing=missing.value,
        extra=extra.value,
        worst=worst,
    )
    if as_json:
        print_json(json.dumps(found.to_dict()))
    else:
        print_comparison(found, console)
