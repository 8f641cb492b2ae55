"""Small tables as `simulate` and `third_party` would write them, without any sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from speechnet import phrases
from speechnet.settings import DAY, SOURCES


def tables(sessions: int, wrong: float = 0.1, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Utterances and hypotheses.

    Args:
        sessions: each of one or two wishes with one to three attempts.
        wrong: about the share of words that a recognizer takes for another one of the catalog;
            speakers and moments differ in it.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    probability = phrases.asked(8)
    texts, shares = list(probability), np.array(list(probability.values()))
    chosen = rng.choice(len(texts), 2 * sessions, p=shares / shares.sum())
    level = np.log(wrong / (1 - wrong)) + rng.standard_normal(40)  # log-odds, by household
    utterances: list[dict[str, Any]] = []
    hypotheses: list[dict[str, Any]] = []
    for session in range(sessions):
        home, clock = int(rng.integers(40)), (session % 14 + rng.random()) * DAY
        for wish in range(int(rng.integers(1, 3))):
            phrase = texts[chosen[2 * session + wish]]
            words = phrase.text.split()
            for attempt in range(int(rng.integers(1, 4))):
                name = f"u{len(utterances) + 1:07d}"
                utterances.append({
                    "utterance_id": name, "part": "train", "session": session, "wish": wish,
                    "attempt": attempt, "clock": clock, "household": home, "person": 0,
                    "kind": phrase.kind, "item": phrase.item, "text": phrase.text,
                    "duration": 0.6 + 0.33 * len(words) * np.exp(0.15 * rng.standard_normal()),
                })  # fmt: skip
                moment = level[home] + rng.standard_normal()
                for source in SOURCES:
                    odds = moment + 0.5 * rng.standard_normal(len(words))
                    right = 1 / (1 + np.exp(odds))
                    heard = [
                        word if rng.random() < chance else str(rng.choice(phrases.words()))
                        for word, chance in zip(words, right, strict=True)
                    ]
                    score = float(np.log(right).mean() + 0.1 * rng.standard_normal())
                    hypotheses.append({
                        "utterance_id": name, "source": source, "rank": 0, "text": " ".join(heard),
                        "confidence": min(float(np.exp(score)), 1.0), "score": score,
                        "words_min": float(right.min()), "seconds": 0.1,
                    })  # fmt: skip
    return pl.DataFrame(utterances), pl.DataFrame(hypotheses)
