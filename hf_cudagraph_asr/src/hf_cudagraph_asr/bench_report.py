"""What a benchmark found: frozen figures, a table of them, and a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.files import written_beside

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["BucketLatency", "Contender", "Latency", "Report"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Latency:
    """Milliseconds a query.

    Attributes:
        mean: of all queries.
        p50: the median.
        p95: what 95% of the queries take at most.
        p99: what 99% take at most.
    """

    mean: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Floats) -> Latency:
        """Of timings, at least one."""
        p50, p95, p99 = np.quantile(milliseconds, [0.5, 0.95, 0.99]).tolist()
        return cls(float(milliseconds.mean()), p50, p95, p99)


@dataclass(frozen=True)
class BucketLatency:
    """The queries that one captured length served.

    Attributes:
        frames: the length.
        queries: how many.
        latency: of these.
    """

    frames: int
    queries: int
    latency: Latency


@dataclass(frozen=True)
class Contender:
    """One way of calling the model.

    Attributes:
        name: the stock model's, or a backend's, with "+mask" where it got the mask.
        latency: of all queries.
        speedup: the stock model's time over this one's, the median over the queries.
        start_seconds: to warm up and capture, before the first query.
        memory: bytes held by static inputs and captured programs.
        padding: frames computed in vain over frames asked for.
        misses: queries that no captured program answered though the backend has them, by reason.
        same_frames: share of the frames whose token is the stock model's.
        buckets: the latency within each captured length, ascending.
    """

    name: str
    latency: Latency
    speedup: float
    start_seconds: float = 0.0
    memory: int = 0
    padding: float = 0.0
    misses: Mapping[str, int] | None = None
    same_frames: float = 1.0
    buckets: tuple[BucketLatency, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was measured, and on what.

    Attributes:
        model: its class.
        parameters: how many it has.
        dtype: of its weights.
        device: in words.
        versions: of torch, transformers and Python.
        threads: of torch on the CPU.
        queries: how many were replayed.
        seconds: of audio in all of them.
        frames: the lengths captured.
        contenders: the stock model first.
    """

    model: str
    parameters: int
    dtype: str
    device: str
    versions: Mapping[str, str]
    threads: int
    queries: int
    seconds: float
    frames: tuple[int, ...]
    contenders: tuple[Contender, ...]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, beside its place first and then renamed.

        Raises:
            FileNotFoundError: the folder does not exist; it is not created.
        """
        with written_beside(path) as beside:
            text = json.dumps(asdict(self), indent=1, allow_nan=False)
            beside.write_text(text + "\n", encoding="utf-8")

    def table(self) -> Table:
        """The contenders as a rich table."""
        from rich import box
        from rich.table import Table

        lengths = "1 length" if len(self.frames) == 1 else f"{len(self.frames)} lengths"
        made = Table(
            box=box.SIMPLE_HEAD,
            title=f"{self.model}, {self.parameters / 1e6:,.1f} M parameters, {self.dtype}, "
            f"{self.device}",
            caption=f"{self.queries:,} queries, {self.seconds:,.0f} s of audio, {lengths}\n"
            "p50, p95, p99: milliseconds a query; start: seconds to capture; same: frames with "
            "the stock model's token",
            caption_justify="left",
            collapse_padding=True,
            pad_edge=False,
        )
        made.add_column("called as", no_wrap=True)
        for name in ("p50", "p95", "p99", "× stock", "start", "padding", "same", "missed"):
            made.add_column(name, justify="right", no_wrap=True)
        for contender in self.contenders:
            latency = contender.latency
            made.add_row(
                contender.name,
                *map(_figures, (latency.p50, latency.p95, latency.p99)),
                f"{contender.speedup:.2f}",
                f"{contender.start_seconds:.1f}",
                f"{contender.padding:.1%}",
                f"{contender.same_frames:.1%}",
                f"{sum((contender.misses or {}).values()):,}",
            )
        return made

    __rich__ = table


def _figures(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 100 else f"{milliseconds:,.0f}"
