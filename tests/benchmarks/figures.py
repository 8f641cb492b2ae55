"""Keep what a benchmark measured as JSON, and show it in docs/benchmarks.md.

    python tests/benchmarks/figures.py

writes the page's tables and docs/figures/growth.png anew from docs/benchmarks/*.json. Every
benchmark does it at its end where it is given `--save docs/benchmarks`.

A figure is a ratio of two things that were measured in one run, so that it means something on other
hardware: its median, its lowest and highest value, and how much worse a median may be before
`make bench-check` fails.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "benchmarks.md"
SAVED = DOCS / "benchmarks"
ALT = "Lines of the tables below: each ratio along what grows"
PICTURE = DOCS / "figures" / "growth.png"
MARGIN = 0.3  # that a median may be worse, unless a figure says another

# <!-- tracing --> begins what is made of tracing.json, <!-- end --> ends it
TABLE = re.compile(r"(?<=<!-- )(?!end\b)([\w-]+)( -->\n).*?(?=\n<!-- end -->)", re.DOTALL)

_began, _load = time.perf_counter(), os.getloadavg()[0]


@dataclass(frozen=True)
class Figure:
    """A ratio.

    Attributes:
        what: what is measured, over what: "processor time of a traced step / of an untraced one".
        median: of the runs.
        low: the least of them.
        high: the largest of them.
        runs: how many there are; one, where the ratio is of medians or of what does not scatter.
        margin: share of the median by which another median may be worse, where it is also beyond
            the committed runs.
        better: "lower", "higher", or "neither" for what other tools do, of which no value is worse.
        along: what grows, where the figure is one of several: "steps".
        at: how much of it there is.
    """

    what: str
    median: float
    low: float
    high: float
    runs: int
    margin: float = MARGIN
    better: str = "lower"
    along: str = ""
    at: float | str = ""

    def __post_init__(self) -> None:
        if not self.low <= self.median <= self.high:
            raise ValueError(f"{self.what}: {self.median} is not from {self.low} to {self.high}")
        # Of these, none would ever be worse.
        if not all(map(math.isfinite, (self.low, self.high, self.margin))) or self.margin < 0:
            raise ValueError(f"{self.what}: {self.low}, {self.high} or {self.margin} is no number")
        if self.better not in ("lower", "higher", "neither"):
            raise ValueError(f"{self.what}: {self.better!r} is none of lower, higher and neither")

    @classmethod
    def of(cls, what: str, ratios: Sequence[float] | float, **others: Any) -> Figure:
        """The figure of the ratios of several runs, or of the only one."""
        runs = [ratios] if isinstance(ratios, (int, float)) else list(ratios)
        # Four digits tell more than another run would confirm.
        low, middle, high = (
            float(f"{it:.4g}") for it in (min(runs), statistics.median(runs), max(runs))
        )
        return cls(what, middle, low, high, len(runs), **others)

    @property
    def name(self) -> tuple[str, str, str]:
        """What tells it from others of its file."""
        return self.what, self.along, str(self.at)

    @property
    def limit(self) -> float:
        """The worst median that is not worse than this figure; NaN where none is."""
        if self.better == "neither":
            return math.nan
        if self.better == "lower":
            return max(self.high, self.median * (1 + self.margin))
        return min(self.low, self.median / (1 + self.margin))

    def worse(self, other: Figure) -> bool:
        """Say if another median is beyond this figure's limit."""
        if self.better == "lower":
            return other.median > self.limit
        return self.better == "higher" and other.median < self.limit


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--save`, which `save` is given."""
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="of figures: docs/benchmarks")


def save(
    name: str,
    figures: Iterable[Figure],
    folder: Path | None,
    *,
    packages: Iterable[str],
    failures: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write figures to <folder>/<name>.json, and into the page where they are the committed ones.

    Args:
        name: of the file, and of its place in the page.
        figures: what was measured.
        folder: None writes nothing.
        packages: whose versions are recorded.
        failures: tools that could not be installed or run, with the reason.
        versions: of what is not installed here.
    """
    if folder is None:
        return
    found = {
        "command": _command(),
        "figures": [asdict(figure) for figure in figures],
        "failures": dict(failures or {}),
        "versions": {package: version(package) for package in packages} | dict(versions or {}),
        "machine": machine(),
        "load": round(_load, 1),
        "seconds": round(time.perf_counter() - _began),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if folder.resolve() == SAVED.resolve():
        write_page()


def _command() -> list[str]:
    # Without where its figures go: another run may put them elsewhere.
    given = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if "--save" in given:
        at = given.index("--save")
        del given[at : at + 2]
    return given


def machine() -> str:
    """The hardware and the Python."""
    model = platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists() and (named := re.search(r"model name\s*:\s*(.+)", cpus.read_text())):
        model = named[1]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{model}, {os.cpu_count()} cores, {pages / 2**30:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}"
    )


def load(file: Path) -> tuple[dict[str, Any], list[Figure]]:
    """What a file holds, and its figures.

    Raises:
        ValueError: it is damaged, or a figure stands in it more than once.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
        figures = [Figure(**figure) for figure in found["figures"]]
        counts = Counter(figure.name for figure in figures)
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file.name} is no file of figures: {error!r}") from error
    for name, count in counts.items():
        if count > 1:  # only one would be compared
            raise ValueError(
                f"{' '.join(map(str, filter(None, name)))}: more than once in {file.name}"
            )
    return found, figures


# --- the page


def write_page() -> None:
    """Make the page's tables and the picture of what the files hold."""
    draw()
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


def page(text: str, folder: Path = SAVED) -> str:
    """The page with its tables as the files of a folder have them."""
    return TABLE.sub(lambda match: match[1] + match[2] + section(match[1], folder), text)


def section(name: str, folder: Path) -> str:
    """The figures of one file in Markdown, and what they were measured with; or the picture."""
    file = folder / f"{name}.json"
    if name == PICTURE.stem:
        return f"\n![{ALT}](figures/{PICTURE.name})\n" if PICTURE.exists() else ""
    if not file.exists():
        return ""
    found, figures = load(file)
    lines = ["", "```text", f"python tests/benchmarks/{shlex.join(found['command'])}", "```", ""]
    single = [figure for figure in figures if not figure.along]
    if single:
        lines += [
            "| ratio | median | lowest to highest | runs | at worst |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {it.what} | {shown(it.median)} | {_spread(it)} | {it.runs} | {_worst(it)} |"
            for it in single
        ]
        lines.append("")
    for along in dict.fromkeys(figure.along for figure in figures if figure.along):
        rows: dict[str, dict[Any, Figure]] = {}
        for figure in figures:
            if figure.along == along:
                rows.setdefault(figure.what, {})[figure.at] = figure
        columns = list(dict.fromkeys(at for row in rows.values() for at in row))
        lines.append(f"| {along} | {' | '.join(map(_at, columns))} |")
        lines.append("|---|" + "---:|" * len(columns))
        for what, row in rows.items():
            cells = (_cell(row[at]) if at in row else "" for at in columns)
            lines.append(f"| {what} | {' | '.join(cells)} |")
        lines.append("")
    for tool, reason in found["failures"].items():
        lines += [f"Not measured: {tool} ({reason}).", ""]
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    minutes = f"{found['seconds'] / 60:.1f} minutes"
    lines.append(f"{minutes} on {found['machine']}, load {found['load']} before: {versions}.")
    return "\n".join(lines)


def shown(value: float) -> str:
    """Three digits."""
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def _spread(figure: Figure) -> str:
    return f"{shown(figure.low)} to {shown(figure.high)}" if figure.runs > 1 else ""


def _worst(figure: Figure) -> str:
    return "" if figure.better == "neither" else shown(figure.limit)


def _cell(figure: Figure) -> str:
    spread = f" ({_spread(figure)})" if figure.runs > 1 and figure.low != figure.high else ""
    return shown(figure.median) + spread


def _at(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else value


def draw(folder: Path = SAVED, picture: Path = PICTURE) -> None:
    """A panel for each thing that grows by numbers: the ratios along it, as lines."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple[str, str], dict[str, list[Figure]]] = {}
    for file in sorted(folder.glob("growth-*.json")):
        for figure in load(file)[1]:
            if figure.along and not isinstance(figure.at, str):
                lines = panels.setdefault((file.stem, figure.along), {})
                lines.setdefault(figure.what, []).append(figure)
    if not panels:
        return
    columns = 3
    rows = -(-len(panels) // columns)
    drawn, axes = plt.subplots(rows, columns, figsize=(12, 3.6 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((subject, along), lines) in zip(axes.flat, panels.items(), strict=False):
        for what, figures in lines.items():
            at = [float(figure.at) for figure in figures]
            (line,) = axis.plot(at, [it.median for it in figures], marker="o", label=what)
            axis.fill_between(
                at,
                [it.low for it in figures],
                [it.high for it in figures],
                color=line.get_color(),
                alpha=0.2,
            )
        if min(at) > 0 and max(at) / min(at) > 20:
            axis.set_xscale("log")
        axis.set_xlabel(f"{subject.removeprefix('growth-')}: {along}")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    drawn.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    # No version of matplotlib in the file: the same figures are the same picture.
    drawn.savefig(picture, dpi=66, metadata={"Software": None}, pil_kwargs={"optimize": True})
    plt.close(drawn)


if __name__ == "__main__":
    write_page()
