"""`LabelModel`: how good every function is, from nothing but their votes.

Given whether the transcript is right, the factors (functions, or families of them, see
`weaklabel.factors`) vote independently. From how they agree follows how good each one is and how
many transcripts are right (Dawid & Skene 1979); no label is needed.

What votes alone cannot tell:

- what the two classes mean. They are the split that explains best how factors agree; if functions
  share something else, a satisfied user, or each other, the split may be that. Declare families,
  look at the warnings, and check a few hundred queries (gold);
- which class is which. The one where functions accept more is taken to be "right";
- anything at all with fewer than three factors, where many parameters fit the counts as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel import em
from weaklabel.em import Abstain
from weaklabel.errors import WeakLabelError
from weaklabel.factors import Factor, by_family
from weaklabel.gold import Gold
from weaklabel.models import (
    Fitted,
    as_patterns,
    by_vote,
    check_votes,
    logistic,
    logistic_expression,
)
from weaklabel.patterns import Patterns

Families = Literal["declared", "auto", "ignore"]


@dataclass(frozen=True)
class LabelModel:
    """EM for Dawid–Skene over counts of vote patterns.

    Args:
        abstain: "symbol": that a function abstains is evidence, as a vote is; functions that only
            accept or only reject need it. "missing": it is none.
        families: "declared": functions that declare one family share their evidence. "auto": and so
            do functions whose votes are found to depend on each other. "ignore": no families.
        prior: P(right) over all queries; by default it is estimated.
        smoothing: every symbol of a factor counts as seen so many times more, and these are shared
            by the classes as the queries are: what is rarely seen is little evidence.
        gold_weight: how many queries one checked query counts for.
        tolerance: EM stops where a step gains less, in nats a row.
    """

    abstain: Abstain = "symbol"
    families: Families = "declared"
    prior: float | None = None
    smoothing: float = 1.0
    gold_weight: float = 1.0
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        for name, kinds in (("abstain", Abstain), ("families", Families)):
            if getattr(self, name) not in get_args(kinds):
                raise WeakLabelError(
                    f"{name} must be one of {list(get_args(kinds))}, got {getattr(self, name)!r}"
                )
        if self.prior is not None and not 0 < self.prior < 1:
            raise WeakLabelError(f"prior must lie between 0 and 1, got {self.prior!r}")
        for name in ("smoothing", "gold_weight", "tolerance"):
            if not getattr(self, name) > 0:
                raise WeakLabelError(f"{name} must be above 0, got {getattr(self, name)!r}")

    def fit(self, votes: Any, *, gold: Gold | None = None) -> FittedLabelModel:
        """Fit to a table of votes, or to `Patterns`.

        Args:
            votes: any frame narwhals knows with columns `lf:…`, or `Patterns` of one. Families are
                known to `Patterns` only.
            gold: votes of queries known to be right or wrong; their class is not guessed.

        Raises:
            WeakLabelError: there are no rows, or gold does not fit the votes.
        """
        patterns = as_patterns(votes)
        known = np.zeros((2, len(patterns)), dtype=np.int64)
        if gold is not None:
            patterns, known = gold.join(patterns)
        families = patterns.families
        if self.families == "ignore":
            families = (None,) * len(patterns.functions)
        factors = _factors(patterns, families)
        coded = em.Coded.of(patterns, factors, known, self.abstain, self.gold_weight)
        solution = em.fit(coded, self.smoothing, self.prior, self.tolerance)
        prior, logs = solution.parameters.prior, solution.parameters.logs
        ends = np.cumsum(coded.sizes)[:-1]
        own = zip(factors, np.split(coded.codes, ends), np.split(logs, ends, axis=1), strict=True)
        return FittedLabelModel(
            patterns.functions,
            prior,
            tuple(FittedFactor.of(*factor, prior, self.abstain) for factor in own),
            self.abstain,
            solution.trace,
            (),
        )


@dataclass(frozen=True)
class FittedFactor:
    """One factor's distribution of symbols.

    Attributes:
        functions: of one function, or of a family.
        codes: the S symbols seen, see `Factor`.
        wrong: P(symbol | wrong), S of them.
        right: P(symbol | right), S of them.
        evidence: for every code, log P(symbol | right) - log P(symbol | wrong). A symbol never seen
            has that of the seen ones nearest to it, on average by how often they are seen.
    """

    functions: tuple[str, ...]
    codes: tuple[int, ...]
    wrong: tuple[float, ...]
    right: tuple[float, ...]
    evidence: tuple[float, ...]

    @classmethod
    def of(
        cls,
        factor: Factor,
        codes: npt.NDArray[np.int64],
        logs: npt.NDArray[np.float64],
        prior: float,
        abstain: Abstain,
    ) -> FittedFactor:
        """Of log P(symbol | class), (2, S), the classes' shares, and what an abstain is."""
        evidence = np.zeros(factor.size)
        if len(codes):
            points = factor.points()
            distance = np.abs(points[:, None] - points[codes][None]).sum(axis=-1)  # (size, S)
            near = distance == distance.min(axis=1, keepdims=True)
            wrong, right = np.exp(logs)
            weight = near * ((1 - prior) * wrong + prior * right)
            evidence = (weight @ (logs[1] - logs[0])) / weight.sum(axis=1)
            evidence[codes] = logs[1] - logs[0]  # not by way of a product and a quotient
        if abstain == "missing":
            evidence[factor.silent] = 0.0
        return cls(
            factor.functions,
            tuple(codes.tolist()),
            tuple(np.exp(logs[0]).tolist()),
            tuple(np.exp(logs[1]).tolist()),
            tuple(evidence.tolist()),
        )

    def terms(self) -> nw.Expr:
        """The evidence as an expression over the columns of votes."""
        if len(self.functions) == 1:
            return by_vote(self.functions[0], *self.evidence)
        code = Factor(self.functions).code()
        return code.replace_strict(
            list(range(len(self.evidence))),
            list(self.evidence),
            default=0.0,
            return_dtype=nw.Float64,
        )


@dataclass(frozen=True)
class FittedLabelModel(Fitted):
    """A label model's parameters, and what there is to know about them.

    Attributes:
        functions: names of the F functions, sorted.
        prior: P(right) over all queries.
        factors: functions and families, whose evidence adds up.
        abstain: "symbol" or "missing".
        log_likelihoods: penalised, before each step of EM; they never decrease.
        warnings: reasons not to trust the model.
    """

    kind: ClassVar[str] = "label-model"

    functions: tuple[str, ...]
    prior: float
    factors: tuple[FittedFactor, ...]
    abstain: Abstain
    log_likelihoods: tuple[float, ...]
    warnings: tuple[str, ...]

    @property
    def families(self) -> tuple[tuple[str, ...], ...]:
        """The factors of more than one function."""
        return tuple(factor.functions for factor in self.factors if len(factor.functions) > 1)

    def weights(self, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
        """P(right), float64 (N,), for votes int8 (N, F) in the order of `functions`."""
        check_votes(votes, self.functions)
        total = np.full(len(votes), self._constant)
        index = {name: i for i, name in enumerate(self.functions)}
        for factor in self.factors:
            own = votes[:, [index[name] for name in factor.functions]]
            total += np.array(factor.evidence)[Factor(factor.functions).codes(own)]
        return logistic(total)

    def weight(self) -> nw.Expr:
        """`weights` as an expression."""
        return logistic_expression((factor.terms() for factor in self.factors), self._constant)

    @property
    def _constant(self) -> float:
        return float(np.log(self.prior) - np.log1p(-self.prior))

    def to_dict(self) -> dict[str, Any]:
        """All parameters, as JSON can write them."""
        return {
            "functions": list(self.functions),
            "prior": self.prior,
            "abstain": self.abstain,
            "factors": [
                {
                    "functions": list(factor.functions),
                    "codes": list(factor.codes),
                    "wrong": list(factor.wrong),
                    "right": list(factor.right),
                    "evidence": list(factor.evidence),
                }
                for factor in self.factors
            ],
            "log_likelihoods": list(self.log_likelihoods),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FittedLabelModel:
        """Of what `to_dict` returned."""
        factors = tuple(
            FittedFactor(
                *(
                    tuple(factor[key])
                    for key in ("functions", "codes", "wrong", "right", "evidence")
                )
            )
            for factor in content["factors"]
        )
        return cls(
            tuple(content["functions"]),
            float(content["prior"]),
            factors,
            content["abstain"],
            tuple(content["log_likelihoods"]),
            tuple(content["warnings"]),
        )


def _factors(patterns: Patterns, families: Sequence[str | None]) -> tuple[Factor, ...]:
    """Functions and families; one that votes always the same has a factor of its own."""
    constant = (patterns.votes == patterns.votes[0]).all(axis=0)
    own = [None if same else family for same, family in zip(constant, families, strict=True)]
    return by_family(patterns.functions, own)
