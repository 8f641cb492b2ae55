"""What can be asked of the television, in which words, and how often on which day.

The catalog holds what tinyvoice's model has heard of and more that is new. All of it is asked
for in sentences that the model was not trained on: those of tinyvoice's grammar that `part_of`
keeps from training, and sentences outside the grammar. Every word is in pocketsphinx's dictionary,
and no two words sound the same.

A title's popularity starts from Zipf's law and drifts: a random walk from day to day, and titles
that appear later begin as news.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

import queries
from behavior import KIND_SHARES
from catalog import KINDS

Floats = npt.NDArray[np.float64]

# New titles are made of these, of tinyvoice's names and of each other.
ADJECTIVES = (
    "golden silent little red green white lonely wild winter midnight secret broken gentle brave"
    " american dark modern yellow curious"
).split()
NOUNS = (
    "harbor garden letters orchard train kitchen bridge tower moon storm lake road light shadow"
    " flower wolf swan horse queen prince captain pilot painter dancers sisters brothers pirates"
    " robots dragons ghost thief judge castle hotel hospital school circus museum mountain valley"
    " piano engine whale family doctor island king lion panther planet star street"
).split()
NAMES = "clara felix greta oscar rosa nora bruno george harry julia".split()
PLACES = "boston vienna havana berlin kyoto lisbon washington".split()

CHANNELS = "sports tonight|music box|cinema gold|nature plus|comedy corner|world report".split("|")
APPS = "story cave|film haven|tune house|play planet|big theater|sport hub".split("|")
SEARCHES = (
    "crime series|quiz shows|space adventures|scary movies with ghosts|black and white movies"
    "|shows about trains|travel guides|war movies|live concerts|baking shows|the weather tomorrow"
    "|magic tricks|cooking with fish|famous paintings|mountain climbing|yoga lessons|tennis finals"
    "|sad songs|dance classes|car races|birthday cakes|gardening tips|guitar lessons|fairy tales"
).split("|")
COMMANDS = (
    "make it louder|make it quieter|jump ahead|go to the next season|brighter picture|next channel"
    "|save this for later|wake me at seven|who directed this|repeat that|remember this program"
    "|sleep after twenty minutes"
).split("|")

# Seasons and episodes; "two" and "four" sound like "to" and "for".
COUNTED = tuple(queries.spell(number) for number in range(1, 21) if number not in (2, 4))

# Ways of asking with their weights; what tinyvoice was trained on is left out of them later.
VERBS = tuple(f"{verb} {{}}" for verb in queries.VERBS)
ON = tuple(f"{verb} {{}} on {name}" for verb in ("", *queries.VERBS) for name in queries.NETWORKS)
PARTS = tuple(
    f"{verb} {what} {number} of {{}}"
    for verb in ("play", "watch", "find")
    for what in ("season", "episode")
    for number in COUNTED
)
POLITE = ("{} please", "please play {}", "i want to watch {}")
WAYS: dict[str, tuple[tuple[tuple[str, ...], float], ...]] = {
    "title": ((("{}",), 10), (VERBS, 40), (ON, 25), (PARTS, 15), (POLITE, 8)),
    "channel": ((("{}",), 30), (("go to {}", "open {}", "watch {}", "switch to {}"), 60),
                (("{} please", "turn on {}"), 10)),
    "app": ((("{}",), 45), (("open {}", "go to {}"), 45), (("{} please",), 10)),
    "search": ((("{}",), 30), (("show me {}", "find {}", "search for {}"), 40), (ON, 20),
               (("{} please",), 10)),
    "command": ((("{}",), 60), (("{} please",), 30), (("please {}",), 10)),
}  # fmt: skip

MADE = 120  # new titles
KNOWN = 80  # of these from the beginning; the others appear one after another
ZIPF = 0.8
HEARD = 2.0  # log popularity of tinyvoice's titles above that of new ones
WALK = 0.2  # log popularity's step from one day to the next
NEWS, NEWS_DAYS = 2.5, 4.0  # a new title's extra log popularity, and how fast it fades
CALENDAR = 60  # days that popularity is known for


@dataclass(frozen=True)
class Phrase:
    """What is said: the item of one of `KINDS` that is wanted, and the words."""

    kind: str
    item: str
    text: str


@cache
def titles() -> tuple[str, ...]:
    """All titles: tinyvoice's, then the new ones, those that appear later among them."""
    rng = np.random.default_rng(7)
    shapes = (
        ("the {} {}", ADJECTIVES, NOUNS),
        ("{} {}", ADJECTIVES, NOUNS),
        ("{} and the {}", NAMES, NOUNS),
        ("{} {}", PLACES, NOUNS),
        ("the {} of {}", NOUNS, PLACES),
        ("{} {}", NOUNS, NOUNS),
    )
    made: dict[str, None] = {}
    while len(made) < MADE:
        template, first, second = shapes[int(rng.integers(len(shapes)))]
        one, other = (words[int(rng.integers(len(words)))] for words in (first, second))
        if one != other:
            made[template.format(one, other)] = None
    # pocketsphinx lacks "thrones"; "yellow stone" is written in two ways; "night" is as "knight".
    left_out = ("game of thrones", "yellow stone", "saturday night live")
    return (*(name for name in queries.TITLES if name not in left_out), *made)


@cache
def items(kind: str) -> tuple[str, ...]:
    """What there is of one of `KINDS`, whether or not it has appeared yet."""
    return {
        "title": titles(),
        # What is new is spread over the ranks.
        "channel": _mixed(queries.NETWORKS, CHANNELS),
        "app": tuple(APPS),
        "search": _mixed([*queries.GENRES, *queries.PEOPLE], SEARCHES),
        "command": _mixed(queries.COMMANDS, COMMANDS),
    }[kind]


@cache
def shares(kind: str, day: int) -> Floats:
    """How often each of `items(kind)` is asked for on a day: float64, (n,), adding up to 1."""
    if kind == "title":
        return _popularity()[day]
    weights = 1 / (np.arange(len(items(kind))) + 4.0) ** ZIPF
    return np.asarray(weights / weights.sum())


@cache
def ways(kind: str, item: str) -> tuple[tuple[str, ...], Floats]:
    """The texts that ask for an item, and their shares: float64, (n,)."""
    weights: dict[str, float] = {}
    for templates, weight in WAYS[kind]:
        texts = [template.format(item).strip() for template in templates]
        kept = [text for text in texts if not trained_on(text)]
        weights.update({text: weight / len(kept) for text in kept})
    total = np.array(list(weights.values()))
    return tuple(weights), total / total.sum()


def asked(day: int) -> dict[Phrase, float]:
    """All that can be said on a day, each with its probability."""
    probability: dict[Phrase, float] = {}
    for kind, share in zip(KINDS, KIND_SHARES, strict=True):
        for item, popular in zip(items(kind), shares(kind, day), strict=True):
            if popular > 0:  # titles that appear later are left out
                for text, way in zip(*ways(kind, item), strict=True):
                    of_kind = share / sum(KIND_SHARES)
                    probability[Phrase(kind, item, text)] = float(of_kind * popular * way)
    return probability


@cache
def sentences() -> tuple[Phrase, ...]:
    """All that can ever be said."""
    return tuple(
        Phrase(kind, item, text)
        for kind in KINDS
        for item in items(kind)
        for text in ways(kind, item)[0]
    )


@cache
def words() -> tuple[str, ...]:
    """All words of the catalog, sorted: the lexicon of a product that knows what it offers."""
    return tuple(sorted({word for phrase in sentences() for word in phrase.text.split()}))


def trained_on(text: str) -> bool:
    """Tell whether a sentence is one that tinyvoice's model may have been trained on.

    >>> trained_on("mute"), trained_on("please mute"), trained_on("cinema gold")
    (True, False, False)
    """
    return bool(_grammar().fullmatch(text)) and queries.part_of(text) != "test"


@cache
def _grammar() -> re.Pattern[str]:
    """tinyvoice's sentences, and some more of the same form."""

    def one_of(texts: Sequence[str]) -> str:
        return f"(?:{'|'.join(map(re.escape, texts))})"

    leads = one_of([*queries.VERBS, "go to", "switch to", "open", "movies with"])
    fixed = [*queries.TITLES, *queries.NETWORKS, *queries.GENRES, *queries.PEOPLE]
    on = f"(?: on {one_of(queries.NETWORKS)})?"
    return re.compile(
        rf"(?:{leads} )?{one_of(fixed)}(?: movies)?{on}|{one_of(queries.COMMANDS)}"
        rf"|\w+ (?:season|episode) .* of {one_of(queries.TITLES)}"
        r"|(?:go to |switch to )?channel .*|(?:set the )?volume .*"
    )


def _mixed(heard: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """Both lists in their order, each spread evenly over the whole."""
    ranked = [
        ((at + 0.5) / len(names), name) for names in (heard, new) for at, name in enumerate(names)
    ]
    return tuple(name for _, name in sorted(ranked))


@cache
def _popularity() -> Floats:
    """(CALENDAR, titles): each row adds up to 1, with 0 before a title appears."""
    rng = np.random.default_rng(8)
    count = len(titles())
    heard = count - MADE
    day = np.arange(CALENDAR)[:, None]
    rank = np.concatenate([rng.permutation(heard), rng.permutation(MADE)])
    walk = np.cumsum(WALK * rng.standard_normal((CALENDAR, count)), axis=0)
    late = heard + rng.permutation(MADE)[KNOWN:]
    appears = np.full(count, -CALENDAR)
    appears[late] = 1 + np.arange(len(late)) * (CALENDAR - 1) // len(late)
    age = day - appears
    level = walk - ZIPF * np.log(rank + 4.0) + NEWS * np.exp(-np.maximum(age, 0) / NEWS_DAYS)
    level[:, :heard] += HEARD
    weights = np.where(age >= 0, np.exp(level), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
