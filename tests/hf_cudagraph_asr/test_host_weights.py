"""Weights and modules that change under an enabled model: noticed, or simply used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from padded_rows import alone, answers, queries
from pooled import ROWS, Static, serves, tiny, warnings
from safetensors.torch import save_file
from tiny_models import CASES, plan_for
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import remove_parametrizations
from transformers.models.wav2vec2.modeling_wav2vec2 import WAV2VEC2_ADAPTER_SAFE_FILE

from hf_cudagraph_asr import GraphPool, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Reason

pytestmark = [
    # PEFT asks the host by a name that it is about to give up.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is:FutureWarning"),
    # What pruning keeps in plain attributes, torch.export would rather see in buffers.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]


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


def transposed(model: Any) -> None:
    weight = model.wav2vec2.encoder.layers[0].attention.q_proj.weight
    weight.data = weight.data.t()


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


def one_more(model: Any) -> None:
    model.lm_head.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))


def fewer_layers(model: Any) -> None:
    del model.wav2vec2.encoder.layers[0]


EXCHANGED: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "to": lambda model: model.to(torch.bfloat16),
    "assign": assign,
    "data": other_data,
    "transposed": transposed,
    "head": another_head,
    "vocabulary": more_words,
    "attention": lambda model: model.set_attn_implementation("eager"),
    "parametrization removed": folded_norm,
    "parametrization": normed_head,
    "pruning": pruned,
    "layers": fewer_layers,
    "one more": one_more,
    "lora": lora,
}


def enabled(model: Any, backend: str = "static") -> GraphPool:
    """A pool with one program."""
    plan = plan_for(model, (600,), (4,))
    return enable_cuda_graphs(model, plan, backend=Static() if backend == "static" else backend)


def as_planned(pool: GraphPool) -> bool:
    with torch.no_grad():
        dispatch = pool.explain(600)
    return dispatch.reason is None


# An exported program keeps the weights it was traced with, so that a change that is not noticed
# shows in its answers; the others are the same to the pool and take no time to capture.
@pytest.mark.parametrize(
    ("backend", "change"),
    [
        *[("static", change) for change in EXCHANGED],
        *[("eager", change) for change in EXCHANGED],
        *[("export", change) for change in ("assign", "data", "transposed", "lora")],
    ],
)
def test_what_is_exchanged_is_noticed_before_the_next_replay(
    backend: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    with enabled(model, backend) as pool:
        serves(model)
        before = alone(model, ROWS[0])
        EXCHANGED[change](model)
        after = alone(model, ROWS[0].to(model.lm_head.weight.dtype))
        if change not in ("attention", "parametrization removed", "parametrization", "one more"):
            assert after.shape != before.shape or float((after - before).abs().max()) > 1e-3
        for _ in range(2):
            serves(model)
        missed = 4 if pool.backend.captures else 0
        assert as_planned(pool) == (not missed)
        assert pool.stats().misses.get(Reason.CHANGED, 0) == missed
        pool.rebuild()
        serves(model)
        assert as_planned(pool)
        assert pool.stats().hits == 8 - missed
        said = [f"Wav2Vec2ForCTC: {Reason.CHANGED.value}"] if missed else []
        assert warnings(caplog) == said
        assert not said or "call pool.rebuild()" in said[0]


def test_a_head_that_is_no_linear_layer_leaves_the_model_working() -> None:
    model = tiny()
    expected = alone(model, ROWS[0])
    with enabled(model) as pool, torch.no_grad():
        model.lm_head = torch.nn.Sequential(torch.nn.Dropout(), model.lm_head).eval()
        for _ in range(2):
            answers(model(ROWS[0][None]).logits, [expected])
        assert not pool.stats().buckets
        assert "lm_head is a torch.nn.modules.container.Sequential" in pool.explain(600).detail
    with enabled(model) as pool, torch.no_grad():
        answers(model(ROWS[0][None]).logits, [expected])
        answers(pool.call(ROWS[0][None])[0], [expected])
        assert [*pool.stats().misses] == [Reason.UNSUPPORTED]


# In place


def loaded(model: Any) -> None:
    model.load_state_dict(tiny(seed=1).state_dict())


def trained(model: Any) -> None:
    """A step of an optimizer, as between two evaluations."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.tensor([[4, 5, 6]])
    model(ROWS[0][None], labels=labels).loss.backward()
    optimizer.step()
    model.eval()


def frozen(model: Any) -> None:
    model.freeze_feature_encoder()
    with torch.no_grad():
        model.lm_head.bias.add_(0.5)


def tuned(model: Any) -> None:
    """Adapters come and go; their part stays in the weights that were there before."""
    lora(model).merge_and_unload()


@pytest.mark.parametrize("backend", ["eager", "export"])
def test_what_changes_in_place_is_simply_used(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    with enabled(model, backend) as pool:
        for hits, change in enumerate((loaded, trained, frozen, tuned), start=1):
            before = alone(model, ROWS[0])
            change(model)
            assert float((alone(model, ROWS[0]) - before).abs().max()) > 1e-3
            serves(model)
            assert as_planned(pool)
            assert pool.stats().hits == 2 * hits
    assert not warnings(caplog)


@pytest.mark.parametrize("backend", ["static", "eager"])
def test_a_single_module_set_to_training_is_the_hosts_until_it_is_not(backend: str) -> None:
    model = tiny()
    values = ROWS[0][None]
    dropout = model.wav2vec2.encoder.layers[0].dropout
    dropout.p = 0.5

    def answered() -> torch.Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return model(values).logits

    with enabled(model, backend) as pool:
        evaluated = answered()
        dropout.train()
        dropped = answered()
        assert pool.stats().misses == {Reason.UNSUPPORTED: 1}
        dropout.eval()
        answers(answered(), [evaluated[0]])
        pool.rebuild()
        answers(answered(), [evaluated[0]])
        assert as_planned(pool)
    dropout.train()
    torch.testing.assert_close(answered(), dropped, atol=0, rtol=0)
    assert float((dropped - evaluated).abs().max()) > 1e-3


def test_weights_that_a_module_makes_of_others_are_made_anew() -> None:
    model = tiny()
    pruned(model)
    with enabled(model, "export") as pool:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
            # Before the model itself: that would bring them up to date.
            found = model(**queries(ROWS)).logits
        answers(found, [alone(model, row) for row in ROWS])
        assert as_planned(pool)


def test_what_is_written_past_the_version_counter_is_used_by_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hf_cudagraph_asr.exact.FUSED_ON", ("cpu",))
    model = tiny()
    with enabled(model, "export") as pool, torch.no_grad():
        serves(model)
        before = [parameter._version for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        assert [parameter._version for parameter in model.parameters()] == before
        found = model(**queries(ROWS)).logits
        answers(found, [alone(model, row) for row in ROWS])
        assert as_planned(pool)


# Adapters


def test_a_model_of_peft_is_enabled_by_its_base(caplog: pytest.LogCaptureFixture) -> None:
    wrapped = lora(tiny())
    model = wrapped.get_base_model()
    with enabled(model, "export") as pool:
        serves(model, call=wrapped)
        assert pool.stats().hits == 2
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.mul_(-1)
        serves(model, call=wrapped)
        assert pool.stats().hits == 4
    assert not warnings(caplog)


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


SWITCHED: list[Callable[[Any], None]] = [unloaded, merged, switched, switched_off, scaled]


@pytest.mark.parametrize(
    ("backend", "change"),
    [*[("static", change) for change in SWITCHED], ("export", switched_off), ("eager", switched)],
)
def test_what_peft_switches_is_noticed(
    backend: str, change: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = lora(lora(tiny()), seed=2, name="other")
    model = wrapped.get_base_model()
    with enabled(model, backend) as pool:
        serves(model, call=wrapped)
        before = alone(model, ROWS[0])
        change(wrapped)
        moved = float((alone(model, ROWS[0]) - before).abs().max())
        assert (moved > 1e-3) == (change not in (merged, unloaded))
        serves(model, call=wrapped)
        assert pool.stats().misses.get(Reason.CHANGED, 0) == (2 if pool.backend.captures else 0)
        pool.rebuild()
        serves(model, call=wrapped)
        assert as_planned(pool)
    assert len(warnings(caplog)) == pool.backend.captures


def language(folder: Path, name: str, words: int, seed: int) -> None:
    """The weights of a language of MMS, in the file that `load_adapter` looks for."""
    model = CASES["wav2vec2-attention-adapter"].build(seed, num_hidden_layers=1, vocab_size=words)
    kept = {
        key: tensor.contiguous()
        for key, tensor in model.state_dict().items()
        if "adapter_layer" in key or key.startswith("lm_head")
    }
    save_file(kept, folder / WAV2VEC2_ADAPTER_SAFE_FILE.format(name))


def test_languages_of_mms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny(case="wav2vec2-attention-adapter")
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path).eval()
    language(tmp_path, "fra", words=12, seed=1)
    language(tmp_path, "deu", words=15, seed=2)
    with enabled(model, "export") as pool:
        before = alone(model, ROWS[0])
        model.load_adapter("fra", local_files_only=True)
        assert float((alone(model, ROWS[0]) - before).abs().max()) > 1e-3
        serves(model)
        assert as_planned(pool)  # as many words: loaded in place
        assert not warnings(caplog)
        model.load_adapter("deu", local_files_only=True)
        with torch.no_grad():
            assert model(ROWS[0][None]).logits.shape[-1] == 15
        serves(model)
        assert len(warnings(caplog)) == 1
        pool.rebuild()
        serves(model)
        assert as_planned(pool)
