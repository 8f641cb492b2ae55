"""Files and uploads become waveforms, or errors that say what is wrong with them."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hf_cudagraph_asr.audio import AudioError, duration, read_audio

RATE = 16_000


def tone(seconds: float = 1.0, rate: int = RATE, frequency: float = 440.0) -> Any:
    at = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * frequency * at)).astype(np.float32)


def encoded(samples: Any, rate: int = RATE, format: str = "WAV", **options: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=format, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("format", "subtype", "error"),
    [
        ("WAV", "FLOAT", 0.0),
        ("WAV", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("OGG", "VORBIS", 0.02),
        ("OGG", "OPUS", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.02),
    ],
)
def test_what_was_encoded_is_decoded(
    tmp_path: Path, format: str, subtype: str, error: float
) -> None:
    samples = tone()
    content = encoded(samples, format=format, subtype=subtype)
    (tmp_path / "tone").write_bytes(content)
    found = read_audio(tmp_path / "tone", RATE)
    assert found.dtype == np.float32
    assert found.shape == samples.shape
    assert np.abs(found - samples)[1000:-1000].max() <= error
    np.testing.assert_array_equal(read_audio(content, RATE), found)
    np.testing.assert_array_equal(read_audio(str(tmp_path / "tone"), RATE), found)
    assert duration(tmp_path / "tone") == duration(content) == 1.0


def test_channels_are_averaged() -> None:
    left, right = tone(), tone(frequency=200.0)
    content = encoded(np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_audio(content, RATE), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled_to_the_same_sound(rate: int) -> None:
    content = encoded(tone(rate=rate), rate, subtype="FLOAT")
    found = read_audio(content, RATE)
    assert abs(len(found) - RATE) <= 1
    # Away from the ends, where the filter sees silence.
    np.testing.assert_allclose(found[500:-500], tone()[500 : len(found) - 500], atol=2e-3)
    assert duration(content) == 1.0


def test_longer_files_are_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_cudagraph_asr.audio.BLOCK", 700)
    samples = tone(0.5)
    content = encoded(samples, format="FLAC", subtype="PCM_24")
    np.testing.assert_allclose(read_audio(content, RATE), samples, atol=2**-23)


def test_a_part_of_a_file() -> None:
    samples = tone()
    content = encoded(samples, subtype="FLOAT")
    found = read_audio(content, RATE, offset=0.25, seconds=0.5)
    np.testing.assert_array_equal(found, samples[4000:12_000])
    np.testing.assert_array_equal(
        read_audio(content, RATE, offset=0.9, seconds=9), samples[14_400:]
    )
    with pytest.raises(AudioError, match=r"is 1 s long, and the part wanted begins at 1 s"):
        read_audio(content, RATE, offset=1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded"),
        (b"hello, this is no audio at all", "cannot be decoded"),
        (encoded(tone())[:30], "cannot be decoded"),
        (encoded(tone(), format="FLAC")[:5000], "cannot be decoded"),
        (encoded(tone()[:0]), "holds no samples"),
    ],
)
def test_what_is_no_audio_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(AudioError, match=f"the upload {message}"):
        read_audio(content, RATE)
    (tmp_path / "query.wav").write_bytes(content)
    with pytest.raises(AudioError, match=rf"query\.wav {message}"):
        read_audio(tmp_path / "query.wav", RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(value: float) -> None:
    samples = tone()
    samples[77] = value
    with pytest.raises(AudioError, match="NaN or infinite"):
        read_audio(encoded(samples, subtype="FLOAT"), RATE)


def test_a_rate_whose_filter_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(AudioError, match="44,101 samples a second"):
        read_audio(encoded(tone(), 44_101), RATE)


def test_flac_of_unknown_length_is_refused_at_once() -> None:
    content = bytearray(encoded(tone(), format="FLAC"))
    # STREAMINFO begins at byte 8; its 36 bits of samples end at byte 26. A pipe leaves them 0.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    for read in (lambda: read_audio(bytes(content), RATE), lambda: duration(bytes(content))):
        with pytest.raises(AudioError, match="does not say how long it is"):
            read()


def test_a_header_that_promises_years_allocates_nothing() -> None:
    content = bytearray(encoded(tone(), format="FLAC"))
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4  # 2 ** 36 samples: 256 GiB as float32
    assert duration(bytes(content)) > 4_000_000
    with pytest.raises(AudioError):
        read_audio(bytes(content), RATE)


def test_wav_from_a_pipe_is_read_to_its_end() -> None:
    content = bytearray(encoded(tone(), subtype="FLOAT"))
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    np.testing.assert_array_equal(read_audio(bytes(content), RATE), tone())


def test_samples_without_a_header_are_refused(tmp_path: Path) -> None:
    (tmp_path / "query.raw").write_bytes(bytes(1000))
    with pytest.raises(AudioError, match=r"query\.raw cannot be decoded"):
        read_audio(tmp_path / "query.raw", RATE)


@pytest.mark.parametrize("read", [duration, lambda path: read_audio(path, RATE)])
def test_a_missing_file_is_an_os_error_with_its_name(tmp_path: Path, read: Any) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path / "missing.wav")
    assert str(caught.value.filename).endswith("missing.wav")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


@pytest.mark.parametrize(
    ("module", "extra", "rate"), [("soundfile", "audio", RATE), ("torchaudio", "resample", 8_000)]
)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str, rate: int
) -> None:
    content = encoded(tone(rate=rate), rate)
    for name in (module, f"{module}.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'pip install "hf-cudagraph-asr\[{extra}\]"'):
        read_audio(content, RATE)
