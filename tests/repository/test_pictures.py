"""The documentation's pictures: small, shown and described, and made by a script."""

import re
from pathlib import Path

import pytest
from PIL import Image

import pictures

LARGEST = 150_000  # bytes


def shown(root: Path) -> dict[Path, list[str]]:
    """The local pictures of the documents, with their alternative texts."""
    found: dict[Path, list[str]] = {}
    for page in [*root.glob("*.md"), *root.glob("[!.]*/README.md"), *root.glob("docs/**/*.md")]:
        for text, address in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text("utf-8")):
            found.setdefault((page.parent / address).resolve(), []).append(text)
    return found


def test_each_picture_is_small_and_shown_with_a_text_in_its_place(root: Path) -> None:
    there = set((root / "docs/figures").iterdir())
    documented = shown(root)
    assert there == documented.keys()
    assert not [one.name for one in there if one.stat().st_size > LARGEST]
    assert not [text for texts in documented.values() for text in texts if len(text) < 20]


def test_the_pictures_of_the_packages_are_those_the_script_makes(root: Path) -> None:
    other = {
        "study.png",
        "growth.png",
        *(one.name for one in root.glob("docs/figures/speechnet-*.png")),
    }
    assert {one.name for one in (root / "docs/figures").iterdir()} - other == {*pictures.PICTURES}


@pytest.mark.slow
def test_pictures_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.main(["overlays", "refined", "plan", "--steps", "2", "--folder", str(tmp_path)])
    assert capsys.readouterr().out.split() == [
        str(tmp_path / name) for name in ("overlays.webp", "refined.webp", "plan.png")
    ]
    for picture in tmp_path.iterdir():
        with Image.open(picture) as drawn:
            assert min(drawn.size) > 400
