"""Lets the tests of this folder import the modules they share, whichever of them is run."""

import sys
from pathlib import Path

# Here and not only in the root's `pythonpath`: the package's tests also run on their own.
sys.path.insert(0, str(Path(__file__).parent))
