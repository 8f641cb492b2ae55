"""Figures of benchmarks: kept, shown, and compared with those of another run."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # no package, like this folder

import bench_check
import figures
from figures import Figure

BENCHMARK = """
import argparse, sys
sys.path.insert(0, {here!r})
import figures

parser = argparse.ArgumentParser()
parser.add_argument("--slow", action="store_true")
figures.add_option(parser)
options = parser.parse_args()
found = [
    figures.Figure.of("time with / without", [2.2, 2.0, 2.1] if options.slow else [1.1, 1.0, 1.2]),
    figures.Figure.of("speed of ours / theirs", 10, better="higher", along="rows", at=1000),
]
figures.save("made", found, options.save, packages=["numpy"])
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder with a benchmark that takes no time."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    text = BENCHMARK.format(here=str(Path(__file__).parent))
    (folder / "bench_made.py").write_text(text)
    return folder


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    folder = tmp_path / "committed"
    folder.mkdir()
    return folder


def commit(folder: Path, **others: Any) -> None:
    """What the benchmark finds, as if it had been committed."""
    found = [
        Figure.of("time with / without", [1.1, 1.0, 1.2]),
        Figure.of("speed of ours / theirs", 10, better="higher", along="rows", at=1000),
    ]
    content = {
        "command": ["bench_made.py"],
        "figures": [vars(figure) for figure in found],
        "failures": {},
        "versions": {"numpy": "2.0"},
        "machine": "a machine",
        "load": 0.1,
        "seconds": 3,
    }
    (folder / "made.json").write_text(json.dumps(content | others))


def doctor(folder: Path, number: int, **changes: Any) -> None:
    file = folder / "made.json"
    content = json.loads(file.read_text())
    content["figures"][number] |= changes
    file.write_text(json.dumps(content))


def checked(committed: Path, scripts: Path) -> int:
    return bench_check.main(["--committed", str(committed), "--scripts", str(scripts)])


def test_figures_that_are_as_committed_pass(committed, scripts, capsys):
    commit(committed)
    assert checked(committed, scripts) == 0
    assert "made: 2 figures within their limits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "doctored", "line"),
    [
        (
            0,
            {"median": 0.6, "low": 0.5, "high": 0.7},
            "made: time with / without: 1.10, committed 0.600, at most 0.780",
        ),
        (
            1,
            {"median": 20, "low": 20, "high": 20},
            "made: speed of ours / theirs, rows 1000: 10.0, committed 20.0, at least 15.4",
        ),
        (1, {"at": 2000}, "made: speed of ours / theirs, rows 2000: not measured"),
    ],
)
def test_a_doctored_figure_fails_with_a_line(committed, scripts, capsys, number, doctored, line):
    commit(committed)
    doctor(committed, number, **doctored)
    assert checked(committed, scripts) == 1
    assert capsys.readouterr().out.splitlines() == [line]


def test_a_figure_that_has_become_better_passes(committed, scripts):
    commit(committed)
    doctor(committed, 0, median=9.0, low=8.0, high=9.5)
    doctor(committed, 1, median=1.0, low=1.0, high=1.0)
    assert checked(committed, scripts) == 0


@pytest.mark.parametrize(
    ("doctored", "line"),
    [
        ({"median": 0.6}, "time with / without: 0.6 is not from 1.0 to 1.2"),
        ({"high": math.inf}, "inf or 0.3 is no number"),
        ({"margin": math.nan}, "nan is no number"),
        ({"margin": -1}, "-1 is no number"),
        ({"better": "Lower"}, "'Lower' is none of lower, higher and neither"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_figure_that_cannot_be_compared_fails(committed, scripts, capsys, doctored, line):
    commit(committed)
    doctor(committed, 0, **doctored)
    assert checked(committed, scripts) == 1
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    "others",
    [
        {"figures": []},
        {"figures": "made"},
        {"figures": [1]},
        {"command": []},
        {"command": None},
        {"command": [1]},
        {"command": "bench_made.py"},
        {"command": {"bench_made.py": 1}},
        {"seconds": None},
    ],
)
def test_a_file_that_compares_nothing_fails(committed, scripts, capsys, others):
    commit(committed, **others)
    assert checked(committed, scripts) == 1
    [line] = capsys.readouterr().out.splitlines()[:-1]
    assert line.startswith("made: the committed file is damaged")


@pytest.mark.parametrize("text", ["", '{"command": [', "[]", "{}", "[" * 100_000])
def test_a_damaged_file_fails_and_the_others_are_compared(committed, scripts, capsys, text):
    commit(committed)
    (committed / "damaged.json").write_text(text)
    assert checked(committed, scripts) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("damaged: the committed file is damaged")
    assert second == "made: 2 figures within their limits"


@pytest.mark.parametrize("written", ["[]", '{"figures": [{"what": "a / b", "median": 1}]}', "torn"])
def test_a_benchmark_that_writes_no_figures_fails_and_the_others_are_compared(
    committed, scripts, capsys, written
):
    commit(committed)
    (committed / "made.json").rename(committed / "other.json")  # after the damaged one
    doctored = json.loads((committed / "other.json").read_text())
    (committed / "damaged.json").write_text(json.dumps(doctored | {"command": ["bench_bad.py"]}))
    (scripts / "bench_bad.py").write_text(
        "import sys, pathlib\n"
        "sys.stdout.buffer.write(b'\\xff')\n"
        f"pathlib.Path(sys.argv[-1], 'damaged.json').write_text({written!r})\n"
    )
    text = (scripts / "bench_made.py").read_text()
    (scripts / "bench_made.py").write_text(text.replace('save("made"', 'save("other"'))
    assert checked(committed, scripts) == 1
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("damaged: ")
    assert [line.endswith("not measured") for line in lines] == [True, True]
    assert last == "other: 2 figures within their limits"


@pytest.mark.parametrize("where", ["committed", "measured"])
def test_a_figure_that_stands_twice_hides_no_worse_one(committed, scripts, capsys, where):
    commit(committed)
    if where == "committed":
        file = committed / "made.json"
        content = json.loads(file.read_text())
        content["figures"].append(content["figures"][0] | {"median": 1.05})
        file.write_text(json.dumps(content))
    else:
        doctor(committed, 0, median=0.6, low=0.5, high=0.7)  # worse now, but for the second one
        text = (scripts / "bench_made.py").read_text()
        twice = 'found.append(figures.Figure.of("time with / without", 0.6))\nfigures.save('
        (scripts / "bench_made.py").write_text(text.replace("figures.save(", twice))
    assert checked(committed, scripts) == 1
    assert "time with / without: more than once" in capsys.readouterr().out


def test_the_command_is_run_with_its_committed_options(committed, scripts, capsys):
    commit(committed, command=["bench_made.py", "--slow"])
    assert checked(committed, scripts) == 1
    assert "2.10, committed 1.10, at most 1.43" in capsys.readouterr().out


def test_a_command_that_fails_is_a_failure(committed, scripts, capsys):
    commit(committed, command=["bench_made.py", "--unknown"])
    assert checked(committed, scripts) == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert "ended with status 2" in first
    assert [line.endswith("not measured") for line in others] == [True, True]


@pytest.mark.parametrize("named", [False, True])
def test_a_command_that_takes_long_is_run_only_by_its_name(committed, scripts, capsys, named):
    commit(committed, seconds=9000)
    arguments = ["--committed", str(committed), "--scripts", str(scripts)]
    assert bench_check.main(["made", *arguments] if named else arguments) == (0 if named else 1)
    told = "made: 2 figures within their limits" if named else "no figures were compared"
    assert capsys.readouterr().out.splitlines()[-1] == told


def test_nothing_committed_is_no_success(committed, scripts):
    with pytest.raises(SystemExit):
        checked(committed, scripts)


def test_a_median_within_the_runs_or_the_margin_is_not_worse():
    figure = Figure.of("a / b", [1.0, 1.0, 1.6], margin=0.1)
    assert not figure.worse(Figure.of("a / b", 1.59))
    assert figure.worse(Figure.of("a / b", 1.61))
    assert Figure.of("a / b", 1.0, margin=0.1).worse(Figure.of("a / b", 1.11))
    assert not Figure.of("a / b", 1.0, margin=0.1).worse(Figure.of("a / b", 1.09))
    assert Figure.of("a / b", 0.0).worse(Figure.of("a / b", 0.001))


@pytest.mark.parametrize("median", [0.001, 1000.0])
def test_what_another_tool_does_is_never_worse_but_has_to_be_measured(median):
    theirs = Figure.of("wrong labels of theirs / all", [1.0, 1.1], better="neither")
    found = Figure.of("wrong labels of theirs / all", median, better="neither")
    assert [*bench_check.beyond("made", [theirs], [found])] == []
    assert [*bench_check.beyond("made", [theirs], [])] == [
        "made: wrong labels of theirs / all: not measured"
    ]


def test_figures_of_ours_alone_have_a_direction():
    theirs = re.compile(
        r"(labels of )?(Bayes oracle|Snorkel|crowd-kit|hyperlm|cleanlab)|"
        r"(daam|attention-map-diffusers(, all steps)?): |"
        r"texts changed by stock|float32, stock, "
    )
    for file in figures.SAVED.glob("*.json"):
        for figure in figures.load(file)[1]:
            assert (figure.better == "neither") == bool(theirs.match(figure.what)), figure.what


def test_a_file_becomes_tables_and_says_what_it_was_measured_with(committed):
    commit(committed, failures={"a tool": "no such release"})
    shown = figures.page("before\n<!-- made -->\nold\n<!-- end -->\nafter", committed)
    assert shown.splitlines() == [
        "before",
        "<!-- made -->",
        "",
        "```text",
        "python tests/benchmarks/bench_made.py",
        "```",
        "",
        "| ratio | median | lowest to highest | runs | at worst |",
        "|---|---:|---:|---:|---:|",
        "| time with / without | 1.10 | 1.00 to 1.20 | 3 | 1.43 |",
        "",
        "| rows | 1,000 |",
        "|---|---:|",
        "| speed of ours / theirs | 10.0 |",
        "",
        "Not measured: a tool (no such release).",
        "",
        "0.1 minutes on a machine, load 0.1 before: numpy 2.0.",
        "<!-- end -->",
        "after",
    ]
    assert figures.page(shown, committed) == shown


def test_numbers_have_three_digits():
    values = (0.0, 7.2e-7, 0.0123, 0.5, 1.0, 12.34, 123.4, 1234.5, 123456)
    assert [figures.shown(value) for value in values] == [
        "0.00", "7.2e-07", "0.0123", "0.500", "1.00", "12.3", "123", "1,230", "123,000",
    ]  # fmt: skip


def test_what_grows_is_drawn(committed, tmp_path):
    picture = tmp_path / "growth.png"
    commit(committed)
    figures.draw(committed, picture)
    assert not picture.exists()  # nothing grows in "made"
    (committed / "made.json").rename(committed / "growth-made.json")
    figures.draw(committed, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_is_what_its_files_say():
    text = figures.PAGE.read_text("utf-8")
    assert figures.page(text) == text
    for file in figures.SAVED.glob("*.json"):
        content, found = figures.load(file)
        assert f"<!-- {file.stem} -->" in text
        assert len({figure.name for figure in found}) == len(found)
        assert (Path(__file__).parent / content["command"][0]).is_file()
        assert not [word for word in content["command"] if word.startswith("/")]
