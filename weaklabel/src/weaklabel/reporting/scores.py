"""How good probabilities are: shares with intervals, ranking, calibration, deciles.

Pure functions of small arrays. What does not exist (the ranking of one class, the accuracy of no
votes) is None, never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 10

Floats = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Proportion:
    """A share and its confidence interval.

    Attributes:
        point: the share.
        low: lower end of the interval.
        high: upper end.
        trials: the number of queries of known class that the interval is worth; it need not be
            whole where classes are guessed.
    """

    point: float
    low: float
    high: float
    trials: float


@dataclass(frozen=True)
class Bin:
    """Queries whose weights are about the same.

    Attributes:
        low: weights from here,
        high: to there.
        queries: how many gold queries there are.
        mean_weight: what the model says, on average; None without queries.
        right: the share that is right, with a Wilson interval; None without queries.
    """

    low: float
    high: float
    queries: int
    mean_weight: float | None
    right: Proportion | None


def wilson(point: float, trials: float, level: float = 0.95) -> Proportion:
    """The score interval of a share (Wilson, JASA 1927); [0, 1] for no trials.

    Args:
        point: the share, in [0, 1].
        trials: out of how many, not necessarily a whole number.
        level: of confidence.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = point * trials + z * z / 2
    spread = z * float(np.sqrt(max(point * (1 - point), 0.0) * trials + z * z / 4))
    low, high = (centre - spread) / (trials + z * z), (centre + spread) / (trials + z * z)
    # The point lies inside by algebra; rounding may put it a last place outside.
    return Proportion(point, max(min(low, point), 0.0), min(max(high, point), 1.0), trials)


def share(part: int, whole: int) -> Proportion | None:
    """`part` of `whole` with its Wilson interval; None of nothing."""
    return wilson(part / whole, whole) if whole else None


def auc(weights: Floats, right: Truth) -> float | None:
    """P(a right query's weight is above a wrong one's), ties half; None of a single class.

    The area under the ROC curve (Mann and Whitney 1947).
    """
    levels, index = np.unique(weights, return_inverse=True)
    of_right = np.bincount(index, right, minlength=len(levels))
    of_wrong = np.bincount(index, ~right, minlength=len(levels))
    pairs = float(of_right.sum() * of_wrong.sum())
    if not pairs:
        return None
    below = np.cumsum(of_wrong) - of_wrong
    return float(of_right @ (below + of_wrong / 2)) / pairs


def brier(weights: Floats, right: Truth) -> float | None:
    """Mean squared distance of the weight from 1 (right) or 0 (wrong); None of nothing."""
    return float(np.mean((weights - right) ** 2)) if len(weights) else None


def reliability(weights: Floats, right: Truth, bins: int = BINS) -> tuple[Bin, ...]:
    """The reliability diagram's bins, of equal width; the last one holds weight 1, too."""
    index = np.minimum((weights * bins).astype(np.int64), bins - 1)
    found = []
    for number in range(bins):
        own = index == number
        queries = int(own.sum())
        found.append(
            Bin(
                number / bins,
                (number + 1) / bins,
                queries,
                float(weights[own].mean()) if queries else None,
                share(int(right[own].sum()), queries),
            )
        )
    return tuple(found)


def calibration_error(bins: tuple[Bin, ...]) -> float | None:
    """Expected calibration error: mean over queries of |mean weight - share right| of their bin.

    Naeini et al., AAAI 2015. None without queries.
    """
    total = sum(part.queries for part in bins)
    if not total:
        return None
    gaps = (
        part.queries * abs(part.mean_weight - part.right.point)
        for part in bins
        if part.mean_weight is not None and part.right is not None
    )
    return sum(gaps) / total


@dataclass(frozen=True, eq=False)
class Deciles:
    """Tenths of all queries by weight, where queries of one weight are never parted.

    A weight belongs to the tenth in which the middle of its queries lies when all are sorted. Few
    patterns of votes mean few weights: tenths may be larger than others, or empty.

    Attributes:
        levels: distinct weights, ascending, (L,).
        tenths: the tenth of each, 0 to 9, (L,).
        rows: queries in each tenth, (10,).
    """

    levels: Floats
    tenths: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    @classmethod
    def of(cls, weights: Floats, counts: npt.NDArray[np.int64]) -> Deciles:
        """Of the weights (N,) of which there are `counts` (N,), at least one in all."""
        # Weights that differ by rounding are one.
        levels, index = np.unique(weights.round(12), return_inverse=True)
        rows = np.zeros(len(levels), np.int64)
        np.add.at(rows, index, counts)
        # Whole numbers, so that the middle of a level is exact: 10 (2 before + own) / (2 all)
        tenths = np.minimum(5 * (2 * np.cumsum(rows) - rows) // rows.sum(), 9)
        found = np.zeros(10, np.int64)
        np.add.at(found, tenths, rows)
        return cls(levels, tenths, found)

    def find(self, weights: Floats) -> npt.NDArray[np.int64]:
        """The tenth, 0 to 9, of each of (N,) weights, by the nearest weight there is below."""
        index = np.searchsorted(self.levels, weights.round(12), side="right") - 1
        return np.asarray(self.tenths[np.maximum(index, 0)])

    def range(self, tenth: int) -> tuple[float, float] | None:
        """The lowest and the highest weight of a tenth; None if it is empty."""
        own: npt.NDArray[Any] = self.levels[self.tenths == tenth]
        return (float(own[0]), float(own[-1])) if len(own) else None
