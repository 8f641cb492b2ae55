"""Pipelines of known geometry with random weights, built offline for measurements.

The denoisers `sd15` and `sdxl` have the published configurations; those of `flux`, `sd3`, `pixart`
and `wan` have the published widths and few blocks of each kind, or with `full=True` all of them.
Text encoders and VAE are tiny, since no measurement here is about them. Nothing in this file needs
daam_diffusers, and the UNets work with diffusers 0.21 as with today's: the peers' environments
import it too.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

WINDOW = 77
# One token each, so that a prompt's length in tokens can be counted by eye. Long words lead: their
# merges must outrank those of short words that they contain.
WORDS = (
    "standing running beside behind small large house green under with tree blue boat old red "
    "car dog the and an in it of on a"
).split()
PROMPT = "a red car beside a blue dog"
PROMPT_20 = (
    "a small red car beside the old blue house and a large green tree with a dog standing under it"
)


@dataclass(frozen=True)
class Geometry:
    """Shapes of a pipeline.

    Attributes:
        unet: configuration of its UNet2DConditionModel.
        text_widths: hidden sizes of its text encoders; two of them make it an SDXL pipeline.
        pixels: side of the square image it generates.
        vae_levels: the VAE's factor is 2 to the power of this less one.
    """

    unet: Mapping[str, Any]
    text_widths: tuple[int, ...]
    pixels: int
    vae_levels: int = 4


_SD15: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # despite its name, diffusers reads the number of heads here
}
_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

GEOMETRIES: Mapping[str, Geometry] = {
    "sd15": Geometry(_SD15, (768,), 512),
    "sdxl": Geometry(_SDXL, (768, 1280), 1024),
    # Stable Diffusion 1.5's grids, layers and heads with a tenth of its channels: what is recorded
    # of it has the same size.
    "sd15-narrow": Geometry(
        {**_SD15, "block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 32}, (32,), 512
    ),
    "tiny-sd": Geometry(
        {
            **_SD15,
            "sample_size": 16,
            "layers_per_block": 1,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
        },
        (32,),
        64,
        vae_levels=3,
    ),
    "tiny-sdxl": Geometry(
        {
            **_SDXL,
            "sample_size": 16,
            "layers_per_block": 1,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 64,
            "attention_head_dim": (2, 4),
            "transformer_layers_per_block": (1, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
        (32, 32),
        64,
        vae_levels=3,
    ),
}


@dataclass(frozen=True)
class Transformer:
    """Shapes of a pipeline whose denoiser is a transformer.

    Attributes:
        pipeline: makes it, of these parts and the denoiser's configuration.
        config: configuration of the denoiser.
        depth: what the configuration says besides in the published model.
        call: arguments of a call, besides the prompt, the steps and the generator.
    """

    pipeline: Callable[[Mapping[str, Any], str], Any]
    config: Mapping[str, Any]
    depth: Mapping[str, Any]
    call: Mapping[str, Any]


def build(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    full: bool = False,
) -> Any:
    """The pipeline of a geometry, ready to be called; `full` with all blocks of a transformer."""
    torch.manual_seed(seed)
    if name in TRANSFORMERS:
        made = TRANSFORMERS[name]
        pipe = made.pipeline({**made.config, **(made.depth if full else {})}, device)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device, dtype)
    geometry = GEOMETRIES[name]
    tokenizer = clip_tokenizer()
    parts: dict[str, Any] = {
        "vae": _vae(geometry.vae_levels),
        "text_encoder": _text_encoder(tokenizer, geometry.text_widths[0]),
        "tokenizer": tokenizer,
        "unet": _unet(geometry.unet, device, dtype),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    }
    if len(geometry.text_widths) == 2:
        second = _text_encoder(tokenizer, geometry.text_widths[1], projected=True)
        pipe = StableDiffusionXLPipeline(
            **parts, text_encoder_2=second, tokenizer_2=tokenizer, add_watermarker=False
        )
    else:
        pipe = StableDiffusionPipeline(
            **parts,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


def generate(
    pipe: Any,
    name: str,
    *,
    prompt: str = PROMPT,
    steps: int = 1,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """The latents of one seeded call, as the pipeline gives them; a UNet's are (1, 4, h, w).

    `size` is a height and a width in pixels, instead of the geometry's own.
    """
    if name in TRANSFORMERS:
        call = TRANSFORMERS[name].call
    else:
        pixels = GEOMETRIES[name].pixels
        call = {"height": pixels, "width": pixels, "guidance_scale": 7.5}
    if size is not None:
        call = {**call, "height": size[0], "width": size[1]}
    latents: torch.Tensor = pipe(
        prompt,
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(7),
        return_dict=False,
        **call,
    )[0]
    return latents


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE as CLIP's: `WORDS` are one token each, all others single characters."""
    alphabet = [_BYTES[byte] for byte in range(256)]
    vocabulary = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = word[0]
        for right in [*word[1:-1], word[-1] + "</w>"] if len(word) > 1 else []:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            if left not in vocabulary:
                vocabulary.append(left)
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary += [start, end]
    settings = {
        "model_max_length": WINDOW,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }
    # Through files, since the constructors of transformers 4 and 5 agree on nothing else.
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "vocab.json": json.dumps({token: i for i, token in enumerate(vocabulary)}),
            "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
            "tokenizer_config.json": json.dumps({**settings, "tokenizer_class": "CLIPTokenizer"}),
            "special_tokens_map.json": json.dumps({k: v for k, v in settings.items() if "_t" in k}),
        }
        for file, text in files.items():
            (Path(folder) / file).write_text(text, encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder)


def _byte_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE writes for each byte (GPT-2, `bytes_to_unicode`)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {b: chr(256 + i) for i, b in enumerate(others)}


_BYTES = _byte_letters()


def _text_encoder(tokenizer: CLIPTokenizer, width: int, *, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _vae(levels: int, channels: int = 4, **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        **settings,
    ).eval()


def _unet(config: Mapping[str, Any], device: str, dtype: torch.dtype) -> UNet2DConditionModel:
    # Made without storage and filled once: torch's own initialization would take a minute for
    # 860 million weights that are never looked at.
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    unet = unet.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        for module in unet.modules():
            for name, weight in module.named_parameters(recurse=False):
                if name == "bias":
                    weight.zero_()
                elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                    weight.fill_(1)
                else:
                    # Uniform of variance 1 / fan-in: activations keep their size, none overflows.
                    bound = math.sqrt(3 / weight[0].numel())
                    weight.uniform_(-bound, bound)
    return unet


def _flux(config: Mapping[str, Any], device: str) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return FluxPipeline(
        transformer=_transformer(FluxTransformer2DModel, config, device),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4, 16, shift_factor=0.1),
        text_encoder=_text_encoder(clip, config["pooled_projection_dim"]),
        tokenizer=clip,
        text_encoder_2=_t5(config["joint_attention_dim"]),
        tokenizer_2=t5,
    )


def _sd3(config: Mapping[str, Any], device: str) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    # Two text encoders, one of 3/8 of the pooled width as CLIP ViT-L's 768 of 2048.
    first = config["pooled_projection_dim"] * 3 // 8
    return StableDiffusion3Pipeline(
        transformer=_transformer(SD3Transformer2DModel, config, device),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4, 16, shift_factor=0.1),
        text_encoder=_text_encoder(clip, first, projected=True),
        tokenizer=clip,
        text_encoder_2=_text_encoder(clip, config["pooled_projection_dim"] - first, projected=True),
        tokenizer_2=clip,
        text_encoder_3=_t5(config["joint_attention_dim"]),
        tokenizer_3=t5,
    )


def _pixart(config: Mapping[str, Any], device: str) -> Any:
    from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel

    return PixArtSigmaPipeline(
        transformer=_transformer(PixArtTransformer2DModel, config, device),
        scheduler=DDIMScheduler(),
        vae=_vae(4),
        text_encoder=_t5(config["caption_channels"]),
        tokenizer=t5_tokenizer(),
    )


def _wan(config: Mapping[str, Any], device: str) -> Any:
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    return WanPipeline(
        transformer=_transformer(WanTransformer3DModel, config, device),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        text_encoder=_t5(config["text_dim"], UMT5EncoderModel, UMT5Config),
        tokenizer=t5_tokenizer(),
    )


def _transformer(model: Any, config: Mapping[str, Any], device: str) -> Any:
    # On the device from the start: billions of weights are drawn there in seconds.
    with torch.device(device):
        return model(**config).eval()


def t5_tokenizer() -> Any:
    """SentencePiece's unigrams as T5's: `WORDS` are one token each, all others letters."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [("▁" + word, -1.0) for word in WORDS]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz.,"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _t5(width: int, model: Any = None, config: Any = None) -> Any:
    from transformers import T5Config, T5EncoderModel

    settings = (config or T5Config)(
        vocab_size=len(t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return (model or T5EncoderModel)(settings).eval()


_FLUX: dict[str, Any] = {
    "in_channels": 64,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
    "num_layers": 1,
    "num_single_layers": 1,
}
_SD3: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "num_layers": 2,  # the last block is of a kind of its own: its text is not used further
}
_PIXART: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "attention_head_dim": 72,
    "num_attention_heads": 16,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "interpolation_scale": 2,
    "use_additional_conditions": False,
    "num_layers": 1,
}
_WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 128,
    "num_attention_heads": 12,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "num_layers": 1,
}
_SQUARE = {"height": 1024, "width": 1024}
_SMALL = {"height": 64, "width": 96, "max_sequence_length": 32}

# FLUX.1-dev, Stable Diffusion 3 medium, PixArt-Σ and, at 480×832, Wan 2.1 of 1.3 billion weights;
# the text lengths are the pipelines' own defaults.
TRANSFORMERS: Mapping[str, Transformer] = {
    "flux": Transformer(_flux, _FLUX, {"num_layers": 19, "num_single_layers": 38}, _SQUARE),
    "sd3": Transformer(_sd3, _SD3, {"num_layers": 24}, {**_SQUARE, "guidance_scale": 7.0}),
    "pixart": Transformer(
        _pixart,
        _PIXART,
        {"num_layers": 28},
        # Without binning, which would make any other size a published one.
        {**_SQUARE, "guidance_scale": 4.5, "use_resolution_binning": False},
    ),
    "wan": Transformer(
        _wan, _WAN, {"num_layers": 30}, {"height": 480, "width": 832, "num_frames": 17}
    ),
    "tiny-flux": Transformer(
        _flux,
        {
            **_FLUX,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 4, 8),
        },
        {"num_layers": 2},
        _SMALL,
    ),
    "tiny-sd3": Transformer(
        _sd3,
        {
            **_SD3,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 96,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 64,
        },
        {"num_layers": 3},
        _SMALL,
    ),
}
