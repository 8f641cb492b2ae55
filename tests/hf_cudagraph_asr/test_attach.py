"""An enabled model is the same model: in the pipeline, when copied, saved, and given back."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from hf_cudagraph_asr.attach import disable_cuda_graphs, enable_cuda_graphs
from hf_cudagraph_asr.bucket_plan import BucketPlan
from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan import plan_buckets

LETTERS = "abcdefghi"
RATE = 1000  # samples a second, so that seconds of audio are few frames


def tiny() -> Any:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(LETTERS) + 3,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        num_feat_extract_layers=3,
        conv_dim=(24, 24, 24),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )
    model = Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():  # the initial weights give nearly the same logits for everything
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * (2 / parameter[0].numel()) ** 0.5)
    return model


def plan_for(model: Any, **options: Any) -> BucketPlan:
    geometry = Geometry.of(model, sampling_rate=RATE)
    return plan_buckets([0.3, 0.5, 0.9], graphs=2, model=geometry, **options)


def audio(samples: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    generator = np.random.default_rng(seed)
    wave = generator.normal(size=samples) * (1.2 + np.sin(np.arange(samples) / 40))
    return wave.astype(np.float32)


@pytest.fixture
def model() -> Iterator[Any]:
    model = tiny()
    yield model
    disable_cuda_graphs(model)


@pytest.fixture
def pipe(model: Any, tmp_path: Path) -> AutomaticSpeechRecognitionPipeline:
    words = ["<pad>", "<unk>", "|", *LETTERS]
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps({word: i for i, word in enumerate(words)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=False)
    return AutomaticSpeechRecognitionPipeline(
        model=model, tokenizer=tokenizer, feature_extractor=extractor, device="cpu"
    )


def test_forward_is_the_classes_own_again(model: Any) -> None:
    before = dict(vars(model))
    with enable_cuda_graphs(model) as pool:
        assert "forward" in vars(model)
        model(torch.zeros(1, 300))
    assert "forward" not in vars(model)
    assert vars(model) == before
    assert model.forward.__func__ is Wav2Vec2ForCTC.forward
    assert pool.stats().calls == 1


def test_forward_is_restored_after_an_exception(model: Any) -> None:
    with pytest.raises(KeyError), enable_cuda_graphs(model):
        raise KeyError
    assert "forward" not in vars(model)


def test_a_forward_of_the_instances_own_comes_back_as_it_was(model: Any) -> None:
    own = model.forward  # as accelerate's hooks leave one
    model.forward = own
    enable_cuda_graphs(model)
    assert model.forward is not own
    disable_cuda_graphs(model)
    assert vars(model)["forward"] is own
    del model.forward


def test_a_refused_plan_leaves_the_model_alone(model: Any) -> None:
    for backend in ("eager", "export"):
        with pytest.raises(ValueError, match="plan again with plan_buckets"):
            enable_cuda_graphs(model, plan_buckets([1.0], graphs=1), backend=backend)
    with pytest.raises(ValueError, match="pass plan_buckets"):
        enable_cuda_graphs(model, backend="export")
    with pytest.raises(ValueError, match="no backend 'tensorrt'"):
        enable_cuda_graphs(model, backend="tensorrt")
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="blank of CTC"):
        enable_cuda_graphs(model)
    assert "forward" not in vars(model)


def test_enabling_twice_names_the_remedy(model: Any) -> None:
    enable_cuda_graphs(model)
    with pytest.raises(ValueError, match=r"call disable_cuda_graphs\(model\) first"):
        enable_cuda_graphs(model)
    disable_cuda_graphs(model)
    enable_cuda_graphs(model)


def test_disabling_what_is_not_enabled_is_no_error(model: Any) -> None:
    with enable_cuda_graphs(model):
        disable_cuda_graphs(model)
        disable_cuda_graphs(model)
    assert "forward" not in vars(model)


def test_leaving_a_context_keeps_what_replaced_the_forward_within(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with enable_cuda_graphs(model) as pool:
        pooled = model.forward

        def logged(*args: Any, **kwargs: Any) -> Any:
            return pooled(*args, **kwargs)

        model.forward = logged
    assert vars(model)["forward"] is logged
    assert "was replaced while" in caplog.text
    with torch.no_grad():
        assert model(torch.zeros(1, 300)).logits.shape[0] == 1
    assert [reason.name for reason in pool.stats().misses] == ["CLOSED"]
    del model.forward


def test_the_signature_is_the_hosts(model: Any) -> None:
    host = inspect.signature(model.forward)
    with enable_cuda_graphs(model):
        assert inspect.signature(model.forward) == host


def test_a_deep_copy_is_a_plain_model_of_its_own(model: Any) -> None:
    values = torch.from_numpy(audio(300, 0))[None]
    with torch.no_grad(), enable_cuda_graphs(model) as pool:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.lm_head.bias.add_(1)
        difference = other(values).logits - model(values).logits
        torch.testing.assert_close(difference, torch.ones_like(difference), atol=1e-4, rtol=0)
        assert pool.stats().calls == 1
        with enable_cuda_graphs(other) as its_own:
            other(values)
        assert its_own.stats().calls == 1


def test_pickling_what_stands_in_forward_names_the_remedy(model: Any) -> None:
    with enable_cuda_graphs(model), pytest.raises(TypeError, match="disable_cuda_graphs"):
        pickle.dumps(model.forward)


def test_saving_an_enabled_model_saves_the_model(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "plain")
    names = list(model.state_dict())
    with enable_cuda_graphs(model, plan_for(model), backend="export"):
        assert list(model.state_dict()) == names
        model.save_pretrained(tmp_path / "enabled")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "enabled" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("backend", ["eager", "export"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_pipelines_texts_are_the_stock_models_at_batch_1(
    pipe: Any, model: Any, backend: str, batch_size: int
) -> None:
    clips = [audio(n, n) for n in (300, 512, 299, 870, 640)]
    expected = [pipe(clip, return_timestamps="char") for clip in clips]
    assert len({result["text"] for result in expected}) == len(clips)
    plan = plan_for(model, batch_sizes=(1, 4))
    with enable_cuda_graphs(model, plan, backend=backend) as pool:
        found = pipe(list(clips), batch_size=batch_size, return_timestamps="char")
    assert found == expected
    assert not pool.stats().misses


@pytest.mark.parametrize("backend", ["eager", "export"])
def test_chunks_of_a_long_recording(pipe: Any, model: Any, backend: str) -> None:
    clip = audio(2_700, 1)
    options = {"chunk_length_s": 0.8, "stride_length_s": (0.1, 0.1), "return_timestamps": "char"}
    expected = pipe(clip, **options)
    plan = plan_for(model, batch_sizes=(1, 2))
    with enable_cuda_graphs(model, plan, backend=backend) as pool:
        assert pipe(clip, **options) == expected
        assert pipe(clip, batch_size=2, **options) == expected
    assert pool.stats().hits == pool.stats().calls > 3


def test_the_stock_models_batches_fail_what_is_tested_here(pipe: Any) -> None:
    clips = [audio(n, n) for n in (300, 512, 299, 870, 640)]
    assert pipe(list(clips), batch_size=4) != [pipe(clip) for clip in clips]
