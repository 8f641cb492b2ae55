"""Tiny models with random weights, one of each variant of each family, and plans for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from hf_cudagraph_asr import BucketPlan, Geometry
from hf_cudagraph_asr.plan import Traffic

BLANK = 3
TINY = {
    "vocab_size": 12,
    "pad_token_id": BLANK,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_feat_extract_layers": 3,
    "conv_dim": (24, 24, 24),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


@dataclass(frozen=True)
class Case:
    """A tiny model: the stem of its class, and what its configuration has of its own."""

    stem: str
    own: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0, **changes: Any) -> Any:
        config = getattr(transformers, f"{self.stem}Config")(**{**TINY, **self.own, **changes})
        torch.manual_seed(seed)
        return randomized(getattr(transformers, f"{self.stem}ForCTC")(config)).eval()


def randomized(model: Any) -> Any:
    """The hosts' initial weights give nearly constant logits, where no error would show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim >= 2 and not name.endswith("original0"):
                gain = 2 if "conv_layers" in name else 1
                parameter.copy_(noise * (gain / parameter[0].numel()) ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
    return model


LAYER = {"feat_extract_norm": "layer", "conv_bias": True}
STABLE = {**LAYER, "do_stable_layer_norm": True}
ADAPTER = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 20}
CONFORMER = {"conv_depthwise_kernel_size": 7, "feat_extract_norm": "layer"}
DATA2VEC = {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}

CASES = {
    "wav2vec2-group": Case("Wav2Vec2"),
    "wav2vec2-group-bias-odd-positions": Case(
        "Wav2Vec2", {"conv_bias": True, "num_conv_pos_embeddings": 7}
    ),
    "wav2vec2-group-stable": Case("Wav2Vec2", {"do_stable_layer_norm": True}),
    "wav2vec2-layer": Case("Wav2Vec2", LAYER),
    "wav2vec2-layer-stable": Case("Wav2Vec2", STABLE),
    "wav2vec2-attention-adapter": Case("Wav2Vec2", {**STABLE, "adapter_attn_dim": 8}),
    "wav2vec2-adapter": Case("Wav2Vec2", {**LAYER, **ADAPTER}),
    "wav2vec2-group-wide-adapter": Case(
        "Wav2Vec2", {"add_adapter": True, "adapter_kernel_size": 5, "output_hidden_size": 32}
    ),
    "hubert-group": Case("Hubert"),
    "hubert-layer-stable": Case("Hubert", STABLE),
    "hubert-batch-norm": Case("Hubert", {**LAYER, "conv_pos_batch_norm": True}),
    "hubert-no-projection-norm": Case("Hubert", {"feat_proj_layer_norm": False}),
    "wavlm-group": Case("WavLM"),
    "wavlm-layer-stable": Case("WavLM", STABLE),
    "wavlm-adapter": Case("WavLM", ADAPTER),
    "unispeech-group": Case("UniSpeech"),
    "unispeech-layer-stable": Case("UniSpeech", STABLE),
    "unispeech-sat-group": Case("UniSpeechSat"),
    "unispeech-sat-layer-stable": Case("UniSpeechSat", STABLE),
    "data2vec-audio": Case("Data2VecAudio", DATA2VEC),
    "data2vec-audio-adapter": Case("Data2VecAudio", {**DATA2VEC, **ADAPTER}),
    "sew-squeeze-2": Case("SEW", {"squeeze_factor": 2}),
    "sew-squeeze-3-layer": Case("SEW", {**LAYER, "squeeze_factor": 3}),
    "sew-no-projection": Case("SEW", {"squeeze_factor": 2, "hidden_size": 24}),
    "conformer-rotary": Case(
        "Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "rotary"}
    ),
    "conformer-relative": Case(
        "Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "relative"}
    ),
    "conformer-no-positions-group-adapter": Case(
        "Wav2Vec2Conformer",
        {**ADAPTER, "conv_depthwise_kernel_size": 5, "position_embeddings_type": None},
    ),
}
# One of each way through the code, for what need not be asked of every variant.
KINDS = [
    "wav2vec2-group",
    "wav2vec2-attention-adapter",
    "wav2vec2-adapter",
    "hubert-batch-norm",
    "wavlm-group",
    "unispeech-group",
    "unispeech-sat-layer-stable",
    "data2vec-audio",
    "sew-squeeze-2",
    "conformer-rotary",
    "conformer-relative",
]
# WavLM's own call of torch's attention gives it a boolean mask beside a float bias.
WAVLM = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")


def asks_the_host(name: str) -> bool:
    """WavLM, whose positions transformers before 5.18 makes on the CPU: no graph can hold that."""
    return "wavlm" in name and Version(transformers.__version__) < Version("5.18")


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """The test for each of these cases, by its parameter `name`."""
    marked = [pytest.param(name, marks=WAVLM if "wavlm" in name else ()) for name in names]
    return pytest.mark.parametrize("name", marked)


every_case, every_kind = each(CASES), each(KINDS)


def plan_for(
    model: Any,
    samples: Sequence[int] = (600, 900),
    batch_sizes: Sequence[int] = (1, 4),
    rate: int = 16_000,
) -> BucketPlan:
    """A bucket for each of these lengths: the shortest that holds it."""
    geometry = Geometry.of(model, sampling_rate=rate)
    traffic = Traffic.of([length / rate for length in samples], geometry)
    frames = [geometry.frames(length) for length in samples]
    return BucketPlan(frames, traffic, geometry=geometry, batch_sizes=batch_sizes)
