"""Plans of the lengths to capture: any for a traffic, and the cheapest ones."""

from __future__ import annotations

import json
import math
import os
import warnings
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_cudagraph_asr.files import written_beside
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan import view
from hf_cudagraph_asr.plan.cost import Cost, frame_bytes, replicas
from hf_cudagraph_asr.plan.partition import Floats, Ints, partition
from hf_cudagraph_asr.plan.traffic import Traffic, ascending, chunks_of, finite, rows_of, whole

KIND, FORMAT = "hf_cudagraph_asr plan", 2

LONG = 120.0  # seconds: of queries, a tenth of the time at most lies beyond without a warning


@dataclass(frozen=True)
class Bucket:
    """One length to capture.

    Attributes:
        frames: its length.
        samples: the longest input it holds, for which its static input has room.
        share: of all queries, those it serves; 0 to 1.
        padding: frames added over frames filled, of the queries it serves; 0 where there are none.
        cost: of one query replayed in it.
        replicas: graphs of it that can replay at the same time.
        pinned: it was asked for, whatever it costs.
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
    """Buckets for a traffic: any that are given, or by `plan_buckets` the best ones.

    Attributes:
        lengths: frames of each bucket, ascending.
        traffic: the queries.
        geometry: makes frames of samples; a model of another geometry refuses the plan.
        batch_sizes: rows each bucket is captured for, ascending.
        cost: of a query.
        replicas: graphs of each bucket that can replay at the same time; by default one.
        pinned: those of the lengths that were asked for.
        graphs: how many buckets there could have been; by default as many as there are.
        concurrency: queries that may run at once; by default as many as there are replicas.
        most_frames: how many frames the longest buckets of all pools may hold, in all rows of the
            largest batch: the memory limit. None for any number.

    Raises:
        ValueError: no lengths, or parts that do not fit together.
    """

    lengths: tuple[int, ...]
    traffic: Traffic = field(repr=False)
    _: KW_ONLY
    geometry: Geometry = field(default=Geometry())
    batch_sizes: tuple[int, ...] = (1,)
    cost: Cost = field(default=Cost(), repr=False)
    replicas: tuple[int, ...] = ()
    pinned: tuple[int, ...] = ()
    graphs: int = 0
    concurrency: int = 0
    most_frames: float | None = None

    def __post_init__(self) -> None:
        lengths = tuple(ascending(self.lengths, "the lengths of a plan", 1).tolist())
        copies = tuple(whole(count, "replicas") for count in self.replicas or [1] * len(lengths))
        if len(copies) != len(lengths) or not set(self.pinned) <= set(lengths):
            raise ValueError(
                f"{len(lengths)} lengths have {len(copies)} replicas, and {list(self.pinned)} are "
                "pinned: give as many replicas as lengths, and pin some of the lengths"
            )
        if not (self.most_frames is None or finite(self.most_frames)):
            raise ValueError(f"most_frames must be a number, or None, not {self.most_frames!r}")
        vars(self).update(  # it is frozen
            lengths=lengths,
            batch_sizes=rows_of(self.batch_sizes),
            replicas=copies,
            pinned=tuple(self.pinned),
            graphs=whole(self.graphs or len(lengths), "graphs"),
            concurrency=whole(self.concurrency or max(copies), "concurrency"),
        )

    def anew(self, traffic: Traffic) -> BucketPlan:
        """Choose lengths and replicas anew for a traffic, under the conditions of this plan.

        Raises:
            ValueError: memory or `graphs` leave no room for the pinned buckets, or for any.
        """
        frames, counts = traffic.arrays()
        ends = np.union1d(frames, np.array(self.pinned, dtype=np.int64))
        weights = np.zeros(len(ends))
        weights[np.searchsorted(ends, frames)] = counts
        rows = self.batch_sizes[-1]
        room = math.inf if self.most_frames is None else self.most_frames
        found = partition(
            weights,
            self.cost.replayed(ends[rows * ends <= room]),
            self.cost.run_eagerly(ends),
            self.graphs,
            np.isin(ends, self.pinned),
        )
        if found is None:
            least = max(self.pinned, default=int(ends[0]))
            needed = (
                f"a bucket of {least} frames at batch size {rows} is needed, and {room} frames fit"
            )
            cure = "raise memory_limit or graphs, or drop the larger batch sizes"
            raise ValueError(f"{needed} in memory, in {self.graphs} buckets: {cure}")
        lengths = tuple(ends[found].tolist())
        plan = replace(self, lengths=lengths, replicas=(), traffic=traffic)
        time = plan.expected_cost or 1.0  # a cost of nothing keeps nothing busy
        busy = [bucket.share * bucket.cost / time for bucket in plan.buckets]
        pools = max(room / (rows * lengths[-1]), 1)
        copies = np.minimum(replicas(busy, self.concurrency), pools).astype(int)
        return replace(plan, replicas=tuple(copies.tolist()))

    def bucket_for(self, samples: int) -> Bucket | None:
        """The smallest bucket that holds so many samples, or None: too long, or not a frame."""
        at = bisect_left(self.buckets, samples, key=lambda bucket: bucket.samples)
        if at == len(self.buckets) or samples < self.geometry.receptive_field:
            return None
        return self.buckets[at]

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Each length with its share of the traffic, its padding and its cost, ascending."""
        frames, counts = self.traffic.arrays()
        at, size = np.searchsorted(self.lengths, frames), len(self.lengths) + 1
        queries, filled = np.bincount(at, counts, size), np.bincount(at, counts * frames, size)
        price = self.cost.replayed(np.array(self.lengths))
        return tuple(
            Bucket(
                frames=end,
                samples=self.geometry.longest(end),
                share=float(queries[i] / counts.sum()),
                padding=float(queries[i] * end / filled[i] - 1) if filled[i] else 0.0,
                cost=float(price[i]),
                replicas=self.replicas[i],
                pinned=end in self.pinned,
            )
            for i, end in enumerate(self.lengths)
        )

    @property
    def tail(self) -> float:
        """Share of the queries longer than the last bucket, which run eagerly."""
        frames, counts = self.traffic.arrays()
        return float(counts[frames > self.lengths[-1]].sum() / counts.sum())

    @property
    def padding(self) -> float:
        """Frames added over frames filled, of all queries that are replayed; 0 without any."""
        computed = [bucket.share * bucket.frames for bucket in self.buckets]
        filled = [part / (1 + b.padding) for part, b in zip(computed, self.buckets, strict=True)]
        return sum(computed) / sum(filled) - 1 if any(filled) else 0.0

    @property
    def expected_cost(self) -> float:
        """Cost of one query, the tail's included."""
        frames, counts = self.traffic.arrays()
        return float(counts @ self.costs(frames) / counts.sum())

    @property
    def eager_cost(self) -> float:
        """Cost of one query if all of them ran eagerly."""
        frames, counts = self.traffic.arrays()
        return float(counts @ self.cost.run_eagerly(frames) / counts.sum())

    def costs(self, frames: Ints) -> Floats:
        """Cost of a query of each of these lengths: of its bucket, or of an eager run."""
        at = np.searchsorted(self.lengths, frames)
        price = np.append(self.cost.replayed(np.array(self.lengths)), 0.0)[at]
        return np.where(at < len(self.lengths), price, self.cost.run_eagerly(frames))

    @property
    def captures(self) -> int:
        """Graphs in all: buckets × batch sizes, each bucket as often as it has replicas."""
        return len(self.batch_sizes) * sum(self.replicas)

    def check_geometry(self, model: Any) -> None:
        """Refuse a model, a config or a Geometry whose frames are others.

        Raises:
            ValueError: it has another geometry than the plan, or none.
        """
        # A model does not know its rate.
        rate = model.sampling_rate if isinstance(model, Geometry) else self.geometry.sampling_rate
        other = replace(Geometry.of(model, sampling_rate=16_000), sampling_rate=rate)
        if other != self.geometry:
            given = f"this plan is for {self.geometry}; the model has {other}"
            raise ValueError(f"{given}: plan again with plan_buckets(..., model=model)")

    table = __str__ = view.table
    plot = view.plot

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, beside its place first and then renamed.

        Raises:
            OSError: there is no such folder, which is not created; or the path is a folder's.
        """
        content = {"kind": KIND, "format": FORMAT, **asdict(self)}
        with written_beside(path) as beside:
            text = json.dumps(content, allow_nan=False, indent=1)
            beside.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BucketPlan:
        """Read a plan that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no plan; the message says why.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise ValueError(f"{path} is no plan: it does not say that it is a {KIND!r}")
        if (found := content.get("format")) != FORMAT:
            cure = "plan again, or read it with the version that wrote it"
            raise ValueError(
                f"{path} is of format {found}, and this version reads {FORMAT}: {cure}"
            )
        parts: dict[str, Any] = {"traffic": Traffic, "geometry": Geometry, "cost": Cost}
        try:
            for name, kind in parts.items():
                content[name] = kind(*(content[name][part.name] for part in fields(kind)))
            return cls(**{part.name: content[part.name] for part in fields(cls)})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} is a damaged plan: {why}") from error


def plan_buckets(
    durations: Any,
    *,
    graphs: int = 16,
    model: Any = None,
    batch_sizes: Iterable[int] = (1,),
    cost: Cost | None = None,
    memory_limit: float | None = None,
    chunk_length_s: float | None = None,
    concurrency: int = 1,
    sampling_rate: int | None = None,
) -> BucketPlan:
    """Choose the buckets that cost this traffic least.

    The mean cost of a query is minimized exactly: a replay of the shortest bucket that holds it, or
    an eager run where none does.

    Args:
        durations: seconds, as any iterable or array of numbers; or a histogram: a mapping of
            seconds to counts; or a Traffic, taken as it is.
        graphs: how many lengths there may be. Each is captured once per batch size and replica.
        model: a model, config or Geometry whose frames count; by default Wav2Vec2's.
        batch_sizes: rows to capture each length for. One query's cost chooses the lengths.
        cost: as `pool.calibrate()` measures it. By default frames, an eager run being assumed to
            cost 5 times a replay.
        memory_limit: bytes of the pools, by an estimate from the first convolution's size. Limits
            lengths, then replicas.
        chunk_length_s: the ASR pipeline's argument. Chunks get a bucket of their own, one of
            `graphs`, and recordings longer than it count as the chunks they are cut into.
        concurrency: queries that may run at once. A bucket gets as many replicas as so many
            concurrent queries want of it at 95% of all moments, at least one.
        sampling_rate: of the waveforms; by default that of the Geometry, or of the folder the
            model was loaded from, or 16,000. The printed plan says it.

    Returns:
        The plan; of equally cheap ones that with the fewest buckets.

    Raises:
        ValueError: durations, counts or limits that cannot be planned for; the message says why.

    Warns:
        UserWarning: the durations do not look like seconds of queries.

    >>> plan = plan_buckets([1.2, 1.3, 1.9, 2.0, 4.8, 5.0], graphs=3)
    >>> [bucket.frames for bucket in plan.buckets], round(plan.padding, 3)
    ([64, 99, 249], 0.025)
    """
    geometry = Geometry.of(Geometry() if model is None else model, sampling_rate=sampling_rate)
    if not (cost is None or isinstance(cost, Cost)):
        raise ValueError(f"cost must be a Cost, as pool.calibrate() makes it, not {cost!r:.60}")
    if not (memory_limit is None or (finite(memory_limit) and memory_limit > 0)):
        raise ValueError(f"memory_limit must be bytes above 0, not {memory_limit!r}")
    pinned: tuple[int, ...] = ()
    if chunk_length_s is not None:
        pinned = (geometry.frames(chunks_of(geometry, chunk_length_s)[0]),)
    traffic = Traffic.of(durations, geometry, chunk_length_s)
    frames, counts = traffic.arrays()
    seconds = frames * geometry.hop / geometry.sampling_rate
    long = seconds > LONG
    told = traffic is durations or bool(pinned)
    if not told and counts[long] @ seconds[long] > counts @ seconds / 10:
        message = (
            f"{counts[long].sum():,.0f} of {traffic.total:,.0f} durations are above {LONG:g} s, up "
            f"to {seconds[-1]:,.0f} s: if they are milliseconds or samples, convert them to "
            f"seconds; if they are seconds, chunk_length_s cuts recordings"
        )
        warnings.warn(message, stacklevel=2)
    wanted = BucketPlan(
        pinned or traffic.frames[:1],
        traffic,
        geometry=geometry,
        batch_sizes=rows_of(batch_sizes),
        cost=Cost() if cost is None else cost,
        pinned=pinned,
        graphs=whole(graphs, "graphs"),
        concurrency=whole(concurrency, "concurrency"),
        most_frames=None if memory_limit is None else memory_limit / frame_bytes(geometry, model),
    )
    return wanted.anew(traffic)
