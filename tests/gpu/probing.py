"""What the probes share: lines of JSON written at once, timed replays, and models to time."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # no package, like this folder

from speech import RATE, random_model

Call = Callable[[], object]
HOP = 320  # samples from one frame of Wav2Vec2 to the next


@dataclass
class Probe:
    """Where probes run, and where they write.

    Attributes:
        device: "cuda" or "cpu", on which only the script itself is checked.
        geometry: the model to probe; a key of `speech.GEOMETRIES`.
        large: a second one.
        out: lines of JSON are added to it.
    """

    device: str
    geometry: str
    large: str
    out: Path
    started: float = field(default_factory=time.perf_counter)

    @property
    def on_gpu(self) -> bool:
        """There is something to measure."""
        return self.device == "cuda"

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self.started

    def say(self, section: str, **figures: object) -> None:
        """Write what a section found."""
        found = {"section": section, "at": round(self.seconds, 1), **figures}
        line = json.dumps(found, default=str)
        print(line[:1500], flush=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def wait(self) -> None:
        """Until the device has done all it was asked."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def stream(self) -> Any:
        """A context on a new stream."""
        return torch.cuda.stream(torch.cuda.Stream() if self.on_gpu else None)

    # --- models

    def model(self, dtype: torch.dtype, geometry: str | None = None, **changes: Any) -> Any:
        """A model with random weights on the device."""
        return random_model(geometry or self.geometry, **changes).to(self.device, dtype)

    def folded(self, dtype: torch.dtype) -> Any:
        """The same model with the weight of its positional convolution computed once.

        Not a deep copy of another: it would share the parametrized class, from which the weight
        goes.
        """
        twin = self.model(dtype)
        for module in twin.modules():
            if torch.nn.utils.parametrize.is_parametrized(module, "weight"):
                torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
        return twin

    def inputs(
        self, seconds: float, rows: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, samples) of a bucket of so many seconds, and (rows,) lengths a frame shorter."""
        samples = int(seconds * RATE) // HOP * HOP + HOP + 79
        values = torch.randn(rows, samples, device=self.device).to(dtype)
        return values, torch.full((rows,), samples - HOP - 1, device=self.device)

    # --- times

    def graph(self, call: Call, warm: int = 3) -> Call:
        """A replay of what a call does: of a CUDA graph, or on a CPU the call itself."""
        if not self.on_gpu:
            return call
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = call()

        def replay(held: tuple[object, Call] = (outputs, call)) -> None:  # what it reads and writes
            graph.replay()

        return replay

    def device_us(self, call: Call, repeats: int = 30) -> float:
        """Median microseconds that a replay takes on the device."""
        replay = self.graph(call)
        found = []
        for _ in range(repeats if self.on_gpu else 2):
            if self.on_gpu:
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                replay()
                last.record()
                last.synchronize()
                found.append(1e3 * first.elapsed_time(last))
            else:
                start = time.perf_counter()
                replay()
                found.append(1e6 * (time.perf_counter() - start))
        return round(statistics.median(found), 1)

    def wall_us(self, call: Call, repeats: int = 30) -> float:
        """Median microseconds from a call to the end of its work."""
        found = []
        for _ in range(repeats if self.on_gpu else 2):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            found.append(1e6 * (time.perf_counter() - start))
        return round(statistics.median(found), 1)
