"""Each listed model through the pool: a mixed batch against the stock model's single queries."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, answers, audio, queries
from tiny_models import CASES, both_backends, every_case, plan_for

from hf_cudagraph_asr.attach import enable_cuda_graphs
from hf_cudagraph_asr.geometry import Frames

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@both_backends
@every_case
def test_a_mixed_batch_is_answered_as_single_queries_are(name: str, backend: str) -> None:
    model = CASES[name].build()
    geometry = Frames(model.config)
    assert geometry.encoded(629) + 1 == geometry.encoded(630)
    # The fewest samples, two that differ by one at a frame's border, and a bucket's full length.
    rows = [audio(n, n) for n in (890, geometry.receptive_field, 629, 630)]
    expected = [alone(model, row) for row in rows]
    with enable_cuda_graphs(model, plan_for(model, (890,), (4,)), backend=backend) as pool:
        for enter in MODES.values():
            mode: AbstractContextManager[Any] = enter()
            with mode:
                answers(model(**queries(rows, fill=float("nan"))).logits, expected)
                # Another order: what was in a row before must not be heard in it now.
                answers(model(**queries(rows[::-1])).logits, expected[::-1])
                agree(model(rows[2][None]).logits[0], expected[2])
        assert pool.stats().hits == pool.stats().calls == 6


@both_backends
def test_outputs_of_inference_mode_are_used_like_the_hosts(backend: str) -> None:
    model = CASES["wav2vec2-group"].build()
    row = audio(600, 0)
    with enable_cuda_graphs(model, plan_for(model, (600,), (1,)), backend=backend):
        with torch.inference_mode():
            inferred = model(row[None]).logits
        with torch.no_grad():
            plain = model(row[None]).logits
            in_place = model(row[None]).logits.softmax(-1).mul_(2)
        assert inferred.is_inference()
        assert not plain.is_inference()
        assert not plain.requires_grad
        assert torch.equal(plain, inferred)
        assert float(in_place.detach().sum(-1).max()) == pytest.approx(2, abs=1e-5)


@both_backends
def test_positions_that_the_host_extends_meanwhile(
    backend: str,
) -> None:
    model = CASES["conformer-relative"].build(max_source_positions=20)
    row, long = audio(300, 0), audio(1000, 1)
    with enable_cuda_graphs(model, plan_for(model, (400,), (1,)), backend=backend) as pool:
        with torch.no_grad():
            agree(model(row[None]).logits[0], alone(model, row))
            # More frames than it has positions: the host makes room, and forgets the old table.
            agree(model(long[None]).logits[0], alone(model, long))
            agree(model(row[None]).logits[0], alone(model, row))
            agree(model(long[None]).logits[0], alone(model, long))
        assert pool.stats().hits >= 2
