"""What users call changes on purpose only."""

import difflib
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def found(names, tmp_path_factory) -> Path:
    """The folder of what `make api` writes now."""
    out = tmp_path_factory.mktemp("api")
    # A process of its own: what the rest of the tests registered or patched plays no part.
    subprocess.run([sys.executable, FOLDER / "api.py", *names, "--out", out], check=True)
    return out


def test_the_public_api_is_the_written_one(package, found):
    written = (FOLDER / "api" / f"{package.name}.txt").read_text()
    now = (found / f"{package.name}.txt").read_text()
    changes = difflib.unified_diff(written.splitlines(), now.splitlines(), lineterm="", n=0)
    assert now == written, "\n".join(["meant? then `make api` writes it:", *changes])
