"""The tables and JSON files that steps leave for one another, and work shared among processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
from tqdm.auto import tqdm

from speechnet import settings
from speechnet.settings import Size

# The step that writes a file, by the first part of the file's name.
STEPS = {
    "utterances": "simulate",
    "hypotheses": "third_party",
    "log": "behave",
    "labels": "label",
    "scores": "evaluate",
}


def read(size: Size, name: str) -> Any:
    """What a step wrote to a size's folder: a JSON file's content, or a table, by its stem.

    Raises:
        FileNotFoundError: it is not there; says which step makes it.
    """
    path = settings.results(size) / name
    if path.suffix != ".json":
        path = path.with_name(f"{name}.parquet")
    if not path.exists():
        step = STEPS[path.stem.split("-")[0]]
        raise FileNotFoundError(f"{path} is missing: run the step {step} first.")
    return json.loads(path.read_text()) if path.suffix == ".json" else pl.read_parquet(path)


def utterances(size: Size, part: str) -> pl.DataFrame:
    """The utterances of one part, "train" or "test", in order of time."""
    return read(size, "utterances").filter(part=part)


def write_table(table: pl.DataFrame, path: Path) -> Path:
    """Write a table as Parquet."""
    with whole(path) as beside:
        table.write_parquet(beside, compression="zstd", compression_level=19)
    return path


def write_json(value: Any, path: Path) -> Path:
    """Write a value as JSON."""
    with whole(path) as beside:
        beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` at the end: nobody ever finds half a file there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    yield beside
    beside.replace(path)


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that change with any value of a table, or of what JSON can hold."""
    if not isinstance(value, pl.DataFrame):
        value = pl.DataFrame({"settings": [json.dumps(value)]})
    return hashlib.sha256(value.write_csv().encode()).hexdigest()[:12]


def suffix(noise: float) -> str:
    """What the names of files end in that are made with feedback noise.

    >>> suffix(0.0), suffix(1.0)
    ('', '-noise100')
    """
    return f"-noise{round(100 * noise):03d}" if noise else ""


def side_by_side(
    work: Callable[[Any], int], parts: Sequence[Any], processes: int, total: int, name: str
) -> None:
    """Do all parts of some work, in several processes where more than one is asked for.

    Args:
        work: does a part and returns how many pieces it was.
        parts: what it is called with.
        processes: how many work side by side. Spawned: torch's threads do not survive a fork.
        total, name: pieces of all parts, and what the progress bar calls them.
    """
    with (
        ProcessPoolExecutor(processes, get_context("spawn")) as pool,
        tqdm(total=total, desc=name, disable=not parts) as bar,
    ):
        for done in (pool.map if min(processes, len(parts)) > 1 else map)(work, parts):
            bar.update(done)
