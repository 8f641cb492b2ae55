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
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal, get_args

import narwhals.stable.v2 as nw
import numpy as np

from weaklabel import em
from weaklabel.dependence import (
    Dependence,
    GoldComparison,
    MissingRate,
    ModelComparison,
    Partition,
    alternative,
    best_cut,
    compare_model,
    dependences,
    missing_rates,
    reasons,
    unlike_members,
)
from weaklabel.em import Abstain, Factor, Floats, Inputs, Integers
from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.gold import Gold
from weaklabel.labeling import Identity, LabelingFunction
from weaklabel.models import (
    Fitted,
    as_patterns,
    by_vote,
    check_numbers,
    check_prior,
    logistic_expression,
)
from weaklabel.patterns import Patterns, accepts, vote_columns
from weaklabel.plugins import Kind, hookimpl
from weaklabel.votes import MISSING, PREFIX

FOLDS: Final = 5
ENOUGH_GOLD: Final = 20  # checked queries; with fewer a comparison says little

#: The least share of either class that is believed in: a majority may accept everything.
LEAST_SHARE: Final = 0.03

#: Nats a row; a partition's score need not be known better.
ROUGH: Final = 1e-6

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
        check_numbers(self, "belief", "smoothing", "gold_weight", "tolerance")
        if self.prior is not None:
            check_prior(self)
        if not 0 <= self.belief < math.inf:
            raise WeakLabelError(f"belief must be 0 or more, got {self.belief!r}")
        for name in ("smoothing", "gold_weight", "tolerance"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise WeakLabelError(f"{name} must be above 0 and finite, got {value!r}")

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
            WeakLabelError: there are no rows, gold does not fit the votes, nothing says which
                families the functions of a frame are of, or the prior is too near to 0 or 1.

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
        voting: Partition = (*units, *still)
        factors = voting
        coded, rules, solution = self._solve(patterns, voting, known)
        rates: tuple[MissingRate, ...] = ()
        if not patterns.present.all():
            informed = (*voting, Inputs.of(patterns))
            seen = self._coded(patterns, informed, known)
            with_inputs = em.fit(seen, rules, solution)
            rates = missing_rates(patterns, coded, with_inputs)
            if self.missing == "evidence":
                factors, coded, solution = informed, seen, with_inputs

        rough = replace(rules, tolerance=ROUGH)
        reference = best_cut(patterns, units, known, rough, self.gold_weight)
        pairs = dependences(patterns, reference)
        if not all(math.isfinite(pair.information) for pair in pairs):
            raise self._boundless()
        home = {name: factor for factor in voting for name in factor.functions}
        apart = [pair for pair in pairs if pair.matters and home[pair.first] != home[pair.second]]
        right = (patterns.counts - known.sum(axis=0)) * solution.posterior + known[1]
        checked = known.sum() >= ENOUGH_GOLD
        comparison = compare_model(
            patterns,
            coded,
            solution,
            reference=reference,
            other=alternative(coded, solution, rules),
            gold=self._held_out(patterns, factors, known) if checked else None,
        )
        found = (
            *reasons(comparison, solution, apart, rates, self.missing == "evidence", self.prior),
            *unlike_members(patterns, units, right / patterns.counts),
        )
        for reason in found:
            warnings.warn(reason, WeakLabelWarning, stacklevel=2)
        return FittedLabelModel(
            patterns.functions,
            solution.prior,
            FittedFactor.each(factors, coded, solution, self.abstain),
            solution.trace,
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
        there = {name.removeprefix(PREFIX) for name in vote_columns(nw.from_native(votes))}
        given = {f.name: f for f in functions or () if f.name in there}
        if functions is not None and (lacking := sorted(there - set(given))):
            raise WeakLabelError(
                f"the votes are of functions {sorted(there)}, and functions= lacks {lacking}"
            )
        declared = {name: function.family for name, function in given.items()}
        identities = {name: function.identity() for name, function in given.items()}
        counted = Patterns.count(votes, {**declared, **(families or {})}, identities)
        return as_patterns(counted, missing=True)

    def _coded(self, patterns: Patterns, factors: Partition, known: Integers) -> em.Coded:
        return em.Coded.of(patterns, factors, known, self.abstain, self.gold_weight)

    def _solve(
        self, patterns: Patterns, voting: Partition, known: Integers
    ) -> tuple[em.Coded, em.Rules, em.Solution]:
        """Fit the factors that vote."""
        coded = self._coded(patterns, voting, known)
        counts = np.where(coded.evident, patterns.counts, 0.0)
        rows = float(counts.sum())
        # A vote among factors, for copies within a family must not count for more; and among those
        # that can go either way, for others say nothing of how many transcripts are right.
        accepts, rejects = (coded.means > 0).any(axis=0), (coded.means < 0).any(axis=0)
        both = accepts & rejects
        accepted = float(counts @ (coded.means[:, both].sum(axis=1) >= 0)) / rows
        balance = float(both.sum()) / max(int((accepts | rejects).sum()), 1)
        # A few checked queries tell more of it than all votes.
        share = (accepted * ENOUGH_GOLD + known[1].sum()) / (ENOUGH_GOLD + known.sum())
        share = min(max(float(share), LEAST_SHARE), 1 - LEAST_SHARE)
        belief = (share, self.belief * balance * rows)
        rules = em.Rules(self.smoothing, self.prior, belief, self.tolerance)
        with np.errstate(all="ignore"):  # an end that is no number is refused
            solution = em.fit(coded, rules)
        if not math.isfinite(solution.trace[-1]):
            raise self._boundless()
        return coded, rules, solution

    def _boundless(self) -> WeakLabelError:
        return WeakLabelError(
            f"the fit with prior {self.prior!r}, belief {self.belief!r} and smoothing"
            f" {self.smoothing!r} does not come to numbers: take a prior farther from 0 and 1, and"
            " the others smaller"
        )

    def _held_out(self, patterns: Patterns, factors: Partition, known: Integers) -> GoldComparison:
        """Compare models that have not seen the checked queries, and one without gold."""
        voting = tuple(factor for factor in factors if not isinstance(factor, Inputs))

        def posterior(seen: Integers) -> Floats:
            _, rules, solution = self._solve(patterns, voting, seen)
            if voting != factors:
                solution = em.fit(self._coded(patterns, factors, seen), rules, solution)
            return solution.posterior

        # Checked queries, dealt out one by one.
        dealt = np.repeat(np.arange(known.size), known.ravel())
        is_right, pattern = np.divmod(dealt, len(patterns))
        weights = np.zeros(len(dealt))
        for fold in range(FOLDS):
            own = slice(fold, None, FOLDS)
            held = np.bincount(dealt[own], minlength=known.size).reshape(known.shape)
            weights[own] = posterior(known - held)[pattern[own]]
        without = posterior(np.zeros_like(known))[pattern]
        majority = accepts(patterns.votes)[pattern]
        return GoldComparison.of(is_right == 1, weights, without, majority)


def _units(patterns: Patterns, families: Families) -> tuple[Partition, Partition]:
    """Functions and declared families; apart from them, functions that never change their vote.

    The second hold no evidence, and must not count for a factor or widen a family.
    """
    names = patterns.functions
    different = [len(np.unique(own[own != MISSING])) for own in patterns.votes.T]
    still = {name for name, number in zip(names, different, strict=True) if number < 2}
    own = [
        None if name in still or families == "ignore" else family
        for name, family in zip(names, patterns.families, strict=True)
    ]
    factors = em.by_family(names, own)
    return (
        tuple(factor for factor in factors if factor.functions[0] not in still),
        tuple(factor for factor in factors if factor.functions[0] in still),
    )


@dataclass(frozen=True)
class FittedFactor:
    """One factor's distribution of symbols.

    Attributes:
        functions: one function, or those of a family.
        codes: the S symbols seen, see `weaklabel.em.Factor`.
        wrong: P(symbol | wrong), S of them.
        right: P(symbol | right), S of them.
        abstain: "symbol", or "ignore".
        inputs: the symbols say which inputs are missing, see `weaklabel.em.Inputs`.
    """

    functions: tuple[str, ...]
    codes: tuple[int, ...]
    wrong: tuple[float, ...]
    right: tuple[float, ...]
    abstain: Abstain = "symbol"
    inputs: bool = False

    @classmethod
    def each(
        cls, factors: Partition, coded: em.Coded, solution: em.Solution, abstain: Abstain
    ) -> tuple[FittedFactor, ...]:
        """Cut a solution into its factors."""
        ends = np.cumsum(coded.sizes)[:-1]
        codes = np.split(coded.codes, ends)
        shares = np.split(np.exp(solution.logs), ends, axis=1)  # P(symbol | class), (2, S) each
        return tuple(
            cls(
                factor.functions,
                tuple(own.tolist()),
                tuple(wrong.tolist()),
                tuple(right.tolist()),
                abstain,
                isinstance(factor, Inputs),
            )
            for factor, own, (wrong, right) in zip(factors, codes, shares, strict=True)
        )

    def __post_init__(self) -> None:
        for name in ("wrong", "right"):
            shares = getattr(self, name)
            fair = not shares or (min(shares) >= 0 and math.isclose(sum(shares), 1, rel_tol=1e-6))
            if len(shares) != len(self.codes) or not fair:
                raise WeakLabelError(
                    f"{name}, of the factor of {list(self.functions)}, must be probabilities of"
                    f" its {len(self.codes)} codes, 1 in all, got {list(shares)}"
                )

    def term(self) -> nw.Expr:
        """Log P(shown | right) - log P(shown | wrong), an expression over the columns of votes.

        What is a part of no symbol ever seen has the evidence of the symbols nearest to it.
        """
        factor = Inputs(self.functions, self.codes) if self.inputs else Factor(self.functions)
        symbols = np.array(self.codes, dtype=np.int64)
        if not len(symbols):
            return nw.lit(0.0)
        shown = factor.shown
        values = np.zeros(len(shown))
        some = ~factor.nothing(shown, self.abstain)
        parts = factor.parts(shown[some], symbols)  # (N, S)
        if not self.inputs:
            distance = factor.distances(shown[some], symbols)
            near = distance == distance.min(axis=1, keepdims=True)
            parts = np.where(parts.any(axis=1, keepdims=True), parts, near)
        values[some] = np.log(parts @ np.array(self.right)) - np.log(parts @ np.array(self.wrong))
        evidence = dict(zip(shown.tolist(), values.tolist(), strict=True))
        if len(self.functions) == 1 and not self.inputs:  # sooner than to look up a code
            return by_vote(*self.functions, *evidence.values())
        return factor.code().replace_strict(evidence, default=0.0, return_dtype=nw.Float64)


@dataclass(frozen=True)
class FittedLabelModel(Fitted):
    """A label model's parameters, and what there is to know about them.

    Attributes:
        functions: names of the F functions, sorted.
        prior: P(right) over all queries.
        factors: functions and families, whose evidence adds up.
        log_likelihoods: penalized, at each step of EM; they never decrease.
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
    missing: tuple[MissingRate, ...]
    dependence: tuple[Dependence, ...]
    comparison: ModelComparison
    warnings: tuple[str, ...]
    log_rows: tuple[int | None, ...]
    identities: tuple[Identity | None, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prior(self)
        named = [name for factor in self.factors for name in factor.functions]
        voting = [name for one in self.factors if not one.inputs for name in one.functions]
        if sorted(voting) != sorted(self.functions) or not set(named) <= set(self.functions):
            raise WeakLabelError(
                f"factors must hold each of the functions {list(self.functions)} once, got {named}"
            )

    @property
    def families(self) -> tuple[tuple[str, ...], ...]:
        """The factors of more than one function."""
        return tuple(
            factor.functions
            for factor in self.factors
            if len(factor.functions) > 1 and not factor.inputs
        )

    def weight(self) -> nw.Expr:
        """P(right) as an expression over the columns of votes."""
        odds = float(np.log(self.prior) - np.log1p(-self.prior))
        return logistic_expression((factor.term() for factor in self.factors), odds)


@hookimpl
def weaklabel_label_models(register: Callable[[Kind], None]) -> None:
    """Register the label model."""
    register(Kind("label-model", LabelModel, FittedLabelModel))
