"""The attention layers that read the prompt, and where a sample lies in what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from daam_diffusers.errors import TraceError
from daam_diffusers.families import Family, Grid, Kind, Segments
from daam_diffusers.scores import AttentionCall


@dataclass(frozen=True)
class Layer:
    """An attention module that reads the prompt, or among pixels; see `LayerInfo`."""

    name: str
    module: Any  # it has a `processor`
    kind: Kind
    block: str
    halvings: int  # how often the cells were halved above it
    family: Family
    component: str  # the denoiser


def layers_of(
    denoisers: Mapping[str, nn.Module], families: Mapping[str, Family], *, refine: bool
) -> list[Layer]:
    """All layers of a pipeline's denoisers that read the prompt, in forward order.

    After them, to refine maps, those of self-attention.
    """
    found = []
    for component, denoiser in denoisers.items():
        family = families[component]
        modules = dict(denoiser.named_modules())
        for path, kind in family.attention(denoiser).items():
            if kind == "self" and not refine:
                continue
            found.append(
                Layer(
                    name=path if len(denoisers) == 1 else f"{component}.{path}",
                    module=modules[path],
                    kind=kind,
                    block=_block(path),
                    halvings=family.halvings(denoiser, path) if family.halvings else 0,
                    family=family,
                    component=component,
                )
            )
    # named_modules lists a UNet's up blocks before its middle block; sorting keeps the rest.
    order = {"vace_blocks": -1, "down": 0, "mid": 1, "up": 2}
    return sorted(found, key=lambda x: (x.kind == "self", x.component, order.get(x.block, 0)))


def _block(path: str) -> str:
    head, _, rest = path.partition("_block")
    return head if head in ("down", "mid", "up") and rest else path.split(".", 1)[0]


@dataclass(frozen=True)
class Layout:
    """Places of pixels and text in the present call of a denoiser."""

    grid: Grid  # at the finest level
    samples: int  # the batch of latents
    context: Sequence[Segments]  # of each sample, what cross-attention attends to
    sequences: Sequence[Segments]  # of each sample, in joint attention
    before: int = 0  # cells in front of those of a cross-attention layer


@dataclass(frozen=True)
class Source:
    """The place of one sample's attention: rows, queries and keys of a call, and its cells.

    `text` and `pixels` are keys, of which a layer may have none.
    """

    call: AttentionCall
    rows: slice
    cells: slice
    text: slice
    pixels: slice
    grid: Grid


def source_of(
    layout: Layout, layer: Layer, calls: list[AttentionCall], sample: int, *, is_halved: bool
) -> Source | str:
    """Find one sample's attention among the calls of a layer; or say what was found instead.

    `sample` is of the batch of latents, of which a cache may have taken the first half away if
    `is_halved`.
    """
    if not calls:
        return "it computes neither of the two that could be watched"
    samples, skipped = layout.samples, 0
    if len(calls) > 1 and sum(len(call.query) for call in calls) == samples:
        # The batch is attended to in parts: each sample apart, or the perturbed ones.
        for part in calls:
            calls, samples = [part], len(part.query)
            if sample < skipped + samples:
                break
            skipped += samples
    fits = []
    for call in calls:
        queries, keys = _segments(layout, layer.kind, sample, call.query.shape[2])
        lengths = [sum(size for _, size in segments) for segments in (queries, keys)]
        if [call.query.shape[2], call.key.shape[2]] == lengths:
            fits.append((call, queries, keys))
    if len(fits) != 1:
        shapes = ", ".join(f"{c.query.shape[2]} queries × {c.key.shape[2]} keys" for c in calls)
        _, keys = _segments(layout, layer.kind, sample, 0)
        what = ", ".join(f"{size} of {name}" for name, size in keys if size)
        return f"it attends {shapes} where keys are expected to be {what}"
    ((call, queries, keys),) = fits
    batch, row = len(call.query), sample - skipped
    if batch % samples == 0:
        first, count = row * (batch // samples), batch // samples
    elif batch * 2 == samples and row >= batch and is_halved:
        first, count = row - batch, 1
    else:
        return f"it attends for a batch of {batch} where the denoiser was called with {samples}"
    cells = _place(queries, "pixels")
    found = (cells.stop - cells.start) * count
    grid = _level(layout.grid, layer.halvings, found, layer.name)
    text = slice(0) if layer.kind == "self" else _place(keys, "text")
    pixels = slice(0) if layer.kind == "cross" else _place(keys, "pixels")
    return Source(call, slice(first, first + count), cells, text, pixels, grid)


def groups_of(sources: Sequence[Source]) -> list[list[Source]]:
    """Neighboring samples that one computation serves."""

    def computation(at: int) -> tuple[object, ...]:
        one = sources[at]
        first = one.rows.start - at * (one.rows.stop - one.rows.start)  # as sample 0 would have it
        return id(one.call), one.cells, one.text, one.pixels, first

    return [[sources[at] for at in group] for _, group in groupby(range(len(sources)), computation)]


def _level(grid: Grid, halvings: int, found: int, layer: str) -> Grid:
    """The grid of a layer of `found` cells: the finest one, rows and columns halved so often."""
    frames, height, width = grid
    size = 2**halvings
    # Strided convolutions round odd sizes up, pooling down.
    tried = [(-(-height // size), -(-width // size)), (height // size, width // size)]
    for h, w in tried:
        if frames * h * w == found:
            return frames, h, w
    shown = " or ".join(dict.fromkeys(f"{h}×{w}" for h, w in tried))
    raise TraceError(
        f"{layer} attends from {found} cells where its place in the denoiser means "
        f"{shown}{f' in {frames} frames' if frames > 1 else ''}: "
        "something merges, drops or crops cells (token merging?). Take it off while tracing."
    )


def _place(segments: Segments, name: str) -> slice:
    """The place of a segment in a sequence."""
    start = 0
    for segment, size in segments:
        if segment == name:
            return slice(start, start + size)
        start += size
    raise TraceError(f"no {name!r} among the segments {[segment for segment, _ in segments]}")


def _segments(layout: Layout, kind: Kind, sample: int, pixels: int) -> tuple[Segments, Segments]:
    """The segments of queries and keys of a layer of so many cells, for one sample."""
    if kind == "joint":
        return layout.sequences[sample], layout.sequences[sample]
    own: Segments = (("before", layout.before), ("pixels", pixels - layout.before))
    text = () if kind == "self" else layout.context[sample]
    return own, (*text, *(() if kind == "cross" else own))
