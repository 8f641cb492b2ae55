"""What is asked of the television: a grammar, its words, and the sentences kept from training.

    query   = command | title | channel | network | genre | person | episode | volume
    title   = [verb] TITLE ["on" NETWORK]
    channel = ["go to" | "switch to"] "channel" (NUMBER | DIGIT DIGIT DIGIT)
    ...

Whether a sentence is for training, development or test is decided by a hash of its text, so that
no seed can mix them. Commands and bare names are always for training: every word of the grammar is
heard there.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Literal

import numpy as np

Part = Literal["train", "dev", "test"]

COMMANDS = """volume up|volume down|mute|turn off the tv|turn on subtitles|go back|pause|rewind|
fast forward|record this|settings|guide|home|next episode|last channel|stop|restart|help|
show my recordings|what should i watch|open the menu|closed captioning off|skip this|
what's new""".replace("\n", "").split("|")
TITLES = """game of thrones|stranger things|the office|breaking bad|frozen|the simpsons|friends|
family guy|star wars|toy story|the walking dead|modern family|the big bang theory|house of cards|
the good doctor|law and order|criminal minds|south park|spider man|the lion king|the voice|
american idol|jurassic park|the dark knight|harry potter|black panther|the crown|sesame street|
curious george|finding nemo|wheel of fortune|jeopardy|love island|survivor|yellow stone|
the price is right|saturday night live""".replace("\n", "").split("|")
NETWORKS = """discovery|disney|comedy central|cartoon network|food network|history|nickelodeon|
fox news|animal planet|national geographic|netflix|youtube|prime video|local news|bravo""".replace(
    "\n", ""
).split("|")
GENRES = """comedies|action movies|cartoons|horror movies|dramas|documentaries|kids shows|
science fiction|westerns|thrillers|free movies|christmas movies|cooking shows|reality shows|
football games|basketball games|baseball games|hockey games""".replace("\n", "").split("|")
PEOPLE = """tom hanks|julia roberts|brad pitt|will smith|tom cruise|denzel washington|
sandra bullock|jim carrey|jennifer lawrence|clint eastwood|harrison ford""".replace("\n", "").split(
    "|"
)
VERBS = ["play", "watch", "find", "record", "search for", "show me", "put on"]
DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = ("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

ALWAYS_TRAINED = frozenset([*COMMANDS, *TITLES, *NETWORKS, *GENRES, *PEOPLE])
# Shares of the kinds of query; digits and titles lead, as in the logs of voice remotes.
KINDS = {
    "command": 0.12,
    "title": 0.32,
    "channel": 0.2,
    "network": 0.08,
    "genre": 0.09,
    "person": 0.08,
    "episode": 0.07,
    "volume": 0.04,
}
TEST_SHARE, DEV_SHARE = 0.12, 0.04


def spell(number: int) -> str:
    """A number from 0 to 999 in words.

    >>> spell(7), spell(42), spell(300), spell(119)
    ('seven', 'forty two', 'three hundred', 'one hundred nineteen')
    """
    if not 0 <= number <= 999:
        raise ValueError(f"{number} has no words here: expected 0 to 999.")
    hundreds, rest = divmod(number, 100)
    words = [DIGITS[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        words += [TENS[rest // 10 - 2]] + ([DIGITS[rest % 10]] if rest % 10 else [])
    elif rest or not hundreds:
        words.append((DIGITS + TEENS)[rest])
    return " ".join(words)


def part_of(text: str) -> Part:
    """Which part of the data a sentence is for, now and always."""
    if text in ALWAYS_TRAINED:
        return "train"
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
    if share < TEST_SHARE:
        return "test"
    return "dev" if share < TEST_SHARE + DEV_SHARE else "train"


def draw(rng: np.random.Generator, part: Part) -> str:
    """A query of one part of the data."""
    while True:
        text = _sentence(rng)
        if part_of(text) == part:
            return text


@cache
def words() -> tuple[str, ...]:
    """All words of the grammar, sorted."""
    fixed = [*ALWAYS_TRAINED, *VERBS, *DIGITS, *TEENS, *TENS]
    glue = (
        "hundred channel go to switch on open movies with show me set the volume season episode of"
    )
    return tuple(sorted({word for text in [*fixed, glue] for word in text.split()}))


def _sentence(rng: np.random.Generator) -> str:
    kind = rng.choice(list(KINDS), p=list(KINDS.values()))
    match kind:
        case "command":
            return _one(rng, COMMANDS)
        case "title":
            text = _one(rng, TITLES)
            if rng.random() < 0.8:
                text = f"{_one(rng, VERBS)} {text}"
            return f"{text} on {_one(rng, NETWORKS)}" if rng.random() < 0.15 else text
        case "channel":
            lead = _one(rng, ["", "", "go to ", "switch to "])
            return f"{lead}channel {_channel(rng)}"
        case "network":
            return _one(rng, ["", "go to ", "open ", "watch ", "switch to "]) + _one(rng, NETWORKS)
        case "genre":
            text = _one(rng, ["", "show me ", "find ", "search for "]) + _one(rng, GENRES)
            return f"{text} on {_one(rng, NETWORKS)}" if rng.random() < 0.15 else text
        case "person":
            name = _one(rng, PEOPLE)
            return _one(
                rng,
                [name, f"movies with {name}", f"show me {name} movies", f"find {name}"],
            )
        case "episode":
            number = spell(int(rng.integers(1, 21)))
            what = _one(rng, ["season", "episode"])
            return f"{_one(rng, ['play', 'watch', 'find'])} {what} {number} of {_one(rng, TITLES)}"
        case _:
            lead = _one(rng, ["volume", "set the volume to"])
            return f"{lead} {spell(int(rng.integers(0, 101)))}"


def _channel(rng: np.random.Generator) -> str:
    if rng.random() < 0.3:
        return " ".join(DIGITS[digit] for digit in rng.integers(0, 10, size=3))
    return spell(int(rng.integers(1, 100)) if rng.random() < 0.7 else int(rng.integers(100, 1000)))


def _one(rng: np.random.Generator, choices: list[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
