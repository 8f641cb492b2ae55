"""The example of a label model as a plugin in one file: docs/examples/found_families.py."""

import sys
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
sys.path[:0] = [str(EXAMPLES), str(Path(__file__).parent)]

from test_recovery import FUNCTIONS, make_log  # noqa: E402

from found_families import FoundFamilies  # noqa: E402
from weaklabel import WeakLabelWarning, load_model  # noqa: E402
from weaklabel.cli import main  # noqa: E402


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_near_copies_are_found_and_harmless(name: str) -> None:
    log = make_log(141, copies=(name,) * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeakLabelWarning)
        model = FoundFamilies().fit(log.patterns())
    assert model.families == (tuple(sorted([name, *(f"{name}_{n}" for n in (2, 3, 4))])),)
    reached = log.scores(model)
    assert reached[0] >= 0.92
    assert reached[1] >= 0.945


def test_independent_functions_stay_alone() -> None:
    log = make_log(142)
    assert FoundFamilies().fit(log.patterns()).families == ()


def test_the_command_line_finds_it_in_its_file(tmp_path: Path) -> None:
    counts, out = tmp_path / "counts.parquet", tmp_path / "model.json"
    make_log(143, copies=("dwell",)).patterns().save(counts)
    plugin = EXAMPLES / "found_families.py"
    command = ["fit", str(counts), "--model", "found-families", "--functions", str(plugin)]
    assert main([*command, "--option", "strength=0.2", "--out", str(out)]) == 0
    model = load_model(out)  # without the plugin
    assert model.families == (("dwell", "dwell_2"),)  # type: ignore[attr-defined]
