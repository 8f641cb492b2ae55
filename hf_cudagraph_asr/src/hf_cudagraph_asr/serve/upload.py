"""An upload, checked by its headers before it is decoded. No Ray."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.audio import UNKNOWN, AudioError, read_audio
from hf_cudagraph_asr.serve.refusal import Refusal
from hf_cudagraph_asr.serve.settings import Limits

__all__ = ["Header", "check_headers", "check_size", "read_header", "waveform_of"]

Waveform = npt.NDArray[np.float32]

FORMATS = ("WAV", "WAVEX", "FLAC")
MOST_CHANNELS = 2
MOST_RATE = 192_000

# What names no type is read for what it is: curl --data-binary says that it sends a form.
_UNSAID = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_AUDIO = ("wav", "x-wav", "wave", "vnd.wave", "x-pn-wav", "flac", "x-flac")


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        format: of the container, as libsndfile names it.
        frames: samples of each channel.
        rate: samples a second.
        channels: how many.
    """

    format: str
    frames: int
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Of audio."""
        return self.frames / self.rate


def check_headers(content_type: str, content_length: str | None, limits: Limits) -> None:
    """Refuse by the request's headers, before a byte of its body is read.

    Args:
        content_type: as the client gave it; empty if it did not.
        content_length: likewise; None for a body that comes in chunks.
        limits: the limits.

    Raises:
        Refusal: 415, 400 or 413.
    """
    kind = content_type.partition(";")[0].strip().lower()
    main, _, sub = kind.partition("/")
    if kind not in _UNSAID and not (main == "audio" and sub in _AUDIO):
        raise Refusal(
            415,
            "unsupported_type",
            f"the body is {kind:.60}, expected audio/wav or audio/flac: send the file itself as "
            f"the body, as curl --data-binary @query.wav does",
        )
    if content_length is not None:
        digits = content_length.isascii() and content_length.isdigit()
        if not digits or len(content_length) > 18:  # Python refuses to read very long numbers
            raise Refusal(
                400,
                "bad_request",
                f"Content-Length is {content_length!r:.40}, expected a number of bytes",
            )
        check_size(int(content_length), limits)


def check_size(size: int, limits: Limits, *, complete: bool = True) -> None:
    """Refuse a body that is too large.

    Args:
        size: bytes of it.
        limits: the limits.
        complete: that is all of it; otherwise it is what came so far.

    Raises:
        Refusal: 413.
    """
    if size > limits.max_bytes:
        raise Refusal(
            413,
            "too_large",
            f"the body has {size:,} bytes{'' if complete else ' or more'}, at most "
            f"{limits.max_bytes:,} are taken: send FLAC, fewer channels, or a shorter recording",
            # What is left of the body is not read, so nothing can follow on this connection.
            {"Connection": "close"},
        )


def read_header(body: bytes) -> Header:
    """What an upload says of itself; nothing is decoded.

    Raises:
        Refusal: 400: empty or undecodable; 415: audio of another format.
        ImportError: soundfile is missing.
    """
    if not body:
        raise Refusal(400, "empty", "the body is empty: send a WAV or FLAC file as the body")
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(body)) as file:
            header = Header(file.format, int(file.frames), int(file.samplerate), file.channels)
    except soundfile.SoundFileError as error:
        raise Refusal(
            400,
            "undecodable",
            f"the body's {len(body):,} bytes are no audio that can be decoded "
            f"({getattr(error, 'error_string', error)}): send a WAV or FLAC file as the body",
        ) from error
    if header.format not in FORMATS:
        raise Refusal(
            415,
            "unsupported_type",
            f"the audio is {header.format}, expected WAV or FLAC: convert it",
        )
    return header


def check_header(header: Header, limits: Limits) -> None:
    """Refuse by what the file says of itself, before it is decoded.

    Raises:
        Refusal: 413: too long; 400: too many channels or samples a second, no samples, or
            nobody knows how many.
    """
    if header.frames < 1 or header.rate < 1:
        raise Refusal(400, "no_samples", "the audio holds no samples: record it again")
    if header.frames > UNKNOWN:
        raise Refusal(
            400,
            "unknown_length",
            "the audio does not say how long it is, as FLAC from a pipe: encode it into a file",
        )
    if header.seconds > limits.max_seconds:
        raise Refusal(
            413,
            "too_long",
            f"the audio's header says {header.seconds:,.2f} seconds, at most "
            f"{limits.max_seconds:,g} are taken: cut it, and send the parts",
        )
    if header.channels > MOST_CHANNELS or header.rate > MOST_RATE:
        raise Refusal(
            400,
            "unsupported_audio",
            f"the audio has {header.channels} channels and {header.rate:,} samples a second, "
            f"expected at most {MOST_CHANNELS} and {MOST_RATE:,}: convert it to mono",
        )


def waveform_of(body: bytes, limits: Limits, sampling_rate: int, shortest: int) -> Waveform:
    """The waveform of an upload. Takes as long as decoding does.

    Args:
        body: the upload.
        limits: the limits.
        sampling_rate: samples a second that the model takes.
        shortest: the fewest samples that it gives a frame for.

    Returns:
        (T,) float32, finite, T at least `shortest`.

    Raises:
        Refusal: 400, 413 or 415; the message says why.
        ImportError: soundfile is missing, or torchaudio where the rate is another.
    """
    header = read_header(body)
    check_header(header, limits)
    try:
        waveform = read_audio(body, sampling_rate)
    except AudioError as error:
        raise Refusal(400, "undecodable", str(error)) from error
    if len(waveform) < shortest:
        raise Refusal(
            400,
            "too_short",
            f"the audio has {len(waveform):,} samples at the model's {sampling_rate:,} a second, "
            f"at least {shortest:,} give a frame: record a little more",
        )
    return waveform


def _soundfile() -> Any:
    try:
        import soundfile  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            'reading uploads needs soundfile: pip install "hf-cudagraph-asr[serve]"'
        ) from error
    return soundfile
