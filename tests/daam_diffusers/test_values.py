"""Maps against a plain, slow computation: every probability of every step, kept and averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0

from daam_diffusers import TraceError, trace


class Slow(AttnProcessor2_0):
    """Keeps the whole softmax of each call, in float64: (B, H, N, K)."""

    def __init__(self, kept: list[torch.Tensor]) -> None:
        super().__init__()
        self.kept = kept

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):  # type: ignore[no-untyped-def]
        batch, cells, _ = hidden_states.shape
        q = attn.to_q(hidden_states).view(batch, cells, attn.heads, -1).double()
        k = attn.to_k(encoder_hidden_states).view(batch, -1, attn.heads, q.shape[-1]).double()
        scores = torch.einsum("bnhd,bkhd->bhnk", q, k) / q.shape[-1] ** 0.5
        self.kept.append(scores.softmax(dim=-1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, **kwargs)


def all_probabilities(pipe: Any, run: Any) -> dict[str, torch.Tensor]:
    """By layer, (steps, B, H, N, K), of a run without any tracer."""
    kept: dict[str, list[torch.Tensor]] = {}
    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(
        {
            name: Slow(kept.setdefault(name.removesuffix(".processor"), []))
            if ".attn2." in name
            else processor
            for name, processor in pipe.unet.attn_processors.items()
        }
    )
    run(pipe)
    pipe.unet.set_attn_processor(dict(before))
    return {name: torch.stack(steps) for name, steps in kept.items()}


def grid(name: str, latent: tuple[int, int]) -> tuple[int, int]:
    lower = name.startswith(("down_blocks.1", "up_blocks.0", "mid"))
    return (-(-latent[0] // 2), -(-latent[1] // 2)) if lower else latent


def expected(
    probabilities: dict[str, torch.Tensor], row: int, column: int, latent: tuple[int, int]
) -> torch.Tensor:
    """Mean over steps, heads and layers of one token's column, each resized to the latents."""
    maps = []
    for name, kept in probabilities.items():
        if name.startswith("mid"):
            continue
        flat = kept[:, row, :, :, column].mean(dim=(0, 1))  # (N,)
        small = flat.view(1, 1, *grid(name, latent)).float()
        maps.append(F.interpolate(small, latent, mode="bicubic", align_corners=False)[0, 0])
    return torch.stack(maps).mean(dim=0).clamp(0, 1)


def columns_of(pipe: Any, text: str) -> list[int]:
    return list(range(1, 1 + len(pipe.tokenizer(text, add_special_tokens=False)["input_ids"])))


@pytest.mark.parametrize(
    ("size", "latent"), [((32, 32), (16, 16)), ((24, 56), (12, 28)), ((40, 24), (20, 12))]
)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_maps_equal_the_slow_mean_in_any_shape_with_and_without_guidance(
    sd, build, size, latent, guidance
):
    def run(pipe: Any) -> Any:
        height, width = size
        return build["variant"]("sd").run(pipe, height=height, width=width, guidance_scale=guidance)

    slow = all_probabilities(sd, run)
    with trace(sd) as tracer:
        run(sd)
    maps = tracer.heat_maps()
    row = 1 if guidance > 1 else 0
    for index, column in enumerate(columns_of(sd, "a red car beside a blue dog")):
        torch.testing.assert_close(
            maps.token(index).values, expected(slow, row, column, latent), rtol=1e-4, atol=1e-6
        )


PLAIN = ["img2img", "inpaint", "sdxl", "controlnet", "sliced", "default processor", "fused qkv"]


@pytest.mark.parametrize("name", PLAIN)
def test_maps_of_other_pipelines_and_processors_equal_the_slow_mean(build, name):
    variant = build["variant"](name)
    pipe = variant.make()
    slow = all_probabilities(pipe, variant.run)
    with trace(pipe) as tracer:
        variant.run(pipe)
    maps = tracer.heat_maps()
    # Sliced attention rounds otherwise than the fused kernel, and so do the latents that follow.
    for word, column in (("red", 2), ("dog", 7)):
        torch.testing.assert_close(
            maps[word].values, expected(slow, 1, column, (16, 24)), rtol=1e-3, atol=1e-5
        )


def test_image_prompts_of_an_ip_adapter_do_not_enter_the_maps_of_words(build):
    """With the adapter's scale at 0 the pipeline is the plain one, and so are its maps."""
    variant = build["variant"]("ip-adapter")
    pipe = variant.make()
    pipe.set_ip_adapter_scale(0.0)
    with trace(pipe) as tracer:
        variant.run(pipe)
    silent = tracer.heat_maps()["dog"].values
    plain = build["sd"]()
    slow = all_probabilities(plain, build["variant"]("sd").run)
    torch.testing.assert_close(silent, expected(slow, 1, 7, (16, 24)), rtol=1e-4, atol=1e-6)
    pipe.set_ip_adapter_scale(1.0)
    with trace(pipe) as tracer:
        variant.run(pipe)
    maps = tracer.heat_maps()
    assert not torch.allclose(maps["dog"].values, silent)  # the image does change the run
    for layer in maps.layers:
        assert maps.probabilities[layer.name].shape[0] == 7 + 2 + 1  # text columns only


def test_sizes_that_are_odd_in_latent_cells(sd, build):
    # 2 pixels a cell, and the pipeline wants multiples of 8: latents given directly may be odd.
    latents = torch.randn(1, 4, 13, 9, generator=torch.Generator().manual_seed(1))

    def denoise(pipe: Any) -> None:
        embeds, negative = pipe.encode_prompt("a red dog", torch.device("cpu"), 1, True)
        text = torch.cat([negative, embeds])
        pipe.unet(torch.cat([latents] * 2), 500, encoder_hidden_states=text)

    slow = all_probabilities(sd, denoise)
    with trace(sd) as tracer:
        denoise(sd)
    dog = tracer.heat_maps()["dog"]
    assert dog.values.shape == (13, 9)
    torch.testing.assert_close(
        dog.values,
        expected(slow, 1, columns_of(sd, "a red dog")[-1], (13, 9)),
        rtol=1e-4,
        atol=1e-6,
    )


def test_batches_of_prompts_and_several_images_a_prompt(sd, build):
    prompts = ["a red car", "the dog beside a blue house"]

    def run(pipe: Any) -> Any:
        return build["variant"]("sd").run(pipe, prompts, num_images_per_prompt=2)

    slow = all_probabilities(sd, run)
    with trace(sd) as tracer:
        images = run(sd)
    assert images.shape[0] == 4
    for image, word, column in [(0, "car", 3), (1, "car", 3), (2, "house", 6), (3, "dog", 2)]:
        torch.testing.assert_close(
            tracer.heat_maps(image)[word].values,
            expected(slow, 4 + image, column, (16, 24)),
            rtol=1e-4,
            atol=1e-6,
        )
    with pytest.raises(KeyError, match="'house' is not in the prompt; its words are: 'a', 'red'"):
        tracer.heat_maps(0)["house"]
    with pytest.raises(IndexError, match="image 4 does not exist: the run has 4"):
        tracer.heat_maps(4)


def test_negative_prompt_maps(sd, build):
    def run(pipe: Any) -> Any:
        return build["variant"]("sd").run(pipe, "a red car", negative_prompt="the blue dog")

    slow = all_probabilities(sd, run)
    with trace(sd, negative=True) as tracer:
        run(sd)
    negative = tracer.heat_maps(negative=True)
    assert list(negative) == ["the", "blue", "dog"]
    torch.testing.assert_close(
        negative["dog"].values, expected(slow, 0, 3, (16, 24)), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        tracer.heat_maps()["car"].values, expected(slow, 1, 3, (16, 24)), rtol=1e-4, atol=1e-6
    )


def test_negative_maps_must_be_asked_for_before_and_need_guidance(sd, build):
    variant = build["variant"]("sd")
    with trace(sd) as tracer:
        variant.run(sd)
    with pytest.raises(ValueError, match="negative=True"):
        tracer.heat_maps(negative=True)
    with trace(sd, negative=True) as tracer:
        variant.run(sd, guidance_scale=1.0)
    with pytest.raises(TraceError, match="guidance was off"):
        tracer.heat_maps(negative=True)


def test_guidance_in_separate_passes_and_in_either_order(sd):
    """A loop of one's own: conditional first, then two passes, then guidance switched off."""
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    with trace(sd) as tracer:
        embeds, negative = sd.encode_prompt("a red dog", torch.device("cpu"), 1, True)
        sd.unet(torch.cat([latents] * 2), 900, encoder_hidden_states=torch.cat([embeds, negative]))
        sd.unet(latents, 500, encoder_hidden_states=negative)
        sd.unet(latents, 500, encoder_hidden_states=embeds)
        sd.unet(
            torch.cat([latents] * 3),
            300,
            encoder_hidden_states=torch.cat([negative, embeds, negative]),
        )
    maps = tracer.heat_maps()
    assert maps.provenance["steps"] == "3"

    kept: list[torch.Tensor] = []
    for timestep in (900, 500, 300):
        single = all_probabilities(
            sd, lambda pipe, t=timestep: pipe.unet(latents, t, encoder_hidden_states=embeds)
        )
        kept.append(expected(single, 0, 3, (8, 12)))
    torch.testing.assert_close(
        maps["dog"].values, torch.stack(kept).mean(dim=0), rtol=1e-4, atol=1e-6
    )


def test_values_do_not_depend_on_the_number_of_steps(sd, build):
    """A denoiser that ignores the latents attends alike at each step, so its mean is constant."""
    torch.nn.init.zeros_(sd.unet.conv_in.weight)
    torch.nn.init.zeros_(sd.unet.time_embedding.linear_2.weight)
    means = []
    for steps in (2, 7):
        with trace(sd) as tracer:
            build["variant"]("sd").run(sd, num_inference_steps=steps)
        means.append(tracer.heat_maps()["dog"].values)
    torch.testing.assert_close(means[0], means[1], rtol=1e-5, atol=1e-7)


def test_words_and_special_tokens_of_a_cell_sum_to_one(sd, build):
    with trace(sd, layers=lambda layer: layer.factor == 1) as tracer:
        build["variant"]("sd").run(sd)
    maps = tracer.heat_maps()
    total = maps.special().values + sum(maps.token(i).values for i in range(len(maps.tokens)))
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


def test_kept_axes_average_to_the_plain_map(sd, build):
    variant = build["variant"]("sd")
    with trace(sd) as tracer:
        variant.run(sd)
    plain = tracer.heat_maps()["dog"].values
    with trace(sd, keep=("head", "step", "layer")) as tracer:
        variant.run(sd)
    kept = tracer.heat_maps()["dog"]
    assert kept.axes == ("step", "layer", "head")
    assert kept.values.shape == (3, 6, 4, 16, 24)
    torch.testing.assert_close(kept.mean().values, plain, rtol=1e-4, atol=1e-6)


def test_each_kept_step_and_head_is_the_slow_one(sd, build):
    def run(pipe: Any) -> Any:
        return build["variant"]("sd").run(pipe)

    slow = all_probabilities(sd, run)
    with trace(sd, keep=("step", "head")) as tracer:
        run(sd)
    only = tracer.heat_maps(layers=lambda layer: layer.name.startswith("down_blocks.0"))
    (name,) = (layer.name for layer in only.layers)
    for step in range(3):
        for head in range(4):
            torch.testing.assert_close(
                only["dog"].values[step, head],
                slow[name][step, 1, head, :, 7].float().view(16, 24),
                rtol=1e-4,
                atol=1e-6,
            )


def test_heads_of_unlike_layers_cannot_be_kept_together(build):
    pipe = build["sd"](attention_head_dim=(2, 4))
    with trace(pipe, keep=("head",)) as tracer:
        build["variant"]("sd").run(pipe)
    with pytest.raises(ValueError, match=r"different numbers of them, \[2, 4\]"):
        tracer.heat_maps()
    assert tracer.heat_maps(layers=lambda layer: layer.heads == 2)["dog"].values.shape[0] == 2


def test_memory_does_not_grow_with_steps_and_padding_is_not_kept(sd, build):
    sizes = []
    for steps in (2, 6):
        with trace(sd) as tracer:
            build["variant"]("sd").run(sd, num_inference_steps=steps)
        sizes.append(tracer.record_bytes())
    cells = sum(layer.grid[0] * layer.grid[1] for layer in tracer.heat_maps().layers)
    tokens = 7 + 2 + 1  # the prompt's own, start and end, and the sum of the padding
    assert sizes == [cells * tokens * 4] * 2


@pytest.fixture
def four_levels(build) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5's layout in small: factors 1, 2, 4 in the blocks, 8 in the middle."""
    pipe = build["sd"](
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=2,
    )
    pipe.vae = build["vae"](levels=4)
    pipe.vae_scale_factor = 8
    pipe.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    return pipe


def test_the_default_selection_is_the_references(four_levels, build):
    with trace(four_levels) as tracer:
        build["variant"]("sd").run(four_levels, height=64, width=64)
    chosen = tracer.heat_maps().layers
    assert {layer.block for layer in chosen} == {"down", "up"}
    assert [layer.factor for layer in chosen] == [1, 2, 4, 4, 4, 2, 2, 1, 1]
    with trace(four_levels, layers=lambda layer: True) as tracer:
        build["variant"]("sd").run(four_levels, height=64, width=64)
    assert [x.block for x in tracer.heat_maps().layers].count("mid") == 1


def test_parity_with_the_reference_implementation(four_levels, build):
    """castorini/daam 0.2.0's global heat map, computed as its algorithm is described.

    512×512, guidance on, one image: for every factor, layer and head the conditional
    probabilities are summed over the steps, resized bicubically to 64×64 and clamped at 0; the
    mean over all of them is the global map, of which the prompt's rows are compared.
    """
    steps = 2

    def run(pipe: Any) -> Any:
        return build["variant"]("sd").run(pipe, height=512, width=512, num_inference_steps=steps)

    accumulators = []
    for name, kept in all_probabilities(four_levels, run).items():
        cells = kept.shape[3]
        factor = round((64 * 64 / cells) ** 0.5)
        if factor == 8 or name.startswith("mid"):
            continue
        for head in range(kept.shape[2]):
            summed = kept[:, 1, head].sum(dim=0).T.float()  # (K, N)
            square = summed.view(1, -1, 64 // factor, 64 // factor)
            resized = F.interpolate(square, (64, 64), mode="bicubic", align_corners=False)
            accumulators.append(resized[0].clamp_min(0))
    reference = torch.stack(accumulators).mean(dim=0)[: 7 + 2] / steps

    with trace(four_levels, keep=("head",)) as tracer:
        run(four_levels)
    maps = tracer.heat_maps(clamp="per_map")
    for column in range(7 + 2):
        ours = maps.column(column).mean().values
        error = (ours - reference[column]).abs().sum() / reference[column].abs().sum()
        assert error <= 1e-3


def test_an_attention_mask_is_honored(sd):
    """Cells never attend to keys that the pipeline masks out."""
    latents = torch.randn(1, 4, 8, 8)
    with trace(sd) as tracer:
        embeds, _ = sd.encode_prompt("a red dog", torch.device("cpu"), 1, False)
        mask = torch.ones(1, embeds.shape[1])
        mask[:, 2] = 0  # "red"
        sd.unet(latents, 500, encoder_hidden_states=embeds, encoder_attention_mask=mask)
    maps = tracer.heat_maps()
    assert maps["red"].values.max() == 0
    assert maps["dog"].values.max() > 0


@pytest.mark.parametrize("token", ["dog", "car"])
def test_a_planted_rectangle_is_found(sd, token):
    """A token made to attend to a rectangle: its map has that center, extent and orientation.

    Non-square latents, two images, guidance on. The latents differ inside and outside a
    rectangle; `to_q` of one layer is set to tell the two apart, `to_k` to raise the chosen token.
    """
    rectangle = (slice(2, 6), slice(14, 26))  # rows, columns of a 16×32 grid: wide, top, right
    latents = torch.zeros(2, 4, 16, 32)
    latents[:, :, *rectangle] = 3.0
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    attn: Any = sd.unet.get_submodule(name)

    with trace(sd, layers=lambda layer: layer.name == name) as tracer:
        embeds, negative = sd.encode_prompt(
            ["a car beside a dog"] * 2, torch.device("cpu"), 1, True
        )
        text = torch.cat([negative, embeds])
        seen: list[torch.Tensor] = []
        hook = attn.to_q.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        sd.unet(torch.cat([latents] * 2), 500, encoder_hidden_states=text)
        hook.remove()

        inside = torch.zeros(16, 32, dtype=torch.bool)
        inside[rectangle] = True
        hidden = seen[0][2].detach()  # (N, C), an image of the conditional half
        target = torch.where(inside.flatten(), 1.0, -1.0)
        direction = torch.linalg.lstsq(hidden, target[:, None]).solution[:, 0]  # best q by far
        column = {"car": 2, "dog": 5}[token]
        # The words and start and end, and the padding by its mean: fewer than the dimensions.
        keys = torch.cat([embeds[0, :7], embeds[0, 7:].mean(dim=0, keepdim=True)]).detach()
        wanted = torch.where(torch.arange(8) == column, 1.0, -1.0)
        word = torch.linalg.lstsq(keys, wanted[:, None]).solution[:, 0]
        with torch.no_grad():
            attn.to_q.weight.zero_()
            attn.to_k.weight.zero_()
            for head in range(attn.heads):
                first = head * (attn.to_q.out_features // attn.heads)
                attn.to_q.weight[first] = 3 * direction
                attn.to_k.weight[first] = 3 * word
        sd.encode_prompt(["a car beside a dog"] * 2, torch.device("cpu"), 1, True)
        sd.unet(torch.cat([latents] * 2), 500, encoder_hidden_states=text)

    for image in range(2):
        heat = tracer.heat_maps(image)[token].normalized().values
        assert heat.shape == (16, 32)
        rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(32.0), indexing="ij")
        weight = (heat * (heat > 0.5)).double()
        weight /= weight.sum()
        center = (weight * rows).sum(), (weight * columns).sum()
        spread = (
            (weight * (rows - center[0]) ** 2).sum(),
            (weight * (columns - center[1]) ** 2).sum(),
        )
        assert abs(center[0] - 3.5) < 1.0
        assert abs(center[1] - 19.5) < 1.0
        assert spread[1] > 3 * spread[0]  # wide, not tall: rows and columns are not exchanged
        assert tracer.heat_maps(image)[token].iou(inside, threshold=0.5) > 0.6
