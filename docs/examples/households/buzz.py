"""Sound for simulated queries: a buzz and a hiss that follow the phones of what was said.

It is no speech that anybody would understand. It is there so that a log with audio can be exported:
each file lasts as long as its query.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import soundfile

from sounds import VOWELS, pronounce

RATE = 8_000  # samples a second
RECORDED = 8  # queries that ship with a recording
PITCH = 110.0  # Hz

# Where the energy of a phone lies, Hz: two formants of what is voiced, the middle of a noise.
FORMANTS = {
    "a": (700, 1200),
    "e": (530, 1850),
    "i": (400, 2000),
    "o": (570, 850),
    "u": (440, 1020),
    "A": (480, 2100),
    "I": (280, 2300),
    "Y": (650, 1600),
    "O": (500, 800),
    "U": (320, 850),
    "W": (650, 950),
    "R": (490, 1350),
    "m": (250, 1000),
    "n": (250, 1500),
    "l": (350, 1100),
    "r": (400, 1200),
    "w": (300, 700),
    "y": (280, 2200),
}
NOISE = {"s": 3600, "z": 3400, "S": 2600, "C": 2500, "J": 2300, "f": 2900, "v": 2000, "T": 3100}
BURST = 1800  # of any other phone

Samples = npt.NDArray[np.float64]


def recording(text: str, seconds: float, seed: int) -> Samples:
    """The sound of a text, (round(seconds * RATE),), within [-1, 1]; a phone is a stretch of it.

    >>> recording("play", 0.5, seed=1).shape
    (4000,)
    """
    phones = " ".join(pronounce(word) for word in text.split()) or " "
    count = round(seconds * RATE)
    ends = np.linspace(0, count, len(phones) + 1).round().astype(int)
    rng = np.random.default_rng(seed)
    time = np.arange(count) / RATE
    sound = np.zeros(count)
    for phone, begin, end in zip(phones, ends[:-1], ends[1:], strict=True):
        if phone != " ":
            sound[begin:end] = _phone(phone, time[begin:end], rng)
    return 0.5 * sound / max(np.abs(sound).max(), 1e-9)


def _phone(phone: str, time: Samples, rng: np.random.Generator) -> Samples:
    if phone in FORMANTS:
        tones = np.arange(PITCH, RATE / 2, PITCH)
        bands = [1 / (1 + ((tones - middle) / 90) ** 2) for middle in FORMANTS[phone]]
        loud = (bands[0] + 0.6 * bands[1]) * (1.0 if phone in VOWELS else 0.5)
        sound: Samples = np.sin(2 * np.pi * tones * time[:, None]) @ loud
    else:
        spectrum = np.fft.rfft(rng.standard_normal(len(time)))
        away = np.fft.rfftfreq(len(time), 1 / RATE) - NOISE.get(phone, BURST)
        sound = 0.3 * np.fft.irfft(spectrum * np.exp(-((away / 600) ** 2)), len(time))
    return sound * np.hanning(len(time))


def record(queries: pl.DataFrame, truth: pl.DataFrame, folder: Path) -> None:
    """Write recordings/<query_id>.flac and recorded.parquet, the queries with their paths.

    Args:
        queries: the rows of the log to record.
        truth: what was said in them; further rows are left.
        folder: what the paths in recorded.parquet are relative to.
    """
    (folder / "recordings").mkdir(exist_ok=True)
    queries = queries.with_columns(pl.format("recordings/{}.flac", "query_id").alias("audio"))
    said = queries.join(truth.select("query_id", said="transcript"), on="query_id")
    for seed, row in enumerate(said.iter_rows(named=True)):
        samples = recording(row["said"], row["duration"], seed)
        soundfile.write(folder / row["audio"], samples, RATE, subtype="PCM_16")
    queries.write_parquet(folder / "recorded.parquet", compression="zstd", compression_level=19)
