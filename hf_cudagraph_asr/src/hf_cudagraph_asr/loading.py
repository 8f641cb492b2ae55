"""Models and processors by name, with errors that say which."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["loaded"]


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
