"""Households that talk to a television: who wants what on which day, in which words and voice.

A training session has wishes ready, and attempts ready for each of them; what people do once the
television has answered decides which of them are made (`behave`). A test utterance is one attempt
of a person that training never heard, on a later day.

Voices: training hears synthesizers' voices, among them those that tinyvoice's model learned from,
and one natural voice. In the test other people speak with these voices, of another pace, pitch and
size, and a quarter of them with a natural voice that no training ever heard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import polars as pl

import behavior
import catalog
import people
import perturb
import voices
from speechnet import files, phrases, settings, speech
from speechnet.settings import Size

# Shares of speakers by engine and voice; "" stands for tinyvoice's own choice among its voices.
TRAIN_VOICES = {
    ("hibari", "heart"): 0.45,
    ("flite", ""): 0.18,
    ("festival", "cmu_us_slt_arctic_hts"): 0.15,
    ("espeak-ng", ""): 0.12,
    ("festival", "kal_diphone"): 0.1,
}
UNHEARD, UNHEARD_SHARE = ("piper", "joe"), 0.25
TEST_VOICES = {UNHEARD: UNHEARD_SHARE} | {
    voice: (1 - UNHEARD_SHARE) * share for voice, share in TRAIN_VOICES.items()
}
# Decibels of speech above noise, by device: median and spread.
SNR = {"remote": (17.5, 6.0), "soundbar": (14.5, 6.0), "far field": (11.5, 6.0)}
SNR_RANGE = (0.0, 30.0)
QUIET_SHARE, QUIET_SNR = 0.12, 40.0
LOUDER = 1.5  # decibels that people speak up by when they say it again
CAREFUL = 1.06  # how much longer it then takes
WISH_SECONDS, ATTEMPT_SECONDS = 60.0, 8.0  # from one to the next, until `behave` decides
LENGTH = 0.05  # seconds by which a recording may differ from the table's

Session = list[dict[str, Any]]  # rows in the order in which they are said


@dataclass(frozen=True)
class Person:
    """Somebody with a voice, what they speak into, and what the household asks for again."""

    household: int
    number: int
    device: str
    speaker: voices.Speaker
    favorites: tuple[str, ...]


def simulate(size: Size, processes: int = 1) -> pl.DataFrame:
    """Record a size's utterances and write `utterances.parquet`, or leave and return what is there.

    Raises:
        RuntimeError: a recording is not as long as a table of the same plan says.
    """
    path = settings.results(size) / "utterances.parquet"
    planned = plan(size)
    rows = speech.record(planned, size, processes)
    before = pl.read_parquet(path) if path.exists() else None
    if before is None or not before.drop("duration").equals(planned):
        files.write_table(rows, path)
        return rows
    other = before.filter((rows["duration"] - before["duration"]).abs() > LENGTH)
    if len(other):
        first = "{utterance_id} ({engine} {voice})".format(**other.row(0, named=True))
        raise RuntimeError(
            f"{len(other)} of {len(rows)} recordings differ in length from the table, the first"
            f" {first}: other versions of the synthesizers are installed. For a table of yours,"
            f" remove {path} and run the step simulate again."
        )
    return before


def plan(size: Size) -> pl.DataFrame:
    """All utterances before they are spoken, a function of the size and the seed alone.

    Returns:
        The columns of `utterances.parquet` without `duration`, ordered by time within each part.
    """
    parts = {"train": _in_order(_train(size)), "test": _in_order(_test(size))}
    rows = [{"part": part, **row} for part, rows in parts.items() for row in rows]
    named = [{"utterance_id": f"u{number:07d}", **row} for number, row in enumerate(rows)]
    return pl.DataFrame(named, infer_schema_length=None)


def _in_order(sessions: Iterable[Session]) -> Session:
    """The rows of all sessions by time, with `session`, its number."""
    ordered = enumerate(sorted(sessions, key=lambda session: session[0]["clock"]))
    rows = ({"session": number, **row} for number, session in ordered for row in session)
    return sorted(rows, key=lambda row: row["clock"])


def _train(size: Size) -> Iterator[Session]:
    rng = np.random.default_rng([settings.SEED, 0])
    inhabitants = _move_in(rng, size.households, 0, TRAIN_VOICES)
    count = 0
    while count < size.train:
        person = inhabitants[int(rng.integers(len(inhabitants)))]
        session = _session(rng, person, settings.HISTORY, size.days)
        count += len(session)
        yield session


def _test(size: Size) -> Iterator[Session]:
    rng = np.random.default_rng([settings.TEST_SEED, 1])
    inhabitants = _move_in(rng, size.test_households, size.households, TEST_VOICES)
    first = settings.HISTORY + size.days
    # In turn, so that every voice says as much as its speakers are many.
    for person in islice(cycle(inhabitants), size.test):
        yield _session(rng, person, first, size.test_days, once=True)


def _session(
    rng: np.random.Generator, person: Person, first: int, days: int, once: bool = False
) -> Session:
    """What somebody is ready to say on one of some days; or one thing once."""
    day = first + int(rng.integers(days))
    clock = (day + _time_of_day(rng)) * settings.DAY
    rows: Session = []
    for wish in range(1 if once else rng.geometric(1 / settings.WISHES)):
        phrase = _wish(rng, person, day)
        more = 0 if once else rng.choice(len(settings.TRIES), p=settings.TRIES)
        for attempt in range(1 + more):
            how, phrase = _again(rng, phrase) if attempt else ("first", phrase)
            at = clock + wish * WISH_SECONDS + attempt * ATTEMPT_SECONDS
            row = _utterance(rng, person, phrase, attempt)
            if attempt:  # the same room a moment later
                row["noise"], row["snr"] = rows[-1]["noise"], round(rows[-1]["snr"] + LOUDER, 1)
            said = {"wish": wish, "attempt": attempt, "how": how, "day": day}
            rows.append({**said, "clock": round(at, 3), **row})
    return rows


def _wish(rng: np.random.Generator, person: Person, day: int) -> phrases.Phrase:
    kind = catalog.KINDS[int(people.choose(rng, behavior.KIND_SHARES, 1)[0])]
    items = phrases.items(kind)
    item = items[int(rng.choice(len(items), p=phrases.shares(kind, day)))]
    if kind == "title" and rng.random() < behavior.FAVORITE_SHARE:
        item = person.favorites[int(rng.integers(len(person.favorites)))]
    return _worded(rng, kind, item)


def _worded(rng: np.random.Generator, kind: str, item: str) -> phrases.Phrase:
    texts, shares = phrases.ways(kind, item)
    return phrases.Phrase(kind, item, texts[int(rng.choice(len(texts), p=shares))])


def _again(rng: np.random.Generator, phrase: phrases.Phrase) -> tuple[str, phrases.Phrase]:
    """The same wish in the same or in other words."""
    same = behavior.SAY_AGAIN / (behavior.SAY_AGAIN + behavior.SAY_OTHERWISE)
    if rng.random() < same or len(phrases.ways(phrase.kind, phrase.item)[0]) == 1:
        return "again", phrase
    while True:
        other = _worded(rng, phrase.kind, phrase.item)
        if other != phrase:
            return "otherwise", other


def _utterance(
    rng: np.random.Generator, person: Person, phrase: phrases.Phrase, attempt: int
) -> dict[str, Any]:
    """A row but for its number, its part and its place in a session."""
    one = person.speaker
    careful = CAREFUL if attempt else 1.0
    pace, pitch = rng.uniform(0.94, 1.06, size=2)
    # espeak-ng counts words a minute, the others how long everything takes.
    pace = pace / careful if one.engine == "espeak-ng" else pace * careful
    steady = one.engine == "piper" or one.voice.endswith("_hts")
    quiet = rng.random() < QUIET_SHARE
    median, spread = SNR[person.device]
    snr = np.clip(median + spread * rng.standard_normal(), *SNR_RANGE)
    noise = perturb.NOISES[int(rng.integers(len(perturb.NOISES)))]
    return {
        "household": person.household,
        "person": person.number,
        **asdict(phrase),
        "engine": one.engine,
        "voice": one.voice,
        "pace": one.pace if steady else round(float(one.pace * pace), 3),
        "pitch": round(float(one.pitch * pitch), 3),
        "size": round(float(one.size * rng.uniform(0.985, 1.015)), 3),
        "device": person.device,
        "noise": speech.QUIET if quiet else noise,
        "snr": QUIET_SNR if quiet else round(float(snr), 1),
        "seed": int(rng.integers(2**31)),
    }


def _move_in(
    rng: np.random.Generator, count: int, first: int, mix: dict[tuple[str, str], float]
) -> list[Person]:
    """The people of `count` households, numbered from `first`, with voices by their shares."""
    devices = {device: share for device, (share, _) in people.DEVICES.items()}
    homes = 1 + people.choose(rng, people.PEOPLE_SHARES, count)
    total = int(homes.sum())
    # By quotas rather than by chance: few speakers would miss a rare voice.
    quota = (rng.permutation(total) + 0.5) / total
    up_to = np.cumsum(list(mix.values())) / sum(mix.values())
    drawn = np.minimum(np.searchsorted(up_to, quota), len(mix) - 1)
    speakers = iter(_speaker(rng, *list(mix)[voice]) for voice in drawn)
    shares = phrases.shares("title", settings.HISTORY)
    inhabitants = []
    for home, number in enumerate(homes):
        device = list(devices)[int(people.choose(rng, list(devices.values()), 1)[0])]
        favorites = rng.choice(len(shares), size=people.FAVORITES, replace=False, p=shares)
        liked = tuple(phrases.titles()[index] for index in favorites)
        inhabitants += [
            Person(first + home, one, device, next(speakers), liked) for one in range(number)
        ]
    return inhabitants


def _speaker(rng: np.random.Generator, engine: str, voice: str) -> voices.Speaker:
    """Somebody with this voice, or with one of tinyvoice's trained voices where it is empty."""
    if not voice:
        known = voices.speakers("train", 48, int(rng.integers(2**31)))
        return next(one for one in known if one.engine == engine)
    size = round(float(rng.uniform(0.88, 1.14)), 3)
    pace, pitch = 1.0, 1.0
    if engine == "hibari":
        pace = round(float(rng.uniform(0.85, 1.2)), 3)
    elif engine == "piper":  # few, as each needs a process of its own
        pace = float(rng.choice((0.9, 1.0, 1.1)))
    elif not voice.endswith("_hts"):
        pace, pitch = (round(float(at), 3) for at in (rng.uniform(0.9, 1.2), rng.uniform(90, 125)))
    return voices.Speaker(engine, voice, pace, pitch, size)  # type: ignore[arg-type]


def _time_of_day(rng: np.random.Generator) -> float:
    """When a session begins: the share of the day that has passed, in [0, 1)."""
    share, hour, spread = zip(*people.DAY, strict=True)
    part = int(people.choose(rng, share, 1)[0])
    return float((hour[part] + spread[part] * rng.standard_normal()) / 24 % 1)
