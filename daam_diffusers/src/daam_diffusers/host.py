"""The pipeline around a traced denoiser: its calls, its text, its picture."""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from daam_diffusers.encoders import Reading, Readings
from daam_diffusers.errors import TraceError
from daam_diffusers.processor import NO_PICKLE

if TYPE_CHECKING:
    from daam_diffusers.watch import Watch


class Weak:
    """A method that is called while its object lives: hooks must not keep a forgotten tracer.

    A copy of a hooked module carries hooks that do nothing. `first` comes before other arguments.
    """

    def __init__(self, method: Callable[..., Any] | None, *first: Any) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)
        self._first = first

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Call it, if its object lives."""
        method = None if self._method is None else self._method()
        if method is not None:
            method(*self._first, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Weak:
        return Weak(None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TraceError(NO_PICKLE)


@contextmanager
def observed(pipe: Any, components: Sequence[str], watch: Watch) -> Iterator[None]:
    """Tell a watch, held weakly, of a pipeline's calls, steps and prompts.

    Its `readings` get what the text encoders, the pipeline's `components`, read while
    `encode_prompt`, or the pipeline, is called.
    """
    weak_watch, readings = weakref.ref(watch), watch.readings
    with ExitStack() as stack:
        for name in components:
            encoder = getattr(pipe, name, None)
            if isinstance(encoder, nn.Module):
                handle = encoder.register_forward_hook(
                    _reader(name, encoder, readings), with_kwargs=True
                )
                stack.callback(handle.remove)
        if callable(getattr(pipe, "encode_prompt", None)):
            stack.enter_context(_observed_encode_prompt(pipe, readings, weak_watch))
        if callable(pipe):
            stack.enter_context(_observed_calls(pipe, readings, weak_watch))
        yield


def _reader(
    name: str, encoder: nn.Module, readings: Readings
) -> Callable[[Any, Any, Any, Any], None]:
    parameters = inspect.signature(type(encoder).forward)

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = parameters.bind_partial(module, *args, **kwargs).arguments
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if readings.all is None or not isinstance(ids, torch.Tensor) or ids.ndim != 2:
            return
        if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape:
            mask = torch.ones_like(ids)
        values = (output,) if isinstance(output, torch.Tensor) else tuple(output[:2])
        states = (v for v in values if isinstance(v, torch.Tensor) and v.ndim == 3)
        readings.all.append(Reading(name, ids.tolist(), mask.bool().tolist(), next(states, None)))

    return hook


@contextmanager
def _observed_encode_prompt(
    pipe: Any, readings: Readings, weak_watch: weakref.ref[Watch]
) -> Iterator[None]:
    """The method is replaced on the instance by itself plus the listener, and put back after."""
    original = pipe.encode_prompt
    signature = inspect.signature(original)
    before = pipe.__dict__.get("encode_prompt")

    @functools.wraps(original)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        arguments = _kept(signature.bind(*args, **kwargs))
        with readings.kept() as own:
            result = original(*args, **kwargs)
        listener = weak_watch()
        if listener is not None:
            listener.encoded(arguments, result, tuple(own))
        return result

    pipe.encode_prompt = encode_prompt
    try:
        yield
    finally:
        if pipe.__dict__.get("encode_prompt") is encode_prompt:
            del pipe.__dict__["encode_prompt"]
            if before is not None:
                pipe.encode_prompt = before


@contextmanager
def _observed_calls(
    pipe: Any, readings: Readings, weak_watch: weakref.ref[Watch]
) -> Iterator[None]:
    """The instance's class is replaced by a subclass that listens, and put back after.

    Python looks `pipe(...)` up on the class, so this is the one place where a single pipeline's
    calls can be seen to begin and to end, also by an exception.
    """
    cls = type(pipe)
    signature = inspect.signature(cls.__call__)
    owner: list[weakref.ref[Any]] = [weakref.ref(pipe)]

    def listening(instance: Any) -> Watch | None:
        return weak_watch() if owner and owner[0]() is instance else None

    class Traced(cls):  # type: ignore[misc, valid-type]
        @functools.wraps(cls.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            listener = listening(self)
            if listener is None:
                return super().__call__(*args, **kwargs)
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            listener.began(_kept(bound))
            output = None
            try:
                with readings.kept():
                    output = super().__call__(*args, **kwargs)
            finally:
                listener.ended(output)
            return output

        def progress_bar(self, *args: Any, **kwargs: Any) -> Any:
            bar = super().progress_bar(*args, **kwargs)
            listener = listening(self)
            if listener is not None and getattr(bar, "iterable", bar) is None:
                update = bar.update

                def advance(*args: Any, **kwargs: Any) -> Any:
                    if (watch := weak_watch()) is not None:  # a bar that held it would be a circle
                        watch.advanced()
                    return update(*args, **kwargs)

                listener.counts_steps()
                bar.update = advance
            return bar

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            copied = object.__new__(cls)
            memo[id(self)] = copied
            own = {name: value for name, value in vars(self).items() if name != "encode_prompt"}
            vars(copied).update(copy.deepcopy(own, memo))
            return copied

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TraceError(NO_PICKLE.replace("denoiser", "pipeline"))

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Traced, name, getattr(cls, name))
    pipe.__class__ = Traced
    try:
        yield
    finally:
        owner.clear()
        if type(pipe) is Traced:  # else somebody else's subclass is on top: this one stays, silent
            pipe.__class__ = cls


def _kept(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments by name, lists copied: a pipeline may write templates into a list of prompts."""
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in bound.arguments.items()
    }


def texts_of(prompt: str | Sequence[str], rows: int) -> tuple[str, ...]:
    """The text of each row of embeddings, of which several images of a prompt are neighbors."""
    prompts = [prompt] if isinstance(prompt, str) else [str(text) for text in prompt]
    images, rest = divmod(rows, max(1, len(prompts)))
    if rest:
        raise TraceError(f"{len(prompts)} prompts made {rows} rows of embeddings, not a multiple")
    return tuple(text for text in prompts for _ in range(images))


def embeddings_of(result: Any) -> list[Any]:
    """Text embeddings among what `encode_prompt` returned: the prompt's, then the negative one's.

    Embeddings are floating tensors (B, K, D), or (B, K, layers, D), or lists of tensors (K, D), all
    of one width. What else is returned (pooled embeddings, masks, positions) is of another shape.
    """
    found: list[Any] = []
    like: tuple[int, int] | None = None  # axes and width of the first
    for value in result if isinstance(result, tuple) else (result,):
        first = value[0] if isinstance(value, list) and value else value
        ndims = (2,) if isinstance(value, list) else (3, 4)
        if not isinstance(first, torch.Tensor) or not first.is_floating_point():
            continue
        if first.ndim in ndims and like in (None, (first.ndim, first.shape[-1])):
            like = first.ndim, first.shape[-1]
            found.append(value)
    return found


def is_compiled(pipe: Any, denoiser: nn.Module) -> bool:
    """Whether a denoiser, or a part of it, was given to `torch.compile`."""
    held = [getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
    wrapped = any(getattr(module, "_orig_mod", None) is denoiser for module in held)
    # nn.Module.compile() leaves the module in place and only sets this.
    return wrapped or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in denoiser.modules()
    )


def output_size(output: Any) -> tuple[int | None, int, int] | None:
    """Frames (None for images), rows and columns of what a pipeline returned; None for latents."""
    found = (getattr(output, name, None) for name in ("frames", "images", "image"))
    pictures = next((one for one in found if one is not None), None)
    if pictures is None and isinstance(output, tuple) and output:
        pictures = output[0]
    if pictures is None or len(pictures) == 0:
        return None
    first = pictures[0]
    frames = len(first) if isinstance(first, list) else None
    picture = first[0] if frames else first
    if isinstance(picture, Image.Image):
        return frames, picture.height, picture.width
    shape = tuple(first.shape)
    if isinstance(first, np.ndarray) and shape[-1] in (1, 3, 4):
        return (shape[0] if len(shape) == 4 else None), shape[-3], shape[-2]
    if isinstance(first, torch.Tensor) and len(shape) in (3, 4) and shape[-3] == 3:
        return (shape[0] if len(shape) == 4 else None), shape[-2], shape[-1]
    return None


def expected_size(
    pipe: Any, arguments: Mapping[str, Any], grid: tuple[int, int, int], latents: torch.Tensor
) -> tuple[int | None, int, int]:
    """The same for a run whose picture was not seen, from its arguments or the pipeline's scale.

    The grid is that of the denoiser's cells, the latents are those of one sample.
    """
    size = tuple(latents.shape[-2:])
    spatial = _scale(pipe, "spatial", getattr(pipe, "vae_scale_factor", 1))
    if latents.ndim == 2:  # packed, (N, C): the processor's scale is that of a cell
        processor = getattr(pipe, "image_processor", getattr(pipe, "video_processor", None))
        size, spatial = grid[1:], int(processor.config.vae_scale_factor) if processor else spatial
    frames = arguments.get("num_frames") or (grid[0] - 1) * _scale(pipe, "temporal") + 1
    return (
        int(frames) if grid[0] > 1 or "num_frames" in arguments else None,
        int(arguments.get("height") or size[0] * spatial),
        int(arguments.get("width") or size[1] * spatial),
    )


def foreign_frames(
    pipe: Any, denoiser: Any, arguments: Mapping[str, Any], frames: int | None, cells: int
) -> str | None:
    """Why the denoiser's frames are not those that the video was decoded from; None if they are.

    `frames` are the video's, None for an image; `cells` are frames of the denoiser's cells.
    """
    frames = frames or int(arguments.get("video_length") or 1)
    own = (frames - 1) // _scale(pipe, "temporal") + 1
    patch = getattr(getattr(denoiser, "config", None), "patch_size_t", None) or 1
    if cells == -(-own // patch):
        return None
    return (
        f"the denoiser was called with {cells} latent frames, and the {frames} of the video are "
        f"decoded from {own}: others stand among them (reference images), or they are drawn apart"
    )


def _scale(pipe: Any, axis: str, default: int = 1) -> int:
    """Rows, or frames, of the picture to one of the latents, under the names that hosts use."""
    kinds = ("scale_factor_{}", "{}_compression_ratio", "{}_scale_factor")
    found = (getattr(pipe, f"vae_{kind.format(axis)}", None) for kind in kinds)
    return next((value for value in found if isinstance(value, int)), default)


def provenance(pipe: Any, denoiser: nn.Module, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Provenance of maps: model, pipeline, scheduler, seed, prompts and versions."""
    generator = arguments.get("generator")
    generators = generator if isinstance(generator, list) else [generator]
    seeds = [str(one.initial_seed()) for one in generators if isinstance(one, torch.Generator)]
    negative = arguments.get("negative_prompt")
    return {
        "model": str(getattr(pipe, "name_or_path", "") or "unnamed"),
        "pipeline": type(pipe).__name__,
        "denoiser": type(denoiser).__name__,
        "scheduler": type(getattr(pipe, "scheduler", None)).__name__,
        "dtype": str(getattr(denoiser, "dtype", "unknown")).removeprefix("torch."),
        # The default also where the property reads what only a call of the pipeline sets.
        "guidance_scale": str(
            getattr(pipe, "guidance_scale", arguments.get("guidance_scale", "unknown"))
        ),
        **({"negative_prompt": str(negative)} if negative else {}),
        **({"seed": ", ".join(seeds)} if seeds else {}),
        **{name: version(name) for name in ("daam-diffusers", "diffusers", "transformers")},
        "torch": torch.__version__,
    }


def schedule(pipe: Any) -> tuple[int, int, int]:
    """Calls of the denoiser that a scheduler asks for: a step, in all, more in its first step."""
    scheduler = getattr(pipe, "scheduler", None)
    order, timesteps = int(getattr(scheduler, "order", 1)), getattr(scheduler, "timesteps", None)
    total = 0 if timesteps is None else len(timesteps)
    steps = getattr(scheduler, "num_inference_steps", None) or total
    return order, total, max(0, total - steps * order)
