"""The receiver of a tracer's hooks, which makes runs and sums of what a pipeline does."""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from typing import Any, Literal

import torch
from torch import nn

from daam_diffusers import host
from daam_diffusers.encoders import Reading, Readings, placements
from daam_diffusers.errors import TraceError
from daam_diffusers.families import Call, Grid, LayerInfo, denoisers_of, family_of
from daam_diffusers.layers import Layer, Source, groups_of, layers_of, source_of
from daam_diffusers.probe import Inputs, another
from daam_diffusers.processor import TracingProcessor, is_tracing
from daam_diffusers.prompt import Prompt
from daam_diffusers.run import AXES, Axis, Branch, Encoded, LayerRecord, Role, Rows, Run, equal
from daam_diffusers.scores import (
    AttentionCall,
    output_shares,
    self_attention,
    text_probabilities,
)
from daam_diffusers.tap import DispatchTap, ProjectionTap

logger = logging.getLogger(__name__)

LayerChoice = Callable[[LayerInfo], bool]
Space = Literal["attention", "output"]

_MOST_CELLS = 32 * 32  # whose self-attention is recorded: 4 MiB an image


class Watch:
    """Listens to a pipeline, its denoisers and their attention layers.

    Arguments and errors are those of `Tracer`; `choose` is its `layers`.

    Attributes:
        denoiser, family: the first of the pipeline's `denoisers`, and its family.
        layers: those that read the prompt, by name, in forward order, then self-attention.
        readings: what the text encoders read while the pipeline, or `encode_prompt`, is called.
        taps: those that look on at an attention call, and those whose call was interrupted.
        thread: the thread that is inside `with trace(pipe)`.
        is_displaced: whether another watch took over from this one since it was installed.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        choose: LayerChoice | None,
        keep: Sequence[Axis],
        negative: bool,
        refine: bool,
        probe: bool,
        probe_memory: int,
        space: Space,
        runs: int,
    ) -> None:
        self._pipe = pipe
        self._choose = choose
        self.denoisers = denoisers_of(pipe)
        self._families = {name: family_of(module) for name, module in self.denoisers.items()}
        self.denoiser: Any = next(iter(self.denoisers.values()))
        self.family = next(iter(self._families.values()))
        names = [encoder.component for text in self.family.text for encoder in text.encoders]
        self._encoders = [name for name in names if getattr(pipe, name, None) is not None]
        if not self._encoders and not callable(getattr(pipe, "encode_prompt", None)):
            raise TraceError(
                f"{type(pipe).__name__} encodes no prompt (it has neither `encode_prompt` nor "
                f"{' nor '.join(names)}): there are no words that could be traced."
            )
        found = layers_of(self.denoisers, self._families, refine=refine)
        self.layers = {one.name: one for one in found}
        self._refine = refine
        self._halvings = sorted({one.halvings for one in found if one.kind != "cross"})
        if not found or found[0].kind == "self":
            raise TraceError(
                f"this {type(self.denoiser).__name__} has no attention layer that reads a prompt."
            )
        if refine and all(one.kind == "cross" for one in found):
            raise TraceError(
                f"the self-attention of {type(self.denoiser).__name__} cannot be recorded: trace "
                "without refine=True."
            )
        kinds = {one.kind for one in found} - {"self"}
        if probe and (kinds == {"joint"} or not callable(getattr(pipe, "encode_prompt", None))):
            raise TraceError(
                f"{type(pipe).__name__} cannot be probed: it needs an `encode_prompt`, and "
                "attention whose keys are made of the text alone. In joint attention they come out "
                "of layers in which the text attended to the image, so a text that was not there "
                "has none. Trace without probe=True."
            )
        if space == "output" and kinds != {"joint"}:
            raise TraceError(
                f"the tokens of {type(self.denoiser).__name__} have no attention output, which "
                'joint attention alone gives them: trace without space="output".'
            )
        self._probe, self._probe_memory, self.space = probe, probe_memory, space
        self.keep = tuple(axis for axis in AXES if axis in keep)
        self._roles: frozenset[Role] = frozenset({"prompt", "negative"} if negative else {"prompt"})
        self.runs: deque[Run] = deque(maxlen=runs)
        self._run: Run | None = None  # of the pipeline's call, or of a loop of one's own
        self._depth = 0  # calls of the pipeline inside each other
        self._earlier: list[Encoded] = []  # before the pipeline was called, maybe for its call
        self.readings = Readings()
        self._beginning = threading.Lock()
        self.thread: int | None = None
        self.is_displaced = False
        self._displaced = weakref.WeakSet[Watch]()  # that other threads are still inside of
        self.taps: list[ProjectionTap | DispatchTap] = []
        self._installed = ExitStack()
        self._is_installed = self._rewraps = False

    # Installing and removing

    def install(self, *, wrap: bool) -> None:
        """Put hooks on the pipeline and its denoisers.

        With `wrap` the layers' processors are wrapped as well, now and, where they were exchanged,
        before each call of a denoiser.
        """
        self.refuse_threads()  # one that is left by an error would take this off for both
        if self._is_installed:
            return
        self._displaced.clear()
        for layer in self.layers.values():
            self.wrapped(layer)  # take over from another tracer before anything is changed
        with ExitStack() as stack:
            stack.callback(self._unwrap)
            stack.callback(self._close_taps)
            for name, denoiser in self.denoisers.items():
                before = host.Weak(self.denoising, name)
                handle = denoiser.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
                after = host.Weak(self.denoised, name)
                handle = denoiser.register_forward_hook(after, always_call=True)
                stack.callback(handle.remove)
            stack.enter_context(host.observed(self._pipe, self._encoders, self))
            compiled = [d for d in self.denoisers.values() if host.is_compiled(self._pipe, d)]
            if compiled:
                logger.warning(
                    "%s is compiled; while it is traced it runs eagerly.",
                    type(compiled[0]).__name__,
                )
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if wrap:
                self._wrap_all()
            self._installed = stack.pop_all()
        self._is_installed, self._rewraps, self.is_displaced = True, wrap, False

    def remove(self) -> None:
        """Leave the pipeline as it was found."""
        if (run := self._elsewhere()) is not None:
            run.fault = (
                "the tracer was taken off while another thread still called the pipeline; leave "
                "`with trace(pipe)` when that call has returned"
            )
        self._is_installed = self._rewraps = False
        self._installed.close()
        self._unwrap()  # processors that were set after it was removed

    def _wrap_all(self) -> None:
        for layer in self.layers.values():
            layer.module.processor = self.wrapped(layer)

    def wrapped(self, layer: Layer) -> TracingProcessor:
        """The processor of a layer in a wrapper of this watch's own."""
        processor: Any = layer.module.processor
        if self._is_own(processor):
            return processor  # type: ignore[no-any-return]
        if is_tracing(processor):
            other: Watch = processor._observer
            other.refuse_threads()
            logger.warning("another tracer was at work on this pipeline; it is taken off.")
            other.remove()
            other.is_displaced = True
            here, both = threading.get_ident(), (other, *other._displaced)
            self._displaced.update(one for one in both if one.thread not in (None, here))
            processor = layer.module.processor
        return TracingProcessor(processor, layer.name, self)

    def _unwrap(self) -> None:
        for layer in self.layers.values():
            if self._is_own(layer.module.processor):
                layer.module.processor = layer.module.processor.inner
        for denoiser in self.denoisers.values():
            # The host's fuse_qkv_projections keeps the processors of before for its undoing.
            kept: dict[str, Any] = getattr(denoiser, "original_attn_processors", None) or {}
            kept.update({k: one.inner for k, one in kept.items() if self._is_own(one)})

    def _close_taps(self) -> None:
        while self.taps and self._elsewhere() is None:  # else they are at work
            self.taps.pop().close()

    def _is_own(self, processor: Any) -> bool:
        return is_tracing(processor) and processor._observer is self

    # Threads

    def _own(self) -> Run | None:
        """The run, if calls of this thread are of it now."""
        run = self._run
        return run if run is not None and run.thread in (None, threading.get_ident()) else None

    def _elsewhere(self) -> Run | None:
        """The run, if another thread is inside a call of the pipeline, or a probe."""
        run = self._run
        is_bound = run is not None and (self._depth or run.probes)
        return run if is_bound and self._own() is None else None

    def _is_kept_out(self) -> bool:
        """Whether another thread is at a run, or took over from a tracer of this thread."""
        displaced = {one.thread for one in self._displaced}
        return self._elsewhere() is not None or threading.get_ident() in displaced

    def _release(self, run: Run) -> None:
        """Let another thread go on with a loop of one's own."""
        if not (self._depth or run.probes):
            run.thread = None

    def refuse_threads(self) -> None:
        """Refuse what would disturb a run that another thread is at, or get into its next."""
        if self._is_kept_out():
            raise TraceError(
                f"this {type(self._pipe).__name__}, or its denoiser, is in use in another thread, "
                "and traced there: one call can be traced at a time. Wait until that one has "
                "returned, e.g. by a lock around `with trace(pipe)` and the call."
            )

    # The pipeline

    def began(self, arguments: Mapping[str, Any]) -> None:
        """Begin a run: the pipeline was called."""
        with self._beginning:
            self.refuse_threads()
            self._depth += 1
            if self._depth > 1:  # a pipeline that calls itself
                return
            self._close_taps()
            before = self._run
            self._earlier = before.encoded if before is not None and not before.calls else []
            own = {name: value for name, value in arguments.items() if name != "self"}
            self._run = Run(own, self._roles, threading.get_ident())

    def ended(self, output: Any) -> None:
        """End the run: the call returned, or it raised and `output` is None."""
        self._depth -= 1
        run = self._run
        if self._depth or run is None:
            return
        self._run, self._earlier = None, []
        if run.grid is not None and run.latents is not None:
            is_latent = run.arguments.get("output_type") == "latent"
            run.output = (None if is_latent else host.output_size(output)) or host.expected_size(
                self._pipe, run.arguments, run.grid, run.latents
            )
            if run.fault is None:
                frames, cells = run.output[0], run.grid[0]
                run.fault = host.foreign_frames(
                    self._pipe, self.denoiser, run.arguments, frames, cells
                )
        run.is_cut_short = output is None
        run.close()

    def counts_steps(self) -> None:
        """Take note that the pipeline counts its steps: it made a progress bar."""
        if (run := self._own()) is not None and self._depth:
            run.counts_steps = True

    def advanced(self) -> None:
        """Count a step that is done."""
        if (run := self._own()) is not None and self._depth:
            run.step += 1

    # Text

    def encoded(
        self, arguments: Mapping[str, Any], result: Any, readings: Sequence[Reading]
    ) -> None:
        """Take note of a prompt that was encoded."""
        if self._is_kept_out():
            return
        if self._run is None or (self._run.calls and not self._depth):
            self._run = Run(roles=self._roles)
        run = self._run
        run.grads = torch.is_grad_enabled()
        found = host.embeddings_of(result)
        if not found:
            return
        images = int(run.arguments.get("num_images_per_prompt") or 1)
        if images > 1 and "num_images_per_prompt" not in arguments:  # repeated afterwards
            found = [[row for row in rows for _ in range(images)] for rows in found]
        role = self._role(run, arguments)
        if self._probe and role == "prompt" and not (run.calls or run.probes):
            run.inputs = run.inputs or Inputs(self._probe_memory)
            run.inputs.encodings.append((arguments, result))
        self._add(run, role, arguments, "", found[0], readings)
        if len(found) > 1 and role == "prompt":
            self._add(run, "negative", arguments, "negative_", found[1], readings)

    def _role(self, run: Run, arguments: Mapping[str, Any]) -> Role:
        """Tell which prompt a call of `encode_prompt` encodes: some pipelines call it for each."""
        given, own = arguments.get("prompt"), run.arguments
        has_prompt = any(one.role == "prompt" for one in run.encoded)
        if given is None:
            embeds = arguments.get("prompt_embeds")
            # A negative prompt that was not given may be encoded as none.
            is_negative = (
                has_prompt if embeds is None else embeds is own.get("negative_prompt_embeds")
            )
            return "negative" if is_negative else "prompt"
        if not own or not has_prompt or run.calls or arguments.get("negative_prompt") is not None:
            return "prompt"
        is_own = _same(given, own.get("prompt")) and not _same(given, own.get("negative_prompt"))
        return "prompt" if is_own else "negative"

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
        read = {reading.component for reading in readings}
        choices = [text.encoders for text in self.family.text]
        encoders = next(
            (one for one in choices if read & {encoder.component for encoder in one}), choices[0]
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
        for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
            own = {name: values[index] for name, values in others.items()}
            key = (text, *own.values(), str(len(row)))
            if key not in placed:
                placed[key] = placements(text, encoders, self._pipe, readings, len(row), own)
            prompts.append(placed[key])
        run.encoded.append(Encoded(role, rows, tuple(prompts)))

    def _known(self, rows: Rows) -> tuple[Mapping[str, Prompt], ...] | None:
        """The prompts behind embeddings that were encoded before the pipeline was called."""
        pairs = [
            pair for one in self._earlier if one.prompts is not None
            for pair in zip(one.rows, one.prompts, strict=True)
        ]  # fmt: skip
        found = [next((own for known, own in pairs if equal(known, row)), None) for row in rows]
        return None if None in found else tuple(own for own in found if own is not None)

    def _read(self, run: Run) -> None:
        """Take what text encoders returned for prompts, of pipelines without `encode_prompt`."""
        images = int(run.arguments.get("num_images_per_prompt") or 1)
        prompt, negative = run.arguments.get("prompt"), run.arguments.get("negative_prompt") or ""
        texts: dict[Role, Any] = {"prompt": prompt, "negative": negative}
        for reading in self.readings.all or ():
            if reading.states is None or prompt is None:
                continue
            known = {one.role for one in run.encoded}
            for role, given in texts.items():  # other texts are those of an edit
                if role not in known and self._was_read(given, reading):
                    rows = reading.states.repeat_interleave(images, dim=0)
                    self._add(run, role, {"prompt": given}, "", rows, (reading,))
                    break
        self.readings.all = []

    def _was_read(self, given: str | list[str], reading: Reading) -> bool:
        """Whether a text encoder read these texts, one a row, or one for all rows."""
        texts = [given] * len(reading.ids) if isinstance(given, str) else given
        tokenizer = self._pipe.tokenizer
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
        run = self._run
        if run is not None and self._own() is None:
            if self._elsewhere() is None:  # amid a call of a loop of one's own
                run.calls += 1
                run.unknown += 1
            return
        if self._rewraps:  # the user, or the host for them, may have exchanged processors
            self._wrap_all()
        if run is None:
            return
        if not run.provenance:
            for one in self.runs:  # maps that were asked for hold theirs
                one.inputs = None
            self.runs.append(run)
            run.provenance = host.provenance(self._pipe, module, run.arguments)
            if run.arguments:
                run.schedule = host.schedule(self._pipe)
        if not callable(getattr(self._pipe, "encode_prompt", None)):
            self._read(run)
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
        run.thread = threading.get_ident()
        run.denoise(family, call, conditional_first=first)
        if run.layout is None:
            self._release(run)
        kept = run.inputs
        if kept is None or run.layout is None or run.probes or component in kept.calls:
            return
        branch = run.branches[0]
        if branch in run.rows:
            rows = slice(run.rows[branch], run.rows[branch] + branch.samples)
            kept.called(component, family, call, rows, run.layout.samples)
            self._announce(component, run.layout.grid, branch.samples, run.schedule[1])

    def _announce(self, component: str, grid: Grid, images: int, calls: int) -> None:
        """Say in the log, before the first layer runs, how much will be kept."""
        frames, height, width = grid
        values = 0
        for one in self.layers.values():
            if one.component == component and one.kind != "self":
                cells = frames * -(-height // 2**one.halvings) * -(-width // 2**one.halvings)
                values += cells * getattr(getattr(one.module, "to_q", None), "in_features", 0)
        size = images * values * next(self.denoisers[component].parameters()).itemsize / 2**20
        logger.info(
            "probe: up to %.1f MiB of layers' inputs a call, %s calls; what is more than %d MiB "
            "goes to a temporary folder",
            *(size, calls or "?", self._probe_memory / 2**20),
        )

    def probe(self, kept: Inputs, text: str | None) -> Branch:
        """Let the layers that read the prompt attend again, to inputs that were kept of a run.

        They read `text`, alone, as the prompt of each image; with None what they read in the run.
        """
        if kept.fault is not None:
            raise TraceError(kept.fault)
        installed = self._is_installed
        processors = [one.module.processor for one in self.layers.values()]
        if any(is_tracing(one) and not self._is_own(one) for one in processors):
            raise TraceError("another tracer is at work on this pipeline: probe when it is done.")
        run = Run(provenance={"probe": "yes"}, inputs=kept, probes=True, counts_steps=True)
        run.thread = threading.get_ident()
        with self._beginning:
            self.refuse_threads()
            before, self._run = self._run, run
        try:
            self.install(wrap=True)
            with torch.no_grad():
                own = [one for one, _ in kept.encodings]
                own = own if text is None else [another(one, text) for one in own]
                results = [self._pipe.encode_prompt(**arguments) for arguments in own]
                for component in kept.calls:
                    self.denoisers[component](**kept.arguments(component, results))
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(
                "the run cannot be probed as things are now: were parts of the pipeline, or the "
                "temporary folder, moved, changed or taken away since? "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            if not installed:
                self.remove()
            self._run = before
        run.close()
        return run.branches[0]

    def denoised(self, component: str, module: nn.Module, _: Any, output: Any) -> None:
        """Forward hook of a denoiser: the first time, refuse a run whose layers were not seen.

        The output is None where the call, or what was hooked before it, raised.
        """
        run = self._own()
        if run is None:
            return
        was_recorded, run.layout = run.layout is not None, None
        self._release(run)
        if output is None or not was_recorded or component in run.checked:
            return
        run.checked.add(component)
        layers = [layer for layer in self.layers.values() if layer.component == component]
        exchanged = [layer for layer in layers if not is_tracing(layer.module.processor)]
        if exchanged:
            run.fault = (
                f"the processor of {len(exchanged)} layer(s), first {exchanged[0].name}, was "
                "exchanged after Tracer.processors(); set them again"
            )
            return
        for branch in run.rows:
            self.complain_of_hidden(branch)
        for layer in layers:
            found = "" if layer.name in run.infos else _skipped(module, layer)
            if found:
                raise TraceError(
                    f"the attention of {layer.name} was not seen, for its processor was not "
                    f"called: {found}. Trace without that extension."
                )

    def complain_of_hidden(self, branch: Branch) -> None:
        """Refuse what was recorded of a text if the attention of a layer was not seen."""
        if not branch.missed:
            return
        name, found = next(iter(branch.missed.items()))
        layer = self.layers[name]
        processor = layer.module.processor
        remedy = "set_attn_processor(AttnProcessor2_0())"
        if hasattr(processor, "_attention_backend"):
            remedy = 'set_attention_backend("native")'
        raise TraceError(
            f"the attention of {len(branch.missed)} layer(s) was not seen, first {name} with "
            f"{processor.__class__.__name__}: {found}. Choose a processor that calls "
            "scaled_dot_product_attention or get_attention_scores, e.g. "
            f"pipe.{layer.component}.{remedy}."
        )

    # Attention

    def wants(self, name: str) -> bool:
        """Whether this call of this layer is to be looked at."""
        run = self._own()
        return run is not None and run.layout is not None and run.infos.get(name, ...) is not None

    def inputs(self, name: str, given: torch.Tensor) -> Iterator[torch.Tensor]:
        """Inputs of a layer's processor: those it was given; in a probe those that were kept."""
        run = self._own()
        assert run is not None  # see `wants`
        assert run.layout is not None
        kept, branch = run.inputs, run.branches[0]
        if kept is None or branch not in run.rows or self.layers[name].kind == "self":
            yield given
            return
        repeats, rest = divmod(len(given), run.layout.samples)
        if rest or not repeats:
            raise TraceError("a cache takes a part of the batch away: trace without probe=True.")
        first = run.rows[branch]
        rows = slice(first * repeats, (first + branch.samples) * repeats)
        if not run.probes:
            yield given
            if run.infos[name] is not None:
                kept.add(name, run.step if run.counts_steps else branch.calls - 1, given[rows])
            return
        seen = False
        for step, states in kept.of(name):
            run.step, seen = step, True
            changed = given.clone()
            changed[rows] = states
            yield changed
        if not seen:  # a layer that is not recorded
            yield given

    def observe(self, name: str, calls: list[AttentionCall]) -> None:
        """Take note of what one call of a layer's processor attended to."""
        run = self._own()
        if run is None or run.layout is None:
            return
        layer, layout = self.layers[name], run.layout
        if self.space == "output":
            calls = [call for call in calls if call.output is not None]
        spreads = self._refine and layer.kind != "cross" and not run.probes
        spreads = spreads and layer.halvings == self._level(layout.grid)
        if layer.kind == "self" and not spreads:
            run.infos[name] = None
            return
        # FasterCache takes the first half of the batch, the unconditional one, away.
        registry = getattr(self.denoisers[layer.component], "_diffusers_hook", None)
        is_halved = "faster_cache_denoiser" in getattr(registry, "hooks", {})
        for branch, start in run.rows.items():
            samples = range(start, start + branch.samples)
            sources = [source_of(layout, layer, calls, n, is_halved=is_halved) for n in samples]
            found = [source for source in sources if isinstance(source, Source)]
            if len(found) < len(sources):
                branch.missed[name] = next(one for one in sources if isinstance(one, str))
                continue
            if name not in run.infos:
                run.infos[name] = self._info(layer, found[0])
            info = run.infos[name]
            if info is None:
                continue
            if spreads and branch.first.role == "prompt":
                self._add_spread(found, branch, info)
            if layer.kind == "self":
                continue
            if self.space == "output":  # a sample's shares are among its own prompt's tokens
                pairs = [([one], branch.own(sample)) for sample, one in enumerate(found)]
            else:
                pairs = [(group, list(branch.columns)) for group in groups_of(found)]
            values = torch.cat([self._values(group, branch, own) for group, own in pairs])
            record = branch.layers.setdefault(name, LayerRecord(info))
            step = run.step if run.counts_steps else branch.calls - 1
            record.add(values, step if "step" in self.keep else 0)

    def _level(self, grid: Grid) -> int:
        """The level whose self-attention is recorded: how often its cells are halved.

        The finest level of at most 32×32 cells, or the coarsest there is.
        """
        sizes = {n: -(-grid[1] // 2**n) * -(-grid[2] // 2**n) for n in self._halvings}
        return next((n for n, size in sizes.items() if size <= _MOST_CELLS), max(sizes))

    def _add_spread(self, sources: Sequence[Source], branch: Branch, info: LayerInfo) -> None:
        """Add one call's self-attention to the running mean over calls, layers and heads."""
        frames, height, width = sources[0].grid
        if frames > 1:
            raise TraceError("refine=True is for images: trace a video without it.")
        pool = next(n for n in count(1) if -(-height // n) * -(-width // n) <= _MOST_CELLS)
        if branch.spread is None:
            grid = (-(-height // pool), -(-width // pool))
            branch.spread = LayerRecord(replace(info, name="self-attention", grid=grid))
            size = 4 * (grid[0] * grid[1]) ** 2 / 2**20
            logger.info("self-attention of %d×%d cells: %.1f MiB an image", *grid, size)
        values = [
            self_attention(
                group[0].call,
                rows=slice(group[0].rows.start, group[-1].rows.stop),
                cells=group[0].cells,
                keys=group[0].pixels,
                grid=(height, width),
                pool=pool,
            )
            for group in groups_of(sources)
        ]
        branch.spread.add(torch.cat(values), 0)

    def _info(self, layer: Layer, source: Source) -> LayerInfo | None:
        """The layer's info, None if it is not to be recorded."""
        frames, height, width = source.grid
        info = LayerInfo(
            name=layer.name,
            block=layer.block,
            index=list(self.layers).index(layer.name),
            grid=(height, width),
            factor=2**layer.halvings,
            heads=source.call.query.shape[1],
            frames=frames,
        )
        choose = self._choose or layer.family.default_layers
        return info if layer.kind == "self" or choose(info) else None

    def _values(
        self, sources: Sequence[Source], branch: Branch, own: Sequence[int]
    ) -> torch.Tensor:
        """Probabilities of neighboring samples, (B, [H,] C + 1, N); 0 in columns but their own."""
        first = sources[0]
        keys = first.text.stop - first.text.start
        # A sample's own padding may not be there as keys at all.
        present = [column for column in own if column < keys]
        compute = output_shares if self.space == "output" else text_probabilities
        values = compute(
            first.call,
            rows=slice(first.rows.start, sources[-1].rows.stop),
            columns=[first.text.start + column for column in present],
            cells=first.cells,
            keep_heads="head" in self.keep,
        )
        places = [branch.columns.index(column) for column in present] + [len(branch.columns)]
        if len(places) <= len(branch.columns):
            found, shape = values, (*values.shape[:-2], len(branch.columns) + 1, values.shape[-1])
            values = found.new_zeros(shape)
            values[..., places, :] = found
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


def _same(left: Any, right: Any) -> bool:
    """Whether two prompts are the same texts, one or a list."""
    texts = [[one] if isinstance(one, str) else list(one or []) for one in (left, right)]
    return texts[0] == texts[1] or (len(set(map(str, texts[0]))) == 1 and texts[0][:1] == texts[1])
