"""What transcripts were made with, so that a run is continued with nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from hf_cudagraph_asr.transcriber import Transcriber

__all__ = ["provenance"]

SAMPLE = 1024  # values of each tensor: another training step changes some of them


def provenance(transcriber: Transcriber) -> dict[str, Any]:
    """All that a text depends on, and nothing that it does not: no batch size, plan or backend.

    Args:
        transcriber: what transcribes.

    Returns:
        Names and JSON values. `model` and `processor` are digests, of the configuration and
        values from all over each weight tensor, and of feature extractor and tokenizer.
    """
    model = transcriber.model
    return {
        "model": _digest(_settings(model.config.to_dict()), *_weights(model)),
        "processor": _digest(
            _settings(transcriber.extractor.to_dict()),
            _json(transcriber.tokenizer.get_vocab()),
            _settings(transcriber.tokenizer.init_kwargs),
        ),
        "dtype": str(model.dtype).removeprefix("torch."),
        "chunk_length_s": transcriber.chunk_length_s,
    }


def _settings(values: dict[str, Any]) -> bytes:
    # Where it was loaded from, by which version and as what changes no text, or is said apart.
    ignored = ("transformers_version", "dtype", "torch_dtype", "processor_class", "name_or_path")
    kept = {
        key: value
        for key, value in values.items()
        if not (key.startswith("_") or key.endswith("_file") or key in ignored)
    }
    return _json(kept)


def _json(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, default=str).encode()


def _weights(model: Any) -> list[bytes]:
    parts = []
    for name, tensor in sorted(model.state_dict().items()):
        every = -(-tensor.numel() // SAMPLE) or 1
        values = tensor.detach().flatten()[::every].to("cpu", torch.float64)
        parts += [f"{name} {tuple(tensor.shape)}".encode(), values.numpy().tobytes()]
    return parts


def _digest(*parts: bytes) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()
