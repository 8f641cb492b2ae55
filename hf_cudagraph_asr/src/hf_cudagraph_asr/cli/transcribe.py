"""`hf-cudagraph-asr transcribe`: from recordings to texts, or to a file of transcripts.

Recordings are read ahead, computed by length, and given in order, into a file that resumes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_cudagraph_asr.cli import Backend, Device, Dtype, Model, Plan, counted, quiet_host, say, warn
from hf_cudagraph_asr.files import checked

if TYPE_CHECKING:
    from hf_cudagraph_asr.audio import Waveform
    from hf_cudagraph_asr.transcriber import Transcriber, Transcript

logger = logging.getLogger(__name__)

CHUNK = 30.0  # the `Transcriber`'s own, whose import takes seconds

LOOK_AHEAD = 16  # batches read before the first is computed, so that lengths in one are near
PART = 4  # batches after which what is done is given
MOST_SECONDS = 1200.0  # of audio read ahead: a folder of long recordings does not fill the memory

REMEDY = "write to another file, or overwrite it"


def transcribe(
    sources: Annotated[list[Path], typer.Argument(help="Audio files, and folders of audio files.")],
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file for the transcripts, a JSON object a line; an unfinished one is "
            "continued. Without it, the texts are printed."
        ),
    ] = None,
    plan: Plan = None,
    backend: Backend = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many recordings go through the model at a time. Default: the largest batch "
            "size of the plan, or 8 without a plan.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    chunk: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="Transcribe longer recordings in overlapping chunks of this length; 0: never.",
        ),
    ] = CHUNK,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard the lines of --out and begin anew.")
    ] = False,
    target_lang: Annotated[
        str | None, typer.Option(help="The language of a model of many, such as MMS's: deu.")
    ] = None,
    lexicon: Annotated[
        Path | None,
        typer.Option(
            help="A file with a word a line: only these are found. Default: those of --lm."
        ),
    ] = None,
    lm: Annotated[
        Path | None,
        typer.Option(help="A language model for the words: n-grams in ARPA's or KenLM's format."),
    ] = None,
    lm_weight: Annotated[float, typer.Option(min=0, help="How much --lm counts.")] = 1.0,
) -> None:
    """Transcribe recordings. In float32 each text is the stock pipeline's for that recording alone.

    The texts come in the order of the recordings. Interrupted, and run again with the same --out,
    it goes on where it stopped. A recording that cannot be decoded or transcribed has a line with
    `error` in the place of `text`, and is tried again only with all others, by --overwrite; if
    there are such lines, the exit code is 1.
    """
    from hf_cudagraph_asr.audio import recordings_in
    from hf_cudagraph_asr.plan import BucketPlan

    recordings = recordings_in(sources)
    if out is not None:
        checked(out, [*recordings, plan, lexicon, lm], model)
    lengths = None if plan is None else BucketPlan.load(plan)
    if lengths is None and backend not in ("auto", "eager"):
        raise ValueError(
            f"--backend {backend} captures the lengths of a plan: give --plan, a file that "
            f"`hf-cudagraph-asr plan` writes"
        )
    rows = batch_size or (8 if lengths is None else lengths.batch_sizes[-1])
    captured = None if lengths is None or rows in lengths.batch_sizes else sorted({1, rows})

    import torch
    from tqdm.auto import tqdm

    from hf_cudagraph_asr.transcriber import Transcriber

    quiet_host()
    with (
        Transcriber.from_pretrained(
            model,
            plan=lengths,
            backend=backend,
            device=device,
            dtype=dtype,
            batch_sizes=captured,
            chunk_length_s=chunk or None,
            target_lang=target_lang,
            lexicon=lexicon,
            lm=lm,
            lm_weight=lm_weight,
        ) as transcriber,
        nullcontext()
        if out is None
        else TranscriptFile(
            out,
            recordings,
            model=model,
            dtype=str(transcriber.model.dtype).removeprefix("torch."),
            overwrite=overwrite,
            chunk=None if chunk == CHUNK else f"{chunk:g}",
            target_lang=target_lang,
            lexicon=None if lexicon is None else _version(lexicon),
            lm=None if lm is None else f"{lm_weight:g} x {_version(lm)}",
        ) as file,
    ):
        done, failed = (0, 0) if file is None else (file.done, file.failed)
        total = counted(len(recordings), "recording")
        if done:
            fate = f"; {failed:,} could not be done, --overwrite begins anew" if failed else ""
            say(f"{out} has {done:,} of {total}: going on{fate}")
        start, seconds = perf_counter(), 0.0
        results = transcribe_files(transcriber, recordings[done:], batch_size=rows)
        bar = tqdm(
            results, "transcribing", len(recordings), unit="file", initial=done, disable=None
        )
        try:
            for result in bar:
                if file is not None:
                    file.write(result)
                elif isinstance(result, str):
                    warn(result)
                else:
                    say(result.text)
                done += 1
                failed += isinstance(result, str)
                seconds += 0.0 if isinstance(result, str) else result.seconds
        except KeyboardInterrupt:
            warn(f"interrupted after {done:,} of {total}: run the same command again to go on")
            raise
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"out of memory after {done:,} of {total}: run the same command again with a "
                f"--batch-size below {rows} or a shorter --chunk"
            ) from error
    if out is not None:
        spent = perf_counter() - start
        say(f"{total} → {out}; {seconds:,.1f} s of audio in {spent:,.1f} s")
        if failed:
            warn(f"{counted(failed, 'recording')} could not be transcribed: see `error` in {out}")
    if failed:
        raise typer.Exit(1)


def transcribe_files(
    transcriber: Transcriber, paths: Iterable[str], *, batch_size: int = 1
) -> Iterator[Transcript | str]:
    """Transcribe recordings, while a thread reads the next ones.

    `batch_size` of similar length go through the model at a time; those longer than the
    transcriber's chunks go alone.

    Yields:
        For each recording, in order: its transcript, or why there is none.
    """
    with closing(_windows(transcriber, iter(paths), batch_size * LOOK_AHEAD)) as windows:
        for window in windows:
            found: dict[int, Transcript | str] = {
                place: one for place, one in enumerate(window) if isinstance(one, str)
            }
            read = {place: one for place, one in enumerate(window) if not isinstance(one, str)}
            ascending = sorted(read, key=lambda place: len(read[place]))
            given = 0
            for start in range(0, len(ascending), PART * batch_size):
                places = ascending[start : start + PART * batch_size]
                waveforms = [read[place] for place in places]
                transcripts = transcriber.transcribe(waveforms, batch_size=batch_size)
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


def _version(path: Path) -> str:
    """A file's name with the beginning of its SHA-256: another content makes other texts."""
    with path.open("rb") as file:
        return f"{path} {hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"


def _read(transcriber: Transcriber, path: str) -> Waveform | str:
    """A recording's waveform, or why there is none."""
    from hf_cudagraph_asr.audio import AudioError, read_audio

    try:
        waveform = read_audio(path, transcriber.sampling_rate)
    except AudioError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be opened: {error.strerror or error}"
    fault = transcriber.fault(waveform)
    return waveform if fault is None else f"{path} {fault}"


class TranscriptFile:
    """A file of transcripts, a JSON object a line, that a run which was cut short continues.

        with TranscriptFile("out.jsonl", paths, model="org/name", dtype="float32") as file:
            for result in transcribe_files(transcriber, paths[file.done :]):
                file.write(result)

    A line holds `audio_filepath`, the options, `model` and `dtype`; then `text`, `words` (text,
    start, end), `duration` in seconds, `bucket` (samples of the captured length, or null) and `ms`,
    or `error`. Of a path, bytes that are not UTF-8 are written as \\xff. A file of the same
    recordings so far, made in the same way, is continued; a last line that was torn, by a kill say,
    is cut off first. Anything else is refused and left alone.

    Args:
        recordings: all recordings, from the first.
        overwrite: discard the lines that are there, and begin anew.
        options: what else the texts depend on; None is left out.

    Attributes:
        done: recordings that the file has a line for.
        failed: how many of these lines hold an error.

    Raises:
        OSError: its folder does not exist, or another run writes to it.
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
        **options: str | None,
    ) -> None:
        self.done = self.failed = 0
        self._path, self._recordings = checked(path), recordings
        # Options come first: a line with some does not begin like one without.
        given = {name: value for name, value in options.items() if value is not None}
        self._made_with = {**given, "model": model, "dtype": dtype}
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
    # What Python makes of other bytes in a path, halves of surrogate pairs, strict readers refuse.
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda one: rf"\\x{ord(one[0]) & 255:02x}", text).encode()
