"""The exact forward leaves its model as it is, and refuses models it does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from padded_rows import TOLERANCE, agree, alone, as_input, audio, cut, deviation, padded
from pooled import unchanged
from tiny_models import CASES, WAVLM, every_kind
from torch.utils._python_dispatch import TorchDispatchMode

from hf_cudagraph_asr import ExactForward, UnsupportedModel
from hf_cudagraph_asr.families import FAMILIES, family_of


@every_kind
def test_the_model_is_untouched(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    some, more, total = (cut(model, length) for length in (500, 700, 800))
    alone(model, audio(more))  # fills what caches the host itself has
    model.save_pretrained(tmp_path / "before")
    with unchanged(model), torch.no_grad():
        values, lengths = padded([audio(some, 0), audio(more, 1)], total)
        ExactForward(model)(as_input(model, values), lengths)
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
    values, lengths = padded([audio(cut(model, 500), 0)], cut(model, 800))
    with (
        unchanged(model),
        torch.no_grad(),
        pytest.raises(RuntimeError, match="hook of the user"),
    ):
        exact(as_input(model, values), lengths)


def test_weights_are_shared_and_changes_in_place_are_used() -> None:
    model = CASES["wav2vec2-group"].build()
    exact = ExactForward(model)
    assert {p.data_ptr() for p in exact.parameters()} == {p.data_ptr() for p in model.parameters()}
    model.load_state_dict(CASES["wav2vec2-group"].build(seed=1).state_dict())
    row = audio(500)
    with torch.no_grad():
        logits, frames = exact(*padded([row], 800))
    agree(logits[0, : frames[0]], alone(model, row))


def products(exact: ExactForward, row: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Products of matrices with a bias in a run of one row, and its logits."""
    found = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found.extend([func] * (func is torch.ops.aten.addmm.default))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Counted():  # type: ignore[no-untyped-call]
        logits, frames = exact(*padded([row], 800))
    return len(found), logits[0, : frames[0]]


def test_one_product_serves_queries_keys_and_values_and_keeps_no_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, row = CASES["wav2vec2-group"].build(), audio(500)
    exact = ExactForward(model)
    apart, _ = products(exact, row)
    monkeypatch.setattr("hf_cudagraph_asr.exact.FUSED_ON", ("cpu",))
    layers = model.wav2vec2.encoder.layers
    with unchanged(model):
        together, logits = products(exact, row)
    assert apart - together == 2 * len(layers)
    agree(logits, alone(model, row))
    for parameter in model.parameters():
        parameter.data.mul_(1.1)  # which no version counter tells of
    agree(products(exact, row)[1], alone(model, row))

    seen = []
    hook = layers[1].attention.k_proj.register_forward_hook(lambda *_: seen.append(1))
    assert products(exact, row)[0] == apart
    assert seen
    hook.remove()
    for module in (layers[0], layers[0].attention):  # which are called as ever
        seen.clear()
        hook = module.register_forward_hook(lambda *_: seen.append(1))
        assert products(exact, row)[0] == together
        assert seen
        hook.remove()
    on_all = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert products(exact, row)[0] == apart
    on_all.remove()
    monkeypatch.setattr("hf_cudagraph_asr.exact.FUSED_VALUES", 1)
    assert products(exact, row)[0] == apart


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("wav2vec2-group", "do_stable_layer_norm", True),
        ("wav2vec2-layer-stable", "do_stable_layer_norm", False),
        pytest.param("wavlm-layer-stable", "do_stable_layer_norm", False, marks=WAVLM),
        ("conformer-relative", "position_embeddings_type", "rotary"),
        ("conformer-rotary", "position_embeddings_type", "relative"),
        ("bert-relative-wide-adapter", "position_embeddings_type", None),
    ],
)
def test_what_the_host_reads_when_it_is_built_is_not_read_later(
    name: str, key: str, value: object
) -> None:
    model = CASES[name].build()
    assert getattr(model.config, key) != value
    setattr(model.config, key, value)
    assert deviation(model, [audio(500, 0), audio(700, 1)], 800) <= TOLERANCE


# PEFT asks the host by a name that it is about to give up.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is:FutureWarning")
def test_adapters_of_peft_are_heard_where_products_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_cudagraph_asr.exact.FUSED_ON", ("cpu",))
    model, row = CASES["wav2vec2-layer-stable"].build(), audio(500)
    before = alone(model, row)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.eval()
    assert float((alone(model, row) - before).abs().max()) > 1e-3
    agree(products(ExactForward(model), row)[1], alone(model, row))


@pytest.mark.parametrize("change", ["input", "width"])
def test_other_attention_is_heard_where_products_are_one(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That projects something else than its input, and that has fewer heads in one layer."""
    monkeypatch.setattr("hf_cudagraph_asr.exact.FUSED_ON", ("cpu",))
    model, row = CASES["wav2vec2-group"].build(), audio(500)
    before = alone(model, row)
    attention = model.wav2vec2.encoder.layers[0].attention
    if change == "input":
        own = attention.forward
        monkeypatch.setattr(
            type(attention),
            "forward",
            lambda self, x, **named: own.__func__(self, 2 * x, key_value_states=x - 1, **named),
        )
    else:
        for name, layer in attention.named_children():
            inside, outside = layer.weight.shape
            cut = attention.head_dim
            inside, outside = (inside, cut) if name == "out_proj" else (cut, outside)
            other = torch.nn.Linear(outside, inside)
            other.weight = torch.nn.Parameter(layer.weight[:inside, :outside].detach())
            setattr(attention, name, other)
    assert float((alone(model, row) - before).abs().max()) > 1e-3
    agree(products(ExactForward(model), row)[1], alone(model, row))


def test_every_listed_family_is_tested() -> None:
    assert {case.config.model_type for case in CASES.values()} == {*FAMILIES}
    for family in FAMILIES.values():
        assert hasattr(transformers, family.architecture)


def test_unlisted_models_are_refused_with_the_reason() -> None:
    whisper = transformers.WhisperForAudioClassification(
        transformers.WhisperConfig(
            d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
            num_mel_bins=8,
        )
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"whisper.*run it eagerly"):
        ExactForward(whisper)
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


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_longest_row_are_refused(kind: str) -> None:
    model = CASES["lasr"].build()
    model.config.encoder_config.rope_parameters["rope_type"] = kind
    with pytest.raises(UnsupportedModel, match=f"{kind}.*the length of the longest row"):
        ExactForward(model)


class Conv1d(torch.nn.Conv1d):
    """Has torch's name, and might compute anything."""


class GroupNorm(torch.nn.GroupNorm):
    """The same of another layer."""


def wrapped(layer: Any) -> None:
    layer.conv = torch.nn.Sequential(layer.conv)


def own_convolution(layer: Any) -> None:
    layer.conv = Conv1d(1, 24, 10, 5, bias=False)


def own_norm(layer: Any) -> None:
    layer.layer_norm = GroupNorm(24, 24)


def fewer_groups(layer: Any) -> None:
    layer.layer_norm = torch.nn.GroupNorm(12, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrapped, r"are torch\.nn\S*Sequential and torch\.nn\S*GroupNorm, expected those of"),
        (own_convolution, r"conv_layers\.0\.conv is a \S*test_padding_host\.Conv1d"),
        (own_norm, r"conv_layers\.0\.layer_norm is a \S*test_padding_host\.GroupNorm"),
        (fewer_groups, r"24 outputs in 12 groups, expected .* as many affine groups as outputs"),
    ],
)
def test_another_first_layer_is_refused_by_its_full_name(
    change: Callable[[Any], None], message: str
) -> None:
    model = CASES["wav2vec2-group"].build()
    change(model.wav2vec2.feature_extractor.conv_layers[0])
    with pytest.raises(UnsupportedModel, match=message):
        ExactForward(model)


def test_training_mode_and_too_short_a_batch_are_refused() -> None:
    model = CASES["wav2vec2-group"].build()
    exact = ExactForward(model)
    with pytest.raises(ValueError, match=r"29 samples.*pad it to 30"):
        exact(torch.zeros(1, 29), torch.tensor([29]))
    model.train()
    with pytest.raises(ValueError, match=r"model\.eval"):
        exact(torch.zeros(1, 100), torch.tensor([100]))


def test_lengths_are_a_tensor_of_one_whole_number_a_row() -> None:
    exact = ExactForward(CASES["wav2vec2-group"].build())
    values = torch.zeros(2, 800)
    wrong = [[800, 800], None, torch.tensor([800.0, 800.0]), torch.tensor([800]), torch.tensor(800),
             torch.tensor([800, 800, 800]), torch.tensor([[800, 800]])]  # fmt: skip
    with torch.no_grad():
        for lengths in wrong:
            with pytest.raises(ValueError, match=r"^lengths are .*, expected 2 numbers, of int64$"):
                exact(values, lengths)
        assert exact(values, torch.tensor([0, 900]))[0].isfinite().all()  # the caller checks these


def test_a_model_that_does_not_fit_its_configuration_is_refused() -> None:
    model = CASES["wav2vec2-layer"].build()
    model.config.conv_stride = (5, 2, 1)
    with pytest.raises(ValueError, match=r"gave 24 frames of 500 samples, .* says 48"):
        ExactForward(model)(torch.zeros(1, 500), torch.tensor([500]))


def test_features_that_do_not_fit_the_configuration_are_refused() -> None:
    model = CASES["parakeet"].build()
    model.config.encoder_config.subsampling_factor = 4
    with pytest.raises(ValueError, match=r"gave 13 frames of 100 samples, .* says 25"):
        ExactForward(model)(torch.zeros(1, 100, 16), torch.tensor([100]))


def test_more_frames_than_relative_positions_are_refused() -> None:
    model = CASES["conformer-relative"].build(max_source_positions=20)
    exact = ExactForward(model)
    assert deviation(model, [audio(300, 0)], 20 * 20 + 10) <= TOLERANCE
    with pytest.raises(ValueError, match="49 frames are more than the 20"):
        exact(torch.zeros(1, 1000), torch.tensor([1000]))
    with torch.no_grad():
        model(torch.zeros(1, 1000))  # the host extends its own table
    assert deviation(model, [audio(300, 0)], 1000) <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("wav2vec2-group", "wav2vec2"),
        ("wav2vec2-group", "wav2vec2.encoder"),
        ("wav2vec2-group", "wav2vec2.feature_extractor"),
        ("wav2vec2-group", "wav2vec2.feature_extractor.conv_layers.0"),
        ("wav2vec2-group", "wav2vec2.feature_extractor.conv_layers.0.layer_norm"),
        ("wav2vec2-group", "dropout"),
        ("wav2vec2-group", "wav2vec2.encoder.dropout"),
        ("sew-squeeze-2", "sew.feature_dropout"),
        ("conformer-rotary", "wav2vec2_conformer.encoder.embed_positions"),
        ("conformer-rotary", "wav2vec2_conformer.encoder.layers.0.self_attn_dropout"),
        ("conformer-rotary", "wav2vec2_conformer.encoder.layers.0.conv_module.dropout"),
        ("bert-adapter", "wav2vec2_bert.adapter.layers.0.self_attn_dropout"),
        ("bert-rotary", "wav2vec2_bert.encoder.embed_positions"),
        ("wav2vec2-adapter", "wav2vec2.adapter"),
        ("hubert-batch-norm", "hubert.encoder.pos_conv_embed"),
        ("conformer-rotary", "wav2vec2_conformer.encoder.layers.1.conv_module"),
        ("bert", "wav2vec2_bert.encoder"),
        ("bert-adapter", "wav2vec2_bert.adapter.layers.1"),
        ("parakeet", "encoder"),
    ],
)
def test_hooks_that_would_be_passed_over_are_refused(case: str, name: str) -> None:
    model = CASES[case].build()
    module = model.get_submodule(name)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        hook = register(lambda *_: None)
        with pytest.raises(UnsupportedModel, match=r"has a hook, .* remove it"):
            ExactForward(model)
        hook.remove()
    module.forward = module.forward
    with pytest.raises(UnsupportedModel, match="a forward of its own"):
        ExactForward(model)
    del module.forward
    ExactForward(model)


@every_kind
def test_a_hook_on_any_module_is_heard_or_refused(name: str) -> None:
    model = CASES[name].build()
    row, total = audio(cut(model, 500)), cut(model, 800)

    def scaled(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (scaled(_, __, output[0]), *output[1:])
        floats = isinstance(output, torch.Tensor) and output.is_floating_point()
        return output * 1.05 if floats else output

    for module in [*model.modules()][1:]:
        hook = module.register_forward_hook(scaled)
        try:
            exact = ExactForward(model)
        except UnsupportedModel:
            continue
        finally:
            hook.remove()
        hook = module.register_forward_hook(scaled)
        with torch.no_grad():
            values, lengths = padded([row], total)
            logits, frames = exact(as_input(model, values), lengths)
        agree(logits[0, : frames[0]], alone(model, row))
        hook.remove()


def test_only_dropout_is_left_out() -> None:
    model, row = CASES["wav2vec2-group"].build(), audio(500)
    model.dropout = torch.nn.Identity()
    assert deviation(model, [row], 800) <= TOLERANCE
    model.dropout = torch.nn.LayerNorm(32).eval()
    with pytest.raises(UnsupportedModel, match=r"dropout is a .*LayerNorm, expected"):
        ExactForward(model)


def test_a_module_in_training_mode_is_refused() -> None:
    model = CASES["hubert-batch-norm"].build()
    model.hubert.encoder.pos_conv_embed.batch_norm.train()
    with pytest.raises(UnsupportedModel, match=r"in training mode: call model\.eval\(\)"):
        ExactForward(model)
    model.eval().lm_head = torch.nn.Linear(32, 12)  # as every new module; it makes no difference
    ExactForward(model)


def test_an_adapter_that_only_the_configuration_has_is_refused() -> None:
    model, row = CASES["wav2vec2-layer"].build(), audio(500)
    model.config.add_adapter = True
    with pytest.raises(UnsupportedModel, match="add_adapter does not fit"):
        ExactForward(model)
    other = CASES["hubert-group"].build(add_adapter=True, output_hidden_size=32)  # it has no such
    assert deviation(other, [row], 800) <= TOLERANCE
