"""Many recordings transcribed: read ahead, computed by length, given in the order they came."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.audio import AudioError, read_audio
from hf_cudagraph_asr.manifest import Query
from hf_cudagraph_asr.transcriber import Transcriber
from hf_cudagraph_asr.words import Transcript

__all__ = ["Outcome", "by_length", "transcribe_queries"]

LOOK_AHEAD = (
    16  # batches read before the first of them is computed, so that lengths in one are near
)

# Of a window: a folder of long recordings does not fill the memory.
MOST_SECONDS = 1200.0

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """What became of a query.

    Attributes:
        query: the query.
        transcript: what is said in it, or None.
        error: why there is no transcript, or None.
    """

    query: Query
    transcript: Transcript | None
    error: str | None = None


def transcribe_queries(
    transcriber: Transcriber, queries: Iterable[Query], *, batch_size: int = 1
) -> Iterator[Outcome]:
    """The outcome of each query, in the order of the queries.

    A thread reads the next ones meanwhile. A query that cannot be read or transcribed has an error
    and ends nothing.

    Args:
        transcriber: transcribes.
        queries: the queries.
        batch_size: how many go through the model at a time, of similar length. Recordings longer
            than the transcriber's chunks go alone.
    """
    with closing(_windows(transcriber, iter(queries), batch_size * LOOK_AHEAD)) as windows:
        for window in windows:
            yield from _outcomes(transcriber, window, batch_size)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions in batches of neighbouring lengths, ascending.

    >>> by_length([30, 10, 20, 40, 11], 2)
    [[1, 4], [2, 0], [3]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@dataclass(frozen=True)
class _Read:
    """A query with its waveform, or with why there is none."""

    query: Query
    waveform: Waveform | None
    error: str | None = None


def _windows(
    transcriber: Transcriber, queries: Iterator[Query], size: int
) -> Generator[list[_Read]]:
    """Queries read, `size` at a time, the next of them while the caller works on the last."""
    stopped = threading.Event()

    def read() -> list[_Read]:
        window: list[_Read] = []
        seconds = 0.0
        for query in islice(queries, size):
            if stopped.is_set():
                break
            window.append(_read(transcriber, query))
            if (waveform := window[-1].waveform) is not None:
                seconds += len(waveform) / transcriber.sampling_rate
            if seconds >= MOST_SECONDS:
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


def _read(transcriber: Transcriber, query: Query) -> _Read:
    try:
        waveform = read_audio(
            query.path,
            transcriber.sampling_rate,
            offset=query.offset or 0.0,
            seconds=query.duration,
        )
    except AudioError as error:
        return _Read(query, None, str(error))
    except OSError as error:
        return _Read(query, None, f"{query.path} cannot be opened: {error.strerror or error}")
    if (fault := transcriber.fault(waveform)) is not None:
        return _Read(query, None, f"{query.path} {fault}")
    return _Read(query, waveform)


def _outcomes(
    transcriber: Transcriber, window: Sequence[_Read], batch_size: int
) -> Iterator[Outcome]:
    found = {
        place: Outcome(read.query, None, read.error)
        for place, read in enumerate(window)
        if read.error is not None
    }
    waveforms = {
        place: read.waveform for place, read in enumerate(window) if read.waveform is not None
    }
    given = 0
    for places in _batches(transcriber, waveforms, batch_size):
        transcripts = transcriber.transcribe([waveforms[place] for place in places])
        for place, transcript in zip(places, transcripts, strict=True):
            found[place] = Outcome(window[place].query, transcript)
        while given in found:  # as soon as all before it are there
            yield found.pop(given)
            given += 1
    while given in found:
        yield found.pop(given)
        given += 1


def _batches(
    transcriber: Transcriber, waveforms: Mapping[int, Waveform], batch_size: int
) -> Iterator[list[int]]:
    """Keys in batches of similar length. One row too long for a plan keeps no other from it."""
    kinds: dict[bool, list[int]] = {False: [], True: []}
    for place, waveform in waveforms.items():
        kinds[transcriber.pool.explain(len(waveform)).bucket is None].append(place)
    for places in kinds.values():
        for batch in by_length([len(waveforms[place]) for place in places], batch_size):
            yield [places[row] for row in batch]
