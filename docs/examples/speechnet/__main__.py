"""`python docs/examples/speechnet STEP --size smoke|cpu|full`."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
# Not this folder itself, which Python puts first: its train.py would hide tinyvoice's modules.
sys.path[0:1] = [str(EXAMPLES), str(EXAMPLES / "tinyvoice"), str(EXAMPLES / "households")]

from speechnet.cli import app  # noqa: E402

if __name__ == "__main__":
    app()
