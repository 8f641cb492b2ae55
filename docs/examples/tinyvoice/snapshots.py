"""Checkpoints of a training run as safetensors: weights, their average, optimizer state, step."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_PATTERN = "step-*.safetensors"
_KEPT = 3


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps in a folder, or None."""
    return max(folder.glob(_PATTERN), default=None)  # steps are zero-padded: names sort by them


def save(
    folder: Path,
    step: int,
    seconds: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> Path:
    """Write a checkpoint after `step` steps and `seconds` of processor time; keep the newest."""
    tensors = {f"weight.{name}": tensor.detach() for name, tensor in model.named_parameters()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:07d}.safetensors"
    partial = path.with_suffix(".partial")  # renamed when whole: an interrupted save is not loaded
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
        partial,
        metadata={"step": str(step), "seconds": f"{seconds:.1f}"},
    )
    os.replace(partial, path)
    for old in sorted(folder.glob(_PATTERN))[:-_KEPT]:
        old.unlink()
    return path


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> tuple[int, float]:
    """Restore a checkpoint in place; returns its steps and seconds of processor time.

    Raises:
        ValueError: if the checkpoint is of another model.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
    for name, parameter in model.named_parameters():
        saved = tensors.get(f"weight.{name}")
        if saved is None or saved.shape != parameter.shape:
            raise ValueError(
                f"{path} is of another model: here {name} is {tuple(parameter.shape)}, there "
                f"{None if saved is None else tuple(saved.shape)}. Give the run another --work."
            )
        with torch.no_grad():
            parameter.copy_(saved)
        average[name].copy_(tensors[f"average.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(metadata["step"]), float(metadata["seconds"])
