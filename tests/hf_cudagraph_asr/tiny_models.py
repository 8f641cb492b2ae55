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

# The classes whose configuration holds one of an encoder, and what that has.
NESTED = ("Parakeet", "Lasr", "GraniteSpeech5")
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 6,
    "conv_kernel_size": 5,
}


@dataclass(frozen=True)
class Case:
    """A tiny model: the stem of its class, and what its configuration has of its own."""

    stem: str
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The class of its configuration."""
        name = "CTCConfig" if self.stem in NESTED else "Config"
        return getattr(transformers, self.stem + name)

    def build(self, seed: int = 0, **changes: Any) -> Any:
        given = {**TINY, **self.own, **changes}
        if self.stem in NESTED:
            vocabulary = {"vocab_size": given["vocab_size"]}
            encoder = {**ENCODER, **vocabulary, **self.own, **changes}
            given = {**vocabulary, "pad_token_id": BLANK, "encoder_config": encoder}
        torch.manual_seed(seed)
        model = getattr(transformers, f"{self.stem}ForCTC")(self.config(**given))
        # Again: how much the host draws for its initial weights depends on its version.
        torch.manual_seed(seed)
        return randomized(model).eval()


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
BERT = {"feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 7}
RELATIVE = {"position_embeddings_type": "relative", "use_intermediate_ffn_before_adapter": True}
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
    "sew-d-squeeze-2": Case(
        "SEWD", {"squeeze_factor": 2, "position_buckets": 6, "max_position_embeddings": 20}
    ),
    "sew-d-squeeze-3-layer-convolution": Case(
        "SEWD",
        {
            **LAYER,
            "squeeze_factor": 3,
            "share_att_key": False,
            "position_buckets": -1,
            "max_position_embeddings": 5,
            "norm_rel_ebd": "none",
            "conv_kernel_size": 3,
            "hidden_dropout_prob": 0.1,
        },
    ),
    "sew-d-no-relative-attention": Case("SEWD", {"squeeze_factor": 2, "relative_attention": False}),
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
    "bert": Case("Wav2Vec2Bert", {**BERT, "left_max_position_embeddings": 9}),
    "bert-adapter": Case("Wav2Vec2Bert", {**BERT, **ADAPTER}),
    "bert-relative-wide-adapter": Case(
        "Wav2Vec2Bert",
        {**BERT, **ADAPTER, **RELATIVE, "adapter_kernel_size": 8, "adapter_stride": 5},
    ),
    "bert-rotary": Case("Wav2Vec2Bert", {**BERT, "position_embeddings_type": "rotary"}),
    "parakeet": Case("Parakeet"),
    "parakeet-four-no-bias": Case(
        "Parakeet",
        {
            "subsampling_factor": 4,
            "subsampling_conv_kernel_size": 5,
            "attention_bias": False,
            "convolution_bias": False,
            "scale_input": False,
        },
    ),
    "lasr": Case("Lasr", {"conv_kernel_size": 6}),
    "granite-speech-5": Case("GraniteSpeech5", {"context_size": 16}),
    "granite-speech-5-late-halves": Case(
        "GraniteSpeech5", {"context_size": 7, "num_hidden_layers": 3, "subsample_layers": [2]}
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
    "sew-d-squeeze-2",
    "conformer-rotary",
    "conformer-relative",
    "bert",
    "bert-adapter",
    "parakeet",
    "lasr",
    "granite-speech-5",
]
# WavLM's own call of torch's attention gives it a boolean mask beside a float bias.
WAVLM = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
# Its convolutions in a layer pad to the same length, and are even.
LASR = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def asks_the_host(name: str) -> bool:
    """WavLM, whose positions transformers before 5.18 makes on the CPU: no graph can hold that."""
    return "wavlm" in name and Version(transformers.__version__) < Version("5.18")


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """The test for each of these cases, by its parameter `name`."""
    noisy = {"wavlm": WAVLM, "lasr": LASR}
    marked = [pytest.param(name, marks=noisy.get(name.split("-")[0], ())) for name in names]
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
    traffic = Traffic.of([length / geometry.sampling_rate for length in samples], geometry)
    frames = [geometry.frames(length) for length in samples]
    return BucketPlan(frames, traffic, geometry=geometry, batch_sizes=batch_sizes)
