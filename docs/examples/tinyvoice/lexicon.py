"""Beam search over the grammar's words, with torchaudio's decoder."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

import recognizer


def word_decoder(
    words: Sequence[str],
    threshold: float = 50.0,
    language_model: Path | None = None,
    weight: float = 0.0,
) -> Callable[[Tensor], str]:
    """A function from log-probabilities (frames, tokens) to a transcript of these words only.

    Args:
        words: all that can be said.
        threshold: hypotheses whose score lies further below the best one's are dropped.
        language_model: an ARPA file; words that it lacks are unknown to it.
        weight: of its log-probabilities, which are natural ones, beside the recognizer's.

    Raises:
        ImportError: without torchaudio or flashlight-text.
    """
    try:
        from torchaudio.models.decoder import ctc_decoder
    except ImportError as error:
        raise ImportError(
            'the lexicon decoder needs: pip install "hf-cudagraph-asr[resample]" flashlight-text'
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lexicon.txt"  # read once, by the constructor
        path.write_text("".join(f"{word} {' '.join(word)} |\n" for word in words))
        decoder = ctc_decoder(
            lexicon=str(path),
            lm=language_model and str(language_model),
            lm_weight=weight * math.log(10),  # the decoder reads decimal logarithms as they are
            tokens=list(recognizer.TOKENS),
            blank_token="<pad>",
            sil_token="|",
            unk_word="<unk>",
            nbest=1,
            beam_size=50,
            beam_threshold=threshold,
        )

    def decode(log_probabilities: Tensor) -> str:
        best = decoder(log_probabilities.unsqueeze(0).contiguous())[0]
        return " ".join(best[0].words) if best else ""

    return decode
