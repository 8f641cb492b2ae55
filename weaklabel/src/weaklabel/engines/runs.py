"""`apply_files`: votes for a query log in files, on any engine, in parts that can be resumed."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, Protocol, TypeAlias

import polars as pl
from tqdm.auto import tqdm

from weaklabel.atomic import written_beside
from weaklabel.engines import sources
from weaklabel.engines.manifest import KEY, Manifest
from weaklabel.engines.manifest import NAME as MANIFEST
from weaklabel.engines.metadata import about as about_votes
from weaklabel.engines.parts import Part
from weaklabel.engines.plan import WRONG, Plan
from weaklabel.engines.rowwise import Meter
from weaklabel.engines.tallies import Summary, Tally, tallied
from weaklabel.errors import WeakLabelError
from weaklabel.labeling import LabelingFunction

Engine: TypeAlias = Literal["auto", "polars", "duckdb", "spark"]
Source: TypeAlias = str | os.PathLike[str]

ENGINES: Final = ("auto", "polars", "duckdb", "spark")

#: A folder of votes gets one part for each so many bytes of the log.
PART_BYTES: Final = 256 * 2**20

#: Memory that Polars takes for each byte of a Parquet file, session windows included; about 15 in
#: tests/benchmarks/bench_weaklabel.py.
POLARS_GROWTH: Final = 16

_SCRATCH: Final = ".weaklabel.tmp"

_logger = logging.getLogger(__name__)


class Log(Protocol):
    """A query log that an engine has opened."""

    @property
    def name(self) -> str:
        """The engine's."""

    @property
    def version(self) -> str:
        """The engine's."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The log's columns."""

    def close(self) -> None:
        """Let go of the log."""

    def faults(self) -> AbstractContextManager[None]:
        """What the engine raises, as errors of this package."""

    def parts(
        self, plan: Plan, parts: Sequence[Part], metadata: dict[str, str], meter: Meter
    ) -> Iterator[tuple[Part, Path]]:
        """The votes of parts of the log, each in a Parquet file."""

    def complain(self, plan: Plan, names: list[str]) -> None:
        """Name the queries with votes that are none; see `Plan.complain`."""


def apply_files(
    functions: Iterable[LabelingFunction],
    queries: Source,
    out: Source,
    *,
    engine: Engine = "auto",
    keep: Sequence[str] = (),
    master: str | None = None,
    partitions: int | None = None,
    resume: bool = False,
    memory_limit: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Summary:
    """Write the votes of labeling functions on a query log in files.

    The log is cut by sessions (a hash of `session_id`; of `query_id` where there is none), so that
    the votes of a part are those of the whole log. Functions of scope "log" are computed first, in
    one pass over the columns they need, since no part shows them the whole.

    Args:
        functions: what to apply, each with a name of its own.
        queries: a file, a folder, a glob or a URL, see `weaklabel.tables.scan`. DuckDB and Spark
            read Parquet themselves; CSV and JSON lines are first turned into a Parquet file beside
            the output, so that every engine sees the same values.
        out: a name that ends in .parquet: one file, written beside and renamed. Otherwise a folder
            of `part-00000-of-00008.parquet` and so on, each written beside and renamed. The order
            of rows is that of the log with Polars, and none with DuckDB and Spark.
        engine: "auto" takes Polars, the faster one in tests/benchmarks/bench_weaklabel.py; but
            DuckDB, where it is installed, for a log that may need more than half of the machine's
            memory (16 bytes for each of its files'), or where a memory limit is given.
        keep: columns of the log to keep beside the votes.
        master: Spark's, such as `spark://host:7077`; by default two threads of this machine.
        partitions: how many parts a folder has; by default one for each 256 MiB of the log's files.
        resume: `out` is a folder that an earlier run left unfinished: do the parts that are
            missing.
        memory_limit: DuckDB's, such as "4GB" (more is spilled beside the output), and the memory of
            Spark's driver; Polars has none, and holds the columns of session windows.
        metadata: for the files' own metadata: `identities`, a mapping of function name to
            `distribution:name@version#hash` (`Registry.identity`), and anything else that JSON can
            hold.
        progress: show a progress bar.

    Returns:
        Counts of votes, times, and the engine.

    Raises:
        WeakLabelError: the log cannot be read or lacks columns; a function cannot be computed or
            votes something else than 1, 0, -1 or null, and then the queries are named; the folder
            is there already, or cannot be resumed with these settings.
        FileNotFoundError: there is no log, or no folder to write in.
        OSError: the disk is full. Nothing half-written is left; what was there is untouched.
        ImportError: the engine is not installed.
    """
    began = time.perf_counter()
    plan = Plan.of(functions, keep)
    if engine not in ENGINES:
        raise WeakLabelError(f"no engine {engine!r}: choose one of {', '.join(ENGINES)}")
    target = Path(out)
    single = target.suffix == ".parquet"
    if single and (resume or partitions not in (None, 1)):
        raise WeakLabelError(
            f"{target.name} is one file: partitions and resume belong to a folder, so give a name"
            " without .parquet"
        )
    if partitions is not None and partitions < 1:
        raise WeakLabelError(f"at least one partition is needed, got {partitions}")
    found = sources.find(queries)
    chosen, reason = _choose(engine, found.bytes, memory_limit)
    _logger.info("votes are computed by %s: %s", chosen, reason)
    if plan.rowwise:
        names = ", ".join(function.name for function in plan.rowwise)
        _logger.info("row-wise functions call Python for every query: %s", names)
    with (
        _scratch(target, single, resume) as scratch,
        closing(_opened(chosen, found, scratch, master, memory_limit)) as log,
    ):
        with log.faults():
            plan.check_columns(log.columns)
        about = about_votes(plan, found, f"{log.name} {log.version}", metadata or {})
        run = _Run(log, plan, scratch, about, progress)
        if single:
            parts, done = 1, 0
            with written_beside(target) as beside:
                tallies = run.do([Part(0, 1)], {Part(0, 1): beside})
        else:
            manifest = _begin(target, plan, found, log, about, partitions)
            parts, missing = manifest.partitions, manifest.missing(target)
            done = parts - len(missing)
            run.do(missing, {part: target / part.file for part in missing})
            tallies = tallied(plan, [target / part.file for part in manifest.parts])
    rows = tallies[0].accept + tallies[0].abstain + tallies[0].reject
    seconds = time.perf_counter() - began
    rowwise = None if chosen == "spark" and plan.rowwise else run.meter.seconds
    return Summary(rows, tallies, seconds, rowwise, chosen, reason, parts, done)


@dataclass
class _Run:
    """The parts of one run."""

    log: Log
    plan: Plan
    scratch: Path
    about: dict[str, Any]
    progress: bool

    def __post_init__(self) -> None:
        self.meter = Meter()

    def do(self, parts: Sequence[Part], targets: Mapping[Part, Path]) -> tuple[Tally, ...]:
        """Write parts, check them, and let them take their places; the last one's tallies."""
        tallies: tuple[Tally, ...] = ()
        if not parts:
            return tallies
        metadata = {KEY: json.dumps(self.about, ensure_ascii=False)}
        rowwise = bool(self.plan.rowwise) and self.log.name != "spark"
        with tqdm(
            total=None if rowwise else len(parts),
            unit="row" if rowwise else "part",
            unit_scale=rowwise,
            desc="votes",
            disable=not self.progress,
        ) as bar:
            if rowwise:
                self.meter.advance = bar.update
            with self.log.faults():
                for part, made in self.log.parts(self.plan, parts, metadata, self.meter):
                    tallies = tallied(self.plan, [made])
                    self._check(made)
                    made.replace(targets[part])
                    if not rowwise:
                        bar.update(1)
        return tallies

    def _check(self, made: Path) -> None:
        self.meter.check()
        columns = [function.column for function in self.plan.functions]
        seen = pl.scan_parquet(made, glob=False).select((pl.col(columns) == WRONG).any()).collect()
        wrong = [f.name for f in self.plan.functions if seen[f.column].item()]
        if wrong:
            self.log.complain(self.plan, wrong)


def _choose(engine: Engine, log_bytes: int, memory_limit: str | None) -> tuple[str, str]:
    if engine != "auto":
        return engine, "asked for"
    if memory_limit is not None:
        return "duckdb", "it keeps to a memory limit"
    if not (importlib.util.find_spec("duckdb") and importlib.util.find_spec("pyarrow")):
        return "polars", "DuckDB is not installed"
    if not hasattr(os, "sysconf"):  # Windows does not say how much memory there is
        return "duckdb", "it spills to disk where memory does not suffice"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if log_bytes * POLARS_GROWTH > memory / 2:
        return "duckdb", f"{log_bytes:,} bytes may not fit into memory, and it spills to disk"
    return "polars", "the faster one where the log fits into memory"


def _opened(
    engine: str,
    found: sources.Found,
    scratch: Path,
    master: str | None,
    memory_limit: str | None,
) -> Log:
    match engine:
        case "polars":
            from weaklabel.engines.polars_engine import PolarsLog

            return PolarsLog(found.given, found.frame(), scratch)
        case "duckdb":
            from weaklabel.engines.duckdb_engine import DuckLog

            return DuckLog(found.given, found.parquet(scratch), scratch, memory_limit)
        case _:
            from weaklabel.engines.spark_engine import SparkLog

            return SparkLog(found.given, found.parquet(scratch), scratch, master, memory_limit)


@contextmanager
def _scratch(target: Path, single: bool, resume: bool) -> Iterator[Path]:
    """A folder for what is not finished: on the output's disk, so that renaming is enough."""
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"no folder {target.parent} to write {target.name} in: create it first"
        )
    if single:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder: give the path of a file")
        with TemporaryDirectory(
            dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"
        ) as made:
            yield Path(made)
        return
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file: give the path of a folder, or end in .parquet")
    begun = target.is_dir() and any(target.iterdir())
    if begun and not resume:
        raise FileExistsError(
            f"{target} exists already: give another name, remove it first, or resume"
        )
    if begun and not (target / MANIFEST).is_file():
        raise WeakLabelError(
            f"{target} has no {MANIFEST}, so that it is no run to resume: give another name"
        )
    target.mkdir(exist_ok=True)
    scratch = target / _SCRATCH
    if scratch.is_dir():  # of a run that was killed
        shutil.rmtree(scratch)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)
        # A run that wrote nothing leaves nothing, and may be tried again with other settings.
        if not begun and not any(target.glob("part-*.parquet")):
            (target / MANIFEST).unlink(missing_ok=True)
            target.rmdir()


def _begin(
    target: Path,
    plan: Plan,
    found: sources.Found,
    log: Log,
    about: Mapping[str, Any],
    partitions: int | None,
) -> Manifest:
    """The manifest of a folder: that of the run to resume, or a new one."""
    before = Manifest.load(target)
    if partitions is None:
        partitions = max(1, math.ceil(found.bytes / PART_BYTES))
        if before is not None:
            partitions = before.partitions
    manifest = Manifest.of(plan, found.files, partitions, f"{log.name} {log.version}", dict(about))
    if before is not None:
        before.check_same(manifest, target)
    else:
        manifest.save(target)
    return manifest
