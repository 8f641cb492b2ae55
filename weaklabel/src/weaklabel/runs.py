"""`apply`: votes for a frame."""

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
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, Protocol, TypeAlias

import narwhals.stable.v2 as nw
import polars as pl
from tqdm.auto import tqdm

from weaklabel import tables
from weaklabel.engines import Part
from weaklabel.engines import polars as polars_engine
from weaklabel.errors import WeakLabelError, gist
from weaklabel.files import written_beside
from weaklabel.labeling import LabelingFunction
from weaklabel.plan import WRONG, Plan, RowLog
from weaklabel.tables import files

#: In a folder of votes, beside the parts; tables are looked for in names without the underscore.
NAME: Final = "_weaklabel.json"

#: The key of a Parquet file's metadata.
KEY: Final = "weaklabel"


@dataclass(frozen=True)
class Manifest:
    """What the parts of a folder have in common. All of it must be the same to go on.

    Attributes:
        queries: of every file of the log its path, size in bytes and time of change in ns.
        functions: of every function its name, source hash and parameters.
        keep: the columns kept beside the votes.
        partitions: how many parts there are.
        engine: name and version: engines do not put the same sessions together.
        metadata: what the parts' own metadata says.
    """

    queries: list[list[Any]]
    functions: list[list[Any]]
    keep: list[str]
    partitions: int
    engine: str
    metadata: dict[str, Any]

    @classmethod
    def of(
        cls,
        plan: Plan,
        files: Iterable[str],
        partitions: int,
        engine: str,
        metadata: Mapping[str, Any],
    ) -> Manifest:
        """The manifest of a run that is about to begin."""
        made = cls(
            [[str(file), *_state(file)] for file in files],
            [[f.name, f.source_hash, parameters(f.parameters)] for f in plan.functions],
            list(plan.keep),
            partitions,
            engine,
            dict(metadata),
        )
        return cls(**json.loads(json.dumps(asdict(made))))

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """That of a folder; None where there is none.

        Raises:
            WeakLabelError: it cannot be read.
        """
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
            raise WeakLabelError(
                f"{path} is no manifest of votes ({error}): remove the folder and run again"
            ) from error

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        with written_beside(folder / NAME) as beside:
            beside.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @property
    def parts(self) -> list[Part]:
        """All parts."""
        return [Part(index, self.partitions) for index in range(self.partitions)]

    def missing(self, folder: Path) -> list[Part]:
        """The parts that are not in a folder."""
        return [part for part in self.parts if not (folder / part.file).is_file()]

    def check_same(self, other: Manifest, folder: Path) -> None:
        """Refuse to go on with something else than was begun.

        Raises:
            WeakLabelError: saying what differs.
        """
        words = {
            "queries": "the log's files (path, size or time of change)",
            "functions": "the functions (name, source or parameters)",
            "keep": "the columns to keep",
            "partitions": "the number of partitions",
            "engine": "the engine or its version",
            "metadata": "the metadata",
        }
        differ = [
            f"{words[name]}: {_short(mine)} then, {_short(theirs)} now"
            for name, mine in asdict(self).items()
            if mine != (theirs := getattr(other, name))
        ]
        if differ:
            raise WeakLabelError(
                f"{folder} cannot be resumed, for it was begun with another log or other settings."
                f" Different: {'; '.join(differ)}. Run as before, or write to another folder"
            )


def parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON holds them: durations as "10.0s", several words as a list."""
    return {
        name: f"{value.total_seconds()}s"
        if isinstance(value, timedelta)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in values.items()
    }


def _state(file: str) -> tuple[int | None, int | None]:
    path = Path(file)
    if not path.exists():  # a URL
        return None, None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:199] + "…"


@dataclass(frozen=True)
class Found:
    """What a path stands for.

    Attributes:
        given: the path as it was given.
        files: the files or URLs, in order.
        direct: they are Parquet files that any engine reads as they are.
    """

    given: str
    files: tuple[str, ...]
    direct: bool

    @property
    def bytes(self) -> int:
        """Of all files; 0 for URLs."""
        return sum(os.path.getsize(file) for file in self.files if os.path.exists(file))

    def frame(self) -> pl.LazyFrame:
        """The log as Polars reads it."""
        return tables.scan(self.given)

    def parquet(self, scratch: Path) -> tuple[str, ...]:
        """Parquet files with the log: its own, or one made in a folder.

        What is not Parquet is read by Polars for every engine: their rules of what a CSV means
        differ, for instance on an empty text in quotes.
        """
        # Also checks every footer, and that the files have the same columns.
        frame = self.frame()
        if self.direct:
            return self.files
        made = scratch / "queries.parquet"
        with tables.naming(self.given):
            frame.sink_parquet(made)
        return (str(made),)


def find(path: str | os.PathLike[str]) -> Found:
    """The files of a log.

    Raises:
        FileNotFoundError: there is nothing there.
        WeakLabelError: the suffix is unknown, formats are mixed, or a file is empty.
    """
    found = files.find(path)
    direct = found.format == "Parquet" and found.local and not found.hive
    return Found(found.given, found.paths, direct)


def about(plan: Plan, found: Found, engine: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What votes say of themselves: functions, engine, version and log.

    Args:
        plan: whose functions voted.
        found: the log.
        engine: name and version.
        given: `identities` by function name, and anything else that JSON can hold.
    """
    others = dict(given)
    identities = others.pop("identities", {})
    return {
        "functions": [
            {
                "name": function.name,
                "identity": identities.get(
                    function.name, f"local:{function.name}@0#{function.source_hash}"
                ),
                "family": function.family,
                "parameters": parameters(function.parameters),
                "rowwise": function.rowwise,
                "scope": function.scope,
            }
            for function in plan.functions
        ],
        "engine": engine,
        "version": version("weaklabel"),
        "queries": {"path": found.given, "files": len(found.files), "bytes": found.bytes},
        **others,
    }


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file or folder of votes says of itself; {} where it says nothing.

    Args:
        path: a Parquet file, or a folder or glob of them: their first one then.

    Raises:
        FileNotFoundError: there is nothing.
        WeakLabelError: the file cannot be read, or the folder is a run that has not ended.
    """
    folder = Path(path)
    manifest = Manifest.load(folder) if folder.is_dir() else None
    if manifest is not None and (missing := manifest.missing(folder)):
        raise WeakLabelError(
            f"{folder} lacks {len(missing)} of {manifest.partitions} parts: finish the run"
            " with resume"
        )
    found = find(path)
    if not found.direct:
        return {}
    try:
        text = pl.read_parquet_metadata(Path(found.files[0])).get(KEY, "{}")
    except pl.exceptions.PolarsError as error:
        raise WeakLabelError(
            f"{found.files[0]} is no Parquet file, or was cut short: {gist(error)}; write it again"
        ) from error
    said = json.loads(text)
    if not isinstance(said, dict):
        raise WeakLabelError(f"the metadata of {path} is no object: {text[:100]}")
    return said


@dataclass(frozen=True)
class Tally:
    """How one function voted.

    Attributes:
        name: the function's.
        rowwise: it is of the slow kind.
        accept: votes 1.
        abstain: votes 0, nulls included.
        reject: votes -1.
    """

    name: str
    rowwise: bool
    accept: int
    abstain: int
    reject: int


@dataclass(frozen=True)
class Summary:
    """What a run of `apply_files` did.

    Attributes:
        rows: queries voted on, those of parts from an earlier run included.
        functions: a tally each, in order.
        seconds: of the whole run.
        rowwise_seconds: of these, within row-wise functions; None where they ran on a cluster.
        engine: which computed the votes.
        reason: why this one.
        partitions: how many files of votes there are.
        resumed: how many of them were there already.
    """

    rows: int
    functions: tuple[Tally, ...]
    seconds: float
    rowwise_seconds: float | None
    engine: str
    reason: str
    partitions: int
    resumed: int = 0


def tallied(plan: Plan, files: Sequence[Path]) -> tuple[Tally, ...]:
    """Counts of votes in files."""
    wanted: list[pl.Expr] = [pl.len().alias("rows")]
    for index, function in enumerate(plan.functions):
        vote = pl.col(function.column)
        wanted += [
            (vote == 1).sum().alias(f"accept {index}"),
            (vote == -1).sum().alias(f"reject {index}"),
        ]
    seen = pl.scan_parquet(list(files), glob=False).select(wanted).collect(engine="streaming")
    counts = seen.row(0, named=True)
    return tuple(
        Tally(
            function.name,
            function.rowwise,
            counts[f"accept {index}"],
            counts["rows"] - counts[f"accept {index}"] - counts[f"reject {index}"],
            counts[f"reject {index}"],
        )
        for index, function in enumerate(plan.functions)
    )


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
        self, plan: Plan, parts: Sequence[Part], metadata: dict[str, str], rows: RowLog
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
    found = find(queries)
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
        said = about(plan, found, f"{log.name} {log.version}", metadata or {})
        run = _Run(log, plan, scratch, said, progress)
        if single:
            parts, done = 1, 0
            with written_beside(target) as beside:
                tallies = run.do([Part(0, 1)], {Part(0, 1): beside})
        else:
            manifest = _begin(target, plan, found, log, said, partitions)
            parts, missing = manifest.partitions, manifest.missing(target)
            done = parts - len(missing)
            run.do(missing, {part: target / part.file for part in missing})
            tallies = tallied(plan, [target / part.file for part in manifest.parts])
    rows = tallies[0].accept + tallies[0].abstain + tallies[0].reject
    seconds = time.perf_counter() - began
    rowwise = None if chosen == "spark" and plan.rowwise else run.rows.seconds
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
        self.rows = RowLog()

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
                self.rows.advance = bar.update
            with self.log.faults():
                for part, made in self.log.parts(self.plan, parts, metadata, self.rows):
                    tallies = tallied(self.plan, [made])
                    self._check(made)
                    made.replace(targets[part])
                    if not rowwise:
                        bar.update(1)
        return tallies

    def _check(self, made: Path) -> None:
        self.rows.check()
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
    found: Found,
    scratch: Path,
    master: str | None,
    memory_limit: str | None,
) -> Log:
    match engine:
        case "polars":
            from weaklabel.engines.polars import PolarsLog

            return PolarsLog(found.given, found.frame(), scratch)
        case "duckdb":
            from weaklabel.engines.duckdb import DuckLog

            return DuckLog(found.given, found.parquet(scratch), scratch, memory_limit)
        case _:
            from weaklabel.engines.spark import SparkLog

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
    if begun and not (target / NAME).is_file():
        raise WeakLabelError(
            f"{target} has no {NAME}, so that it is no run to resume: give another name"
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
            (target / NAME).unlink(missing_ok=True)
            target.rmdir()


def _begin(
    target: Path,
    plan: Plan,
    found: Found,
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


__all__ = ["Summary", "Tally", "apply", "apply_files", "read_metadata"]

_logger = logging.getLogger(__name__)


def apply(functions: Iterable[LabelingFunction], queries: Any, *, keep: Sequence[str] = ()) -> Any:
    """The votes of labeling functions on a query log that is a frame.

    Args:
        functions: what to apply, each with a name of its own.
        queries: a frame: Polars, eager or lazy; a DuckDB relation; a PySpark frame; pandas or
            pyarrow (through Polars). Other frames that narwhals knows work where no function is
            row-wise.
        keep: columns of the log to keep beside the votes.

    Returns:
        A frame of the same kind: `query_id`, the kept columns, and an Int8 column `lf:<name>` for
        each function, in the functions' order; null votes are abstains. Eager frames keep the order
        of their rows; engines such as DuckDB and Spark promise none. A lazy frame is still lazy: a
        vote that is none (see Raises) is found when it is computed, and is a 2 there, which
        `Patterns.count` refuses; row-wise functions raise at that point. On a DuckDB relation,
        row-wise functions are computed here and now, and the votes held in memory.

    Raises:
        WeakLabelError: columns are missing; two functions share a name; a function raises, cannot
            be computed, or votes something else than 1, 0, -1 or null. In an eager frame the
            queries are named.
        TypeError: `queries` is no frame.
    """
    plan = Plan.of(functions, keep)
    frame = nw.from_native(queries)
    if plan.rowwise:
        _logger.info(
            "row-wise functions call Python for every query: %s",
            ", ".join(function.name for function in plan.rowwise),
        )
    if isinstance(frame, nw.DataFrame):
        return _eager(frame, plan)
    match frame.implementation:
        case nw.Implementation.POLARS:
            return polars_engine.votes(frame.to_native(), plan)
        case nw.Implementation.DUCKDB:
            from weaklabel.engines import duckdb as duckdb_engine

            return duckdb_engine.votes(frame.to_native(), plan)
        case nw.Implementation.PYSPARK | nw.Implementation.PYSPARK_CONNECT:
            from weaklabel.engines import spark as spark_engine

            return spark_engine.votes(frame.to_native(), plan)
        case other if plan.rowwise:
            names = ", ".join(function.name for function in plan.rowwise)
            raise WeakLabelError(
                f"row-wise functions ({names}) do not run on {other.name.lower()}: collect the"
                " frame to Polars first, or leave them out"
            )
        case _:
            plan.check_columns(frame.collect_schema().names())
            return plan.finished(plan.work(plan.set_aside(frame))).to_native()


def _eager(frame: nw.DataFrame[Any], plan: Plan) -> Any:
    plan.check_columns(frame.columns)
    log = frame.select(*plan.required).to_polars().lazy()
    rows = RowLog()
    with polars_engine.first_cause(rows):
        found = polars_engine.votes(log, plan, rows).collect()
    rows.check()
    wrong = [f.name for f in plan.functions if (found[f.column] == WRONG).any()]
    if wrong:
        plan.complain(nw.from_native(polars_engine.prepared(log, plan)), wrong)
    if frame.implementation is nw.Implementation.POLARS:
        return found
    made = nw.DataFrame.from_arrow(
        found.to_arrow(compat_level=pl.CompatLevel.oldest()), backend=frame.implementation
    )
    native = made.to_native()
    index = nw.maybe_get_index(frame)
    if index is not None:  # pandas: so that the votes can be joined to the log
        native.index = index
    return native
