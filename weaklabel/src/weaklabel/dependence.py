"""Reasons not to trust a label model: functions that depend on each other, and what needs no model.

Without gold only the model itself can be asked. It can be found out to have seen nothing (functions
that agree no more often than chance), to change nothing (hardly any transcript is rejected), or to
be one of several that explain the votes. That its classes mean "right" and "wrong" is beyond that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import lgamma
from typing import Final

import numpy as np
import numpy.typing as npt

from weaklabel import em
from weaklabel.em import Coded, Factor, Floats, Integers, Rules, Solution
from weaklabel.models import logistic
from weaklabel.patterns import Patterns, accepts
from weaklabel.votes import MISSING

MARGIN: Final = 0.005  # of accuracy: less than that is not "better"
DEPENDENT: Final = 0.1  # strength of dependence that is worth a warning
MISLED: Final = 0.01  # of the labels: so many that change with the families are worth a warning
NAMED: Final = 3  # dependent pairs that a warning names
LEAST_FACTORS: Final = 3
# What a parameter of a second class has to be worth, in nats: functions that know nothing reach 1.3
# (120 logs each of three to eight, of 1,000 to 20,000 queries). Beyond ENOUGH rows the price grows
# with them, as the likelihood does: dependence that is borne out, but weak, is no class.
CHANCE: Final = 1.5
ENOUGH: Final = 20_000
SILENT: Final = 0.6  # of the queries: so many without a vote are worth a warning
PRIORS: Final = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.94, 0.97)
LIKELY: Final = 3.0  # nats: a 98.6% interval of one parameter, by the likelihood ratio
WORSE: Final = 0.02  # of accuracy, than accepting everything
UNLIKE: Final = 0.15  # of accuracy: members of a large family that differ by more are not alike
PROFILED: Final = 6  # factors; more of them leave the prior no freedom
INFORMATIVE: Final = 0.02  # of P(right): by so much a missing input must change it
SURE: Final = 3.5  # standard errors of such a change


# Dependence


@dataclass(frozen=True)
class Dependence:
    """Dependence of two functions, given the class, on the queries on which both have input.

    Attributes:
        first: name of a function.
        second: name of another, later in the alphabet.
        information: conditional mutual information of their votes, in nats.
        strength: the same as a correlation, in [0, 1): √(1 - exp(-2 information)), which for two
            normal variables is the absolute value of theirs (Linfoot 1957). 0 is independence.
        significant: whether the rows bear out that there is any: a joint distribution for the pair
            is worth its parameters by Schwarz's criterion (BIC).
    """

    first: str
    second: str
    information: float
    strength: float
    significant: bool

    @property
    def matters(self) -> bool:
        """Whether a model that takes the two for independent may be misled."""
        return self.significant and self.strength >= DEPENDENT


def dependences(patterns: Patterns, posterior: Floats) -> tuple[Dependence, ...]:
    """Every pair of functions, in the patterns' order, given P(right | pattern), (P,)."""
    wide = len(patterns.functions)
    # (P, F, 3) → (P, 3F): which vote each function casts; none where it has no input.
    shown = (patterns.votes[:, :, None] == np.array([-1, 0, 1])).reshape(len(patterns), -1)
    indicator, present = shown.astype(np.float64), patterns.present.astype(np.float64)
    both = present.T @ (present * patterns.counts[:, None])  # (F, F)
    information = np.zeros((wide, wide))
    for share in (1 - posterior, posterior):
        rows = (share * patterns.counts)[:, None]
        joint = (indicator.T @ (indicator * rows)).reshape(wide, 3, wide, 3)
        # Of the votes on queries on which the other has input, too.
        single = (indicator.T @ (present * rows)).reshape(wide, 3, wide).transpose(0, 2, 1)
        total = np.maximum(present.T @ (present * rows), 1e-300)
        expected = single[:, None].transpose(0, 3, 2, 1) * single.transpose(1, 0, 2)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = joint * total[:, None, :, None] / expected
            information += np.where(joint > 0, joint * np.log(ratio), 0.0).sum(axis=(1, 3))
    symbols = shown.any(axis=0).reshape(wide, 3).sum(axis=1) - 1.0
    free = 2 * np.outer(symbols, symbols)
    rows = np.maximum(both, 1.0)
    nats = np.maximum(information / rows, 0.0)
    strength = np.sqrt(-np.expm1(-2 * nats))
    significant = (2 * rows * nats > free * np.log(rows)) & (nats > 0)
    names = patterns.functions
    return tuple(
        Dependence(
            names[i], names[j], float(nats[i, j]), float(strength[i, j]), bool(significant[i, j])
        )
        for i, j in combinations(range(wide), 2)
    )


# Which functions belong together

Partition = tuple[Factor, ...]

# What a parameter costs, in nats. Schwarz's log(rows) / 2 is 2.5 at 150 rows; it grows from there,
# and was found to prefer too poor a partition where dependence is mild. At 2.5 a merger that needs
# two parameters more is taken by chance once in 150 times.
PRICE: Final = 2.5
NEAR: Final = 10.0  # nats, at most ENOUGH rows: a score that is not worse by more is about as good
CUTS: Final = 8  # partitions of a clustering that are tried


def best_cut(
    patterns: Patterns, units: Partition, known: Integers, rules: Rules, weight: float
) -> Floats:
    """P(right | pattern), float64 (P,), of the partition that explains the votes best.

    Partitions tried are the units, and these merged by how their votes correlate. Dependent
    functions deceive an EM that takes them for independent: the classes become what they have in
    common, and given those classes they look independent. So dependence is not sought where EM
    went, but given these. Of partitions that do about as well, it is the one of fewest families:
    one thing that functions share is likelier than several.
    """
    scale = _scale(patterns)
    found = []
    for factors in _cuts(patterns, units):
        # Abstains are always symbols: all explain the same votes.
        coded = Coded.of(patterns, factors, known, "symbol", weight)
        solution = em.best_start(coded, rules)
        free = 2 * int((coded.sizes - 1).sum()) + (rules.prior is None)
        rest = sum(_remainder(patterns, factor, PRICE * scale) for factor in factors)
        families = sum(len(factor.functions) > 1 for factor in factors)
        score = solution.likelihood - PRICE * scale * free + rest
        found.append((score, families, solution.posterior))
    least = max(score for score, _, _ in found) - NEAR * scale
    near = [one for one in found if one[0] >= least]
    return min(near, key=lambda one: (one[1], -one[0]))[2]


def _cuts(patterns: Patterns, units: Partition) -> list[Partition]:
    """The units, and what merging the most correlated factors again and again makes of them.

    Of many such partitions, those where the next merger's correlation drops most.
    """
    correlation = np.abs(_correlation(patterns))
    index = {name: i for i, name in enumerate(patterns.functions)}
    chance = np.sqrt(np.log(patterns.rows) / patterns.rows)
    factors, found, heights = units, [units], [1.0]
    while len(factors) > LEAST_FACTORS:
        places = [[index[name] for name in factor.functions] for factor in factors]
        height, first, second = max(
            (float(correlation[np.ix_(places[i], places[j])].mean()), i, j)
            for j in range(len(factors))
            for i in range(j)
        )
        if height < chance:
            break
        together = factors[first].functions + factors[second].functions
        rest = (factor for i, factor in enumerate(factors) if i not in (first, second))
        factors = (*rest, Factor(tuple(sorted(together))))
        found.append(factors)
        heights.append(height)
    drops = np.array(heights) - np.array([*heights[1:], 0.0])
    widest = np.sort(np.argsort(-drops[1:], kind="stable")[: CUTS - 1]) + 1
    return [units, *(found[i] for i in widest)]


def _scale(patterns: Patterns) -> float:
    """Factor by which prices grow beyond `ENOUGH` rows."""
    return max(1.0, patterns.rows / ENOUGH)


def _correlation(patterns: Patterns) -> Floats:
    """Correlations of functions' votes over the rows where both have input: float64, (F, F)."""
    present = patterns.present.astype(np.float64)
    votes = np.where(patterns.present, patterns.votes, 0).astype(np.float64)
    counts = patterns.counts[:, None]
    rows = np.maximum(present.T @ (present * counts), 1e-300)
    mean = (votes * counts).T @ present / rows  # of the first's votes
    variance = np.maximum((votes**2 * counts).T @ present / rows - mean**2, 1e-12)
    covariance = (votes * counts).T @ votes / rows - mean * mean.T
    return np.asarray(covariance / np.sqrt(variance * variance.T))


def _remainder(patterns: Patterns, factor: Factor, price: float) -> float:
    """The votes given the symbol, where a symbol stands for several: free of the class.

    Besides their shares it takes to say which tuples of votes occur at all: of many functions
    nearly every row has one of its own, and its share alone would say too little of it.
    """
    if factor.joint:
        return 0.0
    votes = patterns.votes[:, [patterns.functions.index(name) for name in factor.functions]]
    tuples, fine = np.unique(votes, axis=0, return_inverse=True)
    _, coarse = np.unique(factor.codes(votes), return_inverse=True)
    likelihood, symbols = 0.0, 0
    for sign, index in ((1, fine), (-1, coarse)):
        tally = np.bincount(index.reshape(-1), patterns.counts.astype(np.float64))
        likelihood += sign * float(tally @ np.log(tally))
        symbols += sign * len(tally)
    _, first, occur = np.unique(factor.codes(tuples), return_index=True, return_counts=True)
    members = [(tuples[first] == vote).sum(axis=1) + 1 for vote in (MISSING, -1, 0, 1)]
    ways = lgamma(votes.shape[1] + 1) - np.vectorize(lgamma)(members).sum(axis=0)
    listing = float(occur @ np.maximum(ways - np.log(occur), 0.0))
    return likelihood - listing - price * symbols


# Missing inputs


@dataclass(frozen=True)
class MissingRate:
    """The share of right transcripts among those on which a function has no input.

    Attributes:
        name: of the function.
        rows: queries on which it has no input.
        right: P(right) of these, estimated from the other functions' votes; None where no other
            has input there.
        error: its standard error, if the model is true; None likewise.
        right_elsewhere: P(right) of the queries on which it has input, estimated likewise.
        informative: whether the two differ by more than chance: right and wrong transcripts lose
            their input at different rates.
    """

    name: str
    rows: int
    right: float | None
    error: float | None
    right_elsewhere: float | None
    informative: bool


def missing_rates(patterns: Patterns, coded: Coded, solution: Solution) -> tuple[MissingRate, ...]:
    """P(right | no input) of every function that lacks it somewhere.

    The functions' rates are held; of the queries in question the share that is right is the one
    under which their votes are most probable (Saerens, Latinne & Decaestecker 2002), and its error
    follows from Fisher's information.

    The S symbols of `coded`, the patterns as factors that vote see them, are the first ones of a
    solution to which missing inputs are evidence: otherwise its rates would be those of the queries
    that have input.
    """
    logs = coded.add_up(solution.logs[:, : len(coded.codes)])
    ratio = logs[1] - logs[0]
    found = []
    for name, present in zip(patterns.functions, patterns.present.T, strict=True):
        if present.all():
            continue
        gone, there = (
            _share(ratio[own], patterns.counts[own], solution.prior)
            for own in (~present & coded.evident, present)
        )
        informative = False
        if gone is not None and there is not None:
            change = abs(gone[0] - there[0])
            informative = change > max(INFORMATIVE, SURE * float(np.hypot(gone[1], there[1])))
        rows = int(patterns.counts[~present].sum())
        right, error_of_right = gone or (None, None)
        elsewhere = None if there is None else there[0]
        found.append(MissingRate(name, rows, right, error_of_right, elsewhere, informative))
    return tuple(found)


def _share(ratio: Floats, counts: Integers, share: float) -> tuple[float, float] | None:
    """The share of right rows, of (P,) log-likelihood ratios and counts, and its standard error."""
    rows = int(counts.sum())
    if not rows:
        return None
    for _ in range(500):
        before, odds = share, np.log(share) - np.log1p(-share)
        # One row more, half right, keeps the share within (0, 1).
        share = float((counts @ logistic(ratio + odds) + 0.5) / (rows + 1))
        if abs(share - before) < 1e-9:
            break
    odds = np.log(share) - np.log1p(-share)
    posterior = logistic(ratio + odds)
    scores = posterior / share - (1 - posterior) / (1 - share)
    return share, float(1 / np.sqrt(max(float(counts @ scores**2), 1e-300)))


# Comparison


@dataclass(frozen=True)
class GoldComparison:
    """A model beside its rivals on checked queries, each left out of its own fit (five folds).

    Attributes:
        rows: checked queries.
        accuracy: of the model anchored to the other checked queries.
        always_accept: of accepting every transcript.
        always_accept_error: standard error of `accuracy` - `always_accept`, which are of the same
            queries.
        majority: of a majority vote where accepts and rejects that tie count as accept.
        majority_error: standard error of `accuracy` - `majority`.
        log_loss: mean of -log P(what it is), in nats.
        log_loss_without: the same of the model that is not anchored.
        log_loss_error: standard error of their difference.
    """

    rows: int
    accuracy: float
    always_accept: float
    always_accept_error: float
    majority: float
    majority_error: float
    log_loss: float
    log_loss_without: float
    log_loss_error: float

    @classmethod
    def of(
        cls,
        right: npt.NDArray[np.bool_],
        weights: Floats,
        without: Floats,
        majority: npt.NDArray[np.bool_],
    ) -> GoldComparison:
        """Compare on N queries: which are right, both models' weights, a majority vote's labels."""
        true, voted = (weights >= 0.5) == right, majority == right
        losses, losses_without = (
            -np.log(np.maximum(np.where(right, own, 1 - own), 1e-300)) for own in (weights, without)
        )

        def error(difference: Floats) -> float:
            return float(difference.std() / np.sqrt(len(right)))

        return cls(
            len(right),
            float(true.mean()),
            float(right.mean()),
            error(1.0 * true - right),
            float(voted.mean()),
            error(1.0 * true - voted),
            float(losses.mean()),
            float(losses_without.mean()),
            error(losses - losses_without),
        )


@dataclass(frozen=True)
class Alternative:
    """Another share of right transcripts that the votes allow for about as well.

    Attributes:
        prior: P(right) over all queries.
        accuracy: of the model's labels, if it were so.
        always_accept: of accepting every transcript, if it were so.
    """

    prior: float
    accuracy: float
    always_accept: float


def alternative(coded: Coded, solution: Solution, rules: Rules) -> Alternative | None:
    """Find, of all shares of right transcripts that are about as likely, the worst for the labels.

    Few functions tell little of how many transcripts are right, and what a model takes for wrong
    may as well be right. Each of `PRIORS` is held while everything else is fitted anew, from where
    the model is; those that cost at most `LIKELY` nats of the likelihood are about as likely.

    Returns:
        The one under which accepting everything gains most over the labels; None where the prior
        is given, or there are more than `PROFILED` factors.
    """
    if rules.prior is not None or not 1 < (coded.sizes > 1).sum() <= PROFILED:
        return None
    accepted = solution.posterior >= 0.5
    rows = coded.counts / coded.counts.sum()
    found = []
    for prior in PRIORS:
        held = Rules(rules.smoothing, prior, tolerance=1e-7)
        other = em.climb(coded, held, solution.posterior, prior, 300, solution.logs)
        if other.likelihood >= solution.likelihood - LIKELY:
            accuracy = float(rows @ np.where(accepted, other.posterior, 1 - other.posterior))
            found.append(Alternative(prior, accuracy, float(rows @ other.posterior)))
    return max(found, key=lambda one: one.always_accept - one.accuracy, default=None)


@dataclass(frozen=True)
class ModelComparison:
    """A label model beside what needs no model; all of it without the queries that have no input.

    Attributes:
        classes: by how much two classes explain the votes better than one, log-likelihood in nats
            less `CHANCE` a parameter; not above 0, functions agree by chance only.
        factors: how many factors there are that do not always vote alike.
        accuracy: of the labels, as the model itself expects it; it holds if the model does.
        always_accept: of accepting every transcript, expected by the model.
        majority: of a majority vote where a tie is an accept, expected by the model.
        rival: share of the queries that would be labeled differently if functions whose votes are
            found to depend on each other were families, see `best_cut`.
        alternative: another share of right transcripts that is about as likely, the worst one for
            the labels; None where it was not looked for.
        no_input: queries on which no function has input; they keep the prior.
        silent: share of the others on which every function with input keeps silent.
        gold: the comparison on checked queries, where there are enough.
    """

    classes: float
    factors: int
    accuracy: float
    always_accept: float
    majority: float
    rival: float
    alternative: Alternative | None
    no_input: int
    silent: float
    gold: GoldComparison | None


def compare_model(
    patterns: Patterns,
    coded: Coded,
    solution: Solution,
    *,
    reference: Floats,
    other: Alternative | None,
    gold: GoldComparison | None,
) -> ModelComparison:
    """Compare a model with what needs none.

    `coded` is the patterns as the model sees them, `reference` P(right | pattern), (P,), of the
    partition that explains the votes best.
    """
    posterior = solution.posterior
    rows = np.where(coded.evident, coded.counts, 0.0)
    right = (coded.open * posterior + coded.known[1]) / np.maximum(coded.counts, 1e-300)
    silent = ~np.isin(patterns.votes, (-1, 1)).any(axis=1)

    def expected(accepted: npt.NDArray[np.bool_]) -> float:
        return float(rows @ np.where(accepted, right, 1 - right) / max(rows.sum(), 1e-300))

    single = float(coded.counts @ coded.add_up(coded.pooled(1e-9))[0])
    price = CHANCE * _scale(patterns)
    return ModelComparison(
        solution.likelihood - single - price * float((coded.sizes - 1).sum() + 1),
        int((coded.sizes > 1).sum()),
        expected(posterior >= 0.5),
        expected(np.ones(len(rows), dtype=bool)),
        expected(accepts(patterns.votes)),
        float(rows @ ((posterior >= 0.5) != (reference >= 0.5)) / max(rows.sum(), 1e-300)),
        other,
        int(patterns.counts[~patterns.present.any(axis=1)].sum()),
        float(rows @ silent / max(rows.sum(), 1e-300)),
        gold,
    )


def unlike_members(patterns: Patterns, factors: Partition, right: Floats) -> Iterable[str]:
    """Why not to trust families of more than `JOINT` functions, of which only numbers are read.

    `right` is P(right), float64 (P,), gold included.
    """
    true = {1: right * patterns.counts, -1: (1 - right) * patterns.counts}
    for factor in factors:
        known = {}  # P(a vote is true), of members that vote
        for name in factor.functions if not factor.joint else ():
            votes = patterns.votes[:, patterns.functions.index(name)]
            cast = int(patterns.counts[np.isin(votes, (-1, 1))].sum())
            if cast:
                known[name] = sum(float(true[v][votes == v].sum()) for v in true) / cast
        if not known:
            continue
        worst, best = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        if known[best] - known[worst] > UNLIKE:
            yield (
                f"a family of {len(factor.functions)} functions is read by how many of them accept"
                f" and reject, as if they were alike, and {best} is right in {known[best]:.0%} of"
                f" its votes, {worst} in {known[worst]:.0%}: declare families of at most"
                f" {em.JOINT}, of functions that look at the same thing"
            )


def reasons(
    comparison: ModelComparison,
    solution: Solution,
    dependent: Sequence[Dependence],
    missing: Sequence[MissingRate],
    evidence: bool,
    prior: float | None = None,
) -> Iterable[str]:
    """Why not to trust the model, in sentences.

    `dependent` are the pairs of different factors whose dependence matters; `evidence` is whether
    missing inputs are evidence in this model; `prior` is P(right) where it was given.
    """
    gold = comparison.gold
    if comparison.classes <= 0 and comparison.factors >= LEAST_FACTORS and gold is None:
        # Nothing else is worth saying of a model that has seen nothing.
        given = "" if prior is None else f"with a prior of {prior:g} "
        doubt = "" if prior is None else ", or the prior is far off (fit without it to see)"
        yield (
            f"{given}the functions agree no more often than chance would have it, so there is no"
            " sign that they know which transcripts are right, or there are too few queries to see"
            f" it{doubt}: the weights mean nothing"
        )
        return
    if comparison.factors < LEAST_FACTORS and gold is None:
        yield (
            "functions or families that vote differently on different queries:"
            f" {comparison.factors}; with fewer than {LEAST_FACTORS} votes alone do not tell how"
            " good they are: add functions, or give gold"
        )
    if comparison.accuracy < comparison.always_accept + MARGIN:
        yield (
            f"by the model's own account its labels are right for {comparison.accuracy:.1%} of the"
            f" queries, and accepting every transcript would be for {comparison.always_accept:.1%}:"
            " the labels are no better, though the weights may still rank"
        )
    other = comparison.alternative
    if other is not None and other.always_accept > other.accuracy + WORSE:
        yield (
            f"the votes allow for {other.prior:.0%} of the transcripts being right about as well;"
            f" the labels would then be right for {other.accuracy:.1%}, and accepting every"
            f" transcript for {other.always_accept:.1%}: give the share that is right if it is"
            " known (prior), add functions, or give gold"
        )
    if solution.orientation <= 0 and gold is None:
        yield (
            "the functions do not accept more where the model says right: which class is which is"
            " unknown; check what each function calls accept, or give gold"
        )
    if dependent and comparison.rival > MISLED:
        strongest = sorted(dependent, key=lambda pair: -pair.strength)
        named = ", ".join(
            f"{pair.first} and {pair.second} ({pair.strength:.2f})" for pair in strongest[:NAMED]
        )
        more = f" and {len(dependent) - NAMED} pairs more" if len(dependent) > NAMED else ""
        yield (
            f"functions depend on each other beyond what is right or wrong: {named}{more}; if they"
            f" shared their evidence, {comparison.rival:.1%} of the queries would be labeled"
            " differently: declare one family for those that look at the same thing"
        )
    if comparison.silent > SILENT:
        yield (
            f"on {comparison.silent:.1%} of the queries every function that has input keeps silent;"
            " all of these get one weight"
        )
    informative = [rate for rate in missing if rate.informative]
    if informative and not evidence:
        named = ", ".join(
            f"{rate.name} ({rate.right:.1%} right without its input, {rate.right_elsewhere:.1%}"
            " with it)"
            for rate in informative
        )
        yield (
            f"right and wrong transcripts lose their input at different rates: {named}; fit with"
            ' missing="evidence" (--missing evidence)'
        )
    if not solution.converged:
        yield "EM did not come to its end: give a larger tolerance, or fewer functions"
    if gold is not None:
        for name, reached, error in (
            ("accepting every transcript", gold.always_accept, gold.always_accept_error),
            ("a majority vote", gold.majority, gold.majority_error),
        ):
            # One standard error: what is only as good may be a little worse by chance.
            if gold.accuracy < reached - error:
                yield (
                    f"on {gold.rows} checked queries the model is right for {gold.accuracy:.1%},"
                    f" and {name} is for {reached:.1%}"
                )
        if gold.log_loss > gold.log_loss_without + 2 * gold.log_loss_error:
            yield (
                f"gold makes the model worse on checked queries it has not seen (log loss"
                f" {gold.log_loss:.4f}, {gold.log_loss_without:.4f} without gold): are they a"
                " random sample, and rightly checked?"
            )
