"""Tiny video pipelines with random weights, each through its own pipeline class, built offline."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import tiny_text as text
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    MotionAdapter,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from tiny_pipelines import PROMPT, Variant, picture, quiet, sd_parts
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

SIZE = (64, 96)


@dataclass(frozen=True)
class Video(Variant):
    """A video pipeline, the frames asked of it and the cells (frames, rows, columns) it makes."""

    size: tuple[int, int] = SIZE
    frames: int = 17
    grid: tuple[int, int, int] = (5, 4, 6)
    text: str = "encoder_hidden_states"  # argument of the denoiser

    def run(self, pipe: Any, prompt: Any = PROMPT, **changes: Any) -> torch.Tensor:
        """The latents of one seeded call."""
        arguments = {
            "height": self.size[0],
            "width": self.size[1],
            "num_frames": self.frames,
            "num_inference_steps": 3,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(7),
            **self.arguments(pipe.dtype),
            **changes,
        }
        if prompt is not None:
            arguments["prompt"] = prompt
        return pipe(**arguments).frames


def t5() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"text_encoder": text.t5_encoder(), "tokenizer": text.t5_tokenizer()}


def flow(shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def animatediff() -> AnimateDiffPipeline:
    parts = sd_parts()
    del parts["safety_checker"], parts["requires_safety_checker"]
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
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    seen = CLIPVisionModel(config).eval()
    processor = CLIPImageProcessor(crop_size=32, size=32)
    return with_ftfy(
        WanImageToVideoPipeline(**parts, image_encoder=seen, image_processor=processor)
    )


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
        MochiPipeline(**parts, vae=vae.eval(), transformer=denoiser.eval(), scheduler=flow())
    )


def given(**arguments: Any) -> Callable[[torch.dtype], dict[str, Any]]:
    return lambda dtype: arguments


_SHORT = {"max_sequence_length": 16}
_IMAGE = {"image": picture(*SIZE)}
_LTX = {**_SHORT, "height": 32, "width": 64}

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
    "ltx": Video(ltx, given(**_LTX), grid=(5, 8, 16)),
    "ltx image-to-video": Video(
        lambda: ltx(LTXImageToVideoPipeline), given(**_LTX, image=picture(32, 64)), grid=(5, 8, 16)
    ),
    "ltx condition": Video(
        lambda: ltx(LTXConditionPipeline),
        given(**_LTX, conditions=[LTXVideoCondition(picture(32, 64), frame_index=8)]),
        grid=(5, 8, 16),
    ),
    "cogvideox": Video(cogvideox, given(**_SHORT)),
    "cogvideox image-to-video": Video(
        lambda: cogvideox(CogVideoXImageToVideoPipeline, in_channels=8), given(**_IMAGE, **_SHORT)
    ),
    "hunyuan-video": Video(hunyuan_video, given(max_sequence_length=24)),
    "mochi": Video(mochi, given(**_SHORT), frames=25),
}
