"""Expectation–maximisation for Dawid–Skene over counts of patterns.

A query's transcript is right (class 1) or wrong (class 0); given that, the factors' symbols are
independent, each with a distribution of its own (Dawid & Skene 1979, with an abstain as one more
symbol). What is maximised is the log-likelihood of the counts plus the logarithm of a Dirichlet
prior, which is as if every symbol seen had been seen `smoothing` times more, shared by the classes
as `shares` says. Every step increases it (Dempster, Laird & Rubin 1977).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel.patterns import Patterns
from weaklabel.votes import PREFIX

JOINT = 5  # members; 3⁵ = 243 symbols, which a log of some thousand queries can fill


@dataclass(frozen=True)
class Factor:
    """Functions that are read together.

    Attributes:
        functions: names, sorted; one alone, or a family.
    """

    functions: tuple[str, ...]

    @property
    def joint(self) -> bool:
        """Whether a symbol is the tuple of the votes, rather than their numbers."""
        return len(self.functions) <= JOINT

    @property
    def size(self) -> int:
        """Codes are 0 to `size` - 1; not every one of them need be possible."""
        m = len(self.functions)
        return int(3**m) if self.joint else (m + 1) ** 2

    def codes(self, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
        """The symbol of each row: votes int8, (N, m) in the order of `functions` → int64, (N,)."""
        if self.joint:
            return (votes.astype(np.int64) + 1) @ self._places()
        accepts, rejects = (votes == 1).sum(axis=1), (votes == -1).sum(axis=1)
        return np.asarray(accepts * (len(self.functions) + 1) + rejects, dtype=np.int64)

    def code(self) -> nw.Expr:
        """`codes` as an expression over columns of votes; a null is an abstain."""
        columns = [nw.col(PREFIX + name).fill_null(0).cast(nw.Int64) for name in self.functions]
        if self.joint:
            places = self._places().tolist()
            return _total(
                [(column + 1) * place for column, place in zip(columns, places, strict=True)]
            )
        one, none = nw.lit(1), nw.lit(0)
        accepts = _total([nw.when(column == 1).then(one).otherwise(none) for column in columns])
        rejects = _total([nw.when(column == -1).then(one).otherwise(none) for column in columns])
        return accepts * (len(self.functions) + 1) + rejects

    def points(self) -> npt.NDArray[np.int64]:
        """Where each code lies: its votes, or its numbers of accepts and rejects: (size, m or 2).

        The distance of two symbols is the sum of absolute differences.
        """
        codes = np.arange(self.size)
        if self.joint:
            return codes[:, None] // self._places() % 3 - 1
        return np.stack(np.divmod(codes, len(self.functions) + 1), axis=1)

    @property
    def silent(self) -> int:
        """The code of no member voting."""
        return int(self._places().sum()) if self.joint else 0

    def _places(self) -> npt.NDArray[np.int64]:
        return 3 ** np.arange(len(self.functions), dtype=np.int64)


def by_family(functions: Sequence[str], families: Sequence[str | None]) -> tuple[Factor, ...]:
    """One factor a family and one for every function without, sorted by first name."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for name, family in zip(functions, families, strict=True):
        key = (False, name) if family is None else (True, family)
        groups.setdefault(key, []).append(name)
    return tuple(sorted((Factor(tuple(sorted(g))) for g in groups.values()), key=_names))


def _names(factor: Factor) -> tuple[str, ...]:
    return factor.functions


def _total(terms: Sequence[nw.Expr]) -> nw.Expr:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


Abstain = Literal["symbol", "missing"]
Floats = npt.NDArray[np.float64]

DENSE = 20_000_000  # entries of an indicator matrix, 160 MB
SHORT, LONG = 60, 5_000  # steps of a start, and of the start that is chosen


@dataclass(frozen=True, eq=False)
class Coded:
    """Patterns as symbols, numbered through all factors, and how often each occurs.

    Attributes:
        symbols: int64, (P, G): the symbol of each factor; S stands for none, which is no evidence.
        sizes: int64, (G,): symbols of each factor; S is their sum.
        codes: int64, (S,): each symbol's code in its factor.
        open: float64, (P,): rows whose class is not known.
        known: float64, (2, P): rows known to be wrong, and to be right.
        scores: float64, (P, G): the factors' mean votes, standardised over the rows.
    """

    symbols: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    open: Floats
    known: Floats
    scores: Floats

    @classmethod
    def of(
        cls,
        patterns: Patterns,
        factors: Sequence[Factor],
        known: npt.NDArray[np.int64],
        abstain: Abstain = "symbol",
        weight: float = 1.0,
    ) -> Coded:
        """Read patterns as the symbols of factors.

        Args:
            patterns: all rows, those of known class included.
            factors: G of them; each has at least two symbols, but for the one that is no evidence.
            known: int64, (2, P): how many rows are known to be wrong, and to be right.
            abstain: "symbol", or "missing": no member voting is then no evidence.
            weight: how many rows one row of known class counts for.
        """
        rows = patterns.counts / max(patterns.rows, 1)
        symbols, codes, scores = [], [], []
        sizes: list[int] = []
        for factor in factors:
            votes = patterns.votes[:, [patterns.functions.index(f) for f in factor.functions]]
            own, index = np.unique(factor.codes(votes), return_inverse=True)
            if abstain == "missing" and factor.silent in own:
                silent = int(np.flatnonzero(own == factor.silent)[0])
                own = np.delete(own, silent)
                # A mark, which is made the number of all symbols below.
                index = np.where(index == silent, -1, index - (index > silent))
            symbols.append(np.where(index < 0, -1, index + sum(sizes)))
            sizes.append(len(own))
            codes.append(own)
            score = votes.mean(axis=1)
            score = score - rows @ score
            scores.append(score / max(float(np.sqrt(rows @ score**2)), 1e-12))
        table = np.stack(symbols, axis=1) if factors else np.zeros((len(patterns), 0), np.int64)
        return cls(
            np.where(table < 0, sum(sizes), table),
            np.array(sizes, dtype=np.int64),
            np.concatenate([*codes, np.zeros(0, np.int64)]),
            (patterns.counts - known.sum(axis=0)).astype(np.float64),
            (weight * known).astype(np.float64),
            np.stack(scores, axis=1) if factors else np.zeros((len(patterns), 0)),
        )

    @property
    def counts(self) -> Floats:
        """All rows of each pattern: float64, (P,)."""
        return np.asarray(self.open + self.known.sum(axis=0))

    @cached_property
    def _indicator(self) -> Floats | None:
        """1 where a pattern shows a symbol: float64, (P, S), or None where it would be large."""
        patterns, total = len(self.symbols), int(self.sizes.sum())
        if patterns * total > DENSE:
            return None
        indicator = np.zeros((patterns, total + 1))
        np.put_along_axis(indicator, self.symbols, 1.0, axis=1)
        return np.ascontiguousarray(indicator[:, :total])

    def tally(self, rows: Floats) -> Floats:
        """Add up (2, P) rows over the patterns that show each symbol: float64, (2, S)."""
        if self._indicator is not None:
            return np.asarray(rows @ self._indicator)
        wide, total = self.symbols.shape[1], int(self.sizes.sum())
        index = self.symbols.ravel()
        found = [np.bincount(index, np.repeat(own, wide), total + 1)[:total] for own in rows]
        return np.array(found, dtype=np.float64)

    def add_up(self, values: Floats) -> Floats:
        """Add up (2, S) values over the symbols that each pattern shows: float64, (2, P)."""
        if self._indicator is not None:
            return np.asarray(values @ self._indicator.T)
        padded = np.pad(values, ((0, 0), (0, 1)))  # the symbol that is no evidence
        return np.stack([own[self.symbols].sum(axis=-1) for own in padded])

    def within(self, values: Floats) -> Floats:
        """(…, S) divided by its sum over the symbols of the same factor."""
        sizes = self.sizes[self.sizes > 0]
        if not len(sizes):
            return values
        sums = np.add.reduceat(values, np.cumsum(sizes) - sizes, axis=-1)
        return np.asarray(values / np.repeat(sums, sizes, axis=-1))


@dataclass(frozen=True, eq=False)
class Parameters:
    """What the model says of a query's class and votes.

    Attributes:
        prior: P(right).
        logs: float64, (2, S): log P(symbol | wrong), log P(symbol | right).
    """

    prior: float
    logs: Floats


@dataclass(frozen=True, eq=False)
class Solution:
    """Where EM ended.

    Attributes:
        parameters: of the model.
        posterior: float64, (P,): P(right | pattern), gold left aside.
        likelihood: log-likelihood of the counts.
        trace: penalised log-likelihood at each step; it never decreases.
        orientation: mean correlation of the factors' votes with the posterior; functions that are
            better than chance on average make it positive.
        converged: whether the last gain was below the tolerance.
    """

    parameters: Parameters
    posterior: Floats
    likelihood: float
    trace: tuple[float, ...]
    orientation: float
    converged: bool


@dataclass(frozen=True)
class Climb:
    """One way up the likelihood.

    Args:
        smoothing: pseudo-rows for every symbol.
        shares: P(right) among the pseudo-rows.
        prior: P(right) where it is given, else None and estimated.
        tolerance: the gain a row, in nats, below which EM stops.
        steps: at most so many.
    """

    smoothing: float
    shares: float
    prior: float | None
    tolerance: float
    steps: int

    def maximise(self, coded: Coded, posterior: Floats) -> Parameters:
        """The M-step: the parameters that fit (P,) posteriors best."""
        pseudo = self.smoothing * np.array([1 - self.shares, self.shares])
        rows = np.stack([coded.open * (1 - posterior), coded.open * posterior]) + coded.known
        counts = coded.tally(rows) + pseudo[:, None]
        if self.prior is not None:
            prior = self.prior
        else:
            wrong, right = rows.sum(axis=1) + pseudo
            prior = float(right / (wrong + right))
        return Parameters(prior, np.log(coded.within(counts)))

    def run(self, coded: Coded, posterior: Floats) -> Solution:
        """EM from (P,) posteriors."""
        rows = coded.counts.sum()
        trace: list[float] = []
        converged = False
        while True:
            parameters = self.maximise(coded, posterior)
            joint = log_joint(coded, parameters)  # (2, P)
            evidence = np.logaddexp(joint[0], joint[1])
            posterior = np.exp(joint[1] - evidence)
            likelihood = float(coded.open @ evidence + (coded.known * joint).sum())
            trace.append(likelihood + self.penalty(parameters))
            converged = len(trace) > 1 and trace[-1] - trace[-2] <= self.tolerance * rows
            if converged or len(trace) >= self.steps:
                break
        return Solution(
            parameters,
            posterior,
            likelihood,
            tuple(trace),
            orientation(coded, posterior),
            converged,
        )

    def penalty(self, parameters: Parameters) -> float:
        """The logarithm of the Dirichlet prior, up to a constant."""
        prior = parameters.prior
        logs = self.smoothing * (
            (1 - self.shares) * parameters.logs[0].sum() + self.shares * parameters.logs[1].sum()
        )
        if self.prior is None:
            logs += self.smoothing * (
                (1 - self.shares) * np.log1p(-prior) + self.shares * np.log(prior)
            )
        return float(logs)


def log_joint(coded: Coded, parameters: Parameters) -> Floats:
    """log P(pattern, class): float64, (2, P)."""
    classes = np.log([1 - parameters.prior, parameters.prior])
    return coded.add_up(parameters.logs) + classes[:, None]


def orientation(coded: Coded, posterior: Floats) -> float:
    """Mean correlation of the factors' votes with the class; 0 without factors that vary."""
    rows = coded.counts / coded.counts.sum()
    # Gold is part of what the class is.
    known = coded.known.sum(axis=0)
    right = (coded.open * posterior + coded.known[1]) / (coded.open + known)
    centred = right - rows @ right
    spread = np.sqrt(rows @ centred**2)
    if spread == 0 or not coded.scores.shape[1]:
        return 0.0
    return float(((rows * centred) @ coded.scores).mean() / spread)


def starts(coded: Coded, prior: float | None) -> Sequence[Floats]:
    """Posteriors to start from, (P,) each; none of them is random.

    Patterns are ordered by a weighted sum of the factors' standardised votes, so that an abstain of
    a function that only accepts speaks against the transcript. The weights are equal, and those of
    the votes' first principal component. The class boundary is put where `prior` of the rows, or a
    few shares of them if it is not known, lie on its upper side.
    """
    rows = coded.counts / coded.counts.sum()
    if not coded.scores.shape[1]:
        return [np.full(len(rows), 0.5 if prior is None else prior)]
    covariance = (coded.scores * rows[:, None]).T @ coded.scores  # (G, G)
    first = np.linalg.eigh(covariance)[1][:, -1]
    first = first * (np.sign(first.sum()) or 1.0)
    found = []
    for weights in (np.ones(len(first)), first):
        score = coded.scores @ weights
        score = score / max(float(np.sqrt(rows @ score**2)), 1e-12)
        order = np.argsort(score, kind="stable")
        above = 1 - np.cumsum(rows[order])
        for share in (0.6, 0.85) if prior is None else (prior,):
            boundary = score[order][min(int(np.searchsorted(-above, -share)), len(order) - 1)]
            found.append(1 / (1 + np.exp(-3 * np.clip(score - boundary, -5, 5))))
    return found


def best_start(coded: Coded, smoothing: float, prior: float | None, tolerance: float) -> Solution:
    """The best of EM's ends after a short way from each start, with pseudo-rows shared evenly.

    Ends where functions are better than chance on average go before all others; with rows of known
    class the likelihood tells the classes apart.
    """
    short = Climb(smoothing, 0.5 if prior is None else prior, prior, tolerance, SHORT)
    ends = [short.run(coded, start) for start in starts(coded, prior)]
    told = bool(coded.known.any())
    return max(ends, key=lambda end: (told or end.orientation > 0, end.trace[-1]))


def fit(coded: Coded, smoothing: float, prior: float | None, tolerance: float) -> Solution:
    """The best start's way to its end, with pseudo-rows shared as the classes are.

    Shared so, they pull a symbol that is rarely seen towards no evidence.
    """
    best = best_start(coded, smoothing, prior, tolerance)
    # Never all of them in one class, whose other would then be impossible.
    shares = min(max(best.parameters.prior, 0.001), 0.999)
    return Climb(smoothing, shares, prior, tolerance, LONG).run(coded, best.posterior)
