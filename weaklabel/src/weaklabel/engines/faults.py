"""What an engine raises, raised again as what a caller can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from weaklabel.errors import WeakLabelError

_DISK = {
    "no space left on device": errno.ENOSPC,
    "could not allocate disk": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
}


@contextmanager
def translated(engine: str, given: str, *kinds: type[Exception]) -> Iterator[None]:
    """Failures of an engine become a WeakLabelError, those of a disk an OSError.

    Args:
        engine: its name, for the message.
        given: what it works on.
        kinds: the exceptions that it raises.

    Raises:
        OSError: the disk is full, or a limit of file sizes is reached.
        WeakLabelError: anything else of `kinds`.
    """
    try:
        yield
    except WeakLabelError:
        raise
    except Exception as error:
        if not isinstance(error, (*kinds, OSError)):
            raise
        text = str(error).strip()
        for words, number in _DISK.items():
            if words in text.lower():
                raise OSError(
                    number, f"the votes could not be written: {text}; make room, then run again"
                ) from error
        if isinstance(error, OSError):
            raise
        raise WeakLabelError(f"{engine} failed on {given}: {text}") from error
