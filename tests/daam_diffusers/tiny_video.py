"""Tiny video pipelines with random weights, each through its own pipeline class, built offline."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import tiny_text as text
import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AnimateDiffPipeline,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    DPMSolverMultistepScheduler,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    MotionAdapter,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    TextToVideoSDPipeline,
    TextToVideoZeroPipeline,
    UNet3DConditionModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from tiny_pipelines import PROMPT, Variant, picture, quiet, scheduler, sd_parts, vae
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

SIZE = (64, 96)


@dataclass(frozen=True)
class Video(Variant):
    """A video pipeline, the frames asked of it and the cells (frames, rows, columns) it makes."""

    size: tuple[int, int] = SIZE
    frames: int = 17
    grid: tuple[int, int, int] = (5, 4, 6)

    def run(self, pipe: Any, prompt: Any = PROMPT, **changes: Any) -> torch.Tensor:
        """The latents of one seeded call."""
        names = inspect.signature(pipe.__call__).parameters
        number = next(name for name in ("num_frames", "video_length", "frames") if name in names)
        arguments = {
            "height": self.size[0],
            "width": self.size[1],
            number: self.frames,
            "num_inference_steps": 3,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(7),
            **self.arguments(pipe.dtype),
            **changes,
        }
        if prompt is not None:
            arguments["prompt"] = prompt
        torch.manual_seed(7)  # I2VGenXL encodes its image with the global generator
        return pipe(**arguments, return_dict=False)[0]


def t5() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"text_encoder": text.t5_encoder(), "tokenizer": text.t5_tokenizer()}


def vision(kind: Any, width: int) -> tuple[Any, CLIPImageProcessor]:
    """CLIP's image encoder, 5 tokens an image, and its processor."""
    config = CLIPVisionConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return kind(config).eval(), CLIPImageProcessor(crop_size=32, size=32)


def filled(denoiser: Any) -> Any:
    """Random values for weights that start at zero, which keep whole layers out of the output."""
    for weight in denoiser.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return denoiser.eval()


def flow(shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def sd_video_parts(unet: Any = None) -> dict[str, Any]:
    """Stable Diffusion's parts without its checker of images, with another U-Net if given."""
    parts = {name: part for name, part in sd_parts().items() if "safety" not in name}
    return {**parts, "unet": filled(unet)} if unet is not None else parts


def animatediff() -> AnimateDiffPipeline:
    parts = sd_video_parts()
    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
    )
    return quiet(AnimateDiffPipeline(**parts, motion_adapter=adapter.eval()))


def _free_noise() -> AnimateDiffPipeline:
    pipe = animatediff()
    pipe.enable_free_noise(context_length=4, context_stride=2)
    return pipe


def wan_vae() -> AutoencoderKLWan:
    """4 frames a latent frame after the first, 8 pixels a latent cell."""
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()


def wan_denoiser(kind: Any = WanTransformer3DModel, **changes: Any) -> Any:
    config = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return kind(**{**config, **changes}).eval()


def wan_parts(kind: Any = WanTransformer3DModel, *, two: bool = False, **changes: Any) -> Any:
    torch.manual_seed(0)
    return {
        "transformer": wan_denoiser(kind, **changes),
        "vae": wan_vae(),
        "scheduler": flow(),
        "text_encoder": text.umt5_encoder(),
        "tokenizer": text.t5_tokenizer(),
        # Of three steps two are above the boundary: the second denoiser makes the last.
        **({"transformer_2": wan_denoiser(kind, **changes), "boundary_ratio": 0.5} if two else {}),
    }


def with_ftfy(pipe: Any) -> Any:
    """Some of Wan's pipelines clean prompts with `ftfy` whether it is installed or not."""
    vars(sys.modules[type(pipe).__module__]).setdefault("ftfy", SimpleNamespace(fix_text=str))
    return quiet(pipe)


def wan_image_to_video() -> WanImageToVideoPipeline:
    """Wan 2.1: a layer attends to the image's embeddings first, then to the text."""
    parts = wan_parts(in_channels=36, image_dim=16, added_kv_proj_dim=24)
    eye, processor = vision(CLIPVisionModel, 16)
    return with_ftfy(WanImageToVideoPipeline(**parts, image_encoder=eye, image_processor=processor))


def ltx(kind: Any = LTXPipeline) -> Any:
    """Its tiny VAE has 4 frames a latent frame and 4 pixels a cell."""
    parts = t5()
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        patch_size_t=1,
    )
    denoiser = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    return quiet(kind(**parts, vae=vae.eval(), transformer=denoiser.eval(), scheduler=flow()))


def cogvideox(kind: Any = CogVideoXPipeline, **changes: Any) -> Any:
    parts = t5()
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 32,
        "num_layers": 2,
        "sample_width": 12,
        "sample_height": 8,
        "sample_frames": 17,
        "max_text_seq_length": 16,
        "use_rotary_positional_embeddings": True,
    }
    denoiser = CogVideoXTransformer3DModel(**{**config, **changes})
    scheduler = CogVideoXDDIMScheduler()
    return quiet(kind(**parts, vae=vae.eval(), transformer=denoiser.eval(), scheduler=scheduler))


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()


def hunyuan_video() -> HunyuanVideoPipeline:
    torch.manual_seed(0)
    tokenizer = text.llama_tokenizer(DEFAULT_PROMPT_TEMPLATE["template"])
    denoiser = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(2, 4, 4),
    )
    return quiet(
        HunyuanVideoPipeline(
            text_encoder=text.llama_encoder(tokenizer=tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=text.clip_encoder(),
            tokenizer_2=text.clip_tokenizer(),
            transformer=denoiser.eval(),
            vae=hunyuan_vae(),
            scheduler=flow(),
        )
    )


def mochi() -> MochiPipeline:
    parts = t5()
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )
    denoiser = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return quiet(
        MochiPipeline(**parts, vae=vae.eval(), transformer=filled(denoiser), scheduler=flow())
    )


def levels(*kinds: str) -> dict[str, Any]:
    """Sizes of a U-Net of two levels, the first with attention to text."""
    down, up = kinds
    return {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttn" + down, down),
        "up_block_types": (up, "CrossAttn" + up),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }


def text_to_video_sd() -> TextToVideoSDPipeline:
    torch.manual_seed(0)
    parts = sd_video_parts(UNet3DConditionModel(**levels("DownBlock3D", "UpBlock3D")))
    del parts["feature_extractor"]
    return quiet(TextToVideoSDPipeline(**parts))


def i2vgen_xl() -> I2VGenXLPipeline:
    torch.manual_seed(0)
    parts = sd_video_parts(I2VGenXLUNet(**levels("DownBlock3D", "UpBlock3D")))
    eye, parts["feature_extractor"] = vision(CLIPVisionModelWithProjection, 32)
    return quiet(I2VGenXLPipeline(**parts, image_encoder=eye))


def latte() -> LattePipeline:
    denoiser = LatteTransformer3DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=5,
    )
    parts = {**t5(), "vae": vae(), "scheduler": scheduler()}
    return quiet(LattePipeline(**parts, transformer=denoiser.eval()))


def allegro() -> AllegroPipeline:
    parts = t5()
    vae = AutoencoderKLAllegro(block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2)
    denoiser = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        sample_height=8,
        sample_width=12,
        sample_frames=5,
        caption_channels=32,
    )
    parts |= {"vae": vae.eval(), "scheduler": EulerAncestralDiscreteScheduler()}
    return quiet(AllegroPipeline(**parts, transformer=denoiser.eval()))


def easyanimate() -> EasyAnimatePipeline:
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    denoiser = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=12,
        sample_height=8,
        num_layers=2,
        mmdit_layers=1,  # the second layer has one set of weights for text and pixels
        time_embed_dim=8,
        text_embed_dim=32,
    )
    return quiet(
        EasyAnimatePipeline(
            text_encoder=text.qwen_vl(),
            tokenizer=text.qwen_tokenizer(),
            transformer=denoiser.eval(),
            vae=vae.eval(),
            scheduler=flow(),
        )
    )


def skyreels_v2() -> SkyReelsV2Pipeline:
    parts = wan_parts(SkyReelsV2Transformer3DModel)
    parts["scheduler"] = UniPCMultistepScheduler(
        flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    return with_ftfy(SkyReelsV2Pipeline(**parts))


def wan_vace() -> WanVACEPipeline:
    return with_ftfy(WanVACEPipeline(**wan_parts(WanVACETransformer3DModel, vace_layers=[0])))


class _Unchecked(torch.nn.Module):
    """Stands for Cosmos' checker of contents, which is a package and models of its own."""

    device, dtype = torch.device("cpu"), torch.float32

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def cosmos() -> CosmosTextToWorldPipeline:
    """Without the padding mask's channel: resizing it takes torchvision."""
    parts = t5()
    vae = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8,) * 4,
        decode_block_out_channels=(8,) * 4,
        attention_resolutions=(8,),
        resolution=64,
        num_layers=2,
        patch_size=4,
        scaling_factor=1.0,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )
    denoiser = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(8, 32, 32),
        concat_padding_mask=False,
    )
    parts |= {"scheduler": EDMEulerScheduler(sigma_schedule="karras"), "vae": vae.eval()}
    return quiet(
        CosmosTextToWorldPipeline(
            **parts, transformer=filled(denoiser), safety_checker=_Unchecked()
        )
    )


def _cropped(pipe: Any, tokenizer: Any, templated: str) -> Any:
    """Have the pipeline drop the tokens before the prompt: it counts those of a real tokenizer."""
    before = templated.split(PROMPT)[0]
    pipe.prompt_template_encode_start_idx = len(tokenizer(before).input_ids)
    return quiet(pipe)


def kandinsky5() -> Kandinsky5T2VPipeline:
    torch.manual_seed(0)
    denoiser = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=32,
        in_text_dim2=32,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(2, 2, 4),
    )
    pipe = Kandinsky5T2VPipeline(
        transformer=filled(denoiser),
        vae=hunyuan_vae(),
        text_encoder=text.qwen_vl(),
        tokenizer=text.qwen_vl_processor(),
        text_encoder_2=text.clip_encoder(),
        tokenizer_2=text.clip_tokenizer(),
        scheduler=flow(),
    )
    return _cropped(pipe, text.qwen_tokenizer(), pipe.prompt_template.format(PROMPT))


def sana_video() -> SanaVideoPipeline:
    torch.manual_seed(0)
    denoiser = SanaVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=32,
        sample_size=8,
        rope_max_seq_len=32,
    )
    return quiet(
        SanaVideoPipeline(
            transformer=denoiser.eval(),
            vae=wan_vae(),
            scheduler=DPMSolverMultistepScheduler(),
            text_encoder=text.gemma_encoder(),
            tokenizer=copy.deepcopy(text.gemma_tokenizer()),  # its padding side is changed
        )
    )


def hunyuan_video15() -> HunyuanVideo15Pipeline:
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16,) * 5,
        layers_per_block=1,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    denoiser = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=32,
        text_embed_2_dim=32,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
        target_size=64,
        task_type="t2v",
    )
    tokenizer = text.qwen_tokenizer()
    pipe = HunyuanVideo15Pipeline(
        transformer=denoiser.eval(),
        vae=vae.eval(),
        text_encoder=text.qwen_vl().model.language_model,
        tokenizer=tokenizer,
        text_encoder_2=text.byt5_encoder(),
        tokenizer_2=text.byt5_tokenizer(),
        scheduler=flow(),
        guider=ClassifierFreeGuidance(guidance_scale=5.0),
    )
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 40, 24
    pipe.vision_num_semantic_tokens = 10
    messages = format_text_input([PROMPT], pipe.system_message)
    (templated,) = tokenizer.apply_chat_template(messages, tokenize=False)
    return _cropped(pipe, tokenizer, templated)


def ltx2() -> LTX2Pipeline:
    """Video and sound: learned registers stand in for padding, so the prompt's rows come first."""
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(text.gemma_tokenizer())  # its padding side is changed
    language = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": tokenizer.pad_token_id,
    }
    eye = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    eye |= {"intermediate_size": 16, "image_size": 16, "patch_size": 8}
    config = Gemma3Config(text_config=language, vision_config=eye, mm_tokens_per_image=4)
    connector = {"num_attention_heads": 4, "attention_head_dim": 4, "num_layers": 1}
    connector["num_learnable_registers"] = 8
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=3,
        rope_type="split",
        **{f"{kind}_connector_{k}": v for kind in ("video", "audio") for k, v in connector.items()},
    )
    denoiser = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=16,
        rope_type="split",
    )
    video_vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal",) * 2,
        upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(False,) * 2,
        upsample_factor=(1, 1),
        patch_size=1,
    )
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    return quiet(
        LTX2Pipeline(
            scheduler=flow(),
            vae=video_vae.eval(),
            audio_vae=audio_vae.eval(),
            text_encoder=Gemma3ForConditionalGeneration(config).eval(),
            tokenizer=tokenizer,
            connectors=connectors.eval(),
            transformer=denoiser.eval(),
            vocoder=vocoder.eval(),
        )
    )


def given(**arguments: Any) -> Callable[[torch.dtype], dict[str, Any]]:
    return lambda dtype: arguments


_SHORT = {"max_sequence_length": 16}
_IMAGE = {"image": picture(*SIZE)}
_LTX: dict[str, Any] = {"size": (32, 64), "grid": (5, 8, 16)}

VIDEOS = {
    "animatediff": Video(animatediff, size=(16, 24), frames=5, grid=(5, 8, 12)),
    "animatediff free noise": Video(_free_noise, size=(16, 24), frames=7, grid=(7, 8, 12)),
    "wan": Video(lambda: quiet(WanPipeline(**wan_parts())), given(**_SHORT)),
    "wan 2.2": Video(lambda: quiet(WanPipeline(**wan_parts(two=True))), given(**_SHORT)),
    # The number of text columns is fixed where a layer attends to an image's embeddings.
    "wan image-to-video": Video(wan_image_to_video, given(**_IMAGE)),
    "wan 2.2 image-to-video": Video(
        lambda: with_ftfy(WanImageToVideoPipeline(**wan_parts(two=True, in_channels=36))),
        given(**_IMAGE, **_SHORT),
    ),
    "ltx": Video(ltx, given(**_SHORT), **_LTX),
    "ltx image-to-video": Video(
        lambda: ltx(LTXImageToVideoPipeline), given(**_SHORT, image=picture(32, 64)), **_LTX
    ),
    "ltx condition": Video(
        lambda: ltx(LTXConditionPipeline),
        given(**_SHORT, conditions=[LTXVideoCondition(picture(32, 64), frame_index=8)]),
        **_LTX,
    ),
    "cogvideox": Video(cogvideox, given(**_SHORT)),
    "cogvideox image-to-video": Video(
        lambda: cogvideox(CogVideoXImageToVideoPipeline, in_channels=8), given(**_IMAGE, **_SHORT)
    ),
    "hunyuan-video": Video(hunyuan_video, given(max_sequence_length=24)),
    "mochi": Video(mochi, given(**_SHORT), frames=25),
    # Frames lie in the batch; the U-Net repeats the text for each.
    "text-to-video-sd": Video(text_to_video_sd, size=(16, 24), frames=5, grid=(5, 8, 12)),
    "i2vgen-xl": Video(
        i2vgen_xl,
        given(image=picture(16, 24), clip_skip=None),
        size=(16, 24),
        frames=5,
        grid=(5, 8, 12),
    ),
    # Sets processors of its own during the call.
    "text-to-video-zero": Video(
        lambda: quiet(TextToVideoZeroPipeline(**sd_parts())),
        given(t0=1, t1=2),
        size=(16, 24),
        frames=5,
        grid=(5, 8, 12),
    ),
    "latte": Video(latte, given(clean_caption=False), size=(16, 24), frames=5, grid=(5, 4, 6)),
    "allegro": Video(allegro, given(**_SHORT, clean_caption=False), frames=20),
    "easyanimate": Video(easyanimate, given(negative_prompt="the left house")),
    "skyreels-v2": Video(skyreels_v2, given(**_SHORT)),
    "wan vace": Video(wan_vace, given(**_SHORT)),
    "cosmos": Video(cosmos, given(**_SHORT)),
    "kandinsky5": Video(
        kandinsky5, given(max_sequence_length=24, negative_prompt="the left house")
    ),
    "sana-video": Video(
        sana_video,
        given(max_sequence_length=24, use_resolution_binning=False, complex_human_instruction=None),
    ),
    "hunyuan-video 1.5": Video(hunyuan_video15),
    "ltx2": Video(ltx2, given(**_SHORT, spatio_temporal_guidance_blocks=[1]), **_LTX),
}
