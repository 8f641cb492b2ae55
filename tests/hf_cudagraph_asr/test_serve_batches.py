"""One Recognizer in this process: its batches, its failures, and what it says became of a call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served  # noqa: F401 - imports Ray Serve without its warnings
import torch
from tiny_models import plan_for
from tiny_recognizer import RATE, save_recognizer, waveform
from transformers import AutoConfig

from hf_cudagraph_asr import GraphPool, Transcriber
from hf_cudagraph_asr.serve import ModelSettings, Recognizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = save_recognizer(tmp_path_factory.mktemp("model"))
    plan_for(AutoConfig.from_pretrained(found), (400, 900), (4,), RATE).save(found / "plan.json")
    return found


@pytest.fixture(scope="module")
def eager(folder: Path) -> Recognizer:
    return Recognizer(ModelSettings(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Recognizer, Transcriber]:
    """A Recognizer with captured programs, and the Transcriber that it made."""
    made: list[Transcriber] = []
    load = Transcriber.from_pretrained.__func__  # type: ignore[attr-defined]

    def noted(cls: type[Transcriber], *args: Any, **options: Any) -> Transcriber:
        made.append(load(cls, *args, **options))
        return made[-1]

    plan = str(folder / "plan.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transcriber, "from_pretrained", classmethod(noted))
        recognizer = Recognizer(
            ModelSettings(model=str(folder), plan=plan, backend="export", device="cpu", calibrate=0)
        )
    return recognizer, made[0]


@pytest.fixture
def captured(loaded: tuple[Recognizer, Transcriber]) -> Recognizer:
    return loaded[0]


@pytest.fixture(scope="module")
def offline(folder: Path) -> Iterator[Transcriber]:
    with Transcriber.from_pretrained(folder, device="cpu") as transcriber:
        yield transcriber


def ask(recognizer: Recognizer, lengths: Sequence[int], most: int | None = None) -> list[Any]:
    """Queries of these lengths, all there before the first batch is chosen."""
    recognizer.reconfigure({"max_batch_size": most})

    async def all_at_once() -> list[Any]:
        queries = [
            recognizer.transcribe(waveform(samples, seed), RATE)
            for seed, samples in enumerate(lengths)
        ]
        return await asyncio.gather(*queries)

    return asyncio.run(all_at_once())


class Calls:
    """What the model is given together, by length; it fails where one of the `bad` lengths is."""

    def __init__(
        self, patch: pytest.MonkeyPatch, *bad: int, error: type[Exception] = RuntimeError
    ) -> None:
        self.lengths: list[list[int]] = []
        whole = Transcriber.transcribe

        def transcribe(transcriber: Transcriber, waveforms: Any, **options: Any) -> Any:
            self.lengths.append([len(one) for one in waveforms])
            if any(len(one) in bad for one in waveforms):
                raise error("it cannot")
            return whole(transcriber, waveforms, **options)

        patch.setattr(Transcriber, "transcribe", transcribe)


def batches(
    recognizer: Recognizer, lengths: Sequence[int], most: int | None = None
) -> list[list[int]]:
    """The lengths that go through the model together, batch after batch."""
    with pytest.MonkeyPatch.context() as patch:
        calls = Calls(patch)
        answers = ask(recognizer, lengths, most)
    sizes = sorted(size for size in map(len, calls.lengths) for _ in range(size))
    assert sorted(answer.batch for answer in answers) == sizes
    return calls.lengths


def test_a_batch_is_the_oldest_query_with_those_that_make_the_fewest_replays(
    captured: Recognizer, offline: Transcriber
) -> None:
    lengths = [500, 300, 600, 310, 320, 330, 340, 350, 1000, 360]
    taken = [[500, 600, 350, 360], [300], [310, 320, 330, 340], [1000]]
    assert batches(captured, lengths) == taken
    answers = ask(captured, lengths)
    for seed, (samples, answer) in enumerate(zip(lengths, answers, strict=True)):
        assert answer.text == offline.transcribe([waveform(samples, seed)])[0].text
        assert answer.route == ("exact" if samples == 1000 else "bucket")
        assert answer.reason == ("long" if samples == 1000 else None)
        assert (answer.bucket is None) == (samples == 1000)
    assert answers[7].bucket == answers[0].bucket > answers[1].bucket


def test_without_programs_only_similar_lengths_go_together(eager: Recognizer) -> None:
    lengths = [300, 310, 900, 320, 3_000]
    assert batches(eager, lengths) == [[300, 310, 320], [900], [3_000]]


def test_programs_are_measured_at_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    monkeypatch.setattr(GraphPool, "calibrate", lambda pool, repeats: measured.append(repeats))
    plan = str(folder / "plan.json")
    Recognizer(ModelSettings(model=str(folder), plan=plan, backend="export", device="cpu"))
    Recognizer(ModelSettings(model=str(folder), device="cpu"))
    assert measured == [3]


def test_a_recording_longer_than_a_chunk_goes_alone(
    eager: Recognizer, offline: Transcriber
) -> None:
    found = ask(eager, [300, 30_100, 310])
    assert [answer.batch for answer in found] == [2, 1, 2]
    [wanted] = offline.transcribe([waveform(30_100, 1)])
    assert found[1].text == wanted.text


def test_two_batches_at_a_time_say_the_same(folder: Path, offline: Transcriber) -> None:
    recognizer = Recognizer(ModelSettings(model=str(folder), device="cpu", lanes=2))
    lengths = [300, 900, 310, 910] * 5
    threads: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        whole, both = Transcriber.transcribe, threading.Barrier(2)

        def transcribe(*given: Any, **options: Any) -> Any:
            threads.append(threading.current_thread().name)
            if len(threads) <= 2:
                both.wait(60)  # in vain where one batch waits for the other
            return whole(*given, **options)

        patch.setattr(Transcriber, "transcribe", transcribe)
        answers = ask(recognizer, lengths)
    assert len({*threads}) == 2
    for seed, (samples, answer) in enumerate(zip(lengths, answers, strict=True)):
        assert answer.text == offline.transcribe([waveform(samples, seed)])[0].text


def test_batches_are_no_larger_than_what_was_captured_or_is_asked(
    captured: Recognizer, eager: Recognizer
) -> None:
    lengths = [300] * 9
    for recognizer, asked, sizes in [
        (captured, None, [4, 4, 1]),
        (captured, 64, [4, 4, 1]),
        (captured, 3, [3, 3, 3]),
        (eager, None, [8, 1]),
        (eager, 9, [9]),
    ]:
        assert [len(batch) for batch in batches(recognizer, lengths, asked)] == sizes
    captured.reconfigure(None)
    with pytest.raises(ValueError, match="no setting max_batch: expected some of max_batch_size"):
        captured.reconfigure({"max_batch": 1})


def test_queries_may_wait_for_others_although_the_device_is_free(eager: Recognizer) -> None:
    async def one_after_the_other() -> list[Any]:
        first = asyncio.create_task(eager.transcribe(waveform(300), RATE))
        await asyncio.sleep(0.05)
        return [await eager.transcribe(waveform(300), RATE), await first]

    eager.reconfigure({"batch_wait_s": 0.3})
    assert [answer.batch for answer in asyncio.run(one_after_the_other())] == [2, 2]
    eager.reconfigure(None)
    assert [answer.batch for answer in asyncio.run(one_after_the_other())] == [1, 1]


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_one_bad_query_does_not_fail_its_batch(
    eager: Recognizer, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    calls = Calls(monkeypatch, 302, error=error)
    answers = ask(eager, [300, 301, 302, 303])
    assert calls.lengths == [[300, 301, 302, 303], [300], [301], [302], [303]]
    assert [answer.batch for at, answer in enumerate(answers) if at != 2] == [1, 1, 1]
    assert (answers[2].status_code, answers[2].detail["error"]) == (500, "failed")
    assert "it cannot" not in answers[2].detail["detail"]
    eager.check_health()  # the last call went well


def test_a_model_that_fails_three_times_in_a_row_is_replaced(
    eager: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, replaced in [(ValueError, False), (RuntimeError, True)]:
        with monkeypatch.context() as patch:
            Calls(patch, 300, error=error)
            ask(eager, [300, 300, 300])  # together, and then each alone: one failure
            ask(eager, [300])
            eager.check_health()
            ask(eager, [300])
            if replaced:
                with pytest.raises(RuntimeError, match="the model failed 3 times in a row"):
                    eager.check_health()
    ask(eager, [300])
    eager.check_health()


def test_a_query_whose_client_left_is_not_computed(
    eager: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)

    async def leave() -> list[Any]:
        queries = [
            asyncio.create_task(eager.transcribe(waveform(samples), RATE))
            for samples in (300, 301, 302)
        ]
        await asyncio.sleep(0)  # all of them wait
        queries[1].cancel()
        return await asyncio.gather(*queries, return_exceptions=True)

    first, left, last = asyncio.run(leave())
    assert (first.batch, last.batch) == (2, 2)
    assert isinstance(left, asyncio.CancelledError)
    assert calls.lengths == [[300, 302]]


def test_a_query_that_the_model_cannot_take_joins_no_batch(eager: Recognizer) -> None:
    async def refused() -> list[Any]:
        bad = np.full(300, np.nan, np.float32)
        return await asyncio.gather(
            eager.transcribe(waveform(300), RATE),
            eager.transcribe(bad, RATE),
            eager.transcribe(waveform(300), 2 * RATE),
        )

    good, bad, stale = asyncio.run(refused())
    assert good.batch == 1
    assert (bad.status_code, bad.detail["error"]) == (400, "unsupported_audio")
    assert bad.detail["detail"].startswith("the audio holds NaN")
    assert (stale.status_code, stale.detail["error"]) == (503, "not_ready")


def test_a_model_that_does_not_start_says_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        Recognizer(ModelSettings(model=str(tmp_path), device="cpu"))
    assert str(caught.value).startswith("OSError: AutoProcessor found nothing to load in")
    assert "\n" not in str(caught.value)


def test_a_gpu_is_not_shared_by_replicas_that_were_given_none_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        def get_accelerator_ids(self) -> dict[str, list[str]]:
            return {"GPU": []}

    monkeypatch.setattr("ray.get_runtime_context", Context)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(RuntimeError, match=r"num_gpus is 0.*set gpus=1"):
        Recognizer(ModelSettings(model=str(folder)))


def test_the_answer_says_what_became_of_the_call_and_not_what_was_expected(
    loaded: tuple[Recognizer, Transcriber],
) -> None:
    recognizer, transcriber = loaded
    before = ask(recognizer, [300])[0]
    pool = transcriber.pool
    assert pool.plan is not None
    assert (before.route, before.bucket) == ("bucket", pool.plan.buckets[0].frames)
    pool.swap(plan_for(transcriber.model, (600,), (4,), RATE))
    after = ask(recognizer, [300])[0]
    assert (after.route, after.bucket) == ("bucket", pool.plan.buckets[0].frames)
    assert after.bucket > before.bucket
    assert after.text == before.text
    with torch.no_grad():
        transcriber.model.lm_head.bias.data = transcriber.model.lm_head.bias.data.clone()
    exchanged = ask(recognizer, [300])[0]
    assert (exchanged.route, exchanged.reason, exchanged.bucket) == ("exact", "changed", None)
