"""Files that are there in whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# How what the commands write begins: nothing yet, plans, texts, measurements, pictures.
OWN = rb'\Z|\{\s*"(kind": "hf_cudagraph|audio_filepath|model": .*\s*"dtype)|\x89PNG|<\?xml|%PDF'


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
    by whatever link, or in the folder `model`, and not written by a command.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    # A new file takes the name, and so the place of whatever has it.
    if (path.exists() or target.is_symlink()) and not path.is_file():
        raise OSError(f"{path} is no regular file: give the path of another")
    if not (folder := target.parent).is_dir():
        above = next((x for x in target.parents if x.exists() and not x.is_dir()), None)
        why = f"{above} is a file" if above else "create it first"
        raise FileNotFoundError(f"no folder {folder} to write {target.name} in: {why}")
    others = {Path(other): "is read" for other in read if other}
    if model and path.exists():
        with path.open("rb") as file:
            if not re.match(OWN, file.read(1024)):
                others |= dict.fromkeys(Path(model).glob("*"), "belongs to the model")
    for one, why in others.items():
        if one == path or (path.exists() and one.exists() and one.samefile(path)):
            raise ValueError(f"{path} {why}, and would be replaced: write to another file")
    return target
