"""Files that are there in whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORMATS = {".safetensors", ".npz", ".html"}  # the package's own


def check_target(path: str | os.PathLike[str], own: str | None = None) -> Path:
    """The path of a file that may be written, or of the file that a symlink there leads to.

    Args:
        path: where to write.
        own: which of `FORMATS` is written; a suffix of another of them is refused, any other, or
            none, may be written.

    Raises:
        ValueError: the file would be taken for something else.
        FileNotFoundError: the folder does not exist, and is not created; or it is a file.
        IsADirectoryError: `path` is a folder.
        OSError: `path` is a device, a pipe, a socket or a symlink to itself.
    """
    target = path = Path(path)
    if own and target.suffix.lower() in FORMATS - {own}:
        raise ValueError(f"the file to write is {own}, got {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    if path.is_symlink():
        target = Path(os.path.realpath(path))
    # A new file takes the name, and so the place of whatever has it.
    if (path.exists() or target.is_symlink()) and not path.is_file():
        raise OSError(f"{path} is no regular file: give the path of another")
    if not target.parent.is_dir():
        file = file_above(target)
        why = "create it first" if file is None else f"{file} is a file"
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} in: {why}")
    return target


def file_above(path: Path) -> Path | None:
    """What stands where a path needs a folder."""
    return next((x for x in path.parents if x.exists() and not x.is_dir()), None)


@contextmanager
def written_beside(path: str | os.PathLike[str], own: str | None = None) -> Iterator[Path]:
    """A path in the same folder to write to; it takes the name `path` once all went well.

    Where `path` is a symlink, the file that it leads to is written so. It has the suffix of
    `path`, and the mode that the process's umask gives to new files, whatever wrote it. See
    `check_target` for the arguments and errors.
    """
    target = check_target(path, own)
    beside = target.with_name(f".{secrets.token_hex(4)}.{Path(path).name}")
    try:
        beside.touch()
        mode = stat.S_IMODE(beside.stat().st_mode)
        yield beside
        if stat.S_IMODE(beside.stat().st_mode) != mode:
            beside.chmod(mode)  # safetensors, like tempfile, writes what its owner alone can read
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> None:
    """Write rows of a table as CSV if the file is named so, or else what holds them as JSON."""
    with written_beside(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".csv":
            table = csv.DictWriter(file, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        else:
            file.write(json.dumps(whole, indent=1) + "\n")
