"""Files and uploads become waveforms, or errors that say what is wrong with them."""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cudagraph_asr import AudioError, read_audio
from hf_cudagraph_asr.audio import TooLong, decoded, opened, recordings_in

RATE = 16_000
ID3 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)  # a tag that says nothing


def tone(seconds: float = 1.0, rate: int = RATE, frequency: float = 440.0) -> Any:
    at = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * frequency * at)).astype(np.float32)


def encoded(samples: Any, rate: int = RATE, format: str = "WAV", **options: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=format, **options)
    return stream.getvalue()


def patched(content: bytes, at: int, kind: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(kind, changed, at, value)
    return bytes(changed)


def refused(content: bytes, message: str, file: Path | None = None) -> None:
    """Read as an upload and as a file."""
    sources: list[Any] = [content]
    if file is not None:
        file.write_bytes(content)
        sources.append(file)
    for source in sources:
        with pytest.raises(AudioError, match=message):
            read_audio(source, RATE)


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


def test_channels_are_averaged() -> None:
    left, right = tone(), tone(frequency=200.0)
    content = encoded(np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_audio(content, RATE), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 48_000])
def test_another_rate_is_resampled_to_the_same_sound(rate: int) -> None:
    content = encoded(tone(rate=rate), rate, subtype="FLOAT")
    found = read_audio(content, RATE)
    assert abs(len(found) - RATE) <= 1
    # Away from the ends, where the filter sees silence.
    np.testing.assert_allclose(found[500:-500], tone()[500 : len(found) - 500], atol=2e-3)


def test_a_rate_whose_filter_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(AudioError, match="44,101 samples a second"):
        read_audio(encoded(tone(), 44_101), RATE)


def test_longer_files_are_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_cudagraph_asr.audio.BLOCK", 700)
    samples = tone(0.5)
    content = encoded(samples, format="FLAC", subtype="PCM_24")
    np.testing.assert_allclose(read_audio(content, RATE), samples, atol=2**-23)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is no audio at all", "cannot be decoded"),
        (encoded(tone())[:11], "cannot be decoded"),
        (encoded(tone())[:30], "cannot be decoded"),  # within `fmt `
        (encoded(tone())[:40], "cannot be decoded"),  # `data`, without its size
        (encoded(tone()[:0]), "holds no samples"),
    ],
)
def test_what_is_no_audio_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    refused(content, rf"(the upload|query\.wav) {message}", tmp_path / "query.wav")


def test_an_ending_of_samples_without_a_header_is_no_format(tmp_path: Path) -> None:
    (tmp_path / "query.raw").write_bytes(bytes(1000))
    with pytest.raises(AudioError, match=r"query\.raw cannot be decoded"):
        read_audio(tmp_path / "query.raw", RATE)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_samples_that_are_not_finite_are_refused(value: float) -> None:
    samples = tone()
    samples[77] = value
    with pytest.raises(AudioError, match="NaN or infinite"):
        read_audio(encoded(samples, subtype="FLOAT"), RATE)


# --- cut off in transfer

# A format, its subtype, and bytes of a sample; None where samples share bytes.
FORMATS = [
    ("WAV", "PCM_16", 2),
    ("WAV", "PCM_U8", 1),
    ("WAV", "ULAW", 1),
    ("WAV", "IMA_ADPCM", None),
    ("WAVEX", "PCM_24", 3),
    ("FLAC", "PCM_16", None),
    ("OGG", "VORBIS", None),
    ("OGG", "OPUS", None),
]


@pytest.mark.parametrize(("format", "subtype", "width"), FORMATS)
def test_audio_that_is_cut_off_is_no_audio(
    tmp_path: Path, format: str, subtype: str, width: int | None
) -> None:
    content = encoded(tone(), format=format, subtype=subtype)  # of an even size: no padding
    file = tmp_path / "query.wav"
    for kept in (len(content) // 2, len(content) - 1, len(content) - (width or 7)):
        refused(content[:kept], r"^(the upload|.*query\.wav) .*is cut off", file)
    # Nothing but some of the header, which libsndfile itself may refuse.
    header = len(content) - RATE * width if width else 100
    refused(content[:header], "is cut off|holds no samples", file)
    for kept in (4, 12, 20, header // 2):
        refused(content[:kept], "is cut off|cannot be decoded|holds no samples", file)


def test_big_endian_wav_is_measured_too() -> None:
    content = encoded(tone(), endian="BIG")
    assert content.startswith(b"RIFX")
    assert len(read_audio(content, RATE)) == RATE
    refused(content[:-2], "is cut off")


def test_the_error_says_how_much_is_there(tmp_path: Path) -> None:
    refused(
        encoded(tone())[:20_044],
        r"query\.wav is cut off, 20,000 of the 32,000 bytes of samples that its header declares "
        r"are there: copy or record it again|the upload is cut off, 20,000 of",
        tmp_path / "query.wav",
    )


def chunk(name: bytes, content: bytes, *, padded: bool = True) -> bytes:
    padding = b"\0" * (len(content) % 2) if padded else b""
    return name + struct.pack("<I", len(content)) + content + padding


def wav(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


FMT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, RATE, 1, 8))  # a byte a sample
LIST = chunk(b"LIST", b"INFOISFT\x0d\0\0\0Lavf58.29.100\0")
ODD = chunk(b"junk", b"data!")  # of an odd size, with a name in it that is no chunk's


@pytest.mark.parametrize("samples", [999, 1000])
@pytest.mark.parametrize("before", [(FMT,), (LIST, FMT), (FMT, ODD), (ODD, LIST, FMT, ODD)])
@pytest.mark.parametrize("after", [(), (LIST,), (ODD, LIST)])
def test_other_chunks_and_padding_are_no_samples(
    samples: int, before: tuple[bytes, ...], after: tuple[bytes, ...]
) -> None:
    data = chunk(b"data", bytes([128, 255] * samples)[:samples])
    whole = wav(*before, data, *after)
    assert len(read_audio(whole, RATE)) == samples
    end = len(wav(*before)) + 8 + samples
    # What comes after the samples may be missing: the byte of padding often is.
    assert len(read_audio(whole[:end], RATE)) == samples
    refused(whole[: end - 1], "is cut off")


@given(st.integers(0, 1500), st.sampled_from(["WAV", "WAVEX", "FLAC"]))
@settings(max_examples=40)
def test_no_part_of_a_file_passes_for_all_of_it(kept: int, format: str) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 800)
    content = encoded(noise, format=format, subtype="PCM_16")
    assert len(content) > 1500
    refused(content[:kept], "is cut off|cannot be decoded|holds no samples|is empty")


@pytest.mark.parametrize(
    "size",
    [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 2_000_000_000],
)
def test_wav_from_a_pipe_is_read_to_its_end(size: int) -> None:
    content = encoded(tone(), subtype="FLOAT")
    at = content.index(b"data") + 4
    for outer in (0, at - 4, min(size + at - 4, 0xFFFFFFFF), 0xFFFFFFFF):
        piped = patched(patched(content, at, "<I", size), 4, "<I", outer)
        np.testing.assert_array_equal(read_audio(piped, RATE), tone())


@pytest.mark.parametrize("declared", [0, 100, 16_000, 31_000])
@pytest.mark.parametrize("rest", [b"\1", b"\0"], ids=["sound", "silence"])
def test_more_samples_than_the_header_declares_are_not_left_out(declared: int, rest: bytes) -> None:
    content = encoded(tone(), subtype="PCM_16")
    at = content.index(b"data") + 4
    content = content[: at + 4 + declared] + rest * 200 + content[at + 204 + declared :]
    refused(patched(content, at, "<I", declared), "more samples than its header declares")


@pytest.mark.parametrize(
    ("subtype", "width"), [("ULAW", 1), ("ALAW", 1), ("PCM_16", 2), ("PCM_24", 3), ("DOUBLE", 8)]
)
def test_sound_is_left_out_under_no_declared_size(subtype: str, width: int) -> None:
    content = encoded(tone(), subtype=subtype)
    at = content.index(b"data") + 4
    for declared in range(100, width * RATE - 20, 997):  # odd ones too
        refused(patched(content, at, "<I", declared), "more samples than its header declares")


@pytest.mark.parametrize("subtype", ["ULAW", "PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize(("at", "bit"), [(22, 2), (24, 64), (25, 1), (28, 1), (32, 3), (34, 24)])
@pytest.mark.parametrize("format", ["WAV", "WAVEX"])
def test_a_wav_header_that_contradicts_itself_is_refused(
    format: str, subtype: str, at: int, bit: int
) -> None:
    content = encoded(tone(), format=format, subtype=subtype)
    with pytest.raises(AudioError):
        read_audio(patched(content, at, "B", content[at] ^ bit), RATE)


@pytest.mark.parametrize("rate", [8000, RATE, 44_100, 48_000])
def test_flac_whose_rate_is_damaged_is_refused(rate: int) -> None:
    content = encoded(tone(rate=rate), rate, "FLAC")
    assert len(read_audio(ID3 + content, rate)) == rate
    refused(
        patched(content, 19, "B", content[19] ^ 1), "its checksum, rate or length is another one"
    )


def test_an_mp3_without_a_count_that_ends_in_zeros_may_have_lost_frames() -> None:
    frame = b"\xff\xf3\x88\xc4" + bytes(284)  # of silence, .036 s
    assert len(read_audio(frame * 40 + bytes(128), RATE)) == 40 * 576
    refused(frame * 30 + bytes(10 * 288), "is cut off, damaged")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_chain_of_ogg_is_not_read_to_the_end_of_its_first(subtype: str) -> None:
    first, other = (encoded(tone(), format="OGG", subtype=subtype) for _ in range(2))
    assert len(read_audio(first, RATE)) == RATE
    refused(first + other, "several recordings in a chain")  # each with a number of its own
    refused(first + b"?" + other, "several recordings in a chain")


WHOLE = {kind: encoded(tone(0.3), format=kind) for kind in ("FLAC", "MP3", "OGG", "WAV")}
OTHERS = {
    **WHOLE,
    "MP4": b"\0\0\0\x1cftypM4A \0\0\2\0",
    "WebM": b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm",
}


@pytest.mark.parametrize("between", [b"", ID3, b"TAG" + bytes(125)], ids=["", "ID3", "TAG"])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("first", WHOLE)
def test_a_recording_behind_another_is_not_lost(first: str, other: str, between: bytes) -> None:
    assert len(read_audio(WHOLE[first] + (between if first != "WAV" else b""), RATE)) == 4800
    refused(
        WHOLE[first] + between + OTHERS[other], "goes on behind|in a chain|several (MP3|recordings)"
    )


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_a_recording_behind_wav_from_a_pipe_is_no_noise(endian: str) -> None:
    content = encoded(tone(0.3), endian=endian)
    at = content.index(b"data") + 4
    piped = patched(patched(content, 4, "<I", 0xFFFFFFFF), at, "<I", 0xFFFFFFFF)
    assert len(read_audio(piped, RATE)) == 4800
    for other in (piped, *OTHERS.values()):
        refused(piped + other, "several recordings in one file")


def test_webm_that_is_cut_off_in_its_head_is_not_several() -> None:
    refused(OTHERS["WebM"], "ffmpeg: |which ffmpeg decodes, and it is not installed")


@pytest.mark.parametrize("codec", [b"\x7fFLAC\1\0", b"Speex  ", b"\x80theora"])
def test_ogg_of_another_codec_is_not_called_damaged(codec: bytes) -> None:
    content = encoded(tone(), format="OGG", subtype="VORBIS")
    content = content[:28] + codec + content[28 + len(codec) :]
    refused(content, "is FLAC, Speex or video in OGG, of which Vorbis and .* convert it: ffmpeg")


def test_a_tag_with_a_footer_is_skipped() -> None:
    head = b"\x04\0\x10\0\0\x02\0"
    content = b"ID3" + head + bytes(256) + b"3DI" + head + encoded(tone())
    assert len(read_audio(content, RATE)) == RATE


def test_a_million_tags_are_skipped_at_once() -> None:
    refused(b"ID3\x04\0\0\0\0\0\0" * 1_000_000, "is empty, or cut off within a tag")


def test_many_channels_of_a_high_rate_are_too_long_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = encoded(np.zeros((655_350, 8), np.int16), 655_350, "FLAC")
    monkeypatch.delattr("soundfile.SoundFile.read")
    with pytest.raises(TooLong, match="8 channels of 655,350 samples a second, more than"):
        decoded(content, RATE, most_seconds=2)


@pytest.mark.parametrize("behind", [b"x", bytes(8), bytes(1001), b"LIST\0\1\2\3"])
def test_padding_and_other_chunks_behind_samples_are_left_out(behind: bytes) -> None:
    assert len(read_audio(encoded(tone()) + behind, RATE)) == RATE


@pytest.mark.parametrize("format", ["AIFF", "AU", "CAF", "NIST", "RF64", "W64"])
def test_other_formats_are_refused_with_the_remedy(tmp_path: Path, format: str) -> None:
    refused(
        encoded(tone(), format=format, subtype="PCM_16"),
        rf"is {format}, expected WAV, .*: convert it, as with: ffmpeg -i",
        tmp_path / "query",
    )


def test_no_samples_before_other_chunks_are_no_placeholder() -> None:
    refused(wav(FMT, chunk(b"data", b""), LIST), "holds no samples")


def test_ogg_without_its_last_page_is_cut_off() -> None:
    content = encoded(tone(3), format="OGG", subtype="VORBIS")
    last = content.rindex(b"OggS")
    assert content[last + 5] == 4
    refused(content[:last], "is cut off or damaged, a page is missing")
    longer = encoded(tone(9), format="OGG", subtype="VORBIS")
    *_, middle, end = (found.start() for found in re.finditer(b"OggS", longer))
    refused(longer[:middle] + longer[end:], "is cut off or damaged, a page is missing")
    assert len(read_audio(content + b"a tag", RATE)) == 3 * RATE


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_damaged_ogg_page_is_no_silence(subtype: str) -> None:
    content = encoded(tone(9), format="OGG", subtype=subtype)
    last = content.rindex(b"OggS")
    for at in (last - 100, last + 5, len(content) - 1):  # a body, a header, the last body
        refused(patched(content, at, "B", content[at] ^ 16), "is cut off or damaged, a page is")


def mp3_frames(content: bytes) -> list[int]:
    """Where the frames of one that is encoded here begin: all are alike in the first two bytes."""
    return [found.start() for found in re.finditer(re.escape(content[:2]), content)]


@pytest.mark.parametrize("bit", [(0, 1), (2, 128), (2, 4), (3, 64)], ids=str)
@pytest.mark.parametrize("counted", [True, False])
def test_an_mp3_with_a_damaged_frame_is_not_half_a_recording(
    bit: tuple[int, int], counted: bool
) -> None:
    content = encoded(tone(4), format="MP3", bitrate_mode="CONSTANT", compression_level=0.0)
    content = content if counted else content[mp3_frames(content)[1] :]
    at = mp3_frames(content)[20]
    at, flipped = at + bit[0], bit[1]
    damaged = patched(content, at, "B", content[at] ^ flipped)
    refused(damaged, "is cut off, damaged, several MP3")


def test_an_mp3_cut_between_frames_is_known_by_its_count_and_tags_are_no_frames() -> None:
    content = encoded(tone(4), format="MP3")
    refused(content[: mp3_frames(content)[-1]], "is cut off, damaged, several MP3")
    refused(content + b"no tag", "is cut off, damaged, several MP3")
    for behind in (b"TAG" + bytes(125), bytes(500)):
        assert len(read_audio(content + behind, RATE)) == 4 * RATE


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("between", [b"", b"TAG", b"TAG" + bytes(125), ID3], ids=len)
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_several_mp3_in_one_file_are_not_read_to_the_end_of_the_first(
    mode: str, between: bytes, rate: int
) -> None:
    first = encoded(tone(), format="MP3", bitrate_mode=mode)
    assert len(read_audio(first + between, RATE)) == RATE
    refused(
        first + between + encoded(tone(), rate, format="MP3", bitrate_mode=mode),
        "is cut off, damaged, several MP3",
    )


def test_mp3_in_wav_is_read_and_its_frames_are_looked_at() -> None:
    content = encoded(tone(), format="MP3", bitrate_mode="CONSTANT", compression_level=0.0)
    content = content[720:]  # as ffmpeg writes it, which counts a frame too many; of 720 bytes
    count = 576 * (len(content) // 720)
    about = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 0, 576, 0, 12, 1, 2, 1152, 1, 0x571)
    fact = chunk(b"fact", struct.pack("<I", count + 576))
    whole = wav(chunk(b"fmt ", about), fact, chunk(b"data", content), LIST)
    assert len(read_audio(whole, RATE)) == count
    refused(whole[: -len(LIST) - 2], "is cut off")
    refused(whole.replace(content, patched(content, 7200, "B", 0)), "is cut off, damaged")


@pytest.mark.parametrize("counted", [True, False])
def test_a_picture_in_a_tag_that_has_bytes_of_a_frame_is_no_other_mp3(counted: bool) -> None:
    content = encoded(tone(), format="MP3", bitrate_mode="CONSTANT", compression_level=0.0)
    uncounted = content[mp3_frames(content)[1] :]
    tagged = (content if counted else uncounted) + b"APETAGEX" + 9 * (content[:4] + bytes(200))
    assert len(read_audio(tagged, RATE)) >= RATE
    refused(tagged + uncounted, "is cut off, damaged, several MP3")


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("MP3", {"bitrate_mode": "CONSTANT"}),
        ("MP3", {"bitrate_mode": "VARIABLE"}),
        ("CAF", {"subtype": "PCM_16"}),
        ("W64", {"subtype": "PCM_16"}),
        ("OGG", {"subtype": "OPUS"}),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_header_makes_no_recording_shorter(format: str, options: dict[str, Any]) -> None:
    content = encoded(tone(0.5), format=format, **options)
    # The format and the rate of CAF: what they say is true of some recording.
    for at in {*range(64)} - ({*range(20, 52)} if format == "CAF" else set()):
        for bit in range(8):
            damaged = patched(content, at, "B", content[at] ^ 1 << bit)
            try:
                found = read_audio(damaged, RATE)
            except AudioError:
                continue
            assert len(found) >= RATE // 2, (at, bit)


def test_flac_whose_sizes_of_frames_are_damaged_is_read() -> None:
    content = encoded(tone(), format="FLAC")
    for at in range(8, 18):
        damaged = patched(content, at, "B", 255)
        try:
            assert len(read_audio(damaged, RATE)) == RATE
        except AudioError:
            refused(damaged, "")


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_whose_number_of_samples_is_damaged_is_refused(subtype: str, channels: int) -> None:
    content = encoded(np.stack([tone()] * channels, 1), format="FLAC", subtype=subtype)
    assert len(read_audio(content, RATE)) == RATE
    assert len(read_audio(content[:26] + bytes(16) + content[42:], RATE)) == RATE
    for fewer in (0x3E7F, 0x1000, 0x0800, 0x0001):  # of 0x3E80
        damaged = patched(content, 24, ">H", fewer)
        message = "is damaged, its checksum, rate or length is another one"
        if fewer <= 0x3000:  # the last frame is not among these
            message = f"goes on behind the {fewer:,} samples that its header declares"
        refused(damaged, message)
        # Encoders that write to a pipe have none.
        unchecked = damaged[:26] + bytes(16) + damaged[42:]
        refused(unchecked, message)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 40.0])  # frames: one, four, 157 (of two bytes)
@pytest.mark.parametrize("checked", [True, False])
def test_flac_is_not_read_to_the_end_of_its_first(seconds: float, checked: bool) -> None:
    content = encoded(tone(seconds), format="FLAC")
    if not checked:
        content = content[:26] + bytes(16) + content[42:]
    junk = bytes(np.random.default_rng(0).integers(1, 256, 5000, np.uint8))
    for behind in (content, content[-2000:], b"\1", junk):
        refused(content + behind, "goes on behind the .* as several FLAC in one file do: copy it")
        with pytest.raises(AudioError, match="goes on"), opened(content + behind, RATE):
            pass  # nothing is decoded for `plan`
    ape = b"APETAGEX\xd0\x07\0\0 \0\0\0" + bytes(16)
    for behind in (b"TAG" + b"a" * 125, ape + ape, ape + ape + b"TAG" + b"a" * 125, bytes(3000)):
        np.testing.assert_array_equal(read_audio(content + behind, RATE), read_audio(content, RATE))
    for lost in (1, 20):
        refused(content[:-lost], "is cut off")


def test_adpcm_whose_bytes_a_second_are_any_number_is_read() -> None:
    for subtype in ("IMA_ADPCM", "MS_ADPCM"):
        content = encoded(tone(), format="WAV", subtype=subtype)
        found = read_audio(patched(content, 28, "<I", 16_000), RATE)  # as ffmpeg writes
        np.testing.assert_array_equal(found, read_audio(content, RATE))


def test_flac_of_unknown_length_is_refused_at_once() -> None:
    content = bytearray(encoded(tone(), format="FLAC"))
    # STREAMINFO begins at byte 8; its 36 bits of samples end at byte 26. A pipe leaves them 0.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    refused(bytes(content), "does not say how long it is")


def test_a_header_that_promises_years_allocates_nothing() -> None:
    content = bytearray(encoded(tone(), format="FLAC"))
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4  # 2 ** 36 samples: 256 GiB as float32
    refused(bytes(content), "at most 86,400 are taken")


# --- files and folders


def test_a_missing_file_is_an_os_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read_audio(tmp_path / "missing.wav", RATE)
    assert str(caught.value.filename).endswith("missing.wav")
    with pytest.raises(IsADirectoryError):
        read_audio(tmp_path, RATE)


def test_a_folder_is_searched_to_its_leaves_in_order(tmp_path: Path) -> None:
    listed = ["b.wav", "a/z.FLAC", "a/b/c.ogg", "B.mp3", "c.opus", "d.wave", "e.WAV", "g.aif",
              "h.oga", "a.m4a", "a/b.webm", "c.MP4", "d.aac", "e.mkv", "g.wma"]  # fmt: skip
    neither = ["notes.txt", "a/.hidden.wav", "wav", "lines.jsonl", "a/.hidden.m4a"]
    for name in listed + neither:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    ascending = sorted(tmp_path / name for name in listed)
    assert recordings_in([tmp_path]) == [str(path) for path in ascending]


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no audio in .* or below it: .*\.flac"):
        recordings_in([tmp_path])


def test_sources_come_in_the_order_given_and_nothing_is_lost(tmp_path: Path) -> None:
    for name in ("z.m4a", "in/b.wav", "in/a.webm", "in/sub/c.flac", "none/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = recordings_in([tmp_path / "z.m4a", str(tmp_path / "in"), tmp_path / "none/d.wav"])
    names = ["z.m4a", "in/a.webm", "in/b.wav", "in/sub/c.flac", "none/d.wav"]
    assert found == [str(tmp_path / name) for name in names]
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*missing\.wav: correct"):
        recordings_in([tmp_path / "missing.wav"])


@pytest.mark.parametrize(
    ("module", "extra", "rate"), [("soundfile", "audio", RATE), ("torchaudio", "resample", 8_000)]
)
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str, rate: int
) -> None:
    content = encoded(tone(rate=rate), rate)
    for name in (module, f"{module}.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'pip install "hf-cudagraph-asr\[{extra}\]"'):
        read_audio(content, RATE)


@pytest.mark.parametrize(("format", "subtype", "width"), FORMATS)
def test_a_tag_before_a_recording_is_skipped(format: str, subtype: str, width: int | None) -> None:
    content = encoded(tone(), format=format, subtype=subtype)
    np.testing.assert_array_equal(read_audio(ID3 + ID3 + content, RATE), read_audio(content, RATE))
    refused(ID3 + content[: -(width or 7)], "is cut off")
    refused(ID3 + ID3[:-1], "is empty, or cut off within a tag")


@pytest.mark.parametrize(
    "tag",
    [
        b"",
        ID3,
        b"ID3\x04\x00\x20\x00\x00\x02\x00" + bytes(256),
    ],
    ids=["none", "tag", "experimental"],
)
def test_an_mp3_that_counts_its_bytes_is_known_to_be_cut_off(tag: bytes) -> None:
    content = tag + encoded(tone(), format="MP3")
    assert len(read_audio(content, RATE)) == RATE
    for end in (len(content) // 2, len(content) - 1):
        refused(content[:end], "is cut off")


def test_a_rate_that_is_hardly_one_is_refused() -> None:
    refused_rate = encoded(tone(0.01), 1)
    with pytest.raises(AudioError, match="1 samples a second"):
        read_audio(refused_rate, RATE)


def test_a_link_that_leads_nowhere_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(tone()))
    (tmp_path / "b.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "c.wav").mkdir()
    assert recordings_in([tmp_path]) == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]


def test_links_to_folders_are_followed_to_each_folder_once(tmp_path: Path) -> None:
    for name in ("in/zz/a.wav", "in/b.wav", "out/deep/c.wav", "out/d.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {"in/again": "in/zz", "in/loop": "in", "in/more": "out", "out/back": "in",
             "out/deep/up": "out", "in/gone": "nowhere", "in/zz/more": "out"}  # fmt: skip
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    names = ["in/b.wav", "in/more/d.wav", "in/more/deep/c.wav", "in/zz/a.wav"]
    assert recordings_in([tmp_path / "in"]) == [str(tmp_path / name) for name in names]
    assert recordings_in([tmp_path / "in/again"])[0] == str(tmp_path / "in/again/a.wav")


def test_a_folder_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.wav", "locked/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    scandir, locked = os.scandir, str(tmp_path / "locked")

    def scan(path: Any) -> Any:  # the tests' user may open all
        if os.fspath(path) == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), locked)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert recordings_in([tmp_path]) == [str(tmp_path / "a.wav")]
    assert caplog.messages == [
        f"left out, as it cannot be opened: {locked} ({os.strerror(errno.EACCES)})"
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_pipes_in_a_folder_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(tone()))
    os.mkfifo(tmp_path / "b.wav")
    (tmp_path / "c.wav").symlink_to(tmp_path / "b.wav")
    assert recordings_in([tmp_path]) == [str(tmp_path / "a.wav")]
    (warning,) = caplog.messages
    assert warning.endswith(f"regular files: {tmp_path / 'b.wav'}, {tmp_path / 'c.wav'}")
    assert recordings_in([tmp_path / "b.wav"]) == [str(tmp_path / "b.wav")]  # it was asked for


def test_an_mp3_that_holds_more_than_it_seems_to_is_refused() -> None:
    # By its length and its first frame it would be a quarter as long as it is.
    high, low = (
        encoded(tone(), format="MP3", bitrate_mode="CONSTANT", compression_level=level)
        for level in (0.0, 0.9)
    )
    uncounted = high[high.index(high[:2], 4) :]  # the first frame counts the others
    assert len(read_audio(uncounted, RATE)) >= RATE
    with pytest.raises(AudioError, match="varying bitrate from a pipe"):
        read_audio(uncounted + 9 * low, RATE)
