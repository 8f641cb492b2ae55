"""Finding the files of a table: one file, a folder, a glob or a URL, and their format."""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import logging
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import polars as pl

from weaklabel.errors import WeakLabelError

Format: TypeAlias = Literal["Parquet", "CSV", "JSON lines", "Kaldi"]
Source: TypeAlias = str | os.PathLike[str]

FORMATS: Final[dict[str, Format]] = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON lines",
}
# Suffixes behind the suffix. Polars reads through gzip and Zstandard itself.
_COMPRESSED: Final = frozenset({".gz", ".zst", ".bz2", ".xz"})
_KNOWN: Final = (
    "give .parquet, .csv, .tsv, .jsonl, .ndjson or .json (text also as .csv.gz, .zst, .bz2, .xz)"
)
# Two letters at least: C:// is a drive.
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# Schemes that Polars opens on every platform.
_OPENED: Final = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "http", "https", "hf"}
)

# Names of the folder of null: Hive's own, and what Polars takes for it as well.
_NULLS: Final = ("__HIVE_DEFAULT_PARTITION__", "null")

# Companions of the data that a folder may hold beside it; they are no tables.
_BESIDE: Final = frozenset({".py", ".toml", ".md", ".txt", ".html"})

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """Paths or URLs of one format, in order.

    Attributes:
        given: the path that stands for them.
        paths: each of them.
        format: of all of them.
        local: they are no URLs.
        root: below it, folders' names may hold columns: date=2026-01-01/part-0.parquet.
        rename: other names for their columns, {"old": "new"}.
    """

    given: str
    paths: tuple[str, ...]
    format: Format
    local: bool = True
    root: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)

    def name(self, name: str) -> str:
        """The name of a column from here on."""
        return self.rename.get(name, name)

    def folders(self, file: str) -> dict[str, str | None]:
        """The columns that folders' names hold, below the root, as texts."""
        parts = Path(os.path.relpath(file, self.root)).parent.parts
        texts = dict(part.split("=") for part in parts if part.count("=") == 1)
        return {name: unquote(text) if text not in _NULLS else None for name, text in texts.items()}


def is_url(path: str) -> bool:
    """Whether `path` names its scheme, as s3://bucket/name does."""
    return _URL.match(path) is not None


def find(path: Source) -> Files:
    """Find the files that a path stands for.

    Raises:
        FileNotFoundError: there are none.
        WeakLabelError: they are of several formats or an unknown one, or one has no bytes.
    """
    given = os.fspath(path)
    if url := _URL.match(given):
        if url[1].lower() == "file":
            return find(url2pathname(urlsplit(given).path))
        if url[1].lower() not in _OPENED:
            raise WeakLabelError(f"{given}: {url[1]}:// cannot be opened, copy it to a file")
        return Files(given, (given,), _format_of(given.partition("?")[0]), local=False)
    folder = Path(given)
    if (folder / "wav.scp").is_file() and (folder / "text").is_file():
        return Files(given, (str(folder / "text"),), "Kaldi")
    if (folder / "supervisions.jsonl.gz").is_file():  # Lhotse's, beside recordings of other columns
        return Files(given, (str(folder / "supervisions.jsonl.gz"),), "JSON lines")
    root = given
    if folder.is_dir():
        found = [
            str(file)
            for file in sorted(folder.rglob("*"))
            if not any(part[0] in "._" for part in file.relative_to(folder).parts)
            and file.is_file()
        ]
        tables = [file for file in found if _suffixes(file)[0] in FORMATS]
        known = _BESIDE | set(FORMATS)
        if others := [file for file in found if _suffixes(file)[0] not in known]:
            _logger.warning("not read, for they are no tables: %s", listed(others))
        if not tables:
            raise FileNotFoundError(f"no table in the folder {given}: {_KNOWN}")
    elif os.path.exists(given):
        tables, root = [given], os.path.dirname(given)
    else:
        while glob.has_magic(root):
            root = os.path.dirname(root)
        tables = sorted(file for file in glob.glob(given, recursive=True) if os.path.isfile(file))
        if not tables:
            raise FileNotFoundError(f"no file or folder {given}, and no file matches it")
    formats = {_format_of(file): file for file in reversed(tables)}
    if len(formats) > 1:
        named = ", ".join(f"{kind} ({Path(file).name})" for kind, file in sorted(formats.items()))
        raise WeakLabelError(
            f"{given} holds several formats: {named}; give a glob that selects one of them"
        )
    for file in tables:
        if os.path.getsize(file) == 0:
            raise WeakLabelError(f"{file} is empty (0 bytes): write it again, or remove it")
    return Files(given, tuple(tables), next(iter(formats)), root=root)


def _format_of(name: str) -> Format:
    try:
        return FORMATS[_suffixes(name)[0]]
    except KeyError:
        raise WeakLabelError(f"unknown format of {name}: {_KNOWN}") from None


def _suffixes(name: str) -> tuple[str, str]:
    """Suffixes of the format and of the compression, in lower case; "" for none."""
    stem, suffix = os.path.splitext(name.lower())
    return (os.path.splitext(stem)[1], suffix) if suffix in _COMPRESSED else (suffix, "")


def same_columns(first: str, wanted: list[str], file: str, held: list[str]) -> None:
    """Refuse two files that do not have the same columns, in any order."""
    if missing := sorted(set(wanted) - set(held)):
        raise WeakLabelError(f"{file} lacks column {listed(missing)}, which {first} has: add it")
    if extra := sorted(set(held) - set(wanted)):
        raise WeakLabelError(f"{first} lacks column {listed(extra)}, which {file} has: add it")


def byte_lines(file: str) -> Iterator[bytes]:
    """The lines of a file or URL as bytes, decompressed."""
    packed = _suffixes(file)[1]
    if packed == ".zst" or is_url(file):  # Python opens neither: as Polars reads them
        for line in text_lines(file).collect(engine="streaming")["line"]:
            yield (line or "").encode() + b"\n"
        return
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(packed, open)
    try:
        with opener(file, "rb") as binary:
            yield from binary
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if not packed or isinstance(error, FileNotFoundError | PermissionError):
            raise
        name = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}[packed]
        raise WeakLabelError(
            f"{file} is no {name} file, or was cut short: {error}; write it again"
        ) from error


def decoded_lines(file: str) -> Iterator[str]:
    """The lines of a file or URL as texts.

    Raises:
        WeakLabelError: a line is no UTF-8, or the file is cut short.
    """
    for number, line in enumerate(byte_lines(file), 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            wide = error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            raise WeakLabelError(
                f"{file}, line {number} is not UTF-8: byte 0x{line[error.start]:02x} at position"
                f" {error.start} of the line; convert the file (iconv -f"
                f" {'utf-16' if wide else 'latin1'} -t utf-8)"
            ) from error


def polars_source(file: str) -> Any:
    """Source for Polars to scan: the path or URL, or the bytes of what it cannot decompress."""
    if _suffixes(file)[1] in (".bz2", ".xz"):
        return b"".join(byte_lines(file))
    return file if is_url(file) else Path(file)


def text_lines(source: Any) -> pl.LazyFrame:
    """A text file's lines as they are, in the column `line`; null for an empty one."""
    return pl.scan_csv(
        source,
        has_header=False,
        new_columns=["line"],
        schema={"line": pl.String},
        separator="\x01",  # never raw in JSON; a line of a CSV that holds it ends there
        truncate_ragged_lines=True,
        quote_char=None,
        glob=False,
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the advice that follows."""
    return str(error).strip().partition("\n")[0]


def listed(names: Sequence[str]) -> str:
    """Names in quotes, at most ten of them."""
    shown = ", ".join(repr(name) for name in names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown
