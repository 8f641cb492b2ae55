"""Texts and word times are those of the host's pipeline with the stock model, query by query."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import CASES, plan_for
from tiny_recogniser import RATE, save_recogniser, stock_pipeline, waveform

from hf_cudagraph_asr.attach import enable_cuda_graphs
from hf_cudagraph_asr.plan import plan_buckets
from hf_cudagraph_asr.transcriber import Transcriber, Transcript
from hf_cudagraph_asr.words import frame_seconds

LENGTHS = (300, 512, 299, 870, 640, 31, 30)
CLIPS = [waveform(samples) for samples in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_recogniser(tmp_path_factory.mktemp("group"))


@pytest.fixture(scope="module", params=["wav2vec2-group", "wav2vec2-layer-stable"])
def either(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "wav2vec2-group":
        return folder
    return save_recogniser(tmp_path_factory.mktemp("layer"), request.param)


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


def test_chunks_name_their_own_bucket(folder: Path) -> None:
    model = transformers.AutoModelForCTC.from_pretrained(folder)
    plan = plan_for(model, (600,), batch_sizes=(1,), rate=RATE)
    clip = waveform(2_345)
    with opened(folder, plan=plan, backend="export", chunk_length_s=0.6) as transcriber:
        [found] = transcriber.transcribe([clip])
        assert found.bucket == plan.buckets[0]
        assert transcriber.pool.stats().hits == transcriber.pool.stats().calls == 6
    same(found, expected(folder, [clip], chunk_length_s=0.6)[0])


def test_silence_after_a_loud_query_is_silence(exported: Transcriber) -> None:
    silence = np.zeros(301, np.float32)
    before = exported.transcribe([silence])[0]
    exported.transcribe([waveform(690)])
    after = exported.transcribe([silence])[0]
    assert (after.text, after.words) == (before.text, before.words)


def test_an_adapters_strides_count_in_word_times() -> None:
    config = CASES["wav2vec2-adapter"].build().config
    plain = CASES["wav2vec2-group"].build().config
    assert frame_seconds(plain, RATE) == pytest.approx(plain.inputs_to_logits_ratio / RATE)
    strides = config.adapter_stride**config.num_adapter_layers
    assert strides > 1
    assert frame_seconds(config, RATE) == pytest.approx(
        strides * config.inputs_to_logits_ratio / RATE
    )


def test_words_of_a_model_with_an_adapter_end_within_the_query(tmp_path: Path) -> None:
    folder = save_recogniser(tmp_path, "wav2vec2-adapter")
    clips = [waveform(n) for n in (900, 640)]
    wanted = expected(folder, clips)
    with opened(folder) as transcriber:
        found = transcriber.transcribe(clips)
        frames = [transcriber.model(torch.from_numpy(clip)[None]).logits.shape[1] for clip in clips]
        a_frame = frame_seconds(transcriber.model.config, RATE)
    for transcript, result, clip, count in zip(found, wanted, clips, frames, strict=True):
        assert transcript.text == result["text"]
        assert transcript.words
        assert transcript.words[-1].end <= count * a_frame
        assert count * a_frame == pytest.approx(len(clip) / RATE, abs=2 * a_frame)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(0, np.float32), "is empty"),
        (np.zeros(29, np.float32), "has 29 samples, and the model needs 30"),
        (np.zeros((300, 2), np.float32), r"has the shape \(300, 2\), expected \(samples,\)"),
        (np.zeros(300, np.int16), "has int16 values.*divide 16-bit samples by 32768"),
        (np.full(300, np.nan, np.float32), "holds NaN or infinite samples"),
        (np.full(300, -np.inf), "holds NaN or infinite samples"),
        (np.full(300, 1e300), r"holds a sample of 1e\+300, expected full scale 1"),
        (np.zeros(300, np.complex64), "has complex64 values"),
        (0.5, "put a single waveform in a list"),
    ],
)
def test_a_bad_waveform_is_refused_by_its_row_and_the_next_call_is_right(
    folder: Path, bad: Any, message: str
) -> None:
    with opened(folder) as transcriber:
        before = transcriber.transcribe([CLIPS[0]])[0]
        with pytest.raises(ValueError, match=f"^row 1 .*{message}"):
            transcriber.transcribe([CLIPS[0], bad, CLIPS[1]])
        assert transcriber.fault(bad) is not None
        assert transcriber.fault(CLIPS[0]) is None
        after = transcriber.transcribe([CLIPS[0]])[0]
        assert (after.text, after.words) == (before.text, before.words)
        assert transcriber.transcribe([]) == []


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_other_floats_are_taken_as_float32(folder: Path, kind: Any) -> None:
    clip = CLIPS[1].astype(np.float16)
    with opened(folder) as transcriber:
        wanted, found = transcriber.transcribe([clip.astype(np.float32), clip.astype(kind)])
    assert (found.text, found.words) == (wanted.text, wanted.words)


def test_another_sampling_rate_is_refused_with_the_remedy(folder: Path) -> None:
    with opened(folder) as transcriber:
        assert transcriber.sampling_rate == RATE
        assert transcriber.transcribe(CLIPS[:1], sampling_rate=RATE)
        with pytest.raises(ValueError, match=r"takes 1,000 samples a second, not 44,100: resample"):
            transcriber.transcribe(CLIPS[:1], sampling_rate=44_100)


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
    with pytest.raises(ValueError, match="too short for one frame"):
        opened(folder, chunk_length_s=0.01)
    with pytest.raises(ValueError, match="overlap by less than the 30 samples"):
        opened(folder, chunk_length_s=0.06)
    with pytest.raises(OSError, match="nowhere"):
        Transcriber.from_pretrained(folder / "nowhere")


def test_a_plan_may_be_a_file(folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCTC.from_pretrained(folder)
    plan = plan_for(model, (300, 700), batch_sizes=(1,), rate=RATE)
    plan.save(tmp_path / "plan.json")
    with Transcriber.from_pretrained(
        folder, device="cpu", plan=tmp_path / "plan.json", backend="export"
    ) as transcriber:
        assert transcriber.transcribe(CLIPS[:1])[0].bucket == plan.buckets[0]


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
