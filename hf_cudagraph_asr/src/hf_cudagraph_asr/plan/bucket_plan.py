"""Which lengths a pool captures, and what they mean for a traffic."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan.concurrency import pools_memory
from hf_cudagraph_asr.plan.cost import Cost, CostLike
from hf_cudagraph_asr.plan.traffic import Traffic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ["Bucket", "BucketPlan"]


@dataclass(frozen=True)
class Bucket:
    """One length to capture.

    Attributes:
        frames: its length.
        samples: the longest input it holds, which its static input has room for.
        share: of all queries, those it serves; 0 to 1.
        padding: frames added over frames filled, of the queries it serves; 0 where there are none.
        cost: of one query replayed in it.
        replicas: graphs of it that can replay at the same time.
        pinned: it is there because it was asked for, whatever it costs.
    """

    frames: int
    samples: int
    share: float
    padding: float
    cost: float
    replicas: int = 1
    pinned: bool = False


@dataclass(frozen=True)
class BucketPlan:
    """Buckets for a traffic. `plan_buckets` makes the best one, `BucketPlan.of` any.

    Attributes:
        geometry: what makes frames of samples; a model of another one refuses the plan.
        buckets: ascending.
        batch_sizes: rows each bucket is captured for, ascending.
        tail: share of the queries longer than the last bucket, which run eagerly.
        padding: frames added over frames filled, of all queries that are replayed.
        expected_cost: of one query, the tail's included.
        eager_cost: of one query if all of them ran eagerly.
        asked: how many buckets there could have been.
        memory: bytes the pools need; None where the cost knows nothing of memory.
        cost: the curves all this was reckoned with.
        traffic: the queries all this was reckoned for.
    """

    geometry: Geometry
    buckets: tuple[Bucket, ...]
    batch_sizes: tuple[int, ...]
    tail: float
    padding: float
    expected_cost: float
    eager_cost: float
    asked: int
    memory: float | None
    cost: Cost = field(repr=False)
    traffic: Traffic = field(repr=False)

    @classmethod
    def of(
        cls,
        lengths: Iterable[int],
        traffic: Traffic,
        *,
        geometry: Geometry | None = None,
        batch_sizes: Iterable[int] = (1,),
        cost: CostLike = None,
        replicas: Iterable[int] | None = None,
        pinned: Iterable[int] = (),
        asked: int | None = None,
    ) -> BucketPlan:
        """What given buckets mean for a traffic.

        Args:
            lengths: frames of each bucket.
            traffic: the queries.
            geometry: by default Wav2Vec2's at 16 kHz.
            batch_sizes: rows each bucket is captured for.
            cost: as in `plan_buckets`.
            replicas: of each bucket, by ascending length; by default 1.
            pinned: those of the lengths that were asked for.
            asked: how many buckets there could have been; by default as many as there are.

        Raises:
            ValueError: no lengths, or what is given does not fit together.
        """
        geometry = Geometry() if geometry is None else geometry
        ends = sorted({whole(length, "a bucket's frames") for length in lengths})
        if not ends:
            raise ValueError("a plan needs a bucket: no lengths were given")
        copies = [1] * len(ends) if replicas is None else [whole(r, "replicas") for r in replicas]
        if len(copies) != len(ends):
            raise ValueError(
                f"{len(ends)} buckets have {len(copies)} replica counts: give one each"
            )
        sizes = rows_of(batch_sizes)
        pins = set(pinned)
        if not pins <= set(ends):
            raise ValueError(
                f"pinned lengths {sorted(pins - set(ends))} are no buckets of the plan"
            )

        frames, counts = traffic.arrays()
        lengths_ = np.array(ends, dtype=np.int64)
        curves = Cost.of(cost, np.union1d(frames, lengths_))
        at = np.searchsorted(lengths_, frames)  # len(ends): the tail
        queries = np.bincount(at, counts, minlength=len(ends) + 1)
        filled = np.bincount(at, counts * frames, minlength=len(ends) + 1)[:-1]
        total = float(counts.sum())
        added = queries[:-1] * lengths_ - filled
        price = curves.replayed(lengths_)
        eager = counts * curves.run_eagerly(frames)
        return cls(
            geometry=geometry,
            buckets=tuple(
                Bucket(
                    frames=end,
                    samples=geometry.longest(end),
                    share=float(queries[i] / total),
                    padding=float(added[i] / filled[i]) if filled[i] else 0.0,
                    cost=float(price[i]),
                    replicas=copies[i],
                    pinned=end in pins,
                )
                for i, end in enumerate(ends)
            ),
            batch_sizes=sizes,
            tail=float(queries[-1] / total),
            padding=float(added.sum() / filled.sum()) if filled.sum() else 0.0,
            expected_cost=float((queries[:-1] @ price + eager[at == len(ends)].sum()) / total),
            eager_cost=float(eager.sum() / total),
            asked=len(ends) if asked is None else whole(asked, "asked"),
            memory=None if curves.memory is None else pools_memory(curves, ends, copies, sizes),
            cost=curves,
            traffic=traffic,
        )

    def on(self, durations: Any, *, cost: CostLike = None) -> BucketPlan:
        """The same buckets under another traffic, or another cost.

        Args:
            durations: as in `plan_buckets`.
            cost: by default this plan's; a callable is sampled anew.

        Raises:
            ValueError: durations that are none.
        """
        return BucketPlan.of(
            [bucket.frames for bucket in self.buckets],
            Traffic.of(durations, self.geometry),
            geometry=self.geometry,
            batch_sizes=self.batch_sizes,
            cost=self.cost if cost is None else cost,
            replicas=[bucket.replicas for bucket in self.buckets],
            pinned=[bucket.frames for bucket in self.buckets if bucket.pinned],
            asked=self.asked,
        )

    def bucket_for(self, samples: int) -> Bucket | None:
        """The smallest bucket that holds an input, or None: longer than the last, or no frame.

        Args:
            samples: of the longest row.
        """
        at = bisect_left(self._samples, samples)
        if at == len(self._samples) or samples < self._shortest:
            return None
        return self.buckets[at]

    @cached_property
    def _shortest(self) -> int:
        return self.geometry.receptive_field

    @cached_property
    def _samples(self) -> list[int]:
        return [bucket.samples for bucket in self.buckets]

    @property
    def captures(self) -> int:
        """Graphs in all: buckets × batch sizes, each bucket as often as it has replicas."""
        return len(self.batch_sizes) * sum(bucket.replicas for bucket in self.buckets)

    def check_geometry(self, model: Any) -> None:
        """Refuse a model whose frames are others.

        Args:
            model: a model, its config, or a Geometry.

        Raises:
            ValueError: it has another geometry than the plan, or none.
        """
        rate = model.sampling_rate if isinstance(model, Geometry) else self.geometry.sampling_rate
        other = Geometry.of(model, sampling_rate=rate)
        if other != self.geometry:
            raise ValueError(
                f"this plan is for {self.geometry}; the model has {other}: "
                "plan again with plan_buckets(..., model=model)"
            )

    def table(self) -> Table:
        """The plan as a rich table.

        Raises:
            ImportError: rich is missing.
        """
        from hf_cudagraph_asr.plan.plan_table import table

        return table(self)

    __rich__ = table

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the buckets against the traffic.

        Args:
            path: also write it there; the ending says as what.

        Raises:
            ImportError: matplotlib is missing.
        """
        from hf_cudagraph_asr.plan.plan_plot import plot

        return plot(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, beside its place first and then renamed.

        Raises:
            FileNotFoundError: the folder does not exist; it is not created.
        """
        from hf_cudagraph_asr.plan.plan_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BucketPlan:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no plan; the message says why.
        """
        from hf_cudagraph_asr.plan.plan_file import load

        return load(path)


def whole(value: Any, name: str) -> int:
    """A count from 1 up, or a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 up, not {value!r}")
    return int(value)


def rows_of(sizes: Iterable[int]) -> tuple[int, ...]:
    """Batch sizes, each once, ascending."""
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Iterable):
        raise ValueError(f"batch_sizes are whole numbers from 1 up, not {sizes!r}")
    found = tuple(sorted({whole(size, "a batch size") for size in sizes}))
    if not found:
        raise ValueError("batch_sizes are empty: give (1,) for single queries")
    return found
