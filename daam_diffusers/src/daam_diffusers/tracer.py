"""`trace` and `Tracer`: install on a pipeline, record its runs, leave it as it was."""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections.abc import Sequence
from contextlib import ContextDecorator
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, Self, get_args

import torch

from daam_diffusers import host
from daam_diffusers.encoders import merged, placements
from daam_diffusers.errors import TraceError, TraceWarning
from daam_diffusers.maps import Clamp, HeatMaps
from daam_diffusers.probe import Inputs
from daam_diffusers.prompt import Prompt
from daam_diffusers.run import AXES, Axis, Branch, Run
from daam_diffusers.watch import LayerChoice, Space, Watch

logger = logging.getLogger(__name__)

_PROBING = threading.Lock()  # of the pipelines of all tracers: a probe calls one


class Tracer(ContextDecorator):
    """Records which pixels attend to which words while a pipeline generates.

    As a context it does everything:

        with trace(pipe) as tracer:
            image = pipe("a red car beside a dog").images[0]
        maps = tracer.heat_maps()

    The pipeline's output does not change by a bit, and on leaving, also by an exception, its
    processors, hooks and attributes are those it had. `@trace(pipe)` on a function traces each of
    its calls. A tracer on its own is the drop-in:

        tracer = Tracer(pipe)
        pipe.unet.set_attn_processor(tracer.processors())
        ...
        tracer.remove()

    A run is one call of the pipeline. A denoising loop of one's own is a run as well: it begins
    with `pipe.encode_prompt(...)`, and the calls of the denoiser that follow belong to it.

    A tracer that is put on a pipeline takes over from the one that was there, and one that is no
    longer referred to takes itself off.

    Args:
        pipe: a diffusers pipeline whose denoiser is in the table of families, see
            `register_family`.
        layers: which layers to record; by default the family's own choice, for Stable Diffusion
            the reference's: all down and up blocks but those at an eighth of the latents' size.
        keep: axes to keep instead of averaging over them: `"step"`, `"layer"`, `"head"`. Memory
            grows with the number of steps if `"step"` is kept, and else does not.
        negative: record the negative prompt as well, at twice the cost.
        refine: record which cells of an image attend to which as well, for `HeatMaps.refined`: a
            mean over steps, heads and layers at one size, the finest of at most 32×32 cells. It
            takes 4 bytes times the cells squared, at most 4 MiB an image.
        probe: keep what the layers were given of the latest run's prompt, so that
            `HeatMaps.probe` can ask for words that are not in it. That is, for each image, layer
            and step, cells × width values of the denoiser's dtype: 22 MiB a step of Stable
            Diffusion 1.5 at 512×512 in half precision, 1.1 GiB for 50. The log says how much
            before the first layer runs. For layers that attend to text alone, or beside pixels to
            text that no layer changed.
        probe_memory: bytes of these to hold in memory. What is more lies in a temporary folder
            until neither the tracer nor maps of the run need it.
        space: `"attention"`: maps are attention probabilities. `"output"`, for joint attention:
            how alike a cell's attention output is to each token's, see docs/families.md; not of
            `prompt_embeds` that were encoded outside the context.
        runs: how many of the latest runs to hold.

    Raises:
        TraceError: the pipeline is of a kind that cannot be traced, or not with `refine`; the
            message says why.
        ValueError: `keep` names an axis that does not exist, or `runs` is less than 1.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        layers: LayerChoice | None = None,
        keep: Sequence[Axis] = (),
        negative: bool = False,
        refine: bool = False,
        probe: bool = False,
        probe_memory: int = 1 << 30,
        space: Space = "attention",
        runs: int = 8,
    ) -> None:
        if isinstance(keep, str) or not hasattr(keep, "__iter__") or set(keep) - set(AXES):
            raise ValueError(f'keep must be a tuple of {AXES}, e.g. keep=("step",), got {keep!r}')
        if not hasattr(runs, "__index__") or runs < 1:
            raise ValueError(f"runs must be a whole number from 1, got {runs!r}")
        if not hasattr(probe_memory, "__index__") or probe_memory < 0:
            raise ValueError(f"probe_memory must be a number of bytes, got {probe_memory!r}")
        if probe_memory != 1 << 30 and not probe:
            raise ValueError("probe_memory is for probe=True, which was not given")
        if space not in get_args(Space):
            raise ValueError(f"space must be one of {get_args(Space)}, got {space!r}")
        if layers is not None and not callable(layers):
            raise ValueError(
                f"layers must be a function of a LayerInfo, got {layers!r}; "
                'layers="auto" and the like belong to heat_maps, after the run'
            )
        self._pipe = pipe
        self._watch = Watch(
            pipe,
            choose=layers,
            keep=keep,
            negative=negative,
            refine=refine,
            probe=probe,
            probe_memory=probe_memory,
            space=space,
            runs=runs,
        )
        # One that is dropped without having been left takes itself off.
        weakref.finalize(self, self._watch.remove).atexit = False

    # Installing and removing

    def processors(self) -> dict[str, Any]:
        """Processors for all attention layers of the denoiser, those that read the prompt wrapped.

        A new dictionary at each call (hosts empty the one they are given), keyed as
        `attn_processors` is. From here on the tracer watches the pipeline, until `remove()`.

        Raises:
            TraceError: the denoiser has no `attn_processors`, or there are two; use `trace`.
        """
        watch = self._watch
        if len(watch.denoisers) > 1 or not hasattr(watch.denoiser, "attn_processors"):
            raise TraceError(
                f"{type(self._pipe).__name__} cannot be given processors by one call of "
                "set_attn_processor; use `with trace(pipe) as tracer`, which walks its modules."
            )
        watch.install(wrap=False)
        wrapped = {f"{name}.processor": watch.wrapped(one) for name, one in watch.layers.items()}
        present = watch.denoiser.attn_processors
        return {key: wrapped.get(key, processor) for key, processor in present.items()}

    def remove(self) -> None:
        """Leave the pipeline as it was found. What was recorded stays available.

        A layer whose processor was exchanged for another in the meantime keeps that other one.
        """
        self._watch.remove()

    def __enter__(self) -> Self:
        self._watch.install(wrap=True)
        self._watch.thread = threading.get_ident()
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.thread = None
        self.remove()

    # Results

    @property
    def runs(self) -> int:
        """Number of runs held; `heat_maps(run=...)` takes one by its index."""
        return len(self._watch.runs)

    def heat_maps(
        self,
        image: int = 0,
        *,
        prompt: str | Sequence[str] | None = None,
        negative: bool = False,
        encoder: str | None = None,
        layers: LayerChoice | Literal["auto"] | None = None,
        clamp: Clamp = "once",
        run: int = -1,
    ) -> HeatMaps:
        """Heat maps of one image, or video, of a run.

        Args:
            image: which of the run's images, from 0. A list of prompts with several images a
                prompt counts as the pipeline returns them.
            prompt: the text behind `prompt_embeds`, for runs that were given embeddings: a text,
                or a list with the text of each window of a long prompt. For a run that changed its
                prompt on the way, the text to show.
            negative: maps of the negative prompt; needs `trace(pipe, negative=True)`.
            encoder: the text encoder whose tokens make up the words, e.g. `"text_encoder_3"`; by
                default all that read the prompt.
            layers: a choice among the layers recorded; by default all of them. `"auto"` lets each
                count by the mutual information of its words and cells, see `HeatMaps.weighting`;
                docs/families.md says where that helps and where it does not.
            clamp: `"once"` after averaging, or `"per_map"` as the reference does, see `HeatMaps`.
            run: which run, by its index; by default the latest.

        Raises:
            TraceError: nothing was recorded, or a layer hid its attention; the message names it.
            IndexError: there is no such image or run.
            ValueError: the prompt is not known, or was given twice.

        Warns:
            TraceWarning: part of the run did not carry the prompt, or it ended by an error.
        """
        if not (layers is None or layers == "auto" or callable(layers)):
            raise ValueError(f'layers must be "auto" or a function of a LayerInfo, got {layers!r}')
        found = self._recorded(run)
        branch = self._branch(found, prompt, negative)
        if not hasattr(image, "__index__") or not 0 <= image < branch.samples:
            raise IndexError(
                f"image {image!r} does not exist: the run has {branch.samples} image(s), from 0"
            )
        records = sorted(branch.layers.values(), key=lambda record: record.info.index)
        if callable(layers):
            records = [record for record in records if layers(record.info)]
        if not records:
            raise ValueError("`layers` chose none of the layers that were recorded")
        assert found.grid is not None  # it is set before any layer is seen
        if found.output is None:  # a loop of one's own
            assert found.latents is not None
            found.output = host.expected_size(self._pipe, {}, found.grid, found.latents)
        found.complain_of_crops()
        frames, *image_size = found.output
        keep_steps = "step" in self._watch.keep
        kept_steps = max(len(record.sums) for record in records) if keep_steps else branch.calls
        steps = found.step if found.counts_steps else kept_steps
        space = self._watch.space
        if space == "output" and any(part and part.prompts is None for part in branch.encoded):
            raise TraceError(
                'space="output" has shares among the prompt\'s tokens, and which columns of these '
                "prompt_embeds are tokens was not known in the run: call pipe.encode_prompt(...) "
                "inside the context and pass on what it returns, or pass `prompt`."
            )
        spread = branch.spread.mean(image, steps=False, frames=False) if branch.spread else None
        provenance = {**found.provenance, "steps": str(steps), "calls": str(branch.calls)}
        seeds = provenance.get("seed", "").split(", ")
        if branch.samples > 1 and seeds[0]:  # one generator draws the noise of each in turn
            apart = len(seeds) == branch.samples
            provenance["seed"] = seeds[image] if apart else f"{seeds[0]}, image {image} of a batch"
        if space != "attention":
            provenance["space"] = space
        names = [record.info.name for record in records]

        def means(of: Branch) -> dict[str, torch.Tensor]:
            options = {"steps": keep_steps, "frames": frames is not None}
            return {name: of.layers[name].mean(image, **options) for name in names}

        maps = HeatMaps(
            prompt=self._prompt(branch, image, prompt, encoder),
            layers=tuple(record.info for record in records),
            probabilities=means(branch),
            columns=branch.columns,
            axes=(*self._watch.keep, *(() if frames is None else ("frame",))),
            size=(found.grid[1], found.grid[2]),
            image_size=(image_size[0], image_size[1]),
            clamp=clamp,
            provenance=provenance,
            frames=frames,
            calls={record.info.name: record.calls for record in records},
            weighting="information" if layers == "auto" else "equal",
            self_attention=spread,
        )
        kept = found.inputs
        if kept is None or not kept.calls or branch is not found.branches[0]:
            return maps

        def probe(text: str) -> HeatMaps:
            own = self._probed(kept, branch, text)
            return replace(
                maps,
                prompt=self._prompt(own, image, None, encoder),
                probabilities=means(own),
                columns=own.columns,
            )

        return replace(maps, probing=probe)

    def record_bytes(self) -> int:
        """Size of what is recorded of the latest run, in bytes, what lies on disk included."""
        run = self._watch.runs[-1] if self._watch.runs else Run()
        records = [
            one for branch in run.branches for one in (*branch.layers.values(), branch.spread)
        ]
        sums = sum(total.nbytes for x in records if x for total in x.sums.values())
        return sums + (run.inputs.size if run.inputs else 0)

    def _probed(self, kept: Inputs, branch: Branch, text: str) -> Branch:
        """Let the layers of a run attend to another text, read as a prompt of its own."""
        with _PROBING:
            again = self._watch.probe(kept, None).layers
            for name, record in branch.layers.items():
                for step, total in record.sums.items():
                    change = again[name].sums[step] / again[name].counts[step]
                    change -= total / record.counts[step]
                    if not change.abs().max() <= 1e-4:
                        raise TraceError(
                            f"{name} does not attend now as it did in the run: were weights, "
                            "adapters or processors changed since, or does the denoiser give it "
                            "another text at each step? Such words cannot be probed."
                        )
            return self._watch.probe(kept, text)

    def _recorded(self, index: int) -> Run:
        runs = self._watch.runs
        if not runs and self._watch.is_displaced:
            raise TraceError(
                f"nothing was traced: another tracer was put on this {type(self._pipe).__name__} "
                "and took over from this one. Leave `with trace(pipe)` before the next begins; "
                "among threads, by a lock around it and the call."
            )
        if not runs:
            raise TraceError(
                f"nothing was traced: this {type(self._pipe).__name__} was not called while the "
                "tracer was at work. Call the pipeline that was traced, inside the context; a loop "
                "of your own begins with its encode_prompt."
            )
        if not hasattr(index, "__index__") or not -len(runs) <= index < len(runs):
            raise IndexError(
                f"run {index!r} does not exist: {len(runs)} are held, 0 is the first of them and "
                "-1 the latest"
            )
        found = runs[index]
        if found.fault is not None:
            raise TraceError(f"no heat map can be made: {found.fault}")
        return found

    def _branch(self, run: Run, prompt: str | Sequence[str] | None, negative: bool) -> Branch:
        """The record of the text that is asked for."""
        if negative and "negative" not in run.roles:
            raise ValueError("the negative prompt was not recorded: use trace(pipe, negative=True)")
        role = "negative" if negative else "prompt"
        branches = [branch for branch in run.branches if branch.first.role == role]
        if not branches and negative and run.branches:
            raise TraceError(
                "the run had no negative prompt: guidance was off (guidance_scale ≤ 1)."
            )
        if not branches:
            raise TraceError(
                f"the denoiser was called {run.calls} time(s), never with the embeddings of the "
                f"{'negative ' if negative else ''}prompt as they were encoded; if a callback "
                "changes them, or FreeNoise blends them, the prompt's rows cannot be told."
            )
        known = [(branch, branch.first.texts or ()) for branch in branches]
        chosen = [branch for branch, texts in known if not texts or prompt in (None, *texts)]
        if not chosen:
            listed = ", ".join(repr(text) for _, texts in known for text in dict.fromkeys(texts))
            raise ValueError(
                f"the run knows its prompt, {listed}, and `prompt={prompt!r}` is another; "
                "`prompt` is for runs that were given `prompt_embeds`"
            )
        branch = chosen[0]
        self._check(run, branch, branches)
        return branch

    def _check(self, run: Run, branch: Branch, branches: Sequence[Branch]) -> None:
        self._watch.complain_of_hidden(branch)
        if not branch.layers:
            raise TraceError("`layers` chose none of the denoiser's layers")
        run.complain_of_repeats()
        others = [other for other in branches if other is not branch]
        warned = []
        if run.is_cut_short:
            warned.append(
                f"the pipeline raised an error after {run.calls} denoiser call(s); these maps are "
                "of those"
            )
        if run.unknown or others:
            texts = "; ".join(repr(other.first.texts and other.first.texts[0]) for other in others)
            elsewhere = f", and other prompts in other calls: {texts}" if others else ""
            warned.append(
                f"these maps are of {branch.calls} of the run's {run.calls} denoiser calls; "
                f"{run.unknown} carried text that was not encoded in the run{elsewhere}. "
                "heat_maps(prompt=...) chooses one."
            )
        for message in warned:
            warnings.warn(message, TraceWarning, stacklevel=4)
        counts = {record.calls for record in branch.layers.values()}
        if len(counts) > 1:
            logger.warning(
                "layers were called %s to %s times in one run (a cache skips some of them, or two "
                "denoisers share the steps); each layer's mean is over its own calls, which "
                "HeatMaps.calls tells.",
                min(counts),
                max(counts),
            )

    def _prompt(
        self, branch: Branch, image: int, given: str | Sequence[str] | None, encoder: str | None
    ) -> Prompt:
        keys = branch.offsets[-1]
        parts = [
            (part.prompts[image], offset)
            for part, offset in zip(branch.encoded, branch.offsets[:-1], strict=True)
            if part is not None and part.prompts is not None
        ]
        if parts:
            return merged(parts, keys, encoder)
        # Without a text there are no words, but the columns can still be looked at.
        if given is None:
            return Prompt("", (), keys)
        places = zip(self._watch.family.text, pairwise(branch.offsets), strict=True)
        parts = [
            (placements(given, text.encoders, self._pipe, (), end - start), start)
            for text, (start, end) in places
        ]
        found = merged(parts, keys, encoder)
        if given and not found.tokens:
            raise ValueError(
                f"where {given!r} stands in these prompt_embeds cannot be told: the pipeline has "
                "no tokenizer, or puts prompts into a template. Call pipe.encode_prompt(...) "
                "inside the context and pass on what it returns, or pass `prompt`."
            )
        return found


trace = Tracer
"""`with trace(pipe) as tracer` traces what runs inside."""
