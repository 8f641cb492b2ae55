"""Checkpoints of a training run as safetensors: weights, their average, optimizer state, step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_PATTERN = "denoiser-*.safetensors"
_KEEP = 2


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps in a folder, or None."""
    return max(folder.glob(_PATTERN), default=None)  # the step is zero-padded: names sort by it


def copy_into(module: nn.Module, values: Sequence[Tensor]) -> None:
    """Overwrite a module's parameters, in the order of `module.parameters()`."""
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value)


def save(
    folder: Path,
    step: int,
    seconds: float,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: Sequence[Tensor],
) -> Path:
    """Write a checkpoint after `step` steps and `seconds`; delete all but the newest two."""
    tensors: dict[str, Tensor] = {}
    for index, (parameter, mean) in enumerate(zip(module.parameters(), average, strict=True)):
        tensors[f"weight.{index}"] = parameter.detach()
        tensors[f"average.{index}"] = mean
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer.{number}.{index}.{name}"] = torch.as_tensor(value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"denoiser-{step:07d}.safetensors"
    partial = path.with_suffix(".partial")  # renamed when whole: an interrupted save is not loaded
    save_file(
        {key: value.cpu().contiguous() for key, value in tensors.items()},
        partial,
        metadata={"step": str(step), "seconds": f"{seconds:.1f}"},
    )
    os.replace(partial, path)
    for old in sorted(folder.glob(_PATTERN))[:-_KEEP]:
        old.unlink()
    return path


def load(
    path: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: Sequence[Tensor],
) -> tuple[int, float]:
    """Restore a checkpoint in place; returns the steps and the seconds it has behind it.

    Raises:
        ValueError: if the checkpoint is of a model of other sizes, or of other optimizers.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
    count = len(average)
    saved = sum(key.startswith("average.") for key in tensors)
    if saved != count:
        raise ValueError(
            f"{path} holds {saved} parameters and this model has {count}: it was made with other "
            "sizes. Give the run another --work folder."
        )
    kept = {key.rsplit(".", 2)[0] for key in tensors if key.startswith("optimizer.")}
    expected = {f"optimizer.{number}" for number in range(len(optimizers))}
    if kept != expected:
        raise ValueError(
            f"{path} holds the state of {', '.join(sorted(kept))} and this run needs that of "
            f"{', '.join(sorted(expected))}: it was made with other optimizers. Give the run "
            "another --work folder."
        )
    copy_into(module, [tensors[f"weight.{index}"] for index in range(count)])
    for index, mean in enumerate(average):
        mean.copy_(tensors[f"average.{index}"])
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, index, name = key.split(".")
            states[int(number)].setdefault(int(index), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return int(metadata["step"]), float(metadata["seconds"])


def load_newest(
    folder: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: Sequence[Tensor],
) -> tuple[int, float]:
    """Restore a folder's newest checkpoint, if there is one; returns steps and seconds done."""
    path = newest(folder)
    return (0, 0.0) if path is None else load(path, module, optimizers, average)
