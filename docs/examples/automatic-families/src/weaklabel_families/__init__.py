"""A label model that finds families of functions in their votes: a weaklabel plugin.

Dependent functions deceive an EM that takes them for independent: the classes become what the
dependent ones have in common, and given those classes they look independent. So dependence is not
sought where EM went, but among whole partitions of the functions into factors. Each is fitted and
scored by its likelihood, less a price for its parameters (as Schwarz's criterion does, 1978).

Partitions come from clustering the functions by how their votes correlate, from putting two or
three units into one family, and from moving single units. That is a heuristic: not every partition
is tried, and votes alone cannot say which of two things that functions share is the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from weaklabel import Gold, Kind, LabelingFunction, LabelModel, Patterns, hookimpl
from weaklabel.dependence import (
    LEAST_FACTORS,
    NEAR,
    Candidate,
    Partition,
    cuts,
    dependences,
    scale,
)
from weaklabel.em import Factor, Integers, Rules, by_family
from weaklabel.label_model import ROUGH, FittedLabelModel
from weaklabel.votes import MISSING

SMALL = 100  # partitions with one small family: those of up to eight units
ORIGINS = 2  # partitions of the clustering that are refined
PAIRS = 6  # mergers that are tried at a time
# Patterns × functions × partitions that a search may fit: some seconds on one core.
WORK = 3_000_000


@dataclass(frozen=True)
class AutomaticFamilies(LabelModel):
    """`LabelModel` with families that are found in the votes.

    Declared families are units: they may be merged with others, and are never taken apart.
    `families="ignore"` starts from single functions. All other options are `LabelModel`'s.

    Args:
        partitions: how many partitions a search may fit beyond those of the clustering, fewer
            where there are many functions and patterns. 0: the clustering alone.
    """

    partitions: int = 200

    def fit(
        self,
        votes: Any,
        *,
        functions: Iterable[LabelingFunction] | None = None,
        families: Mapping[str, str | None] | None = None,
        gold: Gold | None = None,
    ) -> FittedLabelModel:
        """Find families, then fit `LabelModel` with them; see `LabelModel.fit`."""
        patterns = self._patterns(votes, functions, families)
        known = np.zeros((2, len(patterns)), dtype=np.int64)
        if gold is not None:
            patterns, known = gold.join(patterns)
            gold = replace(gold, counted=True)  # the patterns hold its rows by now
        found = replace(patterns, families=self.search(patterns, known))
        return LabelModel.fit(replace(self, families="declared"), found, gold=gold)

    def search(self, patterns: Patterns, known: Integers) -> tuple[str | None, ...]:
        """The family of each of the F functions: the names of its members, or None if it is alone.

        Args:
            patterns: P of them.
            known: int64, (2, P): how many rows are known to be wrong, and to be right.
        """
        # A function that never changes its vote holds no evidence and is in no family.
        varying = [len(set(own.tolist()) - {MISSING}) > 1 for own in patterns.votes.T]
        every = zip(patterns.functions, patterns.families, varying, strict=True)
        declared = {name: family for name, family, varies in every if varies}
        if self.families == "ignore":
            declared = dict.fromkeys(declared)
        units = by_family(tuple(declared), tuple(declared.values()))
        if len(units) > LEAST_FACTORS:
            rules = replace(self._rules(patterns, known, units), tolerance=ROUGH)
            most = min(self.partitions, WORK // patterns.votes.size)
            units = Search(patterns, known, rules, self.gold_weight, most).best(units).factors
        home = {name: unit.functions for unit in units for name in unit.functions}
        several = {name: "+".join(all_) for name, all_ in home.items() if len(all_) > 1}
        return tuple(several.get(name) for name in patterns.functions)


@dataclass(eq=False)
class Search:
    """Partitions of the functions of some patterns, each fitted at most once.

    Args:
        patterns: P of them.
        known: int64, (2, P): how many rows are known to be wrong, and to be right.
        rules: what EM is given.
        weight: of a row of known class.
        most: how many partitions may be fitted beyond those of the clustering.
    """

    patterns: Patterns
    known: Integers
    rules: Rules
    weight: float
    most: int
    _found: dict[Partition, Candidate] = field(default_factory=dict)

    def best(self, units: Partition) -> Candidate:
        """The best partition found: the clustering's, the best small family, none; each refined.

        Of partitions that are about as good, the one of fewest families: one thing that functions
        share is likelier than several.
        """
        clustered = sorted(map(self._fitted, cuts(self.patterns, units)), key=_score)[::-1]
        self.most += len(self._found)
        small = max(self._tried(_small(units)), key=_score, default=clustered[0])
        for origin in dict.fromkeys([*clustered[:ORIGINS], small, self._fitted(units)]):
            self._refine(origin, units)
        least = max(one.score for one in self._found.values()) - NEAR * scale(self.patterns)
        near = [one for one in self._found.values() if one.score >= least]
        return min(near, key=lambda one: (one.families, -one.score))

    def _fitted(self, factors: Iterable[Factor]) -> Candidate:
        partition = tuple(sorted(factors, key=lambda factor: factor.functions))
        if partition not in self._found:
            self._found[partition] = Candidate.of(
                self.patterns, partition, self.known, self.rules, self.weight
            )
        return self._found[partition]

    def _tried(self, partitions: Iterable[Partition]) -> Iterator[Candidate]:
        """The partitions, as many as may still be fitted."""
        for partition in partitions:
            if len(self._found) >= self.most:
                break
            yield self._fitted(partition)

    def _refine(self, best: Candidate, units: Partition) -> None:
        """Change one thing at a time, as long as the score gains."""
        while True:
            better = max(self._tried(self._moves(best, units)), key=_score, default=best)
            if better.score <= best.score:
                break
            best = better

    def _moves(self, best: Candidate, units: Partition) -> Iterator[Partition]:
        """A unit out of its factor, alone or into another; two factors merged.

        What is put together has to depend on each other as things stand.
        """
        home = {name: factor for factor in best.factors for name in factor.functions}
        own = {name: unit for unit in units for name in unit.functions}
        merging: dict[frozenset[Factor], None] = {}
        joining: dict[tuple[Factor, Factor], None] = {}
        for pair in sorted(
            dependences(self.patterns, best.posterior), key=lambda pair: -pair.strength
        ):
            if not pair.significant or not {pair.first, pair.second} <= home.keys():
                continue
            if home[pair.first] == home[pair.second]:
                continue
            merging[frozenset((home[pair.first], home[pair.second]))] = None
            for name, partner in ((pair.first, pair.second), (pair.second, pair.first)):
                if own[name] != home[name]:
                    joining[own[name], home[partner]] = None
        for unit in units:
            if (factor := home[unit.functions[0]]) != unit:
                yield (*(it for it in best.factors if it != factor), unit, _rest(factor, unit))
        for unit, other in list(joining)[:PAIRS]:
            factor = home[unit.functions[0]]
            others = (it for it in best.factors if it not in (factor, other))
            yield (*others, _union(unit, other), _rest(factor, unit))
        if len(best.factors) > LEAST_FACTORS:
            for two in list(merging)[:PAIRS]:
                yield _merged(best.factors, two)


def _score(candidate: Candidate) -> float:
    return candidate.score


def _small(units: Partition) -> list[Partition]:
    """All partitions with one family, of two or three units, if they are few.

    Clustering misses a family that correlates less than two good functions do.
    """
    sizes = [size for size in (2, 3) if len(units) - size + 1 >= LEAST_FACTORS]
    if sum(comb(len(units), size) for size in sizes) > SMALL:
        return []
    return [_merged(units, family) for size in sizes for family in combinations(units, size)]


def _merged(factors: Partition, together: Iterable[Factor]) -> Partition:
    together = tuple(together)
    return (*(it for it in factors if it not in together), reduce(_union, together))


def _union(first: Factor, second: Factor) -> Factor:
    return Factor(tuple(sorted(first.functions + second.functions)))


def _rest(factor: Factor, unit: Factor) -> Factor:
    """The functions of a factor that are not the unit's."""
    return Factor(tuple(sorted(set(factor.functions) - set(unit.functions))))


@hookimpl
def weaklabel_label_models(register: Callable[[Kind], None]) -> None:
    """Register the model: `weaklabel fit --model automatic-families`."""
    register(Kind("automatic-families", AutomaticFamilies, FittedLabelModel))
