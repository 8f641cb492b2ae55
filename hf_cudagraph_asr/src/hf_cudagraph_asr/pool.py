"""`GraphPool`: answers a model's calls from programs captured for a few lengths."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from hf_cudagraph_asr.capture import Backend
from hf_cudagraph_asr.dispatch import Dispatch, Reason
from hf_cudagraph_asr.events import Observer, Observers, Served
from hf_cudagraph_asr.gate import Gate
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.packing import Replay
from hf_cudagraph_asr.plan import BucketPlan, Cost, LengthSketch, Proposal, propose, rows_of
from hf_cudagraph_asr.request import Request
from hf_cudagraph_asr.serving import Serving
from hf_cudagraph_asr.statistics import PoolStatistics, Tally

__all__ = ["GraphPool"]

logger = logging.getLogger(__name__)


class GraphPool:
    """Captured programs for the buckets of a plan, and the way of each call to one of them.

    `enable_cuda_graphs` makes one. It serves any number of threads: replays of a replica follow
    one another, and each caller gets tensors of its own.

    Rows of a batch come out as each would alone. Their logits are cut to the longest row; frames
    beyond a shorter row say blank with certainty, so that they decode to nothing. A batch is
    replayed together, or split where that costs less by what `calibrate` measured; before it, by
    the fewest replays.

    What cannot be replayed is computed all the same. Too long an input goes through the
    length-exact forward as it is, so that the texts are those of batch 1 whatever the plan; what
    asks for more than logits goes to the model's own forward. `explain` says which.

    Args:
        model: a CTC model. One without a length-exact forward is served by its own.
        backend: makes the programs.
        plan: the buckets; a backend that captures nothing needs none.
        batch_sizes: rows to capture each bucket for; by default the plan's.
        dtype: to compute float32 weights in, by autocast; by default in their own.
        copy_outputs: give each caller a copy. Without, an output is right until the next call.
        observers: called with a `Served` for each call.

    Attributes:
        backend: what makes the programs.
        sketch: the lengths it has seen, of which `replan` makes a plan.

    Raises:
        ValueError: the plan is missing or for another geometry; the model names no blank; or the
            dtype does not fit its weights.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend,
        plan: BucketPlan | None = None,
        *,
        batch_sizes: Iterable[int] | None = None,
        dtype: torch.dtype | None = None,
        copy_outputs: bool = True,
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
        self._model = model
        self._dtype = dtype
        self._copy_outputs = copy_outputs
        self._observers = Observers(observers)
        self._tally = Tally()
        # Held by whoever exchanges what serves; calls do without.
        self._lock = threading.RLock()
        # Shut while a backend captures that wants the device for itself.
        self._gate = Gate()
        self._closed = False
        self._serving = self._look(plan, sizes)
        self._start(self._serving, live=False)

    @property
    def closed(self) -> bool:
        """It is disabled, and calls that still come are the host's."""
        return self._closed

    @property
    def plan(self) -> BucketPlan | None:
        """The buckets that are served now."""
        return self._serving.plan

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows that each bucket has programs for."""
        return self._serving.batch_sizes

    def rebuild(self) -> None:
        """Capture anew, from the weights that the model has now. Nothing is replayed meanwhile.

        Raises:
            ValueError: the pool is disabled; or as when it was made.
        """
        with self._lock:
            self._refuse_closed()
            old = self._serving
            # Whatever is raised from here on, nothing is replayed until all is captured.
            old.hindered = Reason.CHANGED, ""
            old.close()
            serving = self._look(old.plan, old.batch_sizes)
            self._start(serving, live=True)
            self._serving = serving

    def swap(self, plan: BucketPlan) -> None:
        """Serve by another plan. Calls are replayed by the old one until the new one is captured.

        With CUDA graphs and exported programs calls wait during the capture itself, though not
        while the new buckets are warmed or compiled for it. Until the end both plans are in memory.

        Args:
            plan: for the same geometry. Its batch sizes count.

        Raises:
            ValueError: the pool is disabled, or the plan is for another geometry.
            RuntimeError: it cannot be captured, or nothing is replayed now. The old one stays.
        """
        with self._lock:
            self._refuse_closed()
            old = self._current()
            if old.hindered is not None:
                raise RuntimeError(
                    f"nothing is replayed now, because: {old.hindered[0].value}; the plan stays as "
                    f"it is: call pool.rebuild() before pool.swap(plan)"
                )
            serving = self._look(plan, plan.batch_sizes)
            if plan.geometry != self.sketch.geometry:
                raise ValueError(
                    f"the lengths seen are counted for {self.sketch.geometry}, and the plan is for "
                    f"{plan.geometry}: call enable_cuda_graphs anew for another sampling rate"
                )
            if self.backend.captures:
                try:
                    self._capture(serving, live=True)
                except Exception as error:
                    raise RuntimeError(
                        f"the new plan cannot be captured, so the old one stays: "
                        f"{type(error).__name__}: {error}"
                    ) from error
            self._serving = serving
            old.close()

    def replan(self, *, swap: bool = False, **options: Any) -> Proposal:
        """The plan that suits what was seen, and what it gains over the present one.

        Args:
            swap: serve by it, where it is worth while.
            options: of `hf_cudagraph_asr.replan.propose`.

        Raises:
            ValueError: there is no plan, or too little was seen to plan for.
            RuntimeError: the new plan cannot be captured. The old one stays.
        """
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
            ValueError: nothing is captured.
        """
        with self._lock:
            serving = self._current()
            if not serving.replicas or serving.hindered is not None:
                dispatch = serving.dispatch((), None)
                raise ValueError(f"nothing is captured that could be measured: {dispatch}")
            return serving.calibrate(repeats)

    def close(self) -> None:
        """Drop the programs. Calls that still come are the host's."""
        with self._lock:
            self._closed = True
            old, self._serving = self._serving, Serving.closed(self._serving)
            old.close()
            self._model = None  # who keeps the pool, for its statistics, does not keep the model

    def stats(self) -> PoolStatistics:
        """What it did so far."""
        replicas = self._serving.replicas
        return self._tally.read(
            sum(replica.memory() for replica in replicas),
            sum(replica.capture_seconds for replica in replicas),
        )

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
        serving = self._current()
        if serving.exact is not None and min(lengths) < serving.receptive_field:
            return Dispatch("host", Reason.SHORT, f"{min(lengths)} samples")
        return serving.dispatch(lengths, serving.pack(lengths))

    def call(
        self, input_values: torch.Tensor, lengths: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, Dispatch]:
        """Logits of rows of audio, each as the row alone gives them, and what became of the call.

        Args:
            input_values: (B, S) in the model's dtype and on its device.
            lengths: samples of each row; by default S for all.

        Returns:
            (B, T, V), T the frames of the longest row; and the dispatch that was executed.
        """
        rows, samples = input_values.shape
        lengths = [samples] * rows if lengths is None else list(lengths)
        dispatch = self.explain(lengths)
        mask = None
        if dispatch.route == "host" or len(set(lengths)) > 1:
            own = torch.tensor(lengths)
            mask = (torch.arange(samples) < own[:, None]).long().to(input_values.device)
        with torch.inference_mode():
            return self._model(input_values, attention_mask=mask).logits, dispatch

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
        self._gate.enter()
        try:
            return self._answer(host, args, kwargs)
        finally:
            self._gate.leave()

    def _answer(
        self, host: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        serving = self._current()
        request: Request | Reason
        if serving.exact is None:
            request = Reason.CLOSED if self._closed else Reason.UNSUPPORTED
        else:
            request = serving.read(args, kwargs)
        start = perf_counter()
        if isinstance(request, Request):
            for length in request.lengths:
                self.sketch.add(length)
            with torch.no_grad():
                logits = self._logits(serving, request, start)
                if logits is None and len(request.lengths) > 1:
                    logits = self._row_by_row(serving, host, request, start)
            if logits is not None:
                output = CausalLMOutput(logits=logits)
                return output.to_tuple() if request.as_tuple else output
            request = Reason.CLOSED if self._closed else Reason.REFUSED
        self._tally.missed(request)
        output = host(*args, **kwargs)
        if self._observers:
            self._observers.notify(Served(Dispatch("host", request), (), perf_counter() - start))
        return output

    def _logits(self, serving: Serving, request: Request, start: float) -> torch.Tensor | None:
        """(B, T, V), T the frames of the longest row; None where there is no exact answer."""
        lengths = request.lengths
        replays = serving.pack(lengths)
        if replays is not None:
            logits = self._replay(serving, request, replays)
            if logits is None:  # another thread has exchanged what serves
                return self._logits(self._current(), request, start)
        else:
            logits = _exactly(serving, request)
            if logits is None:
                return None
            dispatch = serving.dispatch(lengths, None)
            if dispatch.reason is None:
                self._tally.hit()
            else:
                self._tally.missed(dispatch.reason)
        if self._observers:
            dispatch = serving.dispatch(lengths, replays)
            self._observers.notify(Served(dispatch, lengths, perf_counter() - start))
        return logits

    def _row_by_row(
        self, serving: Serving, host: Callable[..., Any], request: Request, start: float
    ) -> torch.Tensor:
        """What the host says of each row alone: of a batch, it would say something else."""
        reason = Reason.CLOSED if self._closed else Reason.REFUSED
        self._tally.missed(reason)
        rows = [
            host(row[None, :length], return_dict=True).logits
            for row, length in zip(request.input_values, request.lengths, strict=True)
        ]
        logits = serving.gather(rows, request.lengths, [(row,) for row in range(len(rows))])
        if self._observers:
            dispatch = Dispatch("host", reason, "row by row")
            self._observers.notify(Served(dispatch, request.lengths, perf_counter() - start))
        return logits

    def _replay(
        self, serving: Serving, request: Request, replays: Sequence[Replay]
    ) -> torch.Tensor | None:
        """The rows' logits, from one replica; None where it was closed meanwhile."""
        lengths = request.lengths
        replica = serving.acquire(min([replay.bucket.replicas for replay in replays]))
        if replica is None:
            return None
        try:
            start = perf_counter()
            if replica.closed:
                return None
            with replica.backend.turn():
                outputs = replica.run(request.input_values, lengths, replays)
                if len(replays) == 1:
                    logits = serving.cut(next(outputs), lengths, copy=self._copy_outputs)
                else:
                    logits = serving.gather(
                        (logits for logits, _ in outputs),
                        lengths,
                        [replay.rows for replay in replays],
                    )
            seconds = perf_counter() - start
        finally:
            replica.lock.release()
        self._tally.replayed(replays, serving.frames(lengths), seconds)
        return logits

    def _current(self) -> Serving:
        """What serves now, after a look whether the model is still what was captured."""
        serving = self._serving
        if serving.holds():
            return serving
        with self._lock:
            old = self._serving
            if old.holds():
                return old
            try:
                serving = self._look(old.plan, old.batch_sizes)
            except ValueError as error:
                serving = Serving.refused(self._model, old, str(error))
            was = None if old.hindered is None else old.hindered[0]
            if serving.hindered is not None:
                self._warn(serving)
            elif self.backend.captures:
                # A pool whose capture failed, or that has changed before, has said so.
                known = was in (Reason.CHANGED, Reason.FAILED)
                serving.hindered = old.hindered if known else (Reason.CHANGED, "")
                if not known:
                    self._warn(serving)
            self._serving = serving
            old.close()
            return serving

    def _look(self, plan: BucketPlan | None, batch_sizes: tuple[int, ...]) -> Serving:
        captures = self.backend.captures
        return Serving(self._model, plan, batch_sizes, dtype=self._dtype, captures=captures)

    def _start(self, serving: Serving, *, live: bool) -> None:
        if serving.hindered is None and self.backend.captures:
            try:
                self._capture(serving, live=live)
            except Exception as error:  # noqa: BLE001 - tracing raises anything; it is told, and why
                serving.hindered = Reason.FAILED, f"{type(error).__name__}: {error}"
        if serving.hindered is not None:
            self._warn(serving)

    def _capture(self, serving: Serving, *, live: bool) -> None:
        alone = self._gate.shut if self.backend.exclusive else nullcontext
        serving.capture(self.backend, alone, live=live)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ValueError("the pool is disabled: call enable_cuda_graphs(model, ...) again")

    def _warn(self, serving: Serving) -> None:
        assert serving.hindered is not None
        reason, detail = serving.hindered
        logger.warning(
            "%s: %s%s", type(self._model).__name__, reason.value, detail and f": {detail}"
        )


def _exactly(serving: Serving, request: Request) -> torch.Tensor | None:
    """The exact forward's answer, as it is; None where it refuses."""
    if serving.exact is None:
        return None
    values = request.input_values[:, : max(request.lengths)]
    lengths = torch.tensor(request.lengths, device=values.device)
    try:
        output = serving.exact(values, lengths)
    except ValueError:
        # Changed meanwhile by another thread, or more frames than positions: the host's own
        # forward makes room for more.
        return None
    return serving.cut(output, request.lengths, copy=False)


def _geometry(model: Any) -> Geometry:
    """The model's, or Wav2Vec2's where it has none: lengths are counted all the same."""
    try:
        return Geometry.of(model)
    except ValueError:
        return Geometry()
