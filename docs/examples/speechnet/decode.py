"""A student's log-probabilities as text: greedily, over the catalog's words, and with the trigram.

The trigram model is the one that pocketsphinx has (`language_model.history`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from torch import Tensor
from transformers import Wav2Vec2Processor

import lexicon
import recipe
import recognizer
from speechnet import language_model, phrases

MODES = ("greedy", "lexicon", "ngram")
# The weight of the trigram's log-probabilities beside the student's was chosen on smoke's training
# utterances; the threshold, by which decoding takes half the time, on cpu's: with a trained student
# it changed no text.
SETTINGS = {"threshold": 20.0, "weight": 1.0}

Decode = Callable[[Tensor], str]


@cache
def decoders() -> dict[str, Decode]:
    """By `MODES`: a function from log-probabilities (frames, tokens), float32 on the CPU, to text.

    "lexicon" can say the catalog's words alone, in any order; "ngram" has the trigram model too.
    """
    processor = Wav2Vec2Processor.from_pretrained(recipe.HERE / "model")
    words, threshold = phrases.words(), SETTINGS["threshold"]
    with tempfile.TemporaryDirectory() as folder:
        trigram = Path(folder) / "history.arpa"  # read once
        language_model.history().write_arpa(trigram)
        return {
            "greedy": lambda told: recognizer.spell_out(processor, told),
            "lexicon": lexicon.word_decoder(words, threshold),
            "ngram": lexicon.word_decoder(words, threshold, trigram, SETTINGS["weight"]),
        }
