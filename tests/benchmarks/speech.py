"""Models of published sizes with random weights, and a traffic of short queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

RATE = 16_000  # samples a second
LONGEST = 8.0  # seconds

GEOMETRIES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "conv_dim": (32,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    },
}
"""Configurations of wav2vec2-base, of wav2vec2-large-960h-lv60, and of a small model."""


def random_model(geometry: str, **changes: Any) -> Any:
    """A Wav2Vec2 in evaluation mode on the CPU; `changes` are of its configuration."""
    config = transformers.Wav2Vec2Config(**{**GEOMETRIES[geometry], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.Wav2Vec2ForCTC(config).eval()


def traffic(queries: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """Seconds of queries: log-normal, median 1.8 s, σ 0.5, from a tenth of a second to 8 s."""
    drawn = np.random.default_rng(seed).lognormal(np.log(1.8), 0.5, queries)
    return drawn.clip(0.1, LONGEST)


def in_samples(seconds: npt.NDArray[np.float64]) -> list[int]:
    """The samples of each query."""
    found: list[int] = np.rint(seconds * RATE).astype(int).tolist()
    return found
