"""Fixtures over tiny_pipelines, which is imported when a test asks for one.

Importing torch and diffusers takes seconds, and the tests of words and of the report need neither.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Here and not only in the root's `pythonpath`: the package's tests also run on their own.
sys.path.insert(0, str(Path(__file__).parent))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Call a test that takes `variant` once for each pipeline and each kind of processor."""
    if "variant" in metafunc.fixturenames:
        from tiny_pipelines import VARIANTS

        metafunc.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))


@pytest.fixture
def sd() -> Any:
    """A Stable Diffusion pipeline of two levels, 2 pixels a latent cell."""
    from tiny_pipelines import stable_diffusion

    return stable_diffusion()


@pytest.fixture(scope="session")
def build() -> dict[str, Callable[..., Any]]:
    """Builders, for tests that need something out of the ordinary."""
    from tiny_pipelines import (
        VARIANTS,
        add_ip_adapter,
        clip_tokenizer,
        sdxl,
        stable_diffusion,
        vae,
    )

    return {
        "sd": stable_diffusion,
        "sdxl": sdxl,
        "vae": vae,
        "variant": VARIANTS.__getitem__,
        "tokenizer": clip_tokenizer,
        "add_ip_adapter": add_ip_adapter,
    }
