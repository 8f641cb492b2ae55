"""`hf-cudagraph-asr transcribe`: every query once and in order, whatever happens to the run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import plan_for
from tiny_recogniser import (
    RATE,
    read_lines,
    record,
    save_recogniser,
    stock_pipeline,
    waveform,
    write_lines,
)
from transformers import AutoModelForCTC

from hf_cudagraph_asr import offline
from hf_cudagraph_asr.cli import main
from hf_cudagraph_asr.manifest import queries_in
from hf_cudagraph_asr.offline import by_length, transcribe_queries
from hf_cudagraph_asr.transcriber import Transcriber

LENGTHS = [820, 300, 511, 95, 640, 1_240, 333, 31, 702, 450, 450, 128]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a plan for it, and recordings, of which one is broken, one too short, one gone."""
    folder = tmp_path_factory.mktemp("asr")
    save_recogniser(folder / "model")
    for i, samples in enumerate(LENGTHS):
        record(folder / f"audio/{i:02}.wav", samples, i)
    model = AutoModelForCTC.from_pretrained(folder / "model")
    plan_for(model, (300, 700), batch_sizes=(1, 3), rate=RATE).save(folder / "plan.json")
    lines: list[dict[str, Any]] = [
        {"audio_filepath": f"audio/{i:02}.wav", "duration": n / RATE} for i, n in enumerate(LENGTHS)
    ]
    write_lines(folder / "good.jsonl", lines)
    (folder / "broken.flac").write_bytes(b"fLaC and no more")
    record(folder / "click.wav", 12)
    lines.insert(2, {"audio_filepath": "broken.flac", "text": "never heard"})
    lines.insert(5, {"audio_filepath": "gone.wav"})
    lines.append({"audio_filepath": "click.wav"})
    write_lines(folder / "all.jsonl", lines)
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
        words = [
            {
                "text": c["text"],
                "start": round(c["timestamp"][0], 4),
                "end": round(c["timestamp"][1], 4),
            }
            for c in result["chunks"]
        ]
        line = {"audio_filepath": f"audio/{i:02}.wav", "text": result["text"], "words": words}
        found.append({**line, "duration": samples / RATE})
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
    assert "12 queries → out.jsonl" in shown.out
    assert f"{sum(LENGTHS) / RATE:.1f} s of audio in" in shown.out


@pytest.mark.parametrize("source", ["good.jsonl", "files"])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batches_change_nothing(
    wanted: list[dict[str, Any]], source: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "LOOK_AHEAD", 2)
    files = [f"audio/{i:02}.wav" for i in range(len(LENGTHS))]
    sources = files[::-1] if source == "files" else [source]
    assert transcribe(*sources, "--batch-size", batch_size) == 0
    assert said() == (wanted[::-1] if source == "files" else wanted)


def test_a_plan_changes_nothing_but_the_buckets(
    wanted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe("good.jsonl", "--plan", "plan.json", "--backend", "export") == 0
    assert said() == wanted
    buckets = [line["bucket"] for line in read_lines(Path("out.jsonl"))]
    shorter, longer = sorted({bucket for bucket in buckets if bucket is not None})
    for samples, bucket in zip(LENGTHS, buckets, strict=True):
        if samples > 720:
            assert bucket is None
        else:  # alone, or with a longer one
            assert bucket in {shorter, longer}
            assert bucket >= samples
    assert "padding" in capsys.readouterr().out


def test_long_recordings_go_in_chunks() -> None:
    assert transcribe("good.jsonl", "--chunk", 0.5) == 0
    pipe = stock_pipeline(Path("model"))
    for i, (line, samples) in enumerate(zip(said(), LENGTHS, strict=True)):
        chunks = {"chunk_length_s": 0.5} if samples > 500 else {}
        assert line["text"] == pipe(waveform(samples, i), **chunks)["text"]


def test_a_bad_file_is_a_line_and_ends_nothing(
    wanted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe("all.jsonl") == 1
    lines = said()
    good = [line for line in lines if "error" not in line]
    assert good == wanted
    assert [i for i, line in enumerate(lines) if "error" in line] == [2, 5, 14]
    broken, gone, click = (lines[i] for i in (2, 5, 14))
    assert broken["audio_filepath"] == "broken.flac"
    assert broken["reference"] == "never heard"
    assert "broken.flac cannot be decoded" in broken["error"]
    assert "gone.wav cannot be opened: No such file" in gone["error"]
    assert "click.wav has 12 samples, and the model needs 30" in click["error"]
    assert "3 queries could not be transcribed" in capsys.readouterr().err
    assert transcribe("all.jsonl") == 1  # all is there, and so are the errors
    assert said() == lines


def test_parts_of_a_recording(here: Path) -> None:
    lines = [{"audio_filepath": "audio/00.wav", "offset": at, "duration": 0.3} for at in (0, 0.25)]
    write_lines(here / "parts.jsonl", lines)
    assert transcribe("parts.jsonl") == 0
    pipe = stock_pipeline(Path("model"))
    clip = waveform(LENGTHS[0], 0)
    for line, start in zip(said(), (0, 250), strict=True):
        assert line["text"] == pipe(clip[start : start + 300])["text"]
        assert (line["offset"], line["duration"]) == (start / 1000, 0.3)


def test_a_known_text_gives_the_word_error_rate(
    here: Path, wanted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"audio_filepath": w["audio_filepath"], "text": w["text"]} for w in wanted]
    words = sum(len(line["text"].split()) for line in lines)
    lines[0]["text"] += " and three more"
    write_lines(here / "known.jsonl", [*lines, {"audio_filepath": "broken.flac", "text": "a"}])
    assert transcribe("known.jsonl") == 1
    shown = capsys.readouterr().out
    assert f"word error rate {3 / (words + 3):.2%} over {words + 3} words of 12 queries" in shown
    assert said()[0]["reference"] == lines[0]["text"]


def test_without_jiwer_the_rate_is_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    write_lines(here / "known.jsonl", [{"audio_filepath": "audio/00.wav", "text": "a"}])
    assert transcribe("known.jsonl") == 0
    shown = capsys.readouterr().out
    assert "pip install jiwer" in shown
    assert "word error rate 1" not in shown


# --- a run that was cut short


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run over all.jsonl."""
    made = tmp_path_factory.mktemp("finished")
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        assert transcribe("all.jsonl", out=str(made / "out.jsonl")) == 1
    return made


@pytest.mark.parametrize("cut", [0, 1, 40, 0.2, 0.5, 0.77, 0.999, -1, 1.0])
def test_a_file_cut_anywhere_is_continued(
    here: Path, finished: Path, cut: float, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (finished / "out.jsonl").read_bytes()
    shutil.copy(finished / "out.jsonl.run.json", here)
    kept = whole[: int(cut * len(whole)) if isinstance(cut, float) else cut]
    (here / "out.jsonl").write_bytes(kept)
    assert transcribe("all.jsonl", "--batch-size", 3) == 1
    assert said() == said(finished / "out.jsonl")
    assert (here / "out.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    torn = not kept.endswith(b"\n") and bool(kept)
    assert ("the last line was torn" in capsys.readouterr().err) == torn


def test_only_the_rest_is_transcribed(
    here: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (finished / "out.jsonl").read_text().splitlines(keepends=True)
    (here / "out.jsonl").write_text("".join(lines[:10]))
    shutil.copy(finished / "out.jsonl.run.json", here)
    rows: list[int] = []
    own = Transcriber.transcribe

    def counting(self: Transcriber, waveforms: Any, **options: Any) -> Any:
        rows.append(len(waveforms))
        return own(self, waveforms, **options)

    monkeypatch.setattr(Transcriber, "transcribe", counting)
    assert transcribe("all.jsonl") == 1
    assert sum(rows) == 4  # of the five, one is too short
    assert "out.jsonl has 10 of 15 queries: going on" in capsys.readouterr().out


def test_what_was_made_with_something_else_is_refused_and_kept(
    here: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out.jsonl", "out.jsonl.run.json"):
        shutil.copy(finished / name, here)
    before = (here / "out.jsonl").read_bytes()
    other = save_recogniser(here / "other", seed=1)
    layer = save_recogniser(here / "layer", "wav2vec2-layer")
    lines = read_lines(here / "all.jsonl")
    write_lines(here / "fewer.jsonl", lines[:7])
    write_lines(here / "swapped.jsonl", [lines[1], lines[0], *lines[2:]])
    capsys.readouterr()
    for arguments, options, message in [
        (["all.jsonl"], {"model": other}, "was made with another model"),
        (["all.jsonl"], {"model": layer}, "was made with another model"),
        (["all.jsonl", "--dtype", "bfloat16"], {}, "dtype 'float32', now 'bfloat16'"),
        (["all.jsonl", "--chunk", 20], {}, "another chunk_length_s 30.0, now 20.0"),
        (["fewer.jsonl"], {}, "more lines than the 7 queries there are now"),
        (["swapped.jsonl"], {}, "line 1 is of 'audio/00.wav', and the query there is 'audio/01"),
    ]:
        assert transcribe(*arguments, **options) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert "write to another file, or overwrite it" in shown
    assert (here / "out.jsonl").read_bytes() == before
    assert transcribe("fewer.jsonl", "--overwrite") == 1
    assert said() == said(finished / "out.jsonl")[:7]


@pytest.mark.parametrize(
    ("record_of_it", "content", "message"),
    [
        (None, b'{"audio_filepath": "audio/00.wav"}\n', "no out.jsonl.run.json beside it says"),
        (b"{", b'{"audio_filepath": "audio/00.wav"}\n', "out.jsonl.run.json is damaged"),
        (b"[]", b"x\n", "out.jsonl.run.json is damaged"),
        (b"same", b"not JSON\nand more", "out.jsonl, line 1 is no transcript"),
        (b"same", b"[]\n", "out.jsonl, line 1 is of None"),
    ],
)
def test_a_file_of_something_else_is_refused_and_kept(
    here: Path,
    finished: Path,
    record_of_it: bytes | None,
    content: bytes,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "out.jsonl").write_bytes(content)
    if record_of_it == b"same":
        shutil.copy(finished / "out.jsonl.run.json", here)
    elif record_of_it is not None:
        (here / "out.jsonl.run.json").write_bytes(record_of_it)
    assert transcribe("all.jsonl") == 2
    assert message in capsys.readouterr().err
    assert (here / "out.jsonl").read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_whole_lines_and_is_continued(
    here: Path, finished: Path, blow: signal.Signals
) -> None:
    lines = [line | {"n": n} for n in range(200) for line in read_lines(here / "all.jsonl")]
    write_lines(here / "many.jsonl", lines)
    command = [sys.executable, "-m", "hf_cudagraph_asr", "transcribe", "many.jsonl"]
    command += ["--model", "model", "--out", "out.jsonl", "--batch-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 200
        while not (here / "out.jsonl").exists() or len((here / "out.jsonl").read_bytes()) < 5_000:
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(blow)
        _, told = run.communicate(timeout=60)
    left = (here / "out.jsonl").read_bytes()
    done = left.count(b"\n")
    assert 20 < done < len(lines)
    if blow is signal.SIGINT:
        assert run.returncode == 130
        assert left.endswith(b"\n")
        assert b"interrupted after" in told
        assert b"Traceback" not in told
    else:
        assert run.returncode == -signal.SIGKILL
    # The rest of it, without waiting for thousands.
    write_lines(here / "some.jsonl", lines[: done + 30])
    assert transcribe("some.jsonl") == 1
    assert said() == (said(finished / "out.jsonl") * 200)[: done + 30]


def test_two_runs_do_not_write_to_one_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fcntl")
    own = Transcriber.transcribe
    inner: list[int] = []

    def meanwhile(self: Transcriber, waveforms: Any, **options: Any) -> Any:
        if not inner:
            inner.append(-1)
            inner.append(transcribe("good.jsonl"))
        return own(self, waveforms, **options)

    monkeypatch.setattr(Transcriber, "transcribe", meanwhile)
    assert transcribe("good.jsonl") == 0
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
    monkeypatch.setattr(offline, "LOOK_AHEAD", 1)
    assert transcribe("good.jsonl", "--batch-size", 4) == 2
    assert "again with a --batch-size below 4 or a shorter --chunk" in capsys.readouterr().err
    assert said() == wanted[: len(said())]
    assert transcribe("good.jsonl", "--batch-size", 1) == 0
    assert said() == wanted


def test_a_name_that_is_not_utf_8_is_kept(here: Path, wanted: list[dict[str, Any]]) -> None:
    name = os.fsdecode(b"caf\xe9 \xc3\xa9 :a:.wav")
    try:
        shutil.copy(here / "audio/00.wav", here / name)
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    for _ in range(2):  # the second finds all done
        assert transcribe(name) == 0
        [line] = said()
        assert line == wanted[0] | {"audio_filepath": name}


# --- what is read when


def test_reading_keeps_ahead_by_a_window_and_stops_with_the_caller(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(here / "many.jsonl", read_lines(here / "good.jsonl") * 50)
    queries = queries_in([here / "many.jsonl"])
    opened: list[str] = []
    own = offline.read_audio

    def counting(path: Any, *args: Any, **options: Any) -> Any:
        opened.append(threading.current_thread().name)
        return own(path, *args, **options)

    monkeypatch.setattr(offline, "read_audio", counting)
    monkeypatch.setattr(offline, "LOOK_AHEAD", 5)
    with Transcriber.from_pretrained(here / "model", device="cpu") as transcriber:
        outcomes = transcribe_queries(transcriber, queries, batch_size=2)
        first = list(islice(outcomes, 3))
        assert [outcome.query for outcome in first] == queries[:3]
        time.sleep(0.5)
        assert len(opened) == 20
        assert all(name.startswith("reader") for name in opened)
        outcomes.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("reader")]
        # Long recordings fill a window before its count does.
        opened.clear()
        monkeypatch.setattr(offline, "MOST_SECONDS", 1.0)
        outcomes = transcribe_queries(transcriber, queries, batch_size=2)
        next(outcomes)
        time.sleep(0.5)
        assert len(opened) < 8
        outcomes.close()


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 9))
def test_batches_are_all_rows_once_and_as_near_in_length_as_can_be(
    lengths: list[int], batch_size: int
) -> None:
    batches = by_length(lengths, batch_size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert [lengths[row] for batch in batches for row in batch] == sorted(lengths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.wav"], "no file or folder missing.wav"),
        (["audio", "--plan", "missing.json"], "missing.json"),
        (["audio", "--plan", "good.jsonl"], "good.jsonl is no JSON"),
        (["audio", "--plan", "plan.json", "--backend", "trt"], "no backend 'trt'"),
        (["audio", "--backend", "export"], "--backend export captures the lengths of a plan"),
        (["audio", "--dtype", "int8"], "no dtype 'int8'"),
        (["audio", "--device", "cuda:7"], "no device 'cuda:7'"),
        (["audio", "--model", "nowhere"], "nowhere"),
        (["audio", "--chunk", "0.01"], "too short for one frame"),
        (["audio", "--batch-size", "0"], "--batch-size"),
        (["out.jsonl"], "out.jsonl is read, and would be replaced"),
        (["audio", "--out", "nowhere/out.jsonl"], "no folder nowhere to write out.jsonl in"),
        (["plan.json"], "plan.json, line 1 is no JSON"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments == ["out.jsonl"]:
        shutil.copy(here / "good.jsonl", here / "out.jsonl")
    before = sorted(os.listdir())
    defaults = ["--model", "model", "--out", "out.jsonl", "--device", "cpu"]
    assert main(["transcribe", *defaults, *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert sorted(os.listdir()) == before
