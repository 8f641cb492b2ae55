"""Tables in files: Parquet, CSV and JSON lines, one file, a folder, a glob or a URL.

What a file says is what the frame holds: text that only looks like a number keeps its zeros, and a
file that cannot be read as a whole is an error that names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import narwhals.stable.v2 as nw
import polars as pl
from narwhals.exceptions import NarwhalsError

from weaklabel.errors import WeakLabelError
from weaklabel.files import written_beside
from weaklabel.schema import renamed, settled
from weaklabel.tables.files import (
    FORMATS,
    Files,
    Format,
    Source,
    find,
    first_line,
    same_columns,
    text_lines,
)
from weaklabel.tables.text import (
    diagnose_fields,
    diagnose_lines,
    scan_csv,
    scan_lines,
    typed_folders,
)

# The column of the path of a row's file, on the way.
_FILE: Final = "__weaklabel_file"


def scan_parquet(files: Files) -> pl.LazyFrame:
    """The files as one frame; refuses a broken footer, and files of other columns or types."""
    if not files.local:
        return renamed(pl.scan_parquet(files.given), files.rename)
    # Polars itself would read the names of folders above the one that was given as well.
    scanned: Any = partial(pl.scan_parquet, glob=False, hive_partitioning=False)
    folders = {file: files.folders(file) for file in files.paths}
    scans, schemas = {}, {}
    for file, texts in folders.items():
        held = (pl.lit(text, pl.String).alias(name) for name, text in texts.items())
        scans[file] = scanned(Path(file)).with_columns(held)
        try:
            schemas[file] = scans[file].collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise WeakLabelError(
                f"{file} is no Parquet file, or was cut short: {first_line(error)}; write it again"
            ) from error
    first, wanted = next(iter(schemas.items()))
    for file, schema in schemas.items():
        same_columns(first, list(wanted), file, list(schema))
        for name, dtype in schema.items():
            if not _compatible(wanted[name], dtype):
                raise WeakLabelError(
                    f"column {name!r} is {wanted[name]} in {first} and {dtype} in {file}:"
                    " convert one of them"
                )
    if len({(*schema.items(), *folders[file]) for file, schema in schemas.items()}) == 1:
        paths = [Path(file) for file in folders]
        by = pl.col(_FILE).replace_strict
        held = (
            by([path.as_posix() for path in paths], [each[name] for each in folders.values()])
            .cast(pl.String)
            .alias(name)
            for name in texts
        )
        frame = scanned(paths, include_file_paths=_FILE).with_columns(held).drop(_FILE)
    else:
        parts = [part.select(list(wanted)) for part in scans.values()]
        frame = pl.concat(parts, how="vertical_relaxed")
    return typed_folders(renamed(frame, files.rename), [files.name(name) for name in texts])


def _compatible(one: Any, other: Any) -> bool:
    """Whether two types have a common one that loses nothing."""
    if one == other or pl.Null in (one, other):
        return True
    if isinstance(one, pl.Datetime) and isinstance(other, pl.Datetime):
        return one.time_zone == other.time_zone
    if one.is_integer() and other.is_integer():
        return bool(one.is_signed_integer() == other.is_signed_integer())
    return bool(one.is_float() and other.is_float())


_ISO: Final = "%Y-%m-%dT%H:%M:%S%.f%:z"


def scan(path: Source, *, rename: Mapping[str, str] | None = None) -> pl.LazyFrame:
    """A table in files as a lazy frame, rows in the order of the files' names and lines.

    Args:
        path: a file, a folder (with the files in its folders; names that start with "." or "_" are
            left out), a glob such as `logs/2026-*.csv`, or a URL that Polars opens (`s3://`,
            `gs://`, `az://`, `https://`, `hf://`). The suffix names the format: .parquet, .csv,
            .tsv, .jsonl, .ndjson, .json; text also with .gz, .zst, .bz2 or .xz behind it. What
            `weaklabel export` writes is read as well: the folders of Kaldi, Lhotse and Hugging
            Face, and NeMo's manifests.
        rename: other names for columns, {"old": "new"}; what a column is, its new name says.

    Parquet keeps its types. CSV and JSON are read through once to settle theirs, and so are columns
    in the names of folders below the one given or a glob's fixed part (`day=2026-01-01/1.parquet`),
    which may be dates, too. In a CSV, of fields between commas, semicolons, tabs or bars,
    `query_id` and `session_id` are integers only where none would lose something by it (leading
    zeros, more than 64 bits), else text; transcripts and other texts stay the text that they are;
    timestamps with an offset ("2026-01-01T00:00:00Z", "+02:00") become UTC, to the microsecond, and
    those without one stay text, for the validation to name; a column that nothing is known of is
    integers, numbers, true/false or timestamps where each of its values is one. JSON is one object
    a line, or an array of objects.

    Raises:
        FileNotFoundError: there is nothing at that path, or no table in the folder.
        WeakLabelError: the suffix is unknown, a folder mixes formats, a file is empty, cut short or
            broken, files do not have the same columns, or a column to be renamed is not there.
    """
    files = replace(find(path), rename=rename or {})
    try:
        match files.format:
            case "Parquet":
                return settled(scan_parquet(files))
            case "CSV":
                return scan_csv(files)
            case "JSON lines":
                return _exported(scan_lines(files), files)
            case "Kaldi":
                return renamed(_kaldi(Path(files.given)), rename)
    except (FileNotFoundError, PermissionError):
        raise
    except (pl.exceptions.PolarsError, OSError) as error:
        if files.local and files.format == "JSON lines":
            diagnose_lines(files)
        if files.local and files.format == "CSV":
            diagnose_fields(files)
        what = files.paths[0] if len(files.paths) == 1 else f"one of the files of {files.given}"
        raise WeakLabelError(
            f"{what} cannot be read as {files.format}: {first_line(error)}"
        ) from error


_KALDI: Final = {
    "transcript": "text",
    "audio": "wav.scp",
    "duration": "utt2dur",
    "weight": "utt2weight",
    "session_id": "utt2spk",
}


def _exported(frame: pl.LazyFrame, files: Files) -> pl.LazyFrame:
    """A manifest of NeMo's or of Lhotse's in the words of a query log; other frames as they are."""
    schema = frame.collect_schema()
    if "audio_filepath" in schema:
        names = {"audio_filepath": "audio", "text": "transcript"}
    elif {"id", "recording_id", "start", "text"} <= set(schema):
        names = {"id": "query_id", "text": "transcript", "speaker": "session_id"}
        custom = schema.get("custom")
        if isinstance(custom, pl.Struct) and "weight" in (field.name for field in custom.fields):
            frame = frame.with_columns(pl.col("custom").struct.field("weight"))
        recordings = Path(files.given, "recordings.jsonl.gz")
        if files.local and recordings.is_file():
            source = pl.col("sources").list.first().struct.field("source")
            audio = scan_lines(find(recordings)).select(recording_id="id", audio=source)
            frame = frame.join(audio, on="recording_id", how="left", maintain_order="left")
    else:
        return frame
    return frame.rename({old: new for old, new in names.items() if new not in schema}, strict=False)


def _kaldi(folder: Path) -> pl.LazyFrame:
    """A Kaldi data folder; names that `weaklabel export` made are taken apart again."""
    halves = pl.col("line").str.splitn(" ", 2)
    tables = [
        text_lines(folder / file).select(
            halves.struct[0].alias("query_id"), halves.struct[1].fill_null("").alias(column)
        )
        for column, file in _KALDI.items()
        if (folder / file).is_file()
    ]
    frame = tables[0]
    for table in tables[1:]:
        frame = frame.join(table, on="query_id", how="left", maintain_order="left")
    held = frame.collect_schema()
    if {"weight", "session_id"} <= set(held):  # named speaker-query; other bytes are written =XX
        name, speaker = pl.col("query_id"), pl.col("session_id")
        frame = frame.with_columns(
            name.str.strip_prefix(speaker + "-"), pl.when(speaker != name).then(speaker)
        ).with_columns(
            pl.col("query_id", "session_id").map_elements(
                lambda text: unquote(text.replace("=", "%")), return_dtype=pl.String
            )
        )
    return frame.cast({name: pl.Float64 for name in ("duration", "weight") if name in held})


def read(path: Source) -> pl.DataFrame:
    """`scan`, collected.

    Raises:
        FileNotFoundError, WeakLabelError: see `scan`.
    """
    with naming(path):
        return scan(path).collect()


def to_polars(frame: Any) -> pl.DataFrame:
    """Any frame that narwhals knows, as a frame of Polars; a lazy one is collected.

    Raises:
        WeakLabelError: a column holds values of several types, as those of pandas may.
        TypeError: `frame` is no frame.
    """
    known = nw.from_native(frame, pass_through=False)
    eager = known.collect(backend="polars") if isinstance(known, nw.LazyFrame) else known
    try:
        return eager.to_polars()
    except (TypeError, ValueError) as error:  # as pyarrow's own errors are
        # Arrow has no type for such a column, and does not say which one it is.
        for name in eager.columns:
            try:
                eager.select(name).to_polars()
            except (TypeError, ValueError) as reason:
                raise WeakLabelError(
                    f"column {name!r} holds values of several types: {first_line(reason)}; give all"
                    " of them one type"
                ) from error
        raise


def write(
    frame: pl.DataFrame | pl.LazyFrame, path: Source, *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a table by its path's suffix, beside its place and then renamed.

    Parquet is streamed and compressed with zstd; other formats are collected first. CSV and JSON
    lines hold timestamps in ISO 8601 with their offset; JSON has neither NaN nor infinity, which
    become null.

    Args:
        frame: the table. What Polars raises while it computes a lazy one stays as it is, for
            `naming` to name the file that it reads.
        path: .parquet, .csv, .jsonl, .ndjson or .json; its folder exists. A file is replaced.
        metadata: texts to store in a Parquet file's own metadata.

    Returns:
        The path written.

    Raises:
        WeakLabelError: the suffix is none of these, metadata is given for another format than
            Parquet, or the format has no place for a column's type.
        FileNotFoundError, IsADirectoryError: see `weaklabel.files.written_beside`.
        OSError: the disk is full, or refuses; nothing is left behind.
    """
    target = Path(path)
    kind = FORMATS.get(target.suffix)
    if kind is None:
        raise WeakLabelError(
            f"cannot write {target.name}: give a name that ends in .parquet, .csv or .jsonl"
        )
    if metadata and kind != "Parquet":
        raise WeakLabelError(f"{kind} files have no metadata: name {target.name} .parquet")
    lazy = frame.lazy()
    for name, dtype in lazy.collect_schema().items():
        if not _holds(kind, dtype):
            raise WeakLabelError(
                f"{kind} cannot hold column {name!r}, {dtype}: write .parquet, or leave it out"
            )
    with written_beside(target) as beside:
        sunk = isinstance(frame, pl.DataFrame)
        try:
            if kind == "Parquet":
                lazy.sink_parquet(
                    beside, compression="zstd", metadata=dict(metadata) if metadata else None
                )
                sunk = True
                # A file cut short has no footer: better now than when it is read.
                pl.scan_parquet(beside, glob=False).collect_schema()
            else:
                _write_text(lazy.collect(engine="streaming"), beside, kind, target.suffix)
        except pl.exceptions.PolarsError as error:
            # Where the system refuses, Polars gives its number; else the frame cannot be computed.
            if not sunk and "os error" not in str(error):
                raise
            raise WeakLabelError(f"{target} cannot be written: {first_line(error)}") from error
    return target


@contextmanager
def naming(*paths: Any) -> Iterator[None]:
    """Context in which what Polars raises becomes an error that names the file it reads.

    A lazy frame meets a broken page only when it is collected, far from who knows the path.

    Args:
        paths: of the files; where none is a path, errors stay as they are.

    Raises:
        WeakLabelError: Polars failed in the block.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, NarwhalsError) as error:
        given = [os.fspath(path) for path in paths if isinstance(path, str | os.PathLike)]
        if not given:
            raise
        raise WeakLabelError(f"{unreadable(*given)} cannot be read: {first_line(error)}") from error


def unreadable(*paths: str) -> str:
    """The first Parquet file at some paths that cannot be read; the paths where none is found."""
    files = [file for found in map(find, paths) if found.local for file in found.paths]
    for file in files if len(files) > 1 else ():
        if file.lower().endswith(".parquet"):
            try:
                pages = pl.scan_parquet(Path(file), glob=False).select(pl.all().count())
                pages.collect(engine="streaming")
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
                return file
    return paths[0] if len(paths) == 1 else f"one of {', '.join(paths)}"


def _holds(kind: Format, dtype: pl.DataType) -> bool:
    if kind == "CSV":
        return not dtype.is_nested() and dtype not in (pl.Binary, pl.Object, pl.Duration)
    return dtype != pl.Object and (kind == "Parquet" or dtype != pl.Binary)


def _write_text(frame: pl.DataFrame, path: Path, kind: Format, suffix: str) -> None:
    # Not sink_csv or write_csv: several versions of Polars end a file that no longer fits on the
    # disk without an error, even into an open file of Python's. Python's own write tells.
    zoned = [
        pl.col(name).dt.to_string(_ISO)
        for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.Datetime) and dtype.time_zone
    ]
    with open(path, "wb") as file:
        for number, part in enumerate(frame.iter_slices(50_000) if len(frame) else [frame]):
            if kind == "CSV":
                text = part.with_columns(zoned).write_csv(
                    include_header=not number, separator="\t" if suffix == ".tsv" else ","
                )
            else:
                text = part.write_ndjson()
            file.write(text.encode())
