"""Libraries of the package's extras, imported where they are first needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def imported(module: str, extra: str, use: str) -> Any:
    """Import a module of an extra; an ImportError says which use needs it, and what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0].replace("_", "-")
        install = f'pip install "hf-cudagraph-asr[{extra}]"'
        raise ImportError(f"{use} needs {library}: {install}") from error
