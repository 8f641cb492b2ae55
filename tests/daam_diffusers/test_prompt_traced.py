"""Prompts of traced runs: too long ones, embeddings given in place of words, learned tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from daam_diffusers import trace
from daam_diffusers.encoders import Reading, placements
from daam_diffusers.families import Encoder

TINYWORLD = Path(__file__).parents[2] / "docs/examples/tinyworld/model"


def test_a_pipeline_call_with_too_long_a_prompt_warns_once(sd, build):
    text = " ".join(["red"] * 74 + ["car", "dog"])
    with trace(sd) as tracer:
        with pytest.warns(UserWarning, match="never saw: 'dog'") as caught:
            build["variant"]("sd").run(sd, text, num_images_per_prompt=2)
        assert len(caught) == 1
    maps = tracer.heat_maps(1)
    assert maps["car"].values.max() > 0
    with pytest.raises(KeyError, match="beyond the text encoder's window"):
        maps["dog"]


def test_an_unknown_token_beyond_the_window_is_not_the_end_token():
    """Both have one id, and the first token that was cut is such a one."""
    text = "an orange boat beside a <script>alert(1)</script>"
    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD / "tokenizer")
    ids = tokenizer(text, truncation=True)["input_ids"]
    assert len(ids) == 20
    pipe = SimpleNamespace(tokenizer=tokenizer, text_encoder=torch.nn.Identity())
    reading = Reading("text_encoder", [ids], [[True] * 20], None)
    encoder = Encoder("text_encoder", "tokenizer")
    with pytest.warns(UserWarning, match="read 18 of them"):
        prompt = placements(text, [encoder], pipe, [reading], 20)["text_encoder"]
    assert [token.column for token in prompt.tokens] == [*range(1, 19)]
    assert (prompt.start, prompt.end) == ((0,), (19,))


def test_prompt_embeds_get_words_from_the_prompt_given_afterwards(sd, build):
    variant = build["variant"]("sd")
    embeds, negative = sd.encode_prompt("a red dog", torch.device("cpu"), 1, True)
    with trace(sd) as tracer:
        variant.run(sd, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    given = tracer.heat_maps(prompt="a red dog")
    with trace(sd) as tracer:
        variant.run(sd, "a red dog")
    assert torch.equal(given["dog"].values, tracer.heat_maps()["dog"].values)
    with pytest.raises(ValueError, match="the run knows its prompt, 'a red dog'"):
        tracer.heat_maps(prompt="a blue dog")


def test_prompt_embeds_without_a_prompt_have_columns_but_no_words(sd, build):
    embeds, negative = sd.encode_prompt("a red dog", torch.device("cpu"), 1, True)
    with trace(sd) as tracer:
        build["variant"]("sd").run(sd, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    maps = tracer.heat_maps()
    assert list(maps) == []
    assert maps.column(3).values.max() > 0
    with pytest.raises(KeyError, match="'dog' is not in the prompt"):
        maps["dog"]


@pytest.mark.parametrize("joined", [True, False])
def test_long_prompt_embeddings_give_the_maps_of_their_words(sd, build, joined):
    """Two windows encoded apart and put one after the other, as long-prompt helpers do."""
    first, second = " ".join(["red"] * 75), "a blue dog"
    device = torch.device("cpu")
    parts = [sd.encode_prompt(text, device, 1, True) for text in (first, second)]
    embeds, negative = (torch.cat([part[i] for part in parts], dim=1) for i in (0, 1))
    column = 77 + 3
    if joined:  # one start and one end token around everything
        inner = [c for c in range(154) if c not in (76, 77)]
        embeds, negative = embeds[:, inner], negative[:, inner]
        column -= 2
    with trace(sd) as tracer:
        build["variant"]("sd").run(sd, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    maps = tracer.heat_maps(prompt=f"{first} {second}")
    assert torch.equal(maps["dog"].values, maps.column(column).values)
    assert maps.prompt.cut == ()


def test_a_token_of_textual_inversion_is_one_word_with_all_its_vectors(sd, build):
    sd.tokenizer = build["tokenizer"].__wrapped__()  # a tokenizer of its own to change
    embedding = {"<toy>": torch.randn(3, 32)}
    sd.load_textual_inversion(embedding)
    with trace(sd) as tracer:
        build["variant"]("sd").run(sd, "a <toy> beside a <toy> dog")
    maps = tracer.heat_maps()
    assert maps.prompt.text == "a <toy> beside a <toy> dog"
    assert list(maps) == ["a", "<toy>", "beside", "dog"]
    assert [maps.prompt.find("<toy>", n).columns for n in (0, 1)] == [(2, 3, 4), (7, 8, 9)]
    assert maps.prompt.find("dog").columns == (10,)
    with pytest.raises(KeyError, match=r"occurs 2 time\(s\)"):
        maps.word("<toy>", 2)
