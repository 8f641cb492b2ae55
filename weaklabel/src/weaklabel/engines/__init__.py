"""`Partwise`: an engine's log that is voted on one part after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weaklabel.plan import Plan, RowLog


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


class Partwise(ABC):
    """The loop over parts, for engines that write one file at a time."""

    scratch: Path

    @abstractmethod
    def write(
        self,
        plan: Plan,
        target: Path,
        *,
        part: Part | None,
        extra: Path | None,
        metadata: dict[str, str],
        rows: RowLog,
    ) -> None:
        """The votes of a part of the log, in a Parquet file.

        Args:
            plan: functions and columns to keep.
            target: the file.
            part: which sessions; None for all.
            extra: a Parquet file with the votes of the functions of scope "log", by `query_id`.
            metadata: of the file.
            rows: takes note of row-wise functions.
        """

    def parts(
        self, plan: Plan, parts: Sequence[Part], metadata: dict[str, str], rows: RowLog
    ) -> Iterator[tuple[Part, Path]]:
        """The votes of parts of the log, each in a Parquet file of the scratch folder."""
        whole = parts[0].of == 1
        extra = None
        # A part does not show how often something occurs in the log: these are computed once, over
        # the columns they need, and joined to each part.
        if not whole and (rest := plan.of_log()) is not None:
            extra = self.scratch / "log-votes.parquet"
            self.write(rest, extra, part=None, extra=None, metadata={}, rows=rows)
        for part in parts:
            target = self.scratch / part.file
            self.write(
                plan,
                target,
                part=None if whole else part,
                extra=extra,
                metadata=metadata,
                rows=rows,
            )
            yield part, target
