"""Files that are there in whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL_FILES = re.compile(r".*(config|vocab|token.*|index)\.json|.*\.(safetensors|bin|pt)")


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path in the same folder to write to, which takes the name `path` if all goes well.

    A file that is there, or that a symlink there leads to, is replaced. The ending is that of
    `path`, for writers that choose a format by it.
    """
    target = checked(path)
    # Not tempfile: what it makes is readable by its owner alone, and the rename would keep that.
    beside = target.with_name(f".{secrets.token_hex(4)}.{Path(path).name}")
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def checked(
    path: str | os.PathLike[str], read: Iterable[str | Path | None] = (), model: str | None = None
) -> Path:
    """Give the path, or the one that a symlink there leads to, if a file can be written there.

    An OSError says why not, as far as can be told; a ValueError, that it is one of those in `read`,
    by whatever link, or of the model's in the folder `model`.
    """
    target = path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    if path.is_symlink():
        target = Path(os.path.realpath(path))
    # A new file takes the name, and so the place of whatever has it.
    if (path.exists() or target.is_symlink()) and not path.is_file():
        raise OSError(f"{path} is no regular file: give the path of another")
    if not (folder := target.parent).is_dir():
        file = next((x for x in target.parents if x.exists() and not x.is_dir()), None)
        why = f"{file} is a file" if file else "create it first"
        raise FileNotFoundError(f"no folder {folder} to write {target.name} in: {why}")
    others = [Path(other) for other in read if other]
    if model is not None:
        others += (file for file in Path(model).glob("*") if MODEL_FILES.fullmatch(file.name))
    there = path.exists()
    if path in others or any(there and one.exists() and one.samefile(path) for one in others):
        raise ValueError(f"{path} is read, and would be replaced: write to another file")
    return target
