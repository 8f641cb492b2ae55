"""Audio files and uploads as waveforms."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["AudioError", "duration", "read_audio"]

Source = str | os.PathLike[str] | bytes
Waveform = npt.NDArray[np.float32]

BLOCK = 1 << 20  # frames decoded at a time: a header that lies about its length allocates nothing

UNKNOWN = 1 << 48  # more samples than anything has: what libsndfile says where it does not know

# Weights of the resampling filter. 44,100 to 16,000 Hz needs 441 × 160; rates without a common
# divisor would need gigabytes.
MOST_WEIGHTS = 1 << 22


class AudioError(ValueError):
    """This audio cannot be used; the message says which, why, and what to do."""


def read_audio(
    source: Source, sampling_rate: int, *, offset: float = 0.0, seconds: float | None = None
) -> Waveform:
    """The waveform of a file or an upload, or of a part of it.

    Channels are averaged, and another rate is resampled (windowed sinc interpolation of
    torchaudio).

    Args:
        source: the path of a file, or its content. What libsndfile decodes: WAV, FLAC, OGG, MP3.
        sampling_rate: samples a second that are wanted.
        offset: seconds to leave out at the beginning.
        seconds: the most to read; by default to the end.

    Returns:
        (T,) float32, full scale ±1. Files of floats may exceed it, and so may resampling.

    Raises:
        AudioError: it cannot be decoded, holds no samples or some that are not finite, is cut
            off, ends before the part that is wanted, or has a rate that cannot be resampled.
        OSError: there is no such file, or it cannot be opened.
        ImportError: soundfile is missing, or torchaudio where the rate is another.
    """
    name = _name(source)
    blocks: list[Waveform] = []
    with _opened(source) as file:
        rate = int(file.samplerate)
        start, promised = round(offset * rate), _frames(file, name)
        if start and start >= promised:
            raise AudioError(
                f"{name} is {promised / rate:g} s long, and the part wanted begins at "
                f"{offset:g} s: correct the offset"
            )
        left = promised - start
        if seconds is not None:
            left = min(left, round(seconds * rate))
        promised = left
        try:
            if start:
                file.seek(start)
            while left > 0:
                block = file.read(min(left, BLOCK), dtype="float32", always_2d=True)  # (T, C)
                if not len(block):
                    break
                # One channel stays as it is, bit for bit.
                blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
                left -= len(block)
        except _soundfile().SoundFileError as error:
            raise _undecodable(name, error) from error
        guessed = file.format == "MP3"  # its header may not say how long it is
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)  # (T,)
    if not len(waveform):
        raise AudioError(f"{name} holds no samples: leave it out, or record it again")
    if left > 0 and not guessed:
        raise AudioError(
            f"{name} ends after {len(waveform):,} of the {promised:,} samples its header promises: "
            f"copy or record it again"
        )
    if not np.isfinite(waveform).all():
        raise AudioError(f"{name} holds samples that are NaN or infinite: encode it again")
    return _resampled(waveform, rate, sampling_rate, name)


def duration(source: Source) -> float:
    """Seconds of a file or an upload, from its header alone.

    Args:
        source: as in `read_audio`.

    Raises:
        AudioError: it cannot be decoded, or holds no samples.
        OSError: there is no such file, or it cannot be opened.
        ImportError: soundfile is missing.
    """
    with _opened(source) as file:
        frames = _frames(file, _name(source))
        seconds = frames / int(file.samplerate)
    if not frames:
        raise AudioError(f"{_name(source)} holds no samples: leave it out, or record it again")
    return seconds


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    soundfile = _soundfile()
    # Opened here, so that a file that is missing is an OSError with its name.
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
        try:
            file = soundfile.SoundFile(stream)
        # TypeError: an ending of headerless samples, such as .raw, whose rate only a caller knows.
        except (soundfile.SoundFileError, TypeError) as error:
            raise _undecodable(_name(source), error) from error
        with file:
            yield file


def _frames(file: Any, name: str) -> int:
    frames = int(file.frames)
    if frames > UNKNOWN:
        raise AudioError(
            f"{name} does not say how long it is, as FLAC from a pipe: encode it into a file"
        )
    return frames


def _soundfile() -> Any:
    try:
        import soundfile  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            'reading audio needs soundfile: pip install "hf-cudagraph-asr[audio]"'
        ) from error
    return soundfile


def _undecodable(name: str, error: Exception) -> AudioError:
    why = getattr(error, "error_string", str(error)).removeprefix("Error : ").rstrip(". ")
    return AudioError(
        f"{name} cannot be decoded ({why}): give WAV, FLAC, OGG or MP3, or convert it to one"
    )


def _name(source: Source) -> str:
    return "the upload" if isinstance(source, bytes) else os.fspath(source)


def _resampled(waveform: Waveform, rate: int, wanted: int, name: str) -> Waveform:
    if rate == wanted:
        return waveform
    common = math.gcd(rate, wanted)
    if rate // common * (wanted // common) > MOST_WEIGHTS:
        raise AudioError(
            f"{name} has {rate:,} samples a second, which share no useful divisor with the "
            f"{wanted:,} wanted: convert it to a usual rate, such as {wanted:,} or 48,000, first"
        )
    try:
        from torchaudio.functional import resample  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            f"{name} has {rate:,} samples a second and {wanted:,} are wanted; resampling needs "
            f'torchaudio: pip install "hf-cudagraph-asr[resample]"'
        ) from error
    import torch

    found: Waveform = resample(torch.from_numpy(waveform), rate, wanted).numpy()
    if not len(found):
        raise AudioError(f"{name} holds {len(waveform)} samples, too few to resample: leave it out")
    return found
