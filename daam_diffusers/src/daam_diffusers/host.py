"""What a tracer asks of a pipeline beyond its denoiser: prompts, tokenizer, sizes, versions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from daam_diffusers.errors import TraceError


@contextmanager
def observed_encode_prompt(
    pipe: Any, callback: Callable[[dict[str, Any], Any], None]
) -> Iterator[None]:
    """Let `callback` see the arguments and the result of each `pipe.encode_prompt(...)`.

    The method is replaced on the instance by itself plus the callback, and put back after.
    """
    original = pipe.encode_prompt
    signature = inspect.signature(original)
    before = pipe.__dict__.get("encode_prompt")

    @functools.wraps(original)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        callback(dict(signature.bind(*args, **kwargs).arguments), result)
        return result

    pipe.encode_prompt = encode_prompt
    try:
        yield
    finally:
        if before is None:
            del pipe.__dict__["encode_prompt"]
        else:
            pipe.encode_prompt = before


def texts_of(
    pipe: Any, prompt: str | Sequence[str] | None, embeds: torch.Tensor
) -> tuple[str, ...] | None:
    """The prompt of each row of text embeddings, as the tokenizer reads it; None if not given.

    Raises:
        TraceError: the rows are no multiple of the prompts.
    """
    if prompt is None:
        return None
    convert = getattr(pipe, "maybe_convert_prompt", None)  # multi-vector textual inversion
    tokenizer = tokenizer_of(pipe)
    if convert is not None and tokenizer is not None:
        prompt = convert(prompt, tokenizer)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    images, rest = divmod(embeds.shape[0], len(prompts))
    if rest:
        raise TraceError(
            f"{len(prompts)} prompts made {embeds.shape[0]} rows of embeddings, not a multiple"
        )
    return tuple(text for text in prompts for _ in range(images))


def tokenizer_of(pipe: Any) -> Any:
    """The tokenizer whose tokens the embedding columns are; None if the pipeline has none."""
    candidates = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2"))
    return next((tokenizer for tokenizer in candidates if tokenizer is not None), None)


def is_compiled(pipe: Any, denoiser: nn.Module) -> bool:
    """Whether the denoiser, or a part of it, was given to `torch.compile`."""
    held = [getattr(pipe, name, None) for name in ("unet", "transformer")]
    wrapped = not any(module is denoiser for module in held)
    # nn.Module.compile() leaves the module in place and only sets this.
    return wrapped or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in denoiser.modules()
    )


def image_size(pipe: Any, latent: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the image that latents of this size decode to."""
    factor = int(getattr(pipe, "vae_scale_factor", 1))
    return latent[0] * factor, latent[1] * factor


def provenance(pipe: Any, steps: int) -> dict[str, str]:
    """Where maps come from: model, pipeline, steps and versions."""
    return {
        "model": str(getattr(pipe, "name_or_path", "") or "unnamed"),
        "pipeline": type(pipe).__name__,
        "steps": str(steps),
        "guidance_scale": str(getattr(pipe, "guidance_scale", "unknown")),
        **{name: version(name) for name in ("daam-diffusers", "diffusers", "transformers")},
        "torch": torch.__version__,
    }
