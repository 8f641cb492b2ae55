"""What the label model loses where its functions of scope "log" see a day instead of two weeks.

    python tests/benchmarks/bench_log_wide.py

On the simulated log of docs/examples/households: the model is fitted on all 14 days with the
built-in functions, then labels all of it, and each day alone: without a reference log, with the 14
days as the reference, and with the first week as the reference. Printed are the share of labels
that are right (accept from a weight of .5 on), the logarithmic loss, and the votes of `rarity`; and
the same for `rarity` as it was, by counts that do not know of the log's size.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import polars as pl

from weaklabel import LabelModel, apply, labeling_function, occurrences, vote
from weaklabel import functions as built_in
from weaklabel.labeling import LabelingFunction

HOUSEHOLDS = Path(__file__).parents[2] / "docs" / "examples" / "households"


@labeling_function(requires=["transcript"], scope="log", name="rarity")
def by_counts(rare: int = 1, common: int = 20) -> nw.Expr:
    """Accept and reject by how often a transcript occurs, however large the log is."""
    count = occurrences("transcript")
    return vote(accept=count >= common, reject=count <= rare)


def judged(labels: pl.DataFrame, truth: pl.DataFrame) -> tuple[float, float]:
    """The share of labels that are right, and the logarithmic loss of the weights."""
    both = labels.join(truth, on="query_id")
    weight, right = both["weight"].to_numpy(), both["right"].to_numpy()
    given = np.where(right, weight, 1 - weight)
    return float(((weight >= 0.5) == right).mean()), float(-np.log(np.maximum(given, 1e-9)).mean())


def measured(
    functions: list[LabelingFunction], queries: pl.DataFrame, truth: pl.DataFrame
) -> list[dict[str, Any]]:
    """A row for each way to apply the functions."""
    days = [day for _, day in queries.group_by(pl.col("timestamp").dt.date(), maintain_order=True)]
    week = pl.concat(days[:7])
    ways = {
        "14 days at once": [apply(functions, queries)],
        "day by day": [apply(functions, day) for day in days],
        "day by day, the 14 days as reference": [
            apply(functions, day, reference=queries) for day in days
        ],
        "day by day, the first week as reference": [
            apply(functions, day, reference=week) for day in days
        ],
    }
    model = LabelModel().fit(ways["14 days at once"][0], functions=functions)
    rows = []
    for way, parts in ways.items():
        votes = pl.concat(parts)
        right, loss = judged(model.label(votes), truth)
        counts = votes["lf:rarity"].value_counts().rows()
        cast = {1: "accept", 0: "silent", -1: "reject", None: "missing"}
        rows.append({"way": way, "right": right, "loss": loss} | {cast[v]: n for v, n in counts})
    return rows


def main() -> None:
    """Print a table for each definition of rarity."""
    warnings.simplefilter("ignore")
    queries = pl.read_parquet(HOUSEHOLDS / "queries.parquet")
    truth = pl.read_parquet(HOUSEHOLDS / "truth.parquet").select("query_id", "right")
    others = [
        built_in.session_position,
        built_in.asr_confidence,
        built_in.rapid_repetition,
        built_in.dwell,
        built_in.follow_up_action,
        built_in.rephrasing,
        built_in.second_asr_agreement,
    ]
    for title, rarity in (("by shares", built_in.rarity), ("by counts, as before", by_counts)):
        print(f"rarity {title}")
        for row in measured([*others, rarity], queries, truth):
            cast = ", ".join(f"{name} {row[name]}" for name in list(row)[3:])
            print(f"  {row['way']:42s} right {row['right']:.4f}, loss {row['loss']:.3f}; {cast}")


if __name__ == "__main__":
    main()
