"""`hf-cudagraph-asr transcribe`: every recording once and in order, whatever happens to the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tiny_models import plan_for
from tiny_recognizer import RATE, read_lines, record, save_recognizer, stock_pipeline, waveform
from transformers import AutoModelForCTC

from hf_cudagraph_asr import BucketPlan, Transcriber, read_audio
from hf_cudagraph_asr.cli import main, script
from hf_cudagraph_asr.cli.transcribe import TranscriptFile, transcribe_files

LENGTHS = [820, 300, 511, 95, 640, 1_240, 333, 31, 702, 450, 450, 128]
FAILED = ["bad/broken.flac", "bad/movie.m4a", "bad/cut.wav"]
ALL = ["audio", *FAILED, "click.wav"]
MADE = {"model": "model", "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a plan for it, and recordings; some cannot be decoded, one holds no frame."""
    folder = tmp_path_factory.mktemp("asr")
    save_recognizer(folder / "model")
    for i, samples in enumerate(LENGTHS):
        record(folder / f"audio/{i:02}.wav", samples, i)
    model = AutoModelForCTC.from_pretrained(folder / "model")
    plan_for(model, (700,), batch_sizes=(3,), rate=RATE).save(folder / "plan.json")
    record(folder / "bad/cut.wav", 500).write_bytes((folder / "bad/cut.wav").read_bytes()[:999])
    (folder / "bad/broken.flac").write_bytes(b"fLaC and no more")
    (folder / "bad/movie.m4a").write_bytes(b"\0\0\0\x1cftypM4A ")
    record(folder / "click.wav", 12)
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def transcribe(*arguments: object, out: str = "out.jsonl", model: object = "model") -> int:
    options = ["--model", str(model), "--out", out, "--device", "cpu"]
    return main(["transcribe", *map(str, arguments), *options])


def said(path: str | Path = "out.jsonl") -> list[dict[str, Any]]:
    """The lines, without what depends on the machine and on the way."""
    lines = read_lines(Path(path))
    return [{k: v for k, v in line.items() if k not in ("ms", "bucket")} for line in lines]


@pytest.fixture(scope="module")
def wanted(folder: Path) -> list[dict[str, Any]]:
    """What the host's pipeline says with the stock model."""
    pipe = stock_pipeline(folder / "model")
    found = []
    for i, samples in enumerate(LENGTHS):
        result = pipe(waveform(samples, i), return_timestamps="word")
        words = []
        for chunk in result["chunks"]:
            start, end = chunk["timestamp"]
            words.append({"text": chunk["text"], "start": round(start, 4), "end": round(end, 4)})
        line = {"audio_filepath": f"audio/{i:02}.wav", "text": result["text"], "words": words}
        found.append({**line, **MADE, "duration": samples / RATE})
    return found


def test_lines_are_what_the_stock_pipeline_says_in_order(
    wanted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe("audio") == 0
    assert said() == wanted
    assert len({line["text"] for line in wanted}) > 8
    lines = read_lines(Path("out.jsonl"))
    assert all(line["bucket"] is None and line["ms"] > 0 for line in lines)
    shown = capsys.readouterr()
    assert f"12 recordings → out.jsonl; {sum(LENGTHS) / RATE:.1f} s of audio in" in shown.out
    assert "warning" not in shown.err


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batches_and_order_change_nothing(
    wanted: list[dict[str, Any]], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_cudagraph_asr.cli.transcribe.LOOK_AHEAD", 2)
    files = [f"audio/{i:02}.wav" for i in range(len(LENGTHS))]
    assert transcribe(*files[::-1], "--batch-size", batch_size) == 0
    assert said() == wanted[::-1]


def test_a_plan_changes_nothing_but_the_buckets(
    wanted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[list[int]] = []
    own = Transcriber._batch

    def counting(self: Transcriber, waveforms: Any) -> Any:
        rows.append([len(waveform) for waveform in waveforms])
        return own(self, waveforms)

    monkeypatch.setattr(Transcriber, "_batch", counting)
    assert transcribe("audio", "--plan", "plan.json", "--backend", "export") == 0
    assert said() == wanted
    [longest] = BucketPlan.load("plan.json").buckets
    for samples, line in zip(LENGTHS, read_lines(Path("out.jsonl")), strict=True):
        assert line["bucket"] == (longest.samples if samples <= longest.samples else None)
    # Batches of the plan's size, of neighboring lengths; one that is too long goes with its like.
    assert sorted(n for batch in rows for n in batch) == sorted(LENGTHS)
    assert all(len(batch) <= 3 for batch in rows)
    fitting = sorted(sorted(batch) for batch in rows if min(batch) <= longest.samples)
    neighbors = [n for batch in fitting for n in batch]
    assert neighbors == sorted(n for n in LENGTHS if n <= longest.samples)
    assert len(fitting) == 4


def test_a_plan_of_which_nothing_is_captured_is_one_warning(
    wanted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe("audio", "--plan", "plan.json") == 0
    assert said() == wanted
    [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "the plan is not used, as the eager backend captures nothing" in line


@pytest.mark.parametrize(("arguments", "sizes"), [([], (3,)), (["--batch-size", 5], (1, 5))])
def test_a_batch_size_that_is_not_planned_is_captured_besides(
    monkeypatch: pytest.MonkeyPatch, arguments: list[object], sizes: tuple[int, ...]
) -> None:
    found: list[tuple[int, ...]] = []
    own = Transcriber.transcribe

    def looking(self: Transcriber, waveforms: Any, **options: Any) -> Any:
        found.append(self.pool.batch_sizes)
        return own(self, waveforms, **options)

    monkeypatch.setattr(Transcriber, "transcribe", looking)
    assert transcribe("click.wav", "--plan", "plan.json", *arguments) == 0
    assert found == [sizes]


def test_long_recordings_go_in_chunks() -> None:
    assert transcribe("audio", "--chunk", 0.5) == 0
    pipe = stock_pipeline(Path("model"))
    for i, (line, samples) in enumerate(zip(said(), LENGTHS, strict=True)):
        chunks = {"chunk_length_s": 0.5} if samples > 500 else {}
        assert line["text"] == pipe(waveform(samples, i), **chunks)["text"]


def test_a_bad_file_is_a_line_and_ends_nothing(
    wanted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe(*ALL) == 1
    lines = said()
    assert lines[:12] == wanted
    broken, movie, cut, click = lines[12:]
    assert [line["audio_filepath"] for line in (broken, movie, cut)] == FAILED
    assert "broken.flac cannot be decoded" in broken["error"]
    assert "movie.m4a " in movie["error"]  # what ffmpeg says, or that it is not installed
    assert "cut.wav is cut off" in cut["error"]
    assert all({**MADE, **line} == line and "text" not in line for line in (broken, movie, cut))
    assert click == {
        "audio_filepath": "click.wav", **MADE, "text": "", "words": [], "duration": 0.012,
    }  # fmt: skip
    assert "3 recordings could not be transcribed" in capsys.readouterr().err
    assert transcribe(*ALL) == 1  # all is there, and so are the errors
    assert said() == lines
    assert "out.jsonl has 16 of 16 recordings" in capsys.readouterr().out


def test_nothing_in_a_folder_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe("bad", "click.wav") == 1
    assert [line["audio_filepath"] for line in said()] == [*sorted(FAILED), "click.wav"]
    told = capsys.readouterr().err
    assert "3 recordings could not be transcribed" in told


def test_a_file_that_is_gone_is_a_line(folder: Path, here: Path) -> None:
    with Transcriber.from_pretrained(here / "model", device="cpu") as transcriber:
        [gone] = transcribe_files(transcriber, ["gone.wav"])
    assert gone == "gone.wav cannot be opened: No such file or directory"


def test_without_a_file_the_texts_are_printed(
    wanted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "model", "--device", "cpu"]
    assert main(["transcribe", "audio", *options]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [line["text"] for line in wanted]
    assert main(["transcribe", "audio/03.wav", "bad/cut.wav", *options]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [wanted[3]["text"]]
    assert "cut.wav is cut off" in shown.err


# --- a run that was cut short


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run over all recordings."""
    made = tmp_path_factory.mktemp("finished") / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert transcribe(*ALL, out=str(made)) == 1
    return made


@pytest.mark.parametrize("cut", [0, 1, 40, 70, 0.2, 0.77, -1, 1.0])
def test_a_file_cut_anywhere_is_continued(
    here: Path, finished: Path, cut: float, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = finished.read_bytes()
    kept = whole[: int(cut * len(whole)) if isinstance(cut, float) else cut]
    (here / "out.jsonl").write_bytes(kept)
    assert transcribe(*ALL, "--batch-size", 3) == 1
    assert said() == said(finished)
    assert (here / "out.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    shown = capsys.readouterr()
    torn = not kept.endswith(b"\n") and bool(kept)
    assert ("its last line was torn" in shown.err) == torn
    assert "3 recordings could not be transcribed" in shown.err


def test_only_the_rest_is_transcribed(
    here: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = finished.read_text().splitlines(keepends=True)
    (here / "out.jsonl").write_text("".join(lines[:10]))
    rows: list[int] = []
    own = Transcriber.transcribe

    def counting(self: Transcriber, waveforms: Any, **options: Any) -> Any:
        rows.append(len(waveforms))
        return own(self, waveforms, **options)

    monkeypatch.setattr(Transcriber, "transcribe", counting)
    assert transcribe(*ALL) == 1
    assert sum(rows) == 3  # of the six, three cannot be decoded
    told = "out.jsonl has 10 of 16 recordings: going on\n"  # the three are not among the ten
    assert told in capsys.readouterr().out
    assert transcribe(*ALL) == 1
    told = "16 of 16 recordings: going on; 3 could not be done, --overwrite begins anew\n"
    assert told in capsys.readouterr().out


def test_what_was_made_with_something_else_is_refused_and_kept(
    here: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished, here)
    before = (here / "out.jsonl").read_bytes()
    save_recognizer(here / "other", seed=1)
    capsys.readouterr()
    for arguments, options, message in [
        (ALL, {"model": "other"}, '"model": "other"'),
        ([*ALL, "--dtype", "bfloat16"], {}, '"dtype": "bfloat16"'),
        ([*ALL, "--chunk", "5"], {}, '"chunk": "5"'),
        (ALL[:2], {}, "more lines than the 13 recordings there are now"),
        (["audio/01.wav", *ALL], {}, 'line 1 is {"audio_filepath": "audio/00.wav"'),
    ]:
        assert transcribe(*arguments, **options) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert "write to another file, or overwrite it" in shown
    assert (here / "out.jsonl").read_bytes() == before
    assert transcribe(*ALL[:2], "--overwrite") == 1
    assert said() == said(finished)[:13]


@pytest.mark.parametrize(
    "content", [b"not JSON\nand more", b"notes without an end", b"[]\n", b'{"text": "a"}\n', b"\n"]
)
def test_a_file_of_something_else_is_refused_and_kept(
    here: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "out.jsonl").write_bytes(content)
    assert transcribe("audio") == 2
    assert "out.jsonl, line 1 is " in capsys.readouterr().err
    assert (here / "out.jsonl").read_bytes() == content


def test_an_interrupted_run_leaves_whole_lines_and_is_continued(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = TranscriptFile.write

    def interrupted(self: TranscriptFile, result: Any) -> None:
        own(self, result)
        if self.done == 7:
            signal.raise_signal(signal.SIGINT)

    # Python's own, whatever another test of this process has put there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(TranscriptFile, "write", interrupted)
            assert transcribe(*ALL) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted after" in capsys.readouterr().err
    assert said() == said(finished)[:7]
    assert transcribe(*ALL) == 1
    assert said() == said(finished)


def test_two_runs_do_not_write_to_one_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fcntl")
    own = Transcriber.transcribe
    inner: list[int] = []

    def meanwhile(self: Transcriber, waveforms: Any, **options: Any) -> Any:
        if not inner:
            inner.append(-1)
            inner.append(transcribe("audio"))
        return own(self, waveforms, **options)

    monkeypatch.setattr(Transcriber, "transcribe", meanwhile)
    assert transcribe("audio") == 0
    assert inner == [-1, 2]
    assert "another run writes to out.jsonl" in capsys.readouterr().err
    assert len(said()) == len(LENGTHS)


def test_out_of_memory_keeps_what_is_done(
    wanted: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Transcriber.transcribe

    def narrow(self: Transcriber, waveforms: Any, **options: Any) -> Any:
        if sum(map(len, waveforms)) > 1_500:
            raise torch.OutOfMemoryError
        return own(self, waveforms, **options)

    monkeypatch.setattr(Transcriber, "transcribe", narrow)
    monkeypatch.setattr("hf_cudagraph_asr.cli.transcribe.LOOK_AHEAD", 1)
    assert transcribe("audio", "--batch-size", 4) == 2
    assert "again with a --batch-size below 4 or a shorter --chunk" in capsys.readouterr().err
    assert said() == wanted[: len(said())]
    assert transcribe("audio", "--batch-size", 1) == 0
    assert said() == wanted


def test_a_name_that_is_not_utf_8_is_written_as_utf_8(
    here: Path, wanted: list[dict[str, Any]]
) -> None:
    names = [os.fsdecode(b"caf\xe9 \xc3\xa9 :a:.wav"), os.fsdecode(b"torn\xff.wav")]
    try:
        shutil.copy(here / "audio/00.wav", here / names[0])
        (here / names[1]).write_bytes(b"torn")
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    for _ in range(2):  # the second finds all done
        assert transcribe(*names) == 1
        line, torn = said()
        assert line == wanted[0] | {"audio_filepath": r"caf\xe9 é :a:.wav"}
        assert torn["audio_filepath"] == r"torn\xff.wav"
        assert torn["error"].startswith(r"torn\xff.wav cannot be decoded")
    read = pl.read_ndjson(here / "out.jsonl")  # it refuses halves of surrogate pairs
    assert read["audio_filepath"].to_list() == [line["audio_filepath"], torn["audio_filepath"]]


# --- the parts of it


def test_reading_keeps_ahead_by_a_window_and_stops_with_the_caller(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [f"audio/{i:02}.wav" for i in range(12)] * 50
    opened: list[str] = []
    slowly = threading.Event()
    own = read_audio

    def counting(path: Any, *args: Any) -> Any:
        opened.append(threading.current_thread().name)
        if slowly.is_set() and len(opened) > 10:  # not in the first window
            time.sleep(0.2)
        return own(path, *args)

    def settled() -> int:
        before = -1
        while before != len(opened):
            before = len(opened)
            time.sleep(0.1)
        return before

    monkeypatch.setattr("hf_cudagraph_asr.audio.read_audio", counting)
    monkeypatch.setattr("hf_cudagraph_asr.cli.transcribe.LOOK_AHEAD", 5)
    with Transcriber.from_pretrained(here / "model", device="cpu") as transcriber:
        results = transcribe_files(transcriber, paths, batch_size=2)
        assert isinstance(results, Iterator)
        assert len(list(islice(results, 3))) == 3
        assert settled() == 20
        assert all(name.startswith("reader") for name in opened)
        results.close()  # type: ignore[attr-defined]
        assert not [t for t in threading.enumerate() if t.name.startswith("reader")]
        # It does not finish its window first.
        opened.clear()
        results = transcribe_files(transcriber, paths, batch_size=2)
        slowly.set()
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert len(opened) < 15
        slowly.clear()
        # Long recordings fill a window before its count does.
        opened.clear()
        monkeypatch.setattr("hf_cudagraph_asr.cli.transcribe.MOST_SECONDS", 1.0)
        results = transcribe_files(transcriber, paths, batch_size=2)
        next(results)
        assert settled() < 8
        results.close()  # type: ignore[attr-defined]


def test_a_result_is_given_as_soon_as_those_before_it_are(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    own = Transcriber.transcribe

    def counting(self: Transcriber, waveforms: Any, **options: Any) -> Any:
        calls.append(len(waveforms))
        return own(self, waveforms, **options)

    monkeypatch.setattr(Transcriber, "transcribe", counting)
    with Transcriber.from_pretrained(here / "model", device="cpu") as transcriber:
        results = transcribe_files(transcriber, ["audio/00.wav"] * 40, batch_size=2)
        assert len(list(islice(results, 9))) == 9
        assert calls == [8, 8]


def test_the_error_of_a_line_is_what_a_line_may_hold(here: Path) -> None:
    with TranscriptFile("a.jsonl", ["a.wav", "b.wav"], **MADE) as file:
        file.write('a "quoted" é\nerror')
        assert (file.done, file.failed) == (1, 1)
    [line] = read_lines(Path("a.jsonl"))
    assert line == {"audio_filepath": "a.wav", **MADE, "error": 'a "quoted" é\nerror'}
    with TranscriptFile("a.jsonl", ["a.wav", "b.wav"], **MADE) as file:
        assert (file.done, file.failed) == (1, 1)
    assert json.loads(Path("a.jsonl").read_text())["error"] == line["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.wav"], "no file or folder missing.wav"),
        (["model"], "no audio in model or below it"),
        (["audio", "--plan", "missing.json"], "missing.json"),
        (["audio", "--plan", "audio/00.wav"], "audio/00.wav"),
        (["audio", "--plan", "plan.json", "--backend", "trt"], "no backend 'trt'"),
        (["audio", "--backend", "export"], "--backend export captures the lengths of a plan"),
        (["audio", "--dtype", "int8"], "no dtype 'int8'"),
        (["audio", "--device", "cuda:7"], "no device 'cuda:7'"),
        (["audio", "--model", "nowhere"], "nowhere"),
        (["audio", "--chunk", "0.01"], "too short"),
        (["audio", "--batch-size", "0"], "--batch-size"),
        (["audio", "--no-such-flag"], "--no-such-flag"),
        (["click.wav", "--out", "click.wav"], "click.wav is read, and would be replaced"),
        (["audio", "--out", "audio/00.wav", "--overwrite"], "audio/00.wav is read, and would be"),
        (["audio", "--out", "hard.jsonl", "--overwrite"], "hard.jsonl is read, and would be"),
        (
            ["audio", "--out", "model/vocab.json", "--overwrite"],
            "vocab.json belongs to the model",
        ),
        (["audio", "--out", "model/model.safetensors"], "model.safetensors belongs to the model"),
        (["audio", "--out", "nowhere/out.jsonl"], "no folder nowhere to write out.jsonl in"),
        (["audio", "--out", "audio"], "audio is a folder: give the path of a file"),
        (["audio", "--out", "click.wav/out.jsonl"], "click.wav is a file"),
        (["audio", "--out", "pipe"], "pipe is no regular file: give the path of another"),
    ],
)
def test_a_mistake_is_a_line_and_exit_code_2(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    os.link("audio/00.wav", "hard.jsonl")
    before = sorted(os.listdir())
    defaults = ["--model", "model", "--out", "out.jsonl", "--device", "cpu"]
    assert main(["transcribe", *defaults, *arguments]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("hf-cudagraph-asr: error: ")
    assert message in line
    assert sorted(os.listdir()) == before


def test_the_script_ends_with_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for argument, code in (("--version", 0), ("no-such-command", 2)):
        monkeypatch.setattr(sys, "argv", ["hf-cudagraph-asr", argument])
        with pytest.raises(SystemExit) as ended:
            script()
        assert ended.value.code == code
    shown = capsys.readouterr()
    assert shown.out.startswith("hf-cudagraph-asr 0.")
    assert shown.err.startswith("hf-cudagraph-asr: error: No such command")
