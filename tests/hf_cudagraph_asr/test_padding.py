"""Padding changes no logits: against the model's own eager, unpadded runs at batch 1."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_cudagraph_asr.families import FAMILIES, Convolution, Frames, UnsupportedModel, family_of
from hf_cudagraph_asr.masks import convolve_and_normalise
from hf_cudagraph_asr.padding import ExactForward

TOLERANCE = 1e-5  # of the largest logit of the row, in float32
HALF = 2.5  # of what bfloat16 or float16 themselves err: two runs that round differently

TINY = {
    "vocab_size": 12,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_feat_extract_layers": 3,
    "conv_dim": (24, 24, 24),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
# WavLM's own call of torch's attention gives it a boolean mask beside a float bias.
WAVLM = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")


@dataclass(frozen=True)
class Case:
    """A tiny model: the stem of its class, and what its configuration has of its own."""

    stem: str
    own: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0, **changes: Any) -> Any:
        config = getattr(transformers, f"{self.stem}Config")(**{**TINY, **self.own, **changes})
        torch.manual_seed(seed)
        return randomised(getattr(transformers, f"{self.stem}ForCTC")(config)).eval()


def randomised(model: Any) -> Any:
    """The hosts' initial weights give nearly constant logits, where no error would show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim >= 2 and not name.endswith("original0"):
                gain = 2 if "conv_layers" in name else 1
                parameter.copy_(noise * (gain / parameter[0].numel()) ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
    return model


LAYER = {"feat_extract_norm": "layer", "conv_bias": True}
STABLE = {**LAYER, "do_stable_layer_norm": True}
ADAPTER = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 20}
CONFORMER = {"conv_depthwise_kernel_size": 7, "feat_extract_norm": "layer"}
DATA2VEC = {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}

CASES = {
    "wav2vec2-group": Case("Wav2Vec2"),
    "wav2vec2-group-bias-odd-positions": Case(
        "Wav2Vec2", {"conv_bias": True, "num_conv_pos_embeddings": 7}
    ),
    "wav2vec2-group-stable": Case("Wav2Vec2", {"do_stable_layer_norm": True}),
    "wav2vec2-layer": Case("Wav2Vec2", LAYER),
    "wav2vec2-layer-stable": Case("Wav2Vec2", STABLE),
    "wav2vec2-attention-adapter": Case("Wav2Vec2", {**STABLE, "adapter_attn_dim": 8}),
    "wav2vec2-adapter": Case("Wav2Vec2", {**LAYER, **ADAPTER}),
    "wav2vec2-group-wide-adapter": Case(
        "Wav2Vec2", {"add_adapter": True, "adapter_kernel_size": 5, "output_hidden_size": 32}
    ),
    "hubert-group": Case("Hubert"),
    "hubert-layer-stable": Case("Hubert", STABLE),
    "hubert-batch-norm": Case("Hubert", {**LAYER, "conv_pos_batch_norm": True}),
    "hubert-no-projection-norm": Case("Hubert", {"feat_proj_layer_norm": False}),
    "wavlm-group": Case("WavLM"),
    "wavlm-layer-stable": Case("WavLM", STABLE),
    "wavlm-adapter": Case("WavLM", ADAPTER),
    "unispeech-group": Case("UniSpeech"),
    "unispeech-layer-stable": Case("UniSpeech", STABLE),
    "unispeech-sat-group": Case("UniSpeechSat"),
    "unispeech-sat-layer-stable": Case("UniSpeechSat", STABLE),
    "data2vec-audio": Case("Data2VecAudio", DATA2VEC),
    "data2vec-audio-adapter": Case("Data2VecAudio", {**DATA2VEC, **ADAPTER}),
    "sew-squeeze-2": Case("SEW", {"squeeze_factor": 2}),
    "sew-squeeze-3-layer": Case("SEW", {**LAYER, "squeeze_factor": 3}),
    "sew-no-projection": Case("SEW", {"squeeze_factor": 2, "hidden_size": 24}),
    "conformer-rotary": Case(
        "Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "rotary"}
    ),
    "conformer-relative": Case(
        "Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "relative"}
    ),
    "conformer-no-positions-group-adapter": Case(
        "Wav2Vec2Conformer",
        {**ADAPTER, "conv_depthwise_kernel_size": 5, "position_embeddings_type": None},
    ),
}
# One of each way through the code, for what need not be asked of every variant.
KINDS = [
    "wav2vec2-group",
    "wav2vec2-attention-adapter",
    "wav2vec2-adapter",
    "hubert-batch-norm",
    "wavlm-group",
    "unispeech-group",
    "unispeech-sat-layer-stable",
    "data2vec-audio",
    "sew-squeeze-2",
    "conformer-rotary",
    "conformer-relative",
]
every_case = pytest.mark.parametrize("name", CASES)
every_kind = pytest.mark.parametrize("name", KINDS)


def audio(samples: int, seed: int) -> torch.Tensor:
    """(samples,): a chirp in noise, loud in the middle, of zero mean and unit variance."""
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    time = torch.linspace(0, 1, samples)
    wave = (noise * 0.3 + torch.sin(40 * time + 90 * time**2)) * (0.2 + torch.sin(3.1 * time))
    return (wave - wave.mean()) / wave.std()


def padded(rows: Sequence[torch.Tensor], total: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.stack([torch.nn.functional.pad(row, (0, total - len(row))) for row in rows])
    return batch, torch.tensor([len(row) for row in rows])


def boundaries(model: Any, frames: Sequence[int]) -> list[int]:
    """Lengths around those where a row gets one frame more: the first, and a sample less."""
    geometry = Frames.of(model.config)
    lengths = {geometry.receptive_field, geometry.receptive_field + 1}
    for count in frames:
        first = count
        for convolution in reversed(geometry.features):
            first = convolution.needed(first)
        lengths |= {first - 1, first, first + 1}
    return sorted(length for length in lengths if length >= geometry.receptive_field)


def deviation(model: Any, rows: Sequence[torch.Tensor], total: int) -> float:
    """Largest difference from the unpadded runs, over all rows, as a share of the row's largest."""
    with torch.no_grad():
        logits, frames = ExactForward(model)(*padded(rows, total))
        assert torch.isfinite(logits).all()
        worst = 0.0
        for own, count, row in zip(logits, frames.tolist(), rows, strict=True):
            alone = model(row[None]).logits[0]
            assert alone.shape[0] == count
            worst = max(worst, float((own[:count] - alone).abs().max() / alone.abs().max()))
    return worst


@WAVLM
@every_case
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_row_of_every_bucket_has_the_logits_of_its_unpadded_run(
    name: str, attention: str
) -> None:
    model = CASES[name].build()
    model.set_attn_implementation(attention)
    lengths = boundaries(model, (2, 3, 4, 9, 30, 31))
    rows = [audio(length, seed) for seed, length in enumerate(lengths)]
    for total in (max(lengths), max(lengths) + 1, 901, 1500):
        assert deviation(model, rows, total) <= TOLERANCE


@WAVLM
@every_kind
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(50, 700), min_size=1, max_size=4),
    extra=st.integers(0, 300),
    seed=st.integers(0, 99),
)
def test_any_lengths_in_any_bucket(name: str, lengths: list[int], extra: int, seed: int) -> None:
    rows = [audio(length, seed + row) for row, length in enumerate(lengths)]
    assert deviation(CASES[name].build(seed), rows, max(lengths) + extra) <= TOLERANCE


@WAVLM
@every_kind
def test_a_batch_of_one_at_full_length_is_the_model_itself(name: str) -> None:
    model = CASES[name].build()
    assert deviation(model, [audio(700, 0)], 700) <= TOLERANCE


def test_the_stock_forward_fails_what_is_tested_here() -> None:
    model = CASES["wav2vec2-group"].build()
    row = audio(500, 0)
    batch, _ = padded([row], 1000)
    mask = (torch.arange(1000) < 500).long()[None]
    with torch.no_grad():
        alone, masked = model(row[None]).logits[0], model(batch, attention_mask=mask).logits[0]
    assert (masked[: len(alone)] - alone).abs().max() / alone.abs().max() > 0.05


@WAVLM
@pytest.mark.parametrize("stem", ["Wav2Vec2", "Hubert", "WavLM"])
def test_the_published_seven_layers(stem: str) -> None:
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    model = Case(
        stem,
        {
            "conv_kernel": kernels,
            "conv_stride": strides,
            "conv_dim": (16,) * 7,
            "num_feat_extract_layers": 7,
            "num_conv_pos_embeddings": 128,
        },
    ).build()
    exact = ExactForward(model)
    assert exact.receptive_field == 400
    lengths = [400, 719, 720, 721, 15_759, 15_760, 16_079, 16_080]
    rows = [audio(length, seed) for seed, length in enumerate(lengths)]
    assert deviation(model, rows, 320 * 60 + 399) <= TOLERANCE


@pytest.mark.parametrize("own", [{}, STABLE], ids=["base", "large"])
def test_two_layers_of_the_published_widths(own: dict[str, Any]) -> None:
    width = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    config = transformers.Wav2Vec2Config(
        **{**(width if own else {}), **own, "num_hidden_layers": 2}
    )
    torch.manual_seed(0)
    model = randomised(transformers.Wav2Vec2ForCTC(config)).eval()
    assert deviation(model, [audio(8_123, 0), audio(5_200, 1)], 10_000) <= TOLERANCE


@WAVLM
@every_kind
def test_nothing_beyond_a_rows_length_is_heard(name: str) -> None:
    exact = ExactForward(CASES[name].build())
    quiet, lengths = padded([audio(length, 0) for length in (exact.receptive_field, 401, 800)], 900)
    loud = quiet.clone()
    for row, length in zip(loud, lengths, strict=True):
        row[length:] = torch.nan
        row[length] = 1e30
    with torch.no_grad():
        (expected, _), (logits, frames) = exact(quiet, lengths), exact(loud, lengths)
    assert torch.equal(logits, expected)
    assert frames.tolist() == exact.geometry.emitted(lengths).tolist()


@WAVLM
@every_kind
def test_a_broken_row_breaks_no_other(name: str) -> None:
    exact = ExactForward(CASES[name].build())
    batch, lengths = padded([audio(700, 0), audio(700, 1), audio(450, 2)], 900)
    broken = batch.clone()
    broken[1, 100], broken[1, 300] = torch.nan, torch.inf
    with torch.no_grad():
        (expected, frames), (logits, _) = exact(batch, lengths), exact(broken, lengths)
    for row in (0, 2):
        own = slice(int(frames[row]))
        torch.testing.assert_close(logits[row, own], expected[row, own], rtol=0, atol=1e-5)


def test_threads_get_their_own_logits() -> None:
    model = CASES["conformer-rotary"].build()
    exact = ExactForward(model)
    rows = [audio(300 + 17 * seed, seed) for seed in range(24)]

    def error(row: torch.Tensor) -> float:
        with torch.no_grad():
            logits, frames = exact(*padded([row], 750 + len(row) % 3))
            return float((logits[0, : frames[0]] - alone[len(row)]).abs().max())

    with torch.no_grad():
        alone = {len(row): model(row[None]).logits[0] for row in rows}
    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(error, rows)) < 1e-5


@WAVLM
@every_kind
def test_a_row_below_the_receptive_field_counts_as_padded_up_to_it(name: str) -> None:
    exact = ExactForward(CASES[name].build())
    field_ = exact.receptive_field
    batch, _ = padded([audio(20, 0), torch.zeros(0), audio(900, 2)], 900)
    dirty = batch.clone()
    dirty[0, 20:], dirty[1] = torch.nan, 1e4
    with torch.no_grad():
        logits, frames = exact(dirty, torch.tensor([20, 0, 10_000]))
        up_to, _ = exact(batch, torch.tensor([field_, field_, 900]))
    assert torch.isfinite(logits).all()
    assert frames.tolist() == exact.geometry.emitted(torch.tensor([field_, field_, 900])).tolist()
    assert torch.equal(logits, up_to)


def test_silence_is_finite() -> None:
    exact = ExactForward(CASES["wav2vec2-group"].build())
    with torch.no_grad():
        logits, _ = exact(torch.zeros(2, 600), torch.tensor([600, 100]))
    assert torch.isfinite(logits).all()


# --- no waiting for the device, no graph break


class NoHostSync(TorchDispatchMode):
    """Fails on what waits for a GPU, or copies between it and the host."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "item")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in self.FORBIDDEN, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            kinds = [index.dtype for index in args[1] if index is not None]
            assert torch.bool not in kinds, "indexing with a mask looks for its nonzero entries"
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            assert source.device == result.device, f"{name} from {source.device}"
        return result


def test_the_guard_sees_the_stock_forward_wait() -> None:
    model = CASES["wav2vec2-layer"].build()
    with pytest.raises(AssertionError, match=r"waits|nonzero"), torch.no_grad(), NoHostSync():
        model(torch.zeros(1, 600), attention_mask=torch.ones(1, 600, dtype=torch.long))


@WAVLM
@every_case
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_host_synchronisation(name: str, attention: str) -> None:
    exact = ExactForward(CASES[name].build())
    exact.model.set_attn_implementation(attention)
    batch, lengths = padded([audio(500, 0), audio(900, 1)], 1000)
    with torch.no_grad(), NoHostSync():
        exact(batch, lengths)


def on_a_pretended_gpu(module: torch.nn.Module, shapes: dict[str, Any]) -> Any:
    """Call it on CUDA tensors without values, which need no device; no copy may cross to it.

    A constant made on the host, or a branch on a value, fails as it would in a capture.
    """
    with FakeTensorMode(), torch.no_grad():
        held = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        inputs = {
            name: torch.empty(shape, dtype=dtype, device="cuda")
            for name, (shape, dtype) in shapes.items()
        }
        with NoHostSync():
            return torch.func.functional_call(module, held, kwargs=inputs)


@WAVLM
@every_case
def test_on_a_gpu_nothing_is_copied_to_or_from_the_host(name: str) -> None:
    logits, frames = on_a_pretended_gpu(
        ExactForward(CASES[name].build()),
        {"input_values": ((3, 900), torch.float32), "lengths": ((3,), torch.int64)},
    )
    assert logits.device.type == frames.device.type == "cuda"
    assert logits.shape[0] == frames.shape[0] == 3


def test_the_pretended_gpu_sees_the_stock_forward_copy() -> None:
    values = ((3, 900), torch.float32)
    with pytest.raises(AssertionError, match="from cpu"):  # rotary embeddings, made on the host
        on_a_pretended_gpu(CASES["conformer-rotary"].build(), {"input_values": values})
    mask = ((3, 900), torch.int64)
    with pytest.raises((AssertionError, DataDependentOutputException)):  # is there any padding?
        on_a_pretended_gpu(
            CASES["wav2vec2-layer"].build(), {"input_values": values, "attention_mask": mask}
        )


@WAVLM
@every_kind
@pytest.mark.parametrize("strict", [False, True])
def test_export_takes_it_as_one_graph(name: str, strict: bool) -> None:
    exact = ExactForward(CASES[name].build())
    example = padded([audio(300, 0), audio(800, 1)], 900)
    other = padded([audio(777, 2), audio(exact.receptive_field, 3)], 900)
    with torch.no_grad():
        program = torch.export.export(exact, example, strict=strict)
        exported = program.module()
        for inputs in (example, other):
            (logits, frames), (expected, own) = exported(*inputs), exact(*inputs)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
            assert torch.equal(frames, own)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in names if "_local_scalar" in name or "nonzero" in name}


# --- the model stays as it is


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


@WAVLM
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
        pytest.warns(UserWarning, match="mismatched") if "wavlm" in name else unchanged(model),
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


# --- refusals


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


# --- lower precision


def in_half(model: Any, rows: Sequence[torch.Tensor], total: int) -> tuple[float, float, float]:
    """Largest differences over all rows, as shares of the largest logit.

    Of the exact from the eager run; of the eager run from float32 with the same weights and input;
    and of the stock model's masked run, padded, from its eager run.
    """
    full = copy.deepcopy(model).float()
    batch, lengths = padded(rows, total)
    exact = own = stock = scale = 0.0
    with torch.no_grad():
        logits, frames = ExactForward(model)(batch, lengths)
        assert logits.dtype == rows[0].dtype
        assert torch.isfinite(logits).all()
        masked = model(batch, attention_mask=(torch.arange(total) < lengths[:, None]).long()).logits
        for i, row in enumerate(rows):
            alone = model(row[None]).logits[0].float()
            truth = full(row[None].float()).logits[0]
            count = int(frames[i])
            scale = max(scale, float(truth.abs().max()))
            exact = max(exact, float((logits[i, :count].float() - alone).abs().max()))
            own = max(own, float((alone - truth).abs().max()))
            stock = max(stock, float((masked[i, :count].float() - alone).abs().max()))
    return exact / scale, own / scale, stock / scale


@WAVLM
@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_in_half_precision_it_is_within_the_dtypes_own_error(name: str, dtype: torch.dtype) -> None:
    model = CASES[name].build().to(dtype)
    rows = [audio(length, seed).to(dtype) for seed, length in enumerate((90, 250, 400, 401, 599))]
    exact, own, _ = in_half(model, rows, 640)
    assert 0 < own < 0.05
    assert exact <= HALF * own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_in_half_precision_it_scatters_as_the_stock_mask_does_where_that_is_right(
    dtype: torch.dtype,
) -> None:
    model = CASES["wav2vec2-layer-stable"].build().to(dtype)
    rows = [audio(length, seed).to(dtype) for seed, length in enumerate((90, 250, 400, 401, 599))]
    exact, _, stock = in_half(model, rows, 640)
    assert 0 < stock < 0.05
    assert exact <= HALF * stock


# --- the parts


@given(
    kernel=st.integers(1, 12), stride=st.integers(1, 6), padding=st.integers(0, 2),
    length=st.integers(1, 60),
)  # fmt: skip
def test_a_convolution_counts_as_torch_does(
    kernel: int, stride: int, padding: int, length: int
) -> None:
    convolution = Convolution(kernel, stride, padding)
    out = convolution.out(length)
    if length + 2 * padding < kernel:
        assert out < 1
        return
    taken = torch.nn.functional.conv1d(
        torch.zeros(1, 1, length), torch.zeros(1, 1, kernel), stride=stride, padding=padding
    )
    assert taken.shape[-1] == out
    assert int(convolution.out(torch.tensor(length))) == out
    needed = convolution.needed(out)
    assert convolution.out(needed) >= out
    assert needed == 1 or convolution.out(needed - 1) < out


@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("bias", [False, True])
def test_statistics_from_windows_err_hardly_more_than_those_of_the_frames(
    offset: float, bias: bool
) -> None:
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv1d(1, 6, 10, 5, bias=bias), torch.nn.GroupNorm(6, 6)
    with torch.no_grad():
        norm.weight.normal_(1, 0.2)
        norm.bias.normal_()
        # Deaf to slow waves, of which speech is full; and deaf.
        conv.weight[0, 0] = torch.tensor([1.0, -4, 6, -4, 1, 0, 0, 0, 0, 0])
        conv.weight[1] = 0
        rows = [torch.sin(torch.arange(n) / 40) * 3 + offset for n in (400, 57, 15)]
        rows = [row + 1e-3 * audio(len(row), len(row)) for row in rows]
        batch, lengths = padded(rows, 500)
        frames = Convolution(10, 5).out(lengths)
        found = convolve_and_normalise(batch, frames, conv, norm)
        conv64, norm64 = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()
        for own, row, count in zip(found, rows, frames.tolist(), strict=True):
            truth = norm64(conv64(row.double()[None, None]))[0]
            stock = norm(conv(row[None, None]))[0]
            error = (own[:, :count] - truth).abs().amax(dim=1)  # (C,)
            allowed = 2 * (stock - truth).abs().amax(dim=1) + TOLERANCE * truth.abs().max()
            assert (error <= allowed).all()
