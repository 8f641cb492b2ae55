"""What sharpens tinyworld's maps, one ingredient at a time.

    python docs/examples/tinyworld/refine.py --captions 200

Both models draw held-out captions that no other evaluation uses; words and self-attention are kept
by layer and by quarter of the steps in `--cache`, so that another table takes a minute. Each row of
the table changes one thing about the first row of its model. `evaluate.py --refine` judges what was
chosen here on captions of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm.auto import tqdm

import evaluate
import masks
import nouns
import scenes
from daam_diffusers import HeatMap, trace
from daam_diffusers.evaluation import iou
from daam_diffusers.upsample import resize, spread

SEED = 4_000_000
THRESHOLDS = tuple(round(0.2 + 0.025 * n, 3) for n in range(28))
SIDE, WINDOWS = 16, 4
CONTENT = {*scenes.COLORS, *nouns.DRAWINGS, *nouns.PLURALS.values(), *scenes.RADII}


class Recorder(TorchFunctionMode):
    """Self-attention of the prompt's rows by layer and window of steps, heads averaged.

    Apart from the package, which keeps one mean: sums are (B, cells, cells), and of a joint
    sequence, which begins with the cells, the image's block, rows divided by their sums.
    """

    def __init__(self, denoiser: torch.nn.Module, steps: int) -> None:
        super().__init__()
        self.sums: dict[tuple[int, int], Tensor] = {}
        self._steps, self._call, self._layer = steps, -1, 0
        denoiser.register_forward_pre_hook(self._begin)

    def _begin(self, *_: Any) -> None:
        self._call, self._layer = self._call + 1, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].shape[2] == args[1].shape[2]:
            query, key = (x[len(x) // 2 :] for x in args[:2])  # negative first
            cells = SIDE**2 if query.shape[2] >= SIDE**2 else query.shape[2]
            scores = query[:, :, :cells] @ key[:, :, :cells].mT * query.shape[-1] ** -0.5
            at = (self._layer, self._call * WINDOWS // self._steps)
            self.sums[at] = self.sums.get(at, 0) + scores.softmax(-1).mean(1)
            self._layer += 1
        return func(*args, **(kwargs or {}))


def record(model: Path, captions: int, cache: Path, batch: int = 25) -> None:
    """Generate, and write one file an image that is not there yet."""
    cache.mkdir(parents=True, exist_ok=True)
    pipe, chosen = evaluate.load(model), evaluate.held_out(captions, SEED)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    for start in tqdm(range(0, captions, batch), desc=model.name):
        chunk = chosen[start : start + batch]
        if all((cache / f"{start + i}.npz").exists() for i in range(len(chunk))):
            continue
        recorder = Recorder(denoiser, evaluate.STEPS)
        with trace(pipe, keep=("step",)) as tracer, recorder:
            images = pipe(
                [str(caption) for caption in chunk],
                guidance_scale=evaluate.GUIDANCE,
                num_inference_steps=evaluate.STEPS,
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(chunk))],
                output_type="np",
            ).images
        for i, (caption, values) in enumerate(zip(chunk, images, strict=True)):
            image, maps = (values * 255).round().astype(np.uint8), tracer.heat_maps(image=i)
            found = masks.find(image, caption)
            layers = [
                resize(maps.probabilities[x.name].unflatten(1, (WINDOWS, -1)).mean(2), (SIDE, SIDE))
                for x in maps.layers
            ]
            rows = [[maps.columns.index(c) for c in word.columns] for word in maps.prompt.words]
            words = torch.stack([torch.stack([x[row].mean(0) for x in layers]) for row in rows])
            by_size: dict[str, list[Tensor]] = {}
            for layer in range(1 + max(layer for layer, _ in recorder.sums)):
                windows = [recorder.sums[layer, window][i] for window in range(WINDOWS)]
                kept = torch.stack(windows) * WINDOWS / evaluate.STEPS
                by_size.setdefault(f"S{kept.shape[-1]}", []).append(kept.half())
            np.savez(
                cache / f"{start + i}.npz",
                maps=words.numpy(),
                texts=np.array([word.text for word in maps.prompt.words]),
                nouns=np.array([caption.noun_index(which) for which in (0, 1)]),
                layers=np.array([f"{x.name} {x.block} {x.grid}" for x in maps.layers]),
                image=image,
                masks=np.stack([one.mask for one in found]),
                right=evaluate.Generated(caption, image, maps, found).right,
                **{name: torch.stack(kept).numpy() for name, kept in by_size.items()},
            )


@dataclass(frozen=True)
class Recipe:
    """How a map is made; layers and windows by number, None for all.

    Attributes:
        layers, windows: of the words' attention.
        alike, when: of the self-attention.
        size: its cells, 256 or, of the UNet's lower level, 64.
        power, passes: see `HeatMaps.refined`; 0 passes leave maps as they are.
        rescaled: divided by the sum over the content words.
        argmax: where the other word of its kind is higher, a word has nothing.
        guide: whether the image guides the upsampling.
    """

    layers: tuple[int, ...] | None = None
    windows: tuple[int, ...] | None = None
    alike: tuple[int, ...] | None = None
    when: tuple[int, ...] | None = None
    size: int = 256
    power: float = 3
    passes: int = 1
    rescaled: bool = False
    argmax: bool = False
    guide: bool = False

    def maps(self, image: dict[str, Any]) -> Tensor:
        """(W, 16, 16)."""
        maps = _mean(image["maps"].movedim(0, 2), self.layers, self.windows)
        if self.passes:
            alike = _mean(image[f"S{self.size}"], self.alike, self.when)
            alike = alike.view(self.size, int(self.size**0.5), -1)
            maps = resize(spread(maps, alike, power=self.power, passes=self.passes), (SIDE, SIDE))
        if self.rescaled:
            content = [i for i, word in enumerate(image["texts"]) if word in CONTENT]
            maps = maps / maps[content].sum(0).clamp(min=1e-9)
        return maps


def _mean(values: Tensor, layers: Sequence[int] | None, windows: Sequence[int] | None) -> Tensor:
    """(layers, windows, ...) → (...)."""
    values = values if layers is None else values[list(layers)]
    return (values if windows is None else values[:, list(windows)]).mean((0, 1))


def recipes(model: str) -> dict[str, Recipe]:
    """By name; the first is changed in one thing by all others, but for the plain ones."""
    unet = model == "model"
    base = Recipe(power=3 if unet else 1)
    found = {f"power {base.power:g}, 1 pass": base}
    found["plain"] = plain = replace(base, passes=0)
    for passes, power in ((1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (3, 4)):
        one = replace(base, passes=passes, power=power)
        if one != base:
            found[f"power {power}, {passes} pass{'es' * (passes > 1)}"] = one
    groups: dict[str, tuple[int, ...]] = {f"layer {n}": (n,) for n in range(6)}
    if unet:
        groups = {"16×16": (0, 4, 5), "8×8": (1, 2, 3), "down": (0, 1), "up": (2, 3, 4, 5)}
    alike = {"down": (0,), "up": (1, 2)} if unet else groups
    found |= {f"plain, words of {name}": replace(plain, layers=x) for name, x in groups.items()}
    found |= {f"words of {name}": replace(base, layers=x) for name, x in groups.items()}
    found |= {f"self-attention of {name}": replace(base, alike=x) for name, x in alike.items()}
    if unet:
        found["words of up, power 2"] = up = replace(base, layers=groups["up"], power=2)
        found["words of up, power 2, guided"] = replace(up, guide=True)
        found["self-attention at 8×8"] = replace(base, size=64)
    for number in range(WINDOWS):
        found[f"words of quarter {number + 1}"] = replace(base, windows=(number,))
        found[f"self-attention of quarter {number + 1}"] = replace(base, when=(number,))
    for name, one in (("plain", plain), ("refined", base)):
        found[f"{name}, over content words"] = replace(one, rescaled=True)
        found[f"{name}, argmax"] = replace(one, argmax=True)
        found[f"{name}, guided"] = replace(one, guide=True)
        best = replace(one, layers=(2, 3, 4, 5) if unet else (3,))
        found[f"{name}, {'up' if unet else 'layer 3'}, guided"] = replace(best, guide=True)
    return found


def judge(images: list[dict[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """Mean IoU by kind of word and threshold, Otsu's with them, and the pointing game."""
    scores: dict[str, list[list[float]]] = {"noun": [], "color": []}
    points: dict[str, list[bool]] = {"noun": [], "color": []}
    for image in images:
        maps = recipe.maps(image)
        guide = evaluate.picture(image["image"]) if recipe.guide else None
        shape = image["masks"].shape[1:]
        for kind, offset in (("noun", 0), ("color", 1)):
            pair = torch.stack(
                [
                    HeatMap("", maps[int(noun) - offset].clamp(0, 1), (), shape)
                    .upscale(guide=guide)
                    .normalized()
                    .values
                    for noun in image["nouns"]
                ]
            )
            top = pair.amax(0)
            for values, own in zip(pair, image["masks"], strict=True):
                shown = torch.where(values >= top, values, 0) if recipe.argmax else values
                heat = HeatMap("", shown, (), shape)
                of = [heat.mask(t).numpy() for t in (*THRESHOLDS, "otsu")]
                scores[kind].append([iou(mask, own) for mask in of])
                points[kind].append(bool(own.flat[int(shown.argmax())]))
    noun, color = (np.mean(scores[kind], 0) for kind in ("noun", "color"))
    best = int(np.minimum(noun, color)[:-1].argmax())
    named = {
        kind: {str(t): round(float(x), 4) for t, x in zip((*THRESHOLDS, "otsu"), of, strict=True)}
        for kind, of in (("noun", noun), ("color", color))
    }
    pointing = {kind: round(float(np.mean(hits)), 4) for kind, hits in points.items()}
    return {"threshold": THRESHOLDS[best], **named, "pointing": pointing}


def read(cache: Path, captions: int) -> Iterator[dict[str, Any]]:
    """The images that show both objects."""
    for number in range(captions):
        with np.load(cache / f"{number}.npz") as file:
            if file["right"]:
                yield {
                    name: torch.from_numpy(x).float() if x.dtype.kind == "f" else x
                    for name, x in file.items()
                }


def cells(name: str, found: dict[str, Any]) -> list[str]:
    """A row: the threshold at which the worse kind does best, and nouns / color words."""
    pairs = [
        (found["noun"][at], found["color"][at]) for at in ("0.4", str(found["threshold"]), "otsu")
    ]
    shown = [f"{noun:.3f} / {color:.3f}" for noun, color in pairs]
    points = "{noun:.1%} / {color:.1%}".format(**found["pointing"])
    return [name, shown[0], f"{found['threshold']}", *shown[1:], points]


MARK = "<!-- tables -->"
COLUMNS = ("what", "at 0.4", "best at", "there", "Otsu", "pointing")


def main(arguments: list[str] | None = None) -> None:
    """Print the table of each model, and write all scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=["model", "model-transformer"])
    parser.add_argument("--cache", type=Path, default=Path("runs/refine"))
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--page", type=Path, help="whose tables to replace, refine.md")
    options = parser.parse_args(arguments)
    pages: list[str] = []
    report: dict[str, Any] = {"captions": options.captions, "seed": SEED, "models": {}}
    for model in options.models:
        record(evaluate.HERE / model, options.captions, options.cache / model)
        images = list(read(options.cache / model, options.captions))
        named = tqdm(recipes(model).items(), desc=model)
        found = {name: judge(images, recipe) for name, recipe in named}
        report["models"][model] = {"images": len(images), "recipes": found}
        rows = [cells(name, one) for name, one in found.items()]
        table = Table(*COLUMNS, title=f"{model}, {len(images)} images: nouns / color words")
        for row in rows:
            table.add_row(*row)
        Console(width=120).print(table)
        lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
        pages += [f"`{model}`, {len(images)} images with both objects:", ""]
        pages += [*(f"| {' | '.join(line)} |" for line in lines), ""]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report) + "\n")
    if options.page:
        text = options.page.read_text(encoding="utf-8").partition(MARK)[0]
        options.page.write_text("\n".join([f"{text}{MARK}\n", *pages]), encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
