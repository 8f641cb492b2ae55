"""Stop hf_cudagraph_asr at every function while it captures, replays and changes; then ask again.

    python tests/faults/stopped_calls.py                # some minutes
    python tests/faults/stopped_calls.py --calls 5

A tiny model runs on a backend that is as strict as CUDA graphs and needs no GPU. Every function of
the package that is entered raises in its turn: out of memory, an error of its own, and
KeyboardInterrupt. Either the caller gets just that, or a right answer; afterwards the model must
answer right, alone and in a batch, within 20 seconds, be rebuilt, and be left as it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import record
import torch
from padded_rows import queries
from pooled import ROWS, Exclusive, Static, serves, tiny, unchanged
from tiny_models import plan_for
from turn import Turn

import hf_cudagraph_asr
from hf_cudagraph_asr import GraphPool, disable_cuda_graphs, enable_cuda_graphs, pool

SECONDS = 20
ERRORS = (torch.OutOfMemoryError, KeyError, KeyboardInterrupt)


Stage = Callable[[Any, GraphPool], object]

# What is stopped, once the model is enabled; enabling itself is a stage of its own.
STAGES: dict[str, Stage] = {
    "a call": lambda model, _: model(ROWS[0][None]),
    "a batch that is split": lambda model, _: model(**queries([*ROWS, *ROWS])),
    "a call of too long an input": lambda model, _: model(torch.randn(1, 1200)),
    "swap": lambda model, own: own.swap(plan_for(model, (650, 950), (1, 2))),
    "rebuild": lambda _, own: own.rebuild(),
    "calibrate": lambda _, own: own.calibrate(repeats=1),
}


def within(seconds: float, work: Callable[[], object]) -> str:
    """What is wrong with work in another thread: an error, or that it does not end."""
    found: list[str] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - an assertion of the test as well
            found.append(f"{type(error).__name__}: {error}"[:200])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return "it does not end" if thread.is_alive() else "".join(found)


def is_stock(model: Any) -> None:
    """A model that was not enabled answers by its own forward."""
    batch = queries(ROWS)
    with torch.no_grad():
        own = type(model).forward(model, **batch).logits
        assert torch.equal(model(**batch).logits, own)


def stopped(name: str, backend: type[Static], turn: Turn) -> list[str]:
    """What is wrong after one fault in a stage of a pool of its own.

    Args:
        name: of the stage, or "enable".
        backend: of the pool.
        turn: when to raise what.
    """
    model, wrong = tiny(), []
    with torch.no_grad(), unchanged(model):
        plan = plan_for(model, batch_sizes=(1, 2))
        own: GraphPool | None = None
        try:
            if name == "enable":
                with turn:
                    own = enable_cuda_graphs(model, plan, backend=backend())
            else:
                own = enable_cuda_graphs(model, plan, backend=backend())
                with turn:
                    STAGES[name](model, own)
        except BaseException as error:  # noqa: BLE001 - the fault itself
            chain, one = [], error
            while one is not None and one not in chain:
                chain.append(one)
                one = one.__cause__ or one.__context__
            if turn.error not in chain:
                wrong.append(f"another error is raised: {type(error).__name__}: {error}"[:200])
            if isinstance(turn.error, KeyboardInterrupt) and error is not turn.error:
                wrong.append("the interrupt is swallowed")
        if said := within(SECONDS, lambda: is_stock(model) if own is None else serves(model)):
            wrong.append(f"the next answers: {said}")
        if own is not None:
            if said := within(SECONDS, own.rebuild):
                wrong.append(f"rebuild: {said}")
            if said := within(SECONDS, lambda: serves(model)):
                wrong.append(f"answers after rebuild: {said}")
            if own.explain(600).route != "bucket":
                wrong.append(f"after rebuild nothing is replayed: {own.explain(600)}")
        disable_cuda_graphs(model)
    return wrong


def stop_everywhere(
    name: str, backend: type[Static], calls: int | None, rng: random.Random
) -> tuple[int, int, list[str]]:
    """Faults of one stage.

    Args:
        name: of the stage, or "enable".
        backend: of the pool.
        calls: how many of the calls to stop at; None for every one.
        rng: chooses them.

    Returns:
        How many calls the stage makes, how many faults there were, and what was wrong.
    """
    counter, faults, wrong = Turn(hf_cudagraph_asr), 0, []
    assert not stopped(name, backend, counter)
    numbers: Sequence[int] = range(1, counter.calls + 1)
    if calls is not None:
        numbers = sorted(rng.sample(numbers, min(calls, len(numbers))))
    for number in numbers:
        for kind in ERRORS:
            faults += 1
            turn = Turn(hf_cudagraph_asr, number, kind("in its turn"))
            try:
                found = stopped(name, backend, turn)
            except AssertionError as error:
                found = [f"the model is not as it was: {error}"[:200]]
            where = f"{name}, {backend.__name__}, {kind.__name__} in {turn.at} (call {number})"
            wrong += [f"{where}: {text}" for text in found]
    return counter.calls, faults, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, help="calls to stop at; default: every one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability alone")
    args = parser.parse_args()
    began, rng = time.perf_counter(), random.Random(args.seed)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    pool.PATIENCE = 0.1  # of a capture with a call that an interrupt kept inside
    figures: Counter[str] = Counter()
    wrong: list[str] = []
    for name in ("enable", *STAGES):
        for backend in (Static, Exclusive):
            calls, faults, found = stop_everywhere(name, backend, args.calls, rng)
            if backend is Static:
                figures[f"{name}: calls of the package's functions"] = calls
            figures[f"{name}: stopped"] += faults
            wrong += found
            print(name, backend.__name__, calls, faults, *found, sep="\n  ", flush=True)
    figures["wrong answers, calls that do not end, models not restored"] = len(wrong)
    print(json.dumps(figures, indent=1))
    if not args.no_record:
        record.save(
            "hf_cudagraph_asr", figures, began=began, seed=args.seed,
            packages=("hf_cudagraph_asr", "torch", "transformers"),
        )  # fmt: skip
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
