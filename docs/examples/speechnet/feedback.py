"""How good labels are, judged by what was said, as reactions say less and less.

The only place beside `evaluate` where labels meet gold, and nothing learns from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import polars as pl
from tqdm import tqdm

from speechnet import files, settings
from speechnet.behave import log, spoken
from speechnet.label import KEPT, SETS, Labels, functions_for, labels, votes
from speechnet.settings import SEED, SOURCES, Size
from weaklabel import LabelingFunction
from weaklabel.gold import auc

NOISES = (0.0, 0.25, 0.5, 0.75, 1.0)


def feedback(size: Size) -> Path:
    """Write `feedback.json` and name it.

    Under "third" are rows for each third party, over feedback noise and sets of functions, see
    `judge`; each figure is the mean over as many logs, of other reactions to the same utterances,
    as `size` has seeds. Under "functions" is what each function is worth where reactions have no
    noise, see `worth`.
    """
    utterances, hypotheses = (files.read(size, name) for name in ("utterances", "hypotheses"))
    grid: dict[str, list[dict[str, Any]]] = {}
    singles: dict[str, list[dict[str, Any]]] = {}
    for third in SOURCES:
        said = spoken(utterances, hypotheses, third)
        gold = said.select(query_id="utterance_id", said="text")
        grid[third] = []
        for noise in tqdm(NOISES, f"feedback on {third}"):
            judged: dict[str, list[dict[str, float]]] = {chosen: [] for chosen in SETS}
            for seed in size.seeds:
                queries = log(said, noise, SEED + seed)
                sets = {chosen: functions_for(queries, chosen) for chosen in SETS}
                cast = votes(queries, sets["own"])
                for chosen, functions in sets.items():
                    judged[chosen].append(judge(labels(cast, functions), gold))
                if not noise and seed == size.seeds[0]:
                    found = worth(cast, sets["all"], sets["own"], gold)
                    singles[third] = [{"noise": noise, **row} for row in found]
            for chosen, rows in judged.items():
                means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
                grid[third].append({"noise": noise, "set": chosen, **means})
    path = settings.results(size) / "feedback.json"
    return files.write_json({"third": grid, "functions": singles}, path)


def judge(found: Labels, gold: pl.DataFrame) -> dict[str, float]:
    """How good labels are by gold: query_id and `said`, what was said.

    Returns:
        trusted (1 or 0); kept, the share kept; raw_wer and kept_wer, corpus WER of all transcripts
        and of those kept; auc of the weights (0.5 where all are alike).
    """
    rows = found.rows.join(gold, on="query_id", how="inner", maintain_order="left")
    exact = (rows["transcript"] == rows["said"]).to_numpy()
    kept = rows.filter(pl.col("weight") >= KEPT)
    return {
        "trusted": float(found.trusted),
        "kept": len(kept) / len(rows),
        "raw_wer": _wer(rows),
        "kept_wer": _wer(kept),
        "auc": auc(rows["weight"].to_numpy(), exact) or 0.5,
    }


def worth(
    cast: pl.DataFrame,
    builtin: tuple[LabelingFunction, ...],
    functions: tuple[LabelingFunction, ...],
    gold: pl.DataFrame,
) -> Iterator[dict[str, Any]]:
    """What each function says in `label.votes`, and what the example's add to the built-in ones.

    Yields:
        name; of its votes: accepts and rejects (shares of the queries for which it has input),
        accept_right (share of right transcripts where it accepts) and reject_wrong; and for the
        example's own the gain in "auc" and "kept_wer" of all built-in functions with it over those
        without, trusted or not.
    """
    without = judge(labels(cast, builtin, guarded=False), gold)
    beside = cast.join(gold, on="query_id", how="inner")
    right = pl.col("transcript") == pl.col("said")
    for function in functions:
        vote = pl.col(function.column)
        row = beside.select(
            accepts=(vote == 1).mean(),
            rejects=(vote == -1).mean(),
            accept_right=right.filter(vote == 1).mean(),
            reject_wrong=(~right).filter(vote == -1).mean(),
        ).row(0, named=True)
        if function.name not in {other.name for other in builtin}:
            one = judge(labels(cast, (*builtin, function), guarded=False), gold)
            row |= {f"gain_{name}": one[name] - without[name] for name in ("auc", "kept_wer")}
        yield {"name": function.name, **row}


def _wer(rows: pl.DataFrame) -> float:
    """The corpus WER of `transcript` against `said`; 0 without rows."""
    if rows.is_empty():
        return 0.0
    return float(jiwer.wer(rows["said"].to_list(), rows["transcript"].to_list()))
