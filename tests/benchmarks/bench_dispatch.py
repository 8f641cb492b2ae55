"""What a pool adds to a replay on the host: microseconds of processor time a query.

    python tests/benchmarks/bench_dispatch.py
    python tests/benchmarks/bench_dispatch.py --queries 5000 --json out/bench/dispatch.json

The model has wav2vec2-base's modules, all twelve layers of them, only narrower; the program behind
each bucket returns at once what it has computed before, so that a call is all dispatch. Lengths are
a log-normal traffic's. The bound is on deciding, copying in and out, and counting, each timed once
more by itself; the rest of a call is its reading, the look at every weight's address and the
host's own output object.

Two of the lines are floors, of what no dispatch can do without: a copy of the samples by itself,
of which the processor's memory is the larger part, and the addresses of all weights by themselves,
of which torch tells one in a call.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import process_time_ns
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from speech import in_samples, traffic

from hf_cudagraph_asr import BucketPlan, ExactForward, enable_cuda_graphs, plan_buckets
from hf_cudagraph_asr.backends import EagerBackend, Program
from hf_cudagraph_asr.captured import _Slot
from hf_cudagraph_asr.dispatch import Dispatch, Programs, decide
from hf_cudagraph_asr.host import HostModel
from hf_cudagraph_asr.observe import Tally
from hf_cudagraph_asr.pool import output_of

BOUND = 50.0  # microseconds
Queries = Sequence[torch.Tensor]


class Instant(EagerBackend):
    """Programs that return their first outputs for ever."""

    name = "instant"
    captures = True

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        outputs = exact(input_values, lengths)
        return lambda values, lengths: outputs


def per_query(work: Callable[[Any], object], queries: Sequence[Any], rounds: int) -> float:
    """Microseconds of processor time, the median of some rounds over all queries."""
    taken = []
    for _ in range(rounds):
        start = process_time_ns()
        for query in queries:
            work(query)
        taken.append((process_time_ns() - start) / len(queries) / 1e3)
    return median(taken)


def parts(plan: BucketPlan, queries: Queries, model: Any, rounds: int) -> dict[str, float]:
    """The steps of a call, each by itself, as a pool takes them."""
    host, words = HostModel(model), model.config.vocab_size
    programs, none, tally = Programs(plan, (1,)), Dispatch("exact"), Tally()
    lengths = [(query.shape[1],) for query in queries]
    dispatches = [decide(length, programs, none) for length in lengths]
    buckets = [dispatch.bucket for dispatch in dispatches if dispatch.bucket is not None]
    slots = {bucket.frames: _Slot(1, bucket.samples, host.exact) for bucket in buckets}
    for slot in slots.values():
        slot.program = lambda values, counts: (values, counts)
    inputs = [slots[bucket.frames] for bucket in buckets]
    logits = [torch.zeros(1, bucket.frames, words) for bucket in buckets]

    def copy_in(item: tuple[_Slot, torch.Tensor]) -> None:
        slot, query = item
        slot.run(query, (query.shape[1],), (0,))

    def copy_out(item: tuple[torch.Tensor, Dispatch]) -> None:
        output, dispatch = item
        output.narrow_copy(1, 0, dispatch.filled)

    static = torch.zeros(1, max(query.shape[1] for query in queries))
    weights = [*model.parameters(), *model.buffers()]

    def copy_only(query: torch.Tensor) -> None:
        static[:, : query.shape[1]] = query

    return {
        "deciding": per_query(lambda n: decide(n, programs, none), lengths, rounds),
        "copying in": per_query(copy_in, list(zip(inputs, queries, strict=True)), rounds),
        "copying out": per_query(copy_out, list(zip(logits, dispatches, strict=True)), rounds),
        "counting": per_query(lambda d: tally.count(d, 0.001), dispatches, rounds),
        "looking at the weights": per_query(lambda _: host.holds(), lengths, rounds),
        "the host's output": per_query(output_of, logits, rounds),
        "floor: copying the samples": per_query(copy_only, queries, rounds),
        "floor: reading the weights' addresses": per_query(
            lambda _: list(map(torch.Tensor.data_ptr, weights)), lengths, rounds
        ),
    }


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    narrow = transformers.Wav2Vec2Config(
        hidden_size=48, num_attention_heads=4, intermediate_size=64, conv_dim=(16,) * 7
    )
    model = transformers.Wav2Vec2ForCTC(narrow).eval()
    seconds = traffic(arguments.queries)
    plan = plan_buckets(seconds, graphs=16, model=model)
    samples = [length for length in in_samples(seconds) if length <= plan.buckets[-1].samples]
    queries = [torch.randn(1, length) for length in samples]
    masks = [torch.ones(1, query.shape[1], dtype=torch.int32) for query in queries]
    rounds = arguments.rounds
    gc.disable()  # of the parts, collections hit one at random
    with torch.inference_mode(), enable_cuda_graphs(model, plan, backend=Instant()) as pool:
        whole = {
            "a call": per_query(lambda query: model(query), queries, rounds),
            "a call with a mask": per_query(
                lambda both: model(both[0], attention_mask=both[1]),
                list(zip(queries, masks, strict=True)),
                rounds,
            ),
        }
        whole["pool.call"] = per_query(pool.call, queries, rounds)
        assert not pool.stats().misses
    steps = parts(plan, queries, model, rounds)
    named = list(steps)[:4]
    dispatch = sum(steps[name] for name in named)
    table = Table(
        "step", "µs a query", "",
        title=f"Dispatch of {arguments.queries:,} queries, {len(plan.buckets)} buckets",
    )  # fmt: skip
    for name, taken in steps.items():
        table.add_row(name, f"{taken:.1f}")
    verdict = "met" if dispatch <= BOUND else "MISSED"
    table.add_section()
    table.add_row(", ".join(named), f"{dispatch:.1f}", f"≤ {BOUND:g}: {verdict}")
    for name, taken in whole.items():
        table.add_row(name, f"{taken:.1f}")
    Console(width=120).print(table)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"steps": steps, "dispatch": dispatch, "bound": BOUND, **whole}
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=Path("out/bench/dispatch.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
