"""CrowdSpeech (Pavlichenko et al., NeurIPS 2021): LibriSpeech read, typed by seven people each.

The data (CC BY 4.0) are not part of the project: `<set>-crowd.tsv` holds what the workers typed,
`<set>-gt.txt` what was read.
"""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path

import polars as pl

FOLDER = Path(__file__).resolve().parents[3] / "shared/data/crowdspeech"
SETS = ("dev-clean", "dev-other")


def normalized(text: str) -> str:
    """Lower case, letters and apostrophes; all else separates words, as in the references."""
    letters = re.sub("[^a-z' ]", " ", text.lower().replace("\u2019", "'"))
    return " ".join(letters.split())


def load(name: str, folder: Path = FOLDER) -> tuple[pl.DataFrame, dict[str, str]]:
    """Hypotheses (query_id, source, text), normalized, and the references by query.

    A worker's second attempt at an utterance is left out, as are utterances without a reference.
    """
    with open(folder / f"{name}-gt.txt", encoding="utf-8") as lines:
        pairs = (line.rstrip("\n").split("\t") for line in lines if "\t" in line)
        references = {query: normalized(text) for query, text in pairs}
    first: dict[tuple[str, str], str] = {}
    with open(folder / f"{name}-crowd.tsv", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        next(rows)
        for query, text, worker in rows:
            if query in references:
                first.setdefault((query, worker), normalized(text))
    rows_ = [(query, worker, text) for (query, worker), text in first.items()]
    return pl.DataFrame(rows_, ["query_id", "source", "text"], orient="row"), references


def thinned(hypotheses: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """`count` hypotheses of every query, chosen at random."""
    rng = random.Random(seed)
    ordered = hypotheses.sort("query_id", "source")
    drawn = pl.Series("drawn", [rng.random() for _ in range(ordered.height)])
    kept = pl.col("drawn").rank().over("query_id") <= count
    return ordered.with_columns(drawn).filter(kept).drop("drawn")
