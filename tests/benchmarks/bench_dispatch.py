"""What a pool adds to a replay on the host: microseconds of processor time a query.

    python tests/benchmarks/bench_dispatch.py
    python tests/benchmarks/bench_dispatch.py --queries 5000 --json out/bench/dispatch.json

The model has wav2vec2-base's modules, all twelve layers of them, only narrower; the program behind
each bucket returns at once what it has computed before, so that a call is all dispatch. Lengths are
a log-normal traffic's. What the bound is about, the plan's look-up, the copy in, the copy out and
the statistics, is timed once more by itself, by the very functions the pool calls; the rest of a
call is its reading, the look at every weight's address and the host's own output object, which is
timed too.
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

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers.modeling_outputs import CausalLMOutput

from hf_cudagraph_asr import enable_cuda_graphs, plan_buckets
from hf_cudagraph_asr.attach import EnabledPool
from hf_cudagraph_asr.capture import EagerBackend, Program
from hf_cudagraph_asr.exact import ExactForward
from hf_cudagraph_asr.statistics import Tally

BOUND = 50.0  # microseconds
RATE = 16_000
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


def parts(pool: EnabledPool, queries: Queries, rounds: int) -> dict[str, float]:
    """The steps of a call, each by itself, as the pool takes them."""
    serving, tally = pool._serving, Tally()
    lengths = [(query.shape[1],) for query in queries]
    replays = [serving.pack(length) for length in lengths]
    replica = serving.replicas[0]
    slots = [replica.slots[r[0].bucket.frames, 1] for r in replays if r]
    outputs = [slot._program(slot.input_values, slot.lengths) for slot in slots if slot._program]
    requests = [{"input_values": query} for query in queries]

    def copy_in(item: tuple[Any, torch.Tensor, tuple[int, ...]]) -> None:
        slot, values, length = item
        slot.run(values, length, (0,))

    def copy_out(item: tuple[Any, tuple[int, ...]]) -> None:
        serving.cut(*item, copy=True)

    def count(item: tuple[Any, tuple[int, ...]]) -> None:
        tally.replayed(item[0], serving.frames(item[1]), 0.001)
        pool.sketch.add(item[1][0])

    return {
        "plan look-up": per_query(serving.pack, lengths, rounds),
        "copy in": per_query(copy_in, list(zip(slots, queries, lengths, strict=True)), rounds),
        "copy out": per_query(copy_out, list(zip(outputs, lengths, strict=True)), rounds),
        "statistics": per_query(count, list(zip(replays, lengths, strict=True)), rounds),
        "reading the call": per_query(lambda r: serving.read((), r), requests, rounds),
        "looking at the weights": per_query(lambda _: serving.holds(), queries, rounds),
        "the host's output": per_query(lambda o: CausalLMOutput(logits=o[0]), outputs, rounds),
    }


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    narrow = transformers.Wav2Vec2Config(
        hidden_size=48, num_attention_heads=4, intermediate_size=64, conv_dim=(16,) * 7
    )
    model = transformers.Wav2Vec2ForCTC(narrow).eval()
    seconds = np.random.default_rng(0).lognormal(np.log(1.8), 0.5, arguments.queries)
    plan = plan_buckets(seconds, graphs=16, model=model)
    queries = [torch.randn(1, max(round(s * RATE), 400)) for s in seconds]
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
        assert not pool.stats().misses
        steps = parts(pool, queries, rounds)
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
