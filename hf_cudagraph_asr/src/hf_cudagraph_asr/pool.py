"""`GraphPool`: answers a model's calls from programs captured for a few lengths."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from hf_cudagraph_asr.bucket_plan import BucketPlan, rows_of
from hf_cudagraph_asr.capture import Backend, Program
from hf_cudagraph_asr.dispatch import Dispatch, Reason
from hf_cudagraph_asr.families import UnsupportedModel
from hf_cudagraph_asr.fingerprint import Fingerprint
from hf_cudagraph_asr.masks import keep_mask
from hf_cudagraph_asr.padding import ExactForward
from hf_cudagraph_asr.request import Request, read
from hf_cudagraph_asr.statistics import PoolStatistics, Tally

__all__ = ["GraphPool"]

logger = logging.getLogger(__name__)

# What a capture that is not possible raises: torch's own errors are RuntimeErrors, out of memory
# included; the rest comes from tracing code that was not written to be traced.
_CAPTURE_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError)

# In which the exact forward is tested.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A logit so far below 0 has no probability, and float16 still holds it.
_NEVER = -1e4


@dataclass(frozen=True)
class _Slot:
    """A program and the tensors it reads."""

    program: Program
    input_values: torch.Tensor  # (batch size, samples of the bucket)
    lengths: torch.Tensor  # (batch size,)

    def run(self, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
        """The program's own outputs for these rows, which the next run may overwrite."""
        rows, longest = len(request.lengths), request.longest
        self.input_values[:rows, :longest].copy_(request.input_values[:, :longest])
        # Nothing of the query before this one stays, in whatever the program does with padding.
        self.input_values[:rows, longest:].zero_()
        self.input_values[rows:].zero_()
        unused = [self.input_values.shape[1]] * (len(self.lengths) - rows)
        self.lengths.copy_(torch.tensor([*request.lengths, *unused]))
        return self.program(self.input_values, self.lengths)


class GraphPool:
    """Captured programs for the buckets of a plan, and the way of each call to one of them.

    `enable_cuda_graphs` makes one. It serves any number of threads: replays follow one another
    under one lock, and each caller gets tensors of its own.

    Rows of a batch come out as each would alone. Their logits are cut to the longest row; frames
    beyond a shorter row say blank with certainty, so that they decode to nothing.

    What cannot be replayed is computed all the same. Too long an input and too many rows go
    through the length-exact forward as it is, so that the texts are those of batch 1 whatever
    the plan; what asks for more than logits goes to the model's own forward. `explain` says which.

    Args:
        model: a CTC model. One without a length-exact forward is served by its own.
        backend: makes the programs.
        plan: the buckets; a backend that captures nothing needs none.
        batch_sizes: rows to capture each bucket for; by default the plan's.
        copy_outputs: give each caller a copy. Without, an output is right until the next call.

    Raises:
        ValueError: the plan is missing or for another geometry; or the model names no blank.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend,
        plan: BucketPlan | None = None,
        *,
        batch_sizes: Iterable[int] | None = None,
        copy_outputs: bool = True,
    ) -> None:
        if plan is None and backend.captures:
            raise ValueError(
                f"the {backend.name} backend captures the buckets of a plan: pass "
                f"plan_buckets(durations, model=model), or backend='eager', which needs none"
            )
        self.plan = plan
        self.backend = backend
        if batch_sizes is not None:
            self.batch_sizes = rows_of(batch_sizes)
        else:
            self.batch_sizes = (1,) if plan is None else plan.batch_sizes
        self._model = model
        self._copy_outputs = copy_outputs
        self._lock = threading.RLock()
        self._tally = Tally()
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._exact: ExactForward | None = None
        # Why calls that could be replayed are not, and more of it.
        self._hindered: tuple[Reason, str] | None = None
        self._closed = False
        self._blank = 0
        self._shortest = 1
        self.rebuild()

    def rebuild(self) -> None:
        """Capture anew, from the weights that the model has now. Calls wait meanwhile.

        Raises:
            ValueError: the pool is disabled; or as when it was made.
        """
        with self._lock:
            if self._closed:
                raise ValueError("the pool is disabled: call enable_cuda_graphs(model, ...) again")
            # Until all is captured: whatever is raised meanwhile, nothing is replayed.
            self._slots, self._hindered = {}, (Reason.CHANGED, "")
            self._inspect()
            if self._exact is None:
                return
            if self.plan is not None:
                self.plan.check_geometry(self._model)
                if self.backend.captures:
                    try:
                        self._capture(self._exact, self.plan)
                    except _CAPTURE_ERRORS as error:
                        self._slots = {}
                        self._hinder(Reason.FAILED, f"{type(error).__name__}: {error}")
                        return
            self._hindered = None

    def close(self) -> None:
        """Drop the programs. Calls that still come are the host's."""
        with self._lock:
            self._closed = True
            self._slots = {}

    def stats(self) -> PoolStatistics:
        """What it did so far."""
        return self._tally.read()

    def explain(self, samples: int | Sequence[int]) -> Dispatch:
        """What would become of a call for logits alone.

        Args:
            samples: of a single query, or of each row of a batch.

        Raises:
            ValueError: no rows.
        """
        lengths = tuple(samples) if isinstance(samples, Iterable) else (samples,)
        if not lengths:
            raise ValueError("samples of no rows: give a length, or a length for each row")
        with self._lock:
            self._check()
            if self._exact is not None and max(lengths) < self._shortest:
                return Dispatch("host", Reason.SHORT)
            return self._decide(lengths)

    def answer(
        self, host: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """What `host(*args, **kwargs)` would return, from a program where there is one.

        Args:
            host: the model's own forward.
            args: its positional arguments.
            kwargs: its other arguments.

        Returns:
            The host's `CausalLMOutput`, or what else its forward returned.

        Raises:
            ValueError: a batch has a row shorter than the receptive field.
        """
        with self._lock:
            self._check()
            exact = self._exact
        if self._closed or exact is None:
            reason = Reason.CLOSED if self._closed else Reason.UNSUPPORTED
        else:
            request = read(self._model, self._shortest, args, kwargs)
            if isinstance(request, Request):
                logits = self._logits(exact, request)
                if logits is not None:
                    output = CausalLMOutput(logits=logits)
                    return output.to_tuple() if request.as_tuple else output
                reason = Reason.REFUSED
            else:
                reason = request
        self._tally.missed(reason)
        return host(*args, **kwargs)

    def _logits(self, exact: ExactForward, request: Request) -> torch.Tensor | None:
        """(B, T, V), T the frames of the longest row; None where there is no exact answer."""
        with torch.no_grad():
            with self._lock:
                slot, dispatch = self._slot_for(request)
                if slot is not None and dispatch.bucket is not None:
                    start = perf_counter()
                    logits = self._cut(exact, request, *slot.run(request), owned=False)
                    seconds = perf_counter() - start
                    filled = sum(map(_frames(self.plan), request.lengths))
                    self._tally.replayed(
                        dispatch.bucket.frames, dispatch.batch_size, filled, seconds
                    )
                    return logits
            values = request.input_values[:, : request.longest]
            lengths = torch.tensor(request.lengths, device=values.device)
            try:
                output = exact(values, lengths)
            except ValueError:
                # Changed meanwhile by another thread, or more frames than positions: the host's
                # own forward makes room for more.
                return None
            if dispatch.reason is None:
                self._tally.hit()
            else:
                self._tally.missed(dispatch.reason)
            return self._cut(exact, request, *output, owned=True)

    def _cut(
        self,
        exact: ExactForward,
        request: Request,
        logits: torch.Tensor,
        frames: torch.Tensor,
        *,
        owned: bool,
    ) -> torch.Tensor:
        rows, total = len(request.lengths), exact.geometry.emitted(request.longest)
        cut = logits[:rows, :total]  # (B, T, V)
        if len(set(request.lengths)) > 1:
            keep = keep_mask(frames[:rows], total)
            certain = cut.new_full((cut.shape[-1],), _NEVER)
            certain[self._blank] = 0
            return torch.where(keep[:, :, None], cut, certain)
        return cut.clone() if self._copy_outputs and not owned else cut

    def _slot_for(self, request: Request) -> tuple[_Slot | None, Dispatch]:
        dispatch = self._decide(request.lengths)
        if dispatch.bucket is None:
            return None, dispatch
        return self._slots[dispatch.bucket.frames, dispatch.batch_size], dispatch

    def _decide(self, lengths: Sequence[int]) -> Dispatch:
        if self._closed:
            return Dispatch("host", Reason.CLOSED)
        if self._hindered is not None:
            return Dispatch("host" if self._exact is None else "exact", *self._hindered)
        if self.plan is None or not self.backend.captures:
            return Dispatch("exact")
        rows = next((size for size in self.batch_sizes if size >= len(lengths)), None)
        if rows is None:
            most = self.batch_sizes[-1]
            return Dispatch("exact", Reason.ROWS, f"{len(lengths)} rows, at most {most}")
        bucket = self.plan.bucket_for(max(lengths))
        if bucket is None:
            most = self.plan.buckets[-1].samples
            return Dispatch("exact", Reason.LONG, f"{max(lengths)} samples, at most {most}")
        filled = sum(map(self.plan.geometry.frames, lengths))
        return Dispatch(
            "bucket",
            bucket=bucket,
            batch_size=rows,
            padding=(rows * bucket.frames - filled) / filled,
            cost=bucket.cost,
        )

    def _check(self) -> None:
        """Notice that the model is no longer what was captured, before anything is replayed."""
        if self._closed or self._fingerprint.holds():
            return
        unsupported = self._hindered is not None and self._hindered[0] is Reason.UNSUPPORTED
        if self._slots or (unsupported and self.backend.captures):
            self._hinder(Reason.CHANGED)
        elif unsupported:
            self._hindered = None  # it may be supported now
        self._slots = {}
        self._inspect()

    def _inspect(self) -> None:
        self._fingerprint = Fingerprint(self._model)
        try:
            self._exact = _exact_forward(self._model)
        except UnsupportedModel as error:
            self._exact = None
            self._hinder(Reason.UNSUPPORTED, str(error))
            return
        blank, words = self._model.config.pad_token_id, self._model.lm_head.out_features
        if not isinstance(blank, int) or not 0 <= blank < words:
            raise ValueError(
                f"config.pad_token_id, the blank of CTC, is {blank!r}, expected 0 to {words - 1}: "
                f"set it to the tokenizer's pad token"
            )
        self._blank, self._shortest = blank, self._exact.receptive_field

    def _hinder(self, reason: Reason, detail: str = "") -> None:
        self._hindered = reason, detail
        logger.warning(
            "%s: %s%s", type(self._model).__name__, reason.value, detail and f": {detail}"
        )

    def _capture(self, exact: ExactForward, plan: BucketPlan) -> None:
        """All programs, the largest first: what it needs is there for the others."""
        weight = self._model.lm_head.weight
        shapes = [(bucket, rows) for bucket in plan.buckets for rows in self.batch_sizes]
        # Static tensors must stay writable outside of inference mode, whoever builds the pool.
        with torch.inference_mode(False), torch.no_grad():
            for bucket, rows in sorted(shapes, key=lambda s: (-s[0].samples * s[1], -s[1])):
                values = weight.new_zeros((rows, bucket.samples))
                # Padded, as queries will be: other kernels serve what has no padding.
                lengths = torch.full((rows,), exact.receptive_field, device=weight.device)
                program = self.backend.capture(exact, values, lengths)
                self._slots[bucket.frames, rows] = _Slot(program, values, lengths)


def _exact_forward(model: Any) -> ExactForward:
    exact, dtype = ExactForward(model), model.lm_head.weight.dtype
    if dtype not in _DTYPES:
        raise UnsupportedModel(f"its weights are {dtype}, expected one of {_DTYPES}")
    return exact


def _frames(plan: BucketPlan | None) -> Callable[[int], int]:
    assert plan is not None  # a slot was found, so there is one
    return plan.geometry.frames
