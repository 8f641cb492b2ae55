"""The whole run: speech, training, export."""

from __future__ import annotations

import json
import logging
import platform

import accelerate
import torch
import transformers
from accelerate import Accelerator
from transformers import Wav2Vec2ForCTC

import corpus
import queries
import recognizer
import voices
from recipe import Recipe
from training import train

logger = logging.getLogger(__name__)


def run(recipe: Recipe) -> None:
    """Do whatever of a run is not done yet, then export the model.

    Beside the model lies `training.json`: what was trained on what, and the processor time of
    synthesis and training together.
    """
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=recipe.cpu)
    sets = {"train": recipe.utterances, "dev": recipe.dev}
    corpora = {}
    with accelerator.main_process_first():
        for name, count in sets.items():
            plan = voices.plan(name, count, recipe.seed, recipe.speakers)  # type: ignore[arg-type]
            corpora[name] = corpus.prepare(recipe.work / name, plan, recipe.processes)
    synthesis = sum(corpus.spent(recipe.work / name) for name in sets)
    model, seconds = train(recipe, accelerator, corpora["train"], corpora["dev"], synthesis)
    if accelerator.is_main_process:
        export(recipe, model, accelerator.device, synthesis, seconds)
        logger.info("exported to %s", recipe.model)


def export(
    recipe: Recipe,
    model: Wav2Vec2ForCTC,
    device: torch.device,
    synthesis: float,
    seconds: float,
) -> None:
    """Write the model, its processor and `training.json`.

    Args:
        recipe: what was done.
        model: the one to ship, in fp32.
        device: it was trained on.
        synthesis: seconds of processor time for speech.
        seconds: of processor time in all.
    """
    model.save_pretrained(recipe.model)
    processor = recognizer.build_processor(recipe.work / "processor")
    processor.save_pretrained(recipe.model)
    facts = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "words": len(queries.words()),
        "utterances": recipe.utterances,
        "speakers": recipe.speakers,
        "steps": recipe.steps,
        "batch": recipe.batch,
        "rate": recipe.rate,
        "seed": recipe.seed,
        "precision": recipe.precision,
        "synthesis_cpu_seconds": round(synthesis),
        "cpu_seconds": round(seconds),
        "hardware": _hardware(device),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
    }
    path = recipe.model / "training.json"
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"
