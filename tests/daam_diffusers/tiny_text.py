"""Tokenizers and text encoders of other pipelines than Stable Diffusion's, built in code.

Every tokenizer is the fast class that the real pipeline loads. The words of `tiny_tokenizer.WORDS`
are one token each; what no vocabulary lists falls to characters or bytes. `qwen_tokenizer` and
`llama_tokenizer` take texts besides, say a pipeline's template, whose words become one token each.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from tiny_tokenizer import WORDS, clip_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Mistral3Model,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"-()<>_/"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
MISTRAL = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
    "{% for part in m.content %}{{ part.text }}{% endfor %}<|eot_id|>{% endfor %}"
)
QWEN_SPECIAL = (
    "<|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|>"
    " <|video_pad|>"
).split()


# -- tokenizers --------------------------------------------------------------------------------


@functools.cache
def t5_tokenizer(window: int = 64) -> T5Tokenizer:
    """Unigram pieces, `</s>` at the end: T5, UMT5."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [("▁" + word, -1.0) for word in WORDS] + [(letter, -6.0) for letter in CHARACTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=window)


def byt5_tokenizer() -> ByT5Tokenizer:
    """Bytes, as the glyph encoders of HunyuanImage, HunyuanVideo 1.5 and GLM-Image read them."""
    return ByT5Tokenizer()


@functools.cache
def gemma_tokenizer(window: int = 256) -> GemmaTokenizer:
    """BPE over the whole text with spaces as "▁", `<bos>` at the start, padded on the left."""
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary += [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *CHARACTERS]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for i in range(1, len(word)):
            merges.append((word[:i], word[i]))
            vocabulary.append(word[: i + 1])
    for word in WORDS:  # last: whole words take their space
        merges.append(("▁", word))
        vocabulary.append("▁" + word)
    merges = list(dict.fromkeys(merges))
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    return GemmaTokenizer(vocab=ids, merges=merges, model_max_length=window)


def _byte_level(texts: tuple[str, ...]) -> dict[str, int]:
    """Ids of all bytes and of each word, alone and after a space."""
    words = [*WORDS, *(word for text in texts for word in re.findall(r"[^\W\d_]+", text))]
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *words, *("Ġ" + w for w in words)]
    return {token: i for i, token in enumerate(dict.fromkeys([*vocabulary, "Ċ", "ĊĊ"]))}


@functools.cache
def qwen_tokenizer(*texts: str, window: int = 2048) -> Qwen2Tokenizer:
    """Byte-level BPE with a chat template and no start token: Qwen 2, 2.5 and 3."""
    tokenizer = Qwen2Tokenizer(
        vocab={**_byte_level(texts)}, eos_token="<|im_end|>", model_max_length=window
    )
    tokenizer._tokenizer.model.ignore_merges = True  # words are whole in the vocabulary
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_SPECIAL})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHATML
    return tokenizer


@functools.cache
def llama_tokenizer(*texts: str, start: bool = True, window: int = 2048) -> Any:
    """Byte-level BPE as Llama 3's, with `<|begin_of_text|>` at the start unless told otherwise."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<pad>", "<|start_header_id|>"]
    backend = Tokenizer(models.BPE(vocab=_byte_level(texts), merges=[], ignore_merges=True))
    backend.add_special_tokens([*names, "<|end_header_id|>"])
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    if start:
        backend.post_processor = processors.TemplateProcessing(
            single=[names[0], "$A"], special_tokens=[(names[0], backend.token_to_id(names[0]))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=names[0],
        eos_token=names[1],
        pad_token=names[3],
        model_max_length=window,
    )


@functools.cache
def glm_tokenizer(*texts: str, window: int = 1024) -> Any:
    """Byte-level BPE of GLM-4 (CogView4): `[gMASK]<sop>` at the start, padded on the left."""
    names = ["[gMASK]", "<sop>", "<|endoftext|>"]
    backend = Tokenizer(models.BPE(vocab=_byte_level(texts), merges=[], ignore_merges=True))
    backend.add_special_tokens(names)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=[*names[:2], "$A"],
        special_tokens=[(name, backend.token_to_id(name)) for name in names[:2]],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=names[2],
        pad_token=names[2],
        padding_side="left",
        model_max_length=window,
    )


# -- text encoders -----------------------------------------------------------------------------


def clip_encoder(width: int = 32, *, projected: int | None = None) -> Any:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=projected or width,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _t5_config(width: int, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * width,
        "num_layers": 2,
        "num_heads": 4,
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def t5_encoder(width: int = 32) -> T5EncoderModel:
    return T5EncoderModel(T5Config(**_t5_config(width, len(t5_tokenizer())))).eval()


def umt5_encoder(width: int = 32) -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(**_t5_config(width, len(t5_tokenizer())))).eval()


def byt5_encoder(width: int = 32) -> T5EncoderModel:
    return T5EncoderModel(T5Config(**_t5_config(width, len(byt5_tokenizer())))).eval()


def _decoder_config(tokenizer: Any, width: int, layers: int) -> dict[str, Any]:
    """Sizes of a small decoder: two heads, one of them for keys and values."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": width // 2,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def gemma_encoder(width: int = 32, layers: int = 2) -> Gemma2Model:
    return Gemma2Model(Gemma2Config(**_decoder_config(gemma_tokenizer(), width, layers))).eval()


def prx_tokenizer() -> GemmaTokenizer:
    return gemma_tokenizer(24)


def prx_encoder(width: int = 32, layers: int = 2) -> T5GemmaEncoder:
    config = T5GemmaModuleConfig(**_decoder_config(prx_tokenizer(), width, layers))
    config.is_decoder, config.dropout_rate = False, 0.0  # as the whole model sets them
    return T5GemmaEncoder(config).eval()


def qwen3_encoder(
    width: int = 32, layers: int = 3, *, tokenizer: Any = None, head: bool = False
) -> Any:
    """Qwen3Model, or Qwen3ForCausalLM with `head`."""
    config = Qwen3Config(**_decoder_config(tokenizer or qwen_tokenizer(), width, layers))
    return (Qwen3ForCausalLM if head else Qwen3Model)(config).eval()


def llama_encoder(
    width: int = 32, layers: int = 3, *, tokenizer: Any = None, head: bool = False
) -> Any:
    """LlamaModel, or LlamaForCausalLM with `head`."""
    config = LlamaConfig(**_decoder_config(tokenizer or llama_tokenizer(), width, layers))
    return (LlamaForCausalLM if head else LlamaModel)(config).eval()


def glm_encoder(width: int = 32, layers: int = 3) -> GlmModel:
    return GlmModel(GlmConfig(**_decoder_config(glm_tokenizer(), width, layers))).eval()


def smollm3_encoder(width: int = 32, layers: int = 3, *, tokenizer: Any = None) -> Any:
    config = SmolLM3Config(**_decoder_config(tokenizer or llama_tokenizer(), width, layers))
    return SmolLM3ForCausalLM(config).eval()


class TextProcessor(ProcessorMixin):
    """A processor of text alone: those of Pixtral and Qwen 3 VL need torchvision."""

    def __init__(self, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)


def mistral3_processor(tokenizer: Any = None) -> TextProcessor:
    """What FLUX.2 calls its tokenizer: a processor that holds one, as Pixtral's does."""
    return TextProcessor(tokenizer or llama_tokenizer(), chat_template=MISTRAL)


def mistral3(width: int = 32, layers: int = 3, *, tokenizer: Any = None, head: bool = True) -> Any:
    """Mistral3ForConditionalGeneration, or Mistral3Model without `head`."""
    config = Mistral3Config(
        text_config={
            "model_type": "mistral",
            **_decoder_config(tokenizer or llama_tokenizer(), width, layers),
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
    )
    return (Mistral3ForConditionalGeneration if head else Mistral3Model)(config).eval()


def _seeing_config(tokenizer: Any, width: int, layers: int, **vision: Any) -> dict[str, Any]:
    """A decoder that also sees: its eye is 8 wide, has patches of 4 pixels and merges 2x2."""
    text = _decoder_config(tokenizer, width, layers)
    sixth = width // 12  # of the half of a head's width that is rotated: (time, row, column)
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [width // 4 - 2 * sixth, sixth, sixth],
    }
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    return {
        "text_config": text,
        "vision_config": {
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": width,
            **vision,
        },
        **{f"{k}_token_id": tokenizer.convert_tokens_to_ids(v) for k, v in names.items()},
    }


def qwen_vl(width: int = 32, layers: int = 3, *, tokenizer: Any = None) -> Any:
    tokenizer = tokenizer or qwen_tokenizer()
    seen = _seeing_config(tokenizer, width, layers, window_size=16, fullatt_block_indexes=[0])
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**seen)).eval()


class SeeingProcessor(Qwen2VLProcessor):
    """Qwen2VLProcessor without its video processor, which needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def qwen_vl_processor(tokenizer: Any = None) -> SeeingProcessor:
    image = Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=1024)
    return SeeingProcessor(image, tokenizer or qwen_tokenizer(), chat_template=CHATML)


def qwen3_vl(width: int = 32, layers: int = 3, *, tokenizer: Any = None, head: bool = True) -> Any:
    """Qwen3VLForConditionalGeneration, or Qwen3VLModel without `head`."""
    tokenizer = tokenizer or qwen_tokenizer()
    vision = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(**_seeing_config(tokenizer, width, layers, **vision))
    return (Qwen3VLForConditionalGeneration if head else Qwen3VLModel)(config).eval()


def qwen3_vl_processor(tokenizer: Any = None) -> TextProcessor:
    return TextProcessor(tokenizer or qwen_tokenizer(), chat_template=CHATML)
