"""What labeling functions and a label model did: coverage, conflicts, learned and true accuracy.

All that needs no gold comes from counts of vote patterns, so that it costs the same for a thousand
queries and for a billion. What needs gold (see `weaklabel.gold`) comes from the
queries that were checked, which are few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from weaklabel.dependence import Comparison, Dependence, dependences
from weaklabel.em import Factor
from weaklabel.errors import WeakLabelError
from weaklabel.gold import Deciles, GoldAnalysis, Proportion, analyse_gold, wilson
from weaklabel.models import FittedModel, as_patterns, check_functions
from weaklabel.patterns import Patterns
from weaklabel.votes import PREFIX

MOST = 1500  # parameters; beyond, no interval is computed, as its time grows with their cube
_CHUNK = 4096  # patterns whose scores are in memory at a time

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Learned:
    """What is learned of one function; None for votes it never casts.

    Attributes:
        accept: P(right | it accepts), with a 95% interval.
        reject: P(wrong | it rejects), with a 95% interval.
    """

    accept: Proportion | None
    reject: Proportion | None


def learned_shares(
    patterns: Patterns, weights: Floats, families: Sequence[Sequence[str]] = ()
) -> tuple[Learned, ...]:
    """P(right | accept) and P(wrong | reject) of every function, with intervals.

    The point is the mean weight of the queries that the function accepts. The interval is Wilson's
    for as many queries of known class as the delta method's variance is worth: it holds that the
    classes are guessed, and that all other functions' distributions are learned from the same
    rows. It holds nothing of a model that is wrong: functions that depend on each other outside
    their families, or too few of them. Gold that a model was anchored to is left out of account,
    which makes the interval wider. With more than `MOST` parameters the interval is [0, 1].

    Args:
        patterns: P patterns of F functions.
        weights: P(right | pattern), float64, (P,).
        families: functions that share their evidence; the others are alone.

    Returns:
        One for each function, in the patterns' order.
    """
    model = _Mixture.of(patterns, weights, families)
    variances = _variances(model, patterns)  # of log-odds, (2, F)
    found = []
    for index in range(len(patterns.functions)):
        shares: list[Proportion | None] = []
        for number, (vote, sure) in enumerate(((1, weights), (-1, 1 - weights))):
            own = patterns.votes[:, index] == vote
            rows = int(patterns.counts @ own)
            if not rows:
                shares.append(None)
                continue
            point = min(max(float(patterns.counts[own] @ sure[own]) / rows, 0.0), 1.0)
            # The variance of a share is p²(1 - p)² times that of its log-odds.
            worth = float(variances[number, index]) * max(point * (1 - point), 1e-12)
            shares.append(wilson(point, min(1 / worth, rows)))
        found.append(Learned(*shares))
    return tuple(found)


def _variances(model: _Mixture, patterns: Patterns) -> Floats:
    """Of the log-odds of P(right | accept), and of P(wrong | reject), for each function: (2, F)."""
    shape = (2, len(patterns.functions))
    if model.parameters > MOST:
        return np.full(shape, np.inf)
    gradients = [
        model.gradient(name, vote) if (patterns.votes[:, index] == vote).any() else model.nothing
        for vote in (1, -1)
        for index, name in enumerate(patterns.functions)
    ]
    table = np.stack(gradients, axis=1)  # (parameters, 2F)
    information = model.information(patterns.counts)
    # Rare symbols hold little information: of equal scale, the equations are solved as exactly.
    scale = 1 / np.sqrt(np.diag(information))
    table = table * scale[:, None]
    solved = np.linalg.solve(information * np.outer(scale, scale), table)
    return np.asarray((table * solved).sum(axis=0).reshape(shape))


@dataclass(frozen=True, eq=False)
class _Mixture:
    """Two classes, G factors with S symbols in all, fitted to the weights.

    Attributes:
        weights: P(right | pattern), (P,).
        factors: functions, or families.
        symbols: int64, (P, G): each pattern's symbols, numbered through all factors.
        codes: the factor's code of each symbol, (S,).
        owners: the factor of each symbol, (S,).
        rows: rows of each symbol in the classes wrong and right, half a row more, (2, S).
        prior: P(right).
    """

    weights: Floats
    factors: tuple[Factor, ...]
    symbols: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    rows: Floats
    prior: float

    @classmethod
    def of(cls, patterns: Patterns, weights: Floats, families: Sequence[Sequence[str]]) -> _Mixture:
        members = {name for family in families for name in family}
        alone = [(name,) for name in patterns.functions if name not in members]
        factors = tuple(Factor(tuple(sorted(names))) for names in (*families, *alone))
        columns: list[npt.NDArray[np.int64]] = []
        codes: list[npt.NDArray[np.int64]] = []
        owners: list[npt.NDArray[np.int64]] = []
        total = 0
        for number, factor in enumerate(factors):
            index = [patterns.functions.index(name) for name in factor.functions]
            own, symbol = np.unique(factor.codes(patterns.votes[:, index]), return_inverse=True)
            columns.append(symbol.reshape(-1) + total)
            total += len(own)
            codes.append(own)
            owners.append(np.full(len(own), number))
        symbols = np.stack(columns, axis=1)
        rows = np.full((2, total), 0.5)  # a symbol that a class never shows is not impossible
        for class_, posterior in enumerate((1 - weights, weights)):
            for column in symbols.T:
                rows[class_] += np.bincount(column, posterior * patterns.counts, minlength=total)
        prior = float(patterns.counts @ weights + 0.5) / (patterns.rows + 1)
        return cls(
            weights,
            factors,
            symbols,
            np.concatenate(codes),
            np.concatenate(owners),
            rows,
            prior,
        )

    @property
    def parameters(self) -> int:
        """How many there are: the prior's log-odds, and a logarithm for each class and symbol."""
        return 1 + self.rows.size

    @property
    def shares(self) -> Floats:
        """P(symbol | class), (2, S)."""
        totals = np.stack([np.bincount(self.owners, row) for row in self.rows])
        return np.asarray(self.rows / totals[:, self.owners])

    @property
    def nothing(self) -> Floats:
        """The gradient of what does not depend on any parameter."""
        return np.zeros(self.parameters)

    def information(self, counts: npt.NDArray[np.int64]) -> Floats:
        """What the rows tell of the parameters: (parameters, parameters), positive definite."""
        shares = self.shares
        wide = shares.shape[1]
        found = np.zeros((self.parameters, self.parameters))
        for start in range(0, len(counts), _CHUNK):
            part = slice(start, start + _CHUNK)
            weights = self.weights[part, None]
            shown = np.zeros((len(weights), wide))
            np.put_along_axis(shown, self.symbols[part], 1.0, axis=1)
            scores = np.concatenate(
                [
                    weights - self.prior,
                    (1 - weights) * (shown - shares[0]),
                    weights * (shown - shares[1]),
                ],
                axis=1,
            )
            found += scores.T @ (scores * counts[part, None])
        # One row for the prior and half a row a symbol, as in `rows`: what is never seen is not
        # known exactly.
        found[0, 0] += self.prior * (1 - self.prior)
        same = self.owners[:, None] == self.owners
        size = np.bincount(self.owners)[self.owners] / 2
        for class_ in range(2):
            own = slice(1 + class_ * wide, 1 + (class_ + 1) * wide)
            block = np.diag(shares[class_]) - same * np.outer(shares[class_], shares[class_])
            # The logarithms of one distribution may all be shifted, which means nothing. Gradients
            # have no part in that direction, so that it may be given any information.
            found[own, own] += size[:, None] * block + same
        return found

    def gradient(self, name: str, vote: int) -> Floats:
        """Of the log-odds of the class that a function's vote is for, (parameters,)."""
        number, factor = next(
            (n, factor) for n, factor in enumerate(self.factors) if name in factor.functions
        )
        own = np.flatnonzero(self.owners == number)
        points = factor.points()[self.codes[own]]
        if factor.joint:
            voting = (points[:, factor.functions.index(name)] == vote).astype(np.float64)
        else:  # a symbol tells how many members vote so, not which: each is as likely
            voting = points[:, 0 if vote == 1 else 1] / len(factor.functions)
        found = self.nothing
        found[0] = vote
        wide = self.rows.shape[1]
        for class_, sign in ((0, -vote), (1, vote)):
            shares = self.shares[class_, own]
            part = shares * voting
            found[1 + class_ * wide + own] = sign * (part / part.sum() - shares)
        return found


HISTOGRAM = 20  # bins of weights, of equal width
FREQUENT = 20  # patterns listed


@dataclass(frozen=True)
class FunctionSummary:
    """One labeling function. Shares are of all queries unless they say otherwise.

    Attributes:
        name: as in the votes' column `lf:<name>`.
        family: the family it was declared in, or None.
        identity: its provenance, or None where it is not known.
        accepts: queries it accepts.
        rejects: queries it rejects.
        coverage: share it votes on.
        overlaps: share it votes on together with another function.
        conflicts: share where another function votes the opposite.
        polarity: the votes it ever casts: (), (-1,), (1,) or (-1, 1).
        learned_accept: P(right | it accepts) by the model, with a 95% interval whose limits are
            described in `learned_shares`; None if it never accepts.
        learned_reject: P(wrong | it rejects), likewise.
        gold_accept: share right of the gold queries it accepts, with a 95% Wilson interval; None
            without gold, or if it accepts none of it.
        gold_reject: share wrong of those it rejects, likewise.
        dependence: on the function that it depends on most, given the transcript's class; None if
            it is the only function.
    """

    name: str
    family: str | None
    identity: str | None
    accepts: int
    rejects: int
    coverage: float
    overlaps: float
    conflicts: float
    polarity: tuple[int, ...]
    learned_accept: Proportion | None
    learned_reject: Proportion | None
    gold_accept: Proportion | None = None
    gold_reject: Proportion | None = None
    dependence: Dependence | None = None


@dataclass(frozen=True)
class PatternSummary:
    """One pattern of votes.

    Attributes:
        votes: -1, 0 or 1 for every function.
        rows: queries that show it.
        weight: P(right) the model gives them.
    """

    votes: tuple[int, ...]
    rows: int
    weight: float


@dataclass(frozen=True)
class ModelSummary:
    """The fitted model; what its kind does not have is None or empty.

    Attributes:
        kind: the kind of model, such as "label-model".
        prior: P(right) over all queries.
        log_likelihood: (penalised) log-likelihood at the end of the fit.
        steps: of the fit.
        families: functions that share their evidence.
        comparison: what it expects of itself, of accepting everything and of a majority vote.
        warnings: reasons not to trust it.
    """

    kind: str
    prior: float | None
    log_likelihood: float | None
    steps: int | None
    families: tuple[tuple[str, ...], ...]
    comparison: Comparison | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """Everything a report shows.

    Attributes:
        rows: queries.
        patterns: distinct patterns of votes among them.
        silent: queries on which no function votes.
        threshold: queries whose weight reaches it are accepted, the others rejected.
        accepted: how many are accepted.
        mean_weight: over all queries: the share of right transcripts by the model.
        histogram: queries by weight, in `HISTOGRAM` bins of equal width from 0 to 1.
        functions: every function, in the model's order.
        agreement: (F, F): of the queries on which both vote, the share on which they vote the same;
            None where there are none, and for a function with itself if it never votes.
        dependences: every pair of functions, the strongest first: what they have in common once
            the model has said which transcripts are right.
        frequent: the most frequent patterns, the first ones first.
        model: the model itself.
        gold: what the checked queries say, or None without them.
        provenance: what the analysis was made of, as names and values.
    """

    rows: int
    patterns: int
    silent: int
    threshold: float
    accepted: int
    mean_weight: float
    histogram: tuple[int, ...]
    functions: tuple[FunctionSummary, ...]
    agreement: tuple[tuple[float | None, ...], ...]
    dependences: tuple[Dependence, ...]
    frequent: tuple[PatternSummary, ...]
    model: ModelSummary
    gold: GoldAnalysis | None = None
    provenance: tuple[tuple[str, str], ...] = ()


def analyse(
    votes: Any,
    fitted: FittedModel,
    *,
    gold: Any = None,
    queries: Any = None,
    threshold: float = 0.5,
    wer_threshold: float = 0.0,
    normalizer: str = "basic",
    resamples: int = 1000,
    seed: int = 0,
    examples: int = 10,
    provenance: Iterable[tuple[str, str]] = (),
) -> Analysis:
    """Analyse votes and the model fitted to them.

    Args:
        votes: a table of votes (any frame narwhals knows), or its `Patterns`; families and
            identities are known to `Patterns` only. With gold a table with `query_id` is needed,
            or a pair of both: `(table, patterns)`.
        fitted: a model of these functions.
        gold: `query_id`, `transcript`: the correct transcripts of some queries.
        queries: `query_id`, `transcript`: the log's transcripts; by default those that the table
            of votes carries.
        threshold: of the weight, from which on a query is accepted.
        wer_threshold: a transcript is right when its word errors over the words of the correct one
            are at most this.
        normalizer: the rule by which words are the same, see `weaklabel.text`.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        examples: how many wrongly accepted, and wrongly rejected, gold queries to keep.
        provenance: what to say of where the votes and the model come from.

    Raises:
        WeakLabelError: there are no rows, the model is of other functions, or gold cannot be
            joined with the votes.
    """
    if not 0 <= threshold <= 1:
        raise WeakLabelError(f"threshold must lie in [0, 1], got {threshold!r}")
    table, patterns = votes if isinstance(votes, tuple) else (votes, as_patterns(votes))
    if gold is not None and isinstance(table, Patterns):
        raise WeakLabelError(
            "patterns have no query_id that gold could be joined by: give the table of votes, or"
            " (table, patterns)"
        )
    if not patterns.rows:
        raise WeakLabelError("no rows of votes: there is nothing to analyse")
    check_functions(fitted.functions, [PREFIX + name for name in patterns.functions])
    patterns = patterns.ordered(fitted.functions)
    weights = np.clip(fitted.weights(patterns.votes), 0.0, 1.0)
    counts = patterns.counts
    # The label model has its own: given better classes than those of its weights.
    own = getattr(fitted, "dependence", None)
    found_pairs = dependences(patterns, weights) if own is None else own
    model = _model(fitted)
    pairs = tuple(sorted(found_pairs, key=lambda pair: -pair.strength))
    found = Analysis(
        rows=patterns.rows,
        patterns=len(patterns),
        silent=int(counts @ ~patterns.votes.any(axis=1)),
        threshold=threshold,
        accepted=int(counts @ (weights >= threshold)),
        mean_weight=float(counts @ weights) / patterns.rows,
        histogram=_histogram(weights, counts),
        functions=_functions(patterns, weights, pairs, model.families),
        agreement=_agreement(patterns),
        dependences=pairs,
        frequent=_frequent(patterns, weights),
        model=model,
        provenance=tuple(provenance),
    )
    if gold is None:
        return found
    checked = analyse_gold(
        table,
        fitted,
        gold,
        queries,
        Deciles.of(weights, counts),
        threshold=threshold,
        wer_threshold=wer_threshold,
        normalizer=normalizer,
        resamples=resamples,
        seed=seed,
        examples=examples,
    )
    functions = tuple(
        replace(function, gold_accept=accuracy.accept, gold_reject=accuracy.reject)
        for function, accuracy in zip(found.functions, checked.functions, strict=True)
    )
    return replace(found, functions=functions, gold=checked)


def _functions(
    patterns: Patterns,
    weights: npt.NDArray[np.float64],
    pairs: tuple[Dependence, ...],
    families: tuple[tuple[str, ...], ...],
) -> tuple[FunctionSummary, ...]:
    counts, rows = patterns.counts, patterns.rows
    accepted, rejected = patterns.votes == 1, patterns.votes == -1  # (P, F)
    any_accepts, any_rejects = accepted.any(axis=1), rejected.any(axis=1)
    many = np.count_nonzero(patterns.votes, axis=1) > 1
    learned = learned_shares(patterns, weights, families)
    found = []
    for index, name in enumerate(patterns.functions):
        accepts, rejects = accepted[:, index], rejected[:, index]
        conflicts = (accepts & any_rejects) | (rejects & any_accepts)
        of_accepts, of_rejects = int(counts @ accepts), int(counts @ rejects)
        own = (pair for pair in pairs if name in (pair.first, pair.second))
        found.append(
            FunctionSummary(
                name,
                patterns.families[index],
                patterns.identities[index],
                of_accepts,
                of_rejects,
                (of_accepts + of_rejects) / rows,
                int(counts @ ((accepts | rejects) & many)) / rows,
                int(counts @ conflicts) / rows,
                ((-1,) if of_rejects else ()) + ((1,) if of_accepts else ()),
                learned[index].accept,
                learned[index].reject,
                dependence=next(own, None),
            )
        )
    return tuple(found)


def _agreement(patterns: Patterns) -> tuple[tuple[float | None, ...], ...]:
    # As doubles, which BLAS multiplies; whole numbers below 2^53 are exact in them.
    counts = patterns.counts.astype(np.float64)[:, None]
    accepts = (patterns.votes == 1).astype(np.float64)  # (P, F)
    rejects = (patterns.votes == -1).astype(np.float64)
    cast = accepts + rejects
    same = (counts * accepts).T @ accepts + (counts * rejects).T @ rejects  # (F, F)
    both = (counts * cast).T @ cast
    return tuple(
        tuple(s / b if b else None for s, b in zip(*lines, strict=True))
        for lines in zip(same.tolist(), both.tolist(), strict=True)
    )


def _histogram(weights: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> tuple[int, ...]:
    bins = np.zeros(HISTOGRAM, np.int64)
    np.add.at(bins, np.minimum((weights * HISTOGRAM).astype(np.int64), HISTOGRAM - 1), counts)
    return tuple(bins.tolist())


def _frequent(patterns: Patterns, weights: npt.NDArray[np.float64]) -> tuple[PatternSummary, ...]:
    order = np.argsort(-patterns.counts, kind="stable")[:FREQUENT]
    return tuple(
        PatternSummary(
            tuple(patterns.votes[index].tolist()),
            int(patterns.counts[index]),
            float(weights[index]),
        )
        for index in order
    )


def _model(fitted: FittedModel) -> ModelSummary:
    """What a model offers beyond the protocol, which asks for none of it."""
    likelihoods = getattr(fitted, "log_likelihoods", ())
    return ModelSummary(
        kind=getattr(fitted, "kind", type(fitted).__name__),
        prior=getattr(fitted, "prior", None),
        log_likelihood=likelihoods[-1] if likelihoods else None,
        steps=len(likelihoods) or None,
        families=tuple(tuple(family) for family in getattr(fitted, "families", ())),
        comparison=getattr(fitted, "comparison", None),
        warnings=tuple(str(warning) for warning in getattr(fitted, "warnings", ())),
    )
