"""The README's figure: one generated image, and the overlay of each word that draws something.

    python docs/examples/tinyworld/figure.py out/demo docs/figures/tinyworld.png

reads what `make demo` wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from PIL import Image

import nouns
import scenes
from daam_diffusers import HeatMaps

_SCALE = 4  # pixels of the figure a pixel of the image, before the overlay is drawn


def words_to_show(maps: HeatMaps) -> list[str]:
    """Colors, nouns and places, in the order of the prompt."""
    drawn = {*scenes.COLORS, *nouns.DRAWINGS, *nouns.PLURALS.values(), "night", "dusk", "fog"}
    return [word for word in maps if word in drawn]


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `make demo` or `generate` wrote")
    parser.add_argument("figure", type=Path, help="PNG to write")
    options = parser.parse_args()
    maps = HeatMaps.load(options.folder / "heat_maps.safetensors")
    with Image.open(options.folder / "image.png") as small:
        image = small.convert("RGB").resize(
            (small.width * _SCALE, small.height * _SCALE), Image.Resampling.BICUBIC
        )
    words = words_to_show(maps)
    columns = 1 + len(words)
    figure, axes = plt.subplots(1, columns, figsize=(1.7 * columns, 2.0), layout="constrained")
    pictures = [("image", image), *((word, maps[word].overlay(image)) for word in words)]
    for ax, (title, picture) in zip(axes, pictures, strict=True):
        ax.imshow(picture)
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=120, bbox_inches="tight", pad_inches=0.05)


if __name__ == "__main__":
    main()
