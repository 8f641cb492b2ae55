"""How good labels are, judged by what was said, as reactions say less and less.

The only place beside `evaluate` where labels meet gold, and nothing learns from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import polars as pl
from tqdm import tqdm

from speechnet.behave import digest, log, spoken
from speechnet.label import FUNCTIONS, KEPT, QUANTILES, SETS, Labels, functions_for, labels, votes
from speechnet.settings import SEED, SOURCES, Size, results
from weaklabel import LabelingFunction
from weaklabel.files import written_beside
from weaklabel.gold import auc

NOISES = (0.0, 0.25, 0.5, 0.75, 1.0)


def feedback(size: Size) -> Path:
    """Write `feedback.json`: a grid over third parties, sets of functions and feedback noise.

    Each figure is the mean over as many logs, of other reactions to the same utterances, as `size`
    has seeds.

    Returns:
        The file, in the size's folder of results. Under "third" a list of rows for each third
        party, see `judge`; under "functions" what each labeling function is worth, see `worth`.
        Where it is there already, of the same inputs, nothing is done.
    """
    path = results(size) / "feedback.json"
    inputs = [results(size) / f"{name}.parquet" for name in ("utterances", "hypotheses")]
    about = {
        "noises": list(NOISES),
        "seeds": len(size.seeds),
        "quantiles": {name: list(cut) for name, cut in QUANTILES.items()},
        "inputs": digest([*inputs, FUNCTIONS]),
    }
    if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("about") == about:
        return path
    utterances, hypotheses = map(pl.read_parquet, inputs)
    grid: dict[str, list[dict[str, Any]]] = {}
    singles: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=len(SOURCES) * len(NOISES) * len(size.seeds), desc="feedback") as bar:
        for third in SOURCES:
            said = spoken(utterances, hypotheses, third)
            gold = said.rows.select(pl.col("utterance_id").alias("query_id"), said="text")
            rows, singly = [], []
            for noise in NOISES:
                judged: dict[str, list[dict[str, float]]] = {chosen: [] for chosen in SETS}
                for seed in size.seeds:
                    queries = log(said, noise, SEED + seed)
                    sets = {chosen: functions_for(queries, chosen) for chosen in SETS}
                    cast = votes(queries, sets["own"])
                    for chosen, functions in sets.items():
                        judged[chosen].append(judge(labels(cast, functions), gold))
                    if seed == size.seeds[0] and noise in (NOISES[0], NOISES[-1]):
                        found = worth(cast, sets["all"], sets["own"], gold)
                        singly += [{"noise": noise, **row} for row in found]
                    bar.update()
                rows += [{"noise": noise, "set": c, **_mean(rows)} for c, rows in judged.items()]
            grid[third], singles[third] = rows, singly
    with written_beside(path) as beside:
        content = {"about": about, "third": grid, "functions": singles}
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def judge(found: Labels, gold: pl.DataFrame) -> dict[str, float]:
    """How good labels are.

    Args:
        found: the labels.
        gold: query_id and `said`, what was said.

    Returns:
        queries; trusted (1 or 0); kept, the share kept; raw_wer and kept_wer, corpus WER of all
        transcripts and of those kept, raw_exact and kept_exact, the shares without an error; auc of
        the weights (0.5 where all are alike).
    """
    rows = found.rows.join(gold, on="query_id", how="inner", maintain_order="left")
    exact = (rows["transcript"] == rows["said"]).to_numpy()
    weights = rows["weight"].to_numpy()
    kept = weights >= KEPT
    return {
        "queries": rows.height,
        "trusted": float(found.trusted),
        "kept": float(kept.mean()),
        "raw_wer": _wer(rows),
        "kept_wer": _wer(rows.filter(kept)),
        "raw_exact": float(exact.mean()),
        "kept_exact": float(exact[kept].mean()) if kept.any() else 0.0,
        "auc": auc(weights, exact) or 0.5,
    }


def worth(
    cast: pl.DataFrame,
    builtin: tuple[LabelingFunction, ...],
    functions: tuple[LabelingFunction, ...],
    gold: pl.DataFrame,
) -> Iterator[dict[str, Any]]:
    """What each labeling function says, and what the example's own add to all built-in ones.

    Args:
        cast: the votes of all functions, see `label.votes`.
        builtin: weaklabel's own functions.
        functions: these and the example's.
        gold: query_id and `said`.

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


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
