"""Judge tinyworld: are both objects there, and do DAAM's word maps lie on them?

    python docs/examples/tinyworld/evaluate.py --captions 200
    python docs/examples/tinyworld/evaluate.py --captions 200 --seed 5000000 --refine --guide

Captions come from the held-out split, whose pairs of colored nouns no training scene shows, and
true masks from the generated image's own colors (see masks.py). An image counts as showing both
objects if both have the caption's color and are recognized as the caption's noun. Maps are judged
on the objects that are there: a color word is held against the mask of the whole object it
describes, and so is its noun.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

import card
import masks
import scenes
from daam_diffusers import HeatMaps, LayerInfo, TraceError, trace
from daam_diffusers.evaluation import iou, mean_iou, random_half, whole_image
from daam_diffusers.heat_map import Threshold
from daam_diffusers.maps import Weighting
from daam_diffusers.watch import Space

HERE = Path(__file__).resolve().parent
GUIDANCE = 3.0
STEPS = 20
# Nouns do best at low ones, color words at high ones.
THRESHOLDS: tuple[Threshold, ...] = (0.3, 0.4, 0.45, 0.475, 0.5, 0.55, 0.6, 0.65, 0.85, "otsu")
SEED = 1_000_000
"""Of the captions; training starts from small seeds. Image i starts from the noise of seed i."""

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Generated:
    """One generated image, what it was asked to show and what it shows."""

    caption: scenes.Caption
    image: Image
    maps: HeatMaps
    objects: tuple[masks.Found, masks.Found]

    @property
    def colored(self) -> bool:
        """Whether both objects are there, by color and area."""
        return all(found.present for found in self.objects)

    @property
    def right(self) -> bool:
        """Whether both objects are there and are the caption's nouns."""
        return all(
            found.noun == phrase.noun
            for found, phrase in zip(self.objects, self.caption.phrases, strict=True)
        )

    @property
    def as_told(self) -> bool:
        """Whether, besides, they lie to each other as the caption says."""
        first, second = (found.mask for found in self.objects)
        return self.right and masks.stand_as_told(self.caption.relation, first, second)


@dataclass(frozen=True)
class WordScore:
    """Mean IoU of one class of words at one threshold, beside what costs nothing to reach.

    Attributes:
        kind: "noun" or "color".
        threshold: on the min-max normalized map, or "otsu".
        words: how many words were judged.
        daam: mean IoU of the thresholded map with the word's object.
        swapped: of the same map with the other object.
        whole: of the whole image with the word's object.
        random: of a random half of the pixels with the word's object.
    """

    kind: str
    threshold: Threshold
    words: int
    daam: float
    swapped: float
    whole: float
    random: float


@dataclass(frozen=True)
class RuleScore:
    """How well the rule for masks does where the truth is known: on drawn scenes.

    Attributes:
        scenes: how many were judged.
        drawn_iou, decoded_iou: mean IoU with the exact masks, on the scene and after the scene
            went through the autoencoder.
        drawn_noun, decoded_noun: share of objects whose noun is recognized, likewise.
    """

    scenes: int
    drawn_iou: float
    decoded_iou: float
    drawn_noun: float
    decoded_noun: float


@dataclass(frozen=True)
class Report:
    """What `evaluate` measures.

    Attributes:
        captions, steps, guidance: how the images were made.
        layers: "all", "auto" or the name of the layer, or block, whose maps were judged.
        maps: how they were refined, and whether the image guided their upsampling.
        both: share of images that show both objects, color and noun right.
        both_colored: share of images that show both colors, whatever the silhouettes.
        as_told: share of images that show both objects, and in the caption's relation.
        pointing: by kind of word, how often the map's highest pixel lies on the object.
        words: one entry a kind and threshold.
        rule: how far the masks can be trusted.
    """

    captions: int
    steps: int
    guidance: float
    layers: str
    maps: str
    both: float
    both_colored: float
    as_told: float
    pointing: dict[str, float]
    words: tuple[WordScore, ...]
    rule: RuleScore


def held_out(count: int, seed: int = SEED) -> list[scenes.Caption]:
    """Captions of the held-out split, all different."""
    rng = np.random.default_rng(seed)
    captions: dict[str, scenes.Caption] = {}
    while len(captions) < count:
        caption = scenes.sample_caption(rng, "held_out")
        captions[str(caption)] = caption
    return list(captions.values())


def generate(
    pipe: DiffusionPipeline,
    captions: list[scenes.Caption],
    *,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    batch: int = 25,
    layers: Callable[[LayerInfo], bool] | None = None,
    weighting: Weighting = "equal",
    refine: bool = False,
    refined: Mapping[str, Any] = MappingProxyType({}),
    space: Space = "attention",
) -> Iterator[Generated]:
    """Generate one image a caption, traced; image i starts from the noise of seed i.

    Maps are of the layers that `trace` chooses, unless `layers` does, weighted as `HeatMaps` says,
    and with `refine` refined; `refined` are `HeatMaps.refined`'s arguments. `space` is `trace`'s.
    """
    with tqdm(total=len(captions), desc="images") as bar:
        for start in range(0, len(captions), batch):
            chunk = captions[start : start + batch]
            with trace(pipe, layers=layers, refine=refine, space=space) as tracer:
                images = pipe(
                    [str(caption) for caption in chunk],
                    guidance_scale=guidance,
                    num_inference_steps=steps,
                    generator=[torch.Generator().manual_seed(start + i) for i in range(len(chunk))],
                    output_type="np",
                ).images
            for index, (caption, values) in enumerate(zip(chunk, images, strict=True)):
                image = (values * 255).round().astype(np.uint8)
                maps = dataclasses.replace(tracer.heat_maps(image=index), weighting=weighting)
                maps = maps.refined(**refined) if refine else maps
                yield Generated(caption, image, maps, masks.find(image, caption))
            bar.update(len(chunk))


@dataclass(frozen=True)
class Judged:
    """A word's map with its object's mask and the other's, and the image if it is a guide."""

    kind: str
    word: str
    maps: HeatMaps
    own: Mask
    other: Mask
    guide: PIL.Image.Image | None = None

    def mask(self, threshold: Threshold) -> Mask:
        heat = self.maps[self.word]
        found: Mask = heat.mask(threshold, self.own.shape, guide=self.guide).numpy()
        return found

    def points(self) -> bool:
        """Whether the map's highest pixel lies on the object."""
        values = self.maps[self.word].upscale(self.own.shape, guide=self.guide).values
        return bool(self.own.flat[int(values.argmax())])


def picture(image: Image) -> PIL.Image.Image:
    """(H, W, 3) uint8 as PIL has it."""
    return PIL.Image.fromarray(image)


def judged(images: list[Generated], *, any_noun: bool = False, guide: bool = False) -> list[Judged]:
    """The nouns and color words of the images that show both objects, or both colors at least."""
    found = []
    for made in images:
        if not (made.colored if any_noun else made.right):
            continue
        seen = picture(made.image) if guide else None
        for which in (0, 1):
            noun = made.caption.noun_index(which)
            own, other = made.objects[which].mask, made.objects[1 - which].mask
            for kind, index in (("noun", noun), ("color", noun - 1)):
                found.append(Judged(kind, made.caption.words[index], made.maps, own, other, seen))
    return found


def _word_score(words: list[Judged], kind: str, threshold: Threshold) -> WordScore:
    of_kind = [word for word in words if word.kind == kind]
    shape = of_kind[0].own.shape
    rng = np.random.default_rng(SEED)
    found = [word.mask(threshold) for word in of_kind]
    return WordScore(
        kind=kind,
        threshold=threshold,
        words=len(of_kind),
        daam=mean_iou((mask, word.own) for mask, word in zip(found, of_kind, strict=True)),
        swapped=mean_iou((mask, word.other) for mask, word in zip(found, of_kind, strict=True)),
        whole=mean_iou((whole_image(shape), word.own) for word in of_kind),
        random=mean_iou((random_half(shape, rng), word.own) for word in of_kind),
    )


def rule_accuracy(vae: AutoencoderKL, count: int = 200) -> RuleScore:
    """Judge masks.py on held-out scenes, as drawn and as the autoencoder returns them."""
    drawn = list(islice(scenes.stream(SEED, "held_out"), count))
    pixels = torch.from_numpy(np.stack([scene.image for scene in drawn])).permute(0, 3, 1, 2)
    with torch.no_grad():
        latents = vae.encode(pixels.to(vae.dtype) / 127.5 - 1).latent_dist.mean
        decoded = vae.decode(latents).sample.float().clamp(-1, 1)
    returned = ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    scores = []
    for images in ([scene.image for scene in drawn], list(returned)):
        ious, nouns = [], []
        for image, scene in zip(images, drawn, strict=True):
            found = masks.find(image, scene.caption)
            for one, mask, phrase in zip(
                found, scene.object_masks, scene.caption.phrases, strict=True
            ):
                ious.append(iou(one.mask, mask))
                nouns.append(one.noun == phrase.noun)
        scores.append((float(np.mean(ious)), float(np.mean(nouns))))
    return RuleScore(count, scores[0][0], scores[1][0], scores[0][1], scores[1][1])


def evaluate(
    pipe: DiffusionPipeline,
    *,
    captions: int = 200,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    batch: int = 25,
    seed: int = SEED,
    any_noun: bool = False,
    layers: str = "all",
    refine: bool = False,
    refined: Mapping[str, Any] = MappingProxyType({}),
    guide: bool = False,
) -> Report:
    """Generate, segment and judge.

    Maps are the plain mean of all layers that `trace` chooses, their mean weighted by information
    with `layers="auto"`, or those of the layer, or the block, that `layers` names. They are refined
    with `refine`, and the image guides their upsampling with `guide`.

    With `any_noun`, maps are also judged on images whose objects have the right colors but not
    the right nouns: there a noun is held against what was drawn in its place.

    Raises:
        ValueError: if no image shows both objects, so that there is nothing to judge maps on.
    """
    chosen = held_out(captions, seed)
    made = list(
        generate(
            pipe,
            chosen,
            guidance=guidance,
            steps=steps,
            batch=batch,
            layers=None if layers in _LAYERS else lambda x: layers in (x.name, x.block),
            weighting="information" if layers == "auto" else "equal",
            refine=refine,
            refined=refined,
        )
    )
    words = judged(made, any_noun=any_noun, guide=guide)
    if not words:
        raise ValueError(
            f"none of {captions} images shows both objects: no map can be judged. Is the model "
            "trained? Look at some of its images."
        )
    kinds = ("noun", "color")
    return Report(
        captions=captions,
        steps=steps,
        guidance=guidance,
        layers=layers,
        maps=made[0].maps.provenance.get("refined", "") + ", guided by the image" * guide,
        both=float(np.mean([image.right for image in made])),
        both_colored=float(np.mean([image.colored for image in made])),
        as_told=float(np.mean([image.as_told for image in made])),
        pointing={
            kind: float(np.mean([word.points() for word in words if word.kind == kind]))
            for kind in kinds
        },
        words=tuple(
            _word_score(words, kind, threshold) for kind in kinds for threshold in THRESHOLDS
        ),
        rule=rule_accuracy(pipe.vae),
    )


_LAYERS = {
    "all": "Maps are the plain mean of the layers'.",
    "auto": 'Maps are means weighted by information, `heat_maps(layers="auto")`.',
}
_COLUMNS = ("words", "threshold", "DAAM", "whole image", "random half", "swapped")


def _rows(report: Report) -> list[tuple[str, ...]]:
    """Cells of the table of scores, in the order of `_COLUMNS`."""
    return [
        (
            f"{score.kind} ({score.words})",
            f"{score.threshold}",
            f"{score.daam:.3f}",
            f"{score.whole:.3f}",
            f"{score.random:.3f}",
            f"{score.swapped:.3f}",
        )
        for score in report.words
    ]


def _sentences(report: Report) -> list[str]:
    """What the table does not say."""
    rule, pointing = report.rule, report.pointing
    accuracy = (
        f"The rule for true masks, on {rule.scenes} drawn scenes: mean IoU {rule.drawn_iou:.3f}, "
        f"noun recognized {rule.drawn_noun:.1%}; on what the autoencoder makes of them "
        f"{rule.decoded_iou:.3f} and {rule.decoded_noun:.1%}."
    )
    points = (
        f"Highest pixel of a map on its object: noun {pointing['noun']:.1%}, "
        f"color {pointing['color']:.1%}."
    )
    return [
        f"{report.captions} held-out captions, {report.steps} steps, guidance {report.guidance:g}.",
        _LAYERS.get(report.layers, f"Maps are of the layer {report.layers} alone."),
        *([f"They are refined: {report.maps.strip(', ')}."] if report.maps else []),
        f"Both objects present, with the right colors and nouns: {report.both:.1%} of the images.",
        f"Besides, in the relation that the caption states: {report.as_told:.1%}.",
        f"Both colors present, whatever the nouns: {report.both_colored:.1%} of the images.",
        points,
        accuracy,
    ]


def to_markdown(report: Report) -> str:
    """The report as the model card shows it."""
    lines = [f"- {sentence}" for sentence in _sentences(report)]
    lines += ["", f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(report)]
    return "\n".join(lines)


def print_report(report: Report, console: Console) -> None:
    """Show the report on a terminal."""
    table = Table(*_COLUMNS, title="mean IoU with the word's object")
    for row in _rows(report):
        table.add_row(*row)
    for sentence in _sentences(report):
        console.print(sentence)
    console.print(table)


def load(model: Path) -> DiffusionPipeline:
    """The pipeline in single precision, silent.

    Raises:
        FileNotFoundError: if the folder holds no pipeline.
    """
    if not (model / "model_index.json").exists():
        raise FileNotFoundError(f"{model} holds no model_index.json; train one with train.py.")
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(arguments: list[str] | None = None) -> None:
    """Evaluate a model folder from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--seed", type=int, default=SEED, help="of the captions")
    parser.add_argument(
        "--layers",
        default="all",
        help="judged: all, auto, a block, or one, named as layers.py does",
    )
    parser.add_argument(
        "--any-noun", action="store_true", help="judge maps where the nouns are wrong, too"
    )
    parser.add_argument("--refine", action="store_true", help="spread maps by self-attention")
    parser.add_argument("--power", type=float, help="with --refine; see HeatMaps.refined")
    parser.add_argument("--passes", type=int, help="likewise")
    parser.add_argument("--guide", action="store_true", help="upsample along the image's edges")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--card", action="store_true", help="put the scores into the model's card")
    options = parser.parse_args(arguments)
    try:
        report = evaluate(
            load(options.model),
            captions=options.captions,
            guidance=options.guidance,
            steps=options.steps,
            batch=options.batch,
            seed=options.seed,
            any_noun=options.any_noun,
            layers=options.layers,
            refine=options.refine,
            refined={
                name: value
                for name in ("power", "passes")
                if (value := getattr(options, name)) is not None
            },
            guide=options.guide,
        )
    except TraceError as error:
        parser.error(f"--layers {options.layers}: {error}; layers.py shows what they are called.")
    print_report(report, Console())
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    if options.card:
        card.write_scores(options.model, to_markdown(report))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
