"""One run of weaklabel's command line in a process of its own, with a fault at one change.

`multiprocessing`'s fork server has imported this, so that runs start within milliseconds and
moments of a kill fall into their work.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module, util
from pathlib import Path
from typing import Any

from weaklabel.cli import main

for module in (
    *(f"weaklabel.{name}" for name in ("cli.votes", "cli.models", "cli.transcripts", "runs")),
    *(f"weaklabel.{name}" for name in ("labels", "queries", "export", "plugins")),
    *(name for name in ("duckdb", "pyarrow.parquet") if util.find_spec(name.split(".")[0])),
):
    import_module(module)

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def run(folder: str, words: Sequence[str], said: str, number: int, fault: str) -> None:
    """Run the command in a folder; the process ends with its exit code.

    Args:
        folder: to run in.
        words: the command's arguments.
        said: the file that standard error goes to; at its end, how many changes there were.
        number: which change to the folder, from 1, counted from the first one on, is disturbed.
        fault: "kill" ends the process before the change; "full" refuses the change as a full disk
            does; anything else does nothing.
    """
    os.setsid()  # so that Spark's JVM can be killed with it
    os.chdir(folder)
    errors = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    changes = 0

    def changing(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event not in CHANGES or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        # Paths within an open folder are relative to it, and belong to the changes as well.
        if not changes and Path(folder) not in Path(arguments[0]).absolute().parents:
            return
        changes += 1
        if changes == number and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if changes == number and fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(changing)
    code = main(words)
    os.write(2, f"\n{changes}".encode())
    sys.exit(code)
