"""`Part`: some of a log's sessions, whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One of several parts of a log: the sessions whose hash falls to it.

    A query without a session falls to the part of its own hash.

    Attributes:
        index: from 0 on.
        of: how many parts there are.
    """

    index: int
    of: int

    @property
    def file(self) -> str:
        """The name of its file of votes."""
        return f"part-{self.index:05d}-of-{self.of:05d}.parquet"
