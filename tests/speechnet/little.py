"""A size of forty utterances: tinyvoice's recordings, with the tables of the steps before."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import recordings
from speechnet import settings
from speechnet.settings import Size

LITTLE = replace(settings.SIZES["smoke"], name="little", train=28, test=12, steps=4, batch=4)
THIRD = "whisper"


def make(folder: Path, patch: pytest.MonkeyPatch) -> Size:
    """Write a log of 28 queries and 12 test utterances, as the steps before training would."""
    patch.setattr(settings, "WORK", folder / "work")
    patch.setattr(settings, "RESULTS", folder / "results")
    results = settings.results(LITTLE)
    results.mkdir(parents=True)
    rows = []
    for number, (recording, samples) in enumerate(recordings.read()):
        part = "train" if number < LITTLE.train else "test"
        name = f"u{number:07d}"
        path = settings.audio(LITTLE, part, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(recordings.FOLDER / recording.file, path)
        rows.append({
            "utterance_id": name, "part": part, "session": number // 2, "wish": 0, "attempt": 0,
            "how": "first", "day": number // 10, "clock": 600.0 * number, "household": number,
            "person": 0, "kind": "title", "item": recording.text, "text": recording.text,
            "engine": "flite" if number % 2 else "espeak-ng", "voice": recording.voice,
            "pace": 1.0, "pitch": 1.0, "size": 1.0, "device": "hall", "noise": recording.noise,
            "snr": recording.snr, "seed": number, "duration": len(samples) / settings.RATE,
        })  # fmt: skip
    table = pl.DataFrame(rows)
    table.write_parquet(results / "utterances.parquet")
    # The third party misses the first word of every third utterance.
    heard = [
        text.split(" ", 1)[-1] if number % 3 == 0 else text
        for number, text in enumerate(table["text"])
    ]
    right = np.array([number % 3 != 0 for number in range(len(heard))])
    best = table.select("utterance_id").with_columns(
        rank=pl.lit(0), text=pl.Series(heard), confidence=pl.Series(np.where(right, 0.9, 0.4)),
        score=pl.lit(-0.3), words_min=pl.lit(0.5), seconds=pl.lit(0.2),
    )  # fmt: skip
    pl.concat(
        [best.with_columns(source=pl.lit(source)) for source in settings.SOURCES]
    ).write_parquet(results / "hypotheses.parquet")
    log = table.select(
        query_id="utterance_id", session_id=pl.col("session").cast(pl.String),
        timestamp=pl.lit(settings.START) + pl.duration(milliseconds=1000 * pl.col("clock")),
        transcript=pl.Series(heard), duration="duration",
    ).head(LITTLE.train)  # fmt: skip
    assert log["timestamp"][1] - log["timestamp"][0] == timedelta(seconds=600)
    log.write_parquet(results / f"log-{THIRD}.parquet")
    for chosen in ("three", "all", "own"):
        log.select(
            "query_id", "transcript", weight=pl.Series(np.where(right, 0.95, 0.1)[: LITTLE.train]),
            label=pl.Series(right[: LITTLE.train]).cast(pl.Int8),
        ).write_parquet(results / f"labels-{THIRD}-{chosen}.parquet")  # fmt: skip
    return LITTLE
