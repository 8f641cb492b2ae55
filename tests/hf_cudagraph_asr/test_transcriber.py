"""Texts and word times are those of the host's pipeline with the stock model, query by query."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import plan_for
from tiny_recognizer import RATE, save_recognizer, stock_pipeline, waveform

from hf_cudagraph_asr import (
    GraphPool,
    Served,
    Transcriber,
    Transcript,
    enable_cuda_graphs,
    plan_buckets,
)

LENGTHS = (300, 512, 299, 870, 640, 31, 30)
SHORT = (29, 12, 1)  # samples that hold no frame
CLIPS = [waveform(samples) for samples in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_recognizer(tmp_path_factory.mktemp("group"))


@pytest.fixture(scope="module", params=["wav2vec2-group", "wav2vec2-layer-stable"])
def either(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "wav2vec2-group":
        return folder
    return save_recognizer(tmp_path_factory.mktemp("layer"), request.param)


def expected(folder: Path, clips: list[Any], **options: Any) -> list[Any]:
    pipe = stock_pipeline(folder)
    return [pipe(clip, return_timestamps="word", **options) for clip in clips]


def same(found: Transcript, wanted: dict[str, Any]) -> None:
    assert found.text == wanted["text"]
    assert [word.text for word in found.words] == [chunk["text"] for chunk in wanted["chunks"]]
    for word, chunk in zip(found.words, wanted["chunks"], strict=True):
        assert (word.start, word.end) == pytest.approx(chunk["timestamp"])


def opened(folder: Path, **options: Any) -> Transcriber:
    return Transcriber.from_pretrained(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def eager(folder: Path) -> Iterator[Transcriber]:
    with opened(folder) as transcriber:
        yield transcriber


@pytest.fixture(scope="module")
def exported(folder: Path) -> Iterator[Transcriber]:
    """Two buckets of a program each for 1 and 4 rows; chunks of .9 s."""
    model = transformers.AutoModelForCTC.from_pretrained(folder)
    plan = plan_for(model, (300, 700), batch_sizes=(1, 4), rate=RATE)
    with opened(folder, plan=plan, backend="export", chunk_length_s=0.9) as transcriber:
        yield transcriber


def test_a_batch_says_what_the_stock_pipeline_says_of_each_query(either: Path) -> None:
    wanted = expected(either, CLIPS)
    assert len({result["text"] for result in wanted}) >= 5
    with opened(either) as transcriber:
        together = transcriber.transcribe(CLIPS)
        alone = [transcriber.transcribe([clip])[0] for clip in CLIPS]
    for found in (together, alone):
        for transcript, result in zip(found, wanted, strict=True):
            same(transcript, result)
    assert [transcript.seconds for transcript in together] == [n / RATE for n in LENGTHS]
    assert all(transcript.milliseconds > 0 for transcript in together)


def test_captured_programs_say_the_same(folder: Path, exported: Transcriber) -> None:
    wanted = expected(folder, CLIPS)
    alone = [exported.transcribe([clip])[0] for clip in CLIPS]
    for found in (exported.transcribe(CLIPS), alone):
        for transcript, result in zip(found, wanted, strict=True):
            same(transcript, result)


def test_each_query_names_the_bucket_it_went_through(exported: Transcriber) -> None:
    alone = [exported.transcribe([clip])[0] for clip in CLIPS[:4]]
    assert [t.dispatch.route for t in alone] == ["bucket", "bucket", "bucket", "exact"]
    plan = exported.pool.plan
    assert plan is not None
    shorter, longer = plan.buckets
    assert [transcript.bucket for transcript in alone] == [shorter, longer, shorter, None]
    together = exported.transcribe(CLIPS[:3])
    for row, transcript in enumerate(together):
        [replay] = [replay for replay in transcript.dispatch.replays if row in replay.rows]
        assert transcript.bucket == replay.bucket


def test_long_recordings_are_those_of_the_pipeline_in_chunks(either: Path) -> None:
    clips = [waveform(2_345), waveform(400), waveform(600), waveform(1_900)]
    [first, last] = expected(either, [clips[0], clips[3]], chunk_length_s=0.6)
    short = expected(either, clips[1:3])
    with opened(either, chunk_length_s=0.6) as transcriber:
        found = transcriber.transcribe(clips)
    for transcript, result in zip(found, [first, *short, last], strict=True):
        same(transcript, result)
    assert found[0].seconds == 2.345
    in_one = expected(either, clips[:1])[0]
    assert in_one["text"] != first["text"]
    with opened(either, chunk_length_s=None) as transcriber:
        same(transcriber.transcribe(clips[:1])[0], in_one)


def test_chunks_name_their_own_bucket(folder: Path, exported: Transcriber) -> None:
    clip, pool = waveform(2_345), exported.pool
    processor = transformers.AutoProcessor.from_pretrained(folder)
    before = pool.stats()
    [found] = Transcriber(exported.model, processor, pool, chunk_length_s=0.6).transcribe([clip])
    after = pool.stats()
    assert pool.plan is not None
    assert found.bucket == pool.plan.buckets[1]
    assert after.hits - before.hits == after.calls - before.calls == 6
    same(found, expected(folder, [clip], chunk_length_s=0.6)[0])


def test_many_go_in_batches_of_neighboring_lengths_and_come_back_in_order(folder: Path) -> None:
    clips = [waveform(samples, seed) for seed in range(3) for samples in LENGTHS]
    model = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    served: list[Served] = []
    pool = enable_cuda_graphs(model, observers=[served.append])
    with Transcriber(model, processor, pool) as transcriber:
        together = transcriber.transcribe(clips, batch_size=2)
        calls = sorted(sorted(call.lengths) for call in served)
        alone = [transcriber.transcribe([clip])[0] for clip in clips]
    assert {len(call) for call in calls} == {1, 2}
    assert [samples for call in calls for samples in call] == sorted(map(len, clips))
    assert [found.text for found in together] == [found.text for found in alone]
    assert [found.words for found in together] == [found.words for found in alone]


def test_texts_are_made_while_the_device_computes_the_next_batch(
    eager: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    call, decoded = GraphPool.call, Transcriber._decoded

    def noted_call(pool: GraphPool, *given: Any) -> Any:
        notes.append("call")
        return call(pool, *given)

    def noted_decoded(self: Transcriber, ids: Any) -> Any:
        notes.append("text")
        return decoded(self, ids)

    monkeypatch.setattr(GraphPool, "call", noted_call)
    monkeypatch.setattr(Transcriber, "_decoded", noted_decoded)
    eager.transcribe([waveform(300)] * 3, batch_size=1)
    assert notes == ["call", "call", "text", "call", "text", "text"]


def test_a_pool_prices_batches_by_what_serves_them(
    eager: Transcriber, exported: Transcriber
) -> None:
    pool, captured = eager.pool, exported.pool
    for wrong in (0, -1, 2.0):
        with pytest.raises(ValueError, match="batch_size must be a whole number from 1 up"):
            eager.transcribe([waveform(300)], batch_size=wrong)  # type: ignore[arg-type]
    assert (pool.most_rows(), pool.most_rows(9), pool.most_rows(2)) == (8, 9, 2)
    assert (captured.most_rows(), captured.most_rows(9), captured.most_rows(2)) == (4, 4, 2)
    assert pool.price(600, 2) < 2 * pool.price(600, 1)  # a call costs something, too
    assert pool.price(600, 2) > pool.price(600, 1)
    # One bucket and one size of programs, at one price; and never with what has no program.
    assert captured.price(500, 2) == captured.price(600, 4) > captured.price(300, 4)
    assert captured.price(900, 2) > captured.price(900, 1) + captured.price(300, 1)
    assert captured.price(600, 5) > 2 * captured.price(600, 4)


def test_silence_after_a_loud_query_is_silence(exported: Transcriber) -> None:
    silence = np.zeros(301, np.float32)
    before = exported.transcribe([silence])[0]
    exported.transcribe([waveform(690)])
    after = exported.transcribe([silence])[0]
    assert (after.text, after.words) == (before.text, before.words)


def test_words_of_a_model_with_an_adapter_end_within_the_query(tmp_path: Path) -> None:
    folder = save_recognizer(tmp_path, "wav2vec2-adapter", seed=1)  # one that says something
    clips = [waveform(n) for n in (900, 640)]
    wanted = expected(folder, clips)
    with opened(folder) as transcriber:
        found = transcriber.transcribe(clips)
        config = transcriber.model.config
        frames = [transcriber.model(torch.from_numpy(clip)[None]).logits.shape[1] for clip in clips]
    strides = config.adapter_stride**config.num_adapter_layers
    assert strides > 1
    a_frame = strides * config.inputs_to_logits_ratio / RATE
    for transcript, result, count in zip(found, wanted, frames, strict=True):
        assert transcript.text == result["text"]
        assert transcript.words
        starts = [word.start / a_frame for word in transcript.words]
        assert starts == pytest.approx([round(start) for start in starts])
        assert transcript.words[-1].end <= count * a_frame + 1e-9


def test_what_holds_no_frame_has_no_text(either: Path) -> None:
    with opened(either) as transcriber:
        alone = [transcriber.transcribe([waveform(n)])[0] for n in SHORT]
        together = transcriber.transcribe([CLIPS[0], *map(waveform, SHORT), CLIPS[5]])
        silent = transcriber.transcribe([waveform(n) for n in SHORT])
    for transcript, samples in zip([*alone, *together[1:-1], *silent], SHORT * 3, strict=True):
        assert (transcript.text, transcript.words, transcript.bucket) == ("", (), None)
        assert transcript.seconds == samples / RATE
    for transcript, result in zip(
        (together[0], together[-1]), expected(either, [CLIPS[0], CLIPS[5]]), strict=True
    ):
        same(transcript, result)


@pytest.mark.parametrize("blank", [0, 5])
def test_an_encoder_that_pools_frames_needs_as_many_for_a_text(tmp_path: Path, blank: int) -> None:
    folder = save_recognizer(tmp_path, "sew-squeeze-2")
    clips = [CLIPS[0], waveform(49), waveform(50)]  # of one frame before pooling, and of two
    [first, last] = expected(folder, [clips[0], clips[2]])
    model = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    # The tokenizer decodes: what the configuration takes for the blank changes no text.
    model.config.pad_token_id = blank
    processor = transformers.AutoProcessor.from_pretrained(folder)
    with Transcriber(model, processor, enable_cuda_graphs(model)) as transcriber:
        alone = [transcriber.transcribe([clip])[0] for clip in clips]
        for found in (transcriber.transcribe(clips), alone):
            same(found[0], first)
            assert (found[1].text, found[1].words) == ("", ())
            same(found[2], last)


def test_each_call_is_made_once_and_reported_as_it_was(folder: Path) -> None:
    model = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    served: list[Served] = []
    pool = enable_cuda_graphs(model, observers=[served.append])
    with Transcriber(model, processor, pool, chunk_length_s=0.6) as transcriber:
        found = transcriber.transcribe(CLIPS[:3])
        assert [call.lengths for call in served] == [LENGTHS[:3]]
        assert all(transcript.dispatch == served[0].dispatch for transcript in found)
        served.clear()
        [long] = transcriber.transcribe([waveform(2_345)])
        assert len(served) == 6
        assert long.dispatch == served[0].dispatch


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(0, np.float32), "is empty"),
        (np.zeros((300, 2), np.float32), r"has the shape \(300, 2\), expected \(samples,\)"),
        (np.zeros(300, np.int16), "has int16 values.*divide 16-bit samples by 32768"),
        (np.full(300, np.nan, np.float32), "holds NaN or infinite samples"),
        (np.full(300, 1e300), r"holds a sample of 1e\+300, expected full scale 1"),
        (np.zeros(300, np.complex64), "has complex64 values"),
        (0.5, "put a single waveform in a list"),
        (torch.zeros(300, requires_grad=True), "is no array that numpy takes: .*requires grad"),
        ([0.1, [0.2]], "is no array that numpy takes"),
    ],
)
def test_a_bad_waveform_is_refused_by_its_row_and_the_next_call_is_right(
    eager: Transcriber, bad: Any, message: str
) -> None:
    before = eager.transcribe([CLIPS[0]])[0]
    with pytest.raises(ValueError, match=f"^row 1 .*{message}"):
        eager.transcribe([CLIPS[0], bad, CLIPS[1]])
    assert eager.fault(bad) is not None
    assert eager.fault(CLIPS[0]) is None
    after = eager.transcribe([CLIPS[0]])[0]
    assert (after.text, after.words) == (before.text, before.words)
    assert eager.transcribe([]) == []


def test_other_floats_are_taken_as_float32(eager: Transcriber) -> None:
    clip = CLIPS[1].astype(np.float16)
    kinds = (np.float32, np.float64, np.float16)
    wanted, *others = eager.transcribe([clip.astype(kind) for kind in kinds])
    for found in others:
        assert (found.text, found.words) == (wanted.text, wanted.words)


def test_another_sampling_rate_is_refused_with_the_remedy(eager: Transcriber) -> None:
    assert eager.sampling_rate == RATE
    assert eager.transcribe(CLIPS[:1], sampling_rate=RATE)
    with pytest.raises(ValueError, match=r"takes 1,000 samples a second, not 44,100: resample"):
        eager.transcribe(CLIPS[:1], sampling_rate=44_100)


def test_threads_get_their_own_transcripts(exported: Transcriber) -> None:
    clips = [waveform(n, seed) for seed in range(8) for n in (300, 512, 640)]
    wanted = [exported.transcribe([clip])[0] for clip in clips]
    barrier = threading.Barrier(4)

    def work(worker: int) -> list[Transcript]:
        barrier.wait()
        return [exported.transcribe([clip])[0] for clip in clips[worker::4]]

    with ThreadPoolExecutor(4) as executor:
        for worker, found in enumerate(executor.map(work, range(4))):
            assert [t.text for t in found] == [t.text for t in wanted[worker::4]]
            assert [t.words for t in found] == [t.words for t in wanted[worker::4]]


def test_rows_go_alone_where_the_model_has_no_exact_forward(folder: Path) -> None:
    class Own(transformers.Wav2Vec2ForCTC):  # type: ignore[misc]
        """Not the host's class, so its forward is unknown."""

    model = Own.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    with Transcriber(model, processor, enable_cuda_graphs(model)) as transcriber:
        found = transcriber.transcribe(CLIPS)
        assert {transcript.dispatch.route for transcript in found} == {"host"}
    for transcript, result in zip(found, expected(folder, CLIPS), strict=True):
        same(transcript, result)


def test_closing_gives_the_model_its_forward_again(folder: Path) -> None:
    with opened(folder) as transcriber:
        assert "forward" in vars(transcriber.model)
    assert "forward" not in vars(transcriber.model)
    transcriber.close()


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_a_dtype_is_that_of_the_weights(folder: Path, dtype: Any) -> None:
    with opened(folder, dtype=dtype) as transcriber:
        assert str(transcriber.model.dtype).endswith(str(dtype).removeprefix("torch."))
        assert transcriber.transcribe(CLIPS)[0].seconds == 0.3


def test_what_does_not_fit_is_refused_before_it_is_enabled(folder: Path) -> None:
    with pytest.raises(ValueError, match="no dtype 'int8'"):
        opened(folder, dtype="int8")
    with pytest.raises(ValueError, match="no device 'gpu'"):
        Transcriber.from_pretrained(folder, device="gpu")
    with pytest.raises(ValueError, match="no backend 'tensorrt'"):
        opened(folder, backend="tensorrt")
    with pytest.raises(ValueError, match="this plan is for"):
        Transcriber.from_pretrained(folder, device="cpu", plan=plan_buckets([1.0], graphs=1))
    with pytest.raises(ValueError, match=r"a chunk of 0\.01 s is too short"):
        opened(folder, chunk_length_s=0.01)
    with pytest.raises(ValueError, match="overlap by less than the 30 samples"):
        opened(folder, chunk_length_s=0.06)
    with pytest.raises(OSError, match="nowhere"):
        Transcriber.from_pretrained(folder / "nowhere")


def test_a_damaged_model_is_an_os_error_with_its_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "damaged")
    weights = tmp_path / "damaged/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(OSError, match=r"found nothing to load in .*damaged"):
        Transcriber.from_pretrained(tmp_path / "damaged")


def test_a_plan_may_be_a_file(folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCTC.from_pretrained(folder)
    plan = plan_for(model, (300, 700), batch_sizes=(1,), rate=RATE)
    plan.save(tmp_path / "plan.json")
    with opened(folder, plan=tmp_path / "plan.json") as transcriber:
        assert transcriber.pool.plan == plan


def test_a_plan_of_which_nothing_is_captured_is_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = transformers.AutoModelForCTC.from_pretrained(folder)
    with opened(folder, plan=plan_for(model, (300,), batch_sizes=(1,), rate=RATE)):
        pass
    [told] = [r.getMessage() for r in caplog.records if r.name.startswith("hf_cudagraph_asr")]
    assert "the plan is not used, as the eager backend captures nothing" in told
    caplog.clear()
    with opened(folder):
        pass
    assert not [r for r in caplog.records if r.name.startswith("hf_cudagraph_asr")]


def test_a_processor_that_does_not_serve_is_refused(folder: Path) -> None:
    model = transformers.AutoModelForCTC.from_pretrained(folder)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    with enable_cuda_graphs(model) as pool:
        with pytest.raises(ValueError, match="no feature extractor beside a tokenizer"):
            Transcriber(model, extractor, pool)
        processor.tokenizer = transformers.Wav2Vec2PhonemeCTCTokenizer(
            str(folder / "words.json"), do_phonemize=False
        )
        with pytest.raises(ValueError, match="gives no word offsets"):
            Transcriber(model, processor, pool)
