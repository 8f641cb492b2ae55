"""What people want, and what they do once the television has answered.

Whether the transcript was right enters only through whether the television did what was wanted;
impatience, curiosity, interruptions and the kind of the query work beside it. So every signal in
the log is noisy, and signals of one query share more than the transcript's being right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from catalog import KINDS, TEMPLATES, WAYS, Catalog, zipf
from people import FAVORITES, Floats, Households, Ints, choose, choose_from

Bools = npt.NDArray[np.bool_]

COMMAND = KINDS.index("command")

# What is asked for, by kind: title, channel, app, search, command.
KIND_SHARES = (0.46, 0.15, 0.09, 0.10, 0.20)
FAVORITE_SHARE = 0.45  # of a household's titles are among its favorites

# Chance that the television does what was wanted: transcript right; wrong in function words only;
# wrong.
DONE_RIGHT, DONE_MEANT, DONE_WRONG = 0.92, 0.75, 0.10
INTERRUPTED = 0.07  # doorbell, telephone, dinner: nothing more happens, whatever was understood

ACTIONS = ("play", "select", "back", "none")
# Shares of the following actions, by kind, when what was wanted was done.
DONE_ACTIONS = (
    (0.70, 0.17, 0.05, 0.08),
    (0.48, 0.30, 0.05, 0.17),
    (0.20, 0.55, 0.05, 0.20),
    (0.17, 0.55, 0.12, 0.16),
    (0.05, 0.05, 0.05, 0.85),
)
FAILED_ACTIONS = (0.09, 0.14, 0.32, 0.45)
FAILED_COMMAND_ACTIONS = (0.01, 0.04, 0.12, 0.83)

# After a failure: give up (more so with little patience), say it again, say it otherwise.
GIVE_UP, GIVE_UP_IMPATIENT = 0.12, 0.25
SAY_AGAIN, SAY_OTHERWISE = 0.54, 0.34  # of those who go on; the others want something else
RETRY_SECONDS, RETRY_SPREAD = 5.5, 0.55
HURRY = 0.7  # the most impatient wait 0.65 times as long, the most patient 1.35 times
# After a success: the session ends (by kind), or curiosity makes a quick further query, or a later
# one follows.
END_DONE = (0.50, 0.50, 0.42, 0.30, 0.34)
CURIOUS, CURIOUS_IMPATIENT = 0.18, 0.12
QUICK_SECONDS, QUICK_SPREAD = 7.0, 0.6
LATER_SECONDS, LATER_SPREAD = 240.0, 1.1
ANOTHER_STEP = 0.45  # after a command that goes on, a command at once ("volume up")
SAME_STEP = 0.35  # of these, the same once more
STEP_SECONDS, STEP_SPREAD = 2.2, 0.6
LONGEST_PAUSE = 1700.0  # half an hour of silence would be another session

DWELL_DONE = (900.0, 800.0, 420.0, 100.0, 240.0)  # medians, seconds, by kind
DWELL_DONE_SPREAD = 1.4
DWELL_FAILED, DWELL_FAILED_SPREAD = 20.0, 1.3
DWELL_ON = 0.5  # of what is on after a success stays on beside the next query ("volume up")
DWELL_LEFT_ON = 1500.0  # at most, after an interruption
STANDBY = 4 * 3600.0  # the television turns itself off

AGAIN, OTHERWISE, ANOTHER_COMMAND, NEW = range(4)


@dataclass(frozen=True)
class Wish:
    """What n people say.

    Args:
        kind: int32, (n,): index into KINDS.
        item: int32, (n,): what is wanted.
        way: int32, (n,): how it is asked for.
        attempt: int32, (n,): 0, and more for the same wish again.
    """

    kind: Ints
    item: Ints
    way: Ints
    attempt: Ints


@dataclass(frozen=True)
class Reaction:
    """What n people do after the answer.

    Args:
        done: bool, (n,): the television did what was wanted.
        action: int32, (n,): index into ACTIONS.
        ends: bool, (n,): the session ends here.
        what: int32, (n,): AGAIN, OTHERWISE, ANOTHER_COMMAND or NEW, where it does not end.
        wait: float64, (n,): seconds from this query's start to the next.
        dwell: float64, (n,): seconds that the answer stays on.
    """

    done: Bools
    action: Ints
    ends: Bools
    what: Ints
    wait: Floats
    dwell: Floats


def first_wish(rng: np.random.Generator, words: Catalog, homes: Households, home: Ints) -> Wish:
    """What the sessions of these households (n,) begin with."""
    kind = choose(rng, KIND_SHARES, len(home))
    item = _item(rng, words, homes, home, kind)
    return Wish(kind, item, _way(rng, kind), np.zeros(len(home), np.int32))


def next_wish(
    rng: np.random.Generator,
    words: Catalog,
    homes: Households,
    home: Ints,
    before: Wish,
    what: Ints,
) -> Wish:
    """What is said after `before` (n,) by those who do `what` (n,) next."""
    n = len(home)
    kind = np.where(what == NEW, choose(rng, KIND_SHARES, n), before.kind)
    item = _item(rng, words, homes, home, kind)
    # "volume up", and up again: often the same step once more.
    same = (what == ANOTHER_COMMAND) & (rng.random(n) < SAME_STEP)
    fresh = (what == NEW) | (what == ANOTHER_COMMAND)
    return Wish(
        kind=kind,
        item=np.where(fresh & ~same, item, before.item),
        way=np.where(what == AGAIN, before.way, _way(rng, kind)),
        attempt=np.where(fresh, 0, before.attempt + 1).astype(np.int32),
    )


def react(
    rng: np.random.Generator,
    kind: Ints,
    impatience: Floats,
    duration: Floats,
    right: Bools,
    meant: Bools,
) -> Reaction:
    """What n people do after the answer.

    Args:
        rng: randomness.
        kind: int32, (n,): of what they asked for.
        impatience: float64, (n,), in [0, 1).
        duration: float64, (n,): seconds that they spoke.
        right: bool, (n,): the transcript is what was said.
        meant: bool, (n,): it is, up to function words.
    """
    n = len(kind)
    chance = np.where(right, DONE_RIGHT, np.where(meant, DONE_MEANT, DONE_WRONG))
    done = rng.random(n) < chance
    interrupted = rng.random(n) < INTERRUPTED
    end = np.where(done, np.array(END_DONE)[kind], GIVE_UP + GIVE_UP_IMPATIENT * impatience)
    ends = interrupted | (rng.random(n) < end)
    what = _what(rng, kind, done)
    wait = duration + _pause(rng, what, done, impatience)
    return Reaction(
        done=done,
        action=_action(rng, kind, done, interrupted),
        ends=ends,
        what=what,
        wait=wait,
        dwell=_dwell(rng, kind, done, interrupted, np.where(ends, np.inf, wait)),
    )


def _item(
    rng: np.random.Generator, words: Catalog, homes: Households, home: Ints, kind: Ints
) -> Ints:
    chance = rng.random(len(kind))
    item = np.empty(len(kind), np.int32)
    for k, items in enumerate(words.items_of):
        of_kind = kind == k
        item[of_kind] = items[np.searchsorted(zipf(len(items)), chance[of_kind])]
    favorite = homes.favorites[home, np.searchsorted(zipf(FAVORITES), rng.random(len(kind)))]
    title = kind == KINDS.index("title")
    return np.where(title & (rng.random(len(kind)) < FAVORITE_SHARE), favorite, item)


def _way(rng: np.random.Generator, kind: Ints) -> Ints:
    shares = np.zeros((len(KINDS), WAYS))
    for k, name in enumerate(KINDS):
        weights = np.array(list(TEMPLATES[name].values()))
        shares[k, : len(weights)] = weights / weights.sum()
    return choose_from(rng, shares[kind])


def _what(rng: np.random.Generator, kind: Ints, done: Bools) -> Ints:
    chance = rng.random(len(kind))
    failed = np.where(
        chance < SAY_AGAIN, AGAIN, np.where(chance < SAY_AGAIN + SAY_OTHERWISE, OTHERWISE, NEW)
    )
    another = (kind == COMMAND) & (chance < ANOTHER_STEP)
    return np.where(done, np.where(another, ANOTHER_COMMAND, NEW), failed).astype(np.int32)


def _pause(rng: np.random.Generator, what: Ints, done: Bools, impatience: Floats) -> Floats:
    noise = rng.standard_normal(len(what))
    quick = rng.random(len(what)) < CURIOUS + CURIOUS_IMPATIENT * impatience
    patience = 1 + HURRY * (0.5 - impatience)
    pause: Floats = np.select(
        [~done, what == ANOTHER_COMMAND, quick],
        [
            patience * RETRY_SECONDS * np.exp(RETRY_SPREAD * noise),
            STEP_SECONDS * np.exp(STEP_SPREAD * noise),
            QUICK_SECONDS * np.exp(QUICK_SPREAD * noise),
        ],
        LATER_SECONDS * np.exp(LATER_SPREAD * noise),
    )
    return np.minimum(pause, LONGEST_PAUSE)


def _action(rng: np.random.Generator, kind: Ints, done: Bools, interrupted: Bools) -> Ints:
    failed = np.where((kind == COMMAND)[:, None], FAILED_COMMAND_ACTIONS, FAILED_ACTIONS)
    shares = np.where(done[:, None], np.array(DONE_ACTIONS)[kind], failed)
    return np.where(interrupted, ACTIONS.index("none"), choose_from(rng, shares)).astype(np.int32)


def _dwell(
    rng: np.random.Generator, kind: Ints, done: Bools, interrupted: Bools, until_next: Floats
) -> Floats:
    noise = rng.standard_normal(len(kind))
    dwell = np.where(
        done,
        np.array(DWELL_DONE)[kind] * np.exp(DWELL_DONE_SPREAD * noise),
        DWELL_FAILED * np.exp(DWELL_FAILED_SPREAD * noise),
    )
    # A television left running tells nothing.
    dwell = np.where(interrupted, DWELL_LEFT_ON * rng.random(len(kind)), dwell)
    stays = done & (rng.random(len(kind)) < DWELL_ON)
    until = np.where(stays, np.inf, until_next * (0.8 + 0.2 * rng.random(len(kind))))
    return np.minimum(np.minimum(dwell, until), STANDBY)
