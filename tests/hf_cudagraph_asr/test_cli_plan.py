"""`hf-cudagraph-asr plan` as a stranger runs it: from logs of all kinds to a plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_recogniser import RATE, record, save_recogniser, write_lines
from transformers import AutoConfig

from hf_cudagraph_asr.cli import main
from hf_cudagraph_asr.durations import read_durations
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan import BucketPlan, plan_buckets

SECONDS = np.random.default_rng(0).lognormal(np.log(1.8), 0.5, 500).round(3)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
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


def as_parquet(seconds: Any) -> str:
    pl.DataFrame({"id": range(len(seconds)), "duration": seconds}).write_parquet("log.parquet")
    return "log.parquet"


def as_csv(seconds: Any) -> str:
    pl.DataFrame({"duration": seconds}).write_csv("log.csv")
    return "log.csv"


def as_tsv(seconds: Any) -> str:
    pl.DataFrame({"x": "a", "duration": seconds}).write_csv("log.tsv", separator="\t")
    return "log.tsv"


def as_lines(seconds: Any) -> str:
    write_lines(Path("log.jsonl"), [{"duration": value} for value in seconds])
    return "log.jsonl"


def as_manifest(seconds: Any) -> str:
    lines = [{"audio_filepath": f"{i}.wav", "duration": v} for i, v in enumerate(seconds)]
    write_lines(Path("manifest.json"), lines)
    return "manifest.json"


@pytest.mark.parametrize("log", [as_parquet, as_csv, as_tsv, as_lines, as_manifest])
def test_a_log_is_planned_for(log: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(log(SECONDS.tolist()), "--graphs", 5)
    assert found == plan_buckets(SECONDS, graphs=5)
    shown = capsys.readouterr()
    assert "5 buckets" in shown.out
    assert "500 queries → plan.json" in shown.out
    assert not shown.err


def test_every_option_reaches_the_planner(here: Path) -> None:
    pl.DataFrame({"seconds": SECONDS}).write_parquet("log.parquet")
    model = save_recogniser(here / "model")
    options = ["--batch-sizes", "4,1", "--chunk", 2.5, "--concurrency", 3, "--memory-limit", "1MiB"]
    found = planned("log.parquet", "--column", "seconds", "--model", model, *options)
    assert found == plan_buckets(
        SECONDS,
        model=AutoConfig.from_pretrained(model),
        sampling_rate=RATE,
        batch_sizes=(1, 4),
        chunk_length_s=2.5,
        concurrency=3,
        memory_limit=2**20,
    )
    assert found.geometry == Geometry((10, 3, 2), (5, 2, 2), RATE)
    assert found.memory is not None
    assert found.memory <= 2**20


def test_durations_as_a_tables_own_type() -> None:
    column = pl.Series("duration", [1_500, 2_250], dtype=pl.Int64).cast(pl.Duration("ms"))
    pl.DataFrame({"duration": column}).write_parquet("log.parquet")
    assert read_durations("log.parquet").seconds.tolist() == [1.5, 2.25]


def test_headers_of_a_folder_are_read_and_nothing_is_dropped_silently(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, samples in enumerate([1600, 2400, 1600, 8000]):
        record(here / f"audio/{i % 2}/{i}.wav", samples, rate=16_000)
    (here / "audio/torn.flac").write_bytes(b"fLaC")
    (here / "audio/loop.wav").symlink_to(here / "audio/loop.wav")
    (here / "audio/gone.wav").symlink_to(here / "nowhere.wav")
    record(here / "audio/click.wav", 10, rate=16_000)
    found = planned("audio", "--graphs", 3)
    assert found.traffic == plan_buckets([0.1, 0.15, 0.1, 0.5], graphs=3).traffic
    shown = capsys.readouterr()
    assert "4 queries" in shown.out
    assert "torn.flac cannot be decoded" in shown.err
    assert "1 file could not be read" in shown.err
    assert "1 duration below the 0.025 s of a frame, down to 0.000625 s" in shown.err


def test_rows_without_a_number_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    planned(as_parquet([1.0, None, 2.0, float("nan"), float("inf")]))
    assert "3 rows without a number of seconds" in capsys.readouterr().err
    lines = [{"duration": 1.0}, {"audio_filepath": "a.wav"}, {"duration": None}]
    write_lines(Path("log.ndjson"), lines)
    found = read_durations("log.ndjson")
    assert (found.seconds.tolist(), found.missing, len(found)) == ([1.0], 2, 1)


def test_a_plot_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    planned(as_csv(SECONDS), "--plot", "plan.png")
    assert Path("plan.png").read_bytes().startswith(b"\x89PNG")
    assert "plan.json, plan.png" in capsys.readouterr().out
    assert sorted(os.listdir()) == ["log.csv", "plan.json", "plan.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.parquet"], "no file or folder missing.parquet"),
        (["log.csv", "--column", "length"], "log.csv has no 'length', but duration: choose with"),
        (["text.csv"], "column 'duration' of text.csv holds String: expected seconds as numbers"),
        (["empty.csv"], "holds no number"),
        (["broken.parquet"], "broken.parquet cannot be read"),
        (["lines.jsonl"], "lines.jsonl has no 'duration', but length: choose with --column"),
        (["words.jsonl"], "words.jsonl, line 1 has the duration 'long': no number"),
        (["torn.jsonl"], "torn.jsonl, line 1 is no JSON"),
        (["folder"], "no audio in folder"),
        (["bad"], "no file of audio in bad can be read: bad/a.wav cannot be decoded"),
        (["log.txt"], "log.txt is no log of durations: give a folder of audio"),
        (["log.csv", "--batch-sizes", "1,x"], "--batch-sizes 1,x: expected whole numbers"),
        (["log.csv", "--batch-sizes", "0"], "expected whole numbers from 1 up"),
        (["log.csv", "--memory-limit", "much"], "--memory-limit much: expected bytes"),
        (["log.csv", "--memory-limit", "1kB"], "holds no bucket"),
        (["log.csv", "--chunk", "0.001"], "too short for one frame"),
        (["log.csv", "--graphs", "0"], "--graphs"),
        (["log.csv", "--garphs", "3"], "No such option: --garphs"),
        (["log.csv", "--model", "nowhere"], "nowhere"),
        (["log.csv", "--plot", "plan.docx"], "docx"),
        (["log.csv", "--plot", "nowhere/plan.png"], "no folder nowhere to write plan.png in"),
        (["log.csv", "--out", "nowhere/plan.json"], "no folder nowhere to write plan.json in"),
        (["log.csv", "--out", "log.csv"], "log.csv is read, and would be replaced"),
        (["long.csv"], "seconds above 0 and up to a day, not 100000.0"),
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
    Path("lines.jsonl").write_text('{"length": 3}\n')
    Path("words.jsonl").write_text('{"duration": "long"}\n')
    Path("torn.jsonl").write_text('{"duration": 3')
    Path("log.txt").write_text("1.0\n")
    (here / "folder").mkdir()
    (here / "bad").mkdir()
    Path("bad/a.wav").write_text("no audio")
    before = Path("log.csv").read_bytes()
    if "--out" in arguments:  # the last one given counts
        assert main(["plan", "--out", "plan.json", *arguments]) == 2
        assert message in capsys.readouterr().err
    else:
        assert message in refused(capsys, *arguments)
    assert Path("log.csv").read_bytes() == before
    assert not [name for name in os.listdir() if name.startswith(".")]


def test_a_missing_polars_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_csv(SECONDS)
    monkeypatch.setitem(sys.modules, "polars", None)
    assert 'pip install "hf-cudagraph-asr[tables]"' in refused(capsys, source)


def test_a_traceback_is_there_for_whoever_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_CUDAGRAPH_ASR_TRACEBACK", "1")
    assert main(["plan", "missing.csv", "--out", "plan.json"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["transcribe", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from hf_cudagraph_asr.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'ray', 'polars', 'numpy'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in ("plan", "transcribe", "bench", "serve") if len(arguments) == 1 else ("--out",):
        assert word in done.stdout


def test_nothing_asked_is_answered_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "Usage: hf-cudagraph-asr" in shown.out + shown.err
    assert "error" not in shown.err


def test_a_plan_from_the_module_as_a_program() -> None:
    source = as_csv(SECONDS)
    command = [sys.executable, "-m", "hf_cudagraph_asr"]
    done = subprocess.run(
        [*command, "plan", source, "--out", "plan.json"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("plan.json").read_text())["kind"] == "hf_cudagraph_asr plan"
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hf-cudagraph-asr ")
