"""Samples ↔ frames of a feature encoder: what its convolutions' kernels and strides make of them.

A convolution without padding makes (n − k) // s + 1 values of n. Divisions that round down nest
(⌊(⌊x⌋ + m) / s⌋ = ⌊(x + m) / s⌋ for an integer m), so a stack of them is one convolution whose
kernel is the receptive field and whose stride is the product of the strides, and both directions
are exact in closed form.

Frames are those of the *feature encoder*, which every bucket is counted in. What a model makes of
them afterwards changes no bucket: SEW halves them for its transformer and doubles them again, and
an adapter (`add_adapter`) shortens the logits only.

Where a model takes features (log-mel), `samples` are these: its positions, of which there are
`sampling_rate` a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int64]

# The models that take features, and how many of the feature extractor's hops one position is.
FEATURES = {"granite_speech5_ctc": 2, "lasr_ctc": 1, "parakeet_ctc": 1, "wav2vec2-bert": 2}
HOP = 160  # samples, of all their feature extractors


@dataclass(frozen=True)
class Geometry:
    """The convolutions over the input, first to last; without arguments those of Wav2Vec2.

    Attributes:
        kernels: kernel sizes.
        strides: strides, as many.
        sampling_rate: samples a second of the waveform, or positions of features.

    >>> geometry = Geometry()
    >>> geometry.frames(16_000), geometry.shortest(49), geometry.longest(49)
    (49, 15760, 16079)

    Raises:
        ValueError: sizes that are no convolutions.
    """

    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    sampling_rate: int = 16_000

    def __post_init__(self) -> None:
        for name in ("kernels", "strides"):
            sizes = getattr(self, name)
            if not (isinstance(sizes, (tuple, list)) and all(map(_positive, sizes))):
                raise ValueError(f"{name} are a tuple of whole numbers from 1 up, not {sizes!r}")
            object.__setattr__(self, name, tuple(map(int, sizes)))
        if len(self.kernels) != len(self.strides) or not self.kernels:
            raise ValueError(
                "each convolution has a kernel and a stride: "
                f"{len(self.kernels)} kernels and {len(self.strides)} strides were given"
            )
        if not _positive(self.sampling_rate):
            raise ValueError(
                f"sampling_rate is a whole number of samples a second, not {self.sampling_rate!r}"
            )
        object.__setattr__(self, "sampling_rate", int(self.sampling_rate))

    @classmethod
    def of(cls, model: Any, *, sampling_rate: int | None = None) -> Geometry:
        """The geometry of a model or a config with an exact forward; a `Geometry` stays itself.

        Args:
            model: what has `conv_kernel` and `conv_stride`, or a `config` that has; or a model that
                takes features.
            sampling_rate: of the waveforms; by default the feature extractor's in the folder that
                the model or config was loaded from, or 16,000 where there is none.

        Raises:
            ValueError: its input is no waveform that convolutions without padding frame, and no
                features of a known model.
            OSError: the feature extractor cannot be read.
        """
        if isinstance(model, Geometry):
            rate = model.sampling_rate if sampling_rate is None else sampling_rate
            return cls(model.kernels, model.strides, rate)
        kernels, strides = _convolutions(config := getattr(model, "config", model))
        if not (isinstance(kernels, (list, tuple)) and isinstance(strides, (list, tuple))):
            raise ValueError(
                f"{type(model).__name__} has no conv_kernel and conv_stride: a model or config of "
                "the Wav2Vec2 family is needed, one that takes the waveform itself"
            )
        rate = _beside(model, "sampling_rate", 16_000) if sampling_rate is None else sampling_rate
        if hops := FEATURES.get(getattr(config, "model_type", "")):
            rate = round(rate / (hops * _beside(model, "hop_length", HOP)))
        return cls(tuple(kernels), tuple(strides), rate)

    @cached_property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    @cached_property
    def receptive_field(self) -> int:
        """Samples that one frame sees, and the fewest that give a frame."""
        seen, step = 1, 1
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            seen += (kernel - 1) * step
            step *= stride
        return seen

    @overload
    def frames(self, samples: int) -> int: ...

    @overload
    def frames(self, samples: Samples) -> Samples: ...

    def frames(self, samples: int | Samples) -> int | Samples:
        """Frames of so many samples; 0 where a forward would fail, below the receptive field."""
        frames = (samples - self.receptive_field) // self.hop + 1
        return np.maximum(frames, 0) if isinstance(frames, np.ndarray) else max(int(frames), 0)

    def shortest(self, frames: int) -> int:
        """The fewest samples that give so many frames.

        Raises:
            ValueError: fewer than one frame.
        """
        if not _positive(frames):
            raise ValueError(f"frames are a whole number from 1 up, not {frames!r}")
        return (int(frames) - 1) * self.hop + self.receptive_field

    def longest(self, frames: int) -> int:
        """The most samples that give so many frames: what a bucket of that length holds.

        Raises:
            ValueError: fewer than one frame.
        """
        return self.shortest(frames) + self.hop - 1

    def seconds(self, frames: int) -> float:
        """How long the longest input of so many frames is."""
        return self.longest(frames) / self.sampling_rate

    def __str__(self) -> str:
        return (
            f"kernels {self.kernels}, strides {self.strides} (a frame each {self.hop} samples, "
            f"over {self.receptive_field}) at {self.sampling_rate:,} Hz"
        )


@dataclass(frozen=True)
class Convolution:
    """Geometry of a convolution of an adapter, which pads.

    >>> Convolution(3, 2, padding=1).out(49), Convolution(3, 2, padding=1).needed(25)
    (25, 49)
    """

    kernel: int
    stride: int
    padding: int = 0

    def out(self, length: Any) -> Any:
        """Positions out of `length` positions: ints, or integer tensors without a host sync."""
        return (length + 2 * self.padding - self.kernel) // self.stride + 1

    def needed(self, out: int) -> int:
        """The fewest positions that give `out` ≥ 1 positions."""
        return max(1, (out - 1) * self.stride + self.kernel - 2 * self.padding)


class Frames:
    """From samples to frames of logits, in the forward of one model with such a configuration.

    Samples and frames are ints, or integer tensors, which are computed without a host sync. Inputs
    are at least as long as the receptive field.

    Attributes:
        features: how many each position of the input has, or () where it is a sample.
        adapter: convolutions after the encoder; often none.
        receptive_field, hop: samples that give one frame of logits, and from one to the next.
        last_samples: of all samples, the last one that each of the encoder's frames sees.
    """

    def __init__(self, config: Any) -> None:
        kernels, strides = _convolutions(config)
        self._encoder = geometry = Geometry(tuple(kernels), tuple(strides))
        self.features = features_of(config)
        self.last_samples = slice(geometry.receptive_field - 1, None, geometry.hop)
        self._first = Convolution(geometry.kernels[0], geometry.strides[0])
        self.adapter: tuple[Convolution, ...] = ()
        # Some families' models have none, whatever their configuration says.
        if getattr(config, "add_adapter", False) and hasattr(config, "adapter_stride"):
            # The host's adapter layers pad by one, or half the stride, whatever their kernel.
            padding = config.adapter_stride // 2 if self.features else 1
            one = Convolution(config.adapter_kernel_size, config.adapter_stride, padding)
            self.adapter = (one,) * config.num_adapter_layers
        needed = 1
        for convolution in reversed(self.adapter):
            needed = convolution.needed(needed)
        # An encoder that pools frames needs as many as it pools to one.
        needed = max(needed, getattr(config, "squeeze_factor", 1))
        self.receptive_field = geometry.shortest(needed)
        self.hop = math.prod((geometry.hop, *(layer.stride for layer in self.adapter)))

    def counts(self, samples: Any, total: int) -> tuple[Any, Any, Any, Any]:
        """Count what the exact forward masks by, in a row of a batch of `total` samples.

        Returns:
            Its samples; those that count, from the receptive field to `total`; their frames after
            the first convolution; and those that the encoder sees.
        """
        least, known = self.receptive_field, isinstance(samples, int)
        counted = min(max(samples, least), total) if known else samples.clamp(least, total)
        return samples, counted, self._first.out(counted), self.encoded(counted)

    def encoded(self, samples: Any) -> Any:
        """Frames that the encoder sees."""
        return (samples - self._encoder.receptive_field) // self._encoder.hop + 1

    def emitted(self, samples: Any) -> Any:
        """Frames of logits."""
        frames = self.encoded(samples)
        for convolution in self.adapter:
            frames = convolution.out(frames)
        return frames


def _convolutions(config: Any) -> tuple[Any, Any]:
    """Kernels and strides from the input to the encoder's frames; None where it has no such.

    One that pads before and after counts as a shorter one that does not.
    """
    kind = getattr(config, "model_type", None)
    encoder: Any = getattr(config, "encoder_config", None)
    if kind == "wav2vec2-bert":
        return (1,), (1,)
    if kind == "parakeet_ctc":
        layers = max(1, int(math.log2(encoder.subsampling_factor)))
        kernel, stride = encoder.subsampling_conv_kernel_size, encoder.subsampling_conv_stride
        return (kernel - (kernel - 1) // 2 * 2,) * layers, (stride,) * layers
    if kind == "lasr_ctc":
        return (encoder.subsampling_conv_kernel_size,) * 2, (encoder.subsampling_conv_stride,) * 2
    if kind == "granite_speech5_ctc":  # means of two frames, in some of the layers
        halves = {*encoder.subsample_layers}.intersection(range(encoder.num_hidden_layers))
        return (1, *[2] * len(halves)), (1, *[2] * len(halves))
    return getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)


def features_of(config: Any) -> tuple[int, ...]:
    """Features of each position of a model's input, as a shape: () where that is a sample."""
    if config.model_type not in FEATURES:
        return ()
    if config.model_type == "wav2vec2-bert":
        return (config.feature_projection_input_dim,)
    deltas = 2 if config.model_type == "granite_speech5_ctc" else 1
    return (FEATURES[config.model_type] * deltas * config.encoder_config.num_mel_bins,)


def _beside(model: Any, name: str, default: int) -> Any:
    """A setting of the feature extractor saved beside a model, or the default."""
    folder = getattr(model, "name_or_path", None)
    if not folder or not any(Path(folder).glob("*processor_config.json")):
        return default
    from transformers import AutoFeatureExtractor

    return getattr(AutoFeatureExtractor.from_pretrained(folder), name, default)


def _positive(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 1
