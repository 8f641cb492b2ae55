"""Which models have a length-exact forward, and their frame arithmetic. No torch.

A family is listed only with a test of it. Whatever is not listed, or is listed and set up in a way
that was not tested, is refused with the reason; it can always run eagerly.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

# Both take an additive mask. Flash attention counts the valid tokens on the host (`nonzero`,
# `item`); flex attention takes a block mask.
ATTENTION = ("sdpa", "eager")

Encoder = Literal["transformer", "gated", "squeezed", "conformer"]


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
            each layer.
    """

    architecture: str
    encoder: Encoder


FAMILIES = {
    "data2vec-audio": Family("Data2VecAudioForCTC", "transformer"),
    "hubert": Family("HubertForCTC", "transformer"),
    "sew": Family("SEWForCTC", "squeezed"),
    "unispeech": Family("UniSpeechForCTC", "transformer"),
    "unispeech-sat": Family("UniSpeechSatForCTC", "transformer"),
    "wav2vec2": Family("Wav2Vec2ForCTC", "transformer"),
    "wav2vec2-conformer": Family("Wav2Vec2ConformerForCTC", "conformer"),
    "wavlm": Family("WavLMForCTC", "gated"),
}


def family_of(model: Any) -> Family:
    """The family of a model of transformers.

    Raises:
        UnsupportedModel: the model is of no tested family, of a class of its own, or set to an
            attention implementation that cannot take a mask without asking the host.
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
            f"{type(model).__module__}.{type(model).__qualname__}: pass the model it wraps, or run "
            f"it eagerly"
        )
    attention = config._attn_implementation  # no public name; every host module reads this one
    if attention not in ATTENTION:
        raise UnsupportedModel(
            f"attention implementation {attention!r} cannot take a mask without waiting for the "
            f"device; call model.set_attn_implementation('sdpa'), or run it eagerly"
        )
    return family
