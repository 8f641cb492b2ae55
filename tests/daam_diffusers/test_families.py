"""The table of denoisers: what its page says, and rows of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest
from diffusers import ModelMixin

from daam_diffusers import Encoder, Family, Text, register_family
from daam_diffusers.families import transformers, unets

PAGE = Path(__file__).parents[2] / "docs/families.md"
BUILT_IN = (*unets.FAMILIES, *transformers.FAMILIES)
ROWS = {
    cells[2].strip("`"): cells
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and len(cells := line.strip("| ").split(" | ")) >= 7
}


def test_the_page_has_the_denoisers_of_the_table() -> None:
    assert [*ROWS][2:] == [family.denoiser for family in BUILT_IN]


@pytest.mark.parametrize("family", BUILT_IN, ids=lambda family: family.denoiser)
def test_a_row_of_the_page_says_what_the_table_and_the_host_say(family: Family) -> None:
    assert issubclass(getattr(diffusers, family.denoiser), ModelMixin)
    _, pipelines, _, attention, _, encoders, *_ = ROWS[family.denoiser]
    for name in re.findall(r"`(\w+)`", pipelines):
        assert hasattr(diffusers, name)
    assert attention == " and ".join(dict.fromkeys(family.layers.values()))
    read = [one.component for text in family.text for one in text.encoders]
    assert re.findall(r"`(\w+)`", encoders) == list(dict.fromkeys(read))


def test_nonsense_in_a_row_is_refused_when_it_is_added() -> None:
    def row(**changes: object) -> Family:
        given = {"denoiser": "X", "layers": {r"a\.b": "joint"}}
        return Family(**{**given, **changes})  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="takes a Family, got dict"):
        register_family({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"X: '\(' is no regular expression"):
        register_family(row(layers={"(": "joint"}))
    with pytest.raises(ValueError, match=r"one of \('cross', .*'self'\), got 'own'"):
        register_family(row(layers={"a": "own"}))
    with pytest.raises(ValueError, match="text_encoder_2 comes after 'text_encoder'"):
        register_family(row(text=(Text("t", (Encoder("text_encoder_2", after="text_encoder"),)),)))
