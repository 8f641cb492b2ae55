"""`HeatMaps`: the maps of all words of one image, by word."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from daam_diffusers import files, report
from daam_diffusers.families import LayerInfo
from daam_diffusers.heat_map import HeatMap
from daam_diffusers.prompt import Prompt, Token, Word
from daam_diffusers.upsample import average_layers, resize

Clamp = Literal["once", "per_map"]


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
            fewer than others.
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

    def __post_init__(self) -> None:
        if self.clamp not in ("once", "per_map"):
            raise ValueError(f'clamp must be "once" or "per_map", got {self.clamp!r}')
        heads = {layer.heads for layer in self.layers}
        if "head" in self.axes and len(heads) > 1:
            raise ValueError(
                f"heads are kept, and the layers have different numbers of them, {sorted(heads)}; "
                "choose layers that agree: heat_maps(layers=lambda layer: layer.heads == …)"
            )

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
            text: as in the prompt, but for case and white space: `"dog"`, `"red car"`.
            occurrence: which place where it stands, from 0.

        Raises:
            KeyError: it is not in the prompt; the message names the words that are.
        """
        found = self.prompt.find(text, occurrence)
        return self._map(found.text, found.columns)

    def token(self, index: int) -> HeatMap:
        """The map of one of `tokens`, by its index there."""
        token = self.tokens[index]
        return self._map(token.text, (token.column,))

    def column(self, column: int) -> HeatMap:
        """The map of one column of the text embeddings, e.g. 0 for CLIP's start token.

        Raises:
            KeyError: the column belongs to the padding, which is kept as a sum only.
        """
        if column not in self.columns:
            raise KeyError(f"column {column} was not kept apart; kept: {list(self.columns)}")
        return self._map(f"[{column}]", (column,))

    def special(self) -> HeatMap:
        """What falls to no word: the sum over start and end tokens and padding."""
        own = {token.column for token in self.tokens}
        rows = [i for i, column in enumerate(self.columns) if column not in own]
        return self._heat_map("[special]", [*rows, len(self.columns)], total=True)

    def _map(self, text: str, columns: Sequence[int]) -> HeatMap:
        index = {column: i for i, column in enumerate(self.columns)}
        return self._heat_map(text, [index[column] for column in columns])

    def _heat_map(self, text: str, rows: Sequence[int], *, total: bool = False) -> HeatMap:
        maps = [self.probabilities[layer.name][list(rows)] for layer in self.layers]
        if self.clamp == "per_map":
            maps = [resize(m, self.size).clamp_min(0) for m in maps]
        # Tokens first: (R, [S,] [heads,] h, w) → ([S,] [heads,] h, w), a layer.
        maps = [m.sum(dim=0) if total else m.mean(dim=0) for m in maps]
        if "layer" in self.axes:
            values = torch.stack([resize(m, self.size) for m in maps])
            values = values.movedim(0, 1) if "step" in self.axes else values
        else:
            values = average_layers(maps, self.size)
        if self.clamp == "once":
            values = values.clamp(0, 1)
        return HeatMap(text, values, self.axes, self.image_size)

    # Files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to a safetensors file, with its provenance; see `load`."""
        return files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeatMaps:
        """Read what `save` wrote; the maps are the same to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no heat maps, or those of a newer format.
        """
        return files.load(path)

    def to_npz(self, path: str | os.PathLike[str]) -> Path:
        """Write the words' maps for NumPy: `values` (W, *axes, H, W'), `words`, `spans` (W, 2).

        One entry a word in the order of the prompt, repeated words included.
        """
        return files.to_npz(self, path)

    def to_coco_rle(
        self, threshold: float = 0.4, size: tuple[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """The words' masks as COCO annotations; needs `daam-diffusers[coco]`.

        Args:
            threshold: on the min-max normalised map, see `HeatMap.mask`.
            size: rows and columns; by default the image's.

        Returns:
            For each word, in the order of the prompt: `id` from 1, `word`, `occurrence`,
            `segmentation` (compressed run lengths), `area` and `bbox` in pixels (x, y, w, h).
        """
        return files.to_coco_rle(self, threshold, size)

    def to_html(self, path: str | os.PathLike[str], image: Image.Image) -> Path:
        """Write one self-contained page: point at a word, see where it was drawn.

        Needs `daam-diffusers[report]`.

        Args:
            path: file to write; its folder must exist.
            image: the generated image.
        """
        words = [
            report.ReportWord(
                word.text, word.start, word.end, found.mean().values.numpy().astype("float32")
            )
            for word, found in self.by_word()
        ]
        layers = ", ".join(sorted({f"{x.grid[0]}×{x.grid[1]}" for x in self.layers}))
        provenance = {
            **self.provenance,
            "layers": f"{len(self.layers)} ({layers})",
            "size": f"{self.size[0]}×{self.size[1]}",
        }
        html = report.render(image, self.prompt.text, words, provenance=provenance)
        return report.write(path, html)

    def by_word(self) -> Iterator[tuple[Word, HeatMap]]:
        """Every word with its map, in the order of the prompt, repeated words included."""
        for word in self.prompt.words:
            yield word, self._map(word.text, word.columns)
