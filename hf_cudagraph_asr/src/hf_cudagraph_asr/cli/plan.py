"""`hf-cudagraph-asr plan`: from a log's durations to the lengths to capture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_cudagraph_asr.cli import counted, say, sizes, warn
from hf_cudagraph_asr.extras import imported

if TYPE_CHECKING:
    from hf_cudagraph_asr.plan.partition import Floats

FORMATS = {".parquet": "Parquet", ".csv": "CSV"}
FORMATS |= dict.fromkeys((".json", ".jsonl", ".ndjson"), "JSON, an object a line")


def plan(
    source: Annotated[
        Path,
        typer.Argument(
            help="The log: a table (.parquet, .csv), JSON lines (.jsonl), a NeMo manifest "
            "(.json), or a folder with audio, which is not decoded unless that takes ffmpeg."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The plan, a JSON file; replaced if it exists.")],
    graphs: Annotated[int, typer.Option(min=1, help="How many lengths may be captured.")] = 16,
    column: Annotated[str, typer.Option(help="The column or key with the seconds.")] = "duration",
    model: Annotated[
        str | None, typer.Option(help="A model's folder or name. Default: Wav2Vec2's frames.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Rows of each capture, such as 1,4.")] = "1",
    chunk: Annotated[
        float | None,
        typer.Option(help="Seconds of the chunks that longer recordings are cut into."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="How many queries may run at once.")] = 1,
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB of memory that all pools together may take.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A .png, .svg or .pdf to draw it in.")] = None,
) -> None:
    """Choose the input lengths that suit a log best, and print what they mean for it."""
    import numpy as np

    from hf_cudagraph_asr.audio import recordings_in
    from hf_cudagraph_asr.files import checked, written_beside
    from hf_cudagraph_asr.geometry import Geometry
    from hf_cudagraph_asr.plan import plan_buckets

    read = recordings_in([source])
    for file in [out] if plot is None else [out, plot]:
        checked(file, read, model)
    if plot is not None and plot.resolve() == out.resolve():
        raise ValueError(f"--out and --plot are both {out}: give two files")
    rows = sizes(batch_sizes) or (1,)
    files = of_headers(source, read) if source.is_dir() else {}
    seconds = np.array([*files.values()]) if files else of_table(source, column)
    config = rate = None
    if model is not None:
        from transformers import AutoConfig, AutoFeatureExtractor

        from hf_cudagraph_asr.transcriber import loaded

        config = loaded(AutoConfig, model)
        rate = getattr(loaded(AutoFeatureExtractor, model), "sampling_rate", None)
    geometry = Geometry() if config is None else Geometry.of(config, sampling_rate=rate)
    shortest = geometry.receptive_field / geometry.sampling_rate
    usable = seconds[seconds >= shortest]
    for name, its in files.items():
        if its < shortest:
            warn(f"not counted: {name} has {its:g} s, less than the {shortest:g} s of a frame")
    if (short := len(seconds) - len(usable)) and not files:
        text = f"{counted(short, 'duration')} below the {shortest:g} s of a frame not counted, down"
        warn(f"{text} to {seconds.min():g} s: if they are minutes, convert them to seconds")
    made = plan_buckets(
        usable,
        graphs=graphs,
        model=config,
        sampling_rate=rate,
        batch_sizes=rows,
        memory_limit=None if memory_limit is None else memory_limit * 2**30,
        chunk_length_s=chunk,
        concurrency=concurrency,
    )
    with nullcontext() if plot is None else written_beside(plot) as picture:
        if picture is not None:
            made.plot(picture)
        made.save(out)
    say(made.table())
    say(f"{counted(len(usable), 'query')} → {out}" + (f", {plot}" if plot is not None else ""))


def of_headers(folder: Path, files: Sequence[str]) -> dict[str, float]:
    """The seconds of a folder's files of audio, by their headers; warns of what cannot be read."""
    from tqdm.auto import tqdm

    from hf_cudagraph_asr.audio import AudioError, opened

    seconds: dict[str, float] = {}
    unread: list[str] = []
    for file in tqdm(files, "headers", unit="file", disable=None):
        try:
            with opened(file, 16_000) as (decoder, _, frames, _):
                seconds[file] = frames / decoder.samplerate
        except (AudioError, OSError) as error:  # both name the file
            unread.append(str(error))
    if not seconds:
        reason = f"{counted(len(unread), 'file')}: {unread[0]}"
        raise ValueError(f"no file of audio in {folder} can be read: {reason}")
    for reason in unread:
        warn(f"not counted: {reason}")
    return seconds


def of_table(path: Path, column: str) -> Floats:
    """The seconds in a column of a table or of JSON lines; warns of rows without a number."""
    ending = path.suffix.lower()
    if ending not in FORMATS:
        accepted = f"give a folder with audio, or a file that ends in {', '.join(FORMATS)}"
        raise ValueError(f"{path} is no log of durations: {accepted}")
    pl = imported("polars", "tables", f"reading {ending}")
    readers = {".parquet": pl.scan_parquet, ".csv": pl.scan_csv}
    scan = readers.get(ending, partial(pl.scan_ndjson, infer_schema_length=None))
    try:
        values = scan(path).select(column).collect()[column]
    except pl.exceptions.ColumnNotFoundError as error:
        raise ValueError(f"{path} has no {column!r}, choose a --column: {error}") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(f"{path} cannot be read as {FORMATS[ending]}: {error}") from error
    if not values.dtype.is_numeric() or values.null_count() == len(values):
        raise ValueError(f"{column!r} of {path} holds {values.dtype}: expected seconds as numbers")
    numbers = values.cast(pl.Float64)
    found = numbers.filter(numbers.is_finite())  # null is not
    if missing := len(values) - len(found):
        warn(f"{counted(missing, 'row')} without a number of seconds: not counted")
    seconds: Floats = found.to_numpy()
    return seconds
