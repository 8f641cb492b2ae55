"""A set of generated samples: a folder each, there in whole or not at all."""

from __future__ import annotations

import fnmatch
import json
import os
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from daam_diffusers.atomic import written_beside

MAPS = "heat_maps.safetensors"
IMAGE, VIDEO = "image.png", "video.webp"
MANIFEST = "generation.json"  # beside the samples: what they were made of


def find(folder: Path, pattern: str = MAPS) -> list[Path]:
    """The files of heat maps below a folder, or others; those of hidden folders do not count.

    Links to folders are followed, and a folder that is reached twice counts once.

    Raises:
        ValueError: no such folder, or none in it.
        OSError: a folder cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    files, unread = list[Path](), list[OSError]()
    waiting, seen = [folder], set[str]()
    for start in waiting:  # links come last, after the folder that they may lead to
        for here, inner, names in os.walk(start, onerror=unread.append):
            if (real := os.path.realpath(here)) in seen:
                inner.clear()
                continue
            seen.add(real)
            inner[:] = [name for name in inner if name[0] != "."]
            waiting += sorted(one for name in inner if (one := Path(here, name)).is_symlink())
            files += [Path(here, name) for name in fnmatch.filter([*inner, *names], pattern)]
    if unread:
        raise unread[0]
    if not files and pattern == MAPS:
        raise ValueError(f"no {MAPS} below {folder}")
    return sorted(files)


def read_picture(path: Path) -> Image.Image:
    """A picture, read to its end.

    Raises:
        ValueError: there is none, or not all of one; the message names the file.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture: {error}") from error


@dataclass(frozen=True)
class Row:
    """One sample to generate: its folder's name, the prompt, the seed of its noise."""

    id: str
    prompt: str
    seed: int


def read_rows(path: Path, seed: int = 0) -> list[Row]:
    """The rows of a file of JSON lines such as `{"prompt": "a dog", "id": "dog-1", "seed": 7}`.

    Only the prompt is required. Row i, from 0, has its number in six digits as its id and
    `seed` + i as its seed. Empty lines do not count.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no rows, or one that is no row; the message names file and line.
    """
    rows: dict[str, Row] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = _row(line, len(rows), seed)
            if row.id.casefold() in rows:  # some file systems do not tell letters' case
                raise ValueError(f"a row before it has the id {row.id!r}")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        rows[row.id.casefold()] = row
    if not rows:
        raise ValueError(f'{path} has no rows, such as {{"prompt": "a red car"}}')
    return list(rows.values())


def _row(line: bytes, number: int, seed: int) -> Row:
    try:
        read = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 is a ValueError
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(read, dict) or not read.keys() <= {"prompt", "id", "seed"}:
        raise ValueError(f"a row is an object of prompt, and id and seed if need be, got {read!r}")
    prompt, own = read.get("prompt"), read.get("seed", seed + number)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'"prompt" must be a text that is not empty, got {prompt!r:.60}')
    if any(unicodedata.category(letter) == "Cs" for letter in prompt):
        raise ValueError(f'"prompt" has half of a surrogate pair, which is no text: {prompt!r:.60}')
    given = f"{number:06d}" if read.get("id") is None else read["id"]
    if type(given) not in (str, int):
        raise ValueError(f'"id" must be a text or a whole number, got {given!r:.60}')
    name = unicodedata.normalize("NFC", str(given))  # file systems differ in how they write "é"
    if (
        not all(x in "_-." or unicodedata.category(x)[0] in "LMN" for x in name)
        or not 0 < len(name.encode()) <= 100
        or name[0] in "-."
        or name[-1] == "."
        or name.casefold() == MANIFEST
    ):
        raise ValueError(
            '"id" names a folder: at most 100 bytes of letters, digits, _, - and dots, no - or dot '
            f"at the start, no dot at the end, and not {MANIFEST}; got {name!r:.60}"
        )
    if type(own) is not int or not 0 <= own < 2**63:
        raise ValueError(f'"seed" must be a whole number from 0 to 2**63 - 1, got {own!r:.60}')
    return Row(name, prompt, own)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of an object in JSON; of two equal names Python would keep the last."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a name stands twice among {', '.join(name for name, _ in pairs):.60}")
    return found


def fill(
    out: Path,
    rows: Sequence[Row],
    settings: Mapping[str, Any],
    draw: Callable[[Row, Path], object],
    share: slice = slice(None),
) -> int:
    """Make the samples that are not there yet, or a share of them; returns how many.

    A sample is written to a hidden folder, which takes its name once it is whole: a run that was
    killed goes on where it was. Two runs at once do not mix: one of them is refused, or both.

    Args:
        out: the set's folder; created.
        rows: what the samples are to show.
        settings: what else makes them what they are, for JSON; the same for all samples of a set.
        draw: writes image or video and heat maps of a row to the folder that it is given.
        share: the rows that no other process makes.

    Raises:
        ValueError: the folder's samples were made of other settings or rows, or it is not known of
            which, one of them lacks a file, or another run makes them.
    """
    out.mkdir(parents=True, exist_ok=True)
    listed = {row.id: asdict(row) for row in rows}
    _check_manifest(out, listed, settings)
    todo = [row for row in rows[share] if not _is_done(out / row.id)]
    for row in tqdm(todo, desc="generate", unit="sample"):
        for older in out.glob(f".????????.{row.id}.partial"):  # of a run that was killed
            shutil.rmtree(older, ignore_errors=True)
        hidden = out / f".{secrets.token_hex(4)}.{row.id}.partial"
        hidden.mkdir()
        try:
            draw(row, hidden)
            _check_manifest(out, listed, settings)  # a run that began meanwhile may have its own
            os.replace(hidden, out / row.id)
        except Exception as error:
            if hidden.exists() and not (out / row.id).exists():
                raise
            raise ValueError(f"another run is at work in {out}: it makes {row.id}, too") from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    return len(todo)


def _is_done(folder: Path) -> bool:
    files = [(folder / name).is_file() for name in (MAPS, IMAGE, VIDEO)]
    if folder.exists() and not (files[0] and any(files[1:])):
        raise ValueError(f"{folder} lacks {IMAGE} or {MAPS}: remove it, and it is made again")
    return files[0]


def _check_manifest(out: Path, rows: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse what the manifest contradicts, and add to it; all processes do so alike."""
    path, read = out / MANIFEST, dict[str, Any]()
    kept, before = dict(settings), dict[str, Any]()
    if path.exists():
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            kept, before = {**read["settings"]}, {**read["rows"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({error!r}): it is to tell the settings and rows that the "
                "samples beside it were made of; put back what generate wrote there, or give "
                "another folder"
            ) from error
        begun = any((out / name).exists() for name in before) or any(out.glob(".*.partial"))
        if not begun:  # the run before failed at once
            kept, before = dict(settings), {}
    for name in rows.keys() - before.keys():
        if (out / name).exists():
            raise ValueError(
                f"{out / name} is there, and no {MANIFEST} says what it was made of: remove it, or "
                "give another folder"
            )
    for old, new in ((kept, settings), *((before[x], rows[x]) for x in rows if x in before)):
        if other := [key for key in {**old, **new} if old.get(key) != new.get(key)]:
            listed = (f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in other)
            raise ValueError(
                f"{out / new.get('id', '')} was made otherwise ({'; '.join(listed)}): go on as "
                "before, or give another folder"
            )
    if read != (now := {"settings": kept, "rows": {**before, **rows}}):
        with written_beside(path) as beside:
            beside.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
