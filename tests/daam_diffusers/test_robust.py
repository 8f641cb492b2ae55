"""What people do to a denoiser before they trace it: caches, offloading, kernels; and new ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from slow import Attention, attentions
from tiny_joint import VARIANTS as JOINT
from tiny_pipelines import VARIANTS, clip_tokenizer, text_encoder
from tiny_video import VIDEOS

from daam_diffusers import Family, HeatMaps, TraceError, register_family, trace
from daam_diffusers.families import FAMILIES, Call, Encoder, Grid, Segments, Text

STEPS = 5
CPU = torch.device("cpu")


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, "transformer", None) or pipe.unet


def is_equal(left: Any, right: Any) -> bool:
    return torch.equal(torch.as_tensor(left), torch.as_tensor(right))


# Caches

ALWAYS = (-1, 1001)


def first_block(pipe: Any) -> FirstBlockCacheConfig:
    return FirstBlockCacheConfig(threshold=0.5)


def pyramid(pipe: Any) -> PyramidAttentionBroadcastConfig:
    kinds = ("spatial", "cross")
    return PyramidAttentionBroadcastConfig(
        **{f"{kind}_attention_block_skip_range": 2 for kind in kinds},
        **{f"{kind}_attention_timestep_skip_range": ALWAYS for kind in kinds},
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def faster(pipe: Any) -> FasterCacheConfig:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=ALWAYS,
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=ALWAYS,
        current_timestep_callback=lambda: pipe.current_timestep,
        attention_weight_callback=lambda module: 0.5,
        tensor_format="BFCHW",
    )


def are_means_of(maps: HeatMaps, seen: list[Attention]) -> None:
    """Each layer's mean is over its computed calls; the prompt is in the last row, or first pass.

    Text comes first in these denoisers' joint sequences, so their pixels are the last queries.
    """
    for layer in maps.layers:
        own = [one for one in seen if one.path == layer.name]
        own = own[:: len(own) // maps.calls[layer.name]]  # the negative prompt's pass comes second
        assert len(own) == maps.calls[layer.name]
        values = maps.probabilities[layer.name][:-1].flatten(1)
        rows = torch.stack([one.probabilities[-1].mean(dim=0) for one in own]).mean(dim=0)
        expected = rows[-values.shape[1] :, list(maps.columns)].T
        torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("table", "name", "cache"),
    [
        (JOINT, "flux dev", first_block),
        (JOINT, "flux dev", pyramid),
        (VIDEOS, "ltx", first_block),
        (VIDEOS, "ltx", pyramid),
        (VIDEOS, "cogvideox", faster),
        (VIDEOS, "cogvideox", first_block),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_means_are_over_what_a_cache_computed(table, name, cache):
    variant = table[name]
    pipe = variant.make()
    denoiser = denoiser_of(pipe)
    denoiser.enable_cache(cache(pipe))
    with trace(pipe) as tracer:
        traced = variant.run(pipe, num_inference_steps=STEPS)
    maps = tracer.heat_maps()
    names = {one.name for one in maps.layers}
    with attentions(denoiser, lambda path: path in names) as seen:
        assert is_equal(variant.run(pipe, num_inference_steps=STEPS), traced)
    assert min(maps.calls.values()) < STEPS
    assert maps.provenance["calls"] == str(STEPS)
    are_means_of(maps, seen)


# Where weights lie, and as what


def sequential(pipe: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(denoiser_of(pipe), execution_device=CPU)


def group(kind: str, **options: Any) -> Callable[[Any], None]:
    return lambda pipe: denoiser_of(pipe).enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type=kind, **options
    )


def casting(pipe: Any) -> None:
    denoiser_of(pipe).enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


def compiled(pipe: Any) -> None:
    denoiser_of(pipe).compile(backend="eager")


def adapted(pipe: Any) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    torch.manual_seed(5)
    denoiser_of(pipe).add_adapter(config)


CHANGES: dict[str, tuple[Callable[[Any], None], bool]] = {
    "sequential": (sequential, True),
    "groups of blocks": (group("block_level", num_blocks_per_group=1), True),
    "groups of leaves": (group("leaf_level"), True),
    "layerwise casting": (casting, False),
    "compiled": (compiled, True),
    "lora": (adapted, False),
}
HOSTS = {"sd": VARIANTS["sd"], "flux": JOINT["flux dev"], "wan": VIDEOS["wan"]}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("host", HOSTS)
def test_changed_denoisers_are_traced_bit_by_bit(host, change):
    variant, (apply, is_exact) = HOSTS[host], CHANGES[change]
    pipe = variant.make()
    with trace(pipe) as tracer:
        variant.run(pipe, num_inference_steps=2)
    before = tracer.heat_maps()
    apply(pipe)
    plain = None if change == "compiled" else variant.run(pipe, num_inference_steps=2)
    with trace(pipe) as tracer:
        traced = variant.run(pipe, num_inference_steps=2)
    if plain is not None:
        assert is_equal(traced, plain)
    after = tracer.heat_maps()
    assert set(after.calls.values()) == {2}
    same = [torch.equal(after[word].values, before[word].values) for word in before]
    assert all(same) if is_exact else not any(same)
    if not is_exact:  # of the weights as they now are
        names = {one.name for one in after.layers}
        with attentions(denoiser_of(pipe), lambda path: path in names) as seen:
            variant.run(pipe, num_inference_steps=2)
        are_means_of(after, seen)


# Kernels


@pytest.fixture
def _global_backend():  # type: ignore[no-untyped-def]
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = before


@pytest.mark.parametrize("inside", [False, True], ids=["before", "inside"])
@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash"])
@pytest.mark.usefixtures("_global_backend")
def test_kernels_of_the_host_that_are_sdpa_are_seen(backend, inside):
    variant = JOINT["flux dev"]
    pipe = variant.make()
    with trace(pipe) as tracer:
        variant.run(pipe)
    expected = tracer.heat_maps()["dog"].values
    if not inside:
        pipe.transformer.set_attention_backend(backend)
    with trace(pipe) as tracer:
        if inside:
            pipe.transformer.set_attention_backend(backend)
        active = _AttentionBackendRegistry._active_backend
        traced = variant.run(pipe)
    assert _AttentionBackendRegistry._active_backend is active
    assert is_equal(variant.run(pipe), traced)
    torch.testing.assert_close(tracer.heat_maps()["dog"].values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("host", ["flux", "wan"])
@pytest.mark.usefixtures("_global_backend")
def test_kernels_that_hide_their_arguments_are_refused_at_the_first_call(host, monkeypatch):
    """As flash, sage and xformers do: the host calls another library's function."""
    variant = HOSTS[host]
    pipe, steps = variant.make(), []

    def kernel(query, key, value, **kwargs):  # type: ignore[no-untyped-def]
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return ((query @ key.mT).softmax(dim=-1) @ value).transpose(1, 2)

    native = _AttentionBackendRegistry._active_backend
    monkeypatch.setitem(_AttentionBackendRegistry._backends, native, kernel)
    monkeypatch.setitem(
        _AttentionBackendRegistry._supported_arg_names, native, {"query", "key", "value"}
    )
    hidden = r'transformer\.set_attention_backend\("native"\)'
    with pytest.raises(TraceError, match=hidden), trace(pipe):
        variant.run(pipe, callback_on_step_end=lambda *args: steps.append(1) or args[-1])
    assert not steps


# A denoiser of one's own


class Attend(torch.nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.processor = heads, AttendProcessor()
        self.qkv = torch.nn.Linear(width, 3 * width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.processor(self, tokens)  # type: ignore[no-any-return]


class AttendProcessor:
    def __call__(self, attn: Attend, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in
                   attn.qkv(tokens).chunk(3, dim=-1))  # fmt: skip
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class MadeUpTransformer(torch.nn.Module):
    """One register, then pixels, text last; patches of 2×2, arguments named oddly."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"patch": 2}
        self.enter, self.leave = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)
        self.register = torch.nn.Parameter(torch.randn(1, 1, 32))
        self.layers = torch.nn.ModuleList(Attend(32, 4) for _ in range(2))

    def forward(self, z: torch.Tensor, when: Any, words: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = z.shape
        cells = F.pixel_unshuffle(z, 2).flatten(2).mT  # (B, N, 16)
        registers = self.register.expand(batch, -1, -1)
        tokens = torch.cat([registers, self.enter(cells), words], dim=1)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        out = self.leave(tokens[:, 1 : 1 + cells.shape[1]])
        return F.pixel_shuffle(out.mT.unflatten(2, (height // 2, width // 2)), 2)


class MadeUpPipeline:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.transformer = MadeUpTransformer().eval()
        self.reader, self.splitter = text_encoder(), clip_tokenizer()

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        ids = self.splitter(prompt, padding="max_length", return_tensors="pt").input_ids
        return self.reader(ids)[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def __call__(self, prompt: str, steps: int = 2) -> Any:
        text = torch.cat([self.encode_prompt(prompt), self.encode_prompt("")])
        latents = torch.randn(1, 4, 12, 20, generator=torch.Generator().manual_seed(2))
        for step in range(steps):
            noise = self.transformer(z=torch.cat([latents] * 2), when=step, words=text)
            latents = latents - 0.1 * noise[:1]
        return SimpleNamespace(images=[latents[0, :3]])


def _grid(call: Call) -> Grid:
    patch = call.config("patch")
    return 1, call["z"].shape[2] // patch, call["z"].shape[3] // patch


def _sequence(call: Call, grid: Grid, lengths: Any) -> Segments:
    return ("register", 1), ("pixels", grid[1] * grid[2]), ("text", lengths[0])


MADE_UP = Family(
    denoiser="MadeUpTransformer",
    layers={r"layers\.\d+": "joint"},
    grid=_grid,
    sequence=_sequence,
    text=(Text("words", (Encoder("reader", "splitter"),)),),
    latents="z",
)


@pytest.fixture
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(FAMILIES):
        monkeypatch.setitem(FAMILIES, name, FAMILIES[name])
    monkeypatch.setitem(FAMILIES, "MadeUpTransformer", MADE_UP)
    monkeypatch.delitem(FAMILIES, "MadeUpTransformer")


@pytest.mark.usefixtures("_table")
def test_a_denoiser_of_ones_own_is_added_and_traced():
    pipe = MadeUpPipeline()
    unknown = r"MadeUpTransformer is not in the table.*docs/families\.md.*register_family"
    with pytest.raises(TraceError, match=unknown), trace(pipe):
        pass
    register_family(MADE_UP)
    with attentions(pipe.transformer) as seen:
        plain = pipe("a red dog").images[0]
    with trace(pipe) as tracer:
        assert torch.equal(pipe("a red dog").images[0], plain)
    maps = tracer.heat_maps()
    assert (type(pipe), maps.size, list(maps)) == (MadeUpPipeline, (6, 10), ["a", "red", "dog"])
    assert set(maps.calls.values()) == {2}
    pixels = 6 * 10
    for layer in maps.layers:
        own = torch.stack([one.probabilities[0] for one in seen if one.path == layer.name])
        flat = own.mean(dim=(0, 1))[1 : 1 + pixels]  # pixels in rows, (N, 1 + N + 77)
        for word, column in (("red", 2), ("dog", 3)):
            index = maps.columns.index(column)
            values = maps.probabilities[layer.name][index].flatten()
            expected = flat[:, 1 + pixels + column].float()
            torch.testing.assert_close(values, expected, rtol=0, atol=1e-5, msg=word)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": {"layers.(": "joint"}}, "no regular expression"),
        ({"layers": {"layers": "both"}}, r"'cross', 'added', 'joint', 'self'\), got 'both'"),
        ({"text": (Text("words", (Encoder(after="none"),)),)}, "comes after 'none'"),
    ],
)
@pytest.mark.usefixtures("_table")
def test_rows_that_make_no_sense_are_refused_as_they_are_added(changes, message):
    with pytest.raises(ValueError, match=message):
        register_family(dataclasses.replace(MADE_UP, **changes))
    with pytest.raises(TypeError, match="takes a Family"):
        register_family("MadeUpTransformer")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": lambda call, grid, lengths: (("pixels", 60), ("text", 77))}, "138 queries"),
        ({"layers": {"blocks": "joint"}}, "no attention layer that reads a prompt"),
        ({"text": (Text("prompt_embeds", (Encoder("reader", "splitter"),)),)}, "prompt_embeds"),
    ],
)
@pytest.mark.usefixtures("_table")
def test_rows_that_are_not_true_of_the_denoiser_are_refused_when_it_runs(changes, message):
    register_family(dataclasses.replace(MADE_UP, **changes))
    pipe = MadeUpPipeline()
    with pytest.raises(TraceError, match=message), trace(pipe):
        pipe("a red dog")
