"""The table of denoiser classes that can be traced: one `Family` a class.

A family says which modules attend to text and how, where text and pixels lie in what they attend
over, which arguments of the denoiser's forward hold the text, which text encoders feed it, and
which grid the pixels form. `register_family` adds one; `family_of` looks a denoiser up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from daam_diffusers.errors import TraceError

T = TypeVar("T")

Grid = tuple[int, int, int]
"""Frames, rows and columns of cells; an image has one frame."""

Kind = Literal["cross", "added", "joint", "self"]
"""How a layer reads the prompt.

- `"cross"`: queries are pixels, keys are text.
- `"added"`: queries are pixels, keys are text and then the pixels themselves.
- `"joint"`: queries and keys are one sequence of text and pixels.
- `"self"`: queries and keys are pixels; it reads no prompt, and is looked at to refine maps.
"""

Segments = tuple[tuple[str, int], ...]
"""A sequence in order, as names and lengths: `(("text", 512), ("pixels", 1024))`.

`"text"` and `"pixels"` are what maps are made of; any other name is passed over.
"""


@dataclass(frozen=True)
class LayerInfo:
    """One attention layer that reads the prompt, as seen in a run.

    Attributes:
        name: module path inside the denoiser, e.g. `down_blocks.0.attentions.0...attn2`; of a
            pipeline with several denoisers, after the component's name, `transformer_2.blocks...`.
        block: the path's first part: `"down"`, `"mid"` or `"up"` for UNets,
            `"transformer_blocks"`, `"single_transformer_blocks"`, ... for transformers.
        index: position in the order of the forward pass, from 0.
        grid: rows and columns of its cells, (h, w).
        factor: how many cells of the finest level one of its cells is wide: 1, 2, 4, ...
        heads: number of attention heads.
        frames: frames of its cells; 1 for an image.
    """

    name: str
    block: str
    index: int
    grid: tuple[int, int]
    factor: int
    heads: int
    frames: int = 1


@dataclass(frozen=True)
class Call:
    """One call of a denoiser: its arguments by name, defaults left out."""

    denoiser: nn.Module
    arguments: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def config(self, name: str) -> Any:
        """An entry of the denoiser's configuration; None if it has no such entry."""
        return self.denoiser.config.get(name)  # type: ignore[operator, union-attr]

    def text(self, name: str) -> Any:
        """A text argument; of a tensor (B, 1, K, D) without the axis that is one."""
        text = self.arguments[name]
        has_extra = isinstance(text, torch.Tensor) and text.ndim == 4 and text.shape[1] == 1
        return text[:, 0] if has_extra else text


@dataclass(frozen=True)
class Encoder:
    """A text encoder of a pipeline, and the columns that its tokens take in the text embeddings.

    Attributes:
        component: the pipeline's attribute, e.g. `"text_encoder_2"`.
        tokenizer: the attribute of its tokenizer.
        prompt: `encode_prompt`'s argument that holds its text; `prompt` is taken if that is None.
        after: the encoder whose columns come before this one's, or None for the first columns.
        drop: how many leading tokens (of a template) have no column, or the pipeline's attribute
            that says so; None: as many as the embeddings are shorter than what the encoder read.
        suffix: how many tokens at the end have none.
        has_template: the columns hold a template around the text, so that where it stands is known
            only if the encoder was seen to read it.
    """

    component: str = "text_encoder"
    tokenizer: str = "tokenizer"
    prompt: str = "prompt"
    after: str | None = None
    drop: int | str | None = None
    suffix: int = 0
    has_template: bool = False


@dataclass(frozen=True)
class Text:
    """An argument of a denoiser's forward that holds text embeddings.

    Attributes:
        argument: its name. It holds a tensor (B, K, D), or a list of B tensors (K, D).
        encoders: the text encoders whose tokens its columns are.
    """

    argument: str = "encoder_hidden_states"
    encoders: tuple[Encoder, ...] = (Encoder(),)


def patches(argument: str = "hidden_states") -> Callable[[Call], Grid]:
    """A grid read off latents (B, C, [F,] H, W) and the configured size of a patch."""

    def grid(call: Call) -> Grid:
        size = call.config("patch_size") or 1
        time, height, width = (1, size, size) if isinstance(size, int) else tuple(size)[-3:]
        time = call.config("patch_size_t") or time
        shape = call[argument].shape
        frames = shape[-3] // time if len(shape) == 5 else 1
        return frames, shape[-2] // height, shape[-1] // width

    return grid


def text_first(call: Call, grid: Grid, lengths: Sequence[int]) -> Segments:
    """A joint sequence of text, then pixels."""
    return (("text", lengths[0]), ("pixels", cells(grid)))


def pixels_first(call: Call, grid: Grid, lengths: Sequence[int]) -> Segments:
    """A joint sequence of pixels, then text."""
    return (("pixels", cells(grid)), ("text", lengths[0]))


_REMEMBERED: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remembered(tensor: torch.Tensor, read: Callable[[torch.Tensor], T]) -> T:
    """Read a tensor once: pipelines pass the same positions and masks at every step.

    Reading waits for the device, so doing it at each step would cost time on a GPU.
    """
    known: dict[Any, T] = _REMEMBERED.setdefault(tensor, {})  # type: ignore[no-untyped-call]
    if read not in known:
        known[read] = read(tensor)
    return known[read]


def read_lengths(mask: torch.Tensor) -> list[int]:
    """Valid positions in each row of a mask; to be `remembered`."""
    return [int(count) for count in mask.sum(dim=1).tolist()]


def cells(grid: Grid) -> int:
    """Cells of a grid."""
    return grid[0] * grid[1] * grid[2]


@dataclass(frozen=True)
class Family:
    """A row of the table: the way in which one class of denoiser is traced.

    Attributes:
        denoiser: the class's name; subclasses are traced alike.
        layers: how modules read the prompt, by a regular expression that their whole path matches.
            A module that no expression matches is left alone.
        grid: the cells of the finest level, from a call of the denoiser.
        sequence: a joint layer's segments, from the call, its grid and the text's length in each
            sample. One tuple for all samples, or a list of one a sample.
        context: the segments of what a cross-attention layer attends to, if not text alone.
        before: cells of other things in front of a cross-attention layer's own, if there may be.
        text: the arguments that hold text embeddings, in the order of their columns.
        latents: the argument that holds latents: a tensor, or a list of tensors, a sample each.
        halvings: how often the pixels were halved above a module; None for denoisers of one level.
        skips: names of arguments that perturb a call when they are given (skipped layers); such a
            call is no evidence of what a word draws.
        conditional_first: guidance stacks the conditional rows before the unconditional ones.
        default_layers: the layers that are recorded unless the user chooses.
    """

    denoiser: str
    layers: Mapping[str, Kind]
    grid: Callable[[Call], Grid] = field(default_factory=patches)
    sequence: Callable[[Call, Grid, Sequence[int]], Segments | list[Segments]] = text_first
    context: Callable[[Call, Sequence[int]], Segments] | None = None
    before: Callable[[Call, Grid], int] | None = None
    text: tuple[Text, ...] = (Text(),)
    latents: str = "hidden_states"
    halvings: Callable[[nn.Module, str], int] | None = None
    skips: tuple[str, ...] = ()
    conditional_first: bool = False
    default_layers: Callable[[LayerInfo], bool] = lambda _layer: True

    def attention(self, denoiser: nn.Module) -> dict[str, Kind]:
        """The modules that read the prompt, by path, in the order of `named_modules`."""
        patterns = [(re.compile(pattern), kind) for pattern, kind in self.layers.items()]
        return {
            path: kind
            for path, module in denoiser.named_modules()
            if getattr(module, "processor", None) is not None
            for pattern, kind in patterns
            if pattern.fullmatch(path)
            if kind != "added" or getattr(module, "added_kv_proj_dim", True) is not None
        }


FAMILIES: dict[str, Family] = {}
"""The table, by the denoiser's class name. Add to it with `register_family`."""


def register_family(family: Family) -> Family:
    """Add a family to the table; a denoiser's class that is there already is replaced.

    Raises:
        TypeError: it is no `Family`.
        ValueError: an expression of `layers` is none, or an encoder's `after` is not there.
    """
    if not isinstance(family, Family):
        raise TypeError(f"register_family takes a Family, got {type(family).__name__}")
    name = family.denoiser
    for pattern, kind in family.layers.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from error
        if kind not in get_args(Kind):
            raise ValueError(f"{name}: a layer is one of {get_args(Kind)}, got {kind!r}")
    for text in family.text:
        known = {encoder.component for encoder in text.encoders}
        for encoder in text.encoders:
            if encoder.after is not None and encoder.after not in known:
                raise ValueError(
                    f"{name}: {encoder.component} comes after {encoder.after!r}, which is none of "
                    f"{text.argument}'s encoders: {', '.join(sorted(known))}"
                )
    FAMILIES[name] = family
    return family


def family_of(denoiser: nn.Module) -> Family:
    """The table's entry for a denoiser's class, subclasses included.

    Raises:
        TraceError: no entry; the message says how to add one.
    """
    for cls in type(denoiser).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise TraceError(
        f"{type(denoiser).__name__} is not in the table of denoisers. docs/families.md lists the "
        f"{len(FAMILIES)} that are, and says how to add one: daam_diffusers.register_family."
    )


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's denoisers by component, without the wrapper of `torch.compile`.

    Raises:
        TraceError: there is none.
    """
    names = ("unet", "transformer", "transformer_2")
    found = {name: getattr(pipe, name, None) for name in names}
    modules = {name: getattr(one, "_orig_mod", one) for name, one in found.items()}
    denoisers = {name: one for name, one in modules.items() if isinstance(one, nn.Module)}
    if not denoisers:
        raise TraceError(
            f"{type(pipe).__name__} has neither `unet` nor `transformer`, the denoisers that can "
            "be traced; docs/families.md lists the pipelines that have one."
        )
    return denoisers
