"""The entry point `daam-diffusers`: every error a user can cause is one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    try:
        from daam_diffusers.commands import run
    except ImportError as error:
        print(
            f"daam-diffusers: error: the command line needs {error.name}: "
            'pip install "daam-diffusers[cli]"',
            file=sys.stderr,
        )
        return 2
    return run(sys.argv[1:] if arguments is None else list(arguments))


def script() -> None:
    """Entry point of the installed script."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # what they log while a pipeline is loaded
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    sys.exit(main())
