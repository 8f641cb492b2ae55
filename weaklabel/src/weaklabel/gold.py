"""Judging weights by correct transcripts of some queries: WER, calibration, thresholds.

Gold should be a random sample of the log, and not what the model was fitted with: otherwise these
figures say how it was picked, or are better than the model is.

Gold is joined with votes and log by `query_id` as text. Gold queries that these do not have are
left out, and a warning counts them; gold of which nothing is left is an error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
import polars as pl

from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.models import logistic, logistic_expression
from weaklabel.patterns import Patterns, accepts
from weaklabel.queries import require_columns, require_ids, shown
from weaklabel.tables import to_polars
from weaklabel.text import Normalizer, find_normalizer
from weaklabel.votes import MISSING, PREFIX
from weaklabel.wer import Interval, Utterance, require_transcripts, utterance_errors, wer_interval

BINS = 10
FEW = 30  # queries; less than that is no base for a threshold or a calibration, and shown faint

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Truth = npt.NDArray[np.bool_]


# Gold beside votes


@dataclass(frozen=True)
class Gold:
    """Votes of queries whose transcripts were checked; they are among those a model is fitted to.

    The queries should be a random sample of the log: a model anchored to hand-picked ones learns
    how they were picked.

    Attributes:
        right: patterns of the queries whose transcript is right.
        wrong: patterns of those whose transcript is wrong, of the same functions.
    """

    right: Patterns
    wrong: Patterns

    def __post_init__(self) -> None:
        if sorted(self.right.functions) != sorted(self.wrong.functions):
            raise WeakLabelError(
                "right and wrong must be of the same functions, got"
                f" {sorted(self.right.functions)} and {sorted(self.wrong.functions)}"
            )

    @property
    def rows(self) -> int:
        """Number of queries that were checked."""
        return self.right.rows + self.wrong.rows

    def without_missing(self) -> Gold:
        """The same with missing inputs as abstains, for models that know of none."""
        return Gold(self.right.without_missing(), self.wrong.without_missing())

    def known_in(self, patterns: Patterns) -> Counts:
        """Count the rows of each pattern that are known: int64 (2, P), wrong first.

        Raises:
            WeakLabelError: the functions differ, or the patterns do not hold all of gold.
        """
        if sorted(self.right.functions) != sorted(patterns.functions):
            raise WeakLabelError(
                f"gold is of functions {sorted(self.right.functions)}, and the votes are of"
                f" {sorted(patterns.functions)}: apply the same functions to both"
            )
        both = [part.ordered(patterns.functions) for part in (self.wrong, self.right)]
        tables = [
            {votes.tobytes(): int(n) for votes, n in zip(part.votes, part.counts, strict=True)}
            for part in both
        ]
        known = np.array(
            [[table.get(votes.tobytes(), 0) for votes in patterns.votes] for table in tables],
            dtype=np.int64,
        )
        if (known.sum(axis=0) > patterns.counts).any() or known.sum() < self.rows:
            raise WeakLabelError(
                "gold has votes that do not occur, or not so often, among the rows counted: if it"
                " is of other queries, fit to Patterns.merge([patterns, gold.right, gold.wrong])"
            )
        return known


@dataclass(frozen=True, eq=False)
class GoldQueries:
    """Gold queries with their votes and transcripts: one entry a query in every field.

    Attributes:
        ids: their `query_id`, as gold has them.
        correct: what was said.
        transcripts: what the log has.
        functions: names of the F functions.
        votes: int8, (N, F), with `MISSING` where a function had no input.
        errors: word errors of the log's transcripts, int64, (N,).
        words: words of the correct ones, int64, (N,).
        left_out: further gold queries that the log or the votes do not have.
        normalizer: the rule by which words are the same.
    """

    ids: tuple[Any, ...]
    correct: tuple[str, ...]
    transcripts: tuple[str, ...]
    functions: tuple[str, ...]
    votes: npt.NDArray[np.int8]
    errors: Counts
    words: Counts
    left_out: int
    normalizer: Normalizer

    def right(self, max_wer: float = 0.0) -> Truth:
        """Transcripts that have at most `max_wer` word errors per word: bool, (N,)."""
        if not 0 <= max_wer < math.inf:
            raise WeakLabelError(f"max_wer must be 0 or more and finite, got {max_wer!r}")
        return np.asarray(self.errors <= max_wer * np.maximum(self.words, 1))

    def patterns(self, max_wer: float = 0.0) -> Gold:
        """The same queries as gold that a model is fitted with, see `Gold`."""
        right = self.right(max_wer)
        return Gold(
            Patterns.of(self.functions, self.votes[right]),
            Patterns.of(self.functions, self.votes[~right]),
        )


def join_gold(
    votes: Any,
    gold: Any,
    queries: Any = None,
    *,
    functions: tuple[str, ...] | None = None,
    normalizer: str | Normalizer = "basic",
) -> GoldQueries:
    """Gold beside the votes and the transcripts of the log, in gold's order.

    Args:
        votes: `query_id` and columns `lf:…`; any frame narwhals knows.
        gold: `query_id`, `transcript`: the correct transcripts of some queries. Those that the
            votes or the log do not have are left out with a warning.
        queries: `query_id`, `transcript`: the log; by default the table of votes, which then has a
            column `transcript`.
        functions: whose votes, in this order; by default all in the table's order.
        normalizer: by whose rule words are the same, see `weaklabel.text`.

    Raises:
        WeakLabelError: columns or transcripts are missing, a query is given twice, or no gold query
            is among the votes and the log.
    """
    rule = find_normalizer(normalizer)
    schema = nw.from_native(votes).collect_schema().names()
    if queries is None and "transcript" not in schema:
        raise WeakLabelError(
            "gold is compared with the log's transcripts, which the table of votes does not have:"
            " give the query log, too (queries=, --queries)"
        )
    if functions is None:
        functions = tuple(n.removeprefix(PREFIX) for n in schema if n.startswith(PREFIX))
    truth = _table(gold, ("query_id", "transcript"), "gold")
    if truth.is_empty():
        raise WeakLabelError("gold has no rows")
    ids = truth["key"]
    # Only the rows that gold names are in memory.
    log = _table(queries if queries is not None else votes, truth.columns[:2], "queries", ids)
    cast = _table(votes, ["query_id", *(PREFIX + name for name in functions)], "votes", ids)
    joined = truth.join(
        log.drop("query_id"), on="key", suffix=" of the log", maintain_order="left"
    ).join(cast.drop("query_id"), on="key", maintain_order="left")
    if joined.is_empty():
        raise WeakLabelError(
            f"none of the {len(truth)} gold queries is among the votes and the log: gold has"
            f" query_id {shown(truth['query_id'])}"
        )
    absent = truth.filter(~ids.is_in(joined["key"].implode()))["query_id"]
    if len(absent):
        warnings.warn(
            f"{len(absent)} of {len(truth)} gold queries are not among the votes and the log, and"
            f" are left out: {shown(absent)}",
            WeakLabelWarning,
            stacklevel=2,
        )
    correct, transcripts = joined["transcript"].to_list(), joined["transcript of the log"].to_list()
    errors, words = utterance_errors(correct, transcripts, rule)
    return GoldQueries(
        tuple(joined["query_id"].to_list()),
        tuple(correct),
        tuple(transcripts),
        functions,
        joined.select(pl.col(f"^{PREFIX}.*$").fill_null(MISSING).cast(pl.Int8)).to_numpy(),
        errors,
        words,
        len(absent),
        rule,
    )


def _table(
    native: Any, columns: Sequence[str], name: str, ids: pl.Series | None = None
) -> pl.DataFrame:
    """The columns of any frame, in memory, checked: each query once, no transcript missing.

    `key` is the `query_id` as text: tables may have it as numbers and as text. With `ids`, only
    the rows with these keys are read.
    """
    table = nw.from_native(native)
    present = table.collect_schema().names()
    if ids is not None and "query_id" in present:
        table = table.filter(nw.col("query_id").cast(nw.String).is_in(ids.to_list()))
    frame = to_polars(table.select([column for column in columns if column in present]))
    require_columns(frame, columns, name)
    require_ids(frame, name)
    if "transcript" in columns:
        require_transcripts(frame, name)
    return frame.with_columns(key=pl.col("query_id").cast(pl.String))


# Shares and scores


def share(part: int, whole: int) -> Interval:
    """`part` of `whole`, at least one, with its score interval (Wilson, JASA 1927)."""
    z = NormalDist().inv_cdf(0.975)
    point = part / whole
    center = part + z * z / 2
    spread = z * float(np.sqrt(point * (1 - point) * whole + z * z / 4))
    low, high = (center - spread) / (whole + z * z), (center + spread) / (whole + z * z)
    # The point lies inside by algebra; rounding may put it a last place outside.
    return Interval(point, max(min(low, point), 0.0), min(max(high, point), 1.0), whole)


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


@dataclass(frozen=True)
class Bin:
    """Queries whose weights are about the same.

    Attributes:
        low: the lower edge of the bin.
        high: the upper edge.
        mean_weight: the mean of their weights, which the model takes for the share that is right.
        right: the share of the gold queries that is right, with a Wilson interval.
    """

    low: float
    high: float
    mean_weight: float
    right: Interval


def reliability(weights: Floats, right: Truth) -> tuple[Bin, ...]:
    """The reliability diagram's bins, of equal width; the last one holds weight 1, too.

    Bins without queries are left out.
    """
    index = np.minimum((weights * BINS).astype(np.int64), BINS - 1)
    found = []
    for number in np.unique(index).tolist():
        own = index == number
        rate = share(int(right[own].sum()), int(own.sum()))
        found.append(Bin(number / BINS, (number + 1) / BINS, float(weights[own].mean()), rate))
    return tuple(found)


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """Expected calibration error: mean over queries of |mean weight - share right| of their bin.

    Naeini et al., AAAI 2015.
    """
    gaps = [part.right.trials * abs(part.mean_weight - part.right.point) for part in bins]
    return sum(gaps) / sum(part.right.trials for part in bins)


def tenths(weights: Floats, counts: Counts, of: Floats) -> Counts:
    """Tenths of all queries by weight, where queries of one weight are never parted.

    A weight belongs to the tenth in which the middle of its queries lies when all are sorted. Few
    patterns of votes mean few weights: tenths may be larger than others, or empty.

    Args:
        weights: the weights that occur among all queries, (N,).
        counts: how many queries have each of these, (N,), at least one in all.
        of: weights of some of the queries, (M,).

    Returns:
        The tenth, 0 to 9, of each of `of`, (M,).
    """
    # Weights that differ by rounding are one.
    levels, index = np.unique(weights.round(12), return_inverse=True)
    rows = np.bincount(index, counts, len(levels)).astype(np.int64)
    # Whole numbers, so that the middle of a level is exact: 10 (2 before + own) / (2 all)
    places = np.minimum(5 * (2 * np.cumsum(rows) - rows) // rows.sum(), 9)
    nearest = np.searchsorted(levels, of.round(12), side="right") - 1
    return np.asarray(places[np.maximum(nearest, 0)])


# What is made of gold for labeling


@dataclass(frozen=True)
class Threshold:
    """A threshold of the weight that keeps the word errors of what is accepted under a target.

    Attributes:
        weight: queries are accepted from this weight on.
        target: the corpus WER asked for.
        wer: corpus WER of the gold queries accepted so, and the 95% bootstrap interval of it.
        bound: what the corpus WER of all queries accepted so does not exceed, with 97.5%
            confidence: the interval's upper end, or what Wilson's for the share of erring
            transcripts makes of it, whichever is higher.
        accepted: how many gold queries it accepts.
        queries: how many gold queries there are.
    """

    weight: float
    target: float
    wer: Interval
    bound: float
    accepted: int
    queries: int

    def __str__(self) -> str:
        sure = "which keeps the target" if self.bound <= self.target else "which is above it"
        return (
            f"weight of {self.weight:.4g} or more: corpus WER {self.wer.point:.1%} of the"
            f" {self.accepted} of {self.queries} gold queries that it accepts (target"
            f" {100 * self.target:g}%); with 97.5% confidence at most {self.bound:.1%}, {sure}"
        )


def threshold_for_wer(weights: Floats, errors: Counts, words: Counts, target: float) -> Threshold:
    """Find the lowest threshold at which the accepted gold queries' corpus WER is within a target.

    With weights .9, .8 and .3 and 0, 1 and 5 errors in 10 words each, a target of .05 gives the
    threshold .8 (1 error in 20 words; gold this small is refused, though).

    Args:
        weights: P(right) of the gold queries, (N,).
        errors: their word errors, (N,), as in `GoldQueries`.
        words: their reference words, (N,).
        target: corpus WER, above 0; .05 is 5%.

    Raises:
        WeakLabelError: the target is not above 0, there are fewer than 30 gold queries, or no
            threshold that accepts 30 of them reaches the target.
    """
    if not target > 0:
        raise WeakLabelError(f"the target WER must be above 0, got {target!r} (5% is 0.05)")
    _require_enough(len(weights), "a threshold")
    order = np.argsort(-weights, kind="stable")
    levels = weights[order]
    rates = np.cumsum(errors[order]) / np.maximum(np.cumsum(words[order]), 1)
    # A threshold accepts all queries of its weight: it lies at the last one of a run.
    last = np.append(levels[1:] < levels[:-1], True)
    possible = np.flatnonzero(last & (np.arange(len(levels)) >= FEW - 1))
    reached = possible[rates[possible] <= target]
    if not len(reached):
        best = possible[np.argmin(rates[possible])]
        raise WeakLabelError(
            f"no threshold reaches a corpus WER of {100 * target:g}% on gold: the lowest is"
            f" {rates[best]:.1%}, at weight {levels[best]:.4g} with {best + 1} of {len(levels)}"
            " queries accepted; ask for a higher target, or give more gold"
        )
    accepted = order[: reached[-1] + 1]
    found = wer_interval(errors[accepted], words[accepted])
    return Threshold(
        float(levels[reached[-1]]),
        target,
        found,
        max(found.high, _at_most(accepted, errors, words)),
        len(accepted),
        len(levels),
    )


def _at_most(accepted: Counts, errors: Counts, words: Counts) -> float:
    """Corpus WER of the accepted queries if as many err as Wilson's upper end allows for.

    The bootstrap knows only the errors it was given, and where these are few it promises too much.
    An erring transcript is taken to have as many errors as those of all gold.
    """
    erring = share(int((errors[accepted] > 0).sum()), len(accepted))
    each = float(errors[errors > 0].mean()) if errors.any() else 1.0
    return each * erring.high / max(float(words[accepted].mean()), 1.0)


@dataclass(frozen=True)
class Calibration:
    """Weights made to say what gold says: P(right) = 1 / (1 + exp(-(intercept + slope l))).

    l is the weight's log-odds, log(w / (1 - w)): two parameters (Platt 1999), which never change
    the order of queries.

    Attributes:
        intercept: added to the log-odds.
        slope: what they are multiplied with, above 0; below 1 the weights promised too much.
        queries: gold queries it was fitted to.
    """

    intercept: float
    slope: float
    queries: int

    def __call__(self, weights: Floats) -> Floats:
        """Calibrated weights of (N,) weights."""
        return logistic(self.intercept + self.slope * _log_odds(weights))

    def expression(self, weight: nw.Expr) -> nw.Expr:
        """The same as an expression, for any engine."""
        inside = weight.clip(_EDGE, 1 - _EDGE)
        term = (inside.log() - (1.0 - inside).log()) * self.slope
        return logistic_expression([term], self.intercept)


_EDGE = 1e-12
_STEPS = 100


def calibration(weights: Floats, correct: Truth) -> Calibration:
    """Fit a calibration of weights to gold, by logistic regression on their log-odds.

    Args:
        weights: P(right) of the gold queries, (N,).
        correct: which of them are right, bool, (N,), as `GoldQueries.right` says.

    Raises:
        WeakLabelError: there are fewer than 30 gold queries, all are right or all wrong, or higher
            weights are wrong more often.
    """
    _require_enough(len(weights), "a calibration")
    if correct.all() or not correct.any():
        raise WeakLabelError(
            f"a calibration needs right and wrong gold queries, and all {len(correct)} are"
            f" {'right' if correct.all() else 'wrong'}: give more gold"
        )
    odds = _log_odds(weights)
    design = np.stack([np.ones(len(odds)), odds], axis=1)  # (N, 2)
    # Platt's targets keep perfectly parted gold from infinite slopes.
    rights, wrongs = int(correct.sum()), int((~correct).sum())
    target = np.where(correct, (rights + 1) / (rights + 2), 1 / (wrongs + 2))
    # Where weights do not differ, gold says nothing of the slope: it stays near 1.
    start, pull = np.array([0.0, 1.0]), np.diag([1e-9, 1e-3])

    def loss(at: Floats) -> float:
        score = design @ at
        away = at - start
        return float((np.logaddexp(0, score) - target * score).sum() + away @ pull @ away / 2)

    found = start
    for _ in range(_STEPS):
        now = logistic(design @ found)
        gradient = design.T @ (target - now) - pull @ (found - start)
        step = np.linalg.solve(design.T @ (design * (now * (1 - now))[:, None]) + pull, gradient)
        # The loss is convex: far from its minimum a whole step may pass over it, a part will not.
        while np.abs(step).max() > _EDGE and loss(found + step) > loss(found):
            step = step / 2
        found = found + step
        if np.abs(step).max() <= _EDGE:
            break
    intercept, slope = map(float, found)
    if slope <= 0:
        raise WeakLabelError(
            "the higher the weight, the more often gold queries are wrong (slope"
            f" {slope:.2f}): these weights cannot be calibrated; look at the report on gold"
        )
    return Calibration(intercept, slope, len(odds))


def _log_odds(weights: Floats) -> Floats:
    inside = np.clip(weights, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _require_enough(queries: int, what: str) -> None:
    if queries < FEW:
        raise WeakLabelError(
            f"{what} needs at least {FEW} gold queries, got {queries}: check more transcripts"
        )


# The analysis of gold


@dataclass(frozen=True)
class Baseline:
    """A labeling that needs no model, beside the model's on the same gold queries.

    Attributes:
        name: "accepting everything", or "a majority vote" (where a tie is an accept).
        right: share of the queries that it labels rightly.
        gain: share that the labels are right for, less `right`.
        error: standard error of `gain`, which is of pairs.
    """

    name: str
    right: float
    gain: float
    error: float

    @classmethod
    def of(cls, name: str, labels: Truth, its: Truth, right: Truth) -> Baseline:
        """Compare (N,) labels with its labels by what they should be, each True for accept."""
        difference = (labels == right).astype(np.float64) - (its == right)
        return cls(
            name,
            float((its == right).mean()),
            float(difference.mean()),
            float(difference.std() / np.sqrt(len(right))),
        )

    @property
    def interval(self) -> str:
        """The gain in points, with its 95% interval."""
        low, high = (100 * (self.gain + sign * 1.96 * self.error) for sign in (-1, 1))
        return f"{100 * self.gain:+.1f} points, 95% {low:+.1f} to {high:+.1f}"


@dataclass(frozen=True)
class GroupScore:
    """The transcripts of one group of queries against gold.

    Attributes:
        name: "all", "accepted", "rejected", or "decile 1" (the lowest weights) to "decile 10".
        weights: the lowest and the highest weight of the gold queries in it; None for none.
        queries: gold queries in it.
        corpus_wer: word errors over reference words, with a 95% bootstrap interval; None without
            queries.
        mean_utterance_wer: the mean of the utterances' own rates; None without queries.
        exact: the share of transcripts without a word error, with a 95% Wilson interval; None
            without queries.
    """

    name: str
    weights: tuple[float, float] | None
    queries: int
    corpus_wer: Interval | None
    mean_utterance_wer: float | None
    exact: Interval | None


@dataclass(frozen=True)
class Example(Utterance):
    """A gold query that was labeled wrongly, with the texts as gold and the log have them.

    Attributes:
        weight: P(right) by the model.
        accepting: functions that accept it.
        rejecting: functions that reject it.
    """

    weight: float
    accepting: tuple[str, ...]
    rejecting: tuple[str, ...]


@dataclass(frozen=True)
class GoldAnalysis:
    """Weights and labels judged on gold queries.

    Attributes:
        queries: gold queries with a transcript and votes; all figures are of these.
        left_out: gold queries that the log or the votes do not have.
        right: how many transcripts are right.
        max_wer: right means word errors over reference words of at most this.
        normalizer: name of the rule by which words are the same.
        normalizer_description: the rule in a sentence.
        label_accuracy: share of the labels that are right, with a 95% Wilson interval.
        baselines: accepting everything, and a majority vote.
        auc: P(a right query has a higher weight than a wrong one); None of a single class.
        brier: mean squared distance of weight and class.
        calibration_error: expected calibration error over `bins`.
        bins: of the reliability diagram.
        everything: all gold queries.
        accepted: those whose weight reaches the threshold.
        rejected: the others.
        deciles: ten tenths of the log by weight, the lowest first, see `tenths`.
        wrongly_accepted: wrong transcripts, the highest weights first.
        wrongly_rejected: right transcripts, the lowest weights first.
    """

    queries: int
    left_out: int
    right: int
    max_wer: float
    normalizer: str
    normalizer_description: str
    label_accuracy: Interval
    baselines: tuple[Baseline, ...]
    auc: float | None
    brier: float
    calibration_error: float
    bins: tuple[Bin, ...]
    everything: GroupScore
    accepted: GroupScore
    rejected: GroupScore
    deciles: tuple[GroupScore, ...]
    wrongly_accepted: tuple[Example, ...]
    wrongly_rejected: tuple[Example, ...]


def analyze_gold(
    checked: GoldQueries,
    weights: Floats,
    deciles: Counts,
    *,
    threshold: float = 0.5,
    max_wer: float = 0.0,
    examples: int = 10,
) -> GoldAnalysis:
    """Score the weights, (N,), of N checked queries; `deciles` are of the log, see `tenths`."""
    right = checked.right(max_wer)
    accepted = weights >= threshold
    everything = np.ones(len(weights), np.bool_)
    bins = reliability(weights, right)

    def score(name: str, own: Truth) -> GroupScore:
        errors, words = checked.errors[own], checked.words[own]
        if not len(errors):
            return GroupScore(name, None, 0, None, None, None)
        return GroupScore(
            name,
            (float(weights[own].min()), float(weights[own].max())),
            len(errors),
            wer_interval(errors, words),
            float(np.mean(errors / np.maximum(words, 1))),
            share(int((errors == 0).sum()), len(errors)),
        )

    def listed(own: Truth, sign: int) -> tuple[Example, ...]:
        # Stable, so that among equals the order of gold decides.
        order = [index for index in np.argsort(sign * weights, kind="stable") if own[index]]
        return tuple(
            Example(
                str(checked.ids[index]),
                int(checked.errors[index]),
                int(checked.words[index]),
                checked.correct[index],
                checked.transcripts[index],
                float(weights[index]),
                *(
                    tuple(np.array(checked.functions)[checked.votes[index] == vote].tolist())
                    for vote in (1, -1)
                ),
            )
            for index in order[:examples]
        )

    return GoldAnalysis(
        queries=len(weights),
        left_out=checked.left_out,
        right=int(right.sum()),
        max_wer=max_wer,
        normalizer=checked.normalizer.name,
        normalizer_description=checked.normalizer.description,
        label_accuracy=share(int((accepted == right).sum()), len(right)),
        baselines=(
            Baseline.of("accepting everything", accepted, everything, right),
            Baseline.of("a majority vote", accepted, accepts(checked.votes), right),
        ),
        auc=auc(weights, right),
        brier=float(np.mean((weights - right) ** 2)),
        calibration_error=calibration_error(bins),
        bins=bins,
        everything=score("all", everything),
        accepted=score("accepted", accepted),
        rejected=score("rejected", ~accepted),
        deciles=tuple(score(f"decile {tenth + 1}", deciles == tenth) for tenth in range(10)),
        wrongly_accepted=listed(accepted & ~right, -1),
        wrongly_rejected=listed(right & ~accepted, 1),
    )
