"""Labeling functions, a label model, an exporter and a normalizer: a complete weaklabel plugin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar

import narwhals.stable.v2 as nw
import polars as pl

import weaklabel
from weaklabel import (
    MISSING,
    Exporter,
    Identity,
    Kind,
    LabelingFunction,
    Normalizer,
    labeling_function,
    reject_if,
    vote,
)
from weaklabel.models import Fitted, as_patterns
from weaklabel.text import find_normalizer
from weaklabel.votes import PREFIX

UNFINISHED = re.compile(r"\b(the|a|an|to|of|and|channel)$")


# Labeling functions


@labeling_function(requires=["transcript", "duration"])
def speaking_rate(slowest: float = 0.8, fastest: float = 6.0) -> nw.Expr:
    """Reject transcripts with impossibly few or many words a second.

    A query without a transcript or a duration has no vote: it is missing.

    Args:
        slowest: reject below this many words a second.
        fastest: reject above this many.
    """
    spaces = nw.col("transcript").str.replace_all(r"\S+", "").str.len_chars()
    rate = (spaces + 1) / nw.col("duration")
    return reject_if((rate < slowest) | (rate > fastest))


@labeling_function(requires=["transcript", "action"], nullable=["action"], family="behavior")
def channel_tuned() -> nw.Expr:
    """Accept "channel ..." where a channel was then played, reject where it was not.

    A television that reports no action has not tuned: that is evidence, so null is allowed.
    """
    asked = nw.col("transcript").str.to_lowercase().str.starts_with("channel ")
    played = (nw.col("action") == "play").fill_null(False)
    return vote(accept=asked & played, reject=asked & ~played)


@labeling_function(requires=["transcript"], rowwise=True)
def unfinished(row: Mapping[str, Any]) -> int:
    """Reject an English transcript that breaks off: its last word asks for another.

    It is not called on a null transcript. On one in another script it has nothing to look at,
    which is a missing vote; None or 0 would say that it looked and found nothing.
    """
    if not row["transcript"].isascii():
        return MISSING
    return -1 if UNFINISHED.search(row["transcript"].lower()) else 0


@weaklabel.hookimpl
def weaklabel_labeling_functions(register: Callable[[LabelingFunction], None]) -> None:
    """Register the functions above."""
    for function in (speaking_rate, channel_tuned, unfinished):
        register(function)


# A label model


@dataclass(frozen=True)
class FittedVeto(Fitted):
    """weight = the share of the functions with input that do not reject; 1 where none has any."""

    kind: ClassVar[str] = "veto"
    handles_missing: ClassVar[bool] = True  # else it would get 0 for a missing vote

    functions: tuple[str, ...]
    identities: tuple[Identity | None, ...] = ()

    def weight(self) -> nw.Expr:
        """P(right) as an expression over the columns of votes, where a missing one is null."""
        votes = [nw.col(PREFIX + name) for name in self.functions]
        rejects = reduce(add, [(vote == -1).fill_null(False).cast(nw.Int64) for vote in votes])
        inputs = reduce(add, [(~vote.is_null()).cast(nw.Int64) for vote in votes])
        return 1 - rejects / nw.when(inputs > 0).then(inputs).otherwise(1)


@dataclass(frozen=True)
class Veto:
    """Trust a transcript less with each function that rejects it. There is nothing to fit."""

    handles_missing: ClassVar[bool] = True

    def fit(self, votes: Any, *, gold: weaklabel.Gold | None = None) -> FittedVeto:
        """Take the functions of a table of votes, or of `Patterns`."""
        patterns = as_patterns(votes)
        return FittedVeto(patterns.functions, patterns.identities)


VETO = Kind("veto", Veto, FittedVeto)


@weaklabel.hookimpl
def weaklabel_label_models(register: Callable[[Kind], None]) -> None:
    """Register the model: `weaklabel fit --model veto`."""
    register(VETO)


# An exporter


def write_text(rows: pl.DataFrame, folder: Path) -> None:
    """One line a query: weight, tab, transcript."""
    lines = (
        f"{weight:.4f}\t{' '.join(transcript.split())}\n"
        for weight, transcript in rows.select("weight", "transcript").iter_rows()
    )
    (folder / "transcripts.tsv").write_text("".join(lines), encoding="utf-8")


TSV = Exporter("tsv", "lines of weight, tab, transcript", (), write_text)


@weaklabel.hookimpl
def weaklabel_exporters(register: Callable[[Exporter], None]) -> None:
    """Register the exporter: `weaklabel export --format tsv`."""
    register(TSV)


# A normalizer


def without_please(text: str) -> str:
    """The words of the basic rule without "please"."""
    words = find_normalizer("basic")(text).split()
    return " ".join(word for word in words if word != "please")


TV = Normalizer("tv", 'as basic, and "please" is left out', without_please)


@weaklabel.hookimpl
def weaklabel_normalizers(register: Callable[[Normalizer], None]) -> None:
    """Register the normalizer: `weaklabel wer --normalizer tv`."""
    register(TV)
