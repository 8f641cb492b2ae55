"""An enabled model is saved, loaded and copied as if it were not."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from padded_rows import agree, alone
from pooled import ROWS, Static, serves, tiny
from tiny_models import each, plan_for

from hf_cudagraph_asr import GraphPool, disable_cuda_graphs, enable_cuda_graphs

some_kinds = each(["wav2vec2-group", "wav2vec2-attention-adapter", "conformer-relative"])


def enable(model: Any, backend: Any = None) -> GraphPool:
    return enable_cuda_graphs(model, plan_for(model, (600,), (4,)), backend=backend or Static())


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@some_kinds
def test_from_pretrained_to_from_pretrained(name: str, tmp_path: Path) -> None:
    tiny(case=name).save_pretrained(tmp_path / "published")
    model = transformers.AutoModelForCTC.from_pretrained(tmp_path / "published").eval()
    with torch.no_grad():
        model(ROWS[0][None])  # some hosts extend their table of positions, with or without a pool
    model.save_pretrained(tmp_path / "stock")
    expected = [alone(model, row) for row in ROWS]
    with enable(model):
        serves(model)
        model.save_pretrained(tmp_path / "enabled")
        serves(model)
    model.save_pretrained(tmp_path / "disabled")
    assert files(tmp_path / "enabled") == files(tmp_path / "stock")
    assert files(tmp_path / "disabled") == files(tmp_path / "stock")

    again = transformers.AutoModelForCTC.from_pretrained(tmp_path / "enabled").eval()
    assert "forward" not in vars(again)
    for row, own in zip(ROWS, expected, strict=True):
        assert torch.equal(alone(again, row), own)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("wav2vec2-group", "export"),
        ("wav2vec2-attention-adapter", None),
        ("conformer-relative", None),
    ],
)
def test_the_state_is_the_models_own(name: str, backend: Any) -> None:
    model = tiny(case=name)
    before = {
        key: (tensor.data_ptr(), tensor.clone()) for key, tensor in model.state_dict().items()
    }
    modules = [key for key, _ in model.named_modules()]
    with enable(model, backend):
        serves(model)
        state = model.state_dict()
        assert list(state) == list(before)
        for key, (address, tensor) in before.items():
            assert state[key].data_ptr() == address
            assert torch.equal(state[key], tensor)
        assert [key for key, _ in model.named_modules()] == modules
        # Another model takes it as it is.
        other = tiny(1, name)
        other.load_state_dict(state)
    assert torch.equal(alone(other, ROWS[0]), alone(model, ROWS[0]))


@some_kinds
def test_a_deep_copy_is_a_stock_model_that_can_be_enabled_itself(name: str) -> None:
    model = tiny(case=name)
    with enable(model) as pool:
        serves(model)
        other = copy.deepcopy(model)
        assert "forward" not in vars(other) or other.forward.__self__ is other
        calls = pool.stats().calls
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.1)
            expected = alone(other, ROWS[0])
            assert torch.equal(other(ROWS[0][None]).logits[0], expected)
            assert float((expected - alone(model, ROWS[0])).abs().max()) > 1e-3
        assert pool.stats().calls == calls
        with enable(other) as own:
            serves(other)
            serves(model)
            third = copy.deepcopy(other)
            assert (own.stats().calls, pool.stats().calls) == (2, calls + 2)
        disable_cuda_graphs(model)
        with torch.no_grad():
            assert torch.equal(other(ROWS[0][None]).logits[0], expected)
            assert torch.equal(third(ROWS[0][None]).logits[0], expected)


def test_a_copy_of_what_holds_the_model_holds_one_stock_model() -> None:
    model = tiny()
    with enable(model) as pool:
        holder = copy.deepcopy({"model": model, "again": model})
        assert holder["model"] is holder["again"] is not model
        with torch.no_grad():
            assert torch.equal(holder["model"](ROWS[0][None]).logits[0], alone(model, ROWS[0]))
        assert pool.stats().calls == 0


def test_what_pickles_the_model_itself_names_the_remedy() -> None:
    model = tiny(case="data2vec-audio")  # torch pickles no parametrized convolution
    remedy = pytest.raises(TypeError, match=r"call disable_cuda_graphs\(model\) first")
    with enable(model):
        for whole in (model, model.forward):
            with remedy:
                pickle.dumps(whole)
            with remedy:
                torch.save(whole, io.BytesIO())
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        assert list(torch.load(file)) == list(model.state_dict())
    agree(alone(pickle.loads(pickle.dumps(model)), ROWS[0]), alone(model, ROWS[0]))  # noqa: S301 - own bytes
