"""NVIDIA NeMo: a manifest of JSON lines, `manifest.json`.

NeMo reads `audio_filepath`, `duration` and `text` and leaves other keys to who asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from weaklabel.formats.lines import json_line, write_lines

REQUIRED = ("audio", "duration")
_KEYS = {
    "audio": "audio_filepath",
    "duration": "duration",
    "transcript": "text",
    "weight": "weight",
    "label": "label",
    "query_id": "query_id",
    "session_id": "session_id",
}


def write(rows: pl.DataFrame, folder: Path) -> None:
    """Write `manifest.json`, in the rows' order."""
    write_lines(folder / "manifest.json", _lines(rows))


def _lines(rows: pl.DataFrame) -> Iterator[str]:
    keys = {column: key for column, key in _KEYS.items() if column in rows.columns}
    for row in rows.select(*keys).rename(keys).iter_rows(named=True):
        yield json_line(row)
