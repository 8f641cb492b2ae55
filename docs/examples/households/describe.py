"""What is in a simulated log, measured: sizes, error rates, and what each signal is worth."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import jiwer
import polars as pl
from rapidfuzz.distance import Indel

from weaklabel.files import written_beside

SIMILAR = 0.6


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def signals(queries: pl.DataFrame) -> pl.DataFrame:
    """For every query which signals it shows: query_id and a column of booleans a signal.

    Null where the log does not say. The thresholds are examples, not recommendations.
    """
    # The log is in the order of time, ties included.
    following = pl.col("transcript").shift(-1).over("session_id")
    pause = pl.col("timestamp").shift(-1).over("session_id") - pl.col("timestamp")
    return queries.select(
        "query_id",
        pl.col("confidence").ge(0.95).alias("confidence ≥ 0.95"),
        pl.col("confidence").lt(0.80).alias("confidence < 0.80"),
        following.is_null().alias("last in session"),
        (pause < pl.duration(seconds=10)).fill_null(False).alias("next query within 10 s"),
        (pause < pl.duration(seconds=15)).fill_null(False).alias("next query within 15 s"),
        (
            following.str.contains(pl.col("transcript"), literal=True)
            | pl.col("transcript").str.contains(following, literal=True)
        )
        .fill_null(False)
        .alias("next query repeats, contains or shortens"),
        pl.Series("next query similar, not equal", _similar(queries)),
        pl.col("dwell").ge(120).alias("dwell ≥ 120 s"),
        pl.col("dwell").lt(20).alias("dwell < 20 s"),
        pl.col("action").is_in(["play", "select"]).alias("action play or select"),
        pl.col("action").eq("back").alias("action back"),
        pl.len().over("transcript").le(1).alias("transcript seen once"),
        pl.len().over("transcript").ge(5).alias("transcript seen ≥ 5 times"),
        pl.col("transcript").eq(pl.col("second_transcript")).alias("second ASR agrees"),
    )


def _similar(queries: pl.DataFrame) -> list[bool]:
    """Whether the session's next transcript is alike (rapidfuzz, Indel), but not the same."""
    following = queries.select(pl.col("transcript").shift(-1).over("session_id")).to_series()
    return [
        after is not None and after != text and Indel.normalized_similarity(text, after) >= SIMILAR
        for text, after in zip(queries["transcript"], following, strict=True)
    ]


def rates(queries: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    """For every signal: how often it shows given right and given wrong, and P(right | it shows)."""
    shown = signals(queries).join(truth.select("query_id", "right"), on="query_id")
    return pl.concat(
        shown.select(
            pl.lit(name).alias("signal"),
            pl.col(name).mean().alias("shows"),
            pl.col(name).filter("right").mean().alias("given right"),
            pl.col(name).filter(~pl.col("right")).mean().alias("given wrong"),
            pl.col("right").filter(pl.col(name)).mean().alias("right where it shows"),
        )
        for name in shown.columns
        if name not in ("query_id", "right")
    )


def errors(hypotheses: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    """For every source: share of exactly right transcripts and corpus WER, plain words."""
    joined = hypotheses.join(truth.select("query_id", "transcript"), on="query_id")
    return pl.DataFrame(
        {
            "source": source,
            "right": (rows["text"] == rows["transcript"]).mean(),
            "corpus WER": jiwer.wer(rows["transcript"].to_list(), rows["text"].to_list()),
        }
        for (source,), rows in joined.group_by("source", maintain_order=True)
    )


def describe(folder: Path) -> str:
    """The measured facts of the four tables in `folder`, as Markdown."""
    queries, hypotheses, gold, truth = (
        pl.read_parquet(folder / f"{name}.parquet")
        for name in ("queries", "hypotheses", "gold", "truth")
    )
    ties = queries.select(pl.struct("session_id", "timestamp").is_duplicated().sum()).item()
    day = queries.select(pl.col("timestamp").dt.strftime("%Y-%m-%d"))["timestamp"]
    summary = (
        f"{queries.height} queries in {queries['session_id'].n_unique()} sessions of"
        f" {truth['household'].n_unique()} households, {day.min()!s} to {day.max()!s};"
        f" {queries['transcript'].n_unique()} different transcripts; {gold.height} gold rows;"
        f" {ties} queries share session and timestamp with another;"
        f" {queries['confidence'].null_count()} lack a confidence,"
        f" {queries['dwell'].null_count()} a dwell."
    )
    lines = [
        summary,
        _table(errors(hypotheses, truth)),
        _table(rates(queries, truth)),
        _table(
            truth.group_by("speaker", maintain_order=True)
            .agg(pl.len().alias("queries"), pl.col("right").mean())
            .sort("speaker")
        ),
        _table(_calibration(queries, truth)),
    ]
    return "\n\n".join(lines)


def write_card(readme: Path, folder: Path) -> None:
    """Replace what stands between the two marks in `readme` by what `describe` says of `folder`."""
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    text = f"{before}{BEGIN}\n\n{describe(folder)}\n\n{END}{after}"
    with written_beside(readme) as beside:
        beside.write_text(text, encoding="utf-8")


def _calibration(queries: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    rows = queries.join(truth.select("query_id", "right"), on="query_id")
    return pl.concat(
        rows.filter(pl.col("confidence").is_between(low, high, closed="left")).select(
            pl.lit(f"{low} to {high}").alias("confidence"),
            pl.len().alias("queries"),
            pl.col("confidence").mean().alias("mean confidence"),
            pl.col("right").mean(),
        )
        for low, high in pairwise((0, 0.6, 0.7, 0.8, 0.9, 0.95, 1))
    )


def _table(frame: pl.DataFrame) -> str:
    def cell(value: object) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    rows = [frame.columns, ["---"] * frame.width, *frame.rows()]
    return "\n".join("| " + " | ".join(map(cell, row)) + " |" for row in rows)
