"""weaklabel after kills and full disks, for some seconds: killed_runs.py does it for minutes."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from killed_runs import (
    Found,
    Undisturbed,
    commands,
    kill_at_random,
    make_log,
    stop_at_change,
    twice_at_once,
    without_a_part,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    folder = tmp_path_factory.mktemp("runs") / "inputs"
    folder.mkdir()
    make_log(folder, 1)
    return {command.name: Undisturbed(command, folder) for command in commands("polars")}


def test_a_run_killed_while_its_manifest_is_written_can_be_resumed_or_begun_anew(undisturbed):
    """Changes 2 to 8 are the manifest's: its folder, its lock, itself, its name."""
    found = Found()
    for number in (5, 7):
        stop_at_change(undisturbed["apply, a folder"], found, number, "kill")
    assert found.counts["kills before a change to the file system"] == 2
    assert not found.wrong


@pytest.mark.parametrize("name", ["apply, a folder", "export"])
def test_killed_or_refused_space_at_any_moment_a_restart_gives_the_whole(undisturbed, name):
    found, rng, one = Found(), random.Random(), undisturbed[name]
    kill_at_random(one, found, rng)
    stop_at_change(one, found, rng.randint(1, one.changes), "kill")
    stop_at_change(one, found, rng.randint(1, one.changes), "full")
    assert found.counts["restarts"] == 3
    assert not found.wrong


def test_two_runs_at_once_and_a_log_that_loses_a_file_give_the_whole_or_an_error(undisturbed):
    found, one = Found(), undisturbed["apply, a file"]
    twice_at_once(one, found)
    without_a_part(one, found, random.Random())
    assert found.counts["pairs of runs at once"] == found.counts["runs whose log loses a file"] == 1
    assert not found.wrong
