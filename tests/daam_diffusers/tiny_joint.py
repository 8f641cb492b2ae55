"""Tiny pipelines whose denoiser attends over text and pixels at once, built offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
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
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from diffusers.pipelines.kandinsky5.pipeline_output import KandinskyImagePipelineOutput
from diffusers.pipelines.nucleusmoe_image.pipeline_nucleusmoe_image import DEFAULT_SYSTEM_PROMPT
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from tiny_pipelines import Variant, picture, quiet
from tiny_text import (
    byt5_encoder,
    byt5_tokenizer,
    clip_encoder,
    clip_tokenizer,
    llama_encoder,
    llama_tokenizer,
    mistral3,
    mistral3_processor,
    prx_encoder,
    prx_tokenizer,
    qwen3_encoder,
    qwen3_vl,
    qwen3_vl_processor,
    qwen_tokenizer,
    qwen_vl,
    qwen_vl_processor,
    smollm3_encoder,
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


def flow_vae(kind: Any = AutoencoderKL, levels: int = 2, **changes: Any) -> Any:
    """Two levels: 2 pixels a latent cell; models that pack 2x2 cells have 4 pixels a token."""
    return kind(
        **{
            "block_out_channels": (8,) * levels,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
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


def awake(module: torch.nn.Module) -> Any:
    """Give gates that begin at zero, so that training starts from the identity, random weights."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


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


def sd3(*, t5: bool = True, kind: Any = StableDiffusion3Pipeline, **changes: Any) -> Any:
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
        kind(
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


def sd35() -> Any:
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


QWEN_EDIT_TEMPLATE = QWEN_TEMPLATE + (
    " Describe the key features of the input image then explain how the user s text instruction"
    " should alter or modify the image Generate a new image that meets the user requirements while"
    " maintaining consistency with the original input where appropriate Picture"
)


def qwen_edit(kind: Any = QwenImageEditPipeline) -> Any:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(QWEN_EDIT_TEMPLATE)
    return quiet(
        kind(
            scheduler=flow(),
            vae=qwen_vae(),
            text_encoder=qwen_vl(16, tokenizer=tokenizer),
            tokenizer=tokenizer,
            processor=qwen_vl_processor(tokenizer),
            transformer=qwen_transformer(),
        )
    )


@dataclass(frozen=True)
class OneImage(Variant):
    """A pipeline whose output calls its images `image`."""

    def run(self, pipe: Any, *args: Any, **changes: Any) -> torch.Tensor:
        with patch.object(KandinskyImagePipelineOutput, "images", property(_image), create=True):
            return super().run(pipe, *args, **changes)


def _image(output: Any) -> torch.Tensor:
    return output.image


@dataclass(frozen=True)
class SmallReferences(Variant):
    """A pipeline that scales reference pictures to a megapixel, made to scale them to 32 x 64."""

    module: ModuleType = pipeline_qwenimage_edit

    def run(self, pipe: Any, *args: Any, **changes: Any) -> torch.Tensor:
        with patch.object(self.module, "calculate_dimensions", self._dimensions()):
            return super().run(pipe, *args, **changes)

    def _dimensions(self) -> Callable[..., tuple[int | None, ...]]:
        plus = self.module is pipeline_qwenimage_edit_plus
        return lambda area, ratio: (64, 32) if plus else (64, 32, None)


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


# -- relatives of FLUX ---------------------------------------------------------------------------


LONGCAT_TEMPLATE = (
    "As an image captioning expert generate a descriptive text prompt based on an image content"
    " suitable for input to a text to image model system user assistant"
)


def longcat() -> LongCatImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(LONGCAT_TEMPLATE)
    sizes = {**FLUX_SIZES, "in_channels": 64, "joint_attention_dim": 16}
    transformer = LongCatImageTransformer2DModel(
        **sizes, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8]
    )
    return quiet(
        LongCatImagePipeline(
            scheduler=flow(),
            vae=flow_vae(latent_channels=16, shift_factor=0.06),
            text_encoder=qwen_vl(16, tokenizer=tokenizer),
            tokenizer=tokenizer,
            text_processor=qwen_vl_processor(tokenizer),
            transformer=transformer.eval(),
        )
    )


def ovis() -> OvisImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(QWEN_TEMPLATE)
    sizes = {**FLUX_SIZES, "joint_attention_dim": 16, "out_channels": 16}
    return quiet(
        OvisImagePipeline(
            scheduler=flow(),
            vae=shifted_vae(),
            text_encoder=qwen3_encoder(16, tokenizer=tokenizer),
            tokenizer=tokenizer,
            transformer=OvisImageTransformer2DModel(**sizes, axes_dims_rope=(4, 4, 8)).eval(),
        )
    )


def bria() -> BriaPipeline:
    torch.manual_seed(0)
    return quiet(
        BriaPipeline(
            scheduler=flow(),
            vae=shifted_vae(),
            text_encoder=t5_encoder(),
            tokenizer=t5_tokenizer(),
            transformer=BriaTransformer2DModel(**FLUX_SIZES, axes_dims_rope=[4, 4, 8]).eval(),
        )
    )


def fibo() -> BriaFiboPipeline:
    """Every block reads another layer of the text encoder beside what the block before made."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        patch_size=2,  # 16 pixels a latent cell
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    sizes = {**FLUX_SIZES, "in_channels": 4, "joint_attention_dim": 32, "text_encoder_dim": 16}
    return quiet(
        BriaFiboPipeline(
            scheduler=flow(),
            vae=vae.eval(),
            text_encoder=smollm3_encoder(16),
            tokenizer=llama_tokenizer(start=False),
            transformer=BriaFiboTransformer2DModel(**sizes, axes_dims_rope=[4, 4, 8]).eval(),
        )
    )


# -- queries of the pixels alone -----------------------------------------------------------------


def prx() -> PRXPipeline:
    torch.manual_seed(0)
    transformer = PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=16,
        hidden_size=32,
        num_heads=2,
        depth=2,
        axes_dim=[8, 8],
    )
    pipe = quiet(
        PRXPipeline(
            transformer=awake(transformer),
            scheduler=flow(),
            text_encoder=prx_encoder(16),
            tokenizer=prx_tokenizer(),
            vae=shifted_vae(),
        )
    )
    pipe.text_preprocessor.clean_text = str.lower  # its own needs ftfy
    return pipe


def nucleus() -> NucleusMoEImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(DEFAULT_SYSTEM_PROMPT + " system user assistant")
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        mlp_ratio=8.0,  # the least that leaves a layer of any width
        moe_enabled=False,
        capacity_factors=8.0,
    )
    return quiet(
        NucleusMoEImagePipeline(
            transformer=transformer.eval(),
            scheduler=flow(),
            vae=qwen_vae(),
            text_encoder=qwen3_vl(16, tokenizer=tokenizer),
            processor=qwen3_vl_processor(tokenizer),
        )
    )


# -- one sequence --------------------------------------------------------------------------------


def glm_image() -> GlmImagePipeline:
    """The denoiser reads what stands in quotation marks, byte by byte, and nothing else."""
    torch.manual_seed(0)
    transformer = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=32,
    )
    return quiet(
        GlmImagePipeline(
            tokenizer=byt5_tokenizer(),
            processor=None,
            text_encoder=byt5_encoder(16),
            vision_language_encoder=None,
            vae=flow_vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
            transformer=transformer.eval(),
            scheduler=flow(),
        )
    )


def _glm_arguments(dtype: torch.dtype) -> dict[str, Any]:
    return {"prior_token_ids": torch.arange(8 * 12)[None] % 32}


def krea2() -> Krea2Pipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(QWEN_TEMPLATE)
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 8),
    )
    return quiet(
        Krea2Pipeline(
            scheduler=flow(),
            vae=qwen_vae(),
            text_encoder=qwen3_vl(16, tokenizer=tokenizer, head=False),
            tokenizer=tokenizer,
            transformer=transformer.eval(),
            text_encoder_select_layers=(1, 3),
        )
    )


def kandinsky5() -> Kandinsky5T2IPipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(QWEN_TEMPLATE + " You are a prompt engineer")
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=32,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 8),
    )
    pipe = quiet(
        Kandinsky5T2IPipeline(
            transformer=awake(transformer),
            vae=flow_vae(levels=4),
            text_encoder=qwen_vl(16, tokenizer=tokenizer),
            tokenizer=qwen_vl_processor(tokenizer),
            text_encoder_2=clip_encoder(),
            tokenizer_2=clip_tokenizer(),
            scheduler=flow(),
        )
    )
    pipe.resolutions = [(96, 64)]  # (width, height): of the trained ones, the nearest is taken
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
    "sd3 pag": Variant(
        lambda: sd3(kind=StableDiffusion3PAGPipeline),
        _sd3_arguments(pag_scale=2.0, negative_prompt="the left house"),
    ),
    "sd3 pag without guidance": Variant(
        lambda: sd3(kind=StableDiffusion3PAGPipeline),
        _sd3_arguments(pag_scale=2.0, guidance_scale=1.0),
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
    "qwen edit": SmallReferences(
        qwen_edit,
        lambda dtype: {"image": picture(32, 64), "height": 64, "width": 96},
    ),
    "qwen edit plus": SmallReferences(
        lambda: qwen_edit(QwenImageEditPlusPipeline),
        lambda dtype: {"image": [picture(32, 64), picture(16, 16)], "height": 64, "width": 96},
        module=pipeline_qwenimage_edit_plus,
    ),
    "longcat": Variant(
        longcat,
        lambda dtype: {"enable_prompt_rewrite": False, "negative_prompt": "the left house"},
    ),
    "ovis": Variant(ovis, _flux_arguments(negative_prompt="the left house")),
    "bria": Variant(bria, _flux_arguments(negative_prompt="the left house")),
    "fibo": Variant(fibo, lambda dtype: {"negative_prompt": "the left house"}, size=(64, 96)),
    "prx": Variant(
        prx, lambda dtype: {"use_resolution_binning": False, "negative_prompt": "the left house"}
    ),
    "nucleus": Variant(
        nucleus,
        lambda dtype: {"negative_prompt": "the left house", "return_index": -2},
        size=(64, 96),
    ),
    "glm image": Variant(glm_image, _glm_arguments),
    "krea2": Variant(
        krea2,
        lambda dtype: {"negative_prompt": "the left house", "max_sequence_length": 24},
        size=(64, 96),
    ),
    "kandinsky5": OneImage(
        kandinsky5, lambda dtype: {"negative_prompt": "the left house"}, size=(64, 96)
    ),
}
