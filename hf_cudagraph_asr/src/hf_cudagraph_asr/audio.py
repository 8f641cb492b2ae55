"""Audio files and uploads as waveforms, and the audio files of a folder."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_cudagraph_asr.extras import imported

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | bytes
Waveform = npt.NDArray[np.float32]

DAY = 24 * 3600.0
BLOCK = 1 << 20  # frames decoded at a time: a header that lies about its length allocates nothing

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")  # libsndfile's that are known to be whole

# PCM, float, A-law, µ-law and what says so in an extension: so many bytes for each sample.
UNCOMPRESSED = (1, 3, 6, 7, 0xFFFE)
_CHUNK = re.compile(rb"[A-Za-z0-9_ ]{4}.{4}", re.DOTALL)

# Endings of recordings in a folder. Whether one can be decoded shows when it is read.
ENDINGS = set(
    "3gp aac ac3 aif aiff amr au avi caf flac flv m4a m4b m4v mka mkv mov mp2 mp3 mp4 mpeg mpg oga "
    "ogg ogv opus ra sph w64 wav wave weba webm wma wmv wv".split()
)

# Containers that ffmpeg alone reads, by their first bytes, and its names for them. It is not to
# guess: it would take a playlist too, and follow it to other files and addresses.
DEMUXERS = {rb"....ftyp": "mov", rb"\x1aE\xdf\xa3": "matroska"}  # MP4 and M4A; WebM
# How recordings begin that may stand behind another: FLAC, OGG, WAV, MP4; WebM, counted MP3.
HEADS = (rb"fLaC[\0\x80]\0\0\x22", rb"OggS\0\x02", rb"RIF[FX]....WAVE", rb"ftyp(?<=\0\0\0.ftyp)",
         rb"B\x82[\x84\x88](webm|matroska)", rb"(Xing|Info)\0{3}(?<=\0{9}.{7})")  # fmt: skip

# Weights of the resampling filter. 44,100 to 16,000 Hz needs 441 × 160; rates without a common
# divisor would need gigabytes.
MOST_WEIGHTS = 1 << 22
# Samples of all channels that are decoded for each second that is taken: in some kilobytes of FLAC
# there may be gigabytes of silence.
MOST_A_SECOND = 8 * 48_000
LEAST_RATE = 500  # samples a second; less is a damaged header

# Sizes of samples that writers to a pipe declare, as they cannot know them: all ones by ffmpeg,
# 0x7FFFF000 by SoX, 2³¹ by arecord, 2·10⁹ by others; less the size of their headers.
PLACEHOLDERS = (2_000_000_000, 0x7FFFFFFF, 0xFFFFFFFF)
SLACK = 1 << 16

# The layer III of MP3: kbit/s by index, of MPEG-1 and of the others; samples a second of MPEG-1;
# what an encoder adds; and what may stand behind the last frame.
BITRATES = (
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
MP3_RATES = (44_100, 48_000, 32_000)
MOST_PADDED = 2 * 1152  # samples
MOST_ZEROS = 512  # bytes behind the last frame; more may have been frames, where none are counted
TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")

# By the code in a frame; 0: it says another.
FLAC_RATES = (0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)

MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class AudioError(ValueError):
    """This audio cannot be used; the message says which, why, and what to do."""


class TooLong(AudioError):
    """This audio is longer than is taken."""


def read_audio(source: Source, sampling_rate: int) -> Waveform:
    """Decode a file or an upload: WAV, FLAC, OGG (Vorbis, Opus) or MP3; by ffmpeg MP4, M4A or WebM.

    Channels are averaged, and another rate is resampled (windowed sinc interpolation of
    torchaudio).

    Args:
        source: the path of a file, or its content.
        sampling_rate: samples a second that are wanted.

    Returns:
        (T,) float32, full scale ±1. Files of floats may exceed it, and so may resampling.

    Raises:
        AudioError: it cannot be decoded, holds no samples or some that are not finite, is cut off
            or damaged, holds several recordings or streams of sound, does not say how long it is,
            or has a rate that cannot be resampled; or ffmpeg is not installed. Damage does not show
            within a frame of MP3, a packet of M4A or WebM, or the samples of WAV, nor in ADPCM's
            rate; nor MP3 without a count, or another format, behind OGG, M4A, WebM, WAV from a pipe
            or tags.
        OSError: there is no such file, or it cannot be opened.
        ImportError: soundfile is missing, or torchaudio where the rate is another.
    """
    return decoded(source, sampling_rate)


def decoded(
    source: Source, sampling_rate: int, most_seconds: float = DAY, timeout_s: float | None = None
) -> Waveform:
    """Decode as `read_audio` does, within limits.

    Raises:
        TooLong: it has more than `most_seconds`, by its header.
        AudioError: ffmpeg takes longer than `timeout_s`; or as in `read_audio`.
    """
    with opened(source, sampling_rate, most_seconds, timeout_s) as (file, content, frames, name):
        waveform, rate = _samples(file, content, frames, name), int(file.samplerate)
    if not np.isfinite(waveform).all():
        raise AudioError(f"{name} holds samples that are NaN or infinite: encode it again")
    return _resampled(waveform, rate, sampling_rate, name)


@contextmanager
def opened(
    source: Source, sampling_rate: int, most_seconds: float = DAY, timeout_s: float | None = None
) -> Iterator[tuple[Any, bytes, int, str]]:
    """Open audio and decode nothing yet: its decoder, content, number of samples, and name.

    Raises:
        AudioError, OSError, ImportError: as in `decoded`, but for what its samples show.
    """
    soundfile = imported("soundfile", "audio", "reading audio")
    name = "the upload" if isinstance(source, bytes) else os.fspath(source)
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    at = 0
    while content.startswith(b"ID3", at) and len(content) > at + 9:  # a tag
        of = content[at + 6 : at + 10]  # its size, 7 bits a byte
        at += 10 * bool(content[at + 5] & 16)  # a copy of its head behind it
        at += 10 + sum(byte << 7 * (3 - place) for place, byte in enumerate(of))
    content = content[at:]  # once: of a million tags each copy would be all of the rest
    if not content:
        raise AudioError(f"{name} is empty, or cut off within a tag: leave it out or copy it again")
    demuxer = next((of for head, of in DEMUXERS.items() if re.match(head, content, re.S)), None)
    behind = 8 if demuxer else len(content)  # of the others, once they are read
    if content.startswith((b"RIFF", b"RIFX")):
        size = int.from_bytes(content[4:8], "little")
        behind = 8 + size * (size < len(content))  # not a placeholder, nor RIFX's, of big ends
    elif demuxer == "matroska":  # before its first cluster there may be the head of FLAC
        behind = len(content.partition(b"\x1fC\xb6u")[0])
    if _begins_behind(content, behind):
        raise AudioError(f"{name} holds several recordings in one file: cut it into these")
    if demuxer is not None:
        content = _converted(content, demuxer, name, sampling_rate, most_seconds + 1, timeout_s)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, frames = int(file.samplerate), _frames(file, content, name)
            if frames > most_seconds * rate:
                has = f"{name} has {'at least ' if demuxer else ''}{frames / rate:,.2f} seconds"
                raise TooLong(f"{has}, at most {most_seconds:,g} are taken: cut it into parts")
            if frames * file.channels > most_seconds * MOST_A_SECOND:
                raise TooLong(
                    f"{name} has {file.channels} channels of {rate:,} samples a second, more than "
                    f"are decoded: convert it to one channel of {sampling_rate:,}"
                )
            if file.format == "FLAC" and _goes_on(content, frames, type(file)):
                raise AudioError(
                    f"{name} goes on behind the {frames:,} samples that its header declares, as "
                    f"several FLAC in one file do: copy it again, or cut it into its recordings"
                )
            yield file, content, frames, name
    except soundfile.SoundFileError as error:
        if re.match(rb"OggS.{24}(\x7fFLAC|Speex|\x80theora)", content, re.DOTALL):
            what = f"{name} is FLAC, Speex or video in OGG, of which Vorbis and Opus are read"
            raise AudioError(f"{what}: convert it: ffmpeg -i {name} converted.wav") from error
        why = str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(". ")
        raise AudioError(
            f"{name} cannot be decoded, or is cut off or damaged ({why}): copy or record it again, "
            f"or convert it to WAV or FLAC"
        ) from error


def recordings_in(sources: Iterable[str | os.PathLike[str]]) -> list[str]:
    """List the recordings of files and folders, in the order given.

    Of folders these are the files with an ending of audio or video, in it and below it, by
    ascending path, but hidden ones and, with a warning, pipes, devices and what is in folders that
    cannot be opened. Links are followed, to each folder once.

    Raises:
        FileNotFoundError: one of them does not exist.
        ValueError: a folder without audio.
    """
    found: list[str] = []
    for path in map(Path, sources):
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}: correct the path")
        if not path.is_dir():
            found.append(str(path))
            continue
        listed = sorted(
            file
            for file in _files_below(path)
            if file.suffix.lower()[1:] in ENDINGS and file.name[0] != "."
        )
        # A link that leads nowhere is not lost in silence; a pipe might be waited for forever.
        below = [str(file) for file in listed if file.is_file() or not file.exists()]
        if left := sorted({*map(str, listed)}.difference(below)):
            logger.warning("left out, as they are no regular files: %s", ", ".join(left))
        if not below:
            raise ValueError(
                f"no audio in {path} or below it: no .wav, .flac, .ogg, .mp3 or the like"
            )
        found += below
    return found


def _files_below(path: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those below it; links to folders come last."""

    def warn(error: OSError) -> None:
        logger.warning("left out, as it cannot be opened: %s (%s)", error.filename, error.strerror)

    waiting, seen = [path], set[str]()
    for start in waiting:
        for folder, inner, names in os.walk(start, onerror=warn):
            if (real := os.path.realpath(folder)) in seen:  # a loop, or linked to twice
                inner.clear()
                continue
            seen.add(real)
            waiting += sorted(one for name in inner if (one := Path(folder, name)).is_symlink())
            yield from (Path(folder, name) for name in names)


def _begins_behind(content: bytes, at: int) -> bool:
    """Whether a recording begins somewhere behind the place `at`."""
    return any(re.compile(head, re.DOTALL).search(content, at) for head in HEADS)


def _converted(
    content: bytes, demuxer: str, name: str, rate: int, most_seconds: float, timeout_s: float | None
) -> bytes:
    """Convert what only ffmpeg decodes to WAV of one channel, and cut it off at `most_seconds`."""
    if (ffmpeg := shutil.which("ffmpeg")) is None:
        raise AudioError(
            f"{name} is MP4, M4A or WebM, which ffmpeg decodes, and it is not installed: install "
            f"it, or convert the recording to WAV or FLAC"
        )
    with tempfile.NamedTemporaryFile() as file:  # not a pipe: MP4 may have its index at the end
        file.write(content)
        file.flush()
        options = f"-nostdin -v error -xerror -threads 1 -protocol_whitelist file -f {demuxer} -i"
        # Of whole numbers ffmpeg averages channels, of floats it does not.
        outputs = f"-map 0:a -t {most_seconds:f} -ac 1 -ar {rate} -c:a pcm_s16le -f wav pipe:1"
        command = [ffmpeg, *options.split(), file.name, *outputs.split()]
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            why = f"{name} took ffmpeg more than {timeout_s:g} s: send WAV or FLAC"
            raise AudioError(why) from error
    said = done.stderr.decode("utf-8", "replace").strip()
    if "one stream" in said:  # WAV cannot hold another
        raise AudioError(f"{name} holds several streams of sound: take one: ffmpeg -map 0:a:0")
    if "matches no streams" in said:
        raise AudioError(f"{name} holds no sound: leave it out")
    if done.returncode or said:  # of what is cut off it decodes what is there, and says so
        why = re.sub(r"\[.*?\] ", "", said.partition("\n")[0]).replace(file.name, name)
        raise AudioError(
            f"{name} cannot be decoded, or is cut off (ffmpeg: {why:.200}): convert it to WAV or "
            f"FLAC, or copy it again"
        )
    return done.stdout


def _frames(file: Any, content: bytes, name: str) -> int:
    """Samples of each channel, unless there are more or fewer than what is written says.

    libsndfile reads what is cut off as if it were whole, and says in its log what it noticed.
    """
    frames, log = int(file.frames), file.extra_info
    if file.format not in FORMATS:
        raise AudioError(
            f"{name} is {file.format}, expected {', '.join(FORMATS)}, MP4, M4A or WebM: "
            f"convert it, as with: ffmpeg -i {name} converted.wav"
        )
    if file.format == "OGG" and not _is_whole_ogg(content):
        raise AudioError(
            f"{name} is cut off or damaged, a page is missing, or holds several recordings in a "
            f"chain: copy or record it again, or convert it: ffmpeg -i {name} converted.wav"
        )
    if file.format == "MP3":
        frames = _frames_of_mp3(content, frames, name)
    if size := re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.M):
        declared, there = int(size[1]), int(size[2])
        if all(abs(declared - value) > SLACK for value in PLACEHOLDERS):
            raise AudioError(
                f"{name} is cut off, {there:,} of the {declared:,} bytes of samples that its "
                f"header declares are there: copy or record it again"
            )
    if file.format in ("WAV", "WAVEX"):
        _check_wav(content, name)
    if frames >= 1 << 36:  # more than FLAC can declare
        raise AudioError(
            f"{name} does not say how long it is, as FLAC from a pipe: encode it into a file"
        )
    if not frames:
        raise AudioError(f"{name} holds no samples: leave it out, or record it again")
    return frames


def _goes_on(content: bytes, frames: int, decoder: Any) -> bool:
    """Whether more than zeros and tags stands behind FLAC's last frame, by its number of samples.

    libsndfile reads no further, and does not say where the frame ends. So that is decoded alone:
    what can be decoded without the last byte ends before it. Frames have to be of one size.
    """
    start = content.index(b"fLaC")
    about = content[start + 8 : start + 42]
    block = int.from_bytes(about[2:4], "big")
    number, count = divmod(frames - 1, max(block, 1))  # of the last frame, and its samples - 1
    # Numbers are written as UTF-8 writes letters.
    written = chr(min(number, sys.maxunicode)).encode("utf-8", "surrogatepass")
    found = re.compile(rb"\xff\xf8..%b" % re.escape(written), re.S).search(content, start + 42)
    if found is None or number > sys.maxunicode:
        return False
    head = about[:13] + struct.pack(">BI", about[13] & 0xF0, count + 1) + bytes(16)
    alone = b"fLaC\x80\0\0\x22" + head + content[found.start() :]

    def holds_all(size: int) -> bool:
        with suppress(RuntimeError), decoder(io.BytesIO(alone[:size])) as file:
            return len(file.read(count + 1)) > count
        return False

    if not holds_all(len(alone.rstrip(b"\0")) - 1):
        return False
    end = bisect_left(range(len(alone)), True, key=holds_all)
    return not alone[end:].lstrip(b"\0").startswith(TAGS) or _begins_behind(alone, end)


def _check_wav(content: bytes, name: str) -> None:
    """Raise an error where a header contradicts itself, or samples stand behind those declared.

    libsndfile believes the rate and the channels, and skips what it does not know.
    """
    order = ">" if content.startswith(b"RIFX") else "<"
    at, found, layout = 12, False, 0
    while _CHUNK.match(content, at):
        kind, size = struct.unpack_from(f"{order}4sI", content, at)
        if kind == b"fmt " and size >= 16:
            layout, channels, rate, speed, block, bits = struct.unpack_from(
                f"{order}HHIIHH", content, at + 8
            )
            whole = (channels * ((bits + 7) // 8), rate * block)
            companded = layout in (6, 7) and bits != 8
            if layout in UNCOMPRESSED and ((block, speed) != whole or companded):
                raise AudioError(
                    f"{name} is damaged, its header contradicts itself: {channels} channels, "
                    f"{bits} bits, {rate:,} samples a second, {block} bytes a sample and "
                    f"{speed:,} a second: copy it again, or correct the header"
                )
        if kind == b"data" and layout == 0x55:  # MP3, of as many samples as a chunk says
            _frames_of_mp3(content[at + 8 :][:size], sys.maxsize, name)
        if kind == b"data" and found:
            raise AudioError(f"{name} has samples in two places: convert it to WAV or FLAC")
        found |= kind == b"data"
        if (end := at + 8 + size) > len(content):
            if kind in (b"data", b"LIST", b"id3 ", b"ID3 "):  # a placeholder, or notes cut off
                return
            break
        at = end + (size & 1 and _CHUNK.match(content, end) is None)  # not all fill up a chunk
    # Behind the samples of WAV there may be other chunks and padding.
    if len(content[at:].strip(b"\0")) >= 8:
        raise AudioError(
            f"{name} holds more samples than its header declares, as from a pipe, or where a "
            f"recorder was interrupted: convert it, as with: ffmpeg -i {name} converted.wav"
        )


def _samples(file: Any, content: bytes, frames: int, name: str) -> Waveform:
    """Decode so many samples of each channel, (T,) float32: the average of the channels."""
    kind = "int32" if file.format == "FLAC" else "float32"  # FLAC's checksum is of whole numbers
    blocks: list[npt.NDArray[Any]] = []
    left = frames
    while left > 0 and len(block := file.read(min(left, BLOCK), kind, always_2d=True)):  # (T, C)
        blocks.append(block)
        left -= len(block)
    if left > (MOST_PADDED if file.subtype == "MPEG_LAYER_III" else 0):  # WAV may hold it too
        raise AudioError(
            f"{name} is cut off, it ends after {frames - left:,} of the {frames:,} samples that "
            f"its header declares: copy or record it again"
        )
    samples = np.concatenate(blocks)  # (T, C)
    # One channel stays as it is, bit for bit.
    waveform = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if kind == "int32":
        if not _is_whole_flac(content, samples, type(file)):
            raise AudioError(
                f"{name} is damaged, its checksum, rate or length is another one: copy it again"
            )
        return waveform.astype(np.float32) * np.float32(2**-31)
    return waveform.astype(np.float32, copy=False)


def _is_whole_flac(content: bytes, samples: npt.NDArray[np.int32], decoder: Any) -> bool:
    """Whether these samples, (T, C), have the checksum in STREAMINFO, or none is behind them.

    They tell a number of samples that is damaged, which the decoder believes; so it does the rate,
    which the frames say too.
    """
    start = content.index(b"fLaC")
    about = content[start + 8 :][:34]
    at, last = start + 4, 0
    while not last:  # blocks of metadata, before the first frame
        last, at = content[at] & 128, at + 4 + int.from_bytes(content[at + 1 : at + 4], "big")
    # Frames say their rate again, by a code if it is a usual one, and have a checksum.
    rate, code = int.from_bytes(about[10:13], "big") >> 4, content[at + 2] & 15
    if 0 < code < len(FLAC_RATES) and rate != FLAC_RATES[code]:
        return False
    width, odd = divmod(1 + ((about[12] & 1) << 4 | about[13] >> 4), 8)  # bytes of a sample
    if odd or not any(about[18:]):
        # Of samples behind those declared the first is found where one more is declared.
        more = (int.from_bytes(about[10:18], "big") + 1).to_bytes(8, "big")
        longer = content[: start + 18] + more + content[start + 26 :]
        with suppress(RuntimeError):  # soundfile's own, where there is none
            return not decoder(io.BytesIO(longer)).seek(len(samples))
        return True
    # libsndfile fills the highest bytes.
    if width == 3:
        used = samples.astype("<i4")[..., None].view(np.uint8)[..., 1:]  # (T, C, 3)
    else:
        used = (samples >> (32 - 8 * width)).astype(f"<i{width}")
    return hashlib.md5(used.tobytes(), usedforsecurity=False).digest() == about[18:]


def _frames_of_mp3(content: bytes, promised: int, name: str) -> int:
    """Samples of each channel, as promised, but no more than there are.

    libmpg123 goes on behind a frame that is missing, and ends with those that the first one counts,
    or that it guesses. What is damaged within a frame does not show, as frames have no checksum.
    """
    at = found = samples = 0
    while (frame := _mp3_frame(content, at)) is not None:
        at, found, samples = at + frame[0], found + 1, frame[1]
    header = re.search(rb"(?:Xing|Info)...(.)(....)", content[:256], re.DOTALL)
    counted = int.from_bytes(header[2], "big") if header and header[1][0] & 1 else 0
    there = (found - (counted > 0)) * samples  # the frame with the count does not count
    rest = content[at:].strip(b"\0")
    lost = not counted and len(content) - at - len(rest) > MOST_ZEROS
    damaged = at > len(content) or not (rest or TAGS[0]).startswith(TAGS)
    # A picture in a tag may hold what one frame, of 24 bytes or more, begins with, but hardly two
    # in their distance.
    alike = re.compile(b"%b.{22}" % re.escape(content[:2]), re.DOTALL).finditer(content, at)
    places = map(re.Match[bytes].start, alike)
    damaged |= any(_mp3_frame(content, x + (_mp3_frame(content, x) or (0,))[0]) for x in places)
    if damaged or lost or (counted and counted != found - 1) or _begins_behind(content, at):
        raise AudioError(
            f"{name} is cut off, damaged, several MP3 in one file, or not of layer III: copy or "
            f"encode it again"
        )
    if promised < there - MOST_PADDED:
        raise AudioError(
            f"{name} does not say how long it is, as MP3 of a varying bitrate from a pipe: encode "
            f"it into a file"
        )
    return min(promised, there)


def _mp3_frame(content: bytes, at: int) -> tuple[int, int] | None:
    """Bytes and samples of the frame that begins there, if it is one as the first is."""
    bits, other = (int.from_bytes(content[x : x + 4], "big") for x in (at, 0))
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
    """Whether each page is there as it was written, and the last of each stream (RFC 3533, 6).

    Not of a chain, or with another recording behind it: libsndfile reads the first.
    """
    at, following, ended = 0, dict[int, int](), set[int]()
    while content.startswith(b"OggS\0", at) and len(content) >= at + 27:
        parts = content[at + 26]
        page = content[at : at + 27 + parts + sum(content[at + 27 : at + 27 + parts])]
        serial, number = struct.unpack_from("<II", page, 14)
        chained = ended and page[5] & 2
        if chained or number != following.get(serial, number) or not _is_whole_page(page):
            return False
        following[serial] = number + 1
        if page[5] & 4:
            ended.add(serial)
        at += len(page)
    whole = ended == following.keys() and b"OggS" not in content[at:]
    return whole and not _begins_behind(content, at)


def _is_whole_page(page: bytes) -> bool:
    """Whether its checksum is right: zlib's polynomial, without complements, in mirrored bits."""
    found = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(MIRRORED), 0xFFFFFFFF)
    return (found ^ 0xFFFFFFFF).to_bytes(4, "big").translate(MIRRORED) == page[22:26]


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
