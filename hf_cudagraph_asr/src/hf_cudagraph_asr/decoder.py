"""`WordDecoder`: the words of a lexicon out of log-probabilities, with a language model or without.

Beam search is torchaudio's, and language models are KenLM's (extra `lm`).
"""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import torch

from hf_cudagraph_asr.extras import imported

logger = logging.getLogger(__name__)

Decoder: TypeAlias = Callable[[torch.Tensor], Sequence[tuple[str, int, int, float | None]]]
"""Finds words in log-probabilities (frames, V), float32 on the CPU, one row at a time.

A word is its text, its first frame, the frame after its last, and how sure it is, 0 to 1 or None.
"""

BEAM, THRESHOLD = 50, 25.0  # hypotheses kept a frame, and how far their scores lie below the best
LONGEST = 1_000  # letters of a word: the decoder goes down its tree of words by recursion
HEAVIEST = 1_000.0  # weight of a language model


class WordDecoder:
    """A `Decoder` of the words of a lexicon, in the order that a model and a language like best.

        decoder = WordDecoder(processor.tokenizer, lm="trigram.arpa")
        asr = Transcriber(model, processor, pool, decoder=decoder)

    Any number of threads may call it; they take turns.

    Args:
        tokenizer: of a CTC model, which spells words letter by letter.
        lexicon: a file with a word a line: all that can be said. By default, the words of `lm`.
        lm: a file with an n-gram model in ARPA's format, or in KenLM's binary one, which needs a
            lexicon beside it. None: any word may follow any.
        lm_weight: of the language model's log-probabilities beside those of the recognizer.

    Raises:
        ValueError: there is no lexicon, nothing in it that the tokenizer's letters spell or that
            `lm` knows, or no n-grams of at least two words in `lm`; `lm_weight` is not from 0 to
            1,000.
        OSError: a file is not there.
        ImportError: torchaudio or flashlight-text is missing.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        lexicon: str | os.PathLike[str] | None = None,
        lm: str | os.PathLike[str] | None = None,
        lm_weight: float = 1.0,
    ) -> None:
        imported("flashlight.lib.text", "lm", "decoding with a lexicon")
        search = imported("torchaudio.models.decoder", "lm", "decoding with a lexicon")
        if getattr(tokenizer, "word_delimiter_token", None) is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no token between words: a Wav2Vec2CTCTokenizer, "
                f"which spells words letter by letter, is needed"
            )
        numbers: dict[str, int] = tokenizer.get_vocab()
        self._silence = numbers[tokenizer.word_delimiter_token]
        tokens = [f"<{number}>" for number in range(max(numbers.values()) + 1)]  # if some are left
        for token, number in numbers.items():
            tokens[number] = token
        if not 0 <= lm_weight <= HEAVIEST:
            raise ValueError(f"lm_weight is {lm_weight!r:.60}, expected from 0 to {HEAVIEST:,.0f}")
        modeled = [] if lm is None else _modeled(lm)
        words = modeled if lexicon is None else _listed(lexicon)
        if not words:
            raise ValueError(
                f"{'no language model' if lm is None else f'{lm} is no ARPA file that'} says which "
                f"words there are: give a lexicon, a file with a word a line"
            )
        if modeled and not {*modeled} & {*words}:
            raise ValueError(
                f"{lm} knows none of the {len(words):,} words of {lexicon}, such as "
                f"{words[0]!r:.60}: write them alike, or leave one of the files out"
            )
        letters = numbers.keys() - {tokenizer.word_delimiter_token}
        spelled = [word for word in words if letters >= {*word}]
        if len(spelled) < len(words):
            odd = ", ".join(word for word in words[:1000] if not letters >= {*word})
            what = f"{len(words) - len(spelled):,} of {len(words):,} words have letters that the "
            what += f"tokenizer lacks ({odd:.60})"
            if not spelled:
                raise ValueError(f"{what}: write them as it does, as {''.join(tokens[-9:])}")
            logger.warning("%s, and cannot be found", what)
        with tempfile.TemporaryDirectory() as folder:
            spellings = Path(folder) / "lexicon"  # read once, by the constructor
            lines = (
                f"{word} {' '.join(word)} {tokenizer.word_delimiter_token}" for word in spelled
            )
            spellings.write_text("\n".join(lines) + "\n", encoding="utf-8")
            try:
                self._decoder: Any = search.ctc_decoder(
                    lexicon=str(spellings),
                    lm=None if lm is None else os.fspath(lm),
                    lm_weight=lm_weight * math.log(10),  # it reads decimal logarithms as they are
                    tokens=tokens,
                    blank_token=tokenizer.pad_token,
                    sil_token=tokenizer.word_delimiter_token,
                    nbest=1,
                    beam_size=BEAM,
                    beam_threshold=THRESHOLD,
                )
            except RuntimeError as error:  # KenLM's, over lines
                why = str(error).splitlines()[-1]
                raise ValueError(
                    f"{lm} cannot be read as n-grams, of at least two words: {why}"
                ) from error
        self._lock = Lock()

    def __call__(self, log_probabilities: torch.Tensor) -> list[tuple[str, int, int, float | None]]:
        """Decode a row, (frames, V) float32 on the CPU."""
        if not len(log_probabilities):
            return []
        with self._lock:
            best = self._decoder(log_probabilities[None].contiguous())[0]
        if not best:
            return []
        # It puts a frame of silence before the first, and one behind the last.
        starts = [frame - 1 for frame in best[0].timesteps.tolist()]
        letters: list[list[tuple[int, int, float]]] = [[]]  # of each word
        likely, greedy = log_probabilities.numpy(), log_probabilities.argmax(dim=-1).tolist()
        following = [*starts[1:], len(greedy)]
        for token, start, after in zip(best[0].tokens.tolist(), starts, following, strict=True):
            if token == self._silence:
                letters.append([])
                continue
            end = start + 1
            while end < after and greedy[end] == token:
                end += 1
            letters[-1].append((start, end, math.exp(likely[start:end, token].max())))
        return [  # of the last word there may be a part, where the recording ends within it
            (word, own[0][0], own[-1][1], min(sure for _, _, sure in own))
            for word, own in zip(best[0].words, filter(None, letters), strict=False)
        ]


def _listed(lexicon: str | os.PathLike[str]) -> list[str]:
    """The words of a lexicon."""
    try:
        lines = Path(lexicon).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{lexicon} is no text in UTF-8: convert it, as with iconv -t utf-8"
        ) from error
    words: list[str] = []
    for number, line in enumerate(lines, 1):
        if len(line.split()) > 1 or len(line) > LONGEST:
            raise ValueError(f"line {number} of {lexicon} is {line!r:.60}, expected a word a line")
        words += line.split()
    if not words:
        raise ValueError(f"{lexicon} holds no words, expected one a line")
    return list(dict.fromkeys(words))


def _modeled(lm: str | os.PathLike[str]) -> list[str]:
    """The words of an ARPA file; none of a file in another format."""
    words: list[str] = []
    with Path(lm).open(encoding="utf-8-sig", errors="replace") as lines:
        while (head := lines.readline(100)).isspace():
            pass
        if head.startswith("\\data\\"):
            for line in lines:
                if line.startswith("\\2-grams:"):
                    break
                # Its logarithm, the word, and a weight; <s> and <unk> are none.
                if found := re.match(r"-?[\d.]+\S*\s+([^\s<]\S*)", line):
                    words.append(found[1])
    return words
