"""`hf-cudagraph-asr plan` as a stranger runs it: from logs of all kinds to a plan."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
import transformers

import hf_cudagraph_asr
from hf_cudagraph_asr import BucketPlan, Geometry, plan_buckets
from hf_cudagraph_asr.cli import main

SECONDS = np.random.default_rng(0).lognormal(np.log(1.8), 0.5, 500).round(3)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(*arguments: object) -> BucketPlan:
    assert main(["plan", *map(str, arguments), "--out", "plan.json"]) == 0
    return BucketPlan.load("plan.json")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that ends with exit code 2 and writes nothing."""
    assert main(["plan", *map(str, arguments), "--out", "plan.json"]) == 2
    assert not Path("plan.json").exists()
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert shown.err.startswith("hf-cudagraph-asr: error: ")
    return shown.err


def write_lines(path: str, lines: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def record(path: Path, samples: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(samples), 16_000, format="WAV")


def as_parquet(seconds: Any) -> str:
    pl.DataFrame({"id": range(len(seconds)), "duration": seconds}).write_parquet("log.parquet")
    return "log.parquet"


def as_csv(seconds: Any) -> str:
    pl.DataFrame({"duration": seconds}).write_csv("log.csv")
    return "log.csv"


def as_lines(seconds: Any) -> str:
    return write_lines("log.jsonl", [{"duration": value} for value in seconds])


def as_manifest(seconds: Any) -> str:
    lines = [{"audio_filepath": f"{i}.wav", "duration": v} for i, v in enumerate(seconds)]
    return write_lines("manifest.json", lines)


@pytest.mark.parametrize("log", [as_parquet, as_csv, as_lines, as_manifest])
def test_a_log_is_planned_for(log: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(log(SECONDS.tolist()), "--graphs", 5)
    assert found == plan_buckets(SECONDS, graphs=5)
    shown = capsys.readouterr()
    assert found.table() in shown.out  # what print(plan.table()) shows
    assert "500 queries → plan.json" in shown.out
    assert not shown.err


def test_every_option_reaches_the_planner(here: Path) -> None:
    pl.DataFrame({"seconds": SECONDS}).write_parquet("log.parquet")
    convolutions = {"conv_dim": (32,) * 3, "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2)}
    config = transformers.Wav2Vec2Config(**convolutions, num_feat_extract_layers=3)
    config.save_pretrained(here / "model")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8_000).save_pretrained(here / "model")
    options = ["--batch-sizes", "4,1", "--chunk", 2.5, "--concurrency", 3, "--memory-limit", 0.01]
    found = planned("log.parquet", "--column", "seconds", "--model", "model", *options)
    assert found == plan_buckets(
        SECONDS,
        model=config,
        sampling_rate=8_000,
        batch_sizes=(1, 4),
        chunk_length_s=2.5,
        concurrency=3,
        memory_limit=0.01 * 2**30,
    )
    assert found.geometry == Geometry((10, 3, 2), (5, 2, 2), 8_000)
    options += ["--column", "seconds", "--model", "model"]
    for _ in range(2):  # what a command wrote beside a model may be written again
        written = ["--out", "model/buckets_config.json", "--plot", "model/plan.svg"]
        assert main(["plan", "log.parquet", *map(str, options), *written]) == 0
    assert BucketPlan.load("model/buckets_config.json") == found


def test_headers_of_a_folder_are_read_and_nothing_is_dropped_silently(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, samples in enumerate([16_000, 24_000, 16_000, 40_000]):
        record(here / f"audio/{i % 2}/{i}.wav", samples)
    record(here / "audio/2.WAVE", 24_000)
    (here / "audio/torn.flac").write_bytes(b"fLaC")
    soundfile.write(here / "audio/piped.flac", np.zeros(16_000), 16_000)
    piped = bytearray((here / "audio/piped.flac").read_bytes())
    piped[22:26] = bytes(4)  # the number of samples: not known
    (here / "audio/piped.flac").write_bytes(piped)
    for name in ("a.m4a", "b.webm", "c.MP4"):
        (here / "audio" / name).write_bytes(b"\0")
    (here / "audio/notes.txt").write_text("no audio, and none was meant")
    record(here / "audio/click.wav", 10)
    found = planned("audio", "--graphs", 3)
    assert found == plan_buckets([1.0, 1.5, 1.0, 2.5, 1.5], graphs=3)
    shown = capsys.readouterr()
    assert "5 queries" in shown.out
    warnings = shown.err.splitlines()
    assert len(warnings) == 6
    for name in ("a.m4a", "b.webm", "c.MP4", "piped.flac", "torn.flac"):
        assert any(f"not counted: audio/{name} " in line for line in warnings), name
    assert "not counted: audio/click.wav has 0.000625 s, less than the 0.025 s of a" in shown.err
    assert "minutes" not in shown.err  # headers say seconds
    assert "notes.txt" not in shown.err


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_no_recording_of_a_folder_is_replaced(
    here: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    record(here / "audio/deep/a.wav", 16_000)
    (here / "a.png").symlink_to("audio/deep/a.wav")
    before = (here / "a.png").read_bytes()
    assert main(["plan", "audio", "--out", "audio/plan.json", option, "a.png"]) == 2
    assert "a.png is read, and would be replaced" in capsys.readouterr().err
    assert (here / "a.png").read_bytes() == before


def test_a_folder_without_audio_that_can_be_read_is_an_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    assert "no audio in folder" in refused(capsys, "folder")
    (here / "folder/a.m4a").write_bytes(b"\0")
    (here / "folder/b.webm").write_bytes(b"\0")
    message = refused(capsys, "folder")
    assert "no file of audio in folder can be read: 2 files: folder/a.m4a cannot be " in message


def test_a_header_that_lies_is_not_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(here / "audio/whole.wav", 16_000)
    whole = (here / "audio/whole.wav").read_bytes()
    (here / "audio/cut.wav").write_bytes(whole[:-8_000])
    (here / "audio/more.wav").write_bytes(whole + bytes(range(1, 200)))
    for format in ("OGG", "MP3"):
        soundfile.write(here / "audio/cut", np.zeros(16_000), 16_000, format=format)
        content = (here / "audio/cut").read_bytes()
        (here / f"audio/cut.{format.lower()}").write_bytes(content[: len(content) // 2])
    assert planned("audio").traffic.total == 1
    shown = capsys.readouterr().err
    assert "not counted: audio/cut.mp3 is cut off" in shown
    assert "not counted: audio/more.wav holds more samples" in shown
    assert "audio/cut.ogg cannot be decoded, or is cut off" in shown
    assert "audio/cut.wav is cut off" in shown


def test_what_is_no_regular_file_is_named_and_left_out(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(here / "audio/one.wav", 16_000)
    # Opening it fails, where a pipe's would wait.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("audio/other.wav")
        assert planned("audio").traffic.total == 1
    assert "left out, as they are no regular files: audio/other.wav" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_what_ffmpeg_reads_is_counted(here: Path) -> None:
    record(here / "one.wav", 16_000)
    (here / "audio").mkdir()
    for name in ("one.m4a", "one.webm"):
        command = ["ffmpeg", "-v", "error", "-i", "one.wav", f"audio/{name}"]
        subprocess.run(command, check=True)
    found = planned("audio", "--graphs", 1)
    assert found.traffic.total == 2
    assert min(found.traffic.frames) >= 49  # of a second; encoders add some
    assert max(found.traffic.frames) <= 60


def test_rows_without_a_number_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(as_parquet([1.0, None, 2.0, float("nan"), float("inf")])).traffic.total == 2
    assert "3 rows without a number of seconds: not counted" in capsys.readouterr().err
    lines = [{"duration": 1.0}, {"audio_filepath": "a.wav"}, {"duration": None}]
    assert planned(write_lines("log.ndjson", lines)).traffic.total == 1
    assert "2 rows without a number of seconds: not counted" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_log_in_another_unit_is_planned_with_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned(as_csv(SECONDS * 1000))
    assert "hf-cudagraph-asr: warning: 500 of 500 durations are above" in capsys.readouterr().err
    planned(as_csv(SECONDS / 60))
    shown = capsys.readouterr().err
    assert "not counted, down to 0.00" in shown
    assert "if they are minutes, convert them to seconds" in shown
    assert "no durations" in refused_after(capsys, SECONDS / 3600)


def refused_after(capsys: pytest.CaptureFixture[str], seconds: Any) -> str:
    assert main(["plan", as_csv(seconds), "--out", "none.json"]) == 2
    return capsys.readouterr().err


def test_a_plot_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    planned(as_csv(SECONDS), "--plot", "plan.png")
    assert Path("plan.png").read_bytes().startswith(b"\x89PNG")
    assert "plan.json, plan.png" in capsys.readouterr().out
    assert sorted(os.listdir()) == ["log.csv", "plan.json", "plan.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.parquet"], "no file or folder missing.parquet"),
        (["log.csv", "--column", "length"], "log.csv has no 'length', choose a --column: "),
        (["text.csv"], "'duration' of text.csv holds String: expected seconds as numbers"),
        (["empty.csv"], "'duration' of empty.csv holds String: expected seconds as numbers"),
        (["broken.parquet"], "broken.parquet cannot be read as Parquet"),
        (["words.jsonl"], "'duration' of words.jsonl holds String"),
        (["torn.jsonl"], "torn.jsonl cannot be read as JSON, an object a line"),
        (["log.txt"], "log.txt is no log of durations: give a folder with audio, or a file that"),
        (["log.csv", "--batch-sizes", "1,x"], "--batch-sizes 1,x: expected whole numbers"),
        (["log.csv", "--memory-limit", "much"], "Invalid value for '--memory-limit'"),
        (["log.csv", "--memory-limit", "1e-9"], "at batch size 1 is needed"),
        (["log.csv", "--chunk", "0.001"], "a chunk of 0.001 s is too short"),
        (["log.csv", "--graphs", "0"], "--graphs"),
        (["log.csv", "--garphs", "3"], "No such option: --garphs"),
        (["log.csv", "--model", "nowhere"], "nowhere"),
        (["log.csv", "--plot", "plan.docx"], "docx"),
        (["log.csv", "--plot", "nowhere/plan.png"], "no folder nowhere to write plan.png in"),
        (["log.csv", "--out", "nowhere/plan.json"], "no folder nowhere to write plan.json in"),
        (["log.csv", "--out", "text.csv/plan.json"], "plan.json in: text.csv is a file"),
        (["log.csv", "--out", "text.csv/deeper/plan.json"], "plan.json in: text.csv is a file"),
        (["log.csv", "--out", "pipe"], "pipe is no regular file: give the path of another"),
        (["log.csv", "--plot", "pipe.png"], "pipe.png is no regular file"),
        (["log.csv", "--out", "log.csv"], "log.csv is read, and would be replaced"),
        (["log.csv", "--out", "link.json"], "link.json is read, and would be replaced"),
        (["log.csv", "--model", "m", "--out", "m/config.json"], "config.json belongs to the model"),
        (["log.csv", "--model", "m", "--plot", "m/chat.jinja"], "chat.jinja belongs to the model"),
        (["log.csv", "--model", "m", "--out", "same.json"], "same.json belongs to the model"),
        (["long.csv"], "seconds, from one frame up to a day, and 1 are not, such as 100000.0"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    as_csv(SECONDS)
    Path("text.csv").write_text("duration\nlong\nshort\n")
    Path("empty.csv").write_text("duration\n\n")
    Path("long.csv").write_text("duration\n1.0\n100000.0\n")
    Path("broken.parquet").write_bytes(b"PAR1 and no more")
    Path("words.jsonl").write_text('{"duration": "long"}\n')
    Path("torn.jsonl").write_text('{"duration": 3')
    Path("log.txt").write_text("1.0\n")
    os.mkfifo("pipe")
    Path("pipe.png").symlink_to("pipe")
    Path("link.json").symlink_to("log.csv")
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    Path("m/chat.jinja").write_text("{{ messages }}")
    os.link("m/chat.jinja", "same.json")
    before = Path("log.csv").read_bytes()
    if "--out" in arguments:  # the last one given counts
        assert main(["plan", "--out", "plan.json", *arguments]) == 2
        assert message in capsys.readouterr().err
    else:
        assert message in refused(capsys, *arguments)
    assert Path("log.csv").read_bytes() == before
    assert Path("pipe").is_fifo()
    assert not [name for name in os.listdir() if name.startswith(".")]


def test_a_missing_polars_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_csv(SECONDS)
    monkeypatch.setitem(sys.modules, "polars", None)
    assert 'pip install "hf-cudagraph-asr[tables]"' in refused(capsys, source)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from hf_cudagraph_asr.cli import main; "
        "codes = [main(['plan', '--help']), main(['--help'])]; "
        "print(codes, {'torch', 'transformers', 'ray', 'polars'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[0, 0] set()\n")
    for word in ("--memory-limit", "plan", "transcribe", "bench", "serve"):
        assert word in done.stdout


def test_nothing_asked_is_answered_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "Usage: hf-cudagraph-asr" in shown.out + shown.err
    assert "error" not in shown.err


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "hf_cudagraph_asr", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == f"hf-cudagraph-asr {hf_cudagraph_asr.__version__}\n"
