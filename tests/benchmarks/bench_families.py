"""Are families that are found in the votes worth having? On simulated and synthetic logs.

    python tests/benchmarks/bench_families.py [--households 20] [--synthetic 5]

The model of docs/examples/found_families.py against `LabelModel` with declared families, with none,
and a majority vote: on fresh logs of docs/examples/households, and on the settings of
tests/weaklabel/test_recovery.py. Families are found from the votes alone; a row more starts from
the declared ones. Prints accuracy and AUC, means over the logs, and means of paired
differences with 95% intervals (Student's t over the logs).
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import t

ROOT = Path(__file__).parent.parent.parent
for folder in ("docs/examples", "docs/examples/households"):
    sys.path.insert(0, str(ROOT / folder))
sys.path.insert(0, str(ROOT / "tests" / "weaklabel"))

from test_recovery import SESSION, accuracy, auc, make_log  # noqa: E402

from found_families import FoundFamilies  # noqa: E402
from households import simulate  # noqa: E402
from weaklabel import (  # noqa: E402
    MISSING,
    LabelModel,
    MajorityVote,
    Patterns,
    apply,
    load_labeling_functions,
)
from weaklabel.models import fit, weights  # noqa: E402

Votes = npt.NDArray[np.int8]
Log = tuple[Patterns, Votes, npt.NDArray[np.bool_]]

FIRST = 300  # seed
FIRST_SYNTHETIC = 221
MODELS = {
    "majority vote": MajorityVote(),
    "declared": LabelModel(),
    "none": LabelModel(families="ignore"),
    "found": FoundFamilies(),
    "found, from declared": FoundFamilies(),
}
PAIRS = [
    ("found", "declared"),
    ("found", "majority vote"),
    ("found, from declared", "declared"),
    ("found, from declared", "majority vote"),
    ("declared", "majority vote"),
    ("declared", "none"),
]


def household_log(seed: int) -> Log:
    """A simulated log under all functions that its columns allow for, with their families."""
    log = simulate(seed=seed)
    functions = load_labeling_functions(columns=log.queries.columns)
    votes = apply(functions, log.queries)
    patterns = Patterns.count(votes, {function.name: function.family for function in functions})
    columns = [pl.col(f"lf:{name}").fill_null(MISSING) for name in patterns.ordered().functions]
    truth = votes.join(log.truth.select("query_id", "right"), on="query_id", maintain_order="left")
    return patterns, votes.select(columns).to_numpy(), truth["right"].to_numpy()


def synthetic(**setting: object) -> Callable[[int], Log]:
    def make(seed: int) -> Log:
        log = make_log(seed, **setting)  # type: ignore[arg-type]
        families = dict.fromkeys((name for name in SESSION if name in log.votes), "session")
        families |= {name: "copies" for name in log.votes if name.startswith("confidence")}
        return log.patterns(families), log.table(tuple(sorted(log.votes))), log.right

    return make


SYNTHETIC = {
    "independent": synthetic(),
    "3 copies": synthetic(copies=("confidence",) * 3),
    "shared .3": synthetic(correlation=0.3),
    "shared .6": synthetic(correlation=0.6),
    "the user only": synthetic(satisfied=(0.9, 0.4)),
}


def scores(log: Log) -> Iterator[tuple[float, float]]:
    """Accuracy and AUC of each model."""
    patterns, votes, right = log
    alone = replace(patterns, families=(None,) * len(patterns.functions))
    for name, model in MODELS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = fit(model, alone if name == "found" else patterns)
        own = weights(fitted, votes)
        yield accuracy(right, own), auc(right, own)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--households", type=int, default=20, help="simulated logs")
    parser.add_argument("--synthetic", type=int, default=5, help="synthetic logs of each setting")
    options = parser.parse_args()
    settings = {"household logs": (household_log, FIRST, options.households)} | {
        name: (make, FIRST_SYNTHETIC, options.synthetic) for name, make in SYNTHETIC.items()
    }
    err = Console(stderr=True)
    measured: dict[str, npt.NDArray[np.float64]] = {}
    for name, (make, first, logs) in settings.items():
        seeds = track(range(first, first + logs), name, console=err, transient=True)
        measured[name] = np.array([list(scores(make(seed))) for seed in seeds])  # (N, M, 2)
    means = Table("model", *(f"{name} ({len(of)})" for name, of in measured.items()))
    means.title = "accuracy/AUC, means over the logs"
    for index, model in enumerate(MODELS):
        own = (of[:, index].mean(axis=0) for of in measured.values())
        means.add_row(model, *(f"{one:.3f}/{area:.3f}" for one, area in own))
    pairs = Table("logs", "difference", "accuracy", "AUC")
    pairs.title = "paired differences: the mean and its 95% interval"
    names = list(MODELS)
    for name, of in measured.items():
        pairs.add_section()
        for one, other in PAIRS:
            differences = of[:, names.index(one)] - of[:, names.index(other)]
            pairs.add_row(name, f"{one} − {other}", *map(interval, differences.T))
    console = Console(width=150)
    console.print(means)
    console.print(pairs)


def interval(differences: npt.NDArray[np.float64]) -> str:
    """The mean of (N,) differences with its interval, as text."""
    n, mean = len(differences), differences.mean()
    by = t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    return f"{mean:+.4f} ({mean - by:+.4f} to {mean + by:+.4f})"


if __name__ == "__main__":
    main()
