"""Is the model better than none? What can be said with gold, and what without.

Without gold only the model itself can be asked. It can be found out to have seen nothing (functions
that agree no more often than chance), to change nothing (hardly any transcript is rejected), or to
be one of several that explain the votes. That its classes mean "right" and "wrong" is beyond that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weaklabel.patterns import Patterns


@dataclass(frozen=True)
class Dependence:
    """Of one pair of functions, given the class.

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


def dependences(patterns: Patterns, posterior: npt.NDArray[np.float64]) -> tuple[Dependence, ...]:
    """Every pair of functions, in the order of the patterns' functions.

    Args:
        patterns: P patterns of F functions.
        posterior: float64, (P,): P(right | pattern).
    """
    rows = patterns.rows
    wide = len(patterns.functions)
    # (P, F, 3) → (P, 3F): which vote each function casts.
    shown = (patterns.votes[:, :, None] == np.array([-1, 0, 1])).reshape(len(patterns), -1)
    indicator = shown.astype(np.float64)
    information = np.zeros((wide, wide))
    free = np.zeros((wide, wide))
    for share in (1 - posterior, posterior):
        weighted = indicator * (share * patterns.counts / rows)[:, None]
        joint = indicator.T @ weighted  # (3F, 3F)
        single = weighted.sum(axis=0)
        expected = np.outer(single, single) / max(single[:3].sum(), 1e-300)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(joint > 0, joint * np.log(joint / expected), 0.0)
        information += terms.reshape(wide, 3, wide, 3).sum(axis=(1, 3))
    symbols = indicator.any(axis=0).reshape(wide, 3).sum(axis=1) - 1.0
    free = 2 * np.outer(symbols, symbols)
    found = []
    for i, first in enumerate(patterns.functions):
        for j in range(i + 1, wide):
            nats = max(float(information[i, j]), 0.0)
            found.append(
                Dependence(
                    first,
                    patterns.functions[j],
                    nats,
                    float(np.sqrt(-np.expm1(-2 * nats))),
                    bool(2 * rows * nats > free[i, j] * np.log(rows)) and nats > 0,
                )
            )
    return tuple(found)


MARGIN = 0.005  # of accuracy: less than that is not "better"
DEPENDENT = 0.1  # strength of dependence that is worth a warning
RIVAL = 0.03  # of the labels: two explanations that differ in fewer are one
LEAST_FACTORS = 3

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GoldComparison:
    """On checked queries, each left out of the fit that judges it (five folds).

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


@dataclass(frozen=True)
class Comparison:
    """A label model beside what needs no model.

    Attributes:
        classes: by how much two classes explain the votes better than one, log-likelihood in nats
            less the price of their parameters; not above 0, functions agree by chance only.
        factors: how many factors there are that do not always vote alike.
        accuracy: of the labels, as the model itself expects it; it holds if the model does.
        always_accept: of accepting every transcript, expected by the model.
        majority: of a majority vote where a tie is an accept, expected by the model.
        rival: share of the queries that another grouping of the functions, which explains the votes
            almost as well, would label differently.
        gold: the comparison on checked queries, where there are enough.
    """

    classes: float
    factors: int
    accuracy: float
    always_accept: float
    majority: float
    rival: float
    gold: GoldComparison | None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Comparison:
        """Of what `dataclasses.asdict` made."""
        gold = content["gold"]
        return cls(**{**content, "gold": None if gold is None else GoldComparison(**gold)})


def accepts(patterns: Patterns) -> npt.NDArray[np.bool_]:
    """Majority vote by pattern, a tie being an accept: bool, (P,)."""
    return np.asarray(patterns.votes.sum(axis=1, dtype=np.int64) >= 0)


def expected_accuracy(rows: Floats, posterior: Floats, accepted: npt.NDArray[np.bool_]) -> float:
    """Of accepting these patterns: (P,) rows, P(right) and bool."""
    return float(rows @ np.where(accepted, posterior, 1 - posterior) / rows.sum())


def on_gold(
    patterns: Patterns, folds: Sequence[tuple[npt.NDArray[np.int64], Floats]], without: Floats
) -> GoldComparison:
    """Compare on the checked queries.

    Args:
        patterns: P of them.
        folds: how many of each pattern are checked, int64, (2, P), wrong first; and P(right) of a
            model that has not seen them, float64, (P,).
        without: float64, (P,): P(right) of the model without gold.
    """
    known = np.stack([held for held, _ in folds])  # (folds, 2, P)
    rows = int(known.sum())
    posterior = np.stack([found for _, found in folds])[:, None]  # (folds, 1, P)

    def true(accepted: npt.NDArray[np.bool_]) -> Floats:
        return np.concatenate([~accepted, accepted], axis=-2).astype(np.float64)

    def log_likelihood(right: Floats) -> Floats:
        both = np.concatenate([1 - right, right], axis=-2)
        return np.asarray(np.log(np.maximum(both, 1e-300)))

    def mean(values: Floats) -> float:
        return float((known * values).sum() / rows)

    def error(difference: Floats) -> float:
        return float(np.sqrt(max(mean(difference**2) - mean(difference) ** 2, 0.0) / rows))

    model = true(posterior >= 0.5)
    always = true(np.ones((1, len(patterns)), dtype=bool))
    majority = true(accepts(patterns)[None])
    gain, gain_without = log_likelihood(posterior), log_likelihood(without[None])
    return GoldComparison(
        rows,
        mean(model),
        mean(always),
        error(model - always),
        mean(majority),
        error(model - majority),
        -mean(gain),
        -mean(gain_without),
        error(gain - gain_without),
    )


def reasons(
    comparison: Comparison, orientation: float, converged: bool, dependent: Sequence[Dependence]
) -> Iterable[str]:
    """Why not to trust the model, in sentences."""
    gold = comparison.gold
    if comparison.classes <= 0 and comparison.factors >= LEAST_FACTORS and gold is None:
        # Nothing else is worth saying of a model that has seen nothing.
        yield (
            "the functions agree no more often than chance would have it, so there is no sign that"
            " they know which transcripts are right, or there are too few queries to see it: the"
            " weights mean nothing"
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
    if orientation <= 0 and gold is None:
        yield (
            "the functions do not accept more where the model says right: which class is which is"
            " unknown; check what each function calls accept, or give gold"
        )
    if dependent:
        named = ", ".join(
            f"{pair.first} and {pair.second} ({pair.strength:.2f})"
            for pair in sorted(dependent, key=lambda pair: -pair.strength)[:10]
        )
        more = f" and {len(dependent) - 10} pairs more" if len(dependent) > 10 else ""
        yield (
            f"functions depend on each other beyond what is right or wrong: {named}{more}; the"
            " model takes them for independent, and may be led astray: declare a family for them,"
            ' or fit with families="auto" (--families auto)'
        )
    if comparison.rival > RIVAL:
        yield (
            "another grouping of the functions into families explains the votes about as well, and"
            f" would label {comparison.rival:.1%} of the queries differently: declare families from"
            " what you know of the functions, or give gold"
        )
    if not converged:
        yield "EM did not come to its end: give a larger tolerance, or fewer functions"
    if gold is not None:
        for name, other, error in (
            ("accepting every transcript", gold.always_accept, gold.always_accept_error),
            ("a majority vote", gold.majority, gold.majority_error),
        ):
            # One standard error: what is only as good may be a little worse by chance.
            if gold.accuracy < other - error:
                yield (
                    f"on {gold.rows} checked queries the model is right for {gold.accuracy:.1%},"
                    f" and {name} is for {other:.1%}"
                )
        if gold.log_loss > gold.log_loss_without + 2 * gold.log_loss_error:
            yield (
                f"gold makes the model worse on checked queries it has not seen (log loss"
                f" {gold.log_loss:.4f}, {gold.log_loss_without:.4f} without gold): are they a"
                " random sample, and rightly checked?"
            )
