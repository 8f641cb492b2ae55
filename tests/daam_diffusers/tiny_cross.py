"""Tiny pipelines of random weights whose denoisers attend across, or in one stream: images only."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any
from unittest import mock

import tiny_text as text
import torch
from diffusers import (
    AutoencoderDC,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    KandinskyPipeline,
    LDMTextToImagePipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPAGPipeline,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SemanticStableDiffusionPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPAGPipeline,
    UNet2DConditionModel,
    VQModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from tiny_pipelines import Variant, picture, quiet, scheduler, sd_parts, sdxl, unet, vae
from tiny_tokenizer import WORDS, clip_tokenizer
from transformers import BertConfig, BertModel, XLMRobertaTokenizer

with warnings.catch_warnings():  # of a kind that depends on torch
    warnings.filterwarnings("ignore", r".torch\.jit\.script. is deprecated")
    from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

OMNIGEN_TEMPLATE = "user Generate an image according to the following instructions assistant"


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def gemma_tokenizer() -> Any:
    """A tokenizer of one's own, as some pipelines set its padding side; `<bos>` at the start."""
    tokenizer = copy.deepcopy(text.gemma_tokenizer())
    tokenizer.add_bos_token = True
    return tokenizer


def pixart(cls: Any = PixArtSigmaPipeline, **pipe_changes: Any) -> Any:
    torch.manual_seed(0)
    denoiser = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        cross_attention_dim=24,
    )
    return quiet(
        cls(
            vae=vae(),
            text_encoder=text.t5_encoder(),
            tokenizer=text.t5_tokenizer(),
            transformer=denoiser.eval(),
            scheduler=scheduler(),
            **pipe_changes,
        )
    )


def sana(cls: Any = SanaPipeline, **pipe_changes: Any) -> Any:
    torch.manual_seed(0)
    sprint = cls is SanaSprintPipeline
    denoiser = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=32,
        sample_size=32,
        guidance_embeds=sprint,
        qk_norm="rms_norm_across_heads" if sprint else None,
    )
    pixels = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    return quiet(
        cls(
            tokenizer=gemma_tokenizer(),
            text_encoder=text.gemma_encoder(),
            vae=pixels.eval(),
            transformer=denoiser.eval(),
            scheduler=SCMScheduler() if sprint else flow(),
            **pipe_changes,
        )
    )


def lumina2() -> Lumina2Pipeline:
    torch.manual_seed(0)
    denoiser = Lumina2Transformer2DModel(
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 16, 16),
        cap_feat_dim=32,
    )
    return quiet(
        Lumina2Pipeline(
            transformer=denoiser.eval(),
            scheduler=flow(),
            vae=vae(4),
            text_encoder=text.gemma_encoder(),
            tokenizer=gemma_tokenizer(),
        )
    )


def z_image() -> ZImagePipeline:
    torch.manual_seed(0)
    denoiser = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=32,
        axes_dims=[4, 2, 2],
        axes_lens=[256, 16, 16],
    )
    for name in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(denoiser, name))
    return quiet(
        ZImagePipeline(
            scheduler=flow(),
            vae=vae(),
            text_encoder=text.qwen3_encoder(),
            tokenizer=text.qwen_tokenizer(),
            transformer=denoiser.eval(),
        )
    )


def hunyuan_dit(cls: Any = HunyuanDiTPipeline, **pipe_changes: Any) -> Any:
    torch.manual_seed(0)
    denoiser = HunyuanDiT2DModel(
        sample_size=16,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        hidden_size=24,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
    )
    tokenizer = clip_tokenizer()
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=77,
        )
    )
    return quiet(
        cls(
            vae=vae(4),
            text_encoder=bert.eval(),
            tokenizer=tokenizer,
            text_encoder_2=text.t5_encoder(),
            tokenizer_2=text.t5_tokenizer(256),
            transformer=denoiser.eval(),
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **pipe_changes,
        )
    )


class Pieces:
    """Stands in for the SentencePiece model of ChatGLM's tokenizer, which no package here reads."""

    def __init__(self, path: str) -> None:
        names = ["<unk>", "<s>", "</s>", "▁", *text.CHARACTERS, *("▁" + word for word in WORDS)]
        self.bos_id, self.eos_id, self.pad_id = 1, 2, 0
        names += ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
        self.names, self.n_words = names, len(names)
        self.special_tokens = {name: names.index(name) for name in names[-5:]}

    def tokenize(self, sentence: str, encode_special_tokens: bool = False) -> list[str]:
        pieces = []
        for word in ("▁" + word for word in sentence.split()):
            pieces += [word] if word in self.names else list(word)
        return pieces

    def convert_token_to_id(self, token: str) -> int:
        return self.names.index(token) if token in self.names else 0

    def convert_id_to_token(self, index: int) -> str:
        return self.names[index]

    def decode_tokens(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ").strip()


def chatglm_tokenizer() -> ChatGLMTokenizer:
    with mock.patch("diffusers.pipelines.kolors.tokenizer.SPTokenizer", Pieces):
        return ChatGLMTokenizer("", model_max_length=256)


def kolors() -> KolorsPipeline:
    torch.manual_seed(0)
    tokenizer = chatglm_tokenizer()
    encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            ffn_hidden_size=64,
            kv_channels=8,
            num_attention_heads=4,
            multi_query_attention=True,
            multi_query_group_num=2,
            original_rope=True,
            add_qkv_bias=True,
        ),
        empty_init=False,
    )
    _fill(encoder)
    denoiser = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        encoder_hid_dim_type="text_proj",
        encoder_hid_dim=32,
        cross_attention_dim=24,
    )
    return quiet(
        KolorsPipeline(
            vae=vae(),
            text_encoder=encoder.eval(),
            tokenizer=tokenizer,
            unet=denoiser,
            scheduler=EulerDiscreteScheduler(),
        )
    )


def _fill(module: torch.nn.Module) -> None:
    """Give weights that are left empty, as those of checkpoints are, values of their own."""
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)


def cogview3() -> CogView3PlusPipeline:
    torch.manual_seed(0)
    denoiser = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=16,
        sample_size=16,
    )
    return quiet(
        CogView3PlusPipeline(
            tokenizer=text.t5_tokenizer(),
            text_encoder=text.t5_encoder(),
            vae=vae(),
            transformer=denoiser.eval(),
            scheduler=CogVideoXDDIMScheduler(),
        )
    )


def cogview4() -> CogView4Pipeline:
    torch.manual_seed(0)
    denoiser = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
        sample_size=16,
    )
    return quiet(
        CogView4Pipeline(
            tokenizer=text.glm_tokenizer(),
            text_encoder=text.glm_encoder(),
            vae=vae(),
            transformer=denoiser.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(
                base_shift=0.25,
                max_shift=0.75,
                use_dynamic_shifting=True,
                time_shift_type="linear",
            ),
        )
    )


def added_unet(**changes: Any) -> UNet2DConditionModel:
    """Two levels that attend to text and pixels at once: DeepFloyd IF, Kandinsky 2, unCLIP."""
    config = {
        "block_out_channels": (16, 32),
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "cross_attention_dim": 32,
        "encoder_hid_dim": 32,
        "attention_head_dim": 8,
        "resnet_time_scale_shift": "scale_shift",
    }
    return unet(**{**config, **changes})


def deepfloyd(cls: Any = IFPipeline) -> Any:
    torch.manual_seed(0)
    larger = cls is IFSuperResolutionPipeline
    denoiser = added_unet(
        in_channels=6 if larger else 3,
        out_channels=6,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        class_embed_type="timestep" if larger else None,
        act_fn="gelu",
    )
    noise = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    return quiet(
        cls(
            tokenizer=text.t5_tokenizer(77),
            text_encoder=text.t5_encoder(),
            unet=denoiser,
            scheduler=noise,
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
            **({"image_noising_scheduler": DDPMScheduler()} if larger else {}),
        )
    )


def lumina_next() -> LuminaPipeline:
    torch.manual_seed(0)
    denoiser = LuminaNextDiT2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=32,
    )
    _fill(denoiser)
    return quiet(
        LuminaPipeline(
            transformer=denoiser.eval(),
            scheduler=flow(),
            vae=vae(4),
            text_encoder=text.gemma_encoder(),
            tokenizer=gemma_tokenizer(),
        )
    )


def kandinsky() -> KandinskyPipeline:
    """Kandinsky 2.1, whose keys begin with those of an image."""
    torch.manual_seed(0)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *("▁" + word for word in WORDS)]
    vocabulary = [(piece, -1.0) for piece in [*pieces, *text.CHARACTERS, "<mask>"]]
    tokenizer = XLMRobertaTokenizer(vocab=vocabulary, model_max_length=77)
    encoder = MultilingualCLIP(
        MCLIPConfig(
            vocab_size=len(tokenizer),
            transformerDimSize=32,
            imageDimSize=32,
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=4,
            num_hidden_layers=2,
            max_position_embeddings=80,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    denoiser = added_unet(
        out_channels=8,
        addition_embed_type="text_image",
        encoder_hid_dim_type="text_image_proj",
    )
    return quiet(
        KandinskyPipeline(
            text_encoder=encoder.eval(),
            tokenizer=tokenizer,
            unet=denoiser,
            scheduler=scheduler(),
            movq=movq(),
        )
    )


def movq() -> VQModel:
    return VQModel(
        block_out_channels=(32,) * 4,  # its norms have 32 groups
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    ).eval()


def kandinsky3() -> Kandinsky3Pipeline:
    torch.manual_seed(0)
    denoiser = Kandinsky3UNet(
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(8, 8, 16, 16),
        cross_attention_dim=32,
        encoder_hid_dim=32,
    )
    for module in denoiser.modules():  # each cell by itself, or the levels smear what is planted
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            center = module.weight[..., 1:2, 1:2].detach()
            module.weight.data = torch.nn.functional.pad(3 * center, (1, 1, 1, 1))
    return quiet(
        Kandinsky3Pipeline(
            tokenizer=text.t5_tokenizer(),
            text_encoder=text.t5_encoder(),
            unet=denoiser.eval(),
            scheduler=DDPMScheduler(),
            movq=movq(),
        )
    )


def omnigen() -> OmniGenPipeline:
    torch.manual_seed(0)
    tokenizer = text.llama_tokenizer(OMNIGEN_TEMPLATE)
    denoiser = OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=64,
        num_layers=2,
        pad_token_id=0,
        vocab_size=len(tokenizer),
        rope_scaling={"long_factor": [1] * 4, "short_factor": [1] * 4},
        pos_embed_max_size=32,
        time_step_dim=16,
    )
    with (  # diffusers leaves these names out without torchvision, which only input images need
        mock.patch.object(processor_omnigen, "transforms", create=True),
        mock.patch.object(
            pipeline_omnigen,
            "OmniGenMultiModalProcessor",
            processor_omnigen.OmniGenMultiModalProcessor,
            create=True,
        ),
    ):
        pipe = OmniGenPipeline(
            transformer=denoiser.eval(), scheduler=flow(), vae=vae(4), tokenizer=tokenizer
        )
    return quiet(pipe)


def latent_diffusion() -> LDMTextToImagePipeline:
    parts = sd_parts()
    tokenizer = parts["tokenizer"]
    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=len(tokenizer),
            encoder_layers=2,
            encoder_ffn_dim=64,
            encoder_attention_heads=4,
            head_dim=8,
            d_model=32,
        )
    )
    return quiet(
        LDMTextToImagePipeline(
            vqvae=vae(4),
            bert=bert.eval(),
            tokenizer=tokenizer,
            unet=parts["unet"],
            scheduler=parts["scheduler"],
        )
    )


def instruct_pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    return quiet(StableDiffusionInstructPix2PixPipeline(**sd_parts(in_channels=8)))


def sdxl_instruct_pix2pix() -> StableDiffusionXLInstructPix2PixPipeline:
    parts = _text_to_image(sdxl())
    parts["unet"] = UNet2DConditionModel.from_config(parts["unet"].config, in_channels=8).eval()
    return quiet(StableDiffusionXLInstructPix2PixPipeline(**parts))


def _text_to_image(pipe: Any) -> dict[str, Any]:
    """The components of a pipeline, without those of image prompts."""
    extra = ("image_encoder", "feature_extractor")
    return {name: part for name, part in pipe.components.items() if name not in extra}


def panorama() -> StableDiffusionPanoramaPipeline:
    parts = sd_parts()
    parts["vae"] = vae(4)
    pipe = StableDiffusionPanoramaPipeline(**parts)
    pipe.get_views = functools.partial(pipe.get_views, window_size=8, stride=4)
    return quiet(pipe)


def _pix2pix_arguments(dtype: torch.dtype) -> dict[str, Any]:
    return {"image": picture(16, 24), "guidance_scale": 5.0, "image_guidance_scale": 1.5}


def _kandinsky_arguments(dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(2)
    embeds = torch.randn(2, 1, 32, dtype=dtype).unbind()
    return {"image_embeds": embeds[0], "negative_image_embeds": embeds[1], "output_type": "pt"}


_EXACT = {"use_resolution_binning": False}
_PAG = {"pag_scale": 2.0}

VARIANTS = {
    "pixart-alpha": Variant(lambda: pixart(PixArtAlphaPipeline), lambda dtype: _EXACT),
    "pixart-sigma": Variant(pixart, lambda dtype: _EXACT),
    "pixart-sigma pag": Variant(
        lambda: pixart(PixArtSigmaPAGPipeline, pag_applied_layers=["blocks.1"]),
        lambda dtype: _EXACT | _PAG,
    ),
    "sana": Variant(sana, lambda dtype: _EXACT | {"max_sequence_length": 24}, size=(64, 96)),
    "sana pag": Variant(
        lambda: sana(SanaPAGPipeline, pag_applied_layers=["transformer_blocks.1"]),
        lambda dtype: _EXACT | _PAG | {"max_sequence_length": 24},
        size=(64, 96),
    ),
    "sana sprint": Variant(
        lambda: sana(SanaSprintPipeline),
        lambda dtype: _EXACT | {"max_sequence_length": 24, "intermediate_timesteps": None},
        size=(64, 96),
    ),
    "lumina2": Variant(lumina2, size=(64, 96)),
    "z-image": Variant(z_image, lambda dtype: {"max_sequence_length": 64}),
    "hunyuan-dit": Variant(hunyuan_dit, lambda dtype: _EXACT, size=(64, 96)),
    "hunyuan-dit pag": Variant(
        lambda: hunyuan_dit(HunyuanDiTPAGPipeline, pag_applied_layers=["blocks.1"]),
        lambda dtype: _EXACT | _PAG,
        size=(64, 96),
    ),
    "kolors": Variant(kolors),
    "cogview3": Variant(cogview3, lambda dtype: {"max_sequence_length": 32}),
    "cogview4": Variant(cogview4),
    "deepfloyd": Variant(deepfloyd, lambda dtype: {"output_type": "pt"}, size=(16, 24)),
    "deepfloyd super-resolution": Variant(
        lambda: deepfloyd(IFSuperResolutionPipeline),
        lambda dtype: {"image": picture(8, 12), "height": 16, "width": 24, "output_type": "pt"},
    ),
    "lumina-next": Variant(lumina_next, size=(64, 96)),
    "instruct-pix2pix": Variant(instruct_pix2pix, _pix2pix_arguments),
    "sdxl instruct-pix2pix": Variant(
        sdxl_instruct_pix2pix,
        lambda dtype: _pix2pix_arguments(dtype) | {"height": 16, "width": 24},
    ),
    "latent diffusion": Variant(
        latent_diffusion,
        lambda dtype: {"guidance_scale": 5.0, "output_type": "pt"},
        size=(64, 96),
    ),
    "semantic": Variant(
        lambda: quiet(SemanticStableDiffusionPipeline(**sd_parts())),
        lambda dtype: {"editing_prompt": ["a house", "a dog"]},
        size=(16, 24),
    ),
    "sd pag": Variant(
        lambda: quiet(StableDiffusionPAGPipeline(**sd_parts(), pag_applied_layers=["mid"])),
        lambda dtype: _PAG,
        size=(16, 24),
    ),
    "sdxl pag": Variant(
        lambda: quiet(
            StableDiffusionXLPAGPipeline(**_text_to_image(sdxl()), pag_applied_layers=["mid"])
        ),
        lambda dtype: _PAG,
        size=(16, 24),
    ),
    "panorama": Variant(panorama, size=(64, 96)),
    "kandinsky": Variant(kandinsky, _kandinsky_arguments, size=(64, 128)),
    "kandinsky3": Variant(kandinsky3, size=(64, 128)),
    "omnigen": Variant(omnigen, lambda dtype: {"max_input_image_size": 1024}, size=(64, 96)),
}
