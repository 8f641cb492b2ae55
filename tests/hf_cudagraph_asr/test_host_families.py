"""Each listed model through the pool: a mixed batch against the stock model's single queries."""

from __future__ import annotations

from typing import Any

import torch
from padded_rows import agree, alone, answers, as_input, audio, cut, queries
from pooled import Static, unchanged
from tiny_models import CASES, KINDS, each, every_case, plan_for

from hf_cudagraph_asr import ExactForward, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Reason

NOTHING = torch.empty(0, 12)


def mixed(model: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Rows and their logits: a full bucket, the fewest samples, a frame's border, no frame."""
    shortest = ExactForward(model).receptive_field
    full, before, border = (cut(model, length) for length in (890, 629, 630))
    rows = [audio(n, n) for n in (full, shortest, before, border, shortest - 1)]
    return rows, [*(alone(model, row) for row in rows[:-1]), NOTHING]


def check(model: Any, backend: Any, rows: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    with enable_cuda_graphs(
        model, plan_for(model, (cut(model, 890),), (5,)), backend=backend
    ) as pool:
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                padded = queries(rows, fill=float("nan"), model=model)
                answers(model(**padded).logits, expected)
                # Another order: what was in a row before leaves no trace in it.
                answers(model(**queries(rows[::-1], model=model)).logits, expected[::-1])
                agree(model(as_input(model, rows[2][None])).logits[0], expected[2])
        assert pool.stats().hits == pool.stats().calls == 6


@every_case
def test_a_mixed_batch_is_answered_as_single_queries_are(name: str) -> None:
    model = CASES[name].build()
    check(model, Static(), *mixed(model))


@each(name for name in KINDS if "unispeech" not in name)  # to trace, they are Wav2Vec2
def test_exported_programs_answer_so_and_leave_the_model_as_it_was(name: str) -> None:
    # WavLM's second layer is handed what its first one makes; others do the same in each.
    model = CASES[name].build(num_hidden_layers=2 if "wavlm" in name else 1)
    rows, expected = mixed(model)  # before: the host has caches of its own
    with unchanged(model):
        check(model, "export", rows, expected)


def test_positions_that_the_host_extends_meanwhile() -> None:
    model = CASES["conformer-relative"].build(max_source_positions=20)
    row, long = audio(300, 0), audio(1000, 1)
    with enable_cuda_graphs(model, plan_for(model, (400,), (1,)), backend="export") as pool:
        with torch.no_grad():
            agree(model(row[None]).logits[0], alone(model, row))
            # More frames than it has positions: the host makes room, and forgets the old table.
            agree(model(long[None]).logits[0], alone(model, long))
            agree(model(row[None]).logits[0], alone(model, row))
            agree(model(long[None]).logits[0], alone(model, long))
        assert pool.stats().hits >= 2
        assert dict(pool.stats().misses) in (
            {Reason.REFUSED: 1, Reason.LONG: 1},
            {Reason.REFUSED: 2},
        )


def test_a_batch_that_the_exact_forward_refuses_is_the_hosts_row_by_row() -> None:
    model = CASES["conformer-relative"].build(max_source_positions=20)
    rows = [audio(1000, 1), audio(700, 2)]
    expected = [alone(CASES["conformer-relative"].build(), row) for row in rows]
    with torch.no_grad(), enable_cuda_graphs(model) as pool:
        answers(model(**queries(rows)).logits, expected)  # the first call, before there is room
        assert dict(pool.stats().misses) == {Reason.REFUSED: 1}
