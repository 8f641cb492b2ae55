"""`weaklabel combine`, `export` and `wer`: transcripts in and out."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from weaklabel import cli
from weaklabel.cli import app, chosen, console, say
from weaklabel.errors import WeakLabelError, counted
from weaklabel.files import keep_apart, require_parent


@app.command()
def combine(
    hypotheses: Annotated[
        list[str],
        Argument(help="A table query_id, source, text[, confidence]; or SOURCE=FILE for each."),
    ],
    out: Annotated[Path, Option(help="Transcripts: .parquet, .csv or .jsonl.")],
    sources: Annotated[
        Path | None, Option(help="Write what was learned about the sources.")
    ] = None,
    method: Annotated[
        Literal["rover", "medoid"],
        Option(help="Combine word by word (rover), or pick one hypothesis (medoid)."),
    ] = "rover",
    normalizer: cli.Normalizer = "none",
    rounds: Annotated[
        int, Option(min=0, help="Weigh the sources anew so many times; 0: all alike.")
    ] = 3,
    family: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=SOURCE,…",
            help="Let sources that share a recognizer, or copy one, share one vote; repeatable.",
        ),
    ] = None,
    progress: cli.Progress = True,
    functions: cli.Functions = None,
    plugin: cli.Plugins = None,
) -> None:
    """Make one transcript out of several, weighing the sources without labels."""
    from rich.table import Table

    from weaklabel import tables, transcripts

    given: Any = hypotheses[0]
    if len(hypotheses) > 1:
        given = cli.pairs("combine", "SOURCE=FILE for each of several files", hypotheses)
    keep_apart([out, sources], [given] if isinstance(given, str) else [*given.values()])
    outputs = [path for path in (out, sources) if path is not None]
    for path in outputs:  # before the work, not after it
        require_parent(path)
    combined = transcripts.combine(
        given,
        method=method,
        normalizer=chosen("normalizer", normalizer, cli.registry(plugin, functions).normalizers),
        rounds=rounds,
        families=_families(family),
        progress=None if progress else False,
    )
    for path, frame in zip(outputs, (combined.transcripts, combined.sources), strict=False):
        tables.write(frame, path)
    best = combined.sources.sort("weight", descending=True).head(10)
    table = Table(*best.columns)
    for row in best.iter_rows():
        table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)
    left = [
        f"{counted(count, noun)}{what}"
        for count, noun, what in (
            (combined.sources.height - best.height, "more source", ""),
            (combined.left_out, "row", " without a text left out"),
            (combined.without, "query", " without any text"),
        )
        if count
    ]
    suffix = f" ({', '.join(left)})" if left else ""
    say(f"{counted(combined.transcripts.height, 'transcript')} → {out}{suffix}")


def _families(given: list[str] | None) -> dict[str, str]:
    families: dict[str, str] = {}
    for name, sources in cli.pairs("--family", "NAME=SOURCE,SOURCE", given).items():
        for source in filter(None, map(str.strip, sources.split(","))):
            if source in families:
                raise WeakLabelError(
                    f"--family {name}={sources}: {source!r} is in {families[source]!r} already"
                )
            families[source] = name
    return families


@app.command()
def export(
    out: Annotated[Path, Option(help="Write the files in this folder, a new one.")],
    labels: Annotated[
        str | None,
        Argument(help="Labels: query_id, weight. Without them, --transcripts' weights."),
    ] = None,
    queries: Annotated[
        str | None, Option(help="The query log, with transcript, audio and duration.")
    ] = None,
    format: Annotated[
        str, Option(help="The format: huggingface, nemo, lhotse, kaldi, or a plugin's.")
    ] = "huggingface",
    threshold: Annotated[
        float | None,
        Option(min=0, max=1, help="Keep this weight and more, if a trainer ignores weights."),
    ] = None,
    transcripts: Annotated[
        str | None, Option(help="Take the transcripts that `weaklabel combine` wrote.")
    ] = None,
    unmatched: Annotated[
        Literal["error", "drop"],
        Option(help="Refuse, or drop, queries that are not in every table."),
    ] = "error",
    audio_root: Annotated[
        Path | None, Option(help="The folder that relative audio paths start from.")
    ] = None,
    check_audio: Annotated[
        bool, Option(help="Refuse audio paths that are not files of this machine.")
    ] = True,
    read_audio: Annotated[
        bool, Option("--read-audio", help="Read durations from the audio files' headers.")
    ] = False,
    functions: cli.Functions = None,
    plugin: cli.Plugins = None,
) -> None:
    """Write weighted transcripts as a trainer wants them."""
    from weaklabel.export import export, join
    from weaklabel.tables import read

    keep_apart([out], [queries, labels, transcripts, functions])
    exporter = chosen("format", format, cli.registry(plugin, functions).exporters)
    found = [None if path is None else read(path) for path in (queries, labels, transcripts)]
    rows, dropped = join(*found, unmatched=unmatched)
    done = export(
        rows,
        out,
        exporter,
        threshold,
        audio_root=audio_root,
        check_audio=check_audio,
        read_audio=read_audio,
    )
    left = [
        f"{count:,} {why}"
        for count, why in (
            (done.below_threshold, f"below {threshold}"),
            (dropped, "without a partner"),
        )
        if count
    ]
    suffix = f" (left out: {', '.join(left)})" if left else ""
    say(f"{counted(done.rows, 'transcript')} as {format} → {out}{suffix}")


@app.command()
def wer(
    references: Annotated[
        str, Argument(help="The reference transcripts: lines of text, or a table.")
    ],
    hypotheses: Annotated[str, Argument(help="The hypotheses, in the same form.")],
    normalizer: cli.Normalizer = "basic",
    kaldi: Annotated[
        bool | None,
        Option(help="Take the first word of a line for its id. Default: where all are ids."),
    ] = None,
    missing: Annotated[
        Literal["error", "empty"],
        Option(help="Refuse references without a hypothesis, or take it for empty."),
    ] = "error",
    extra: Annotated[
        Literal["error", "ignore"],
        Option(help="Refuse hypotheses without a reference, or ignore them."),
    ] = "error",
    worst: Annotated[int, Option(min=0, help="Show so many alignments, worst first.")] = 5,
    as_json: cli.Json = False,
    functions: cli.Functions = None,
    plugin: cli.Plugins = None,
) -> None:
    """Compare transcripts with what was said: corpus WER, CER, alignments, confusions."""
    from weaklabel.wer import compare_files, print_comparison

    rule = chosen("normalizer", normalizer, cli.registry(plugin, functions).normalizers)
    with redirect_stdout(sys.stderr):  # what a plugin's normalizer prints
        found = compare_files(
            references,
            hypotheses,
            rule,
            kaldi=kaldi,
            missing=missing,
            extra=extra,
            worst=worst,
        )
    if as_json:
        cli.print_json(json.dumps(asdict(found)))
    else:
        print_comparison(found, console)
