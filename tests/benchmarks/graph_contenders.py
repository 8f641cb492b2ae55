"""Ways to have a query's best tokens: each from samples on the host to tokens on the host."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from timing import Seconds

from hf_cudagraph_asr.attach import EnabledPool, enable_cuda_graphs
from hf_cudagraph_asr.plan import BucketPlan

PIPELINE, BARE, AT_BUCKET, REDUCE = "pipeline's call", "no mask", "at bucket", "reduce-overhead"

Call = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Contender:
    """A way to call a model.

    Attributes:
        name: of it.
        call: from (1, S) on the device, in the model's dtype, to (1, T, V) logits.
        masked: it is handed the mask that the ASR pipeline makes, with a copy of its own.
        start_seconds: until it was ready for every bucket.
        pool: what serves it, if it is enabled.
    """

    name: str
    call: Callable[..., torch.Tensor]
    masked: bool = False
    start_seconds: float = 0.0
    pool: EnabledPool | None = None

    def answer(self, samples: torch.Tensor, model: Any) -> tuple[Seconds, torch.Tensor]:
        """Time and tokens of (1, S) samples in float32 on the host."""
        device, dtype = model.device, model.dtype
        settle(device)
        wall, cpu = time.perf_counter(), time.process_time()
        values = samples.to(device, dtype)
        if self.masked:
            logits = self.call(values, torch.ones(samples.shape, dtype=torch.long).to(device))
        else:
            logits = self.call(values)
        tokens = logits.argmax(dim=-1).cpu()  # (1, T)
        settle(device)
        return Seconds(time.perf_counter() - wall, time.process_time() - cpu), tokens[0]


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stock(model: Any) -> list[Contender]:
    """The model as the ASR pipeline calls it, and without the mask."""

    def call(values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = model(values, attention_mask=mask).logits
        return logits

    return [Contender(PIPELINE, call, masked=True), Contender(BARE, call)]


def at_bucket(model: Any, plan: BucketPlan) -> Contender:
    """The stock model over as many samples as the query's bucket has, without a mask."""
    return Contender(AT_BUCKET, _padded(lambda values: model(values).logits, plan))


def reduce_overhead(model: Any, plan: BucketPlan) -> Contender:
    """What torch.compile makes of the stock model over the buckets' lengths, without a mask.

    Its outputs die at the next run; here they are read before.
    """
    # Each length is compiled by itself; Dynamo would stop after a few.
    torch._dynamo.config.recompile_limit = 4 * len(plan.buckets)
    compiled: Any = torch.compile(
        lambda values: model(values).logits, mode="reduce-overhead", dynamic=False
    )

    def run(values: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        logits: torch.Tensor = compiled(values)
        return logits

    settle(model.device)
    start = time.perf_counter()
    with torch.inference_mode():  # in which it is called: else it would be compiled again then
        for bucket in reversed(plan.buckets):
            values = torch.zeros(1, bucket.samples, device=model.device, dtype=model.dtype)
            for _ in range(3):  # compiled, recorded, replayed
                run(values)
    settle(model.device)
    return Contender(REDUCE, _padded(run, plan), start_seconds=time.perf_counter() - start)


def _padded(call: Call, plan: BucketPlan) -> Call:
    def padded(values: torch.Tensor) -> torch.Tensor:
        samples = values.shape[1]
        bucket = plan.bucket_for(samples)
        assert bucket is not None
        logits = call(torch.nn.functional.pad(values, (0, bucket.samples - samples)))
        return logits[:, : plan.geometry.frames(samples)]

    return padded


@contextmanager
def enabled(model: Any, plan: BucketPlan, backend: str) -> Iterator[Contender]:
    """A pool, on a copy of the model that shares its weights."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared)
    settle(model.device)
    start = time.perf_counter()
    with enable_cuda_graphs(twin, plan, backend=backend) as pool:
        settle(model.device)
        seconds = time.perf_counter() - start
        why = pool.explain(plan.buckets[-1].samples)
        if why.reason is not None:
            raise RuntimeError(f"{backend} does not replay: {why}")
        yield Contender(
            backend, lambda values: twin(values).logits, start_seconds=seconds, pool=pool
        )


def replay(
    contenders: Sequence[Contender], model: Any, lengths: Sequence[int], noise: torch.Tensor
) -> tuple[list[list[Seconds]], list[float]]:
    """Every contender answers each query before the next one comes, in turns.

    Args:
        contenders: the callers.
        model: whose device and dtype they need.
        lengths: samples of each query.
        noise: (1, at least the longest) what they hear.

    Returns:
        For each contender the time of each query, and the share of frames whose token is the first
        contender's.
    """
    taken: list[list[Seconds]] = [[Seconds(0, 0)] * len(lengths) for _ in contenders]
    same, frames = [0] * len(contenders), 0
    with torch.inference_mode():
        for query, length in enumerate(lengths):
            tokens: list[torch.Tensor] = [noise] * len(contenders)
            for turn in range(len(contenders)):
                at = (query + turn) % len(contenders)  # nobody always follows the same other
                taken[at][query], tokens[at] = contenders[at].answer(noise[:, :length], model)
            frames += len(tokens[0])
            same = [n + int((t == tokens[0]).sum()) for n, t in zip(same, tokens, strict=True)]
    return taken, [count / frames for count in same]
