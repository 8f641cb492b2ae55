"""The attention layers that read the prompt, and where a sample lies in what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from daam_diffusers.errors import TraceError
from daam_diffusers.families import Family, Grid, Kind, Segments
from daam_diffusers.scores import AttentionCall


@dataclass(frozen=True)
class Layer:
    """An attention module that reads the prompt.

    Attributes:
        name: see `LayerInfo`.
        module: it has a `processor`.
        kind: how it reads the prompt.
        block: see `LayerInfo`.
        halvings: how often the cells were halved above it.
        family: of its denoiser.
        component: the denoiser.
    """

    name: str
    module: Any
    kind: Kind
    block: str
    halvings: int
    family: Family
    component: str


def layers_of(denoisers: Mapping[str, nn.Module], families: Mapping[str, Family]) -> list[Layer]:
    """All layers of a pipeline's denoisers that read the prompt, in forward order."""
    found = []
    for component, denoiser in denoisers.items():
        family = families[component]
        modules = dict(denoiser.named_modules())
        for path, kind in family.attention(denoiser).items():
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
    return sorted(found, key=lambda layer: (layer.component, order.get(layer.block, 0)))


def _block(path: str) -> str:
    head, _, rest = path.partition("_block")
    return head if head in ("down", "mid", "up") and rest else path.split(".", 1)[0]


@dataclass(frozen=True)
class Layout:
    """Where things lie in the present call of a denoiser.

    Attributes:
        grid: frames, rows and columns of cells, at the finest level.
        samples: the batch of latents.
        context: segments of what cross-attention attends to, a sample.
        sequences: segments of a joint sequence, a sample.
        rows: the branches that the call carries, and the first of their samples in the batch.
        before: cells in front of those of a cross-attention layer.
    """

    grid: Grid
    samples: int
    context: Sequence[Segments]
    sequences: Sequence[Segments]
    rows: Mapping[int, int]
    before: int = 0


@dataclass(frozen=True)
class Source:
    """Where one sample's attention lies: rows, queries and keys of a call, and its cells."""

    call: AttentionCall
    rows: slice
    cells: slice
    text: slice
    grid: Grid


def source_of(
    layout: Layout, layer: Layer, calls: list[AttentionCall], sample: int, *, is_halved: bool
) -> Source | str:
    """Where one sample's attention lies among the calls of a layer, or what was found instead.

    Args:
        layout: of the denoiser's call.
        layer: the layer.
        calls: its attention calls.
        sample: of the batch of latents.
        is_halved: whether a cache may have taken the first half of the batch away.
    """
    if not calls:
        return "it computes neither of the two that could be watched"
    samples, skipped = layout.samples, 0
    if len(calls) > 1 and sum(len(call.query) for call in calls) == samples:
        # The batch is attended to in parts: each sample apart, or the perturbed ones.
        starts = [sum(len(call.query) for call in calls[:n]) for n in range(len(calls))]
        number = max(n for n, start in enumerate(starts) if start <= sample)
        calls, samples, skipped = (
            calls[number : number + 1],
            len(calls[number].query),
            starts[number],
        )
    fits = []
    for call in calls:
        queries, keys = _segments(layout, layer.kind, sample, call.query.shape[2])
        if (call.query.shape[2], call.key.shape[2]) == (_length(queries), _length(keys)):
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
    pixels = _place(queries, "pixels")
    found = (pixels.stop - pixels.start) * count
    grid = _level(layout.grid, layer.halvings, found, layer.name)
    return Source(call, slice(first, first + count), pixels, _place(keys, "text"), grid)


def groups_of(sources: Sequence[Source]) -> list[list[Source]]:
    """Neighboring samples that one computation serves."""
    groups: list[list[Source]] = []
    for source in sources:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and last.call is source.call
            and (last.cells, last.text) == (source.cells, source.text)
            and last.rows.stop == source.rows.start
        ):
            groups[-1].append(source)
        else:
            groups.append([source])
    return groups


def _level(grid: Grid, halvings: int, found: int, layer: str) -> Grid:
    """A layer's grid.

    Args:
        grid: of the finest level.
        halvings: how often rows and columns were halved above the layer.
        found: cells of one sample.
        layer: its name, for the error.

    Raises:
        TraceError: the layer has another number of cells.
    """
    frames, height, width = grid
    tried = []
    for round_up in (True, False):  # strided convolutions round odd sizes up, pooling down
        h, w = height, width
        for _ in range(halvings):
            h, w = ((h + 1) // 2, (w + 1) // 2) if round_up else (h // 2, w // 2)
        tried.append(f"{h}×{w}")
        if frames * h * w == found:
            return frames, h, w
    raise TraceError(
        f"{layer} attends from {found} cells where its place in the denoiser means "
        f"{' or '.join(dict.fromkeys(tried))}{f' in {frames} frames' if frames > 1 else ''}: "
        "something merges, drops or crops cells (token merging?). Take it off while tracing."
    )


def _place(segments: Segments, name: str) -> slice:
    """Where a segment lies in a sequence."""
    start = 0
    for segment, size in segments:
        if segment == name:
            return slice(start, start + size)
        start += size
    raise TraceError(f"no {name!r} among the segments {[segment for segment, _ in segments]}")


def _length(segments: Segments) -> int:
    """Length of a sequence."""
    return sum(size for _, size in segments)


def _segments(layout: Layout, kind: str, sample: int, pixels: int) -> tuple[Segments, Segments]:
    """The segments of a layer's queries and keys, for one sample.

    Args:
        layout: of the denoiser's call.
        kind: see `Kind`.
        sample: of the batch of latents.
        pixels: the layer's cells.
    """
    if kind == "joint":
        return layout.sequences[sample], layout.sequences[sample]
    own: Segments = (("before", layout.before), ("pixels", pixels - layout.before))
    return own, (*layout.context[sample], *(own if kind == "added" else ()))
