"""How long a query takes, with graphs and without: from samples on the host to tokens on the host.

All ways of calling a model answer each query before the next one comes, in turns, so that whatever
else the machine does hits all of them. What is timed is what a service waits for: the copy to the
device and the cast, the model, the best token of each frame, and the copy back; not the feature
extractor and the tokenizer, which are the same for all.
"""

from __future__ import annotations

import copy
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hf_cudagraph_asr.attach import EnabledPool, enable_cuda_graphs
from hf_cudagraph_asr.bench_report import BucketLatency, Contender, Latency, Report
from hf_cudagraph_asr.plan import BucketPlan

__all__ = ["RANDOM", "STOCK", "STOCK_NO_MASK", "benchmark", "lognormal", "random_model"]

STOCK, STOCK_NO_MASK = "stock", "stock, no mask"
"""The model as it is: called as the host's pipeline calls it, and without its attention mask."""

MASK = "+mask"

WARM = 10  # queries that each answers before anything is timed, besides the longest

Floats = npt.NDArray[np.float64]

RANDOM: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "conv_dim": (32,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    },
}
"""Settings by name: those of wav2vec2-base, of wav2vec2-large-960h-lv60, and small ones."""


def lognormal(queries: int, *, median: float = 1.8, sigma: float = 0.5, seed: int = 0) -> Floats:
    """Durations of short queries, in seconds: log-normal, none of them under a tenth of a second.

    Args:
        queries: how many.
        median: seconds.
        sigma: standard deviation of the logarithm.
        seed: of the draw.
    """
    drawn = np.random.default_rng(seed).lognormal(np.log(median), sigma, queries)
    return np.maximum(drawn, 0.1)


def benchmark(
    model: Any,
    durations: Sequence[float] | Floats,
    plan: BucketPlan,
    *,
    backends: Sequence[str] = ("eager",),
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Replay a traffic through the stock model and through each backend.

    Args:
        model: a CTC model in evaluation mode, on its device and in its dtype, not enabled. It
            stays as it is: backends get copies that share its weights.
        durations: seconds of each query, in the order they come.
        plan: the lengths to capture.
        backends: as `enable_cuda_graphs` takes them; called without an attention mask, as a
            `Transcriber` calls a model for a single query, or with "+mask" behind the name, with
            one of ones, as the host's pipeline does.
        seed: of the noise that stands for speech.
        progress: show a progress bar.

    Returns:
        The report, the stock model's two first.

    Raises:
        ValueError: no durations, one that is too short for a frame, or what
            `enable_cuda_graphs` raises.
    """
    rate = plan.geometry.sampling_rate
    samples = np.rint(np.asarray(durations, dtype=np.float64) * rate)
    least = plan.geometry.receptive_field
    if not len(samples) or not (np.isfinite(samples) & (samples >= least)).all():
        raise ValueError(
            f"{len(samples)} queries were given, expected one or more, each of {least / rate:g} s "
            f"at least"
        )
    lengths = samples.astype(np.int64)
    noise = np.random.default_rng(seed).standard_normal(int(lengths.max()), dtype=np.float32)
    with ExitStack() as stack:
        callers = [_Caller(STOCK, model, masked=True), _Caller(STOCK_NO_MASK, model, masked=False)]
        callers += [stack.enter_context(_enabled(model, plan, name)) for name in backends]
        for count in [int(lengths.max()), *lengths[:WARM].tolist()]:
            for caller in callers:
                caller.answer(noise[:count])
        milliseconds = np.zeros((len(callers), len(lengths)))
        same, frames = np.zeros(len(callers), dtype=np.int64), 0
        for query, count in enumerate(_shown(lengths.tolist(), progress)):
            tokens: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(callers)
            for turn in range(len(callers)):
                at = (query + turn) % len(callers)  # nobody always follows the same other
                milliseconds[at, query], tokens[at] = callers[at].answer(noise[:count])
            same += [int((found == tokens[0]).sum()) for found in tokens]
            frames += len(tokens[0])
        return Report(
            model=type(model).__name__,
            parameters=sum(weight.numel() for weight in model.parameters()),
            dtype=str(model.dtype).removeprefix("torch."),
            device=_device(model.device),
            versions=_versions(),
            threads=torch.get_num_threads(),
            queries=len(lengths),
            seconds=float(lengths.sum() / rate),
            frames=tuple(bucket.frames for bucket in plan.buckets),
            contenders=tuple(
                _contender(caller, milliseconds[at], milliseconds[0], same[at] / frames, lengths)
                for at, caller in enumerate(callers)
            ),
        )


class _Caller:
    """A model, and how it is called."""

    def __init__(
        self,
        name: str,
        model: Any,
        *,
        masked: bool,
        pool: EnabledPool | None = None,
        start_seconds: float = 0.0,
    ) -> None:
        self.name = name
        self.pool = pool
        self.start_seconds = start_seconds
        self._model = model
        self._masked = masked

    def answer(self, samples: npt.NDArray[np.float32]) -> tuple[float, npt.NDArray[np.int64]]:
        """Milliseconds, and the best token of each frame."""
        device, dtype = self._model.device, self._model.dtype
        with torch.inference_mode():
            _wait(device)
            start = perf_counter()
            values = torch.from_numpy(samples)[None]  # (1, S)
            mask = torch.ones(values.shape, dtype=torch.long).to(device) if self._masked else None
            logits = self._model(values.to(device, dtype), attention_mask=mask).logits
            tokens = logits.argmax(dim=-1).cpu()  # (1, frames)
            _wait(device)
            return 1000 * (perf_counter() - start), tokens[0].numpy()


@contextmanager
def _enabled(model: Any, plan: BucketPlan, name: str) -> Iterator[_Caller]:
    """A backend on a copy of the model that shares its weights: a model has room for one pool."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared)
    _wait(model.device)
    start = perf_counter()
    with enable_cuda_graphs(twin, plan, backend=name.removesuffix(MASK)) as pool:
        _wait(model.device)
        seconds = perf_counter() - start
        yield _Caller(name, twin, masked=name.endswith(MASK), pool=pool, start_seconds=seconds)


def _contender(
    caller: _Caller,
    milliseconds: Floats,
    stock: Floats,
    same_frames: float,
    lengths: npt.NDArray[np.int64],
) -> Contender:
    latency, speedup = Latency.of(milliseconds), float(np.median(stock / milliseconds))
    if caller.pool is None:
        return Contender(caller.name, latency, speedup, same_frames=float(same_frames))
    # What it says of each length, now that nothing is timed any more.
    dispatches = [caller.pool.explain(count) for count in lengths.tolist()]
    at = np.array([0 if way.bucket is None else way.bucket.frames for way in dispatches])
    asked = np.array(
        [0.0 if way.bucket is None else way.bucket.frames / (1 + way.padding) for way in dispatches]
    )
    return Contender(
        name=caller.name,
        latency=latency,
        speedup=speedup,
        start_seconds=caller.start_seconds,
        memory=caller.pool.stats().memory,
        padding=float(at.sum() / asked.sum() - 1) if at.any() else 0.0,
        misses=dict(Counter(way.reason.value for way in dispatches if way.reason is not None)),
        same_frames=float(same_frames),
        buckets=tuple(
            BucketLatency(
                int(frames), int((at == frames).sum()), Latency.of(milliseconds[at == frames])
            )
            for frames in np.unique(at[at > 0])
        ),
    )


def random_model(name: str, *, seed: int = 0) -> Any:
    """A Wav2Vec2 of a known geometry with random weights, in evaluation mode on the CPU.

    Args:
        name: one of `RANDOM`.
        seed: of the weights.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Wav2Vec2ForCTC(Wav2Vec2Config(**RANDOM[name])).eval()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _shown(lengths: list[int], progress: bool) -> Iterable[int]:
    from tqdm.auto import tqdm

    shown: Iterable[int] = tqdm(
        lengths, desc="replaying", unit="query", disable=None if progress else True
    )
    return shown


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}"


def _versions() -> dict[str, str]:
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
