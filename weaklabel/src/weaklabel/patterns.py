"""`Patterns`: how often every combination of votes occurs, which is all a label model sees.

Six functions with three votes each have at most 729 patterns, 4,096 where inputs are missing,
however many queries there are. Counts add up over shards, days and sites, and hold no transcript
and no query.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
import polars as pl

from weaklabel.content import typed
from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.files import written_beside
from weaklabel.labeling import Identity
from weaklabel.votes import MISSING, PREFIX

METADATA: Final = "weaklabel"  # the key of the Parquet file's own metadata
FORMAT: Final = 2  # of patterns; 1 counted a missing input as an abstain

#: Two logs are of one scope if neither has more than so many times the other's rows.
SAME_SCOPE: Final = 2.0

_COUNT: Final = "count"


@dataclass(frozen=True, eq=False)
class Patterns:
    """Distinct rows of votes with their counts.

    Two patterns are equal when their functions, in order, their rows and their counts are.

    Attributes:
        functions: names of the F functions, without the columns' prefix `lf:`.
        votes: int8, (P, F): the distinct rows in lexicographic order, values -1, 0, 1 and MISSING.
        counts: int64, (P,): how often each occurs, at least once.
        families: for every function the family it was declared in, or None.
        identities: for every function which one it is, or None where that is not known.
        log_rows: for every function of scope "log" the rows of the log it looked at, else None.
    """

    functions: tuple[str, ...]
    votes: npt.NDArray[np.int8]
    counts: npt.NDArray[np.int64]
    families: tuple[str | None, ...]
    identities: tuple[Identity | None, ...]
    log_rows: tuple[int | None, ...]

    def __post_init__(self) -> None:
        if not self.functions:
            raise WeakLabelError("patterns need at least one function, got none")
        if len(set(self.functions)) < len(self.functions):
            raise WeakLabelError(f"functions need names of their own, got {list(self.functions)}")
        wide = len(self.functions)
        about = {len(self.families), len(self.identities), len(self.log_rows)}
        if self.votes.shape != (len(self.counts), wide) or about != {wide}:
            raise WeakLabelError(
                f"{wide} functions need votes (P, {wide}), counts (P,) and {wide} families,"
                f" identities and log_rows, got votes {self.votes.shape} and counts"
                f" {self.counts.shape}: build patterns with Patterns.count or Patterns.of"
            )
        for array in (self.votes, self.counts):
            array.setflags(write=False)

    # Making

    @classmethod
    def count(
        cls,
        votes: Any,
        families: Mapping[str, str | None] | None = None,
        identities: Mapping[str, Identity | None] | None = None,
        log_rows: Mapping[str, int | None] | None = None,
    ) -> Patterns:
        """Count the patterns of a table of votes, inside the engine that holds it.

        Args:
            votes: any frame narwhals knows, eager or lazy. The columns named `lf:…` are votes; a
                null, or a NaN, is a missing input. Other columns are not read.
            families: family by function name; functions it does not name have none.
            identities: which functions they are, by name.
            log_rows: rows of the log that functions of scope "log" looked at, by name.

        Raises:
            WeakLabelError: there is no column of votes, one is not numeric, a vote is none of
                -1, 0, 1 and null, or a family is declared for a function that is not there.

        >>> Patterns.count(pl.DataFrame({"lf:long": [1, 1, None], "lf:sure": [0, 0, -1]}))
        Patterns(2 patterns of 2 functions, 3 rows)
        """
        frame = nw.from_native(votes)
        columns = vote_columns(frame)
        # The count's name must not be that of a column of votes, and none starts with a blank.
        grouped = frame.select(*columns).group_by(*columns).agg(nw.len().alias(f" {_COUNT}"))
        table = grouped.collect() if isinstance(grouped, nw.LazyFrame) else grouped
        rows = np.stack([table[name].cast(nw.Float64).to_numpy() for name in columns], axis=1)
        names = [column.removeprefix(PREFIX) for column in columns]
        for index in np.flatnonzero((rows == MISSING).any(axis=0)):
            raise no_vote(names[index], [MISSING])  # that is for arrays, which have no null
        rows[np.isnan(rows)] = MISSING
        counts = table[f" {_COUNT}"].to_numpy()
        return cls.of(names, rows, counts, families, identities, log_rows)

    @classmethod
    def of(
        cls,
        functions: Iterable[str],
        votes: npt.ArrayLike,
        counts: npt.ArrayLike | None = None,
        families: Mapping[str, str | None] | None = None,
        identities: Mapping[str, Identity | None] | None = None,
        log_rows: Mapping[str, int | None] | None = None,
    ) -> Patterns:
        """Patterns of an array of votes, whose rows may repeat.

        Args:
            functions: F names.
            votes: (N, F), of -1, 0, 1 and MISSING.
            counts: (N,), how often each row counts; by default once.
            families, identities, log_rows: as in `count`.

        Raises:
            WeakLabelError: a vote is something else, or shapes and names do not fit.
        """
        names = tuple(functions)
        rows = np.asarray(votes)
        check_votes(rows, names)
        families, identities, log_rows = families or {}, identities or {}, log_rows or {}
        for what, given in (("family", families), ("identity", identities)):
            if unknown := sorted(set(given) - set(names)):
                raise WeakLabelError(
                    f"a {what} is given for {unknown}, and the functions are {sorted(names)}"
                )
        times = np.ones(len(rows), np.int64) if counts is None else np.asarray(counts)
        amounts = times.astype(np.int64)
        if times.shape != (len(rows),) or (amounts < 0).any() or (amounts != times).any():
            raise WeakLabelError(
                f"counts must be {len(rows)} whole numbers, none below 0, got shape {times.shape}"
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
            tuple(log_rows.get(name) for name in names),
        )

    # What they hold

    @property
    def rows(self) -> int:
        """Number of rows of votes that were counted."""
        return int(self.counts.sum())

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """True where a function had input: bool, (P, F)."""
        return np.asarray(self.votes != MISSING)

    def __len__(self) -> int:
        """Number of distinct patterns."""
        return len(self.counts)

    def __repr__(self) -> str:
        return (
            f"Patterns({len(self)} patterns of {len(self.functions)} functions, {self.rows} rows)"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Patterns):
            return NotImplemented
        return (
            (self.functions, self.families, self.identities, self.log_rows)
            == (other.functions, other.families, other.identities, other.log_rows)
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
        return Patterns.of(names, self.votes[:, index], self.counts, **self._about())

    def without_missing(self) -> Patterns:
        """The same counts with missing inputs as abstains, for models that know of none."""
        votes = np.where(self.present, self.votes, 0)
        return Patterns.of(self.functions, votes, self.counts, **self._about())

    def _about(self) -> dict[str, Any]:
        """Families, identities and log_rows as arguments of `of`."""
        return {
            key: dict(zip(self.functions, getattr(self, key), strict=True))
            for key in ("families", "identities", "log_rows")
        }

    # Merging

    def __add__(self, other: Patterns) -> Patterns:
        return Patterns.merge([self, other])

    @staticmethod
    def merge(shards: Iterable[Patterns]) -> Patterns:
        """The patterns of all shards together, in the first one's order of functions.

        Raises:
            WeakLabelError: there are no shards, they are of different functions, or two of them
                have one function of two families, sources or parameters.

        Warns:
            WeakLabelWarning: a function of scope "log" looked at logs of very different size, so
                that its votes do not mean the same.
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
        each = range(len(names))
        return Patterns.of(
            names,
            np.concatenate([part.votes for part in parts]),
            np.concatenate([part.counts for part in parts]),
            {names[i]: _same_family(names[i], [part.families[i] for part in parts]) for i in each},
            {names[i]: _same_function([part.identities[i] for part in parts]) for i in each},
            {names[i]: _same_scope(names[i], [part.log_rows[i] for part in parts]) for i in each},
        )

    # Files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a Parquet file that holds no transcript and no query: columns `lf:…` and `count`.

        Returns:
            The path written.
        """
        votes = np.where(self.present, self.votes, 0)
        columns = {
            PREFIX + name: pl.Series(votes[:, i]).set(pl.Series(~self.present[:, i]), None)
            for i, name in enumerate(self.functions)
        }
        entries = [
            {
                **({"name": name} if identity is None else asdict(identity)),
                "family": family,
                "log_rows": rows,
            }
            for name, identity, family, rows in zip(
                self.functions, self.identities, self.families, self.log_rows, strict=True
            )
        ]
        about = json.dumps({"patterns": FORMAT, "functions": entries}, ensure_ascii=False)
        with written_beside(path) as beside:
            pl.DataFrame({**columns, _COUNT: self.counts}).write_parquet(
                beside, metadata={METADATA: about}
            )
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Patterns:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            WeakLabelError: it holds no patterns, or those of another format.
        """
        try:
            # A Path, not a string: polars would take "*" in one for a glob.
            about = json.loads(pl.read_parquet_metadata(Path(path)).get(METADATA, "{}"))
            table = pl.read_parquet(Path(path), glob=False)
        # Of a damaged file Polars may panic, which is no Exception.
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError) as error:
            raise WeakLabelError(f"{path} is no Parquet file of patterns: {error}") from error
        again = "count the votes again (weaklabel patterns, or Patterns.count and save)"
        found = about.get("patterns") if isinstance(about, dict) else None
        if found != FORMAT:
            raise WeakLabelError(
                f"{path} holds no patterns of format {FORMAT} (found {found!r}): {again}"
            )
        try:
            functions = described(about)
            names = functions["families"]
            votes = table.select(pl.col(PREFIX + name).fill_null(MISSING) for name in names)
            return cls.of(names, votes.to_numpy(), table[_COUNT].to_numpy(), **functions)
        except (pl.exceptions.PolarsError, LookupError, AttributeError, TypeError) as error:
            raise WeakLabelError(f"{path} holds broken patterns, {error!r}: {again}") from error


@dataclass(frozen=True)
class _Entry:
    """A function in a file's metadata, its identity aside."""

    name: str
    family: str | None = None
    log_rows: int | None = None


def described(about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read a file's metadata of functions as arguments of `Patterns.of` and `count`.

    Raises:
        WeakLabelError, TypeError: see `typed`.
    """
    given = about.get("functions", [])
    entries = typed(list[_Entry], given, "functions")
    return {
        "families": {entry.name: entry.family for entry in entries},
        "identities": {entry["name"]: identity_of(entry) for entry in given},
        "log_rows": {entry.name: entry.log_rows for entry in entries},
    }


def vote_columns(frame: Any) -> list[str]:
    """The columns of votes of a narwhals frame.

    Raises:
        WeakLabelError: there are none, or one is not numeric.
    """
    schema = frame.collect_schema()
    columns = [name for name in schema if name.startswith(PREFIX)]
    if not columns:
        raise WeakLabelError(
            f"no columns of votes: their names start with {PREFIX!r}, and the table has"
            f" {list(schema)}; make one with `weaklabel apply` or weaklabel.apply()"
        )
    for column in columns:
        if not (schema[column].is_numeric() or schema[column] == nw.Unknown):
            raise WeakLabelError(
                f"votes are integers, and the column {column!r} is {schema[column]}: cast it to"
                " Int8"
            )
    return columns


def identity_of(entry: Mapping[str, Any]) -> Identity | None:
    """The identity in a function's entry of a file's metadata; None where it holds but a name."""
    return Identity.from_dict(entry) if "source" in entry else None


def check_votes(votes: npt.NDArray[Any], functions: Iterable[str]) -> None:
    """Refuse an array that cannot be the votes of these functions.

    Raises:
        WeakLabelError: it is not (N, F), or a vote is none of -1, 0, 1 and MISSING.
    """
    names = tuple(functions)
    if votes.ndim != 2 or votes.shape[1] != len(names):
        raise WeakLabelError(
            f"votes of {len(names)} functions are an array (N, {len(names)}), a column for each of"
            f" {list(names)}, got shape {votes.shape}"
        )
    wrong = ~np.isin(votes, (-1, 0, 1, MISSING))
    for index in np.flatnonzero(wrong.any(axis=0)):
        raise no_vote(names[index], votes[wrong[:, index], index].tolist())


def accepts(votes: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Majority vote of votes (N, F), a tie being an accept: bool, (N,)."""
    cast = np.where(votes == MISSING, 0, votes)
    return np.asarray(cast.sum(axis=1, dtype=np.int64) >= 0)


def no_vote(function: str, values: Iterable[float]) -> WeakLabelError:
    """The error for a function's votes that are none."""
    shown = ", ".join(f"{value:g}" for value in sorted(set(values))[:5])
    return WeakLabelError(
        f"function {function!r} votes {shown}: a vote is 1 (accept), 0 (abstain) or -1 (reject),"
        f" and null (in an array {MISSING}) where there was no input"
    )


def _same_family(name: str, families: list[str | None]) -> str | None:
    """The family that shards declare; one that declares nothing agrees with any."""
    different = sorted({family for family in families if family is not None})
    if len(different) > 1:
        raise WeakLabelError(
            f"patterns to merge have more than one family for function {name!r}: {different};"
            " apply the same version of it to every shard"
        )
    return different[0] if different else None


def _same_function(identities: list[Identity | None]) -> Identity | None:
    """The function of all shards, in the last one's version; None where none names its own."""
    known = [identity for identity in identities if identity is not None]
    for identity in known[1:]:
        if changes := identity.changes(known[0]):
            raise WeakLabelError(
                f"patterns to merge are of two functions {identity.name!r}: {'; '.join(changes)};"
                " apply the same one to every shard"
            )
    return known[-1] if known else None


def _same_scope(name: str, log_rows: list[int | None]) -> int | None:
    """The rows of the largest log that a function looked at."""
    known = [rows for rows in log_rows if rows is not None]
    if known and max(known) > SAME_SCOPE * min(known):
        warnings.warn(
            f"function {name!r} looks at the whole log, and the logs of these patterns have"
            f" {min(known):,} to {max(known):,} rows: its votes do not mean the same in all of"
            " them; apply it with one reference log (--reference)",
            WeakLabelWarning,
            stacklevel=4,
        )
    return max(known, default=None)


def _differ(one: str, first: Iterable[str], other: str, second: Iterable[str]) -> str:
    a, b = set(first), set(second)
    return (
        f"{one} {sorted(a)} {other} {sorted(b)}: only the first have {sorted(a - b)}, only the"
        f" second {sorted(b - a)}"
    )
