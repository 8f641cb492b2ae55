"""The files of a query log, as the engines want them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from weaklabel import tables
from weaklabel.reading import files


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
