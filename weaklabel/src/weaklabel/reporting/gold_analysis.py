"""What correct transcripts of some queries say: WER by label and weight, calibration.

Gold should be a random sample of the log, and not what the model was fitted with: otherwise these
figures say how it was picked, or are better than the model is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
import polars as pl

from weaklabel.checks import refuse_rows, require_columns, require_ids, shown
from weaklabel.errors import WeakLabelError
from weaklabel.models import FittedModel
from weaklabel.reporting.scores import (
    Bin,
    Deciles,
    Proportion,
    auc,
    brier,
    calibration_error,
    reliability,
    share,
)
from weaklabel.text import normalizer as find_normalizer
from weaklabel.votes import PREFIX
from weaklabel.wer import Interval, utterance_errors, wer_interval


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
    truth = _collected(nw.from_native(gold), ("query_id", "transcript"), "gold")
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
    return _collected(table.filter(wanted), columns, name)


def _collected(table: Any, columns: tuple[str, ...], name: str) -> pl.DataFrame:
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
