"""What a tracer's hooks report to: it makes runs and sums of what a pipeline does."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from daam_diffusers import host
from daam_diffusers.encoders import Reading, placements
from daam_diffusers.errors import TraceError
from daam_diffusers.families import Call, Family, LayerInfo
from daam_diffusers.layers import Layer, Source, groups_of, source_of
from daam_diffusers.processor import TracingProcessor, is_tracing
from daam_diffusers.prompt import Prompt
from daam_diffusers.record import LayerRecord
from daam_diffusers.run import Branch, Encoded, Role, Rows, Run, equal
from daam_diffusers.scores import AttentionCall, text_probabilities

logger = logging.getLogger(__name__)

LayerChoice = Callable[[LayerInfo], bool]


class Watch:
    """Listens to a pipeline, its denoisers and their attention layers.

    Args:
        pipe: the pipeline.
        layers: those that read the prompt.
        families: of the denoisers, by component.
        choose: which layers to record; None for each family's default.
        keep_steps, keep_heads: axes that are not averaged over.
        negative: record the negative prompt as well.
        runs: how many of the latest runs to hold.

    Attributes:
        runs: those held, the latest last.
        rewraps: wrap, before each call of a denoiser, processors that were exchanged since.
    """

    def __init__(
        self,
        pipe: Any,
        layers: Sequence[Layer],
        families: Mapping[str, Family],
        *,
        choose: LayerChoice | None,
        keep_steps: bool,
        keep_heads: bool,
        negative: bool,
        runs: int,
    ) -> None:
        self._pipe = pipe
        self._layers = {layer.name: layer for layer in layers}
        self._index = {layer.name: index for index, layer in enumerate(layers)}
        self._families = families
        self._choose = choose
        self._keep_steps = keep_steps
        self._keep_heads = keep_heads
        self._roles: frozenset[Role] = frozenset({"prompt", "negative"} if negative else {"prompt"})
        self._infos: dict[str, LayerInfo | None] = {}
        self._current: Run | None = None
        self._loose: Run | None = None
        self._heard: list[Encoded] = []  # before the pipeline was called, maybe for its call
        self._checked: set[str] = set()
        self._seen: set[str] = set()
        self._depth = 0
        self._missed: dict[str, str] = {}
        self.readings: list[Reading] = []
        self.runs: deque[Run] = deque(maxlen=runs)
        self.installed = ExitStack()
        self.is_installed = False
        self.rewraps = False

    # Installing and removing

    def install(self, denoisers: Mapping[str, nn.Module], encoders: Sequence[str]) -> None:
        """Put hooks on the pipeline and its denoisers; layers are wrapped apart."""
        if self.is_installed:
            return
        for layer in self._layers.values():
            self.wrapped(layer)  # take over from another tracer before anything is changed
        with ExitStack() as stack:
            stack.callback(self._unwrap, tuple(denoisers.values()))
            for name, denoiser in denoisers.items():
                before = host.Weak(self.denoising, name)
                handle = denoiser.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
                after = host.Weak(self.denoised, name)
                stack.callback(denoiser.register_forward_hook(after).remove)
            stack.enter_context(host.observed(self._pipe, encoders, self, self.readings))
            compiled = [d for d in denoisers.values() if host.is_compiled(self._pipe, d)]
            if compiled:
                logger.warning(
                    "%s is compiled; while it is traced it runs eagerly.",
                    type(compiled[0]).__name__,
                )
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            self.installed = stack.pop_all()
        self.is_installed = True

    def remove(self) -> None:
        """See `Observer`: leave the pipeline as it was found."""
        self.rewraps = False
        self.is_installed = False
        self.installed.close()

    def wrap_all(self) -> None:
        """Wrap the processors of all layers."""
        for layer in self._layers.values():
            if not self._is_own(layer.module.processor):
                _set_processor(layer.module, self.wrapped(layer))

    def wrapped(self, layer: Layer) -> TracingProcessor:
        """The processor of a layer in a wrapper of this watch's own."""
        processor: Any = layer.module.processor
        if self._is_own(processor):
            return processor  # type: ignore[no-any-return]
        if is_tracing(processor):
            logger.warning("another tracer was at work on this pipeline; it is taken off.")
            processor._observer.remove()
            processor = layer.module.processor
        return TracingProcessor(processor, layer.name, self)

    def _unwrap(self, denoisers: Sequence[nn.Module]) -> None:
        for layer in self._layers.values():
            if self._is_own(layer.module.processor):
                _set_processor(layer.module, layer.module.processor.inner)
        for denoiser in denoisers:
            # The host's fuse_qkv_projections keeps the processors of before for its undoing.
            kept: dict[str, Any] = getattr(denoiser, "original_attn_processors", None) or {}
            kept.update({k: one.inner for k, one in kept.items() if self._is_own(one)})

    def _is_own(self, processor: Any) -> bool:
        return is_tracing(processor) and processor._observer is self

    # The pipeline

    def began(self, arguments: Mapping[str, Any]) -> None:
        """See `host.Listener`."""
        self._depth += 1
        if self._depth > 1:  # a pipeline that calls itself
            return
        own = {name: value for name, value in arguments.items() if name != "self"}
        before = self._loose
        self._heard = before.encoded if before is not None and not before.calls else []
        self._open(Run(own, self._roles))

    def ended(self, output: Any) -> None:
        """See `host.Listener`."""
        self._depth -= 1
        run = self._current
        if self._depth or run is None:
            return
        self._current, self._heard = None, []
        is_latent = run.arguments.get("output_type") == "latent"
        run.output = None if is_latent else host.output_size(output)
        if run.output is None and run.grid is not None and run.latents is not None:
            run.output = host.expected_size(self._pipe, run.arguments, run.grid, run.latents)
        if run.output is not None and run.grid is not None and run.fault is None:
            denoiser = getattr(self._pipe, next(iter(self._families)))
            run.fault = host.foreign_frames(
                self._pipe, denoiser, run.arguments, run.output[0], run.grid[0]
            )
        run.is_cut_short = output is None
        run.close()

    def counts_steps(self) -> None:
        """See `host.Listener`."""
        if self._current is not None:
            self._current.counts_steps = True

    def advanced(self) -> None:
        """See `host.Listener`."""
        if self._current is not None:
            self._current.step += 1

    def _open(self, run: Run) -> None:
        self._infos = {}
        self._checked = set()
        self._loose = None
        self._current = run

    def _run(self) -> Run | None:
        return self._current or self._loose

    # Text

    def encoded(
        self, arguments: Mapping[str, Any], result: Any, readings: Sequence[Reading]
    ) -> None:
        """See `host.Listener`."""
        run = self._current
        if run is None:
            if self._loose is None or self._loose.calls:
                self._open(Run(roles=self._roles))
                self._current, self._loose = None, self._current
            run = self._loose
        assert run is not None
        run.grads = torch.is_grad_enabled()
        found = host.embeddings_of(result)
        if not found:
            return
        images = int(run.arguments.get("num_images_per_prompt") or 1)
        if images > 1 and "num_images_per_prompt" not in arguments:  # repeated afterwards
            found = [[row for row in rows for _ in range(images)] for rows in found]
        role = self._role(run, arguments)
        self._add(run, role, arguments, "", found[0], readings)
        if len(found) > 1 and role == "prompt":
            self._add(run, "negative", arguments, "negative_", found[1], readings)

    def _role(self, run: Run, arguments: Mapping[str, Any]) -> Role:
        """What a call of `encode_prompt` encodes: pipelines may call it for each prompt apart."""
        given, own = arguments.get("prompt"), run.arguments
        if given is None:
            embeds = arguments.get("prompt_embeds")
            if embeds is None:  # a negative prompt that was not given may be encoded as none
                return "negative" if any(one.role == "prompt" for one in run.encoded) else "prompt"
            return "negative" if embeds is own.get("negative_prompt_embeds") else "prompt"
        earlier = [one for one in run.encoded if one.role == "prompt"]
        if not own or not earlier or run.calls or arguments.get("negative_prompt") is not None:
            return "prompt"
        if _same(given, own.get("negative_prompt")):
            return "negative"
        return "prompt" if _same(given, own.get("prompt")) else "negative"

    def _add(
        self,
        run: Run,
        role: Role,
        arguments: Mapping[str, Any],
        prefix: str,
        rows: Rows,
        readings: Sequence[Reading],
    ) -> None:
        # A copy: callbacks may change the embeddings that the pipeline goes on with in place.
        rows = rows.clone() if isinstance(rows, torch.Tensor) else [row.clone() for row in rows]
        family = next(iter(self._families.values()))
        read = {reading.component for reading in readings}
        encoders = next(
            (
                text.encoders
                for text in family.text
                if read & {encoder.component for encoder in text.encoders}
            ),
            family.text[0].encoders,
        )
        if role not in self._roles:  # known by its values alone
            run.encoded.append(Encoded(role, rows, None))
            return
        prompt = arguments.get(f"{prefix}prompt")
        if prompt is None and (not prefix or arguments.get(f"{prefix}prompt_embeds") is not None):
            run.encoded.append(Encoded(role, rows, self._known(rows)))
            return
        texts = host.texts_of(prompt or "", len(rows))
        others = {
            encoder.component: host.texts_of(value, len(rows))
            for encoder in encoders
            if (value := arguments.get(prefix + encoder.prompt)) is not None
        }
        placed: dict[tuple[str, ...], Mapping[str, Any]] = {}
        prompts = []
        for index, text in enumerate(texts):
            own = {name: values[index] for name, values in others.items()}
            key = (text, *own.values(), str(len(rows[index])))
            if key not in placed:
                columns = len(rows[index])
                placed[key] = placements(text, encoders, self._pipe, readings, columns, own)
            prompts.append(placed[key])
        run.encoded.append(Encoded(role, rows, tuple(prompts)))

    def _known(self, rows: Rows) -> tuple[Mapping[str, Prompt], ...] | None:
        """The prompts behind embeddings that were encoded before the pipeline was called."""
        pairs = [
            pair for one in self._heard if one.prompts is not None
            for pair in zip(one.rows, one.prompts, strict=True)
        ]  # fmt: skip
        found = [next((own for known, own in pairs if equal(known, row)), None) for row in rows]
        known = [own for own in found if own is not None]
        return tuple(known) if len(known) == len(found) else None

    def _read(self, run: Run) -> None:
        """Take what text encoders returned for prompts, of pipelines without `encode_prompt`."""
        images = int(run.arguments.get("num_images_per_prompt") or 1)
        prompt, negative = run.arguments.get("prompt"), run.arguments.get("negative_prompt") or ""
        texts: dict[Role, Any] = {"prompt": prompt, "negative": negative}
        for reading in self.readings:
            if reading.states is None or prompt is None:
                continue
            known = {one.role for one in run.encoded}
            for role, given in texts.items():  # other texts are those of an edit
                if role not in known and self._was_read(given, reading):
                    rows = reading.states.repeat_interleave(images, dim=0)
                    self._add(run, role, {"prompt": given}, "", rows, (reading,))
                    break
        self.readings.clear()

    def _was_read(self, given: str | list[str], reading: Reading) -> bool:
        """Whether a text encoder read these texts, one a row, or one for all rows."""
        texts = [given] * len(reading.ids) if isinstance(given, str) else given
        tokenizer = host.tokenizer_of(self._pipe)
        convert = getattr(self._pipe, "maybe_convert_prompt", None)
        tokens = tokenizer(convert(texts, tokenizer) if convert else texts, truncation=True)
        return len(texts) == len(reading.ids) and all(
            list(ids[: len(own)]) == list(own)
            for ids, own in zip(reading.ids, tokens["input_ids"], strict=True)
        )

    # The denoiser

    def denoising(
        self, component: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Forward pre-hook of a denoiser."""
        if self.rewraps:  # the user, or the host for them, may have exchanged processors
            self.wrap_all()
        run = self._run()
        if run is None:
            return
        if not run.provenance:
            self.runs.append(run)
            run.provenance = host.provenance(self._pipe, module, run.arguments)
            if run.arguments:
                run.schedule = host.schedule(self._pipe)
        if not callable(getattr(self._pipe, "encode_prompt", None)):
            self._read(run)
        self._seen, self._missed = set(), {}
        if run.arguments and torch.is_grad_enabled() and not run.grads:
            run.layout = None  # an optimization of the latents, not a step of the denoising
            return
        family = self._families[component]
        parameters = inspect.signature(type(module).forward)
        call = Call(module, parameters.bind_partial(module, *args, **kwargs).arguments)
        missing = [t.argument for t in family.text if call.arguments.get(t.argument) is None]
        if missing:
            raise TraceError(f"{type(module).__name__} was called without {missing[0]}: no text")
        first = family.conditional_first or "image_guidance_scale" in run.arguments
        run.denoise(family, call, conditional_first=first)

    def denoised(self, component: str, module: nn.Module, *_: Any) -> None:
        """Forward hook of a denoiser: the first time, complain of layers that were not seen.

        Raises:
            TraceError: a layer's attention cannot be seen; the message says what was found.
        """
        run = self._run()
        if run is None or run.layout is None:
            return
        run.layout = None
        if component in self._checked:
            return
        self._checked.add(component)
        layers = [layer for layer in self._layers.values() if layer.component == component]
        exchanged = [layer for layer in layers if not is_tracing(layer.module.processor)]
        if exchanged:
            run.fault = (
                f"the processor of {len(exchanged)} layer(s), first {exchanged[0].name}, was "
                "exchanged after Tracer.processors(); set them again"
            )
            return
        hidden = [layer for layer in layers if layer.name in self._missed]
        if hidden:
            raise TraceError(self._hidden(hidden))
        for layer in layers:
            found = "" if layer.name in self._seen else _skipped(module, layer)
            if found:
                raise TraceError(
                    f"the attention of {layer.name} was not seen, for its processor was not "
                    f"called: {found}. Trace without that extension."
                )

    def _hidden(self, layers: Sequence[Layer]) -> str:
        processor = layers[0].module.processor
        remedy = f"pipe.{layers[0].component}.set_attn_processor(AttnProcessor2_0())"
        if hasattr(processor, "_attention_backend"):
            remedy = f'pipe.{layers[0].component}.set_attention_backend("native")'
        return (
            f"the attention of {len(layers)} layer(s) was not seen, first {layers[0].name} with "
            f"{processor.__class__.__name__}: {self._missed[layers[0].name]}. Choose a processor "
            f"that calls scaled_dot_product_attention or get_attention_scores, e.g. {remedy}."
        )

    def processor_of(self, name: str) -> str:
        """The class of a layer's processor."""
        return str(self._layers[name].module.processor.__class__.__name__)

    # Attention

    def wants(self, name: str) -> bool:
        """See `Observer`."""
        run = self._run()
        return run is not None and run.layout is not None and self._infos.get(name, ...) is not None

    def observe(self, name: str, calls: list[AttentionCall]) -> None:
        """See `Observer`."""
        run = self._run()
        if run is None or run.layout is None:
            return
        layer, layout = self._layers[name], run.layout
        for branch, start in ((run.branches[i], start) for i, start in layout.rows.items()):
            samples = range(start, start + branch.samples)
            sources = [
                source_of(layout, layer, calls, sample, is_halved=self._is_halved(layer))
                for sample in samples
            ]
            found = [source for source in sources if isinstance(source, Source)]
            if len(found) < len(sources):
                branch.asked[name] += 1
                self._missed[name] = next(one for one in sources if isinstance(one, str))
                continue
            self._seen.add(name)
            info = self._info(layer, found[0])
            if info is None:
                continue
            branch.asked[name] += 1
            values = torch.cat([self._values(group, branch) for group in groups_of(found)])
            record = branch.layers.setdefault(name, LayerRecord(info))
            record.add(values, self._step(run, branch))

    def _step(self, run: Run, branch: Branch) -> int:
        if not self._keep_steps:
            return 0
        return run.step if run.counts_steps else branch.calls - 1

    def _info(self, layer: Layer, source: Source) -> LayerInfo | None:
        """The layer's info if it is to be recorded, made and chosen at its first call."""
        if layer.name not in self._infos:
            frames, height, width = source.grid
            info = LayerInfo(
                name=layer.name,
                block=layer.block,
                index=self._index[layer.name],
                grid=(height, width),
                factor=2**layer.halvings,
                heads=source.call.query.shape[1],
                frames=frames,
            )
            choose = self._choose or layer.family.default_layers
            self._infos[layer.name] = info if choose(info) else None
        return self._infos[layer.name]

    def _is_halved(self, layer: Layer) -> bool:
        """Whether FasterCache takes the first half of the batch, the unconditional one, away."""
        denoiser = getattr(self._pipe, layer.component)
        registry = getattr(denoiser, "_diffusers_hook", None)
        return "faster_cache_denoiser" in getattr(registry, "hooks", {})

    def _values(self, sources: Sequence[Source], branch: Branch) -> torch.Tensor:
        """Probabilities of neighboring samples, (B, [H,] C + 1, N)."""
        first = sources[0]
        keys = first.text.stop - first.text.start
        # A sample's own padding may not be there as keys at all.
        present = [column for column in branch.columns if column < keys]
        values = text_probabilities(
            first.call,
            rows=slice(first.rows.start, sources[-1].rows.stop),
            columns=[first.text.start + column for column in present],
            cells=first.cells,
            keep_heads=self._keep_heads,
        )
        absent = len(branch.columns) - len(present)
        if absent:
            zeros = torch.zeros_like(values[..., :1, :]).expand(
                *values.shape[:-2], absent, values.shape[-1]
            )
            values = torch.cat([values[..., :-1, :], zeros, values[..., -1:, :]], dim=-2)
        frames = first.rows.stop - first.rows.start
        if frames > 1:  # frames lie in the batch: (B·f, [H,] C, h·w) → (B, [H,] C, f·h·w)
            values = values.reshape(-1, frames, *values.shape[1:]).movedim(1, -2).flatten(-2)
        return values


def _skipped(denoiser: nn.Module, layer: Layer) -> str:
    """Why a denoiser did not call a layer's processor; empty if a cache of the host's may."""
    modules = dict(denoiser.named_modules())
    parts = next(path for path, module in modules.items() if module is layer.module).split(".")
    way = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    if any(hasattr(modules[path], "_diffusers_hook") for path in ("", *way)):
        return ""
    for path in way:
        forward = vars(modules[path]).get("forward", type(modules[path]).forward)
        home = str(getattr(forward, "__module__", None))
        if home.split(".")[0] not in ("accelerate", "diffusers", "torch"):
            return f"{path} runs {home}.{getattr(forward, '__qualname__', forward)} in its place"
    return "the denoiser skips it"


def _set_processor(module: Any, processor: Any) -> None:
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:
        module.processor = processor


def _same(left: Any, right: Any) -> bool:
    """Whether two prompts are the same texts, one or a list."""
    texts = [[one] if isinstance(one, str) else list(one or []) for one in (left, right)]
    return texts[0] == texts[1] or (len(set(map(str, texts[0]))) == 1 and texts[0][:1] == texts[1])
