"""`Patterns`: how often every combination of votes occurs, which is all a label model sees.

Six functions with three votes each have at most 729 patterns, however many queries there are.
Counts add up over shards, days and sites, and hold no transcript and no query.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.files import written_beside
from weaklabel.votes import PREFIX

METADATA = "weaklabel"  # the key of the Parquet file's own metadata
FORMAT = 1

_COUNT = "count"


@dataclass(frozen=True, eq=False)
class Patterns:
    """Distinct rows of votes with their counts.

    Two patterns are equal when their functions, in order, their rows and their counts are.

    Attributes:
        functions: names of the F functions, without the columns' prefix `lf:`.
        votes: int8, (P, F): the distinct rows in lexicographic order, values -1, 0 and 1.
        counts: int64, (P,): how often each occurs, at least once.
        families: for every function the family it was declared in, or None.
        identities: for every function its provenance (`distribution:name@version…`), or None.
    """

    functions: tuple[str, ...]
    votes: npt.NDArray[np.int8]
    counts: npt.NDArray[np.int64]
    families: tuple[str | None, ...]
    identities: tuple[str | None, ...]

    def __post_init__(self) -> None:
        if not self.functions:
            raise WeakLabelError("patterns need at least one function, got none")
        if len(set(self.functions)) < len(self.functions):
            raise WeakLabelError(f"functions need names of their own, got {list(self.functions)}")
        wide = len(self.functions)
        shapes = (self.votes.shape, self.counts.shape, len(self.families), len(self.identities))
        if shapes != ((len(self.counts), wide), (len(self.counts),), wide, wide):
            raise WeakLabelError(
                f"{wide} functions need votes (P, {wide}), counts (P,) and {wide} families and"
                f" identities, got {shapes}: build patterns with Patterns.count or Patterns.of"
            )
        for array in (self.votes, self.counts):
            array.setflags(write=False)

    # Making

    @classmethod
    def count(
        cls,
        votes: Any,
        families: Mapping[str, str | None] | None = None,
        identities: Mapping[str, str | None] | None = None,
    ) -> Patterns:
        """Count the patterns of a table of votes, inside the engine that holds it.

        Args:
            votes: any frame narwhals knows, eager or lazy. The columns named `lf:…` are votes; a
                null is an abstain. Other columns are not read.
            families: family by function name; functions it does not name have none.
            identities: provenance by function name.

        Raises:
            WeakLabelError: there is no column of votes, one is not numeric, a vote is none of
                -1, 0 and 1, or a family is declared for a function that is not there.
        """
        frame = nw.from_native(votes)
        schema = frame.collect_schema()
        columns = [name for name in schema if name.startswith(PREFIX)]
        if not columns:
            raise WeakLabelError(
                f"no columns of votes: their names start with {PREFIX!r}, and the table has"
                f" {list(schema)}; make one with `weaklabel apply` or weaklabel.apply()"
            )
        for column in columns:
            if not schema[column].is_numeric():
                raise WeakLabelError(
                    f"votes are integers, and the column {column!r} is {schema[column]}: cast it"
                    " to Int8"
                )
        # The count's name must not be that of a column of votes, and none starts with a blank.
        grouped = (
            frame.select(nw.col(column).fill_null(0) for column in columns)
            .group_by(*columns)
            .agg(nw.len().alias(f" {_COUNT}"))
        )
        table = grouped.collect() if isinstance(grouped, nw.LazyFrame) else grouped
        rows = np.empty((len(table), len(columns)), dtype=np.float64)
        for index, column in enumerate(columns):
            rows[:, index] = table[column].to_numpy()
        names = [column.removeprefix(PREFIX) for column in columns]
        return cls.of(names, rows, table[f" {_COUNT}"].to_numpy(), families, identities)

    @classmethod
    def of(
        cls,
        functions: Iterable[str],
        votes: npt.ArrayLike,
        counts: npt.ArrayLike | None = None,
        families: Mapping[str, str | None] | None = None,
        identities: Mapping[str, str | None] | None = None,
    ) -> Patterns:
        """Patterns of an array of votes, whose rows may repeat.

        Args:
            functions: F names.
            votes: (N, F), of -1, 0 and 1.
            counts: (N,), how often each row counts; by default once.
            families: family by function name.
            identities: provenance by function name.

        Raises:
            WeakLabelError: a vote is none of -1, 0 and 1, or shapes and names do not fit.
        """
        names = tuple(functions)
        rows = np.asarray(votes)
        if rows.ndim != 2 or rows.shape[1] != len(names):
            raise WeakLabelError(
                f"votes of {len(names)} functions are an array (N, {len(names)}), got {rows.shape}"
            )
        _check_votes(names, rows)
        families, identities = dict(families or {}), dict(identities or {})
        for what, given in (("family", families), ("identity", identities)):
            if unknown := sorted(set(given) - set(names)):
                raise WeakLabelError(
                    f"a {what} is given for {unknown}, and the functions are {sorted(names)}"
                )
        amounts = np.ones(len(rows), np.int64) if counts is None else np.asarray(counts, np.int64)
        if amounts.shape != (len(rows),) or (amounts < 0).any():
            raise WeakLabelError(
                f"counts must be {len(rows)} numbers, none below 0, got shape {amounts.shape}"
            )
        distinct, inverse = np.unique(rows.astype(np.int8), axis=0, return_inverse=True)
        totals = np.zeros(len(distinct), np.int64)
        np.add.at(totals, inverse.reshape(-1), amounts)
        return cls(
            names,
            distinct[totals > 0],
            totals[totals > 0],
            tuple(families.get(name) for name in names),
            tuple(identities.get(name) for name in names),
        )

    # What they hold

    @property
    def rows(self) -> int:
        """How many rows of votes were counted."""
        return int(self.counts.sum())

    def __len__(self) -> int:
        """How many distinct patterns there are."""
        return len(self.counts)

    def __repr__(self) -> str:
        return (
            f"Patterns({len(self)} patterns of {len(self.functions)} functions, {self.rows} rows)"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Patterns):
            return NotImplemented
        return (
            (self.functions, self.families, self.identities)
            == (other.functions, other.families, other.identities)
            and np.array_equal(self.votes, other.votes)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]

    def ordered(self, functions: Iterable[str] | None = None) -> Patterns:
        """The same counts with the functions in another order, by default that of their names.

        Raises:
            WeakLabelError: `functions` are not the same functions.
        """
        names = tuple(sorted(self.functions) if functions is None else functions)
        if sorted(names) != sorted(self.functions):
            raise WeakLabelError(_differ("patterns of", self.functions, "asked for", names))
        if names == self.functions:
            return self
        index = [self.functions.index(name) for name in names]
        return Patterns.of(
            names,
            self.votes[:, index],
            self.counts,
            dict(zip(self.functions, self.families, strict=True)),
            dict(zip(self.functions, self.identities, strict=True)),
        )

    # Merging

    def __add__(self, other: Patterns) -> Patterns:
        return Patterns.merge([self, other])

    @staticmethod
    def merge(shards: Iterable[Patterns]) -> Patterns:
        """The patterns of all shards together, in the first one's order of functions.

        Raises:
            WeakLabelError: there are no shards, they are of different functions, or two of them
                declare different families or identities for one function.
        """
        parts = list(shards)
        if not parts:
            raise WeakLabelError("no patterns to merge")
        names = parts[0].functions
        for part in parts[1:]:
            if sorted(part.functions) != sorted(names):
                raise WeakLabelError(
                    _differ("patterns to merge are of", names, "and of", part.functions)
                    + "; apply the same functions to every shard"
                )
        parts = [part.ordered(names) for part in parts]
        return Patterns.of(
            names,
            np.concatenate([part.votes for part in parts]),
            np.concatenate([part.counts for part in parts]),
            _agreed("family", names, [part.families for part in parts]),
            _agreed("identity", names, [part.identities for part in parts]),
        )

    # Files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a Parquet file that holds no transcript and no query: columns `lf:…` and `count`.

        Returns:
            The path written.
        """
        columns = {PREFIX + name: self.votes[:, i] for i, name in enumerate(self.functions)}
        entries = [
            {"name": name, "identity": identity, "family": family}
            for name, identity, family in zip(
                self.functions, self.identities, self.families, strict=True
            )
        ]
        with written_beside(path) as beside:
            pl.DataFrame(columns).with_columns(pl.Series(_COUNT, self.counts)).write_parquet(
                beside, metadata={METADATA: json.dumps({"patterns": FORMAT, "functions": entries})}
            )
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Patterns:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            WeakLabelError: it holds no patterns, or those of a newer format.
        """
        try:
            # A Path, not a string: polars would take "*" in one for a glob.
            about = json.loads(pl.read_parquet_metadata(Path(path)).get(METADATA, "{}"))
            table = pl.read_parquet(Path(path), glob=False)
        except (pl.exceptions.PolarsError, json.JSONDecodeError) as error:
            raise WeakLabelError(f"{path} is no Parquet file of patterns: {error}") from error
        if about.get("patterns") != FORMAT:
            raise WeakLabelError(
                f"{path} holds no patterns of format {FORMAT} (found {about.get('patterns')!r}):"
                " give what Patterns.save wrote; a table of votes goes through Patterns.count"
            )
        entries = about["functions"]
        names = [entry["name"] for entry in entries]
        return cls.of(
            names,
            table.select(PREFIX + name for name in names).to_numpy(),
            table[_COUNT].to_numpy(),
            {entry["name"]: entry["family"] for entry in entries},
            {entry["name"]: entry["identity"] for entry in entries},
        )


def _check_votes(names: tuple[str, ...], rows: npt.NDArray[Any]) -> None:
    """Refuse anything but -1, 0 and 1 in (N, F) votes."""
    wrong = ~np.isin(rows, (-1, 0, 1))
    for index in np.flatnonzero(wrong.any(axis=0)):
        values = np.unique(rows[wrong[:, index], index])[:5]
        shown = ", ".join(f"{value:g}" for value in values)
        raise WeakLabelError(
            f"function {names[index]!r} votes {shown}: a vote is 1 (accept), 0 (abstain) or -1"
            " (reject)"
        )


def _agreed(
    what: str, names: tuple[str, ...], declared: list[tuple[str | None, ...]]
) -> dict[str, str | None]:
    """What the shards say of every function, where one that says nothing agrees with any."""
    found: dict[str, str | None] = {}
    for name, values in zip(names, zip(*declared, strict=True), strict=True):
        different = sorted({value for value in values if value is not None})
        if len(different) > 1:
            raise WeakLabelError(
                f"patterns to merge have more than one {what} for function {name!r}: {different};"
                " apply the same version of it to every shard"
            )
        found[name] = different[0] if different else None
    return found


def _differ(one: str, first: Iterable[str], other: str, second: Iterable[str]) -> str:
    a, b = set(first), set(second)
    return (
        f"{one} {sorted(a)} {other} {sorted(b)}: only the first have {sorted(a - b)}, only the"
        f" second {sorted(b - a)}"
    )
