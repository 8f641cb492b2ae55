"""A tiny model in a pool, a backend as strict as CUDA graphs, and what is asked of both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from padded_rows import agree, alone, answers, audio, queries
from tiny_models import CASES

from hf_cudagraph_asr import ExactForward, GraphPool
from hf_cudagraph_asr.backends import EagerBackend, Program
from hf_cudagraph_asr.dispatch import Reason

ROWS = [audio(600, 0), audio(431, 1), audio(211, 2)]


def tiny(seed: int = 0, case: str = "wav2vec2-group") -> Any:
    """A model whose receptive field is 30 samples, and a frame every 20."""
    return CASES[case].build(seed, num_hidden_layers=1)


class Static(EagerBackend):
    """Programs that overwrite what they returned before, as replays of a CUDA graph do.

    They cost nothing to capture, and refuse other tensors than those they were captured with.

    Attributes:
        log: what was asked of it and its replicas, with rows and samples.
        hooks: called in each replay with the static input.
    """

    name = "static"
    captures = True

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []
        self.hooks: list[Callable[[torch.Tensor], object]] = []

    def warm(self, exact: ExactForward, input_values: Any, lengths: Any) -> None:
        self.log.append(("warm", *input_values.shape))
        assert int(lengths.min()) < input_values.shape[1]
        super().warm(exact, input_values, lengths)

    def capture(self, exact: ExactForward, input_values: Any, lengths: Any) -> Program:
        self.log.append(("capture", *input_values.shape))
        outputs = exact(input_values, lengths)

        def program(values: torch.Tensor, own: torch.Tensor) -> Any:
            assert values is input_values
            assert own is lengths
            self.log.append(("replay", *values.shape))
            for hook in self.hooks:
                hook(values)
            for held, new in zip(outputs, exact(values, own), strict=True):
                held.copy_(new)
            return outputs

        return program

    def close(self) -> None:
        self.log.append(("close", 0, 0))


class Exclusive(Static):
    """Keeps calls away while it captures."""

    exclusive = True


def serves(model: Any, rows: Sequence[torch.Tensor] = ROWS, call: Any = None) -> None:
    """A batch and a single query are answered as the model answers each row alone."""
    call = call or model
    rows = [row.to(model.lm_head.weight.dtype) for row in rows]
    expected = [alone(model, row) for row in rows]
    with torch.no_grad():
        answers(call(**queries(rows)).logits, expected)
        agree(call(rows[-1][None]).logits[0], expected[-1])


def asked(model: Any, pool: GraphPool, *args: Any, **kwargs: Any) -> tuple[Any, list[Reason]]:
    """The answer to a call, and the reasons that it was counted by; none where it was a hit."""
    before = pool.stats().misses
    output = model(*args, **kwargs)
    after = pool.stats().misses
    return output, [reason for reason in after if after[reason] > before.get(reason, 0)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the package warned of."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("hf_cudagraph_asr") and record.levelno == logging.WARNING
    ]


def belongings(model: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every module's attributes, hooks and forward included, by identity."""
    found = []
    for name, module in model.named_modules():
        own: dict[str, Any] = {}
        for key, value in vars(module).items():
            if isinstance(value, dict):
                own[key] = {inner: id(held) for inner, held in value.items()}
            else:  # exporting any model replaces its tuples and lists by equal ones
                own[key] = tuple(value) if isinstance(value, (tuple, list)) else id(value)
        found.append((name, own))
    return found


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Check that a model's modules, tensors and values are afterwards what they were."""
    before = belongings(model)
    state = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    try:
        yield
    finally:
        assert belongings(model) == before
        assert model.state_dict().keys() == state.keys()
        for key, value in model.state_dict().items():
            assert value.data_ptr() == state[key][0]
            assert torch.equal(value, state[key][1])
