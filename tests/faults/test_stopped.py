"""Some calls of the tracer and the pool, stopped; and the page, which says what the files say."""

from __future__ import annotations

import argparse
import importlib
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import record
from stopped_calls import KINDS, STAGES, FrozenExclusive, pool, stopped
from stopped_calls import stop_everywhere as stop_calls
from stopped_generations import CASES, Fault, equal, state, traced
from stopped_generations import stop_everywhere as stop_generations
from turn import Turn

import daam_diffusers
import hf_cudagraph_asr


def some(*kinds: Any) -> Callable[[Turn], list[tuple[int, Any]]]:
    """Two of the calls, anywhere, with each kind of fault."""
    args = argparse.Namespace(calls=2, every=False, more=0, kinds=None)
    return lambda turn: turn.faults(args, random.Random(0), kinds)


@pytest.mark.parametrize("name", ["tinyworld's transformer, joint attention"])
def test_a_generation_that_is_stopped_leaves_the_pipeline_as_it_was(name):
    counts, wrong = stop_generations(name, CASES[name], some(KeyboardInterrupt, Fault))
    assert counts["generations stopped"] == 4
    assert not wrong


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("tinyworld's U-Net, cross- and self-attention", "ProjectionTap.__exit__"),
        ("tinyworld's transformer, joint attention", "DispatchTap.__enter__"),
        ("tinyworld's transformer, joint attention", "DispatchTap.__exit__"),
        ("tinyworld's transformer, joint attention", "DispatchTap.close"),
    ],
)
def test_an_interrupt_as_a_context_begins_or_ends_leaves_nothing_behind(name, place):
    case = CASES[name]
    pipe = case.make()
    case.run(pipe)  # the host's encoders get hooks of their own
    before = state(pipe)
    _, maps = traced(case, pipe)
    turn = Turn(daam_diffusers, 2, KeyboardInterrupt(), only=place)
    with daam_diffusers.trace(pipe, refine=case.refine) as tracer:
        with pytest.raises(KeyboardInterrupt), turn:
            case.run(pipe)
        assert turn.at == place
        case.run(pipe)  # of the same tracer
    assert state(pipe) == before
    assert equal(tracer.heat_maps(), maps)
    with (
        pytest.raises(KeyboardInterrupt),
        daam_diffusers.trace(pipe, refine=case.refine),
        Turn(daam_diffusers, 2, KeyboardInterrupt(), only=place),
    ):
        case.run(pipe)
    assert state(pipe) == before


@pytest.mark.parametrize("name", ["enable", "a batch that is split", "rebuild"])
def test_a_call_that_is_stopped_is_followed_by_right_ones(name, monkeypatch, caplog):
    monkeypatch.setattr(pool, "PATIENCE", 0.1)
    caplog.set_level(logging.ERROR)
    assert name in STAGES
    _, faults, wrong = stop_calls(name, FrozenExclusive, some(*KINDS))
    assert faults == 8
    assert not wrong


def test_an_interrupt_after_all_was_captured_leaves_the_model_as_it_was():
    turn = Turn(hf_cudagraph_asr, 1, KeyboardInterrupt(), only="_warn_of_tf32")
    assert stopped("enable", FrozenExclusive, turn) == []
    assert turn.at == turn.only


def test_each_kind_of_fault_comes_once_at_each_place(tmp_path, monkeypatch):
    folder = tmp_path / "two_places"
    folder.mkdir()
    code = "def one(): pass\ndef main():\n    for _ in range(3): one()\n    one()\n"
    (folder / "__init__.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("two_places")
    with Turn(package) as turn:
        package.main()
    assert (turn.calls, len(turn.places)) == (5, 3)
    options = argparse.Namespace(calls=None, every=False, more=0, kinds=1)
    assert turn.faults(options, random.Random(0), "ab") == [(1, "a"), (4, "b"), (5, "a")]
    options.kinds = None
    seen: set[Any] = set()
    found = turn.faults(options, random.Random(0), "ab", seen)
    assert found == [(1, "a"), (1, "b"), (2, "a"), (4, "b"), (5, "a"), (5, "b")]
    assert turn.faults(options, random.Random(0), "ab", seen) == []
    options.every = True
    assert len(turn.faults(options, random.Random(0), "ab", seen)) == 10


def test_the_page_shows_what_the_commands_found():
    text = record.PAGE.read_text("utf-8")
    assert record.page(text) == text
    named = {match[1] for match in record.TABLE.finditer(text)}
    assert named >= {path.stem for path in record.FOUND.glob("*.json")}
