"""Lhotse: `recordings.jsonl.gz` and `supervisions.jsonl.gz`, the weight in `custom`.

recordings = RecordingSet.from_file(folder / "recordings.jsonl.gz")
supervisions = SupervisionSet.from_file(folder / "supervisions.jsonl.gz")
cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
cuts[0].supervisions[0].custom["weight"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from weaklabel.audio import is_url
from weaklabel.formats.lines import json_line, write_gzip_lines

REQUIRED = ("audio", "duration", "sampling_rate")


def write(rows: pl.DataFrame, folder: Path) -> None:
    """Write both manifests, in the rows' order; ids are the query_id, speakers the session_id.

    Recordings have one channel unless the column `channels` counts them.
    """
    write_gzip_lines(folder / "recordings.jsonl.gz", map(_recording, _each(rows)))
    write_gzip_lines(folder / "supervisions.jsonl.gz", map(_supervision, _each(rows)))


def _each(rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    return rows.iter_rows(named=True)


def _samples(row: Mapping[str, Any]) -> int:
    return int(row["duration"] * row["sampling_rate"] + 0.5)


def _channels(row: Mapping[str, Any]) -> list[int]:
    return list(range(row.get("channels") or 1))


def _recording(row: Mapping[str, Any]) -> str:
    source = {
        "type": "url" if is_url(row["audio"]) else "file",
        "channels": _channels(row),
        "source": row["audio"],
    }
    return json_line(
        {
            "id": str(row["query_id"]),
            "sources": [source],
            "sampling_rate": row["sampling_rate"],
            "num_samples": _samples(row),
            "duration": _samples(row) / row["sampling_rate"],
            "channel_ids": _channels(row),
        }
    )


def _supervision(row: Mapping[str, Any]) -> str:
    channels = _channels(row)
    supervision = {
        "id": str(row["query_id"]),
        "recording_id": str(row["query_id"]),
        "start": 0.0,
        "duration": _samples(row) / row["sampling_rate"],
        "channel": channels[0] if len(channels) == 1 else channels,
        "text": row["transcript"],
        "custom": {"weight": row["weight"]},
    }
    if row.get("session_id") is not None:
        supervision["speaker"] = str(row["session_id"])
    return json_line(supervision)
