"""Which programs serve the rows of a batch: together, or split where that costs less. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_cudagraph_asr.plan import Bucket, BucketPlan

__all__ = ["Price", "Replay", "fewest_replays", "pack"]

Price = Callable[[int, int], float]
"""Cost of one replay, of the bucket's frames and the program's rows."""


@dataclass(frozen=True, slots=True)
class Replay:
    """One program run for some rows of a batch.

    Attributes:
        bucket: its length.
        batch_size: its rows, those left empty included.
        rows: where its rows stand in the batch.
    """

    bucket: Bucket
    batch_size: int
    rows: tuple[int, ...]


def fewest_replays(frames: int, rows: int) -> float:
    """The price while nothing is measured: few replays first, then few frames."""
    return 1e9 + frames * rows


def pack(
    lengths: Sequence[int], plan: BucketPlan, sizes: Sequence[int], price: Price
) -> tuple[Replay, ...] | None:
    """The cheapest way to replay a batch.

    Rows are put in order of length and cut into runs, each of which goes into the smallest
    program that holds it. No other grouping is cheaper where neither more frames nor more rows
    cost less: exchanging rows until the groups are runs makes no group longer.

    Args:
        lengths: samples of each row.
        plan: the buckets.
        sizes: rows that each bucket has programs for, ascending.
        price: of a replay.

    Returns:
        The replays, that of the longest row first; None where a row fits no bucket.
    """
    if len(lengths) == 1:  # most calls
        bucket = plan.bucket_for(lengths[0])
        return None if bucket is None else (Replay(bucket, sizes[0], _FIRST),)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    buckets = [plan.bucket_for(lengths[row]) for row in order]
    # best[i]: the least cost of the rows from the i-th longest on, and how many go together first.
    best: list[tuple[float, int]] = [(0.0, 0)] * (len(order) + 1)
    for i in reversed(range(len(order))):
        bucket = buckets[i]
        if bucket is None:
            return None
        found = (float("inf"), 0)
        fewest = 1
        for size in sizes:
            # A program of more rows is never fuller with fewer of them than the smaller ones hold.
            for together in range(fewest, min(size, len(order) - i) + 1):
                cost = price(bucket.frames, size) + best[i + together][0]
                if cost <= found[0]:  # of equal ways, the one with more rows in the first replay
                    found = cost, together
            fewest = size + 1
        best[i] = found
    replays, i = [], 0
    while i < len(order):
        bucket, together = buckets[i], best[i][1]
        assert bucket is not None
        size = next(size for size in sizes if size >= together)
        replays.append(Replay(bucket, size, tuple(sorted(order[i : i + together]))))
        i += together
    return tuple(replays)


_FIRST = (0,)
