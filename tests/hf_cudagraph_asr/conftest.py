"""Lets the tests of this folder import the modules they share, whichever of them is run."""

import sys
from pathlib import Path

import pytest

# Here and not only in the root's `pythonpath`: the package's tests also run on their own.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of "cpu" or "gpu", in the exact forward; both run here."""
    if request.param == "gpu":
        monkeypatch.setattr("hf_cudagraph_asr.exact.FUSED_ON", ("cpu",))
        monkeypatch.setattr("hf_cudagraph_asr.exact.WINDOWS_ON", ())
    return str(request.param)
