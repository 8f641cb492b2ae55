"""A set of samples: what a file of rows may hold, and what a second run finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_maps import made
from PIL import Image

from daam_diffusers import HeatMaps
from daam_diffusers.samples import Row, fill, read_rows


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_row_has_the_number_as_its_id_and_a_seed_counted_on(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl",
        '{"prompt": "a red dog"}',
        "",
        '{"prompt": "a car", "id": "Car-1.b", "seed": 3}',
        '{"prompt": "Straße", "id": 17}',
        '{"prompt": "a cat", "id": null}',
        '{"prompt": "a cafe", "id": "cafe\\u0301"}',
        '{"prompt": "a cat", "id": "बिल्ली"}',
    )
    assert read_rows(file, 40) == [
        Row("000000", "a red dog", 40),
        Row("Car-1.b", "a car", 3),
        Row("17", "Straße", 42),
        Row("000003", "a cat", 43),
        Row("café", "a cafe", 44),  # one letter
        Row("बिल्ली", "a cat", 45),
    ]


BAD = {
    "no prompt": ('{"id": "a"}', r'"prompt" must be a text that is not empty, got None'),
    "an empty prompt": ('{"prompt": " "}', "not empty, got ' '"),
    "a prompt of another type": ('{"prompt": ["a dog"]}', r"got \['a dog'\]"),
    "no JSON": ("a red dog", "not JSON"),
    "no UTF-8": ('{"prompt": "\udcff"}', "not JSON: .*utf-8"),
    "no object": ('"a red dog"', "a row is an object"),
    "a twin": ('{"prompt": "a", "id": "FIRST"}', "a row before it has the id 'FIRST'"),
    "an id that is taken": ('{"prompt": "a", "id": "000000"}', "the id '000000'"),
    "a path": ('{"prompt": "a", "id": "../x"}', r"at most 100 bytes.* got '\.\./x'"),
    "a hidden id": ('{"prompt": "a", "id": ".x"}', "got '.x'"),
    "an absolute id": ('{"prompt": "a", "id": "/tmp"}', "got '/tmp'"),
    "another system's path": ('{"prompt": "a", "id": "a\\\\b"}', "got "),
    "an empty id": ('{"prompt": "a", "id": ""}', "got ''"),
    "an endless id": (f'{{"prompt": "a", "id": "{"x" * 101}"}}', "at most 100 bytes"),
    "an id of too many bytes": (f'{{"prompt": "a", "id": "{"猫" * 34}"}}', "at most 100 bytes"),
    "the manifest's name": ('{"prompt": "a", "id": "Generation.json"}', "not generation.json"),
    "an id that is true": ('{"prompt": "a", "id": true}', "a text or a whole number, got True"),
    "an id with a fraction": ('{"prompt": "a", "id": 1e3}', "whole number, got 1000.0"),
    "half a letter": ('{"prompt": "a \\ud800"}', "half of a surrogate pair"),
    "a name that stands twice": ('{"prompt": "a", "prompt": "b"}', "twice among prompt, prompt"),
    "a seed below 0": ('{"prompt": "a", "seed": -1}', r"0 to 2\*\*63 - 1, got -1"),
    "a seed of text": ('{"prompt": "a", "seed": "7"}', "got '7'"),
    "a seed that is true": ('{"prompt": "a", "seed": true}', "got True"),
    "what no row has": ('{"prompt": "a", "steps": 3}', "a row is an object of prompt, and id .*3}"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, bad: tuple[str, str]) -> None:
    line, message = bad
    file = tmp_path / "rows.jsonl"
    lines = ('{"prompt": "x"}', '{"prompt": "x", "id": "first"}', "", line)
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"rows\.jsonl:4: .*{message}"):
        read_rows(file)


def test_a_file_without_rows_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rows"):
        read_rows(write(tmp_path / "rows.jsonl", ""))


def drawing(drawn: list[str], dies_at: str = "") -> Callable[[Row, Path], None]:
    """Writes made-up samples, and fails between the two files of one."""

    def draw(row: Row, folder: Path) -> None:
        drawn.append(row.id)
        Image.new("RGB", (48, 32)).save(folder / "image.png")
        if row.id == dies_at:
            raise KeyboardInterrupt
        made(row.prompt).save(folder / "heat_maps.safetensors")

    return draw


ROWS = [Row(f"{i:06d}", "a red dog", i) for i in range(5)]


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    drawn: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, ROWS, {"steps": 2}, drawing(drawn, "000002"))
    visible = sorted(x.name for x in tmp_path.iterdir() if not x.name.startswith("."))
    assert visible == ["000000", "000001", "generation.json"]
    assert fill(tmp_path, ROWS, {"steps": 2}, drawing(drawn)) == 3
    assert drawn == ["000000", "000001", "000002", "000002", "000003", "000004"]
    names = sorted(x.name for x in tmp_path.iterdir())
    assert names == [*(row.id for row in ROWS), "generation.json"]
    assert HeatMaps.load(tmp_path / "000002/heat_maps.safetensors").prompt.text == "a red dog"


def test_processes_make_each_sample_once(tmp_path: Path) -> None:
    drawn: list[str] = []
    shares = [slice(process, None, 3) for process in range(3)]
    assert [fill(tmp_path, ROWS, {}, drawing(drawn), share) for share in shares] == [2, 2, 1]
    assert sorted(drawn) == [row.id for row in ROWS]


def test_a_set_has_one_of_each_setting_and_one_row_an_id(tmp_path: Path) -> None:
    drawn: list[str] = []
    fill(tmp_path, ROWS[:2], {"steps": 2, "lora": None}, drawing(drawn))
    with pytest.raises(ValueError, match=r"made otherwise \(steps was 2, is 3\): go on as"):
        fill(tmp_path, ROWS, {"steps": 3, "lora": None}, drawing(drawn))
    with pytest.raises(ValueError, match="refine was None, is True"):
        fill(tmp_path, ROWS, {"steps": 2, "lora": None, "refine": True}, drawing(drawn))
    for other, was in (
        (Row("000001", "a car", 1), "prompt"),
        (Row("000001", "a red dog", 2), "seed"),
    ):
        with pytest.raises(ValueError, match=rf"000001 was made otherwise \({was} was"):
            fill(tmp_path, [ROWS[0], other], {"steps": 2, "lora": None}, drawing(drawn))
    assert drawn == ["000000", "000001"]
    more = [*ROWS[:1], Row("extra", "a car", 9)]
    assert fill(tmp_path, more, {"steps": 2, "lora": None}, drawing(drawn)) == 1
    kept = json.loads((tmp_path / "generation.json").read_text(encoding="utf-8"))
    assert list(kept["rows"]) == ["000000", "000001", "extra"]
    assert kept["settings"] == {"steps": 2, "lora": None}


def test_settings_of_a_run_that_made_nothing_do_not_bind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, ROWS, {"height": 33}, drawing([], "000000"))
    assert fill(tmp_path, ROWS, {"height": 32}, drawing([])) == 5


def test_a_run_beside_another_of_other_settings_is_refused(tmp_path: Path) -> None:
    def draw(row: Row, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"made otherwise \(steps was 2, is 3\)"):
            fill(tmp_path, ROWS, {"steps": 3}, drawing([]))
        drawing([])(row, folder)

    assert fill(tmp_path, ROWS[:1], {"steps": 2}, draw) == 1
    assert json.loads((tmp_path / "generation.json").read_text())["settings"] == {"steps": 2}


def test_a_manifest_that_another_run_wrote_meanwhile_counts(tmp_path: Path) -> None:
    def draw(row: Row, folder: Path) -> None:
        drawing([])(row, folder)
        (tmp_path / "generation.json").write_text('{"settings": {"steps": 3}, "rows": {}}')

    with pytest.raises(ValueError, match=r"made otherwise \(steps was 3, is 2\)"):
        fill(tmp_path, ROWS, {"steps": 2}, draw)
    assert [x.name for x in tmp_path.iterdir()] == ["generation.json"]


def test_of_two_equal_runs_at_once_one_makes_the_sample_and_one_is_refused(tmp_path: Path) -> None:
    def draw(row: Row, folder: Path) -> None:
        assert fill(tmp_path, ROWS[:1], {}, drawing([])) == 1
        drawing([])(row, folder)

    with pytest.raises(ValueError, match=r"another run is at work in .*: it makes 000000"):
        fill(tmp_path, ROWS[:1], {}, draw)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["000000", "generation.json"]


def test_what_a_killed_run_left_is_made_anew(tmp_path: Path) -> None:
    for name in ("000001", "x.000001"):
        (tmp_path / f".01234567.{name}.partial").mkdir()
    assert fill(tmp_path, ROWS, {}, drawing([])) == 5
    assert [x.name for x in tmp_path.glob(".*")] == [".01234567.x.000001.partial"]


def test_samples_that_no_manifest_lists_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, ROWS[:1], {}, drawing([]))
    (tmp_path / "000000").rename(tmp_path / "000001")
    with pytest.raises(ValueError, match=r"000001 is there, and no generation\.json says"):
        fill(tmp_path, ROWS, {}, drawing([]))
    (tmp_path / "generation.json").unlink()
    with pytest.raises(ValueError, match=r"000001 is there, and no generation\.json says"):
        fill(tmp_path, ROWS, {"steps": 3}, drawing([]))
    assert not (tmp_path / "generation.json").exists()


def test_a_sample_that_lacks_a_file_and_a_damaged_manifest_are_said(tmp_path: Path) -> None:
    fill(tmp_path, ROWS, {}, drawing([]))
    (tmp_path / "000003/image.png").unlink()
    with pytest.raises(ValueError, match=r"000003 lacks image\.png or .*: remove it"):
        fill(tmp_path, ROWS, {}, drawing([]))
    for text in ("{", "[]", '{"settings": {}}', '{"settings": 1, "rows": {}}'):
        (tmp_path / "generation.json").write_text(text)
        with pytest.raises(ValueError, match=r"generation\.json is damaged .* put back what"):
            fill(tmp_path, ROWS, {}, drawing([]))
