"""One run of a pipeline: which text it encoded, which denoiser calls carried it, what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal, get_args

import torch

from daam_diffusers.errors import TraceError
from daam_diffusers.families import Call, Family, Grid, LayerInfo
from daam_diffusers.layers import Layout
from daam_diffusers.probe import Inputs
from daam_diffusers.prompt import Prompt

Axis = Literal["step", "layer", "head"]
AXES: tuple[Axis, ...] = get_args(Axis)

Role = Literal["prompt", "negative"]
Rows = torch.Tensor | Sequence[torch.Tensor]
"""Text embeddings, a row a sample: (B, K, D), or B tensors (K, D) of lengths of their own."""


@dataclass
class LayerRecord:
    """Attention of one layer: one running sum, or one a step."""

    info: LayerInfo
    # By step, float32 (B, [H,] C, N) over calls; under one key if steps are not kept apart. A step
    # may be several calls (Heun's method) and is their mean.
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def calls(self) -> int:
        """Number of calls that were added."""
        return self.counts.total()

    def add(self, probabilities: torch.Tensor, step: int) -> None:
        """Add one call's probabilities, (B, [H,] C, N)."""
        self.counts[step] += 1
        if step in self.sums:
            self.sums[step] += probabilities
        else:
            self.sums[step] = probabilities

    def mean(self, sample: int, *, steps: bool, frames: bool) -> torch.Tensor:
        """Mean probability of one sample: float32 on the CPU, (C, [S,] [heads,] [f,] h, w)."""
        means = [total[sample] / self.counts[step] for step, total in self.sums.items()]
        values = (torch.stack(means) if steps else means[0]).movedim(-2, 0)
        grid = (self.info.frames, *self.info.grid) if frames else self.info.grid
        return values.reshape(*values.shape[:-1], *grid).float().cpu()


@dataclass
class Encoded:
    """Text as a pipeline encoded it."""

    role: Role
    rows: Rows
    # Of each row by text encoder, columns counted in these embeddings; None if only embeddings
    # were given.
    prompts: tuple[Mapping[str, Prompt], ...] | None

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The text of each row."""
        if self.prompts is None:
            return None
        return tuple(next(iter(one.values())).text for one in self.prompts)


@dataclass(eq=False)
class Branch:
    """The record of one text in one run."""

    encoded: tuple[Encoded | None, ...]  # one entry an argument of the denoiser that holds text
    offsets: tuple[int, ...]  # the first column of each of these, and the number of all columns
    columns: tuple[int, ...]  # those that are kept apart, increasing
    layers: dict[str, LayerRecord] = field(default_factory=dict)
    spread: LayerRecord | None = None  # which cells attend to which, of all layers together
    calls: int = 0  # of the denoiser, that carried it
    missed: dict[str, str] = field(default_factory=dict)  # by layer: what was found instead

    @property
    def first(self) -> Encoded:
        """The text of the denoiser's first text argument, by which rows are told."""
        assert self.encoded[0] is not None  # a branch is made when its rows are found
        return self.encoded[0]

    @property
    def samples(self) -> int:
        """Images, or videos, of the run."""
        return len(self.first.rows)

    def own(self, sample: int) -> list[int]:
        """The ones among `columns` that are one sample's own."""
        parts = [
            replace(part, prompts=part.prompts and part.prompts[sample : sample + 1])
            if part else None for part in self.encoded
        ]  # fmt: skip
        return list(_kept(parts, self.offsets))


@dataclass(eq=False)
class Run:
    """One call of a pipeline, or of a denoising loop of one's own."""

    arguments: Mapping[str, Any] = field(default_factory=dict)  # none of a loop of one's own
    roles: frozenset[Role] = frozenset({"prompt"})  # the texts to record
    # Whose calls are of it; those of a loop of one's own may come from any, one at a time.
    thread: int | None = None
    encoded: list[Encoded] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)  # first the prompt that it began with
    layout: Layout | None = None  # of the denoiser's present call; None if that is not recorded
    rows: Mapping[Branch, int] = field(default_factory=dict)  # first samples of them in this call
    grid: Grid | None = None  # of all calls
    latents: torch.Tensor | None = None  # of one sample, the last ones seen
    calls: int = 0  # of the denoiser
    unknown: int = 0  # those whose text is none that was encoded in the run
    step: int = 0  # steps that were finished, as the pipeline's progress bar counts them
    counts_steps: bool = False  # whether the pipeline has such a bar
    in_step: Counter[int] = field(default_factory=Counter)  # calls with the prompt, by step
    # Calls a step, calls in all (0 if unknown) and calls more in the first step, as the scheduler
    # asks for them.
    schedule: tuple[int, int, int] = (1, 0, 0)
    infos: dict[str, LayerInfo | None] = field(default_factory=dict)  # None: not recorded
    checked: set[str] = field(default_factory=set)  # denoisers whose layers were all seen
    grads: bool = False  # whether it computes gradients throughout
    fault: str | None = None  # why no heat map can be made of it, if so
    is_cut_short: bool = False  # the pipeline raised before it was done
    output: tuple[int | None, int, int] | None = None  # frames, rows, columns of the picture
    provenance: dict[str, str] = field(default_factory=dict)
    inputs: Inputs | None = None  # what its layers were given, if that is kept for probes
    probes: bool = False  # its layers read `inputs`, instead of adding to them
    _known: list[tuple[Any, Any, tuple[dict[Branch, int], bool, bool]]] = field(
        default_factory=list
    )
    _shared: Counter[int] = field(default_factory=Counter)

    def denoise(self, family: Family, call: Call, *, conditional_first: bool) -> None:
        """Take note of a call of the denoiser: where text and pixels lie, who is in which row."""
        self.calls += 1
        self.layout = None
        if self.fault is not None:
            return
        grid = family.grid(call)
        self.latents = call[family.latents][0]
        if self.grid not in (None, grid):
            self.fault = (
                f"the cells changed from {_shown(self.grid)} to {_shown(grid)} within one run; "
                "trace the stages of such a pipeline one by one"
            )
            return
        self.grid = grid
        texts: list[Rows] = [call.text(text.argument) for text in family.text]
        latents: Rows = call[family.latents]
        samples = len(latents)
        rows, is_known, is_shared = self._rows(texts, latents, conditional_first)
        self.unknown += not is_known
        if is_shared:  # guidance in separate calls, the prompt first
            role: Role = "negative" if self._shared[self.step] % 2 else "prompt"
            self._shared[self.step] += 1
            rows = {branch: row for branch, row in rows.items() if branch.first.role == role}
        is_perturbed = any(call.arguments.get(name) is not None for name in family.skips)
        if not rows or is_perturbed:
            return
        repeats = max(1, len(texts[0]) // samples)
        by_sample = zip(*(text[::repeats] for text in texts), strict=True)
        totals = [sum(map(len, of_sample)) for of_sample in by_sample]
        sequences = family.sequence(call, grid, totals)
        self.layout = Layout(
            grid=grid,
            samples=samples,
            context=[
                family.context(call, (total,)) if family.context else (("text", total),)
                for total in totals
            ],
            sequences=sequences if isinstance(sequences, list) else [sequences] * samples,
            before=family.before(call, grid) if family.before else 0,
        )
        self.rows = rows
        for branch in rows:
            branch.calls += 1
        if self.branches[0] in rows:
            self.in_step[self.step] += 1

    def _rows(
        self, texts: Sequence[Rows], latents: Rows, conditional_first: bool
    ) -> tuple[dict[Branch, int], bool, bool]:
        """Find the branches that a call carries, and the first sample of each.

        Also say whether the call's text is known, and whether all of it is of the prompt and of
        the negative prompt alike.
        """
        # Pipelines pass the same tensors at every step; comparing values once is enough while they
        # are not changed in place. They are held so that no other takes over an identity.
        samples = len(latents)
        held = [part for text in texts for part in ([text] if torch.is_tensor(text) else text)]
        versions = [samples, *(None if one.is_inference() else one._version for one in held)]
        for known, then, result in self._known:
            if then == versions and all(a is b for a, b in zip(known, held, strict=True)):
                return result
        sampled = texts[0][:: max(1, len(texts[0]) // samples)]
        rows: dict[Branch, int] = {}
        matched: set[int] = set()
        is_known = is_shared = False
        for encoded in self.encoded:
            found = _blocks(sampled, encoded.rows)
            matched.update(row for at in found for row in range(at, at + len(encoded.rows)))
            is_known |= bool(found) and encoded.role == "prompt"
            if not found or encoded.role not in self.roles:
                continue
            is_shared |= len(sampled) == len(encoded.rows) and self._is_shared(encoded)
            branch = self._branch(encoded, texts)
            rows[branch] = self._chosen(encoded, found, latents, conditional_first)
        is_known |= len(matched) == len(sampled)  # of the negative prompt alone
        if None not in versions:
            self._known = [*self._known[-3:], (held, versions, (rows, is_known, is_shared))]
        return rows, is_known, is_shared

    def _chosen(
        self, encoded: Encoded, found: list[int], latents: Rows, conditional_first: bool
    ) -> int:
        """The first sample of a text that stands in several blocks of a batch.

        Perturbed guidance repeats the prompt after its own block, so the first one is right; but
        a negative prompt equal to the prompt takes the first block in most pipelines.
        """
        if len(found) == 1:
            return found[0]
        if not self._is_shared(encoded):
            size = len(encoded.rows)
            first, *others = ([latents[at + i] for i in range(size)] for at in found)
            if encoded.role == "prompt" and not all(_blocks(other, first) for other in others):
                raise TraceError(
                    f"a call of the denoiser has the prompt in {len(found)} places, with latents "
                    "of their own (crops of the image, a reference image), and which of them draw "
                    "the image cannot be told."
                )
            return found[0]
        is_second = (encoded.role == "prompt") != conditional_first
        return found[1] if is_second else found[0]

    def _is_shared(self, encoded: Encoded) -> bool:
        """Whether the prompt and the negative prompt are the same to the denoiser."""
        return any(
            other.role != encoded.role and other.rows is not encoded.rows
            and len(other.rows) == len(encoded.rows) and _blocks(other.rows, encoded.rows) == [0]
            for other in self.encoded
        )  # fmt: skip

    def _branch(self, encoded: Encoded, texts: Sequence[Rows]) -> Branch:
        """A text's branch, made when its rows are first found."""
        for branch in self.branches:
            if branch.first is encoded:
                return branch
        others = [
            other for other in self.encoded
            if other is not encoded and (other.role, other.texts) == (encoded.role, encoded.texts)
        ]  # fmt: skip
        parts: list[Encoded | None] = [encoded]
        parts += [
            next((one for one in others if _blocks(text, one.rows)), None) for text in texts[1:]
        ]
        lengths = [max(len(row) for row in text) for text in texts]
        offsets = tuple(accumulate(lengths, initial=0))
        branch = Branch(tuple(parts), offsets, _kept(parts, offsets))
        self.branches.append(branch)
        # The run's own prompt comes first, whatever was encoded before it.
        self.branches.sort(key=lambda branch: branch.first.role != "prompt")
        return branch

    def close(self) -> None:
        """End the run: let go of embeddings, keep what was recorded."""
        self.layout = self.latents = None
        self._known.clear()
        self.encoded.clear()
        self.arguments = {}
        for part in (part for branch in self.branches for part in branch.encoded if part):
            part.rows = [torch.empty(0)] * len(part.rows)

    def complain_of_repeats(self) -> None:
        """Refuse a run whose denoiser had more calls with the prompt than its steps have."""
        calls, steps = self.in_step.total(), len(self.in_step)
        order, total, more = self.schedule
        most = steps * order + more if self.counts_steps else calls
        most = min(most, total or most)
        if calls > most:
            raise TraceError(
                f"the denoiser was called {calls} times with the prompt, where the scheduler asks "
                f"for {most}: this pipeline calls it for other things as well "
                "(crops of the image, a reference image, another pipeline on the same denoiser), "
                "and which calls drew the image cannot be told."
            )

    def complain_of_crops(self) -> None:
        """Refuse a run whose denoiser saw parts of the picture, of another aspect."""
        assert self.grid is not None  # both are known once a layer was seen
        assert self.output is not None
        (_, height, width), (_, rows, columns) = self.grid, self.output
        aspect = rows / columns
        # Pipelines round sizes to what they were trained on and crop the rest.
        if not 0.8 < aspect * width / height < 1.25:
            raise TraceError(
                f"the denoiser saw {height}×{width} cells, and the picture has {aspect:.2f} rows a "
                "column: it is put together from crops, and maps of one crop are no maps of it."
            )


def _blocks(text: Rows, rows: Rows) -> list[int]:
    """Find a text in a batch of text embeddings by value: the first rows of whole blocks.

    Guidance stacks the branches in one batch in either order, in three parts, or not at all;
    comparing values tells them apart without knowing the pipeline.
    """
    size = len(rows)
    return [
        start
        for start in range(0, len(text) - size + 1, max(1, size))
        if all(equal(text[start + i], rows[i]) for i in range(size))
    ]


def equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two rows of embeddings have the same values, but for dtype and device."""
    if left is right:
        return True
    return left.shape == right.shape and torch.equal(
        left, right.to(device=left.device, dtype=left.dtype)
    )


def _kept(parts: Sequence[Encoded | None], offsets: Sequence[int]) -> tuple[int, ...]:
    """The columns that tokens, or their start and end tokens, of any sample stand in."""
    columns: set[int] = set()
    for part, offset in zip(parts, offsets[:-1], strict=True):
        if part is None:
            continue
        if part.prompts is None:  # no words are known, so any column may be asked for
            columns.update(range(offset, offset + len(part.rows[0])))
            continue
        for prompts in part.prompts:
            for prompt in prompts.values():
                own = [token.column for token in prompt.tokens]
                columns.update(offset + c for c in (*own, *prompt.start, *prompt.end))
    return tuple(sorted(column for column in columns if column < offsets[-1]))


def _shown(grid: Grid | None) -> str:
    frames, *size = grid or (1,)
    return str(tuple(size)) if frames == 1 else str(grid)
