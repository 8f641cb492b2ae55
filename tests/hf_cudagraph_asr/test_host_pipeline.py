"""The pipeline of an enabled model says what that of the stock model says, one query at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from padded_rows import audio
from pooled import Static
from tiny_models import CASES, plan_for

from hf_cudagraph_asr import disable_cuda_graphs, enable_cuda_graphs

RATE = 1000  # samples a second, so that seconds of audio are few frames
LETTERS = "abcdefghi"
CHUNKS = {"chunk_length_s": 0.8, "stride_length_s": (0.1, 0.16)}
every_detail = pytest.mark.parametrize("timestamps", [None, "char", "word"])
every_batch_size = pytest.mark.parametrize("batch_size", [1, 4])

Clip = np.ndarray[Any, np.dtype[np.float32]]


def clip(samples: int, seed: int) -> Clip:
    """Neither of zero mean nor of unit variance: the feature extractor has something to do."""
    return (0.3 * audio(samples, seed) + 0.05).numpy()


def save(case: str, folder: Path) -> Path:
    """A model and its processor, as `from_pretrained` finds them."""
    vocabulary = ["<pad>", "<unk>", "|", *LETTERS]
    file = folder / "words.json"
    file.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)
    extractor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=RATE,
        # As published: checkpoints with group norm are used without a mask, others with one.
        return_attention_mask="group" not in case,
    )
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    model = CASES[case].build(pad_token_id=0)
    with torch.no_grad():
        model.lm_head.bias[vocabulary.index("|")] += 1  # words of a few letters
    model.save_pretrained(folder)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.pipeline(
        "automatic-speech-recognition", model=str(folder), dtype=dtype, device="cpu"
    )


@pytest.fixture(scope="module", params=["wav2vec2-group", "wav2vec2-layer-stable"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    return load(folder)


@pytest.fixture(scope="module")
def enabled(folder: Path) -> Iterator[Any]:
    """A pipeline whose model is enabled; its calls must all be served as planned."""
    pipe = load(folder)
    plan = plan_for(pipe.model, (500, 900), rate=RATE)
    with enable_cuda_graphs(pipe.model, plan, backend=Static()) as pool:
        yield pipe
    stats = pool.stats()
    assert stats.hits == stats.calls > 0


@every_batch_size
@every_detail
def test_queries_of_several_lengths(
    stock: Any, enabled: Any, timestamps: str | None, batch_size: int
) -> None:
    clips = [clip(n, n) for n in (300, 512, 299, 870, 640)]
    expected = [stock(each, return_timestamps=timestamps) for each in clips]
    assert len({result["text"] for result in expected}) == len(clips)
    assert enabled(list(clips), batch_size=batch_size, return_timestamps=timestamps) == expected


@every_batch_size
@every_detail
def test_chunks_of_a_long_recording(
    stock: Any, enabled: Any, timestamps: str | None, batch_size: int
) -> None:
    recording = clip(3_333, 1)
    expected = stock(recording, return_timestamps=timestamps, **CHUNKS)
    found = enabled(recording, batch_size=batch_size, return_timestamps=timestamps, **CHUNKS)
    assert found == expected
    if timestamps:
        times = [piece["timestamp"] for piece in expected["chunks"]]
        assert len(times) > 3
        assert times == sorted(times)
        assert times[-1][1] > 3


@every_batch_size
def test_a_generator_of_queries_with_sampling_rates(
    stock: Any, enabled: Any, batch_size: int
) -> None:
    def queries() -> Iterator[dict[str, Any]]:
        for n in (450, 31, 899, 700, 30):
            yield {"raw": clip(n, n), "sampling_rate": RATE}

    expected = [stock(query) for query in queries()]
    assert list(enabled(queries(), batch_size=batch_size)) == expected


def test_a_query_too_short_for_a_frame_is_no_text_and_costs_no_other(
    stock: Any, enabled: Any
) -> None:
    clips = [clip(n, n) for n in (300, 29, 640)]
    expected = [stock(clips[0]), {"text": ""}, stock(clips[2])]
    assert enabled(list(clips), batch_size=3) == expected


def test_a_pipeline_is_refused_with_the_remedy(stock: Any) -> None:
    for verb in (enable_cuda_graphs, disable_cuda_graphs):
        with pytest.raises(TypeError, match=r"Pipeline is no model of transformers.*pipe\.model"):
            verb(stock)


def test_the_stock_models_batches_fail_what_is_tested_here(tmp_path: Path) -> None:
    pipe = load(save("wav2vec2-group", tmp_path))
    clips = [clip(n, n) for n in (300, 512, 299, 870, 640)]
    assert pipe(list(clips), batch_size=4) != [pipe(each) for each in clips]


def test_decoding_by_the_processor(folder: Path, enabled: Any) -> None:
    """What people write who use no pipeline: a padded batch, argmax, batch_decode."""
    processor = transformers.Wav2Vec2Processor.from_pretrained(folder)
    model = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    clips = [clip(n, n) for n in (801, 620, 444)]

    def decode(of: Any, rows: list[Clip], **options: Any) -> list[str]:
        inputs = processor(rows, sampling_rate=RATE, return_tensors="pt", padding=True, **options)
        with torch.inference_mode():
            texts: list[str] = processor.batch_decode(of(**inputs).logits.argmax(-1))
        return texts

    expected = [decode(model, [each])[0] for each in clips]
    assert decode(enabled.model, clips, return_attention_mask=True) == expected
    assert [decode(enabled.model, [each])[0] for each in clips] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_pipeline_of_a_half_precision_model_is_served_as_planned(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    pipe = load(save("wav2vec2-group", tmp_path), dtype)
    recording = clip(2_000, 3)
    text = pipe(recording)["text"]
    with enable_cuda_graphs(pipe.model) as pool:
        # At the same length and alone nearly each frame rounds to the same letter.
        found = pipe(recording)["text"]
        pipe([clip(n, n) for n in (300, 512, 640)], batch_size=3, return_timestamps="word")
    assert SequenceMatcher(None, text, found).ratio() > 0.9
    assert pool.stats().hits == pool.stats().calls == 2
