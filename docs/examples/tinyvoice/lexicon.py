"""Beam search over the grammar's words, with torchaudio's decoder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import recognizer


def word_decoder(
    words: Sequence[str],
    beam: int = 50,
    language_model: Any = None,
    weight: float = 2.0,
) -> Callable[[Tensor], str]:
    """A function from log-probabilities (frames, tokens) to a transcript of these words only.

    Args:
        words: all that can be said.
        beam: hypotheses that are kept from frame to frame.
        language_model: a torchaudio `CTCDecoderLM` that knows the words by their place in `words`.
        weight: of the language model's scores beside the log-probabilities.

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
        order = Path(folder) / "order.txt"  # of the words; without it the decoder makes its own
        order.write_text("".join(f"{word}\n" for word in (*words, "<unk>")))
        decoder = ctc_decoder(
            lexicon=str(path),
            lm=language_model,
            lm_dict=str(order),
            lm_weight=weight,
            tokens=list(recognizer.TOKENS),
            blank_token="<pad>",
            sil_token="|",
            unk_word="<unk>",
            nbest=1,
            beam_size=beam,
        )

    def decode(log_probabilities: Tensor) -> str:
        best = decoder(log_probabilities.unsqueeze(0).contiguous())[0]
        return " ".join(best[0].words) if best else ""

    return decode
