"""The model card: what was trained, on what, for how long, and how well it does."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

_BEGIN, _END = "<!-- scores: begin -->", "<!-- scores: end -->"
_NOT_YET = "Not evaluated yet: run `evaluate.py --card`."

KINDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "unet": {
            "title": "",
            "pipeline": "StableDiffusionPipeline",
            "how": "text encoder and UNet were trained together by\nthe diffusion loss alone.",
        },
        "transformer": {
            "title": ", the transformer",
            "pipeline": "StableDiffusion3Pipeline",
            "how": """the transformer was trained by the flow
matching loss alone. Words meet pixels in the joint attention of its layers and nowhere else: the
pooled embedding, which Stable Diffusion 3 adds to the timestep, is zero here.

Each of the two CLIPs has half of the features of the UNet's token and position embeddings. The T5
reads nothing: it gives `max_sequence_length` empty columns, as `StableDiffusion3Pipeline` itself
does when it is told `text_encoder_3=None`. An eighth of the training saw 256 of them, the
pipeline's default, and the rest one, `max_sequence_length=1`, which takes half the time.""",
        },
    }
)
"""By denoiser, what a card says of it."""

_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
license: mit
---

# Tinyworld{title}

A text-to-image model of {parameters:.1f} million parameters that draws two colored objects on a
background at 64 x 64 pixels, made to judge attribution methods by. It loads as a
`{pipeline}`; its prompts read like "a red house left of a green tree at night".

It knows {nouns} nouns, {colors} colors and nothing else: any other word is spelled out in letters
that it has never seen. No attention was supervised: {how}

## Training

{facts}

## Scores

{begin}
{scores}
{end}
"""


def hardware(device: torch.device) -> str:
    """The machine in a few words: the GPU's name, or the processor's and the threads used."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"


def write(
    folder: Path,
    kind: Mapping[str, str],
    facts: Mapping[str, object],
    *,
    parameters: int,
    nouns: int,
    colors: int,
) -> None:
    """Write a card without scores.

    Args:
        folder: the model's.
        kind: one of `KINDS`.
        facts: rows of the table on training.
        parameters: weights in all parts of the pipeline.
        nouns, colors: sizes of the vocabulary.
    """
    rows = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    text = _CARD.format(
        **kind,
        parameters=parameters / 1e6,
        nouns=nouns,
        colors=colors,
        facts="\n".join(rows),
        begin=_BEGIN,
        scores=_NOT_YET,
        end=_END,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_scores(folder: Path, scores: str) -> None:
    """Replace the scores of a card.

    Raises:
        ValueError: if the card has no place for them.
    """
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{path} has no scores to replace: expected {_BEGIN!r} and {_END!r}.")
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    path.write_text(f"{before}{_BEGIN}\n{scores}\n{_END}{after}", encoding="utf-8")
