"""What answers a model's calls between two changes of its weights or of the plan."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from hf_cudagraph_asr.calibration import Prices, calibrate
from hf_cudagraph_asr.capture import Backend
from hf_cudagraph_asr.dispatch import Dispatch, Reason
from hf_cudagraph_asr.exact import ExactForward, keep_mask
from hf_cudagraph_asr.families import UnsupportedModel
from hf_cudagraph_asr.fingerprint import Fingerprint
from hf_cudagraph_asr.packing import Replay, fewest_replays, pack
from hf_cudagraph_asr.plan import BucketPlan, Cost
from hf_cudagraph_asr.replica import Replica
from hf_cudagraph_asr.request import Reader
from hf_cudagraph_asr.settings import ConfigView

__all__ = ["Autocast", "Serving"]

# In which the exact forward is tested.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A logit so far below 0 has no probability, and float16 still holds it.
_NEVER = -1e4


class Autocast(ExactForward):
    """The exact forward under autocast, whatever its caller is under.

    Args:
        model: with float32 weights, which stay as they are and are cast anew in each run.
        dtype: to compute in.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__(model)
        self.dtype = dtype

    def forward(
        self, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `ExactForward`, with logits in the dtype that autocast gives them."""
        # Without its cache: a graph would go on reading weights that were cast once and freed.
        with torch.autocast(input_values.device.type, dtype=self.dtype, cache_enabled=False):
            return super().forward(input_values, lengths)


class Serving:
    """A model as it was when it was looked at, a plan, and what was captured of both.

    A call holds one from its beginning to its end, while the pool may go on to the next.

    Args:
        model: the model.
        plan: the buckets, or None.
        batch_sizes: rows of each bucket's programs.
        dtype: to compute in by autocast; None: in the weights'.
        captures: calls are to be replayed. Without, the exact forward serves all of them.

    Attributes:
        exact: the forward, or None.
        hindered: why calls that could be replayed are not, and more of it.
        prices: what programs take, once it was measured.
        replicas: captured programs; the first holds all buckets, later ones some of them.

    Raises:
        ValueError: the model names no blank, the plan is for another geometry, or the dtype does
            not fit the weights.
    """

    def __init__(
        self,
        model: Any,
        plan: BucketPlan | None,
        batch_sizes: tuple[int, ...],
        *,
        dtype: torch.dtype | None,
        captures: bool,
    ) -> None:
        self.plan = plan
        self.batch_sizes = batch_sizes
        self.replicas: tuple[Replica, ...] = ()
        self.exact: ExactForward | None = None
        self.hindered: tuple[Reason, str] | None = None
        self.prices: Prices | None = None
        self._captures = captures
        self._turns = itertools.count()
        self._config = ConfigView(model)
        self._fingerprint: Fingerprint | None = Fingerprint(model, self._config)
        head = getattr(getattr(model, "lm_head", None), "weight", None)
        weights = head.dtype if isinstance(head, torch.Tensor) else None
        if dtype == weights:
            dtype = None
        elif dtype is not None and (weights != torch.float32 or dtype not in _DTYPES):
            raise ValueError(
                f"dtype={dtype} of a model in {weights}: autocast computes float32 weights in "
                f"torch.bfloat16 or torch.float16; leave dtype out, or load the model in the dtype "
                f"that is wanted"
            )
        try:
            exact = ExactForward(model) if dtype is None else Autocast(model, dtype)
            if weights not in _DTYPES:
                raise UnsupportedModel(f"its weights are {weights}, expected one of {_DTYPES}")
        except UnsupportedModel as error:
            self.hindered = Reason.UNSUPPORTED, str(error)
            return
        if plan is not None:
            plan.check_geometry(model)
        blank, words = model.config.pad_token_id, model.lm_head.out_features
        if not isinstance(blank, int) or not 0 <= blank < words:
            raise ValueError(
                f"config.pad_token_id, the blank of CTC, is {blank!r}, expected 0 to {words - 1}: "
                f"set it to the tokenizer's pad token"
            )
        self.exact = exact
        self.blank = blank
        self.receptive_field = exact.receptive_field
        self.read = Reader(model, self._config, self.receptive_field, dtype).read
        # Lengths repeat; arithmetic over seven convolutions is slow in Python.
        self.emitted: Callable[[int], int] = functools.lru_cache(4096)(exact.geometry.emitted)
        if plan is not None:
            self._frames: Callable[[int], int] = functools.lru_cache(4096)(plan.geometry.frames)

    @classmethod
    def refused(cls, model: Any, before: Serving, why: str) -> Serving:
        """A model that its own forward serves, for what `Serving` raised."""
        serving = cls.closed(before)
        serving.hindered = Reason.UNSUPPORTED, why
        serving._fingerprint = Fingerprint(model, ConfigView(model))
        return serving

    @classmethod
    def closed(cls, before: Serving) -> Serving:
        """What is left of a pool that is disabled. Holds nothing of the model."""
        serving = cls.__new__(cls)
        serving.plan, serving.batch_sizes = before.plan, before.batch_sizes
        serving.replicas, serving.exact, serving.prices = (), None, None
        serving.hindered = Reason.CLOSED, ""
        serving._captures = before._captures
        serving._fingerprint = None
        return serving

    def holds(self) -> bool:
        """The model's weights and modules are still those."""
        return self._fingerprint is None or self._fingerprint.holds()

    def capture(
        self, backend: Backend, alone: Callable[[], AbstractContextManager[None]], *, live: bool
    ) -> None:
        """Capture the programs of the plan: all of its buckets, then those with another replica.

        Args:
            backend: replicas of it make the programs.
            alone: keeps other calls away, while nothing but the capture itself is left to do.
            live: there may be other calls.

        Raises:
            RuntimeError: it cannot be done; nothing is held then.
        """
        assert self.exact is not None
        assert self.plan is not None
        made: list[Replica] = []
        try:
            for held in range(max(bucket.replicas for bucket in self.plan.buckets)):
                buckets = [bucket for bucket in self.plan.buckets if bucket.replicas > held]
                # Also the first: what an earlier capture left in a backend is not used again.
                own = backend.replica(live=live)
                made.append(Replica(own, self.exact, buckets, self.batch_sizes))
            with alone():
                for replica in made:
                    replica.capture()
        except BaseException:
            for replica in made:
                replica.close()
            raise
        self.replicas = tuple(made)

    def calibrate(self, repeats: int) -> Cost:
        """Measure what is captured, and dispatch batches by that."""
        assert self.exact is not None
        assert self.plan is not None
        self.prices = calibrate(
            self.replicas[0], self.exact, self.plan, self.batch_sizes, repeats=repeats
        )
        return self.prices.cost

    def pack(self, lengths: Sequence[int]) -> tuple[Replay, ...] | None:
        """The replays for rows of so many samples, or None where no program is to serve them."""
        if not self.replicas or self.plan is None or self.hindered is not None:
            return None
        price = fewest_replays if self.prices is None else self.prices.replay
        replays = pack(lengths, self.plan, self.batch_sizes, price)
        if replays is not None and len(lengths) > self.batch_sizes[-1]:
            longest = replays[0].bucket
            if self.prices is None:
                cost = self.plan.cost.run_eagerly(np.array([longest.frames]))
                eager = len(lengths) * float(cost[0])
            else:
                eager = len(lengths) * self.prices.eager[longest.frames]
            if eager < self._cost(replays):
                return None
        return replays

    def dispatch(self, lengths: Sequence[int], replays: tuple[Replay, ...] | None) -> Dispatch:
        """What `pack` decided, in words."""
        if replays is not None:
            filled = sum(self.frames(lengths))
            computed = sum(replay.bucket.frames * replay.batch_size for replay in replays)
            return Dispatch(
                "bucket",
                replays=replays,
                padding=(computed - filled) / filled,
                cost=self._cost(replays),
            )
        if self.hindered is not None:
            return Dispatch("host" if self.exact is None else "exact", *self.hindered)
        if self.plan is None or not self._captures:
            return Dispatch("exact")
        if self.plan.bucket_for(max(lengths)) is None:
            most = self.plan.buckets[-1].samples
            return Dispatch("exact", Reason.LONG, f"{max(lengths)} samples, at most {most}")
        most = self.batch_sizes[-1]
        return Dispatch("exact", Reason.ROWS, f"{len(lengths)} rows, at most {most}")

    def frames(self, lengths: Iterable[int]) -> list[int]:
        """The plan's frames of rows of so many samples."""
        return [self._frames(length) for length in lengths]

    def _cost(self, replays: Sequence[Replay]) -> float:
        if self.prices is None:
            return sum(replay.bucket.cost * replay.batch_size for replay in replays)
        return sum(self.prices.replay(r.bucket.frames, r.batch_size) for r in replays)

    def acquire(self, among: int) -> Replica | None:
        """One of the first `among` replicas, locked for this thread: a free one if there is one.

        None where they were dropped meanwhile.
        """
        replicas = self.replicas
        if not replicas:
            return None
        if among == 1:
            replicas[0].lock.acquire()
            return replicas[0]
        first = next(self._turns)
        for i in range(among):
            replica = replicas[(first + i) % among]
            if replica.lock.acquire(blocking=False):
                return replica
        replica = replicas[first % among]
        replica.lock.acquire()
        return replica

    def cut(
        self, output: tuple[torch.Tensor, torch.Tensor], lengths: Sequence[int], *, copy: bool
    ) -> torch.Tensor:
        """(B, T, V): a forward's logits as the caller wants them.

        Cut to the longest row; a frame beyond a shorter one says blank with certainty, so that it
        decodes to nothing.

        Args:
            output: logits (≥ B, ≥ T, V), and (≥ B,) each row's frames.
            lengths: B rows' samples.
            copy: give a tensor of its own.
        """
        logits, frames = output
        rows, total = len(lengths), self.emitted(max(lengths))
        cut = logits[:rows, :total]
        if rows > 1 and lengths.count(lengths[0]) < rows:
            keep = keep_mask(frames[:rows], total)
            certain = cut.new_full((cut.shape[-1],), _NEVER)
            certain[self.blank] = 0
            return torch.where(keep[:, :, None], cut, certain)
        return cut.clone() if copy else cut

    def gather(
        self,
        outputs: Iterable[torch.Tensor],
        lengths: Sequence[int],
        rows: Iterable[Sequence[int]],
    ) -> torch.Tensor:
        """(B, T, V): the logits of a split batch, as `cut` gives those of one that is not.

        Args:
            outputs: logits of each part, as it runs.
            lengths: samples of the B rows.
            rows: of each part, those of the batch that its first rows are.
        """
        gathered: torch.Tensor | None = None
        for logits, part in zip(outputs, rows, strict=True):
            if gathered is None:
                total = self.emitted(max(lengths))
                gathered = logits.new_full((len(lengths), total, logits.shape[-1]), _NEVER)
                gathered[..., self.blank] = 0
            for i, row in enumerate(part):
                own = self.emitted(lengths[row])
                gathered[row, :own] = logits[i, :own]
        assert gathered is not None
        return gathered

    def close(self) -> None:
        """Drop the programs, when none of them runs."""
        replicas, self.replicas = self.replicas, ()
        for replica in replicas:
            replica.close()
