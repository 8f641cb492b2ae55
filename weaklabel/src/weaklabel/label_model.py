"""`LabelModel`: how good every function is, from nothing but their votes.

Given whether the transcript is right, the factors (functions, or families of them, see
`weaklabel.em`) vote independently. From how they agree follows how good each one is
and how many transcripts are right (Dawid & Skene 1979); no label is needed.

What votes alone cannot tell:

- what the two classes mean. They are the split that explains best how factors agree; if functions
  share something else, a satisfied user, or each other, the split may be that. Declare families,
  look at the warnings, and check a few hundred queries (gold);
- which class is which. The one where functions accept more is taken to be "right";
- anything at all with fewer than three factors, where many parameters fit the counts as well.

    patterns = Patterns.count(votes, families={"dwell": "session", "rephrasing": "session"})
    model = LabelModel().fit(patterns)
    model.weights(votes_of_new_queries)     # (N, F) → P(right), (N,)
    labels = model.label(votes)             # the table with `weight` and `label`
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel import dependence as guard
from weaklabel import em
from weaklabel.dependence import Comparison, Dependence, dependences
from weaklabel.em import Abstain, Factor, by_family
from weaklabel.errors import WeakLabelError
from weaklabel.gold import Gold
from weaklabel.models import (
    Fitted,
    WeakLabelWarning,
    as_patterns,
    by_votes,
    check_votes,
    logistic,
    logistic_expression,
)
from weaklabel.patterns import Patterns
from weaklabel.plugins import Kind, hookimpl
from weaklabel.structure import Partition, Search

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


FOLDS = 5
ENOUGH_GOLD = 20  # checked queries; with fewer a comparison says little

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
        for name in ("prior", "smoothing", "gold_weight", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, int | float) and not (name == "prior" and value is None):
                raise WeakLabelError(f"{name} must be a number, got {value!r}")
        if self.prior is not None and not 0 < self.prior < 1:
            raise WeakLabelError(f"prior must lie between 0 and 1, got {self.prior!r}")
        for name in ("smoothing", "gold_weight", "tolerance"):
            if not getattr(self, name) > 0:
                raise WeakLabelError(f"{name} must be above 0, got {getattr(self, name)!r}")

    def fit(self, votes: Any, *, gold: Gold | None = None) -> FittedLabelModel:
        """Fit to a table of votes, or to `Patterns`.

        Args:
            votes: any frame narwhals knows with columns `lf:…`, or `Patterns` of one. Only
                `Patterns` know which families were declared.
            gold: votes of queries known to be right or wrong; their class is not guessed.

        Raises:
            WeakLabelError: there are no rows, or gold does not fit the votes.

        Warns:
            WeakLabelWarning: there is a reason not to trust the model, see `FittedLabelModel`.
        """
        patterns = as_patterns(votes)
        known = np.zeros((2, len(patterns)), dtype=np.int64)
        if gold is not None:
            patterns, known = gold.join(patterns)
        search = Search(patterns, known, self.smoothing, self.prior, self.gold_weight)
        units, still = _units(patterns, self.families)
        if self.families == "auto":
            chosen = reference = search.best(units)
        else:
            chosen, reference = search.candidate(units), search.best_cut(units)
        factors = (*chosen.factors, *still)

        coded, solution = self._solve(patterns, factors, known)
        prior, logs = solution.parameters.prior, solution.parameters.logs
        ends = np.cumsum(coded.sizes)[:-1]
        own = zip(factors, np.split(coded.codes, ends), np.split(logs, ends, axis=1), strict=True)

        # Of the best partition found: given the classes of one that takes dependent functions for
        # independent, just these look independent.
        pairs = dependences(patterns, reference.posterior)
        home = {name: factor for factor in factors for name in factor.functions}
        apart = [
            pair
            for pair in pairs
            if pair.significant
            and pair.strength >= guard.DEPENDENT
            and home[pair.first] != home[pair.second]
        ]
        rows, posterior = coded.counts, solution.posterior
        right = (coded.open * posterior + coded.known[1]) / rows
        comparison = guard.Comparison(
            chosen.score - chosen.single,
            int((coded.sizes > 1).sum()),
            guard.expected_accuracy(rows, right, posterior >= 0.5),
            guard.expected_accuracy(rows, right, np.ones(len(rows), dtype=bool)),
            guard.expected_accuracy(rows, right, guard.accepts(patterns)),
            search.rival(chosen) if self.families == "auto" else 0.0,
            self._on_gold(patterns, factors, known),
        )
        reasons = tuple(guard.reasons(comparison, solution.orientation, solution.converged, apart))
        for reason in reasons:
            warnings.warn(reason, WeakLabelWarning, stacklevel=2)
        return FittedLabelModel(
            patterns.functions,
            prior,
            tuple(FittedFactor.of(*factor, prior, self.abstain) for factor in own),
            self.abstain,
            solution.trace,
            _rates(patterns, right),
            pairs,
            comparison,
            reasons,
        )

    def _solve(
        self, patterns: Patterns, factors: Partition, known: npt.NDArray[np.int64]
    ) -> tuple[em.Coded, em.Solution]:
        coded = em.Coded.of(patterns, factors, known, self.abstain, self.gold_weight)
        return coded, em.fit(coded, self.smoothing, self.prior, self.tolerance)

    def _on_gold(
        self, patterns: Patterns, factors: Partition, known: npt.NDArray[np.int64]
    ) -> guard.GoldComparison | None:
        """What models that have not seen the checked queries say of them."""
        if known.sum() < ENOUGH_GOLD:
            return None
        # Checked queries, dealt out one by one.
        dealt = np.repeat(np.arange(known.size), known.ravel())
        folds = []
        for fold in range(FOLDS):
            held = np.bincount(dealt[fold::FOLDS], minlength=known.size).reshape(known.shape)
            folds.append((held, self._solve(patterns, factors, known - held)[1].posterior))
        without = self._solve(patterns, factors, np.zeros_like(known))[1].posterior
        return guard.on_gold(patterns, folds, without)


def _units(patterns: Patterns, families: Families) -> tuple[Partition, Partition]:
    """Functions and declared families; apart from them, functions that never change their vote.

    The second hold no evidence, and must not count for a factor or widen a family.
    """
    constant = (patterns.votes == patterns.votes[0]).all(axis=0)
    own = [
        None if same or families == "ignore" else family
        for same, family in zip(constant, patterns.families, strict=True)
    ]
    still = {name for name, same in zip(patterns.functions, constant, strict=True) if same}
    factors = by_family(patterns.functions, own)
    return (
        tuple(factor for factor in factors if factor.functions[0] not in still),
        tuple(factor for factor in factors if factor.functions[0] in still),
    )


def _rates(patterns: Patterns, right: npt.NDArray[np.float64]) -> tuple[FunctionRates, ...]:
    """How each function votes, given (P,) P(right)."""
    rows = np.stack([(1 - right) * patterns.counts, right * patterns.counts])  # (2, P)
    found = []
    for name, votes in zip(patterns.functions, patterns.votes.T, strict=True):
        counts = np.stack([rows[:, votes == vote].sum(axis=1) for vote in (-1, 0, 1)], axis=1)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)  # (2, 3)
        wrong, right_ = shares.tolist()
        cast = int(patterns.counts[votes != 0].sum())
        accuracy = float((counts[0, 0] + counts[1, 2]) / cast) if cast else None
        found.append(FunctionRates(name, tuple(wrong), tuple(right_), accuracy, cast))
    return tuple(found)


@hookimpl
def weaklabel_label_models(register: Callable[[Kind], None]) -> None:
    """Register the label model."""
    register(Kind("label-model", LabelModel, FittedLabelModel))
