"""A student's log-probabilities as text: greedily, over the catalog's words, and with the trigram.

The trigram model is the one that pocketsphinx has (`language_model.history`); torchaudio's decoder
asks it at the end of every word.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor
from torchaudio.models.decoder import CTCDecoderLM, CTCDecoderLMState
from transformers import Wav2Vec2Processor

import lexicon
import recipe
import recognizer
from speechnet import language_model, phrases
from speechnet.language_model import BEGIN, END, UNKNOWN, LanguageModel, Ngram

MODES = ("greedy", "lexicon", "ngram")
WEIGHT = 1.0  # of the trigram's scores beside the student's; chosen on smoke's training utterances

Decode = Callable[[Tensor], str]


@cache
def decoders() -> dict[str, Decode]:
    """By `MODES`: a function from log-probabilities (frames, tokens), float32 on the CPU, to text.

    "lexicon" can say the catalog's words alone, in any order; "ngram" has the trigram model too.

    Raises:
        ImportError: without torchaudio or flashlight-text.
    """
    processor = Wav2Vec2Processor.from_pretrained(recipe.HERE / "model")
    words = phrases.words()
    return {
        "greedy": lambda told: recognizer.spell_out(processor, told),
        "lexicon": lexicon.word_decoder(words),
        "ngram": with_trigram(WEIGHT),
    }


def with_trigram(weight: float) -> Decode:
    """Decode over the catalog's words with the trigram model of the days before the log."""
    words = phrases.words()
    trigram = Trigram(language_model.history(), words)
    return lexicon.word_decoder(words, language_model=trigram, weight=weight)


class Trigram(CTCDecoderLM):  # type: ignore[misc]
    """A language model as torchaudio's decoder asks for it.

    Args:
        model: gives the scores.
        words: the decoder's, by their number; the number after the last is the unknown word.
    """

    def __init__(self, model: LanguageModel, words: tuple[str, ...]) -> None:
        super().__init__()
        self._model = model
        self._words = (*words, UNKNOWN)
        self._contexts: dict[CTCDecoderLMState, Ngram] = {}
        # The same few questions come again and again, within a recording and from one to the next.
        self._answers: dict[tuple[Ngram, str], tuple[float, Ngram]] = {}

    def start(self, start_with_nothing: bool) -> CTCDecoderLMState:
        """The state before the first word of a recording."""
        self._contexts.clear()
        state = CTCDecoderLMState()
        self._contexts[state] = (BEGIN,)
        return state

    def score(
        self, state: CTCDecoderLMState, usr_token_idx: int
    ) -> tuple[CTCDecoderLMState, float]:
        """The state after a word, and the word's log-probability."""
        return self._after(state, usr_token_idx, self._words[usr_token_idx])

    def finish(self, state: CTCDecoderLMState) -> tuple[CTCDecoderLMState, float]:
        """The state after the last word, and the log-probability that it was the last."""
        return self._after(state, len(self._words), END)

    def _after(
        self, state: CTCDecoderLMState, index: int, word: str
    ) -> tuple[CTCDecoderLMState, float]:
        question = (self._contexts[state], word)
        if question not in self._answers:
            self._answers[question] = self._model.score(*question)
        score, context = self._answers[question]
        after = state.child(index)
        self._contexts[after] = context
        return after, score
