"""Sizes, folders, the calendar and the seeds that all steps share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[2] / "runs" / "speechnet"  # audio, checkpoints, students: not committed
RESULTS = HERE / "results"  # small tables: committed

SEED = 12
TEST_SEED = 2027  # of the test set alone, so that another can be drawn beside the same training
RATE = 16_000  # Hz, everywhere
START = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday; day 0 begins here
DAY = 24 * 3600.0  # seconds
# Days before the log begins. Nobody's voice of these days is kept; what was asked for is known.
HISTORY = 7

SOURCES = ("pocketsphinx", "whisper")
PARTS = ("train", "test")

# Further attempts that a person is ready to make for a wish: shares of 0, 1 and 2. Drawn before
# anything is spoken, so they depend on nothing that a recognizer does.
TRIES = (0.55, 0.32, 0.13)
WISHES = 1.5  # mean number of wishes that a session has ready
SILENT_HOUSEHOLDS = 0.15  # send no metadata: neither what follows nor how long it stays on


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        name: "smoke", "cpu" or "full": the name of its folders.
        train, test: utterances, train's to within one session.
        households, test_households: who speaks them; no household is in both parts.
        days, test_days: the log's days, test's after train's; both after `HISTORY`.
        steps, batch: a student's training, the same for all of them.
        seeds: a student is trained once with each.
    """

    name: str
    train: int
    test: int
    households: int
    test_households: int
    days: int
    test_days: int
    steps: int
    batch: int
    seeds: tuple[int, ...]


SIZES = {
    size.name: size
    for size in (
        Size("smoke", 200, 40, 24, 12, 3, 1, 15, 8, (0,)),
        Size("cpu", 4_000, 1_000, 150, 64, 14, 4, 3_000, 16, (0, 1, 2)),
        Size("full", 20_000, 2_000, 600, 128, 28, 7, 4_000, 32, (0, 1, 2)),
    )
}


def size_named(name: str) -> Size:
    """The size of that name.

    Raises:
        ValueError: for a name that is none of smoke, cpu and full.
    """
    if name not in SIZES:
        raise ValueError(f"a size is one of {', '.join(SIZES)}, not {name!r}.")
    return SIZES[name]


def work(size: Size) -> Path:
    """The folder for what is made again at will: audio, checkpoints, students."""
    return WORK / size.name


def results(size: Size) -> Path:
    """The folder for small Parquet and JSON files: committed, but for those that smoke makes."""
    return work(size) / "results" if size.name == "smoke" else RESULTS / size.name


def audio(size: Size, part: str, utterance_id: str) -> Path:
    """Where an utterance's recording lies: 16 kHz mono FLAC."""
    return work(size) / "audio" / part / f"{utterance_id}.flac"
