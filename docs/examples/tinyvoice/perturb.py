"""What differs from one room and speaker to the next: resampling, spectral tilt, echo, noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
NoiseKind = Literal["white", "pink", "babble"]

RATE = 16_000  # Hz, everywhere
NOISES: tuple[NoiseKind, ...] = ("white", "pink", "babble")
LEVEL = 0.06  # root mean square of the speech before a gain
_BLOCK = 128  # transforms of lengths that are multiples of it are fast


def resample(
    audio: Floats, ratio: float, response: npt.NDArray[np.complex64] | None = None
) -> Floats:
    """`ratio` times as many samples, by cutting or extending the spectrum.

    Played at the old rate, speech becomes slower and deeper for ratios above 1. The ratio is kept
    to about 0.5% in a second of audio: lengths are rounded to where transforms are fast.

    Args:
        audio: (N,).
        ratio: new samples for each old one.
        response: (F,), the filter's response at F frequencies evenly spaced from 0 Hz to half the
            old rate, applied on the way.
    """
    size = _round_up(len(audio))
    length = max(_BLOCK, round(size * ratio / _BLOCK) * _BLOCK)
    spectrum = np.fft.rfft(audio, size)  # (size / 2 + 1,)
    if response is not None:
        spectrum *= _stretch(response, len(spectrum))
    changed = np.fft.irfft(spectrum[: length // 2 + 1], length) * (length / size)
    return changed[: round(len(audio) * length / size)].astype(np.float32)


def room(rng: np.random.Generator) -> npt.NDArray[np.complex64]:
    """The response of a random microphone and a small room, (F,) complex.

    A tilt and three ripples of a few dB over the mel scale, an edge at either end of the band, and
    a decaying echo of 20 to 120 ms.
    """
    count = 513
    frequency = np.linspace(0, RATE / 2, count)
    mel = np.log1p(frequency / 700) / np.log1p(RATE / 2 / 700)
    decibels = rng.uniform(-8, 8) * (mel - 0.5)
    for order in range(1, 4):
        decibels += rng.uniform(0, 3) * np.cos(np.pi * order * mel + rng.uniform(0, 2 * np.pi))
    low, high = rng.uniform(20, 200), rng.uniform(4_000, 9_000)
    decibels -= 12 * np.log2(np.maximum(1, low / np.maximum(frequency, 10)))
    decibels -= 24 * np.log2(np.maximum(1, frequency / high))
    return (10 ** (decibels / 20)).astype(np.complex64)


def echo(audio: Floats, rng: np.random.Generator) -> Floats:
    """Speech in a small room: exponentially decaying noise as the tail of the response."""
    decay = rng.uniform(0.02, 0.12) * RATE  # samples to fall by 60 dB / 6.9
    tail = rng.standard_normal(round(2 * decay)) * np.exp(-np.arange(round(2 * decay)) / decay)
    tail *= rng.uniform(0.05, 0.5) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    size = _round_up(len(audio) + len(tail))
    wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(tail, size), size)
    return wet[: len(audio)].astype(np.float32)


def noise(
    kind: NoiseKind, length: int, rng: np.random.Generator, others: Sequence[Floats]
) -> Floats:
    """Noise with a root mean square of 1, (length,).

    Args:
        kind: "white", "pink" (power falling with 1/f) or "babble" (four voices at once).
        length: samples.
        rng: decides it.
        others: clean speech that babble is made of.

    Raises:
        ValueError: for another kind, or babble of nobody.
    """
    if kind == "white":
        wave = rng.standard_normal(length, dtype=np.float32)
    elif kind == "pink":
        size = _round_up(length)
        spectrum = np.fft.rfft(rng.standard_normal(size))
        spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
        spectrum[0] = 0
        wave = np.fft.irfft(spectrum, size)[:length].astype(np.float32)
    elif kind == "babble":
        if not others:
            raise ValueError("babble is made of other speech and none was given: pass `others`.")
        wave = np.zeros(length, np.float32)
        for index in rng.integers(len(others), size=4):
            voice = np.resize(others[int(index)], length)
            wave += np.roll(voice, int(rng.integers(length)))
    else:
        raise ValueError(f"noise is one of {', '.join(NOISES)}, not {kind!r}.")
    return wave / max(float(np.sqrt(np.mean(wave**2))), 1e-9)


def in_noise(
    speech: Floats, kind: NoiseKind, snr: float, rng: np.random.Generator, others: Sequence[Floats]
) -> Floats:
    """Speech between 0.1 to 0.3 s of silence on either side, in noise `snr` dB below it: (M,)."""
    lead, tail = (round(seconds * RATE) for seconds in rng.uniform(0.1, 0.3, size=2))
    quiet = np.pad(speech, (lead, tail))
    level = np.sqrt(np.mean(speech**2)) * 10 ** (-snr / 20)
    mixed = quiet + np.float32(level) * noise(kind, len(quiet), rng, others)
    return np.clip(mixed, -1, 1).astype(np.float32)


def _round_up(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _stretch(response: npt.NDArray[np.complex64], bins: int) -> npt.NDArray[np.complex64]:
    at = np.linspace(0, 1, bins)
    grid = np.linspace(0, 1, len(response))
    return np.interp(at, grid, response.real).astype(np.complex64)
