"""`hf-cudagraph-asr bench`: milliseconds a query takes, with graphs and without.

A query is timed from samples on the host to the best token of each frame on the host: copy in,
cast, model, argmax, copy out. Every contender answers a query before the next one comes, in
rotating order, so that other work of the machine slows all of them alike.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from hf_cudagraph_asr.cli import Device, Dtype, Model, quiet_host, say
from hf_cudagraph_asr.files import checked, written_beside
from hf_cudagraph_asr.observe import PoolStatistics
from hf_cudagraph_asr.plan import BucketPlan
from hf_cudagraph_asr.plan.partition import Floats

if TYPE_CHECKING:
    import torch

    from hf_cudagraph_asr.pool import GraphPool


@dataclass
class Contender:
    """One way of calling a model."""

    name: str
    call: Callable[[torch.Tensor], torch.Tensor]  # (B, S) float32 samples → (B, T) best tokens
    start_seconds: float = 0.0  # to enable the pool
    pool: GraphPool | None = None


@contextmanager
def contending(model: Any, plan: BucketPlan, backends: Sequence[str]) -> Iterator[list[Contender]]:
    """The stock model with a mask and without, and each backend on a copy that shares its weights.

    A mask of ones is what the host's pipeline passes; a `Transcriber` passes none for one query.
    Backends with "+mask" behind the name are called with one.
    """
    from hf_cudagraph_asr import enable_cuda_graphs

    with ExitStack() as stack:
        found = [Contender("stock", _call(model, True)), Contender("no mask", _call(model, False))]
        for name in backends:
            masked, backend = name.endswith("+mask"), name.removesuffix("+mask")
            shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
            twin = copy.deepcopy(model, shared)
            start = perf_counter()
            pool = stack.enter_context(enable_cuda_graphs(twin, plan, backend=backend))
            found.append(Contender(name, _call(twin, masked), perf_counter() - start, pool))
        yield found


def _call(model: Any, masked: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    from hf_cudagraph_asr.geometry import features_of

    device, dtype, features = model.device, model.dtype, features_of(model.config)

    def call(samples: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(samples.shape, dtype=torch.long).to(device) if masked else None
        values = samples.to(device, dtype)
        if features:
            values = values[:, :, None].expand(-1, -1, *features)
        logits = model(values, attention_mask=mask).logits
        tokens: torch.Tensor = logits.argmax(dim=-1).cpu()  # waits for the device
        return tokens

    return call


def replay(
    contenders: Sequence[Contender],
    lengths: Sequence[int],
    clock: Callable[[], float] = perf_counter,
) -> tuple[Floats, Floats]:
    """Let every contender answer each of N queries of noise, of so many samples.

    Returns:
        (contenders, N) milliseconds; and (contenders,) the share of frames whose token is the first
        contender's.
    """
    import torch
    from tqdm.auto import tqdm

    noise = torch.randn(1, max(lengths), generator=torch.Generator().manual_seed(0))
    seconds = np.zeros((len(contenders), len(lengths)))
    same, frames = np.zeros(len(contenders)), 0
    with torch.inference_mode():
        for query, length in enumerate(tqdm(lengths, "queries", leave=False, disable=None)):
            tokens = [noise] * len(contenders)
            for turn in range(len(contenders)):
                at = (query + turn) % len(contenders)
                start = clock()
                tokens[at] = contenders[at].call(noise[:, :length])  # (B, T)
                seconds[at, query] = clock() - start
            same += [int((found == tokens[0]).sum()) for found in tokens]
            frames += tokens[0].numel()
    return 1e3 * seconds, same / frames


@dataclass(frozen=True)
class Result:
    """The figures of one contender."""

    name: str
    p50: float  # milliseconds that so many percent of the queries take at most
    p95: float
    p99: float
    over_stock: float  # times faster than the stock model with a mask, median over the queries
    over_no_mask: float  # times faster than the stock model without one
    start_seconds: float  # to enable the pool; 0 for the stock model
    memory: int  # bytes of static inputs and captured programs
    padding: float  # frames computed beyond those asked for, as a share of these
    misses: dict[str, int]  # calls that no captured program served although there are some
    same_frames: float  # share of the frames whose token is the stock model's


def results(contenders: Sequence[Contender], taken: Floats, same: Floats) -> list[Result]:
    """The figures of all contenders, the stock model's two first, from what `replay` returned."""
    found = []
    for at, one in enumerate(contenders):
        stats = one.pool.stats() if one.pool else PoolStatistics(0, 0, {}, ())
        misses = {why.value: count for why, count in stats.misses.items()}
        figures: list[Any] = np.percentile(taken[at], (50, 95, 99)).tolist()
        figures += np.median(taken[:2] / taken[at], axis=1).tolist()
        figures += [one.start_seconds, stats.memory, stats.padding, misses, float(same[at])]
        found.append(Result(one.name, *figures))
    return found


def lines(found: Sequence[Result]) -> Iterator[str]:
    """The results as lines of a table, 79 characters wide."""
    yield f"{'':12} p50 ms p95 ms p99 ms × stock × no mask start s padding same missed"
    for one in found:
        yield (
            f"{one.name:12}{one.p50:7.4g}{one.p95:7.4g}{one.p99:7.4g}{one.over_stock:8.2f}"
            f"{one.over_no_mask:10.2f}{one.start_seconds:8.1f}{one.padding:8.1%}"
            f"{one.same_frames:5.0%}{sum(one.misses.values()):7}"
        )


def bench(
    model: Model,
    plan: Annotated[Path, typer.Option(help="The lengths to capture, as `plan` wrote them.")],
    out: Annotated[Path, typer.Option(help="All figures, a JSON file; replaced if it exists.")],
    queries: Annotated[int, typer.Option(min=1, help="How many are replayed.")] = 2000,
    backends: Annotated[
        str,
        typer.Option(
            metavar="eager,cuda",
            help="Some of eager, export, compile and cuda; with +mask behind a name, called with "
            "a mask as the host's pipeline does. auto: eager, and cuda on a GPU, export on a CPU.",
        ),
    ] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Replay queries through the stock model and through each backend, in turns.

    Queries are drawn from the traffic that the plan was made for. The stock model is called with an
    attention mask, as the host's pipeline calls it, and without.
    """
    checked(out, [plan], model)
    quiet_host()

    import torch
    import transformers

    from hf_cudagraph_asr.transcriber import device_of, dtype_of, loaded

    chosen = BucketPlan.load(plan)
    kind, where = dtype_of(dtype), device_of(device)
    network = loaded(transformers.AutoModelForCTC, model, dtype=kind).eval().to(where)
    if backends == "auto":
        backends = "eager,cuda" if where.type == "cuda" else "eager,export"
    frames, counts = chosen.traffic.arrays()
    drawn = np.random.default_rng(0).choice(frames, queries, p=counts / counts.sum())
    lengths = [chosen.geometry.longest(count) for count in drawn.tolist()]
    with contending(network, chosen, [name.strip() for name in backends.split(",")]) as contenders:
        replay(contenders, [max(lengths), *lengths[:10]])  # what is lazy is done before
        found = results(contenders, *replay(contenders, lengths))
    report = {
        "model": model,
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "captured_frames": [bucket.frames for bucket in chosen.buckets],
        "queries": queries,
        "results": [asdict(one) for one in found],
    }
    with written_beside(out) as beside:
        beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say("\n".join([*lines(found), str(out)]))
