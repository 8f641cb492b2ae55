"""A tiny model, its buckets, and what the pool's tests ask of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from hf_cudagraph_asr.attach import EnabledPool
from hf_cudagraph_asr.capture import ExportBackend, Program
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.exact import ExactForward
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan import BucketPlan, Traffic

TOLERANCE = 1e-5  # of the largest logit of the row
COARSE = 0.1  # in bfloat16, where one rounding says little; what is told apart is far more
BUCKETS = (14, 30, 45)  # frames: up to 309, 629 and 929 samples
BLANK = 3


def tiny(seed: int = 0, stem: str = "Wav2Vec2", **changes: Any) -> Any:
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": 12,
        "pad_token_id": BLANK,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_feat_extract_layers": 3,
        "conv_dim": (24, 24, 24),
        "conv_kernel": (10, 3, 2),
        "conv_stride": (5, 2, 2),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
    }
    config = getattr(transformers, f"{stem}Config")(**{**options, **changes})
    model = getattr(transformers, f"{stem}ForCTC")(config).eval()
    with torch.no_grad():  # the initial weights give nearly the same logits for everything
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * (2 / parameter[0].numel()) ** 0.5)
    return model


def plan_for(model: Any, batch_sizes: Sequence[int] = (1, 4)) -> BucketPlan:
    geometry = Geometry.of(model)
    traffic = Traffic.of([0.01, 0.03, 0.05], geometry)
    return BucketPlan(BUCKETS, traffic, geometry=geometry, batch_sizes=batch_sizes)


def audio(samples: int, seed: int = 0) -> torch.Tensor:
    """(1, samples)"""
    noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))
    return noise * (1.2 + torch.sin(torch.arange(samples) / 40))


def batch(rows: Sequence[torch.Tensor], fill: float = 0.0) -> dict[str, torch.Tensor]:
    longest = max(row.shape[1] for row in rows)
    pad = torch.nn.functional.pad
    return {
        "input_values": torch.cat([pad(r, (0, longest - r.shape[1]), value=fill) for r in rows]),
        "attention_mask": torch.cat(
            [pad(torch.ones_like(r, dtype=torch.int32), (0, longest - r.shape[1])) for r in rows]
        ),
    }


def stock(model: Any, values: torch.Tensor) -> Any:
    """The model's own answer to one row, enabled or not."""
    with torch.no_grad():
        return type(model).forward(model, values).logits[0]


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    tolerance = TOLERANCE if found.dtype == torch.float32 else COARSE
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


class StaticOutputs(ExportBackend):
    """Programs that overwrite what they returned before, as replays of a CUDA graph do."""

    def capture(self, exact: ExactForward, values: Any, lengths: Any) -> Program:
        program = super().capture(exact, values, lengths)
        static = program(values, lengths)

        def replay(values: Any, lengths: Any) -> Any:
            for held, new in zip(static, program(values, lengths), strict=True):
                held.copy_(new)
            return static

        return replay


def asked(model: Any, pool: EnabledPool, *args: Any, **kwargs: Any) -> tuple[Any, list[Reason]]:
    before = pool.stats().misses
    output = model(*args, **kwargs)
    after = pool.stats().misses
    return output, [r for r in after if after[r] > before.get(r, 0)]
