"""A comparison on the terminal: its rates by their names, confusions, alignments."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weaklabel import tables
from weaklabel.errors import WeakLabelError
from weaklabel.queries import refuse_rows, require_columns, require_ids, same_ids, shown
from weaklabel.tables.files import FORMATS
from weaklabel.text import normalizer as find_normalizer

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A rate and its bootstrap confidence interval.

    Attributes:
        point: the rate of the utterances themselves.
        low: lower end of the interval.
        high: upper end.
    """

    point: float
    low: float
    high: float


def utterance_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "basic"
) -> tuple[Counts, Counts]:
    """Word errors and reference words of each utterance, both int64 of shape (utterances,).

    Errors are the fewest substitutions, deletions and insertions of words.

    Raises:
        WeakLabelError: the lengths differ, a transcript is no string, or no such normaliser.
    """
    from rapidfuzz.distance import Levenshtein

    pairs = list(normalized_pairs(references, hypotheses, normalizer))
    errors = [Levenshtein.distance(a.split(), b.split()) for a, b in pairs]
    words = [len(reference.split()) for reference, _ in pairs]
    return np.asarray(errors, dtype=np.int64), np.asarray(words, dtype=np.int64)


def corpus_wer(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "basic"
) -> float:
    """All word errors over all reference words.

    >>> corpus_wer(["turn it on", "stop"], ["turn it off", "Stop!"])
    0.25

    Raises:
        WeakLabelError: as `utterance_errors`, or there are no utterances.
    """
    errors, words = utterance_errors(references, hypotheses, normalizer)
    at_least_one(len(errors))
    return rate(int(errors.sum()), int(words.sum()))


def mean_utterance_wer(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "basic"
) -> float:
    """The mean over utterances of errors over reference words.

    >>> mean_utterance_wer(["turn it on", "stop"], ["turn it off", "Stop!"])
    0.16666666666666666

    Raises:
        WeakLabelError: as `corpus_wer`.
    """
    errors, words = utterance_errors(references, hypotheses, normalizer)
    at_least_one(len(errors))
    return float(np.mean(errors / np.maximum(words, 1)))


def wer_interval(
    errors: npt.ArrayLike,
    words: npt.ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Corpus WER with the percentile bootstrap's interval, utterances resampled as wholes.

    Words of one utterance go wrong together, so that they may not be resampled one by one (Bisani
    and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP
    2004). Utterances with equal counts are drawn together, as a multinomial: the time depends on
    how many different pairs (errors, words) there are, not on how many utterances.

    Args:
        errors: integers, shape (utterances,): word errors of each.
        words: integers, the same shape: reference words of each.
        level: of confidence, between 0 and 1.
        resamples: how many resampled corpora the interval's ends are percentiles of.
        seed: of the resampling; one seed, one interval, whatever the order of the utterances.

    Raises:
        WeakLabelError: no utterances, shapes that differ, negative counts, or a level or number
            of resamples that means nothing.
    """
    errors, words = _counts(errors, "errors"), _counts(words, "words")
    if errors.shape != words.shape:
        raise WeakLabelError(f"{len(errors)} counts of errors for {len(words)} of words: give both")
    at_least_one(len(errors))
    if not 0 < level < 1:
        raise WeakLabelError(f"the level must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise WeakLabelError(f"at least one resample is needed, got {resamples}")
    pairs, counts = np.unique(np.stack([errors, words], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    rates = np.empty(resamples)
    for resample in range(resamples):
        drawn = rng.multinomial(len(errors), counts / len(errors))
        rates[resample] = rate(*(drawn @ pairs))
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(rate(int(errors.sum()), int(words.sum())), float(low), float(high))


def rate(errors: int, words: int) -> float:
    """Errors over words, or over one where there are no words."""
    return float(errors / max(words, 1))


def at_least_one(utterances: int) -> None:
    """Refuse an empty corpus."""
    if not utterances:
        raise WeakLabelError("there are no utterances: their WER does not exist")


def _counts(values: npt.ArrayLike, name: str) -> Counts:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise WeakLabelError(
            f"{name} must be a list of whole numbers, got {array.dtype} of shape {array.shape}"
        )
    if array.size and array.min() < 0:
        raise WeakLabelError(f"{name} cannot be negative, got {array.min()}")
    return array.astype(np.int64)


def normalized_pairs(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: str
) -> Iterator[tuple[str, str]]:
    """Reference and hypothesis of each utterance, both normalised.

    Raises:
        WeakLabelError: the lengths differ, a transcript is no string, or no such normaliser.
    """
    rule = find_normalizer(normalizer)
    if len(references) != len(hypotheses):
        raise WeakLabelError(
            f"{len(references)} references for {len(hypotheses)} hypotheses: give one of each for"
            " every utterance"
        )
    for number, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        for text, kind in ((reference, "reference"), (hypothesis, "hypothesis")):
            if not isinstance(text, str):
                raise WeakLabelError(
                    f"the {kind} of utterance {number} must be a string, got {text!r}: where"
                    ' nothing was said, give ""'
                )
        yield rule(reference), rule(hypothesis)


Operation = Literal["hit", "substitution", "deletion", "insertion"]


@dataclass(frozen=True)
class AlignedWord:
    """A place of an alignment.

    Attributes:
        operation: what happened to the reference's word.
        reference: the reference's word; "" where one was inserted.
        hypothesis: the hypothesis's; "" where one was deleted.
    """

    operation: Operation
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Alignment:
    """An utterance's reference and hypothesis, word by word.

    Attributes:
        id: the utterance's query_id, or its number counted from 0.
        errors: substitutions, deletions and insertions.
        words: of the reference.
        pairs: the words, normalised, in their order.
    """

    id: str | int
    errors: int
    words: int
    pairs: tuple[AlignedWord, ...]


@dataclass(frozen=True)
class Confusion:
    """An error and how often it was made.

    Attributes:
        reference: the word that was said; "" for an insertion.
        hypothesis: what was written for it; "" for a deletion.
        count: how often, over all utterances.
    """

    reference: str
    hypothesis: str
    count: int


@dataclass(frozen=True)
class Comparison:
    """How far hypotheses are from their references.

    Attributes:
        normalizer: name of the normaliser both went through.
        utterances: how many.
        corpus_wer: all word errors over all reference words, with its 95 % bootstrap interval.
        mean_utterance_wer: the mean of each utterance's own rate.
        corpus_cer: all character errors over all reference characters; spaces between words count.
        words: of the references.
        characters: of the references, spaces between words included.
        hits: reference words that are right.
        substitutions: reference words with another in their place.
        deletions: reference words with none in their place.
        insertions: hypothesis words in no reference word's place.
        empty_references: utterances whose reference has no words.
        confusions: the most frequent errors, most frequent first.
        worst: alignments of the utterances with the most errors, those first.
        missing: references without a hypothesis, which count as empty hypotheses.
        extra: hypotheses without a reference, which count for nothing.
    """

    normalizer: str
    utterances: int
    corpus_wer: Interval
    mean_utterance_wer: float
    corpus_cer: float
    words: int
    characters: int
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    empty_references: int
    confusions: tuple[Confusion, ...]
    worst: tuple[Alignment, ...]
    missing: int = 0
    extra: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)


def compare(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalizer: str = "basic",
    *,
    ids: Sequence[str | int] | None = None,
    worst: int = 10,
    confusions: int = 20,
    resamples: int = 1000,
    seed: int = 0,
    missing: int = 0,
    extra: int = 0,
) -> Comparison:
    """Every rate of `hypotheses` against `references`, aligned by jiwer.

    >>> compare(["turn it on"], ["turn on"], seed=1).deletions
    1

    Args:
        references: what was said, one string an utterance. An empty one is kept: all that its
            hypothesis holds is inserted.
        hypotheses: what was written, as many.
        normalizer: name of the rule that both go through, see `weaklabel.text`.
        ids: what the utterances are called in `worst`; numbers from 0 if not given.
        worst: how many alignments to keep.
        confusions: how many confusions to keep.
        resamples: of the bootstrap, see `wer_interval`.
        seed: of the bootstrap.
        missing: how many of the empty hypotheses stand for missing ones; it is only passed on.
        extra: how many hypotheses were left out; it is only passed on.

    Raises:
        WeakLabelError: the lengths differ, a transcript is no string, no such normaliser, or there
            are no utterances.
    """
    pairs = list(normalized_pairs(references, hypotheses, normalizer))
    at_least_one(len(pairs))
    if ids is not None and len(ids) != len(pairs):
        raise WeakLabelError(f"{len(ids)} ids for {len(pairs)} utterances: give one for each")
    errors = np.zeros(len(pairs), dtype=np.int64)
    words = np.zeros(len(pairs), dtype=np.int64)
    totals: Counter[Operation] = Counter()
    mistakes: Counter[tuple[str, str]] = Counter()
    character_errors = 0
    kept: list[tuple[int, int, tuple[AlignedWord, ...]]] = []  # a heap of the worst so far
    for number, (reference, hypothesis) in enumerate(pairs):
        aligned = _align(reference, hypothesis)
        found = Counter(pair.operation for pair in aligned)
        totals.update(found)
        words[number] = len(aligned) - found["insertion"]
        errors[number] = len(aligned) - found["hit"]
        mistakes.update(
            (pair.reference, pair.hypothesis) for pair in aligned if pair.operation != "hit"
        )
        if errors[number]:
            heappush(kept, (int(errors[number]), -number, aligned))  # of equals the first are kept
            if len(kept) > worst:
                heappop(kept)
        character_errors += _character_errors(reference, hypothesis)
    characters = sum(len(reference) for reference, _ in pairs)
    return Comparison(
        normalizer=normalizer,
        utterances=len(pairs),
        corpus_wer=wer_interval(errors, words, resamples=resamples, seed=seed),
        mean_utterance_wer=float(np.mean(errors / np.maximum(words, 1))),
        corpus_cer=rate(character_errors, characters),
        words=int(words.sum()),
        characters=characters,
        hits=totals["hit"],
        substitutions=totals["substitution"],
        deletions=totals["deletion"],
        insertions=totals["insertion"],
        empty_references=int(np.count_nonzero(words == 0)),
        confusions=tuple(
            Confusion(*mistake, count)
            for mistake, count in sorted(mistakes.items(), key=lambda item: (-item[1], item[0]))[
                :confusions
            ]
        ),
        worst=tuple(
            Alignment(
                id=-minus if ids is None else ids[-minus],
                errors=count,
                words=int(words[-minus]),
                pairs=aligned,
            )
            for count, minus, aligned in sorted(kept, reverse=True)
        ),
        missing=missing,
        extra=extra,
    )


_OPERATIONS: dict[str, Operation] = {
    "equal": "hit",
    "substitute": "substitution",
    "delete": "deletion",
    "insert": "insertion",
}


def _align(reference: str, hypothesis: str) -> tuple[AlignedWord, ...]:
    """The words of two normalised transcripts, aligned with the fewest errors."""
    import jiwer

    output = jiwer.process_words(reference, hypothesis)
    (said,), (written,) = output.references, output.hypotheses
    pairs: list[AlignedWord] = []
    for chunk in output.alignments[0]:
        left = said[chunk.ref_start_idx : chunk.ref_end_idx]
        right = written[chunk.hyp_start_idx : chunk.hyp_end_idx]
        size = max(len(left), len(right))  # equal, or one of them is empty
        pairs += map(
            AlignedWord,
            [_OPERATIONS[chunk.type]] * size,
            left or [""] * size,
            right or [""] * size,
        )
    return tuple(pairs)


def _character_errors(reference: str, hypothesis: str) -> int:
    # Not jiwer's `process_characters`: it aligns them too, which nothing here needs.
    from rapidfuzz.distance import Levenshtein

    # The hint changes the time alone: a band is tried first, and doubled while too narrow.
    return Levenshtein.distance(reference, hypothesis, score_hint=64)


FilePath = str | os.PathLike[str]


def compare_files(
    references: FilePath,
    hypotheses: FilePath,
    normalizer: str = "basic",
    *,
    kaldi: bool = False,
    missing: Literal["error", "empty"] = "error",
    extra: Literal["error", "ignore"] = "error",
    worst: int = 10,
    confusions: int = 20,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two files of transcripts, see `compare`.

    A table (Parquet, CSV, JSON lines; a file, a folder or a glob) has columns `query_id` and
    `transcript`; tables are joined on `query_id`, in the references' order. Any other file is text,
    one utterance a line, and two of them are compared line by line.

    Args:
        references: what was said.
        hypotheses: what was written.
        normalizer: name of the rule that both go through.
        kaldi: lines of text begin with the utterance's id, as in Kaldi's `text`, and are joined on
            it.
        missing: what is done about references without a hypothesis: an error, or an empty
            hypothesis for each, all of whose words are deleted.
        extra: what is done about hypotheses without a reference: an error, or nothing.
        worst: how many alignments to keep.
        confusions: how many confusions to keep.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a file cannot be used, or ids are missing on one side.
    """
    said, written = _read(references, kaldi), _read(hypotheses, kaldi)
    if ("query_id" in said.columns) != ("query_id" in written.columns):
        lines, table = (
            (hypotheses, references) if "query_id" in said.columns else (references, hypotheses)
        )
        raise WeakLabelError(
            f"{lines} is lines of text and {table} has ids: give two of one kind, or a text with"
            " ids at the head of its lines (kaldi)"
        )
    options = {"worst": worst, "confusions": confusions, "resamples": resamples, "seed": seed}
    if "query_id" not in said.columns:
        if said.height != written.height:
            raise WeakLabelError(
                f"{references} has {said.height} lines and {hypotheses} {written.height}: give one"
                " line for each utterance, an empty one where nothing was said"
            )
        return compare(
            said["transcript"].to_list(),
            written["transcript"].to_list(),
            normalizer,
            ids=range(1, said.height + 1),
            **options,
        )
    said, written = same_ids(said, written)
    unheard = said.join(written, on="query_id", how="anti")["query_id"]
    if len(unheard) and missing == "error":
        raise WeakLabelError(
            f"{len(unheard)} of {said.height} references have no hypothesis in {hypotheses}:"
            f" {shown(unheard)}; add them, or count them as empty (missing)"
        )
    unasked = written.join(said, on="query_id", how="anti")["query_id"]
    if len(unasked) and extra == "error":
        raise WeakLabelError(
            f"{len(unasked)} of {written.height} hypotheses have no reference in {references}:"
            f" {shown(unasked)}; add them, or leave them out (extra)"
        )
    pairs = said.join(
        written, on="query_id", how="left", suffix="_written", maintain_order="left"
    ).with_columns(pl.col("transcript_written").fill_null(""))
    return compare(
        pairs["transcript"].to_list(),
        pairs["transcript_written"].to_list(),
        normalizer,
        ids=pairs["query_id"].to_list(),
        missing=len(unheard),
        extra=len(unasked),
        **options,
    )


def _read(path: FilePath, kaldi: bool) -> pl.DataFrame:
    """`transcript`, and `query_id` unless the file is lines without ids."""
    if _is_table(path):
        table = tables.read(path)
        require_columns(table, ("query_id", "transcript"), str(path))
        table = table.select("query_id", "transcript")
        if ".csv" in Path(path).suffixes:  # CSV has no null: an empty cell is no words
            table = table.with_columns(pl.col("transcript").fill_null(""))
    else:
        lines = _lines(Path(path))
        if not kaldi:
            return pl.DataFrame({"transcript": lines}, schema={"transcript": pl.String})
        heads = [line.split(maxsplit=1) for line in lines]
        if [] in heads:
            raise WeakLabelError(f"{path}: line {heads.index([]) + 1} is empty: it has no id")
        table = pl.DataFrame(
            {
                "query_id": [head[0] for head in heads],
                "transcript": ["".join(head[1:]) for head in heads],
            },
            schema={"query_id": pl.String, "transcript": pl.String},
        )
    require_ids(table, str(path))
    if table["transcript"].dtype not in (pl.String, pl.Null):
        kind = table["transcript"].dtype
        raise WeakLabelError(f"{path}: transcript must be strings, got {kind}")
    refuse_rows(
        table,
        pl.col("transcript").is_null(),
        str(path),
        'have no transcript (where nothing was said, write "")',
    )
    return table


def _is_table(path: FilePath) -> bool:
    name = Path(path)
    suffix = name.with_suffix("").suffix if name.suffix == ".gz" else name.suffix
    return suffix in FORMATS or name.is_dir() or "://" in os.fspath(path)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WeakLabelError(f"{path} is not UTF-8 text: {error}") from error
    # Not splitlines: a transcript may hold Unicode's other line separators.
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


# As sclite's reports have it: asterisks stand for the word that is not there.
LETTERS = {"hit": "", "substitution": "S", "deletion": "D", "insertion": "I"}
STYLES = {"hit": "", "substitution": "yellow", "deletion": "red", "insertion": "blue"}
_LABEL = 5  # cells: "REF: "
_LONGEST = 60  # cells of a word
_JOINERS = frozenset("\u200c\u200d")  # within emoji and Persian words


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print every rate with its name, the normaliser, the confusions and the worst utterances."""
    table = Table(
        title=f"{comparison.utterances} utterances, normaliser {comparison.normalizer!r}",
        title_justify="left",
    )
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    wer = comparison.corpus_wer
    table.add_row("corpus WER", f"{wer.point:.2%}")
    table.add_row("  95 % bootstrap interval", f"{wer.low:.2%} to {wer.high:.2%}")
    table.add_row("mean utterance WER", f"{comparison.mean_utterance_wer:.2%}")
    table.add_row("corpus CER", f"{comparison.corpus_cer:.2%}")
    for name in ("words", "hits", "substitutions", "deletions", "insertions"):
        table.add_row(
            "reference words" if name == "words" else name, f"{getattr(comparison, name)}"
        )
    for count, name in (
        (comparison.empty_references, "empty references"),
        (comparison.missing, "missing hypotheses, counted as empty"),
        (comparison.extra, "hypotheses without a reference, left out"),
    ):
        if count:
            table.add_row(name, f"{count}")
    console.print(table)
    if comparison.confusions:
        console.print(_confusions(comparison))
    for alignment in comparison.worst:
        console.print(
            Text(f"\nutterance {_word(str(alignment.id))}", style="bold")
            + Text(f"  errors {alignment.errors}, reference words {alignment.words}")
        )
        for line in alignment_lines(alignment, console.width):
            console.print(line, no_wrap=True, overflow="ignore", crop=False)


def alignment_lines(alignment: Alignment, width: int) -> Iterator[Text]:
    """Lines REF, HYP and operations of an alignment, at most `width` cells wide where words allow.

    Words stand in columns: their width is counted in terminal cells, not characters.
    """
    row: list[AlignedWord] = []
    used = _LABEL
    for pair in alignment.pairs:
        cells = _cells(pair) + 1
        if row and used + cells > width:
            yield from _rows(row)
            row, used = [], _LABEL
        row.append(pair)
        used += cells
    if row:
        yield from _rows(row)


def printable(text: str) -> str:
    """`text` without what would steer a terminal: controls, overrides of the writing direction."""
    return "".join(
        c if c.isprintable() or c in _JOINERS else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _confusions(comparison: Comparison) -> Table:
    table = Table("said", "written", title="most frequent errors", title_justify="left")
    table.add_column("count", justify="right")
    for confusion in comparison.confusions:
        said, written = (
            Text(_word(word)) if word else Text(nothing, style="dim")
            for word, nothing in (
                (confusion.reference, "(inserted)"),
                (confusion.hypothesis, "(deleted)"),
            )
        )
        table.add_row(said, written, f"{confusion.count}")
    return table


def _word(text: str) -> str:
    """`text` fit for a column: printable, and no longer than a reader's patience."""
    text = printable(text[:_LONGEST])
    return text if cell_len(text) < _LONGEST else set_cell_size(text, _LONGEST - 1) + "…"


def _cells(pair: AlignedWord) -> int:
    return max(cell_len(_word(pair.reference)), cell_len(_word(pair.hypothesis)), 1)


def _rows(pairs: list[AlignedWord]) -> Iterator[Text]:
    for label in ("REF: ", "HYP: ", "     "):
        line = Text(label, style="dim" if label.strip() else "")
        for pair in pairs:
            cells = _cells(pair)
            word = {"REF: ": pair.reference, "HYP: ": pair.hypothesis}.get(label)
            shown = LETTERS[pair.operation] if word is None else _word(word) or "*" * cells
            line.append(shown, style=STYLES[pair.operation])
            line.append(" " * (cells - cell_len(shown) + 1))
        line.rstrip()
        yield line
