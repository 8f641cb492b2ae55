"""`MajorityVote`: the baseline that every label model should beat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel.errors import WeakLabelError
from weaklabel.gold import Gold
from weaklabel.models import Fitted, as_patterns, check_votes, vote_column


@dataclass(frozen=True)
class MajorityVote:
    """The share of accepts among the votes cast, smoothed by one vote's worth of the prior.

    Args:
        prior: P(right) of a query nobody votes on, and what votes are smoothed with. By default it
            is estimated: from gold if there is any, else as the share of accepts among all votes.
    """

    prior: float | None = None

    def __post_init__(self) -> None:
        if self.prior is not None and not 0 < self.prior < 1:
            raise WeakLabelError(f"prior must lie between 0 and 1, got {self.prior!r}")

    def fit(self, votes: Any, *, gold: Gold | None = None) -> FittedMajority:
        """Fit to a table of votes, or to `Patterns`; of `gold`, only the share right is used."""
        patterns = as_patterns(votes)
        prior = self.prior
        if prior is None and gold is not None and gold.rows:
            prior = (gold.right.rows + 1) / (gold.rows + 2)
        if prior is None:
            accepts = int(patterns.counts @ (patterns.votes == 1).sum(axis=1))
            rejects = int(patterns.counts @ (patterns.votes == -1).sum(axis=1))
            prior = (accepts + 1) / (accepts + rejects + 2)
        return FittedMajority(patterns.functions, prior)


@dataclass(frozen=True)
class FittedMajority(Fitted):
    """weight = (accepts + prior) / (votes cast + 1).

    Attributes:
        functions: the functions it counts.
        prior: the weight of a query nobody votes on.
    """

    kind: ClassVar[str] = "majority"

    functions: tuple[str, ...]
    prior: float

    def weights(self, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
        """P(right), float64 (N,), for votes int8 (N, F) in the order of `functions`."""
        check_votes(votes, self.functions)
        cast = np.count_nonzero(votes, axis=1)
        accepts = (votes == 1).sum(axis=1)
        return np.asarray((accepts + self.prior) / (cast + 1.0))

    def weight(self) -> nw.Expr:
        """`weights` as an expression."""
        votes = [vote_column(name).cast(nw.Int64) for name in self.functions]
        total, cast = reduce(add, votes), reduce(add, [vote * vote for vote in votes])
        accepts = (total + cast) * 0.5
        return (accepts + self.prior) / (cast + 1.0)

    def to_dict(self) -> dict[str, Any]:
        """All parameters, as JSON can write them."""
        return {"functions": list(self.functions), "prior": self.prior}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FittedMajority:
        """Of what `to_dict` returned."""
        return cls(tuple(content["functions"]), float(content["prior"]))
