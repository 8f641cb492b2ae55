"""The exact forward leaves its model as it is, and refuses models it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from padded_rows import TOLERANCE, audio, deviation, padded
from tiny_models import CASES, every_kind

from hf_cudagraph_asr.exact import ExactForward
from hf_cudagraph_asr.families import FAMILIES, UnsupportedModel, family_of


def belongings(model: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every module's attributes, hooks and forward included, by identity."""
    found = []
    for name, module in model.named_modules():
        own: dict[str, Any] = {}
        for key, value in vars(module).items():
            if isinstance(value, dict):
                own[key] = {inner: id(held) for inner, held in value.items()}
            else:  # exporting any model replaces its tuples by equal ones
                own[key] = value if isinstance(value, tuple) else id(value)
        found.append((name, own))
    return found


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    before = belongings(model)
    state = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    try:
        yield
    finally:
        assert belongings(model) == before
        assert model.state_dict().keys() == state.keys()
        for key, value in model.state_dict().items():
            assert value.data_ptr() == state[key][0]
            assert torch.equal(value, state[key][1])


@every_kind
def test_the_model_is_untouched(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    with torch.no_grad():
        model(audio(700, 0)[None])  # fills what caches the host itself has
    model.save_pretrained(tmp_path / "before")
    with unchanged(model), torch.no_grad():
        exact = ExactForward(model)
        exact(*padded([audio(500, 0), audio(700, 1)], 800))
        torch.export.export(exact, padded([audio(500, 0)], 600), strict=False)
    model.save_pretrained(tmp_path / "after")
    for file in sorted((tmp_path / "before").iterdir()):
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()


@every_kind
def test_the_model_is_untouched_after_an_exception(name: str) -> None:
    model = CASES[name].build()

    def fail(*_: object) -> None:
        raise RuntimeError("from a hook of the user")

    *_, linear = (m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_pre_hook(fail)
    exact = ExactForward(model)
    with (
        unchanged(model),
        torch.no_grad(),
        pytest.raises(RuntimeError, match="hook of the user"),
    ):
        exact(*padded([audio(500, 0)], 800))


def test_weights_are_shared_and_changes_in_place_are_used() -> None:
    model = CASES["wav2vec2-group"].build()
    exact = ExactForward(model)
    assert {p.data_ptr() for p in exact.parameters()} == {p.data_ptr() for p in model.parameters()}
    model.load_state_dict(CASES["wav2vec2-group"].build(seed=1).state_dict())
    rows = [audio(500, 0)]
    with torch.no_grad():
        logits, frames = exact(*padded(rows, 800))
        alone = model(rows[0][None]).logits[0]
    torch.testing.assert_close(logits[0, : frames[0]], alone, rtol=0, atol=1e-5)


def test_every_listed_family_is_tested() -> None:
    assert {getattr(transformers, f"{c.stem}Config").model_type for c in CASES.values()} == {
        *FAMILIES
    }
    for family in FAMILIES.values():
        assert hasattr(transformers, family.architecture)


def test_unlisted_models_are_refused_with_the_reason() -> None:
    bert = transformers.Wav2Vec2BertForCTC(
        transformers.Wav2Vec2BertConfig(
            vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, feature_projection_input_dim=8,
        )
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"wav2vec2-bert.*run it eagerly"):
        ExactForward(bert)
    with pytest.raises(UnsupportedModel, match="Linear"):
        ExactForward(torch.nn.Linear(1, 1))


def test_another_class_of_a_listed_family_is_refused() -> None:
    config = CASES["wav2vec2-group"].build().config

    class Own(transformers.Wav2Vec2ForCTC):  # type: ignore[misc]
        """Might compute anything."""

    for other in (transformers.Wav2Vec2Model, Own):
        with pytest.raises(UnsupportedModel, match=r"transformers\.Wav2Vec2ForCTC"):
            family_of(other(config))


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_that_asks_the_host_is_refused(attention: str) -> None:
    model = CASES["wav2vec2-group"].build()
    model.config._attn_implementation = attention
    with pytest.raises(UnsupportedModel, match=f"{attention}.*set_attn_implementation"):
        ExactForward(model)


def test_a_wrapped_first_convolution_is_refused() -> None:
    model = CASES["wav2vec2-group"].build()
    layer = model.wav2vec2.feature_extractor.conv_layers[0]
    layer.conv = torch.nn.Sequential(layer.conv)
    with pytest.raises(UnsupportedModel, match=r"Sequential.*expected Conv1d"):
        ExactForward(model)


def test_training_mode_and_too_short_a_batch_are_refused() -> None:
    model = CASES["wav2vec2-group"].build()
    exact = ExactForward(model)
    with pytest.raises(ValueError, match=r"29 samples.*pad it to 30"):
        exact(torch.zeros(1, 29), torch.tensor([29]))
    model.train()
    with pytest.raises(ValueError, match=r"model\.eval"):
        exact(torch.zeros(1, 100), torch.tensor([100]))


def test_a_model_that_does_not_fit_its_configuration_is_refused() -> None:
    model = CASES["wav2vec2-layer"].build()
    model.config.conv_stride = (5, 2, 1)
    with pytest.raises(ValueError, match=r"gave 24 frames of 500 samples, .* says 48"):
        ExactForward(model)(torch.zeros(1, 500), torch.tensor([500]))


def test_more_frames_than_relative_positions_are_refused() -> None:
    model = CASES["conformer-relative"].build(max_source_positions=20)
    exact = ExactForward(model)
    assert deviation(model, [audio(300, 0)], 20 * 20 + 10) <= TOLERANCE
    with pytest.raises(ValueError, match="49 frames are more than the 20"):
        exact(torch.zeros(1, 1000), torch.tensor([1000]))
    with torch.no_grad():
        model(torch.zeros(1, 1000))  # the host extends its own table
    assert deviation(model, [audio(300, 0)], 1000) <= TOLERANCE
