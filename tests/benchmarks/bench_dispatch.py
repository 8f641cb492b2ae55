"""What a pool adds to a replay on the host: microseconds of processor time a query.

    python tests/benchmarks/bench_dispatch.py
    python tests/benchmarks/bench_dispatch.py --queries 5000 --json out/bench/dispatch.json
    python tests/benchmarks/bench_dispatch.py --beside OTHER/hf_cudagraph_asr/src

The model has wav2vec2-base's modules, all twelve layers of them, only narrower; the program behind
each bucket returns at once what it has computed before, so that a call is all dispatch. Lengths are
a log-normal traffic's. The bound is on deciding, copying in and out, and counting, each timed once
more by itself; the rest of a call is its reading, the look at every weight's address and the
host's own output object.

Two of the lines are floors, of what no dispatch can do without: a copy of the samples by itself,
of which the processor's memory is the larger part, and the addresses of all weights by themselves,
of which torch tells one in a call.

`--beside` also measures whole calls of another revision, each time in a process of its own and in
turns with this one's, because one machine's microseconds are not another's.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
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
    # Not for `--beside`: another revision may lack them.
    from hf_cudagraph_asr.captured import _Slot
    from hf_cudagraph_asr.dispatch import Dispatch, Programs, decide
    from hf_cudagraph_asr.host import HostModel
    from hf_cudagraph_asr.observe import Tally
    from hf_cudagraph_asr.pool import output_of

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

    def copy_out(item: tuple[torch.Tensor, Any]) -> None:
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


def whole_calls(model: Any, plan: BucketPlan, queries: Queries, rounds: int) -> dict[str, float]:
    """Calls of an enabled model, and of its pool."""
    masks = [torch.ones(1, query.shape[1], dtype=torch.int32) for query in queries]
    with torch.inference_mode(), enable_cuda_graphs(model, plan, backend=Instant()) as pool:
        taken = {
            "a call": per_query(lambda query: model(query), queries, rounds),
            "a call with a mask": per_query(
                lambda both: model(both[0], attention_mask=both[1]),
                list(zip(queries, masks, strict=True)),
                rounds,
            ),
        }
        taken["pool.call"] = per_query(pool.call, queries, rounds)
        assert not pool.stats().misses
    return taken


def beside(other: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Ratios of whole calls of this revision to another one's, a pair of processes each."""
    import hf_cudagraph_asr

    this = Path(hf_cudagraph_asr.__file__).parents[1]

    def measured(source: Path, file: Path) -> dict[str, float]:
        sizes = ("--queries", str(arguments.queries), "--rounds", str(arguments.rounds))
        subprocess.run(
            (sys.executable, __file__, "--whole", *sizes, "--json", file),
            env={**os.environ, "PYTHONPATH": str(source)},
            check=True,
        )
        result: dict[str, float] = json.loads(file.read_text())
        return result

    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.pairs):
            theirs, ours = (measured(at, Path(folder) / "dispatch.json") for at in (other, this))
            for name, taken in ours.items():
                ratios.setdefault(name, []).append(taken / theirs[name])
    return ratios


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
    gc.disable()  # of the parts, collections hit one at random
    result: dict[str, Any] = dict(whole_calls(model, plan, queries, arguments.rounds))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    if arguments.whole:
        arguments.json.write_text(json.dumps(result))
        return
    table = Table(
        "step", "µs a query", "",
        title=f"Dispatch of {arguments.queries:,} queries, {len(plan.buckets)} buckets",
    )  # fmt: skip
    ratios = beside(arguments.beside, arguments) if arguments.beside else {}
    for name, taken in result.items():
        pairs = ratios.get(name, [])
        note = f"{median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})" if pairs else ""
        table.add_row(name, f"{taken:.1f}", f"{note} of the other revision's" if note else "")
    table.add_section()
    steps = parts(plan, queries, model, arguments.rounds)
    for name, taken in steps.items():
        table.add_row(name, f"{taken:.1f}")
    named = list(steps)[:4]
    dispatch = sum(steps[name] for name in named)
    verdict = "met" if dispatch <= BOUND else "MISSED"
    table.add_section()
    table.add_row(", ".join(named), f"{dispatch:.1f}", f"≤ {BOUND:g}: {verdict}")
    Console(width=120).print(table)
    result |= {"steps": steps, "dispatch": dispatch, "bound": BOUND, "beside": ratios}
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--beside", type=Path, metavar="SRC", help="of another revision")
    parser.add_argument("--pairs", type=int, default=5, help="of processes, with --beside")
    parser.add_argument("--whole", action="store_true", help="whole calls alone")
    parser.add_argument("--json", type=Path, default=Path("out/bench/dispatch.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
