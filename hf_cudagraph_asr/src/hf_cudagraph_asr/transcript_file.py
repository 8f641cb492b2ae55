"""A file of transcripts, a JSON object a line, that a run which was cut short continues."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from hf_cudagraph_asr.files import checked, written_beside
from hf_cudagraph_asr.manifest import Query, json_lines
from hf_cudagraph_asr.offline import Outcome

__all__ = ["TranscriptFile", "line_of"]

logger = logging.getLogger(__name__)

FilePath = str | os.PathLike[str]


def line_of(outcome: Outcome) -> dict[str, Any]:
    """What a file of transcripts says of a query.

    Args:
        outcome: with a transcript: `text`, `words` (text, start, end), `duration` in seconds,
            `bucket` (samples of the captured length, or null) and `ms`. Without: `error`. With
            either: `audio_filepath` as it was given, and `offset` and `reference` where known.
    """
    query, transcript = outcome.query, outcome.transcript
    line: dict[str, Any] = {"audio_filepath": query.audio_filepath}
    if query.offset is not None:
        line["offset"] = query.offset
    if query.reference is not None:
        line["reference"] = query.reference
    if transcript is None:
        return line | {"error": outcome.error}
    bucket = transcript.bucket
    return line | {
        "text": transcript.text,
        "words": [
            {"text": word.text, "start": round(word.start, 4), "end": round(word.end, 4)}
            for word in transcript.words
        ],
        "duration": round(transcript.seconds, 4),
        "bucket": None if bucket is None else bucket.samples,
        "ms": round(transcript.milliseconds, 3),
    }


class TranscriptFile:
    """Lines written as they come, each of them whole.

        with TranscriptFile("out.jsonl", queries, provenance(transcriber)) as file:
            for outcome in transcribe_queries(transcriber, queries[file.done :]):
                file.write(outcome)

    What the transcripts were made with stands beside them, in `out.jsonl.run.json`. A file of the
    same queries so far and made with the same is continued; a last line that was torn, by a kill
    say, is cut off first. Anything else is refused, and left as it is.

    Args:
        path: the file.
        queries: all queries, from the first.
        made_with: names and JSON values, which must be the same when a run is continued.
        overwrite: begin anew, whatever is there.

    Attributes:
        path: the file.
        done: queries that it has a line for.

    Raises:
        FileNotFoundError: its folder does not exist.
        BlockingIOError: another run writes to it.
        ValueError: it holds something else; the message says what.
    """

    def __init__(
        self,
        path: FilePath,
        queries: Sequence[Query],
        made_with: dict[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = checked(path)
        # Unbuffered: a line is one write. Appending, so that nothing there is lost by opening it.
        self._file = self.path.open("ab", buffering=0)
        try:
            _lock(self._file, self.path)
            if overwrite:
                self._file.truncate(0)
            self.done = self._continued(queries, made_with)
        except BaseException:
            self.close()
            raise

    def write(self, outcome: Outcome) -> None:
        """Add the next query's line."""
        line = json.dumps(line_of(outcome), ensure_ascii=False, allow_nan=False)
        left = line.encode("utf-8", "backslashreplace") + b"\n"
        while left:  # once, unless the disk is full: then the next one says so
            left = left[self._file.write(left) :]
        self.done += 1

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it holds, from the first line."""
        return (line for _, line in json_lines(self.path))

    def close(self) -> None:
        """Close it; no harm if it is."""
        self._file.close()

    def __enter__(self) -> TranscriptFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _record(self) -> Path:
        return self.path.with_name(f"{self.path.name}.run.json")

    def _continued(self, queries: Sequence[Query], made_with: dict[str, Any]) -> int:
        """Queries that are done; a torn last line is gone."""
        size = self.path.stat().st_size
        if not size:
            with written_beside(self._record) as beside:
                beside.write_text(json.dumps(made_with, indent=1) + "\n", encoding="utf-8")
            return 0
        self._check_record(made_with)
        done = whole = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._check_line(line, done, queries)
                done += 1
                whole += len(line)
        if whole < size:  # not before all lines are known to be ours
            self._file.truncate(whole)
            logger.warning(
                "%s: the last line was torn, %d bytes of it, and is done again",
                self.path,
                size - whole,
            )
        return done

    def _check_record(self, made_with: dict[str, Any]) -> None:
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} is there, and no {self._record.name} beside it says what it was made "
                f"with: {REMEDY}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{self._record} is damaged ({error}): {REMEDY}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{self._record} is damaged, it holds no object: {REMEDY}")
        other = [
            f"{name} {record.get(name)!r}, now {value!r}"
            for name, value in made_with.items()
            if record.get(name) != value
        ]
        if other:
            raise ValueError(f"{self.path} was made with another {'; '.join(other)}: {REMEDY}")

    def _check_line(self, line: bytes, done: int, queries: Sequence[Query]) -> None:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.path}, line {done + 1} is no transcript ({error}): {REMEDY}"
            ) from error
        fields = value if isinstance(value, dict) else {}
        given = fields.get("audio_filepath"), fields.get("offset")
        if done == len(queries):
            raise ValueError(
                f"{self.path} has more lines than the {done:,} queries there are now: {REMEDY}"
            )
        wanted = queries[done].audio_filepath, queries[done].offset
        if given != wanted:
            raise ValueError(
                f"{self.path}, line {done + 1} is of {given[0]!r:.200}, and the query there is "
                f"{wanted[0]!r} now: {REMEDY}"
            )


REMEDY = "write to another file, or overwrite it"


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep other runs out for as long as the file is open, where the system knows how."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(f"another run writes to {path}: wait for it, or stop it") from error
