"""What correct transcripts of some queries say: WER by label and weight, calibration.

Gold should be a random sample of the log, and not what the model was fitted with: otherwise these
figures say how it was picked, or are better than the model is.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.models import FittedModel
from weaklabel.patterns import Patterns
from weaklabel.queries import refuse_rows, require_columns, require_ids, shown
from weaklabel.text import normalizer as find_normalizer
from weaklabel.votes import PREFIX
from weaklabel.wer import Interval, utterance_errors, wer_interval

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


@dataclass(frozen=True)
class Gold:
    """Votes of queries whose transcripts were checked.

    The queries should be a random sample of the log: a model anchored to hand-picked ones learns
    how they were picked.

    Attributes:
        right: patterns of the queries whose transcript is right.
        wrong: patterns of those whose transcript is wrong, of the same functions.
        counted: whether these queries are among the votes a model is fitted to. They are then not
            counted twice.
    """

    right: Patterns
    wrong: Patterns
    counted: bool = True

    def __post_init__(self) -> None:
        if sorted(self.right.functions) != sorted(self.wrong.functions):
            raise WeakLabelError(
                "right and wrong must be of the same functions, got"
                f" {sorted(self.right.functions)} and {sorted(self.wrong.functions)}"
            )

    @property
    def rows(self) -> int:
        """How many queries were checked."""
        return self.right.rows + self.wrong.rows

    def join(self, patterns: Patterns) -> tuple[Patterns, npt.NDArray[np.int64]]:
        """All rows, and how many of each pattern are known: patterns, int64 (2, P), wrong first.

        Raises:
            WeakLabelError: the functions differ, or gold that is said to be among the rows is not.
        """
        if sorted(self.right.functions) != sorted(patterns.functions):
            raise WeakLabelError(
                f"gold is of functions {sorted(self.right.functions)}, and the votes are of"
                f" {sorted(patterns.functions)}: apply the same functions to both"
            )
        both = [part.ordered(patterns.functions) for part in (self.wrong, self.right)]
        everything = patterns if self.counted else Patterns.merge([patterns, *both])
        known = np.stack([_counts_in(everything, part) for part in both])
        if (known.sum(axis=0) > everything.counts).any() or known.sum() < self.rows:
            raise WeakLabelError(
                "gold has votes that do not occur, or not so often, among the rows counted: were"
                " they counted from other queries, say Gold(right, wrong, counted=False)"
            )
        return everything, known


def gold_patterns(votes: Any, correct: Any, *, counted: bool = True) -> Gold:
    """Gold from a table of votes and one that says which transcripts are right.

    Args:
        votes: `query_id` and columns `lf:…`; any frame narwhals knows.
        correct: `query_id`, `correct` (bool), as `correctness` makes it. Queries that the votes do
            not have are an error; a null in `correct` is one, too.
        counted: whether a model will be fitted to these same votes.

    Raises:
        WeakLabelError: columns are missing, a query is not among the votes or given twice.
    """
    checked = _collected(correct, ("query_id", "correct"), "correct")
    if checked["correct"].dtype != pl.Boolean or checked["correct"].null_count():
        raise WeakLabelError(
            f"the column 'correct' must be true or false, got {checked['correct'].dtype} with"
            f" {checked['correct'].null_count()} nulls"
        )
    table = nw.from_native(votes)
    columns = [name for name in table.collect_schema().names() if name.startswith(PREFIX)]
    # Only the few rows that gold names come into memory.
    ids = checked["query_id"].to_list()
    found = _collected(
        table.filter(nw.col("query_id").is_in(ids)).to_native(), ("query_id", *columns), "votes"
    )
    joined = checked.join(found, on="query_id", how="left", validate="1:1", nulls_equal=False)
    if joined.is_empty():
        raise WeakLabelError("gold has no rows")
    if len(found) < len(checked):
        missing = checked.join(found, on="query_id", how="anti")["query_id"].to_list()
        raise WeakLabelError(
            f"{len(missing)} queries of gold are not among the votes, the first of them"
            f" {missing[:5]}: leave them out of gold, or apply the functions to them"
        )
    return Gold(
        Patterns.count(joined.filter(pl.col("correct"))),
        Patterns.count(joined.filter(~pl.col("correct"))),
        counted,
    )


def correctness(
    queries: Any, gold: Any, *, threshold: float = 0.0, normalizer: str = "basic"
) -> pl.DataFrame:
    """Which transcripts of a query log are right.

    A transcript is right when its word error rate against gold is at most `threshold`.

    Args:
        queries: `query_id`, `transcript`; any frame narwhals knows.
        gold: the same columns, with the correct transcripts.
        threshold: in word errors per word of the correct transcript.
        normalizer: by whose rule words are the same, see `weaklabel.text`.

    Returns:
        `query_id`, `correct`, a row for every row of gold that is in the log, in gold's order.

    Raises:
        WeakLabelError: columns or transcripts are missing, or a query is given twice.
    """
    from jiwer import wer

    same = find_normalizer(normalizer)
    truth = _collected(gold, ("query_id", "transcript"), "gold")
    ids = truth["query_id"].to_list()
    log = _collected(
        nw.from_native(queries).filter(nw.col("query_id").is_in(ids)).to_native(),
        ("query_id", "transcript"),
        "queries",
    )
    both = truth.join(log, on="query_id", how="inner", suffix="_asr", maintain_order="left")
    if empty := both.filter(pl.any_horizontal(pl.all().is_null()))["query_id"].to_list():
        raise WeakLabelError(f"transcripts are missing (null) for queries {empty[:5]}")
    rates = [
        wer(same(reference), same(heard))
        for reference, heard in both.select("transcript", "transcript_asr").iter_rows()
    ]
    return both.select("query_id", correct=pl.Series(rates, dtype=pl.Float64) <= threshold)


def _counts_in(everything: Patterns, part: Patterns) -> npt.NDArray[np.int64]:
    """How often `part` has each pattern of `everything`: int64, (P,)."""
    table = {votes.tobytes(): int(n) for votes, n in zip(part.votes, part.counts, strict=True)}
    return np.array([table.get(votes.tobytes(), 0) for votes in everything.votes], dtype=np.int64)


def _collected(frame: Any, columns: tuple[str, ...], what: str) -> pl.DataFrame:
    """The columns of any frame, in memory, with each query once."""
    table = nw.from_native(frame)
    present = table.collect_schema().names()
    if lacking := [name for name in columns if name not in present]:
        raise WeakLabelError(f"{what} lacks the columns {lacking}; it has {present}")
    selected = table.select(*columns)
    eager = selected.collect() if isinstance(selected, nw.LazyFrame) else selected
    result = eager.to_polars()
    if twice := result.filter(result["query_id"].is_duplicated())["query_id"].unique().to_list():
        raise WeakLabelError(f"{what} has queries more than once, among them {sorted(twice)[:5]}")
    return result


@dataclass(frozen=True)
class GroupScore:
    """The transcripts of one group of queries against gold.

    Attributes:
        name: "all", "accepted", "rejected", or "decile 1" (the lowest weights) to "decile 10".
        weights: the lowest and the highest weight of the log's queries in a decile (of the gold
            queries in another group); None for an empty one.
        rows: for a decile the queries of the log in it; None for other groups.
        queries: gold queries in it.
        corpus_wer: word errors over reference words, with a 95% bootstrap interval; None without
            queries.
        mean_utterance_wer: the mean of the utterances' own rates; None without queries.
        exact: the share of transcripts without a word error, with a 95% Wilson interval; None
            without queries.
    """

    name: str
    weights: tuple[float, float] | None
    rows: int | None
    queries: int
    corpus_wer: Interval | None
    mean_utterance_wer: float | None
    exact: Proportion | None


@dataclass(frozen=True)
class VoteAccuracy:
    """How often a function's votes are right, with 95% Wilson intervals; None without votes.

    Attributes:
        accept: share right of the gold queries it accepts.
        reject: share wrong of those it rejects.
    """

    accept: Proportion | None
    reject: Proportion | None


@dataclass(frozen=True)
class Example:
    """A gold query that was labelled wrongly.

    Attributes:
        query_id: as text.
        transcript: the log's.
        correct: the gold one.
        weight: P(right) by the model.
        errors: word errors.
        words: reference words.
        accepting: functions that accept it.
        rejecting: functions that reject it.
    """

    query_id: str
    transcript: str
    correct: str
    weight: float
    errors: int
    words: int
    accepting: tuple[str, ...]
    rejecting: tuple[str, ...]


@dataclass(frozen=True)
class GoldAnalysis:
    """What gold says.

    Attributes:
        queries: gold queries with a transcript and votes; all figures are of these.
        missing: gold queries that the log or the votes do not have; they are left out.
        right: how many transcripts are right.
        wer_threshold: right means word errors over reference words of at most this.
        normalizer: the rule by which words are the same,
        normalizer_description: in a sentence.
        resamples: of the bootstrap.
        label_accuracy: share of the labels that are right, with a 95% Wilson interval. Accepting
            everything scores right / queries.
        auc: P(a right query has a higher weight than a wrong one); None of a single class.
        brier: mean squared distance of weight and class.
        calibration_error: expected calibration error over `bins`.
        bins: of the reliability diagram.
        everything: all gold queries.
        accepted: those whose weight reaches the threshold.
        rejected: the others.
        deciles: ten tenths of the log by weight, the lowest first, see `Deciles`.
        functions: accuracy of every function's votes, in the model's order.
        wrongly_accepted: wrong transcripts, the highest weights first.
        wrongly_rejected: right transcripts, the lowest weights first.
    """

    queries: int
    missing: int
    right: int
    wer_threshold: float
    normalizer: str
    normalizer_description: str
    resamples: int
    label_accuracy: Proportion | None
    auc: float | None
    brier: float | None
    calibration_error: float | None
    bins: tuple[Bin, ...]
    everything: GroupScore
    accepted: GroupScore
    rejected: GroupScore
    deciles: tuple[GroupScore, ...]
    functions: tuple[VoteAccuracy, ...]
    wrongly_accepted: tuple[Example, ...]
    wrongly_rejected: tuple[Example, ...]


@dataclass(frozen=True, eq=False)
class _Checked:
    """Gold queries, joined: one entry a query in every field."""

    ids: list[Any]
    correct: list[str]
    transcripts: list[str]
    votes: npt.NDArray[np.int8]  # (N, F)
    weights: npt.NDArray[np.float64]
    errors: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]

    def score(
        self,
        name: str,
        own: npt.NDArray[np.bool_],
        resamples: int,
        seed: int,
        weights: tuple[float, float] | None = None,
        rows: int | None = None,
    ) -> GroupScore:
        errors, words = self.errors[own], self.words[own]
        if not len(errors):
            return GroupScore(name, weights, rows, 0, None, None, None)
        if rows is None:
            weights = (float(self.weights[own].min()), float(self.weights[own].max()))
        return GroupScore(
            name,
            weights,
            rows,
            len(errors),
            wer_interval(errors, words, resamples=resamples, seed=seed),
            float(np.mean(errors / np.maximum(words, 1))),
            share(int((errors == 0).sum()), len(errors)),
        )

    def example(self, index: int, functions: tuple[str, ...]) -> Example:
        votes = self.votes[index]
        return Example(
            str(self.ids[index]),
            self.transcripts[index],
            self.correct[index],
            float(self.weights[index]),
            int(self.errors[index]),
            int(self.words[index]),
            tuple(name for name, vote in zip(functions, votes, strict=True) if vote == 1),
            tuple(name for name, vote in zip(functions, votes, strict=True) if vote == -1),
        )


def analyse_gold(
    votes: Any,
    fitted: FittedModel,
    gold: Any,
    queries: Any,
    deciles: Deciles,
    *,
    threshold: float,
    wer_threshold: float,
    normalizer: str,
    resamples: int,
    seed: int,
    examples: int,
) -> GoldAnalysis:
    """Score weights and votes against gold; the arguments are those of `analyse`.

    Raises:
        WeakLabelError: see `analyse`.
    """
    rule = find_normalizer(normalizer)
    checked, missing = _checked(votes, fitted, gold, queries, normalizer)
    weights = checked.weights
    right = checked.errors <= wer_threshold * np.maximum(checked.words, 1)
    accepted = weights >= threshold
    tenths = deciles.find(weights)
    bins = reliability(weights, right)
    # Stable, so that among equals the order of gold decides.
    order = np.argsort(weights, kind="stable")
    wrong_accepts = [i for i in np.argsort(-weights, kind="stable") if accepted[i] and not right[i]]
    wrong_rejects = [i for i in order if right[i] and not accepted[i]]
    return GoldAnalysis(
        queries=len(weights),
        missing=missing,
        right=int(right.sum()),
        wer_threshold=wer_threshold,
        normalizer=rule.name,
        normalizer_description=rule.description,
        resamples=resamples,
        label_accuracy=share(int((accepted == right).sum()), len(weights)),
        auc=auc(weights, right),
        brier=brier(weights, right),
        calibration_error=calibration_error(bins),
        bins=bins,
        everything=checked.score("all", np.ones(len(weights), np.bool_), resamples, seed),
        accepted=checked.score("accepted", accepted, resamples, seed),
        rejected=checked.score("rejected", ~accepted, resamples, seed),
        deciles=tuple(
            checked.score(
                f"decile {tenth + 1}",
                tenths == tenth,
                resamples,
                seed,
                deciles.range(tenth),
                int(deciles.rows[tenth]),
            )
            for tenth in range(10)
        ),
        functions=tuple(_accuracy(own, right) for own in checked.votes.T),
        wrongly_accepted=tuple(
            checked.example(i, fitted.functions) for i in wrong_accepts[:examples]
        ),
        wrongly_rejected=tuple(
            checked.example(i, fitted.functions) for i in wrong_rejects[:examples]
        ),
    )


def _accuracy(votes: npt.NDArray[np.int8], right: npt.NDArray[np.bool_]) -> VoteAccuracy:
    accepts, rejects = votes == 1, votes == -1
    return VoteAccuracy(
        share(int((accepts & right).sum()), int(accepts.sum())),
        share(int((rejects & ~right).sum()), int(rejects.sum())),
    )


def _checked(
    votes: Any, fitted: FittedModel, gold: Any, queries: Any, normalizer: str
) -> tuple[_Checked, int]:
    """Gold joined with votes and transcripts, in gold's order, and how many are not among them."""
    columns = [PREFIX + name for name in fitted.functions]
    truth = _gold_columns(nw.from_native(gold), ("query_id", "transcript"), "gold")
    if queries is None:
        queries = votes
        if "transcript" not in nw.from_native(votes).collect_schema().names():
            raise WeakLabelError(
                "gold is compared with the log's transcripts, which the table of votes does not"
                " have: give the log, too (queries)"
            )
    log = _rows_of(queries, truth["query_id"], ("query_id", "transcript"), "queries")
    cast = _rows_of(votes, truth["query_id"], ("query_id", *columns), "votes")
    key = pl.col("query_id").cast(pl.String)  # the tables may have them as numbers and as text
    both = (
        truth.with_columns(key)
        .join(
            log.with_columns(key),
            on="query_id",
            how="inner",
            suffix="_asr",
            maintain_order="left",
        )
        .join(cast.with_columns(key), on="query_id", how="inner", maintain_order="left")
    )
    if both.is_empty():
        raise WeakLabelError(
            f"none of the {len(truth)} gold queries is among the votes and the log: gold has"
            f" query_id {shown(truth['query_id'])}"
        )
    table = both.select(pl.col(columns).fill_null(0).cast(pl.Int8)).to_numpy()
    correct, transcripts = both["transcript"].to_list(), both["transcript_asr"].to_list()
    errors, words = utterance_errors(correct, transcripts, normalizer)
    joined = _Checked(
        both["query_id"].to_list(),
        correct,
        transcripts,
        table,
        np.clip(fitted.weights(table), 0.0, 1.0),
        errors,
        words,
    )
    return joined, len(truth) - len(both)


def _rows_of(frame: Any, ids: pl.Series, columns: tuple[str, ...], name: str) -> pl.DataFrame:
    """The rows of any frame that gold names; only these come into memory."""
    table = nw.from_native(frame)
    schema = table.collect_schema()
    if "query_id" not in schema:
        raise WeakLabelError(f"{name} must have the column query_id; it has {list(schema)}")
    own = nw.col("query_id")
    if schema["query_id"].is_integer() and ids.dtype.is_integer():
        wanted = own.is_in(ids.to_list())
    else:
        wanted = own.cast(nw.String).is_in(ids.cast(pl.String).to_list())
    return _gold_columns(table.filter(wanted), columns, name)


def _gold_columns(table: Any, columns: tuple[str, ...], name: str) -> pl.DataFrame:
    """The columns, in memory, checked: each query once, no transcript missing."""
    present = table.collect_schema().names()
    selected = table.select([column for column in columns if column in present])
    eager = selected.collect() if isinstance(selected, nw.LazyFrame) else selected
    frame: pl.DataFrame = eager.to_polars()
    require_columns(frame, columns, name)
    require_ids(frame, name)
    if "transcript" in columns:
        kind = frame["transcript"].dtype
        if kind not in (pl.String, pl.Null):
            raise WeakLabelError(f"{name}: transcript must be strings, got {kind}")
        refuse_rows(
            frame,
            pl.col("transcript").is_null(),
            name,
            'have no transcript (where nothing was said, write "")',
        )
    return frame
