"""`Replica`: one set of captured programs, of which one runs at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import torch

from hf_cudagraph_asr.capture import Backend, Program
from hf_cudagraph_asr.exact import ExactForward
from hf_cudagraph_asr.packing import Replay
from hf_cudagraph_asr.plan import Bucket

__all__ = ["Replica", "Slot"]


class Slot:
    """A program and the tensors it reads.

    Args:
        input_values: (rows, samples of the bucket), zeros.
        lengths: (rows,) int64.
    """

    def __init__(self, input_values: torch.Tensor, lengths: torch.Tensor) -> None:
        self.input_values = input_values
        self.lengths = lengths
        self.capture_seconds = 0.0
        self._program: Program | None = None
        self._written = [0] * len(lengths)  # samples of each row that may not be zero

    def warm(self, backend: Backend, exact: ExactForward) -> None:
        """What a first run does lazily.

        Padded, as queries will be: other kernels serve what has no padding.
        """
        start = perf_counter()
        self.lengths.fill_(exact.receptive_field)
        backend.warm(exact, self.input_values, self.lengths)
        self.capture_seconds += perf_counter() - start

    def capture(self, backend: Backend, exact: ExactForward) -> None:
        """Make the program."""
        start = perf_counter()
        self._program = backend.capture(exact, self.input_values, self.lengths)
        self.capture_seconds += perf_counter() - start

    def run(
        self, values: torch.Tensor, lengths: Sequence[int], rows: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The program's own outputs, which the next run may overwrite.

        Args:
            values: (B, S) of a batch.
            lengths: samples of each of its rows.
            rows: those to run.
        """
        assert self._program is not None
        static, written = self.input_values, self._written
        longest = max([lengths[row] for row in rows])
        if len(rows) == values.shape[0]:
            static[: len(rows), :longest].copy_(values[:, :longest], non_blocking=True)
        else:
            for i, row in enumerate(rows):
                static[i, :longest].copy_(values[row, :longest], non_blocking=True)
        # Nothing of the queries before stays, in whatever the program does with padding.
        for i in range(len(written)):
            new = longest if i < len(rows) else 0
            if written[i] > new:
                static[i, new : written[i]].zero_()
            written[i] = new
        used = [lengths[row] for row in rows]
        if used.count(used[0]) == len(used):
            self.lengths.fill_(used[0])  # unused rows count as silence
        else:
            used += [static.shape[1]] * (len(written) - len(used))
            self.lengths.copy_(torch.tensor(used), non_blocking=True)
        return self._program(static, self.lengths)


class Replica:
    """The programs of one backend, their static inputs and the lock that keeps them apart.

    Made warm; `capture` is the second step.

    Args:
        backend: makes the programs, and is this replica's own.
        exact: the forward.
        buckets: lengths to capture.
        batch_sizes: rows to capture each for.

    Raises:
        RuntimeError: the forward does not run. Nothing is held then.
    """

    def __init__(
        self,
        backend: Backend,
        exact: ExactForward,
        buckets: Iterable[Bucket],
        batch_sizes: Iterable[int],
    ) -> None:
        self.lock = threading.Lock()
        self.backend = backend
        self.closed = False
        weight = exact.model.lm_head.weight
        shapes = [(bucket, rows) for bucket in buckets for rows in batch_sizes]
        # What the largest needs is there for the others.
        shapes.sort(key=lambda shape: (-shape[0].samples * shape[1], -shape[1]))
        self.slots: dict[tuple[int, int], Slot] = {}
        self._exact = exact
        with _as_nobody(weight.device):
            try:
                for bucket, rows in shapes:
                    self.slots[bucket.frames, rows] = Slot(
                        torch.zeros(
                            (rows, bucket.samples), dtype=weight.dtype, device=weight.device
                        ),
                        torch.empty(rows, dtype=torch.int64, device=weight.device),
                    )
                for slot in self.slots.values():
                    slot.warm(backend, exact)
            except BaseException:
                self.close()
                raise

    def capture(self) -> None:
        """Make the programs.

        Raises:
            RuntimeError: one cannot be captured. Nothing is held then.
        """
        try:
            for slot in self.slots.values():
                with _as_nobody(slot.input_values.device):
                    slot.capture(self.backend, self._exact)
        except BaseException:
            self.close()
            raise

    def run(
        self, values: torch.Tensor, lengths: Sequence[int], replays: Iterable[Replay]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The outputs of one program after the other, each to be read before the next one runs.

        To be called by who holds the lock, in the backend's turn.

        Args:
            values: (B, S), the batch.
            lengths: samples of each of its rows.
            replays: the programs.
        """
        for replay in replays:
            slot = self.slots[replay.bucket.frames, replay.batch_size]
            yield slot.run(values, lengths, replay.rows)

    @property
    def capture_seconds(self) -> float:
        """Spent on warming and capturing."""
        return sum(slot.capture_seconds for slot in self.slots.values())

    def memory(self) -> int:
        """Bytes of the static inputs and of what the backend holds."""
        inputs = sum(slot.input_values.nbytes + slot.lengths.nbytes for slot in self.slots.values())
        return inputs + self.backend.memory()

    def close(self) -> None:
        """Wait for what runs, and drop the programs."""
        with self.lock:
            self.closed = True
            self.slots = {}
            self.backend.close()


@contextmanager
def _as_nobody(device: torch.device) -> Iterator[None]:
    """Without the modes of whoever makes the pool, so that programs and buffers serve everybody."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
