"""Tables in files: Parquet, CSV and JSON lines, one file, a folder, a glob or a URL.

What a file says is what the frame holds: text that only looks like a number keeps its zeros, and a
file that cannot be read as a whole is an error that names it.
"""

from __future__ import annotations

import atexit
import csv
import glob
import gzip
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, cast

import polars as pl

from weaklabel.atomic import written_beside
from weaklabel.errors import WeakLabelError
from weaklabel.schema import Kind, kind_of

Format: TypeAlias = Literal["Parquet", "CSV", "JSON lines"]
Source: TypeAlias = str | os.PathLike[str]

FORMATS: Final[dict[str, Format]] = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON lines",
}
_COMPRESSED: Final = ".gz"  # a suffix behind the suffix; Polars reads through it
_KNOWN: Final = "give .parquet, .csv, .jsonl, .ndjson or .json (CSV and JSON also as .csv.gz)"

# Schemes that Polars opens itself, on every platform.
_NATIVE: Final = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "http", "https", "hf", "file"}
)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_GLOB = re.compile(r"[*?\[]")

# Companions of the data that a folder may hold beside it; they are no tables.
_BESIDE: Final = frozenset({".py", ".toml", ".md", ".txt", ".html"})

_TIME: Final = "%Y-%m-%dT%H:%M:%S%.f%#z"
_TIME_PATTERN: Final = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)? ?([zZ]|[+-]\d\d:?(\d\d)?)$"
_INTEGER: Final = r"^(0|-?[1-9][0-9]{0,18})$"
_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
# "007" and "1.10.2" are names; "0.5" is a number.
_PADDED: Final = r"^[+-]?0[0-9]"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Files:
    """What a path stands for: paths or URLs of one format, in order."""

    given: str
    paths: tuple[str, ...]
    format: Format
    local: bool = True
    hive: bool = False  # the path holds columns: date=2026-01-01/part-0.parquet


def scan(path: Source, *, columns: Sequence[str] | None = None) -> pl.LazyFrame:
    """A table in files as a lazy frame, rows in the order of the files' names and lines.

    Args:
        path: a file, a folder (with the files in its folders; names that start with "." or "_" are
            left out), a glob such as `logs/2026-*.csv`, or a URL: what Polars opens (`s3://`,
            `gs://`, `az://`, `https://`, `hf://`) or else fsspec. The suffix names the format:
            .parquet, .csv, .jsonl, .ndjson, .json (lines); .csv.gz and .jsonl.gz as well.
        columns: take these alone, in this order.

    Parquet keeps its types. CSV and JSON lines are read through once to settle theirs. In a CSV
    `query_id` and `session_id` are integers only where none would lose something by it (leading
    zeros, more than 64 bits), else text; transcripts and other texts stay the text that they are;
    timestamps with an offset ("2026-01-01T00:00:00Z", "+02:00") become UTC, to the microsecond, and
    those without one stay text, for the validation to name; a column that nothing is known of is
    integers, numbers, true/false or timestamps where each of its values is one.

    Raises:
        FileNotFoundError: there is nothing at that path, or no table in the folder.
        WeakLabelError: the suffix is unknown, a folder mixes formats, a file is empty, cut short or
            broken, or files do not have the same columns.
        ImportError: the URL needs fsspec, which is not installed.
    """
    files = _find(path)
    with _named(files):
        match files.format:
            case "Parquet":
                frame = _scan_parquet(files)
            case "CSV":
                frame = _scan_csv(files)
            case "JSON lines":
                frame = _scan_lines(files)
    if columns is not None:
        held = frame.collect_schema().names()
        if missing := [name for name in columns if name not in held]:
            raise WeakLabelError(f"no column {_list(missing)} in {path}: it has {_list(held)}")
        frame = frame.select(columns)
    return frame


def read(path: Source, *, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """`scan`, collected.

    Raises:
        FileNotFoundError, WeakLabelError, ImportError: see `scan`.
    """
    with naming(path):
        return scan(path, columns=columns).collect()


@contextmanager
def naming(path: Source) -> Iterator[None]:
    """What Polars raises while it reads a file becomes an error that names it.

    A lazy frame meets a broken page only when it is collected, far from who knows the path.

    Raises:
        WeakLabelError: Polars failed in the block.
    """
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise WeakLabelError(f"{os.fspath(path)} cannot be read: {_first_line(error)}") from error


def write(
    frame: pl.DataFrame | pl.LazyFrame, path: Source, *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a table by its path's suffix, beside its place and then renamed.

    A lazy frame is streamed. Parquet is compressed with zstd. CSV and JSON lines hold timestamps in
    ISO 8601 with their offset; JSON has neither NaN nor infinity, which become null.

    Args:
        frame: the table.
        path: .parquet, .csv, .jsonl, .ndjson or .json; its folder exists. A file is replaced.
        metadata: texts to store in a Parquet file's own metadata.

    Returns:
        The path written.

    Raises:
        WeakLabelError: the suffix is none of these, metadata is given for another format than
            Parquet, or the format has no place for a column's type.
        FileNotFoundError, IsADirectoryError: see `weaklabel.atomic.written_beside`.
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
    if kind == "CSV":
        for name, dtype in lazy.collect_schema().items():
            if dtype.is_nested() or dtype == pl.Binary:
                raise WeakLabelError(
                    f"a CSV cannot hold column {name!r}, {dtype}: write .parquet, or leave it out"
                )
    with written_beside(target) as beside:
        try:
            match kind:
                case "Parquet":
                    lazy.sink_parquet(
                        beside, compression="zstd", metadata=dict(metadata) if metadata else None
                    )
                case "CSV":
                    lazy.sink_csv(beside, datetime_format="%Y-%m-%dT%H:%M:%S%.f%:z")
                case "JSON lines":
                    lazy.sink_ndjson(beside)
        except pl.exceptions.PolarsError as error:
            raise WeakLabelError(f"{target} cannot be written: {_first_line(error)}") from error
    return target


# Finding


def _find(path: Source) -> _Files:
    given = os.fspath(path)
    scheme = _URL.match(given)
    if scheme and scheme[1].lower() in _NATIVE:
        return _Files(given, (given,), _format_of(given), local=False)
    if scheme:
        return _find(_fetched(given))
    if os.path.isdir(given):
        found = [str(file) for file in sorted(Path(given).rglob("*")) if file.is_file()]
        found = [file for file in found if not _hidden(Path(file).relative_to(given))]
        tables = [file for file in found if _suffix(file) in FORMATS]
        ignored = set(found) - set(tables)
        ignored = {file for file in ignored if Path(file).suffix not in _BESIDE}
        if ignored:
            _logger.warning("not read, for they are no tables: %s", _list(sorted(ignored)))
        if not tables:
            raise FileNotFoundError(f"no table in the folder {given}: {_KNOWN}")
    elif os.path.exists(given):
        tables = [given]
    elif _GLOB.search(given):
        tables = sorted(file for file in glob.glob(given, recursive=True) if os.path.isfile(file))
        if not tables:
            raise FileNotFoundError(f"no file matches {given}")
    else:
        raise FileNotFoundError(f"no file or folder {given}")
    formats = {_format_of(file): file for file in reversed(tables)}
    if len(formats) > 1:
        named = ", ".join(f"{kind} ({Path(file).name})" for kind, file in sorted(formats.items()))
        raise WeakLabelError(
            f"{given} holds several formats: {named}; give a glob that selects one of them"
        )
    for file in tables:
        if os.path.getsize(file) == 0:
            raise WeakLabelError(f"{file} is empty (0 bytes): write it again, or remove it")
    hive = any("=" in part for file in tables for part in _below(given, file).parts[:-1])
    return _Files(given, tuple(tables), next(iter(formats)), hive=hive)


def _below(given: str, file: str) -> Path:
    return Path(file).relative_to(given) if os.path.isdir(given) else Path(Path(file).name)


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def _suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if suffix == _COMPRESSED else suffix


def _format_of(name: str) -> Format:
    try:
        return FORMATS[_suffix(name.partition("?")[0] if "://" in name else name)]
    except KeyError:
        raise WeakLabelError(f"unknown format of {name}: {_KNOWN}") from None


def _fetched(url: str) -> str:
    """A local copy of what fsspec finds at a URL: a file's path, or that of a folder."""
    try:
        import fsspec  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(f"{url} needs fsspec: pip install fsspec") from error
    try:
        system, inside = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise WeakLabelError(f"cannot open {url}: {error}") from error
    several = bool(_GLOB.search(inside)) or system.isdir(inside)
    if _GLOB.search(inside):
        found = system.glob(inside)
    elif several:
        found = system.find(inside)
    else:
        found = [inside] if system.exists(inside) else []
    if not found:
        raise FileNotFoundError(f"nothing at {url}")
    folder = tempfile.mkdtemp(prefix="weaklabel-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # lazy frames read it until then
    # Names alone may clash between folders; the order of the URLs is kept by a number in front.
    for index, remote in enumerate(sorted(found)):
        name = remote.rstrip("/").rpartition("/")[2]
        system.get_file(remote, os.path.join(folder, f"{index:08d}-{name}" if several else name))
    return folder if several else os.path.join(folder, os.listdir(folder)[0])


# Parquet


def _scan_parquet(files: _Files) -> pl.LazyFrame:
    if not files.local:
        return settled(pl.scan_parquet(files.given))
    schemas = {}
    for file in files.paths:
        try:
            schemas[file] = pl.read_parquet_schema(file)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise WeakLabelError(
                f"{file} is no Parquet file, or was cut short: {_first_line(error)}; write it again"
            ) from error
    first, wanted = next(iter(schemas.items()))
    for file, schema in schemas.items():
        _same_columns(first, list(wanted), file, list(schema))
        for name, dtype in schema.items():
            if not _compatible(wanted[name], dtype):
                raise WeakLabelError(
                    f"column {name!r} is {wanted[name]} in {first} and {dtype} in {file}:"
                    " convert one of them"
                )
    hive = files.hive
    if all(list(schema.items()) == list(wanted.items()) for schema in schemas.values()):
        paths = [Path(file) for file in files.paths]
        frame = pl.scan_parquet(paths, glob=False, hive_partitioning=hive)
    else:
        parts = [
            pl.scan_parquet(Path(file), glob=False, hive_partitioning=hive) for file in files.paths
        ]
        frame = pl.concat(
            [part.select(parts[0].collect_schema().names()) for part in parts],
            how="vertical_relaxed",
        )
    return settled(frame)


def _same_columns(first: str, wanted: list[str], file: str, held: list[str]) -> None:
    if missing := sorted(set(wanted) - set(held)):
        raise WeakLabelError(f"{file} lacks column {_list(missing)}, which {first} has: add it")
    if extra := sorted(set(held) - set(wanted)):
        raise WeakLabelError(f"{first} lacks column {_list(extra)}, which {file} has: add it")


def _compatible(one: Any, other: Any) -> bool:
    """Whether two types have a common one that loses nothing."""
    if one == other or pl.Null in (one, other):
        return True
    if isinstance(one, pl.Datetime) and isinstance(other, pl.Datetime):
        return one.time_zone == other.time_zone
    if one.is_integer() and other.is_integer():
        return bool(one.is_signed_integer() == other.is_signed_integer())
    return bool(one.is_float() and other.is_float())


def settled(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Known columns that are all null have the type they would have with a value."""
    types: dict[Kind, pl.DataType] = {
        "id": pl.String(),
        "text": pl.String(),
        "time": pl.Datetime("us", "UTC"),
        "share": pl.Float64(),
        "seconds": pl.Float64(),
    }
    schema = frame.collect_schema()
    nulls: dict[Any, pl.DataType] = {
        name: types[kind]
        for name, dtype in schema.items()
        if dtype == pl.Null and (kind := kind_of(name)) is not None
    }
    return frame.cast(nulls) if nulls else frame


# CSV


def _scan_csv(files: _Files) -> pl.LazyFrame:
    first: list[str] | None = None
    for file in files.paths if files.local else ():
        header = _header(file)
        if first is None:
            first = header
        else:
            _same_columns(files.paths[0], first, file, header)
    if first is None:
        raw = pl.scan_csv(files.given, infer_schema=False)
        _check_header(files.given, raw.collect_schema().names())
    else:
        parts = [pl.scan_csv(Path(file), infer_schema=False, glob=False) for file in files.paths]
        raw = pl.concat([part.select(first) for part in parts])
    return _typed(raw)


def _header(file: str) -> list[str]:
    try:
        with _opened(file) as binary:
            text = (line.decode("utf-8") for line in binary)
            header = next(csv.reader(text), [])
    except UnicodeDecodeError as error:
        raise WeakLabelError(_not_unicode(file, 1, error)) from error
    except csv.Error as error:
        raise WeakLabelError(f"{file} has no header that can be read: {error}") from error
    if header:
        header[0] = header[0].removeprefix("\ufeff")
    _check_header(file, header)
    return header


def _check_header(file: str, header: list[str]) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise WeakLabelError(f"{file} has several columns {_list(twice)}: rename them")
    if not any(kind_of(name) for name in header):
        separators = [mark for mark in ";\t|" if any(mark in name for name in header)]
        if separators:
            remedy = f"fields are separated by commas, and {separators[0]!r} stands in it"
        else:
            remedy = "write the columns' names into the first line (query_id,transcript,...)"
        raise WeakLabelError(f"{file} has no header: its first line is {header!r}; {remedy}")


def _typed(raw: pl.LazyFrame) -> pl.LazyFrame:
    """Texts as what all of a column's values are."""
    names = raw.collect_schema().names()
    sample = raw.head(1000).collect()
    # What the first rows rule out needs no look at the others.
    candidates = {
        name: [kind for kind in _candidates(name) if sample.select(_is(kind, name).all()).item()]
        for name in names
    }
    checks = [
        _is(kind, name).all().alias(f"{index} {kind}")
        for index, name in enumerate(names)
        for kind in candidates[name]
    ]
    counts = [pl.col(name).count().alias(f"{index}") for index, name in enumerate(names)]
    blank = pl.all_horizontal(pl.all().is_null())
    aggregated = raw.select(*checks, *counts, blank.sum().alias("blank"))
    found = aggregated.collect(engine="streaming").row(0, named=True)
    casts = []
    for index, name in enumerate(names):
        kinds = [kind for kind in candidates[name] if found[f"{index} {kind}"]]
        known = kind_of(name) is not None
        if kinds and (found[f"{index}"] or (known and kinds[0] != "integer")):
            casts.append(_as(kinds[0], name))
    if found["blank"]:
        _logger.warning("%d blank lines of a CSV are no rows", found["blank"])
        raw = raw.filter(~blank)
    return raw.with_columns(casts)


def _candidates(name: str) -> tuple[str, ...]:
    match kind_of(name):
        case "id":
            return ("integer",)
        case "text":
            return ()
        case "time":
            return ("time",)
        case "share" | "seconds":
            return ("known number",)
        case None:
            return ("integer", "number", "boolean", "time")


def _is(kind: str, name: str) -> pl.Expr:
    """Whether a text is one of a kind; true for null."""
    text = pl.col(name)
    match kind:
        case "integer":
            whole = text.cast(pl.Int64, strict=False).is_not_null()
            holds = text.str.contains(_INTEGER) & whole
        case "number":
            holds = text.str.contains(_NUMBER) & ~text.str.contains(_PADDED)
        case "known number":  # NaN and inf as well, for the validation to name
            holds = _as_number(name).is_not_null()
        case "boolean":
            holds = text.is_in(["true", "false"])
        case _:
            holds = text.str.contains(_TIME_PATTERN) & time_from_text(name).is_not_null()
    return text.is_null() | holds


def _as(kind: str, name: str) -> pl.Expr:
    match kind:
        case "integer":
            return pl.col(name).cast(pl.Int64)
        case "number":
            return pl.col(name).cast(pl.Float64)
        case "known number":
            return _as_number(name)
        case "boolean":
            return pl.col(name) == "true"
        case _:
            return time_from_text(name)


def _as_number(name: str) -> pl.Expr:
    return pl.col(name).str.strip_chars().cast(pl.Float64, strict=False)


def time_from_text(name: str) -> pl.Expr:
    """The column's texts in ISO 8601 with an offset as UTC, to the microsecond; others null."""
    # One spelling for chrono: "T" between, seconds present, no blank before the offset.
    text = pl.col(name).str.replace(r"^(\S{10}) ", "${1}T").str.replace(" ", "", literal=True)
    text = text.str.replace(r"^(\S{10}T\d\d:\d\d)([zZ+-])", "${1}:00${2}")
    text = text.str.replace("z$", "Z")
    return text.str.to_datetime(_TIME, time_unit="us", time_zone="UTC", strict=False)


# JSON lines


def _scan_lines(files: _Files) -> pl.LazyFrame:
    source: Any = [Path(file) for file in files.paths] if files.local else files.given
    frame = pl.scan_ndjson(source, infer_schema_length=None)
    schema = frame.collect_schema()
    lines = pl.scan_csv(
        source,
        has_header=False,
        new_columns=["line"],
        schema={"line": pl.String},
        separator="\x01",  # never raw in JSON
        quote_char=None,
    )
    # Polars turns a column of texts and numbers into texts; a value's first letter tells.
    odd = [
        pl.col("line").str.contains(_odd(name, dtype)).any().alias(f"{index}")
        for index, (name, dtype) in enumerate(schema.items())
        if dtype != pl.Null
    ]
    odd.append(pl.col("line").str.contains(r"^\s*[^{\s]").any().alias("no object"))
    if files.local and any(lines.select(odd).collect(engine="streaming").row(0)):
        _diagnose_lines(files)
    texts = [
        name
        for name, dtype in schema.items()
        if dtype == pl.String and kind_of(name) in (None, "time")
    ]
    times = [name for name in texts if _all_times(frame, name)]
    numbers = [
        name
        for name, dtype in schema.items()
        if dtype.is_integer() and kind_of(name) in ("share", "seconds")
    ]
    return settled(
        frame.with_columns(
            *(time_from_text(name) for name in times),
            *(pl.col(name).cast(pl.Float64) for name in numbers),
        )
    )


def _all_times(frame: pl.LazyFrame, name: str) -> bool:
    values = frame.select(pl.col(name)).filter(pl.col(name).is_not_null())
    if not values.head(1000).select(_is("time", name).all()).collect().item():
        return False
    return bool(values.select(_is("time", name).all()).collect(engine="streaming").item())


def _odd(name: str, dtype: Any) -> str:
    if dtype == pl.String:
        starts = r'[^"n\s]'
    elif dtype == pl.Boolean:
        starts = r"[^tfn\s]"
    elif isinstance(dtype, pl.List):
        starts = r"[^\[n\s]"
    elif isinstance(dtype, pl.Struct):
        starts = r"[^{n\s]"
    else:
        starts = r'["tf\[{]'
    # A quote within a text is escaped, so this finds keys alone.
    return re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:\s*" + starts


def _diagnose_lines(files: _Files) -> None:
    """Name the first line that is not what the lines before it are.

    Raises:
        WeakLabelError: there is such a line.
    """
    seen: dict[str, tuple[str, str]] = {}  # key: type, where
    for file in files.paths:
        with _opened(file) as binary:
            for number, line in enumerate(binary, 1):
                where = f"{file}, line {number}"
                for key, value in _object(file, number, line).items():
                    kind = _json_type(value)
                    if kind is None:
                        continue
                    before, there = seen.setdefault(key, (kind, where))
                    if kind != before:
                        shown = json.dumps(value, ensure_ascii=False)
                        shown = shown if len(shown) <= 80 else shown[:79] + "…"
                        raise WeakLabelError(
                            f"{where}: {key!r} is {kind}, {shown}, and {before} in {there}:"
                            " write one type"
                        )


def _object(file: str, number: int, line: bytes) -> dict[str, Any]:
    if not line.strip():
        return {}
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise WeakLabelError(_not_unicode(file, number, error)) from error
    except (ValueError, RecursionError) as error:
        raise WeakLabelError(
            f"{file}, line {number} is no JSON: {error}; write one object a line"
        ) from error
    if not isinstance(value, dict):
        raise WeakLabelError(
            f"{file}, line {number} is {_json_type(value) or 'null'}, expected an object: write"
            ' one a line, {"query_id": …, "transcript": …}'
        )
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value, write null")


def _json_type(value: Any) -> str | None:
    match value:
        case None:
            return None
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


# Errors


@contextmanager
def _named(files: _Files) -> Iterator[None]:
    """A failure of Polars names the file, and the line where it can be found."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        if files.local:
            for file in files.paths:
                _diagnose_bytes(file, files.format)
            if files.format == "JSON lines":
                _diagnose_lines(files)
            if files.format == "CSV":
                _diagnose_fields(files)
        what = files.paths[0] if len(files.paths) == 1 else f"one of the files of {files.given}"
        raise WeakLabelError(
            f"{what} cannot be read as {files.format}: {_first_line(error)}"
        ) from error


def _diagnose_bytes(file: str, kind: Format) -> None:
    """Name what is wrong with a file as bytes: cut short, or no Unicode.

    Raises:
        WeakLabelError: something is.
    """
    if kind == "Parquet":
        return
    try:
        with _opened(file) as binary:
            for number, line in enumerate(binary, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise WeakLabelError(_not_unicode(file, number, error)) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WeakLabelError(
            f"{file} is no gzip file, or was cut short: {error}; write it again"
        ) from error


def _diagnose_fields(files: _Files) -> None:
    """Name the first row of a CSV that has more fields than the header, or an open quote.

    Raises:
        WeakLabelError: there is such a row.
    """
    for file in files.paths:
        with _opened(file) as binary, _long_fields():
            rows = csv.reader((line.decode("utf-8") for line in binary), strict=True)
            begins, wide = 1, 0
            try:
                for row in rows:
                    wide = wide or len(row)
                    if len(row) > wide:
                        raise WeakLabelError(
                            f"{file}, line {begins} has {len(row)} fields and the header {wide}:"
                            ' put a text with commas in quotes, "like, this"'
                        )
                    begins = rows.line_num + 1
            except csv.Error as error:
                raise WeakLabelError(
                    f"{file}, line {begins}: {error}; a quote within a quoted text is written"
                    ' twice, "say ""hello"""'
                ) from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """Transcripts of more than the csv module's 128 KiB."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _opened(file: str) -> IO[bytes]:
    if file.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(file, "rb"))
    return open(file, "rb")


def _not_unicode(file: str, number: int, error: UnicodeDecodeError) -> str:
    return (
        f"{file}, line {number} is not UTF-8: byte 0x{error.object[error.start]:02x} at position"
        f" {error.start} of the line; convert the file (iconv -f latin1 -t utf-8)"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown
