"""Batches for training: the same speech, never twice in the same voice, room and noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

import perturb
import recognizer
import voices
from corpus import Corpus
from recipe import Recipe

_JITTER = 4_000  # samples; lengths in a batch differ by about as much


class Lessons(Dataset[dict[str, Tensor]]):
    """Batches by number, without end: each a function of the recipe's seed and the number alone.

    Utterances of like length come together. The first pass takes the shorter half only.
    """

    def __init__(self, corpus: Corpus, recipe: Recipe) -> None:
        if len(corpus) < 2 * recipe.batch:
            raise ValueError(
                f"{len(corpus)} utterances are fewer than two batches of {recipe.batch}: "
                "raise --utterances or lower --batch."
            )
        self._corpus = corpus
        self._recipe = recipe
        self._first = len(corpus) // 2 // recipe.batch
        self._pass = len(corpus) // recipe.batch
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None
        index = {token: number for number, token in enumerate(recognizer.TOKENS)}
        self._labels = [
            torch.tensor([index[letter] for letter in utterance.text.replace(" ", "|")])
            for utterance in corpus.utterances
        ]

    def rows(self, number: int) -> npt.NDArray[np.int64]:
        """The utterances of a batch, (B,)."""
        epoch, place = 0, number
        if number >= self._first:
            epoch, place = divmod(number - self._first, self._pass)
            epoch += 1
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._shuffle(epoch))
        return self._order[1][place]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """`input_values` (B, N) float32, `attention_mask` (B, N) and `labels` (B, L) int64."""
        rows = self.rows(number)
        rng = np.random.default_rng([self._recipe.seed, number])
        waves = [self._said_anew(int(row), rng) for row in rows]
        longest = max(len(wave) for wave in waves)
        values = torch.zeros(len(rows), longest)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, wave in enumerate(waves):
            values[place, : len(wave)] = torch.from_numpy(wave)
            mask[place, : len(wave)] = 1
        labels = torch.nn.utils.rnn.pad_sequence(
            [self._labels[row] for row in rows], batch_first=True, padding_value=-100
        )
        return {"input_values": values, "attention_mask": mask, "labels": labels}

    def _shuffle(self, epoch: int) -> npt.NDArray[np.int64]:
        """All batches of a pass, (batches, B)."""
        rng = np.random.default_rng([self._recipe.seed, epoch, *b"order"])
        count = (self._pass if epoch else self._first) * self._recipe.batch
        samples = self._corpus.samples
        pool = rng.permutation(len(samples)) if epoch else np.argsort(samples, kind="stable")
        pool = pool[:count]
        pool = pool[np.argsort(samples[pool] + _JITTER * rng.random(count))]
        return rng.permutation(pool.reshape(-1, self._recipe.batch))

    def _said_anew(self, row: int, rng: np.random.Generator) -> perturb.Floats:
        speech = self._corpus[row]
        if rng.random() < 0.9:
            ratio = float(rng.uniform(self._recipe.fastest, self._recipe.slowest))
            response = perturb.room(rng) if rng.random() < 0.7 else None
            speech = perturb.resample(speech, ratio, response)
        if rng.random() < 0.3:
            speech = perturb.echo(speech, rng)
        kind = perturb.NOISES[int(rng.integers(len(perturb.NOISES)))]
        others = self._corpus.babble(rng, 4) if kind == "babble" else []
        snr = float(rng.uniform(*voices.SNR["train"]))
        speech = speech * np.float32(perturb.LEVEL / np.sqrt(np.mean(speech**2)))
        return normalize(perturb.in_noise(speech, kind, snr, rng, others))


def normalize(wave: perturb.Floats) -> perturb.Floats:
    """Mean 0 and variance 1, exactly as the processor does it."""
    return (wave - wave.mean()) / np.sqrt(wave.var() + np.float32(1e-7))
