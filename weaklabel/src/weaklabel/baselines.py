"""Models to compare with: a majority vote, and a logistic regression on gold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import narwhals.stable.v2 as nw
import numpy as np

from weaklabel.errors import WeakLabelError
from weaklabel.gold import Gold
from weaklabel.labeling import Identity
from weaklabel.models import (
    Fitted,
    as_patterns,
    by_vote,
    check_numbers,
    check_prior,
    logistic_expression,
    vote_column,
)
from weaklabel.plugins import Kind, hookimpl
from weaklabel.votes import MISSING


@dataclass(frozen=True)
class MajorityVote:
    """The share of accepts among the votes cast, smoothed by one vote's worth of the prior.

    Args:
        prior: P(right) of a query nobody votes on, and what votes are smoothed with. By default it
            is estimated: from gold if there is any, else as the share of accepts among all votes.
    """

    handles_missing: ClassVar[bool] = True

    prior: float | None = None

    def __post_init__(self) -> None:
        if self.prior is not None:
            check_prior(self)

    def fit(self, votes: Any, *, gold: Gold | None = None) -> FittedMajority:
        """Fit to a table of votes, or to `Patterns`; of `gold`, only the share right is used."""
        patterns = as_patterns(votes, missing=True)
        prior = self.prior
        if prior is None and gold is not None and gold.rows:
            prior = (gold.right.rows + 1) / (gold.rows + 2)
        if prior is None:
            accepts = int(patterns.counts @ (patterns.votes == 1).sum(axis=1))
            rejects = int(patterns.counts @ (patterns.votes == -1).sum(axis=1))
            prior = (accepts + 1) / (accepts + rejects + 2)
        return FittedMajority(patterns.functions, prior, patterns.identities)


@dataclass(frozen=True)
class FittedMajority(Fitted):
    """weight = (accepts + prior) / (votes cast + 1).

    Attributes:
        functions: the functions it counts.
        prior: the weight of a query nobody votes on.
        identities: which functions they are.
    """

    kind: ClassVar[str] = "majority"
    handles_missing: ClassVar[bool] = True

    functions: tuple[str, ...]
    prior: float
    identities: tuple[Identity | None, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prior(self)

    def weight(self) -> nw.Expr:
        """P(right) as an expression over the columns of votes."""
        votes = [vote_column(name).cast(nw.Int64) for name in self.functions]
        total, cast = reduce(add, votes), reduce(add, [vote * vote for vote in votes])
        accepts = (total + cast) * 0.5
        return (accepts + self.prior) / (cast + 1.0)


@dataclass(frozen=True)
class LogisticRegression:
    """Logistic regression on whether each function accepts, rejects, or has no input.

    A few hundred checked queries are enough. It makes no assumption about how functions depend on
    each other, and learns nothing from queries without gold. Needs `weaklabel[gold]`.

    Args:
        c: inverse strength of the L2 penalty.
    """

    handles_missing: ClassVar[bool] = True

    c: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "c")
        if not self.c > 0:
            raise WeakLabelError(f"c must be above 0, got {self.c!r}")

    def fit(self, votes: Any, *, gold: Gold | None = None) -> FittedLogistic:
        """Fit to gold; `votes`, a table or `Patterns`, only say which functions there are.

        Raises:
            WeakLabelError: there is no gold, or it is all right or all wrong.
            ImportError: scikit-learn is missing.
        """
        patterns = as_patterns(votes, missing=True)
        if gold is None or not gold.right.rows or not gold.wrong.rows:
            raise WeakLabelError(
                "a logistic regression needs gold with right and with wrong transcripts, got"
                f" {gold.right.rows if gold else 0} and {gold.wrong.rows if gold else 0}: check"
                " more queries, or use LabelModel"
            )
        gold.known_in(patterns)  # for its checks
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
        table = np.concatenate([rows == vote for vote in (-1, 1, MISSING)], axis=1)
        model.fit(table, known, sample_weight=counts)
        reject, accept, missing = map(tuple, model.coef_.reshape(3, -1).tolist())
        intercept = float(model.intercept_[0])
        return FittedLogistic(
            patterns.functions, intercept, reject, accept, missing, patterns.identities
        )


@dataclass(frozen=True)
class FittedLogistic(Fitted):
    """The logarithm of the odds is the intercept plus a number for every vote or missing input.

    Attributes:
        functions: names of the F functions.
        intercept: log odds of a query nobody votes on.
        reject: what a reject adds, by function.
        accept: what an accept adds, by function.
        missing: what a missing input adds, by function.
        identities: which functions they are.
    """

    kind: ClassVar[str] = "logistic"
    handles_missing: ClassVar[bool] = True

    functions: tuple[str, ...]
    intercept: float
    reject: tuple[float, ...]
    accept: tuple[float, ...]
    missing: tuple[float, ...]
    identities: tuple[Identity | None, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reject", "accept", "missing"):
            if len(numbers := getattr(self, name)) != len(self.functions):
                raise WeakLabelError(
                    f"{name} must be {len(self.functions)} numbers, one a function, got"
                    f" {list(numbers)}"
                )

    def weight(self) -> nw.Expr:
        """P(right) as an expression over the columns of votes."""
        terms = [
            by_vote(name, reject, 0.0, accept, missing)
            for name, reject, accept, missing in zip(
                self.functions, self.reject, self.accept, self.missing, strict=True
            )
        ]
        return logistic_expression(terms, self.intercept)


@hookimpl
def weaklabel_label_models(register: Callable[[Kind], None]) -> None:
    """Register the models of this module."""
    register(Kind("majority", MajorityVote, FittedMajority))
    register(Kind("logistic", LogisticRegression, FittedLogistic))
