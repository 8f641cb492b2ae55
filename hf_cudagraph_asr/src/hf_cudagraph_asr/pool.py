"""`GraphPool`: answers a model's calls from programs captured for a few lengths."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from operator import index
from time import monotonic, perf_counter
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from hf_cudagraph_asr.backends import Backend
from hf_cudagraph_asr.captured import Captured, cut
from hf_cudagraph_asr.dispatch import Dispatch, Reason, decide
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.host import Call, HostModel, row_by_row
from hf_cudagraph_asr.observe import Observer, Observers, PoolStatistics, Served, Tally
from hf_cudagraph_asr.plan import BucketPlan, Cost, LengthSketch, Proposal, propose, rows_of, whole

logger = logging.getLogger(__name__)

EAGER_ROWS = 8  # rows of a batch where nothing is captured
CALL = 50  # frames that an eager call costs beside those it computes: between a CPU and a GPU

PATIENCE = 30.0  # seconds: one of the calls waited for may itself wait for the one that waits

CLOSED = "the pool is disabled: call enable_cuda_graphs(model, ...) again"


@dataclass(frozen=True)
class _State:
    """What serves between two changes. A call holds one from its beginning to its end.

    Without `captured`, a call becomes `otherwise`. Without a host, the pool is disabled.
    """

    host: HostModel | None
    plan: BucketPlan | None
    batch_sizes: tuple[int, ...]
    captured: Captured | None
    otherwise: Dispatch

    def close(self) -> None:
        """Drop the programs."""
        if self.captured is not None:
            self.captured.close()


class GraphPool:
    """Captured programs for the buckets of a plan, and the way of each call to one of them.

    `enable_cuda_graphs` makes one. It serves any number of threads: replays of a replica follow
    one another, and each caller gets tensors of its own.

    Rows of a batch come out as each would alone. Their logits are cut to the longest row; frames
    beyond a shorter row say blank with certainty, so that they decode to nothing. A batch is
    replayed together, or split where that costs less by what `calibrate` measured; before it, by
    the fewest replays. Rows are told from their padding by the attention mask alone: without one,
    padding counts as audio.

    What cannot be replayed is computed all the same. Too long an input goes through the
    length-exact forward as it is, so that the texts are those of batch 1 whatever the plan; what
    asks for more than logits goes to the model's own forward. `explain` says which.

    Args:
        model: a CTC model. One without a length-exact forward is served by its own.
        backend: makes the programs.
        plan: the buckets; a backend that captures nothing needs none.
        batch_sizes: rows to capture each bucket for; by default the plan's.
        observers: called with a `Served` for each call.

    Attributes:
        backend: what makes the programs.
        sketch: the lengths it has seen, of which `replan` makes a plan.

    Raises:
        ValueError: the plan is missing or for another geometry, or the model names no blank.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend,
        plan: BucketPlan | None = None,
        *,
        batch_sizes: Iterable[int] | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        if plan is None and backend.captures:
            raise ValueError(
                f"the {backend.name} backend captures the buckets of a plan: pass "
                f"plan_buckets(durations, model=model), or backend='eager', which needs none"
            )
        if batch_sizes is not None:
            sizes = rows_of(batch_sizes)
        else:
            sizes = (1,) if plan is None else plan.batch_sizes
        self.backend = backend
        self.sketch = LengthSketch(plan.geometry if plan is not None else _geometry(model))
        self._hop = self.sketch.geometry.hop  # read once: it is computed from all convolutions
        self._model = model
        self._forward: Callable[..., Any] | None = model.forward
        self._observers = Observers(observers)
        self._tally = Tally()
        # Held by whoever exchanges what serves; calls do without.
        self._lock = threading.RLock()
        # Calls wait in it while a backend needs the model for itself.
        self._gate = _Gate() if backend.exclusive else None
        self._warned: set[str] = set()
        self._state = self._made(plan, sizes)

    @property
    def closed(self) -> bool:
        """True once it is disabled: calls that still come are the host's."""
        return self._state.host is None

    @property
    def plan(self) -> BucketPlan | None:
        """The buckets that are served now."""
        return self._state.plan

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows that each bucket has programs for."""
        return self._state.batch_sizes

    def call(
        self, input_values: torch.Tensor, lengths: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, Dispatch]:
        """Give the logits of rows of audio, and what became of the call, which is made once.

        No gradients are computed. Each row comes out as it would alone, whatever the route; one
        shorter than the receptive field has no frames.

        Args:
            input_values: (B, S), or (B, S, F) where the model takes features, in its dtype and on
                its device.
            lengths: samples of each row, or positions, at most S; by default S for all.

        Returns:
            Logits (B, T, V), T the frames of the longest row; and the dispatch.

        Raises:
            ValueError: the values are no such tensor, or the lengths are not B numbers up to S.
        """
        state, forward = self._current(), self._forward
        if forward is None or state.host is None:
            raise ValueError(CLOSED)
        if not state.host.takes(input_values):
            shape, dtype, device = (
                getattr(input_values, name, None) for name in ("shape", "dtype", "device")
            )
            raise ValueError(
                f"{Reason.INPUT.value}: got {type(input_values).__name__} {shape} in {dtype} on "
                f"{device}"
            )
        rows, samples = input_values.shape[:2]
        found = (samples,) * rows if lengths is None else _whole(lengths)
        if len(found) != rows or max(found) > samples:
            raise ValueError(f"lengths are {found}, expected {rows} numbers up to {samples}")
        with self._within():
            return self._answer(state, Call(input_values, found), forward, state.host.mode())

    def forward(
        self, host: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Give what `host(*args, **kwargs)` would, from programs where it can.

        Args:
            host: the model's own forward.
            args: its positional arguments.
            kwargs: its other arguments.

        Returns:
            The host's `CausalLMOutput`, or what else its forward returned.
        """
        state = self._current()
        call = Reason.CLOSED if state.host is None else state.host.read(args, kwargs)
        if isinstance(call, Reason):
            start = perf_counter()
            with self._gate or _NOTHING:
                output = host(*args, **kwargs)
            self._count(Dispatch("host", call), (), start)
            if call in _MENDABLE:
                self._warn_once(_MENDABLE[call])
            return output
        if call.unmasked and len(call.lengths) > 1:
            self._warn_once(_NO_MASK)
        with self._within():
            logits, _ = self._answer(state, call, host)
        return (logits,) if call.as_tuple else output_of(logits)

    def explain(self, samples: int | Sequence[int]) -> Dispatch:
        """Predict what would become of a call for logits alone, if it were made here and now.

        So it also says that gradients are on, or autocast, where they are on.

        Args:
            samples: of a single query, or of each row of a batch.

        Raises:
            ValueError: no rows, or lengths that are no whole numbers.
        """
        lengths = _whole(samples if isinstance(samples, Iterable) else (samples,))
        if not lengths:
            raise ValueError("samples of no rows: give a length, or a length for each row")
        state = self._current()
        if state.host is None or state.host.refusal:
            return state.otherwise
        if max(lengths) < state.host.receptive_field:
            return Dispatch("host", Reason.SHORT, f"{max(lengths)} samples")
        if (reason := state.host.mode()) is not None:
            return Dispatch("host", reason)
        programs = None if state.captured is None else state.captured.programs
        return decide(lengths, programs, state.otherwise)

    def price(self, samples: int, rows: int) -> float:
        """Cost of one run of rows of which the longest has so many samples, to choose batches by.

        In milliseconds after `calibrate`. Before it, captured programs are replayed as seldom as
        can be; where nothing is captured, it counts frames, and a call as 50 of them.
        """
        captured = self._state.captured
        if captured is None:
            return CALL + samples // self._hop * rows
        return captured.programs.price(samples, rows)

    def most_rows(self, asked: int | None = None) -> int:
        """Rows of the largest batch: as asked, but no more than are captured; else 8."""
        captured = self._state.captured
        sizes = () if captured is None else captured.programs.batch_sizes[-1:]
        most = () if asked is None else (whole(asked, "batch_size"),)
        return min((*sizes, *most), default=EAGER_ROWS)

    def stats(self) -> PoolStatistics:
        """Count what it did so far."""
        captured = self._state.captured
        if captured is None:
            return self._tally.read()
        return self._tally.read(captured.memory(), captured.capture_seconds)

    def rebuild(self) -> None:
        """Capture anew, from the weights that the model has now. Nothing is replayed meanwhile.

        Raises:
            ValueError: the pool is disabled; or as when it was made.
        """
        with self._lock:
            self._refuse_closed()
            old = self._state
            # Whatever is raised from here on, nothing is replayed until all is captured.
            changed = Dispatch("exact", Reason.CHANGED)
            self._state = replace(old, captured=None, otherwise=changed)
            old.close()
            self._state = self._made(old.plan, old.batch_sizes)

    def swap(self, plan: BucketPlan) -> None:
        """Serve by another plan. Calls are replayed by the old one until the new one is captured.

        With exported programs calls wait during the capture itself, with CUDA graphs they do not.
        Until the end both plans are in memory.

        Args:
            plan: for the same geometry. Its batch sizes count.

        Raises:
            TypeError: it is no plan.
            ValueError: the pool is disabled, or the plan is for another geometry.
            RuntimeError: it cannot be captured, or nothing is replayed now. The old one stays.
        """
        if not isinstance(plan, BucketPlan):
            raise TypeError(f"plan is a {type(plan).__name__}, expected a BucketPlan")
        with self._lock:
            self._refuse_closed()
            old = self._current()
            if (reason := old.otherwise.reason) is not None:
                raise RuntimeError(
                    f"nothing is replayed now, because: {reason.value}; the plan stays as it is: "
                    f"call pool.rebuild() before pool.swap(plan)"
                )
            host = HostModel(self._model, plan)
            if plan.geometry != self.sketch.geometry:
                raise ValueError(
                    f"the lengths seen are counted for {self.sketch.geometry}, and the plan is for "
                    f"{plan.geometry}: call enable_cuda_graphs anew for another sampling rate"
                )
            captured = None
            if self.backend.captures:
                try:
                    captured = self._capture(host, plan, plan.batch_sizes)
                except Exception as error:
                    raise RuntimeError(
                        f"the new plan cannot be captured, so the old one stays: "
                        f"{type(error).__name__}: {error}"
                    ) from error
            self._state = _State(host, plan, plan.batch_sizes, captured, Dispatch("exact"))
            old.close()

    def replan(self, *, swap: bool = False, **options: Any) -> Proposal:
        """Find the plan that suits what was seen, and what it gains over the present one.

        Args:
            swap: serve by it, where it is worth while.
            options: of `hf_cudagraph_asr.plan.propose`.

        Raises:
            ValueError: there is no plan, or too little was seen to plan for.
            RuntimeError: the new plan cannot be captured. The old one stays.
        """
        self._refuse_closed()
        plan = self.plan
        if plan is None:
            raise ValueError(
                "there is no plan to compare with: enable_cuda_graphs(model, plan), or "
                "plan_buckets(pool.sketch.traffic(), model=model) for a first one"
            )
        # The sizes may be others than the plan's own: they were given when it was enabled.
        proposal = propose(replace(plan, batch_sizes=self.batch_sizes), self.sketch, **options)
        if swap and proposal.worthwhile:
            self.swap(proposal.plan)
        return proposal

    def calibrate(self, *, repeats: int = 10) -> Cost:
        """Measure replays and eager runs at the buckets' lengths, and split batches by that.

        Args:
            repeats: runs of each. Their median counts.

        Returns:
            Milliseconds, for `plan_buckets(durations, cost=…)`.

        Raises:
            ValueError: nothing is captured, or the pool is disabled.
        """
        with self._lock:
            self._refuse_closed()
            state = self._current()
            if state.captured is None:
                raise ValueError(f"nothing is captured that could be measured: {state.otherwise}")
            return state.captured.calibrate(repeats).cost

    def close(self) -> None:
        """Drop the programs. Calls that still come are the host's."""
        with self._lock:
            old = self._state
            closed = Dispatch("host", Reason.CLOSED)
            self._state = _State(None, old.plan, old.batch_sizes, None, closed)
            old.close()
            self.backend.close()
            # Who keeps the pool, for its statistics, does not keep the model.
            self._model = self._forward = None

    def _answer(
        self, state: _State, call: Call, host: Callable[..., Any], reason: Reason | None = None
    ) -> tuple[torch.Tensor, Dispatch]:
        """Execute a call, once, and count it; the host answers it for a `reason` known before."""
        start = perf_counter()
        for length in call.lengths:
            self.sketch.add(length)
        found: tuple[torch.Tensor, Dispatch, float] | None = None
        if reason is None:
            found = self._computed(state, call)
        if found is None:
            assert state.host is not None
            reason = reason or (Reason.CLOSED if self.closed else Reason.REFUSED)
            # Each row alone: to a batch, the host's answer would be another one.
            logits = row_by_row(host, call, state.host.model)
            found = logits, Dispatch("host", reason, "row by row"), 0.0
        logits, dispatch, seconds = found
        self._count(dispatch, call.lengths, start, seconds)
        return logits, dispatch

    def _within(self) -> AbstractContextManager[object]:
        """Context of a computation: without gradients, and not while a backend is alone."""
        if self._gate is None and not torch.is_grad_enabled():
            return _NOTHING
        stack = ExitStack()
        stack.enter_context(torch.no_grad())
        stack.enter_context(self._gate or _NOTHING)
        return stack

    def _computed(self, state: _State, call: Call) -> tuple[torch.Tensor, Dispatch, float] | None:
        """Logits by programs or the exact forward, and seconds of replays; None if it refuses."""
        while (host := state.host) is not None and not host.refusal:
            longest = max(call.lengths)
            if longest < host.receptive_field:
                empty = host.blank_row.new_empty((len(call.lengths), 0, len(host.blank_row)))
                return empty, Dispatch("exact", Reason.SHORT, f"{longest} samples"), 0.0
            captured = state.captured
            programs = None if captured is None else captured.programs
            dispatch = decide(call.lengths, programs, state.otherwise)
            if captured is None or not dispatch.replays:
                values = call.input_values[:, :longest]
                lengths = torch.tensor(call.lengths, device=values.device)
                try:
                    output = host.exact(values, lengths)
                except ValueError:
                    # Changed meanwhile by another thread, or more frames than positions: the
                    # host's own forward makes room for more.
                    return None
                return cut(host, output, call.lengths, copy=False), dispatch, 0.0
            replayed = captured.run(call.input_values, call.lengths, dispatch)
            if replayed is not None:
                return replayed[0], dispatch, replayed[1]
            state = self._current(inside=True)  # another thread has exchanged it
        return None

    def _count(
        self, dispatch: Dispatch, lengths: tuple[int, ...], start: float, seconds: float = 0.0
    ) -> None:
        self._tally.count(dispatch, seconds)
        if self._observers:
            self._observers.notify(Served(dispatch, lengths, perf_counter() - start))

    def _current(self, *, inside: bool = False) -> _State:
        """What serves now, after a look whether the model is still what was captured.

        Calls that are not `inside` enter for the look: during an export, others' tensors are there.
        """
        state = self._state
        if state.host is None:
            return state
        with _NOTHING if inside or self._gate is None else self._gate:
            if state.host.holds():
                return state
        with self._lock:
            old = self._state
            if old.host is None or old.host.holds():
                return old
            try:
                host = HostModel(self._model, old.plan)
            except ValueError as error:
                host = HostModel(self._model, refusal=str(error))
            otherwise = old.otherwise
            if host.refusal:
                otherwise = Dispatch("host", Reason.UNSUPPORTED, host.refusal)
                if otherwise != old.otherwise:  # accelerate exchanges tensors in every call
                    self._warn(otherwise)
            elif self.backend.captures:
                # A pool whose capture failed, or that has changed before, has said so.
                if otherwise.reason not in (Reason.CHANGED, Reason.FAILED):
                    otherwise = Dispatch("exact", Reason.CHANGED)
                    self._warn(otherwise)
            else:
                otherwise = Dispatch("exact")
            self._state = _State(host, old.plan, old.batch_sizes, None, otherwise)
            old.close()
            return self._state

    def _made(self, plan: BucketPlan | None, batch_sizes: tuple[int, ...]) -> _State:
        """Look at the model and capture it; a failure becomes the reason that calls give."""
        host = HostModel(self._model, plan)
        captured, otherwise = None, Dispatch("exact")
        if host.refusal:
            otherwise = Dispatch("host", Reason.UNSUPPORTED, host.refusal)
        elif plan is not None and self.backend.captures:
            try:
                captured = self._capture(host, plan, batch_sizes)
            except Exception as error:  # noqa: BLE001 - tracing raises anything; it is said, and why
                detail = f"{type(error).__name__}: {error}"
                otherwise = Dispatch("exact", Reason.FAILED, detail)
        if otherwise.reason is not None:
            self._warn(otherwise)
        return _State(host, plan, batch_sizes, captured, otherwise)

    def _capture(self, host: HostModel, plan: BucketPlan, batch_sizes: tuple[int, ...]) -> Captured:
        alone = nullcontext if self._gate is None else self._gate.shut
        return Captured(host, plan, batch_sizes, self.backend, alone)

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ValueError(CLOSED)

    def _warn(self, dispatch: Dispatch) -> None:
        assert dispatch.reason is not None
        detail = dispatch.detail and f": {dispatch.detail}"
        logger.warning("%s: %s%s", type(self._model).__name__, dispatch.reason.value, detail)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s: %s", type(self._model).__name__, text)


# What a caller can mend, and would not notice otherwise.
_MENDABLE = {
    reason: "its own forward answers, so that nothing is replayed and batches are not exact, "
    f"because: {reason.value}"
    for reason in (Reason.GRADIENTS, Reason.AUTOCAST, Reason.MASK, Reason.INPUT)
}
_NO_MASK = (
    "several rows came without an attention mask, so that padding, if there is any, counts as "
    "audio: pass attention_mask (a feature extractor gives it with return_attention_mask=True), "
    "and extract the features of each row alone, as one that gives no mask also normalizes over "
    "the padding; Transcriber does both"
)


_NOTHING = nullcontext()


def output_of(logits: torch.Tensor) -> CausalLMOutput:
    """`CausalLMOutput(logits=logits)`, at a fraction of its cost.

    A model's output is a dictionary of what it holds, whose attributes say the same; making one
    checks each field by reflection.
    """
    found = CausalLMOutput.__new__(CausalLMOutput)
    vars(found).update(_NO_OUTPUT, logits=logits)
    OrderedDict.__setitem__(found, "logits", logits)
    return found


_NO_OUTPUT = dict(vars(CausalLMOutput()))


class _Gate:
    """Keeps calls out while a backend needs the model for itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        """Wait while it is shut, and be inside."""
        with self._changed:
            while self._shut:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._shut and not self._inside:
                self._changed.notify_all()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Shut it, wait until nobody is inside, and open it again in the end.

        For one thread at a time.
        """
        until = monotonic() + PATIENCE
        with self._changed:
            self._shut = True
            while self._inside and (left := until - monotonic()) > 0:
                self._changed.wait(left)
        try:
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()


def _whole(lengths: Iterable[Any]) -> tuple[int, ...]:
    """Lengths in samples, of whichever integers; seconds, for one, are none."""
    try:
        found = tuple(map(index, lengths))
    except TypeError:
        found = (-1,)
    if min(found, default=0) < 0:
        raise ValueError(f"lengths are {lengths!r:.80}, expected whole numbers of samples from 0")
    return found


def _geometry(model: Any) -> Geometry:
    """The model's, or Wav2Vec2's where it has none: lengths are counted all the same."""
    try:
        return Geometry.of(model)
    except ValueError:
        return Geometry()
