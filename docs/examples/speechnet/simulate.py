"""Households that talk to a television: who wants what on which day, in which words and voice.

A training session has wishes ready, and attempts ready for each of them; what people do once the
television has answered decides which of them are made (`behave`). A test utterance is one attempt
of a person that training never heard, on a later day.

Voices: training hears synthesizers' voices, among them those that tinyvoice's model learned from,
and one natural voice. In the test other people speak with these voices, of another pace, pitch and
size, and a quarter of them with a natural voice that no training ever heard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

import behavior
import catalog
import people
import perturb
import queries
import voices
from speechnet import phrases, settings, speech
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
COLUMNS = (
    "utterance_id part session wish attempt how day clock household person kind item text"
    " engine voice pace pitch size device noise snr seed"
).split()
WISH_SECONDS, ATTEMPT_SECONDS = 60.0, 8.0  # from one to the next, until `behave` decides


@dataclass(frozen=True)
class Person:
    """Somebody who talks to the television.

    Attributes:
        household, number: who it is.
        device: what is spoken into.
        speaker: the voice with the person's own pace, pitch and size.
        favorites: titles that the household asks for again and again.
    """

    household: int
    number: int
    device: str
    speaker: voices.Speaker
    favorites: tuple[str, ...]


def plan(size: Size) -> pl.DataFrame:
    """All utterances before they are spoken, a function of the size and the seed alone.

    Returns:
        The columns of `utterances.parquet` without `duration`, ordered by time within each part.
    """
    rows = [*_train(size), *_test(size)]
    named = [{"utterance_id": f"u{number:07d}", **row} for number, row in enumerate(rows)]
    return pl.DataFrame(named, infer_schema_length=None).select(COLUMNS)


def simulate(size: Size, processes: int = 1) -> pl.DataFrame:
    """Plan and record a size's utterances and write `utterances.parquet`.

    Does nothing where the table is there and was made from the same settings.

    Returns:
        The utterances.
    """
    path = settings.results(size) / "utterances.parquet"
    planned = plan(size)
    if path.exists():
        before = pl.read_parquet(path)
        if before.drop("duration").equals(planned):
            return before
    rows = speech.record(planned, size, processes)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    rows.write_parquet(beside, compression="zstd")
    beside.replace(path)
    return rows


def about(utterances: pl.DataFrame) -> dict[str, float]:
    """What the test asks that is new to tinyvoice's model and to training.

    Returns:
        Of the test: "words" (how many of its words the model never heard), and shares of the
        utterances: "new_words" (with such a word), "new_items" (of an item that tinyvoice lacks),
        "new_texts" (of a text that nobody says in training).
    """
    train, test = (utterances.filter(pl.col("part") == part) for part in settings.PARTS)
    known = set(queries.words())
    texts, items = test["text"].to_list(), test["item"].to_list()
    said = set(train["text"])
    return {
        "words": len({word for text in texts for word in text.split()} - known),
        "new_words": float(np.mean([not known.issuperset(text.split()) for text in texts])),
        "new_items": float(np.mean([item not in queries.ALWAYS_TRAINED for item in items])),
        "new_texts": float(np.mean([text not in said for text in texts])),
    }


def _train(size: Size) -> list[dict[str, Any]]:
    rng = np.random.default_rng([settings.SEED, 0])
    inhabitants = _move_in(rng, size.households, 0, TRAIN_VOICES)
    sessions: list[list[dict[str, Any]]] = []
    count = 0
    while count < size.train:
        session = _session(rng, inhabitants, size)
        sessions.append(session)
        count += len(session)
    sessions.sort(key=lambda session: session[0]["clock"])
    for number, session in enumerate(sessions):
        for row in session:
            row["session"] = number
    return sorted((row for session in sessions for row in session), key=lambda row: row["clock"])


def _test(size: Size) -> list[dict[str, Any]]:
    rng = np.random.default_rng([settings.TEST_SEED, 1])
    inhabitants = _move_in(rng, size.test_households, size.households, TEST_VOICES)
    first = settings.HISTORY + size.days
    rows = []
    for number in range(size.test):
        # In turn, so that every voice says as much as its speakers are many.
        person = inhabitants[number % len(inhabitants)]
        day = first + int(rng.integers(size.test_days))
        clock = (day + _time_of_day(rng)) * settings.DAY
        phrase = _wish(rng, person, day)
        row = _utterance(rng, person, phrase, day, clock, 0)
        rows.append({"part": "test", "wish": 0, "attempt": 0, "how": "first", **row})
    rows.sort(key=lambda row: row["clock"])
    for number, row in enumerate(rows):
        row["session"] = number
    return rows


def _session(
    rng: np.random.Generator, inhabitants: list[Person], size: Size
) -> list[dict[str, Any]]:
    person = inhabitants[int(rng.integers(len(inhabitants)))]
    day = settings.HISTORY + int(rng.integers(size.days))
    clock = (day + _time_of_day(rng)) * settings.DAY
    rows: list[dict[str, Any]] = []
    for wish in range(int(rng.geometric(1 / settings.WISHES))):
        phrase = _wish(rng, person, day)
        for attempt in range(1 + int(rng.choice(len(settings.TRIES), p=settings.TRIES))):
            how, phrase = _again(rng, phrase) if attempt else ("first", phrase)
            at = clock + wish * WISH_SECONDS + attempt * ATTEMPT_SECONDS
            row = _utterance(rng, person, phrase, day, at, attempt)
            if attempt:  # the same room a moment later
                row["noise"], row["snr"] = rows[-1]["noise"], round(rows[-1]["snr"] + LOUDER, 1)
            rows.append({"part": "train", "wish": wish, "attempt": attempt, "how": how, **row})
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
    rng: np.random.Generator,
    person: Person,
    phrase: phrases.Phrase,
    day: int,
    clock: float,
    attempt: int,
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
        "day": day,
        "clock": round(clock, 3),
        "household": person.household,
        "person": person.number,
        "kind": phrase.kind,
        "item": phrase.item,
        "text": phrase.text,
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
