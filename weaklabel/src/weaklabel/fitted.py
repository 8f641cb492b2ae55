"""`FittedLabelModel`: what `LabelModel.fit` returns, and what `weaklabel label` loads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel.inference.dependence import Dependence
from weaklabel.inference.em import Abstain
from weaklabel.inference.factors import Factor
from weaklabel.inference.guard import Comparison
from weaklabel.models import Fitted, by_votes, check_votes, logistic, logistic_expression

# Members up to which evidence is nested conditions rather than a table to look up: SQL engines
# follow one branch and are faster so, frames in memory compute all 3ᵐ and are slower.
NESTED = 3


@dataclass(frozen=True)
class FittedFactor:
    """One factor's distribution of symbols.

    Attributes:
        functions: one function, or those of a family.
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
        """Of log P(symbol | class), (2, S), the share that is right, and what an abstain is."""
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

    def term(self) -> nw.Expr:
        """The evidence as an expression over the columns of votes."""
        if len(self.functions) <= NESTED:
            return by_votes(self.functions, self.evidence)
        return (
            Factor(self.functions)
            .code()
            .replace_strict(
                list(range(len(self.evidence))),
                list(self.evidence),
                default=0.0,
                return_dtype=nw.Float64,
            )
        )


@dataclass(frozen=True)
class FunctionRates:
    """How one function votes, as the model sees it.

    Attributes:
        name: of the function.
        wrong: P(reject), P(abstain), P(accept) where the transcript is wrong.
        right: the same where it is right.
        accuracy: P(its vote is true | it votes); None if it never does.
        votes: how many queries it votes on.
    """

    name: str
    wrong: tuple[float, float, float]
    right: tuple[float, float, float]
    accuracy: float | None
    votes: int


@dataclass(frozen=True)
class FittedLabelModel(Fitted):
    """A label model's parameters, and what there is to know about them.

    Attributes:
        functions: names of the F functions, sorted.
        prior: P(right) over all queries.
        factors: functions and families, whose evidence adds up.
        abstain: "symbol" or "missing".
        log_likelihoods: penalised, at each step of EM; they never decrease.
        rates: how each function votes.
        dependence: of every pair of functions, given the class.
        comparison: with what needs no model.
        warnings: reasons not to trust the model; they were issued when it was fitted, too.
    """

    kind: ClassVar[str] = "label-model"

    functions: tuple[str, ...]
    prior: float
    factors: tuple[FittedFactor, ...]
    abstain: Abstain
    log_likelihoods: tuple[float, ...]
    rates: tuple[FunctionRates, ...]
    dependence: tuple[Dependence, ...]
    comparison: Comparison
    warnings: tuple[str, ...]

    @property
    def families(self) -> tuple[tuple[str, ...], ...]:
        """The factors of more than one function."""
        return tuple(factor.functions for factor in self.factors if len(factor.functions) > 1)

    def weights(self, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
        """P(right), float64 (N,), for votes int8 (N, F) in the order of `functions`."""
        check_votes(votes, self.functions)
        index = {name: i for i, name in enumerate(self.functions)}
        total = np.full(len(votes), self._constant)
        for factor in self.factors:
            own = votes[:, [index[name] for name in factor.functions]]
            total += np.array(factor.evidence)[Factor(factor.functions).codes(own)]
        return logistic(total)

    def weight(self) -> nw.Expr:
        """`weights` as an expression."""
        return logistic_expression((factor.term() for factor in self.factors), self._constant)

    @property
    def _constant(self) -> float:
        return float(np.log(self.prior) - np.log1p(-self.prior))

    def to_dict(self) -> dict[str, Any]:
        """All parameters, as JSON can write them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FittedLabelModel:
        """Of what `to_dict` returned."""
        return cls(
            functions=tuple(content["functions"]),
            prior=float(content["prior"]),
            factors=tuple(FittedFactor(**_tuples(entry)) for entry in content["factors"]),
            abstain=content["abstain"],
            log_likelihoods=tuple(content["log_likelihoods"]),
            rates=tuple(FunctionRates(**_tuples(entry)) for entry in content["rates"]),
            dependence=tuple(Dependence(**entry) for entry in content["dependence"]),
            comparison=Comparison.from_dict(content["comparison"]),
            warnings=tuple(content["warnings"]),
        )


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples they were."""
    return {k: tuple(value) if isinstance(value, list) else value for k, value in entry.items()}
