"""Word error rates of transcripts, aligned by jiwer, with bootstrap intervals."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jiwer
import numpy as np
import numpy.typing as npt
import polars as pl
from rapidfuzz.distance import Levenshtein
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from weaklabel import tables
from weaklabel.errors import WeakLabelError
from weaklabel.queries import refuse_rows, require_columns, require_ids, same_ids, shown
from weaklabel.tables.files import FORMATS, decoded_lines
from weaklabel.text import Normalizer, find_normalizer

Counts = npt.NDArray[np.int64]
FilePath = str | os.PathLike[str]

RESAMPLES = 1000  # of a bootstrap

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interval:
    """A rate or a share and its 95% confidence interval.

    Attributes:
        point: the rate itself.
        low: lower end of the interval.
        high: upper end.
        trials: how many utterances or queries it is of.
    """

    point: float
    low: float
    high: float
    trials: int


def utterance_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: str | Normalizer = "basic"
) -> tuple[Counts, Counts]:
    """Word errors and reference words of each utterance, both int64 of shape (utterances,).

    Errors are the fewest substitutions, deletions and insertions of words.

    >>> errors, words = utterance_errors(["turn it on", "stop"], ["turn it off", "Stop!"])
    >>> errors.tolist(), words.tolist()
    ([1, 0], [3, 1])

    Raises:
        WeakLabelError: the lengths differ, a transcript is no string, or no such normalizer.
    """
    return _errors(*_normalized(references, hypotheses, find_normalizer(normalizer)))


def wer_interval(
    errors: npt.ArrayLike, words: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Corpus WER with the percentile bootstrap's interval, utterances resampled as wholes.

    Words of one utterance go wrong together, so that they may not be resampled one by one (Bisani
    and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP
    2004). Utterances with equal counts are drawn together, as a multinomial: the time depends on
    how many different pairs (errors, words) there are, not on how many utterances.

    Args:
        errors: integers, shape (utterances,): word errors of each.
        words: integers, the same shape: reference words of each.
        resamples: how many resampled corpora the interval's ends are percentiles of.
        seed: of the resampling; one seed, one interval, whatever the order of the utterances.

    Raises:
        WeakLabelError: there are no utterances, or their counts are not one of each.
    """
    errors, words = np.asarray(errors), np.asarray(words)
    if errors.shape != words.shape or errors.ndim != 1:
        raise WeakLabelError(
            f"errors have shape {errors.shape} and words {words.shape}: give one of each for every"
            " utterance"
        )
    if not len(errors):
        raise WeakLabelError("there are no utterances: their WER does not exist")
    pairs, counts = np.unique(np.stack([errors, words], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(errors), counts / len(errors), resamples) @ pairs  # (resamples, 2)
    low, high = np.quantile(drawn[:, 0] / np.maximum(drawn[:, 1], 1), [0.025, 0.975])
    point = int(errors.sum()) / max(int(words.sum()), 1)
    return Interval(point, float(low), float(high), len(errors))


@dataclass(frozen=True)
class Utterance:
    """An utterance with errors.

    Attributes:
        id: its query_id, or its number: of the line, or counted from 0.
        errors: substitutions, deletions and insertions.
        words: of the reference.
        reference: what was said; normalized in a `Comparison`.
        hypothesis: what was written, likewise.
    """

    id: str | int
    errors: int
    words: int
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Confusion:
    """An error and how often it was made.

    Attributes:
        reference: the words that were said; "" for an insertion.
        hypothesis: the words that stand in their place; "" for a deletion.
        count: how often, over all utterances.
    """

    reference: str
    hypothesis: str
    count: int


@dataclass(frozen=True)
class Comparison:
    """Word and character errors of hypotheses against their references.

    Attributes:
        normalizer: name of the normalizer of both.
        utterances: how many.
        corpus_wer: all word errors over all reference words, with its 95 % bootstrap interval.
        mean_utterance_wer: the mean of each utterance's own rate.
        corpus_cer: all character errors over all reference characters; spaces between words count.
        words: of the references.
        hits: reference words that are right.
        substitutions: reference words with another in their place.
        deletions: reference words with none in their place.
        insertions: hypothesis words in no reference word's place.
        empty_references: utterances whose reference has no words.
        confusions: the most frequent errors, most frequent first.
        worst: the utterances with the most errors, those first.
        missing: references without a hypothesis, which count as empty hypotheses.
        extra: hypotheses without a reference, which count for nothing.
    """

    normalizer: str
    utterances: int
    corpus_wer: Interval
    mean_utterance_wer: float
    corpus_cer: float
    words: int
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    empty_references: int
    confusions: tuple[Confusion, ...]
    worst: tuple[Utterance, ...]
    missing: int = 0
    extra: int = 0


def compare(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalizer: str | Normalizer = "basic",
    *,
    ids: Sequence[str | int] | None = None,
    worst: int = 10,
) -> Comparison:
    """Every rate of `hypotheses` against `references`, aligned by jiwer.

    >>> compare(["turn it on"], ["turn on"]).deletions
    1

    Args:
        references: what was said, one string an utterance. An empty one is kept: all that its
            hypothesis holds is inserted.
        hypotheses: what was written, as many.
        normalizer: a rule for both, or the name of a built-in one, see `weaklabel.text`.
        ids: what the utterances are called in `worst`; numbers from 0 if not given.
        worst: how many utterances and confusions to keep.

    Raises:
        WeakLabelError: the lengths differ, a transcript is no string, no such normalizer, or there
            are no utterances.
    """
    rule = find_normalizer(normalizer)
    said, written = _normalized(references, hypotheses, rule)
    if ids is not None and len(ids) != len(said):
        raise WeakLabelError(f"{len(ids)} ids for {len(said)} utterances: give one for each")
    errors, words = _errors(said, written)
    interval = wer_interval(errors, words)
    aligned = jiwer.process_words(said, written)
    substituted, inserted, deleted = jiwer.collect_error_counts(aligned)
    confusions: Counter[tuple[str, str]] = Counter(substituted)
    confusions.update({("", phrase): count for phrase, count in inserted.items()})
    confusions.update({(phrase, ""): count for phrase, count in deleted.items()})
    ordered = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
    most = np.argsort(-errors, kind="stable")[: min(worst, np.count_nonzero(errors))]
    return Comparison(
        normalizer=rule.name,
        utterances=len(said),
        corpus_wer=interval,
        mean_utterance_wer=float(np.mean(errors / np.maximum(words, 1))),
        corpus_cer=jiwer.process_characters(said, written).cer,
        words=int(words.sum()),
        hits=aligned.hits,
        substitutions=aligned.substitutions,
        deletions=aligned.deletions,
        insertions=aligned.insertions,
        empty_references=int(np.count_nonzero(words == 0)),
        confusions=tuple(Confusion(*pair, count) for pair, count in ordered[:worst]),
        worst=tuple(
            Utterance(
                id=number if ids is None else ids[number],
                errors=int(errors[number]),
                words=int(words[number]),
                reference=said[number],
                hypothesis=written[number],
            )
            for number in most.tolist()
        ),
    )


def compare_files(
    references: FilePath,
    hypotheses: FilePath,
    normalizer: str | Normalizer = "basic",
    *,
    kaldi: bool | None = None,
    missing: Literal["error", "empty"] = "error",
    extra: Literal["error", "ignore"] = "error",
    worst: int = 10,
) -> Comparison:
    """Compare two files of transcripts, see `compare`.

    A table (everything `weaklabel.tables.scan` reads: Parquet, CSV, JSON lines, a folder of Kaldi,
    Lhotse or Hugging Face, a manifest of NeMo) has columns `query_id` and `transcript`; tables are
    joined on `query_id`, in the references' order. Any other file is text, one utterance a line,
    and two of them are compared line by line, or joined on the ids that their lines begin with.

    Args:
        references: what was said.
        hypotheses: what was written.
        normalizer: as in `compare`.
        kaldi: lines of text begin with the utterance's id, as in Kaldi's `text`. By default they
            are looked at: where both files' lines begin with the same, unique words, these are ids
            if each has a digit or a sign in it or their order differs; a warning says so.
        missing: what is done about references without a hypothesis: an error, or an empty
            hypothesis for each, all of whose words are deleted.
        extra: what is done about hypotheses without a reference: an error, or nothing.
        worst: as in `compare`.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a file cannot be used, or ids are missing on one side.
    """
    said, written = read_transcripts(references, hypotheses, kaldi=kaldi)
    written = written.rename({"transcript": "written"})
    absent = said.join(written, on="query_id", how="anti")["query_id"]
    if len(absent) and missing == "error":
        raise WeakLabelError(
            f"{len(absent)} of {said.height} references have no hypothesis in {hypotheses}:"
            f" {shown(absent)}; add them, or count them as empty (missing)"
        )
    left_out = written.join(said, on="query_id", how="anti")["query_id"]
    if len(left_out) and extra == "error":
        raise WeakLabelError(
            f"{len(left_out)} of {written.height} hypotheses have no reference in {references}:"
            f" {shown(left_out)}; add them, or leave them out (extra)"
        )
    pairs = said.join(written, on="query_id", how="left", maintain_order="left")
    found = compare(
        pairs["transcript"].to_list(),
        pairs["written"].fill_null("").to_list(),
        normalizer,
        ids=pairs["query_id"].to_list(),
        worst=worst,
    )
    return replace(found, missing=len(absent), extra=len(left_out))


def read_transcripts(*paths: FilePath, kaldi: bool | None = None) -> tuple[pl.DataFrame, ...]:
    """`query_id` and `transcript` of files that belong together, ids of one type.

    Args:
        paths: tables, or texts, see `compare_files`. Lines without ids have their numbers, from 1.
        kaldi: lines of text begin with ids; by default they are looked at.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a file cannot be used, or some have ids and others have none.
    """
    frames = [_read(path) for path in paths]
    if _begin_with_ids(frames) if kaldi is None else kaldi:
        frames = [_split_ids(frame, path) for frame, path in zip(frames, paths, strict=True)]
    lines = {path: frame for path, frame in zip(paths, frames, strict=True) if _numbered(frame)}
    if lines and len(lines) < len(set(paths)):
        table = next(path for path in paths if path not in lines)
        raise WeakLabelError(
            f"{next(iter(lines))} is lines of text and {table} has ids: give two of one kind, or a"
            " text with ids at the head of its lines (kaldi)"
        )
    if len({frame.height for frame in lines.values()}) > 1:
        counts = " and ".join(f"{path} has {frame.height} lines" for path, frame in lines.items())
        raise WeakLabelError(
            f"{counts}: give one line for each utterance, an empty one where nothing was said, or"
            " ids at the head of the lines (kaldi)"
        )
    return same_ids(*frames)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print every rate with its name, the normalizer, the confusions and the worst utterances."""
    wer = comparison.corpus_wer
    rows = {
        "corpus WER": f"{wer.point:.2%}",
        "  95 % bootstrap interval": f"{wer.low:.2%} to {wer.high:.2%}",
        "mean utterance WER": f"{comparison.mean_utterance_wer:.2%}",
        "corpus CER": f"{comparison.corpus_cer:.2%}",
        "reference words": f"{comparison.words}",
        "hits": f"{comparison.hits}",
        "substitutions": f"{comparison.substitutions}",
        "deletions": f"{comparison.deletions}",
        "insertions": f"{comparison.insertions}",
    }
    seldom = {
        "empty references": comparison.empty_references,
        "missing hypotheses, counted as empty": comparison.missing,
        "hypotheses without a reference, left out": comparison.extra,
    }
    rows |= {name: f"{count}" for name, count in seldom.items() if count}
    title = f"{comparison.utterances} utterances, normalizer {comparison.normalizer!r}"
    rates = Table("measure", Column("value", justify="right"), title=title, title_justify="left")
    for row in rows.items():
        rates.add_row(*row)
    errors = Table("said", "written", "count", title="most frequent errors", title_justify="left")
    for error in comparison.confusions:
        said, written = shortened(error.reference), shortened(error.hypothesis)
        errors.add_row(Text(said or "(inserted)"), Text(written or "(deleted)"), f"{error.count}")
    console.print(rates)
    if errors.row_count:
        console.print(errors)
    for found in comparison.worst:
        title = f"utterance {shortened(str(found.id))}: errors {found.errors}, words {found.words}"
        text = Text(f"\n{title}\n{_alignment(found, console.width)}")
        console.print(text, no_wrap=True, overflow="ignore", crop=False)


def printable(text: str) -> str:
    """`text` without what would steer a terminal: controls, overrides of the writing direction."""
    return "".join(
        c if c.isprintable() or c in _JOINERS else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def shortened(text: str, cells: int = 60) -> str:
    """`text` fit for a column: printable, and no wider than so many cells of a terminal."""
    text = printable(text[: cells + 1])
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1) + "…"


_JOINERS = frozenset("\u200c\u200d")  # within emoji and Persian words
_LINE = pl.UInt32  # the type of ids that are numbers of lines
_HEAD = r"^\s*(\S+)"
_SIGNS = r"[0-9_\-]"  # of an id; few words have them


def _normalized(
    references: Sequence[str], hypotheses: Sequence[str], rule: Normalizer
) -> tuple[list[str], list[str]]:
    if len(references) != len(hypotheses):
        raise WeakLabelError(
            f"{len(references)} references for {len(hypotheses)} hypotheses: give one of each for"
            " every utterance"
        )
    for texts, kind in ((references, "reference"), (hypotheses, "hypothesis")):
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise WeakLabelError(
                    f"the {kind} of utterance {number} must be a string, got {text!r}: where"
                    ' nothing was said, give ""'
                )
    return [rule(text) for text in references], [rule(text) for text in hypotheses]


def _errors(said: Sequence[str], written: Sequence[str]) -> tuple[Counts, Counts]:
    pairs = [(one.split(), other.split()) for one, other in zip(said, written, strict=True)]
    errors = [Levenshtein.distance(one, other) for one, other in pairs]
    return np.array(errors, np.int64), np.array([len(words) for words, _ in pairs], np.int64)


def require_transcripts(frame: pl.DataFrame, name: str) -> None:
    """Refuse a table with a transcript that is null or no string.

    Raises:
        WeakLabelError: there is one; the message names the first by query_id.
    """
    if (kind := frame["transcript"].dtype) not in (pl.String, pl.Null):
        raise WeakLabelError(f"{name}: transcript must be strings, got {kind}")
    problem = 'have no transcript (where nothing was said, write "")'
    refuse_rows(frame, pl.col("transcript").is_null(), name, problem)


def _read(path: FilePath) -> pl.DataFrame:
    """`query_id` and `transcript`; lines of text have numbers, of type `_LINE`, for ids."""
    name = Path(path)
    if not (set(name.suffixes[-2:]) & set(FORMATS) or name.is_dir() or "://" in os.fspath(path)):
        lines = [line.removesuffix("\n").removesuffix("\r") for line in decoded_lines(str(path))]
        frame = pl.DataFrame({"transcript": lines}, {"transcript": pl.String})
        return frame.with_row_index("query_id", offset=1).cast({"query_id": _LINE})
    table = tables.read(path)
    require_columns(table, ("query_id", "transcript"), str(path))
    table = table.select("query_id", "transcript")
    if {".csv", ".tsv"} & set(name.suffixes):  # no null there: an empty cell is no words
        table = table.with_columns(pl.col("transcript").fill_null(""))
    require_ids(table, str(path))
    if _numbered(table):
        table = table.cast({"query_id": pl.Int64})
    require_transcripts(table, str(path))
    return table


def _numbered(frame: pl.DataFrame) -> bool:
    return frame.schema["query_id"] == _LINE


def _begin_with_ids(frames: Sequence[pl.DataFrame]) -> bool:
    """Whether lines of text begin with ids; where they seem to, a warning says what was assumed."""
    heads = [
        frame["transcript"].str.extract(_HEAD).fill_null("")
        if _numbered(frame)
        else frame["query_id"].cast(pl.String)
        for frame in frames
    ]
    if not any(map(_numbered, frames)) or any(head.is_duplicated().any() for head in heads):
        return False
    first, *others = heads
    if all(head.str.contains(_SIGNS).all() for head in heads):
        ids = alike = any(set(first) & set(other) for other in others)
    else:
        alike = len(first) > 1 and all(set(first) == set(other) for other in others)
        ordered = all(first.equals(other) for other in others) and all(map(_numbered, frames))
        ids = alike and not ordered
    if alike:
        _logger.warning(
            "the first words of all lines are unique and shared: they are taken for %s",
            "ids, not words; if they are words, give --no-kaldi (kaldi=False)"
            if ids
            else "words; if they are ids, give --kaldi (kaldi=True)",
        )
    return ids


def _split_ids(lines: pl.DataFrame, path: FilePath) -> pl.DataFrame:
    """`query_id` and `transcript` of lines that begin with an id; a table as it is."""
    if not _numbered(lines):
        return lines
    table = lines.select(
        pl.col("transcript").str.extract(_HEAD).alias("query_id"),
        pl.col("transcript").str.replace(_HEAD, ""),
    )
    if table["query_id"].null_count():
        number = table["query_id"].is_null().arg_true()[0] + 1
        raise WeakLabelError(f"{path}: line {number} is empty: it has no id")
    require_ids(table, str(path))
    return table


def _alignment(utterance: Utterance, width: int) -> str:
    """jiwer's lines REF, HYP and operations, in columns of terminal cells.

    jiwer counts characters, some of which are wide or have no width of their own: it gets words of
    as many placeholders as they have cells, which become the words afterwards.
    """
    words: dict[str, str] = {}
    names: dict[int, str] = {0: ""}
    for word in f"{utterance.reference} {utterance.hypothesis}".split():
        if word not in words:
            place = 0x10000 + len(words)
            names[place] = shortened(word)
            words[word] = chr(place) + "\0" * (cell_len(names[place]) - 1)
    reference, hypothesis = (
        " ".join(words[word] for word in text.split())
        for text in (utterance.reference, utterance.hypothesis)
    )
    aligned = jiwer.process_words(reference, hypothesis)
    lines = jiwer.visualize_alignment(
        aligned, show_measures=False, skip_correct=False, line_width=width - 1
    )
    return "\n".join(
        line.rstrip().translate(names) for line in lines.splitlines()[2:] if line.strip()
    )
