"""Saved files with bytes changed, cut and added: an error that is documented, or an object."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from damage import damaged
from kinds import COMMANDS, NAMES, Refused, kinds

VALUES: tuple[Any, ...] = (None, True, -1, 0, 1e400, 10**30, "", "x", [], {}, [[]], {"": 0})


def altered(whole: bytes, rng: random.Random) -> bytes:
    """A value of a JSON file, at any depth, is another one, or is missing."""
    content = json.loads(whole)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        if rng.random() < 0.2:
            del place[key]
        else:
            place[key] = rng.choice(VALUES)
        return json.dumps(content).encode()


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_is_read(name: str) -> None:
    kind = kinds()[name]
    kind.reader(kind.folder / name)


def read_damaged(name: str, seed: int) -> None:
    kind, rng = kinds()[name], random.Random(seed)
    alters = kind.suffix == ".json" and rng.random() < 0.7
    kind.read((altered if alters else damaged)(kind.content, rng))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COMMANDS])
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused_as_documented(name: str, seed: int) -> None:
    read_damaged(name, seed)


@pytest.mark.parametrize("name", COMMANDS)
@settings(max_examples=20)  # each is a run or two; fuzz.py has thousands
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_used_by_a_command_or_refused_in_words(name: str, seed: int) -> None:
    read_damaged(name, seed)


def altered_at(content: bytes, *places: Any, value: Any) -> bytes:
    """JSON with another value at one place."""
    whole = json.loads(content)
    inner = whole
    for place in places[:-1]:
        inner = inner[place]
    inner[places[-1]] = value
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("name", "places", "value"),
    [
        ("metadata.json", ("functions", 0), {"name": "x", "source": "x"}),
        ("metadata.json", ("functions", 0, "family"), {"": 0}),
        ("metadata.json", ("functions",), None),
        ("metadata.json", ("errors",), [{"name": "x", "first": 3}]),
        ("manifest.json", ("functions", 0), [[]]),
        ("manifest.json", ("queries",), {"": 0}),
        ("manifest.json", ("queries", 0), []),
        ("manifest.json", ("queries", 0, 0), [[]]),
        ("manifest.json", ("partitions",), 0),
        ("manifest.json", ("partitions",), 10**30),
        ("manifest.json", ("partitions",), "2"),
    ],
)
def test_metadata_of_votes_that_is_broken_is_refused_by_the_files_name(
    name: str, places: tuple[Any, ...], value: Any
) -> None:
    kind = kinds()[name]
    path = kind.folder / "tried.json"
    path.write_bytes(altered_at(kind.content, *places, value=value))
    files = {"metadata.json": "described.parquet", "manifest.json": "_weaklabel.json"}
    with pytest.raises(Refused, match=files[name]):
        kind.reader(path)


def test_votes_whose_pages_are_broken_are_refused_by_their_name() -> None:
    kind = kinds()["votes.parquet"]
    path = kind.folder / "tried.parquet"
    path.write_bytes(kind.content[:8] + bytes(1200) + kind.content[1208:])
    with pytest.raises(Refused, match=r"tried\.parquet cannot be read"):
        kind.reader(path)
