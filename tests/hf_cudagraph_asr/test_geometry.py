"""Samples ↔ frames, against convolutions that run and against counting one by one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cudagraph_asr import Geometry, plan_buckets

SEW = Geometry(
    (10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1),
    (5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1),
)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any stack, strides longer than kernels (which skip samples) included."""
    layers = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=5))
    kernels, strides = zip(*layers, strict=True)
    return Geometry(kernels, strides, draw(st.sampled_from([8_000, 16_000, 44_100])))


def convolved(geometry: Geometry, samples: int) -> int:
    """What a convolution's own output says; 0 where torch refuses."""
    x = torch.zeros(1, 1, samples)
    for kernel, stride in zip(geometry.kernels, geometry.strides, strict=True):
        if x.shape[-1] < kernel:
            return 0
        x = torch.nn.functional.conv1d(x, torch.ones(1, 1, kernel), stride=stride)
    return x.shape[-1]


@given(geometries(), st.integers(1, 3000))
@settings(deadline=None, max_examples=50)
def test_frames_are_those_of_the_convolutions(geometry: Geometry, samples: int) -> None:
    assert geometry.frames(samples) == convolved(geometry, samples)


@given(geometries(), st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_samples_are_all_that_give_the_frames(geometry: Geometry, frames: int) -> None:
    samples = range(geometry.shortest(frames), geometry.longest(frames) + 1)
    assert (samples[0], samples[-1]) == (geometry.shortest(frames), geometry.longest(frames))
    for edge in (samples[0], samples[-1]):
        assert convolved(geometry, edge) == frames
    assert convolved(geometry, samples[0] - 1) == frames - 1 if samples[0] > 1 else frames == 1
    assert convolved(geometry, samples[-1] + 1) == frames + 1


@given(geometries())
@settings(max_examples=50)
def test_the_receptive_field_is_the_shortest_input(geometry: Geometry) -> None:
    counted = next(n for n in range(1, 10**6) if geometry.frames(n))
    assert counted == geometry.receptive_field == geometry.shortest(1)
    assert geometry.longest(3) + 1 == geometry.shortest(4) == geometry.shortest(3) + geometry.hop


@given(geometries(), st.lists(st.integers(0, 10**9), max_size=20))
@settings(max_examples=50)
def test_arrays_count_like_numbers(geometry: Geometry, samples: list[int]) -> None:
    found = geometry.frames(np.array(samples, dtype=np.int64))
    assert found.tolist() == [geometry.frames(n) for n in samples]


def test_wav2vec2_at_16_khz_is_the_default() -> None:
    geometry = Geometry()
    assert (geometry.hop, geometry.receptive_field, geometry.sampling_rate) == (320, 400, 16_000)
    for frames in (1, 49, 1499):
        assert range(geometry.shortest(frames), geometry.longest(frames) + 1) == range(
            320 * (frames - 1) + 400, 320 * frames + 400
        )
    assert geometry.seconds(49) == (320 * 49 + 399) / 16_000
    assert {geometry: 1}[Geometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))] == 1


def tiny(name: str, **options: object) -> torch.nn.Module:
    """The bare model of a family, two narrow layers."""
    import transformers

    defaults = transformers.AutoConfig.for_model(name)
    narrow = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": (4,) * len(defaults.conv_dim),
        "num_feat_extract_layers": len(defaults.conv_dim),
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }
    config = transformers.AutoConfig.for_model(name, **narrow | options)
    return transformers.AutoModel.from_config(config).eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wav2vec2", {}),
        ("wav2vec2", {"conv_kernel": (7, 5, 2, 3, 3, 1, 4), "conv_stride": (3, 2, 2, 5, 1, 2, 1)}),
        ("wav2vec2", {"add_adapter": True, "output_hidden_size": 16}),
        ("wavlm", {}),
        ("sew", {}),
    ],
    ids=["wav2vec2", "other kernels", "adapter", "wavlm", "sew"],
)
def test_a_models_feature_encoder_gives_these_frames(name: str, options: dict[str, object]) -> None:
    model = tiny(name, **options)
    geometry = Geometry.of(model)
    assert geometry == Geometry.of(model.config)
    for frames in (1, 2, 7):
        samples = range(geometry.shortest(frames), geometry.longest(frames) + 1)
        for n in (samples[0], samples[-1], samples[-1] + 1):
            with torch.inference_mode():
                made = model.feature_extractor(torch.zeros(1, n)).shape[-1]
            assert made == geometry.frames(n) == frames + (n not in samples)


def test_what_a_model_makes_of_frames_changes_no_geometry() -> None:
    assert Geometry.of(tiny("wav2vec2", add_adapter=True, output_hidden_size=16)) == Geometry()
    assert Geometry.of(tiny("sew")) == SEW  # frames before the squeeze
    assert SEW.hop == 320


def test_the_sampling_rate_is_given() -> None:
    assert Geometry.of(Geometry(sampling_rate=8_000)).sampling_rate == 8_000
    assert Geometry.of(Geometry(), sampling_rate=8_000).sampling_rate == 8_000
    assert Geometry.of(tiny("wav2vec2"), sampling_rate=44_100).sampling_rate == 44_100


def test_the_sampling_rate_is_that_of_the_folder_a_model_was_loaded_from(tmp_path: Path) -> None:
    import transformers

    transformers.Wav2Vec2Config().save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert Geometry.of(config).sampling_rate == 16_000  # no feature extractor is there
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8_000)
    extractor.save_pretrained(tmp_path)
    assert Geometry.of(config).sampling_rate == 8_000
    assert plan_buckets([1.0], model=config).geometry.sampling_rate == 8_000
    assert Geometry.of(config, sampling_rate=11_025).sampling_rate == 11_025
    # A processor saves its feature extractor as a part of itself.
    processor = {"feature_extractor": extractor.to_dict() | {"sampling_rate": 22_050}}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    assert Geometry.of(config).sampling_rate == 22_050
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(OSError, match=r"processor_config\.json.* is not a valid JSON file"):
        Geometry.of(config)


def test_a_model_without_a_known_input_is_refused() -> None:
    from transformers import WhisperConfig

    with pytest.raises(ValueError, match="WhisperConfig has no conv_kernel and conv_stride"):
        Geometry.of(WhisperConfig())
    with pytest.raises(ValueError, match="str has no conv_kernel"):
        Geometry.of("facebook/wav2vec2-base")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), ()), "0 kernels and 0 strides"),
        (((3,), (1, 2)), "1 kernels and 2 strides"),
        (((0,), (1,)), "kernels are a tuple of whole numbers from 1 up"),
        (((3,), (-1,)), "strides are a tuple of whole numbers from 1 up"),
        (((3.5,), (1,)), "kernels are a tuple of whole numbers"),
        ((3, 1), "kernels are a tuple"),
        (("10", "5"), "kernels are a tuple"),
        (((3,), (1,), 0), "sampling_rate is a whole number"),
        (((3,), (1,), 16e3), "sampling_rate is a whole number"),
    ],
)
def test_what_is_no_convolution_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("frames", [0, -1, 1.5, True, "3"])
def test_no_samples_give_such_frames(frames: object) -> None:
    with pytest.raises(ValueError, match="frames are a whole number from 1 up"):
        Geometry().longest(frames)  # type: ignore[arg-type]


def test_planning_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, hf_cudagraph_asr.plan as plan; plan.plan_buckets([1.0, 2.0]);"
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
