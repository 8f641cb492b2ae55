"""pytest's part of run.sh, for a machine with pytest alone: no conftest, nothing of others.

`--shard 2/6` runs every sixth test, from the second on, so that six processes share them.
GPU_TOLERANCE is the share of the largest logit that float32 may differ by (default 1e-5). Every
difference that a test compares is written to $OUT/differences.jsonl, so that a bound that fails is
a measurement all the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

_SEEN: dict[str, list[float]] = {}


def pytest_configure() -> None:
    torch.set_num_threads(1)  # tiny tensors: a second thread only waits for the first


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="1/1", help="the part of the tests to run, such as 2/6")


@pytest.fixture(scope="session")
def require() -> Callable[[object, str], None]:
    """`require(condition, reason)` skips a test."""

    def check(condition: object, reason: str) -> None:
        if not condition:
            pytest.skip(reason)

    return check


@pytest.fixture(autouse=True)
def _no_guard_left_on() -> Iterator[None]:
    """What one test leaves on is not to fail all others."""
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode(0)


@pytest.hookimpl(trylast=True)  # of what -k leaves
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, parts = map(int, config.getoption("--shard").split("/"))
    dropped = [item for at, item in enumerate(items) if at % parts != part - 1]
    items[:] = [item for at, item in enumerate(items) if at % parts == part - 1]
    config.hook.pytest_deselected(items=dropped)
    modules: set[Any] = {item.module for item in items if isinstance(item, pytest.Function)}
    for module in modules:
        if hasattr(module, "TOLERANCE"):
            module.TOLERANCE = float(os.environ.get("GPU_TOLERANCE", "1e-5"))
        if hasattr(module, "difference"):
            module.difference = _noted(module.difference)


def _noted(difference: Callable[..., float]) -> Callable[..., float]:
    def noted(*args: Any) -> float:
        found = difference(*args)
        test = os.environ.get("PYTEST_CURRENT_TEST", "?").partition(" ")[0].partition("::")[2]
        _SEEN.setdefault(test, []).append(found)
        return found

    return noted


def pytest_sessionfinish() -> None:
    folder = os.environ.get("OUT")
    if folder and _SEEN:
        # Added to the end: each process has tests of its own.
        with (Path(folder) / "differences.jsonl").open("a", encoding="utf-8") as file:
            for test, values in _SEEN.items():
                file.write(json.dumps([test, max(values), len(values)]) + "\n")
