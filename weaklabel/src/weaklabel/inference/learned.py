"""How sure one can be of what a label model learned of its functions, if the model is true.

Given the class, the factors (functions, or families of them) show their symbols independently. The
information that rows without a known class hold on the factors' distributions is that of the
scores' outer products (Louis, JRSS B 1982, for the scores of a mixture), and the delta method takes
it to P(right | a function accepts). It is computed from counts of patterns, and from the weights
alone: which model gave them does not matter, as long as they are its posteriors.

On six independent functions, good ones and poor ones, and 2,000 queries the intervals hold the true
value 94 to 96 times of 100; intervals that take the guessed classes for known ones do so 49 to 86
times (tests/weaklabel/test_learned.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weaklabel.inference.factors import Factor
from weaklabel.patterns import Patterns
from weaklabel.reporting.scores import Proportion, wilson

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
