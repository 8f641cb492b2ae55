"""The README's figure: a generated image, and its words' overlays plain, refined, and guided.

    python docs/examples/tinyworld/figure.py docs/figures/tinyworld.png

The caption and the seed are those of `make demo`. A guided map follows the edges of the image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch
from PIL import Image

import demo
import evaluate
import nouns
import scenes
from daam_diffusers import HeatMaps, trace

_SCALE = 4  # pixels of the figure a pixel of the image, before the overlay is drawn


def words_to_show(maps: HeatMaps) -> list[str]:
    """Colors, nouns and places, in the order of the prompt."""
    drawn = {*scenes.COLORS, *nouns.DRAWINGS, *nouns.PLURALS.values(), "night", "dusk", "fog"}
    return [word for word in maps if word in drawn]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", type=Path, help="PNG to write")
    parser.add_argument("--steps", type=int, default=evaluate.STEPS)
    options = parser.parse_args(arguments)
    pipe = evaluate.load(demo.MODEL)
    with trace(pipe, refine=True) as tracer:
        small = pipe(
            demo.CAPTION,
            num_inference_steps=options.steps,
            guidance_scale=evaluate.GUIDANCE,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    size = (small.width * _SCALE, small.height * _SCALE)
    image = small.resize(size, Image.Resampling.BICUBIC)
    plain = tracer.heat_maps()
    refined = plain.refined()
    words = words_to_show(plain)
    rows = {
        "plain": [plain[word].overlay(image) for word in words],
        "refined": [refined[word].overlay(image) for word in words],
        "guided": [refined[word].upscale(guide=small).overlay(image) for word in words],
    }
    columns = 1 + len(words)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.7 * columns, 5.4), layout="constrained"
    )
    for ax in axes.flat:
        ax.set_axis_off()
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image", fontsize=11)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, word, picture in zip(row[1:], words, pictures, strict=True):
            ax.imshow(picture)
            ax.set_title(f"{word}, {name}", fontsize=10)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=100, bbox_inches="tight", pad_inches=0.05)


if __name__ == "__main__":
    main()
