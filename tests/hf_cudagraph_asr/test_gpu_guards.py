"""What tests/gpu rests on, as far as a machine without a GPU can tell."""

from __future__ import annotations

import ast
import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))  # no package, like this folder

from guards import no_synchronization

GPU_TESTS = Path(__file__).parents[1] / "gpu" / "test_graphs_gpu.py"

needs_cuda_build = pytest.mark.skipif(
    not hasattr(torch._C, "_cuda_set_sync_debug_mode"), reason="torch was built without CUDA"
)


@needs_cuda_build
@pytest.mark.parametrize("raised", [False, True])
def test_the_guard_against_waiting_goes_on_and_off_where_warnings_are_errors(
    monkeypatch: pytest.MonkeyPatch, raised: bool
) -> None:
    # All but the driver: torch's own function sets the mode, then warns that it is a prototype.
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    assert torch.cuda.get_sync_debug_mode() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with no_synchronization("cuda"):
                assert torch.cuda.get_sync_debug_mode() == 2
                if raised:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert raised
        assert torch.cuda.get_sync_debug_mode() == 0


def test_without_a_device_the_guard_refuses_what_would_wait() -> None:
    x = torch.ones(3)
    with no_synchronization("cpu"):
        x = x * 2 + x.argmax()
        with pytest.raises(RuntimeError, match="not permitted"):
            x.sum().item()


def _filters_of(test: str) -> list[str]:
    """The warning filters in the marks of a GPU test."""
    tree = ast.parse(GPU_TESTS.read_text(encoding="utf-8"))
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == test]
    calls = [mark for mark in function.decorator_list if isinstance(mark, ast.Call)]
    return [
        ast.literal_eval(call.args[0])
        for call in calls
        if ast.unparse(call.func) == "pytest.mark.filterwarnings"
    ]


def test_the_test_of_compiled_graphs_bears_what_inductor_says_of_float32() -> None:
    # The words of torch 2.11, which says it when it lowers a product of float32 on a device that
    # has TensorFloat32; later versions log it.
    said = (
        "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled. "
        "Consider setting `torch.set_float32_matmul_precision('high')` for better performance."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in _filters_of("test_graphs_of_the_compiled_forward_give_the_models_logits"):
            action, message, *_ = text.split(":")
            assert action == "ignore"
            warnings.filterwarnings("ignore", message)
        warnings.warn(said, stacklevel=1)
