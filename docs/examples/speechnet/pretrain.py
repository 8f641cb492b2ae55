"""The start that all students share: tinyvoice's model, trained on with words in random order.

tinyvoice's model knows few of the catalog's words and little noise. Here tinyvoice's recipe goes on
with its own training voices, none of which speaks in the test, in as much noise and echo as the
log has. Their sentences are words in random order, none of which anybody asks for.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

import corpus
import queries
import recipe
import snapshots
import training
import voices
from recipe import Recipe
from speechnet import phrases, settings

START = settings.HERE / "start"  # committed
RECIPE = Recipe(
    work=settings.WORK / "start",
    model=START,
    seed=settings.SEED,
    utterances=6_000,
    steps=3_000,
    rate=1.2e-3,
    warmup=0.05,
    noisiest=0.0,
    echo=0.6,
    echoes=2,
    judge_every=1_000,
)


def sentences(count: int, seed: int) -> list[str]:
    """Words in random order, 1 to 5 of the catalog's and of tinyvoice's: none is asked for."""
    rng = np.random.default_rng(seed)
    asked = {phrase.text for phrase in phrases.sentences()}
    words = sorted({*phrases.words(), *queries.words()})
    found: list[str] = []
    while len(found) < count:
        text = " ".join(words[row] for row in rng.integers(len(words), size=rng.integers(1, 6)))
        if text not in asked and queries.part_of(text) == "train":
            found.append(text)
    return found


def pretrain(chosen: Recipe = RECIPE) -> Path:
    """Train the start, from the newest checkpoint in the recipe's `work`.

    Returns:
        The folder of the model and its processor, which are not trained again once they are there.
    """
    if (chosen.model / "model.safetensors").exists():
        return chosen.model
    accelerator = Accelerator(mixed_precision=chosen.precision, cpu=not torch.cuda.is_available())
    held = {}
    for part, count in (("train", chosen.utterances), ("dev", chosen.dev)):
        plan = voices.plan(part, count, chosen.seed, chosen.speakers)  # type: ignore[arg-type]
        texts = sentences(count, chosen.seed + (part == "dev"))
        said = [dataclasses.replace(one, text=text) for one, text in zip(plan, texts, strict=True)]
        held[part] = corpus.prepare(chosen.work / part, said, chosen.processes)
    folder = chosen.work / "checkpoints"
    if snapshots.newest(folder) is None:
        model = Wav2Vec2ForCTC.from_pretrained(recipe.HERE / "model")
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        # A checkpoint before the first step, which the training goes on from.
        snapshots.save(folder, 0, 0.0, model, torch.optim.AdamW(model.parameters()), weights)
    model, _ = training.train(chosen, accelerator, held["train"], held["dev"])
    model.save_pretrained(chosen.model)
    Wav2Vec2Processor.from_pretrained(recipe.HERE / "model").save_pretrained(chosen.model)
    return chosen.model
