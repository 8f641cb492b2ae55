"""`Factor`: one piece of evidence, which is a function alone or a family of functions as one.

A label model multiplies the evidence of its factors. Functions of one family look at the same thing
(the same session, the same second recogniser), so that their evidence must not be multiplied: the
family is one composite function, whose symbol is

- up to `JOINT` members, the tuple of their votes: exact for any dependence among them;
- beyond, how many of them accept and how many reject: exact for members that are exchangeable,
  which near-copies are. Which of them voted is left out, so the symbols stay few, (m + 1)(m + 2)/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel.votes import PREFIX

JOINT = 5  # members; 3⁵ = 243 symbols, which a log of some thousand queries can fill


@dataclass(frozen=True)
class Factor:
    """Functions that are read together.

    Attributes:
        functions: names, sorted; one alone, or a family.
    """

    functions: tuple[str, ...]

    @property
    def joint(self) -> bool:
        """Whether a symbol is the tuple of the votes, rather than their numbers."""
        return len(self.functions) <= JOINT

    @property
    def size(self) -> int:
        """Codes are 0 to `size` - 1; not every one of them need be possible."""
        m = len(self.functions)
        return int(3**m) if self.joint else (m + 1) ** 2

    def codes(self, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
        """The symbol of each row: votes int8, (N, m) in the order of `functions` → int64, (N,)."""
        if self.joint:
            return (votes.astype(np.int64) + 1) @ self._places()
        accepts, rejects = (votes == 1).sum(axis=1), (votes == -1).sum(axis=1)
        return np.asarray(accepts * (len(self.functions) + 1) + rejects, dtype=np.int64)

    def code(self) -> nw.Expr:
        """`codes` as an expression over columns of votes; a null is an abstain."""
        columns = [nw.col(PREFIX + name).fill_null(0).cast(nw.Int64) for name in self.functions]
        if self.joint:
            places = self._places().tolist()
            return _total(
                [(column + 1) * place for column, place in zip(columns, places, strict=True)]
            )
        one, none = nw.lit(1), nw.lit(0)
        accepts = _total([nw.when(column == 1).then(one).otherwise(none) for column in columns])
        rejects = _total([nw.when(column == -1).then(one).otherwise(none) for column in columns])
        return accepts * (len(self.functions) + 1) + rejects

    def points(self) -> npt.NDArray[np.int64]:
        """Where each code lies: its votes, or its numbers of accepts and rejects: (size, m or 2).

        The distance of two symbols is the sum of absolute differences.
        """
        codes = np.arange(self.size)
        if self.joint:
            return codes[:, None] // self._places() % 3 - 1
        return np.stack(np.divmod(codes, len(self.functions) + 1), axis=1)

    @property
    def silent(self) -> int:
        """The code of no member voting."""
        return int(self._places().sum()) if self.joint else 0

    def _places(self) -> npt.NDArray[np.int64]:
        return 3 ** np.arange(len(self.functions), dtype=np.int64)


def by_family(functions: Sequence[str], families: Sequence[str | None]) -> tuple[Factor, ...]:
    """One factor a family and one for every function without, sorted by first name."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for name, family in zip(functions, families, strict=True):
        key = (False, name) if family is None else (True, family)
        groups.setdefault(key, []).append(name)
    return tuple(sorted((Factor(tuple(sorted(g))) for g in groups.values()), key=_names))


def _names(factor: Factor) -> tuple[str, ...]:
    return factor.functions


def _total(terms: Sequence[nw.Expr]) -> nw.Expr:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
