"""Files that are there in whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path in the same folder to write to; it takes the name `path` once all went well.

    The file gets the mode that the process's umask gives to new files, whatever wrote it.

    Raises:
        FileNotFoundError: the folder does not exist; it is not created.
        IsADirectoryError: `path` is a folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"no folder {target.parent} to write {target.name} in: create it first"
        )
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the path of a file")
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        beside.touch()
        mode = stat.S_IMODE(beside.stat().st_mode)
        yield beside
        if stat.S_IMODE(beside.stat().st_mode) != mode:
            beside.chmod(mode)  # safetensors, like tempfile, writes what its owner alone can read
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
