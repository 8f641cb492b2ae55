"""Label models on synthetic logs whose truth is known, and what a fit costs.

    python tests/benchmarks/bench_label_model.py [--seeds 3] [--rows 12000000] [--peers] [--missing]

Prints accuracy and AUC, means over the seeds, of the models and of what needs none, for the
settings of tests/weaklabel/test_recovery.py: independent functions, the same without the second
recognizer, three near-copies of one function, and session functions that share the user's
satisfaction. Then the seconds of a fit to the patterns of 100,000 queries, and of `--rows`.

`--missing` prints instead the logs of tests/weaklabel/test_missing.py, in which inputs are missing:
by chance, or of wrong transcripts twice as often. One oracle leaves missing inputs out, the other
knows at which rates right and wrong transcripts lose them.

`--peers` adds Snorkel's LabelModel, crowd-kit's DawidSkene, hyperlm (a label model that was trained
once, on synthetic votes) and cleanlab's CROWDLAB, each in an environment of its own under runs/,
with the same votes. A peer that cannot be installed or fails gets a row that says so, and the exit
status is 1. Timed is processor time from a table of votes to weights; a first call has imported
what is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import figures
import numpy as np
import numpy.typing as npt
from environments import ToolError, environment, run
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "weaklabel"), str(ROOT / "docs" / "examples")]

import test_missing  # noqa: E402
from bench_weaklabel import SNORKEL  # noqa: E402
from test_recovery import FUNCTIONS, RIGHT, SESSION, Log, accuracy, auc, make_log  # noqa: E402

from found_families import FoundFamilies  # noqa: E402
from weaklabel import (  # noqa: E402
    MISSING,
    Gold,
    LabelModel,
    LogisticRegression,
    MajorityVote,
    Patterns,
    WeakLabelWarning,
    models,
)
from weaklabel.models import FittedModel  # noqa: E402

NO_SECOND = tuple(FUNCTIONS)[:-1]
SETTINGS: dict[str, Callable[[int], Log]] = {
    "independent": make_log,
    "no second ASR": lambda seed: make_log(seed, NO_SECOND),
    "3 copies": lambda seed: make_log(seed, copies=("confidence",) * 3),
    "shared .3": lambda seed: make_log(seed, correlation=0.3),
    "shared .6": lambda seed: make_log(seed, correlation=0.6),
    "shared .6, no second": lambda seed: make_log(seed, NO_SECOND, correlation=0.6),
}
CHECKED = 300  # queries with gold
PEERS = {
    "snorkel": SNORKEL,
    "crowd-kit": ["crowd-kit==1.4.2"],
    "hyperlm": ["hyperlm==0.0.5"],
    "cleanlab": ["cleanlab==2.9.0"],
}
BINS = 2_000_000  # rows of votes made at a time

Scores = tuple[float, float]


def gold_of(log: Log) -> Gold:
    names = tuple(log.votes)
    table, right = log.table(names)[:CHECKED], log.right[:CHECKED]
    return Gold(Patterns.of(names, table[right]), Patterns.of(names, table[~right]))


def declared(log: Log) -> Patterns:
    """The patterns with the families that somebody who wrote the functions would declare."""
    families = {name: "session" for name in SESSION if name in log.votes}
    families |= {name: "confidence" for name in log.votes if name.startswith("confidence")}
    return log.patterns(families)


MODELS: dict[str, Callable[[Log], FittedModel]] = {
    "majority vote": lambda log: MajorityVote().fit(log.patterns()),
    "LabelModel, no families": lambda log: LabelModel().fit(log.patterns()),
    "LabelModel, abstain ignored": lambda log: LabelModel(abstain="ignore").fit(log.patterns()),
    "LabelModel, declared families": lambda log: LabelModel().fit(declared(log)),
    f"the same, {CHECKED} gold queries": lambda log: LabelModel().fit(
        declared(log), gold=gold_of(log)
    ),
    "found families (an example)": lambda log: FoundFamilies().fit(log.patterns()),
    f"logistic regression, {CHECKED} gold queries": lambda log: LogisticRegression().fit(
        log.patterns(), gold=gold_of(log)
    ),
}


def scores_of_ours(log: Log) -> dict[str, tuple[Scores, int]]:
    """By model: accuracy and AUC, and how many warnings it gave."""
    found: dict[str, tuple[Scores, int]] = {
        "always accept": ((float(log.right.mean()), 0.5), 0),
    }
    if log.oracle is not None:
        found["Bayes oracle"] = (
            (accuracy(log.right, log.oracle > 0), auc(log.right, log.oracle)),
            0,
        )
    for name, fit in MODELS.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", WeakLabelWarning)
            model = fit(log)
        found[name] = (log.scores(model), len(caught))
    return found


def scores_of_peer(peer: str, log: Log) -> tuple[dict[str, Scores], dict[str, float]]:
    """By model, what peer_label_models.py says: accuracy and AUC, and the seconds it took.

    Raises:
        ToolError: with what went wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        votes, out = Path(folder, "votes.npy"), Path(folder, "out.npz")
        table = log.table(tuple(log.votes))
        np.save(votes, np.where(table == MISSING, 0, table))
        python = environment(peer, *PEERS[peer])
        taken = run(python, HERE / "peer_label_models.py", peer, votes, out, str(RIGHT))
        with np.load(out) as weights:
            scores = {
                name: (accuracy(log.right, w), auc(log.right, w)) for name, w in weights.items()
            }
        return scores, json.loads(taken.splitlines()[-1])


def seconds_of_ours(log: Log) -> float:
    """Processor seconds from a table of votes to weights, as the peers are timed."""
    table = log.table(tuple(log.votes))
    start = time.process_time()
    models.weights(LabelModel().fit(Patterns.of(tuple(log.votes), table)), table)
    return time.process_time() - start


def patterns_of(rows: int) -> Patterns:
    """The patterns of so many queries with independent functions, counted in parts."""
    rng = np.random.default_rng(1)
    shards = []
    for first in range(0, rows, BINS):
        right = rng.random(min(BINS, rows - first)) < RIGHT
        votes = []
        for if_right, if_wrong in FUNCTIONS.values():
            accept, reject = np.where(right[:, None], if_right, if_wrong).T
            chance = rng.random(len(right))
            votes.append(np.where(chance < reject, -1, np.where(chance > 1 - accept, 1, 0)))
        shards.append(counted(np.stack(votes, axis=1)))
    return Patterns.merge(shards)


def counted(votes: npt.NDArray[np.int_]) -> Patterns:
    code = (votes + 1) @ 3 ** np.arange(votes.shape[1])
    _, first, counts = np.unique(code, return_index=True, return_counts=True)
    return Patterns.of(tuple(FUNCTIONS), votes[first], counts)


def seconds(one: Patterns, other: Patterns, repeats: int = 25) -> tuple[list[float], list[float]]:
    """Processor seconds that fits to each take, in alternation."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for patterns, own in zip((one, other), times, strict=True):
            start = time.process_time()
            LabelModel().fit(patterns)
            own.append(time.process_time() - start)
    return times


MISSING_MODELS = {
    "majority vote": MajorityVote(),
    "LabelModel": LabelModel(),
    'LabelModel, missing="evidence"': LabelModel(missing="evidence"),
    'LabelModel, abstain="ignore"': LabelModel(abstain="ignore"),
}


def missing_tables(console: Console, seeds: int) -> None:
    """Print how models fare where inputs are missing, and how often it is noticed to matter."""
    means = Table(title=f"accuracy/AUC, means of {seeds} logs of {test_missing.QUERIES:,} queries")
    noticed = Table(title="inputs missing at other rates of right and wrong transcripts: logs")
    for table, columns in ((means, MISSING_MODELS), (noticed, ["warned of", "truly so"])):
        table.add_column("what is missing")
        for column in columns:
            table.add_column(column)
    for column in ("the oracle", "the oracle that knows the rates"):
        means.add_column(column)
    for kind in test_missing.KINDS:
        found: dict[str, list[Scores]] = {}
        informative = 0
        for seed in range(601, 601 + seeds):
            log = test_missing.make_log(seed, kind)
            for name, model in MISSING_MODELS.items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", WeakLabelWarning)
                    fitted = models.fit(model, log.patterns)
                index = [test_missing.FUNCTIONS.index(one) for one in fitted.functions]
                own = models.weights(fitted, log.votes[:, index])
                found.setdefault(name, []).append(test_missing.of(log.right, own))
                if name == "LabelModel":
                    informative += any(rate.informative for rate in fitted.missing)
            for name in ("oracle", "knowing"):
                scores = test_missing.of(log.right, getattr(log, name))
                found.setdefault(name, []).append(scores)
        pairs = (np.mean(scores, axis=0) for scores in found.values())
        means.add_row(kind, *(f"{a:.3f}/{b:.3f}" for a, b in pairs))
        truly = seeds if kind in test_missing.INFORMATIVE else 0
        noticed.add_row(kind, f"{informative} of {seeds}", f"{truly} of {seeds}")
    console.print(means)
    console.print(noticed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="logs of each setting")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rows", type=int, default=12_000_000, help="queries of the long fit")
    parser.add_argument("--peers", action="store_true", help="four other projects' models too")
    parser.add_argument(
        "--missing", action="store_true", help="logs with missing inputs, and nothing else"
    )
    parser.add_argument("--json", type=Path, help="write the means here")
    figures.add_option(parser)
    options = parser.parse_args()
    console = Console(width=140)
    if options.missing:
        missing_tables(console, options.seeds)
        return 0

    rows: dict[str, dict[str, str]] = {}
    means: dict[str, dict[str, Scores]] = {}
    failures: dict[str, str] = {}
    slower: dict[str, list[float]] = {}
    for setting in options.settings:
        make = SETTINGS[setting]
        found: dict[str, list[Scores]] = {}
        warned: dict[str, int] = {}
        for seed in range(201, 201 + options.seeds):
            log = make(seed)
            for name, (scores, count) in scores_of_ours(log).items():
                found.setdefault(name, []).append(scores)
                warned[name] = warned.get(name, 0) + bool(count)
            own = seconds_of_ours(log) if options.peers else 0
            for peer in PEERS if options.peers else ():
                try:
                    scores_of_it, taken = scores_of_peer(peer, log)
                except ToolError as error:
                    failures[peer] = str(error)
                    rows.setdefault(peer, {})[setting] = f"failed: {str(error)[:50]}"
                    continue
                for name, result in scores_of_it.items():
                    found.setdefault(name, []).append(result)
                    slower.setdefault(name, []).append(taken[name] / own)
        for name, scores_of_seeds in found.items():
            a, b = np.mean(scores_of_seeds, axis=0)
            means.setdefault(name, {})[setting] = (float(a), float(b))
            mark = f" ⚠{warned[name]}" if warned.get(name) else ""
            rows.setdefault(name, {})[setting] = f"{a:.3f}/{b:.3f}{mark}"
    table = Table(title=f"accuracy/AUC, {options.seeds} logs a setting; ⚠ fits that warned")
    for column in ("model", *options.settings):
        table.add_column(column)
    for name, cells in rows.items():
        table.add_row(name, *(cells.get(setting, "") for setting in options.settings))
    console.print(table)

    short, long = patterns_of(100_000), patterns_of(options.rows)
    fits = seconds(short, long)
    a, b = map(min, fits)
    console.print(
        f"fit: {a:.3f} s for {short.rows:,} queries ({len(short)} patterns), {b:.3f} s for"
        f" {long.rows:,} ({len(long)} patterns): {b / a:.2f} times"
    )
    if options.json:
        options.json.write_text(json.dumps({"scores": means, "fit": [a, b]}, indent=1))
    ratios = [
        figures.Figure.of(
            f"labels of {name} that are wrong / of a majority vote",
            (1 - accuracy) / (1 - means["majority vote"][setting][0]),
            margin=0.05,
            better="lower" if name in warned and name != "Bayes oracle" else "neither",
            along="functions",
            at=setting,
        )
        for name, of_settings in means.items()
        if name not in ("majority vote", "always accept")
        for setting, (accuracy, _) in of_settings.items()
    ]
    for name, times in slower.items():
        line = f"processor time from votes to weights: {name} / LabelModel"
        ratios.append(figures.Figure.of(line, times, margin=1.0, better="higher"))
    if not options.peers:
        longer = [many / few for few, many in zip(*fits, strict=True)]
        line = f"processor time of a fit to {long.rows:,} queries / {short.rows:,}"
        ratios.append(figures.Figure.of(line, longer))
    figures.save(
        "peers-label-models" if options.peers else "label-models",
        ratios,
        options.save,
        packages=("weaklabel", "numpy"),
        failures=failures,
        versions=dict(needs[0].split("==") for needs in PEERS.values()) if options.peers else None,
    )
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
