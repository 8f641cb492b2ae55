"""What replays and eager runs take on this machine, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from hf_cudagraph_asr.exact import ExactForward
from hf_cudagraph_asr.plan import BucketPlan, Cost, whole

if TYPE_CHECKING:
    from hf_cudagraph_asr.replica import Replica

__all__ = ["Prices", "calibrate"]

Times = dict[tuple[int, int], float]


@dataclass(frozen=True)
class Prices:
    """Milliseconds of each program.

    Attributes:
        cost: of single queries, for planning.
        replays: by frames and rows; neither more frames nor more rows take less.
        eager: by frames, of a row in an eager batch of the largest size.
    """

    cost: Cost
    replays: Mapping[tuple[int, int], float]
    eager: Mapping[int, float]

    def replay(self, frames: int, rows: int) -> float:
        """Of one replay."""
        return self.replays[frames, rows]


def calibrate(
    replica: Replica,
    exact: ExactForward,
    plan: BucketPlan,
    batch_sizes: Sequence[int],
    *,
    repeats: int,
) -> Prices:
    """Measure each program and the exact forward at each bucket, in turns.

    Noise comes in bursts, so each round runs everything once, and the median of the rounds counts.
    Where noise makes more work take less time, the dearer of the two prices counts.

    Args:
        replica: holds the programs. Calls of others wait for one run at a time.
        exact: the forward.
        plan: the buckets.
        batch_sizes: rows of the programs, ascending.
        repeats: rounds, after one that is not counted.
    """
    repeats = whole(repeats, "repeats")
    weight = exact.model.lm_head.weight
    runs: dict[tuple[str, int, int], Callable[[], object]] = {}
    for bucket in plan.buckets:
        for rows in batch_sizes:
            noise = torch.randn(rows, bucket.samples, device=weight.device).to(weight.dtype)
            # A sample less, so that what serves padding is measured.
            lengths = [max(bucket.samples - 1, exact.receptive_field)] * rows

            def replay(
                size: tuple[int, int] = (bucket.frames, rows),
                values: torch.Tensor = noise,
                lengths: Sequence[int] = lengths,
            ) -> None:
                with replica.lock, replica.backend.turn():
                    logits, _ = replica.slots[size].run(values, lengths, range(len(lengths)))
                    logits.clone()

            def eager(values: torch.Tensor = noise, lengths: Sequence[int] = lengths) -> None:
                exact(values, torch.tensor(lengths, device=values.device))

            runs["replay", bucket.frames, rows] = replay
            if rows in (batch_sizes[0], batch_sizes[-1]):
                runs["eager", bucket.frames, rows] = eager
    seconds: dict[tuple[str, int, int], list[float]] = {key: [] for key in runs}
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        for round_ in range(repeats + 1):
            for key, run in runs.items():
                _wait(weight.device)
                start = perf_counter()
                run()
                _wait(weight.device)
                if round_:
                    seconds[key].append(perf_counter() - start)
    taken = {key: 1e3 * median(times) for key, times in seconds.items()}
    first, last = batch_sizes[0], batch_sizes[-1]
    frames = [bucket.frames for bucket in plan.buckets]
    replays = _rising({(f, r): taken["replay", f, r] for f in frames for r in batch_sizes})
    return Prices(
        Cost.measured(
            frames,
            [replays[f, first] / first for f in frames],
            [taken["eager", f, first] / first for f in frames],
        ),
        replays,
        {f: taken["eager", f, last] / last for f in frames},
    )


def _rising(times: Times) -> Times:
    """At least what every smaller program takes."""
    return {
        (frames, rows): max(time for (f, r), time in times.items() if f <= frames and r <= rows)
        for frames, rows in times
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
