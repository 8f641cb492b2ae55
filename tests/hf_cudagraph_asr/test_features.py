"""Models that take features, as their own feature extractors make them of audio."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from padded_rows import agree, answers, audio
from pooled import Static
from tiny_models import CASES, each, plan_for

from hf_cudagraph_asr import Geometry, enable_cuda_graphs, plan_buckets
from hf_cudagraph_asr.dispatch import Reason

RATE = 16_000
WAVES = [audio(n, n).numpy() for n in (9_000, 8_960, 8_799, 7_121, 6_321)]
EXTRACTORS = {
    "bert": lambda: transformers.SeamlessM4TFeatureExtractor(num_mel_bins=8, feature_size=8),
    "parakeet": lambda: transformers.ParakeetFeatureExtractor(feature_size=16),
    "lasr": lambda: transformers.LasrFeatureExtractor(feature_size=16),
    "granite-speech-5": lambda: transformers.GraniteSpeech5FeatureExtractor(num_mel_bins=16),
}
every_extractor = each(EXTRACTORS)


def features(name: str, wave: Any) -> dict[str, torch.Tensor]:
    """(1, T, F) and (1, T): of one recording, and what of it counts."""
    made = EXTRACTORS[name]()(
        wave, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
    )
    return {"input_features": made["input_features"], "attention_mask": made["attention_mask"]}


def batched(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """These, with NaN after each."""
    return {
        key: torch.nn.utils.rnn.pad_sequence([row[key][0] for row in rows], True, fill)
        for key, fill in (("input_features", torch.nan), ("attention_mask", 0))
    }


@every_extractor
def test_a_batch_has_the_logits_of_each_recording_alone(name: str) -> None:
    model = CASES[name].build()
    rows = [features(name, wave) for wave in WAVES]
    with torch.no_grad():
        lengths = [int(row["attention_mask"].sum()) for row in rows]
        expected = [
            model(row["input_features"][:, :n]).logits[0]
            for row, n in zip(rows, lengths, strict=True)
        ]
        for row, own in zip(rows, expected, strict=True):  # also with what the extractor adds
            agree(model(**row).logits[0, : len(own)], own)
        plan = plan_for(model, (lengths[-1], max(lengths)), (1, 4))
        with enable_cuda_graphs(model, plan, backend=Static()) as pool:
            answers(model(**batched(rows)).logits, expected)
            for row, own in zip(rows, expected, strict=True):
                agree(model(**row).logits[0], own)
                agree(model(row["input_features"], row["attention_mask"]).logits[0], own)
            logits, _ = pool.call(batched(rows)["input_features"], lengths)
            answers(logits, expected)
            assert pool.stats().hits == pool.stats().calls == 12
            assert pool.explain(lengths).route == "bucket"
            assert pool.calibrate(repeats=1).replay


@every_extractor
def test_a_plan_in_seconds_is_for_the_features_of_so_many_seconds(name: str) -> None:
    model = CASES[name].build()
    geometry = Geometry.of(model)
    for wave in WAVES:
        positions = int(features(name, wave)["attention_mask"].sum())
        assert -1 < len(wave) / RATE * geometry.sampling_rate - positions < 3
    plan = plan_buckets([len(wave) / RATE for wave in WAVES], graphs=2, model=model)
    assert plan.geometry == geometry
    plan.check_geometry(model)
    with enable_cuda_graphs(model, plan, backend="export") as pool, torch.no_grad():
        model(**features(name, WAVES[0]))
        assert pool.stats().hits == 1
    with pytest.raises(ValueError, match="this plan is for"):
        plan.check_geometry(CASES["wav2vec2-group"].build())


def test_the_rate_of_features_is_that_of_the_extractor_in_the_models_folder(tmp_path: Any) -> None:
    CASES["parakeet"].build().config.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert Geometry.of(config).sampling_rate == 100
    assert Geometry.of(config, sampling_rate=8_000).sampling_rate == 50
    extractor = transformers.ParakeetFeatureExtractor(hop_length=80, sampling_rate=24_000)
    extractor.save_pretrained(tmp_path)
    assert Geometry.of(config).sampling_rate == 300


def test_generate_of_an_enabled_model_is_that_of_the_model() -> None:
    model = CASES["parakeet"].build()
    rows = [features("parakeet", wave) for wave in WAVES]
    batch = {**batched(rows), "input_features": batched(rows)["input_features"].nan_to_num()}
    expected = model.generate(**batch)
    with enable_cuda_graphs(model) as pool:
        found = model.generate(**batch)
        assert pool.stats().calls == 1
        assert not pool.stats().misses
    assert torch.equal(found, expected[:, : found.shape[1]])
    assert (expected[:, found.shape[1] :] == model.config.pad_token_id).all()


def test_what_is_no_batch_of_features_is_the_models_own() -> None:
    model = CASES["parakeet"].build()
    given = features("parakeet", WAVES[0])
    with enable_cuda_graphs(model) as pool, torch.no_grad():
        for wrong in (given["input_features"][0], given["input_features"][..., :8]):
            with pytest.raises((RuntimeError, ValueError, IndexError)):
                model(wrong)
        with pytest.raises(ValueError, match="shape"):
            pool.call(given["input_features"][0])
        model(given["input_features"], output_hidden_states=True)
        assert pool.stats().misses == {Reason.OUTPUTS: 1}
