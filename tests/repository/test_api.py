"""What users call changes on purpose only."""

import difflib
import subprocess
import sys
from pathlib import Path


def test_the_public_api_is_the_written_one(package, tmp_path):
    folder = Path(__file__).parent
    # A process of its own: what the rest of the tests registered or patched plays no part.
    subprocess.run([sys.executable, folder / "api.py", package.name, "--out", tmp_path], check=True)
    written = (folder / "api" / f"{package.name}.txt").read_text()
    found = (tmp_path / f"{package.name}.txt").read_text()
    changes = difflib.unified_diff(written.splitlines(), found.splitlines(), lineterm="", n=0)
    assert found == written, "\n".join(["meant? then `make api` writes it:", *changes])
