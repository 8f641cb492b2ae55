"""Measure the quick benchmarks again, and compare with the committed figures: `make bench-check`.

    python tests/benchmarks/bench_check.py
    python tests/benchmarks/bench_check.py dispatch padding
    python tests/benchmarks/bench_check.py --longest 600

Each file of docs/benchmarks names the command that wrote it. Those that took at most two minutes
and need no other tool run again, with the same options, and their figures are held against the
committed ones. A line is printed, and the exit status is 1, for each median that is worse than its
limit: worse than the committed median by more than the figure's margin, and than all committed
runs. Only figures of ours have one: other tools' rows stand beside them. Figures that are missing,
files that are damaged, hold none or hold one twice, and commands that fail count as worse. A better
median is no failure; commit it.

The limits are ratios of things that were measured together, so other hardware is no reason to miss
one, but other work of the machine beside the benchmark may be.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from figures import SAVED, Figure, load, shown

HERE = Path(__file__).parent
LONGEST = 120  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of files; default: all quick ones")
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds of a quick one")
    parser.add_argument("--committed", type=Path, default=SAVED, help="folder of figures")
    parser.add_argument("--scripts", type=Path, default=HERE, help="folder of benchmarks")
    options = parser.parse_args(arguments)
    files = {file.stem: file for file in sorted(options.committed.glob("*.json"))}
    unknown = set(options.names) - files.keys()
    if unknown or not files:
        parser.error(f"no figures of {', '.join(sorted(unknown)) or 'anything'} are committed")
    worse: list[str] = []
    compared = 0
    for name, file in files.items():
        if options.names and name not in options.names:
            continue
        try:
            found, figures = load(file)
            command, seconds = found["command"], float(found["seconds"])
            is_list = isinstance(command, list) and all(isinstance(x, str) for x in command)
            if not (command and is_list and figures):
                raise ValueError("it names no command" if figures else "it holds no figures")
        except (ValueError, KeyError, TypeError, OSError) as error:
            worse.append(f"{name}: the committed file is damaged: {error!r}")
            print(worse[-1], flush=True)
            continue
        if not options.names and (seconds > options.longest or name.startswith("peers-")):
            print(f"{name}: left out unless named; it took {seconds:g} s", flush=True)
            continue
        compared += 1
        lines = list(check(name, command, figures, options.scripts))
        print(*(lines or [f"{name}: {len(figures)} figures within their limits"]), sep="\n")
        worse += lines
    if not compared:
        print("no figures were compared")
    return 1 if worse or not compared else 0


def check(
    name: str, command: Sequence[str], committed: Sequence[Figure], scripts: Path
) -> Iterator[str]:
    """Run a command again; a line for each figure that is worse than the committed one."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, str(scripts / command[0]), *command[1:], "--save", folder]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            yield f"{name}: {' '.join(command)} ended with status {done.returncode}: {last}"
        file = Path(folder, f"{name}.json")
        try:
            measured = load(file)[1] if file.exists() else []
        except ValueError as error:
            yield f"{name}: {error}"
            measured = []
    yield from beyond(name, committed, measured)


def beyond(name: str, committed: Sequence[Figure], measured: Sequence[Figure]) -> Iterator[str]:
    """A line for each figure that is worse than the committed one, or is not there."""
    found = {figure.name: figure for figure in measured}
    for figure in committed:
        where = f"{name}: {figure.what}" + (f", {figure.along} {figure.at}" if figure.along else "")
        other = found.get(figure.name)
        if other is None:
            yield f"{where}: not measured"
        elif figure.worse(other):
            least = "at most" if figure.better == "lower" else "at least"
            yield (
                f"{where}: {shown(other.median)}, committed {shown(figure.median)}, "
                f"{least} {shown(figure.limit)}"
            )


if __name__ == "__main__":
    sys.exit(main())
