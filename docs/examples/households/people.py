"""Who lives in the simulated households, what they speak into, and when they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from catalog import Catalog, zipf

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

LOCAL_HOURS_AHEAD = 1  # of UTC

FAVORITES = 6  # titles a household asks for again and again

PEOPLE_SHARES = (0.28, 0.34, 0.2, 0.18)  # households of one to four people
# Speakers: share and mean log-odds added to every word.
SPEAKERS = {"fluent": (0.70, -0.35), "accented": (0.18, 0.9), "child": (0.12, 0.8)}
SPEAKER_SPREAD = 0.45
DEVICES = {"remote": (0.6, -0.15), "soundbar": (0.25, 0.2), "far field": (0.15, 0.65)}
NOISE_SPREAD = 0.6
EVENING_NOISE = 0.3  # more voices around between 18 and 22 o'clock
REPEATED_CAREFULLY = 0.35  # said again, people speak more clearly

FEWEST_SESSIONS, FURTHER_SESSIONS = 0.35, 0.975  # a household's day: the second is a mean
WORKDAY, WEEKEND = 0.9, 1.3  # times as many sessions
# Morning, noon, afternoon, evening: share, hour, spread in hours.
DAY = ((0.14, 7.4, 0.8), (0.12, 12.6, 0.9), (0.14, 16.3, 1.0), (0.60, 20.4, 1.3))


@dataclass(frozen=True)
class Households:
    """H households of up to P = 4 people.

    Args:
        people: int32, (H,): how many.
        speaker: int32, (H, P): index into SPEAKERS.
        voices: int64, (H, P): a number for each speaker, of this seed only.
        level: float64, (H, P): log-odds that the speaker adds to every word.
        impatience: float64, (H, P), in [0, 1).
        device: int32, (H,): index into DEVICES.
        sessions_a_day: float64, (H,).
        favorites: int32, (H, FAVORITES): items of the catalog.
    """

    people: Ints
    speaker: Ints
    voices: npt.NDArray[np.int64]
    level: Floats
    impatience: Floats
    device: Ints
    sessions_a_day: Floats
    favorites: Ints


def move_in(rng: np.random.Generator, words: Catalog, count: int) -> Households:
    """`count` households."""
    people = 1 + choose(rng, PEOPLE_SHARES, count)
    most = len(PEOPLE_SHARES)
    shares, levels = zip(*SPEAKERS.values(), strict=True)
    speaker = choose(rng, shares, count * most).reshape(count, most)
    # The first person is grown up: nobody lives alone as a child.
    child = list(SPEAKERS).index("child")
    speaker[:, 0] = np.where(speaker[:, 0] == child, 0, speaker[:, 0])
    titles = words.items_of[0]
    return Households(
        people=people,
        speaker=speaker,
        voices=rng.integers(2**40, size=(count, most)),
        level=np.array(levels)[speaker] + SPEAKER_SPREAD * rng.standard_normal((count, most)),
        impatience=rng.random((count, most)),
        device=choose(rng, [share for share, _ in DEVICES.values()], count),
        sessions_a_day=FEWEST_SESSIONS + FURTHER_SESSIONS * rng.standard_exponential(count),
        favorites=titles[np.searchsorted(zipf(len(titles)), rng.random((count, FAVORITES)))],
    )


def sessions(rng: np.random.Generator, homes: Households, days: int) -> tuple[Ints, Ints, Floats]:
    """Household, person and first moment (seconds since the first midnight, UTC) of S sessions.

    Two sessions of one household may overlap: it has a second television.
    """
    count = len(homes.people)
    weekend = np.arange(days) % 7 >= 5
    rate = homes.sessions_a_day[:, None] * np.where(weekend, WEEKEND, WORKDAY)[None, :]
    number = rng.poisson(rate).ravel()  # (H · D,)
    home = np.repeat(np.repeat(np.arange(count, dtype=np.int32), days), number)
    day = np.repeat(np.tile(np.arange(days), count), number)
    share, hour, spread = (np.array(column) for column in zip(*DAY, strict=True))
    part = choose(rng, share, len(home))
    clock = hour[part] + spread[part] * rng.standard_normal(len(home))
    person = (rng.random(len(home)) * homes.people[home]).astype(np.int32)
    return home, person, (day * 24 + clock - LOCAL_HOURS_AHEAD) * 3600


def difficulty(
    rng: np.random.Generator,
    homes: Households,
    home: Ints,
    person: Ints,
    clock: Floats,
    attempt: Ints,
) -> Floats:
    """Log-odds that speaker, device and moment add to every word: float64, (n,)."""
    hour = (clock / 3600 + LOCAL_HOURS_AHEAD) % 24
    device = np.array([level for _, level in DEVICES.values()])
    total: Floats = (
        homes.level[home, person]
        + device[homes.device[home]]
        + np.where((hour >= 18) & (hour < 22), EVENING_NOISE, 0)
        + NOISE_SPREAD * rng.standard_normal(len(home))
        - REPEATED_CAREFULLY * (attempt > 0)
    )
    return total


def choose(rng: np.random.Generator, shares: Sequence[float] | Floats, count: int) -> Ints:
    """`count` indices drawn by their shares: int32, (count,)."""
    up_to = np.cumsum(shares) / np.sum(shares)
    return np.searchsorted(up_to[:-1], rng.random(count), side="right").astype(np.int32)


def choose_from(rng: np.random.Generator, shares: Floats) -> Ints:
    """One index a row, drawn by the row's shares (n, k): int32, (n,)."""
    up_to = np.cumsum(shares, axis=1)[:, :-1]
    above: Ints = (rng.random(len(shares))[:, None] >= up_to).sum(axis=1, dtype=np.int32)
    return above
