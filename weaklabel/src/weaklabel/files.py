"""Outputs that are there in whole or not at all, and written by one process at a time."""

from __future__ import annotations

import fnmatch
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from weaklabel.errors import WeakLabelError

if sys.platform != "win32":
    import fcntl

_LOCK: Final = "lock"

_held: Final[set[Path]] = set()  # by this process


def keep_apart(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Refuse to replace what is read, or what is no file: a log is not made a second time.

    Args:
        outputs: files or folders to be written; None is left out.
        inputs: files, folders, globs or URLs to be read.

    Raises:
        WeakLabelError: an output is an input or lies in one, two outputs are one, or one is a
            device, a pipe or a socket.
    """
    given = [path for path in outputs if path is not None]
    for output in given:
        _require_regular(output)
    targets = [path.resolve() for path in given]
    for target in targets:
        for path in inputs:
            if path is None:
                continue
            source = Path(path).resolve()
            inside = source == target or (source.is_dir() and source in target.parents)
            if inside or fnmatch.fnmatch(str(target), str(source)):
                raise WeakLabelError(
                    f"{target} would replace, or be read as a part of, {path}: write it elsewhere"
                )
        if targets.count(target) > 1:
            raise WeakLabelError(f"{target} is to be written twice: give two names")


def _require_regular(target: Path) -> None:
    if target.exists() and not (target.is_file() or target.is_dir()):
        kind = "pipe" if target.is_fifo() else "socket" if target.is_socket() else "device"
        raise WeakLabelError(f"{target} is a {kind}, expected a file: give another name")


def require_parent(target: Path) -> None:
    """Refuse an output whose folder does not exist.

    Raises:
        FileNotFoundError: it can be created.
        NotADirectoryError: a file is in its place, or in that of a folder above it.
    """
    if not target.absolute().parent.is_dir():
        above = next(folder for folder in target.absolute().parents if folder.exists())
        if not above.is_dir():
            raise NotADirectoryError(f"{above} is a file, expected a folder to write in")
        raise FileNotFoundError(
            f"no folder {target.parent} to write {target.name} in: create it first"
        )


@contextmanager
def written_beside(path: str | os.PathLike[str], *, folder: bool = False) -> Iterator[Path]:
    """A path in the same folder to write to; it takes the name `path` once all went well.

    Args:
        path: of the finished output; a link is followed, and stays.
        folder: make a folder to write files in, instead of leaving a file to be written. Neither
            a file nor a folder that is not empty is replaced by it.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no parent folder; it is not created.
        IsADirectoryError: a file is wanted and `path` is a folder.
        FileExistsError: a folder is wanted and `path` is a file or a folder with something in it.
        WeakLabelError: another process is writing this output, or it is a device, a pipe or a
            socket.
    """
    target = Path(path)
    _require_regular(target)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    require_parent(target)
    if folder and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists already: give another name, or remove it first")
    if target.is_dir() and not folder:
        raise IsADirectoryError(f"{target} is a folder: give the path of a file")
    with workplace(target.with_name(f".{target.name}.tmp"), target) as place:
        beside = place / target.name
        if folder:
            beside.mkdir()
        yield beside
        if folder and target.is_dir():
            target.rmdir()
        beside.replace(target)


@contextmanager
def workplace(place: Path, output: Path) -> Iterator[Path]:
    """An empty folder for unfinished files, held by one process at a time and then removed.

    A lock on a file in it ends with the process that holds it, and the next process removes the
    files that a killed one left behind. Windows, and file systems without locks, let two processes
    in.

    Args:
        place: the folder, whose parent exists; on the disk of the output, so that finished
            files only have to be renamed.
        output: the file or folder that is written, for the message.

    Raises:
        WeakLabelError: another process holds it.
    """
    lock = _locked(place, output)
    _held.add(place)
    try:
        _clear(place)
        yield place
    finally:
        _held.discard(place)
        _clear(place)
        if sys.platform == "win32":
            os.close(lock)  # Windows removes no open file
            (place / _LOCK).unlink()
        else:
            (place / _LOCK).unlink()
            os.close(lock)
        with suppress(OSError):  # the next process may have come already
            place.rmdir()


def _locked(place: Path, output: Path) -> int:
    """The descriptor of the locked file, which holds the number of this process."""
    while True:
        place.mkdir(exist_ok=True)
        try:
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the last holder has just removed the folder
            continue
        try:
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode() or "unknown"
            os.close(lock)
            raise WeakLabelError(
                f"{output} is being written by another process ({holder}): wait until it has ended,"
                " or write to another name"
            ) from None
        except OSError:  # a file system without locks
            pass
        # The last holder may have removed the file after it was opened here and before the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(place / _LOCK)):
                os.truncate(lock, 0)
                os.write(lock, str(os.getpid()).encode())
                return lock
        os.close(lock)


def _clear(place: Path) -> None:
    for entry in place.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()


@contextmanager
def terminated(grace: float = 2.0) -> Iterator[None]:
    """Make SIGTERM end the block as `SystemExit(143)`, so that no unfinished file is left behind.

    A signal reaches Python only between an engine's calls. One that takes longer is not waited for:
    another thread removes the files and ends the process. Outside of the main thread nothing is
    changed.

    Args:
        grace: for how many seconds the current call is waited for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()  # written to by the signal itself, whatever the main thread does
    os.set_blocking(writer, False)
    ended = threading.Event()

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    def watch() -> None:
        while number := os.read(reader, 1):
            if number == bytes([signal.SIGTERM]) and not ended.wait(grace):
                for place in list(_held):
                    shutil.rmtree(place, ignore_errors=True)
                os._exit(128 + signal.SIGTERM)
        os.close(reader)

    threading.Thread(target=watch, daemon=True).start()
    before = signal.signal(signal.SIGTERM, stop)
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        os.close(writer)  # ends the other thread
