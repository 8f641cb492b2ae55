"""`Captured`: programs for the buckets of a plan, and the static inputs they read."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch

from hf_cudagraph_asr.backends import Backend, Program
from hf_cudagraph_asr.dispatch import Dispatch, Prices, Programs, Replay
from hf_cudagraph_asr.exact import ExactForward, keep_mask
from hf_cudagraph_asr.host import HostModel
from hf_cudagraph_asr.plan import Bucket, BucketPlan, Cost, whole

Times = dict[tuple[int, int], list[float]]


class Captured:
    """All programs of a plan, captured from a model's weights where they lay then.

    Args:
        host: the model; its memory is held as long as the programs are.
        alone: context that keeps calls of the model away, for the capture itself.

    Raises:
        RuntimeError: the forward does not run or cannot be captured. Nothing is held then.
    """

    def __init__(
        self,
        host: HostModel,
        plan: BucketPlan,
        batch_sizes: Sequence[int],
        backend: Backend,
        alone: Callable[[], AbstractContextManager[object]],
    ) -> None:
        start = perf_counter()
        self.programs = Programs(plan, batch_sizes)
        self._host = host
        self._next = itertools.count()
        self._replicas: tuple[_Replica, ...] = ()
        made: list[_Replica] = []
        try:
            for held in range(max(bucket.replicas for bucket in plan.buckets)):
                buckets = [bucket for bucket in plan.buckets if bucket.replicas > held]
                # Also the first: what an earlier capture left in a backend is not used again.
                made.append(_Replica(backend.replica(), host.exact, buckets, batch_sizes))
            with alone():
                for replica in made:
                    replica.capture(host.exact)
        except BaseException:
            for replica in made:
                replica.close()
            raise
        self._replicas = tuple(made)
        self.capture_seconds = perf_counter() - start

    def run(
        self, values: torch.Tensor, lengths: Sequence[int], dispatch: Dispatch
    ) -> tuple[torch.Tensor, float] | None:
        """Replay a batch as it was decided; None where the programs were dropped meanwhile.

        Returns:
            Logits (B, T, V) as `cut` gives them, a tensor of their own; and seconds from copy in to
            copy out, by the host's clock.
        """
        replays = dispatch.replays
        replica = self._acquire(min([replay.bucket.replicas for replay in replays]))
        if replica is None:
            return None
        try:
            start = perf_counter()
            if not replica.slots:  # closed while this call waited
                return None
            with replica.backend.in_order():
                if len(replays) == 1:
                    slot = replica.slots[replays[0].bucket.frames, replays[0].batch_size]
                    output = slot.run(values, lengths, replays[0].rows)
                    logits = cut(self._host, output, lengths, copy=True)
                else:
                    logits = self._gathered(replica, values, lengths, replays)
            return logits, perf_counter() - start
        finally:
            replica.lock.release()

    def _gathered(
        self,
        replica: _Replica,
        values: torch.Tensor,
        lengths: Sequence[int],
        replays: Sequence[Replay],
    ) -> torch.Tensor:
        """(B, T, V): the logits of a split batch, as `cut` gives those of one that is not."""
        emitted, blank = self._host.emitted, self._host.blank_row
        total = emitted(max(lengths))
        gathered = blank.repeat(len(lengths), total, 1)
        for replay in replays:
            slot = replica.slots[replay.bucket.frames, replay.batch_size]
            logits, _ = slot.run(values, lengths, replay.rows)
            for i, row in enumerate(replay.rows):
                own = emitted(lengths[row])
                gathered[row, :own] = logits[i, :own]
        return gathered

    def _acquire(self, among: int) -> _Replica | None:
        """One of the first `among` replicas, locked for this thread: a free one if there is one."""
        replicas = self._replicas
        if not replicas:
            return None
        first = next(self._next) if among > 1 else 0
        for i in range(among):
            replica = replicas[(first + i) % among]
            if replica.lock.acquire(blocking=False):
                return replica
        replica = replicas[first % among]
        replica.lock.acquire()
        return replica

    def memory(self) -> int:
        """Count the bytes of static inputs and of what the backend holds."""
        return sum(replica.memory() for replica in self._replicas)

    def close(self) -> None:
        """Wait for running replays, and drop the programs."""
        replicas, self._replicas = self._replicas, ()
        for replica in replicas:
            replica.close()

    def calibrate(self, repeats: int) -> Prices:
        """Measure each program, and the exact forward on as much, and dispatch by that.

        Noise comes in bursts, so each round runs everything once, and the median of the rounds
        counts, but for the first. Where noise makes more work take less time, the dearer of the two
        prices counts.
        """
        plan, sizes, exact = self.programs.plan, self.programs.batch_sizes, self._host.exact
        blank = self._host.blank_row
        shapes = [(bucket, rows) for bucket in plan.buckets for rows in sizes]
        replayed: Times = {(bucket.frames, rows): [] for bucket, rows in shapes}
        eager: Times = {shape: [] for shape in replayed}
        with _without_modes(blank.device):
            for _ in range(whole(repeats, "repeats") + 1):
                for bucket, rows in shapes:
                    shape = rows, bucket.samples, *exact.geometry.features
                    values = torch.randn(shape, device=blank.device).to(blank.dtype)
                    # A sample less, so that what serves padding is measured.
                    lengths = (max(bucket.samples - 1, exact.receptive_field),) * rows
                    on_device = torch.tensor(lengths, device=blank.device)
                    replay = Replay(bucket, rows, tuple(range(rows)), rows * bucket.frames)
                    dispatch = Dispatch("bucket", replays=(replay,))
                    run = partial(self.run, values, lengths, dispatch)
                    replayed[bucket.frames, rows].append(_milliseconds(run, blank.device))
                    run = partial(exact, values, on_device)
                    eager[bucket.frames, rows].append(_milliseconds(run, blank.device))
        price = {shape: median(times[1:]) for shape, times in replayed.items()}
        price = {  # at least what every smaller program takes
            (frames, rows): max(p for (f, r), p in price.items() if f <= frames and r <= rows)
            for frames, rows in price
        }
        # Of a row in an eager batch of the smallest size, and of the largest.
        single, many = (
            {b.frames: median(eager[b.frames, rows][1:]) / rows for b in plan.buckets}
            for rows in (sizes[0], sizes[-1])
        )
        of_one = tuple(price[frames, sizes[0]] / sizes[0] for frames in single)
        prices = Prices(Cost(tuple(single), of_one, tuple(single.values()), "ms"), price, many)
        self.programs = Programs(plan, sizes, prices)
        return prices


def cut(
    host: HostModel,
    output: tuple[torch.Tensor, torch.Tensor],
    lengths: Sequence[int],
    *,
    copy: bool,
) -> torch.Tensor:
    """Cut a forward's logits, (≥ B, ≥ T, V), to the longest row: (B, T, V).

    A frame beyond a shorter row says blank with certainty, so that it decodes to nothing. With
    `copy` it is always a tensor of its own, which the next replay does not overwrite.
    """
    logits, frames = output
    rows, total = len(lengths), host.emitted(max(lengths))
    if logits.size(0) != rows:  # fewer are an error, too
        logits = logits.narrow(0, 0, rows)
    if rows == 1 or lengths.count(lengths[0]) == rows:
        return logits.narrow_copy(1, 0, total) if copy else logits.narrow(1, 0, total)
    logits = logits.narrow(1, 0, total)
    keep = keep_mask(frames[:rows], total)
    logits = torch.where(keep[:, :, None], logits, host.blank_row)
    for row, samples in enumerate(lengths):
        if samples < host.receptive_field:  # the forward took it for a row of one frame
            logits[row] = host.blank_row
    return logits


class _Replica:
    """The programs of one backend, made warm and then captured, and the lock of their replays."""

    def __init__(
        self,
        backend: Backend,
        exact: ExactForward,
        buckets: Iterable[Bucket],
        batch_sizes: Iterable[int],
    ) -> None:
        self.lock = threading.Lock()
        self.backend = backend
        self.slots: dict[tuple[int, int], _Slot] = {}
        shapes = [(bucket, rows) for bucket in buckets for rows in batch_sizes]
        # What the largest needs is there for the others.
        shapes.sort(key=lambda shape: (-shape[0].samples * shape[1], -shape[1]))
        with _without_modes(exact.head.weight.device):
            try:
                for bucket, rows in shapes:
                    slot = _Slot(rows, bucket.samples, exact)
                    self.slots[bucket.frames, rows] = slot
                for slot in self.slots.values():
                    backend.warm(exact, slot.input_values, slot.counts)
            except BaseException:
                self.close()
                raise

    def capture(self, exact: ExactForward) -> None:
        """Make the programs, and run each once: a first replay takes longer."""
        with _without_modes(exact.head.weight.device):
            for slot in self.slots.values():
                slot.program = self.backend.capture(exact, slot.input_values, slot.counts)
                with self.backend.in_order():
                    slot.program(slot.input_values, slot.counts)

    def memory(self) -> int:
        """Count bytes."""
        inputs = sum(slot.input_values.nbytes + slot.counts.nbytes for slot in self.slots.values())
        return inputs + self.backend.memory()

    def close(self) -> None:
        """Wait for a running replay, and drop the programs."""
        with self.lock:
            self.slots = {}
            self.backend.close()


class _Slot:
    """A program and the tensors it reads: its input, and (4, rows) int64 `Frames.counts`.

    What earlier queries left there is not cleared: the forward masks every sample beyond a row's
    length, and a row that is not used has none.
    """

    program: Program

    def __init__(self, rows: int, samples: int, exact: ExactForward) -> None:
        weight: torch.Tensor = exact.head.weight
        self.input_values = weight.new_zeros((rows, samples, *exact.geometry.features))
        self._count = exact.geometry.counts
        self._counted = torch.empty((4, rows), dtype=torch.int64)
        numbers: Any = self._counted.numpy()
        self._numbers = memoryview(numbers)  # of the same memory
        self.counts = self._counted.to(weight.device)  # on a CPU itself
        # Padded, as queries will be: other kernels serve what has no padding.
        self._write([exact.receptive_field] * rows)

    def run(
        self, values: torch.Tensor, lengths: Sequence[int], rows: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy these rows of a batch in, and run the program.

        Returns:
            The program's own outputs, which the replica's next run may overwrite.
        """
        static = self.input_values
        used = [lengths[row] for row in rows]
        longest = max(used)
        if len(rows) == values.size(0):
            own = values if values.size(1) == longest else values.narrow(1, 0, longest)
            static[: len(rows), :longest] = own
        else:
            for i, row in enumerate(rows):
                static[i, :longest] = values[row, :longest]
        used += [0] * (len(self._written) - len(rows))
        if used != self._written:
            self._write(used)
        return self.program(static, self.counts)

    def _write(self, used: list[int]) -> None:
        total, at = self.input_values.shape[1], self._numbers
        for row, samples in enumerate(used):
            at[0, row], at[1, row], at[2, row], at[3, row] = self._count(samples, total)
        if self.counts is not self._counted:
            # Not from pinned memory: what is there is free to be written again at once.
            self.counts.copy_(self._counted, non_blocking=True)
        self._written = used


@contextmanager
def _without_modes(device: torch.device) -> Iterator[None]:
    """Without the caller's modes, so that programs and buffers serve every caller."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    # Of this thread's own work: waiting for the whole device would end another's capture.
    streams = [torch.cuda.current_stream(device)] if device.type == "cuda" else []
    for stream in streams:
        stream.synchronize()
    start = perf_counter()
    run()
    for stream in streams:
        stream.synchronize()
    return 1e3 * (perf_counter() - start)
