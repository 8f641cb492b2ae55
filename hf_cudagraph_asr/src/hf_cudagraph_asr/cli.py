"""The entry point `hf-cudagraph-asr`: every error a user can cause is a message and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    try:
        from hf_cudagraph_asr.commands import run

        return run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # as a shell tells it
        return 130


def script() -> None:
    """What the installed script calls."""
    sys.exit(main())
