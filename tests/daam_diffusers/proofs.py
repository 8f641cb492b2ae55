"""What must be true of every denoiser that can be traced, checked on tiny pipelines.

A table of variants and a table of `Facts`, written down by hand, make `Case`s; each `check_*` takes
one. Nothing of the package decides here where words, pixels or the prompt's rows lie.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from slow import Attention, attentions
from tiny_pipelines import PROMPT, Variant
from torch.overrides import TorchFunctionMode

from daam_diffusers import HeatMaps, Tracer, trace
from daam_diffusers.errors import TraceError, TraceWarning

STEPS = 2
OTHER = "the dog beside a red house"
NEGATIVE, ANOTHER = "the left house", "a running dog and a house"
_ABSOLUTE = 1e-5


@dataclass(frozen=True)
class Facts:
    """What is true of a pipeline of `STEPS` steps, found without the package.

    Attributes:
        layers: a regular expression of the layers that are recorded by default.
        grid: frames, rows and columns of the finest cells.
        text: the key at which column 0 of the text stands; negative: from the end.
        pixels: the query at which the first cell stands, likewise.
        first: the column of the prompt's first token, for each text encoder; -1 - n: its last
            token is the n-th before the last column (padding on the left).
        calls: the denoiser's calls that carry the prompt.
        block: which part of their batch does.
        negative: the same two of the negative prompt; None if it is not read.
        negative_first: see `first`.
        index: which attention of a layer reads the prompt, if it computes several.
        is_flat: frames lie in the batch.
        order: of the latents' axes without the batch: "cfhw", "fchw", "fhwc".
        latents: the denoiser's argument that holds them.
        batches, bfloat16: whether the pipeline itself can do it on a CPU.
        exchanges: whether the pipeline itself leaves other processors behind after an exception.
        mixes_text, mixes_pixels: whether they are mixed before the first layer.
        alike: the layers that tell which cells are alike, if not `layers`; "": there are none.
    """

    layers: str
    grid: tuple[int, int, int]
    text: int = 0
    pixels: int = 0
    first: tuple[int, ...] = (0,)
    calls: tuple[int, ...] = (0, 1)
    block: int = 0
    negative: tuple[tuple[int, ...], int] | None = None
    negative_first: tuple[int, ...] | None = None
    index: int = 0
    is_flat: bool = False
    order: str = "cfhw"
    latents: str = "hidden_states"
    batches: bool = True
    bfloat16: bool = True
    exchanges: bool = False
    mixes_text: bool = False
    mixes_pixels: bool = False
    alike: str | None = None


class Case:
    """A variant, built once; one plain run whose attentions are kept whole, and one traced run."""

    def __init__(self, variant: Variant, facts: Facts) -> None:
        self.variant, self.facts = variant, facts
        self.pipe = variant.make()
        self.plain, self.slow = self.kept()
        self.before = state(self.pipe)
        with trace(self.pipe, keep=["step"], negative=facts.negative is not None) as self.tracer:
            self.traced = self.run()
        self.after = state(self.pipe)

    def run(self, *args: Any, **changes: Any) -> Any:
        return self.variant.run(self.pipe, *args, **{"num_inference_steps": STEPS, **changes})

    def kept(self, *args: Any, layers: str = "", **changes: Any) -> tuple[Any, list[Attention]]:
        """An untraced run and its attentions."""
        denoisers = denoisers_of(self.pipe)
        matches = re.compile(layers or self.facts.layers).fullmatch
        with ExitStack() as stack:
            prefixes = {name: f"{name}." if len(denoisers) > 1 else "" for name in denoisers}
            found = {
                name: stack.enter_context(attentions(denoiser, lambda path: bool(matches(path))))
                for name, denoiser in denoisers.items()
            }
            output = self.run(*args, **changes)
        return output, [
            replace(one, path=prefixes[name] + one.path)
            for name, seen in found.items()
            for one in seen
        ]


def cases(variants: Mapping[str, Variant], facts: Mapping[str, Facts]) -> Callable[[str], Case]:
    """Builds the case of a name, once; a name without facts is an error."""
    assert facts.keys() <= variants.keys()
    return functools.cache(lambda name: Case(variants[name], facts[name]))


def denoisers_of(pipe: Any) -> dict[str, torch.nn.Module]:
    found = {name: getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")}
    return {name: one for name, one in found.items() if one is not None}


def state(pipe: Any) -> dict[str, Any]:
    """Everything a tracer could have left behind, by identity."""
    found: dict[str, Any] = {"class": type(pipe)}
    for name, value in vars(pipe).items():
        if name[0] != "_" and not isinstance(value, (torch.Tensor, NoneType)):  # a run's results
            found[f"pipe.{name}"] = id(value)
    for component, module in pipe.components.items():
        for name, part in module.named_modules() if isinstance(module, torch.nn.Module) else ():
            at = f"{component}.{name}"
            found[f"{at}.class"] = type(part)
            found[f"{at}.attributes"] = frozenset(vars(part))
            found |= {f"{at}.{k}": tuple(v) for k, v in vars(part).items() if k.endswith("_hooks")}
            found |= {f"{at}.{k}": id(v) for k, v in vars(part).items() if k == "processor"}
    return found


# -- 1. the output and the pipeline ---------------------------------------------------------------


def check_untouched(case: Case) -> None:
    """The same output to the bit, and the pipeline restored, also after exceptions."""
    assert_same(case.plain, case.traced)
    assert case.before == case.after
    if "callback_on_step_end" in inspect.signature(type(case.pipe).__call__).parameters:

        def fail(*args: Any) -> Any:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), trace(case.pipe):
            case.run(callback_on_step_end=fail)
        assert_restored(case)
    with trace(case.pipe), stopped(case):
        case.run()
    assert_restored(case)
    assert_same(case.run(), case.plain)


def assert_restored(case: Case) -> None:
    own = (
        (lambda key: not key.endswith(".processor")) if case.facts.exchanges else (lambda key: key)
    )
    after = state(case.pipe)
    assert {k: v for k, v in after.items() if own(k)} == {
        k: v for k, v in case.before.items() if own(k)
    }
    for denoiser in denoisers_of(case.pipe).values():
        for module in denoiser.modules():
            assert not hasattr(getattr(module, "processor", None), "inner")


def check_bfloat16(case: Case) -> None:
    """The same in bfloat16, where the pipeline runs in it."""
    if not case.facts.bfloat16:
        pytest.skip("the pipeline itself does not run in bfloat16 on a CPU")
    pipe = case.variant.make().to(torch.bfloat16)
    plain = case.variant.run(pipe, num_inference_steps=STEPS)
    with trace(pipe) as tracer:
        traced = case.variant.run(pipe, num_inference_steps=STEPS)
    assert_same(plain, traced)
    assert tracer.heat_maps()["dog"].values.max() > 0


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert torch.equal(torch.as_tensor(left), torch.as_tensor(right))


class Enough(Exception):
    """A run that has shown what it was made for."""


@contextmanager
def stopped(case: Case) -> Iterator[None]:
    """Stop each run in the middle of the denoiser: after the first layer that reads the prompt."""

    def stop(*args: Any) -> None:
        raise Enough

    handle = first_layer(case).register_forward_hook(stop)
    try:
        with suppress(Enough):
            yield
    finally:
        handle.remove()


def maps_of_stopped(tracer: Tracer) -> HeatMaps:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)  # says that the run was cut short
        return tracer.heat_maps()


def owner(case: Case) -> tuple[str, str]:
    """The denoiser that has the first layer, and the layer's path in it."""
    denoisers, path = denoisers_of(case.pipe), case.slow[0].path
    if len(denoisers) == 1:
        return next(iter(denoisers)), path
    name, _, rest = path.partition(".")
    return name, rest


def first_layer(case: Case) -> Any:
    name, path = owner(case)
    return denoisers_of(case.pipe)[name].get_submodule(path)


# -- 2., 5., 6. the values ------------------------------------------------------------------------


def columns_of(facts: Facts, words: int, keys: int, *, negative: bool = False) -> list[int]:
    """The columns of a prompt of so many words, a token each, in order of words."""
    firsts = (facts.negative_first or facts.first) if negative else facts.first
    starts = [at if at >= 0 else keys + at - words + 1 for at in firsts]
    return [start + word for word in range(words) for start in starts]


def probabilities_of(
    case: Case, slow: list[Attention], path: str, image: int, images: int, *, negative: bool = False
) -> torch.Tensor:
    """What one image attends to in a layer by the plain computation: (calls, cells, keys)."""
    facts, kept = case.facts, []
    calls, block = facts.negative if negative and facts.negative else (facts.calls, facts.block)
    for one in slow:
        if one.path != path or one.call not in calls or one.index != facts.index:
            continue
        frames = facts.grid[0] if facts.is_flat else 1
        row = (block * images + image) * frames
        rows = one.probabilities[row : row + frames].mean(dim=1)  # over heads
        cells = min(rows.shape[1], math.prod(facts.grid))
        start = facts.pixels % rows.shape[1]
        kept.append(rows[:, start : start + cells].flatten(0, 1))
    return torch.stack(kept)


def assert_values(
    case: Case,
    maps: HeatMaps,
    slow: list[Attention],
    words: int,
    image: int = 0,
    images: int = 1,
    *,
    negative: bool = False,
) -> None:
    """The maps' probabilities, step by step, are those of the plain computation."""
    paths = list(dict.fromkeys(one.path for one in slow))
    assert [layer.name for layer in maps.layers] == paths
    expected = columns_of(case.facts, words, maps.prompt.columns, negative=negative)
    assert [token.column for token in maps.tokens] == expected
    for layer in maps.layers:
        kept = probabilities_of(case, slow, layer.name, image, images, negative=negative)
        values = maps.probabilities[layer.name].double()
        values = values.reshape(*values.shape[:2], -1)  # (columns, steps, cells)
        assert values.shape[1:] == kept.shape[:2]
        text = case.facts.text % kept.shape[-1]
        for index, column in enumerate(maps.columns):
            torch.testing.assert_close(
                values[index], kept[..., text + column], rtol=0, atol=_ABSOLUTE
            )
        total = values.sum(dim=0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=_ABSOLUTE)


def check_values(case: Case) -> None:
    """Each step's probabilities of each layer, by rows and columns written down by hand."""
    assert_values(case, case.tracer.heat_maps(), case.slow, len(PROMPT.split()))
    assert case.tracer.heat_maps().size == case.facts.grid[1:]


def check_self_attention(case: Case) -> None:
    """What refines maps is the pixels' block of the plain attention, each row divided by its sum.

    The mean over the prompt's calls, layers and heads. The output and the maps stay as they are.
    """
    facts = case.facts
    if facts.alike == "":
        with pytest.raises(TraceError), trace(case.pipe, refine=True):
            case.run()
        return
    slow = case.slow if facts.alike is None else case.kept(layers=facts.alike)[1]
    with trace(case.pipe, keep=["step"], refine=True) as tracer:
        traced = case.run()
    assert_same(case.plain, traced)
    maps, plain = tracer.heat_maps(), case.tracer.heat_maps()
    assert maps.layers == plain.layers
    assert all(torch.equal(maps.probabilities[k], x) for k, x in plain.probabilities.items())
    # Layers of a UNet at a lower level have fewer cells, and are left out.
    cells = min(math.prod(facts.grid), max(one.query.shape[2] for one in slow))
    blocks = []
    for one in slow:
        if one.call not in facts.calls or one.index != facts.index or one.query.shape[2] < cells:
            continue
        start, offset = facts.pixels % one.query.shape[2], one.key.shape[2] - one.query.shape[2]
        block = one.probabilities[facts.block][:, start : start + cells]  # (H, N, K)
        block = block[..., offset + start : offset + start + cells]
        blocks.append((block / block.sum(dim=-1, keepdim=True)).mean(dim=0))
    assert maps.self_attention is not None
    expected = torch.stack(blocks).mean(dim=0).view(maps.self_attention.shape)
    torch.testing.assert_close(maps.self_attention.double(), expected, rtol=0, atol=_ABSOLUTE)


def check_negative(case: Case) -> None:
    """A negative prompt leaves no trace in the maps, and has maps of its own if asked for."""
    if case.facts.negative is None:
        pytest.skip("no negative prompt is read")
    own = case.tracer.heat_maps(negative=True)
    given = case.variant.arguments(torch.float32).get("negative_prompt", "")
    assert list(own) == list(dict.fromkeys(given.split()))
    if given:
        assert_values(case, own, case.slow, len(given.split()), negative=True)
    with trace(case.pipe, keep=["step"]) as tracer, stopped(case):
        case.run(negative_prompt=ANOTHER)
    maps, other = case.tracer.heat_maps(), maps_of_stopped(tracer)
    name = other.layers[0].name
    for token, twin in zip(maps.tokens, other.tokens, strict=True):
        left = maps.probabilities[name][maps.columns.index(token.column), :1]
        right = other.probabilities[name][other.columns.index(twin.column)]
        torch.testing.assert_close(left, right, rtol=0, atol=_ABSOLUTE)


def check_batches(case: Case) -> None:
    """Two prompts with two images each: the maps of each image are its own."""
    if not case.facts.batches:
        pytest.skip("the pipeline itself takes one prompt and makes one image")
    prompts = [PROMPT, OTHER]
    changes: dict[str, Any] = {}
    names = inspect.signature(type(case.pipe).__call__).parameters
    number = next((n for n in ("num_images_per_prompt", "num_videos_per_prompt") if n in names), "")
    each = 2 if number else 1
    if number:
        changes[number] = each
    if "negative_prompt" in case.variant.arguments(torch.float32):
        changes["negative_prompt"] = [NEGATIVE, NEGATIVE]
    _, slow = case.kept([*prompts], **changes)  # a pipeline may write into the list
    with trace(case.pipe, keep=["step"]) as tracer:
        case.run([*prompts], **changes)
    for image in range(2 * each):
        text = prompts[image // each]
        maps = tracer.heat_maps(image)
        assert maps.prompt.text == text
        assert_values(case, maps, slow, len(text.split()), image, 2 * each)
    with pytest.raises(IndexError):
        tracer.heat_maps(2 * each)


# -- 3. columns -----------------------------------------------------------------------------------


def check_perturbed_token(case: Case) -> None:
    """A token whose embedding is changed is the column that changes most in the first layer.

    In a softmax one key's change moves all others by as much together, and less each.
    """
    if case.facts.mixes_text:
        pytest.skip("text is mixed before the first layer")
    words = len(PROMPT.split())
    columns = case.tracer.heat_maps().prompt.columns
    plain = _first_call(case, None)
    for column in columns_of(case.facts, words, columns)[-len(case.facts.first) :]:
        changed = _first_call(case, column)
        name = plain.layers[0].name
        moved = (plain.probabilities[name] - changed.probabilities[name]).abs().flatten(1).sum(1)
        assert plain.columns[int(moved.argmax())] == column
        assert moved.max() > 0


def _first_call(case: Case, column: int | None) -> HeatMaps:
    """Maps, by head, of the first layer's first call; one token's embedding is changed."""
    original = case.pipe.encode_prompt

    @functools.wraps(original)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        found = [*result] if isinstance(result, tuple) else [result]
        for value in found:
            rows = value if isinstance(value, list) else [value]
            if rows and torch.is_tensor(rows[0]) and rows[0].ndim >= 2:
                if rows[0].is_floating_point() and column is not None:
                    for row in rows:
                        own = row[column] if isinstance(value, list) else row[:, column]
                        noise = torch.Generator().manual_seed(1)
                        own += torch.randn(own.shape, generator=noise) * (own.std() + 0.1)
                break
        return result

    case.pipe.encode_prompt = encode_prompt
    try:
        with torch.inference_mode(), trace(case.pipe, keep=["head"]) as tracer, stopped(case):
            case.run()
    finally:
        del case.pipe.encode_prompt
    return maps_of_stopped(tracer)


# -- 4. cells -------------------------------------------------------------------------------------


class Planted:
    """A processor whose attention makes given cells look at one key and nothing else."""

    def __init__(self, inner: Any, cells: torch.Tensor, key: int) -> None:
        self.inner, self._mode = inner, _Plant(cells, key)

        @functools.wraps(inner.__call__)
        def call(*args: Any, **kwargs: Any) -> Any:
            return Planted.__call__(self, *args, **kwargs)

        self.__dict__["__call__"] = call  # hosts read its signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._mode:
            return self.inner(*args, **kwargs)


class _Plant(TorchFunctionMode):
    def __init__(self, cells: torch.Tensor, key: int) -> None:
        self._cells, self._key = cells, key  # cells: (batch, queries), true for those planted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = inspect.signature(_sdpa).bind(*args, **kwargs).arguments
            query, key = given["query"].clone(), given["key"].clone()
            if query.shape[2] == self._cells.shape[1] and self._key < key.shape[2]:
                key[..., 0] = 0  # the first feature is the planted key's alone
                key[:, :, self._key] = 0
                key[:, :, self._key, 0] = 1
                wanted = torch.zeros_like(query)
                wanted[..., 0] = 1000
                query = torch.where(self._cells[: len(query), None, :, None], wanted, query)
                args, kwargs = (), {**given, "query": query, "key": key}
        return func(*args, **kwargs)


def _sdpa(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> None:  # fmt: skip
    """The signature of `F.scaled_dot_product_attention`, which has none to be read."""


def region(grid: tuple[int, int, int]) -> torch.Tensor:
    """Cells that no exchange of axes maps to themselves: true in a corner of the last frame."""
    frames, height, width = grid
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[frames - 1, height // 4 : height // 2, width // 2 : width - 1] = True
    return mask


def check_planted(case: Case) -> None:
    """Latents of a region are marked; the cells this changes are made to look at one word.

    So where the map's peak belongs is known from the denoiser's own embedding of patches, and the
    word from the key it was written down to have. Where pixels are mixed before the first layer,
    those of the region must change more than the others.
    """
    facts, layer, path = case.facts, first_layer(case), case.slow[0].path
    plain, changed = _first_queries(case, None), _first_queries(case, region(facts.grid))
    batch, length = plain.shape[0], plain.shape[2]
    grid, frames = facts.grid, facts.grid[0] if facts.is_flat else 1
    while math.prod(grid) > length * frames:  # a U-Net's first layer may be below the finest level
        grid = grid[0], -(-grid[1] // 2), -(-grid[2] // 2)
    mask = region(grid)
    cells = mask.numel() // frames
    start = facts.pixels % length
    flat = mask.reshape(frames, cells).repeat(batch // frames, 1)
    planted = F.pad(flat, (start, length - start - cells))
    moved = (plain - changed).abs().amax(dim=(1, 3))  # (batch, queries)
    if facts.mixes_pixels:
        assert moved[planted].mean() > moved[~planted].mean()
    else:
        assert torch.equal(moved > 0, planted)
    columns = case.tracer.heat_maps().prompt.columns
    column = columns_of(facts, len(PROMPT.split()), columns)[-1]
    inner = layer.processor
    layer.processor = Planted(
        inner, planted, facts.text % case.slow[0].probabilities.shape[-1] + column
    )
    try:
        with trace(case.pipe, keep=["step"]) as tracer, stopped(case):
            case.run()
    finally:
        layer.processor = inner
    maps = maps_of_stopped(tracer)
    values = maps.probabilities[path][maps.columns.index(column), 0].reshape(grid)
    assert torch.equal(values > 0.9, mask)


def _first_queries(case: Case, mask: torch.Tensor | None) -> torch.Tensor:
    """Queries (batch, heads, N, d) of the first layer's first call, its latents marked."""
    name, path = owner(case)
    denoiser = denoisers_of(case.pipe)[name]
    names = inspect.signature(type(denoiser).forward)

    def mark(module: Any, args: Any, kwargs: Any) -> Any:
        given = names.bind(module, *args, **kwargs).arguments
        latents = given.pop(case.facts.latents)
        given.pop("self")
        more = given.pop("kwargs", {})
        return (), {**given, **more, case.facts.latents: _marked(latents, mask, case.facts.order)}

    with ExitStack() as stack:
        if mask is not None:
            handle = denoiser.register_forward_pre_hook(mark, with_kwargs=True)
            stack.callback(handle.remove)
        found = stack.enter_context(attentions(denoiser, lambda one: one == path))
        with stopped(case):
            case.run()
    return found[case.facts.index].query


def _marked(latents: Any, mask: torch.Tensor, order: str) -> Any:
    """Latents with another value where cells are marked."""
    if isinstance(latents, list):
        return [_marked(one[None], mask, order)[0] for one in latents]
    if latents.ndim == 3:  # packed, reference images after them
        wide = F.pad(mask.flatten(), (0, latents.shape[1] - mask.numel()))[:, None]
    elif latents.ndim == 4:
        wide = _widened(mask, (1, *latents.shape[2:]))[0]
    else:
        sizes = dict(zip(order, latents.shape[1:], strict=True))
        wide = _widened(mask, (sizes["f"], sizes["h"], sizes["w"]))
        wide = wide.unsqueeze(order.index("c"))
    return torch.where(wide, latents + 1, latents)


def _widened(mask: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    for axis, size in enumerate(sizes):
        mask = mask.repeat_interleave(size // mask.shape[axis], dim=axis)
    return mask
