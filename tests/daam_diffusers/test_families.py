"""The table of denoisers: what its page says, and rows of one's own."""

from __future__ import annotations

import diffusers
import pytest
from diffusers import ModelMixin
from families_page import BUILT_IN, PAGE, page

from daam_diffusers import Encoder, Family, Text, register_family


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "write it again: python tests/daam_diffusers/families_page.py"
    )


@pytest.mark.parametrize("family", BUILT_IN, ids=lambda family: family.denoiser)
def test_denoisers_and_pipelines_of_the_table_are_those_of_the_host(family: Family) -> None:
    assert issubclass(getattr(diffusers, family.denoiser), ModelMixin)
    for name in family.pipelines:
        assert hasattr(diffusers, name)
    assert family.notes == "" or family.notes.endswith(".")


def test_nonsense_in_a_row_is_refused_when_it_is_added() -> None:
    def row(**changes: object) -> Family:
        given = {"denoiser": "X", "name": "X", "pipelines": (), "layers": {r"a\.b": "joint"}}
        return Family(**{**given, **changes})  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="takes a Family, got dict"):
        register_family({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"X: '\(' is no regular expression"):
        register_family(row(layers={"(": "joint"}))
    with pytest.raises(ValueError, match=r"one of \('cross', .*'self'\), got 'own'"):
        register_family(row(layers={"a": "own"}))
    with pytest.raises(ValueError, match="text_encoder_2 comes after 'text_encoder'"):
        register_family(row(text=(Text("t", (Encoder("text_encoder_2", after="text_encoder"),)),)))
