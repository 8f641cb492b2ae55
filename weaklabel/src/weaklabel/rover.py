"""Voting where transcripts differ, by weights that are estimated without labels.

Every round counts how often each source loses the vote, and weighs it by the inverse of that rate.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

NO_WORD: Final = 0

# A stretch without a common word is aligned in slots × words steps of Python, up to this many, and
# beyond it word by word from the left. Utterances have a handful; a text of another file, millions.
MOST_STEPS: Final = 10_000

Words: TypeAlias = tuple[int, ...]
Share: TypeAlias = dict[int, float]  # of a slot: the weight of every word there


def total_distances(texts: Sequence[Words], weights: Sequence[float]) -> list[float]:
    """Weighted sums of the word edit distances of every text to all of them."""
    sums = [0.0] * len(texts)
    for i, text in enumerate(texts):
        for j in range(i):
            distance = Levenshtein.distance(text, texts[j])
            sums[i] += distance * weights[j]
            sums[j] += distance * weights[i]
    return sums


def network(texts: Sequence[Words], weights: Sequence[float]) -> list[list[int]]:
    """Slots, in order; a slot lists the word that every text has there, or NO_WORD.

    The first text makes the slots. Each one that follows is aligned with all before it at once, at
    the least expected cost, and may put new slots between theirs. The best text comes first.
    """
    slots = [[word] for word in texts[0]]
    shares: list[Share] = [{word: weights[0]} for word in texts[0]]
    total = weights[0]
    for count, (text, weight) in enumerate(zip(texts[1:], weights[1:], strict=True), 1):
        grown: list[list[int]] = []
        grown_shares: list[Share] = []
        for first, last, words in _stretches(shares, text):
            pairs: Iterable[tuple[int | None, int]]
            if last - first == 1 == len(words):  # nearly always
                pairs = ((0, words[0]),)
            else:
                pairs = _aligned(shares[first:last], words, total)
            for place, word in pairs:
                if place is None:
                    slot, share = [NO_WORD] * count, {NO_WORD: total}
                else:
                    slot, share = slots[first + place], shares[first + place]
                slot.append(word)
                share[word] = share.get(word, 0.0) + weight
                grown.append(slot)
                grown_shares.append(share)
        slots, shares = grown, grown_shares
        total += weight
    return slots


def _stretches(shares: Sequence[Share], text: Words) -> Iterator[tuple[int, int, Words]]:
    """Ranges of slots and the words of `text` that belong there, cut at the words in common.

    In common with the slots' heaviest words: nearly all of them are, and rapidfuzz finds them
    hundreds of times sooner than Python aligns.
    """
    heaviest = [
        max(share, key=share.__getitem__) if len(share) > 1 else next(iter(share))
        for share in shares
    ]
    places = [place for place, word in enumerate(heaviest) if word != NO_WORD]
    spine = [heaviest[place] for place in places]
    slot = position = 0
    for block in Levenshtein.opcodes(spine, text).as_matching_blocks():
        for i in range(block.size):
            at, word = places[block.a + i], block.b + i
            if at > slot or word > position:
                yield slot, at, text[position:word]
            yield at, at + 1, text[word : word + 1]
            slot, position = at + 1, word + 1
    if slot < len(shares) or position < len(text):
        yield slot, len(shares), text[position:]


def _aligned(
    shares: Sequence[Share], words: Words, total: float
) -> Iterator[tuple[int | None, int]]:
    """A slot's index, or None for a new slot, and the word of `words` there, in order."""
    rows, columns = len(shares), len(words)
    if min(rows, columns) == 0 or rows * columns > MOST_STEPS:
        for i in range(max(rows, columns)):
            yield i if i < rows else None, words[i] if i < columns else NO_WORD
        return
    skip = [total - share.get(NO_WORD, 0.0) for share in shares]
    # Expected edits of the slots from i on against the words from j on: (rows + 1, columns + 1).
    edits = [[total * (columns - j) for j in range(columns + 1)] for _ in range(rows + 1)]
    beside = [[0.0] * columns for _ in range(rows)]  # … where word j stands in slot i
    for i in reversed(range(rows)):
        share, here, below = shares[i], edits[i], edits[i + 1]
        here[columns] = below[columns] + skip[i]
        for j in reversed(range(columns)):
            beside[i][j] = below[j + 1] + total - share.get(words[j], 0.0)
            here[j] = min(beside[i][j], below[j] + skip[i], here[j + 1] + total)
    i = j = 0
    while i < rows and j < columns:
        if edits[i][j] == beside[i][j]:
            yield i, words[j]
            i, j = i + 1, j + 1
        elif edits[i][j] == edits[i + 1][j] + skip[i]:
            yield i, NO_WORD
            i += 1
        else:
            yield None, words[j]
            j += 1
    for place in range(i, rows):
        yield place, NO_WORD
    for word in words[j:]:
        yield None, word


Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# A word is missed more often than invented: no word needs half a mean vote more to win.
HANDICAP: Final = 0.5

# In the vote that a source is judged by, its own (its family's) counts half. Counted in full, a
# source that outweighs the others agrees with itself, gains and runs away; not at all, the others
# are a worse judge.
OWN: Final = 0.5

# Every source is drawn toward all by so many words. By 20, sources of two utterances each differ
# too little; CrowdSpeech's WER moves by .2 at most between 5 and 20.
PRIOR_WORDS: Final = 10.0

# No source is trusted beyond one error in a hundred words.
LEAST_RATE: Final = 0.01

# No family outweighs all others of its query: where those agree, they are right more often.
MOST_OF_OTHERS: Final = 0.8

# Copies have half of their errors alike and more. Independent sources had 8 % so at most
# (CrowdSpeech), and 40 % where all err at the same words, each time in one of two ways.
MOST_ALIKE: Final = 0.45
SOUND: Final = 0.55  # judges that both differ from the judged are alike this often, or are wrong
UNDECIDED: Final = 0.1  # the judges have this much more alike, and either pair may be the copies
# Without judges: the recognizers of the shipped log are apart in 8 % of the words; copies of which
# each changes 1 % in 2 %, and so are independent ones that are wrong in 1 %.
LEAST_APART: Final = 0.025
ALL_ALIKE: Final = 1000  # slots without a difference; four sources wrong in .3 % have twelve
FEWEST_SLOTS: Final = 100  # contested ones, for two sources to be compared
FEWEST_QUERIES: Final = 30  # with contested slots
MOST_SLOTS: Final = 200_000  # of more, every second and so on
MOST_COMPARED: Final = 10  # sources, those with the most utterances

# Sums in different orders differ by less; what is equal but for that is a tie.
_DIGITS: Final = 9


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots of all queries; those in which not all hypotheses agree, with every vote."""

    offsets: Integers  # (Q + 1,): query q has `sequence[offsets[q]:offsets[q + 1]]`
    sequence: Integers  # of each slot, its word, or -1 - i where it is the contested slot i
    agreed: Integers  # (Q,), number of slots in which all agree
    query: Integers  # (S,), the query of a contested slot, ascending
    first: Integers  # (S,), the first of its candidates
    slot: Integers  # (C,), the contested slot of a candidate, ascending
    word: Integers  # (C,), its word or NO_WORD; one of the best transcript's first
    candidate: Integers  # (V,), what a vote is for
    hypothesis: Integers  # (V,), whose vote it is


@dataclass(frozen=True, eq=False)
class Ballot:
    """Rates, weights and winners after the last round."""

    rates: Floats  # (number of sources,), smoothed error rates
    weights: Floats  # (H,), of the hypotheses, about 1 on average
    winner: Integers  # (S,), the candidate that has the most votes
    log_probability: Floats  # (C,), of being right, by candidate
    log_agreed: Floats  # (Q,), of a slot in which all agree


def align(queries: Iterable[Sequence[Words]], shares: Sequence[float]) -> Slots:
    """Networks of all queries; hypotheses are numbered through, in order.

    Words are numbers from 1. `shares`, (H,), is how much of a vote each hypothesis has before its
    source is weighed.
    """
    offsets, sequence, agreed = array("q", [0]), array("q"), array("q")
    query, first, slot, word = array("q"), array("q"), array("q"), array("q")
    candidate, hypothesis = array("q"), array("q")
    start = 0
    for number, texts in enumerate(queries):
        groups = grouped(texts)
        order = sorted(groups)
        votes = [sum(shares[start + i] for i in groups[text]) for text in order]
        edits = total_distances(order, votes)
        best = sorted(range(len(order)), key=edits.__getitem__)
        order, votes = [order[i] for i in best], [votes[i] for i in best]
        members = [groups[text] for text in order]  # once: a tuple is hashed anew at each look-up
        agreeing = 0
        for words in network(order, votes):
            if words.count(words[0]) == len(words):
                sequence.append(words[0])
                agreeing += 1
                continue
            sequence.append(-1 - len(query))
            first.append(len(slot))
            candidates: dict[int, int] = {}
            for group, voted in zip(members, words, strict=True):
                if voted not in candidates:
                    candidates[voted] = len(slot)
                    slot.append(len(query))
                    word.append(voted)
                for member in group:
                    candidate.append(candidates[voted])
                    hypothesis.append(start + member)
            query.append(number)
        offsets.append(len(sequence))
        agreed.append(agreeing)
        start += len(texts)
    parts = (offsets, sequence, agreed, query, first, slot, word, candidate, hypothesis)
    return Slots(*(np.array(part, dtype=np.int64) for part in parts))


@dataclass(frozen=True, eq=False)
class Voters:
    """The hypotheses of all queries, without their words; those of a family share one vote."""

    query: Integers  # (H,), the query of a hypothesis, ascending
    source: Integers  # (H,), its source
    family: Integers  # (H,), its source's family
    bloc: Integers = field(init=False)  # (H,), number of the pair (query, family)
    share: Floats = field(init=False)  # (H,), of the bloc's vote: one over its hypotheses

    def __post_init__(self) -> None:
        pairs = self.query * (int(self.family.max()) + 1) + self.family
        bloc = np.unique(pairs, return_inverse=True)[1]
        object.__setattr__(self, "bloc", bloc)
        object.__setattr__(self, "share", 1 / np.bincount(bloc)[bloc])


def vote(slots: Slots, voters: Voters, trust: Floats, *, rounds: int) -> Ballot:
    """Weigh the sources by how often they lose the vote, `rounds` times over (0: all alike).

    `trust`, (H,), are factors of the hypotheses' weights.
    """
    query, source = voters.query, voters.source
    trust = trust * voters.share
    weights = _scaled(trust, voters)
    rates = _rates(slots, voters, weights)
    for done in range(rounds):
        if done:
            rates = _rates(slots, voters, weights)
        weights = _scaled(trust / np.maximum(rates[source], LEAST_RATE), voters)
        weights = _capped(weights, voters)
    scores = _scores(slots, weights)
    # A mean vote alone is right as often as a mean source; so much speaks for a word that none has.
    votes = 1 / np.maximum(rates[source], LEAST_RATE)
    rate = min(0.5, 1 / float(np.average(votes, weights=voters.share)))
    unsaid = 1 + np.log(rate / (1 - rate))
    totals = np.full(len(slots.first), unsaid)
    np.logaddexp.at(totals, slots.slot, scores)
    support = np.bincount(query, weights, len(slots.agreed))
    return Ballot(
        rates=rates,
        weights=weights,
        winner=_winners(slots, scores),
        log_probability=scores - totals[slots.slot],
        log_agreed=-np.logaddexp(0, unsaid - support),
    )


def copies(slots: Slots, voters: Voters) -> list[list[int]]:
    """Groups of sources that make the same errors; those of one family are not compared.

    Two sources are judged by any two others where those agree with each other: of the words in
    which one of the two differs from these, how many do both have alike? Independent sources seldom
    make the same mistake, whatever their rates and however hard a word is; copies do, and hide it
    from the vote that they win. The judges are judged as well: the pair is cleared if these look
    more like copies, or differ from each other, too, where both differ from the pair. Where both
    pairs look alike, both are named. Sources alike in every contested slot are copies without a
    judge; so are those that are seldom apart where at most one other has a query with both, and all
    where none is ever apart. Else few differences say nothing: good sources have few as well.
    """
    counts = np.bincount(voters.source)
    compared = np.sort(np.argsort(-counts, kind="stable")[:MOST_COMPARED])
    column = np.full(len(counts), -1)
    column[compared] = range(len(compared))
    step = 1 + len(slots.first) // MOST_SLOTS
    query, row = slots.query[::step], slots.slot[slots.candidate]
    seen = row % step == 0
    at = column[voters.source[slots.hypothesis[seen]]]
    words = np.full((len(query), len(compared) + 1), -1)  # the last: all other sources
    words[row[seen] // step, at] = slots.candidate[seen]
    families = np.zeros(len(counts), dtype=np.int64)
    families[voters.source] = voters.family
    alike: dict[tuple[int, int, int, int], float] = {}  # of the words that one has or both
    agreeing: dict[tuple[int, int, int, int], float] = {}  # of the words that both have
    there = np.zeros((len(slots.agreed), len(compared) + 1), dtype=bool)
    there[voters.query, column[voters.source]] = True
    found: set[tuple[int, int]] = set()
    pairs = []
    for a, b in combinations(range(len(compared)), 2):
        if families[compared[a]] == families[compared[b]]:
            continue
        both = (words[:, [a, b]] >= 0).all(axis=1)
        apart = np.count_nonzero(words[both, a] != words[both, b])
        shared = there[:, a] & there[:, b]
        all_slots = int(np.diff(slots.offsets) @ shared)
        if (
            np.count_nonzero(shared) >= FEWEST_QUERIES
            and all_slots >= FEWEST_SLOTS
            and apart * step <= LEAST_APART * all_slots
        ):
            judges = len(np.unique(voters.family[shared[voters.query]])) - 2
            if judges < 2 or (all_slots >= ALL_ALIKE and not shared[slots.query].any()):
                found.add((a, b))
        if len(np.unique(query[both])) >= FEWEST_QUERIES:
            pairs.append((a, b))
            if np.count_nonzero(both) >= FEWEST_SLOTS and not apart:
                found.add((a, b))
    for c, d in pairs:
        agreed = words[(words[:, c] == words[:, d]) & (words[:, c] >= 0)]
        differs = (agreed != agreed[:, [c]]) & (agreed >= 0)
        for a, b in pairs:
            either = (differs[:, a] | differs[:, b]) & (agreed[:, [a, b]] >= 0).all(axis=1)
            if not {a, b} & {c, d} and np.count_nonzero(either) >= FEWEST_SLOTS:
                same = np.count_nonzero(differs[:, a] & (agreed[:, a] == agreed[:, b]))
                alike[a, b, c, d] = same / np.count_nonzero(either)
                agreeing[a, b, c, d] = same / (np.count_nonzero(differs[:, [a, b]].all(1)) or 1)
    found |= {
        (a, b)
        for (a, b, c, d), share in alike.items()
        if share >= MOST_ALIKE
        and alike.get((c, d, a, b), 0.0) <= share + UNDECIDED
        and agreeing.get((c, d, a, b), 0.0) >= SOUND
    }
    return sorted([int(compared[place]) for place in sorted(group)] for group in _joined(found))


def _joined(pairs: Iterable[tuple[int, int]]) -> list[set[int]]:
    """Groups of what pairs hold together."""
    groups: list[set[int]] = []
    for pair in pairs:
        joined = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in joined]
        groups.append(set(pair).union(*joined))
    return groups


def chosen_words(slots: Slots, winner: Integers) -> list[list[int]]:
    """The words of every query where each contested slot goes to its winner."""
    contested = slots.sequence < 0
    sequence = slots.sequence.copy()
    sequence[contested] = slots.word[winner[-1 - sequence[contested]]]
    words, offsets = sequence.tolist(), slots.offsets.tolist()
    return [
        [word for word in words[begin:end] if word != NO_WORD] for begin, end in pairwise(offsets)
    ]


def medoid(texts: Sequence[Words], weights: Sequence[float]) -> int:
    """Index of the text at the least weighted edit distance from all: minimum Bayes risk."""
    groups = grouped(texts)
    order = sorted(groups)
    edits = total_distances(order, [sum(weights[i] for i in groups[text]) for text in order])
    best = min(range(len(order)), key=lambda i: round(edits[i], _DIGITS))
    return groups[order[best]][0]


def grouped(texts: Sequence[Words]) -> dict[Words, list[int]]:
    """Equal texts together: their indices."""
    groups: dict[Words, list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(text, []).append(index)
    return groups


def _scaled(weights: Floats, voters: Voters) -> Floats:
    """Weights by which a bloc has 1 on average."""
    scaled: Floats = weights * (voters.bloc.max() + 1) / weights.sum()
    return scaled


def _blocs(voters: Voters) -> Floats:
    """(Q,): how many families vote on each query."""
    blocs: Floats = np.round(np.bincount(voters.query, voters.share))
    return blocs


def _capped(weights: Floats, voters: Voters) -> Floats:
    query, bloc = voters.query, voters.bloc
    own = np.bincount(bloc, weights)[bloc]
    others = np.bincount(query, weights)[query] - own
    most = MOST_OF_OTHERS * others
    capped = (_blocs(voters)[query] > 2) & (others > 0) & (own > most)
    return np.where(capped, weights * most / np.where(capped, own, 1.0), weights)


def _scores(slots: Slots, weights: Floats) -> Floats:
    votes = np.bincount(slots.candidate, weights[slots.hypothesis], len(slots.word))
    scores: Floats = np.round(votes - HANDICAP * (slots.word == NO_WORD), _DIGITS)
    return scores


def _winners(slots: Slots, scores: Floats) -> Integers:
    if not len(slots.first):
        return slots.first
    best = np.maximum.reduceat(scores, slots.first)[slots.slot]
    # Of several, the first: a word of the transcript that is nearest to all.
    candidates = np.where(scores == best, np.arange(len(scores)), len(scores))
    return np.minimum.reduceat(candidates, slots.first)


def _rates(slots: Slots, voters: Voters, weights: Floats) -> Floats:
    """Smoothed error rates of the sources against the vote."""
    query, source = voters.query, voters.source
    sources = int(source.max()) + 1
    wrong: Floats = np.zeros(len(source))
    if len(slots.first):
        scores = _scores(slots, weights)
        winner = _winners(slots, scores)
        others = scores.copy()
        others[winner] = -np.inf
        second = np.maximum.reduceat(others, slots.first)
        at = slots.slot[slots.candidate]
        rival = np.where(slots.candidate == winner[at], second[at], scores[winner[at]])
        own: Floats = weights[slots.hypothesis]
        if len(voters.share) > voters.bloc.max() + 1:  # what all of the family give the candidate
            pairs = slots.candidate * (voters.bloc.max() + 1) + voters.bloc[slots.hypothesis]
            ally = np.unique(pairs, return_inverse=True)[1]
            own = np.bincount(ally, own)[ally].astype(np.float64)
        lead = scores[slots.candidate] - OWN * own - rival
        lost = (1 - np.sign(np.round(lead, _DIGITS))) / 2  # 1, or ½ for a tie
        wrong += np.bincount(slots.hypothesis, lost, len(source))
    # A family alone with a query is not judged by it, nor by what its members differ in.
    judging = (_blocs(voters) > 1)[query]
    wrong, judged = wrong * judging, np.diff(slots.offsets)[query] * judging
    # One error in ten words, until the data say more.
    everybody = (voters.share @ wrong + 1) / (voters.share @ judged + 10)
    lost_words = np.bincount(source, wrong, sources) + PRIOR_WORDS * everybody
    rates: Floats = lost_words / (np.bincount(source, judged, sources) + PRIOR_WORDS)
    return rates
