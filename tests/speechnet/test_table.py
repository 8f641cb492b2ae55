"""The page: its tables hold the results' numbers, and what was not run is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import little
import pytest

from speechnet import settings, table

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


def scores(gain: tuple[float, float, float] = (0.4, 0.31, 0.52)) -> dict[str, Any]:
    def student(name: str, wer: float, noise: float = 0.0) -> dict[str, Any]:
        mode = RATE | {"wer": [wer, wer - 0.01, wer + 0.01], "real_time_factor": 0.01,
                       "better": {"whisper": gain, "whisper, rescored": gain,
                                  "raw": [-0.1, -0.2, 0.05],
                                  "pocketsphinx": [0.3, 0.2, 0.4]}}  # fmt: skip
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
    def met(gain: tuple[float, float, float]) -> list[str]:
        write(settings.results(size) / "scores.json", scores(gain))
        lines = table.tables(table.Results(size))["claims"].splitlines()
        return [cells(lines, f"| Whisper tiny.en | fewer errors than {whom}")[-1]
                for whom in ("Whisper tiny.en |", "the student of all transcripts")]  # fmt: skip

    assert met((0.4, 0.31, 0.52)) == ["yes", "no"]
    assert met((0.4, -0.02, 0.52)) == ["no", "no"]
    assert met((0.29, 0.2, 0.4)) == ["no", "no"]


def test_speed_is_told_against_the_faster_third_party(size: settings.Size) -> None:
    row = {"p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "core_hours_per_million": 4.0}
    factors = {"pocketsphinx": 0.1, "whisper": 0.3, "student, eager": 0.02, "student, export": 0.01}
    write(settings.results(size) / "deploy.json", {
        "backend": "export", "load": {},
        "speed": {name: row | {"real_time_factor": one} for name, one in factors.items()},
    })  # fmt: skip
    lines = table.tables(table.Results(size))["claims"].splitlines()
    (times,) = [line for line in lines if "as fast as" in line]
    assert "| 10.0× | yes |" in times


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
