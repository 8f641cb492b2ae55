"""What is said in a query, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_cudagraph_asr.dispatch import Dispatch
from hf_cudagraph_asr.geometry import Frames
from hf_cudagraph_asr.plan import Bucket

__all__ = ["Transcript", "Word", "frame_seconds", "spoken"]


@dataclass(frozen=True)
class Word:
    """One word.

    Attributes:
        text: as the tokenizer writes it.
        start: seconds from the beginning of the query, where its first letter's frame begins.
        end: likewise, where its last letter's frame ends.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcript:
    """One query.

    Attributes:
        text: what is said.
        words: the words of it, in order.
        seconds: of audio.
        milliseconds: from the waveforms to the texts of all that was computed together with it.
        dispatch: what became of the model's call; of a long recording, that of a whole chunk.
        bucket: the captured length that this query went through, or None.
    """

    text: str
    words: tuple[Word, ...]
    seconds: float
    milliseconds: float
    dispatch: Dispatch
    bucket: Bucket | None = None


def frame_seconds(config: Any, sampling_rate: int) -> float:
    """Seconds from one frame of logits to the next, an adapter's strides included."""
    frames = Frames.of(config)
    hops = (convolution.stride for convolution in (*frames.features, *frames.adapter))
    return math.prod(hops) / sampling_rate


def spoken(tokenizer: Any, ids: Sequence[int], a_frame: float) -> tuple[str, tuple[Word, ...]]:
    """Greedy CTC decoding: the text and its words.

    Args:
        tokenizer: of the model; a `Wav2Vec2CTCTokenizer` or one that decodes like it.
        ids: the best token of each frame.
        a_frame: seconds from one frame to the next.
    """
    decoded = tokenizer.decode(ids, output_word_offsets=True)
    return decoded.text, tuple(
        Word(
            offsets["word"],
            float(offsets["start_offset"] * a_frame),
            float(offsets["end_offset"] * a_frame),
        )
        for offsets in decoded.word_offsets
    )
