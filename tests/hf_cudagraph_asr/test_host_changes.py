"""Ways in which a model changes between two calls: each is noticed before the next answer."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from padded_rows import alone, answers, queries
from pooled import ROWS, Static, serves, tiny
from tiny_models import CASES, plan_for
from torch.utils import swap_tensors
from torch.utils._pytree import tree_flatten
from transformers.modeling_outputs import CausalLMOutput

from hf_cudagraph_asr import GraphPool, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Reason
from hf_cudagraph_asr.pool import output_of


@pytest.fixture
def model() -> Any:
    return CASES["wav2vec2-group"].build(num_hidden_layers=2)


def enabled(model: Any) -> GraphPool:
    return enable_cuda_graphs(model, plan_for(model, (600,), (4,)), backend=Static())


def attention(model: Any) -> Any:
    return model.wav2vec2.encoder.layers[0].attention


def layers_exchanged(model: Any) -> None:
    layers = model.wav2vec2.encoder.layers
    layers[0], layers[1] = layers[1], layers[0]


def a_layer_twice(model: Any) -> None:
    layers = model.wav2vec2.encoder.layers
    layers[1] = layers[0]


def modules_exchanged(model: Any) -> None:
    one = attention(model)
    one.q_proj, one.k_proj = one.k_proj, one.q_proj


def a_copy_of_a_module(model: Any) -> None:
    model.lm_head = copy.deepcopy(model.lm_head)


def weights_exchanged(model: Any) -> None:
    query, key = attention(model).q_proj, attention(model).v_proj
    query.weight, key.weight = key.weight, query.weight


def data_exchanged(model: Any) -> None:
    query, key = attention(model).q_proj.weight, attention(model).v_proj.weight
    query.data, key.data = key.data, query.data


def data_elsewhere(model: Any) -> None:
    model.lm_head.bias.data = model.lm_head.bias.data.clone()


def a_tensor_swapped(model: Any) -> None:
    swap_tensors(model.lm_head.weight, torch.nn.Parameter(torch.randn(12, 32)))


def set_to_another(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.set_(torch.randn(12, 32))


def transposed_in_place(model: Any) -> None:
    with torch.no_grad():
        attention(model).q_proj.weight.t_()


def transposed_kernels(model: Any) -> None:
    weight = model.wav2vec2.feature_extractor.conv_layers[1].conv.weight
    assert weight.shape[0] == weight.shape[1]
    weight.data = weight.data.transpose(0, 1)


def from_a_vector(model: Any) -> None:
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(vector * 1.1, model.parameters())


def in_shared_memory(model: Any) -> None:
    model.share_memory()


def past_the_modules_setter(model: Any) -> None:
    model.lm_head._parameters["weight"] = torch.nn.Parameter(torch.randn(12, 32))


def without_a_bias(model: Any) -> None:
    attention(model).q_proj.bias = None


def one_weight_for_two(model: Any) -> None:
    attention(model).q_proj.weight = attention(model).k_proj.weight


def an_activation(model: Any) -> None:
    model.wav2vec2.encoder.layers[1].feed_forward.intermediate_act_fn = torch.nn.Tanh()


def a_conversion_and_back(model: Any) -> None:
    model.double().float()


def another_attention(model: Any) -> None:
    model.config._attn_implementation_internal = "eager"


def another_configuration(model: Any) -> None:
    model.config = copy.deepcopy(model.config)
    model.config._attn_implementation_internal = "eager"


CHANGES = [
    *(layers_exchanged, a_layer_twice, modules_exchanged, a_copy_of_a_module, weights_exchanged),
    *(data_exchanged, data_elsewhere, a_tensor_swapped, set_to_another, transposed_in_place),
    *(transposed_kernels, from_a_vector, in_shared_memory, past_the_modules_setter),
    *(without_a_bias, one_weight_for_two, an_activation, a_conversion_and_back),
    *(another_attention, another_configuration),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_and_answered(model: Any, change: Callable[[Any], None]) -> None:
    with enabled(model) as pool:
        serves(model)
        assert pool.stats().hits == 2
        change(model)
        found = queries(ROWS)
        with torch.no_grad():
            logits = model(**found).logits
        answers(logits, [alone(model, row) for row in ROWS])
        assert dict(pool.stats().misses) == {Reason.CHANGED: 1}
        pool.rebuild()
        serves(model)
        assert pool.stats().hits == 4


def test_weights_for_the_time_of_a_call_are_its_own(model: Any) -> None:
    others = {key: value * 1.2 for key, value in model.state_dict().items()}
    single = {"input_values": ROWS[0][None]}
    with torch.no_grad(), enabled(model):
        before = model(**single).logits
        changed = torch.func.functional_call(model, others, (), single).logits
        assert float((changed - before).abs().max()) > 1e-3
        answers(model(**single).logits, [before[0]])
    with torch.no_grad():
        answers(changed, [torch.func.functional_call(model, others, (), single).logits[0]])


def test_a_hook_that_would_be_passed_over_is_the_hosts_while_it_is_there(model: Any) -> None:
    calls: list[Any] = []
    with enabled(model) as pool, torch.no_grad():
        for register in (
            model.wav2vec2.encoder.register_forward_hook,
            model.wav2vec2.feature_extractor.register_forward_pre_hook,
        ):
            calls.clear()
            handle = register(lambda *args: calls.append(args))
            model(ROWS[0][None])
            assert len(calls) == 1
            handle.remove()
            serves(model)
        assert pool.stats().misses[Reason.UNSUPPORTED] == 2
        pool.rebuild()
        handle = model.wav2vec2.encoder.register_forward_hook(print)
        handle.remove()  # between two calls: nothing has changed
        serves(model)
        assert pool.stats().misses[Reason.CHANGED] == 4
        assert pool.explain(600).reason is None


def test_a_weight_of_one_element_is_known_by_its_place_and_not_by_its_value(model: Any) -> None:
    model.lm_head.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    with enabled(model) as pool:
        serves(model)
        model.lm_head.scale = torch.nn.Parameter(torch.ones(1))
        serves(model)
        assert pool.stats().misses == {Reason.CHANGED: 2}


def test_a_buffer_that_is_exchanged_is_noticed() -> None:
    model = CASES["conformer-relative"].build()
    norm = model.wav2vec2_conformer.encoder.layers[0].conv_module.batch_norm
    with enabled(model) as pool:
        serves(model)
        norm.running_mean = norm.running_mean + 1
        serves(model)
        assert pool.stats().misses == {Reason.CHANGED: 2}


def test_a_weight_that_is_not_contiguous_may_stay_as_it_is_and_not_otherwise(model: Any) -> None:
    weight = attention(model).q_proj.weight
    weight.data = weight.data.t()
    with enabled(model) as pool:
        serves(model)
        assert not pool.stats().misses
        weight.data = weight.data.t()
        serves(model)
        assert pool.stats().misses == {Reason.CHANGED: 2}


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_what_the_configuration_comes_to_ask_for_is_the_hosts(model: Any, name: str) -> None:
    model.set_attn_implementation("eager")
    with enabled(model) as pool, torch.no_grad():
        for asked in (False, True, False):
            setattr(model.config, name, asked)
            output = model(ROWS[0][None])
            assert (getattr(output, name.removeprefix("output_")) is not None) == asked
        assert pool.stats().misses == {Reason.OUTPUTS: 1}
        model.config = copy.deepcopy(model.config)
        setattr(model.config, name, True)
        model(ROWS[0][None])
        assert pool.stats().misses == {Reason.OUTPUTS: 2}
        setattr(model.config, name, False)
        model.config.return_dict = False
        assert isinstance(model(ROWS[0][None]), tuple)
        assert pool.stats().hits == 3


def test_the_interpreter_lists_all_values_of_dictionaries_in_order() -> None:
    model = tiny()
    for module in model.modules():
        for holder in (module._modules, module._parameters, module._buffers):
            listed = gc.get_referents(holder)
            assert [*map(id, listed)] == [*map(id, holder.values())]


def test_an_output_is_in_all_respects_what_its_class_makes() -> None:
    logits = torch.randn(1, 3, 4)
    found, expected = output_of(logits), CausalLMOutput(logits=logits)
    assert type(found) is CausalLMOutput
    assert vars(found) == vars(expected)
    assert list(found.items()) == list(expected.items()) == [("logits", logits)]
    assert found.logits is found["logits"] is found[0] is found.to_tuple()[0] is logits
    assert (found.loss, found.hidden_states, len(found)) == (None, None, 1)
    assert repr(found) == repr(expected)
    assert tree_flatten(found)[1] == tree_flatten(expected)[1]
    copied = copy.deepcopy(found)
    assert type(copied) is CausalLMOutput
    assert torch.equal(copied.logits, logits)
    found.loss = logits.sum()
    assert list(found) == ["logits", "loss"]
    assert "loss" not in output_of(logits)
