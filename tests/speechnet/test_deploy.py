"""Deployment: the best student is found and timed, and arrivals come when they should."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import little
import numpy as np
import pytest
from accelerate.state import AcceleratorState

from speechnet import deploy, evaluate, settings, third_party, train
from speechnet.waves import Waves


def test_arrivals_have_the_logs_hours_and_the_asked_rate() -> None:
    evening = np.linspace(18, 22, 500) * 3600
    at = deploy.arrivals(np.concatenate([evening, [7 * 3600.0] * 100]), 50, 10.0)
    assert len(at) == 500
    assert (np.diff(at) >= 0).all()
    busy = (at >= 10 * 18 / 24) & (at <= 10 * 22 / 24)
    assert busy.mean() == pytest.approx(5 / 6, abs=0.05)
    assert at.min() == pytest.approx(10 * 7 / 24, abs=0.01)


def test_the_load_rises_until_answers_are_late_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves = list(Waves(little.make(tmp_path, monkeypatch), "test").values())
    device = asyncio.Semaphore(1)

    async def ask(wave: object) -> str:
        async with device:  # one at a time, 5 ms each: at most 200 a second
            await asyncio.sleep(0.005)
        return "mute"

    clock = np.linspace(0, settings.DAY, 1_000)
    rows = deploy.load(ask, clock, waves, (20, 400, 600, 800), 0.25)
    assert [row["rate"] for row in rows] == [20, 400, 600]
    assert [row["queries"] for row in rows] == [5, 100, 150]
    assert 5 <= rows[0]["p50_ms"] < 100
    assert rows[0]["answered"] <= 20
    assert rows[1]["answered"] < 200
    assert rows[2]["p99_ms"] > rows[1]["p99_ms"] > 200

    async def refuse(wave: object) -> Exception:
        return ValueError("the queue is full")

    with pytest.raises(ValueError, match="the queue is full"):
        deploy.load(refuse, clock, waves, (5,), 1.0)


@pytest.mark.slow
def test_the_best_student_is_timed_beside_the_third_parties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    size = little.make(tmp_path, monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"scores.json is missing: run the step evaluate"):
        deploy.best(size)
    train.examine(train.Run(size, "whisper", "raw", 0))
    AcceleratorState._reset_state(reset_partial_state=True)
    evaluate.evaluate(size)
    # The recognizers have tests of their own; these take a moment as they would.
    monkeypatch.setattr(
        third_party, "recognizer", lambda source, nbest: lambda wave: [SimpleNamespace(text=source)]
    )
    monkeypatch.setattr(deploy, "WHOLE", (4, 1, (5,), 1.0))
    found = deploy.deploy(size)
    assert json.loads((settings.results(size) / "deploy.json").read_text()) == found
    assert found["student"] == train.Run(size, "whisper", "raw", 0).folder.name
    assert len(found["buckets"]) == 1
    speed = found["speed"]
    assert list(speed)[:2] == ["pocketsphinx", "whisper"]
    students = [name for name in speed if name.startswith("student")]
    assert len(students) == 3
    for name in students:
        row = speed[name]
        assert 0 < row["real_time_factor"] < 1
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    for rows in found["load"].values():
        assert rows[0]["queries"] == 5
        assert rows[0]["p99_ms"] > 0
