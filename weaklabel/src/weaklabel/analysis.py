"""Analysis of labeling functions and a label model: coverage, conflicts, accuracy.

All that needs no gold comes from counts of vote patterns, so that it costs the same for a thousand
queries and for a billion. What needs gold (see `weaklabel.gold`) comes from the queries that were
checked, which are few.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from weaklabel import models
from weaklabel.dependence import Dependence, MissingRate, ModelComparison, dependences
from weaklabel.errors import WeakLabelError, counted
from weaklabel.gold import (
    Floats,
    GoldAnalysis,
    GoldQueries,
    analyze_gold,
    share,
    tenths,
)
from weaklabel.labeling import Identity
from weaklabel.models import FittedModel, as_patterns, check_functions
from weaklabel.patterns import Patterns, accepts
from weaklabel.plan import RowErrors
from weaklabel.votes import MISSING, PREFIX
from weaklabel.wer import Interval

HISTOGRAM = 20  # bins of weights, of equal width
FREQUENT = 20  # patterns listed


@dataclass(frozen=True)
class FunctionSummary:
    """One labeling function.

    Attributes:
        name: as in the votes' column `lf:<name>`.
        family: the family it was declared in, or None.
        identity: which function it is, or None where it is not known.
        accepts: queries it accepts.
        rejects: queries it rejects.
        abstains: queries it looked at and kept silent on.
        missing: queries for which it had no input.
        coverage: share it votes on of the queries for which it had input.
        overlaps: share on which it and another function vote, of those for which both had input.
        conflicts: share on which another function votes the opposite, of the same.
        learned_accept: P(right | it accepts) by the model; None if it never accepts.
        learned_reject: P(wrong | it rejects), likewise.
        missing_rate: how many of these are right, by the other functions; None if its input never
            is missing, or the model does not say.
        gold_accept: share right of the gold queries it accepts, with a 95% Wilson interval; None
            without gold, or if it accepts none of it.
        gold_reject: share wrong of those it rejects, likewise.
        gold_missing: share right of those for which it had no input, likewise.
        dependence: on the function that it depends on most, given the transcript's class; None if
            it is the only function.
        errors: rows on which it raised, or None.
    """

    name: str
    family: str | None
    identity: Identity | None
    accepts: int
    rejects: int
    abstains: int
    missing: int
    coverage: float
    overlaps: float
    conflicts: float
    learned_accept: float | None
    learned_reject: float | None
    missing_rate: MissingRate | None
    gold_accept: Interval | None
    gold_reject: Interval | None
    gold_missing: Interval | None
    dependence: Dependence | None
    errors: RowErrors | None


@dataclass(frozen=True)
class PatternSummary:
    """One pattern of votes.

    Attributes:
        votes: -1, 0, 1, or None for a missing input, for every function.
        rows: queries that show it.
        weight: P(right) the model gives them.
    """

    votes: tuple[int | None, ...]
    rows: int
    weight: float


@dataclass(frozen=True)
class Verdict:
    """The share of right labels, beside two labelings that need no model.

    Attributes:
        text: the same in a sentence.
        by: "gold", or "model": what the model itself expects, which holds if the model does.
        right: share of the labels that are right.
        accepting_everything: share that is right if every query is accepted.
        majority_vote: share that is right of a majority vote where a tie is an accept.
        better: whether `right` is above both.
    """

    text: str
    by: Literal["gold", "model"]
    right: float
    accepting_everything: float
    majority_vote: float
    better: bool


@dataclass(frozen=True)
class Analysis:
    """Everything a report shows.

    Attributes:
        verdict: how many labels are right.
        warnings: reasons not to trust the weights: the model's own, and what gold says.
        rows: queries.
        patterns: distinct patterns of votes among them.
        silent: queries on which no function votes, though at least one had input.
        no_input: queries for which no function had input.
        threshold: queries whose weight reaches it are accepted, the others rejected.
        accepted: how many are accepted.
        mean_weight: over all queries: the share of right transcripts by the model.
        histogram: queries by weight, in `HISTOGRAM` bins of equal width from 0 to 1.
        functions: every function, in the model's order.
        dependences: every pair of functions, the strongest first: what they have in common once
            the model has said which transcripts are right.
        frequent: the most frequent patterns, the first ones first.
        model: the kind of model, such as "label-model".
        prior: P(right) over all queries, if the model has one.
        families: functions that share their evidence in the model.
        comparison: what the label model expects of itself, of accepting everything and of a
            majority vote; None of other models.
        gold: what the checked queries say, or None without them.
        provenance: what the analysis was made of, as names and values.
    """

    verdict: Verdict
    warnings: tuple[str, ...]
    rows: int
    patterns: int
    silent: int
    no_input: int
    threshold: float
    accepted: int
    mean_weight: float
    histogram: tuple[int, ...]
    functions: tuple[FunctionSummary, ...]
    dependences: tuple[Dependence, ...]
    frequent: tuple[PatternSummary, ...]
    model: str
    prior: float | None
    families: tuple[tuple[str, ...], ...]
    comparison: ModelComparison | None
    gold: GoldAnalysis | None
    provenance: tuple[tuple[str, str], ...]


def analyze(
    votes: Any,
    fitted: FittedModel,
    *,
    gold: GoldQueries | None = None,
    threshold: float = 0.5,
    max_wer: float = 0.0,
    examples: int = 10,
    errors: Iterable[Mapping[str, Any]] = (),
    allow_changed: bool = False,
    provenance: Iterable[tuple[str, str]] = (),
) -> Analysis:
    """Analyze votes and the model fitted to them.

    Args:
        votes: a table of votes (any frame narwhals knows), or its `Patterns`; families and
            identities are known to `Patterns` only.
        fitted: a model of these functions.
        gold: checked queries, as `join_gold` finds them in the votes, of the same functions.
        threshold: of the weight, from which on a query is accepted.
        max_wer: a transcript is right up to so many word errors per word of the correct one.
        examples: how many wrongly accepted, and wrongly rejected, gold queries to keep.
        errors: rows on which functions raised, as the votes' metadata has them: `name`, `total`,
            `first`, `traceback`.
        allow_changed: go on where a function is another one than the model was fitted with.
        provenance: what to say of where the votes and the model come from.

    Raises:
        WeakLabelError: there are no rows, or the model or gold is of other functions.
    """
    if not 0 <= threshold <= 1:
        raise WeakLabelError(f"threshold must lie in [0, 1], got {threshold!r}")
    patterns = as_patterns(votes, missing=True)
    check_functions(fitted.functions, [PREFIX + name for name in patterns.functions])
    patterns = patterns.ordered(fitted.functions)
    seen = dict(zip(patterns.functions, patterns.identities, strict=True))
    models.check_identities(fitted, seen, allow_changed=allow_changed)
    weights = models.weights(fitted, patterns.votes)
    counts = patterns.counts
    judged = None
    if gold is not None:
        if gold.functions != fitted.functions:
            raise WeakLabelError(
                f"gold is of functions {list(gold.functions)}, and the model's are, in this order,"
                f" {list(fitted.functions)}: give join_gold the model's (functions=)"
            )
        weighed = models.weights(fitted, gold.votes)
        judged = analyze_gold(
            gold,
            weighed,
            tenths(weights, counts, weighed),
            threshold=threshold,
            max_wer=max_wer,
            examples=examples,
        )
    # The label model has its own: given better classes than those of its weights.
    own = getattr(fitted, "dependence", None)
    pairs = sorted(
        dependences(patterns, weights) if own is None else own, key=lambda pair: -pair.strength
    )
    raised = {
        entry["name"]: RowErrors(**{**entry, "first": [(q, text) for q, text in entry["first"]]})
        for entry in errors
    }
    # A plugin's model may call something else so.
    rates = [r for r in getattr(fitted, "missing", ()) if isinstance(r, MissingRate)]
    silent = ~np.isin(patterns.votes, (-1, 1)).any(axis=1)
    no_input = ~patterns.present.any(axis=1)
    bins = np.minimum((weights * HISTOGRAM).astype(np.int64), HISTOGRAM - 1)
    return Analysis(
        verdict=_verdict(patterns, weights, threshold, judged),
        warnings=(
            *_gold_warnings(judged),
            *(str(warning) for warning in getattr(fitted, "warnings", ())),
        ),
        rows=patterns.rows,
        patterns=len(patterns),
        silent=int(counts @ (silent & ~no_input)),
        no_input=int(counts @ no_input),
        threshold=threshold,
        accepted=int(counts @ (weights >= threshold)),
        mean_weight=float(counts @ weights) / patterns.rows,
        histogram=tuple(np.bincount(bins, counts, HISTOGRAM).astype(np.int64).tolist()),
        functions=tuple(
            _function(
                index,
                patterns,
                weights,
                next((pair for pair in pairs if name in (pair.first, pair.second)), None),
                next((rate for rate in rates if rate.name == name), None),
                None if gold is None else (gold, gold.right(max_wer)),
                raised.get(name),
            )
            for index, name in enumerate(patterns.functions)
        ),
        dependences=tuple(pairs),
        frequent=_frequent(patterns, weights),
        model=getattr(fitted, "kind", type(fitted).__name__),
        prior=getattr(fitted, "prior", None),
        families=tuple(tuple(family) for family in getattr(fitted, "families", ())),
        comparison=getattr(fitted, "comparison", None),
        gold=judged,
        provenance=tuple(provenance),
    )


def _verdict(
    patterns: Patterns, weights: Floats, threshold: float, gold: GoldAnalysis | None
) -> Verdict:
    if gold is not None:
        right, always, majority = (
            gold.label_accuracy.point,
            *(baseline.right for baseline in gold.baselines),
        )
        text = (
            f"{right:.1%} of the labels are right; accepting everything: {always:.1%}, a majority"
            f" vote: {majority:.1%} ({counted(gold.queries, 'gold query')})"
        )
    else:
        looked_at = patterns.present.any(axis=1)
        rows = patterns.counts * (looked_at if looked_at.any() else 1)
        right, always, majority = (
            float(rows @ np.where(accepted, weights, 1 - weights) / rows.sum())
            for accepted in (weights >= threshold, np.ones_like(looked_at), accepts(patterns.votes))
        )
        text = (
            f"The model expects {right:.1%} of its labels to be right; accepting everything:"
            f" {always:.1%}, a majority vote: {majority:.1%} (its own account: no gold was given)"
        )
    return Verdict(
        text,
        "model" if gold is None else "gold",
        right,
        always,
        majority,
        right > max(always, majority),
    )


def _gold_warnings(gold: GoldAnalysis | None) -> Iterator[str]:
    """Warnings of labels that are no better on gold than those that need no model."""
    if gold is None:
        return
    queries = counted(gold.queries, "gold query")
    for baseline in gold.baselines:
        if baseline.gain == baseline.error == 0:
            yield f"the labels are those of {baseline.name} on all {queries}"
        elif baseline.gain <= 0:
            yield (
                f"the labels are no better than {baseline.name}: on {queries}"
                f" they are right for {gold.label_accuracy.point:.1%}, and {baseline.name} is for"
                f" {baseline.right:.1%} ({baseline.interval})"
            )


def _function(
    index: int,
    patterns: Patterns,
    weights: Floats,
    dependence: Dependence | None,
    missing_rate: MissingRate | None,
    gold: tuple[GoldQueries, Any] | None,
    errors: RowErrors | None,
) -> FunctionSummary:
    counts, votes = patterns.counts, patterns.votes[:, index]
    others = np.delete(patterns.votes, index, axis=1)
    accepted, rejected = votes == 1, votes == -1
    cast = accepted | rejected
    both = (votes != MISSING) & (others != MISSING).any(axis=1)
    opposed = (accepted & (others == -1).any(axis=1)) | (rejected & (others == 1).any(axis=1))

    def rows(own: Any) -> int:
        return int(counts @ own)

    def part(own: Any, of: Any) -> float:
        return rows(own) / max(rows(of), 1)

    def mean(own: Any, values: Floats) -> float | None:
        return float(counts[own] @ values[own]) / rows(own) if rows(own) else None

    def on_gold(vote: int, right: bool) -> Interval | None:
        if gold is None or not (own := gold[0].votes[:, index] == vote).any():
            return None
        return share(int((own & (gold[1] == right)).sum()), int(own.sum()))

    return FunctionSummary(
        name=patterns.functions[index],
        family=patterns.families[index],
        identity=patterns.identities[index],
        accepts=rows(accepted),
        rejects=rows(rejected),
        abstains=rows(votes == 0),
        missing=rows(votes == MISSING),
        coverage=part(cast, votes != MISSING),
        overlaps=part(cast & np.isin(others, (-1, 1)).any(axis=1), both),
        conflicts=part(opposed, both),
        learned_accept=mean(accepted, weights),
        learned_reject=mean(rejected, 1 - weights),
        missing_rate=missing_rate,
        gold_accept=on_gold(1, True),
        gold_reject=on_gold(-1, False),
        gold_missing=on_gold(MISSING, True),
        dependence=dependence,
        errors=errors,
    )


def _frequent(patterns: Patterns, weights: Floats) -> tuple[PatternSummary, ...]:
    order = np.argsort(-patterns.counts, kind="stable")[:FREQUENT]
    return tuple(
        PatternSummary(
            tuple(None if vote == MISSING else vote for vote in patterns.votes[index].tolist()),
            int(patterns.counts[index]),
            float(weights[index]),
        )
        for index in order
    )
