"""`HeatMaps`: the maps of all words of one image, by word."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from daam_diffusers import colors, files, report, video
from daam_diffusers.atomic import written_beside
from daam_diffusers.families import LayerInfo
from daam_diffusers.heat_map import AXES, HeatMap, Threshold, import_pyplot
from daam_diffusers.prompt import Prompt, Token, Word
from daam_diffusers.upsample import information, resize, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from daam_diffusers.video import Frames

Clamp = Literal["once", "per_map"]
Weighting = Literal["equal", "information"]


@dataclass(frozen=True, eq=False)
class HeatMaps(Mapping[str, HeatMap]):
    """Maps of one image, by word: `maps["dog"]` is the first occurrence of the word.

    A map's values are mean attention probabilities over the steps, layers and heads recorded, so
    they do not depend on the number of steps, and the prompt's tokens, the special tokens and the
    padding of one cell sum to 1.

    Attributes:
        prompt: the prompt, its tokens and words.
        layers: the layers that are averaged, in forward order.
        probabilities: by layer, float32, (C + 1, [steps,] [heads,] [latent frames,] h, w) on the
            layer's own grid; the last entry is the sum of all other columns.
        columns: the C embedding columns that are kept apart, increasing.
        axes: axes that are kept, of `"step"`, `"layer"`, `"head"`; of a video, `"frame"` last.
        size: rows and columns of the latents, which are those of the maps.
        image_size: rows and columns of the image in pixels.
        clamp: `"once"`: maps are averaged and then clamped to [0, 1]. `"per_map"`: every map that
            was kept is clamped at 0 before averaging; with heads kept, that is what the reference
            implementation computes.
        provenance: model, pipeline, steps and versions.
        frames: frames of the generated video; None for an image.
        calls: by layer, how many denoiser calls its mean is over; layers that a cache skips have
            fewer than others. Empty for a single step, whose calls were not counted apart.
        weighting: `"equal"`: the plain mean of the layers. `"information"`: each layer counts by
            the mutual information of its words and cells, so that layers in which all words
            attend to the same places count for little.
        self_attention: float32, (h·w, h, w): where each cell attends to, row by row, the mean over
            steps, layers and heads; each entry sums to 1. None unless the run was traced with
            `refine=True`.
        probing: what `probe` asks for maps of another text; it keeps the pipeline alive, and files
            and pickles do not hold it. None unless the run was traced with `probe=True`.
    """

    prompt: Prompt
    layers: tuple[LayerInfo, ...]
    probabilities: Mapping[str, torch.Tensor]
    columns: tuple[int, ...]
    axes: tuple[str, ...]
    size: tuple[int, int]
    image_size: tuple[int, int]
    clamp: Clamp
    provenance: Mapping[str, str]
    frames: int | None = None
    calls: Mapping[str, int] = field(default_factory=dict)
    weighting: Weighting = "equal"
    self_attention: torch.Tensor | None = None
    probing: Callable[[str], HeatMaps] | None = None

    def __post_init__(self) -> None:
        if self.clamp not in ("once", "per_map"):
            raise ValueError(f'clamp must be "once" or "per_map", got {self.clamp!r}')
        if self.weighting not in ("equal", "information"):
            raise ValueError(f'weighting must be "equal" or "information", got {self.weighting!r}')
        if self.axes != tuple(axis for axis in AXES if axis in self.axes):
            raise ValueError(f"axes must be of {AXES}, in this order, got {self.axes!r}")
        if (self.frames is not None) != ("frame" in self.axes):
            raise ValueError(f"frames is {self.frames}, and axes are {self.axes}")
        if list(self.columns) != sorted(set(self.columns)):
            raise ValueError(f"columns must increase, got {list(self.columns)[:9]}")
        if missing := {token.column for token in self.tokens} - set(self.columns):
            raise ValueError(f"tokens stand in columns that were not kept: {sorted(missing)[:9]}")
        if not self.layers or min(*self.size, *self.image_size) < 1:
            raise ValueError(
                f"expected layers and sizes of at least 1, got {len(self.layers)} layers, sizes "
                f"{self.size} and {self.image_size}"
            )
        axes = [axis for axis in self.axes if axis != "layer"]
        for layer in self.layers:
            shape = tuple(self.probabilities[layer.name].shape)
            inner = shape[1 : 1 + len(axes)]
            if shape != (len(self.columns) + 1, *inner, *layer.grid) or 0 in shape:
                raise ValueError(
                    f"probabilities of layer {layer.name} must be ({len(self.columns) + 1}, "
                    f"{''.join(f'{axis}s, ' for axis in axes)}{layer.grid[0]}, {layer.grid[1]}), "
                    f"got {shape}"
                )
        own = None if self.self_attention is None else tuple(self.self_attention.shape)
        if own is not None and (len(own) != 3 or own[0] != own[1] * own[2]):
            raise ValueError(f"self_attention must be (h·w, h, w), got {own}")
        for at, axis in enumerate(axes, start=1):
            if axis != "frame":
                self._check_agreed(axis, at)

    def _check_agreed(self, axis: str, at: int) -> None:
        lengths = {x.name: self.probabilities[x.name].shape[at] for x in self.layers}
        most = max(lengths.values())
        if len(set(lengths.values())) > 1:
            names = [name for name, length in lengths.items() if length == most]
            why = (
                " (a cache skips layers at some steps, or two denoisers share them)"
                if axis == "step"
                else ""
            )
            raise ValueError(
                f"{axis}s are kept, and the layers have different numbers of them, "
                f"{sorted(set(lengths.values()))}{why}; choose layers that agree, "
                f"heat_maps(layers=lambda layer: layer.name in […]), or do not keep {axis}s; "
                f"{most} {axis}s have: {', '.join(names)}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "probing": None}  # a pickle holds no pipeline

    def __copy__(self) -> HeatMaps:
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> HeatMaps:
        copied: HeatMaps = object.__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    # Mapping

    def __getitem__(self, text: str) -> HeatMap:
        if not isinstance(text, str):
            raise KeyError(f"heat maps are looked up by word, got {text!r}")
        return self.word(text)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(word.text for word in self.prompt.words))

    def __len__(self) -> int:
        return len({word.text for word in self.prompt.words})

    def __repr__(self) -> str:
        height, width = self.size
        return f"HeatMaps({self.prompt.text!r}, {len(self.layers)} layers, {height}×{width})"

    # Maps

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The prompt's own tokens, in order."""
        return self.prompt.tokens

    def word(self, text: str, occurrence: int = 0) -> HeatMap:
        """The map of a word or of a group of words: the mean over its tokens.

        Args:
            text: as in the prompt, `"dog"`, `"red car"`; if it does not stand there as written,
                in other letters or as a part of words, see `Prompt.find`.
            occurrence: which of the places where it stands, from 0.

        Raises:
            KeyError: it is not in the prompt; the message names the words that are.
            TypeError: the occurrence is no whole number.
        """
        found = self.prompt.find(text, occurrence)
        return self._map(found.text, found.columns)

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """The weight in a map of each of `layers`, in their order; they sum to 1."""
        own = {token.column for token in self.tokens}
        rows = [i for i, column in enumerate(self.columns) if column in own]
        found = [1.0] * len(self.layers)
        if self.weighting == "information" and len(rows) > 1:
            found = [information(self.probabilities[x.name][rows]) for x in self.layers]
        total = sum(found) or 1.0
        return tuple(weight / total if any(found) else 1 / len(found) for weight in found)

    def token(self, index: int) -> HeatMap:
        """The map of one of `tokens`, by its index there.

        Raises:
            IndexError: there are not as many.
        """
        try:
            token = self.tokens[index]
        except IndexError:
            count = len(self.tokens)
            raise IndexError(f"no token {index}: the prompt has {count}, from 0") from None
        return self._map(token.text, (token.column,))

    def combine(self, *words: str | Word) -> HeatMap:
        """The map of several words that need not be adjacent: the mean over all their tokens.

        Args:
            words: words or groups of words, each at its first place, or places from `prompt.find`:
                `maps.combine("red", maps.prompt.find("dress", occurrence=1))`.

        Raises:
            KeyError: one is not in the prompt.
            TypeError: no words were given, or a list of them.
        """
        if not words or not all(isinstance(word, str | Word) for word in words):
            given = ", ".join(map(repr, words)) or "none"
            raise TypeError(f'combine needs words: maps.combine("red", "house"), got {given}')
        found = [self.prompt.find(word) if isinstance(word, str) else word for word in words]
        columns = dict.fromkeys(column for word in found for column in word.columns)
        return self._map(" + ".join(word.text for word in found), tuple(columns))

    def column(self, *columns: int) -> HeatMap:
        """The map of a column of the text embeddings, e.g. 0 for CLIP's start token.

        Several columns give their mean: what a word of several tokens is.

        Raises:
            KeyError: a column belongs to the padding, which is kept as a sum only.
            TypeError: no columns were given.
        """
        if not columns:
            raise TypeError("column needs the number of a column")
        for column in columns:
            if column not in self.columns:
                raise KeyError(f"column {column} was not kept apart; kept: {list(self.columns)}")
        return self._map(f"[{', '.join(map(str, columns))}]", columns)

    def special(self, kind: Literal["start", "end", "padding"] | None = None) -> HeatMap:
        """The map of what falls to no word: the sum over start and end tokens and all else.

        Args:
            kind: `"start"` or `"end"` for the sum over these tokens alone, or `"padding"` for all
                but these: padding, a template's text and, in joint attention, pixels.

        Raises:
            KeyError: the text encoder has no start or end token.
            ValueError: no such kind.
        """
        rest = set(self.columns) - {token.column for token in self.tokens}
        start, end = set(self.prompt.start), set(self.prompt.end)
        kinds = {None: rest, "start": start, "end": end, "padding": rest - start - end}
        if kind not in kinds:
            raise ValueError(f'kind must be "start", "end" or "padding", got {kind!r}')
        rows = [i for i, column in enumerate(self.columns) if column in kinds[kind]]
        if kind in (None, "padding"):
            rows.append(len(self.columns))
        if not rows:
            raise KeyError(f"the prompt has no {kind} token, or its column was not kept")
        return self._heat_map(f"[{kind or 'special'}]", rows, total=True)

    def refined(self, *, power: float | None = None, passes: int = 1) -> HeatMaps:
        """The same maps, sharper: spread over cells that attend to each other.

        Each map m becomes Sᵏm, k passes of S: `self_attention` with its entries raised to a power
        and its rows divided by their sums, so that cells of one object share what one of them
        has. The sum over words, special tokens and padding stays 1. Nothing is trained (Wang et
        al., arXiv 2309.02773, one pass; Nguyen et al., arXiv 2309.14303, powers).

        Args:
            power: above 0; the larger, the fewer cells a cell takes from. By default 3 for a UNet
                and 1 for a transformer, see docs/families.md.
            passes: at least 1.

        Returns:
            Maps whose layers all have the grid of `self_attention`; `provenance["refined"]` tells
            power and passes.

        Raises:
            ValueError: the run was traced without `refine=True`, or the maps are the negative
                prompt's; power or passes out of range.
        """
        if self.self_attention is None:
            raise ValueError(
                "refined maps need the self-attention that trace(pipe, refine=True) records of the "
                "prompt's rows (there is none of the negative prompt's)"
            )
        if not hasattr(passes, "__index__") or passes < 1:
            raise ValueError(f"passes must be a whole number from 1, got {passes!r}")
        if power is None:
            power = 3 if any(x.block in ("down", "mid", "up") for x in self.layers) else 1
        if not 0 < power < math.inf:
            raise ValueError(f"power must be a number above 0, got {power!r}")
        _, rows, columns = self.self_attention.shape
        factor = max(1, round(self.size[0] / rows))
        ask, done = self.probing, self.provenance.get("refined", "")
        done += f"{'; ' if done else ''}power {power:g}, passes {passes}"
        return replace(
            self,
            layers=tuple(replace(x, grid=(rows, columns), factor=factor) for x in self.layers),
            probabilities={
                name: spread(values, self.self_attention, power=power, passes=passes)
                for name, values in self.probabilities.items()
            },
            provenance={**self.provenance, "refined": done},
            probing=ask and (lambda text: ask(text).refined(power=power, passes=passes)),
        )

    def probe(self, text: str, words: str | Sequence[str] | None = None) -> HeatMap:
        """The map of words that need not be in the prompt: the same pixels attend to another text.

        The pipeline's own text encoders read the text as a prompt of its own, with its start and
        end tokens, template and padding. Each layer's queries are those of the run, its keys the
        text's. Nothing is generated; it costs two calls of the denoiser, and twice for each step
        what the layers that read the prompt cost: the prompt's own maps have to be found again. A
        text of one word has no context: what a word means beside others, ask for in a text that
        has these.

            maps.probe("dog")  # alone
            maps.probe("a red dog", "dog")  # in a text
            maps.probe(f"{maps.prompt.text} and a dog", "dog")  # in the prompt, added
            maps.probe(maps.prompt.text, "house")  # maps["house"] again

        Values are shares among the tokens of that text, so maps of two texts are compared by
        where they are high, hardly by how high.

        Args:
            text: any text; encoders that were given texts of their own (`prompt_2`) read it too.
            words: a word or group of words of it, or several, see `combine`; by default all of it.

        Raises:
            ValueError: the run was traced without `probe=True`, or a later run of the tracer took
                its place before these maps were made; maps of a file, of the negative prompt and of
                single steps and layers have nothing to probe.
            KeyError: the words are not in the text.
            TypeError: `text` is no text.
            TraceError: the pipeline does not attend now as it did in the run.
        """
        if not isinstance(text, str):
            raise TypeError(f"probe takes a text, and words of it as `words`, got {text!r}")
        if self.probing is None:
            raise ValueError(
                "a probe needs what trace(pipe, probe=True) keeps of the latest run: make maps of "
                "the prompt before the next run, and do not load, split or negate them"
            )
        if not text.strip():
            raise ValueError(f"probe needs a text, got {text!r}")
        maps = replace(self.probing(text), clamp=self.clamp, weighting=self.weighting)
        if words is not None:
            return maps.combine(*((words,) if isinstance(words, str) else words))
        return maps._map(text, tuple(dict.fromkeys(token.column for token in maps.tokens)))

    def _map(self, text: str, columns: Sequence[int]) -> HeatMap:
        return self._heat_map(text, [self.columns.index(column) for column in columns])

    def _heat_map(self, text: str, rows: Sequence[int], *, total: bool = False) -> HeatMap:
        maps = [self.probabilities[layer.name][list(rows)] for layer in self.layers]
        if self.clamp == "per_map":
            maps = [resize(m, self.size).clamp_min(0) for m in maps]
        # Tokens first: (R, [S,] [heads,] [f,] h, w) → ([S,] [heads,] [f,] h, w), a layer.
        maps = [m.sum(dim=0) if total else m.mean(dim=0) for m in maps]
        if "frame" in self.axes:  # layers may see time at several lengths, as they see space
            most = max(m.shape[-3] for m in maps)
            maps = [m[..., video.latent_frames(most, m.shape[-3]), :, :] for m in maps]
        maps = [resize(m, self.size) for m in maps]
        if "layer" in self.axes:
            values = torch.stack(maps, dim=1 if "step" in self.axes else 0)
        else:
            weighted = [m * weight for m, weight in zip(maps, self.weights, strict=True)]
            values = torch.stack(weighted).sum(dim=0)
        if self.clamp == "once":
            values = values.clamp(0, 1)
        return HeatMap(text, values, self.axes, self.image_size, self.frames)

    # Files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to a safetensors file, with its provenance; see `load`.

        Raises:
            ValueError: the suffix is that of another format (.npz, .html).
        """
        return files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeatMaps:
        """Read what `save` wrote; the maps are the same to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            IsADirectoryError: it is a folder.
            ValueError: it holds no heat maps, those of a newer format, or is damaged; the message
                names the file and what is wrong.
        """
        return files.load(cls, path)

    def to_npz(self, path: str | os.PathLike[str]) -> Path:
        """Write the words' maps for NumPy: `values` (W, *axes, H, W'), `words`, `occurrences`.

        One entry a word in the order of the prompt, repeated words included; `spans` (W, 2) are
        their places in the prompt. Nothing is pickled.

        Raises:
            ValueError: the suffix is that of another format (.safetensors, .html).
        """
        with written_beside(path, ".npz") as beside, beside.open("wb") as file:
            pairs = list(self.by_word())
            values = [found.values.numpy() for _, found in pairs]
            np.savez_compressed(
                file,
                values=np.stack(values) if values else np.zeros((0,)),
                words=np.array([word.text for word, _ in pairs], dtype=np.str_),
                occurrences=np.array(self.prompt.occurrences, dtype=np.int64),
                spans=np.array([(word.start, word.end) for word, _ in pairs], dtype=np.int64),
                prompt=np.array(self.prompt.text),
                axes=np.array(self.axes, dtype=np.str_),
                provenance=np.array(json.dumps(dict(self.provenance))),
            )
        return Path(path)

    def to_coco_rle(
        self,
        threshold: Threshold = 0.4,
        size: tuple[int, int] | None = None,
        *,
        image_id: int = 1,
        first_id: int = 1,
        categories: dict[str, int] | None = None,
    ) -> list[dict[str, Any]]:
        """The words' masks as COCO annotations; needs `daam-diffusers[coco]`.

        Args:
            threshold: on the min-max normalized map, see `HeatMap.mask`.
            size: rows and columns; by default the image's.
            image_id: the image's id; of a video that of its first frame, counted on by frame.
            first_id: id of the first annotation, counted on.
            categories: ids of words; words that it lacks are added to it, so that one dictionary
                given for many images numbers a word alike in all.

        Returns:
            For each word, in the order of the prompt, and each frame of a video: `id`, `image_id`,
            `category_id`, `segmentation` (compressed run lengths), `area` and `bbox` in pixels
            (x, y, w, h), `iscrowd` 0, and besides what COCO asks for `word`, `occurrence` and, of
            a video, `frame`. pycocotools loads them in a dataset with these images, and with
            `[{"id": id, "name": word} for word, id in categories.items()]` as its categories.
        """
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise ImportError(
                'COCO run lengths need pycocotools: pip install "daam-diffusers[coco]"'
            ) from error
        categories = {} if categories is None else categories
        annotations: list[dict[str, Any]] = []
        for (word, found), occurrence in zip(self.by_word(), self.prompt.occurrences, strict=True):
            mask = found.mask(threshold, size).numpy()
            category = categories.setdefault(word.text, max(categories.values(), default=0) + 1)
            for frame, shown in enumerate(mask.reshape(-1, *mask.shape[-2:])):
                encoded = coco.encode(np.asfortranarray(shown.astype(np.uint8)))
                annotation = {
                    "id": first_id + len(annotations),
                    "image_id": image_id + frame,
                    "category_id": category,
                    "segmentation": {**encoded, "counts": encoded["counts"].decode("ascii")},
                    "area": int(coco.area(encoded)),
                    "bbox": coco.toBbox(encoded).tolist(),
                    "iscrowd": 0,
                    "word": word.text,
                    "occurrence": occurrence,
                }
                if self.frames is not None:
                    annotation["frame"] = frame
                annotations.append(annotation)
        return annotations

    def to_html(
        self, path: str | os.PathLike[str], image: Image.Image | Frames, *, fps: float = 8
    ) -> Path:
        """Write one self-contained page: point at a word, see where it was drawn.

        Needs `daam-diffusers[report]`. Where steps of an image were kept, the page has a slider.

        Args:
            path: file to write; its folder must exist.
            image: the generated image, or the video's frames.
            fps: frames a second at which a video is played, above 0.

        Raises:
            ValueError: the suffix is that of another format (.safetensors, .npz); see also
                `HeatMap.overlay`.
        """
        keep = ("step",) if self.frames is None else ()
        shown = [found.mean(keep).values.numpy() for _, found in self.by_word()]
        layers = ", ".join(sorted({f"{x.grid[0]}×{x.grid[1]}" for x in self.layers}))
        provenance = {
            **self.provenance,
            "layers": f"{len(self.layers)} ({layers})",
            "size": f"{self.size[0]}×{self.size[1]}",
        }
        with written_beside(path, ".html") as beside:
            html = report.render(
                image, self.prompt, shown, frames=self.frames, fps=fps, provenance=provenance
            )
            # Bytes: translated line ends would no longer match the hashes of the page's policy.
            beside.write_bytes(html.encode("utf-8"))
        return Path(path)

    def by_layer(self) -> Iterator[tuple[LayerInfo, HeatMaps]]:
        """Every layer with the maps that it alone has, in forward order."""
        axes = tuple(axis for axis in self.axes if axis != "layer")
        for layer in self.layers:
            calls = {name: calls for name, calls in self.calls.items() if name == layer.name}
            yield layer, replace(self, layers=(layer,), axes=axes, calls=calls, probing=None)

    def by_step(self) -> Iterator[HeatMaps]:
        """The maps of each denoising step, in order; `trace(pipe, keep=("step",))` keeps them.

        Raises:
            ValueError: steps were not kept.
        """
        if "step" not in self.axes:
            raise ValueError('steps were not kept: trace with keep=("step",)')
        axes = tuple(axis for axis in self.axes if axis != "step")
        for step in range(self.probabilities[self.layers[0].name].shape[1]):
            own = {name: values[:, step] for name, values in self.probabilities.items()}
            where = {**self.provenance, "step": str(step + 1)}
            changes: dict[str, Any] = {"probabilities": own, "axes": axes, "provenance": where}
            yield replace(self, **changes, calls={}, probing=None)

    def plot(
        self, words: str | Word | Sequence[str | Word] | None = None, steps: int = 8
    ) -> Figure:
        """Draw words × steps, each word's steps on one scale; needs `daam-diffusers[plot]`.

        Of a video the mean of its frames. `HeatMap.save(..., steps=True)` writes one word as an
        animation.

        Args:
            words: the rows, see `combine`; by default all words of the prompt.
            steps: the most columns; of more steps they are taken at equal distances, first and
                last included.

        Raises:
            ValueError: steps were not kept, or `steps` is no whole number from 1; there are no
                words.
            KeyError: a word is not in the prompt.
        """
        pyplot = import_pyplot()
        if "step" not in self.axes or not hasattr(steps, "__index__") or steps < 1:
            raise ValueError(
                'drawing steps takes a whole number from 1, and trace(pipe, keep=("step",)), got '
                f"steps={steps}, axes={self.axes}"
            )
        wanted = [words] if isinstance(words, str | Word) else self if words is None else words
        maps = [self.combine(word).mean(("step",)) for word in wanted]
        if not maps:
            raise ValueError("there is no word to draw")
        shown = np.unique(np.linspace(0, len(maps[0].values) - 1, steps).round().astype(int))
        height, width = self.size
        wide = width + -(-width // 24)  # with a gap to the next one
        # Not one of pyplot's, which would hold it open and show it twice in a notebook.
        figure: Figure = pyplot.Figure(figsize=(10, 1 + 9 * len(maps) * height / wide / len(shown)))
        axes = figure.subplots(len(maps), squeeze=False)
        for ax, one in zip(axes.flat, maps, strict=True):
            values = one.values[shown].reshape(len(shown), -1, height, width).mean(dim=1)
            values = F.pad(values, (0, wide - width), value=math.nan)
            ax.imshow(torch.cat([*values], dim=1).numpy(), cmap="inferno")
            ax.set_xticks(wide * np.arange(len(shown)) + (width - 1) / 2, shown + 1)
            ax.set_yticks([(height - 1) / 2], [one.text])
            ax.tick_params(length=0)
            ax.label_outer()
            ax.set_frame_on(False)
        axes[-1, 0].set_xlabel("step")
        figure.tight_layout()
        return figure

    def _repr_html_(self) -> str:
        """Thumbnails of the first dozen words, for notebooks: some kilobytes, no script."""
        cells = []
        for word, found in islice(self.by_word(), 12):
            heat = found.mean().normalized().values.reshape(-1, *self.size).mean(dim=0)
            picture = colors.blend(Image.new("RGB", self.size[::-1]), heat.numpy(), 1)
            picture.thumbnail((96, 96))
            cells.append(
                f'<figure style="display:inline-block;margin:4px"><img alt="" width="96" '
                f'src="{report.data_uri(picture)}"><figcaption>{escape(word.text[:40])}'
                "</figcaption></figure>"
            )
        more = len(self.prompt.words) - len(cells)
        return f"<p>{escape(repr(self))}</p><div>{''.join(cells)}</div>" + (
            f"<p>and {more} more words</p>" if more > 0 else ""
        )

    def by_word(self) -> Iterator[tuple[Word, HeatMap]]:
        """Every word with its map, in the order of the prompt, repeated words included."""
        for word in self.prompt.words:
            yield word, self._map(word.text, word.columns)
