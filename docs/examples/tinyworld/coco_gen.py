"""A COCO-Gen of tinyworld, made and judged by the command line of daam_diffusers.

    python docs/examples/tinyworld/coco_gen.py --captions 200 --seed 5000000
    python docs/examples/tinyworld/coco_gen.py --captions 200 --seed 5000000 --refined

`daam-diffusers generate` draws held-out captions; masks.py finds the objects by their colors, and
images that show both have a mask for each noun and color word; `daam-diffusers evaluate` judges
the maps. It goes on where it was stopped, and `accelerate launch` shares the drawing out. What
evaluate.py judges are the same images, but for rounding: it draws in batches.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import evaluate
import masks
import scenes
from daam_diffusers.cli import main as daam_diffusers

THRESHOLDS = ("0.3", "0.4", "0.475", "0.5", "otsu")


def write_masks(folder: Path, caption: scenes.Caption) -> list[tuple[str, str]]:
    """Write masks beside an image that shows what its caption says; the words and their kinds."""
    with Image.open(folder / "image.png") as picture:
        image = np.asarray(picture.convert("RGB"))
    found = masks.find(image, caption)
    if [one.noun for one in found] != [phrase.noun for phrase in caption.phrases]:
        return []
    kinds = []
    for which, one in enumerate(found):
        noun = caption.noun_index(which)
        for kind, index in (("noun", noun), ("color", noun - 1)):
            alpha = Image.fromarray(np.where(one.mask, 255, 0).astype(np.uint8))
            cut = Image.fromarray(image).convert("RGBA")
            cut.putalpha(alpha)
            cut.save(folder / f"{caption.words[index]}.gt.png")
            kinds.append((caption.words[index], kind))
    return kinds


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the set and judge it; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=evaluate.HERE / "model")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=evaluate.SEED, help="of the captions")
    parser.add_argument("--steps", type=int, default=evaluate.STEPS)
    parser.add_argument("--out", type=Path, default=Path("out/coco-gen"))
    parser.add_argument("--refined", action="store_true", help="judge refined maps")
    options = parser.parse_args(arguments)
    captions = evaluate.held_out(options.captions, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    prompts = options.out / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": str(x)}) + "\n" for x in captions))
    code = daam_diffusers(
        [
            *("generate", "--model", str(options.model), "--prompts", str(prompts)),
            *("--out", str(options.out), "--steps", str(options.steps), "--refine"),
            *("--guidance-scale", str(evaluate.GUIDANCE)),
        ]
    )
    if code:
        return code
    kinds: dict[tuple[str, str], str] = {}
    for number, caption in enumerate(captions):
        name = f"{number:06d}"
        kinds |= {(name, word): kind for word, kind in write_masks(options.out / name, caption)}
    scores = options.out / ("refined.json" if options.refined else "scores.json")
    asked = [item for threshold in THRESHOLDS for item in ("--threshold", threshold)]
    files = ["--out", str(scores), "--out", str(scores.with_suffix(".csv"))]
    refined = ["--refined"] * options.refined
    code = daam_diffusers(["evaluate", str(options.out), *asked, *files, *refined])
    if code:
        return code
    words = json.loads(scores.read_text(encoding="utf-8"))["words"]
    table = Table("mIoU of", *THRESHOLDS)
    for kind in ("noun", "color"):
        of = [word for word in words if kinds[word["image"], word["word"]] == kind]
        table.add_row(
            f"{kind}s ({len(of)})", *(f"{np.mean([x[t] for x in of]):.3f}" for t in THRESHOLDS)
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
