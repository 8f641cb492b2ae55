"""One run of a pipeline: which text it encoded, which denoiser calls carried it, what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from daam_diffusers.errors import TraceError
from daam_diffusers.families import Call, Family, Grid, Segments
from daam_diffusers.layers import Layout
from daam_diffusers.prompt import Prompt
from daam_diffusers.record import LayerRecord

Role = Literal["prompt", "negative"]
Rows = torch.Tensor | Sequence[torch.Tensor]
"""Text embeddings, a row a sample: (B, K, D), or B tensors (K, D) of lengths of their own."""


@dataclass(frozen=True)
class Encoded:
    """Text as a pipeline encoded it.

    Attributes:
        role: what the pipeline uses it for.
        rows: the embeddings.
        prompts: the prompt of each row by text encoder, columns counted in these embeddings; None
            if only embeddings were given.
    """

    role: Role
    rows: Rows
    prompts: tuple[Mapping[str, Prompt], ...] | None

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The text of each row."""
        if self.prompts is None:
            return None
        return tuple(next(iter(one.values())).text for one in self.prompts)


@dataclass
class Branch:
    """What is recorded of one text in one run.

    Attributes:
        encoded: the text, one entry an argument of the denoiser that holds text, or None.
        offsets: the first column of each of these arguments.
        keys: columns of all of them.
        columns: those that are kept apart, increasing.
        layers: the layers seen so far, by name.
        calls: denoiser calls that carried it.
        asked: how many calls of each layer should have been seen.
    """

    encoded: tuple[Encoded | None, ...]
    offsets: tuple[int, ...]
    keys: int
    columns: tuple[int, ...]
    layers: dict[str, LayerRecord] = field(default_factory=dict)
    calls: int = 0
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def first(self) -> Encoded:
        """The text of the denoiser's first text argument, by which rows are told."""
        assert self.encoded[0] is not None  # a branch is made when its rows are found
        return self.encoded[0]

    @property
    def samples(self) -> int:
        """Images, or videos, of the run."""
        return len(self.first.rows)

    def hidden(self) -> list[str]:
        """Layers that were called more often than their attention was seen."""
        seen = {name: record.calls for name, record in self.layers.items()}
        return [name for name, calls in self.asked.items() if seen.get(name, 0) < calls]


@dataclass(eq=False)
class Run:
    """One call of a pipeline, or of a denoising loop of one's own.

    Attributes:
        arguments: of the pipeline's call, by name; empty for a loop of one's own.
        roles: the texts to record.
        encoded: text that was encoded in it, in order.
        branches: what is recorded; the first one is the prompt that the run began with.
        layout: of the denoiser's present call; None if the call is not recorded.
        grid: of all calls; None before the first.
        latents: of one sample, the last ones seen.
        calls: denoiser calls.
        unknown: those whose text is none that was encoded in the run.
        step: steps that were finished, as the pipeline's progress bar counts them.
        counts_steps: whether the pipeline has such a bar.
        in_step: calls with the prompt, by step.
        schedule: calls a step, calls in all (0 if unknown) and calls more in the first step that
            the scheduler asks for.
        grads: whether it computes gradients throughout.
        fault: why no heat map can be made of the run, if so.
        is_cut_short: whether the pipeline raised before it was done.
        output: frames (None for an image), rows and columns of the generated picture, if seen.
        provenance: where its maps come from.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    roles: frozenset[Role] = frozenset({"prompt"})
    encoded: list[Encoded] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    layout: Layout | None = None
    grid: Grid | None = None
    latents: torch.Tensor | None = None
    calls: int = 0
    unknown: int = 0
    step: int = 0
    counts_steps: bool = False
    in_step: Counter[int] = field(default_factory=Counter)
    schedule: tuple[int, int, int] = (1, 0, 0)
    grads: bool = False
    fault: str | None = None
    is_cut_short: bool = False
    output: tuple[int | None, int, int] | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    _known: list[tuple[Any, Any, tuple[dict[int, int], bool, bool]]] = field(default_factory=list)
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
            rows = {i: row for i, row in rows.items() if self.branches[i].first.role == role}
        if not rows:
            return
        if any(call.arguments.get(name) is not None for name in family.skips):
            return  # the call is perturbed on purpose
        repeats = max(1, len(texts[0]) // samples)
        lengths = [call.lengths(text.argument)[::repeats] for text in family.text]
        totals = [sum(of_sample) for of_sample in zip(*lengths, strict=True)]
        context = (
            (("text", total),) if family.context is None else family.context(call, (total,))
            for total in totals
        )
        self.layout = Layout(
            grid=grid,
            samples=samples,
            context=tuple(context),
            sequences=_sequences(family, call, grid, totals),
            rows=rows,
            before=family.before(call, grid) if family.before else 0,
        )
        for index in rows:
            self.branches[index].calls += 1
        if 0 in rows:
            self.in_step[self.step] += 1

    def _rows(
        self, texts: Sequence[Rows], latents: Rows, conditional_first: bool
    ) -> tuple[dict[int, int], bool, bool]:
        """Which branches a call carries, from which sample on.

        And whether its text is known, and whether all of it is of the prompt and of the negative
        prompt alike.
        """
        # Pipelines pass the same tensors at every step; comparing values once is enough while they
        # are not changed in place. They are held so that no other takes over an identity.
        samples = len(latents)
        held = [part for text in texts for part in _parts(text)]
        versions = [samples, *map(_version, held)]
        for known, then, result in self._known:
            if then == versions and all(a is b for a, b in zip(known, held, strict=True)):
                return result
        sampled = texts[0][:: max(1, len(texts[0]) // samples)]
        rows: dict[int, int] = {}
        matched: set[int] = set()
        is_known = is_shared = False
        # Branches of prompts come first, so they are made first.
        for encoded in sorted(self.encoded, key=lambda one: one.role != "prompt"):
            found = _blocks(sampled, encoded.rows)
            matched.update(row for at in found for row in range(at, at + len(encoded.rows)))
            is_known |= bool(found) and encoded.role == "prompt"
            if not found or encoded.role not in self.roles:
                continue
            is_shared |= len(sampled) == len(encoded.rows) and self._is_shared(encoded)
            index = self._branch(encoded, texts)
            if index not in rows:
                rows[index] = self._chosen(encoded, found, latents, conditional_first)
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

        Raises:
            TraceError: the prompt stands beside several latents.
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

    def _branch(self, encoded: Encoded, texts: Sequence[Rows]) -> int:
        """The index of a text's branch, made when its rows are first found."""
        for index, branch in enumerate(self.branches):
            if branch.first is encoded:
                return index
        parts: list[Encoded | None] = [encoded]
        for text in texts[1:]:
            others = [
                other
                for other in self.encoded
                if other.role == encoded.role and other is not encoded
                and other.texts == encoded.texts and _blocks(text, other.rows)
            ]  # fmt: skip
            parts.append(others[0] if others else None)
        lengths = [max(len(row) for row in text) for text in texts]
        offsets = tuple(sum(lengths[:n]) for n in range(len(lengths)))
        keys = sum(lengths)
        self.branches.append(Branch(tuple(parts), offsets, keys, _kept(parts, offsets, keys)))
        # The run's own prompt comes first, whatever was encoded before it.
        self.branches.sort(key=lambda branch: branch.first.role != "prompt")
        self._known.clear()
        return next(i for i, branch in enumerate(self.branches) if branch.first is encoded)

    def close(self) -> None:
        """End the run: let go of embeddings, keep what was recorded."""
        self.layout = self.latents = None
        self._known.clear()
        self.encoded.clear()
        self.arguments = {}
        for branch in self.branches:
            branch.encoded = tuple(
                part and Encoded(part.role, [torch.empty(0)] * len(part.rows), part.prompts)
                for part in branch.encoded
            )

    def counts(self, branch: Branch, steps: int | None) -> dict[str, str]:
        """Steps as the scheduler counts them, and denoiser calls, for the provenance."""
        done = self.step if self.counts_steps else steps or branch.calls
        return {"steps": str(done), "calls": str(branch.calls)}

    def complain_of_repeats(self) -> None:
        """Refuse a run whose denoiser was called with the prompt for other things as well.

        Raises:
            TraceError: there were more such calls than the steps have.
        """
        calls = sum(self.in_step.values())
        steps = len(self.in_step)
        order, total, more = self.schedule
        most = steps * order + more if self.counts_steps else calls
        if calls > min(most, total or most):
            raise TraceError(
                f"the denoiser was called {calls} times with the prompt, where the scheduler asks "
                f"for {min(most, total or most)}: this pipeline calls it for other things as well "
                "(crops of the image, a reference image, another pipeline on the same denoiser), "
                "and which calls drew the image cannot be told."
            )

    def complain_of_crops(self, aspect: float) -> None:
        """Refuse a run whose denoiser saw parts of the picture.

        Args:
            aspect: rows of the picture to its columns.

        Raises:
            TraceError: the cells have another aspect.
        """
        assert self.grid is not None  # set before any layer is seen
        _, height, width = self.grid
        # Pipelines round sizes to what they were trained on and crop the rest.
        if not 0.8 < aspect * width / height < 1.25:
            raise TraceError(
                f"the denoiser saw {height}×{width} cells, and the picture has {aspect:.2f} rows a "
                "column: it is put together from crops, and maps of one crop are no maps of it."
            )

    def bytes(self) -> int:
        """Size of all running sums."""
        return sum(record.bytes() for branch in self.branches for record in branch.layers.values())


def _sequences(
    family: Family, call: Call, grid: Grid, lengths: Sequence[int]
) -> Sequence[Segments]:
    found = family.sequence(call, grid, lengths)
    return found if isinstance(found, list) else [found] * len(lengths)


def _parts(text: Rows) -> list[torch.Tensor]:
    return [text] if isinstance(text, torch.Tensor) else list(text)


def _version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was changed in place; None where that is not counted."""
    return None if tensor.is_inference() else tensor._version


def _blocks(text: Rows, rows: Rows) -> list[int]:
    """Where in a batch of text embeddings a text stands, by value: first rows of whole blocks.

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


def _kept(parts: Sequence[Encoded | None], offsets: Sequence[int], keys: int) -> tuple[int, ...]:
    """The columns that tokens, or their start and end tokens, of any sample stand in."""
    columns: set[int] = set()
    for part, offset in zip(parts, offsets, strict=True):
        if part is None:
            continue
        if part.prompts is None:  # no words are known, so any column may be asked for
            columns.update(range(offset, offset + len(part.rows[0])))
            continue
        for prompts in part.prompts:
            for prompt in prompts.values():
                own = [token.column for token in prompt.tokens]
                columns.update(offset + c for c in (*own, *prompt.start, *prompt.end))
    return tuple(sorted(column for column in columns if column < keys))


def _shown(grid: Grid | None) -> str:
    frames, *size = grid or (1,)
    return str(tuple(size)) if frames == 1 else str(grid)
