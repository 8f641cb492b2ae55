"""Keep what a command found as JSON, and show it in docs/reliability.md.

    python tests/faults/record.py

writes the page's tables anew from docs/reliability/*.json, as every command does at its end.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
# The makers of tiny models lie beside the packages' tests.
sys.path += [
    str(Path(__file__).parents[1] / name) for name in ("daam_diffusers", "hf_cudagraph_asr")
]
PAGE = DOCS / "reliability.md"
FOUND = DOCS / "reliability"

# <!-- weaklabel --> begins a table, <!-- end --> ends it
TABLE = re.compile(r"(?<=<!-- )(?!end\b)(\w+)( -->\n).*?(?=\n<!-- end -->)", re.DOTALL)


def save(
    name: str, figures: Mapping[str, Any], *, began: float, seed: int, packages: Iterable[str]
) -> None:
    """Write figures to docs/reliability/<name>.json and into the page.

    Args:
        name: of the file, and of the table in the page.
        figures: by what they count, in words.
        began: `time.perf_counter()` when the command began.
        seed: of everything random.
        packages: whose versions are recorded.
    """
    found = {
        "figures": dict(figures),
        "seed": seed,
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "versions": {package: version(package) for package in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
    }
    FOUND.mkdir(exist_ok=True)
    (FOUND / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


def page(text: str) -> str:
    """The page with its tables as the files have them."""
    return TABLE.sub(lambda match: match[1] + match[2] + table(match[1]), text)


def table(name: str) -> str:
    """The figures of one file in Markdown, and what they were found with."""
    file = FOUND / f"{name}.json"
    if not file.exists():
        return ""
    found = json.loads(file.read_text("utf-8"))
    rows = [f"| {what} | {shown(value)} |" for what, value in found["figures"].items()]
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    how = f"{found['minutes']} minutes with seed {found['seed']} on {found['machine']}"
    return "\n".join(["", "| what | figure |", "|---|---:|", *rows, "", f"{how}: {versions}."])


def shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
