"""`Manifest`: what a folder of votes is made of, so that a run can go on where it ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from weaklabel.atomic import written_beside
from weaklabel.engines.parts import Part
from weaklabel.engines.plan import Plan
from weaklabel.errors import WeakLabelError

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
