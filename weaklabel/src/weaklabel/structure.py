"""Which functions belong together, from the votes alone.

Dependent functions deceive an EM that takes them for independent: the classes become what the
dependent ones have in common, and *given those classes* they look independent. So dependence is not
sought where EM went, but among whole partitions of the functions into factors. Each is fitted and
scored by its likelihood, less a price for its parameters (as Schwarz's criterion does, 1978): a
partition that leaves the classes to the wrong functions has to pay for a joint distribution of all
others.

Partitions come from clustering the functions by how their votes correlate, cut at every height, and
are refined by moving single functions. That is a heuristic: not every partition is tried, and two
may be equally likely, as votes alone cannot say which of two things that functions share is truth.
The constants were chosen on synthetic logs like those of tests/weaklabel/test_recovery.py, of other
seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from weaklabel import em
from weaklabel.dependence import dependences
from weaklabel.em import Factor
from weaklabel.patterns import Patterns

TOLERANCE = 1e-6  # nats a row; a partition's score need not be known better
LEAST = 3  # factors; with fewer the classes are not determined
# What a parameter costs, in nats. Schwarz's log(rows) / 2 is 2.5 at 150 rows; it grows from there,
# and was found to prefer too poor a partition where dependence is mild. At 2.5 a merger that needs
# two parameters more is taken by chance once in 150 times.
PRICE = 2.5
# Beyond so many rows the price grows with them, as the likelihood does: dependence that is borne
# out, but weak, is not worth the loss of a factor.
ENOUGH = 20_000
NEAR = 10.0  # nats, at most ENOUGH rows: a score that is not worse by more is about as good
CUTS = 8  # partitions of a clustering that are tried
SMALL = 100  # partitions with one small family: those of up to eight units
BUDGET = 200  # partitions after which refinement ends
ORIGINS = 2  # cuts that are refined
PAIRS = 6  # mergers that are tried at a time

Partition = tuple[Factor, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A partition and how well it explains the votes.

    Attributes:
        factors: the partition.
        posterior: float64, (P,): P(right | pattern).
        score: log-likelihood less the price of the parameters.
        single: the same score of the same factors without any classes.
    """

    factors: Partition
    posterior: npt.NDArray[np.float64]
    score: float
    single: float

    @property
    def families(self) -> int:
        """How many of the factors are of more than one function."""
        return sum(len(factor.functions) > 1 for factor in self.factors)


@dataclass(eq=False)
class Search:
    """Partitions of the functions of some patterns, each fitted at most once.

    Args:
        patterns: all rows.
        known: int64, (2, P): rows known to be wrong, and to be right.
        smoothing: see `LabelModel`.
        prior: see `LabelModel`.
        weight: of a row of known class.
    """

    patterns: Patterns
    known: npt.NDArray[np.int64]
    smoothing: float
    prior: float | None
    weight: float
    _found: dict[Partition, Candidate] = field(default_factory=dict)

    def candidate(self, factors: Iterable[Factor]) -> Candidate:
        """Fit and score a partition."""
        partition = tuple(sorted(factors, key=lambda factor: factor.functions))
        if partition not in self._found:
            self._found[partition] = self._fit(partition)
        return self._found[partition]

    def _fit(self, factors: Partition) -> Candidate:
        # Abstains are always symbols here: partitions must all explain the same votes.
        coded = em.Coded.of(self.patterns, factors, self.known, "symbol", self.weight)
        solution = em.ends(coded, self.smoothing, self.prior, TOLERANCE)[0]
        price = PRICE * self._scale
        free = int((coded.sizes - 1).sum())
        rest = sum(self._remainder(factor, price) for factor in factors)
        single = float(coded.counts @ coded.add_up(coded.pooled(1e-9))[0]) - price * free
        wrong, right = coded.known.sum(axis=1)
        if wrong + right:  # what it costs to say which rows of gold are right, without classes
            shares = np.array([wrong, right]) / (wrong + right)
            single += float(np.array([wrong, right]) @ np.log(np.maximum(shares, 1e-300)))
        classes = 0 if self.prior is not None else 1
        score = solution.likelihood - price * (2 * free + classes)
        return Candidate(factors, solution.posterior, score + rest, single + rest)

    def _remainder(self, factor: Factor, price: float) -> float:
        """The votes given the symbol, where a symbol stands for several: free of the class."""
        if factor.joint:
            return 0.0
        columns = [self.patterns.functions.index(name) for name in factor.functions]
        votes = self.patterns.votes[:, columns]
        counts = self.patterns.counts.astype(np.float64)
        _, fine = np.unique(votes, axis=0, return_inverse=True)
        _, coarse = np.unique(factor.codes(votes), return_inverse=True)
        likelihood, symbols = 0.0, 0
        for sign, index in ((1, fine), (-1, coarse)):
            tally = np.bincount(index.reshape(-1), counts)
            likelihood += sign * float(tally @ np.log(tally))
            symbols += sign * len(tally)
        return likelihood - price * symbols

    # Partitions

    def cuts(self, units: Partition) -> list[Partition]:
        """The units, and what merging the most correlated factors again and again makes of them.

        Of many such partitions, those where the next merger's correlation drops most.
        """
        correlation = np.abs(self._correlation())
        index = {name: i for i, name in enumerate(self.patterns.functions)}
        chance = np.sqrt(np.log(self.patterns.rows) / self.patterns.rows)
        factors, found, heights = units, [units], [1.0]
        while len(factors) > LEAST:
            places = [[index[name] for name in factor.functions] for factor in factors]
            height, first, second = max(
                (float(correlation[np.ix_(places[i], places[j])].mean()), i, j)
                for j in range(len(factors))
                for i in range(j)
            )
            if height < chance:
                break
            factors = merged(factors, factors[first], factors[second])
            found.append(factors)
            heights.append(height)
        drops = np.array(heights) - np.array([*heights[1:], 0.0])
        widest = np.sort(np.argsort(-drops[1:], kind="stable")[: CUTS - 1]) + 1
        return [units, *(found[i] for i in widest)]

    def _correlation(self) -> npt.NDArray[np.float64]:
        """Of every two functions' votes, on rows on which both have input: float64, (F, F)."""
        present = self.patterns.present.astype(np.float64)
        votes = np.where(self.patterns.present, self.patterns.votes, 0).astype(np.float64)
        weighted = present * self.patterns.counts[:, None]
        rows = np.maximum(present.T @ weighted, 1e-300)
        sums = (votes * self.patterns.counts[:, None]).T @ present  # of the first's votes
        squares = (votes**2 * self.patterns.counts[:, None]).T @ present
        product = (votes * self.patterns.counts[:, None]).T @ votes
        covariance = product / rows - sums / rows * (sums / rows).T
        variance = np.maximum(squares / rows - (sums / rows) ** 2, 1e-12)
        return np.asarray(covariance / np.sqrt(variance * variance.T))

    def best_cut(self, units: Partition) -> Candidate:
        """The best of the partitions that clustering gives, see `best`."""
        return self._simplest(
            max(map(self.candidate, self.cuts(units)), key=lambda found: found.score)
        )

    def best(self, units: Partition) -> Candidate:
        """The best partition found: the best cuts, the best small family, none; each refined.

        Of partitions that are about as good, the one of fewest families: one thing that functions
        share is likelier than several.
        """
        cuts = sorted(map(self.candidate, self.cuts(units)), key=lambda found: -found.score)
        alone = self.candidate(units)
        small = max(
            map(self.candidate, self._small(units)), key=lambda found: found.score, default=alone
        )
        origins = dict.fromkeys([*cuts[:ORIGINS], small, alone])
        best = max((self._refined(found, units) for found in origins), key=lambda x: x.score)
        return self._simplest(best)

    def _small(self, units: Partition) -> list[Partition]:
        """All partitions with one family, of two or three units, if they are few.

        Clustering misses a family that correlates less than two good functions do.
        """
        sizes = [size for size in (2, 3) if len(units) - size + 1 >= LEAST]
        if sum(comb(len(units), size) for size in sizes) > SMALL:
            return []
        return [
            (*(unit for unit in units if unit not in family), reduce(union, family))
            for size in sizes
            for family in combinations(units, size)
        ]

    def _simplest(self, best: Candidate) -> Candidate:
        return min(self._near(best), key=lambda found: (found.families, -found.score))

    def _near(self, best: Candidate) -> list[Candidate]:
        """The partitions that explain the votes about as well, that one included."""
        least = best.score - NEAR * self._scale
        return [found for found in self._found.values() if found.score >= least]

    def rival(self, chosen: Candidate) -> float:
        """Share of the rows that a partition about as good as the chosen would label otherwise."""
        shares = self.patterns.counts / self.patterns.rows
        label = chosen.posterior >= 0.5
        return max(
            float(shares @ (label != (found.posterior >= 0.5))) for found in self._near(chosen)
        )

    @property
    def _scale(self) -> float:
        """What is counted as ENOUGH rows' worth."""
        return max(1.0, self.patterns.rows / ENOUGH)

    def _refined(self, best: Candidate, units: Partition) -> Candidate:
        """Change one thing at a time, as long as the score gains."""
        while len(self._found) < BUDGET:
            tried = map(self.candidate, self._moves(best, units))
            better = max(tried, key=lambda found: found.score, default=best)
            if better.score <= best.score:
                break
            best = better
        return best

    def _moves(self, best: Candidate, units: Partition) -> Iterator[Partition]:
        """A unit out of its factor, alone or into another; two factors merged.

        What is put together has to depend on each other as things stand.
        """
        home = {name: factor for factor in best.factors for name in factor.functions}
        own = {name: unit for unit in units for name in unit.functions}
        pairs = [
            pair
            for pair in dependences(self.patterns, best.posterior)
            if pair.significant and pair.first in home and pair.second in home
        ]
        pairs.sort(key=lambda pair: -pair.strength)
        merging: dict[frozenset[Factor], None] = {}
        joining: dict[tuple[Factor, Factor], None] = {}
        for pair in pairs:
            for name, other in ((pair.first, home[pair.second]), (pair.second, home[pair.first])):
                if home[name] != other:
                    merging[frozenset((home[name], other))] = None
                    if own[name] != home[name]:
                        joining[own[name], other] = None
        for unit in units:
            if (factor := home[unit.functions[0]]) != unit:
                yield (*(f for f in best.factors if f != factor), unit, without(factor, unit))
        for unit, other in list(joining)[:PAIRS]:
            factor = home[unit.functions[0]]
            rest = (f for f in best.factors if f not in (factor, other))
            yield (*rest, union(unit, other), without(factor, unit))
        if len(best.factors) > LEAST:
            for first, second in list(merging)[:PAIRS]:
                yield merged(best.factors, first, second)


def union(first: Factor, second: Factor) -> Factor:
    """The functions of both."""
    return Factor(tuple(sorted(first.functions + second.functions)))


def without(factor: Factor, unit: Factor) -> Factor:
    """The functions that are not the unit's."""
    return Factor(tuple(sorted(set(factor.functions) - set(unit.functions))))


def merged(factors: Partition, first: Factor, second: Factor) -> Partition:
    """The partition with two of its factors made one."""
    rest = (factor for factor in factors if factor not in (first, second))
    return (*rest, union(first, second))
