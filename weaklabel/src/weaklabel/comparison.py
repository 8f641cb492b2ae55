"""Two sets of transcripts compared: every rate, the alignments, the words confused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from typing import Any, Literal

import numpy as np

from weaklabel.errors import WeakLabelError
from weaklabel.wer import Interval, at_least_one, normalized_pairs, rate, wer_interval

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
