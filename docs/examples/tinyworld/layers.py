"""Which layers of a denoiser say where a word was drawn? By true masks, and by rules without them.

    python docs/examples/tinyworld/layers.py --model docs/examples/tinyworld/model-transformer

Every layer is traced. Each is judged alone as `evaluate.py` judges, then the plain mean of all,
then means weighted by a rule that sees nothing but the attention of the prompt's own words:

- concentration: how far, on average, a word's attention is from being the same in all cells, as
  a divergence in nats;
- information: the mutual information of word and cell in nats, which is 0 where all words attend
  to the same cells, however few; `heat_maps(layers="auto")` weights by it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import evaluate
from daam_diffusers import HeatMap, HeatMaps
from daam_diffusers.evaluation import mean_iou
from daam_diffusers.upsample import information, resize
from daam_diffusers.watch import Space

Rule = Callable[[Tensor], float]


def concentration(attention: Tensor) -> float:
    """Mean divergence of the words' maps from a uniform one: (C, h, w) -> nats."""
    maps = attention.flatten(1)
    shares = maps / maps.sum(1, keepdim=True)
    return float(torch.special.xlogy(shares, shares * shares.shape[1]).sum(1).mean())


RULES: Mapping[str, Rule] = {"concentration": concentration, "information": information}


@dataclass(frozen=True)
class Score:
    """Mean IoU of one way to use the layers.

    Attributes:
        name: a layer's, or how they were averaged.
        noun, color: mean IoU at each threshold, as text so that JSON can hold it.
        rules: of a layer, what each rule gives on average over the images.
    """

    name: str
    noun: Mapping[str, float]
    color: Mapping[str, float]
    rules: Mapping[str, float]

    @property
    def best(self) -> tuple[str, float]:
        """The threshold at which the worse of the two kinds does best, and that mean IoU."""
        worse = {name: min(self.noun[name], self.color[name]) for name in self.noun}
        threshold = max(worse, key=worse.__getitem__)
        return threshold, worse[threshold]


def own_attention(maps: HeatMaps) -> list[Tensor]:
    """By layer, (C, h, w): the attention to the columns of the prompt's own tokens."""
    columns = dict.fromkeys(token.column for token in maps.tokens)
    rows = [maps.columns.index(column) for column in columns]
    return [maps.probabilities[layer.name][rows] for layer in maps.layers]


def weighted(maps: HeatMaps, word: str, weights: list[float]) -> HeatMap:
    """A word's map of all layers, each with its weight."""
    rows = [maps.columns.index(column) for column in maps.prompt.find(word).columns]
    layers = (resize(maps.probabilities[x.name][rows].mean(0), maps.size) for x in maps.layers)
    total = sum(weight * values for weight, values in zip(weights, layers, strict=True))
    values = torch.as_tensor(total / sum(weights)).clamp(0, 1)
    return HeatMap(word, values, (), maps.image_size)


def judge(made: list[evaluate.Generated], thresholds: tuple[float, ...]) -> list[Score]:
    """Score each layer alone, the plain mean and one weighted mean a rule.

    Raises:
        ValueError: if no image shows both objects, so that there is nothing to judge maps on.
    """
    shown = [image for image in made if image.right]
    if not shown:
        raise ValueError(f"none of {len(made)} images shows both objects: is the model trained?")
    layers = shown[0].maps.layers
    values = {
        name: np.array([[rule(layer) for layer in own_attention(x.maps)] for x in shown])
        for name, rule in RULES.items()
    }
    every, alone = np.ones((len(shown), len(layers))), np.eye(len(layers))
    ways = {layer.name: every * one for layer, one in zip(layers, alone, strict=True)}
    ways["plain mean"] = every
    ways |= {f"weighted by {name}": weights for name, weights in values.items()}
    means = {name: weights.mean(0).tolist() for name, weights in values.items()}
    scores = []
    for number, (name, weights) in enumerate(ways.items()):
        found: dict[str, list[tuple[HeatMap, evaluate.Mask]]] = {"noun": [], "color": []}
        for image, row in zip(shown, weights.tolist(), strict=True):
            for word in evaluate.judged([image]):
                found[word.kind].append((weighted(image.maps, word.word, row), word.own))
        iou = {
            kind: {
                str(threshold): mean_iou((map_.mask(threshold, own.shape), own) for map_, own in of)
                for threshold in thresholds
            }
            for kind, of in found.items()
        }
        of_layer = {name: mean[number] for name, mean in means.items() if number < len(layers)}
        scores.append(Score(name, iou["noun"], iou["color"], of_layer))
    return scores


def show(scores: list[Score], console: Console) -> None:
    """Print the scores as a table."""
    thresholds = list(scores[0].noun)
    table = Table("layers", *RULES, *(f"at {name}" for name in thresholds), "best")
    for score in scores:
        both = [f"{score.noun[name]:.3f} / {score.color[name]:.3f}" for name in thresholds]
        rules = [f"{score.rules[rule]:.3f}" if score.rules else "" for rule in RULES]
        table.add_row(score.name, *rules, *both, f"{score.best[1]:.3f} at {score.best[0]}")
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Judge a model folder's layers from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=evaluate.HERE / "model-transformer")
    parser.add_argument("--captions", type=int, default=50)
    parser.add_argument("--seed", type=int, default=evaluate.SEED, help="of the captions")
    parser.add_argument("--space", choices=get_args(Space), default="attention", help="see trace")
    parser.add_argument("--json", type=Path, help="write the scores here")
    options = parser.parse_args(arguments)
    made = evaluate.generate(
        evaluate.load(options.model),
        evaluate.held_out(options.captions, options.seed),
        layers=lambda layer: True,
        space=options.space,
    )
    scores = judge(list(made), evaluate.THRESHOLDS)
    show(scores, Console(width=160))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps([dataclasses.asdict(x) for x in scores], indent=2) + "\n"
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
