"""The transformer of tinyworld: joint attention over words and pixels, trained by flow matching.

Autoencoder and text are those of the UNet's folder, frozen: only the transformer is trained. The
folder it is saved to is an ordinary `StableDiffusion3Pipeline`, so everything that pipeline does to
a prompt is done in training, too: the second-last hidden states of two CLIPs side by side, a pooled
embedding, and after them the columns of a T5, which here are empty.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import Attention
from tokenizers import Regex, Tokenizer, models, normalizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

import scenes
from loop import batch_generator
from parts import Sizes
from settings import Config

EMPTY_COLUMNS = (1, 1, 1, 1, 1, 1, 1, 256)
"""Numbers of empty columns, each for an equal share of the training: `max_sequence_length=1`, and
the pipeline's default."""
MUON = 8.0  # Muon's rate, as a multiple of AdamW's


def load_base(folder: Path) -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]:
    """Autoencoder, text encoder and tokenizer of the UNet's folder, in single precision.

    Raises:
        FileNotFoundError: if the folder holds no pipeline.
    """
    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no model_index.json; expected the folder of a trained UNet, whose "
            "autoencoder and text encoder the transformer takes over (--base)."
        )
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    # StableDiffusion3Pipeline adds the shift, so it must be a number.
    pipe.vae.register_to_config(_name_or_path="", shift_factor=0.0)
    return pipe.vae.eval(), pipe.text_encoder, pipe.tokenizer


def split_text_encoder(encoder: CLIPTextModel) -> list[CLIPTextModelWithProjection]:
    """Two frozen CLIPs whose second-last hidden states, side by side, are `encoder`'s embeddings.

    Each has half of the features, scaled to a standard deviation of 1, and one layer, so that the
    second-last hidden states are the sums of token and position embeddings. The pooled embedding is
    zero: whatever a word draws, it draws through joint attention.
    """
    old = encoder.config
    width = old.hidden_size // 2
    tables = (encoder.embeddings.token_embedding, encoder.embeddings.position_embedding)
    # Token and position are drawn independently, as it were: their variances add up.
    scale = sum(float(table.weight.detach().var()) for table in tables) ** -0.5
    halves = []
    for part in range(2):
        half = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=old.vocab_size,
                hidden_size=width,
                intermediate_size=width,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=old.max_position_embeddings,
                projection_dim=width,
                bos_token_id=old.bos_token_id,
                eos_token_id=old.eos_token_id,
                pad_token_id=old.pad_token_id,
            )
        )
        embeddings = half.text_model.embeddings
        columns = slice(part * width, (part + 1) * width)
        with torch.no_grad():
            for new, table in zip(
                (embeddings.token_embedding, embeddings.position_embedding), tables, strict=True
            ):
                new.weight.copy_(scale * table.weight[:, columns])
            half.text_projection.weight.zero_()
        halves.append(half.requires_grad_(False).eval())
    return halves


def build_empty_encoder(width: int) -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    """A T5 that reads nothing, with its tokenizer: diffusers loads no folder without the third one.

    The tokenizer drops all characters, so that no word has a token, and the encoder, of no layers,
    makes zeros of what is left, the end token and padding.
    """
    rules = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    rules.normalizer = normalizers.Replace(Regex(r"[\s\S]"), "")
    rules.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, pad_token="<pad>", eos_token="</s>", model_max_length=512
    )
    encoder = T5EncoderModel(
        T5Config(vocab_size=2, d_model=width, num_layers=0, d_ff=1, num_heads=1, d_kv=1)
    )
    torch.nn.init.zeros_(encoder.shared.weight)
    return encoder.requires_grad_(False).eval(), tokenizer


def build_transformer(sizes: Sizes, text_width: int) -> SD3Transformer2DModel:
    """A small transformer over 16 x 16 latents, one token a latent pixel."""
    heads, width = sizes.transformer_heads, sizes.transformer_head_width
    return SD3Transformer2DModel(
        sample_size=scenes.SIDE // 4,
        pos_embed_max_size=scenes.SIDE // 4,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=sizes.transformer_layers,
        num_attention_heads=heads,
        attention_head_dim=width,
        caption_projection_dim=heads * width,
        joint_attention_dim=text_width,
        pooled_projection_dim=text_width,
        qk_norm="rms_norm",
    )


class BiasedAttention:
    """Joint attention of training: a bias on the last key makes it count as several equal keys.

    Empty columns have no position, so all of them stay equal in every layer: n of them attract
    exp(log n + score), exactly what one does whose score is raised by log n.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, P, C) pixels, (B, T, C) text and (B,) bias of the last column -> both, attended."""

        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        pixels = hidden_states.shape[1]
        query = attn.norm_q(heads(attn.to_q(hidden_states)))
        key = attn.norm_k(heads(attn.to_k(hidden_states)))
        value = heads(attn.to_v(hidden_states))
        text_query = attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states)))
        text_key = attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states)))
        text_value = heads(attn.add_v_proj(encoder_hidden_states))
        query, key = torch.cat([query, text_query], 2), torch.cat([key, text_key], 2)
        value = torch.cat([value, text_value], 2)
        # Not the fused kernel: with heads this narrow its backward pass is slower on the CPU.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if bias is not None:
            last = F.pad(bias[:, None], (key.shape[2] - 1, 0))[:, None, None]
            scores = scores + last.to(scores.dtype)
        result = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        text = result[:, pixels:]
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[1](attn.to_out[0](result[:, :pixels])), text


class Denoiser(nn.Module):
    """The transformer and the frozen text encoders, so that checkpoints hold all that it reads."""

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        text_encoders: Sequence[CLIPTextModelWithProjection],
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoders = nn.ModuleList(text_encoders)

    def prepare_training(self, device: torch.device) -> None:
        """Let one column stand for many, see `BiasedAttention`; it is not exported."""
        self.transformer.set_attn_processor(BiasedAttention())

    def optimizers(self, config: Config) -> list[torch.optim.Optimizer]:
        """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for all else."""
        blocks = list(self.transformer.transformer_blocks.parameters())
        matrices = [weight for weight in blocks if weight.ndim == 2]
        taken = {id(weight) for weight in matrices}
        others = [
            weight
            for weight in self.parameters()
            if weight.requires_grad and id(weight) not in taken
        ]
        return [
            torch.optim.Muon(
                matrices,
                lr=MUON * config.rate,
                weight_decay=1e-3,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=config.rate, betas=(0.9, 0.99), weight_decay=1e-3),
        ]

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor, bias: Tensor) -> Tensor:
        """Predict velocity.

        Args:
            noisy: (B, 4, 16, 16).
            times: (B,) in [0, 1]: 0 is the image and 1 the noise.
            tokens: (B, L) int64.
            bias: (B,) the logarithm of how many empty columns there are.
        """
        outputs = [encoder(tokens, output_hidden_states=True) for encoder in self.text_encoders]
        states = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        pooled = torch.cat([output.text_embeds for output in outputs], -1)
        velocity: Tensor = self.transformer(
            hidden_states=noisy,
            timestep=times * 1000,
            encoder_hidden_states=F.pad(states, (0, 0, 0, 1)),  # one empty column
            pooled_projections=pooled,
            joint_attention_kwargs={"bias": bias},
        ).sample
        return velocity


def build(config: Config) -> Denoiser:
    """A denoiser as training begins with it."""
    torch.manual_seed(config.seed)
    _, text_encoder, _ = load_base(config.base)
    halves = split_text_encoder(text_encoder)
    return Denoiser(build_transformer(config.sizes, text_encoder.config.hidden_size), halves)


def batch(
    config: Config,
    accelerator: Accelerator,
    step: int,
    latents: Tensor,
    tokens: Tensor,
    empty: Tensor,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """This process's inputs of a step and the velocity to predict, on its device."""
    generator = batch_generator(config.seed, step, accelerator.process_index)
    share = config.batch // accelerator.num_processes
    picks = torch.randint(len(latents), (share,), generator=generator)
    noise = torch.randn((share, *latents.shape[1:]), generator=generator)
    times = torch.sigmoid(torch.randn(share, generator=generator))
    dropped = torch.rand(share, generator=generator) < config.drop
    columns = torch.tensor(EMPTY_COLUMNS)[
        torch.randint(len(EMPTY_COLUMNS), (share,), generator=generator)
    ]
    prompts = torch.where(dropped[:, None], empty[None], tokens[picks])
    part = times[:, None, None, None]
    noisy = (1 - part) * latents[picks] + part * noise
    device = accelerator.device
    inputs = tuple(value.to(device) for value in (noisy, times, prompts, columns.log()))
    return inputs, (noise - latents[picks]).to(device)


def save_pipeline(
    folder: Path, tokenizer: CLIPTokenizer, vae: AutoencoderKL, trained: Denoiser
) -> None:
    """Write a StableDiffusion3Pipeline folder: text encoders in single precision, the rest in half.

    As in `parts.save_pipeline`; the parts stay as they are.
    """
    first, second = trained.text_encoders
    third, third_tokenizer = build_empty_encoder(trained.transformer.config.joint_attention_dim)
    pipeline = StableDiffusion3Pipeline(
        transformer=copy.deepcopy(trained.transformer).half(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=copy.deepcopy(vae).half(),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        text_encoder_3=third,
        tokenizer_3=third_tokenizer,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
