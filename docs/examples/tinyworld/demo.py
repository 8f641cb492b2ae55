"""`make demo`: draw a caption, show which words drew which pixels, and judge it.

The image, its overlays and its report come from the command line of daam_diffusers, as any
pipeline's would; the true masks come from the image's colors by the rule of masks.py.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import masks
import nouns
import scenes
from daam_diffusers import HeatMaps
from daam_diffusers.cli import main as daam_diffusers
from evaluate import GUIDANCE, STEPS

MODEL = Path(__file__).with_name("model")
CAPTION = "a red house left of a green tree at night"
THRESHOLD = 0.475  # as in the model's card

_SINGULAR = {plural: noun for noun, plural in nouns.PLURALS.items()}
_PHRASE = (
    rf"(an?|the|one|two) (?:({'|'.join(filter(None, scenes.RADII))}) )?"
    rf"({'|'.join(scenes.COLORS)}) ({'|'.join([*nouns.DRAWINGS, *_SINGULAR])})"
)
_CAPTION = re.compile(
    rf"{_PHRASE} ({'|'.join(scenes.RELATIONS)}) {_PHRASE}"
    rf"(?: ({'|'.join(filter(None, scenes.PLACES))}))?"
)


def parse(text: str) -> scenes.Caption:
    """Read a caption of tinyworld.

    Raises:
        ValueError: it is none; the message gives the form and the words there are.
    """
    read = _CAPTION.fullmatch(" ".join(text.lower().rstrip(". ").split()))
    if read is None:
        raise ValueError(
            f"{text!r} is no tinyworld caption. One is e.g. {CAPTION!r}: "
            f"a|the|one|two [small|big] COLOR NOUN RELATION, the same again, and a place or none. "
            f"Colors: {', '.join(scenes.COLORS)}; nouns: {', '.join(nouns.DRAWINGS)}; relations: "
            f"{', '.join(scenes.RELATIONS)}; places: {', '.join(filter(None, scenes.PLACES))}."
        )
    words = read.groups("")
    caption = scenes.Caption(_phrase(words[:4]), words[4], _phrase(words[5:9]), words[9])
    if caption.first.color == caption.second.color or caption.first.noun == caption.second.noun:
        raise ValueError(f"{text!r}: the two objects must differ in noun and in color.")
    return caption


def _phrase(words: Sequence[str]) -> scenes.Phrase:
    determiner, size, color, noun = words
    if (determiner == "two") != (noun in _SINGULAR):
        raise ValueError(f"{determiner} {noun}: 'two' goes with a plural, all others do not.")
    article = "a" if determiner == "an" else determiner
    return scenes.Phrase(article, size, color, _SINGULAR.get(noun, noun))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="default: the UNet")
    parser.add_argument("--caption", default=CAPTION, help=f"default: {CAPTION!r}")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        caption = parse(options.caption)
    except ValueError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2

    code = daam_diffusers(
        [
            *("generate", "--model", str(options.model), "--prompt", str(caption)),
            *("--out", str(options.out), "--seed", str(options.seed)),
            *("--steps", str(STEPS), "--guidance-scale", str(GUIDANCE)),
        ]
    )
    if code:
        return code

    with Image.open(options.out / "image.png") as picture:
        image = np.asarray(picture)
    maps = HeatMaps.load(options.out / "heat_maps.safetensors")
    console = Console()
    table = Table("noun", f"IoU at threshold {THRESHOLD}", "drawn as")
    for which, found in enumerate(masks.find(image, caption)):
        noun = caption.words[caption.noun_index(which)]
        if found.present:
            score = maps[noun].iou(found.mask, THRESHOLD)
            table.add_row(noun, f"{score:.3f}", found.noun)
        else:
            table.add_row(noun, "not drawn", "")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
