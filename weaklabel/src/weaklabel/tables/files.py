"""Where a table lies: a file, a folder, a glob or a URL, and files of which format that is."""

from __future__ import annotations

import atexit
import glob
import gzip
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import polars as pl

from weaklabel.errors import WeakLabelError

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
    {"s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "http", "https", "hf"}
)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_GLOB = re.compile(r"[*?\[]")

# Companions of the data that a folder may hold beside it; they are no tables.
_BESIDE: Final = frozenset({".py", ".toml", ".md", ".txt", ".html"})

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """What a path stands for: paths or URLs of one format, in order."""

    given: str
    paths: tuple[str, ...]
    format: Format
    local: bool = True
    hive: bool = False  # the path holds columns: date=2026-01-01/part-0.parquet


def find(path: Source) -> Files:
    """The files that a path stands for, in order; those that Polars cannot open are fetched.

    Raises:
        FileNotFoundError: there are none.
        WeakLabelError: they are of several formats or an unknown one, or one has no bytes.
        ImportError: fsspec is needed and not installed.
    """
    given = os.fspath(path)
    scheme = _URL.match(given)
    if scheme and scheme[1].lower() == "file":
        return find(url2pathname(urlsplit(given).path))
    if scheme and scheme[1].lower() in _NATIVE:
        return Files(given, (given,), _format_of(given), local=False)
    if scheme:
        return find(_fetched(given))
    if os.path.isdir(given):
        found = [str(file) for file in sorted(Path(given).rglob("*")) if file.is_file()]
        found = [file for file in found if not _hidden(Path(file).relative_to(given))]
        tables = [file for file in found if _suffix(file) in FORMATS]
        ignored = set(found) - set(tables)
        ignored = {file for file in ignored if Path(file).suffix not in _BESIDE}
        if ignored:
            _logger.warning("not read, for they are no tables: %s", listed(sorted(ignored)))
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
    return Files(given, tuple(tables), next(iter(formats)), hive=hive)


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


def same_columns(first: str, wanted: list[str], file: str, held: list[str]) -> None:
    """Nothing where two files have the same columns, in any order.

    Raises:
        WeakLabelError: they do not.
    """
    if missing := sorted(set(wanted) - set(held)):
        raise WeakLabelError(f"{file} lacks column {listed(missing)}, which {first} has: add it")
    if extra := sorted(set(held) - set(wanted)):
        raise WeakLabelError(f"{first} lacks column {listed(extra)}, which {file} has: add it")


def diagnose_bytes(file: str, kind: Format) -> None:
    """Name what is wrong with a file as bytes: cut short, or no Unicode.

    Raises:
        WeakLabelError: something is.
    """
    if kind == "Parquet":
        return
    try:
        with opened(file) as binary:
            for number, line in enumerate(binary, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise WeakLabelError(not_unicode(file, number, error)) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WeakLabelError(
            f"{file} is no gzip file, or was cut short: {error}; write it again"
        ) from error


def lines(source: Any, **options: Any) -> pl.LazyFrame:
    """A text file's lines as they are, in the column `line`; null for an empty one."""
    return pl.scan_csv(
        source,
        has_header=False,
        new_columns=["line"],
        schema={"line": pl.String},
        separator="\x01",  # never raw in JSON; a line of a CSV that holds it ends there
        truncate_ragged_lines=True,
        quote_char=None,
        **options,
    )


def opened(file: str) -> IO[bytes]:
    """The file's bytes, decompressed."""
    if file.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(file, "rb"))
    return open(file, "rb")


def not_unicode(file: str, number: int, error: UnicodeDecodeError) -> str:
    """The message for a line that is no UTF-8."""
    return (
        f"{file}, line {number} is not UTF-8: byte 0x{error.object[error.start]:02x} at position"
        f" {error.start} of the line; convert the file (iconv -f {_encoding(error)} -t utf-8)"
    )


def first_line(error: BaseException) -> str:
    """What an error says, without the advice that follows."""
    return str(error).strip().partition("\n")[0]


def listed(names: Sequence[str]) -> str:
    """Names in quotes, at most ten of them."""
    shown = ", ".join(repr(name) for name in names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


def _encoding(error: UnicodeDecodeError) -> str:
    """What the bytes probably are: UTF-16 begins with a mark."""
    return "utf-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
