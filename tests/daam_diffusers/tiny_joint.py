"""Tiny pipelines whose denoiser attends over text and pixels at once, built offline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tiny_pipelines import Variant, picture, quiet
from tiny_text import (
    clip_encoder,
    clip_tokenizer,
    llama_encoder,
    llama_tokenizer,
    mistral3,
    mistral3_processor,
    qwen3_encoder,
    qwen_tokenizer,
    qwen_vl,
    t5_encoder,
    t5_tokenizer,
    umt5_encoder,
)

QWEN_TEMPLATE = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial"
    " relationships of the objects and background: system user assistant"
)


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler()


def flow_vae(kind: Any = AutoencoderKL, **changes: Any) -> Any:
    """Two levels, so 2 pixels a latent cell; models that pack 2x2 cells have 4 pixels a token."""
    return kind(
        **{
            "block_out_channels": (8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            **changes,
        }
    ).eval()


def shifted_vae() -> AutoencoderKL:
    return flow_vae(
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5
    )


# -- FLUX ----------------------------------------------------------------------------------------

FLUX_SIZES: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
}


def flux(kind: Any = FluxPipeline, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"pooled_projection_dim": 32, "axes_dims_rope": [4, 4, 8], "guidance_embeds": True}
    return quiet(
        kind(
            scheduler=flow(),
            vae=shifted_vae(),
            text_encoder=clip_encoder(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5_encoder(),
            tokenizer_2=t5_tokenizer(),
            transformer=FluxTransformer2DModel(**{**FLUX_SIZES, **sizes, **changes}).eval(),
        )
    )


def _flux_arguments(**more: Any) -> Any:
    return lambda dtype: {"max_sequence_length": 16, **more}


def _fill_arguments(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "image": picture(32, 48),
        "mask_image": picture(32, 48).convert("L"),
        "height": 32,
        "width": 48,
        "max_sequence_length": 16,
    }


def _kontext_arguments(dtype: torch.dtype) -> dict[str, Any]:
    """A reference picture of another size, 4 x 6 tokens after the 8 x 12 of the latents."""
    return {
        "image": picture(16, 24),
        "height": 32,
        "width": 48,
        "max_area": 32 * 48,
        "_auto_resize": False,
        "max_sequence_length": 16,
    }


def _flux2_transformer(text: int, guidance: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        **{
            **FLUX_SIZES,
            "joint_attention_dim": text,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": (4, 4, 4, 4),
            "guidance_embeds": guidance,
        }
    ).eval()


def flux2() -> Flux2Pipeline:
    torch.manual_seed(0)
    tokenizer = llama_tokenizer(SYSTEM_MESSAGE, start=False)
    return quiet(
        Flux2Pipeline(
            scheduler=flow(),
            vae=flow_vae(AutoencoderKLFlux2),
            text_encoder=mistral3(16, tokenizer=tokenizer),
            tokenizer=mistral3_processor(tokenizer),
            transformer=_flux2_transformer(48, guidance=True),
        )
    )


def flux2_klein(**changes: Any) -> Flux2KleinPipeline:
    torch.manual_seed(0)
    return quiet(
        Flux2KleinPipeline(
            scheduler=flow(),
            vae=flow_vae(AutoencoderKLFlux2),
            text_encoder=qwen3_encoder(16, head=True, tokenizer=qwen_tokenizer(QWEN_TEMPLATE)),
            tokenizer=qwen_tokenizer(QWEN_TEMPLATE),
            transformer=_flux2_transformer(48, guidance=False),
            **changes,
        )
    )


def _flux2_arguments(length: int, **more: Any) -> Any:
    return lambda dtype: {
        "max_sequence_length": length,
        "text_encoder_out_layers": (1, 2, 3),
        **more,
    }


# -- Stable Diffusion 3 --------------------------------------------------------------------------


def sd3(*, t5: bool = True, **changes: Any) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    sizes = {
        "sample_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
    }
    return quiet(
        StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(**{**sizes, **changes}).eval(),
            scheduler=flow(),
            vae=shifted_vae(),
            text_encoder=clip_encoder(16, projected=32),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_encoder(16, projected=32),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5_encoder() if t5 else None,
            tokenizer_3=t5_tokenizer() if t5 else None,
        )
    )


def sd35() -> StableDiffusion3Pipeline:
    """Layer 0 attends twice: over text and pixels, then over the pixels alone (`attn2`)."""
    return sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def _sd3_arguments(**more: Any) -> Any:
    return lambda dtype: {"max_sequence_length": 16, **more}


# -- one text encoder ----------------------------------------------------------------------------


def chroma() -> ChromaPipeline:
    torch.manual_seed(0)
    sizes = {
        "axes_dims_rope": (4, 4, 8),
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    }
    return quiet(
        ChromaPipeline(
            scheduler=flow(),
            vae=shifted_vae(),
            text_encoder=t5_encoder(),
            tokenizer=t5_tokenizer(),
            transformer=ChromaTransformer2DModel(**FLUX_SIZES, **sizes).eval(),
        )
    )


def auraflow() -> AuraFlowPipeline:
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return quiet(
        AuraFlowPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=umt5_encoder(),
            vae=flow_vae(),
            transformer=transformer.eval(),
            scheduler=flow(),
        )
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    """Three temporal levels, so 8 pixels a latent cell and 16 a token."""
    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def qwen_transformer() -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def qwen_image() -> QwenImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(QWEN_TEMPLATE)
    return quiet(
        QwenImagePipeline(
            scheduler=flow(),
            vae=qwen_vae(),
            text_encoder=qwen_vl(16, tokenizer=tokenizer),
            tokenizer=tokenizer,
            transformer=qwen_transformer(),
        )
    )


# -- HiDream -------------------------------------------------------------------------------------


def hidream() -> HiDreamImagePipeline:
    torch.manual_seed(0)
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[32, 24],
        text_emb_dim=64,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 4, 8),
        max_resolution=(24, 24),
        llama_layers=[0, 1, 2],
    )
    pipe = quiet(
        HiDreamImagePipeline(
            scheduler=flow(),
            vae=shifted_vae(),
            text_encoder=clip_encoder(16, projected=32),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_encoder(16, projected=32),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5_encoder(),
            tokenizer_3=t5_tokenizer(),
            text_encoder_4=llama_encoder(24, head=True),
            tokenizer_4=llama_tokenizer(),
            transformer=transformer.eval(),
        )
    )
    # Every picture is scaled to the area of the default one, here 40 x 40 pixels.
    pipe.default_sample_size = 20
    return pipe


VARIANTS = {
    "flux dev": Variant(flux, _flux_arguments()),
    "flux schnell": Variant(
        lambda: flux(guidance_embeds=False), _flux_arguments(guidance_scale=0.0)
    ),
    "flux true guidance": Variant(
        flux, _flux_arguments(true_cfg_scale=3.0, negative_prompt="the left house")
    ),
    "flux kontext": Variant(lambda: flux(FluxKontextPipeline), _kontext_arguments),
    "flux fill": Variant(
        lambda: flux(FluxFillPipeline, in_channels=48, out_channels=16), _fill_arguments
    ),
    "flux2": Variant(flux2, _flux2_arguments(64)),
    "flux2 reference": Variant(
        flux2,
        _flux2_arguments(64, image=picture(64, 96), height=32, width=48),
    ),
    "flux2 klein": Variant(flux2_klein, _flux2_arguments(24)),
    "flux2 klein distilled": Variant(lambda: flux2_klein(is_distilled=True), _flux2_arguments(24)),
    "sd3": Variant(sd3, _sd3_arguments()),
    "sd3 without t5": Variant(lambda: sd3(t5=False), _sd3_arguments()),
    "sd3 without guidance": Variant(sd3, _sd3_arguments(guidance_scale=1.0)),
    "sd3.5": Variant(sd35, _sd3_arguments()),
    "sd3.5 skip-layer guidance": Variant(
        sd35,
        _sd3_arguments(
            skip_guidance_layers=[1],
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
        ),
    ),
    "chroma": Variant(chroma, _flux_arguments(negative_prompt="the left house")),
    "auraflow": Variant(auraflow, _flux_arguments(negative_prompt="the left house")),
    "qwen": Variant(qwen_image, lambda dtype: {}, size=(64, 96)),
    "qwen true guidance": Variant(
        qwen_image,
        lambda dtype: {"true_cfg_scale": 4.0, "negative_prompt": "the left house"},
        size=(64, 96),
    ),
    "hidream": Variant(hidream, _flux_arguments(negative_prompt="the left house")),
}
