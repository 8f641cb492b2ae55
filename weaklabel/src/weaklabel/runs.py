"""Votes on a query log: of frames (`apply`), of files (`apply_files`), and their metadata."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import narwhals.stable.v2 as nw
import polars as pl
from tqdm.auto import tqdm

from weaklabel import tables
from weaklabel.content import typed
from weaklabel.engines import LogFiles, Part, QueryLog
from weaklabel.engines.polars import Log as PolarsLog
from weaklabel.errors import WeakLabelError, plain_message
from weaklabel.files import require_parent, workplace, written_beside
from weaklabel.labeling import Identity, LabelingFunction
from weaklabel.patterns import METADATA, described
from weaklabel.plan import QUERY, WRONG, OnError, Plan, RowErrors, RowLog, merge
from weaklabel.schema import kind_of
from weaklabel.tables.files import Source as Source
from weaklabel.tables.files import find
from weaklabel.votes import ABSTAIN, ACCEPT, PREFIX, REJECT

Engine: TypeAlias = Literal["auto", "polars", "duckdb", "spark"]


ENGINES: Final = ("auto", "polars", "duckdb", "spark")

FORMAT: Final = 2  # of votes; those of 1 hold an abstain where there was no input

#: In a folder of votes, beside the parts; tables are looked for in names without the underscore.
NAME: Final = "_weaklabel.json"

#: A folder of votes gets one part for each so many bytes of the log.
PART_BYTES: Final = 256 * 2**20

MOST_PARTS: Final = 1_000_000

#: Memory that Polars takes for each byte of a Parquet file, session windows included; about 15 in
#: tests/benchmarks/bench_weaklabel.py.
POLARS_GROWTH: Final = 16

_SCRATCH: Final = ".weaklabel.tmp"

# How a value in a column of votes is counted.
_KINDS: Final = {
    "accept": ACCEPT,
    "abstain": ABSTAIN,
    "reject": REJECT,
    "missing": None,
    "wrong": WRONG,
}

_logger = logging.getLogger(__name__)


# Metadata of votes


@dataclass(frozen=True)
class Manifest:
    """The settings that all parts of a folder of votes share.

    Attributes:
        functions: of every function the entry in the parts' metadata, in the order of the columns.
        queries: see `LogFiles.state`.
        reference: the same of the reference log.
        keep: the columns kept beside the votes.
        partitions: how many parts there are.
        engine: name and version: engines do not put the same sessions together.
        read: see `LogFiles.altered`.
    """

    functions: list[dict[str, Any]]
    queries: list[list[Any]]
    reference: list[list[Any]]
    keep: list[str]
    partitions: int
    engine: str
    read: str = "as it stands"

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """Read the manifest of a folder; None where there is none."""
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            found: Manifest = typed(cls, vars(cls(**json.loads(path.read_text("utf-8")))))
            described(vars(found))
            if not 1 <= found.partitions <= MOST_PARTS:
                raise WeakLabelError(f"{found.partitions:,} parts")
            for entry in (*found.queries, *found.reference):
                if len(entry) != 3 or not isinstance(entry[0], str):
                    raise WeakLabelError(f"{entry!r} for a file's path, size and time of change")
            return found
        except (WeakLabelError, json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
            raise WeakLabelError(
                f"{path} is no manifest of votes, or that of another version of weaklabel"
                f" ({error}): remove the folder and apply the functions again"
            ) from error

    def save(self, folder: Path) -> None:
        """Write the manifest into a folder."""
        with written_beside(folder / NAME) as beside:
            beside.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    def lacking(self, folder: Path) -> dict[Part, frozenset[str]]:
        """Functions, by part, whose votes are not in the folder, or are by another source."""
        wanted = [Identity.from_dict(entry) for entry in self.functions]
        found = {}
        for part in (Part(index, self.partitions) for index in range(self.partitions)):
            file = folder / part.file
            try:
                entries = _metadata(file).get("functions", ()) if file.is_file() else ()
            except WeakLabelError as error:
                raise WeakLabelError(
                    f"{error}: remove this part, and go on with resume (--resume)"
                ) from error
            there = {entry["name"]: Identity.from_dict(entry) for entry in entries}
            found[part] = frozenset(
                one.name for one in wanted if one.name not in there or one.changes(there[one.name])
            )
        return found

    def resumed(self, folder: Path, partitioned: bool) -> Manifest:
        """The manifest with which the run in a folder goes on; its order of functions stays.

        Args:
            folder: of the votes; without a manifest of its own, this one begins.
            partitioned: the number of parts was asked for, and is not taken from the run before.

        Raises:
            WeakLabelError: it had another log or other settings; the differences are named.
        """
        before = Manifest.load(folder)
        if before is None:
            return self
        named = {entry["name"]: entry for entry in self.functions}
        order = [entry["name"] for entry in before.functions]
        faults = [
            f"function {name!r} was applied then and is not now"
            for name in order
            if name not in named
        ]
        for field, words in {
            "queries": "the query log's files (path, size, time of change)",
            "reference": "the reference log's files (path, size, time of change)",
            "keep": "the columns kept",
            "partitions": "the number of partitions" if partitioned else "",
            "engine": "the engine",
            "read": "how the log is read",
        }.items():
            then, now = getattr(before, field), getattr(self, field)
            if field in ("queries", "reference"):  # of thousands the first that differ
                then, now = (
                    [[x if size is None else os.path.abspath(x), size, at] for x, size, at in some]
                    for some in (then, now)
                )
                then, now = (
                    next((file for file in some if file not in others), "nothing else")
                    for some, others in ((then, now), (now, then))
                )
            if words and then != now:
                faults.append(f"{words}: {then} then, {now} now")
        if faults:
            raise WeakLabelError(
                f"{folder} cannot be resumed: {'; '.join(faults)}. Run as before, or write to"
                " another folder"
            )
        added = [name for name in named if name not in order]
        functions = [named[name] for name in (*order, *added)]
        return replace(self, functions=functions, partitions=before.partitions)


def read_metadata(path: Source) -> dict[str, Any]:
    """The metadata of votes: functions, engine, version, log; {} for files without any.

    Args:
        path: a Parquet file, or a folder or glob of them.

    Returns:
        The metadata of the first file, with the `errors` of all files: for each function that
        raised its `name`, `total` rows, `first` of them as (query_id, message), and `traceback`.

    Raises:
        FileNotFoundError: there is nothing.
        WeakLabelError: a file cannot be read or is of another format, or a run has not ended.
    """
    each = list(read_each(path).values())
    about = dict(each[0]) if each else {}
    errors: dict[str, RowErrors] = {}
    for entry in each:
        merge(errors, _errors(entry))
    if errors:
        about["errors"] = [asdict(entry) for entry in errors.values()]
    return about


def read_each(path: Source) -> dict[str, dict[str, Any]]:
    """`read_metadata` of every file, by its path; empty for other formats and for URLs.

    Raises:
        FileNotFoundError, WeakLabelError: see `read_metadata`.
    """
    found = find(path)
    if found.format != "Parquet" or not found.local:
        return {}
    for folder in sorted({Path(file).parent for file in found.paths}):
        manifest = Manifest.load(folder)
        undone = 0 if manifest is None else sum(map(bool, manifest.lacking(folder).values()))
        if manifest is not None and undone:
            raise WeakLabelError(
                f"{folder} lacks votes in {undone} of {manifest.partitions} parts: finish the run"
                " with resume (--resume)"
            )
    return {file: _metadata(file) for file in found.paths}


def _metadata(file: str | Path) -> dict[str, Any]:
    try:
        text = pl.read_parquet_metadata(Path(file)).get(METADATA)
        about = json.loads(text or "{}")
    except (pl.exceptions.PolarsError, json.JSONDecodeError) as error:
        raise WeakLabelError(
            f"{file} is no Parquet file, or was cut short: {plain_message(error)}; write it again"
        ) from error
    if text is None:
        return {}
    if not isinstance(about, dict):
        raise WeakLabelError(f"the metadata of {file} is no object: {text[:100]}")
    if "patterns" not in about and about.get("votes") != FORMAT:
        raise WeakLabelError(
            f"{file} holds votes of format {about.get('votes', 1)}, by another version of"
            f" weaklabel, and this one reads {FORMAT}: apply the functions again"
        )
    try:
        described(about)
        _errors(about)
    except (WeakLabelError, TypeError) as error:
        raise WeakLabelError(
            f"the metadata of {file} is broken ({error}): apply the functions again"
        ) from error
    return about


def _errors(about: Mapping[str, Any]) -> list[RowErrors]:
    found: list[RowErrors] = typed(list[RowErrors], about.get("errors", []), "errors")
    return found


@dataclass(frozen=True)
class Tally:
    """Counts of one function's votes.

    Attributes:
        name: the function's.
        rowwise: it is of the slow kind.
        accept: votes 1.
        abstain: votes 0.
        reject: votes -1.
        missing: nulls: the function had no input, or raised.
    """

    name: str
    rowwise: bool
    accept: int
    abstain: int
    reject: int
    missing: int

    @property
    def coverage(self) -> float:
        """Votes for and against over rows with input; NaN without any.

        >>> Tally("dwell", False, accept=30, abstain=50, reject=20, missing=100).coverage
        0.5
        """
        votes = self.accept + self.reject
        return votes / (votes + self.abstain) if votes + self.abstain else math.nan


@dataclass(frozen=True)
class Summary:
    """Counts, times and the engine of a run of `apply_files`.

    Attributes:
        rows: queries voted on, those of parts from an earlier run included.
        functions: a tally each, in order.
        seconds: of the whole run.
        engine: which computed the votes.
        reason: why this one.
        partitions: how many files of votes there are.
        resumed: how many of them were there already, with the votes of all functions.
        redone: functions that were computed again, or for the first time, in parts that were there.
        errors: of every function that raised, the rows.
    """

    rows: int
    functions: tuple[Tally, ...]
    seconds: float
    engine: str
    reason: str
    partitions: int
    resumed: int = 0
    redone: tuple[str, ...] = ()
    errors: tuple[RowErrors, ...] = ()


# Files


def apply_files(
    functions: Iterable[LabelingFunction],
    queries: Source | LogFiles,
    out: Source,
    *,
    engine: Engine = "auto",
    keep: Sequence[str] = (),
    on_error: OnError = "missing",
    reference: Source | None = None,
    master: str | None = None,
    partitions: int | None = None,
    resume: bool = False,
    memory_limit: str | None = None,
    identities: Mapping[str, Identity] | None = None,
    progress: bool = True,
) -> Summary:
    """Write the votes of labeling functions on a query log in files.

    The log is cut by sessions (a hash of `session_id`; of `query_id` where there is none), so that
    the votes of a part are those of the whole log. Functions of scope "log" are computed first, in
    one pass over the columns they need, since no part shows them the whole.

    Args:
        functions, keep: see `apply`.
        queries: a file, a folder, a glob or a URL, see `weaklabel.tables.scan`; or a log that is
            open already. DuckDB and Spark read Parquet themselves; CSV and JSON lines are first
            turned into a Parquet file beside the output, so that every engine sees the same values.
        out: a name that ends in .parquet: one file, written beside and renamed. Otherwise a folder
            of `part-00000-of-00008.parquet` and so on, each written beside and renamed. The order
            of rows is that of the log with Polars, and none with DuckDB and Spark.
        engine: "auto" takes Polars, the faster one in tests/benchmarks/bench_weaklabel.py; but
            DuckDB, where it is installed, for a log that may need more than half of the machine's
            memory (16 bytes for each of its files'), or where a memory limit is given.
        on_error: see `apply`; the files' metadata count the rows on which a function raised. Where
            that stops the run, a folder keeps the votes of the other functions, and `resume` goes
            on once the function is mended.
        reference: the files of a larger log, see `apply`.
        master: Spark's, such as `spark://host:7077`; by default two threads of this machine.
        partitions: how many parts a folder has; by default one for each 256 MiB of the log's files.
        resume: `out` is a folder that an earlier run left unfinished, or whose functions changed:
            do the parts that are missing, and in all others the functions whose source or
            parameters are not those of the votes there.
        memory_limit: DuckDB's, such as "4GB" (more is spilled beside the output), and the memory of
            Spark's driver; Polars has none, and holds the columns of session windows.
        identities: of functions by name, for the files' metadata (`Registry.identity`).
        progress: show a progress bar.

    Returns:
        Counts of votes, times, and the engine.

    Raises:
        WeakLabelError: the log cannot be read or lacks columns; a function cannot be computed or
            votes something else than 1, 0, -1 or null, and then the queries are named; the folder
            cannot be resumed with these settings; another process writes this output.
        FileExistsError: the folder is there already, and `resume` is not given.
        FileNotFoundError: there is no log, or no folder to write in.
        OSError: the disk is full. Nothing half-written is left; what was there is untouched.
        ImportError: the engine is not installed.
    """
    began = time.perf_counter()
    target = Path(out)
    single = target.suffix == ".parquet"
    if engine not in ENGINES:
        raise WeakLabelError(f"no engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if single and (resume or partitions not in (None, 1)):
        raise WeakLabelError(
            f"{target.name} is one file: partitions (--partitions) and resume (--resume) belong to"
            " a folder, so give a name without .parquet"
        )
    if partitions is not None and partitions < 1:
        raise WeakLabelError(f"at least one partition is needed, got {partitions}")
    plan = Plan.of(functions, keep, on_error)
    log = queries if isinstance(queries, LogFiles) else LogFiles.open(queries)
    other = None if reference is None else LogFiles.open(reference)
    chosen, reason = _choose(engine, log.bytes, memory_limit)
    _logger.info("votes are computed by %s: %s", chosen, reason)
    with written_beside(target) if single else _folder(target, resume) as place:
        scratch = place.parent if single else place
        # What the file holds: to DuckDB a duration is an integer in an unknown unit.
        plan.check_types(nw.from_native(log.frame).collect_schema())
        with closing(_engine(chosen).Log(log, other, scratch, master, memory_limit)) as opened:
            with opened.faults():
                plan.check_columns(opened.columns)
                log_rows = opened.log_rows(plan)
            manifest = Manifest(
                functions=[
                    {
                        **asdict((identities or {}).get(function.name) or function.identity()),
                        "family": function.family,
                        "rowwise": function.rowwise,
                        "scope": function.scope,
                        "log_rows": log_rows if function.scope == "log" else None,
                    }
                    for function in plan.functions
                ],
                queries=log.state,
                reference=[] if other is None else other.state,
                keep=list(plan.keep),
                partitions=partitions or (1 if single else math.ceil(log.bytes / PART_BYTES) or 1),
                engine=f"{opened.name} {opened.version}",
                read=str(log.altered or "as it stands"),
            )
            if not single:
                manifest = manifest.resumed(target, partitions is not None)
            if log.begin is not None:
                log.begin()
            if not single:
                manifest.save(target)
            about = {
                "votes": FORMAT,
                "engine": manifest.engine,
                "version": version("weaklabel"),
                "queries": {"path": log.given, "files": len(log.files), "bytes": log.bytes},
                "reference": None if other is None else other.given,
            }
            run = _Run(opened, plan, manifest, about, place if single else target)
            run.do(progress)
    RowLog(raised=run.errors).warn("the votes' metadata and the report")
    first = run.tallies[0]
    return Summary(
        rows=first.accept + first.abstain + first.reject + first.missing,
        functions=run.tallies,
        seconds=time.perf_counter() - began,
        engine=chosen,
        reason=reason,
        partitions=manifest.partitions,
        resumed=run.resumed,
        redone=run.redone,
        errors=tuple(run.errors.values()),
    )


class _Run:
    """The parts of one run, in one file or a folder: what each lacks, and how it gets there."""

    def __init__(
        self, log: QueryLog, plan: Plan, manifest: Manifest, about: Mapping[str, Any], target: Path
    ) -> None:
        self.log, self.about, self.single = log, about, target.suffix == ".parquet"
        self.entries = {entry["name"]: entry for entry in manifest.functions}
        named = {function.name: function for function in plan.functions}
        self.plan = replace(plan, functions=tuple(named[name] for name in self.entries))
        every = {Part(0, 1): frozenset(self.entries)}
        self.lacking = every if self.single else manifest.lacking(target)
        self.files = {part: target if self.single else target / part.file for part in self.lacking}
        there = [some for part, some in self.lacking.items() if self.files[part].is_file()]
        self.resumed = sum(not names for names in there)
        self.redone = tuple(name for name in self.entries if any(name in some for some in there))
        self.rows = RowLog()
        self.errors: dict[str, RowErrors] = {}
        self._votes: Counter[str] = Counter()  # "accept dwell" and so on

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """Counts of votes in all parts."""
        kinds = [kind for kind in _KINDS if kind != "wrong"]
        return tuple(
            Tally(f.name, f.rowwise, *(self._votes[f"{kind} {f.name}"] for kind in kinds))
            for f in self.plan.functions
        )

    def do(self, progress: bool) -> None:
        """Compute the votes that are lacking, and count all votes, each once.

        Raises:
            WeakLabelError: a function cannot be computed, cast something that is no vote, or raised
                where that is to stop the run.
        """
        every = frozenset(self.entries)
        groups: dict[frozenset[str], list[Part]] = {}
        for part, lacking in self.lacking.items():
            file = self.files[part]
            # Votes can be put beside those that are there by the id of their query.
            names = lacking if lacking in (every, frozenset()) or _unique(file) else every
            if names:
                groups.setdefault(names, []).append(part)
            if names != every:
                self._count(file, [f for f in self.plan.functions if f.name not in names])
                merge(self.errors, (e for e in _errors(_metadata(file)) if e.name not in names))
        rowwise = bool(self.plan.rowwise) and self.log.name != "spark"
        with tqdm(
            total=None if rowwise else sum(map(len, groups.values())),
            unit="row" if rowwise else "part",
            unit_scale=rowwise,
            desc="votes",
            disable=not progress,
        ) as bar:
            if rowwise:
                self.rows.advance = bar.update
            for names, parts in groups.items():
                functions = tuple(f for f in self.plan.functions if f.name in names)
                keep = self.plan.keep if names == every else ()
                # In a folder the votes of the other functions are kept before a run is stopped.
                later = self.log.name != "spark" and not self.single
                plan = Plan(functions, keep, "missing" if later else self.plan.on_error)
                metadata = self._metadata([self.entries[f.name] for f in functions])
                with self.log.faults():
                    for part, made in self.log.parts(plan, parts, metadata, self.rows):
                        self._finish(part, made, plan, None if names == every else self.files[part])
                        if not rowwise:
                            bar.update(1)

    def _count(self, file: Path, functions: Sequence[LabelingFunction]) -> list[str]:
        """Add up the votes in a file; returns the functions with values that are no votes."""
        wanted = {
            f"{kind} {f.name}": pl.col(f.column).eq_missing(pl.lit(vote, pl.Int8)).sum()
            for f in functions
            for kind, vote in _KINDS.items()
        }
        seen = pl.scan_parquet(file, glob=False).select(**wanted).collect(engine="streaming")
        counts = seen.row(0, named=True)
        self._votes.update(counts)
        return [f.name for f in functions if counts[f"wrong {f.name}"]]

    def _metadata(
        self, entries: Sequence[Mapping[str, Any]], errors: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, str]:
        about = {**self.about, "functions": entries, **({"errors": errors} if errors else {})}
        return {METADATA: json.dumps(about, ensure_ascii=False, default=str)}

    def _finish(self, part: Part, made: Path, plan: Plan, old: Path | None) -> None:
        """Check the votes of a part, and let them take their place beside those of an old file.

        Raises:
            WeakLabelError: see `do`; the votes of the other functions are in place by then.
        """
        raised, self.rows.raised = self.rows.raised, {}
        wrong, self.rows.wrong = self.rows.wrong, {}
        merge(wrong, self.log.wrong(plan, self._count(made, plan.functions)))
        merge(self.errors, raised.values())
        stopped = raised if self.plan.on_error == "fail" else {}
        good = [f.name for f in plan.functions if f.name not in {**wrong, **stopped}]
        fault = None
        try:
            RowLog(raised=stopped, wrong=wrong).check("fail")
        except WeakLabelError as error:
            if self.single or not good:
                raise
            fault = error
        if raised or fault is not None or old is not None:
            made = self._merged(made, plan, good, raised, old)
        made.replace(self.files[part])
        if fault is not None:
            raise WeakLabelError(
                f"{fault}. The votes of the other functions are kept: mend this one, then go on"
                " with resume (--resume)"
            ) from fault

    def _merged(
        self,
        made: Path,
        plan: Plan,
        good: Sequence[str],
        raised: Mapping[str, RowErrors],
        old: Path | None,
    ) -> Path:
        """A file with the good votes of the new one beside those of the old one."""
        votes = pl.scan_parquet(made, glob=False)
        before = {} if old is None else _metadata(old)
        computed = {function.name for function in plan.functions}
        there = {e["name"]: e for e in before.get("functions", ()) if e["name"] not in computed}
        if old is not None:
            new = votes.select(QUERY, *(PREFIX + name for name in good))
            kept = pl.scan_parquet(old, glob=False).select(
                QUERY, *self.plan.keep, *(PREFIX + name for name in there)
            )
            votes = kept.join(new, on=QUERY, how="left", maintain_order="left")
        names = [name for name in self.entries if name in there or name in good]
        metadata = self._metadata(
            [there.get(name) or self.entries[name] for name in names],
            [e for e in before.get("errors", ()) if e["name"] in there]
            + [asdict(raised[name]) for name in good if name in raised],
        )
        target = made.with_name(f"merged-{made.name}")
        votes = votes.select(QUERY, *self.plan.keep, *(PREFIX + name for name in names))
        votes.sink_parquet(target, metadata=metadata)
        return target


def _unique(file: Path) -> bool:
    """Every query has an id of its own, by which a file of votes can be joined."""
    ids = pl.scan_parquet(file, glob=False).select(
        (pl.col(QUERY).n_unique() == pl.len()) & (pl.col(QUERY).null_count() == 0)
    )
    return bool(ids.collect(engine="streaming").item())


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


@contextmanager
def _folder(target: Path, resume: bool) -> Iterator[Path]:
    """The scratch folder of a folder of votes, which is made if there is none.

    A run that wrote no part leaves nothing, and may be tried again with other settings.
    """
    require_parent(target)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file: give the path of a folder, or end in .parquet")
    target.mkdir(exist_ok=True)
    try:
        with workplace(target / _SCRATCH, target) as scratch:
            # A run that was killed while it wrote the manifest has begun nothing either.
            unfinished = (_SCRATCH, f".{NAME}.tmp")
            begun = any(entry.name not in unfinished for entry in target.iterdir())
            if begun and not resume:
                raise FileExistsError(
                    f"{target} exists already: give another name, remove it first, or go on with"
                    " resume (--resume)"
                )
            if begun and not (target / NAME).is_file():
                raise WeakLabelError(
                    f"{target} has no {NAME}, so that it is no run to resume: give another name"
                )
            try:
                yield scratch
            finally:
                if not begun and not any(target.glob("part-*.parquet")):
                    (target / NAME).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # there is something in it
            target.rmdir()


# Frames


def apply(
    functions: Iterable[LabelingFunction],
    queries: Any,
    *,
    keep: Sequence[str] = (),
    on_error: OnError = "missing",
    reference: Any = None,
) -> Any:
    """The votes of labeling functions on a query log that is a frame.

    Args:
        functions: the functions to apply, each with a name of its own.
        queries: a frame: Polars, eager or lazy; a DuckDB relation; a PySpark frame; pandas or
            pyarrow (through Polars).
        keep: columns of the log to keep beside the votes.
        on_error: where a row-wise function raises: "missing" leaves its vote on that row missing,
            and logs a warning; "fail" raises once all rows were seen.
        reference: a larger log, a frame of the same kind; functions of scope "log" look at its
            queries, too, so that their votes on a day's log mean the same as on a month's.

    Returns:
        A frame of the same kind: `query_id`, the kept columns, and an Int8 column `lf:<name>` for
        each function, in the functions' order; null where the function had no input. Eager frames
        keep the order of their rows; engines such as DuckDB and Spark promise none. A lazy frame is
        still lazy: a vote that is none (see Raises) is found when it is computed, and is a 2 there,
        which `Patterns.count` refuses; row-wise functions raise at that point, and so does the
        engine where it cannot compute a value. On a DuckDB relation, row-wise functions are
        computed here and now, and the votes held in memory.

    Raises:
        WeakLabelError: columns are missing; `timestamp` is read and holds no times, or one of
            `confidence`, `duration` and `dwell` no numbers; two functions share a name; a function
            cannot be computed, votes something else than 1, 0, -1 or null, or raises where that is
            to stop the run. In an eager frame the queries are named.
        TypeError: `queries` is no frame, or one of another kind.
    """
    plan = Plan.of(functions, keep, on_error)
    frame = nw.from_native(queries)
    if isinstance(frame, nw.DataFrame):
        return _eager(frame, plan, reference)
    kind = frame.implementation.name.lower()
    engine = kind.removeprefix("py").removesuffix("_connect")
    if engine not in ENGINES:
        raise TypeError(
            f"a lazy frame of {kind} given, expected one of Polars, DuckDB or PySpark: collect it"
            " first, or write the log to files"
        )
    return _engine(engine).Log.votes(frame.to_native(), plan, reference=reference)


def _engine(name: str) -> Any:
    return importlib.import_module(f"weaklabel.engines.{name}")


def _eager(frame: nw.DataFrame[Any], plan: Plan, reference: Any) -> Any:
    plan.check_columns(frame.columns)
    read = tables.to_polars(frame.select(*plan.required))
    # A column of None has no type in pandas, and comes as text.
    kinds: dict[Any, Any] = {
        column.name: pl.Null
        for column in read
        if kind_of(column.name) in ("time", "share", "seconds")
        and column.dtype == pl.String
        and column.null_count() == len(read)
    }
    log = read.cast(kinds).lazy()
    if reference is not None:
        reference = tables.to_polars(reference).lazy()
    rows = RowLog()
    try:
        found = PolarsLog.votes(log, plan, rows, reference).collect()
    except PolarsLog.errors:  # it does not say whose expression failed
        for function in plan.functions:
            try:
                PolarsLog.votes(log, Plan((function,)), RowLog(), reference).collect()
            except PolarsLog.errors as error:
                raise WeakLabelError(
                    f"labeling function {function.name!r} failed: {plain_message(error)}"
                ) from error
        raise
    wrong = [f.name for f in plan.functions if (found[f.column] == WRONG).any()]
    if wrong:
        merge(rows.wrong, plan.wrong(nw.from_native(PolarsLog.prepared(log, plan)), wrong))
    rows.check(plan.on_error)
    rows.warn()
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
