"""What can be asked of the television: invented titles, channels, apps, commands, and their words.

Everything is combined from short lists, so a likeness to a real title is chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

import sounds

KINDS = ("title", "channel", "app", "search", "command")

ADJECTIVES = (
    "silent golden hidden broken crimson distant frozen velvet hollow wild bitter secret burning"
    " paper iron summer winter northern pale gentle crooked lonely great little blue white red"
    " black green last first second midnight electric borrowed quiet wandering forgotten brave"
).split()
NOUNS = (
    "harbour bakers river garden knight tide letters island mirror orchard train kitchen hunters"
    " doctors detective bridge tower moon sea storm heart lake road house night day light shadow"
    " glass stone flower bear wolf fox swan raven horse queen king prince captain pilot painter"
    " dancers sisters brothers neighbours strangers pirates robots dragons ghost thief judge tailor"
    " war peace blood bone gold silver sugar salt snow rain fire ice desert forest meadow valley"
    " mountain castle station hotel hospital school market circus theatre museum library lighthouse"
    " planet comet signal engine violin piano hour year eye hand key ring crown feather whale sail"
).split()
MATERIALS = (
    "glass stone gold silver sugar salt snow rain fire ice bone blood light shadow feathers wolves"
    " letters strangers ghosts storms wood paper iron dreams"
).split()
NAMES = (
    "ada bruno clara dario edith felix greta hugo ines jonas kira leo mona nils olga pablo rosa"
    " samir thea uma vera willem yara zoe tariq anouk ingrid mateo"
).split()
PLACES = "lisbon bergen tangier odessa quito kyoto dublin tallinn marseille verona".split()
UNICODE = (
    "café núñez|夜の港|синий трамвай|قمر المدينة|łódź nights|smørrebrød kings|señora luna"
    "|die brücke nach öland|crème et châtiment|el niño del río|fräulein ünal|motörhart"
).split("|")
CHANNELS = (
    "channel nordlys|kanal otto|telemeridian|sport arena two|news harbour|kids planet|channel four"
    "|channel eight|cinema gold|kitchen channel|music box|history plus|nature one|world news"
    "|retro tv|comedy lane|star sports|local seven"
).split("|")
APPS = (
    "vidora|streamlet|tunebox|filmhaven|playnest|podcastle|sporthub|cinnamon tv|kidzone|lumio"
).split("|")
SEARCHES = (
    "comedies|horror movies|cooking shows|nature documentaries|cartoons|football highlights"
    "|crime series|romantic movies|news from today|christmas movies|quiz shows|space documentaries"
    "|movies for kids|scary movies with ghosts|movies from the eighties|black and white movies"
    "|shows about trains|travel shows|new movies this week|free movies|war movies|action movies"
    "|live concerts|baking shows|short movies|westerns|anime series|stand up comedy"
).split("|")
COMMANDS = (
    "volume up|volume down|mute|pause|play|next episode|turn it up|turn it down|go back|home"
    "|fast forward|rewind|subtitles on|subtitles off|turn off|turn off the tv|resume"
    "|start over|skip intro|what time is it|settings|next channel|record this"
).split("|")

# How a thing of each kind is asked for, and how often: the first is how most people say it.
TEMPLATES = {
    "title": {
        "{}": 36,
        "play {}": 22,
        "watch {}": 12,
        "put on {}": 6,
        "find {}": 6,
        "show me {}": 6,
        "{} season two": 4,
        "the movie {}": 3,
        "play {} on vidora": 3,
        "i want to watch {}": 2,
    },
    "channel": {"{}": 50, "go to {}": 15, "switch to {}": 15, "put on {}": 12, "turn on {}": 8},
    "app": {"{}": 45, "open {}": 40, "go to {}": 10, "launch {}": 5},
    "search": {"{}": 50, "show me {}": 25, "find {}": 15, "search for {}": 10},
    "command": {"{}": 100},
}
WAYS = max(map(len, TEMPLATES.values()))

# Everyday words that a recognizer's language model knows and no query of the catalog holds.
EVERYDAY = (
    "a an and are as at ate bake bare bean bed beer bees been bell best better big bird bite blew"
    " blow boat book bored bread bright bring bus buy by call card care cars case chair change"
    " chicken clear close cold come cook cool corn cry dark dear deer door dream dress drive eat"
    " end every face fall farm fast father feet fight fine fish five flour fly food foot friend"
    " full fun game gate girl give glad good grass ground guess hair half hall happy hard have he"
    " head hear help her here high hill his hold hole hope how hunt i if in is it job just keep"
    " kind kids kiss kit know lace lady lamp land late laugh lead leader learn left less let lie"
    " life like line list long look lose love low mail make man mark matter me mean meat might mile"
    " milk mind mine more morning mouth move my name near neck need nice nine no none nose not now"
    " off old on or our out own page paint pair part party past pay people person piece place plane"
    " plate pot power price pull rise ran read ready right rise river road roll room rose round row"
    " run sad sale same sand say see seat sell send she shoe shop show side sing sit six size skate"
    " sky sleep slow small smile so some son song soon sound south spell spot start stay steel"
    " still street strong sun sweet table tail take tale talk tall tell ten that their them there"
    " they thing think this tie tied time tired toe today told tonight too top town toy trade tree"
    " trip true try under us van vine voice wait walk wall want warm wash water wave way we wear"
    " week well went were west what wheel when where while who why wide wife win wind wine wish"
    " with woman wood word work world would write wrong year yes yet you young your"
).split()
FILLERS = "the a to and it on of".split()
FUNCTION_WORDS = frozenset("the a of and to on me for it from in with i this about".split())

TITLES = 900
ZIPF = 0.95


@dataclass(frozen=True)
class Catalog:
    """Everything that can be said, as tables of indices.

    T texts, I items (a title, a channel, …), V words, WAYS ways of asking, L words in the longest
    text, K nearest-sounding words.

    Args:
        words: V words.
        texts: T texts, in lower case as recognizers print them.
        text_words: int32, (T, L): each text's words, −1 after its end.
        text_item: int32, (T,): what it asks for.
        text_way: int32, (T,): how.
        item_text: int32, (I, WAYS): the text that asks for an item in a way, −1 where none does.
        item_kind: int32, (I,): index into KINDS.
        items_of: for each kind its items, most popular first.
        lookalike: int32, (I,): a much more popular title that sounds like this one, or −1.
        nearest: int32, (V, K): words that sound like a word, nearest first.
        nearest_up_to: float64, (V, K): their cumulative probabilities.
        hardness: float64, (V,): log-odds added where a word is short, rare or easily confused.
        is_function_word: bool, (V,).
    """

    words: tuple[str, ...]
    texts: tuple[str, ...]
    text_words: npt.NDArray[np.int32]
    text_item: npt.NDArray[np.int32]
    text_way: npt.NDArray[np.int32]
    item_text: npt.NDArray[np.int32]
    item_kind: npt.NDArray[np.int32]
    items_of: tuple[npt.NDArray[np.int32], ...]
    lookalike: npt.NDArray[np.int32]
    nearest: npt.NDArray[np.int32]
    nearest_up_to: npt.NDArray[np.float64]
    hardness: npt.NDArray[np.float64]
    is_function_word: npt.NDArray[np.bool_]


@cache
def catalog() -> Catalog:
    """The catalog: always the same, whatever the simulation's seed."""
    items = [("title", title) for title in _titles()]
    for kind, names in zip(KINDS[1:], (CHANNELS, APPS, SEARCHES, COMMANDS), strict=True):
        items += [(kind, name) for name in names]
    texts: list[str] = []
    item_text = np.full((len(items), WAYS), -1, np.int32)
    text_item, text_way = [], []
    for item, (kind, name) in enumerate(items):
        for way, template in enumerate(TEMPLATES[kind]):
            item_text[item, way] = len(texts)
            texts.append(template.format(name))
            text_item.append(item)
            text_way.append(way)
    words = sorted({word for text in texts for word in text.split()} | {*EVERYDAY, *FILLERS})
    index = {word: i for i, word in enumerate(words)}
    longest = max(len(text.split()) for text in texts)
    text_words = np.full((len(texts), longest), -1, np.int32)
    for row, text in enumerate(texts):
        for column, word in enumerate(text.split()):
            text_words[row, column] = index[word]
    kinds = np.array([KINDS.index(kind) for kind, _ in items], np.int32)
    nearest, nearest_up_to, crowd = _nearest(words)
    return Catalog(
        words=tuple(words),
        texts=tuple(texts),
        text_words=text_words,
        text_item=np.array(text_item, np.int32),
        text_way=np.array(text_way, np.int32),
        item_text=item_text,
        item_kind=kinds,
        items_of=tuple(np.flatnonzero(kinds == kind).astype(np.int32) for kind in range(5)),
        lookalike=_lookalikes([name for _, name in items], kinds),
        nearest=nearest,
        nearest_up_to=nearest_up_to,
        hardness=_hardness(words, text_words, text_item, crowd),
        is_function_word=np.array([word in FUNCTION_WORDS for word in words]),
    )


def zipf(count: int) -> npt.NDArray[np.float64]:
    """Cumulative probabilities of `count` things by popularity."""
    up_to = np.cumsum(1 / (np.arange(count) + 2.0) ** ZIPF)
    shares: npt.NDArray[np.float64] = up_to / up_to[-1]
    return shares


def _titles() -> list[str]:
    """TITLES distinct titles, in the order of their popularity."""
    rng = np.random.default_rng(7)

    def one(of: list[str]) -> str:
        return of[int(rng.random() * len(of))]

    def made() -> str:
        shape = int(rng.random() * 8)
        if shape == 0:
            return f"the {one(ADJECTIVES)} {one(NOUNS)}"
        if shape == 1:
            return f"{one(NOUNS)} of {one(MATERIALS)}"
        if shape == 2:
            return f"{one(NAMES)} and the {one(NOUNS)}"
        if shape == 3:
            return f"{one(PLACES)} {one(NOUNS)}"
        if shape == 4:
            return f"the {one(NOUNS)}"
        if shape == 5:
            return f"{one(NOUNS)} {one(NOUNS)}"
        if shape == 6:
            return f"{one(NAMES)} {one(NAMES)}"
        return f"{one(ADJECTIVES)} {one(NOUNS)}"

    titles = dict.fromkeys(made() for _ in range(2 * TITLES))
    chosen = list(titles)[: TITLES - len(UNICODE)]
    for i, title in enumerate(UNICODE):  # spread over the ranks, none of them on top
        chosen.insert(15 + 20 * i, title)
    return chosen


def _nearest(
    words: list[str], count: int = 6
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(V, count) nearest words, their cumulative probabilities, and how crowded each word is."""
    spoken = [sounds.pronounce(word) for word in words]
    apart = sounds.distances(spoken, spoken).astype(np.float64)
    np.fill_diagonal(apart, np.inf)
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :count].astype(np.int32)
    close = np.exp(-np.take_along_axis(apart, nearest, axis=1) / 0.3)
    # A distant neighbor still gets a chance, or a word without homophones would have one error.
    shares = (close + 1e-3) / (close + 1e-3).sum(axis=1, keepdims=True)
    return nearest, np.cumsum(shares, axis=1), np.log1p(close.sum(axis=1))


def _hardness(
    words: list[str],
    text_words: npt.NDArray[np.int32],
    text_item: list[int],
    crowd: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Log-odds of an error, by word: crowded and rare words are hard."""
    first_seen = np.full(len(words), len(text_item))
    for row, item in enumerate(text_item):
        used = text_words[row][text_words[row] >= 0]
        first_seen[used] = np.minimum(first_seen[used], item)
    common = [word in FUNCTION_WORDS or word in EVERYDAY for word in words]
    rank = np.where(common, 0, np.minimum(first_seen, TITLES))
    # Words of channels, apps and commands come late in the list and are often said.
    rank = np.where((first_seen >= TITLES) & (first_seen < len(text_item)), 30, rank)
    foreign = np.array([not word.isascii() for word in words])
    return 0.45 * (np.log1p(rank) - 3.0) + 0.8 * (crowd - 0.4) + 0.9 * foreign


def _lookalikes(names: list[str], kinds: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """For each title a much more popular one that sounds like it, or −1."""
    popular = 80
    spoken = ["".join(map(sounds.pronounce, name.split())) for name in names]
    apart = sounds.distances(spoken, spoken[:popular])
    lengths = np.array([len(phones) for phones in spoken])
    rank = np.arange(len(names))
    apart = np.where(np.arange(popular)[None, :] * 3 < rank[:, None], apart, np.inf)
    best = apart.argmin(axis=1)
    near = apart.min(axis=1) < 0.36 * lengths
    return np.where(near & (kinds == 0), best, -1).astype(np.int32)
