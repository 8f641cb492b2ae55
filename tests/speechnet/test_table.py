"""The page: its tables hold the results' numbers, and what was not run is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import little
import pytest

from speechnet import settings, table, train

RATE = {"wer": [0.2, 0.18, 0.22], "engine": {}, "sentence": {}, "noise": {}, "device": {}}


@pytest.fixture
def size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Size:
    found = little.make(tmp_path, monkeypatch)
    folder = settings.results(found)
    write(folder / "runs" / "whisper-all-0.json", {
        "settings": {"steps": 4, "batch": 4}, "versions": {"torch": "9"},
        "hardware": {"cpu": "Abacus", "gpu": None},
    })  # fmt: skip
    write(folder / "scores.json", scores())
    return found


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


Gain = tuple[float, float, float]


def scores(gain: Gain = (0.4, 0.31, 0.52), raw: Gain = (-0.1, -0.2, 0.05)) -> dict[str, Any]:
    def student(name: str, wer: float, noise: float = 0.0) -> dict[str, Any]:
        better = {"whisper": gain, "whisper, rescored": gain, "raw": raw,
                  "pocketsphinx": [0.3, 0.2, 0.4]}  # fmt: skip
        mode = RATE | {"wer": [wer, wer - 0.01, wer + 0.01], "better": better,
                       "by_home": dict.fromkeys(better, (0.4, 0.07, 0.66))}  # fmt: skip
        return {
            "third": "whisper", "student": name, "noise": noise, "seeds": [0, 1],
            "cpu_seconds": 7.0, "lessons": 28,
            "modes": dict.fromkeys(("greedy", "lexicon", "ngram"), mode),
        }  # fmt: skip

    return {
        "mode": "lexicon", "test": {"utterances": 12, "words": 50},
        "third": {"whisper": RATE, "pocketsphinx": RATE, "whisper, rescored": RATE},
        "start": dict.fromkeys(("greedy", "lexicon", "ngram"), RATE),
        "students": [student("raw", 0.11), student("all", 0.123), student("all", 0.15, 1.0)],
    }  # fmt: skip


def cells(lines: list[str], start: str) -> list[str]:
    """The cells of the row that begins so."""
    (row,) = [line for line in lines if line.startswith(start)]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_what_stands_between_the_markers_is_replaced_and_the_rest_is_kept(
    size: settings.Size, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Head\n\n<!-- begin wer -->\nold\n<!-- end wer -->\n\nText.\n"
        "<!-- begin speed -->\n<!-- end speed -->\n"
    )
    table.write(size, page, tmp_path / "figures")
    once = page.read_text()
    assert once.startswith("# Head\n\n<!-- begin wer -->\n| ")
    assert (
        "\n<!-- end wer -->\n\nText.\n<!-- begin speed -->\nNot run.\n<!-- end speed -->\n" in once
    )
    assert "old" not in once
    row = cells(
        once.splitlines(), "| student of Whisper tiny.en | all built-in functions' labels, by"
    )
    assert row[3] == "12.3% (11.3% to 13.3%)"
    assert row[-1] == "40% (31% to 52%)"
    table.write(size, page, tmp_path / "figures")
    assert page.read_text() == once
    assert (tmp_path / "figures" / "speechnet-wer.png").stat().st_size > 5_000
    assert not (tmp_path / "figures" / "speechnet-load.png").exists()


def test_a_goal_is_met_only_where_the_interval_is_above_zero(size: settings.Size) -> None:
    def met(*gains: Gain) -> list[str]:
        write(settings.results(size) / "scores.json", scores(*gains))
        lines = table.tables(table.Results(size))["claims"].splitlines()
        everybody = "the student of all transcripts"
        goals = (f"Whisper tiny.en | {goal}" for goal in ("from 8%", "from 30%"))
        rivals = (*goals, f"{everybody} |", f"{everybody}, feedback without meaning | from -2%")
        found = [cells(lines, f"| Whisper tiny.en | fewer errors than {whom}") for whom in rivals]
        assert found[0][-2] == "7% to 66%"
        return [row[-1] for row in found]

    assert met() == ["yes", "yes", "no", "no"]
    assert met((0.4, -0.02, 0.52)) == ["no", "no", "no", "no"]
    assert met((0.29, 0.2, 0.4), (0.0, -0.01, 0.01)) == ["yes", "no", "no", "yes"]


def test_runs_on_several_machines_are_all_named(size: settings.Size) -> None:
    write(settings.results(size) / "runs" / "whisper-raw-0.json", {
        "settings": {"steps": 4, "batch": 4}, "versions": {"torch": "10"},
        "hardware": {"cpu": "Abacus", "gpu": "Loom"},
    })  # fmt: skip
    lines = table.tables(table.Results(size))["setup"].splitlines()
    assert cells(lines, "| hardware")[1] == "Abacus, a core each; Loom"
    assert cells(lines, "| versions")[1] == "torch 9; torch 10"
    assert cells(lines, "| a student")[1].startswith("4 steps of 4, ")


def test_speed_is_told_against_the_faster_third_party(size: settings.Size) -> None:
    row = {"p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "core_hours_per_million": 4.0}
    factors = {"pocketsphinx": 0.1, "whisper": 0.3, "student, eager": 0.02, "student, export": 0.01}
    write(settings.results(size) / "deploy.json", {
        "student": "whisper-all-0", "backend": "export", "load": {},
        "speed": {name: row | {"real_time_factor": one} for name, one in factors.items()},
    })  # fmt: skip
    lines = table.tables(table.Results(size))["claims"].splitlines()
    (times,) = [line for line in lines if "as fast as" in line]
    assert "| 10.0× |  | yes |" in times


def test_a_student_timed_before_its_training_changed_is_told(size: settings.Size) -> None:
    own = {"steps": 4, "batch": 4, "test": "0", "decoders": {}}
    run = settings.results(size) / "runs" / "whisper-all-0.json"
    write(run, json.loads(run.read_text()) | {"settings": own})
    weights = f"whisper-all-0-{train.key({'steps': 4, 'batch': 4})}"
    for student, told in ((weights, False), ("whisper-all-0", True)):
        write(settings.results(size) / "deploy.json", {
            "student": student, "backend": "export", "load": {},
            "speed": {name: {"real_time_factor": 0.1}
                      for name in ("pocketsphinx", "whisper", "student, export")},
        })  # fmt: skip
        made = table.tables(table.Results(size))["speed"]
        assert ("has other weights than those above" in made) == told


def test_the_documents_page_asks_for_every_table_and_shows_every_plot(size: settings.Size) -> None:
    text = table.PAGE.read_text()
    made = table.tables(table.Results(size))
    assert sorted(re.findall(r"<!-- begin (\w+) -->", text)) == sorted(made)
    for figure in re.findall(r"\(figures/(speechnet-\w+\.png)\)", text):
        assert figure[10:-4] in table.PLOTS


def test_nothing_evaluated_is_an_error_that_names_the_step(size: settings.Size) -> None:
    (settings.results(size) / "scores.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scores.json .*run the step evaluate first"):
        table.Results(size)
