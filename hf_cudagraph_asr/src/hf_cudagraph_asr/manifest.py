"""What is to be transcribed: files, folders of audio, and manifests as NeMo writes them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ENDINGS", "LINES", "Query", "audio_in", "json_lines", "queries_in", "read_manifest"]

ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64")
"""Of files that are taken for audio when a folder is searched."""

LINES = (".json", ".jsonl", ".ndjson")
"""Of files that hold a JSON object a line."""


@dataclass(frozen=True)
class Query:
    """One recording, or a part of one.

    Attributes:
        audio_filepath: as it was given, which the transcript repeats.
        path: where it lies.
        offset: seconds to leave out at its beginning; None for all of it from the start.
        duration: seconds of the part, or None: to the end.
        reference: what is said in it, where that is known.
    """

    audio_filepath: str
    path: Path
    offset: float | None = None
    duration: float | None = None
    reference: str | None = None


def queries_in(sources: Iterable[str | os.PathLike[str]]) -> list[Query]:
    """All queries of files, folders and manifests, in the order given.

    Args:
        sources: files of audio; folders, searched with all below them, by ascending path; and
            manifests, told by their ending (`LINES`).

    Raises:
        FileNotFoundError: one of them does not exist.
        ValueError: a folder without audio, or a manifest that is none.
    """
    found: list[Query] = []
    for source in sources:
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}: correct the path")
        if path.is_dir():
            found += [Query(str(file), file) for file in audio_in(path)]
        elif path.suffix.lower() in LINES:
            found += read_manifest(path)
        else:
            found.append(Query(str(path), path))
    return found


def audio_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of audio in a folder and all below it, by ascending path.

    Args:
        folder: the folder. Hidden files are left out, as are those without one of `ENDINGS`.

    Raises:
        ValueError: there are none.
    """
    found = sorted(
        path
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise ValueError(
            f"no audio in {folder} or below it: looked for files that end in {', '.join(ENDINGS)}"
        )
    return found


def read_manifest(path: str | os.PathLike[str]) -> list[Query]:
    """The queries of a manifest: a JSON object a line, with `audio_filepath`.

    `duration`, `offset` and `text` are read where they are. A duration without an offset says how
    long the file is, and nothing is cut. Paths are relative to the manifest's folder, or where
    there is no such file, to the current one.

    Args:
        path: the manifest.

    Raises:
        OSError: there is no such file.
        ValueError: it is no manifest; the message names the line.
    """
    folder = Path(path).parent
    found = [_query(folder, line, f"{path}, line {number}") for number, line in json_lines(path)]
    if not found:
        raise ValueError(f"{path} has no lines: there is nothing to transcribe")
    return found


def json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with one a line, with their line numbers from 1; empty lines are not.

    Raises:
        OSError: there is no such file.
        ValueError: a line is no JSON object, or the file is not UTF-8.
    """
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number} is no JSON ({error}): expected an object a line"
                ) from error
            if not isinstance(value, dict):
                raise ValueError(f"{path}, line {number} is {value!r:.60}: expected an object")
            yield number, value


def _query(folder: Path, line: dict[str, Any], where: str) -> Query:
    audio = line.get("audio_filepath")
    if not isinstance(audio, str) or not audio:
        raise ValueError(
            f"{where} has {', '.join(line) or 'nothing'}: expected audio_filepath, the path of a "
            f"recording"
        )
    beside = folder / audio  # an absolute path stays what it is
    path = beside if beside.exists() or not Path(audio).exists() else Path(audio)
    reference = line.get("text")
    if reference is not None and not isinstance(reference, str):
        raise ValueError(f"{where} has the text {reference!r:.60}: expected a string")
    offset, duration = (_seconds(line, name, where) for name in ("offset", "duration"))
    if offset is None:
        return Query(audio, path, reference=reference)
    return Query(audio, path, offset, duration, reference)


def _seconds(line: dict[str, Any], name: str, where: str) -> float | None:
    value = line.get(name)
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} has the {name} {value!r:.60}: expected seconds from 0 up")
    return float(value)
