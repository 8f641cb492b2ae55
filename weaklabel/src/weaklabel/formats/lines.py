"""Lines of text and of JSON that no reader takes for more than one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

# JSON lets them stand within a string; readers that split at every line end of Unicode's do not.
_LINE_ENDS = {ord(letter): f"\\u{ord(letter):04x}" for letter in "\x85\u2028\u2029"}


def json_line(record: Mapping[str, object]) -> str:
    """One JSON object without any line end; letters of every script stay readable."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines as UTF-8, each ended by a newline."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def write_gzip_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines as gzipped UTF-8: the same bytes for the same lines, whatever the hour."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as file,
    ):
        file.writelines(f"{line}\n".encode() for line in lines)
