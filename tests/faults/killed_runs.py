"""Kill weaklabel's commands, fill their disk, break their input; then look, and run them again.

    python tests/faults/killed_runs.py                          # about 20 minutes
    python tests/faults/killed_runs.py --kills 4 --points 4 --flips 20 --copies 2 --spark 0
    python tests/faults/killed_runs.py --kills 0 --spark 10     # on Spark alone

Each command runs once undisturbed and then, on a copy of its inputs' folder, with one fault:

- kill -9 at a random moment;
- kill -9 before the n-th change that Python makes to the file system, for every n; and the same
  with an error "no space left on device" in its place;
- a second process that runs the same command at the same time;
- a disk with too little room, and a read-only one (as root on Linux: a tmpfs each);
- a part of the log that vanishes, before a restart and at a random moment;
- a byte of the log flipped.

A watcher reads every file of the output as it appears under its final name and compares it with the
undisturbed run's. After a fault the command runs once more, to the end, and so does its output.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked
import polars as pl
import record

LOG = Path(__file__).parents[2] / "docs/examples/households/queries.parquet"
PARTS = 4

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", "forked"])
# Of Python 3.11's, the fork server knows no other path than the environment's.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])


@dataclass(frozen=True)
class Command:
    """A command of weaklabel's, run in a folder that holds its inputs.

    Attributes:
        name: for messages and counts.
        words: its arguments; paths are relative to the folder.
        out: the file or folder it writes.
        again: arguments to add when it is run a second time.
    """

    name: str
    words: tuple[str, ...]
    out: str
    again: tuple[str, ...] = ()


@dataclass
class Found:
    """What the faults led to; `wrong` holds a line for each thing that must not be."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            self.wrong.append(what)
            print(f"WRONG: {what}", file=sys.stderr, flush=True)


def commands(engine: str) -> tuple[Command, ...]:
    """The pipeline from a log to a trainer's files, in order."""
    applied = ("apply", "log", "--engine", engine, "--no-progress", "--out")
    return (
        Command("apply, a file", (*applied, "votes.parquet"), "votes.parquet"),
        Command(
            "apply, a folder",
            (*applied, "votes", "--partitions", str(PARTS)),
            "votes",
            ("--resume",),
        ),
        Command("fit", ("fit", "votes.parquet", "--out", "model.json"), "model.json"),
        Command(
            "label",
            ("label", "votes.parquet", "--model", "model.json", "--out", "labels.parquet"),
            "labels.parquet",
        ),
        Command(
            "export",
            tuple(
                "export labels.parquet --queries exported.parquet --format nemo"
                " --no-check-audio --audio-root /audio --out export".split()
            ),
            "export",
        ),
    )


def make_log(folder: Path, copies: int) -> None:
    """The households' log so many times over, in three files; with audio paths, to be exported."""
    log = pl.read_parquet(LOG)
    (folder / "log").mkdir()
    whole = [
        log.with_columns(pl.col("query_id", "session_id") + f"-{copy}") for copy in range(copies)
    ]
    every = pl.concat(whole)
    size = -(-every.height // 3)
    for number in range(3):
        part = every.slice(number * size, size)
        part.write_parquet(folder / f"log/{number}.parquet")
    every.with_columns(audio=pl.format("{}.wav", "query_id")).write_parquet(
        folder / "exported.parquet"
    )


# Outputs


def content(path: Path) -> Any:
    """What a file holds: rows in the order of their ids, and metadata; or bytes."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    table = pl.read_parquet(path)
    about = {k: v for k, v in pl.read_parquet_metadata(path).items() if k != "ARROW:schema"}
    return table.sort(table.columns[0]), about


def same(left: Any, right: Any) -> bool:
    if isinstance(left, tuple) and isinstance(right, tuple):
        return left[0].equals(right[0]) and left[1] == right[1]
    return bool(left == right)


def visible(out: Path) -> list[Path]:
    """The files of an output under final names: no part of their path is hidden."""
    if out.is_file():
        return [out]
    found = list[Path]()
    for here, folders, names in os.walk(out):  # which may vanish meanwhile
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(here, name) for name in names if name[0] != "."]
    return sorted(found)


def hidden(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(".*"))


class Undisturbed:
    """Inputs of a command in a folder, and what it makes of them there.

    Attributes:
        wanted: of every file of its output the content, by its path within the folder.
        seconds: that the run took.
        changes: that Python made to the file system.
    """

    def __init__(self, command: Command, folder: Path) -> None:
        self.command, self.folder = command, folder
        began = time.perf_counter()
        code, said = Process(command, folder).end()
        assert code == 0, said
        self.seconds = time.perf_counter() - began
        self.changes = int(said.split()[-1])
        self.wanted = {
            path.relative_to(folder).as_posix(): content(path)
            for path in visible(folder / command.out)
        }
        assert self.wanted, command

    def is_whole(self, folder: Path) -> bool:
        """Whether a folder's output is this one, with no file more or less."""
        there = visible(folder / self.command.out)
        names = {path.relative_to(folder).as_posix() for path in there}
        return names == set(self.wanted) and all(self.holds(path, folder) for path in there)

    def holds(self, path: Path, folder: Path) -> bool:
        """Whether a file under a final name is what it should be."""
        name = path.relative_to(folder).as_posix()
        try:
            return name in self.wanted and same(content(path), self.wanted[name])
        except (pl.exceptions.PolarsError, OSError, ValueError):
            return False


class Process:
    """A run of a command in a folder, begun as it is made; see `forked.run` for the fault."""

    def __init__(
        self,
        command: Command,
        folder: Path,
        number: int = 0,
        fault: str = "none",
        more: Sequence[str] = (),
    ) -> None:
        handle, name = tempfile.mkstemp(dir=folder.parent)
        os.close(handle)
        self._said = Path(name)
        words = (*command.words, *more)
        arguments = (str(folder), words, name, number, fault)
        self._process = FORKS.Process(target=forked.run, args=arguments)
        self._process.start()

    @property
    def runs(self) -> bool:
        return self._process.exitcode is None

    def kill(self) -> None:
        try:
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            self._process.kill()

    def end(self) -> tuple[int, str]:
        """Wait for it; its exit code and what it said on standard error."""
        self._process.join()
        said = self._said.read_text("utf-8", errors="replace")
        code = self._process.exitcode
        assert code is not None
        return code, said


@contextmanager
def copied(undisturbed: Undisturbed) -> Iterator[Path]:
    """The folder without the command's output."""
    with tempfile.TemporaryDirectory(dir=undisturbed.folder.parent) as name:
        folder = Path(name) / "work"
        skipped = shutil.ignore_patterns(undisturbed.command.out)
        shutil.copytree(
            undisturbed.folder, folder, ignore=skipped, copy_function=shutil.copy2, symlinks=True
        )
        yield folder


# Faults


def watch(
    process: Process,
    undisturbed: Undisturbed,
    folder: Path,
    found: Found,
    until: float = float("inf"),
) -> tuple[int, str]:
    """Read each file as it appears under its final name, until the process ends or is killed."""
    seen: dict[Path, tuple[int, int, int]] = {}

    def look() -> None:
        for path in visible(folder / undisturbed.command.out):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            state = about.st_ino, about.st_size, about.st_mtime_ns
            if seen.get(path) != state:
                seen[path] = state
                found.counts["files seen under their final names"] += 1
                whole = undisturbed.holds(path, folder)
                found.expect(whole, f"{undisturbed.command.name}: {path.name} is not whole")

    while process.runs and time.monotonic() < until:
        look()
        time.sleep(0.001)
    if process.runs:
        process.kill()
    ended = process.end()
    look()
    return ended


def finish(undisturbed: Undisturbed, folder: Path, found: Found, after: str) -> None:
    """Run the command once more, to its end, and compare."""
    command = undisturbed.command
    name = f"{command.name}, after {after}"
    if command.out == "export" and (folder / command.out).exists():
        # It was stopped after its folder had taken its name: nothing is left to do.
        found.expect(undisturbed.is_whole(folder), f"{name}: the folder is not whole")
        shutil.rmtree(folder / command.out)
    code, said = Process(command, folder, more=command.again).end()
    found.expect(code == 0, f"{name}: it cannot be run again: {said.strip()}")
    found.expect(undisturbed.is_whole(folder), f"{name}: the result is another")
    found.expect(not hidden(folder), f"{name}: {hidden(folder)} is left behind")
    found.counts["restarts"] += 1


def kill_at_random(undisturbed: Undisturbed, found: Found, rng: random.Random) -> None:
    moment = undisturbed.seconds * rng.random()
    with copied(undisturbed) as folder:
        process = Process(undisturbed.command, folder)
        code, _ = watch(process, undisturbed, folder, found, time.monotonic() + moment)
        if code == -signal.SIGKILL:
            found.counts["kills at random moments"] += 1
            found.counts["of them with unfinished files on the disk"] += bool(hidden(folder))
        finish(undisturbed, folder, found, f"a kill at {moment:.3f} s")


def stop_at_change(undisturbed: Undisturbed, found: Found, number: int, fault: str) -> None:
    command = undisturbed.command
    name = f"{command.name}, {fault} at change {number}"
    with copied(undisturbed) as folder:
        process = Process(command, folder, number, fault)
        code, said = watch(process, undisturbed, folder, found)
        found.expect("Traceback" not in said, f"{name}: {said.strip()[-500:]}")
        if fault == "kill":
            found.expect(code == -signal.SIGKILL, f"{name}: exit {code}")
            found.counts["kills before a change to the file system"] += 1
        else:
            whole = undisturbed.is_whole(folder)
            found.expect(code == 2 or whole, f"{name}: exit {code}")
            found.counts["changes refused for want of space"] += 1
        finish(undisturbed, folder, found, name)


def twice_at_once(undisturbed: Undisturbed, found: Found) -> None:
    """Two processes run the same command: one may be refused, and the result is the one."""
    name = f"{undisturbed.command.name}, twice at once"
    with copied(undisturbed) as folder:
        both = [Process(undisturbed.command, folder) for _ in range(2)]
        ended = [watch(process, undisturbed, folder, found) for process in both]
        codes, said = sorted(code for code, _ in ended), [text for _, text in ended]
        found.expect(codes in ([0, 0], [0, 2]), f"{name}: exit {codes}, {said}")
        found.expect(not any("Traceback" in text for text in said), f"{name}: {said}")
        found.expect(undisturbed.is_whole(folder), f"{name}: the result is another")
        found.expect(not hidden(folder), f"{name}: {hidden(folder)} is left behind")
        found.counts["pairs of runs at once"] += 1
        found.counts["of them with one refused"] += codes == [0, 2]


@contextmanager
def disk(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory on a folder; `CalledProcessError` without the right to mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def on_a_bad_disk(undisturbed: Undisturbed, found: Found, kind: str) -> None:
    """A disk without room for the output, or one that nothing can be written to."""
    command, name = undisturbed.command, f"{undisturbed.command.name}, a {kind} disk"
    with copied(undisturbed) as folder:
        room = folder / "room"
        room.mkdir()
        words = tuple(f"room/{word}" if word == command.out else word for word in command.words)
        moved = Command(command.name, words, f"room/{command.out}", command.again)
        try:
            with disk(room, "size=8k" if kind == "full" else "ro,size=1m"):
                code, said = Process(moved, folder).end()
                there, unfinished = visible(room / command.out), hidden(room)
                sizes = [path.stat().st_size for path in there]
        except (subprocess.CalledProcessError, FileNotFoundError):
            found.counts["bad disks left out, for want of the right to mount one"] += 1
            return
        found.counts[f"runs on a {kind} disk"] += 1
        found.expect(code == 2, f"{name}: exit {code}, {said[-300:]}")
        found.expect("Traceback" not in said, f"{name}: {said[-500:]}")
        found.expect(not unfinished, f"{name}: {unfinished} is left behind")
        # A folder of votes keeps the parts that there was room for, and its manifest.
        allowed = all(sizes) if command.again else not there
        found.expect(allowed, f"{name}: {there} of {sizes} bytes")


def without_a_part(undisturbed: Undisturbed, found: Found, rng: random.Random) -> None:
    """A file of the log goes at a random moment, and comes back before the last restart."""
    command, name = undisturbed.command, f"{undisturbed.command.name}, a part of the log gone"
    with copied(undisturbed) as folder:
        process = Process(command, folder)
        while process.runs and not hidden(folder):  # before, it is another log
            time.sleep(0.001)
        time.sleep(undisturbed.seconds * rng.random() / 2)
        part, kept = folder / "log/1.parquet", folder / "kept"
        part.rename(kept)
        code, said = watch(process, undisturbed, folder, found)
        found.counts["runs whose log loses a file"] += 1
        found.counts["of them refused at once"] += code == 2
        right = code == 2 or (code == 0 and undisturbed.is_whole(folder))
        found.expect(right, f"{name}: exit {code} and other votes")
        found.expect("Traceback" not in said, f"{name}: {said[-500:]}")
        if command.again and (folder / command.out / "_weaklabel.json").exists():
            code, said = Process(command, folder, more=command.again).end()
            found.expect(code == 2, f"{name}: resumed without it")
            found.expect("query log's files" in said, f"{name}: {said[-500:]}")
        kept.rename(part)
        finish(undisturbed, folder, found, "a lost part")


FLIPS = """
import contextlib, io, random, sys
import polars as pl
from weaklabel.cli import main

log, folder, engine, seed, flips = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
whole = open(log, "rb").read()
rng = random.Random(seed)

def run():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["apply", f"{folder}/log.parquet", "--engine", engine, "--no-progress",
                     "--out", f"{folder}/votes.parquet"])
    return code, said.getvalue()

def votes():
    return pl.read_parquet(f"{folder}/votes.parquet").sort(pl.all())

open(f"{folder}/log.parquet", "wb").write(whole)
assert run()[0] == 0
wanted = votes()
for flip in range(flips):
    place, bit = rng.randrange(len(whole)), rng.randrange(8)
    broken = bytearray(whole)
    broken[place] ^= 1 << bit
    open(f"{folder}/log.parquet", "wb").write(broken)
    try:
        code, said = run()
        kind = "refused" if code == 2 else f"exit {code}" if code else (
            "harmless" if votes().equals(wanted) else "read as other values")
        if "Traceback" in said or "panicked" in said:
            kind = "traceback"
    except BaseException as error:
        kind = type(error).__name__
    print(place, bit, kind, sep="\t", flush=True)
"""


def flip_bits(folder: Path, engine: str, flips: int, seed: int, found: Found) -> None:
    """A bit of the log is flipped: an error, or the values that the file now holds."""
    place = tempfile.mkdtemp(dir=folder)
    words = [str(LOG), place, engine, str(seed), str(flips)]
    done = subprocess.run([sys.executable, "-c", FLIPS, *words], capture_output=True, text=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    found.expect(len(lines) == flips, f"{engine}: a flipped bit ended it: {done.stderr[-1000:]}")
    for where, bit, kind in lines:
        found.counts["logs with a flipped bit"] += 1
        found.counts[f"of them {kind}"] += 1
        known = kind in ("refused", "harmless", "read as other values")
        found.expect(known, f"{engine}: bit {bit} of byte {where}: {kind}")


def run(
    folder: Path, *, copies: int, kills: int, points: int | None, flips: int, seed: int
) -> Found:
    """Commands with all faults, on Polars and DuckDB.

    Args:
        folder: to work in.
        copies: of the households' log.
        kills: at random moments, over commands and engines.
        points: changes to the file system to be disturbed in each command; None for all.
        flips: bits flipped for each engine.
        seed: of moments and bits.
    """
    rng, found = random.Random(seed), Found()
    every: list[Undisturbed] = []
    for engine in ("polars", "duckdb"):
        inputs = folder / engine
        inputs.mkdir()
        make_log(inputs, copies)
        # What follows the votes knows no engine.
        chosen = commands(engine)[slice(None) if engine == "polars" else slice(2)]
        every += [Undisturbed(command, inputs) for command in chosen]
    for one in every:
        what = " ".join(one.command.words[:4])
        print(f"{what}: {one.seconds:.2f} s, {one.changes} changes", flush=True)
    while found.counts["kills at random moments"] < kills:
        kill_at_random(rng.choice(every), found, rng)
    for one in every:
        numbers = range(1, one.changes + 1)
        some = numbers if points is None else rng.sample(numbers, min(points, len(numbers)))
        for number in some:
            for fault in ("kill", "full"):
                stop_at_change(one, found, number, fault)
        twice_at_once(one, found)
        for kind in ("full", "read-only"):
            on_a_bad_disk(one, found, kind)
        if one.command.words[0] == "apply":
            without_a_part(one, found, rng)
    for engine in ("polars", "duckdb"):
        flip_bits(folder, engine, flips, seed, found)
    return found


def run_on_spark(folder: Path, *, copies: int, kills: int, seed: int) -> Found:
    """A folder of votes by Spark, killed with its JVM at random moments; see `run`."""
    rng, found = random.Random(seed), Found()
    inputs = folder / "spark"
    inputs.mkdir()
    make_log(inputs, copies)
    one = Undisturbed(commands("spark")[1], inputs)
    print(f"Spark: {one.seconds:.2f} s, {one.changes} changes", flush=True)
    while found.counts["kills at random moments"] < kills:
        kill_at_random(one, found, rng)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="on Polars and DuckDB")
    parser.add_argument("--points", type=int, help="changes in each command; default: all")
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--copies", type=int, default=6)
    parser.add_argument("--spark", type=int, default=10, help="kills on Spark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability alone")
    args = parser.parse_args()
    options = {"copies": args.copies, "seed": args.seed}
    wrong = 0
    if args.kills:
        chosen = {**options, "kills": args.kills, "points": args.points, "flips": args.flips}
        wrong += measured("weaklabel", run, chosen, not args.no_record)
    if args.spark:
        chosen = {**options, "kills": args.spark}
        wrong += measured("weaklabel_spark", run_on_spark, chosen, not args.no_record)
    sys.exit(bool(wrong))


def measured(name: str, work: Callable[..., Found], options: dict[str, Any], keep: bool) -> int:
    """Do it, print its figures, keep them under a name; how much was wrong."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = work(Path(folder), **options)
    figures = {**found.counts, "results that are wrong, files that are not whole": len(found.wrong)}
    print(json.dumps(figures, indent=1))
    if keep:
        record.save(
            name, figures, began=began, seed=options["seed"],
            packages=("weaklabel", "polars", "duckdb", "pyspark"),
        )  # fmt: skip
    return len(found.wrong)


if __name__ == "__main__":
    main()
