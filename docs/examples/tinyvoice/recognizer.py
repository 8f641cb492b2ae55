"""The untrained model and its processor, and how the two transcribe."""

from __future__ import annotations

import json
import math
import string
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

import perturb
from recipe import Recipe

TOKENS = ("<pad>", "|", "<unk>", *string.ascii_lowercase, "'")
LOWEST, HIGHEST = 80.0, 7_600.0  # Hz, of the first convolution's filters


def build_processor(folder: Path) -> Wav2Vec2Processor:
    """A processor for characters; its vocabulary is written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(vocabulary), bos_token=None, eos_token=None, unk_token="<unk>", pad_token="<pad>"
    )
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=perturb.RATE, do_normalize=True, return_attention_mask=True
    )
    return Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)


def build_model(recipe: Recipe) -> Wav2Vec2ForCTC:
    """A model as it begins: random, but for first filters that are spaced as ears space them."""
    config = Wav2Vec2Config(
        vocab_size=len(TOKENS),
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.inner,
        conv_dim=recipe.channels,
        conv_kernel=recipe.kernels,
        conv_stride=recipe.strides,
        num_feat_extract_layers=len(recipe.channels),
        conv_bias=False,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        # The data never repeats itself: what dropout would add is a longer training.
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=recipe.mask_time,
        mask_time_length=4,
        mask_time_min_masks=0,
        mask_feature_prob=recipe.mask_features,
        mask_feature_length=8,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
        pad_token_id=TOKENS.index("<pad>"),
        bos_token_id=None,
        eos_token_id=None,
    )
    model = Wav2Vec2ForCTC(config)
    first = model.wav2vec2.feature_extractor.conv_layers[0].conv
    with torch.no_grad():
        first.weight.copy_(mel_filters(*first.weight.shape[::2]).unsqueeze(1))
    return model


def mel_filters(count: int, length: int) -> Tensor:
    """Windowed cosines and sines in pairs, evenly spaced on the mel scale: (count, length)."""
    top, bottom = (1127 * math.log1p(edge / 700) for edge in (HIGHEST, LOWEST))
    pair = torch.arange(count) // 2
    mel = bottom + (top - bottom) * (pair + 0.5) / math.ceil(count / 2)
    frequency = 700 * torch.expm1(mel / 1127)
    seconds = (torch.arange(length) - length / 2) / perturb.RATE
    phase = torch.arange(count) % 2 * (math.pi / 2)
    waves = torch.cos(2 * math.pi * frequency[:, None] * seconds + phase[:, None])
    return waves * torch.hann_window(length, periodic=False) / math.sqrt(length / 4)


@torch.inference_mode()
def log_probabilities(
    model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, audio: perturb.Floats
) -> Tensor:
    """Of every token in every frame of one recording, (frames, tokens) float32, on the CPU."""
    inputs = processor(audio, sampling_rate=perturb.RATE, return_tensors="pt").to(model.device)
    logits: Tensor = model(**inputs).logits[0]
    return logits.float().log_softmax(-1).cpu()


def transcribe(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, audio: perturb.Floats) -> str:
    """What is said in one recording, by the likeliest token of every frame."""
    return spell_out(processor, log_probabilities(model, processor, audio))


def spell_out(processor: Wav2Vec2Processor, log_probabilities: Tensor) -> str:
    """The letters of the likeliest token of every frame, repeats and blanks left out."""
    return " ".join(str(processor.decode(log_probabilities.argmax(-1))).split())
