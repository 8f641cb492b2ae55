"""Models that take features, as their own feature extractors make them of audio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from packaging.version import Version
from padded_rows import agree, answers, audio
from pooled import Static
from tiny_models import CASES, each, plan_for

from hf_cudagraph_asr import Geometry, Transcriber, enable_cuda_graphs, plan_buckets
from hf_cudagraph_asr.dispatch import Reason

RATE = 16_000
WAVES = [audio(n, n).numpy() for n in (9_000, 8_960, 8_799, 7_121, 6_321)]


def parakeets(**settings: Any) -> Any:
    """Parakeet's extractor, which wants librosa in transformers before 5.23."""
    try:
        return transformers.ParakeetFeatureExtractor(**settings)
    except ImportError as error:
        if Version(transformers.__version__) >= Version("5.23"):
            raise
        pytest.skip(str(error).strip().splitlines()[0])


EXTRACTORS = {
    "bert": lambda: transformers.SeamlessM4TFeatureExtractor(num_mel_bins=8, feature_size=8),
    "parakeet": lambda: parakeets(feature_size=16),
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
    plan = plan_buckets([len(wave) / RATE for wave in WAVES], graphs=1, model=model)
    assert plan.geometry == geometry
    plan.check_geometry(model)
    with enable_cuda_graphs(model, plan, backend="export") as pool, torch.no_grad():
        model(**features(name, WAVES[0]))
        assert pool.stats().hits == 1
    with pytest.raises(ValueError, match="this plan is for"):
        plan.check_geometry(CASES["wav2vec2-group"].build())


def test_the_rate_of_features_is_that_of_the_extractor_in_the_models_folder(tmp_path: Path) -> None:
    CASES["parakeet"].build().config.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert Geometry.of(config).sampling_rate == 100
    assert Geometry.of(config, sampling_rate=8_000).sampling_rate == 50
    extractor = parakeets(hop_length=80, sampling_rate=24_000)
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


LETTERS = ["<unk>", "▁a", "b", "<pad>", "▁", "c", "▁d", "e", "▁f", "g", "▁h", "i"]


def saved(name: str, folder: Path) -> Path:
    """A model and its processor, as `from_pretrained` finds them."""
    model, extractor = CASES[name].build(), EXTRACTORS[name]()
    table = {letter: at for at, letter in enumerate(LETTERS)}
    if name == "bert":
        table = {letter.strip("▁") or "|": at for letter, at in table.items()}
        (folder / "words.json").write_text(json.dumps(table))
        tokenizer: Any = transformers.Wav2Vec2CTCTokenizer(
            str(folder / "words.json"), bos_token=None, eos_token=None
        )
        processor = transformers.Wav2Vec2BertProcessor(extractor, tokenizer)
    else:
        pieces = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
        pieces.decoder = tokenizers.decoders.Metaspace()
        tokenizer = transformers.ParakeetTokenizer(
            tokenizer_object=pieces, unk_token="<unk>", pad_token="<pad>"
        )
        processor = transformers.ParakeetProcessor(extractor, tokenizer)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@each(["bert", "parakeet"])
def test_a_transcriber_gives_the_texts_of_the_hosts_pipeline(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    stock = transformers.pipeline(
        "automatic-speech-recognition", model=str(folder), dtype=torch.float32, device="cpu"
    )
    # An even number of hops, and none of eights, so that the extractor adds no frame.
    waves = [audio(160 * hops + 240, hops).numpy() for hops in (30, 52, 74, 100, 202)]
    plan = plan_buckets([1.0, 1.4, 2.1], graphs=2, model=stock.model, batch_sizes=(2,))
    with Transcriber.from_pretrained(folder, plan=plan, backend="export") as asr:
        backwards = [wave[::-1].copy()[::-1] for wave in waves]  # strides below 0
        found = asr.transcribe([*backwards, waves[0][:100]])
        assert [one.text for one in found] == [*(stock(wave)["text"] for wave in waves), ""]
        for one, wave in zip(found, waves, strict=False):
            assert one.dispatch.replays
            assert one.text.strip()
            assert [word.text for word in one.words] == one.text.split()
            starts = [word.start for word in one.words]
            assert starts == sorted(starts)
            assert all(word.start < word.end for word in one.words)
            assert one.words[-1].end <= one.seconds + 0.08
            assert one.seconds == len(wave) / RATE
        assert not found[-1].words


def test_words_begin_at_the_frame_of_their_first_piece(tmp_path: Path) -> None:
    with Transcriber.from_pretrained(saved("parakeet", tmp_path)) as asr:
        spoken = [3, 1, 1, 3, 2, 3, 2, 5, 3, 6, 6, 7, 3]  # ▁a b b c, ▁d e
        sure = [0.9] * 5 + [0.3, 0.4] + [0.9] * 6  # of a blank, which does not count, and a b
        emitted = torch.stack([torch.tensor(spoken), torch.tensor(sure).log()], dim=-1)
        text, words = asr._decoded(emitted)
        assert text == "abbc de"
        assert [(word.text, word.start, word.end) for word in words] == [
            ("abbc", pytest.approx(0.08), pytest.approx(0.64)),
            ("de", pytest.approx(0.72), pytest.approx(0.96)),
        ]
        assert [word.confidence for word in words] == [pytest.approx(0.4), pytest.approx(0.9)]


def test_what_is_no_batch_of_features_is_the_models_own() -> None:
    model = CASES["parakeet"].build()
    given = features("parakeet", WAVES[0])
    with enable_cuda_graphs(model) as pool, torch.no_grad():
        for wrong in (given["input_features"][0], given["input_features"][..., :8]):
            with pytest.raises((RuntimeError, ValueError, IndexError)):
                model(wrong)
        with pytest.raises(ValueError, match="features"):
            pool.call(given["input_features"][0])
        model(given["input_features"], output_hidden_states=True)
        assert pool.stats().misses == {Reason.OUTPUTS: 1}
