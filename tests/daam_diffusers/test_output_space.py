"""Maps of attention outputs, against the vectors that the attention itself returned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_joint import VARIANTS as JOINT
from torch.overrides import TorchFunctionMode

from daam_diffusers import HeatMaps, TraceError, trace

CELLS = 8 * 12


class Outputs(TorchFunctionMode):
    """What `scaled_dot_product_attention` returned for sequences longer than the image."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and output.shape[2] > CELLS:
            self.found.append(output)
        return output


# Text, then pixels, in double and in single streams; pixels, then text, with guidance.
@pytest.mark.parametrize(("name", "text", "pixels"), [("flux dev", 0, -CELLS), ("sd3", CELLS, 0)])
@pytest.mark.parametrize("heads", [False, True])
def test_shares_are_a_softmax_of_cosines(name, text, pixels, heads):
    variant = JOINT[name]
    pipe = variant.make()
    with Outputs() as seen:
        variant.run(pipe, num_inference_steps=2)
    with trace(pipe, space="output", keep=("head",) * heads) as tracer:
        variant.run(pipe, num_inference_steps=2)
    maps = tracer.heat_maps()
    count = len(maps.layers)
    assert len(seen.found) == 2 * count
    places = [text + column for column in maps.columns]
    cells = slice(pixels, (pixels + CELLS) or None)
    for number, layer in enumerate(maps.layers):
        means = []
        for output in seen.found[number::count]:
            own = output[-1].double()  # (H, N, d)
            own = own if heads else own.movedim(0, 1).flatten(1)[None]
            own = own / own.norm(dim=-1, keepdim=True)
            means.append((10 * own[:, places] @ own[:, cells].mT).softmax(dim=1))
        expected = torch.stack(means).mean(0).movedim(1, 0).flatten(2)  # (C, H, N)
        found = maps.probabilities[layer.name][:-1].reshape(len(places), -1, CELLS)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
        assert not maps.probabilities[layer.name][-1].any()


def test_the_output_stays_the_same_and_files_say_what_the_values_are(tmp_path):
    variant = JOINT["sd3"]
    pipe = variant.make()
    plain = variant.run(pipe, num_inference_steps=2)
    with trace(pipe, space="output", negative=True) as tracer:
        assert torch.equal(variant.run(pipe, num_inference_steps=2), plain)
    maps = tracer.heat_maps()
    loaded = HeatMaps.load(maps.save(tmp_path / "maps.safetensors"))
    assert loaded.provenance["space"] == "output"
    assert torch.equal(loaded["dog"].values, maps["dog"].values)
    assert tracer.heat_maps(negative=True).provenance["space"] == "output"
    with trace(pipe) as tracer:
        variant.run(pipe, num_inference_steps=2)
    assert "space" not in tracer.heat_maps().provenance


@pytest.mark.parametrize("name", ["flux dev", "sd3"])
def test_an_image_of_a_batch_has_the_maps_that_it_has_alone(name):
    """A neighbor's longer prompt takes no share; tokens alone sum to 1."""
    variant = JOINT[name]
    pipe = variant.make()

    def maps(*pairs: tuple[str, int], **changes: Any) -> list[HeatMaps]:
        prompts, seeds = zip(*pairs, strict=True)
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        with trace(pipe, space="output") as tracer:
            variant.run(pipe, [*prompts], num_inference_steps=1, generator=noise, **changes)
        return [tracer.heat_maps(image=image) for image in range(len(pairs))]

    short, long = ("a dog", 7), ("a big red dog", 8)
    for pair, found in zip((short, long), maps(short, long), strict=True):
        (alone,) = maps(pair)
        for word in alone:
            torch.testing.assert_close(found[word].values, alone[word].values, rtol=0, atol=1e-4)
        assert not found.special("padding").values.any()
        assert not found.special().values.gt(1).any()


def test_embeddings_whose_tokens_are_not_known_are_refused():
    variant = JOINT["flux dev"]
    pipe = variant.make()
    embeds, pooled, _ = pipe.encode_prompt("a red dog", "a red dog", device="cpu")
    own = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "num_inference_steps": 1}
    with trace(pipe, space="output") as tracer:
        variant.run(pipe, None, **own)
    with pytest.raises(TraceError, match="inside the context"):
        tracer.heat_maps(prompt="a red dog")
    with trace(pipe, space="output") as tracer:
        pipe.encode_prompt("a red dog", "a red dog", device="cpu")
        variant.run(pipe, None, **own)
    assert tracer.heat_maps()["dog"].values.max() > 0


def test_attention_to_text_alone_has_no_outputs_of_tokens(sd):
    with pytest.raises(TraceError, match='without space="output"'), trace(sd, space="output"):
        pass
    with pytest.raises(ValueError, match="space must be one of"), trace(sd, space="outputs"):
        pass


def test_a_processor_that_shows_scores_alone_is_refused():
    variant = JOINT["sd3"]
    pipe = variant.make()

    class Scores:
        """Attends by the layer's own scores, whose product with the values nobody sees."""

        def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None):
            attn.get_attention_scores(*torch.zeros(2, 2 * attn.heads, CELLS + 72, 8))
            return hidden_states, encoder_hidden_states

    pipe.transformer.transformer_blocks[0].attn.set_processor(Scores())
    with pytest.raises(TraceError, match="neither of the two"), trace(pipe, space="output"):
        variant.run(pipe, num_inference_steps=1)
