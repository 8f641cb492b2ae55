"""What can be asked of the television, in which words, and how often on which day.

A title's popularity starts from Zipf's law and drifts: a random walk from day to day, and titles
that appear later begin as news. Every word is in pocketsphinx's dictionary, no two of them sound
the same, and no sentence is one that tinyvoice's model was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from catalog import ADJECTIVES, KINDS, MATERIALS, NOUNS

Floats = npt.NDArray[np.float64]

AMERICAN = {"harbour": "harbor", "neighbours": "neighbors", "theatre": "theater"}
# Each sounds like another word of the catalog, or is often written in two ways.
LEFT_OUT = frozenset("knight hour eye one key grey".split())
NAMES = "bruno clara felix greta hugo jonas leo mona oscar pablo rosa vera martin nora".split()
PLACES = "lisbon kyoto dublin verona boston madrid vienna oslo havana berlin".split()
CHANNELS = (
    "news harbor|kids planet|cinema gold|the kitchen channel|music box|history plus|nature first"
    "|world news tonight|comedy lane|star sports|local seven|retro classics|science corner"
    "|garden and home"
).split("|")
APPS = (
    "film haven|play nest|tune box|sport hub|cinnamon stream|lumber video|pocket cinema|story cave"
).split("|")
SEARCHES = (
    "nature documentaries|football highlights|crime series|romantic movies|quiz shows"
    "|space documentaries|movies for children|scary movies with ghosts|black and white movies"
    "|shows about trains|travel shows|new movies this week|war movies|live concerts|baking shows"
    "|short movies|stand up comedy|movies with talking animals|cheap holidays|the weather tomorrow"
    "|magic tricks|cooking with fish|wedding speeches|famous paintings|simple experiments"
    "|mountain climbing|yoga lessons|tennis finals|sad songs|dance classes|puppet theater"
    "|car races|building bridges|famous mysteries|wildlife in africa|birthday cakes"
).split("|")
COMMANDS = (
    "turn it up|turn it down|make it louder|make it quieter|play the next episode|switch it off"
    "|start over|skip the intro|go back ten seconds|jump ahead three minutes|what time is it"
    "|turn the captions on|turn the captions off|save this for later|brighter picture"
    "|show the program guide|next channel|wake me at seven|add it to my favorites"
    "|who directed this|repeat that|remember this program|sleep after twenty minutes"
).split("|")

# How a thing of each kind is asked for, and how often: the first is how most people say it.
WAYS = {
    "title": {
        "{}": 34,
        "play {}": 22,
        "watch {}": 10,
        "put on {}": 7,
        "find {}": 6,
        "show me {}": 6,
        "{} season three": 5,
        "the movie {}": 4,
        "play {} on film haven": 4,
        "i want to watch {}": 4,
    },
    "channel": {"{}": 46, "go to {}": 16, "switch to {}": 16, "put on {}": 12, "turn on {}": 10},
    "app": {"{}": 42, "open {}": 40, "go to {}": 10, "launch {}": 8},
    "search": {"{}": 46, "show me {}": 26, "find {}": 16, "search for {}": 12},
    "command": {"{}": 76, "please {}": 14, "{} please": 10},
}

TITLES = 320
KNOWN = 220  # of these from the beginning; the others appear one after another
ZIPF = 0.9
WALK = 0.2  # log popularity's step from one day to the next
NEWS, NEWS_DAYS = 2.5, 4.0  # a new title's extra log popularity, and how fast it fades
CALENDAR = 60  # days that popularity is known for


@dataclass(frozen=True)
class Phrase:
    """Something that is said.

    Attributes:
        kind: one of households' KINDS.
        item: what is wanted: a title, a channel, an app, a search or a command.
        text: the words.
    """

    kind: str
    item: str
    text: str


@cache
def titles() -> tuple[str, ...]:
    """All titles, those that appear later among the others."""
    rng = np.random.default_rng(7)
    adjectives, nouns, materials = (_words(words) for words in (ADJECTIVES, NOUNS, MATERIALS))
    shapes = (
        ("the {} {}", adjectives, nouns),
        ("{} {}", adjectives, nouns),
        ("{} of {}", nouns, materials),
        ("{} and the {}", NAMES, nouns),
        ("{} {}", PLACES, nouns),
        ("the {} of {}", nouns, PLACES),
        ("{} {}", nouns, nouns),
    )
    made: dict[str, None] = {}
    while len(made) < TITLES:
        template, first, second = shapes[int(rng.integers(len(shapes)))]
        one, other = (words[int(rng.integers(len(words)))] for words in (first, second))
        if one != other:
            made[template.format(one, other)] = None
    return tuple(made)


def items(kind: str) -> tuple[str, ...]:
    """What there is of a kind, whether or not it has appeared yet.

    Raises:
        ValueError: for a kind that is none of `KINDS`.
    """
    of = {"channel": CHANNELS, "app": APPS, "search": SEARCHES, "command": COMMANDS}
    if kind == "title":
        return titles()
    if kind not in of:
        raise ValueError(f"a kind is one of {', '.join(KINDS)}, not {kind!r}.")
    return tuple(of[kind])


def shares(kind: str, day: int) -> Floats:
    """How often each of `items(kind)` is asked for on a day: float64, (n,), adding up to 1.

    Raises:
        ValueError: for a day that the calendar lacks.
    """
    if not 0 <= day < CALENDAR:
        raise ValueError(f"day {day} is not in the calendar of days 0 to {CALENDAR - 1}.")
    if kind == "title":
        return _popularity()[day]
    weights = 1 / (np.arange(len(items(kind))) + 2.0) ** ZIPF
    return np.asarray(weights / weights.sum())


def ways(kind: str) -> tuple[tuple[str, ...], Floats]:
    """A kind's ways of asking, with "{}" for the item, and their shares: float64, (n,)."""
    weights = np.array(list(WAYS[kind].values()), np.float64)
    return tuple(WAYS[kind]), weights / weights.sum()


def asked(kind_shares: tuple[float, ...], day: int) -> dict[Phrase, float]:
    """All that can be said on a day, each with its probability.

    Args:
        kind_shares: the share of each of `KINDS`.
        day: titles that appear later are left out.
    """
    total = sum(kind_shares)
    probability: dict[Phrase, float] = {}
    for kind, share in zip(KINDS, kind_shares, strict=True):
        templates, way_shares = ways(kind)
        for item, popular in zip(items(kind), shares(kind, day), strict=True):
            for template, way in zip(templates, way_shares, strict=True):
                if popular > 0:
                    phrase = Phrase(kind, item, template.format(item))
                    probability[phrase] = float(share / total * popular * way)
    return probability


@cache
def sentences() -> tuple[Phrase, ...]:
    """All that can ever be said; the same words may mean two things."""
    return tuple(
        Phrase(kind, item, template.format(item))
        for kind in KINDS
        for item in items(kind)
        for template in WAYS[kind]
    )


@cache
def words() -> tuple[str, ...]:
    """All words of the catalog, sorted: the lexicon of a product that knows what it offers."""
    return tuple(sorted({word for phrase in sentences() for word in phrase.text.split()}))


def _words(households: list[str]) -> list[str]:
    return [AMERICAN.get(word, word) for word in households if word not in LEFT_OUT]


@cache
def _popularity() -> Floats:
    """(CALENDAR, TITLES): each row adds up to 1, with 0 before a title appears."""
    rng = np.random.default_rng(8)
    day = np.arange(CALENDAR)[:, None]
    rank = rng.permutation(TITLES)
    walk = np.cumsum(WALK * rng.standard_normal((CALENDAR, TITLES)), axis=0)
    late = rng.permutation(TITLES)[KNOWN:]
    appears = np.full(TITLES, -CALENDAR)
    appears[late] = 1 + np.arange(len(late)) * (CALENDAR - 1) // len(late)
    age = day - appears
    level = walk - ZIPF * np.log(rank + 2.0) + NEWS * np.exp(-np.maximum(age, 0) / NEWS_DAYS)
    weights = np.where(age >= 0, np.exp(level), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
