"""Many recordings: read ahead, computed by length, given in order, into a file that resumes."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby, islice
from typing import Any

from hf_cudagraph_asr.audio import AudioError, Waveform, read_audio
from hf_cudagraph_asr.files import checked
from hf_cudagraph_asr.transcriber import Transcriber, Transcript

__all__ = ["TranscriptFile", "transcribe_files"]

logger = logging.getLogger(__name__)

LOOK_AHEAD = 16  # batches read before the first is computed, so that lengths in one are near
MOST_SECONDS = 1200.0  # of audio read ahead: a folder of long recordings does not fill the memory

REMEDY = "write to another file, or overwrite it"


def transcribe_files(
    transcriber: Transcriber, paths: Iterable[str], *, batch_size: int = 1
) -> Iterator[Transcript | str]:
    """Transcribe recordings, while a thread reads the next ones.

    Args:
        transcriber: the transcriber.
        paths: the recordings.
        batch_size: how many go through the model at a time, of similar length. Recordings longer
            than the transcriber's chunks go alone.

    Yields:
        For each recording, in order: its transcript, or why there is none.
    """
    with closing(_windows(transcriber, iter(paths), batch_size * LOOK_AHEAD)) as windows:
        for window in windows:
            found: dict[int, Transcript | str] = {
                place: read for place, read in enumerate(window) if isinstance(read, str)
            }
            waveforms = {
                place: read for place, read in enumerate(window) if not isinstance(read, str)
            }
            given = 0
            lengths = {place: len(waveform) for place, waveform in waveforms.items()}
            for places in _batches(transcriber, lengths, batch_size):
                transcripts = transcriber.transcribe([waveforms[place] for place in places])
                found.update(zip(places, transcripts, strict=True))
                while given in found:  # as soon as all before it are there
                    yield found.pop(given)
                    given += 1
            yield from map(found.pop, sorted(found))


def _windows(
    transcriber: Transcriber, paths: Iterator[str], size: int
) -> Generator[list[Waveform | str]]:
    """Read up to `size` recordings, and the next ones while the caller works on these."""
    stopped = threading.Event()

    def read() -> list[Waveform | str]:
        window: list[Waveform | str] = []
        samples = 0
        for path in islice(paths, size):
            window.append(found := _read(transcriber, path))
            samples += 0 if isinstance(found, str) else len(found)
            if stopped.is_set() or samples >= MOST_SECONDS * transcriber.sampling_rate:
                break
        return window

    with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
        try:
            upcoming = reader.submit(read)
            while window := upcoming.result():
                upcoming = reader.submit(read)
                yield window
        finally:
            stopped.set()


def _read(transcriber: Transcriber, path: str) -> Waveform | str:
    """A recording's waveform, or why there is none."""
    try:
        waveform = read_audio(path, transcriber.sampling_rate)
    except AudioError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be opened: {error.strerror or error}"
    fault = transcriber.fault(waveform)
    return waveform if fault is None else f"{path} {fault}"


def _batches(
    transcriber: Transcriber, lengths: dict[int, int], batch_size: int
) -> Iterator[list[int]]:
    """Keys in batches of neighboring lengths. One too long for the plan keeps no other from it."""

    plan = transcriber.pool.plan

    def planned(place: int) -> bool:
        return plan is not None and plan.bucket_for(lengths[place]) is not None

    ascending = sorted(lengths, key=lambda place: (planned(place), lengths[place]))
    for _, group in groupby(ascending, planned):
        places = list(group)
        for start in range(0, len(places), batch_size):
            yield places[start : start + batch_size]


class TranscriptFile:
    """A file of transcripts, a JSON object a line, that a run which was cut short continues.

        with TranscriptFile("out.jsonl", paths, model="org/name", dtype="float32") as file:
            for result in transcribe_files(transcriber, paths[file.done :]):
                file.write(result)

    A line holds `audio_filepath`, `model` and `dtype`; then `text`, `words` (text, start, end),
    `duration` in seconds, `bucket` (samples of the captured length, or null) and `ms`, or `error`.
    A file of the same recordings so far, by the same model in the same dtype, is continued; a last
    line that was torn, by a kill say, is cut off first. Anything else is refused and left alone.

    Args:
        path: the file.
        recordings: all recordings, from the first.
        model: the model's name, as it was given.
        dtype: the dtype of its weights.
        overwrite: discard the lines that are there, and begin anew.

    Attributes:
        done: recordings that the file has a line for.
        failed: how many of these lines hold an error.

    Raises:
        FileNotFoundError: its folder does not exist.
        BlockingIOError: another run writes to it.
        ValueError: it holds something else; the message shows it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        recordings: Sequence[str],
        *,
        model: str,
        dtype: str,
        overwrite: bool = False,
    ) -> None:
        self.done = self.failed = 0
        self._path, self._recordings = checked(path), recordings
        self._made_with = {"model": model, "dtype": dtype}
        # Unbuffered: a line is one write. Appending, so that nothing there is lost by opening it.
        self._file = self._path.open("ab", buffering=0)
        try:
            self._lock()
            if overwrite:
                self._file.truncate(0)
            self._resume()
        except BaseException:
            self._file.close()
            raise

    def write(self, result: Transcript | str) -> None:
        """Add the next recording's line: its transcript, or why there is none."""
        line = self._next()
        if isinstance(result, str):
            line |= {"error": result}
        else:
            line |= {
                "text": result.text,
                "words": [
                    {"text": word.text, "start": round(word.start, 4), "end": round(word.end, 4)}
                    for word in result.words
                ],
                "duration": round(result.seconds, 4),
                "bucket": None if result.bucket is None else result.bucket.samples,
                "ms": round(result.milliseconds, 3),
            }
        left = _encoded(line) + b"\n"
        while left:  # once, unless the disk is full: then the next one says so
            left = left[self._file.write(left) :]
        self.done += 1
        self.failed += "error" in line

    def __enter__(self) -> TranscriptFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _lock(self) -> None:
        """Keep other runs out for as long as the file is open, where the system knows how."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"another run writes to {self._path}: wait for it, or stop it"
            ) from error

    def _next(self) -> dict[str, Any]:
        """The first fields of the next line."""
        return {"audio_filepath": self._recordings[self.done], **self._made_with}

    def _resume(self) -> None:
        """Check that each line is of its recording; then cut off a torn one."""
        whole = 0
        with self._path.open("rb") as lines:
            for line in lines:
                if self.done == len(self._recordings):
                    raise ValueError(
                        f"{self._path} has more lines than the {self.done:,} recordings there are "
                        f"now: {REMEDY}"
                    )
                start = _encoded(self._next()).removesuffix(b"}")
                torn = not line.endswith(b"\n")
                if not (line.startswith(start) or (torn and start.startswith(line))):
                    found, wanted = (part.decode("utf-8", "replace") for part in (line, start))
                    raise ValueError(
                        f"{self._path}, line {self.done + 1} is {found[: len(wanted)].strip()}, "
                        f"expected {wanted} now: {REMEDY}"
                    )
                if not torn:
                    whole += len(line)
                    self.done += 1
                    self.failed += line.startswith(start + b', "error"')
        if left := self._path.stat().st_size - whole:
            self._file.truncate(whole)
            logger.warning("%s: its last line was torn (%d bytes), done again", self._path, left)


def _encoded(line: dict[str, Any]) -> bytes:
    # A path need not be UTF-8: other bytes become escapes of JSON.
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
