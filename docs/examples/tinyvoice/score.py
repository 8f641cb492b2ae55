"""Word error rates of a trained model: greedily and over the grammar's words, voice by voice.

    python docs/examples/tinyvoice/score.py                  # speaks the test sets if need be
    python docs/examples/tinyvoice/score.py --card           # and writes model/README.md
    python docs/examples/tinyvoice/score.py --recordings     # only the shipped recordings

Recordings are transcribed one at a time. No sentence of the test sets is in the training data in
any voice; "seen" voices are those trained on, "unseen" are not in it in any form.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

import corpus
import lexicon
import model_card
import perturb
import queries
import recognizer
import recordings
import voices

Decode = Callable[[Tensor], str]


@dataclass(frozen=True)
class Heard:
    """One recording and its transcripts.

    Attributes:
        group: voice, or accent where the voices are many.
        text: what was said.
        greedy, lexicon: what was heard, with either decoder.
    """

    group: str
    text: str
    greedy: str
    lexicon: str


@dataclass(frozen=True)
class Score:
    """Rates over some recordings.

    Attributes:
        utterances, words: how many.
        greedy, lexicon: word error rates over all words together.
        characters: character error rate, greedy.
        exact: share of recordings without a greedy error.
    """

    utterances: int
    words: int
    greedy: float
    lexicon: float
    characters: float
    exact: float


def score(heard: list[Heard]) -> Score:
    """Rates over some recordings."""
    said = [one.text for one in heard]
    greedy = [one.greedy for one in heard]
    return Score(
        utterances=len(heard),
        words=sum(len(text.split()) for text in said),
        greedy=round(float(jiwer.wer(said, greedy)), 4),
        lexicon=round(float(jiwer.wer(said, [one.lexicon for one in heard])), 4),
        characters=round(float(jiwer.cer(said, greedy)), 4),
        exact=round(float(np.mean([one.text == one.greedy for one in heard])), 4),
    )


def by_group(heard: list[Heard]) -> dict[str, Score]:
    """Rates of every group, by name."""
    groups = sorted({one.group for one in heard})
    return {name: score([one for one in heard if one.group == name]) for name in groups}


def listen(
    model: Wav2Vec2ForCTC,
    processor: Wav2Vec2Processor,
    decode: Decode,
    clips: Iterable[tuple[str, str, perturb.Floats]],
) -> list[Heard]:
    """Transcribe clips of (group, text, audio) one at a time, with both decoders."""
    heard = []
    for group, text, audio in clips:
        told = recognizer.log_probabilities(model, processor, audio)
        greedy = recognizer.spell_out(processor, told)
        heard.append(Heard(group, text, greedy, decode(told)))
    return heard


def test_set(part: voices.Set, count: int, work: Path) -> corpus.Corpus:
    """The test utterances of one set of voices, spoken into `work` if they are not there yet."""
    return corpus.prepare(work / part, voices.plan(part, count))


def main() -> None:
    """Score, print, and write `scores.json` beside the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--model", type=Path, default=here / "model")
    parser.add_argument("--work", type=Path, default=Path("runs/tinyvoice"))
    parser.add_argument("--count", type=int, default=640, help="utterances of either test set")
    parser.add_argument(
        "--recordings", action="store_true", help="score these alone, write nothing"
    )
    parser.add_argument("--ship", action="store_true", help="write the shipped recordings anew")
    parser.add_argument("--card", action="store_true", help="write the model's README.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Wav2Vec2ForCTC.from_pretrained(options.model).eval()
    processor = Wav2Vec2Processor.from_pretrained(options.model)
    decode = lexicon.word_decoder(queries.words())
    results: dict[str, list[Heard]] = {}
    if not options.recordings:
        corpora = {part: test_set(part, options.count, options.work) for part in ("seen", "unseen")}
        for part, spoken in corpora.items():
            clips = (
                (voices.group(utterance.speaker), utterance.text, spoken.recording(index))
                for index, utterance in enumerate(tqdm(spoken.utterances, desc=part))
            )
            results[part] = listen(model, processor, decode, clips)
        if options.ship:
            recordings.write(corpora)
    shipped = [(row.split, row.text, audio) for row, audio in recordings.read()]
    results["recordings"] = listen(model, processor, decode, shipped)
    totals = {name: score(heard) for name, heard in results.items()}
    groups = {name: by_group(heard) for name, heard in results.items()}
    print(model_card.table(totals, groups))
    if not options.recordings:
        scores = {
            name: {
                "all": asdict(total),
                "groups": {group: asdict(one) for group, one in groups[name].items()},
            }
            for name, total in totals.items()
        }
        path = options.model / "scores.json"
        path.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    if options.card:
        model_card.write(options.model)


if __name__ == "__main__":
    main()
