"""Uploads: what is refused, with which status, and before what."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cudagraph_asr.audio import read_audio
from hf_cudagraph_asr.serve import upload
from hf_cudagraph_asr.serve.refusal import Refusal
from hf_cudagraph_asr.serve.settings import Limits

soundfile = pytest.importorskip("soundfile")

RATE = 16_000
LIMITS = Limits(max_bytes=100_000, max_seconds=2.0)


def tone(seconds: float, rate: int = RATE, channels: int = 1) -> Any:
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 300 * time).astype(np.float32)
    return wave if channels == 1 else np.stack([wave] * channels, axis=1)


def encoded(wave: Any, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, format=format, subtype=subtype)
    return stream.getvalue()


def refused(body: bytes, limits: Limits = LIMITS) -> Refusal:
    with pytest.raises(Refusal) as caught:
        upload.waveform_of(body, limits, RATE, 400)
    return caught.value


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_an_upload_is_what_read_audio_reads(format: str) -> None:
    body = encoded(tone(0.5), format=format, subtype="PCM_16")
    np.testing.assert_array_equal(
        upload.waveform_of(body, LIMITS, RATE, 400), read_audio(body, RATE)
    )


def test_stereo_at_another_rate_is_converted() -> None:
    body = encoded(tone(0.5, 8000, 2), 8000)
    found = upload.waveform_of(body, LIMITS, RATE, 400)
    assert found.dtype == np.float32
    assert found.shape == (8000,)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "empty"),
        (b"RIFF", 400, "undecodable"),
        (b"{}" * 500, 400, "undecodable"),
        (encoded(tone(0.5))[:44], 400, "no_samples"),
        (encoded(tone(0.5), format="FLAC", subtype="PCM_16")[:2000], 400, "undecodable"),
        (encoded(np.array([np.nan] * 800, np.float32), subtype="FLOAT"), 400, "undecodable"),
        (encoded(np.array([np.inf] * 800, np.float32), subtype="FLOAT"), 400, "undecodable"),
        (encoded(tone(0.5), format="OGG"), 415, "unsupported_type"),
        (encoded(tone(0.5, channels=3)), 400, "unsupported_audio"),
        (encoded(tone(0.01)), 400, "too_short"),
        (encoded(tone(2.1), format="FLAC"), 413, "too_long"),
        (encoded(tone(0.5, 44_101), 44_101), 400, "undecodable"),  # resampling by 16000/44101
        (encoded(np.zeros(100), 300_000), 400, "unsupported_audio"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_transcribed_is_refused(body: bytes, status: int, error: str) -> None:
    refusal = refused(body)
    assert (refusal.status, refusal.error) == (status, error)
    assert refusal.body().keys() == {"error", "detail"}


def test_a_recording_too_long_is_refused_by_its_header_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(upload, "read_audio", never)
    hours = encoded(np.zeros(RATE * 3600, np.int16), format="FLAC")
    assert len(hours) < 10**6  # silence compresses well
    refusal = refused(hours)
    assert (refusal.status, refusal.error) == (413, "too_long")
    assert "3,600.00 seconds, at most 2" in refusal.detail


def test_flac_of_unknown_length_is_refused() -> None:
    body = bytearray(encoded(tone(0.5), format="FLAC", subtype="PCM_16"))
    # STREAMINFO's 36-bit number of samples, 21.5 bytes in; 0 is what an encoder of a pipe writes.
    body[21] &= 0xF0
    body[22:26] = bytes(4)
    assert refused(bytes(body)).error == "unknown_length"


def test_a_wave_header_that_promises_more_than_there_is_is_refused_or_cut() -> None:
    body = bytearray(encoded(tone(0.5)))
    at = body.index(b"data") + 4
    body[at : at + 4] = struct.pack("<I", 0x7FFFFFFF)
    body[4:8] = struct.pack("<I", 0x7FFFFFFF)
    # libsndfile believes the file's size more than its header.
    assert len(upload.waveform_of(bytes(body), LIMITS, RATE, 400)) == 8000


@given(st.binary(max_size=400), st.integers(0, 60))
def test_no_upload_crashes_the_reader(noise: bytes, keep: int) -> None:
    for good in (encoded(tone(0.05)), encoded(tone(0.05), format="FLAC")):
        try:
            found = upload.waveform_of(good[:keep] + noise, LIMITS, RATE, 400)
        except Refusal:
            continue
        assert np.isfinite(found).all()
        assert len(found) >= 400


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "audio/wav",
        "audio/x-wav",
        "Audio/FLAC; rate=16000",
        "application/octet-stream",
        "application/x-www-form-urlencoded",  # what curl --data-binary says, whatever it sends
    ],
)
def test_types_that_are_taken(kind: str) -> None:
    upload.check_headers(kind, "100", LIMITS)
    upload.check_headers(kind, None, LIMITS)


@pytest.mark.parametrize(
    ("kind", "length", "status", "error"),
    [
        ("application/json", "10", 415, "unsupported_type"),
        ("multipart/form-data; boundary=x", "10", 415, "unsupported_type"),
        ("audio/mpeg", "10", 415, "unsupported_type"),
        ("audio/wav", "100001", 413, "too_large"),
        ("audio/wav", "-1", 400, "bad_request"),
        ("audio/wav", "1e3", 400, "bad_request"),
        ("audio/wav", "²", 400, "bad_request"),
        ("audio/wav", "9" * 18, 413, "too_large"),
        ("audio/wav", "9" * 5000, 400, "bad_request"),
    ],
)
def test_headers_that_are_refused(kind: str, length: str, status: int, error: str) -> None:
    with pytest.raises(Refusal) as caught:
        upload.check_headers(kind, length, LIMITS)
    assert (caught.value.status, caught.value.error) == (status, error)


def test_a_body_as_large_as_the_limit_is_taken() -> None:
    upload.check_size(LIMITS.max_bytes, LIMITS)
    with pytest.raises(Refusal, match="100,001 bytes or more, at most 100,000") as caught:
        upload.check_size(LIMITS.max_bytes + 1, LIMITS, complete=False)
    assert caught.value.headers == {"Connection": "close"}
