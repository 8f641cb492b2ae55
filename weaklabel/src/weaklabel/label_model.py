"""`LabelModel`: how good every function is, from nothing but their votes.

Given whether the transcript is right, the factors (functions, or families of them, see
`weaklabel.em`) vote independently. From how they agree follows how good each one is and how many
transcripts are right (Dawid & Skene 1979); no label is needed.

A function without input says nothing of a query, and drops out of it; one that looked and kept
silent does say something. Queries on which no function has input keep the prior.

What votes alone cannot tell:

- what the two classes mean. They are the split that explains best how factors agree; if functions
  share something else, a satisfied user, or each other, the split may be that. Declare families,
  look at the warnings, and check a few hundred queries (gold);
- which class is which. The one where functions accept more is taken to be "right";
- anything at all with fewer than three factors, where many parameters fit the counts as well.

    model = LabelModel().fit(votes, functions=functions)
    labels = model.label(votes)             # the table with `weight` and `label`
    model.weights(votes_of_new_queries)     # (N, F) → P(right), (N,)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Final, Literal, get_args

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel import em
from weaklabel.dependence import (
    Comparison,
    Dependence,
    MissingRate,
    Partition,
    alternative,
    best_cut,
    compare,
    dependences,
    missing_rates,
    reasons,
    unlike_members,
)
from weaklabel.em import Abstain, Factor, Floats, Integers
from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.gold import Gold
from weaklabel.labeling import Identity, LabelingFunction
from weaklabel.models import (
    Fitted,
    as_patterns,
    by_votes,
    identities_of,
    logistic,
    logistic_expression,
)
from weaklabel.patterns import Patterns, check_votes
from weaklabel.plugins import Kind, hookimpl
from weaklabel.votes import MISSING, PREFIX

FOLDS: Final = 5
ENOUGH_GOLD: Final = 20  # checked queries; with fewer a comparison says little

# Members up to which evidence is nested conditions rather than a table to look up: SQL engines
# follow one branch and are faster so, frames in memory compute all 4ᵐ and are slower.
NESTED: Final = 2

#: The least share of either class that is believed in: a majority may accept everything.
LEAST_SHARE: Final = 0.03

#: Nats a row; a partition's score need not be known better.
ROUGH: Final = 1e-6

#: Rows of a pattern of missing inputs, below which it is no symbol of its own.
COMMON: Final = 20

Families = Literal["declared", "ignore"]
Missing = Literal["ignore", "evidence"]


@dataclass(frozen=True)
class LabelModel:
    """EM for Dawid–Skene over counts of vote patterns.

    Args:
        abstain: "symbol": a function that looked and kept silent is evidence, as a vote is;
            functions that only accept or only reject need it. "ignore": it is none.
        missing: "ignore": a missing input says nothing. "evidence": which inputs are missing is one
            more piece of evidence, for logs in which right and wrong transcripts lose theirs at
            different rates.
        families: "declared": functions that declare one family share their evidence. "ignore": no
            families.
        prior: P(right) over all queries; by default it is estimated.
        belief: as how large a share of the rows counts what is believed of P(right) beforehand: the
            share of transcripts that a majority vote accepts, or that is right in gold. It keeps
            functions that share something else than the truth from being taken for the truth.
            Factors that only accept or only reject have no part in it, and make it count for less.
        smoothing: every symbol of a factor counts as seen so many times more, and these are shared
            by the classes as the queries are: what is rarely seen is little evidence.
        gold_weight: how many queries one checked query counts for.
        tolerance: EM stops where a step gains less, in nats a row.
    """

    handles_missing: ClassVar[bool] = True

    abstain: Abstain = "symbol"
    missing: Missing = "ignore"
    families: Families = "declared"
    prior: float | None = None
    belief: float = 0.05
    smoothing: float = 1.0
    gold_weight: float = 1.0
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        for name, kinds in (("abstain", Abstain), ("missing", Missing), ("families", Families)):
            if getattr(self, name) not in get_args(kinds):
                raise WeakLabelError(
                    f"{name} must be one of {list(get_args(kinds))}, got {getattr(self, name)!r}"
                )
        for name in ("prior", "belief", "smoothing", "gold_weight", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, int | float) and not (name == "prior" and value is None):
                raise WeakLabelError(f"{name} must be a number, got {value!r}")
        if self.prior is not None and not 0 < self.prior < 1:
            raise WeakLabelError(f"prior must lie between 0 and 1, got {self.prior!r}")
        if not 0 <= self.belief < math.inf:
            raise WeakLabelError(f"belief must be 0 or more, got {self.belief!r}")
        for name in ("smoothing", "gold_weight", "tolerance"):
            if not getattr(self, name) > 0:
                raise WeakLabelError(f"{name} must be above 0, got {getattr(self, name)!r}")

    def fit(
        self,
        votes: Any,
        *,
        functions: Iterable[LabelingFunction] | None = None,
        families: Mapping[str, str | None] | None = None,
        gold: Gold | None = None,
    ) -> FittedLabelModel:
        """Fit to a table of votes, or to `Patterns`.

        Args:
            votes: any frame narwhals knows with columns `lf:…`, or `Patterns` of one.
            functions: those that voted, where `votes` is a frame, which has no place for the
                families that they declare. Ones that did not vote are left.
            families: the same by name, where the functions are not at hand; `{}` for none.
            gold: votes of queries known to be right or wrong; their class is not guessed.

        Raises:
            WeakLabelError: there are no rows, gold does not fit the votes, or nothing says which
                families the functions of a frame are of.

        Warns:
            WeakLabelWarning: there is a reason not to trust the model, see `FittedLabelModel`.
        """
        patterns = self._patterns(votes, functions, families)
        known = np.zeros((2, len(patterns)), dtype=np.int64)
        if gold is not None:
            known = gold.known_in(patterns)
        if not patterns.present.any():
            raise WeakLabelError(
                "no function has input on any query: there is nothing to fit a model to; check"
                " which columns the functions require"
            )
        units, still = _units(patterns, self.families)
        factors: Partition = (*units, *still)
        rules = self._rules(patterns, known, factors)
        coded, solution = self._solve(patterns, factors, known, rules)
        rates: tuple[MissingRate, ...] = ()
        if not patterns.present.all():
            informed = (*factors, Inputs.of(patterns))
            with_inputs = self._solve(patterns, informed, known, rules, solution)
            rates = missing_rates(patterns, coded, with_inputs[1])
            if self.missing == "evidence":
                factors, (coded, solution) = informed, with_inputs
        prior, logs = solution.parameters.prior, solution.parameters.logs
        ends = np.cumsum(coded.sizes)[:-1]
        own = zip(factors, np.split(coded.codes, ends), np.split(logs, ends, axis=1), strict=True)

        rough = replace(rules, tolerance=ROUGH)
        reference = best_cut(patterns, units, known, rough, self.gold_weight)
        pairs = dependences(patterns, reference.posterior)
        home = {name: factor for factor in (*units, *still) for name in factor.functions}
        apart = [pair for pair in pairs if pair.matters and home[pair.first] != home[pair.second]]
        checked = known.sum(axis=0)
        right = (patterns.counts - checked) * solution.posterior + known[1]
        right = right / patterns.counts
        folds = self._held_out(patterns, factors, known) if known.sum() >= ENOUGH_GOLD else None
        comparison = compare(
            patterns,
            coded,
            solution,
            reference=reference.posterior,
            other=alternative(coded, solution, rules),
            held_out=folds,
        )
        how = _rates(patterns, right)
        found = (
            *reasons(comparison, solution, apart, rates, self.missing == "evidence"),
            *unlike_members(units, {rate.name: rate.accuracy for rate in how}),
        )
        for reason in found:
            warnings.warn(reason, WeakLabelWarning, stacklevel=2)
        return FittedLabelModel(
            patterns.functions,
            prior,
            tuple(FittedFactor.of(*factor, self.abstain) for factor in own),
            solution.trace,
            how,
            rates,
            pairs,
            comparison,
            found,
            patterns.log_rows,
            patterns.identities,
        )

    def _patterns(
        self,
        votes: Any,
        functions: Iterable[LabelingFunction] | None,
        families: Mapping[str, str | None] | None,
    ) -> Patterns:
        if isinstance(votes, Patterns):
            if functions is not None or families is not None:
                raise WeakLabelError(
                    "patterns know the functions' families: give functions= and families= to"
                    " Patterns.count, or not at all"
                )
            return as_patterns(votes, missing=True)
        if functions is None and families is None and self.families != "ignore":
            raise WeakLabelError(
                "a frame does not say which functions share a family, and taken for independent"
                " they mislead the model: give fit(votes, functions=…), the labeling functions that"
                ' voted, or families={"name": "family"}, {} for none'
            )
        columns = nw.from_native(votes).collect_schema().names()
        there = {name.removeprefix(PREFIX) for name in columns if name.startswith(PREFIX)}
        given = {f.name: f for f in functions or () if f.name in there}
        if functions is not None and (lacking := sorted(there - set(given))):
            raise WeakLabelError(
                f"the votes are of functions {sorted(there)}, and functions= lacks {lacking}"
            )
        declared = {name: function.family for name, function in given.items()}
        identities = {name: function.identity() for name, function in given.items()}
        counted = Patterns.count(votes, {**declared, **(families or {})}, identities)
        return as_patterns(counted, missing=True)

    def _solve(
        self,
        patterns: Patterns,
        factors: Partition,
        known: Integers,
        rules: em.Rules,
        start: em.Solution | None = None,
    ) -> tuple[em.Coded, em.Solution]:
        coded = em.Coded.of(patterns, factors, known, self.abstain, self.gold_weight)
        return coded, em.fit(coded, rules, start)

    def _rules(self, patterns: Patterns, known: Integers, factors: Partition) -> em.Rules:
        voting = [factor for factor in factors if factor.votes]
        coded = em.Coded.of(patterns, voting, np.zeros_like(known), self.abstain)
        rows = float(coded.open.sum())
        # A vote among factors, for copies within a family must not count for more; and among those
        # that can go either way, for others say nothing of how many transcripts are right.
        accepts, rejects = (coded.means > 0).any(axis=0), (coded.means < 0).any(axis=0)
        both = accepts & rejects
        accepted = float(coded.open @ (coded.means[:, both].sum(axis=1) >= 0)) / rows
        balance = float(both.sum()) / max(int((accepts | rejects).sum()), 1)
        # A few checked queries tell more of it than all votes.
        share = (accepted * ENOUGH_GOLD + known[1].sum()) / (ENOUGH_GOLD + known.sum())
        share = min(max(float(share), LEAST_SHARE), 1 - LEAST_SHARE)
        belief = (share, self.belief * balance * rows)
        return em.Rules(self.smoothing, self.prior, belief, self.tolerance)

    def _held_out(
        self, patterns: Patterns, factors: Partition, known: Integers
    ) -> tuple[list[tuple[Integers, Floats]], Floats]:
        """What models that have not seen the checked queries say of them, and one without gold."""
        voting = tuple(factor for factor in factors if factor.votes)

        def posterior(seen: Integers) -> Floats:
            rules = self._rules(patterns, seen, factors)
            solution = self._solve(patterns, voting, seen, rules)[1]
            if voting != factors:
                solution = self._solve(patterns, factors, seen, rules, solution)[1]
            return solution.posterior

        # Checked queries, dealt out one by one.
        dealt = np.repeat(np.arange(known.size), known.ravel())
        folds = []
        for fold in range(FOLDS):
            held = np.bincount(dealt[fold::FOLDS], minlength=known.size).reshape(known.shape)
            folds.append((held, posterior(known - held)))
        return folds, posterior(np.zeros_like(known))


def _units(patterns: Patterns, families: Families) -> tuple[Partition, Partition]:
    """Functions and declared families; apart from them, functions that never change their vote.

    The second hold no evidence, and must not count for a factor or widen a family.
    """
    names = patterns.functions
    present = np.where(patterns.present, patterns.votes, 0)
    high = np.where(patterns.present, present, -1).max(axis=0)
    low = np.where(patterns.present, present, 1).min(axis=0)
    still = {name for name, same in zip(names, high <= low, strict=True) if same}
    own = [
        None if name in still or families == "ignore" else family
        for name, family in zip(names, patterns.families, strict=True)
    ]
    factors = em.by_family(names, own)
    return (
        tuple(factor for factor in factors if factor.functions[0] not in still),
        tuple(factor for factor in factors if factor.functions[0] in still),
    )


def _rates(patterns: Patterns, right: Floats) -> tuple[FunctionRates, ...]:
    """How each function votes where it has input, given (P,) P(right)."""
    rows = np.stack([(1 - right) * patterns.counts, right * patterns.counts])  # (2, P)
    found = []
    for name, votes in zip(patterns.functions, patterns.votes.T, strict=True):
        counts = np.stack([rows[:, votes == vote].sum(axis=1) for vote in (-1, 0, 1)], axis=1)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)  # (2, 3)
        wrong, right_ = shares.tolist()
        cast = int(patterns.counts[np.isin(votes, (-1, 1))].sum())
        accuracy = float((counts[0, 0] + counts[1, 2]) / cast) if cast else None
        found.append(FunctionRates(name, tuple(wrong), tuple(right_), accuracy, cast))
    return tuple(found)


@dataclass(frozen=True)
class Inputs(Factor):
    """Which of the functions' inputs are missing, as one factor: a digit to base 2 a function.

    One factor, and not one for each function: inputs go missing together, a household's or a
    column's, and such evidence must not be multiplied.

    Attributes:
        common: the patterns that occur often enough to be symbols; others are no evidence.
    """

    common: tuple[int, ...] = ()

    @property
    def votes(self) -> bool:
        """That an input is missing is neither for nor against a transcript in itself."""
        return False

    @classmethod
    def of(cls, patterns: Patterns) -> Inputs:
        """The patterns of missing inputs that occur in at least `COMMON` rows."""
        codes = cls(patterns.functions).codes(patterns.votes)
        seen, index = np.unique(codes, return_inverse=True)
        rows = np.bincount(index.reshape(-1), patterns.counts)
        return cls(patterns.functions, tuple(seen[rows >= COMMON].tolist()))

    def codes(self, votes: npt.NDArray[np.int8]) -> Integers:
        """Which inputs are missing: votes int8, (N, F) → int64, (N,)."""
        return np.asarray((votes == MISSING) @ self._places)

    def code(self) -> nw.Expr:
        """`codes` as an expression over columns of votes."""
        return nw.sum_horizontal(
            *(
                nw.col(PREFIX + name).is_null().cast(nw.Int64) * place
                for name, place in zip(self.functions, self._places.tolist(), strict=True)
            )
        )

    @cached_property
    def shown(self) -> Integers:
        """The codes that are symbols."""
        return np.array(self.common, dtype=np.int64)

    def whole(self, codes: Integers) -> npt.NDArray[np.bool_]:
        """Every code is a symbol as it stands."""
        return np.ones(len(codes), dtype=bool)

    def nothing(self, codes: Integers, abstain: Abstain) -> npt.NDArray[np.bool_]:
        """Whether codes are too rare to be evidence."""
        return ~np.isin(codes, self.common)

    def parts(self, codes: Integers, symbols: Integers) -> Floats:
        """1 where a code is the symbol."""
        return np.asarray(codes[:, None] == symbols, dtype=np.float64)

    @property
    def _places(self) -> Integers:
        return np.asarray(2 ** np.arange(len(self.functions), dtype=np.int64))


@dataclass(frozen=True)
class FittedFactor:
    """One factor's distribution of symbols.

    Attributes:
        functions: one function, or those of a family.
        codes: the S symbols seen, see `weaklabel.em.Factor`.
        wrong: P(symbol | wrong), S of them.
        right: P(symbol | right), S of them.
        abstain: "symbol", or "ignore".
        inputs: the symbols say which inputs are missing, see `Inputs`.
    """

    functions: tuple[str, ...]
    codes: tuple[int, ...]
    wrong: tuple[float, ...]
    right: tuple[float, ...]
    abstain: Abstain = "symbol"
    inputs: bool = False

    @classmethod
    def of(cls, factor: Factor, codes: Integers, logs: Floats, abstain: Abstain) -> FittedFactor:
        """Of log P(symbol | class), (2, S)."""
        wrong, right = np.exp(logs).tolist()
        inputs = isinstance(factor, Inputs)
        return cls(
            factor.functions, tuple(codes.tolist()), tuple(wrong), tuple(right), abstain, inputs
        )

    @property
    def factor(self) -> Factor:
        """What the symbols are of."""
        return Inputs(self.functions, self.codes) if self.inputs else Factor(self.functions)

    @cached_property
    def evidence(self) -> tuple[Integers, Floats]:
        """Log P(shown | right) - log P(shown | wrong) of whatever may be shown: codes and values.

        What is a part of no symbol ever seen has the evidence of the symbols nearest to it.
        """
        factor, symbols = self.factor, np.array(self.codes, dtype=np.int64)
        shown = factor.shown
        values = np.zeros(len(shown))
        if not len(symbols):
            return shown, values
        wrong, right = np.array(self.wrong), np.array(self.right)
        some = ~factor.nothing(shown, self.abstain)
        parts = factor.parts(shown[some], symbols)  # (N, S)
        if not self.inputs:
            distance = factor.distances(shown[some], symbols)
            near = distance == distance.min(axis=1, keepdims=True)
            parts = np.where(parts.any(axis=1, keepdims=True), parts, near)
        values[some] = np.log(parts @ right) - np.log(parts @ wrong)
        return shown, values

    def of_votes(self, votes: npt.NDArray[np.int8]) -> Floats:
        """The evidence of votes int8, (N, m): float64, (N,)."""
        shown, values = self.evidence
        codes = self.factor.codes(votes)
        if not len(shown):
            return np.zeros(len(votes))
        index = np.minimum(np.searchsorted(shown, codes), len(shown) - 1)
        return np.where(shown[index] == codes, values[index], 0.0)

    def term(self) -> nw.Expr:
        """The evidence as an expression over the columns of votes."""
        shown, values = self.evidence
        if not self.inputs and len(self.functions) <= NESTED:
            return by_votes(self.functions, values.tolist())
        if not len(shown):
            return nw.lit(0.0)
        return self.factor.code().replace_strict(
            shown.tolist(), values.tolist(), default=0.0, return_dtype=nw.Float64
        )


@dataclass(frozen=True)
class FunctionRates:
    """How one function votes where it has input, as the model sees it.

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
        log_likelihoods: penalized, at each step of EM; they never decrease.
        rates: how each function votes.
        missing: P(right) where a function has no input, for each that lacks it anywhere.
        dependence: of every pair of functions, given the class.
        comparison: with what needs no model.
        warnings: reasons not to trust the model; they were issued when it was fitted, too.
        log_rows: for every function of scope "log" the rows of the log it looked at, else None.
        identities: which functions they are, or None where that is not known.
    """

    kind: ClassVar[str] = "label-model"
    handles_missing: ClassVar[bool] = True

    functions: tuple[str, ...]
    prior: float
    factors: tuple[FittedFactor, ...]
    log_likelihoods: tuple[float, ...]
    rates: tuple[FunctionRates, ...]
    missing: tuple[MissingRate, ...]
    dependence: tuple[Dependence, ...]
    comparison: Comparison
    warnings: tuple[str, ...]
    log_rows: tuple[int | None, ...]
    identities: tuple[Identity | None, ...]

    @property
    def families(self) -> tuple[tuple[str, ...], ...]:
        """The factors of more than one function."""
        return tuple(
            factor.functions
            for factor in self.factors
            if len(factor.functions) > 1 and not factor.inputs
        )

    def weights(self, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
        """P(right), float64 (N,), for votes int8 (N, F) in the order of `functions`.

        Where a function had no input the vote is `MISSING`.
        """
        check_votes(votes, self.functions)
        index = {name: i for i, name in enumerate(self.functions)}
        total = np.full(len(votes), self._constant)
        for factor in self.factors:
            total += factor.of_votes(votes[:, [index[name] for name in factor.functions]])
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

        def each(make: Callable[..., Any], key: str) -> tuple[Any, ...]:
            return tuple(make(**_tuples(entry)) for entry in content[key])

        return cls(
            functions=tuple(content["functions"]),
            prior=float(content["prior"]),
            factors=each(FittedFactor, "factors"),
            log_likelihoods=tuple(content["log_likelihoods"]),
            rates=each(FunctionRates, "rates"),
            missing=each(MissingRate, "missing"),
            dependence=each(Dependence, "dependence"),
            comparison=Comparison.from_dict(content["comparison"]),
            warnings=tuple(content["warnings"]),
            log_rows=tuple(content["log_rows"]),
            identities=identities_of(content),
        )


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples they were."""
    return {k: tuple(value) if isinstance(value, list) else value for k, value in entry.items()}


@hookimpl
def weaklabel_label_models(register: Callable[[Kind], None]) -> None:
    """Register the label model."""
    register(Kind("label-model", LabelModel, FittedLabelModel))
