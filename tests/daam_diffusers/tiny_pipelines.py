"""Tiny pipelines with random weights, built offline: every layer real, no file loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tiny_tokenizer import clip_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

PROMPT = "a red car beside a blue dog"
EMBED = 16  # width of the image prompts of the IP-Adapter


def text_encoder(width: int = 32, *, projected: bool = False) -> Any:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def vae(levels: int = 2) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def unet(**changes: Any) -> UNet2DConditionModel:
    """Two levels with cross-attention, as Stable Diffusion's upper ones."""
    config = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,  # despite its name, diffusers reads the number of heads here
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(steps_offset=1, clip_sample=False)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd_parts(**unet_changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "vae": vae(),
        "text_encoder": text_encoder(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(**unet_changes),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion(**unet_changes: Any) -> StableDiffusionPipeline:
    return quiet(StableDiffusionPipeline(**sd_parts(**unet_changes)))


def controlnet_pipeline() -> StableDiffusionControlNetPipeline:
    parts = sd_parts()
    # Two channel widths make one stride of 2, which is what the tiny VAE shrinks by.
    control = ControlNetModel.from_unet(
        parts["unet"], conditioning_channels=3, conditioning_embedding_out_channels=(8, 16)
    )
    return quiet(StableDiffusionControlNetPipeline(**parts, controlnet=control.eval()))


def sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    changes = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 80,
        "cross_attention_dim": 64,
    }
    return quiet(
        StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=text_encoder(),
            text_encoder_2=text_encoder(projected=True),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            unet=unet(**changes),
            scheduler=EulerDiscreteScheduler(),
        )
    )


def add_ip_adapter(pipe: Any, scale: float = 0.7) -> Any:
    """Load an IP-Adapter of random weights, as `load_ip_adapter` takes it from a file."""
    torch.manual_seed(1)
    width, tokens = pipe.unet.config.cross_attention_dim, 4
    adapter: dict[str, torch.Tensor] = {}
    number = 1
    for name in pipe.unet.attn_processors:
        if not name.endswith("attn2.processor"):
            continue
        inner = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for projection in ("to_k_ip", "to_v_ip"):
            adapter[f"{number}.{projection}.weight"] = torch.randn(inner, width) / width**0.5
        number += 2
    image_proj = {
        "proj.weight": torch.randn(tokens * width, EMBED),
        "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    pipe.load_ip_adapter(
        {"image_proj": image_proj, "ip_adapter": adapter},
        subfolder=None,
        weight_name=None,
        image_encoder_folder=None,
    )
    pipe.set_ip_adapter_scale(scale)
    return pipe


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Variant:
    """A pipeline and the arguments it is called with, besides prompt, steps and seed."""

    make: Callable[[], Any]
    arguments: Callable[[torch.dtype], dict[str, Any]] = field(default=lambda dtype: {})
    size: tuple[int, int] = (32, 48)

    def run(self, pipe: Any, prompt: Any = PROMPT, **changes: Any) -> torch.Tensor:
        """The latents of one seeded call."""
        own = self.arguments(pipe.dtype)
        size = {} if "image" in own else {"height": self.size[0], "width": self.size[1]}
        arguments = {
            **size,
            "num_inference_steps": 3,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(7),
            **own,
            **changes,
        }
        if prompt is not None:
            arguments["prompt"] = prompt
        return pipe(**arguments).images


def _image_arguments(dtype: torch.dtype) -> dict[str, Any]:
    return {"image": picture(32, 48), "strength": 0.7}


def _inpaint_arguments(dtype: torch.dtype) -> dict[str, Any]:
    mask = Image.fromarray(np.pad(np.full((16, 24), 255, np.uint8), ((8, 8), (12, 12))))
    return {**_image_arguments(dtype), "mask_image": mask, "height": 32, "width": 48}


def _ip_arguments(dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(2)  # the unconditional half and the conditional one
    return {"ip_adapter_image_embeds": [torch.randn(2, 1, EMBED, dtype=dtype)]}


def _changed(change: Callable[[Any], None]) -> Callable[[], Any]:
    def make() -> Any:
        pipe = stable_diffusion()
        change(pipe)
        return pipe

    return make


def _img2img() -> Any:
    return quiet(StableDiffusionImg2ImgPipeline(**sd_parts()))


def _inpaint(channels: int) -> Any:
    return quiet(StableDiffusionInpaintPipeline(**sd_parts(in_channels=channels)))


VARIANTS = {
    "sd": Variant(stable_diffusion),
    "sd without guidance": Variant(stable_diffusion, lambda dtype: {"guidance_scale": 1.0}),
    "img2img": Variant(_img2img, _image_arguments),
    "inpaint": Variant(lambda: _inpaint(9), _inpaint_arguments),
    "inpaint, plain unet": Variant(lambda: _inpaint(4), _inpaint_arguments),
    "sdxl": Variant(sdxl),
    "controlnet": Variant(controlnet_pipeline, lambda dtype: {"image": picture(32, 48)}),
    "ip-adapter": Variant(lambda: add_ip_adapter(stable_diffusion()), _ip_arguments),
    "sliced": Variant(_changed(lambda pipe: pipe.enable_attention_slicing(1))),
    "default processor": Variant(_changed(lambda pipe: pipe.unet.set_default_attn_processor())),
    "fused qkv": Variant(_changed(lambda pipe: pipe.fuse_qkv_projections(vae=False))),
}
