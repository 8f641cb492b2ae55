"""Outputs that are there in whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: str | os.PathLike[str], *, folder: bool = False) -> Iterator[Path]:
    """A path in the same folder to write to; it takes the name `path` once all went well.

    Args:
        path: what the finished output is called.
        folder: make a folder to write files in, instead of leaving a file to be written. Neither
            a file nor a folder that is not empty is replaced by it.

    Raises:
        FileNotFoundError: the parent folder does not exist; it is not created.
        IsADirectoryError: a file is wanted and `path` is a folder.
        FileExistsError: a folder is wanted and `path` is a file or a folder with something in it.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"no folder {target.parent} to write {target.name} in: create it first"
        )
    if folder and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists already: give another name, or remove it first")
    if target.is_dir() and not folder:
        raise IsADirectoryError(f"{target} is a folder: give the path of a file")
    # Not tempfile: what it makes is readable by its owner alone, and the rename would keep that.
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if folder:
            beside.mkdir()
        yield beside
        if folder and target.is_dir():
            target.rmdir()
        beside.replace(target)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)
