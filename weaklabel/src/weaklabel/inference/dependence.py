"""How much two functions still have in common once it is known whether the transcript is right."""

from __future__ import annotations

from dataclasses import dataclass

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
