"""Speed and memory of weaklabel, from a query log to weighted transcripts.

    python tests/benchmarks/bench_weaklabel.py            # 12 million queries, Polars and DuckDB
    python tests/benchmarks/bench_weaklabel.py --beside HEAD~1 --repeats 3    # and a revision's
    python tests/benchmarks/bench_weaklabel.py --peers    # Snorkel's applier as well

The log is synthetic: 82% of the transcripts are right, and what the functions look at (the pause
before the next query, confidence, dwell, action, a second recognizer, how rare a transcript is)
depends on that; some inputs are null. So the labels can be judged: accuracy and AUC are printed
beside accepting everything.

Every engine runs in a process of its own, one after the other: eight expression functions with
session windows, counts of patterns, fit, labels in Parquet. Peak memory is the child's ru_maxrss,
which counts the pages of files that are mapped. `--beside` takes another revision of this
repository, checks it out under the folder, and runs its own copy of this script on the same log, in
turns; the ratio is that of the medians. Then `fit` alone, on the counts of 100,000 and of all rows
in turns. With --peers an environment with Snorkel is made (once), and its PandasLFApplier votes by
the same eight rules on the first 100,000 queries, windows and counts handed to it as columns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of the standard library alone: Snorkel's environment runs this file, too.
import environments
import figures

HERE = Path(__file__).resolve()
ROWS = 12_000_000
SEED = 0
LOG = 2  # counted up when the same rows and seed make another log
COMPARED = ("seconds", "cpu_seconds", "peak_gib")
SMALL = 100_000
SNORKEL = ("snorkel==0.10.0", "pyarrow", "setuptools<81")
CHUNK = 400_000  # sessions made at a time
NAMES = [
    "session_position",
    "asr_confidence",
    "rapid_repetition",
    "dwell",
    "follow_up_action",
    "rephrasing",
    "rarity",
    "second_asr_agreement",
]
ACTIONS = ["play", "select", "back", "cancel", "none"]
# Shares of the queries without it.
NULLS = {"second_transcript": 0.1, "confidence": 0.02, "action": 0.02, "dwell": 0.05}
WORDS = (
    "play show me the next channel news movie kids up five comedies music on tv pause stop volume"
    " record tonight football weather series from two watch find live sports cartoon cooking"
).split()


# The log


def make_log(folder: Path, rows: int) -> None:
    """queries.parquet: `rows` queries in sessions of one to eight, by time; truth.parquet: `right`.

    Given whether a transcript is right, what the families of functions see is independent.
    """
    import numpy as np
    import polars as pl

    random = np.random.default_rng(SEED)
    common = sorted({" ".join(random.choice(WORDS, random.integers(1, 6))) for _ in range(50_000)})
    # What no one says twice, more or less, however many queries there are.
    pairs = random.integers(0, len(common), (rows // 30 + 1, 2))
    phrases = pl.Series([*common, *(f"{common[i]} {common[j]}" for i, j in pairs)])
    # Few phrases are common, most are rare.
    ranks = random.permutation(len(common))
    shares = 1.0 / (1 + np.arange(len(common)))
    shares /= shares.sum()
    parts, first, made = [], 0, 0
    while made < rows:
        lengths = np.minimum(random.geometric(1 / 3, CHUNK), 8)
        count = int(lengths.sum())
        session = np.repeat(np.arange(first, first + CHUNK), lengths)
        begins = np.repeat(random.integers(0, 30 * 86_400_000_000, CHUNK), lengths)
        new = np.r_[True, session[1:] != session[:-1]]
        last = np.r_[new[1:], True]
        right = random.random(count) < np.where(last, 0.9, 0.82)
        said = ranks[random.choice(len(common), count, p=shares)]
        rare = random.integers(len(common), len(phrases), count)
        chosen = np.where(~right & (random.random(count) < 0.5), rare, said)
        # Who was misunderstood says the same again, soon, and is misunderstood again.
        again = ~new & (random.random(count) < np.where(np.r_[True, right[:-1]], 0.08, 0.35))
        for column in (chosen, right):
            column[1:][again[1:]] = column[:-1][again[1:]]
        pause = random.exponential(np.where(np.r_[True, right[:-1]], 60e6, 15e6))
        total = np.cumsum(np.where(new, 0, pause).astype(np.int64))
        offset = total - np.repeat(total[new], lengths)
        agreed = random.random(count) < np.where(right, 0.93, 0.4)
        confidence = np.where(right, random.beta(9, 1, count), random.beta(3, 1.5, count))
        action = np.where(
            random.random(count) < np.where(right, 0.7, 0.25),
            random.integers(0, 2, count),
            random.integers(2, 5, count),
        )
        dwell = random.exponential(np.where(right, 200, 20))
        part = pl.DataFrame(
            {
                "session_id": session,
                "timestamp": begins + offset + 1_767_225_600_000_000,
                "transcript": phrases.gather(chosen),
                "second_transcript": phrases.gather(
                    np.where(agreed, chosen, random.permutation(chosen))
                ),
                "confidence": confidence.astype(np.float32),
                "action": pl.Series(ACTIONS).gather(action),
                "dwell": dwell.astype(np.float32),
                "right": right,
            }
        )
        missing = [
            pl.when(pl.Series(random.random(count) >= share)).then(column).alias(column)
            for column, share in NULLS.items()
        ]
        parts.append(part.with_columns(missing))
        first, made = first + CHUNK, made + count
    log = pl.concat(parts).head(rows).sort("timestamp").with_row_index("query_id")
    log = log.with_columns(
        pl.col("query_id").cast(pl.Int64),
        pl.from_epoch("timestamp", "us").dt.replace_time_zone("UTC"),
    )
    log.drop("right").write_parquet(folder / "queries.parquet", row_group_size=122_880)
    log.select("query_id", "right").write_parquet(folder / "truth.parquet")


def judged(folder: Path, engine: str) -> dict[str, float]:
    """Shares of the labels of an engine that are right, and of the transcripts; AUC of weights."""
    import numpy as np
    import polars as pl

    found = pl.read_parquet(folder / f"labels-{engine}.parquet", columns=["query_id", "weight"])
    right = pl.read_parquet(folder / "truth.parquet")["right"].to_numpy()[found["query_id"]]
    weight = found["weight"].to_numpy()
    values, inverse = np.unique(weight, return_inverse=True)
    yes = np.bincount(inverse, right, len(values))  # by weight, ascending
    no = np.bincount(inverse, ~right, len(values))
    below = np.cumsum(no) - no / 2  # ties for half
    return {
        "accuracy": float(((weight >= 0.5) == right).mean()),
        "accept_all": float(right.mean()),
        "auc": float((yes * below).sum() / (yes.sum() * no.sum())),
    }


# Ours


def functions() -> list[Any]:
    """The eight expression functions."""
    from weaklabel import functions as built_in

    return [getattr(built_in, name) for name in NAMES]


def end_to_end(engine: Any, folder: Path) -> dict[str, Any]:
    """Query log to labels on one engine, in this process."""
    from weaklabel import LabelModel
    from weaklabel.labels import count_files, label_files
    from weaklabel.runs import apply_files

    votes, labels = folder / f"votes-{engine}.parquet", folder / f"labels-{engine}.parquet"
    steps = {}
    began = time.perf_counter()

    def done(step: str) -> None:
        steps[step] = time.perf_counter() - began - sum(steps.values())

    summary = apply_files(
        functions(),
        folder / "queries.parquet",
        votes,
        engine=engine,
        memory_limit="2500MB",
        progress=False,
    )
    done("apply")
    patterns = count_files([votes])
    done("count")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LabelModel().fit(patterns)
    done("fit")
    written = label_files(votes, model, labels)
    done("label")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "engine": engine,
        "rows": written.rows,
        "seconds": sum(steps.values()),
        "steps": steps,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss / 2**20,
        "votes": {tally.name: [tally.accept, tally.reject] for tally in summary.functions},
        "mean_weight": written.mean_weight,
        "patterns": len(patterns),
        "warnings": [str(warning.message) for warning in caught],
    }


def fits(engine: str, folder: Path, repeats: int = 25) -> dict[str, Any]:
    """Seconds of `fit` on the counts of few and of all rows, in turns."""
    import polars as pl

    from weaklabel import LabelModel, Patterns

    votes = pl.scan_parquet(folder / f"votes-{engine}.parquet")
    families = {function.name: function.family for function in functions()}
    counts = {
        "small": Patterns.count(votes.head(SMALL), families),
        "all": Patterns.count(votes, families),
    }
    seconds: dict[str, list[float]] = {name: [] for name in counts}
    for _ in range(repeats):
        for name, patterns in counts.items():
            began = time.process_time()
            LabelModel().fit(patterns)
            seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "rows": {name: patterns.rows for name, patterns in counts.items()},
        "patterns": {name: len(patterns) for name, patterns in counts.items()},
        "cpu_seconds": medians,
        "ratios": [b / a for a, b in zip(seconds["small"], seconds["all"], strict=True)],
        "ratio": medians["all"] / medians["small"],
    }


def small_log(folder: Path) -> dict[str, Any]:
    """The first queries with what Snorkel needs as columns, and our votes and speed on them."""
    import polars as pl

    from weaklabel import apply

    log = pl.read_parquet(folder / "queries.parquet", n_rows=SMALL)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        votes = apply(functions(), log)
        seconds.append(time.perf_counter() - began)
    order = {"partition_by": "session_id", "order_by": ["timestamp", "query_id"]}
    log.with_columns(
        next_timestamp=pl.col("timestamp").shift(-1).over(**order),
        next_transcript=pl.col("transcript").shift(-1).over(**order),
        left_in_session=pl.len().over("session_id") - pl.int_range(1, pl.len() + 1).over(**order),
        occurrences=pl.len().over("transcript"),
    ).write_parquet(folder / "small.parquet")
    votes.write_parquet(folder / "small-votes.parquet")
    return {"rows": SMALL, "seconds": statistics.median(seconds), "runs": seconds}


# Snorkel's: in an environment where nothing of ours is installed


def snorkel(folder: Path) -> dict[str, Any]:
    """PandasLFApplier on the small log; its votes must be ours."""
    import numpy as np
    import pandas as pd
    from snorkel.labeling import LFApplier, PandasLFApplier, labeling_function  # noqa: F401

    accept, reject, abstain = 1, 0, -1
    apart = re.compile(r"[^\w']+")

    def plain(text: str) -> str:
        return apart.sub(" ", text.lower()).strip(" ")

    def soon(row: Any, seconds: float) -> bool:
        return (
            row.next_timestamp is not pd.NaT
            and (row.next_timestamp - row.timestamp).total_seconds() < seconds
        )

    @labeling_function()
    def session_position(row: Any) -> int:
        return accept if row.left_in_session < 1 else abstain

    @labeling_function()
    def asr_confidence(row: Any) -> int:
        return accept if row.confidence >= 0.9 else reject if row.confidence < 0.5 else abstain

    @labeling_function()
    def rapid_repetition(row: Any) -> int:
        return reject if soon(row, 10) else abstain

    @labeling_function()
    def dwell(row: Any) -> int:
        return accept if row.dwell >= 60 else reject if row.dwell < 5 else abstain

    @labeling_function()
    def follow_up_action(row: Any) -> int:
        if row.action in ("play", "select"):
            return accept
        return reject if row.action in ("back", "cancel") else abstain

    @labeling_function()
    def rephrasing(row: Any) -> int:
        if not soon(row, 60):
            return abstain
        this, that = f" {plain(row.transcript)} ", f" {plain(row.next_transcript)} "
        return reject if this in that or that in this else abstain

    @labeling_function()
    def rarity(row: Any) -> int:
        if row.occurrences <= 1:
            return reject
        return accept if row.occurrences >= 0.001 * SMALL else abstain

    @labeling_function()
    def second_asr_agreement(row: Any) -> int:
        if not isinstance(row.second_transcript, str):  # pandas: None or NaN
            return abstain
        return accept if plain(row.transcript) == plain(row.second_transcript) else reject

    frame = pd.read_parquet(folder / "small.parquet").astype({"confidence": float})
    rules = [
        session_position,
        asr_confidence,
        rapid_repetition,
        dwell,
        follow_up_action,
        rephrasing,
        rarity,
        second_asr_agreement,
    ]
    applier = PandasLFApplier(rules)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        found = applier.apply(frame, progress_bar=False)
        seconds.append(time.perf_counter() - began)
    ours = pd.read_parquet(folder / "small-votes.parquet")[[f"lf:{name}" for name in NAMES]]
    ours = ours.fillna(0).to_numpy()  # a missing input is an abstain here
    same = np.where(ours == 0, abstain, (ours + 1) // 2) == found
    return {
        "rows": len(frame),
        "seconds": min(seconds),
        "runs": seconds,
        "same_votes": bool(same.all()),
        "same_share": float(same.mean()),
    }


# The run


def child(
    python: Path | str, step: str, folder: Path, script: Path = HERE, source: Path | None = None
) -> Any:
    """What a step returns that runs in a process of its own, with weaklabel's source if given."""
    command = [str(python), str(script), "--step", step, "--folder", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    # Two cores, whatever the machine has.
    cores = sorted(os.sched_getaffinity(0))[:2]
    done = subprocess.run(
        ["taskset", "-c", ",".join(map(str, cores)), *command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def checked_out(revision: str, folder: Path) -> tuple[Path, Path]:
    """The script and the source of another revision, checked out under the folder."""
    git = ("git", "-C", str(HERE.parents[2]))
    named = (*git, "rev-parse", "--verify", f"{revision}^{{commit}}")
    commit = subprocess.run(named, check=True, capture_output=True, text=True).stdout.strip()
    root = (folder / f"revision-{commit[:12]}").resolve()
    if not root.exists():
        wanted = (*git, "archive", commit, "weaklabel/src", "tests/benchmarks")
        archive = subprocess.run(wanted, check=True, capture_output=True).stdout
        root.mkdir()
        subprocess.run(("tar", "-x", "-C", str(root)), input=archive, check=True)
    return root / "tests/benchmarks" / HERE.name, root / "weaklabel/src"


def show(name: str, found: dict[str, Any]) -> None:
    """Print a run as a line of the table."""
    steps = " ".join(f"{found['steps'][step]:6.1f}" for step in ("apply", "count", "fit", "label"))
    print(
        f"{name:16} {found['seconds']:7.1f}  ({steps})  {found['cpu_seconds']:5.0f}"
        f"  {found['peak_gib']:8.2f}  {found['rows'] / found['seconds']:9,.0f}"
        f"   {os.getloadavg()[0]:4.1f}",
        flush=True,
    )


def middle(runs: list[dict[str, Any]], what: str) -> float:
    """The median of a figure of several runs."""
    return statistics.median(run[what] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--engines", nargs="*", default=["polars", "duckdb"])
    parser.add_argument("--beside", metavar="REVISION", help="run another revision in turns")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each")
    parser.add_argument("--peers", action="store_true", help="Snorkel too")
    parser.add_argument("--folder", type=Path, default=Path("build/bench-weaklabel"))
    parser.add_argument("--json", type=Path, default=Path("out/bench/weaklabel.json"))
    figures.add_option(parser)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder: Path = options.folder
    if options.step:
        name, _, argument = options.step.partition(" ")
        if argument:
            found = {"run": end_to_end, "fits": fits}[name](argument, folder)
        else:
            found = {"small": small_log, "snorkel": snorkel}[name](folder)
        print(json.dumps(found))
        return

    folder.mkdir(parents=True, exist_ok=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    made = folder / f"made-{LOG}-{options.rows}-{SEED}"
    if not made.exists():
        for old in folder.glob("made-*"):
            old.unlink()
        make_log(folder, options.rows)
        made.touch()
    results: dict[str, Any] = {"rows": options.rows, "load_before": os.getloadavg()[0]}
    results["runs"], results["beside"], results["ratio"] = [], [], {}
    print(f"{options.rows:,} queries; load of the machine before: {os.getloadavg()[0]:.1f}")
    print(
        "engine           seconds  (apply  count    fit  label)  CPU s  peak GiB     rows/s   load"
    )
    for engine in options.engines:
        ours, theirs = [], []
        for _ in range(options.repeats):
            if options.beside:
                script, source = checked_out(options.beside, folder)
                theirs.append(child(sys.executable, f"run {engine}", folder, script, source))
                show(f"{engine} {options.beside[:9]}", theirs[-1])
            ours.append(child(sys.executable, f"run {engine}", folder))
            show(engine, ours[-1])
        found = judged(folder, engine)
        print(
            f"{engine}: {found['accuracy']:.1%} of the labels are right, AUC {found['auc']:.3f};"
            f" accepting everything: {found['accept_all']:.1%}"
        )
        for warning in ours[-1]["warnings"]:
            print(f"{engine} warns: {warning}")
        if theirs:
            ratios = {what: middle(ours, what) / middle(theirs, what) for what in COMPARED}
            results["ratio"][engine] = ratios
            told = ", ".join(f"{what} {ratio:.3f}" for what, ratio in ratios.items())
            print(f"{engine}, this revision over {options.beside}: {told}")
        results["runs"] += [{**run, **found} for run in ours]
        results["beside"] += theirs
    if len({json.dumps(found["votes"]) for found in results["runs"]}) > 1:
        raise SystemExit("the engines do not agree on the votes")
    results["fit"] = found = child(sys.executable, f"fits {options.engines[0]}", folder)
    print(
        f"fit: {found['cpu_seconds']['small']:.3f} s for {found['rows']['small']:,} rows"
        f" ({found['patterns']['small']} patterns), {found['cpu_seconds']['all']:.3f} s for"
        f" {found['rows']['all']:,} ({found['patterns']['all']}): {found['ratio']:.2f}×"
    )
    if options.peers:
        frame = child(sys.executable, "small", folder)
        python = environments.environment("snorkel", *SNORKEL)
        peer = child(python, "snorkel", folder)
        speed = peer["rows"] / peer["seconds"]
        best = min(results["runs"], key=lambda run: run["steps"]["apply"])
        large = best["rows"] / best["steps"]["apply"]
        results["peers"] = {"snorkel": peer, "weaklabel_frame": frame}
        print(f"snorkel PandasLFApplier: {speed:,.0f} rows/s; same votes: {peer['same_votes']}")
        for what, rate in (("frame", frame["rows"] / frame["seconds"]), ("files", large)):
            print(f"weaklabel, {what}: {rate:,.0f} rows/s, {rate / speed:.0f}×")
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    figures.save(
        "peers-functions" if options.peers else "weaklabel",
        of_peer(results) if options.peers else of_engines(results),
        options.save,
        packages=("weaklabel", "polars", "duckdb"),
        versions={"snorkel": SNORKEL[0].partition("==")[2]} if options.peers else None,
    )


def of_engines(results: dict[str, Any]) -> Iterator[figures.Figure]:
    """DuckDB's runs over those of Polars; a fit to all rows over one to few."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        runs.setdefault(run["engine"], []).append(run)
    rows = results["rows"]
    for engine in runs:
        if engine != "polars" and "polars" in runs:
            for what, said in (
                ("seconds", "time"),
                ("cpu_seconds", "processor time"),
                ("peak_gib", "memory at the peak"),
            ):
                pairs = zip(runs[engine], runs["polars"], strict=True)
                ratios = [one[what] / other[what] for one, other in pairs]
                line = f"{said} from {rows:,} queries to labels: {engine} / polars"
                yield figures.Figure.of(line, ratios)
    found = next(iter(results["runs"]))
    line = f"{rows:,} queries, labels that are wrong / transcripts that are"
    yield figures.Figure.of(line, (1 - found["accuracy"]) / (1 - found["accept_all"]), margin=0.02)
    few = results["fit"]["rows"]["small"]
    line = f"processor time of a fit to the counts of {rows:,} queries / of {few:,}"
    yield figures.Figure.of(line, results["fit"]["ratios"])


def of_peer(results: dict[str, Any]) -> Iterator[figures.Figure]:
    """Snorkel's applier over ours, on the same frame and by its best run."""
    peer, frame = results["peers"]["snorkel"], results["peers"]["weaklabel_frame"]
    line = f"time for the votes on {frame['rows']:,} queries: Snorkel's PandasLFApplier / weaklabel"
    ratios = [peer["seconds"] / ours for ours in frame["runs"]]
    yield figures.Figure.of(line, ratios, better="higher")
    line = "votes of Snorkel's that are not ours / all votes"
    yield figures.Figure.of(line, 1 - peer["same_share"], margin=0.0)


if __name__ == "__main__":
    main()
