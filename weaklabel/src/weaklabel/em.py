"""Expectation–maximization for Dawid–Skene over counts of patterns.

A query's transcript is right (class 1) or wrong (class 0); given that, the factors' symbols are
independent, each with a distribution of its own (Dawid & Skene 1979, with an abstain as one more
symbol). A factor is a function alone or a family of functions: functions of one family look at the
same thing (the same session, the same second recognizer), so that their evidence must not be
multiplied. Its symbol is

- up to `JOINT` members, the tuple of their votes: exact for any dependence among them;
- beyond, how many of them accept and how many reject: exact for members that are exchangeable,
  which near-copies are. Which of them voted is left out, so the symbols stay few, (m + 1)(m + 2)/2.

Where members have no input, only a part of the symbol is seen. Its probability is the sum over the
symbols it may be a part of; where no member has input, the factor says nothing of the query. This
holds if whether an input is there has nothing to do with the vote it would have led to.

What is maximized is the log-likelihood of the counts plus the logarithm of a Dirichlet prior, which
is as if every symbol had been seen `smoothing` times more, shared by the classes as `shares` says.
Every step increases it (Dempster, Laird & Rubin 1977).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Literal

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel.patterns import Patterns
from weaklabel.votes import MISSING, PREFIX

Abstain = Literal["symbol", "ignore"]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

JOINT = 5  # members; 3⁵ = 243 symbols, which a log of some thousand queries can fill
COMMON = 20  # rows of a pattern of missing inputs, below which it is no symbol of its own
DENSE = 20_000_000  # entries of an indicator matrix, 160 MB
SHORT, LONG = 60, 5_000  # steps of a start, and of the start that is chosen


# Factors


@dataclass(frozen=True)
class Factor:
    """Functions that are read together.

    A code says what is seen of a symbol: for up to `JOINT` members, the digits to base 4 are their
    votes + 1, and 3 for a missing input; beyond, the digits to base m + 1 are how many members
    reject, accept and have no input. The symbols themselves are the codes without missing inputs.

    Attributes:
        functions: names, sorted; one alone, or a family.
    """

    functions: tuple[str, ...]

    @property
    def joint(self) -> bool:
        """Whether a symbol is the tuple of the votes, rather than their numbers."""
        return len(self.functions) <= JOINT

    @property
    def _shape(self) -> tuple[int, int]:
        """The base of the digits, and how many there are."""
        return (4, len(self.functions)) if self.joint else (len(self.functions) + 1, 3)

    @property
    def _places(self) -> Integers:
        base, wide = self._shape
        return base ** np.arange(wide, dtype=np.int64)

    def codes(self, votes: npt.NDArray[np.int8]) -> Integers:
        """Codes of rows of votes: int8, (N, m) in the order of `functions` → int64, (N,)."""
        if self.joint:
            digits = np.where(votes == MISSING, 3, votes.astype(np.int64) + 1)
        else:
            digits = np.stack([(votes == vote).sum(axis=1) for vote in (-1, 1, MISSING)], axis=1)
        return np.asarray(digits @ self._places)

    def code(self) -> nw.Expr:
        """`codes` as an expression over columns of votes, where a missing input is null."""
        columns = [nw.col(PREFIX + name) for name in self.functions]
        if self.joint:
            # Filled before it is cast: pandas has no whole number for what is missing.
            digits = [column.fill_null(2).cast(nw.Int64) + 1 for column in columns]
        else:
            rejects = [(column == -1).cast(nw.Int64) for column in columns]
            accepts = [(column == 1).cast(nw.Int64) for column in columns]
            missing = [column.is_null().cast(nw.Int64) for column in columns]
            # Null where the vote is null, which a sum leaves out.
            digits = [nw.sum_horizontal(*shown) for shown in (rejects, accepts, missing)]
        return nw.sum_horizontal(
            *(digit * place for digit, place in zip(digits, self._places.tolist(), strict=True))
        )

    @cached_property
    def shown(self) -> Integers:
        """Every code: int64, (size,)."""
        base, wide = self._shape
        codes = np.arange(base**wide)
        if self.joint:
            return codes
        return np.asarray(codes[self.digits(codes).sum(axis=1) <= len(self.functions)])

    def digits(self, codes: Integers) -> Integers:
        """Digits of codes, (N,): (N, m), or (N, 3) beyond `JOINT` members."""
        return np.asarray(codes[:, None] // self._places % self._shape[0])

    def whole(self, codes: Integers) -> npt.NDArray[np.bool_]:
        """Whether codes are symbols: no input is missing. bool, (N,)."""
        digits = self.digits(codes)
        return np.asarray((digits != 3).all(axis=1) if self.joint else digits[:, 2] == 0)

    def nothing(self, codes: Integers, abstain: Abstain) -> npt.NDArray[np.bool_]:
        """Whether codes are no evidence: no member has input, or none votes (ignore). bool, (N,)"""
        digits = self.digits(codes)
        if abstain == "ignore":
            silent = (digits == 1) | (digits == 3) if self.joint else digits[:, :2] == 0
            return np.asarray(silent.all(axis=1))
        return np.asarray(
            (digits == 3).all(axis=1) if self.joint else digits[:, 2] == len(self.functions)
        )

    def parts(self, codes: Integers, symbols: Integers) -> Floats:
        """P(what is seen | symbol, which inputs are missing): float64, (N codes, S symbols)."""
        seen, all_ = self.digits(codes)[:, None], self.digits(symbols)[None]
        if self.joint:
            return np.asarray(((seen == 3) | (seen == all_)).all(axis=-1), dtype=np.float64)
        # Of m members with so many rejects and accepts, those with input are a random sample.
        m = len(self.functions)
        chosen = np.array([[comb(n, k) for k in range(m + 1)] for n in range(m + 1)], np.float64)
        votes, of = seen[..., :2], all_[..., :2]
        silent = m - seen[..., 2] - votes.sum(axis=-1)
        ways = chosen[of, votes].prod(axis=-1) * chosen[m - of.sum(axis=-1), silent]
        return np.asarray(ways / chosen[m, m - seen[..., 2]])

    def distances(self, codes: Integers, symbols: Integers) -> Floats:
        """Distances of what is seen from symbols, missing inputs left out: float64, (N, S)."""
        seen, all_ = self.digits(codes)[:, None], self.digits(symbols)[None]
        if self.joint:
            return np.asarray(np.where(seen == 3, 0.0, np.abs(seen - all_)).sum(axis=-1))
        return np.asarray(np.abs(seen[..., :2] - all_[..., :2]).sum(axis=-1), dtype=np.float64)


@dataclass(frozen=True)
class Inputs(Factor):
    """The pattern of missing inputs as one factor: a digit to base 2 a function.

    One factor, and not one for each function: inputs go missing together, a household's or a
    column's, and such evidence must not be multiplied. It is no vote for or against a transcript.

    Attributes:
        common: the codes that occur often enough to be symbols; others are no evidence.
    """

    common: tuple[int, ...] = ()

    @classmethod
    def of(cls, patterns: Patterns) -> Inputs:
        """The patterns of missing inputs that occur in at least `COMMON` rows."""
        seen, index = np.unique(cls(patterns.functions).codes(patterns.votes), return_inverse=True)
        rows = np.bincount(index.reshape(-1), patterns.counts)
        return cls(patterns.functions, tuple(seen[rows >= COMMON].tolist()))

    @property
    def joint(self) -> bool:
        """Every code is a symbol as it stands."""
        return True

    @property
    def _shape(self) -> tuple[int, int]:
        return 2, len(self.functions)

    def codes(self, votes: npt.NDArray[np.int8]) -> Integers:
        """Codes of the inputs that are missing: votes int8, (N, F) → int64, (N,)."""
        return np.asarray((votes == MISSING) @ self._places)

    def code(self) -> nw.Expr:
        """`codes` as an expression over columns of votes."""
        missing = [nw.col(PREFIX + name).is_null().cast(nw.Int64) for name in self.functions]
        places = self._places.tolist()
        return nw.sum_horizontal(*(one * place for one, place in zip(missing, places, strict=True)))

    @cached_property
    def shown(self) -> Integers:
        """The codes that are symbols."""
        return np.array(self.common, dtype=np.int64)

    def nothing(self, codes: Integers, abstain: Abstain) -> npt.NDArray[np.bool_]:
        """Whether codes are too rare to be evidence."""
        return ~np.isin(codes, self.common)

    def parts(self, codes: Integers, symbols: Integers) -> Floats:
        """1 where a code is the symbol."""
        return np.asarray(codes[:, None] == symbols, dtype=np.float64)


def by_family(functions: Sequence[str], families: Sequence[str | None]) -> tuple[Factor, ...]:
    """One factor a family and one for every function without, sorted by first name."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for name, family in zip(functions, families, strict=True):
        key = (False, name) if family is None else (True, family)
        groups.setdefault(key, []).append(name)
    factors = (Factor(tuple(sorted(group))) for group in groups.values())
    return tuple(sorted(factors, key=lambda factor: factor.functions))


# Counts


@dataclass(frozen=True, eq=False)
class Coded:
    """Patterns as what factors show, numbered through all factors, and how often each occurs."""

    shown: Integers  # (P, G): what each factor shows; O stands for nothing, which is no evidence
    sizes: Integers  # (G,): symbols of each factor; S is their sum
    codes: Integers  # (S,): each symbol's code in its factor
    parts: Floats | None  # (O, S): P(what is shown | symbol); None where that is the symbol itself
    evident: npt.NDArray[np.bool_]  # (P,): whether anything is shown; all, if nothing is anywhere
    open: Floats  # (P,): rows of unknown class; 0 where not evident, for these have nothing to say
    known: Floats  # (2, P): rows known to be wrong, and to be right
    means: Floats  # (P, at most G): the mean votes of factors that vote; 0 without input
    scores: Floats  # (P, at most G): the same, standardized over the rows with input

    @classmethod
    def of(
        cls,
        patterns: Patterns,
        factors: Sequence[Factor],
        known: Integers,
        abstain: Abstain = "symbol",
        weight: float = 1.0,
    ) -> Coded:
        """Read patterns as the symbols of factors.

        Of all rows, `known`, (2, P), are known to be wrong, and to be right; each counts for
        `weight` rows. Abstains are symbols, or ("ignore") no member voting is no evidence.
        """
        index = {name: i for i, name in enumerate(patterns.functions)}
        tables = [patterns.votes[:, [index[name] for name in f.functions]] for f in factors]
        read = [_read(f, votes, abstain) for f, votes in zip(factors, tables, strict=True)]
        sizes = np.array([len(symbols) for _, symbols, _ in read], dtype=np.int64)
        codes = np.concatenate([*(symbols for _, symbols, _ in read), np.zeros(0, np.int64)])
        wide = sum(len(own) for _, _, own in read)
        shown = np.full((len(patterns), len(factors)), wide, dtype=np.int64)
        parts = np.zeros((wide, len(codes)))
        row = column = 0
        for place, (numbers, symbols, own) in enumerate(read):
            seen = numbers >= 0
            shown[seen, place] = numbers[seen] + row
            parts[row : row + len(own), column : column + len(symbols)] = own
            row, column = row + len(own), column + len(symbols)
        same = wide == len(codes) and bool((parts == np.eye(wide)).all())
        evident = np.asarray((shown < wide).any(axis=1))
        evident |= not evident.any()
        voting = [v for f, v in zip(factors, tables, strict=True) if not isinstance(f, Inputs)]
        means = np.zeros((2, len(voting), len(patterns)))
        for place, votes in enumerate(voting):
            means[:, place] = _means(votes, patterns.counts)
        return cls(
            shown,
            sizes,
            codes,
            None if same else parts,
            evident,
            np.where(evident, patterns.counts - known.sum(axis=0), 0.0),
            (weight * known).astype(np.float64),
            means[0].T,
            means[1].T,
        )

    @property
    def counts(self) -> Floats:
        """All rows of each pattern that have something to say: float64, (P,)."""
        return np.asarray(self.open + self.known.sum(axis=0))

    @property
    def _width(self) -> int:
        """O, how many things are shown."""
        return int(self.sizes.sum()) if self.parts is None else len(self.parts)

    @cached_property
    def _indicator(self) -> Floats | None:
        """1 where a pattern shows something: float64, (P, O), or None where it would be large."""
        patterns, width = len(self.shown), self._width
        if patterns * width > DENSE:
            return None
        indicator = np.zeros((patterns, width + 1))
        np.put_along_axis(indicator, self.shown, 1.0, axis=1)
        return np.ascontiguousarray(indicator[:, :width])

    def tally(self, rows: Floats, logs: Floats) -> Floats:
        """Expected rows of each symbol: of (C, P) rows and (C, S) log P(symbol), float64 (C, S)."""
        if self._indicator is not None:
            seen = rows @ self._indicator
        else:
            index, wide = self.shown.ravel(), self.shown.shape[1]
            each = [np.bincount(index, np.repeat(own, wide), self._width + 1) for own in rows]
            seen = np.array(each, dtype=np.float64)[:, :-1]
        if self.parts is None:
            return np.asarray(seen)
        shares = np.exp(logs)
        return np.asarray(shares * ((seen / (shares @ self.parts.T)) @ self.parts))

    def add_up(self, logs: Floats) -> Floats:
        """Log P(what each pattern shows): of (C, S) log P(symbol), float64 (C, P)."""
        if self.parts is not None:
            logs = np.log(np.exp(logs) @ self.parts.T)
        if self._indicator is not None:
            return np.asarray(logs @ self._indicator.T)
        padded = np.pad(logs, ((0, 0), (0, 1)))  # nothing shown is no evidence
        return np.stack([own[self.shown].sum(axis=-1) for own in padded])

    def within(self, values: Floats) -> Floats:
        """(…, S) divided by its sum over the symbols of the same factor."""
        begins, factors = self._places
        if not len(begins):
            return values
        return np.asarray(values / np.add.reduceat(values, begins, axis=-1)[..., factors])

    @cached_property
    def _places(self) -> tuple[Integers, Integers]:
        """Where the symbols of each factor that has any begin, and of each symbol its factor."""
        sizes = self.sizes[self.sizes > 0]
        return np.cumsum(sizes) - sizes, np.repeat(np.arange(len(sizes)), sizes)

    def pooled(self, smoothing: float, steps: int = 50) -> Floats:
        """Log P(symbol) of all rows, whatever their class: float64, (1, S)."""
        logs = np.log(self.within(np.ones((1, int(self.sizes.sum())))))
        for _ in range(1 if self.parts is None else steps):
            logs = np.log(self.within(self.tally(self.counts[None], logs) + smoothing))
        return np.asarray(logs)


def _read(
    factor: Factor, votes: npt.NDArray[np.int8], abstain: Abstain
) -> tuple[Integers, Integers, Floats]:
    """Read (P, m) votes: the thing each shows, -1 for nothing; symbols; P(thing | symbol)."""
    codes, index = np.unique(factor.codes(votes), return_inverse=True)
    evidence = ~factor.nothing(codes, abstain)
    whole = factor.whole(codes)
    symbols = codes[whole & evidence]
    # What is seen in part only, and is a part of no symbol seen, brings its symbols along.
    lone = codes[~whole & evidence]
    lone = lone[~factor.parts(lone, symbols).any(axis=1)] if len(lone) else lone
    if len(lone):
        every = factor.shown[factor.whole(factor.shown)]
        every = every[~factor.nothing(every, abstain)]
        symbols = np.union1d(symbols, every[factor.parts(lone, every).any(axis=0)])
    numbers = np.where(evidence, np.cumsum(evidence) - 1, -1)
    return numbers[index.reshape(-1)], symbols, factor.parts(codes[evidence], symbols)


def _means(votes: npt.NDArray[np.int8], counts: Integers) -> tuple[Floats, Floats]:
    """Mean votes of (P, m), and these standardized over the rows with input; 0 where none is."""
    present = votes != MISSING
    some = present.any(axis=1)
    mean = np.where(present, votes, 0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    rows = np.where(some, counts, 0) / max(int(counts[some].sum()), 1)
    score = np.where(some, mean - rows @ mean, 0.0)
    return mean, score / max(float(np.sqrt(rows @ score**2)), 1e-12)


# The model


@dataclass(frozen=True, eq=False)
class Solution:
    """The end of EM: the fitted rates, and how good they are."""

    prior: float  # P(right)
    logs: Floats  # (2, S): log P(symbol | wrong), log P(symbol | right)
    posterior: Floats  # (P,): P(right | pattern), gold left aside
    likelihood: float  # log-likelihood of the counts
    trace: tuple[float, ...]  # penalized log-likelihood at each step; it never decreases
    orientation: float  # see `orientation`: above 0 where functions are better than chance
    converged: bool  # whether the last gain was below the tolerance


@dataclass(frozen=True)
class Rules:
    """Settings of EM besides the counts."""

    smoothing: float = 1.0  # pseudo-rows for every symbol
    prior: float | None = None  # P(right) where it is given, else estimated
    # What is believed of P(right) beforehand, and as how many rows that counts. Votes of functions
    # that share something else than the truth may fit some other split better.
    belief: tuple[float, float] = (0.5, 0.0)
    tolerance: float = 1e-10  # the gain a row, in nats, below which EM stops


def climb(
    coded: Coded,
    rules: Rules,
    posterior: Floats,
    shares: float,
    steps: int,
    logs: Floats | None = None,
) -> Solution:
    """EM from (P,) posteriors, with so many `steps` at most.

    `shares` is P(right) among the pseudo-rows. By `logs`, those of a `Solution`, what is seen in
    part is shared among symbols at first.
    """
    classes = np.array([1 - shares, shares])
    share, weight = rules.belief
    # One pseudo-row more than are believed in.
    believed = np.array([1 - share, share]) * weight + classes
    rows = float(coded.counts.sum())
    trace: list[float] = []
    converged = False
    if logs is None:
        logs = np.repeat(coded.pooled(rules.smoothing), 2, axis=0)
    while not converged and len(trace) < steps:
        own = coded.open * np.array([1 - posterior, posterior]) + coded.known
        counts = coded.tally(own, logs) + rules.smoothing * classes[:, None]
        logs = np.log(coded.within(counts))
        wrong, right = own.sum(axis=1) + believed
        prior = float(right / (wrong + right)) if rules.prior is None else rules.prior
        odds = np.log([1 - prior, prior])
        joint = coded.add_up(logs) + odds[:, None]  # log P(pattern, class): (2, P)
        evidence = np.logaddexp(joint[0], joint[1])
        posterior = np.exp(joint[1] - evidence)
        likelihood = float(coded.open @ evidence + (coded.known * joint).sum())
        penalty = float(rules.smoothing * classes @ logs.sum(axis=1))
        if rules.prior is None:
            penalty += float(believed @ odds)
        trace.append(likelihood + penalty)
        converged = len(trace) > 1 and trace[-1] - trace[-2] <= rules.tolerance * rows
    found = orientation(coded, posterior)
    return Solution(prior, logs, posterior, likelihood, tuple(trace), found, converged)


def orientation(coded: Coded, posterior: Floats) -> float:
    """Mean correlation of the factors' votes with the class; 0 without factors that vary."""
    rows = coded.counts / coded.counts.sum()
    # Gold is part of what the class is.
    known = coded.known.sum(axis=0)
    right = (coded.open * posterior + coded.known[1]) / np.maximum(coded.open + known, 1e-300)
    centered = right - rows @ right
    spread = np.sqrt(rows @ centered**2)
    if spread == 0 or not coded.scores.shape[1]:
        return 0.0
    return float(((rows * centered) @ coded.scores).mean() / spread)


def starts(coded: Coded, prior: float | None) -> Sequence[Floats]:
    """Posteriors to start from, (P,) each; none of them is random.

    Patterns are ordered by a weighted sum of the factors' standardized votes, so that an abstain of
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


def fit(coded: Coded, rules: Rules, start: Solution | None = None) -> Solution:
    """The best start's way to its end, with pseudo-rows shared as the classes are.

    Shared so, they pull a symbol that is rarely seen toward no evidence.
    `start` is the end of another fit to the same patterns, to go on from.
    """
    best = best_start(coded, rules) if start is None else start
    # Never all of them in one class, whose other would then be impossible.
    shares = min(max(best.prior, 0.001), 0.999)
    return climb(coded, rules, best.posterior, shares, LONG, best.logs if start is None else None)


def best_start(coded: Coded, rules: Rules) -> Solution:
    """The best of EM's ends after a short way from each start, with pseudo-rows shared evenly.

    Ends where functions are better than chance on average go before all others; with rows of known
    class the likelihood tells the classes apart.
    """
    shares = 0.5 if rules.prior is None else rules.prior
    found = [climb(coded, rules, start, shares, SHORT) for start in starts(coded, rules.prior)]
    anchored = bool(coded.known.any())
    return max(found, key=lambda end: (anchored or end.orientation > 0, end.trace[-1]))
