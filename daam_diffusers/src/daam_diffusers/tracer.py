"""`trace` and `Tracer`: install on a pipeline, record its runs, leave it as it was."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from daam_diffusers import host
from daam_diffusers.errors import TraceError
from daam_diffusers.families import LayerInfo, denoiser_of, family_of
from daam_diffusers.maps import Clamp, HeatMaps
from daam_diffusers.processor import TracingProcessor, is_tracing
from daam_diffusers.prompt import Prompt, kept_columns, tokenize
from daam_diffusers.record import AXES, Axis, Branch, Run
from daam_diffusers.scores import AttentionCall

logger = logging.getLogger(__name__)

LayerChoice = Callable[[LayerInfo], bool]


class Tracer:
    """Records which pixels attend to which words while a pipeline generates.

    `with trace(pipe) as tracer` does everything; a tracer on its own is the drop-in:

        tracer = Tracer(pipe)
        pipe.unet.set_attn_processor(tracer.processors())
        ...
        tracer.remove()

    A tracer holds the latest run of its pipeline; each call of the pipeline starts a new one.

    Args:
        pipe: a diffusers pipeline with a supported denoiser and text.
        layers: which layers to record; by default the reference's selection, for UNets all down
            and up blocks but those at an eighth of the latent's size.
        keep: axes to keep instead of averaging over them: `"step"`, `"layer"`, `"head"`. Memory
            grows with the number of steps if `"step"` is kept, and else does not.
        negative: record the negative prompt as well, at twice the cost.

    Raises:
        TraceError: the pipeline is of a kind that cannot be traced; the message says why.
        ValueError: `keep` names an axis that does not exist.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        layers: LayerChoice | None = None,
        keep: Sequence[Axis] = (),
        negative: bool = False,
    ) -> None:
        unknown = [axis for axis in keep if axis not in AXES]
        if isinstance(keep, str) or unknown:
            raise ValueError(f"keep must be a sequence of {AXES}, got {keep!r}")
        self._pipe = pipe
        self._denoiser = denoiser_of(pipe)
        self._family = family_of(self._denoiser)
        if not callable(getattr(pipe, "encode_prompt", None)):
            raise TraceError(
                f"{type(pipe).__name__} encodes no prompt (it has no `encode_prompt`): its "
                f"{type(self._denoiser).__name__} attends to no words that could be traced."
            )
        self._attention = self._family.layers(self._denoiser)
        if not self._attention:
            raise TraceError(
                f"this {type(self._denoiser).__name__} has no cross-attention layer: "
                "it does not read a prompt."
            )
        self._index = {name: i for i, name in enumerate(self._attention)}
        self._choose = layers or self._family.default_layers
        self._keep = tuple(axis for axis in AXES if axis in keep)
        self._negative = negative
        self._run: Run | None = None
        self._installed = ExitStack()
        self._is_installed = False
        self._rewrap = False

    # Installing and removing

    def processors(self) -> dict[str, Any]:
        """Processors for all attention layers, those that read the prompt wrapped.

        A new dictionary at each call (hosts empty the one they are given), keyed as
        `attn_processors` is. From here on the tracer watches the pipeline, until `remove()`.
        """
        self._install()
        wrapped = {f"{name}.processor": self._wrapped(name) for name in self._attention}
        present: Any = self._denoiser.attn_processors
        return {key: wrapped.get(key, processor) for key, processor in present.items()}

    def remove(self) -> None:
        """Leave the pipeline as it was found. What was recorded stays available.

        A layer whose processor was exchanged for another in the meantime keeps that other one.
        """
        for attn in self._attention.values():
            processor = attn.processor
            if is_tracing(processor) and processor._observer is self:
                attn.set_processor(processor.inner)
        self._installed.close()
        self._is_installed = False
        self._rewrap = False

    def _wrapped(self, name: str) -> TracingProcessor:
        processor: Any = self._attention[name].processor
        if is_tracing(processor):
            if processor._observer is not self:
                raise TraceError(
                    "another tracer is at work on this denoiser; leave its context, or call its "
                    "remove(), first."
                )
            return processor  # type: ignore[no-any-return]
        return TracingProcessor(processor, name, self)

    def _install(self) -> None:
        if self._is_installed:
            return
        for name in self._attention:
            self._wrapped(name)  # refuse before anything is changed
        with ExitStack() as stack:
            handle = self._denoiser.register_forward_pre_hook(
                _weak_method(self._before_denoiser), with_kwargs=True
            )
            stack.callback(handle.remove)
            stack.enter_context(
                host.observed_encode_prompt(self._pipe, _weak_method(self._encoded))
            )
            if host.is_compiled(self._pipe, self._denoiser):
                logger.warning(
                    "%s is compiled; while it is traced it runs eagerly.",
                    type(self._denoiser).__name__,
                )
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            self._installed = stack.pop_all()
        self._is_installed = True

    def _enter(self) -> None:
        self._install()
        self._rewrap = True
        self._wrap_all()

    def _wrap_all(self) -> None:
        if any(not is_tracing(attn.processor) for attn in self._attention.values()):
            denoiser: Any = self._denoiser
            denoiser.set_attn_processor(self.processors())

    # Watching a run

    def _encoded(self, arguments: dict[str, Any], result: Any) -> None:
        """A pipeline encoded its prompt: a new run begins."""
        embeds, negative_embeds = self._family.encoded(result)
        texts = host.texts_of(self._pipe, arguments.get("prompt"), embeds)
        branches = {"prompt": self._branch(texts, embeds)}
        if self._negative and negative_embeds is not None:
            given = arguments.get("negative_prompt_embeds") is not None
            text = None if given else arguments.get("negative_prompt") or ""
            texts = host.texts_of(self._pipe, text, negative_embeds)
            branches["negative"] = self._branch(texts, negative_embeds)
        self._run = Run(branches)

    def _branch(self, texts: tuple[str, ...] | None, embeds: torch.Tensor) -> Branch:
        keys = embeds.shape[1]
        if texts is None:
            return Branch(None, embeds, tuple(range(keys)))
        prompts = {text: tokenize(text, self._tokenizer(), keys) for text in dict.fromkeys(texts)}
        kept = kept_columns(tuple(prompts.values()))
        return Branch(tuple(prompts[text] for text in texts), embeds, kept)

    def _before_denoiser(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._rewrap:  # the user, or the host for them, may have exchanged processors
            self._wrap_all()
        if self._run is not None:
            self._run.denoise(*self._family.inputs(args, kwargs))

    def wants(self, layer: str, attn: Attention, cells: int, keys: int) -> bool:
        """See `Observer`."""
        run = self._run
        if run is None or run.latent is None or not run.rows:
            return False
        latent = run.latent
        info = run.select(
            layer,
            lambda: self._family.layer_info(
                self._denoiser, layer, attn, self._index[layer], latent, cells
            ),
            self._choose,
        )
        if info is None:
            return False
        for name in run.rows:
            run.branches[name].asked[layer] += 1
        return True

    def observe(self, layer: str, attn: Attention, call: AttentionCall) -> None:
        """See `Observer`."""
        run = self._run
        info = None if run is None else run.infos.get(layer)
        if run is None or info is None:
            return
        for name, rows in run.rows.items():
            run.branches[name].add(info, call, rows, self._keep)

    # Results

    def heat_maps(
        self,
        image: int = 0,
        *,
        prompt: str | None = None,
        negative: bool = False,
        layers: LayerChoice | None = None,
        clamp: Clamp = "once",
    ) -> HeatMaps:
        """Heat maps of one image of the latest run.

        Args:
            image: which of the run's images, from 0. A list of prompts with several images a
                prompt counts as the pipeline returns them.
            prompt: the text behind `prompt_embeds`; only for runs that were given embeddings.
            negative: maps of the negative prompt; needs `trace(pipe, negative=True)`.
            layers: a choice among the layers recorded; by default all of them.
            clamp: `"once"` after averaging, or `"per_map"` as the reference does, see `HeatMaps`.

        Raises:
            TraceError: nothing was recorded, or a layer hid its attention; the message names it.
            IndexError: there is no such image.
            ValueError: the prompt is not known, or was given twice.
        """
        run, branch = self._recorded("negative" if negative else "prompt")
        images = branch.embeds.shape[0]
        if not 0 <= image < images:
            raise IndexError(f"image {image} does not exist: the run has {images} image(s)")
        records = [
            record
            for record in sorted(branch.layers.values(), key=lambda record: record.info.index)
            if layers is None or layers(record.info)
        ]
        if not records:
            raise ValueError("`layers` chose none of the layers that were recorded")
        means = {record.info.name: record.mean(image) for record in records}
        assert run.latent is not None  # set before any layer is recorded
        return HeatMaps(
            prompt=self._prompt(branch, image, prompt),
            layers=tuple(record.info for record in records),
            probabilities=means,
            columns=branch.columns,
            axes=self._keep,
            size=run.latent,
            image_size=host.image_size(self._pipe, run.latent),
            clamp=clamp,
            provenance=host.provenance(self._pipe, branch.calls),
        )

    def record_bytes(self) -> int:
        """Size of what is recorded of the latest run, in bytes."""
        return 0 if self._run is None else self._run.bytes()

    def _recorded(self, name: str) -> tuple[Run, Branch]:
        if name == "negative" and not self._negative:
            raise ValueError("the negative prompt was not recorded: use trace(pipe, negative=True)")
        run = self._run
        if run is None:
            raise TraceError(
                f"nothing was traced: this {type(self._pipe).__name__} was not called while the "
                "tracer was at work. Call the pipeline that was traced, inside the context."
            )
        if run.fault is not None:
            raise TraceError(f"no heat map can be made: {run.fault}")
        branch = run.branches.get(name)
        if branch is None:
            raise TraceError(
                "the run had no negative prompt: guidance was off (guidance_scale ≤ 1)."
            )
        if branch.calls == 0:
            raise TraceError(
                f"the denoiser was called {run.calls} time(s), never with the embeddings of the "
                f"{'negative ' if name == 'negative' else ''}prompt as `encode_prompt` returned "
                "them; if a callback changes them, trace cannot tell which rows carry the prompt."
            )
        self._check_complete(run, branch)
        return run, branch

    def _check_complete(self, run: Run, branch: Branch) -> None:
        unseen = branch.hidden() or [name for name in self._attention if name not in run.infos]
        if unseen:
            processor = self._attention[unseen[0]].processor
            raise TraceError(
                f"the attention of {len(unseen)} layer(s) was not seen, first {unseen[0]} with "
                f"{processor.__class__.__name__}. Either its processor hides it, then choose one "
                "that does not, e.g. pipe.unet.set_attn_processor(AttnProcessor2_0()); or the "
                "processors were exchanged after Tracer.processors(), then set them again."
            )
        if not branch.layers:
            raise TraceError("`layers` chose none of the denoiser's layers")
        counts = {record.calls for record in branch.layers.values()}
        if len(counts) > 1:
            logger.warning(
                "layers were called %s to %s times in one run (a cache skips some of them); each "
                "layer's mean is over its own calls.",
                min(counts),
                max(counts),
            )

    def _prompt(self, branch: Branch, image: int, given: str | None) -> Prompt:
        keys = branch.embeds.shape[1]
        if branch.prompts is None:
            # Without a text there are no words, but the columns can still be looked at.
            return tokenize(given, self._tokenizer(), keys) if given else Prompt("", (), keys)
        known = branch.prompts[image]
        if given not in (None, known.text):
            raise ValueError(
                f"the run knows its prompt, {known.text!r}, and `prompt={given!r}` is another; "
                "`prompt` is for runs that were given `prompt_embeds`"
            )
        return known

    def _tokenizer(self) -> Any:
        tokenizer = host.tokenizer_of(self._pipe)
        if tokenizer is None:
            raise TraceError(f"{type(self._pipe).__name__} has no tokenizer to place words with.")
        return tokenizer


@contextmanager
def trace(
    pipe: Any,
    *,
    layers: LayerChoice | None = None,
    keep: Sequence[Axis] = (),
    negative: bool = False,
) -> Iterator[Tracer]:
    """Trace a pipeline inside a `with` block; see `Tracer` for the arguments and errors.

        with trace(pipe) as tracer:
            image = pipe("a red car beside a dog").images[0]
        maps = tracer.heat_maps()

    The pipeline's output does not change by a bit, and on leaving, also by an exception, its
    processors, hooks and attributes are those it had.
    """
    tracer = Tracer(pipe, layers=layers, keep=keep, negative=negative)
    try:
        tracer._enter()
        yield tracer
    finally:
        tracer.remove()


def _weak_method(method: Callable[..., None]) -> Callable[..., None]:
    """Call a method while its object lives: a forgotten tracer must not be kept by its hooks."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any, **kwargs: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(*args, **kwargs)

    return call
