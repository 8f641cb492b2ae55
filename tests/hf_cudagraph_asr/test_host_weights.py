"""Weights and modules that change under an enabled model: noticed, or simply used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from padded_rows import TOLERANCE, agree, alone, answers, audio, queries
from safetensors.torch import save_file
from tiny_models import CASES, both_backends, plan_for
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import remove_parametrizations
from transformers.models.wav2vec2.modeling_wav2vec2 import WAV2VEC2_ADAPTER_SAFE_FILE

from hf_cudagraph_asr.attach import EnabledPool, enable_cuda_graphs

# PEFT asks the host by a name that it is about to give up.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is:FutureWarning"),
    # What pruning keeps in plain attributes, torch.export would rather see in buffers.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]

ROWS = [audio(600, 0), audio(431, 1), audio(211, 2)]
ROUGH = 0.1  # of the largest logit, in bfloat16 and float16; what must be told apart is far more


def tiny(seed: int = 0) -> Any:
    return CASES["wav2vec2-group"].build(seed, num_hidden_layers=1)


def lora(model: Any, seed: int = 1, name: str = "default") -> Any:
    """Low-rank weights beside each attention's, inserted in place; random, not the initial zero."""
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, config)
    else:
        model = peft.get_peft_model(model, config, adapter_name=name).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key and f".{name}." in key:
                parameter.normal_(0, 0.1)
    return model


def another_head(model: Any) -> None:
    torch.manual_seed(7)
    model.lm_head = torch.nn.Linear(32, 12)


def more_words(model: Any) -> None:
    torch.manual_seed(7)
    model.lm_head = torch.nn.Linear(32, 20)
    model.config.vocab_size = 20


def assign(model: Any) -> None:
    model.load_state_dict(tiny(seed=1).state_dict(), assign=True)


def other_data(model: Any) -> None:
    weight = model.wav2vec2.encoder.layers[0].feed_forward.output_dense.weight
    weight.data = weight.data * 2


def folded_norm(model: Any) -> None:
    remove_parametrizations(model.wav2vec2.encoder.pos_conv_embed.conv, "weight")


def normed_head(model: Any) -> None:
    parametrizations.weight_norm(model.lm_head)


def pruned(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d) and "weight" in dict(
            module.named_parameters(recurse=False)
        ):
            prune.l1_unstructured(module, "weight", amount=0.3)


def fewer_layers(model: Any) -> None:
    del model.wav2vec2.encoder.layers[0]


EXCHANGED: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "to": lambda model: model.to(torch.bfloat16),
    "assign": assign,
    "data": other_data,
    "head": another_head,
    "vocabulary": more_words,
    "attention": lambda model: model.set_attn_implementation("eager"),
    "parametrisation removed": folded_norm,
    "parametrisation": normed_head,
    "pruning": pruned,
    "layers": fewer_layers,
    "lora": lora,
}

Warned = list[logging.LogRecord]


@pytest.fixture
def warned() -> Iterator[Warned]:
    """What the package warns of."""
    records: Warned = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("hf_cudagraph_asr")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def serves(model: Any, rows: list[torch.Tensor] = ROWS, call: Any = None) -> None:
    """A batch and a single query are answered as the model answers each row alone."""
    call = call or model
    dtype = model.lm_head.weight.dtype
    tolerance = TOLERANCE if dtype == torch.float32 else ROUGH
    rows = [row.to(dtype) for row in rows]
    expected = [alone(model, row) for row in rows]
    with torch.no_grad():
        answers(call(**queries(rows)).logits, expected, tolerance)
        agree(call(rows[1][None]).logits[0], expected[1], tolerance)


def replays(pool: EnabledPool, samples: int | list[int] = 600) -> bool:
    dispatch = pool.explain(samples)
    return dispatch.route == ("bucket" if pool.backend.captures else "exact") and (
        dispatch.reason is None
    )


@both_backends
@pytest.mark.parametrize("change", EXCHANGED)
def test_what_is_exchanged_is_noticed_before_the_next_replay(
    backend: str, change: str, warned: Warned
) -> None:
    model = tiny()
    with enable_cuda_graphs(model, plan_for(model, (600,), (4,)), backend=backend) as pool:
        serves(model)
        before = alone(model, ROWS[0])
        EXCHANGED[change](model)
        after = alone(model, ROWS[0].to(model.lm_head.weight.dtype))
        if change not in ("attention", "parametrisation removed", "parametrisation"):
            assert after.shape != before.shape or float((after - before).abs().max()) > 1e-3
        for _ in range(2):
            serves(model)
        if pool.backend.captures:
            assert not replays(pool)
            assert len(warned) == 1
            assert "rebuild()" in warned[0].getMessage()
            assert pool.stats().hits == 2
        pool.rebuild()
        serves(model)
        assert replays(pool)
        assert len(warned) == (1 if pool.backend.captures else 0)
        assert pool.stats().hits == (4 if pool.backend.captures else 8)


@both_backends
def test_a_head_that_is_no_linear_layer_leaves_the_model_working(
    backend: str, warned: Warned
) -> None:
    model = tiny()
    plan = plan_for(model, (600,), (4,))
    expected = alone(model, ROWS[0])
    with enable_cuda_graphs(model, plan, backend=backend) as pool, torch.no_grad():
        model.lm_head = torch.nn.Sequential(torch.nn.Dropout(), model.lm_head).eval()
        for _ in range(2):
            agree(model(ROWS[0][None]).logits[0], expected)
        assert not pool.stats().buckets
    assert len(warned) <= 1
    with enable_cuda_graphs(model, plan, backend=backend), torch.no_grad():
        agree(model(ROWS[0][None]).logits[0], expected)


# In place


def loaded(model: Any) -> None:
    model.load_state_dict(tiny(seed=1).state_dict())


def trained(model: Any) -> None:
    """A step of an optimiser, as between two evaluations."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.tensor([[4, 5, 6]])
    model(ROWS[0][None], labels=labels).loss.backward()
    optimiser.step()
    model.eval()


def frozen(model: Any) -> None:
    model.freeze_feature_encoder()
    with torch.no_grad():
        model.lm_head.bias.add_(0.5)


def tuned(model: Any) -> None:
    """Adapters come and go; their part stays in the weights that were there before."""
    lora(model).merge_and_unload()


@both_backends
@pytest.mark.parametrize("change", [loaded, trained, frozen, tuned])
def test_what_changes_in_place_is_simply_used(
    backend: str, change: Callable[[Any], None], warned: Warned
) -> None:
    model = tiny()
    with enable_cuda_graphs(model, plan_for(model, (600,), (4,)), backend=backend) as pool:
        before = alone(model, ROWS[0])
        change(model)
        assert float((alone(model, ROWS[0]) - before).abs().max()) > 1e-3
        serves(model)
        assert replays(pool)
        assert pool.stats().hits == 2
    assert not warned


@both_backends
def test_weights_that_a_module_makes_of_others_are_made_anew(backend: str) -> None:
    model = tiny()
    pruned(model)
    with enable_cuda_graphs(model, plan_for(model, (600,), (4,)), backend=backend) as pool:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        rows = [row.clone() for row in ROWS]
        with torch.no_grad():  # before the model itself: that would bring them up to date
            found = model(**queries(rows)).logits
        answers(found, [alone(model, row) for row in rows])
        assert replays(pool)


# Adapters


@both_backends
def test_a_model_of_peft_is_enabled_by_its_base(backend: str, warned: Warned) -> None:
    wrapped = lora(tiny())
    model = wrapped.get_base_model()
    with enable_cuda_graphs(model, plan_for(model, (600,), (4,)), backend=backend) as pool:
        serves(model, call=wrapped)
        assert pool.stats().hits == 2
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.mul_(-1)
        serves(model, call=wrapped)
        assert pool.stats().hits == 4
    assert not warned


def unloaded(wrapped: Any) -> None:
    wrapped.merge_and_unload()


def merged(wrapped: Any) -> None:
    wrapped.merge_adapter()


def switched(wrapped: Any) -> None:
    wrapped.set_adapter("other")


def switched_off(wrapped: Any) -> None:
    wrapped.base_model.disable_adapter_layers()


def scaled(wrapped: Any) -> None:
    for module in wrapped.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("default", 0.25)


@both_backends
@pytest.mark.parametrize("change", [unloaded, merged, switched, switched_off, scaled])
def test_what_peft_switches_is_noticed(
    backend: str,
    change: Callable[[Any], None],
    warned: Warned,
) -> None:
    wrapped = lora(lora(tiny()), seed=2, name="other")
    model = wrapped.get_base_model()
    with enable_cuda_graphs(model, plan_for(model, (600,), (4,)), backend=backend) as pool:
        serves(model, call=wrapped)
        before = alone(model, ROWS[0])
        change(wrapped)
        moved = float((alone(model, ROWS[0]) - before).abs().max())
        assert (moved > 1e-3) == (change not in (merged, unloaded))
        serves(model, call=wrapped)
        pool.rebuild()
        serves(model, call=wrapped)
        assert replays(pool)
    assert len(warned) == (1 if pool.backend.captures else 0)


def language(folder: Path, name: str, words: int, seed: int) -> None:
    """The weights of a language of MMS, in the file that `load_adapter` looks for."""
    model = CASES["wav2vec2-attention-adapter"].build(seed=seed, vocab_size=words)
    kept = {
        key: tensor.contiguous()
        for key, tensor in model.state_dict().items()
        if "adapter_layer" in key or key.startswith("lm_head")
    }
    save_file(kept, folder / WAV2VEC2_ADAPTER_SAFE_FILE.format(name))


@both_backends
def test_languages_of_mms(backend: str, tmp_path: Path, warned: Warned) -> None:
    model = CASES["wav2vec2-attention-adapter"].build()
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path).eval()
    language(tmp_path, "fra", words=12, seed=1)
    language(tmp_path, "deu", words=15, seed=2)
    with enable_cuda_graphs(model, plan_for(model, (600,), (4,)), backend=backend) as pool:
        before = alone(model, ROWS[0])
        model.load_adapter("fra", local_files_only=True)
        assert float((alone(model, ROWS[0]) - before).abs().max()) > 1e-3
        serves(model)
        assert replays(pool)  # as many words: loaded in place
        assert not warned
        model.load_adapter("deu", local_files_only=True)
        assert model(ROWS[0][None]).logits.shape[-1] == 15
        serves(model)
        assert len(warned) == (1 if pool.backend.captures else 0)
        pool.rebuild()
        serves(model)
        assert replays(pool)
