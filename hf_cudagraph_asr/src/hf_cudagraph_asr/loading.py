"""Models, processors, devices and types by name, with errors that say which."""

from __future__ import annotations

import os
from typing import Any

import torch

__all__ = ["device_of", "dtype_of", "loaded"]


def loaded(auto: Any, name_or_path: str | os.PathLike[str], **options: Any) -> Any:
    """What `auto.from_pretrained(name_or_path, **options)` gives.

    Args:
        auto: one of the host's Auto classes.
        name_or_path: a folder, or a name on the hub.
        options: of `from_pretrained`.

    Raises:
        OSError: it is not there, or not what it should be. The host's own message may not say
            what it was looking for.
    """
    try:
        return auto.from_pretrained(name_or_path, **options)
    except OSError as error:
        raise OSError(
            f"{auto.__name__} found nothing to load in {os.fspath(name_or_path)!r}, expected a "
            f"model's folder or its name on the hub: {error}"
        ) from error


def device_of(choice: str | torch.device) -> torch.device:
    """A device by its name; "auto" is the GPU, or the CPU where there is none.

    Raises:
        ValueError: it is not there.
    """
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(choice)
    except RuntimeError as error:
        raise ValueError(f"no device {choice!r}: expected auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"no device {str(device)!r}: torch sees {torch.cuda.device_count()} GPUs here; give "
            f"cpu or auto"
        )
    return device


def dtype_of(choice: str | torch.dtype) -> str | torch.dtype:
    """A floating-point type by its name, or "auto".

    Raises:
        ValueError: it is none.
    """
    if choice == "auto":
        return "auto"
    found = getattr(torch, choice, None) if isinstance(choice, str) else choice
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise ValueError(f"no dtype {choice!r}: expected auto, float32, bfloat16 or float16")
