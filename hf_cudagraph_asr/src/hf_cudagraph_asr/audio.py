"""Audio files and uploads as waveforms, and the audio files of a folder."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.extras import imported

__all__ = [
    "AudioError",
    "audio_in",
    "conversion",
    "converted",
    "duration",
    "read_audio",
    "recordings_in",
]

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | bytes
Waveform = npt.NDArray[np.float32]

BLOCK = 1 << 20  # frames decoded at a time: a header that lies about its length allocates nothing

UNKNOWN = 1 << 48  # more than any file has: libsndfile says more where it knows no number

# Weights of the resampling filter. 44,100 to 16,000 Hz needs 441 × 160; rates without a common
# divisor would need gigabytes.
MOST_WEIGHTS = 1 << 22
LEAST_RATE = 500  # samples a second; less is a damaged header

# Placeholders that writers to a pipe put for a size that they cannot know: all ones by ffmpeg,
# 0x7FFFF000 in WAV and 0x7F000000 in AIFF by SoX, 2³¹ by arecord, 2·10⁹ by others; less the size of
# their headers, or rounded to whole frames. And 0 by GStreamer, which `_checked` distinguishes.
PLACEHOLDERS = (2_000_000_000, 0x7F000000, 0x7FFFFFFF, 0xFFFFFFFF)
SLACK = 1 << 16

# Containers of chunks by their first bytes: where the first chunk begins; bytes of a chunk's name;
# the type of the size behind it; bytes of both, where the size counts them too; the alignment of
# chunks; and the name of the chunk with the samples.
CONTAINERS = {
    b"RIFF": (12, 4, "<I", 0, 2, b"data"),
    b"RIFX": (12, 4, ">I", 0, 2, b"data"),
    b"RF64": (12, 4, "<I", 0, 2, b"data"),
    b"FORM": (12, 4, ">I", 0, 2, b"SSND"),  # AIFF
    b"caff": (8, 4, ">Q", 0, 1, b"data"),
    # WAVE64, whose names are GUIDs
    b"riff": (40, 16, "<Q", 24, 8, b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")),
}

# Containers that ffmpeg alone reads, by their first bytes, and its names for them. It is not to
# guess: it would take a playlist too, and follow it to other files and addresses.
DEMUXERS = {rb"....ftyp": "mov", rb"\x1aE\xdf\xa3": "matroska"}  # MP4 and M4A; WebM

# The layer III of MP3: kbit/s by index, of MPEG-1 and of the others; samples a second of MPEG-1;
# what an encoder adds; and what may stand behind the last frame.
BITRATES = (
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
MP3_RATES = (44_100, 48_000, 32_000)
MOST_PADDED = 2 * 1152  # samples
TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")

MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

MOST_BYTES = 2 * 192_000 * 4  # a second, of what it makes: more channels or samples are too many

# Endings besides the names of libsndfile's formats, and the format that each of them stands for.
ALIASES = {
    "wave": "WAV", "bwf": "WAV", "aif": "AIFF", "aifc": "AIFF", "snd": "AU", "oga": "OGG",
    "opus": "OGG", "sph": "NIST",
}  # fmt: skip
# Endings of recordings that libsndfile does not decode, or not in every version.
OTHERS = set(
    "3gp aac ac3 alac amr ape asf avi dts flv gsm m4a m4b m4v mka mkv mov mp2 mp3 mp4 mpeg mpg ogv "
    "opus pcm ra raw rm spx tta vox weba webm wma wmv wv".split()
)


class AudioError(ValueError):
    """This audio cannot be used; the message says which, why, and what to do."""


def read_audio(source: Source, sampling_rate: int) -> Waveform:
    """Decode a file or an upload.

    Channels are averaged, and another rate is resampled (windowed sinc interpolation of
    torchaudio).

    Args:
        source: the path of a file, or its content, in a format that libsndfile decodes, such as
            WAV, FLAC, OGG (Vorbis, Opus) and MP3.
        sampling_rate: samples a second that are wanted.

    Returns:
        (T,) float32, full scale ±1. Files of floats may exceed it, and so may resampling.

    Raises:
        AudioError: it cannot be decoded, holds no samples or some that are not finite, is cut off
            or damaged (which some rare formats do not show, nor MP3 within a frame), does not say
            how long it is, or has a rate that cannot be resampled.
        OSError: there is no such file, or it cannot be opened.
        ImportError: soundfile is missing, or torchaudio where the rate is another.
    """
    name = _name(source)
    blocks: list[Waveform] = []
    with _opened(source) as (file, promised):
        rate, left = int(file.samplerate), promised
        try:
            while left > 0:
                block = file.read(min(left, BLOCK), dtype="float32", always_2d=True)  # (T, C)
                if not len(block):
                    break
                # One channel stays as it is, bit for bit.
                blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
                left -= len(block)
        except _soundfile().SoundFileError as error:
            raise _damaged(name, error) from error
    if left > (MOST_PADDED if file.format == "MP3" else 0) or not blocks:
        raise AudioError(
            f"{name} is cut off, it ends after {promised - left:,} of the {promised:,} samples "
            f"that its header declares: copy or record it again"
        )
    waveform = np.concatenate(blocks)  # (T,)
    if not np.isfinite(waveform).all():
        raise AudioError(f"{name} holds samples that are NaN or infinite: encode it again")
    return _resampled(waveform, rate, sampling_rate, name)


def duration(source: Source) -> float:
    """Seconds of a file or an upload, of which no more than the end is decoded.

    Of most formats only the header is read, of OGG and MP3 all pages and frames.

    Args:
        source: as in `read_audio`.

    Raises:
        AudioError: it cannot be decoded, holds no samples, or is cut off.
        OSError: there is no such file, or it cannot be opened.
        ImportError: soundfile is missing.
    """
    with _opened(source) as (file, frames):
        rate = int(file.samplerate)
        if file.format == "FLAC":  # no bytes are declared: its last sample is there, or it is cut
            try:
                file.seek(frames - 1)
                file.read(1)
            except _soundfile().SoundFileError:  # or only the sizes by which it seeks are damaged
                return len(read_audio(source, rate)) / rate
        return frames / rate


def converted(content: bytes, most_seconds: float, timeout_s: float) -> bytes:
    """Convert an upload that only ffmpeg decodes, MP4 (M4A) or WebM, to WAV of floats.

    Any other is returned as it is. What is longer than `most_seconds` is cut off there, and earlier
    where there are more samples a second than those of two channels at 192,000.

    Raises:
        AudioError: it cannot be decoded, is cut off, or takes longer than `timeout_s`.
        FileNotFoundError: ffmpeg is not installed.
    """
    demuxer = next((of for head, of in DEMUXERS.items() if re.match(head, content, re.S)), None)
    if demuxer is None:
        return content
    if (ffmpeg := shutil.which("ffmpeg")) is None:
        raise FileNotFoundError("MP4, M4A and WebM are decoded by ffmpeg, which is not installed")
    with tempfile.NamedTemporaryFile() as file:  # not a pipe: MP4 may have its index at the end
        file.write(content)
        file.flush()
        options = f"-nostdin -v error -xerror -threads 1 -protocol_whitelist file -f {demuxer} -i"
        most = f"-t {most_seconds:f} -fs {MOST_BYTES * most_seconds:.0f}"
        outputs = f"-map 0:a:0 {most} -c:a pcm_f32le -f wav pipe:1"
        command = [ffmpeg, *options.split(), file.name, *outputs.split()]
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise AudioError(
                f"the upload took ffmpeg more than {timeout_s:g} s: send WAV or FLAC"
            ) from error
    said = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode or said:  # of what is cut off it decodes what is there, and says so
        why = re.sub(r"\[.*?\] ", "", said.partition("\n")[0]).replace(file.name, "the upload")
        raise AudioError(
            f"the upload cannot be decoded, or is cut off (ffmpeg: {why:.200}): convert it to WAV "
            f"or FLAC, or copy it again"
        )
    return done.stdout


def audio_in(folder: str | os.PathLike[str]) -> tuple[list[Path], list[Path]]:
    """Find the audio files in a folder and all below it, by their endings, but hidden ones.

    Returns:
        Files with an ending that libsndfile decodes, in any case; and files that are audio or video
        by their ending, which have to be converted first. Both by ascending path.

    Raises:
        ValueError: there are neither.
    """
    soundfile = _soundfile()
    formats = {*soundfile.available_formats()}
    decoded = {name.lower() for name in formats}
    decoded |= {ending for ending, name in ALIASES.items() if name in formats}
    decoded -= {"raw"}  # samples without a header: nothing says their rate
    if "OPUS" not in soundfile.available_subtypes("OGG"):
        decoded -= {"opus"}
    files = sorted(
        path
        for path in Path(folder).rglob("*")
        # A link that leads nowhere is found too, so that it is not lost in silence.
        if not path.name.startswith(".") and (path.is_file() or not path.exists())
    )
    usable = [path for path in files if path.suffix.lower()[1:] in decoded]
    left_out = [path for path in files if path.suffix.lower()[1:] in OTHERS - decoded]
    if not (usable or left_out):
        raise ValueError(
            f"no audio in {folder} or below it: looked for files that end in .wav, .flac, .ogg, "
            f".mp3 and the like"
        )
    return usable, left_out


def conversion(left_out: Sequence[Path]) -> str:
    """Say which files cannot be decoded, by the second list of `audio_in`, and what to do."""
    names = ", ".join(map(str, left_out[:3])) + (", …" if len(left_out) > 3 else "")
    return (
        f"{len(left_out):,} of the files found have to be converted first ({names}), as with: "
        f"ffmpeg -i {left_out[0]} {left_out[0].with_suffix('.wav')}"
    )


def recordings_in(sources: Iterable[str | os.PathLike[str]]) -> list[str]:
    """List the recordings of files and folders, in the order given.

    Folders are searched with all below them, by ascending path. Files that have to be converted
    first are listed too, with a warning.

    Raises:
        FileNotFoundError: one of them does not exist.
        ValueError: a folder without audio.
    """
    found: list[str] = []
    for path in map(Path, sources):
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}: correct the path")
        usable, left_out = audio_in(path) if path.is_dir() else ([path], [])
        if left_out:
            logger.warning("%s", conversion(left_out))
        found += map(str, sorted([*usable, *left_out]))
    return found


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, int]]:
    soundfile, name = _soundfile(), _name(source)
    # Opened here, so that a file that is missing is an OSError with its name.
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
        whole = _checked(stream, name)
        whole.seek(0)
        try:
            file = soundfile.SoundFile(whole)
        # TypeError: an ending of headerless samples, such as .raw, whose rate only a caller knows.
        except (soundfile.SoundFileError, TypeError) as error:
            how = "" if isinstance(source, bytes) else f", as with: ffmpeg -i {name} converted.wav"
            raise AudioError(
                f"{name} cannot be decoded ({_reason(error)}): convert it to WAV or FLAC{how}"
            ) from error
        with file:
            frames = int(file.frames)
            if (file.format, file.subtype) == ("MP3", "MPEG_LAYER_III"):
                at = whole.tell()
                frames = _checked_mp3(_bytes(whole, 0, -1), frames, name)
                whole.seek(at)
            if frames > UNKNOWN:
                raise AudioError(
                    f"{name} does not say how long it is, as FLAC from a pipe: encode it into a "
                    f"file"
                )
            if not frames:
                raise AudioError(f"{name} holds no samples: leave it out, or record it again")
            yield file, frames


def _checked(stream: BinaryIO, name: str) -> BinaryIO:
    """Refuse audio that ends before its header says: libsndfile reads it as if it were whole.

    Returns the stream; or a copy, without ID3 tags before it, and with the size filled in, where a
    placeholder stands for it and libsndfile would not read on to the end.
    """
    end = stream.seek(0, os.SEEK_END)
    if not end:
        raise AudioError(f"{name} is empty: leave it out, or copy it again")
    tags = 0
    while (head := _bytes(stream, tags, 10)).startswith(b"ID3"):  # its size is in 7 bits a byte
        tags += 10 + sum(byte << 7 * (3 - place) for place, byte in enumerate(head[6:]))
    if tags >= end:
        raise AudioError(f"{name} is cut off within its tag: copy or record it again")
    if tags:  # libsndfile would lose as much from the end of WAV and AIFF
        stream = io.BytesIO(_bytes(stream, tags, end))
        end -= tags
    head = _bytes(stream, 0, 1024)
    if head.startswith(b"OggS") and not _is_whole_ogg(_bytes(stream, 0, end)):
        raise AudioError(
            f"{name} is cut off or damaged, a page is missing: copy or record it again"
        )
    if head.startswith(b"FORM") and end < 54:  # libsndfile would seek to before the beginning
        raise AudioError(f"{name} is cut off within its header: copy or record it again")
    field = _size_field(stream, head)
    if field is None:
        return stream
    at, kind, begin, declared = field
    there = end - begin
    if declared:
        piped = declared != there and _is_placeholder(declared)
    else:  # or there are no samples, and other chunks follow, each of which begins with a name
        piped = there > 0 and not re.match(rb"[ -~]{4}", _bytes(stream, begin, 4))
    if declared > there and not piped:
        raise AudioError(
            f"{name} is cut off, {max(there, 0):,} of the {declared:,} bytes of samples that its "
            f"header declares are there: copy or record it again"
        )
    # Behind the samples there may be other chunks, padding and a few stray bytes.
    if 0 < declared < there and not (
        piped or re.match(rb"\0*(.?[ -~]{4}|.{0,4}\Z)", _bytes(stream, begin + declared, end), re.S)
    ):
        raise AudioError(
            f"{name} holds {there:,} bytes of samples where its header declares {declared:,}, as "
            f"where a recorder was interrupted: copy or record it again"
        )
    if piped and kind.endswith("I") and there >= 1 << 32:
        raise AudioError(
            f"{name} holds more than the 4 GiB that its header can declare: cut it into parts, or "
            f"convert it to FLAC"
        )
    if not piped or (declared and kind.endswith("I")):
        return stream
    content = bytearray(_bytes(stream, 0, end))
    struct.pack_into(kind, content, at, there)
    return io.BytesIO(content)


def _size_field(stream: BinaryIO, head: bytes) -> tuple[int, str, int, int] | None:
    """Find the size that a header declares for its samples.

    Returns:
        Where it is written; its type; where the samples begin; and the bytes of them. None where
        the format declares no size, or nothing is found.
    """
    magic = head[:4]
    if magic == b".snd" and len(head) >= 24:  # AU
        return 8, ">I", *struct.unpack(">II", head[4:12])
    if magic == b"NIST" and len(head) == 1024 and b"shorten" not in head:
        fields = {name: int(value) for name, value in re.findall(rb"(\w+) -i (\d+)", head)}
        names = (b"sample_count", b"channel_count", b"sample_n_bytes")
        return 0, "<I", 1024, math.prod(fields.get(name, 0) for name in names)
    if magic not in CONTAINERS:
        return None
    at, named, kind, own, aligned, samples = CONTAINERS[magic]
    header = named + struct.calcsize(kind)
    while at < UNKNOWN and len(chunk := _bytes(stream, at, header)) == header:
        (size,) = struct.unpack(kind, chunk[named:])
        size = max(size - own, 0)
        if chunk.startswith(samples):
            if magic == b"RF64" and head[12:16] == b"ds64":
                return 28, "<Q", at + header, *struct.unpack("<Q", head[28:36])
            return at + named, kind, at + header, size
        at += header + size
        at += -at % aligned
    return None


def _is_placeholder(size: int) -> bool:
    return size >= UNKNOWN or any(abs(size - value) <= SLACK for value in PLACEHOLDERS)


def _checked_mp3(content: bytes, promised: int, name: str) -> int:
    """Refuse an MP3 that lacks a frame: libmpg123 goes on with the next one it finds.

    What is damaged within a frame does not show, as frames have no checksum.

    Returns:
        Samples of each channel: as promised, but no more than there are.
    """
    first, at, found, samples = content[:4], 0, 0, 0
    header = re.search(rb"(?:Xing|Info)...(.)(....)", content[:256], re.DOTALL)
    counted = int.from_bytes(header[2], "big") if header and header[1][0] & 1 else 0
    while (frame := _mp3_frame(content[at : at + 4], first)) is not None:
        size, samples = frame
        at += size
        found += 1
    rest = content[at:].strip(b"\0")
    # The frame with the count does not count.
    if at > len(content) or 0 < found <= counted or (rest and not rest.startswith(TAGS)):
        raise AudioError(
            f"{name} is cut off or damaged, a frame is missing: copy or record it again"
        )
    there = (found - (counted > 0)) * samples
    # libmpg123 reads as many as are counted; or guesses, where bytes before the count are not 0.
    ignored = header is not None and content[6 : header.start()].strip(b"\0")
    more = 0 < counted < found - 1 or _holds_mp3(rest)
    if ignored or more or (counted and promised < there - MOST_PADDED):
        raise AudioError(
            f"{name} holds more than its first frame says, as several MP3 in one file, or that "
            f"frame is damaged: encode it again"
        )
    if promised < there - MOST_PADDED:
        raise AudioError(
            f"{name} does not say how long it is, as MP3 of a varying bitrate from a pipe: encode "
            f"it into a file"
        )
    return min(promised, there)


def _holds_mp3(content: bytes) -> bool:
    """Whether there are two frames, one behind the other."""
    for found in re.finditer(rb"\xff[\xe0-\xff]", content):
        at = found.start()
        head = content[at : at + 4]
        if (frame := _mp3_frame(head, head)) is not None:
            at += frame[0]
            if _mp3_frame(content[at : at + 4], head) is not None:
                return True
    return False


def _mp3_frame(head: bytes, first: bytes) -> tuple[int, int] | None:
    """Bytes and samples of the frame that begins so, if it is one as the first is."""
    if len(head) < 4 or len(first) < 4:
        return None
    bits, other = int.from_bytes(head, "big"), int.from_bytes(first, "big")
    version, bitrate, rate = bits >> 19 & 3, bits >> 12 & 15, bits >> 10 & 3
    alike = (bits ^ other) & 0xFFFE_0C00 == 0 and (bits & 192 == 192) == (other & 192 == 192)
    layer_iii = bits >> 21 == 0x7FF and bits >> 17 & 3 == 1
    if not (alike and layer_iii and version != 1 and rate != 3 and 0 < bitrate < 15):
        return None
    samples = 1152 if version == 3 else 576
    a_second = MP3_RATES[rate] >> (0, 1, 1, 2)[3 - version]
    kilobits = BITRATES[version != 3][bitrate - 1]
    return samples // 8 * 1000 * kilobits // a_second + (bits >> 9 & 1), samples


def _is_whole_ogg(content: bytes) -> bool:
    """Whether each page is there as it was written, and the last of each stream (RFC 3533, 6)."""
    at, following, ended = 0, dict[int, int](), set[int]()
    while content.startswith(b"OggS\0", at) and len(content) >= at + 27:
        parts = content[at + 26]
        page = content[at : at + 27 + parts + sum(content[at + 27 : at + 27 + parts])]
        serial, number = struct.unpack_from("<II", page, 14)
        if number != following.get(serial, number) or not _is_whole_page(page):
            return False
        following[serial] = number + 1
        if page[5] & 4:
            ended.add(serial)
        at += len(page)
    return ended == following.keys()


def _is_whole_page(page: bytes) -> bool:
    """Whether its checksum is right: zlib's polynomial, without complements, in mirrored bits."""
    without = page[:22] + bytes(4) + page[26:]
    found = zlib.crc32(without.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return found.to_bytes(4, "big").translate(MIRRORED) == page[22:26]


def _bytes(stream: BinaryIO, at: int, count: int) -> bytes:
    stream.seek(at)
    return stream.read(count)


def _soundfile() -> Any:
    return imported("soundfile", "audio", "reading audio")


def _damaged(name: str, error: Exception) -> AudioError:
    return AudioError(f"{name} is cut off or damaged ({_reason(error)}): copy or record it again")


def _reason(error: Exception) -> str:
    found: str = getattr(error, "error_string", str(error))
    return found.removeprefix("Error : ").rstrip(". ")


def _name(source: Source) -> str:
    return "the upload" if isinstance(source, bytes) else os.fspath(source)


def _resampled(waveform: Waveform, rate: int, wanted: int, name: str) -> Waveform:
    if rate == wanted:
        return waveform
    common = math.gcd(rate, wanted)
    if rate < LEAST_RATE or rate // common * (wanted // common) > MOST_WEIGHTS:
        raise AudioError(
            f"{name} has {rate:,} samples a second, from which {wanted:,} cannot well be made: "
            f"convert it to a usual rate, such as {wanted:,} or 48,000, first"
        )
    use = f"{name} has {rate:,} samples a second and {wanted:,} are wanted; resampling"
    functional = imported("torchaudio.functional", "resample", use)
    import torch

    found: Waveform = functional.resample(torch.from_numpy(waveform), rate, wanted).numpy()
    return found
