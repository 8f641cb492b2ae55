"""Files that are there in whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path in the same folder to write to, which takes the name `path` if all goes well.

    A file that is there already is replaced. The ending is that of `path`, for writers that choose
    a format by it.
    """
    target = checked(path)
    # Not tempfile: what it makes is readable by its owner alone, and the rename would keep that.
    beside = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def checked(path: str | os.PathLike[str]) -> Path:
    """Give the path; an OSError says why no file can be written there, as far as can be told."""
    target = Path(path)
    if not (folder := target.parent).is_dir():
        raise FileNotFoundError(f"no folder {folder} to write {target.name} in: create it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the path of a file")
    return target
