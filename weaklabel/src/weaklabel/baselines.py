"""`LogisticRegression`: learned from gold alone; a few hundred checked queries are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel.errors import WeakLabelError
from weaklabel.gold import Gold
from weaklabel.models import (
    Fitted,
    as_patterns,
    by_votes,
    check_votes,
    logistic,
    logistic_expression,
    vote_column,
)
from weaklabel.plugins import Kind, hookimpl


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


@dataclass(frozen=True)
class LogisticRegression:
    """Logistic regression on whether each function accepts, and whether it rejects.

    It makes no assumption about how functions depend on each other, and learns nothing from queries
    without gold. Needs `weaklabel[gold]`.

    Args:
        c: inverse strength of the L2 penalty.
    """

    c: float = 1.0

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise WeakLabelError(f"c must be above 0, got {self.c!r}")

    def fit(self, votes: Any, *, gold: Gold | None = None) -> FittedLogistic:
        """Fit to gold; `votes`, a table or `Patterns`, only say which functions there are.

        Raises:
            WeakLabelError: there is no gold, or it is all right or all wrong.
            ImportError: scikit-learn is missing.
        """
        patterns = as_patterns(votes)
        if gold is None or not gold.right.rows or not gold.wrong.rows:
            raise WeakLabelError(
                "a logistic regression needs gold with right and with wrong transcripts, got"
                f" {gold.right.rows if gold else 0} and {gold.wrong.rows if gold else 0}: check"
                " more queries, or use LabelModel"
            )
        gold.join(patterns)  # for its checks
        try:
            from sklearn.linear_model import (  # type: ignore[import-untyped]
                LogisticRegression as Regression,
            )
        except ImportError as error:
            raise ImportError(
                'a logistic regression needs scikit-learn: pip install "weaklabel[gold]"'
            ) from error
        parts = [part.ordered(patterns.functions) for part in (gold.wrong, gold.right)]
        rows = np.concatenate([part.votes for part in parts])
        known = np.repeat([0, 1], [len(part) for part in parts])
        counts = np.concatenate([part.counts for part in parts])
        model = Regression(C=self.c, tol=1e-8, max_iter=10_000)
        model.fit(np.concatenate([rows == -1, rows == 1], axis=1), known, sample_weight=counts)
        reject, accept = model.coef_.reshape(2, -1).tolist()
        return FittedLogistic(
            patterns.functions, float(model.intercept_[0]), tuple(reject), tuple(accept)
        )


@dataclass(frozen=True)
class FittedLogistic(Fitted):
    """The logarithm of the odds is the intercept plus a number for every vote cast.

    Attributes:
        functions: names of the F functions.
        intercept: log odds of a query nobody votes on.
        reject: what a reject adds, by function.
        accept: what an accept adds, by function.
    """

    kind: ClassVar[str] = "logistic"

    functions: tuple[str, ...]
    intercept: float
    reject: tuple[float, ...]
    accept: tuple[float, ...]

    def weights(self, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
        """P(right), float64 (N,), for votes int8 (N, F) in the order of `functions`."""
        check_votes(votes, self.functions)
        total = self.intercept + (votes == -1) @ np.array(self.reject)
        return logistic(total + (votes == 1) @ np.array(self.accept))

    def weight(self) -> nw.Expr:
        """`weights` as an expression."""
        terms = [
            by_votes((name,), (reject, 0.0, accept))
            for name, reject, accept in zip(self.functions, self.reject, self.accept, strict=True)
        ]
        return logistic_expression(terms, self.intercept)

    def to_dict(self) -> dict[str, Any]:
        """All parameters, as JSON can write them."""
        return {
            "functions": list(self.functions),
            "intercept": self.intercept,
            "reject": list(self.reject),
            "accept": list(self.accept),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FittedLogistic:
        """Of what `to_dict` returned."""
        return cls(
            tuple(content["functions"]),
            float(content["intercept"]),
            tuple(content["reject"]),
            tuple(content["accept"]),
        )


@hookimpl
def weaklabel_label_models(register: Callable[[Kind], None]) -> None:
    """Register the models of this module."""
    register(Kind("majority", MajorityVote, FittedMajority))
    register(Kind("logistic", LogisticRegression, FittedLogistic))
