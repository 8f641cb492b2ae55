"""Which models have a length-exact forward. No torch.

A family is listed only with a test of it. A model that is not listed, or that is set up in a way
that was not tested, is refused with the reason; it can always run eagerly.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

# Both take an additive mask. Flash attention counts the valid tokens on the host (`nonzero`,
# `item`); flex attention takes a block mask.
ATTENTION = ("sdpa", "eager")

# Modules that compute each row by itself: not so a layer that scales its input by the largest
# value in the batch, as quantized ones do.
PLAIN = (
    "torch.nn.modules.",
    "torch.nn.utils.parametrize",
    "torch.nn.utils.parametrizations",
    "transformers.models.",
    "transformers.activations",
    "peft.tuners.",
)

Encoder = Literal[
    "transformer", "gated", "squeezed", "conformer", "bert", "parakeet", "lasr", "granite"
]


class UnsupportedModel(ValueError):
    """The model has no length-exact forward; the message says why. It can run eagerly."""


@dataclass(frozen=True)
class Family:
    """How one `model_type` computes its logits.

    Attributes:
        architecture: the class with a CTC head, as transformers exports it.
        encoder: what follows the feature projection. "transformer": a positional convolution and
            layers that take an additive mask. "gated": layers that hand a gated position bias on.
            "squeezed": layers over pooled frames, upsampled again. "conformer": a convolution in
            each layer. "bert", "parakeet", "lasr", "granite": conformers over features, each with a
            way of its own to shorten and to mask them.
    """

    architecture: str
    encoder: Encoder


FAMILIES = {
    "data2vec-audio": Family("Data2VecAudioForCTC", "transformer"),
    "granite_speech5_ctc": Family("GraniteSpeech5ForCTC", "granite"),
    "hubert": Family("HubertForCTC", "transformer"),
    "lasr_ctc": Family("LasrForCTC", "lasr"),
    "parakeet_ctc": Family("ParakeetForCTC", "parakeet"),
    "sew": Family("SEWForCTC", "squeezed"),
    "sew-d": Family("SEWDForCTC", "squeezed"),
    "unispeech": Family("UniSpeechForCTC", "transformer"),
    "unispeech-sat": Family("UniSpeechSatForCTC", "transformer"),
    "wav2vec2": Family("Wav2Vec2ForCTC", "transformer"),
    "wav2vec2-bert": Family("Wav2Vec2BertForCTC", "bert"),
    "wav2vec2-conformer": Family("Wav2Vec2ConformerForCTC", "conformer"),
    "wavlm": Family("WavLMForCTC", "gated"),
}


def family_of(model: Any) -> Family:
    """Look up the family of a model of transformers, and check that it was tested as it is.

    Raises:
        UnsupportedModel: it was not; the message says in which way.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UnsupportedModel(
            f"no length-exact forward for {type(model).__name__} with model_type {kind!r}: tested "
            f"are {', '.join(FAMILIES)}; run it eagerly"
        )
    # By identity: a subclass may override what is composed here from the class's submodules.
    if type(model) is not getattr(importlib.import_module("transformers"), family.architecture):
        raise UnsupportedModel(
            f"expected transformers.{family.architecture} for model_type {kind!r}, got "
            f"{class_name(model)}: pass the model it wraps, or run it eagerly"
        )
    inner = getattr(config, "encoder_config", config)
    attention = inner._attn_implementation  # no public name; every host module reads this one
    if attention not in ATTENTION:
        raise UnsupportedModel(
            f"attention implementation {attention!r} cannot take a mask without waiting for the "
            f"device; call model.set_attn_implementation('sdpa'), or run it eagerly"
        )
    rotary = (getattr(inner, "rope_parameters", None) or {}).get("rope_type")
    if rotary in ("dynamic", "longrope"):
        raise UnsupportedModel(
            f"rotary positions of type {rotary!r} depend on the length of the longest row: load "
            f"the model with rope_parameters of another type, or run it eagerly"
        )
    _check_plain(model)
    return family


def class_name(value: object) -> str:
    """Name a value's class in full, so that two of the same short name differ."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _check_plain(model: Any) -> None:
    for name, module in model.named_modules():
        if not f"{type(module).__module__}.".startswith(PLAIN):
            raise UnsupportedModel(
                f"{name} is a {class_name(module)}, which is not known to compute each row by "
                f"itself: only layers of torch.nn, transformers and peft are; replace it, or run "
                f"the model eagerly"
            )
    for name, weight in model.named_parameters():
        if hasattr(type(weight.data), "__tensor_flatten__"):  # torchao's, and others that wrap
            raise UnsupportedModel(
                f"{name} is a {class_name(weight.data)}, expected a plain tensor: load the weights "
                f"unquantized, or run the model eagerly"
            )
