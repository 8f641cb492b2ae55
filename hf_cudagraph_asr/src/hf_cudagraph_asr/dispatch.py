"""Which programs serve a call, or why none does: decided here, executed elsewhere. No torch."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np

from hf_cudagraph_asr.plan import Bucket, BucketPlan, Cost

Route = Literal["bucket", "exact", "host"]


class Reason(Enum):
    """Why a call was not replayed. A fixed set, so that counts of them stay small."""

    TRAINING = "training mode"
    LABELS = "labels were given"
    GRADIENTS = "gradients are wanted: call it under torch.no_grad() or torch.inference_mode()"
    OUTPUTS = "hidden states or attentions were asked for"
    ARGUMENTS = "arguments other than the model's input and attention_mask"
    INPUT = (
        "the input is no (rows, samples) tensor in the model's dtype on its device, or (rows, "
        "positions, features) where it takes features"
    )
    SHORT = "shorter than the receptive field"
    MASK = "attention_mask is not ones followed by zeros in each row of the input"
    AUTOCAST = "autocast is on: load the model in the dtype wanted instead"
    CAPTURING = "the caller is capturing a CUDA graph of its own"
    LONG = "longer than the last bucket"
    ROWS = "more rows than the largest batch size planned, and one eager run costs less"
    CHANGED = "weights or modules were exchanged since the capture: call pool.rebuild()"
    FAILED = "the capture failed"
    UNSUPPORTED = "no length-exact forward for this model"
    REFUSED = "the length-exact forward refused the input"
    CLOSED = "the pool is disabled"


@dataclass(frozen=True, slots=True)
class Replay:
    """One program run for some rows of a batch.

    Attributes:
        bucket: its length.
        batch_size: its rows, those left empty included.
        rows: positions of its rows in the batch.
        filled: frames of these rows.
    """

    bucket: Bucket
    batch_size: int
    rows: tuple[int, ...]
    filled: int

    @property
    def computed(self) -> int:
        """Frames that the program computes."""
        return self.bucket.frames * self.batch_size


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What becomes of a call, or became of it.

    Attributes:
        route: "bucket": captured programs. "exact": the length-exact forward, as it is. "host":
            the model's own forward.
        reason: why not a bucket; None where one serves it, or where nothing was to be captured.
        detail: more of the reason, for people; often empty.
        replays: the programs run for it, that of the longest row first: one, unless a batch is
            split.
        cost: of all replays, in the unit of the plan's cost, or in milliseconds after
            `GraphPool.calibrate`; None without a bucket.
    """

    route: Route
    reason: Reason | None = None
    detail: str = ""
    replays: tuple[Replay, ...] = ()
    cost: float | None = None

    @property
    def filled(self) -> int:
        """Frames asked of buckets; 0 without one."""
        return sum([replay.filled for replay in self.replays])

    @property
    def computed(self) -> int:
        """Frames computed by the buckets' programs, empty rows included; 0 without one."""
        return sum([replay.computed for replay in self.replays])

    @property
    def padding(self) -> float:
        """Frames computed in vain over frames filled; 0 without a bucket."""
        return (self.computed - self.filled) / self.filled if self.replays else 0.0

    @property
    def bucket(self) -> Bucket | None:
        """That of the longest row, or None."""
        return self.replays[0].bucket if self.replays else None

    @property
    def batch_size(self) -> int:
        """Rows of the program that runs the longest row; 0 without a bucket."""
        return self.replays[0].batch_size if self.replays else 0

    def __str__(self) -> str:
        if self.replays:
            parts = ", then ".join(
                f"bucket of {replay.bucket.frames} frames, {replay.batch_size} rows"
                for replay in self.replays
            )
            return f"{parts}, {self.padding:.0%} padding"
        name = {"exact": "the exact forward", "host": "the model's own forward"}[self.route]
        why = "" if self.reason is None else f", because: {self.reason.value}"
        return name + why + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Prices:
    """Measured milliseconds of each program. `GraphPool.calibrate` makes them.

    Attributes:
        cost: of single queries, for planning.
        replays: by frames and rows; neither more frames nor more rows take less.
        eager: by frames, of a row in an eager batch of the largest size.
    """

    cost: Cost
    replays: Mapping[tuple[int, int], float]
    eager: Mapping[int, float]


class Programs:
    """Which programs there are, and what they take once it is measured; sizes ascend."""

    def __init__(
        self, plan: BucketPlan, batch_sizes: Sequence[int], prices: Prices | None = None
    ) -> None:
        self.plan = plan
        self.batch_sizes = tuple(batch_sizes)
        self.prices = prices
        self._ends = [bucket.samples for bucket in plan.buckets]
        self._field, self._hop = plan.geometry.receptive_field, plan.geometry.hop
        # By frames, of which there are few: most calls are of one row.
        self.alone = functools.lru_cache(4096)(self._alone)

    def bucket_for(self, samples: int) -> Bucket | None:
        """The smallest bucket that holds an input, also one too short for a frame; or None."""
        at = bisect_left(self._ends, samples)
        return self.plan.buckets[at] if at < len(self._ends) else None

    def frames(self, samples: int) -> int:
        """Frames of an input."""
        return max((samples - self._field) // self._hop + 1, 0)

    def price(self, samples: int, rows: int) -> float:
        """Cost of one run of so many rows, the longest of `samples`; always above 0.

        Unmeasured, few replays come first, then few frames. What no program holds gains nothing
        from company, and nothing that one holds joins it.
        """
        bucket = self.bucket_for(samples)
        if bucket is None or rows > self.batch_sizes[-1]:
            return rows * (1e12 + samples)
        size = self.batch_sizes[bisect_left(self.batch_sizes, rows)]
        if self.prices is None:
            return 1e9 + bucket.frames * size
        return self.prices.replays[bucket.frames, size]

    def _alone(self, frames: int) -> Dispatch | None:
        """What becomes of a single row of so many frames; None where no bucket holds it."""
        at = bisect_left(self.plan.buckets, frames, key=lambda bucket: bucket.frames)
        if at == len(self._ends):
            return None
        replays = (Replay(self.plan.buckets[at], self.batch_sizes[0], (0,), frames),)
        return Dispatch("bucket", replays=replays, cost=self.cost(replays))

    def cost(self, replays: Sequence[Replay]) -> float:
        """Cost of replays in the unit of the plan, or in milliseconds where they are measured."""
        if self.prices is None:
            return sum([replay.bucket.cost * replay.batch_size for replay in replays])
        return sum([self.prices.replays[r.bucket.frames, r.batch_size] for r in replays])

    def eager_cost(self, bucket: Bucket, rows: int) -> float:
        """Cost of one eager run of so many rows as long as a bucket, in the same unit."""
        if self.prices is None:
            return rows * float(self.plan.cost.run_eagerly(np.array([bucket.frames]))[0])
        return rows * self.prices.eager[bucket.frames]


def decide(lengths: Sequence[int], programs: Programs | None, otherwise: Dispatch) -> Dispatch:
    """What becomes of a call for the logits of some rows, of so many samples each.

    >>> from hf_cudagraph_asr import plan_buckets
    >>> programs = Programs(plan_buckets([1.2, 1.3, 1.9, 2.0], graphs=2), batch_sizes=(1,))
    >>> print(decide([19_200], programs, Dispatch("exact")))
    bucket of 64 frames, 1 rows, 8% padding
    >>> print(decide([48_000], programs, Dispatch("exact")))
    the exact forward, because: longer than the last bucket (48000 samples, at most 32079)
    """
    if programs is None:
        return otherwise
    if len(lengths) == 1:
        if (found := programs.alone(programs.frames(lengths[0]))) is not None:
            return found
    elif (packed := _pack(lengths, programs)) is not None:
        cost = programs.cost(packed)
        most = programs.batch_sizes[-1]
        if len(lengths) <= most or cost <= programs.eager_cost(packed[0].bucket, len(lengths)):
            return Dispatch("bucket", replays=packed, cost=cost)
        return Dispatch("exact", Reason.ROWS, f"{len(lengths)} rows, at most {most}")
    last = programs.plan.buckets[-1].samples
    return Dispatch("exact", Reason.LONG, f"{max(lengths)} samples, at most {last}")


def batches(
    lengths: Sequence[int], most: int, price: Callable[[int, int], float]
) -> list[tuple[int, ...]]:
    """Put rows of so many samples into the batches, of at most `most` rows, that cost least in sum.

    `price` is of a batch, by the samples of its longest row and its number of rows. Rows are put in
    order of length and cut into runs. No other grouping is cheaper where neither longer nor more
    rows cost less: exchanging rows until the groups are runs makes no group longer.

    Returns:
        Positions in `lengths`, ascending in each batch; that of the longest row first.

    >>> batches([100, 30, 90], 4, lambda samples, rows: 20 + samples * rows)
    [(0, 2), (1,)]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    # best[i]: the least cost of the rows from the i-th longest on, and how many go together first.
    best: list[tuple[float, int]] = [(0.0, 0)] * (len(order) + 1)
    for i in reversed(range(len(order))):
        found = (float("inf"), 1)  # alone, where no price is a number
        for together in range(1, min(most, len(order) - i) + 1):
            cost = price(lengths[order[i]], together) + best[i + together][0]
            if cost <= found[0]:  # of equal ways, the one with more rows in the first batch
                found = cost, together
        best[i] = found
    cut, i = [], 0
    while i < len(order):
        cut.append(tuple(sorted(order[i : i + best[i][1]])))
        i += best[i][1]
    return cut


def _pack(lengths: Sequence[int], programs: Programs) -> tuple[Replay, ...] | None:
    """The cheapest replays of a batch, that of the longest row first; None if a row is too long."""
    if programs.bucket_for(max(lengths)) is None:
        return None
    sizes, replays = programs.batch_sizes, []
    for rows in batches(lengths, sizes[-1], programs.price):
        bucket = programs.bucket_for(max([lengths[row] for row in rows]))
        assert bucket is not None
        filled = sum([programs.frames(lengths[row]) for row in rows])
        size = sizes[bisect_left(sizes, len(rows))]
        replays.append(Replay(bucket, size, rows, filled))
    return tuple(replays)
