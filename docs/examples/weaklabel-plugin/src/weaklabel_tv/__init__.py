"""Labeling functions for queries to a television, and an exporter: a complete weaklabel plugin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl

import weaklabel
from weaklabel import Exporter, LabelingFunction, labeling_function, reject_if, vote

UNFINISHED = re.compile(r"\b(the|a|an|to|of|and|channel)$")


@labeling_function(requires=["transcript", "duration"])
def speaking_rate(slowest: float = 0.5, fastest: float = 6.0) -> nw.Expr:
    """Reject transcripts with impossibly few or many words a second.

    Args:
        slowest: reject below this many words a second.
        fastest: reject above this many.
    """
    spaces = nw.col("transcript").str.replace_all(r"\S+", "").str.len_chars()
    rate = (spaces + 1) / nw.col("duration")
    return reject_if((rate < slowest) | (rate > fastest))


@labeling_function(requires=["transcript", "action"], family="behaviour")
def channel_tuned() -> nw.Expr:
    """Accept "channel ..." where a channel was then played, reject where it was not."""
    asked = nw.col("transcript").str.to_lowercase().str.starts_with("channel ")
    played = nw.col("action") == "play"
    return vote(accept=asked & played, reject=asked & ~played)


@labeling_function(requires=["transcript"], rowwise=True)
def unfinished(row: Mapping[str, Any]) -> int:
    """Reject a transcript that breaks off: its last word asks for another."""
    return -1 if UNFINISHED.search((row["transcript"] or "").lower()) else 0


@weaklabel.hookimpl
def weaklabel_labeling_functions(register: Callable[[LabelingFunction], None]) -> None:
    """Register the functions above."""
    for function in (speaking_rate, channel_tuned, unfinished):
        register(function)


def write_text(rows: pl.DataFrame, folder: Path) -> None:
    """One line a query: weight, tab, transcript."""
    lines = (
        f"{weight:.4f}\t{' '.join(transcript.split())}\n"
        for weight, transcript in rows.select("weight", "transcript").iter_rows()
    )
    (folder / "transcripts.tsv").write_text("".join(lines), encoding="utf-8")


@weaklabel.hookimpl
def weaklabel_exporters(register: Callable[[Exporter], None]) -> None:
    """Register the exporter `tsv`."""
    register(Exporter("tsv", "lines of weight, tab, transcript", (), write_text))
