"""The study of parts of speech on tinyworld: its prompts, its masks, its committed results."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import evaluate
import scenes
import study
from daam_diffusers.linguistics import SAME, TWO


def test_pairs_are_of_one_category_or_of_two_by_a_fair_coin() -> None:
    samples = [*study.pairs(300)]
    kinds = [study._same(*(phrase.noun for phrase in s.caption.phrases)) for s in samples]
    assert 120 < sum(kinds) < 180
    for sample in samples:
        first, second = sample.caption.phrases
        assert first.noun != second.noun
        assert first.color != second.color
    assert samples == [*study.pairs(300)]


def test_recolored_captions_differ_in_a_color_alone() -> None:
    samples = [*study.recolored(3)]
    for start in range(0, len(samples), study.COLORS_EACH):
        group = samples[start : start + study.COLORS_EACH]
        assert len({sample.seed for sample in group}) == 1
        assert len({sample.caption.first.color for sample in group}) == study.COLORS_EACH
        assert all(one.caption.first.color != one.caption.second.color for one in group)
        bare = {
            replace(one.caption, first=replace(one.caption.first, color="red")) for one in group
        }
        assert len(bare) == 1


def test_the_study_draws_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "STEPS", 3)
    sizes = ["--captions", "1", "--pairs", "2", "--recolored", "1"]
    arguments = [*sizes, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "study.json")]
    study.main(arguments)
    results = json.loads((tmp_path / "study.json").read_text())
    assert results["counts"]["images"] == 6
    assert results["counts"].get("compared", 0) <= 2
    assert results["model"] == "model"
    assert {row["table"] for row in results["rows"]} >= {"intensity", "relations", "cohyponyms"}
    assert sum(kind["images"] for kind in results["both objects right"].values()) == 2
    by_table = {row["table"]: 0 for row in results["rows"]}
    for row in results["rows"]:
        by_table[row["table"]] = max(by_table[row["table"]], row["images"])
    assert (by_table["intensity"], by_table["cohyponyms"]) == (1, 2)
    assert (tmp_path / "out/study.html").is_file()

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*/*")}
    study.main(arguments)  # goes on from what is there
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*/*")} == times
    assert json.loads((tmp_path / "study.json").read_text()) == results


def drawn(samples: list[study.Sample], out: Path) -> None:
    """Scenes as their captions say, at the places that the seed chooses."""
    for sample in samples:
        (out / sample.name).mkdir(parents=True)
        scene = scenes.draw_scene(sample.caption, np.random.default_rng(sample.seed))
        PIL.Image.fromarray(scene.image).save(out / sample.name / "image.png")


def test_of_scenes_that_differ_in_a_color_nothing_changes_outside(tmp_path: Path) -> None:
    samples = [*study.recolored(4)]
    drawn(samples, tmp_path)
    means = study.by_true_masks(tmp_path, samples).means
    inside, outside = (
        means["adjectives", "image, by true masks", name] for name in ("inside", "outside")
    )
    assert (inside.images, inside.count) == (4, 8)
    assert inside.value > 0.1
    assert outside.value < 0.002


def test_of_drawn_pairs_all_are_right_and_by_other_captions_few(tmp_path: Path) -> None:
    samples = [*study.pairs(8)]
    drawn(samples, tmp_path)
    found = study.rightly_drawn(tmp_path, samples)
    assert found[SAME]["images"] + found[TWO]["images"] == 8
    assert found[SAME]["right"] == found[TWO]["right"] == 1
    others = [one._replace(caption=other.caption) for one, other in pairwise(samples)]
    wrong = study.rightly_drawn(tmp_path, others)
    assert all(kind["right"] < 0.5 for kind in wrong.values())


def test_the_page_shows_what_the_committed_results_are() -> None:
    results = json.loads((study.HERE / "study.json").read_text(encoding="utf-8"))
    page = (study.HERE.parents[1] / "study.md").read_text(encoding="utf-8")
    means = {(row["table"], row["row"], row["column"]): row for row in results["rows"]}
    shown = re.findall(r"^\| (\w+) \| ([\w:' ,]+) \| (\w+) \| ([\d.]+) ± ([\d.]+) \|", page, re.M)
    assert len(shown) > 10
    for table, row, column, mean, margin in shown:
        found = means[table, row, column]
        assert (f"{found['mean']:.3f}", f"{found['margin']:.3f}") == (mean, margin), (table, row)
    for kind in (SAME, TWO):
        right = results["both objects right"][kind]
        assert f"{right['right']:.1%} of {right['images']}" in page
