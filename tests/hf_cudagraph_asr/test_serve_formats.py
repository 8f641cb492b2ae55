"""Recordings in the formats that clients send, by the shipped model: MP3, OGG, M4A and WebM."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import soundfile
from served import local_gateway, transcribe, written

from hf_cudagraph_asr import AudioError
from hf_cudagraph_asr.audio import decoded
from hf_cudagraph_asr.serve import Gateway

TINYVOICE = Path(__file__).parents[2] / "docs/examples/tinyvoice"
RECORDING = TINYVOICE / "recordings/seen-04.flac"
TEXT = "switch to channel five hundred fifty seven"
LIMITS = {"max_seconds": 5.0, "timeout_s": 20.0}


@pytest.fixture(scope="module")
def gateway() -> Gateway:
    if not TINYVOICE.is_dir():
        pytest.skip("the package's tests run without its repository")
    return local_gateway(TINYVOICE / "model", **LIMITS)


@pytest.fixture(scope="module")
def ffmpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ffmpeg."""
    found = shutil.which("ffmpeg")
    if found is None:
        found = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    folder = tmp_path_factory.mktemp("ffmpeg")
    (folder / "ffmpeg").symlink_to(found)
    return folder


@pytest.fixture
def on_path(ffmpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{ffmpeg}{os.pathsep}{os.environ['PATH']}")


def made(ffmpeg: Path, kind: str, *options: str) -> bytes:
    """The recording as ffmpeg writes it."""
    file = ffmpeg / f"recording.{kind}"
    command = [str(ffmpeg / "ffmpeg"), "-y", "-v", "error", "-i", str(RECORDING), *options]
    subprocess.run([*command, str(file)], check=True)
    return file.read_bytes()


KINDS = [
    ("m4a", ["-c:a", "aac"]),
    ("mp4", ["-c:a", "aac", "-movflags", "+faststart"]),  # its index comes first
    ("webm", ["-c:a", "libopus"]),
]


@pytest.mark.parametrize(
    "options",
    [
        {"format": "MP3"},
        {"format": "OGG", "subtype": "VORBIS"},
        {"format": "OGG", "subtype": "OPUS"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_what_libsndfile_decodes_is_transcribed(gateway: Gateway, options: Any) -> None:
    samples, rate = soundfile.read(RECORDING)
    response = transcribe(gateway, written(samples, rate, **options))
    assert (response.status_code, response.json()["text"]) == (200, TEXT)


@pytest.mark.usefixtures("on_path")
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_ffmpeg_decodes_is_transcribed_unless_it_is_cut_off_or_too_long(
    gateway: Gateway, ffmpeg: Path, kind: str, options: list[str]
) -> None:
    body = made(ffmpeg, kind, *options)
    response = transcribe(gateway, body, **{"Content-Type": f"video/{kind}"})
    assert (response.status_code, response.json()["text"]) == (200, TEXT)
    assert response.json()["seconds"] == pytest.approx(2.66, abs=0.05)
    cut = transcribe(gateway, body[: len(body) * 2 // 3])
    assert (cut.status_code, cut.json()["error"]) == (400, "undecodable")
    assert "or is cut off (ffmpeg: " in cut.json()["detail"]
    assert not re.search("@|/", cut.json()["detail"])  # neither addresses nor paths
    long = made(ffmpeg, kind, *options, "-af", "apad=whole_dur=60")
    response = transcribe(gateway, long)
    assert (response.status_code, response.json()["error"]) == (413, "too_long")
    assert re.search(r"at least (5\.99|6\.0.) seconds, at most 5", response.json()["detail"])


@pytest.mark.usefixtures("on_path")
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_several_recordings_in_what_ffmpeg_decodes_are_refused(
    gateway: Gateway, ffmpeg: Path, kind: str, options: list[str]
) -> None:
    body, (samples, rate) = made(ffmpeg, kind, *options), soundfile.read(RECORDING)
    others = [written(samples, rate, format=one) for one in ("FLAC", "MP3", "OGG", "WAV")]
    for behind in (*others, body, b"\0\0\0\x1cftypM4A ", b"\x1aE\xdf\xa3\x86B\x82\x84webm"):
        response = transcribe(gateway, body + behind)
        assert response.status_code == 400
        assert "holds several recordings in one file" in response.json()["detail"]
    tracks = made(ffmpeg, kind, "-i", str(RECORDING), "-map", "0", "-map", "1", *options)
    response = transcribe(gateway, tracks)
    assert response.status_code == 400
    assert "holds several streams of sound" in response.json()["detail"]


@pytest.mark.usefixtures("on_path")
def test_the_sound_of_a_video_is_transcribed(gateway: Gateway, ffmpeg: Path) -> None:
    video = ["-f", "lavfi", "-i", "color=d=1:s=32x32", "-c:v", "mpeg4", "-c:a", "aac"]
    response = transcribe(gateway, made(ffmpeg, "mp4", *video))
    assert (response.status_code, response.json()["text"]) == (200, TEXT)


@pytest.mark.usefixtures("on_path")
def test_a_video_without_sound_is_named(ffmpeg: Path) -> None:
    silent = ["-f", "lavfi", "-i", "color=d=1:s=32x32", "-map", "1", "-c:v", "mpeg4"]
    with pytest.raises(AudioError, match="the upload holds no sound: leave it out"):
        decoded(made(ffmpeg, "mp4", *silent), 16_000)


@pytest.mark.usefixtures("on_path")
def test_many_channels_at_a_high_rate_are_mixed_down(gateway: Gateway, ffmpeg: Path) -> None:
    response = transcribe(gateway, made(ffmpeg, "mkv", "-ac", "8", "-ar", "192000", "-c:a", "flac"))
    assert (response.status_code, response.json()["text"]) == (200, TEXT)


@pytest.mark.parametrize("head", [b"\0\0\0\x1cftypM4A ", b"\x1aE\xdf\xa3"])
def test_without_ffmpeg_other_formats_are_named(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setenv("PATH", "")
    response = transcribe(gateway, head + bytes(100))
    assert (response.status_code, response.json()["error"]) == (400, "undecodable")
    assert "ffmpeg decodes, and it is not installed: install it" in response.json()["detail"]


@pytest.mark.usefixtures("on_path")
@pytest.mark.parametrize("head", [b"\0\0\0\x1cftypM4A ", b"\x1aE\xdf\xa3"])
def test_what_only_begins_like_audio_is_refused(gateway: Gateway, head: bytes) -> None:
    response = transcribe(gateway, head + b"#EXTM3U\nhttp://127.0.0.1:1/x\n" * 9)
    assert (response.status_code, response.json()["error"]) == (400, "undecodable")


def test_ffmpeg_may_not_take_for_ever_and_sees_no_playlist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(AudioError, match=r"took ffmpeg more than 0.2 s: send WAV or FLAC"):
        decoded(b"\x1aE\xdf\xa3", 16_000, 9.0, 0.2)
    for other in (b"#EXTM3U\n", b"ffconcat version 1.0\n", b"RIFF"):
        with pytest.raises(AudioError, match="cannot be decoded"):
            decoded(other, 16_000, 9.0, 0.2)
