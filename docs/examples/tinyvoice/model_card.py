"""The model card: what was trained on what, for how long, and how well it hears."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

_TITLES = {
    "seen": "voices trained on",
    "unseen": "voices never heard",
    "recordings": "shipped recordings",
}
_CARD = """\
---
library_name: transformers
pipeline_tag: automatic-speech-recognition
language: en
license: mit
---

# Tinyvoice

A `Wav2Vec2ForCTC` of {parameters:.2f} million parameters that transcribes what is asked of a
television: 16 kHz waveform in, letters out, {milliseconds:.0f} ms a frame. It was made so that
tests and demonstrations of `hf_cudagraph_asr` have a real model that needs no download.

## Data

Speech of two synthesisers, espeak-ng and flite, and of nobody else: {utterances:,} queries by
{speakers} simulated speakers (voice, pace, pitch, resampling), drawn from a grammar of {words}
words. In training most queries were resampled (speed and pitch together), filtered and given an
echo, and all were put into white, pink or babble noise at 8 to 35 dB, anew each time.

- Test sentences occur in the training data in no voice; their words do. Noise is 10 to 30 dB below
  the speech.
- *Voices trained on*: the {speakers} speakers of the training, each with a pace and pitch of the
  day.
- *Voices never heard*: flite's `rms`, and espeak-ng's variants
  {variants};
  two of them speak accents that are not in the training either (`en-us-nyc`, `en-029`). They are
  other voices of the same two synthesisers, not other people, and espeak-ng's are much alike.
- The means of the two are not comparable: flite has about four in ten utterances of the first and
  one in eight of the second. Compare voices, below.

## Training

| | |
|---|---|
{facts}

## Word error rates

One recording at a time. *Greedy* takes the likeliest token of every frame. *Lexicon* is
torchaudio's beam search over the grammar's {words} words, without a language model.

{scores}

To reach were 12% in voices trained on and 20% in voices never heard, with either decoder.

## What it is not good for

- People. It has heard no human voice, room or microphone; nothing is known of how it does there.
- Words outside the grammar ({words} of them): it spells what it hears, and mostly wrongly.
- Recordings much longer than a query (most of the training's are 1 to 4 s), other sampling rates,
  other languages.
- Conclusions on recognition of real speech, or on voices and accents: the accents are a
  synthesiser's.
"""


def table(
    totals: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]], *, details: bool = True
) -> str:
    """Scores as a Markdown table; values are `score.Score` or its dictionary."""
    rows = [
        "| recordings | utterances | greedy WER | lexicon WER | greedy CER | no error |",
        "|---|---|---|---|---|---|",
    ]
    for name, total in totals.items():
        rows.append(_row(f"**{_TITLES[name]}**", total))
        if details:
            rows += [_row(group, one) for group, one in groups[name].items()]
    return "\n".join(rows)


def write(folder: Path) -> None:
    """Write a model's card from its `training.json` and `scores.json`."""
    from voices import UNHEARD

    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hop = 1
    for stride in config["conv_stride"]:
        hop *= stride
    variants = sorted({voice.split("+")[1] for voice in UNHEARD})
    text = _CARD.format(
        **{name: facts[name] for name in ("utterances", "speakers", "words")},
        parameters=facts["parameters"] / 1e6,
        milliseconds=hop / 16,
        variants=", ".join(f"`{name}`" for name in variants),
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(facts).items()),
        scores=table(
            {name: score["all"] for name, score in scores.items()},
            {name: score["groups"] for name, score in scores.items()},
        ),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _facts(facts: Mapping[str, Any]) -> dict[str, str]:
    seconds, speech = facts["cpu_seconds"], facts["synthesis_cpu_seconds"]
    return {
        "processor time": f"{seconds / 3600:.2f} hours in all ({seconds:,} s): {speech:,} s of "
        f"synthesis, {seconds - speech:,} s of training, its loader included",
        "steps": f"{facts['steps']:,} of {facts['batch']} queries "
        f"({facts['steps'] * facts['batch'] / facts['utterances']:.1f} passes), peak rate "
        f"{facts['rate']:g}, averaged weights",
        "before": "convolutions trained on log-mel spectra, without labels",
        "seed": str(facts["seed"]),
        "hardware": facts["hardware"],
        "precision": facts["precision"],
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }


def _row(name: str, score: Any) -> str:
    values = score if isinstance(score, Mapping) else asdict(score)
    rates = " | ".join(
        f"{100 * values[rate]:.1f}%" for rate in ("greedy", "lexicon", "characters", "exact")
    )
    return f"| {name} | {values['utterances']} | {rates} |"
