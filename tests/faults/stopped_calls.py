"""Stop hf_cudagraph_asr at every place while it captures, replays and changes; then ask again.

    python tests/faults/stopped_calls.py              # some calls at each place
    python tests/faults/stopped_calls.py --every      # hours
    python tests/faults/stopped_calls.py --calls 5    # some, at random

A tiny model runs on backends that are as strict as CUDA graphs and need no GPU; one of them keeps
other calls away while it captures, and is disturbed at the places that the other has not. As a
function of the package is called, or torch by it, the call raises: out of memory, an error of its
own, KeyboardInterrupt; or the weights of the head are exchanged. Either the caller gets just that
error, or a right answer; afterwards the model must answer right, alone and in a batch, within 20
seconds, be rebuilt, and be left as it was.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import record
import torch
from padded_rows import agree, alone, audio, queries
from pooled import ROWS, Exclusive, Static, serves, tiny, unchanged
from tiny_models import BLANK, plan_for
from tqdm import tqdm
from turn import Turn, parser

import hf_cudagraph_asr
from hf_cudagraph_asr import GraphPool, disable_cuda_graphs, enable_cuda_graphs, pool
from hf_cudagraph_asr.backends import Program
from hf_cudagraph_asr.dispatch import Reason

SECONDS = 20
# What a call raises; without one the weights are exchanged.
KINDS = (torch.OutOfMemoryError, KeyError, KeyboardInterrupt, None)


class Frozen(Static):
    """Programs that go on with the head's weights that they were captured with, as graphs do."""

    def capture(self, exact: Any, input_values: Any, lengths: Any) -> Program:
        program, head = super().capture(exact, input_values, lengths), exact.head
        held = head.weight

        def frozen(values: torch.Tensor, own: torch.Tensor) -> Any:
            present, head.weight = head.weight, held
            try:
                return program(values, own)
            finally:
                if head.weight is held:  # not exchanged within
                    head.weight = present

        return frozen


class FrozenExclusive(Frozen, Exclusive):
    """Keeps calls away while it captures."""


# Rows of a batch, or one alone without a mask, that are asked while they are disturbed.
CALLS = {
    "a call": ROWS[:1],
    "a batch that is split": [*ROWS, *ROWS],
    "a call of too long an input": [audio(1200, 3)],
}
# The other stages, of a model that is enabled; enabling itself is one more.
CHANGES: dict[str, Callable[[Any, GraphPool], object]] = {
    "swap": lambda model, own: own.swap(plan_for(model, (650, 950), (2,))),
    "rebuild": lambda _, own: own.rebuild(),
    "calibrate": lambda _, own: own.calibrate(repeats=1),
}
STAGES = ("enable", *CALLS, *CHANGES)


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


def ask(model: Any, rows: list[torch.Tensor]) -> torch.Tensor:
    """(B, T, V): logits of one call."""
    output = model(rows[0][None]) if len(rows) == 1 else model(**queries(rows))
    logits: torch.Tensor = output.logits
    return logits


def right(logits: torch.Tensor, *alone: list[torch.Tensor]) -> None:
    """Each row is as it is alone, with old or with new weights: a split batch may have both."""
    for row, *ways in zip(logits, *alone, strict=True):
        assert any(is_answer(row, own) for own in ways), "it answers wrong"


def is_answer(row: torch.Tensor, own: torch.Tensor) -> bool:
    """A row of a batch is what it is alone, and blank after it."""
    try:
        agree(row[: len(own)], own)
    except AssertionError:
        return False
    return bool((row[len(own) :].softmax(-1)[:, BLANK] == 1).all())


def stopped(name: str, backend: type[Static], turn: Turn, *, exchange: bool = False) -> list[str]:
    """What is wrong after one disturbance in a stage of a pool of its own.

    Args:
        name: of the stage.
        backend: of the pool.
        turn: when to raise what.
        exchange: give the head other weights in this turn.
    """
    model, wrong = tiny(), []
    weight = model.lm_head.weight
    if exchange:
        other = torch.nn.Parameter(weight.detach().flip(0))
        turn.act = lambda: setattr(model.lm_head, "weight", other)
    with torch.no_grad(), unchanged(model):
        rows = CALLS.get(name, [])
        expected = [alone(model, row) for row in rows]
        plan = plan_for(model, batch_sizes=(2,))
        own: GraphPool | None = None
        try:
            if name == "enable":
                with turn:
                    own = enable_cuda_graphs(model, plan, backend=backend())
            else:
                own = enable_cuda_graphs(model, plan, backend=backend())
                with turn:
                    logits = ask(model, rows) if rows else CHANGES[name](model, own)
            if isinstance(turn.error, KeyboardInterrupt) and not turn.dropped:
                wrong.append("the interrupt is swallowed")
            if rows:
                right(logits, expected, [alone(model, row) for row in rows])
        except BaseException as error:  # noqa: BLE001 - the fault itself
            chain, one = [], error
            while one is not None and one not in chain:
                chain.append(one)
                one = one.__cause__ or one.__context__
            # To swap and to calibrate nothing is refused once the weights are others.
            refused = exchange and Reason.CHANGED.value in str(error)
            if turn.error not in chain and not refused:
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
        model.lm_head.weight = weight
    return wrong


def stop_everywhere(
    name: str, backend: type[Static], choose: Callable[[Turn], Sequence[tuple[int, Any]]]
) -> tuple[int, int, list[str]]:
    """Disturb a stage again and again, each time at another call.

    Args:
        name: of the stage.
        backend: of the pool.
        choose: numbers of calls and kinds of faults, from the turn that counted the calls.

    Returns:
        How many calls the stage makes, how many were disturbed, and what was wrong.
    """
    counter, wrong = Turn(hf_cudagraph_asr), []
    assert not stopped(name, backend, counter)
    faults = choose(counter)
    for number, kind in tqdm(faults, f"{name}, {backend.__name__}"):
        turn = Turn(hf_cudagraph_asr, number, kind and kind("in its turn"))
        try:
            found = stopped(name, backend, turn, exchange=kind is None)
        except AssertionError as error:
            found = [f"the model is not as it was: {error}"[:200]]
        what = "other weights" if kind is None else kind.__name__
        for text in found:
            wrong.append(f"{name}, {backend.__name__}, {what} in {turn.at} (call {number}): {text}")
            tqdm.write(wrong[-1])
    return counter.calls, len(faults), wrong


def main() -> None:
    args = parser(__doc__).parse_args()
    began, rng = time.perf_counter(), random.Random(args.seed)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    pool.PATIENCE = 0.1  # of a capture with a call that an interrupt kept inside
    figures: dict[str, int] = {}
    wrong: list[str] = []
    for name in STAGES:
        seen: set[object] = set()
        faults = 0
        for backend in (Frozen, FrozenExclusive):
            calls, some, found = stop_everywhere(
                name, backend, lambda turn, seen=seen: turn.faults(args, rng, KINDS, seen)
            )
            faults += some
            wrong += found
        figures |= {f"{name}: calls": calls, f"{name}: places": len(seen)}
        figures[f"{name}: disturbed"] = faults
        last = "wrong answers, calls that do not end, models not restored"
        figures.pop(last, None)
        figures[last] = len(wrong)
        if not args.no_record:
            record.save(
                "hf_cudagraph_asr", figures, began=began, seed=args.seed,
                packages=("hf_cudagraph_asr", "torch", "transformers"),
            )  # fmt: skip
    print(json.dumps(figures, indent=1))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
