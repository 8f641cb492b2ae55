"""Hypothesis profiles, and the marker `gpu`."""

import os

import pytest
from hypothesis import settings

# Deadlines fail on a busy machine and say nothing about the code.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
# For tests that have run already, and run again to see that they run somewhere else as well.
settings.register_profile("few", deadline=None, max_examples=5)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("REQUIRE_ALL") == "1" else "dev")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let `few` hold for tests too that say how many examples they draw."""
    few = settings.get_profile("few").max_examples
    if settings.default.max_examples != few:
        return
    for item in items:
        test = getattr(item, "obj", None)
        if own := getattr(test, "_hypothesis_internal_use_settings", None):
            test._hypothesis_internal_use_settings = settings(own, max_examples=few)


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        import torch

        request.getfixturevalue("require")(torch.cuda.is_available(), "no CUDA device")
